package executor

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
)

const (
	// ahead is how much work a worker process is given at once: enough that frames cost little, little enough
	// that it can be taken back.
	ahead = 2 * time.Millisecond
	// maxAhead bounds the items of that, and maxAheadBytes their inputs.
	maxAhead      = 1024
	maxAheadBytes = 1 << 20
	// grace is how long an answer may be under way: a worker holds it back for 1 ms at most.
	grace = 10 * time.Millisecond
	// Certain is how long an item must have been the first without an answer for its worker's death to be
	// put down to it, if there are others behind it: far longer than answers are held back, also by a process that waits
	// for a processor (at a load of ten to a core, 100 ms were too few). A task that ran for less runs once more.
	Certain = 2 * time.Second
	// maxLoad is how long loading or compiling a program may take. The largest modules take seconds.
	maxLoad = 2 * time.Minute
	// maxLoaded is how many programs a worker process keeps.
	maxLoaded = 4
	// maxErrorText bounds Outcome.error.
	maxErrorText = 4 << 10
	// logWatch is how often the log of a running task is looked at, whether it grows too long.
	logWatch = 100 * time.Millisecond
	// exitTimedOut is the exit code that timeout(1) gives.
	exitTimedOut = 124
)

// slot runs one item at a time, in its worker process. Everything but the inbox belongs to the goroutine of run.
type slot struct {
	e    *Executor
	n    int
	wake chan struct{}

	mu    sync.Mutex // guards inbox
	inbox []any      // tasks.Start, tasks.Stop

	proc  *process
	why   killing
	timer *time.Timer
	armed time.Time // when timer fires; zero: it does not

	active  bool // a Start is not answered with Idle yet
	origin  protocol.NodeID
	job     protocol.JobID
	jobID   []byte // job, shared by its outcomes
	prog    *program
	queue   []run // not sent to proc
	flight  []run // sent to proc and not answered; the first one runs
	inBytes int   // inputs in flight
	lastID  uint64
	buf     []byte // frames to proc

	loading   uint64    // handle of the program that proc loads, 0: none
	loadBy    time.Time // until when
	since     time.Time // when flight[0] became the first
	watched   time.Time // when the log of what runs was last looked at
	dropped   time.Time // when an item in flight was last stopped
	idleBy    time.Time // when proc ends if there is no work
	estimate  time.Duration
	estimated uint64 // the program's handle that estimate is about
	careful   bool   // one item at a time until Idle: a worker process died and it is not certain of which

	lastLog []byte // of the task that ran when the process ended

	out tasks.Finished // what is to be emitted
}

// run is an item on its way.
type run struct {
	item    *tasks.Item
	at      time.Time // when it came
	id      uint64
	bytes   int
	dropped bool     // by a Stop: returned already, and its answer is ignored
	release []func() // of the blobs that it reads
}

// killing says why we killed the process, if it was us.
type killing struct {
	timeout, stop, load bool
	item                uint64 // timeout, stop: the item that ran
	protocol            error
}

