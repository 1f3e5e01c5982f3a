package testnet

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// allowance is what a busy machine may need for what takes a quiet one goal: the figures are of quiet ones.
func allowance(goal time.Duration) time.Duration { return 3*goal + 2*time.Second }

// within awaits what a quiet machine does within goal, and logs how long it took.
func (n *Net) within(goal time.Duration, what string, ok func() bool) {
	n.t.Helper()
	n.t.Logf("%s: %v (goal %v)", what, n.Await(allowance(goal), what, ok).Round(time.Millisecond), goal)
}

// awaitMesh waits until each of the nodes sees each, and says how long that took from begun on.
func (n *Net) awaitMesh(begun time.Time, nodes ...*Node) time.Duration {
	n.t.Helper()
	seen := 0 // by the first ones
	n.Await(startTimeout, fmt.Sprintf("%d nodes see each other", len(nodes)), func() bool {
		for seen < len(nodes) && nodes[seen].sees(nodes...) {
			seen++
		}
		return seen == len(nodes)
	})
	return time.Since(begun)
}

// judge is a test's T that keeps what the test says, and fails nothing.
type judge struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

func (j *judge) Errorf(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.said = append(j.said, fmt.Sprintf(format, args...))
}

func (j *judge) Fatalf(format string, args ...any) {
	j.Errorf(format, args...)
	runtime.Goexit()
}

// of is what a test that does no more than f says.
func (j *judge) of(f func()) string {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
	j.mu.Lock()
	defer j.mu.Unlock()
	said := strings.Join(j.said, "\n")
	j.said = nil
	return said
}

// Who waits in vain hears who misses whom; and, at once, that a node has ended, and how.
func TestAwaitSaysWhy(t *testing.T) {
	t.Parallel()
	j := &judge{TB: t}
	n := Start(j, 3, Options{})
	n.Node(3).Kill()
	n.Node(1).AwaitPeers(1)
	said := j.of(func() { n.Await(0, "pigs fly", func() bool { return false }) })
	for _, want := range []string{"pigs fly", "node1 is connected to 1 (node2) and misses 1: node3 (", "node2 is connected to 1 (node1)", "node3 has ended: "} {
		if !strings.Contains(said, want) {
			t.Errorf("no word of %q: %s", want, said)
		}
	}
	p, err := os.FindProcess(n.Node(2).PID())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	said = j.of(func() {
		p.Kill()
		n.Node(1).AwaitPeers(5)
	})
	if how := fmt.Sprint(n.Node(2).cmd.ProcessState); strings.Count(said, "node2 ended by itself ("+how+")") != 2 || time.Since(began) > startTimeout {
		t.Errorf("a node was killed, %s, and after %v the test says: %s", how, time.Since(began), said)
	}
}
