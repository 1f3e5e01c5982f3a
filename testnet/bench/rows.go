package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/testnet"
)

// groups in the order in which they run. Goals are those of the project, for two cores.
var groups = append([]group{
	{"reactor", []row{
		{"reactor.local", "tasks/s", goal{"≥", 300_000}, "a reactor returns 16 bytes; 2 slots of the submitting node"},
		{"reactor.other", "tasks/s", goal{"≥", 150_000}, "the same on 2 slots of another node"},
	}, 3 * time.Minute, reactor},
	{"command", []row{
		{"command.local", "tasks/s", goal{}, "a C program is started for each task; 2 slots"},
		{"command.xargs", "tasks/s", goal{}, "xargs -P2 -n1 true: a native process for each task"},
		{"command.parallel", "tasks/s", goal{}, "GNU parallel -j2 true: a native process for each task"},
	}, 3 * time.Minute, command},
	{"bulk", []row{
		{"bulk.call.p50", "ms", goal{}, "calls as in call.other, while tasks with 4 MiB of input that return it go over the same connection"},
		{"bulk.call.p99", "ms", goal{"≤", 30}, ""},
		{"bulk.bytes", "MB/s", goal{}, "what these carry meanwhile, there and back"},
	}, 3 * time.Minute, bulk},
	{"call", []row{
		{"call.local.p50", "ms", goal{"≤", 0.2}, callNote},
		{"call.local.p99", "ms", goal{"≤", 1}, callNote},
		{"call.other.p50", "ms", goal{"≤", 0.4}, callNote},
		{"call.other.p99", "ms", goal{"≤", 2}, callNote},
		{"call.job.p50", "ms", goal{}, "a job of its own for each local call"},
	}, 3 * time.Minute, call},
	{"efficiency", []row{
		{"efficiency", "ratio", goal{"≥", 0.97}, "3000 tasks that sleep 10 ms, 3 nodes of 1 slot: Σ run time / slots, over the elapsed time"},
		{"efficiency.bare", "ratio", goal{}, "what the machine can do: 3 bare processes at the lowest priority, as workers have, that sleep 10 ms for each byte on a pipe"},
	}, 5 * time.Minute, efficiency},
	{"slow", []row{
		{"slow", "× ideal", goal{"≤", 1.08}, "one of two nodes about 8× slower (slow.factor): its workers are stopped for 7/8 of each 16 ms; ideal: 1 / (1/time on the fast one + 1/time on the slow one), both measured"},
		{"slow.factor", "×", goal{}, "how much slower it was"},
	}, 6 * time.Minute, slow},
	{"behind", []row{
		{"behind.first", "s", goal{"≤", 1}, "a job of 10 tasks of 10 ms behind one of 10 M of them, 1 node of 2 slots: until its first task starts"},
		{"behind.all", "s", goal{}, "… until all its results are there"},
	}, 4 * time.Minute, behind},
	{"killed", []row{
		{"killed.granted", "s", goal{"≤", 0.2}, "kill -9 of one of 3 nodes until its tasks were granted to others"},
		{"killed.running", "s", goal{}, "… until the first of them ran elsewhere"},
		{"killed.extra", "s", goal{}, "what the job then took beyond the work that was left, on the 2 slots left"},
	}, 4 * time.Minute, func(b *bench) { fault(b, "killed") }},
	{"frozen", []row{
		{"frozen.granted", "s", goal{"≤", 3.5}, "a node stopped by a signal, as by a closed lid, until its tasks were granted to others"},
		{"frozen.running", "s", goal{}, "… until the first of them ran elsewhere"},
		{"frozen.extra", "s", goal{"≤", 3.5}, "what the job then took beyond the work that was left, on the 2 slots left"},
	}, 4 * time.Minute, func(b *bench) { fault(b, "frozen") }},
	{"primes", []row{
		{"primes.small", "× goal", goal{"≤", 1}, "sum_primes of 8 inputs from 100000: time on 2 nodes / (0.5 × time on 1 node + 0.1 s); 1 slot each"},
		{"primes.large", "× goal", goal{"≤", 1}, "the same with inputs from 1000000"},
		{"primes.serial", "s", goal{}, "inputs from 1000000 on 1 node"},
		{"primes.two", "s", goal{}, "inputs from 1000000 on 2 nodes"},
		{"primes.cores", "×", goal{}, "what the machine can do: how much two goroutines compute in the time in which one does 1, measured in the same rounds"},
	}, 3 * time.Minute, primesRow},
	{"start", []row{
		{"start.first", "s", goal{"≤", 0.5}, "two nodes started on empty folders, one mesh, joined, and a program compiled: until the first result"},
		{"start.both", "s", goal{}, "… until each of the two has brought one"},
	}, 2 * time.Minute, start},
	{"idle", []row{
		{"idle.memory", "MB", goal{"≤", 60}, "resident memory of each of two connected nodes 5 s after their start"},
	}, 2 * time.Minute, idle},
	{"journal", []row{
		{"journal.submit", "tasks/s", goal{"≥", 200_000}, "1 M tasks of 200 bytes from the client until the node has them synced"},
		{"journal.reopen", "s", goal{"≤", 3}, "kill -9 of the node with them, from its start until it answers"},
		{"journal.complete", "tasks/s", goal{"≥", 100_000}, "then all of them by 2 slots of a reactor that returns the 200 bytes, results synced"},
	}, 6 * time.Minute, journal},
	{"waiting", []row{
		{"waiting.memory", "bytes", goal{"≤", 300}, "resident memory for each of 1 M waiting tasks of 200 bytes, over that with 100 k, of a node whose collector is told to keep little (GOGC=10)"},
	}, 4 * time.Minute, waiting},
	{"stream", []row{
		{"stream.memory", "MB", goal{"≤", 1000}, "the most that a node has in memory while 10 M tasks of 200 bytes go through it, from an attached client to its last result; 2 slots of a reactor"},
		{"stream.rate", "tasks/s", goal{}, "those tasks, over the elapsed time"},
	}, 10 * time.Minute, stream},
	{"beat", []row{
		{"beat.late", "ms", goal{"≤", 50}, "the latest beat of 5 s in which a task computes, as another node sees it; from the test of package node"},
	}, 4 * time.Minute, beat},
	{"bytes", []row{
		{"bytes.other", "MB/s", goal{"≥", 400}, "tasks with 1 MiB of input that return it, on another node: bytes there and back; 2 slots"},
		{"bytes.again", "MB/s", goal{}, "the same inputs a second time"},
		{"bytes.tls", "MB/s", goal{}, "what the machine can do: the same messages echoed over one loopback TLS connection, two under way"},
	}, 3 * time.Minute, bytesRow},
	{"demo", []row{
		{"demo", "s", goal{"≤", 15}, "meshnode demo: sum_primes on 1, 2 and 3 nodes"},
	}, 3 * time.Minute, demo},
}, pythonGroups...)

