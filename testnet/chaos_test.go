package testnet

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
	"meshnode/testnet/lab"
)

// Chaos: a mesh of real processes in which nodes and worker processes are killed and frozen while clients submit
// jobs and compare what they get with sums that were computed here, one after the other. The plan of the faults
// comes from a seed; the moments in the nodes' lives that it hits do not, so a seed that failed is a hint, no proof.

const (
	chaosNodes   = 5
	chaosSeconds = 20

	// Sums of the primes below these: tasks of about 20 to 50 ms.
	chaosLeast, chaosMost = 100_000, 180_000

	// recovery is for what is left of the jobs once the faults stop: the longest wait is a lease's end (3 s) or that
	// of an earlier life (10 s), and the machine may be busy.
	recovery = 90 * time.Second
	// onDisk is how long after it was seen a result counts as written: 50 ms are promised, on an idle machine.
	onDisk = time.Second
)

// seedOf is the seed of a run: the variable's, or one of the clock.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("MESHNODE_CHAOS_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("MESHNODE_CHAOS_SEED: %v", err)
		}
	}
	t.Logf("repeat this with MESHNODE_CHAOS_SEED=%d", seed)
	return seed
}

// numberOf is the variable as a number, or otherwise.
func numberOf(t *testing.T, name string, otherwise int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: want a number from 1", name, v)
	}
	return n
}

// Nodes and worker processes killed, nodes frozen and restarted, the network cut, for 20 s or as many as
// MESHNODE_CHAOS_SECONDS says. Where there can be no lab, the network stays whole.
func TestChaos(t *testing.T) {
	length := time.Duration(numberOf(t, "MESHNODE_CHAOS_SECONDS", chaosSeconds)) * time.Second
	c := startChaos(t, seedOf(t), length+10*time.Minute)
	end := time.Now().Add(length)
	c.faults(func() bool { return time.Now().Before(end) }, func(r *rand.Rand) fault {
		return []fault{workerKilled, workerKilled, nodeKilled, nodeFrozen, partition, oneWay}[r.IntN(6)]
	}, chaosNodes)
	c.finish()
	if c.lab != nil && c.count[partition]+c.count[oneWay] == 0 || c.count[workerKilled] == 0 || c.count[nodeKilled] == 0 || c.count[nodeFrozen] == 0 {
		t.Errorf("nothing was tested: %v", c.count)
	}
}

// By hand: MESHNODE_CHAOS_KILLS=200 kills as many worker processes, and a quarter as many origins, in one run.
func TestKills(t *testing.T) {
	if os.Getenv("MESHNODE_CHAOS_KILLS") == "" {
		t.Skip("by hand, with MESHNODE_CHAOS_KILLS=200: it takes minutes")
	}
	workers := numberOf(t, "MESHNODE_CHAOS_KILLS", 0)
	origins := max(1, workers/4)
	c := startChaos(t, seedOf(t), time.Duration(workers)*10*time.Second+10*time.Minute)
	c.faults(func() bool { return c.count[workerKilled] < workers || c.count[nodeKilled] < origins }, func(r *rand.Rand) fault {
		// Both kinds spread over the whole run.
		w, o := max(0, workers-c.count[workerKilled]), max(0, origins-c.count[nodeKilled])
		if r.IntN(w+o) < w {
			return workerKilled
		}
		return nodeKilled
	}, chaosOrigins)
	c.finish()
}

type fault int

const (
	workerKilled fault = iota
	nodeKilled
	nodeFrozen
	partition // of the nodes into two halves, of any size
	oneWay    // one node's words do not reach another
	faultKinds
)

// chaosOrigins: nodes 1 to 3 have clients. All five work.
const chaosOrigins = 3