// newSlot makes the slot; run is its goroutine.
func newSlot(e *Executor, n int) *slot {
	s := &slot{e: e, n: n, wake: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	s.timer.Stop()
	return s
}

func (s *slot) post(v any) {
	s.mu.Lock()
	s.inbox = append(s.inbox, v)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run serves the slot until the executor is closed, and ends the slot's process.
func (s *slot) run() {
	defer func() {
		s.timer.Stop()
		if s.proc != nil {
			s.proc.end()
		}
		for _, r := range s.flight {
			r.done()
		}
	}()
	for {
		var replies <-chan []reply
		if s.proc != nil {
			replies = s.proc.replies
		}
		select {
		case <-s.e.ctx.Done():
			return
		case <-s.wake:
			s.mu.Lock()
			inbox := s.inbox
			s.inbox = nil
			s.mu.Unlock()
			for _, v := range inbox {
				switch v := v.(type) {
				case tasks.Start:
					s.begin(v)
				case tasks.Stop:
					s.drop(v)
				}
			}
		case batch, ok := <-replies:
			if ok {
				s.answered(batch)
			} else {
				s.died()
			}
		case <-s.timer.C:
			s.armed = time.Time{}
		}
		now := time.Now()
		s.enforce(now)
		s.feed(now)
		s.report(now)
		s.arm(now)
	}
}

func (s *slot) begin(st tasks.Start) {
	now, prog := time.Now(), s.e.program(st.Origin, st.Job)
	if !s.active {
		s.active, s.careful = true, false
		s.origin, s.job, s.jobID, s.prog = st.Origin, st.Job, bytes.Clone(st.Job[:]), prog
		if prog != nil && s.estimated != prog.handle {
			s.estimated, s.estimate = prog.handle, 0
		}
	}
	if prog == nil || prog.runtime == nil || prog != s.prog { // a defect of the caller's; nothing may be lost by it
		s.e.cfg.Logger.Warn("start of a job that is not prepared, or behind another one", "slot", s.n, "job", st.Job, "peer", st.Origin)
		for i := range st.Items {
			s.out.Returned = append(s.out.Returned, st.Items[i].Attempt)
		}
		return
	}
	for i := range st.Items {
		s.queue = append(s.queue, run{item: &st.Items[i], at: now})
	}
}

// drop carries out a Stop. What the process has is returned at once; the process is told not to begin it, and
// enforce kills it if it has.
func (s *slot) drop(st tasks.Stop) {
	stop := make(map[protocol.Attempt]bool, len(st.Attempts))
	for _, a := range st.Attempts {
		stop[a] = true
	}
	kept := s.queue[:0]
	for _, r := range s.queue {
		if stop[r.item.Attempt] {
			s.out.Returned = append(s.out.Returned, r.item.Attempt)
		} else {
			kept = append(kept, r)
		}
	}
	s.queue = kept
	var frames []byte
	for i := range s.flight {
		r := &s.flight[i]
		if stop[r.item.Attempt] && !r.dropped {
			s.out.Returned = append(s.out.Returned, r.item.Attempt)
			r.dropped = true
			frames = protocol.AppendLocal(frames, protocol.WorkerSkip, r.id)
		}
	}
	if len(frames) > 0 {
		s.dropped = time.Now()
		s.proc.write(frames, s.inBytes+len(frames))
	}
}

// answered takes what the process says.
func (s *slot) answered(batch []reply) {
	now := time.Now()
	var slab []protocol.Outcome // one allocation for the small outcomes that come together
	var ran time.Duration
	var items int
	for i := range batch {
		r := &batch[i]
		if r.err != nil {
			s.broken(r.err)
			return
		}
		switch r.kind {
		case protocol.WorkerLoaded:
			if r.id == s.loading {
				s.loading = 0
				s.proc.loaded = append(s.proc.loaded, r.id)
			}
		case protocol.WorkerLoadFailed:
			if r.id == s.loading {
				s.loading = 0
				if s.active && s.prog.handle == r.id {
					s.notLoaded(parseFailure(r.body))
				}
			}
		default:
			if len(s.flight) == 0 || s.flight[0].id != r.id || r.kind == protocol.WorkerSkipped && !s.flight[0].dropped {
				s.broken(fmt.Errorf("%w: answer to item %d, which is not the next", protocol.ErrProtocol, r.id))
				return
			}
			f := s.next(now)
			if r.kind != protocol.WorkerSkipped {
				ran += time.Duration(r.outcome.RunUs) * time.Microsecond
				items++
				if !f.dropped {
					if len(slab) == 0 {
						slab = make([]protocol.Outcome, min(len(batch)-i, 256))
					}
					s.done(&slab[0], f, r, now)
					slab = slab[1:]
				}
			}
		}
	}
	if items > 0 {
		mean := max(ran/time.Duration(items), 500*time.Nanosecond) // the worker counts whole microseconds
		if s.estimate == 0 {
			s.estimate = mean
		}
		s.estimate = (s.estimate + mean) / 2
	}
}

// next takes the first item out of flight.
func (s *slot) next(now time.Time) run {
	f := s.flight[0]
	s.flight = s.flight[1:]
	s.inBytes -= f.bytes
	s.since = now
	f.done()
	return f
}

func (r *run) done() {
	for _, release := range r.release {
		release()
	}
	r.release = nil
}

// done makes the outcome of f.
func (s *slot) done(o *protocol.Outcome, f run, r *reply, now time.Time) {
	w := &r.outcome
	s.identify(o, f)
	if s.e.cfg.Logger.Enabled(s.e.ctx, slog.LevelDebug) { // asked first: there may be 100,000 a second
		s.e.cfg.Logger.Debug("task ran", "attempt", f.item.Attempt, "status", w.Status)
	}
	o.Status, o.ExitCode, o.RunUs = w.Status, w.ExitCode, w.RunUs
	if queued := now.Sub(f.at) - time.Duration(w.RunUs)*time.Microsecond; queued > 0 {
		o.QueuedUs = uint64(queued.Microseconds())
	}
	if len(w.Error) > 0 {
		o.Error = sentence(string(w.Error))
	}
	var err error
	if r.kind == protocol.WorkerDoneFile {
		err = s.takeOutput(o, string(w.Output))
	} else {
		o.Output, o.OutputBlob, err = s.payload(w.Output)
	}
	if err == nil {
		o.Log, o.LogBlob, err = s.payload(w.Log)
	}
	if err != nil {
		s.e.cfg.Logger.Error("store what a task wrote", "attempt", f.item.Attempt, "err", err)
		s.out.Returned = append(s.out.Returned, f.item.Attempt)
		return
	}
	s.out.Outcomes = append(s.out.Outcomes, o)
}

func (s *slot) identify(o *protocol.Outcome, f run) {
	a := &f.item.Attempt
	o.Index, o.Epoch, o.N = a.Index, a.Epoch, a.N
	if o.Job = s.jobID; a.Job != s.job {
		o.Job = bytes.Clone(a.Job[:])
	}
}

// payload is b as an outcome carries it: inline, or as a blob.
func (s *slot) payload(b []byte) ([]byte, *protocol.Blob, error) {
	if len(b) <= protocol.MaxInline {
		if len(b) == 0 {
			return nil, nil, nil
		}
		return b, nil, nil
	}
	blob, err := s.e.cfg.Blobs.PutBlob(s.e.ctx, s.origin, bytes.NewReader(b))
	return nil, blob, err
}

// takeOutput makes the file that a worker process named the output of an outcome.
func (s *slot) takeOutput(o *protocol.Outcome, name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, `/\:`) || s.proc.scratch == "" {
		s.broken(fmt.Errorf("%w: an output in the file %.100q", protocol.ErrProtocol, name))
		return s.why.protocol
	}
	path := filepath.Join(s.proc.scratch, name)
	info, err := os.Lstat(path)
	switch {
	case err != nil || !info.Mode().IsRegular():
		s.broken(fmt.Errorf("%w: an output in %.100q, which is no file", protocol.ErrProtocol, name))
		return s.why.protocol
	case uint64(info.Size()) > s.prog.load.OutputBytes:
		os.Remove(path)
		o.Status, o.ExitCode, o.Error = protocol.Status_OUTPUT_LIMIT, 1, fmt.Sprintf("output over its limit of %s", Size(s.prog.load.OutputBytes))
		return nil
	case info.Size() <= protocol.MaxInline:
		defer os.Remove(path)
		o.Output, err = os.ReadFile(path)
		return err
	}
	o.OutputBlob, err = s.e.cfg.Blobs.TakeBlob(s.e.ctx, s.origin, path)
	return err
}

// sentence makes text fit for Outcome.error.
func sentence(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxErrorText)], "\uFFFD")
}