const callNote = "one call after the other of a reactor with 16 bytes, in one open job; the goal is that of a Python call"

func reactor(b *bench) {
	const tasks = 200_000
	measure := func(name string, n *testnet.Net) func() {
		o := n.Node(1)
		spec := b.program(o, echoReactor)
		b.submit(o, spec, numbered(20_000, 16), nil)
		return func() {
			d := b.submit(o, spec, numbered(tasks, 16), nil)
			b.add(name, tasks/d.took.Seconds())
		}
	}
	local := measure("reactor.local", b.twoNodes(true, 2))
	other := measure("reactor.other", b.twoNodes(false, 2))
	for range b.rounds {
		local()
		other()
	}
}

func command(b *bench) {
	const tasks, processes = 20_000, 2000
	o := b.mesh(1, 2).Node(1)
	spec := b.program(o, echoCommand)
	b.submit(o, spec, numbered(1000, 16), nil)
	others := map[string][]string{"command.xargs": {"xargs", "-P2", "-n1", "true"}, "command.parallel": {"parallel", "-j2", "true"}}
	var words bytes.Buffer
	for i := range processes {
		fmt.Fprintln(&words, i)
	}
	for range b.rounds {
		d := b.submit(o, spec, numbered(tasks, 16), nil)
		b.add("command.local", tasks/d.took.Seconds())
		for row, line := range others {
			if _, err := exec.LookPath(line[0]); err != nil {
				b.note(row, "not compared: it is not installed")
				continue
			}
			cmd := exec.CommandContext(b.ctx, line[0], line[1:]...)
			cmd.Stdin = bytes.NewReader(words.Bytes())
			began := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatal(line, err)
			}
			b.add(row, processes/time.Since(began).Seconds())
		}
	}
}

