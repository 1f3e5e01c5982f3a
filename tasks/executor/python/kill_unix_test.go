//go:build unix

package python_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/python"
	"meshnode/tasks/executor/runtimetest"
)

// role has this test binary be "node": a process with an executor that runs a task, and waits to be killed.
const role = "MESHNODE_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(role) == "node" {
		os.Exit(busyNode())
	}
	os.Exit(m.Run())
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		t.Fatal(err)
	}
	ppid, err := p.Ppid()
	if err != nil {
		t.Fatal(err)
	}
	return int(ppid)
}

func kill(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
}

// A fork server that dies takes its processes with it, and there is a new one.
func TestForkServerKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t, false)
	pids := filepath.Join(t.TempDir(), "pids")
	job := ready(t, r, "origin", nil, bundle(t, `def main(file):
    import os, time
    if not file:
        return "fine"
    with open(file + ".new", "w") as f:
        f.write("%d" % os.getpid())
    os.rename(file + ".new", file)
    time.sleep(1000)
`))
	s := tasks.Start{Origin: "origin", Job: job, Items: []tasks.Item{
		{Attempt: protocol.Attempt{Job: job, N: 3, Epoch: 7}, Input: tasks.Input{Data: []byte("T" + pids)}},
	}}
	r.Start(s)
	worker := readPIDs(t, pids)[0]
	if server := parent(t, worker); server == os.Getpid() {
		t.Fatal("no fork server")
	} else {
		kill(t, server)
	}
	r.Want(r.Collect(s).Outcomes[0], protocol.Status_WORKER_LOST, 1, "its fork server ended: killed by signal 9")
	r.Gone(worker)
	if o := text(t, r, "origin", job, "")[0]; string(o.Output) != "fine" {
		t.Errorf("after that: %v %q", o.Status, o.Error)
	}
}

// A process that a task forked and sent away, with all of its descriptors and in a session of its own, keeps nobody waiting: neither the
// task when its worker process is killed, nor the slot, nor the end of the executor.
func TestDaemon(t *testing.T) { both(t, testDaemon) }

func testDaemon(t *testing.T, spawn bool) {
	t.Parallel()
	r := newRig(t, spawn)
	pids := filepath.Join(t.TempDir(), "pids")
	path := bundle(t, `def main(word):
    import os, time
    how, _, file = word.partition(" ")
    if how == "fine":
        return how
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(1000)
        os._exit(0)
    with open(file + ".new", "w") as f:
        f.write("%d" % pid)
    os.rename(file + ".new", file)
    while how == "stay":
        time.sleep(1)
    return how
`)
	job := r.Job("python", path, &protocol.Limits{TimeoutUs: 1_500_000})
	for i, how := range []string{"stay", "go"} {
		file := pids + strconv.Itoa(i)
		o := text(t, r, "origin", job, how+" "+file)[0]
		daemon := readPIDs(t, file)[0]
		t.Cleanup(func() { kill(t, daemon) })
		if how == "stay" {
			r.Want(o, protocol.Status_TIMED_OUT, 124, "timed out after 1.5s")
		} else {
			r.Want(o, protocol.Status_OK, 0, "")
		}
	}
	if o := text(t, r, "origin", job, "fine")[0]; string(o.Output) != "fine" {
		t.Errorf("after that: %v %q", o.Status, o.Error)
	}
	began := time.Now()
	r.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("closed after %v", took)
	}
}

// A node that is killed leaves no process, whatever its task does: it holds the interpreter's lock for ever, and has children.
// So it is if the fork server is killed at the same time, where the system helps.
func TestNodeKilled(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"spawn", "fork", "both"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if kind == "both" && !diesWithNode {
				t.Skip("a worker process whose fork server is killed together with its node ends only when it next reads, on this system")
			}
			pids := filepath.Join(t.TempDir(), "pids")
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			i := interpreter(t)
			node := exec.Command(self, packages(t), i.Path, i.Version, fmt.Sprint(kind == "spawn"), pids, bundle(t, `def main(file):
    import os, re, subprocess
    p = subprocess.Popen(["sleep", "1000"])
    with open(file + ".new", "w") as f:
        f.write("%d %d" % (os.getpid(), p.pid))
    os.rename(file + ".new", file)
    re.match("(a+)+$", "a" * 64 + "b")
`))
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
			if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || strings.TrimSpace(line) != "ready" {
				t.Fatalf("%q, %v", line, err)
			}
			all := readPIDs(t, pids)
			runtimetest.WaitBusy(t, all[0])
			if kind != "spawn" {
				server := parent(t, all[0])
				if server == node.Process.Pid {
					t.Fatal("no fork server")
				}
				all = append(all, server)
				if kind == "both" {
					stop(t, server) // it does nothing more
				}
			}
			kill(t, node.Process.Pid)
			node.Wait()
			if kind == "both" {
				kill(t, all[2])
			}
			if kind == "spawn" && diesWithNode {
				all = all[:1] // the system ends the process, but not what it has started
				defer kill(t, readPIDs(t, pids)[1])
			}
			for _, pid := range all {
				runtimetest.WaitGone(t, pid)
			}
		})
	}
}

func busyNode() int {
	events := make(chan tasks.Event, 10)
	a := os.Args[1:]
	e, err := executor.New(executor.Config{
		Runtimes: []executor.Runtime{python.New(python.Config{Interpreter: python.Interpreter{Path: a[1], Version: a[2]}, Packages: a[0], Spawn: a[3] == "true"})},
		Emit:     func(ev tasks.Event) { events <- ev },
		Blobs:    struct{ executor.Blobs }{},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	job := protocol.NewJobID()
	e.Prepare("", &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: "python"}}, nil, a[5])
	if p := (<-events).(tasks.Prepared); p.Invalid+p.Unable != "" {
		fmt.Fprintln(os.Stderr, p)
		return 1
	}
	e.Start(tasks.Start{Job: job, Items: []tasks.Item{{Attempt: protocol.Attempt{Job: job}, Input: tasks.Input{Data: []byte("T" + a[4])}}}})
	fmt.Println("ready")
	select {}
}

// A fork server that ends for want of work while somebody comes to need it costs nobody a task.
func TestForkServerComesAndGoes(t *testing.T) {
	t.Parallel()
	r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{newRuntime(t, false)}, IdleEnd: time.Millisecond})
	job := ready(t, r, "origin", nil, bundle(t, "def main(s):\n    return s\n"))
	for i := range 15 {
		time.Sleep(time.Duration(i%5) * time.Millisecond)
		if o := text(t, r, "origin", job, "x")[0]; string(o.Output) != "x" {
			t.Fatalf("%v %q", o.Status, o.Error)
		}
	}
}
