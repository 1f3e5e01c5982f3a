package python_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/python"
	"meshnode/tasks/executor/runtimetest"
)

func newRig(t testing.TB, spawn bool) *runtimetest.Rig {
	t.Helper()
	return runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{newRuntime(t, spawn)}})
}

// prepare prepares a job of any origin.
func prepare(t testing.TB, r *runtimetest.Rig, runtime string, origin protocol.NodeID, local *protocol.Local, path string) (protocol.JobID, tasks.Prepared) {
	t.Helper()
	job := protocol.NewJobID()
	r.Prepare(origin, &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: runtime}}, local, path)
	p := r.Next().(tasks.Prepared)
	if p.Job != job || p.Origin != origin {
		t.Fatalf("%+v", p)
	}
	return job, p
}

// text runs the function of a job, with a text for each.
func text(t testing.TB, r *runtimetest.Rig, origin protocol.NodeID, job protocol.JobID, inputs ...string) []*protocol.Outcome {
	t.Helper()
	s := tasks.Start{Origin: origin, Job: job}
	for i, in := range inputs {
		s.Items = append(s.Items, tasks.Item{Attempt: protocol.Attempt{Job: job, Index: uint32(i), N: 3, Epoch: 7}, Input: tasks.Input{Data: []byte("T" + in)}})
	}
	r.Start(s)
	e := r.Collect(s)
	var out []*protocol.Outcome
	for i := range inputs {
		if e.Outcomes[uint32(i)] == nil {
			t.Fatalf("no outcome of %q; returned %v", inputs[i], e.Returned)
		}
		out = append(out, e.Outcomes[uint32(i)])
	}
	return out
}

// ready prepares a job that must be fine.
func ready(t testing.TB, r *runtimetest.Rig, origin protocol.NodeID, local *protocol.Local, path string) protocol.JobID {
	t.Helper()
	job, p := prepare(t, r, "python", origin, local, path)
	if p.Invalid+p.Unable != "" {
		t.Fatalf("%+v", p)
	}
	return job
}

// A process serves one submitter, whose jobs and tasks have names of their own in it; another gets another process.
func TestSubmitters(t *testing.T) { both(t, testSubmitters) }

func testSubmitters(t *testing.T, spawn bool) {
	t.Parallel()
	r := newRig(t, spawn)
	count := bundle(t, `def main(s):
    import builtins, os
    global n
    n = globals().get("n", 0) + 1
    builtins.everywhere = getattr(builtins, "everywhere", 0) + 1
    return "%d %d %d" % (n, builtins.everywhere, os.getpid())
`)
	first := ready(t, r, "origin", nil, count)
	a := text(t, r, "origin", first, "x", "x")
	if !strings.HasPrefix(string(a[1].Output), "1 2 ") { // what a task did to the names of its bundle is undone
		t.Fatalf("%s", a[1].Output)
	}
	pid := strings.Fields(string(a[1].Output))[2]
	second := ready(t, r, "origin", nil, bundle(t, `def main(s):
    import builtins, os
    return "%s %d %d" % ("n" in globals(), builtins.everywhere, os.getpid())
`))
	if b := text(t, r, "origin", second, "x"); string(b[0].Output) != "False 2 "+pid {
		t.Errorf("another job of the submitter: %q", b[0].Output)
	}
	other := ready(t, r, "other", nil, count)
	c := string(text(t, r, "other", other, "x")[0].Output)
	if !strings.HasPrefix(c, "1 1 ") || strings.HasSuffix(c, pid) {
		t.Errorf("another submitter: %q, in the process of %s", c, a[1].Output)
	}
	// The first one's process has waited for its turn.
	if d := text(t, r, "origin", first, "x"); string(d[0].Output) != "1 3 "+pid {
		t.Errorf("the first submitter again: %q", d[0].Output)
	}
}

// What ends a process, or might, is put down to the task that did it, says how, and does not touch the next one.
func TestDeaths(t *testing.T) { both(t, testDeaths) }

