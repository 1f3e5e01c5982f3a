// Package executor runs tasks on this machine: it keeps a worker process for each slot, hands it programs
// and items, enforces limits, and says how each item ended. It decides nothing about who runs what; the
// scheduler in package tasks does, and the node carries the events between the two.
//
// User code never runs in the node's process. A worker process is a child with the lowest priority, in a
// process group (or job object) of its own that is killed as a whole: when an item's time is up, when an
// item is stopped, when the executor is closed, and by the system when the node dies. What runs inside is
// a Runtime's affair; the frames between are those of package protocol (worker.go there).
//
// All methods of Executor return at once and may be called concurrently; answers come through Config.Emit.
package executor

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
)

// Runtime is a kind of program: WebAssembly, Python, commands. Its methods may be called concurrently.
type Runtime interface {
	// Name is what Program.runtime says, without a version: "wasm".
	Name() string
	// Version is that of what runs programs here, as Program.runtime may have it behind the name: "3.11", or "" if it has none that
	// matters. here is false if nothing here runs them by itself; a program that brings its own interpreter (protocol.Local) may run
	// all the same.
	Version() (version string, here bool)
	// Check looks at a program's file when it is submitted, without running or compiling any of it. Its error
	// is one line for the person who submits: what is wrong, and what to do about it.
	Check(path string) error
	// Worker is the worker process that a program of origin needs, whose Program.runtime is this. Its error is one line: why there
	// is none. local is how it runs at its origin, which then is this node, or nil.
	Worker(runtime string, origin protocol.NodeID, local *protocol.Local) (Worker, error)
}

// Worker is a kind of worker process.
type Worker struct {
	// Key tells kinds of a runtime apart: a process only ever runs programs whose Key is that of the first.
	Key string
	// Argv is how it is started (Argv[0] is a path), Env variables that it gets beside those few that every worker has.
	Argv, Env []string
	// Fork has processes made by a fork server, where CanFork says that there are such: the same Argv with one word more, "fork". Its
	// frames are in fork_unix.go. It needs TaskLog.
	Fork bool
	// TaskLog gives the process a file as its standard error, for what its tasks write. It empties the file before each answer; the
	// node cuts off what is over the limit, and has what is in it with the outcome if the process dies.
	TaskLog bool
}

// Blobs is where payloads over protocol.MaxInline live. Its methods are called from several goroutines.
type Blobs interface {
	// PutBlob stores what r has and pins it, for the outcome of a task of origin that will name it.
	PutBlob(ctx context.Context, origin protocol.NodeID, r io.Reader) (*protocol.Blob, error)
	// TakeBlob is PutBlob of a file below Config.Scratch, which is gone afterwards.
	TakeBlob(ctx context.Context, origin protocol.NodeID, name string) (*protocol.Blob, error)
	// OpenBlob gives the path of a blob that a task of origin has as its input; it is on this disk. The file
	// stays until release is called.
	OpenBlob(ctx context.Context, origin protocol.NodeID, b *protocol.Blob) (path string, release func(), err error)
}

// Config is what an Executor needs.
type Config struct {
	Runtimes []Runtime
	// Emit takes tasks.Prepared and tasks.Finished, from goroutines of the executor, those of one slot in order.
	// It must not wait for the goroutine that calls Close. Nothing is emitted after Close has returned.
	Emit  func(tasks.Event)
	Blobs Blobs
	// Scratch is a folder for large outputs, on the disk of the blobs. Empty: there is none, and outputs have to fit into a frame.
	Scratch string
	// Logger; nil logs nothing.
	Logger *slog.Logger
	// Memory is the limit of one task's memory in bytes where its job sets none. Default: 512 MiB.
	Memory uint64
	// IdleEnd is how long a worker process without work lives. Default: 60 s (a process costs 10 ms to start and
	// 23 MB to keep).
	IdleEnd time.Duration
	// Private says that the tasks are those of the one program that started this process: worker processes get all of its
	// environment, and its priority.
	Private bool
}

// Defaults of Config.
const (
	defaultMemory  = 512 << 20
	defaultIdleEnd = 60 * time.Second
)