// chaos is one run. The fields are the test's goroutine's, but for those below mu.
type chaos struct {
	t       *testing.T
	n       *Net
	lab     *lab.Lab // nil: the nodes share one loopback
	hosts   []*lab.Host
	sides   [2]*lab.Switch
	seed    uint64
	sums    []uint64 // of the primes below an index
	began   time.Time
	count   [faultKinds]int
	origins int                       // of count[nodeKilled]
	killed  map[int][]time.Time       // nodes, when
	broken  []repair                  // nodes that are down or frozen
	thawed  [chaosNodes + 1]time.Time // nodes, when last
	ctx     context.Context
	stop    chan struct{} // closed when no more jobs are to be submitted
	wait    sync.WaitGroup

	programs []*program

	mu   sync.Mutex
	jobs []*chaosJob
}

// repair ends a fault.
type repair struct {
	at    time.Time
	node  int // 0: the network
	fault fault
	mute  [2]int // of a oneWay, from and to
}

// chaosJob is one submission. Its goroutine fills it in; the test reads it after that has ended.
type chaosJob struct {
	id       protocol.JobID
	origin   int
	detached bool
	inputs   []int
	results  map[uint32]chaosResult
	ended    node.Job
	began    time.Time
	took     time.Duration
	lost     int // results of a detached job that were seen and, after a crash, not there or others
}

type chaosResult struct {
	control.Result
	at time.Time
}

func startChaos(t *testing.T, seed uint64, limit time.Duration) *chaos {
	c := &chaos{t: t, seed: seed, killed: map[int][]time.Time{}, stop: make(chan struct{}), began: time.Now()}
	c.sums = make([]uint64, chaosMost+1)
	for i := 3; i <= chaosMost; i++ {
		c.sums[i] = c.sums[i-1]
		if prime(i - 1) {
			c.sums[i] += uint64(i - 1)
		}
	}
	program, err := os.ReadFile(sumPrimes)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Args: []string{"--log-level", "debug"}, ArgsOf: mixed}
	if err := lab.Missing(); err == nil {
		c.lab = lab.New(t)
		c.sides = [2]*lab.Switch{c.lab.Switch(), c.lab.Switch()}
		for i := range chaosNodes {
			h := c.lab.Host(fmt.Sprint("node", i+1))
			h.Plug(c.sides[0], fmt.Sprintf("10.99.0.%d/24", i+1))
			c.hosts = append(c.hosts, h)
		}
		o.Hosts = c.hosts
	} else {
		t.Logf("without partitions: %v", err)
	}
	c.n = Start(t, chaosNodes, o)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	c.ctx = ctx
	t.Cleanup(func() {
		cancel()
		c.wait.Wait()
	})
	for i, client := range []struct {
		origin   int
		detached bool
	}{{1, true}, {2, true}, {1, false}, {3, false}} {
		ctl, err := control.Dial(c.n.Node(client.origin).Dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ctl.Close)
		// Its frozen or restarting node is no reason to give up.
		ctl.Patience = recovery
		r := rand.New(rand.NewPCG(seed, uint64(i+1)))
		c.wait.Go(func() {
			for {
				select {
				case <-c.stop:
					return
				case <-c.ctx.Done():
					return
				default:
				}
				if !c.submit(ctl, client.origin, client.detached, r, program) {
					return
				}
			}
		})
	}
	// Programs in Python at two of the nodes, whose calls run on as many versions of it as there are.
	if all := clients(); len(all) == 0 {
		t.Log("without Python programs: no Python from 3.8 on is found")
	} else {
		t.Logf("Python: programs on %v and %v, workers on %v", all[0], all[len(all)-1], pythons())
		c.programs = append(c.programs, startProgram(t, c.n.Node(1), all[len(all)-1], seed), startProgram(t, c.n.Node(3), all[0], seed+2))
	}
	return c
}