func testDeaths(t *testing.T, spawn bool) {
	t.Parallel()
	r := newRig(t, spawn)
	job := ready(t, r, "origin", nil, bundle(t, `def main(word):
    import os, signal, sys, threading, time
    print("begin", word)
    if word == "exit 7":
        os._exit(7)
    if word == "abort":
        os.abort()
    if word == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(10)
    if word == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    if word == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    if word == "alarm":
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        sys.alarmed = True
    if word == "sys.exit":
        sys.exit("no more")
    if word == "recursion":
        def f(n):
            return f(n + 1) + 1
        f(0)
    if word == "memory":
        held = []
        while True:
            held.append(bytearray(1 << 24))
    if word == "fork":
        if os.fork() == 0:
            return "from the child"
        os.wait()
    if word == "close":
        os.close(1), os.close(2), sys.stdout.close(), sys.stderr.close()
    if word == "replace":
        import io
        sys.stdout = sys.stderr = io.StringIO()
    if word == "threads":
        threading.Thread(target=time.sleep, args=(0.3,)).start()
    if word == "chdir":
        os.chdir("/")
    if word == "unprintable":
        class Odd(Exception):
            def __str__(self):
                raise ValueError
        raise Odd
    if word == "next" and hasattr(sys, "alarmed"):
        time.sleep(0.3)
    return "fine"
`))
	const ok, failed, lost = protocol.Status_OK, protocol.Status_FAILED, protocol.Status_WORKER_LOST
	for _, c := range []struct {
		word   string
		status protocol.Status
		exit   int32
		text   string
	}{
		{"exit 7", lost, 1, "worker process died: exit code 7"},
		{"abort", lost, 1, "killed by signal 6"},
		{"segfault", lost, 1, "killed by signal 11"},
		{"terminate", lost, 1, "killed by signal 15"},
		{"interrupt", failed, 1, "KeyboardInterrupt"},
		{"sys.exit", failed, 1, "no more"},
		{"recursion", failed, 1, "RecursionError"},
		{"memory", protocol.Status_MEMORY_LIMIT, 1, "512 MiB"},
		{"alarm", ok, 0, ""},
		{"fork", ok, 0, ""},
		{"close", ok, 0, ""},
		{"replace", ok, 0, ""},
		{"threads", ok, 0, ""},
		{"chdir", ok, 0, ""},
		{"unprintable", failed, 1, "Odd"},
	} {
		o := text(t, r, "origin", job, c.word)[0]
		r.Want(o, c.status, c.exit, c.text)
		if !strings.HasPrefix(string(o.Log), "begin "+c.word+"\n") {
			t.Errorf("%s: log %q", c.word, o.Log)
		}
		if c.word == "segfault" && !strings.Contains(string(o.Log), "in main") {
			t.Errorf("a crash without the lines that led to it: log %q", o.Log)
		}
		if o.Status == ok && string(o.Output) != "fine" {
			t.Errorf("%s: output %q", c.word, o.Output)
		}
		next := text(t, r, "origin", job, "next")[0]
		r.Want(next, ok, 0, "")
		if string(next.Log) != "begin next\n" || string(next.Output) != "fine" {
			t.Errorf("after %s: log %q, output %q", c.word, next.Log, next.Output)
		}
	}
}

// All that a task and its children write is its log, in order; nobody waits for a reader, and standard input is at its end.
func TestLog(t *testing.T) { both(t, testLog) }

func testLog(t *testing.T, spawn bool) {
	t.Parallel()
	r := newRig(t, spawn)
	job := ready(t, r, "origin", nil, bundle(t, `def main(word):
    import os, subprocess, sys, time
    if word == "order":
        print("one")
        print("two", file=sys.stderr)
        os.write(1, b"three\n")
        subprocess.call(["echo", "four"])
        subprocess.call("echo five >&2", shell=True)
        os.write(2, b"six\n")
        sys.stdout.write("seven")
        return
    if word == "stdin":
        try:
            input("question? ")
        except EOFError:
            return repr(sys.stdin.read()) + subprocess.check_output("cat").decode()
    if word == "much":
        sys.stderr.write("e" * 200000)
        sys.stdout.write("\u00fc")
        return
    if word == "endless":
        p = subprocess.Popen(["yes"])
        time.sleep(1)
        p.kill()
        p.wait()
        return str(os.fstat(1).st_size)
    if word == "inherited":
        return " ".join(f for f in sorted(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd/" + f))
`))
	o := text(t, r, "origin", job, "order", "stdin", "much")
	if want := "one\ntwo\nthree\nfour\nfive\nsix\nseven"; string(o[0].Log) != want {
		t.Errorf("log %q, want %q", o[0].Log, want)
	}
	if string(o[1].Output) != "''" || string(o[1].Log) != "question? " {
		t.Errorf("standard input: %q, log %q", o[1].Output, o[1].Log)
	}
	if b := o[2].LogBlob; b == nil || b.Size != 200002 {
		t.Errorf("much: log %v, %d bytes", b, len(o[2].Log))
	}
	e := text(t, r, "origin", job, "endless", "order")
	if b := e[0].LogBlob; b == nil || b.Size < protocol.MaxLog || b.Size > protocol.MaxLog+100 {
		t.Errorf("endless: log %v", b)
	}
	if string(e[1].Log) != string(o[0].Log) {
		t.Errorf("after that: log %q", e[1].Log)
	}
}

