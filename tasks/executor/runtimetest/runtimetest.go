// Package runtimetest is the suite that each runtime passes, run through an executor.Executor with real
// worker processes: what a task gets and gives, and what happens to tasks that misbehave.
package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
)

// Kit is a runtime, and programs for it.
type Kit struct {
	Runtime executor.Runtime
	// Echo writes its standard input to its standard output.
	Echo string
	// Args writes each of its arguments in brackets on a line of its own, then the number of bytes that its standard
	// input has.
	Args string
	// Misbehave does what the first word of its standard input says: loop, exit N (after "leaving with N" on standard error
	// and "partial" on standard output), trap, memory, output, write N (MiB), errors N (MiB; and "done" on standard output).
	Misbehave string
	// Text has each input come after a T, as text for a Python function; what fails has no output then.
	Text bool
	// Trap is a part of the error of "trap".
	Trap string
	// Invalid are files that are no programs, each with a part of the error that says so.
	Invalid map[string]string
}

// patience is for what happens within milliseconds unless the machine is very busy.
const patience = 60 * time.Second

// Rig is an executor, and what it said.
type Rig struct {
	*executor.Executor
	t      testing.TB
	events chan tasks.Event
	prefix string // of each input
}

// NewRig makes an executor with the runtime, which the end of the test closes.
func NewRig(t testing.TB, cfg executor.Config) *Rig {
	r := &Rig{t: t, events: make(chan tasks.Event, 1<<16)}
	cfg.Emit = func(e tasks.Event) { r.events <- e }
	if cfg.Blobs == nil {
		cfg.Blobs = &folder{dir: t.TempDir()}
	}
	e, err := executor.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Executor = e
	t.Cleanup(e.Close)
	return r
}

func (k *Kit) rig(t testing.TB, cfg executor.Config) *Rig {
	cfg.Runtimes = []executor.Runtime{k.Runtime}
	r := NewRig(t, cfg)
	if k.Text {
		r.prefix = "T"
	}
	return r
}

// Next waits for an event.
func (r *Rig) Next() tasks.Event {
	r.t.Helper()
	select {
	case e := <-r.events:
		return e
	case <-time.After(patience):
		r.t.Fatal("no event")
		return nil
	}
}

// Announce prepares a job without waiting for the answer.
func (r *Rig) Announce(runtime, path string, limits *protocol.Limits, args ...string) protocol.JobID {
	job := protocol.NewJobID()
	r.Prepare("origin", &protocol.JobInfo{
		Job:     job[:],
		Name:    "test",
		Program: &protocol.Program{Runtime: runtime, Args: args},
		Limits:  limits,
	}, nil, path)
	return job
}

// Job prepares a job and waits until its tasks can start.
func (r *Rig) Job(runtime, path string, limits *protocol.Limits, args ...string) protocol.JobID {
	r.t.Helper()
	job := r.Announce(runtime, path, limits, args...)
	if p := r.Next().(tasks.Prepared); p.Job != job || p.Origin != "origin" || p.Invalid != "" || p.Unable != "" {
		r.t.Fatalf("prepare %s: %+v", path, p)
	}
	return job
}

// Begin starts items with these inputs in a slot.
func (r *Rig) Begin(slot int, job protocol.JobID, inputs ...string) tasks.Start {
	s := tasks.Start{Slot: slot, Origin: "origin", Job: job}
	for i, in := range inputs {
		a := protocol.Attempt{Job: job, Index: uint32(i), N: 3, Epoch: 7}
		s.Items = append(s.Items, tasks.Item{Attempt: a, Input: tasks.Input{Data: []byte(r.prefix + in)}})
	}
	r.Start(s)
	return s
}

// Ended is how the items of a Start ended, by index.
type Ended struct {
	Outcomes map[uint32]*protocol.Outcome
	Returned []uint32
}

