package python_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshnode/tasks/executor"
	"meshnode/tasks/executor/python"
	"meshnode/tasks/executor/runtimetest"
)

// diesWithNode: the system kills a worker process when its node is gone.
const diesWithNode = true

func stop(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

// The node of one program has its fork server before there is work: the program is about to use it.
func TestWarm(t *testing.T) {
	t.Parallel()
	mark := "MESHNODE_TEST_MARK=" + t.TempDir()
	rt := python.New(python.Config{Interpreter: interpreter(t), Packages: packages(t), Env: []string{mark}})
	runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{rt}, Private: true})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		all, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range all {
			if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), mark+"\x00") {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal("no fork server")
		}
	}
}