// ended makes the outcome of an item whose process was ended.
func (s *slot) ended(f run, status protocol.Status, exit int32, text string, now time.Time) {
	o := &protocol.Outcome{Status: status, ExitCode: exit, Error: sentence(text)}
	s.identify(o, f)
	o.RunUs = uint64(max(0, now.Sub(s.since).Microseconds()))
	o.QueuedUs = uint64(max(0, s.since.Sub(f.at).Microseconds()))
	var err error
	if o.Log, o.LogBlob, err = s.payload(s.lastLog); err != nil {
		s.e.cfg.Logger.Error("store what a task wrote", "attempt", f.item.Attempt, "err", err)
	}
	s.lastLog = nil
	s.out.Outcomes = append(s.out.Outcomes, o)
}

// notLoaded answers the whole Start: its program cannot be loaded.
func (s *slot) notLoaded(f protocol.WorkerFailure) {
	if f.Invalid == "" {
		s.e.cfg.Logger.Warn("program not loaded", "slot", s.n, "job", s.job, "err", f.Unable)
		s.returnQueue()
		return
	}
	now := time.Now()
	s.since = now
	for _, r := range s.queue {
		s.ended(r, protocol.Status_INVALID, 1, f.Invalid, now)
	}
	s.queue = s.queue[:0]
}