// Collect waits until a slot is idle. Each item must be answered once.
func (r *Rig) Collect(s tasks.Start) Ended {
	r.t.Helper()
	e := Ended{Outcomes: make(map[uint32]*protocol.Outcome)}
	r.collect(s, &e, func() bool { return false })
	if n := len(e.Outcomes) + len(e.Returned); n != len(s.Items) {
		r.t.Fatalf("%d of %d items answered", n, len(s.Items))
	}
	slices.Sort(e.Returned)
	return e
}

// collect adds events to e until idle or enough.
func (r *Rig) collect(s tasks.Start, e *Ended, enough func() bool) {
	r.t.Helper()
	for !enough() {
		f := r.Next().(tasks.Finished)
		if f.Slot != s.Slot {
			r.t.Fatalf("event of slot %d, want slot %d: %+v", f.Slot, s.Slot, f)
		}
		for _, o := range f.Outcomes {
			a := o.AttemptOf()
			if a != (protocol.Attempt{Job: s.Job, Index: o.Index, N: 3, Epoch: 7}) {
				r.t.Fatalf("outcome of %v", a)
			}
			if e.Outcomes[o.Index] != nil || slices.Contains(e.Returned, o.Index) {
				r.t.Fatalf("item %d answered twice", o.Index)
			}
			e.Outcomes[o.Index] = o
		}
		for _, a := range f.Returned {
			if e.Outcomes[a.Index] != nil || slices.Contains(e.Returned, a.Index) {
				r.t.Fatalf("item %d answered twice", a.Index)
			}
			e.Returned = append(e.Returned, a.Index)
		}
		if f.Idle {
			return
		}
	}
}

// Do runs items and waits for them.
func (r *Rig) Do(slot int, job protocol.JobID, inputs ...string) Ended {
	r.t.Helper()
	return r.Collect(r.Begin(slot, job, inputs...))
}

// Want checks an outcome. text is a part of the error, if status is not OK.
func (r *Rig) Want(o *protocol.Outcome, status protocol.Status, exit int32, text string) {
	r.t.Helper()
	if o == nil {
		r.t.Fatal("no outcome")
	}
	if o.Status != status || o.ExitCode != exit || (o.Error == "") != (status == protocol.Status_OK) || !strings.Contains(o.Error, text) || strings.Contains(o.Error, "\n") {
		r.t.Fatalf("outcome %v, exit code %d, error %q, output %.100q, log %.300q; want %v, exit code %d, error with %q",
			o.Status, o.ExitCode, o.Error, o.Output, o.Log, status, exit, text)
	}
}

// Gone waits until a process is no more.
func (r *Rig) Gone(pid int) {
	r.t.Helper()
	WaitGone(r.t, pid)
}

// WaitGone waits until a process is no more, or only waits for its parent to notice.
func WaitGone(t testing.TB, pid int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		p, err := process.NewProcess(int32(pid))
		if err != nil {
			return
		}
		if s, err := p.Status(); err != nil || slices.Contains(s, process.Zombie) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d lives", pid)
		}
	}
}

// WaitBusy waits until a process has used 0.2 s of processor time: its task runs, and has done so for a while.
func WaitBusy(t testing.TB, pid int) {
	t.Helper()
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		t.Fatal(err)
	}
	used := func() float64 {
		c, err := p.Times()
		if err != nil {
			t.Fatal(err)
		}
		return c.User + c.System
	}
	begin := used()
	for end := time.Now().Add(patience); used() < begin+0.2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d does nothing", pid)
		}
	}
}

// folder is a small store of blobs.
type folder struct {
	dir string
	mu  sync.Mutex // guards n, held
	n   byte
	// held counts the inputs that are open.
	held int
}

func (f *folder) PutBlob(_ context.Context, _ protocol.NodeID, r io.Reader) (*protocol.Blob, error) {
	f.mu.Lock()
	f.n++
	b := &protocol.Blob{Id: bytes.Repeat([]byte{f.n}, 32)}
	f.mu.Unlock()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	b.Size = uint64(len(data))
	return b, os.WriteFile(f.path(b), data, 0o600)
}

