package executor_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/runtimetest"
)

// odd is a runtime whose worker process does as its input says, the wrong thing too. Its answers wait until there is
// nothing more to read, so that they are lost when it dies.
type odd struct{}

const role = "MESHNODE_TEST_ROLE"

func (odd) Name() string            { return "odd" }
func (odd) Version() (string, bool) { return "", true }
func (odd) Check(string) error      { return nil }
func (odd) Worker(string, protocol.NodeID, *protocol.Local) (executor.Worker, error) {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return executor.Worker{Argv: []string{self}, Env: []string{role + "=odd", "GORACE=atexit_sleep_ms=0"}}, nil // else the race detector delays a death
}

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "odd":
		os.Exit(oddWorker())
	case "node":
		os.Exit(spinningNode())
	}
	os.Exit(m.Run())
}

func oddWorker() int {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	loads, scratch := 0, ""
	for {
		kind, id, body, err := protocol.ReadLocal(in, protocol.MaxLocal)
		if err != nil {
			return 0
		}
		switch kind {
		case protocol.WorkerLoad:
			loads++
			var p protocol.WorkerProgram
			json.Unmarshal(body, &p)
			scratch = p.Scratch
			switch {
			case strings.Contains(string(body), "dies"):
				fmt.Fprintln(os.Stderr, "panic: no idea")
				return 3
			case strings.Contains(string(body), "starves"):
				fmt.Fprintln(os.Stderr, "fatal error: runtime: cannot allocate memory")
				return 2
			case strings.Contains(string(body), "unable"):
				out.Write(protocol.AppendLocal(nil, protocol.WorkerLoadFailed, id, []byte(`{"unable":"not today"}`)))
			case strings.Contains(string(body), "silent"):
				time.Sleep(time.Hour)
			default:
				out.Write(protocol.AppendLocal(nil, protocol.WorkerLoaded, id, []byte("{}")))
			}
		case protocol.WorkerRunFiles:
			o := protocol.WorkerOutcome{Status: protocol.Status_OK}
			f, err := protocol.ParseWorkerRunFiles(body)
			if err != nil {
				return 9
			}
			for _, p := range append(f.Paths, f.InputPath) {
				b, _ := os.ReadFile(p)
				o.Output = append(append(o.Output, b...), '|')
			}
			o.Output = fmt.Appendf(o.Output, "%s %d", f.Input, f.Index)
			out.Write(protocol.AppendWorkerDone(nil, id, &o))
		case protocol.WorkerRun:
			o := protocol.WorkerOutcome{Status: protocol.Status_OK, RunUs: 1}
			input := string(body[12:])
			if name, ok := strings.CutPrefix(input, "env "); ok {
				o.Output = []byte(os.Getenv(name))
			}
			if size, name, ok := strings.Cut(input, " in file "); ok {
				n, _ := strconv.Atoi(size)
				if path := filepath.Join(scratch, name); n >= 0 {
					os.WriteFile(path, bytes.Repeat([]byte{'x'}, n), 0o600)
				} else {
					os.Symlink("/etc/hostname", path)
				}
				o.Output, o.Log = []byte(name), []byte("l")
				out.Write(protocol.AppendWorkerDoneFile(nil, id, &o))
				break
			}
			switch input {
			case "die":
				return 7
			case "starve":
				fmt.Fprintln(os.Stderr, "fatal error: runtime: out of memory")
				return 2
			case "hang":
				time.Sleep(time.Hour)
			case "spin":
				for n := 0; ; n++ {
					runtime.KeepAlive(n)
				}
			case "close":
				os.Stdout.Close()
				time.Sleep(time.Hour)
			case "garbage":
				out.WriteString("this is no frame at all")
				out.Flush()
				time.Sleep(time.Hour)
			case "another":
				id += 100
			case "skip":
				out.Write(protocol.AppendLocal(nil, protocol.WorkerSkipped, id))
				id += 100
			case "lie":
				o.Status = protocol.Status_CANCELLED
			case "loads":
				o.Output = fmt.Append(nil, loads)
			case "slow":
				o.RunUs = 10_000
			case "next":
				o.RunUs = 10_000
				in.Peek(1)
			case "number":
				o.Output = fmt.Append(nil, binary.LittleEndian.Uint32(body[8:]))
			}
			out.Write(protocol.AppendWorkerDone(nil, id, &o))
		}
		if in.Buffered() == 0 {
			out.Flush()
		}
	}
}