func call(b *bench) {
	const calls = 1000
	local, other := b.twoNodes(true, 1).Node(1), b.twoNodes(false, 1).Node(1)
	spec, spec2 := b.program(local, echoReactor), b.program(other, echoReactor)
	b.calls(local, spec, 100)
	b.calls(other, spec2, 100)
	for range b.rounds {
		l, r := b.calls(local, spec, calls), b.calls(other, spec2, calls)
		b.add("call.local.p50", median(l))
		b.add("call.local.p99", quantile(l, 0.99))
		b.add("call.other.p50", median(r))
		b.add("call.other.p99", quantile(r, 0.99))
		var jobs []float64
		for range calls / 10 {
			d := b.submit(local, spec, numbered(1, 16), nil)
			jobs = append(jobs, d.took.Seconds()*1000)
		}
		b.add("call.job.p50", median(jobs))
	}
}

func efficiency(b *bench) {
	const nodes, tasks = 3, 3000
	o := b.mesh(nodes, 1).Node(1)
	spec := b.program(o, sleep)
	b.submit(o, spec, same(60, "10"), nil)
	for range b.rounds {
		d := b.submit(o, spec, same(tasks, "10"), nil)
		if d.run < tasks*10*time.Millisecond {
			b.Fatalf("%d tasks slept %v together", tasks, d.run)
		}
		b.add("efficiency", d.run.Seconds()/nodes/d.took.Seconds())
		b.add("efficiency.bare", b.sleepers(nodes, tasks/3))
	}
}

// sleeper is the argument that makes this program one of the bare processes of efficiency.bare.
const sleeper = "sleeper"

// sleep10 answers each byte of r, after a sleep of 10 ms, with how many microseconds that took.
func sleep10(r io.Reader, w io.Writer) int {
	one := make([]byte, 1)
	for {
		if _, err := io.ReadFull(r, one); err != nil {
			return 0 // the end
		}
		began := time.Now()
		time.Sleep(10 * time.Millisecond)
		if err := binary.Write(w, binary.LittleEndian, time.Since(began).Microseconds()); err != nil {
			return 1
		}
	}
}

