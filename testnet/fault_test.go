package testnet

import (
	"bufio"
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/process"
)

const misbehave = "../tasks/executor/wasm/testdata/misbehave.wasm"

// Tasks of about 50 ms each, on the machine of whoever wrote this: the sums of the primes below them.
const (
	faultTasks = 200
	firstPrime = 180_000
)

// line is one line of submit --json.
type line struct {
	Job, Status, Output, Error, Peer string
	Index, Attempts                  int
	ExitCode                         int     `json:"exit_code"`
	RunMS                            float64 `json:"run_ms"`
	// of the last line
	Done, Failed, Stolen, Reissued, Spares int
	ElapsedMS                              float64 `json:"elapsed_ms"`
	Peers                                  []struct {
		Peer  string
		Tasks int
	}
}

// faultRun is a submission of such tasks, attached, under way.
type faultRun struct {
	t       *testing.T
	lines   chan line
	tasks   int
	results map[int]line
	stats   line
	began   time.Time
}

func submitFaultTasks(t *testing.T, n *Net) *faultRun {
	t.Helper()
	return n.Node(1).submitTasks(t, faultTasks)
}

func (nd *Node) submitTasks(t *testing.T, tasks int) *faultRun {
	t.Helper()
	args := []string{"submit", "--json", "--stats", sumPrimes, ":::"}
	for i := range tasks {
		args = append(args, strconv.Itoa(firstPrime+i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	cmd := nd.Command(ctx, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &faultRun{t: t, lines: make(chan line, tasks+1), tasks: tasks, results: map[int]line{}, began: time.Now()}
	go func() {
		defer cancel()
		defer close(r.lines)
		sc := bufio.NewScanner(out)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			var l line
			if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
				t.Errorf("line %q: %v", sc.Text(), err)
			}
			r.lines <- l
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("submit: %v", err)
		}
	}()
	return r
}

// read takes lines until there are n results, or to the end.
func (r *faultRun) read(n int) {
	r.t.Helper()
	for len(r.results) < n {
		l, ok := <-r.lines
		if !ok {
			return
		}
		if l.Status == "" {
			r.stats = l
			continue
		}
		if old, twice := r.results[l.Index]; twice {
			r.t.Errorf("task %d came twice: %+v and %+v", l.Index, old, l)
		}
		r.results[l.Index] = l
	}
}

// finish reads the rest and checks that each result is there, once, and right.
func (r *faultRun) finish() time.Duration {
	r.t.Helper()
	r.read(r.tasks + 1)
	took := time.Since(r.began)
	if len(r.results) != r.tasks {
		r.t.Errorf("%d of %d results", len(r.results), r.tasks)
	}
	sum, at := 0, 2
	for i := range r.tasks {
		for ; at < firstPrime+i; at++ {
			if prime(at) {
				sum += at
			}
		}
		if l := r.results[i]; l.Status != "ok" || strings.TrimSpace(l.Output) != strconv.Itoa(sum) {
			r.t.Fatalf("task %d: %+v, want %d", i, l, sum)
		}
	}
	return took
}

func prime(n int) bool {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

// onNode is how many results a node has brought.
func (r *faultRun) onNode(id string) int {
	n := 0
	for _, l := range r.results {
		if l.Peer == id {
			n++
		}
	}
	return n
}

func id(t *testing.T, nd *Node) string {
	t.Helper()
	st, err := nd.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.ID
}

// reissued is how many tasks of the newest job were granted anew so far: those that were given back, too.
func reissued(t *testing.T, nd *Node) uint32 {
	t.Helper()
	j, err := nd.Client().Job(t.Context(), "@last")
	if err != nil {
		t.Fatal(err)
	}
	return j.Reissued
}

// awaitReissue waits until more tasks of the newest job were granted anew than before, and says how long that took.
func awaitReissue(t *testing.T, nd *Node, before uint32, most time.Duration) time.Duration {
	t.Helper()
	return nd.net.Await(most, "tasks of the lost node are granted anew", func() bool { return reissued(t, nd) > before })
}

func TestNodeKilledInAJob(t *testing.T) {
	n := Start(t, 3, Options{})
	two := id(t, n.Node(2))
	r := submitFaultTasks(t, n)
	r.read(60)
	before, killed := reissued(t, n.Node(1)), time.Now()
	sixty := killed.Sub(r.began)
	n.Node(2).Kill()
	// A lease would take 3 s to expire; a closed connection is known at once.
	took := awaitReissue(t, n.Node(1), before, 2*time.Second)
	whole := r.finish()
	// 140 tasks on two of three nodes, as fast as the first 60, and less than the time of a lease.
	if rest, most := time.Since(killed), sixty*140/60*3/2+2500*time.Millisecond; rest > most {
		t.Errorf("after the kill the job took %v: at most %v, it waited for something", rest, most)
	}
	if r.onNode(two) == 0 {
		t.Error("node 2 did nothing before it was killed: nothing was tested")
	}
	if r.stats.Reissued == 0 || r.stats.Done != faultTasks {
		t.Errorf("%+v", r.stats)
	}
	t.Logf("tasks of the killed node granted anew after %v; the job took %v", took, whole)
}

func TestNodeFrozenInAJob(t *testing.T) {
	n := Start(t, 3, Options{})
	two := id(t, n.Node(2))
	r := submitFaultTasks(t, n)
	usual := r.finish()

	r = submitFaultTasks(t, n)
	r.read(60)
	was := reissued(t, n.Node(1))
	n.Node(2).Stop()
	took := awaitReissue(t, n.Node(1), was, 5*time.Second)
	whole := r.finish()
	// Two of three nodes need at most half as long again; without leases the connection would show it after 40 s.
	if most := usual*3/2 + 4*time.Second; whole > most {
		t.Errorf("the job took %v with a frozen node and %v without a fault: at most %v", whole, usual, most)
	}
	if r.onNode(two) == 0 {
		t.Error("node 2 did nothing before it was frozen: nothing was tested")
	}
	t.Logf("tasks of the frozen node granted anew after %v; the job took %v, without a fault %v", took, whole, usual)
	before := n.Node(1).CLI("results", "@last", "--json", "-k")
	n.Node(2).Cont()
	n.Node(1).AwaitPeers(2)
	n.Node(2).AwaitPeers(2)
	// Another job passes through the node that was frozen, so its late results had their time to come.
	submitFaultTasks(t, n).finish()
	jobs, err := n.Node(1).Client().Jobs(t.Context())
	if err != nil || len(jobs) != 3 {
		t.Fatalf("%v, %+v", err, jobs)
	}
	after := n.Node(1).CLI("results", jobs[1].ID, "--json", "-k")
	if before.Stdout != after.Stdout || before.Code != 0 || strings.Count(after.Stdout, "\n") != faultTasks {
		t.Errorf("results changed when the frozen node went on: %d and %d lines", strings.Count(before.Stdout, "\n"), strings.Count(after.Stdout, "\n"))
	}
}

// A worker process stands still while its node lives and beats: no lease ends, and no worker process dies. The task in it gets a
// second copy at the end of the job, without which the job would never end.
func TestSpareCopyOfATaskThatStandsStill(t *testing.T) {
	n := Start(t, 2, Options{})
	two := id(t, n.Node(2))
	r := submitFaultTasks(t, n)
	for k := 20; r.onNode(two) == 0; k++ {
		if k > faultTasks/2 {
			t.Fatal("node 2 brings nothing")
		}
		r.read(k)
	}
	p, err := process.NewProcess(int32(n.Node(2).PID()))
	if err != nil {
		t.Fatal(err)
	}
	workers, err := p.Children()
	if err != nil || len(workers) == 0 {
		t.Fatalf("no worker processes: %v", err)
	}
	for _, w := range workers {
		if err := w.Suspend(); err != nil {
			t.Fatal(err)
		}
	}
	r.finish()
	t.Logf("the job took %v, with %d spare copies", time.Since(r.began), r.stats.Spares)
	if r.stats.Spares == 0 {
		t.Errorf("the job ended without a spare copy: %+v", r.stats)
	}
	for _, nd := range []*Node{n.Node(1), n.Node(2)} {
		nd.AwaitPeers(1) // nobody was lost
	}
	// The slot is free again: what stood in it was ended with its job.
	if out := n.Node(1).CLI("submit", "--remote-only", sumPrimes, ":::", "100"); strings.TrimSpace(out.Stdout) != "1060" {
		t.Errorf("after it: %+v", out)
	}
}

// Bad tasks end with their reason, and cost the others of their job nothing.
func TestBadTasksAmongGoodOnes(t *testing.T) {
	n := Start(t, 2, Options{})
	for _, c := range []struct{ input, flag, value, want string }{
		{"loop", "--timeout", "1s", "timed out"},
		{"memory", "--memory", "64M", "64 MiB"},
		{"output", "--timeout", "60s", "output_limit"},
	} {
		out := n.Node(1).CLI("submit", "-k", "--json", "--clock", "real", c.flag, c.value, misbehave, ":::", "sleep 1", c.input, "sleep 2", "sleep 3")
		lines := strings.Split(strings.TrimSpace(out.Stdout), "\n")
		if out.Code != 1 || len(lines) != 4 {
			t.Errorf("%s: exit code %d, %d lines, %s", c.input, out.Code, len(lines), out.Stderr)
			continue
		}
		for i, text := range lines {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatal(err)
			}
			switch {
			case i == 1 && (l.Status != "failed" || !strings.Contains(l.Error, c.want)):
				t.Errorf("%s: %s, want failed with %q", c.input, text, c.want)
			case i != 1 && l.Status != "ok":
				t.Errorf("%s: its neighbour: %s", c.input, text)
			}
		}
	}
	n.Node(1).AwaitPeers(1) // and both nodes live
}

func TestKilledNodeLeavesNoProcess(t *testing.T) {
	n := Start(t, 1, Options{})
	node := n.Node(1)
	if out := node.CLI("submit", "-d", misbehave, ":::", "loop"); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	p, err := process.NewProcess(int32(node.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var workers []*process.Process
	n.Await(20*time.Second, "a worker computes", func() bool {
		st, err := node.Client().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		workers, _ = p.Children()
		return busy(workers) && st.Running == 1
	})
	node.Kill()
	for _, w := range workers {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if up, _ := w.IsRunning(); !up {
				break
			}
			if st, err := w.Status(); err != nil || len(st) > 0 && st[0] == process.Zombie {
				break
			}
			if time.Now().After(end) {
				w.Kill()
				t.Errorf("worker process %d outlived its node", w.Pid)
				break
			}
		}
	}
}

// busy says that one of the processes has computed for a while: the loop runs.
func busy(ps []*process.Process) bool {
	for _, p := range ps {
		if ts, err := p.Times(); err == nil && ts.User > 0.3 {
			return true
		}
	}
	return false
}