func newRig(t *testing.T) *runtimetest.Rig {
	return runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{odd{}}})
}

// shelf has blobs of one byte, which is that of their id, below 10.
type shelf struct {
	executor.Blobs
	dir  string
	open atomic.Int32
}

func (s *shelf) OpenBlob(_ context.Context, _ protocol.NodeID, b *protocol.Blob) (string, func(), error) {
	if b.Id[0] >= 10 {
		return "", nil, errors.New("not here")
	}
	s.open.Add(1)
	path := filepath.Join(s.dir, fmt.Sprint(b.Id[0]))
	return path, func() { s.open.Add(-1) }, os.WriteFile(path, []byte{'0' + b.Id[0]}, 0o600)
}

// TestBlobs has tasks read blobs: their files come in order, beside the input or with it in one more file, and are let go with
// the outcome. A task whose blob is not here goes back.
func TestBlobs(t *testing.T) {
	t.Parallel()
	store := &shelf{dir: t.TempDir()}
	r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{odd{}}, Blobs: store})
	job := r.Job("odd", "program", nil)
	of := func(ids ...byte) (bs []*protocol.Blob) {
		for _, id := range ids {
			bs = append(bs, &protocol.Blob{Id: bytes.Repeat([]byte{id}, 32), Size: 1})
		}
		return bs
	}
	s := tasks.Start{Slot: 0, Origin: "origin", Job: job}
	for i, in := range []tasks.Input{
		{Data: []byte("in"), Blobs: of(1, 2, 1)},
		{Blob: of(3)[0], Blobs: of(4)},
		{Blobs: of(5, 99)},
		{Data: []byte("number")},
	} {
		s.Items = append(s.Items, tasks.Item{Attempt: protocol.Attempt{Job: job, Index: uint32(i), N: 3, Epoch: 7}, Input: in})
	}
	r.Start(s)
	e := r.Collect(s)
	for i, want := range map[uint32]string{0: "1|2|1||in 0", 1: "4|3| 1", 3: "3"} {
		if o := e.Outcomes[i]; o == nil || string(o.Output) != want {
			t.Errorf("item %d: %v, want %q", i, o, want)
		}
	}
	if !slices.Equal(e.Returned, []uint32{2}) {
		t.Errorf("%v went back, want item 2", e.Returned)
	}
	if n := store.open.Load(); n != 0 {
		t.Errorf("%d blobs are still held", n)
	}
}

func (s *shelf) TakeBlob(_ context.Context, _ protocol.NodeID, name string) (*protocol.Blob, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	return &protocol.Blob{Id: make([]byte, 32), Size: uint64(info.Size())}, os.Remove(name)
}

// TestOutputInFile has a worker process leave outputs in files: they become blobs, small ones come inline, those over the limit end
// their task, and what is no file of its folder ends the process.
func TestOutputInFile(t *testing.T) {
	t.Parallel()
	scratch := t.TempDir()
	r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{odd{}}, Blobs: &shelf{}, Scratch: scratch})
	job := r.Job("odd", "program", &protocol.Limits{OutputBytes: 1 << 20})
	e := r.Do(0, job, "1000000 in file a", "3 in file b", "0 in file c", "1048577 in file d", "number")
	if b := e.Outcomes[0].OutputBlob; b == nil || b.Size != 1e6 || string(e.Outcomes[0].Log) != "l" {
		t.Errorf("a file of a million bytes: %v", e.Outcomes[0])
	}
	if o := e.Outcomes[1]; string(o.Output) != "xxx" || o.OutputBlob != nil {
		t.Errorf("a file of 3 bytes: %v", o)
	}
	r.Want(e.Outcomes[2], protocol.Status_OK, 0, "")
	r.Want(e.Outcomes[3], protocol.Status_OUTPUT_LIMIT, 1, "1 MiB")
	r.Want(e.Outcomes[4], protocol.Status_OK, 0, "")
	if dirs, err := os.ReadDir(scratch); err != nil || len(dirs) == 0 {
		t.Fatal(dirs, err)
	} else if left, _ := os.ReadDir(filepath.Join(scratch, dirs[0].Name())); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	for _, bad := range []string{"../outside", "/etc/hostname", "", ".", "..", `a\b`, "a/b"} {
		if e := r.Do(0, job, "5 in file "+bad); len(e.Returned) != 1 {
			t.Errorf("output in %q was taken: %v", bad, e.Outcomes)
		}
	}
	if e := r.Do(0, job, "-1 in file link"); len(e.Returned) != 1 {
		t.Errorf("a link was taken: %v", e.Outcomes)
	}
	r.Want(r.Do(0, job, "number").Outcomes[0], protocol.Status_OK, 0, "") // in a new process
}