// sleepers is the efficiency of n bare processes with so many tasks: each gets the next when it has answered.
func (b *bench) sleepers(n, tasks int) float64 {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	line := []string{self, sleeper}
	if nice, err := exec.LookPath("nice"); err == nil {
		line = append([]string{nice, "-n", "19"}, line...)
	}
	next := make(chan struct{}, tasks)
	for range tasks {
		next <- struct{}{}
	}
	close(next)
	var run atomic.Int64 // µs
	var ready, wait sync.WaitGroup
	begin := make(chan struct{})
	fault := make(chan error, n)
	for range n {
		ready.Add(1)
		wait.Go(func() {
			fault <- func() error {
				cmd := exec.CommandContext(b.ctx, line[0], line[1:]...)
				in, err1 := cmd.StdinPipe()
				out, err2 := cmd.StdoutPipe()
				err := cmp.Or(err1, err2)
				if err == nil {
					err = cmd.Start()
				}
				one := func() error {
					if _, err := in.Write([]byte{0}); err != nil {
						return err
					}
					var took int64
					err := binary.Read(out, binary.LittleEndian, &took)
					run.Add(took)
					return err
				}
				if err == nil {
					err = one() // it runs
				}
				ready.Done()
				<-begin
				for err == nil {
					if _, more := <-next; !more {
						in.Close()
						return cmd.Wait()
					}
					err = one()
				}
				return err
			}()
		})
	}
	ready.Wait()
	run.Store(0)
	began := time.Now()
	close(begin)
	wait.Wait()
	took := time.Since(began)
	for range n {
		if err := <-fault; err != nil {
			b.Fatal("bare process:", err)
		}
	}
	return float64(run.Load()) / 1e6 / float64(n) / took.Seconds()
}

// Tasks of some 10 ms of computing.
const slowTasks, slowInput = 400, 100_000

func slow(b *bench) {
	n := b.mesh(2, 1)
	fast, o := n.Node(1), n.Node(1)
	spec := b.program(o, sumPrimes)
	b.submit(o, spec, primes(slowInput, 40), nil)
	b.Cleanup(b.slow(n.Node(2).PID(), 8))
	on := func(fastSlots, slowSlots, tasks int) (perTask float64, d done) {
		b.slots(fast, fastSlots)
		b.slots(n.Node(2), slowSlots)
		d = b.submit(o, spec, same(tasks, strconv.Itoa(slowInput)), nil)
		return d.took.Seconds() / float64(tasks), d
	}
	for range b.rounds {
		f, _ := on(1, 0, slowTasks/2)
		s, _ := on(0, 1, slowTasks/8)
		both, d := on(1, 1, slowTasks)
		b.add("slow", both*(1/f+1/s))
		b.add("slow.factor", s/f)
		if len(d.Peers) != 2 {
			b.Fatalf("%d nodes took part", len(d.Peers))
		}
	}
}

func behind(b *bench) {
	o := b.mesh(1, 2).Node(1)
	spec := b.program(o, sleep)
	b.submit(o, spec, same(20, "10"), nil)
	long := spec
	long.Detached = true
	if j, err := o.Client().Submit(b.ctx, long, same(10*million, "10"), nil); err != nil || j.Tasks != 10*million {
		b.Fatalf("submit: %v, %+v", err, j)
	}
	for range b.rounds {
		first := time.Duration(0)
		began := time.Now()
		d := b.submit(o, spec, same(10, "10"), func(r control.Result) {
			if first == 0 {
				first = time.Since(began) - r.Run
			}
		})
		b.add("behind.first", first.Seconds())
		b.add("behind.all", d.took.Seconds())
	}
	o.Kill()
}

func fault(b *bench, kind string) {
	const nodes, tasks = 3, 600
	n := b.mesh(nodes, 1)
	o, lost := n.Node(1), n.Node(2)
	lostID := b.status(lost).ID
	spec := b.program(o, sleep)
	for range b.rounds {
		b.submit(o, spec, same(60, "10"), nil)
		var (
			struck    time.Time
			before    = 0           // results
			after     time.Duration // run time of results that came later
			elsewhere time.Duration // from the fault to the start of the first attempt that replaces a lost one
			granted   = make(chan time.Duration, 1)
		)
		d := b.submit(o, spec, same(tasks, "10"), func(r control.Result) {
			now := time.Now()
			if before++; before < tasks/3 {
				return
			}
			if struck.IsZero() {
				struck = now
				if kind == "killed" {
					lost.Kill()
				} else {
					lost.Stop()
				}
				go func() { granted <- b.awaitReissue(o, struck) }()
				return
			}
			if string(r.Worker) != lostID {
				after += r.Run
			}
			if r.Attempts > 1 && elsewhere == 0 {
				elsewhere = now.Sub(struck) - r.Run
			}
		})
		end := time.Now()
		g := <-granted
		if g == 0 || elsewhere == 0 || d.Reissued == 0 {
			b.Fatalf("no task of the lost node was granted anew: %+v", d.Job)
		}
		b.add(kind+".granted", g.Seconds())
		b.add(kind+".running", elsewhere.Seconds())
		b.add(kind+".extra", (end.Sub(struck) - after/(nodes-1)).Seconds())
		b.note(kind+".granted", "%d tasks were granted anew in the last round", d.Reissued)
		if kind == "killed" {
			lost.Restart()
		} else {
			lost.Cont()
		}
		o.AwaitPeers(nodes - 1)
		lost.AwaitPeers(nodes - 1)
	}
}