// parseFailure reads the body of a WorkerLoadFailed.
func parseFailure(body []byte) protocol.WorkerFailure {
	var f protocol.WorkerFailure
	if err := json.Unmarshal(body, &f); err != nil || f.Invalid == "" && f.Unable == "" {
		return protocol.WorkerFailure{Unable: "the worker process gave no reason"}
	}
	return f
}

func (s *slot) returnQueue() {
	for _, r := range s.queue {
		s.out.Returned = append(s.out.Returned, r.item.Attempt)
	}
	s.queue = s.queue[:0]
}

// broken ends a process that does not keep to the protocol; died does the rest.
func (s *slot) broken(err error) {
	s.why.protocol = err
	s.proc.kill()
}

// died sorts out what the process had when it ended.
func (s *slot) died() {
	now := time.Now()
	p, why := s.proc, s.why
	s.lastLog = nil
	if s.prog != nil {
		s.lastLog = p.readLog(s.prog.load.LogBytes)
	}
	p.end()
	flight := s.flight
	loading := s.loading
	s.proc, s.why, s.flight, s.inBytes, s.loading = nil, killing{}, nil, 0, 0

	reason := p.dead
	if why.protocol != nil {
		reason = why.protocol.Error()
	}
	log := s.e.cfg.Logger.With("slot", s.n, "pid", p.pid, "err", reason)
	if loading != 0 && s.active && loading == s.prog.handle {
		if why.load {
			reason = fmt.Sprintf("not done after %v", maxLoad)
		}
		log.Warn("worker process ended while it loaded a program")
		s.notLoaded(protocol.WorkerFailure{Unable: "load program: " + reason})
	}
	first := true // the item that ran, as far as we know
	var again, behind []run
	for _, f := range flight {
		f.done()
		ran := first
		first = false
		switch {
		case f.dropped:
		case !ran:
			behind = append(behind, f)
		case why.stop, why.timeout && why.item != f.id: // the one that was meant has ended in time after all
			again = append(again, f)
		case why.timeout:
			s.ended(f, protocol.Status_TIMED_OUT, exitTimedOut, fmt.Sprintf("timed out after %v", s.prog.timeout), now)
		case len(flight) > 1 && p.ended.Sub(s.since) < Certain:
			// An answer may have been lost with the process, and then a later item is to blame. Run them again one
			// by one: if it happens again, it is certain.
			log.Debug("worker process died among several items")
			s.careful = true
			again = append(again, f)
		case p.memory:
			s.ended(f, protocol.Status_MEMORY_LIMIT, 1, fmt.Sprintf("over the memory limit of %s: the worker process could get no more", Size(s.prog.load.MemoryBytes)), now)
		default:
			log.Warn("worker process died while it ran a task", "attempt", f.item.Attempt)
			s.ended(f, protocol.Status_WORKER_LOST, 1, "worker process died: "+reason, now)
			for _, b := range flight[1:] {
				if !b.dropped {
					s.out.Returned = append(s.out.Returned, b.item.Attempt)
				}
			}
			s.returnQueue()
			return
		}
	}
	// Those behind are unharmed and run in a new process.
	again = append(again, behind...)
	for i := range again {
		again[i] = run{item: again[i].item, at: again[i].at}
	}
	s.queue = append(again, s.queue...)
}

