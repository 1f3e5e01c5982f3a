package testnet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/process"
)

// processorTime is what a process has used of processors, in seconds.
func processorTime(t *testing.T, pid int) float64 {
	t.Helper()
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		t.Fatal(err)
	}
	used, err := p.Times()
	if err != nil {
		t.Fatal(err)
	}
	return used.User + used.System
}

// resident is the resident memory of a process, in bytes; 0: it is gone.
func resident(pid int) int64 {
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		return 0
	}
	m, err := p.MemoryInfo()
	if err != nil {
		return 0
	}
	return int64(m.RSS)
}

func TestMain(m *testing.M) { os.Exit(Main(m)) }

const sumPrimes = "../examples/wasm/sum_primes.wasm"

func TestMesh(t *testing.T) {
	t.Parallel()
	n := Start(t, 3, Options{})
	out := n.Node(1).CLI("submit", "-k", sumPrimes, ":::", "10", "100000")
	if out.Code != 0 || out.Stdout != "17\n454396537\n" {
		t.Errorf("%+v", out)
	}
	n.Node(2).Kill()
	n.Node(1).AwaitPeers(1)
	n.Node(2).Restart()
	n.Node(1).AwaitPeers(2)
	n.Node(3).Stop()
	n.Node(3).Cont()
	if out := n.Node(3).CLI("peers", "-q"); out.Code != 0 || strings.Count(out.Stdout, "\n") != 3 {
		t.Errorf("%+v", out)
	}
	n.Node(3).Down()
	if out := n.Node(3).CLI("peers"); out.Code != 125 {
		t.Errorf("%+v", out)
	}
	n.Node(1).AwaitPeers(1)
}

// The script, as a person uses it: all of its commands, two testnets at a time, and nothing left behind.
func TestScript(t *testing.T) {
	t.Parallel()
	script, err := filepath.Abs("testnet.sh")
	if err != nil {
		t.Fatal(err)
	}
	program, err := filepath.Abs(sumPrimes)
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp("", "mn-")
	if err != nil {
		t.Fatal(err)
	}
	bin := Binary(t)
	// The test's own folder for temporary files: only so can it tell what is left behind.
	env := append((&Net{}).Environ(), "TMPDIR="+tmp, "MESHNODE_BIN="+bin, "MESHNODE_SLOTS=nonsense")
	call := func(testnet string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), cliTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, script, args...)
		cmd.Dir = tmp
		if cmd.Env = env; testnet != "" {
			cmd.Env = append(env, "MESHNODE_TESTNET="+testnet)
		}
		cmd.WaitDelay = time.Second // what it left running would hold its output open
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(testnet string, args ...string) string {
		t.Helper()
		out, err := call(testnet, args...)
		if err != nil {
			t.Fatalf("testnet.sh %q: %v\n%s", args, err, out)
		}
		return out
	}
	given := filepath.Join(tmp, "given")
	t.Cleanup(func() {
		call(given, "down")
		call("", "down")
		os.RemoveAll(tmp)
	})

	dir, _, _ := strings.Cut(must("", "up", "2", "--slots", "2"), "\n")
	if filepath.Dir(dir) != tmp {
		t.Fatalf("the first line is %q, no directory in %s", dir, tmp)
	}
	must(given, "up", "1")
	if out := must(dir, "node", "1", "peers", "-q"); strings.Count(out, "\n") != 2 {
		t.Errorf("peers of node 1: %s", out)
	}
	if out := must(given, "node", "1", "peers", "-q"); strings.Count(out, "\n") != 1 {
		t.Errorf("peers of the other testnet: %s", out)
	}
	if out := must("", "node", "2", "submit", program, ":::", "100000"); out != "454396537\n" {
		t.Errorf("submit: %s", out)
	}
	if out := must("", "node", "2", "status", "--json"); !strings.Contains(out, `"slots":2`) || !strings.Contains(out, `"name":"node2"`) {
		t.Errorf("status: %s", out)
	}
	must("", "stop", "2")
	must("", "cont", "2")
	must("", "kill", "2")
	if out, err := call("", "kill", "2"); err == nil {
		t.Errorf("a dead node was killed: %s", out)
	}
	if out := must("", "restart", "2"); !strings.HasPrefix(out, "ready: node2 ") {
		t.Errorf("restart: %s", out)
	}
	must("", "restart", "1")
	if out := must("", "logs", "1"); !strings.Contains(out, "level=") {
		t.Errorf("logs: %q", out)
	}
	for _, wrong := range [][]string{{"up", "x"}, {"node", "9", "status"}, {"node"}, {"fly"}, {}} {
		if out, err := call("", wrong...); err == nil || !strings.HasPrefix(out, "testnet.sh: ") {
			t.Errorf("%q: %v\n%s", wrong, err, out)
		}
	}
	must("", "down")
	must(given, "down")
	if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	out, _ := exec.Command("ps", "-A", "-o", "command=").Output()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, tmp) {
			t.Errorf("left behind: %s", line)
		}
	}
	if out, err := call("", "down"); err == nil || !strings.Contains(out, "no testnet") {
		t.Errorf("down without a testnet: %v, %s", err, fmt.Sprint(out))
	}
}