// submit runs one job to its end and reports whether there may be another.
func (c *chaos) submit(ctl *control.Client, origin int, detached bool, r *rand.Rand, program []byte) bool {
	j := &chaosJob{id: protocol.NewJobID(), origin: origin, detached: detached, began: time.Now(), results: map[uint32]chaosResult{}}
	for range 20 + r.IntN(60) {
		j.inputs = append(j.inputs, chaosLeast+r.IntN(chaosMost-chaosLeast))
	}
	fail := func(doing string, err error) bool {
		c.t.Errorf("job %s of node %d, detached %v, %s: %v", j.id.Short(), origin, detached, doing, err)
		return false
	}
	var code protocol.BlobID
	for {
		var err error
		if code, err = ctl.PutProgram(c.ctx, bytes.NewReader(program)); err == nil {
			break
		}
		if !errors.Is(err, control.ErrNoNode) || !c.pause() {
			return fail("put the program", err)
		}
	}
	c.mu.Lock()
	c.jobs = append(c.jobs, j)
	c.mu.Unlock()
	spec := node.JobSpec{ID: j.id, Name: "chaos", Runtime: "wasm", Code: code, Detached: detached}
	inputs := func(yield func([]byte, error) bool) {
		for _, n := range j.inputs {
			if !yield([]byte(strconv.Itoa(n)), nil) {
				return
			}
		}
	}
	ended, err := ctl.Submit(c.ctx, spec, inputs, func(rs []control.Result) error {
		for _, res := range rs {
			if _, twice := j.results[res.Index]; twice {
				return fmt.Errorf("task %d came twice", res.Index)
			}
			j.keep(res)
		}
		return nil
	})
	if err != nil {
		return fail("submit", err)
	}
	if detached {
		if ended, err = c.follow(ctl, j); err != nil {
			return fail("follow", err)
		}
	}
	j.ended, j.took = ended, time.Since(j.began)
	return true
}

// keep notes a result. What it points to is its own.
func (j *chaosJob) keep(r control.Result) {
	r.Output, r.Error = bytes.Clone(r.Output), strings.Clone(r.Error)
	j.results[r.Index] = chaosResult{r, time.Now()}
}

// follow watches a detached job to its end, through the crashes of its origin.
func (c *chaos) follow(ctl *control.Client, j *chaosJob) (node.Job, error) {
	var lost []time.Time // when the connection was
	// recorded says that what was seen at that moment was on the disk when the node was next killed.
	recorded := func(at time.Time) bool {
		k := slices.IndexFunc(lost, at.Before)
		return k >= 0 && lost[k].Sub(at) > onDisk
	}
	for {
		there := map[uint32]bool{} // on this connection
		ended, err := ctl.Watch(c.ctx, j.id, control.Watching{}, func(rs []control.Result) error {
			for _, r := range rs {
				if there[r.Index] {
					return fmt.Errorf("task %d came twice", r.Index)
				}
				there[r.Index] = true
				old, known := j.results[r.Index]
				if same := known && equal(old.Result, r); known && !same && recorded(old.at) {
					j.lost++
					c.t.Errorf("job %s: task %d was recorded as %+v, and is %+v after a crash", j.id.Short(), r.Index, old.TaskResult, r.TaskResult)
				} else if !same {
					j.keep(r)
				}
			}
			return nil
		})
		if err == nil && len(there) != len(j.results) {
			return ended, fmt.Errorf("%d of %d results that were seen are there at the end", len(there), len(j.results))
		}
		if err == nil || !errors.Is(err, control.ErrNoNode) {
			return ended, err
		}
		if len(there) > 0 {
			lost = append(lost, time.Now())
		}
		if !c.pause() {
			return ended, err
		}
	}
}

// equal says that b is the record that a is, not another run with the same output.
func equal(a, b control.Result) bool {
	return a.Seq == b.Seq && a.Status == b.Status && a.Worker == b.Worker && a.Attempts == b.Attempts && a.Run == b.Run && bytes.Equal(a.Output, b.Output)
}