func (f *folder) TakeBlob(ctx context.Context, origin protocol.NodeID, name string) (*protocol.Blob, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer os.Remove(name)
	defer file.Close()
	return f.PutBlob(ctx, origin, file)
}

func (f *folder) path(b *protocol.Blob) string {
	return filepath.Join(f.dir, fmt.Sprintf("%x", b.Id[:4]))
}

func (f *folder) OpenBlob(_ context.Context, origin protocol.NodeID, b *protocol.Blob) (string, func(), error) {
	if origin != "origin" {
		return "", nil, errors.New("blob of another origin")
	}
	if _, err := os.Stat(f.path(b)); err != nil {
		return "", nil, err
	}
	f.mu.Lock()
	f.held++
	f.mu.Unlock()
	return f.path(b), func() {
		f.mu.Lock()
		f.held--
		f.mu.Unlock()
	}, nil
}

// Run runs the suite. kit is called in each part of it.
func Run(t *testing.T, kit func(t testing.TB) Kit) {
	with := func(name string, f func(t *testing.T, k Kit, r *Rig)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kit(t)
			f(t, k, k.rig(t, executor.Config{}))
		})
	}
	const ok, failed = protocol.Status_OK, protocol.Status_FAILED

	with("echo", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Echo, nil)
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		inputs := []string{"hello", "", string(all), strings.Repeat("x", protocol.MaxInline), "\xff\n\x00"}
		e := r.Do(0, job, inputs...)
		for i, in := range inputs {
			o := e.Outcomes[uint32(i)]
			r.Want(o, ok, 0, "")
			if string(o.Output) != in || len(o.Log) != 0 {
				t.Errorf("input of %d bytes gave %d bytes and a log of %d", len(in), len(o.Output), len(o.Log))
			}
		}
		for i := range 500 { // many, in an order that is kept
			inputs = append(inputs[:i:i], fmt.Sprint(i))
		}
		for i, o := range r.Do(0, job, inputs...).Outcomes {
			if string(o.Output) != fmt.Sprint(i) {
				t.Errorf("item %d gave %q", i, o.Output)
			}
		}
	})

	// Answers as large as what is sent ahead, of items so short that much is: neither side may wait for the other to read.
	with("both directions full", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Echo, nil)
		r.Do(0, job, "1", "2", "3", "4", "5", "6", "7", "8")
		var inputs []string
		for i := range 300 {
			inputs = append(inputs, strings.Repeat(string(rune('a'+i%26)), protocol.MaxInline-i))
		}
		began := time.Now()
		e := r.Do(0, job, inputs...)
		for i, in := range inputs {
			o := e.Outcomes[uint32(i)]
			r.Want(o, ok, 0, "")
			if string(o.Output) != in {
				t.Fatalf("item %d gave %d bytes", i, len(o.Output))
			}
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("%d items took %v", len(inputs), took)
		}
	})

	with("arguments", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Args, nil, "--in={}", "{#}", "a b", "{}{}")
		e := r.Do(0, job, "{#}", "7 8")
		for i, want := range []string{"[--in={#}]\n[1]\n[a b]\n[{#}{#}]\n0\n", "[--in=7 8]\n[2]\n[a b]\n[7 87 8]\n0\n"} {
			if o := e.Outcomes[uint32(i)]; string(o.Output) != want {
				t.Errorf("output %q, want %q", o.Output, want)
			}
		}
		if o := r.Do(0, r.Job(k.Runtime.Name(), k.Args, nil), "four").Outcomes[0]; string(o.Output) != "4\n" {
			t.Errorf("without words: output %q", o.Output)
		}
	})

	with("failures", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Misbehave, nil)
		e := r.Do(0, job, "exit 3", "trap", "exit 0")
		r.Want(e.Outcomes[0], failed, 3, "exit code 3")
		if o := e.Outcomes[0]; string(o.Log) != "leaving with 3\n" || string(o.Output) != "partial" && !k.Text {
			t.Errorf("log %q, output %q", o.Log, o.Output)
		}
		r.Want(e.Outcomes[1], failed, e.Outcomes[1].ExitCode, k.Trap)
		if e.Outcomes[1].ExitCode == 0 {
			t.Error("a trap with exit code 0")
		}
		r.Want(e.Outcomes[2], ok, 0, "")
	})

	with("timeout", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Misbehave, &protocol.Limits{TimeoutUs: 300_000})
		e := r.Do(0, job, "exit 0", "loop", "exit 0")
		r.Want(e.Outcomes[0], ok, 0, "")
		r.Want(e.Outcomes[1], protocol.Status_TIMED_OUT, 124, "timed out after 300ms")
		if us := e.Outcomes[1].RunUs; us < 300_000 || us > 30_000_000 {
			t.Errorf("ran for %d µs", us)
		}
		r.Want(e.Outcomes[2], ok, 0, "") // in a new process
	})

	with("memory limit", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Misbehave, &protocol.Limits{MemoryBytes: 64 << 20})
		e := r.Do(0, job, "memory", "exit 0")
		o := e.Outcomes[0]
		if o.Status != protocol.Status_MEMORY_LIMIT && o.Status != failed {
			t.Errorf("status %v", o.Status)
		}
		r.Want(o, o.Status, o.ExitCode, "64 MiB")
		r.Want(e.Outcomes[1], ok, 0, "")
	})

	with("endless output", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Misbehave, &protocol.Limits{OutputBytes: 1 << 20})
		e := r.Do(0, job, "output", "exit 0")
		r.Want(e.Outcomes[0], protocol.Status_OUTPUT_LIMIT, 1, "1 MiB")
		r.Want(e.Outcomes[1], ok, 0, "")
		r.Want(r.Do(0, r.Job(k.Runtime.Name(), k.Misbehave, nil), "output").Outcomes[0], protocol.Status_OUTPUT_LIMIT, 1, "16 MiB")
	})

	with("much log", func(t *testing.T, k Kit, r *Rig) {
		o := r.Do(0, r.Job(k.Runtime.Name(), k.Misbehave, nil), "errors 3").Outcomes[0]
		r.Want(o, ok, 0, "")
		if string(o.Output) != "done\n" || o.LogBlob == nil || o.LogBlob.Size < protocol.MaxLog || o.LogBlob.Size > protocol.MaxLog+100 {
			t.Errorf("output %q, log %v", o.Output, o.LogBlob)
		}
	})

	t.Run("output in a file", func(t *testing.T) {
		t.Parallel()
		k := kit(t)
		size := protocol.MaxOutput + 16 // too large for a frame
		if protocol.MaxOutputOf(k.Runtime.Name()) == protocol.MaxOutput {
			size = 1 << 20 // there is no such output
		}
		store, scratch := &folder{dir: t.TempDir()}, t.TempDir()
		r := k.rig(t, executor.Config{Blobs: store, Scratch: scratch})
		big := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		in, err := store.PutBlob(t.Context(), "origin", strings.NewReader(r.prefix+string(big)))
		if err != nil {
			t.Fatal(err)
		}
		begin := func(limit uint64) Ended {
			job := r.Job(k.Runtime.Name(), k.Echo, &protocol.Limits{OutputBytes: limit})
			s := tasks.Start{Origin: "origin", Job: job, Items: []tasks.Item{{Attempt: protocol.Attempt{Job: job, N: 3, Epoch: 7}, Input: tasks.Input{Blob: in}}}}
			r.Start(s)
			return r.Collect(s)
		}
		o := begin(0).Outcomes[0]
		r.Want(o, ok, 0, "")
		if o.OutputBlob == nil || o.OutputBlob.Size != uint64(len(big)) {
			t.Fatalf("an output of %d bytes became %v", len(big), o.OutputBlob)
		}
		if b, err := os.ReadFile(store.path(o.OutputBlob)); err != nil || !bytes.Equal(b, big) {
			t.Errorf("the output has other bytes: %v", err)
		}
		r.Want(begin(uint64(size - 1)).Outcomes[0], protocol.Status_OUTPUT_LIMIT, 1, "output")
		filepath.WalkDir(scratch, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				t.Errorf("%s is left", path)
			}
			return err
		})
		r.Close()
		if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
			t.Errorf("%v are left, %v", left, err)
		}
	})

	t.Run("blobs", func(t *testing.T) {
		t.Parallel()
		k := kit(t)
		store := &folder{dir: t.TempDir()}
		r := k.rig(t, executor.Config{Blobs: store})
		big := bytes.Repeat([]byte("0123456789abcdef"), protocol.MaxOutput/16)
		in, err := store.PutBlob(t.Context(), "origin", strings.NewReader(r.prefix+string(big)))
		if err != nil {
			t.Fatal(err)
		}
		job := r.Job(k.Runtime.Name(), k.Echo, nil)
		s := tasks.Start{Origin: "origin", Job: job, Items: []tasks.Item{
			{Attempt: protocol.Attempt{Job: job, N: 3, Epoch: 7}, Input: tasks.Input{Blob: in}},
			{Attempt: protocol.Attempt{Job: job, Index: 1, N: 3, Epoch: 7}, Input: tasks.Input{Blob: &protocol.Blob{Id: bytes.Repeat([]byte{99}, 32)}}},
		}}
		r.Start(s)
		e := r.Collect(s)
		r.Want(e.Outcomes[0], ok, 0, "")
		out := e.Outcomes[0].OutputBlob
		if out == nil || out.Size != uint64(len(big)) || e.Outcomes[0].Output != nil {
			t.Fatalf("output %v", out)
		}
		if got, err := os.ReadFile(store.path(out)); err != nil || !bytes.Equal(got, big) {
			t.Errorf("output differs: %v", err)
		}
		if !slices.Equal(e.Returned, []uint32{1}) {
			t.Errorf("an input that is not here: returned %v", e.Returned)
		}
		if store.held != 0 {
			t.Errorf("%d inputs are still held", store.held)
		}
	})

	with("killed from outside", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Misbehave, nil)
		r.Want(r.Do(0, job, "exit 0").Outcomes[0], ok, 0, "")
		pids := r.Processes()
		if len(pids) != 1 {
			t.Fatalf("processes %v", pids)
		}
		s := r.Begin(0, job, "exit 0", "loop", "exit 0", "exit 1")
		e := Ended{Outcomes: make(map[uint32]*protocol.Outcome)}
		r.collect(s, &e, func() bool { return e.Outcomes[0] != nil })
		certain := time.Now().Add(executor.Certain) // there are items behind it: a process that dies sooner has it run once more
		WaitBusy(t, pids[0])
		time.Sleep(time.Until(certain))
		p, err := os.FindProcess(pids[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		r.collect(s, &e, func() bool { return false })
		r.Want(e.Outcomes[1], protocol.Status_WORKER_LOST, 1, "worker process died: ")
		slices.Sort(e.Returned)
		if !slices.Equal(e.Returned, []uint32{2, 3}) || len(e.Outcomes) != 2 {
			t.Errorf("outcomes of %d items, returned %v", len(e.Outcomes), e.Returned)
		}
		r.Want(r.Do(0, job, "exit 0").Outcomes[0], ok, 0, "") // there is a new one
		if again := r.Processes(); len(again) != 1 || again[0] == pids[0] {
			t.Errorf("processes %v after %v", again, pids)
		}
	})

	with("stop", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Misbehave, nil)
		s := r.Begin(0, job, "exit 0", "loop", "exit 0", "exit 1", "exit 0")
		e := Ended{Outcomes: make(map[uint32]*protocol.Outcome)}
		r.collect(s, &e, func() bool { return e.Outcomes[0] != nil })
		WaitBusy(t, r.Processes()[0])
		r.Stop(tasks.Stop{Attempts: []protocol.Attempt{s.Items[2].Attempt, {Job: job, Index: 99}}})
		r.collect(s, &e, func() bool { return len(e.Returned) == 1 })
		r.Stop(tasks.Stop{Attempts: []protocol.Attempt{s.Items[1].Attempt}})
		r.collect(s, &e, func() bool { return false })
		if !slices.Equal(e.Returned, []uint32{2, 1}) || len(e.Outcomes) != 3 {
			t.Fatalf("outcomes of %d items, returned %v", len(e.Outcomes), e.Returned)
		}
		r.Want(e.Outcomes[3], failed, 1, "exit code 1") // those that were not stopped run
		r.Want(e.Outcomes[4], ok, 0, "")
	})

	with("slots", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Misbehave, nil)
		loop := r.Begin(5, job, "loop")
		for _, n := range []int{0, 9, 1} { // a slot that runs holds up no other
			r.Want(r.Do(n, job, "exit 0").Outcomes[0], ok, 0, "")
		}
		r.Stop(tasks.Stop{Slot: 5, Attempts: []protocol.Attempt{loop.Items[0].Attempt}})
		if e := r.Collect(loop); !slices.Equal(e.Returned, []uint32{0}) {
			t.Errorf("%+v", e)
		}
		r.Drop("origin", job)
		if e := r.Do(0, job, "exit 0"); !slices.Equal(e.Returned, []uint32{0}) {
			t.Errorf("a task of a dropped job: %+v", e)
		}
	})

	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		k := kit(t)
		r := k.rig(t, executor.Config{IdleEnd: 50 * time.Millisecond})
		job := r.Job(k.Runtime.Name(), k.Echo, nil)
		for range 2 { // the process ends, and another comes when there is work
			if o := r.Do(0, job, "x").Outcomes[0]; string(o.Output) != "x" {
				t.Fatalf("output %q", o.Output)
			}
			for end := time.Now().Add(patience); len(r.Processes()) > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("processes without work live on")
				}
			}
		}
	})

	with("close", func(t *testing.T, k Kit, r *Rig) {
		job := r.Job(k.Runtime.Name(), k.Misbehave, nil)
		r.Begin(0, job, "loop", "loop")
		s := r.Begin(1, job, "exit 0", "loop")
		e := Ended{Outcomes: make(map[uint32]*protocol.Outcome)}
		r.collect(s, &e, func() bool { return e.Outcomes[0] != nil })
		r.Announce(k.Runtime.Name(), k.Echo, nil)
		pids := r.Processes()
		for end := time.Now().Add(patience); len(pids) < 2; pids = r.Processes() {
			if time.Now().After(end) {
				t.Fatalf("processes %v", pids)
			}
			time.Sleep(time.Millisecond)
		}
		r.Close()
		if left := r.Processes(); len(left) != 0 {
			t.Errorf("processes %v are left", left)
		}
		for _, pid := range pids {
			r.Gone(pid)
		}
		r.Begin(1, job, "exit 0") // without effect
		r.Announce(k.Runtime.Name(), k.Echo, nil)
		r.Close()
	})

	with("no program", func(t *testing.T, k Kit, r *Rig) {
		for path, text := range k.Invalid {
			r.Announce(k.Runtime.Name(), path, nil)
			if p := r.Next().(tasks.Prepared); p.Unable != "" || !strings.Contains(p.Invalid, text) || strings.Contains(p.Invalid, "\n") {
				t.Errorf("%s: %+v, want an error with %q", path, p, text)
			}
			if err := k.Runtime.Check(path); err == nil {
				continue // what only compiling finds
			} else if !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("check %s: %v, want an error with %q", path, err, text)
			}
		}
		r.Announce(k.Runtime.Name(), filepath.Join(t.TempDir(), "missing"), nil)
		if p := r.Next().(tasks.Prepared); p.Unable == "" || p.Invalid != "" {
			t.Errorf("a file that is not there: %+v", p)
		}
		r.Announce("no such runtime", k.Echo, nil)
		if p := r.Next().(tasks.Prepared); !strings.Contains(p.Unable, "no such runtime") {
			t.Errorf("unknown runtime: %+v", p)
		}
		if err := k.Runtime.Check(k.Echo); err != nil {
			t.Error(err)
		}
	})
}