// Size writes a number of bytes for people: "512 MiB".
func Size(n uint64) string {
	for _, u := range []struct {
		bytes uint64
		name  string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.bytes {
			if n%u.bytes == 0 {
				return fmt.Sprintf("%d %s", n/u.bytes, u.name)
			}
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// deadline is when the process is to be killed if nothing happens before, and why. Zero: never.
func (s *slot) deadline() (time.Time, killing) {
	switch {
	case s.proc == nil:
		return time.Time{}, killing{}
	case s.loading != 0:
		return s.loadBy, killing{load: true}
	case len(s.flight) == 0:
		return time.Time{}, killing{}
	case s.flight[0].dropped:
		return later(s.dropped, s.since).Add(grace), killing{stop: true, item: s.flight[0].id}
	case s.prog.timeout > 0:
		return s.since.Add(s.prog.timeout), killing{timeout: true, item: s.flight[0].id}
	}
	return time.Time{}, killing{}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// enforce kills the process if it has to be. Its end is handled by died.
func (s *slot) enforce(now time.Time) {
	by, why := s.deadline()
	if !by.IsZero() && !now.Before(by) && s.why == (killing{}) {
		s.why = why
		s.proc.kill()
	}
	if s.proc != nil && s.proc.taskLog != nil && len(s.flight) > 0 && !now.Before(s.watched.Add(logWatch)) {
		s.watched = now
		s.proc.trimLog(s.prog.load.LogBytes)
	}
	if s.proc != nil && !s.active && s.loading == 0 && len(s.flight) == 0 && !s.idleBy.IsZero() && !now.Before(s.idleBy) {
		s.proc.end()
		s.proc, s.why = nil, killing{}
	}
}

// feed gives the process what it is to do next, and starts one if there is none.
func (s *slot) feed(now time.Time) {
	if !s.active || len(s.queue) == 0 || s.loading != 0 || s.why != (killing{}) {
		return
	}
	if s.proc == nil {
		p, err := s.e.obtain(s.prog)
		if err != nil {
			s.e.cfg.Logger.Error("no worker process", "slot", s.n, "err", err)
			s.returnQueue()
			return
		}
		s.proc = p
	} else if s.proc.key != s.prog.key() {
		if len(s.flight) == 0 { // else those that were stopped end first
			s.e.keep(s.proc, maxSpares) // submitters take turns
			s.proc = nil
			s.feed(now)
		}
		return
	}
	s.buf = s.buf[:0]
	if !s.proc.has(s.prog.handle) {
		s.buf = s.proc.load(s.buf, s.prog)
		s.loading, s.loadBy = s.prog.handle, now.Add(maxLoad)
		s.proc.write(s.buf, s.inBytes+len(s.buf))
		return
	}
	window := 1
	if s.estimate > 0 && !s.careful {
		window = int(max(2, min(maxAhead, ahead/s.estimate))) // the next one is there when one ends
	}
	if len(s.flight) > window/2 {
		return
	}
	if len(s.flight) == 0 {
		s.since = now
		s.flight = s.flight[:0:cap(s.flight)]
	}
	if s.proc.last != nil && s.proc.last != s.prog { // it may be the same code, but it is another job
		s.buf = protocol.AppendLocal(s.buf, protocol.WorkerRest, s.prog.handle)
	}
	s.proc.last = s.prog
	sent := 0
	for ; sent < len(s.queue) && len(s.flight) < window && s.inBytes <= maxAheadBytes; sent++ {
		r := s.queue[sent]
		before := len(s.buf)
		var head [12]byte
		binary.LittleEndian.PutUint64(head[:], s.prog.handle)
		binary.LittleEndian.PutUint32(head[8:], r.item.Seen())
		s.lastID++
		r.id = s.lastID
		if in := &r.item.Input; in.Blob == nil && len(in.Blobs) == 0 {
			s.buf = protocol.AppendLocal(s.buf, protocol.WorkerRun, r.id, head[:], in.Data)
		} else {
			files, err := s.open(&r)
			switch {
			case err != nil:
				s.e.cfg.Logger.Warn("input is not here", "attempt", r.item.Attempt, "err", err)
				s.out.Returned = append(s.out.Returned, r.item.Attempt)
				continue
			case len(in.Blobs) == 0:
				s.buf = protocol.AppendLocal(s.buf, protocol.WorkerRunFile, r.id, head[:], []byte(files.InputPath))
			default:
				files.Handle, files.Index, files.Input = s.prog.handle, r.item.Seen(), in.Data
				s.buf = protocol.AppendWorkerRunFiles(s.buf, r.id, &files)
			}
		}
		r.bytes = len(s.buf) - before
		s.inBytes += r.bytes
		s.flight = append(s.flight, r)
	}
	s.queue = s.queue[sent:]
	if len(s.buf) > 0 {
		s.proc.write(s.buf, s.inBytes)
	}
	if cap(s.buf) > maxAheadBytes {
		s.buf = nil
	}
}

// open finds the files of what an item reads, which stay until it is done.
func (s *slot) open(r *run) (files protocol.WorkerFiles, err error) {
	in := &r.item.Input
	one := func(b *protocol.Blob) string {
		if err != nil {
			return ""
		}
		var path string
		var release func()
		if path, release, err = s.e.cfg.Blobs.OpenBlob(s.e.ctx, s.origin, b); err == nil {
			r.release = append(r.release, release)
		}
		return path
	}
	for _, b := range in.Blobs {
		files.Paths = append(files.Paths, one(b))
	}
	if in.Blob != nil {
		files.InputPath = one(in.Blob)
	}
	if err != nil {
		r.done()
	}
	return files, err
}

// report emits what has come together.
func (s *slot) report(now time.Time) {
	idle := s.active && len(s.queue) == 0 && len(s.flight) == 0
	if idle {
		s.active = false
		s.idleBy = now.Add(s.e.cfg.IdleEnd)
		s.queue, s.flight = nil, nil
	}
	if !idle && len(s.out.Outcomes) == 0 && len(s.out.Returned) == 0 {
		return
	}
	f := s.out
	f.Slot, f.Idle = s.n, idle
	s.out = tasks.Finished{}
	s.e.emit(f)
}

// arm sees to it that the loop wakes for what comes next. A timer that is early is left alone: most deadlines move
// on before they come.
func (s *slot) arm(now time.Time) {
	by, _ := s.deadline()
	if s.why != (killing{}) {
		by = time.Time{} // its end will wake us
	} else if by.IsZero() && s.proc != nil && !s.active {
		by = s.idleBy
	}
	if s.proc != nil && s.proc.taskLog != nil && len(s.flight) > 0 {
		if watch := now.Add(logWatch); by.IsZero() || watch.Before(by) {
			by = watch
		}
	}
	if by.IsZero() || !s.armed.IsZero() && !s.armed.After(by) {
		return
	}
	s.armed = by
	s.timer.Reset(max(0, by.Sub(now)))
}