// many is n times the same input.
func many(n int, input string) []string { return slices.Repeat([]string{input}, n) }

// A worker process sees nothing of our environment but what it needs; that of a program's private node sees what the program does.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	for _, private := range []bool{false, true} {
		r := runtimetest.NewRig(t, executor.Config{Runtimes: []executor.Runtime{odd{}}, Private: private})
		job := r.Job("odd", "program", nil)
		e := r.Do(0, job, "env PATH", "env HOME")
		if got := string(e.Outcomes[0].Output) == os.Getenv("PATH"); got != private || string(e.Outcomes[1].Output) != os.Getenv("HOME") {
			t.Errorf("private %v: PATH %q, HOME %q", private, e.Outcomes[0].Output, e.Outcomes[1].Output)
		}
	}
}

// TestPoison has an item kill its worker process together with the answers of those before it. Those must not be
// charged for it, and it must be.
func TestPoison(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.Job("odd", "program", nil)
	r.Do(0, job, many(200, "number")...) // they are short: many at once from now on
	for at := range 5 {
		inputs := many(50, "number")
		inputs[at*9] = "die"
		e := r.Do(0, job, inputs...)
		for i, o := range e.Outcomes {
			if i == uint32(at*9) {
				r.Want(o, protocol.Status_WORKER_LOST, 1, "worker process died: exit code 7")
			} else if o.Status != protocol.Status_OK || string(o.Output) != fmt.Sprint(i) {
				t.Errorf("item %d: %v %q", i, o.Status, o.Output)
			}
		}
		if e.Outcomes[uint32(at*9)] == nil || len(e.Outcomes) < at*9+1 {
			t.Errorf("die at %d: %d outcomes, returned %v", at*9, len(e.Outcomes), e.Returned)
		}
	}
	e := r.Do(0, job, "starve", "number")
	r.Want(e.Outcomes[0], protocol.Status_MEMORY_LIMIT, 1, "memory limit of 512 MiB")
	r.Want(e.Outcomes[1], protocol.Status_OK, 0, "")
}

