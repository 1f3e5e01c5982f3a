package node

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A copy of a data directory on another machine is another node, and the jobs in it are not its own.
func TestCopiedDataDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, stop := startIn(t, dir, "a", 1)
	submit(t, a, "sum_primes.wasm", [][]byte{[]byte("10")})
	stop()
	// On this machine it is the same node, with its jobs.
	again, stop := startIn(t, dir, "a", 1)
	if again.ID() != a.ID() {
		t.Errorf("restarted as %s, was %s", again.ID(), a.ID())
	}
	if jobs, err := again.Jobs(context.Background()); err != nil || len(jobs) != 1 || jobs[0].State != "done" {
		t.Errorf("jobs after a restart: %+v, %v", jobs, err)
	}
	stop()
	// As if it had been made on another machine: what binds it names that one.
	bound, err := filepath.Glob(filepath.Join(dir, "membership", "machine*"))
	if err != nil || len(bound) != 1 {
		t.Fatalf("what binds the directory to its machine: %v, %v", bound, err)
	}
	if err := os.WriteFile(bound[0], []byte("another machine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	copied, stop := startIn(t, dir, "a", 1)
	defer stop()
	if copied.ID() == a.ID() {
		t.Error("a copied data directory made a second node of one identity")
	}
	if jobs, err := copied.Jobs(context.Background()); err != nil || len(jobs) != 0 {
		t.Errorf("the copy has the jobs of the other node: %+v, %v", jobs, err)
	}
}

// After Run has returned nothing of the node is left running.
func TestStopLeavesNoGoroutine(t *testing.T) {
	n, stop := startIn(t, t.TempDir(), "a", 1)
	submit(t, n, "sum_primes.wasm", [][]byte{[]byte("10")})
	stop()
	var left string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b := make([]byte, 1<<20)
		left = ""
		for _, g := range strings.Split(string(b[:runtime.Stack(b, true)]), "\n\n") {
			if strings.Contains(g, "meshnode/") && !strings.Contains(g, "TestStopLeavesNoGoroutine") && !strings.Contains(g, "testing.tRunner") {
				left += g + "\n\n"
			}
		}
		if left == "" {
			return
		}
	}
	t.Errorf("left running:\n%s", left)
}