// awaitReissue is how long after the fault tasks of the newest job were granted anew; 0 if never.
func (b *bench) awaitReissue(o *testnet.Node, struck time.Time) time.Duration {
	for time.Since(struck) < 20*time.Second {
		j, err := o.Client().Job(b.ctx, "@last")
		if err != nil {
			return 0
		}
		if j.Reissued > 0 {
			return time.Since(struck)
		}
		time.Sleep(time.Millisecond) // the interface has no event for it
	}
	return 0
}

func primesRow(b *bench) {
	n := b.mesh(2, 1)
	o := n.Node(1)
	spec := b.program(o, sumPrimes)
	b.submit(o, spec, primes(1000, 40), nil)
	run := func(first, slots int) float64 {
		b.slots(n.Node(2), slots)
		return b.submit(o, spec, primes(first, 8), nil).took.Seconds()
	}
	for range b.rounds {
		for _, c := range []struct {
			row   string
			first int
		}{{"primes.small", 100_000}, {"primes.large", 1_000_000}} {
			one, two := run(c.first, 0), run(c.first, 1)
			b.add(c.row, two/(0.5*one+0.1))
			if c.first == 1_000_000 {
				b.add("primes.serial", one)
				b.add("primes.two", two)
			}
		}
		b.add("primes.cores", compute(2)/compute(1))
	}
}

// compute is how much n goroutines together compute in a short while, as a number of no unit.
func compute(n int) float64 {
	const while = 300 * time.Millisecond
	var wait sync.WaitGroup
	var sum atomic.Int64
	for end := time.Now().Add(while); n > 0; n-- {
		wait.Go(func() {
			k := 0
			for ; time.Now().Before(end); k++ {
				for d := 2; d < 10_000; d++ {
					if 1_000_003%d == 0 {
						panic("1000003 is a prime")
					}
				}
			}
			sum.Add(int64(k))
		})
	}
	wait.Wait()
	return float64(sum.Load())
}

func start(b *bench) {
	for range b.rounds {
		began := time.Now()
		o := b.mesh(2, 1).Node(1)
		spec := b.program(o, echoReactor)
		var first, both time.Duration
		workers := map[string]bool{}
		more := make(chan struct{}, 1) // closed: enough
		ended := false
		b.submit(o, spec, func(yield func([]byte, error) bool) {
			for i := 0; yield([]byte("0123456789abcdef"), nil); i++ {
				if i < 4 { // as a job of a few tasks; then one for each result
					continue
				}
				if _, ok := <-more; !ok {
					return
				}
			}
		}, func(r control.Result) {
			if ended {
				return
			}
			workers[string(r.Worker)] = true
			first = cmp.Or(first, time.Since(began))
			if len(workers) == 2 {
				both = time.Since(began)
				ended = true
				close(more)
				return
			}
			select {
			case more <- struct{}{}:
			default:
			}
		})
		b.add("start.first", first.Seconds())
		b.add("start.both", both.Seconds())
	}
}

