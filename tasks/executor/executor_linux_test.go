package executor_test

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"meshnode/tasks/executor"
	"meshnode/tasks/executor/runtimetest"
)

// TestNodeKilled kills a node without warning while its worker process is deaf. Elsewhere than on Linux such a process
// lives on, or ends with its job object; those of our runtimes end with their standard input.
func TestNodeKilled(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	node := exec.Command(self)
	node.Env = append(os.Environ(), role+"=node")
	node.Stderr = os.Stderr
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	defer node.Process.Kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	worker, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	runtimetest.WaitBusy(t, worker)
	if err := node.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	node.Wait()
	runtimetest.WaitGone(t, worker)
}

// Guests run at the lowest priority, a program's private tasks at its own.
func TestPriority(t *testing.T) {
	t.Parallel()
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 - nice
	if err != nil {
		t.Fatal(err)
	}
	for _, private := range []bool{false, true} {
		r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{odd{}}, Private: private})
		r.Do(0, r.Job("odd", "program", nil), "number")
		for _, pid := range r.Executor.Processes() {
			want := 1
			if private {
				want = own
			}
			if got, err := unix.Getpriority(unix.PRIO_PROCESS, pid); err != nil || got != want {
				t.Errorf("private %v: priority %d, %v, want %d", private, got, err, want)
			}
		}
	}
}
