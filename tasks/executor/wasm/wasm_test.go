package wasm_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/runtimetest"
	"meshnode/tasks/executor/wasm"
)

// role has this test binary be something else: "worker", a worker process; "node", a process with an executor that runs
// a loop.
const role = "MESHNODE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "worker":
		os.Exit(wasm.WorkerMain(os.Stdin, os.Stdout, os.Stderr))
	case "node":
		os.Exit(loopingNode())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "meshnode-cache-") // one for all tests: each module is compiled once
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		os.Setenv("MESHNODE_CACHE_DIR", dir)
		return m.Run()
	}())
}

func newRuntime() executor.Runtime {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return wasm.New(wasm.Config{Command: []string{self}, Env: []string{role + "=worker"}})
}

func file(t testing.TB, data string) string {
	path := filepath.Join(t.TempDir(), "program.wasm")
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const header = "\x00asm\x01\x00\x00\x00"

func TestRuntime(t *testing.T) {
	runtimetest.Run(t, func(t testing.TB) runtimetest.Kit {
		return runtimetest.Kit{
			Runtime:   newRuntime(),
			Echo:      "testdata/echo.wasm",
			Args:      "testdata/args.wasm",
			Misbehave: "testdata/misbehave.wasm",
			Trap:      "trap: unreachable",
			Invalid: map[string]string{
				file(t, ""):                                          "not a WebAssembly module",
				file(t, "#!/bin/sh\necho hello\n"):                   "not a WebAssembly module",
				file(t, "\x00asm\x0d\x00\x01\x00etc"):                "build for wasm32-wasip1",
				file(t, "\x00asm\x09\x00\x00\x00"):                   "version 09000000 is not known",
				file(t, header):                                      "exports neither _start",
				file(t, header+"\x07\x7f\x01"):                       "it ends in the middle",
				file(t, header+"\x07\x0a\x01\x06_start\x00\x00"):     "not a valid module", // a function that is not there
				file(t, header+"\x02\x0b\x01\x03env\x03foo\x00\x00"): `imports "foo" from "env"`,
			},
		}
	})
}

func newRig(t testing.TB) *runtimetest.Rig {
	return runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{newRuntime()}})
}

func TestReactor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.Job("wasm", "testdata/reactor.wasm", &protocol.Limits{MemoryBytes: 64 << 20})
	const ok, failed = protocol.Status_OK, protocol.Status_FAILED
	for i, c := range []struct {
		input, output string
		status        protocol.Status
		exit          int32
		text          string
	}{
		{"count", "1", ok, 0, ""},
		{"count", "2", ok, 0, ""}, // the same instance
		{"", "", ok, 0, ""},
		{"a\x00b\xff", "a\x00b\xff", ok, 0, ""},
		{"fail", "", failed, 1, "it was told to fail"},
		{"count", "6", ok, 0, ""}, // a failure that was told leaves the instance as it is
		{"trap", "", failed, 134, "trap: unreachable"},
		{"count", "1", ok, 0, ""}, // after a trap there is a new one
		{"exit", "", failed, 3, "exit code 3"},
		{"count", "1", ok, 0, ""},
		{"big", "", protocol.Status_OUTPUT_LIMIT, 1, "16 MiB"},
		{"count", "1", ok, 0, ""},
		{"fill", "", ok, 0, ""},
		{"count", "1", ok, 0, ""}, // it had more than half of its memory
		{"fill", "", ok, 0, ""},
	} {
		o := r.Do(0, job, c.input).Outcomes[0]
		r.Want(o, c.status, c.exit, c.text)
		if string(o.Output) != c.output {
			t.Errorf("%d: %q gave %q, want %q", i, c.input, o.Output, c.output)
		}
	}
	// Another job of the same program has its own instance.
	again := r.Job("wasm", "testdata/reactor.wasm", &protocol.Limits{MemoryBytes: 64 << 20})
	r.Do(0, job, "count")
	if o := r.Do(0, again, "count").Outcomes[0]; string(o.Output) != "1" {
		t.Errorf("an instance was used by two jobs: %q", o.Output)
	}
	// So has one with words; they are joined.
	job = r.Job("wasm", "testdata/reactor.wasm", nil, "task", "{#}:", "{}")
	if o := r.Do(0, job, "x y").Outcomes[0]; string(o.Output) != "task 1: x y" {
		t.Errorf("words gave %q", o.Output)
	}
}

// TestDeterministic has two processes give the same clock and random bytes, unless the job wants real ones.
func TestDeterministic(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	clock := func(real bool) string {
		job := protocol.NewJobID()
		r.Prepare("origin", &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: "wasm", ClockReal: real}}, nil, "testdata/misbehave.wasm")
		if p := r.Next().(tasks.Prepared); p.Invalid+p.Unable != "" {
			t.Fatalf("%+v", p)
		}
		a, b := string(r.Do(0, job, "clock").Outcomes[0].Output), string(r.Do(1, job, "clock").Outcomes[0].Output)
		if real == (a == b) || len(a) < 20 {
			t.Errorf("real %v: %q and %q", real, a, b)
		}
		return a
	}
	if seconds, _, _ := strings.Cut(clock(false), " "); seconds != "1640995200" {
		t.Errorf("deterministic clock says %s", seconds)
	}
	if seconds, err := strconv.ParseInt(strings.Fields(clock(true))[0], 10, 64); err != nil || seconds < 1_700_000_000 {
		t.Errorf("real clock says %d, %v", seconds, err)
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.Job("wasm", "testdata/misbehave.wasm", &protocol.Limits{MemoryBytes: 32 << 20})
	e := r.Do(0, job, "grow", "memory", "stack", "exit 0")
	r.Want(e.Outcomes[0], protocol.Status_OK, 0, "") // it takes no for an answer
	r.Want(e.Outcomes[1], protocol.Status_MEMORY_LIMIT, 134, "memory limit of 32 MiB reached: trap: unreachable")
	r.Want(e.Outcomes[2], protocol.Status_FAILED, 134, "trap: ")
	r.Want(e.Outcomes[3], protocol.Status_OK, 0, "")
	job = r.Job("wasm", "testdata/misbehave.wasm", &protocol.Limits{MemoryBytes: 64 << 10})
	r.Want(r.Do(0, job, "exit 0").Outcomes[0], protocol.Status_MEMORY_LIMIT, 1, "raise it with --memory")
}