// calls makes the input of a packet of calls f(n), n from first on: pickles by hand.
func calls(first, count int) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{'C'}, uint32(count))
	for n := first; n < first+count; n++ {
		p := binary.LittleEndian.AppendUint32([]byte("\x80\x02J"), uint32(n)) // (n,), {}
		p = append(p, "\x85}\x86."...)
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return b
}

// All interpreters that are found run the worker, with the same answers.
func TestInterpreters(t *testing.T) {
	t.Parallel()
	for _, i := range interpreters(t) {
		t.Run(i.Version, func(t *testing.T) {
			both(t, func(t *testing.T, spawn bool) {
				t.Parallel()
				rt := python.New(python.Config{Interpreter: i, Packages: packages(t), Spawn: spawn})
				r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{rt}})
				path := bundle(t, `def main(n):
    import sys
    if n == "version":
        return "%d.%d" % sys.version_info[:2]
    if n == "memory":
        return bytearray(1 << 30)
    print("call", n)
    if n == 3:
        raise ValueError("three")
    return n * n
`)
				job, p := prepare(t, r, "python"+i.Version, "origin", nil, path)
				if p.Invalid+p.Unable != "" {
					t.Fatalf("%+v", p)
				}
				if _, p := prepare(t, r, "python3.5", "origin", nil, path); !strings.Contains(p.Unable, "needs 3.5") {
					t.Errorf("another version: %+v", p)
				}
				if o := text(t, r, "origin", job, "version")[0]; string(o.Output) != i.Version {
					t.Errorf("version %q: %q", o.Output, o.Error)
				}
				r.Want(text(t, r, "origin", job, "memory")[0], protocol.Status_MEMORY_LIMIT, 1, "512 MiB")
				s := tasks.Start{Origin: "origin", Job: job, Items: []tasks.Item{
					{Attempt: protocol.Attempt{Job: job, N: 3, Epoch: 7}, Input: tasks.Input{Data: calls(0, 5)}},
				}}
				r.Start(s)
				o := r.Collect(s).Outcomes[0]
				r.Want(o, protocol.Status_FAILED, 1, "ValueError: three")
				if string(o.Log) != "call 0\ncall 1\ncall 2\ncall 3\ncall 4\n" {
					t.Errorf("log %q", o.Log)
				}
				var kinds, logs []int
				for b := o.Output[4:]; len(b) > 0; {
					kinds, logs = append(kinds, int(b[0])), append(logs, int(binary.LittleEndian.Uint32(b[5:])))
					b = b[9+binary.LittleEndian.Uint32(b[1:]):]
				}
				if !slices.Equal(kinds, []int{0, 0, 0, 1, 0}) || !slices.Equal(logs, []int{7, 7, 7, 7, 7}) {
					t.Errorf("kinds %v, lengths of logs %v", kinds, logs)
				}
			})
		})
	}
}

// interpreters are all that are found, one of each version.
func interpreters(t testing.TB) (found []python.Interpreter) {
	home, _ := os.UserHomeDir()
	candidates, _ := filepath.Glob(filepath.Join(home, ".pyenv/versions/3.*/bin/python"))
	for minor := 6; minor < 20; minor++ {
		candidates = append(candidates, fmt.Sprintf("python3.%d", minor))
	}
	seen := map[string]bool{}
	for _, c := range candidates {
		if i, err := python.Find(t.Context(), c, ""); err == nil && !seen[i.Version] {
			seen[i.Version] = true
			found = append(found, i)
		}
	}
	if len(found) == 0 {
		t.Skip("there is no Python here")
	}
	return found
}