func idle(b *bench) {
	for range b.rounds {
		n := b.mesh(2, 2)
		b.pause(5 * time.Second)
		b.add("idle.memory", b.resident(n.Node(1))/1e6)
		b.add("idle.memory", b.resident(n.Node(2))/1e6)
		n.Node(1).Down()
		n.Node(2).Down()
	}
}

const million = 1_000_000

func journal(b *bench) {
	for range b.rounds {
		o := b.mesh(1, 2).Node(1)
		spec := b.program(o, echoReactor)
		b.submit(o, spec, numbered(10_000, 200), nil)
		b.slots(o, 0)
		spec.Detached = true
		began := time.Now()
		j, err := o.Client().Submit(b.ctx, spec, numbered(million, 200), nil)
		if err != nil || j.Tasks != million {
			b.Fatalf("submit: %v, %+v", err, j)
		}
		b.add("journal.submit", million/time.Since(began).Seconds())

		o.Kill()
		began = time.Now()
		o.Restart() // with its 2 slots again, so it begins to work
		b.add("journal.reopen", time.Since(began).Seconds())
		began = time.Now()
		opened, err := o.Client().Job(b.ctx, j.ID)
		if err != nil || opened.Tasks != million {
			b.Fatalf("reopened: %v, %+v", err, opened)
		}
		if j, err = o.Client().Wait(b.ctx, j.ID); err != nil || j.Done != million {
			b.Fatalf("wait: %v, %+v", err, j)
		}
		b.add("journal.complete", float64(million-opened.Done)/time.Since(began).Seconds())
		o.Down()
	}
}

func waiting(b *bench) {
	for range min(b.most, 3) {
		o := b.mesh(1, 1, "GOGC=10").Node(1)
		b.slots(o, 0)
		spec := b.program(o, echoReactor)
		spec.Detached = true
		add := func(tasks int) float64 {
			if j, err := o.Client().Submit(b.ctx, spec, numbered(tasks, 200), nil); err != nil {
				b.Fatalf("submit: %v, %+v", err, j)
			}
			return b.settled(o)
		}
		first := add(million / 10)
		b.add("waiting.memory", (add(million)-first)/million)
		o.Kill()
	}
}

var lateBeat = regexp.MustCompile(`latest beat came (\S+) late`)

func stream(b *bench) {
	const tasks = 10 * million
	o := b.mesh(1, 2).Node(1)
	ended, most := make(chan struct{}), make(chan float64)
	go func() {
		m := 0.0
		for {
			select {
			case <-time.After(100 * time.Millisecond):
				m = max(m, b.resident(o))
			case <-ended:
				most <- m
				return
			}
		}
	}()
	d := b.submit(o, b.program(o, echoReactor), numbered(tasks, 200), nil)
	close(ended)
	b.add("stream.memory", <-most/1e6)
	b.add("stream.rate", tasks/d.took.Seconds())
	o.Down()
}