// TestBrokenProtocol has worker processes say what they must not.
func TestBrokenProtocol(t *testing.T) {
	t.Parallel()
	for input, text := range map[string]string{
		"garbage": "local frame of",
		"another": "which is not the next",
		"skip":    "which is not the next",
		"lie":     "outcome with status",
		"close":   "killed by signal 9",
	} {
		t.Run(input, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			job := r.Job("odd", "program", nil)
			r.Want(r.Do(0, job, input, "number").Outcomes[0], protocol.Status_WORKER_LOST, 1, text)
			r.Want(r.Do(0, job, "number").Outcomes[0], protocol.Status_OK, 0, "")
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for path, text := range map[string]string{
		"dies":    "died: exit code 3: panic: no idea",
		"starves": "exit code 2, out of memory",
		"unable":  "not today",
	} {
		job := r.Announce("odd", path, nil)
		if p := r.Next().(tasks.Prepared); p.Job != job || p.Invalid != "" || !strings.Contains(p.Unable, text) {
			t.Errorf("%s: %+v", path, p)
		}
		if e := r.Do(0, job, "number", "number"); !slices.Equal(e.Returned, []uint32{0, 1}) {
			t.Errorf("%s: %+v", path, e)
		}
	}
	// More programs than a process keeps, in turn.
	var jobs []protocol.JobID
	for i := range 6 {
		jobs = append(jobs, r.Job("odd", "program", nil, fmt.Sprint(i)))
	}
	for range 2 {
		for _, job := range jobs {
			r.Want(r.Do(0, job, "number").Outcomes[0], protocol.Status_OK, 0, "")
		}
	}
	// A compiler that does not come to an end is ended by Drop, and there is no answer.
	for range 10 {
		job := r.Announce("odd", "silent", nil)
		r.Drop("origin", job)
		r.Job("odd", "program", nil)
	}
}

// TestSameProgram has a second job of a program start without loading it anew, and one with other words load it.
func TestSameProgram(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.Job("odd", "program", nil)
	r.Do(0, first, "number")
	r.Drop("origin", first)
	second, other := r.Job("odd", "program", nil), r.Job("odd", "program", nil, "word")
	for i, job := range []protocol.JobID{second, other} {
		if o := r.Do(0, job, "loads").Outcomes[0]; string(o.Output) != fmt.Sprint(1+i) {
			t.Errorf("job %d: %s programs loaded", i, o.Output)
		}
	}
}

// TestStopAtOnce stops what has not come to run, or runs, in a slot that is in any state.
func TestStopAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.Job("odd", "program", nil)
	r.Do(0, job, many(100, "number")...)
	for range 3 {
		s := r.Begin(0, job, append(many(20, "number"), append([]string{"hang"}, many(20, "number")...)...)...)
		var all []protocol.Attempt
		for _, item := range s.Items {
			all = append(all, item.Attempt)
		}
		r.Stop(tasks.Stop{Attempts: all})
		if e := r.Collect(s); slices.Contains(e.Returned, 20) == (e.Outcomes[20] != nil) {
			t.Errorf("%+v", e)
		}
	}
}

// TestStartBehind starts items in a slot that has some.
func TestStartBehind(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job, other := r.Job("odd", "program", nil), r.Job("odd", "program", nil)
	r.Do(0, job, "slow")
	both := r.Begin(0, job, "next") // ends when the worker process has what comes behind it
	behind := tasks.Item{Attempt: both.Items[0].Attempt, Input: tasks.Input{Data: []byte("number")}}
	behind.Attempt.Index = 1
	r.Start(tasks.Start{Origin: both.Origin, Job: job, Items: []tasks.Item{behind}})
	both.Items = append(both.Items, behind)
	if e := r.Collect(both); e.Outcomes[0] == nil || e.Outcomes[1] == nil {
		t.Errorf("%+v", e)
	}
	// Of another job it is the caller's defect; its items are not lost.
	s := r.Begin(0, job, "hang")
	r.Begin(0, other, "number")
	if f := r.Next().(tasks.Finished); len(f.Returned) != 1 || f.Idle {
		t.Errorf("%+v", f)
	}
	r.Stop(tasks.Stop{Attempts: []protocol.Attempt{s.Items[0].Attempt}})
	if e := r.Collect(s); len(e.Returned) != 1 {
		t.Errorf("%+v", e)
	}
}

// TestSoon has outcomes come before the batch that they are in ends.
func TestSoon(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	job := r.Job("odd", "program", nil)
	s := r.Begin(0, job, "number", "hang", "number")
	if f := r.Next().(tasks.Finished); len(f.Outcomes) != 1 || f.Idle {
		t.Errorf("%+v", f)
	}
	r.Stop(tasks.Stop{Attempts: []protocol.Attempt{s.Items[1].Attempt, s.Items[2].Attempt}})
	for idle := false; !idle; {
		idle = r.Next().(tasks.Finished).Idle
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, cfg := range []executor.Config{{}, {Emit: func(tasks.Event) {}}, {Blobs: struct{ executor.Blobs }{}}} {
		if _, err := executor.New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
	began := time.Now()
	e, err := executor.New(executor.Config{Emit: func(tasks.Event) {}, Blobs: struct{ executor.Blobs }{}})
	if err != nil {
		t.Fatal(err)
	}
	e.Drop("nobody", protocol.NewJobID())
	e.Stop(tasks.Stop{Slot: 3})
	e.Close()
	e.Close()
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}

// spinningNode runs a task that spins in a worker process that does not look at its standard input meanwhile, writes
// that process's ID to standard output, and waits to be killed.
func spinningNode() int {
	events := make(chan tasks.Event, 10)
	e, err := executor.New(executor.Config{
		Runtimes: []executor.Runtime{odd{}},
		Emit:     func(ev tasks.Event) { events <- ev },
		Blobs:    struct{ executor.Blobs }{},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	job := protocol.NewJobID()
	e.Prepare("", &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: "odd"}}, nil, "program")
	<-events
	e.Start(tasks.Start{Job: job, Items: []tasks.Item{{Attempt: protocol.Attempt{Job: job}, Input: tasks.Input{Data: []byte("spin")}}}})
	fmt.Println(e.Processes()[0])
	time.Sleep(time.Hour)
	return 1
}
