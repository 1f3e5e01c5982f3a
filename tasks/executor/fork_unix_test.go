//go:build unix

package executor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/runtimetest"
)

// lost is a runtime whose fork server ends at once, and leaves somebody behind who holds its socket open.
type lost struct {
	odd
	script string
}

func (l lost) Worker(string, protocol.NodeID, *protocol.Local) (executor.Worker, error) {
	return executor.Worker{Argv: []string{"/bin/sh", l.script}, Fork: true, TaskLog: true}, nil
}

// A fork server that is gone is known to be, though its socket does not end: a process that was started while the socket was made may
// have it. A task that waits for a worker process is returned then.
func TestForkServerGone(t *testing.T) {
	t.Parallel()
	script, pid := filepath.Join(t.TempDir(), "server"), filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(script, []byte("setsid sleep 60 <&3 >/dev/null 2>&1 &\necho $! >"+pid+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{lost{script: script}}})
	t.Cleanup(func() {
		var left int
		if b, err := os.ReadFile(pid); err == nil {
			fmt.Sscan(string(b), &left)
		}
		if left > 1 {
			unix.Kill(left, unix.SIGKILL)
		}
	})
	job := protocol.NewJobID()
	began := time.Now()
	r.Prepare("origin", &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: "odd"}}, nil, script)
	select {
	case <-time.After(15 * time.Second):
		t.Error("it is waited for")
	case e := <-next(r):
		if p, ok := e.(tasks.Prepared); !ok || p.Unable == "" {
			t.Errorf("%+v", e)
		}
	}
	t.Logf("after %v", time.Since(began))
}

func next(r *runtimetest.Rig) <-chan tasks.Event {
	c := make(chan tasks.Event, 1)
	go func() { c <- r.Next() }()
	return c
}