// pause is between two tries to reach a node that is away.
func (c *chaos) pause() bool {
	select {
	case <-c.ctx.Done():
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}

// faults lets things go wrong as long as more says so; kind draws what, the first nodes of the mesh are where whole
// nodes are killed or frozen. It draws the same numbers for each fault, also for one that is passed over because its node is down.
func (c *chaos) faults(more func() bool, kind func(*rand.Rand) fault, nodes int) {
	r := rand.New(rand.NewPCG(c.seed, 0))
	for more() && !c.t.Failed() {
		gap := 50*time.Millisecond + time.Duration(r.ExpFloat64()*float64(300*time.Millisecond))
		k, i, share := kind(r), 1+r.IntN(chaosNodes), r.Float64()
		whole := 1 + (i-1)%nodes
		// Down for less and for more than it takes to notice; frozen for less and for more than a lease.
		down, frozen := time.Duration(r.Int64N(int64(2*time.Second))), time.Duration(r.Int64N(int64(6*time.Second)))
		sides, other := 2*uint(1+r.IntN(1<<chaosNodes-2)), 1+(i+r.IntN(chaosNodes-1))%chaosNodes
		c.until(time.Now().Add(gap))
		switch k {
		case nodeKilled, nodeFrozen:
			i = whole
		case partition, oneWay:
			if c.cut(k, sides, i, other, frozen) {
				c.count[k]++
			}
			continue
		}
		if slices.ContainsFunc(c.broken, func(b repair) bool { return b.node == i }) || len(c.broken) >= chaosNodes-2 && k != workerKilled {
			continue
		}
		if k == nodeKilled && time.Since(c.thawed[i]) < onDisk {
			continue // what it told before it was frozen is not yet written, and would be counted as lost
		}
		nd := c.n.Node(i)
		switch k {
		case workerKilled:
			if !c.killWorker(nd, share) {
				continue
			}
		case nodeKilled:
			nd.Kill()
			c.killed[i] = append(c.killed[i], time.Now())
			c.broken = append(c.broken, repair{at: time.Now().Add(down), node: i, fault: k})
			if i <= chaosOrigins {
				c.origins++
			}
		case nodeFrozen:
			nd.Stop()
			c.broken = append(c.broken, repair{at: time.Now().Add(frozen), node: i, fault: k})
		}
		c.count[k]++
	}
}

// until repairs what is due, up to the moment at.
func (c *chaos) until(at time.Time) {
	for {
		slices.SortFunc(c.broken, func(a, b repair) int { return a.at.Compare(b.at) })
		if len(c.broken) == 0 || c.broken[0].at.After(at) {
			time.Sleep(time.Until(at))
			return
		}
		b := c.broken[0]
		c.broken = c.broken[1:]
		time.Sleep(time.Until(b.at))
		switch b.fault {
		case nodeFrozen:
			c.n.Node(b.node).Cont()
			c.thawed[b.node] = time.Now()
		case nodeKilled:
			c.n.Node(b.node).Restart()
		case partition:
			c.split(0)
		case oneWay:
			c.lab.Pass(c.hosts[b.mute[0]-1], c.hosts[b.mute[1]-1])
		}
	}
}

// cut cuts the network, which is whole again after lasts, and says whether it could: it has one fault at a time.
func (c *chaos) cut(k fault, sides uint, from, to int, lasts time.Duration) bool {
	if c.lab == nil || slices.ContainsFunc(c.broken, func(b repair) bool { return b.node == 0 }) {
		return false
	}
	b := repair{at: time.Now().Add(lasts), fault: k, mute: [2]int{from, to}}
	if k == partition {
		c.split(sides)
	} else {
		c.lab.Drop(c.hosts[from-1], c.hosts[to-1])
	}
	c.broken = append(c.broken, b)
	return true
}

// split puts node i on the second switch if bit i of sides is set, and on the first otherwise.
func (c *chaos) split(sides uint) {
	for i, h := range c.hosts {
		h.Link(0).Move(c.sides[sides>>(i+1)&1])
	}
}

// killWorker kills one of the node's worker processes, or what makes them, if it has any. A process of that number that is not the
// node's child, or a child's, is not touched.
func (c *chaos) killWorker(nd *Node, share float64) bool {
	p, err := process.NewProcess(int32(nd.PID()))
	if err != nil {
		return false
	}
	children, err := p.Children()
	for _, w := range children {
		if forked, err := w.Children(); err == nil {
			children = append(children, forked...)
		}
	}
	if err != nil || len(children) == 0 {
		return false
	}
	parents := []int32{p.Pid}
	for _, w := range children {
		parents = append(parents, w.Pid)
	}
	slices.SortFunc(children, func(a, b *process.Process) int { return cmp.Compare(a.Pid, b.Pid) })
	w := children[int(share*float64(len(children)))]
	if parent, err := w.Ppid(); err != nil || !slices.Contains(parents, parent) {
		return false
	}
	return w.Kill() == nil
}

// ranLine is what a node logs of each task that ran to its end.
var ranLine = regexp.MustCompile(`time=(\S+) level=DEBUG msg="task ran" .*attempt=([0-9a-f]+)/(\d+)#(\d+)\.(\d+)`)

// ran is one run of a task, to its end.
type ran struct {
	at    time.Time
	job   string
	index uint32
	epoch uint64
}

func (c *chaos) runs() (all []ran, deaths int) {
	for i := range chaosNodes {
		log := c.n.Node(i + 1).Log()
		deaths += strings.Count(log, "worker process died while it ran a task")
		for _, m := range ranLine.FindAllStringSubmatch(log, -1) {
			at, err1 := time.Parse(time.RFC3339Nano, m[1])
			index, err2 := strconv.ParseUint(m[3], 10, 32)
			epoch, err3 := strconv.ParseUint(m[4], 10, 64)
			if err := errors.Join(err1, err2, err3); err != nil {
				c.t.Fatalf("log of node %d: %q: %v", i+1, m[0], err)
			}
			all = append(all, ran{at, m[2], uint32(index), epoch})
		}
	}
	return all, deaths
}

// finish ends the faults, waits for all jobs, and compares.
func (c *chaos) finish() {
	t := c.t
	for len(c.broken) > 0 {
		c.until(c.broken[len(c.broken)-1].at)
	}
	over := time.Now()
	close(c.stop)
	for _, g := range c.programs {
		g.stdin.Close()
	}
	done := make(chan struct{})
	go func() {
		c.wait.Wait()
		for _, g := range c.programs {
			<-g.ended
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(recovery):
		for _, j := range c.jobs {
			if j.ended.ID == "" {
				job, err := c.n.Node(j.origin).Client().Job(context.Background(), j.id.String())
				t.Logf("job %s of node %d: %+v, %v", j.id, j.origin, job, err)
			}
		}
		for _, g := range c.programs {
			jobs, err := c.n.Node(g.node).Client().Jobs(context.Background())
			t.Logf("Python %v at node %d told of %d calls; its node: %v\n%s", g.python, g.node, g.calls, err, &g.errs)
			for _, j := range jobs {
				if j.State == "running" {
					t.Logf("%+v\n%s", j, c.n.Node(g.node).CLI("why", j.ID).Stdout)
				}
			}
		}
		t.Fatalf("jobs go on %v after the last fault", recovery)
	}
	for _, g := range c.programs {
		if g.err != nil || g.calls == 0 {
			t.Errorf("Python %v at node %d, after %d calls: %v\n%s", g.python, g.node, g.calls, g.err, &g.errs)
		} else {
			t.Logf("Python %v at node %d: %d calls, each with its result, once", g.python, g.node, g.calls)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	runs, deaths := c.runs()
	perJob := map[string][]ran{}
	for _, r := range runs {
		perJob[r.job] = append(perJob[r.job], r)
	}
	tasks, missing, wrong, failed, detached, doubled, executed, again, recorded := 0, 0, 0, 0, 0, 0, 0, 0, 0
	slowest := &chaosJob{}
	for _, j := range c.jobs {
		tasks += len(j.inputs)
		if j.took > slowest.took {
			slowest = j
		}
		for i, n := range j.inputs {
			r, ok := j.results[uint32(i)]
			switch {
			case !ok:
				missing++
				t.Errorf("job %s: no result of task %d", j.id.Short(), i)
			case r.Status != protocol.Status_OK:
				failed++
				t.Errorf("job %s: task %d: %v, %s", j.id.Short(), i, r.Status, r.Error)
			case strings.TrimSpace(string(r.Output)) != strconv.FormatUint(c.sums[n], 10):
				wrong++
				t.Errorf("job %s: task %d: %q for %d, want %d", j.id.Short(), i, r.Output, n, c.sums[n])
			}
		}
		if j.ended.ID != j.id.String() || j.ended.State != "done" || int(j.ended.Done) != len(j.inputs) {
			t.Errorf("job %s ended as %+v", j.id.Short(), j.ended)
		}
		executed += len(perJob[j.id.Short()])
		if j.detached {
			detached++
			doubled += j.lost + c.journaled(j)
			n, of := c.ranAgain(j, runs, perJob[j.id.Short()])
			again, recorded = again+n, recorded+of
		}
	}
	if executed < tasks {
		t.Errorf("the logs tell of %d runs for %d tasks", executed, tasks)
	}
	killed := 0
	for _, k := range c.killed {
		killed += len(k)
	}
	t.Logf("seed %d: %v, the last job %v after the last fault", c.seed, time.Since(c.began).Round(time.Second/10), time.Since(over).Round(time.Second/10))
	t.Logf("faults: %d worker processes killed (%d in a task), %d nodes killed (%d of them origins), %d frozen, the network cut %d times, for one direction between two %d times",
		c.count[workerKilled], deaths, killed, c.origins, c.count[nodeFrozen], c.count[partition], c.count[oneWay])
	meanwhile := 0
	for _, at := range c.killed[slowest.origin] {
		if at.After(slowest.began) && at.Before(slowest.began.Add(slowest.took)) {
			meanwhile++
		}
	}
	t.Logf("%d jobs (%d detached), %d tasks, slowest job %v, its origin killed %d times meanwhile", len(c.jobs), detached, tasks, slowest.took.Round(time.Second/10), meanwhile)
	t.Logf("%d lost, %d doubled or changed, %d wrong, %d failed; %d runs, %.3f for each task; of %d results that a crash of their origin found recorded %d ran again", missing, doubled, wrong, failed, executed, float64(executed)/float64(max(1, tasks)), recorded, again)
}

// journaled compares what the origin has of an ended job with what its client saw, and counts what differs.
func (c *chaos) journaled(j *chaosJob) (differ int) {
	there := map[uint32]bool{}
	_, err := c.n.Node(j.origin).Client().Watch(c.ctx, j.id, control.Watching{Now: true}, func(rs []control.Result) error {
		for _, r := range rs {
			if there[r.Index] || !bytes.Equal(j.results[r.Index].Output, r.Output) || int(r.Seq) != len(there) {
				differ++
			}
			there[r.Index] = true
		}
		return nil
	})
	if err != nil || len(there) != len(j.inputs) || differ > 0 {
		c.t.Errorf("node %d has %d of %d results of job %s, %d differ: %v", j.origin, len(there), len(j.inputs), j.id.Short(), differ, err)
	}
	return differ
}

// ranAgain counts the tasks of a detached job that were recorded when their origin was killed, and that it granted
// anew in a later life. A life is known by its epoch.
func (c *chaos) ranAgain(j *chaosJob, all, own []ran) (n, checked int) {
	ofOrigin := map[string]bool{}
	for _, o := range c.jobs {
		ofOrigin[o.id.Short()] = ofOrigin[o.id.Short()] || o.origin == j.origin
	}
	for index, res := range j.results {
		k := slices.IndexFunc(c.killed[j.origin], res.at.Before)
		if k < 0 || c.killed[j.origin][k].Sub(res.at) < onDisk {
			continue
		}
		checked++
		crash, epoch := c.killed[j.origin][k], uint64(0)
		for _, r := range all {
			if ofOrigin[r.job] && r.at.Before(crash) {
				epoch = max(epoch, r.epoch)
			}
		}
		for _, r := range own {
			if r.index == index && r.epoch > epoch {
				n++
				c.t.Errorf("job %s: task %d was recorded in epoch %d, and ran again in epoch %d", j.id.Short(), index, epoch, r.epoch)
			}
		}
	}
	return n, checked
}