// At its origin a program has the modules and the directory of the person's, and its own process.
func TestLocal(t *testing.T) {
	t.Parallel()
	r := newRig(t, false)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "neighbour.py"), []byte("value = 'from the neighbour'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := bundle(t, `def main(s):
    import os
    try:
        import neighbour
    except ImportError as e:
        return "%s in %s" % (e, os.getcwd())
    return "%s in %s" % (neighbour.value, os.path.realpath(os.getcwd()))
`)
	here, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	i := interpreter(t)
	local := ready(t, r, "origin", &protocol.Local{Interpreter: i.Path, Version: i.Version, Path: []string{dir}, Dir: dir}, path)
	if o := text(t, r, "origin", local, "x")[0]; string(o.Output) != "from the neighbour in "+here {
		t.Errorf("here: %q %q", o.Output, o.Error)
	}
	far := ready(t, r, "origin", nil, path)
	if o := text(t, r, "origin", far, "x")[0]; !strings.HasPrefix(string(o.Output), "No module named") || strings.Contains(string(o.Output), here) {
		t.Errorf("elsewhere: %q %q", o.Output, o.Error)
	}
	if _, p := prepare(t, r, "python", "origin", &protocol.Local{Interpreter: filepath.Join(dir, "none"), Version: "3.11"}, path); !strings.Contains(p.Unable, "none") {
		t.Errorf("an interpreter that is not there: %+v", p)
	}
}

// What the node's limit on time kills, it kills with all that the task has started.
func TestTreeKilled(t *testing.T) { both(t, testTreeKilled) }

func testTreeKilled(t *testing.T, spawn bool) {
	t.Parallel()
	r := newRig(t, spawn)
	pids := filepath.Join(t.TempDir(), "pids")
	path := bundle(t, `def main(file):
    import os, subprocess, time
    p = subprocess.Popen(["sleep", "1000"])
    q = subprocess.Popen("sleep 1001 & sleep 1002", shell=True)
    with open(file + ".new", "w") as f:
        f.write("%d %d %d" % (os.getpid(), p.pid, q.pid))
    os.rename(file + ".new", file)
    while True:
        pass
`)
	job := r.Job("python", path, &protocol.Limits{TimeoutUs: 1_500_000})
	r.Want(text(t, r, "origin", job, pids)[0], protocol.Status_TIMED_OUT, 124, "timed out after 1.5s")
	for _, pid := range readPIDs(t, pids) {
		r.Gone(pid)
	}
}

// readPIDs waits for a file of numbers.
func readPIDs(t testing.TB, path string) (pids []int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil {
			for _, f := range strings.Fields(string(b)) {
				var pid int
				fmt.Sscan(f, &pid)
				pids = append(pids, pid)
			}
			return pids
		}
		if time.Now().After(end) {
			t.Fatal("the task did not come to write its numbers")
		}
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	if _, err := python.Find(t.Context(), "/no/such/python", ""); err == nil || !strings.Contains(err.Error(), "/no/such/python") {
		t.Errorf("%v", err)
	}
	real := interpreter(t)
	if !filepath.IsAbs(real.Path) || !strings.HasPrefix(real.Version, "3.") || real.CacheTag == "" {
		t.Errorf("%+v", real)
	}
	cache := filepath.Join(t.TempDir(), "cache")
	for range 2 { // asked, and remembered
		if i, err := python.Find(t.Context(), real.Path, cache); err != nil || i != real {
			t.Errorf("%+v, %v", i, err)
		}
	}
	kept, _ := os.ReadDir(cache)
	if len(kept) != 1 {
		t.Fatalf("%v", kept)
	}
	if err := os.WriteFile(filepath.Join(cache, kept[0].Name()), []byte(`{"Path":"/remembered","Version":"3.99"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if i, err := python.Find(t.Context(), real.Path, cache); err != nil || i.Version != "3.99" {
		t.Errorf("asked again: %+v, %v", i, err)
	}
	if executor.CanFork { // there are scripts with #! then
		for script, text := range map[string]string{
			"exec " + real.Path + ` "$@"`:            "", // a shim: the real one is found
			"echo 2.7 cpython-27 " + real.Path:       "Python 2.7: want 3.6 or later",
			"echo 3.9 cpython-39 /no/such/python":    "where nothing is",
			"echo what":                              "does not say where it is",
			"echo 'no version is set' >&2; exit 127": "no version is set",
		} {
			path := file(t, "#!/bin/sh\n"+script+"\n")
			if err := os.Chmod(path, 0o700); err != nil {
				t.Fatal(err)
			}
			i, err := python.Find(t.Context(), path, "")
			if text == "" && (err != nil || i != real) || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
				t.Errorf("%s: %+v, %v; want %q", script, i, err, text)
			}
		}
	}
}