func (c *Config) validate() error {
	if c.Emit == nil {
		return fmt.Errorf("executor: no Emit")
	}
	if c.Blobs == nil {
		return fmt.Errorf("executor: no Blobs")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Memory == 0 {
		c.Memory = defaultMemory
	}
	if c.IdleEnd == 0 {
		c.IdleEnd = defaultIdleEnd
	}
	return nil
}

// Executor is the pool of worker processes. The zero value is not usable; see New.
type Executor struct {
	cfg      Config
	runtimes map[string]Runtime
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	starter  *starter
	closing  sync.Once
	running  sync.WaitGroup // goroutines of slots and preparations
	serving  sync.WaitGroup // those of fork servers
	// preparing bounds the compilers that run at once: a compiler uses several cores already.
	preparing chan struct{}

	mu       sync.Mutex // guards what follows
	closed   bool
	slots    map[int]*slot
	programs map[programKey]*program
	handles  uint64            // the last that was given out
	compiled map[string]uint64 // handles of programs that were compiled well here, by runtime and what is loaded
	spares   []*spare          // the one that has waited longest first
	pids     map[int]bool      // of worker processes that are not gone

	forking sync.Mutex // guards forkers
	forkers map[string]*forker
}

// programKey names a job here: two origins may announce the same job ID, by accident or by malice.
type programKey struct {
	origin protocol.NodeID
	job    protocol.JobID
}

// processKey says which programs a worker process may run.
type processKey struct{ runtime, key string }

// program is a job's program as worker processes load it.
type program struct {
	handle  uint64
	runtime Runtime // nil: there is none for it, and unable says so
	unable  string
	worker  Worker
	load    protocol.WorkerProgram
	timeout time.Duration // of an item; 0: none
	drop    context.CancelFunc
}

// New checks cfg and makes an executor without any process; Close ends it.
func New(cfg Config) (*Executor, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	e := &Executor{
		cfg:       cfg,
		runtimes:  make(map[string]Runtime),
		slots:     make(map[int]*slot),
		programs:  make(map[programKey]*program),
		compiled:  make(map[string]uint64),
		forkers:   make(map[string]*forker),
		pids:      make(map[int]bool),
		preparing: make(chan struct{}, max(1, runtime.NumCPU()/2)),
		starter:   newStarter(),
	}
	for _, r := range cfg.Runtimes {
		e.runtimes[r.Name()] = r
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if cfg.Private { // the program that started it is about to use it
		e.warm()
	}
	return e, nil
}

// warm starts the fork servers of the runtimes that have them, so that the first task does not wait for that.
func (e *Executor) warm() {
	for _, rt := range e.cfg.Runtimes {
		if _, here := rt.Version(); !here || !CanFork {
			continue
		}
		w, err := rt.Worker(rt.Name(), "", nil)
		if err == nil && w.Fork {
			err = e.startForker(rt.Name(), w)
		}
		if err != nil {
			e.cfg.Logger.Warn("start a fork server", "runtime", rt.Name(), "err", err)
		}
	}
}

// Prepare has a program compiled by a worker process, in the background, unless the same one, with the same words and limits,
// was compiled before. codePath is its file, which stays as it is until Drop; a path never means another file. The answer is a tasks.Prepared, unless Drop comes first. A second Prepare of the same
// job of the same origin replaces the first. local is how the tasks of a job of this very node run here, or nil.
func (e *Executor) Prepare(origin protocol.NodeID, info *protocol.JobInfo, local *protocol.Local, codePath string) {
	job, err := protocol.JobIDFrom(info.Job)
	if err != nil || info.Program == nil {
		e.cfg.Logger.Warn("job without an ID or a program", "peer", origin, "err", err)
		return
	}
	ctx, drop := context.WithCancel(e.ctx)
	limits := info.Limits
	if limits == nil {
		limits = &protocol.Limits{}
	}
	p := &program{
		drop: drop,
		load: protocol.WorkerProgram{
			Path:        codePath,
			Name:        info.Name,
			Args:        info.Program.Args,
			ClockReal:   info.Program.ClockReal,
			MemoryBytes: orDefault(limits.MemoryBytes, e.cfg.Memory, 1<<50),
			OutputBytes: orDefault(limits.OutputBytes, e.maxOutput(info.Program.Runtime), e.maxOutput(info.Program.Runtime)),
			LogBytes:    orDefault(limits.LogBytes, protocol.MaxLog, protocol.MaxLog),
		},
		timeout: time.Duration(min(limits.TimeoutUs, maxTimeoutUs)) * time.Microsecond,
	}
	if local != nil {
		p.load.PathEntries, p.load.Dir = local.Path, local.Dir
	}
	if rt := e.runtimeOf(info.Program.Runtime); rt == nil {
		p.unable = fmt.Sprintf("this node has no runtime %q", info.Program.Runtime)
	} else if p.worker, err = rt.Worker(info.Program.Runtime, origin, local); err != nil {
		p.unable = err.Error()
	} else {
		p.runtime = rt
	}
	key := programKey{origin, job}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		drop()
		return
	}
	if old := e.programs[key]; old != nil {
		old.drop()
	}
	e.programs[key] = p
	same := fmt.Sprintf("%s %q %s", info.Program.Runtime, p.worker.Key, encode(p.load))
	if p.handle = e.compiled[same]; p.handle != 0 && p.runtime != nil {
		e.running.Go(func() {
			if ctx.Err() == nil {
				e.emit(tasks.Prepared{Origin: origin, Job: job})
			}
		})
		return
	}
	e.handles++
	p.handle = e.handles
	e.running.Go(func() {
		if !e.prepare(ctx, key, p) {
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.compiled) >= maxCompiled {
			clear(e.compiled)
		}
		e.compiled[same] = p.handle
	})
}

// runtimeOf finds the runtime of a name with a version or without.
func (e *Executor) runtimeOf(name string) Runtime {
	if rt := e.runtimes[name]; rt != nil {
		return rt
	}
	return e.runtimes[strings.TrimRight(name, "0123456789.")]
}

// key says which processes may run p.
func (p *program) key() processKey { return processKey{p.runtime.Name(), p.worker.Key} }

// maxOutput is the largest output of a task of a runtime here.
func (e *Executor) maxOutput(runtime string) uint64 {
	if e.cfg.Scratch == "" {
		return protocol.MaxOutput
	}
	return protocol.MaxOutputOf(runtime)
}

// maxCompiled programs are remembered: each is a path and its words, which may be long.
const maxCompiled = 64

// maxTimeoutUs is a century: more would overflow a time.Duration.
const maxTimeoutUs = 100 * 365 * 24 * 3600 * 1_000_000

func orDefault(v, standard, most uint64) uint64 {
	if v == 0 {
		v = standard
	}
	return min(v, most)
}

// Drop forgets a job's program. Items of it that run go on; no new ones are accepted.
func (e *Executor) Drop(origin protocol.NodeID, job protocol.JobID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := programKey{origin, job}
	if p := e.programs[key]; p != nil {
		p.drop()
		delete(e.programs, key)
	}
}

// Start runs the items of s in its slot, one after the other, behind those that it has: of the same job, or the slot
// has said Idle. The answers are tasks.Finished. Any slot number will do: a slot begins to exist with its first Start.
func (e *Executor) Start(s tasks.Start) { e.send(s.Slot, s) }

// Stop ends attempts of a slot; see tasks.Stop. What the slot does not have is passed over.
func (e *Executor) Stop(s tasks.Stop) { e.send(s.Slot, s) }

func (e *Executor) send(n int, v any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	s := e.slots[n]
	if s == nil {
		s = newSlot(e, n)
		e.slots[n] = s
		e.running.Go(s.run)
	}
	s.post(v)
}

// program finds what a Start refers to.
func (e *Executor) program(origin protocol.NodeID, job protocol.JobID) *program {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.programs[programKey{origin, job}]
}

// emit hands ev to the node, unless Close has begun.
func (e *Executor) emit(ev tasks.Event) {
	if e.ctx.Err() == nil {
		e.cfg.Emit(ev)
	}
}

// Processes are the process IDs of the worker processes that are there now, in rising order.
func (e *Executor) Processes() []int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.pids))
}

// Close kills all worker processes and returns when they and all goroutines are gone. It may be called again.
func (e *Executor) Close() {
	e.closing.Do(func() {
		e.mu.Lock()
		e.closed = true
		spares := e.spares
		e.spares = nil
		e.mu.Unlock()
		e.cancel()
		for _, s := range spares {
			s.end()
		}
		e.running.Wait()
		e.endForkers()
		e.serving.Wait()
		e.starter.stop()
	})
}