func beat(b *bench) {
	dir, err := os.MkdirTemp("", "mn-beat-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	bin := filepath.Join(dir, "node.test")
	if out, err := exec.CommandContext(b.ctx, "go", "test", "-c", "-o", bin, "./node").CombinedOutput(); err != nil {
		b.Fatalf("go test -c ./node: %v\n%s", err, out)
	}
	for range b.rounds {
		cmd := exec.CommandContext(b.ctx, bin, "-test.run", "^TestBeatsWhileATaskComputes$", "-test.v")
		cmd.Dir = "node"
		out, err := cmd.CombinedOutput()
		m := lateBeat.FindSubmatch(out)
		if err != nil || m == nil {
			b.Fatalf("the test of beats: %v\n%s", err, out)
		}
		d, err := time.ParseDuration(string(m[1]))
		if err != nil {
			b.Fatal(err)
		}
		b.add("beat.late", d.Seconds()*1000)
	}
}

// calls measures calls one by one in an open job, in ms.
func (b *bench) calls(o *testnet.Node, spec node.JobSpec, n int) []float64 {
	var took []float64
	back := make(chan struct{})
	var sent time.Time
	input := []byte("0123456789abcdef")
	b.submit(o, spec, func(yield func([]byte, error) bool) {
		for range n {
			sent = time.Now()
			if !yield(input, nil) {
				return
			}
			select {
			case <-back:
			case <-b.ctx.Done():
				return
			}
		}
	}, func(r control.Result) {
		took = append(took, time.Since(sent).Seconds()*1000)
		b.mustEqual("call", r.Output, input)
		back <- struct{}{}
	})
	return took
}

// bulk has calls go to another node while blobs go there and back over the same connection.
func bulk(b *bench) {
	const size, count = 4 << 20, 16
	o := b.twoNodes(false, 3).Node(1)
	spec := b.program(o, echoReactor)
	b.calls(o, spec, 100)
	ins := random(count, size)
	for round := range b.rounds {
		stop, ended := make(chan struct{}), make(chan float64, 1)
		go func() {
			began, moved := time.Now(), 0
			defer func() { ended <- float64(moved) / 1e6 / time.Since(began).Seconds() }()
			for n := uint64(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				for _, in := range ins { // what was sent before would not be sent again
					binary.LittleEndian.PutUint64(in, uint64(round)<<32|n)
				}
				b.submit(o, spec, all(ins), nil)
				moved += 2 * count * size
			}
		}()
		time.Sleep(time.Second)
		took := b.calls(o, spec, 200)
		close(stop)
		b.add("bulk.call.p50", median(took))
		b.add("bulk.call.p99", quantile(took, 0.99))
		b.add("bulk.bytes", <-ended)
	}
}

func bytesRow(b *bench) {
	const tasks, size = 128, 1 << 20
	const moved = 2 * tasks * size / 1e6 // MB, there and back
	o := b.twoNodes(false, 2).Node(1)
	spec := b.program(o, echoReactor)
	b.submit(o, spec, all(random(4, size)), nil)
	echo := b.tlsEcho()
	for range b.rounds {
		ins := random(tasks, size)
		for _, row := range []string{"bytes.other", "bytes.again"} {
			d := b.submit(o, spec, all(ins), func(r control.Result) { b.mustEqual("echo", r.Output, ins[r.Index]) })
			b.add(row, moved/d.took.Seconds())
		}
		began := time.Now()
		echo(ins)
		b.add("bytes.tls", moved/time.Since(began).Seconds())
	}
}

// tlsEcho connects to an echo of its own over TLS, and returns a function that sends messages and reads them back.
func (b *bench) tlsEcho() func([][]byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		arrived := make(chan []byte, 2)
		go func() {
			defer close(arrived)
			for {
				m := make([]byte, 1<<20)
				if _, err := io.ReadFull(c, m); err != nil {
					return
				}
				arrived <- m
			}
		}()
		for m := range arrived {
			if _, err := c.Write(m); err != nil {
				return
			}
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true}) // its own echo, on loopback
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return func(ins [][]byte) {
		go func() {
			for _, in := range ins {
				if _, err := c.Write(in); err != nil {
					return // the reader sees it too
				}
			}
		}()
		m := make([]byte, 1<<20)
		for _, in := range ins {
			if _, err := io.ReadFull(c, m); err != nil {
				b.Fatal("TLS echo:", err)
			}
			b.mustEqual("TLS echo", m, in)
		}
	}
}

func demo(b *bench) {
	for range b.rounds {
		ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
		cmd := exec.CommandContext(ctx, testnet.Binary(b), "demo")
		var errs strings.Builder
		cmd.Stderr = &errs
		began := time.Now()
		err := cmd.Run()
		cancel()
		if err != nil {
			b.Fatalf("meshnode demo: %v\n%s", err, errs.String())
		}
		b.add("demo", time.Since(began).Seconds())
	}
}