// TestSumPrimes runs the example modules that are committed.
func TestSumPrimes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, path := range []string{"sum_primes.wasm", "sum_primes_reactor.wasm"} {
		job := r.Job("wasm", filepath.Join("../../../examples/wasm", path), nil)
		e := r.Do(0, job, "100000", "10\n", "0", "2", "ten")
		for i, want := range []string{"454396537\n", "17\n", "0\n", "0\n"} {
			if o := e.Outcomes[uint32(i)]; o.Status != protocol.Status_OK || string(o.Output) != want {
				t.Errorf("%s, item %d: %v, %q, want %q", path, i, o.Status, o.Output, want)
			}
		}
		if o := e.Outcomes[4]; o.Status != protocol.Status_FAILED || !strings.Contains(string(o.Log), "not a number") {
			t.Errorf("%s: %v %q", path, o.Status, o.Log)
		}
		job = r.Job("wasm", filepath.Join("../../../examples/wasm", path), nil, "{}")
		if o := r.Do(0, job, "100000").Outcomes[0]; string(o.Output) != "454396537\n" {
			t.Errorf("%s with an argument: %v %q", path, o.Status, o.Output)
		}
	}
}

// TestCacheShared has several processes compile the same module at once into an empty cache.
func TestCacheShared(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rt := wasm.New(wasm.Config{Command: []string{self}, Env: []string{role + "=worker", "MESHNODE_CACHE_DIR=" + cache}})
	var rigs []*runtimetest.Rig
	var jobs []protocol.JobID
	for range 4 {
		r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{rt}})
		rigs = append(rigs, r)
		jobs = append(jobs, r.Announce("wasm", "testdata/misbehave.wasm", nil))
	}
	for i, r := range rigs {
		if p := r.Next().(tasks.Prepared); p.Invalid+p.Unable != "" {
			t.Fatalf("%+v", p)
		}
		r.Want(r.Do(0, jobs[i], "exit 0").Outcomes[0], protocol.Status_OK, 0, "")
	}
	code, err := filepath.Glob(filepath.Join(cache, "wasm", "*", "*"))
	if err != nil || len(code) != 1 {
		t.Fatalf("cache has %v, %v", code, err)
	}
	// A cache that is damaged or cannot be written costs time, not tasks.
	if err := os.WriteFile(code[0], []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{rt}})
	r.Want(r.Do(0, r.Job("wasm", "testdata/misbehave.wasm", nil), "exit 0").Outcomes[0], protocol.Status_OK, 0, "")
	rt = wasm.New(wasm.Config{Command: []string{self}, Env: []string{role + "=worker", "MESHNODE_CACHE_DIR=" + self}})
	r = runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{rt}})
	r.Want(r.Do(0, r.Job("wasm", "testdata/echo.wasm", nil), "x").Outcomes[0], protocol.Status_OK, 0, "")
}

// loopingNode runs a loop in a worker process, writes that process's ID to standard output, and waits to be killed.
func loopingNode() int {
	started := make(chan tasks.Event, 10)
	e, err := executor.New(executor.Config{
		Runtimes: []executor.Runtime{newRuntime()},
		Emit:     func(ev tasks.Event) { started <- ev },
		Blobs:    struct{ executor.Blobs }{},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	job := protocol.NewJobID()
	e.Prepare("", &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: "wasm"}}, nil, "testdata/misbehave.wasm")
	if p := (<-started).(tasks.Prepared); p.Invalid+p.Unable != "" {
		fmt.Fprintln(os.Stderr, p)
		return 1
	}
	e.Start(tasks.Start{Job: job, Items: []tasks.Item{{Attempt: protocol.Attempt{Job: job}, Input: tasks.Input{Data: []byte("loop")}}}})
	fmt.Println(e.Processes()[0])
	select {}
}

// TestNodeKilled kills a node without warning while a task of it loops.
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

// TestInput has a worker process end when its standard input does, while a task loops in it: that is what it has
// where the system does not end it.
func TestInput(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	worker := exec.Command(self)
	worker.Env = append(os.Environ(), role+"=worker")
	in, err := worker.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := worker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	defer worker.Process.Kill()
	load := protocol.AppendLocal(nil, protocol.WorkerLoad, 1, []byte(`{"path":"testdata/misbehave.wasm","memory_bytes":1000000000}`))
	if _, err := in.Write(protocol.AppendLocal(load, protocol.WorkerRun, 1, []byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00loop"))); err != nil {
		t.Fatal(err)
	}
	if kind, _, body, err := protocol.ReadLocal(out, protocol.MaxLocal); kind != protocol.WorkerLoaded {
		t.Fatalf("%#x %s %v", kind, body, err)
	}
	runtimetest.WaitBusy(t, worker.Process.Pid)
	in.Close()
	if err := worker.Wait(); err != nil {
		t.Error(err)
	}
}
