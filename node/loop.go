package node

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/journal"
)

const (
	// inboxSize events may wait for the loop. Streams have their own credit besides (sessionCredit), so this is
	// only enough to keep the loop's batches large.
	inboxSize = 1024
	// maxDrain events are stepped before one Ready: enough to share one write among them, and few enough that
	// starting a task does not wait for long.
	maxDrain = 512
)

// input is an event for the scheduler, or something to do in the loop's goroutine.
type input struct {
	event tasks.Event
	do    func(*tasks.Scheduler)
	reply chan<- error // gets Step's error; has room for it
	done  func()       // after the Step: gives credit back
	after func()       // after the Ready that follows was carried out
}

// loop owns the scheduler. Only its goroutine touches the fields.
type loop struct {
	n         *Node
	scheduler *tasks.Scheduler
	wake      int64
	slept     time.Duration // that the scheduler knows of
	looked    int64         // at the clocks, last

	batch   uint64 // number of the newest batch given to the journal
	synced  uint64 // number of the newest one that is on disk
	durable []durable
	after   []func()

	jobs map[protocol.JobID]*jobWatch

	broken error // why the loop cannot go on

	quit chan struct{}
}

// durable is what waits for a batch to be synced.
type durable struct {
	batch    uint64
	messages []tasks.Outgoing
	notices  []tasks.Notice
	then     func() // nil: nothing besides
}

// open restores the scheduler from the journal.
func (l *loop) open(n *Node) error {
	l.n, l.jobs, l.quit = n, map[protocol.JobID]*jobWatch{}, make(chan struct{})
	epoch, err := n.journal.Epoch()
	if err != nil {
		return fmt.Errorf("raise the epoch: %w", err)
	}
	if l.scheduler, err = n.newScheduler(epoch); err != nil {
		return err
	}
	l.slept = n.sleptSoFar()
	now := l.now()
	err = n.journal.Load(func(r tasks.Record) error {
		l.pinRestored(r)
		return l.scheduler.Restore(now, r)
	})
	if err != nil {
		return fmt.Errorf("read the journal below %s: %w", n.cfg.DataDir, err)
	}
	l.scheduler.Restored(now)
	for _, j := range l.scheduler.Jobs() {
		if j.State >= tasks.JobDone {
			l.tidy(j.ID)
		} else if !j.Spec.Detached {
			l.job(j.ID).abandon(l)
		}
	}
	return nil
}

// now is the scheduler's time: it stands still while the machine sleeps.
func (l *loop) now() int64 { return int64(l.n.awake()) }

func (n *Node) awake() time.Duration { return awakeSince(n.started) }

// lookAtClocks tells the scheduler of a sleep before anything else: what waits in the inbox may be hours old to others.
func (l *loop) lookAtClocks() {
	// Going to sleep takes a system longer than this, and the time of it counts: so no sleep hides behind it.
	if now := l.now(); now-l.looked >= int64(time.Millisecond) {
		l.looked = now
	} else {
		return
	}
	if slept := l.n.sleptSoFar(); slept-l.slept > sleepCounts {
		l.slept = slept
		l.step(input{event: tasks.Woke{}})
	}
}

// run is the loop: take what waits, step it, write once, carry out. It ends after end, or when the journal fails.
func (l *loop) run() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case in := <-l.n.inbox:
			l.lookAtClocks()
			l.step(in)
			l.drain()
		case b := <-l.n.journal.Synced():
			l.synced = max(l.synced, b)
		case <-timer.C:
			l.lookAtClocks()
		case <-l.quit:
			return nil
		}
		// Time may end leases only when all that had come before was read.
		if now := l.now(); l.wake != 0 && now >= l.wake && len(l.n.inbox) == 0 {
			l.step(input{event: tasks.Tick{}})
		}
		if err := cmp.Or(l.carryOut(l.scheduler.Ready()), l.broken); err != nil {
			return err
		}
		l.releaseDurable()
		for _, f := range l.after {
			f()
		}
		l.after = l.after[:0]
		if l.wake == 0 {
			timer.Reset(time.Hour)
		} else {
			timer.Reset(max(0, time.Duration(l.wake-l.now())))
		}
	}
}

func (l *loop) drain() {
	for range maxDrain {
		select {
		case in := <-l.n.inbox:
			l.step(in)
		default:
			return
		}
	}
}

func (l *loop) step(in input) {
	if in.do != nil {
		in.do(l.scheduler)
	}
	if in.event != nil {
		now := l.now()
		err := l.scheduler.Step(now, in.event)
		l.n.steppedAt.Store(now)
		if in.reply != nil {
			in.reply <- err
		}
	}
	if in.done != nil {
		in.done()
	}
	if in.after != nil {
		l.after = append(l.after, in.after)
	}
}

// carryOut does what a Ready says, in its order.
func (l *loop) carryOut(r tasks.Ready) error {
	l.wake = r.Wake
	n := l.n
	if len(r.Records) > 0 || r.Sync {
		b, err := n.journal.Append(r.Records, r.Sync)
		if err != nil {
			return fmt.Errorf("write to the journal below %s: %w", n.cfg.DataDir, err)
		}
		l.batch = b
	}
	later := durable{batch: l.batch}
	for _, m := range r.Messages {
		if m.Durable {
			later.messages = append(later.messages, m)
		} else {
			n.sessions.send(m)
		}
	}
	for _, s := range r.Stop {
		n.executor.Stop(s)
	}
	for _, p := range r.Prepare {
		n.prepare(p)
	}
	for _, s := range r.Start {
		n.executor.Start(s)
	}
	for _, f := range r.Fetch {
		n.fetchResult(f)
	}
	for _, x := range r.Obtain {
		n.obtain(x)
	}
	for _, x := range r.Load {
		n.load(x)
	}
	for _, b := range r.Unpin {
		n.blobs.Unpin(b)
	}
	for i := range r.Happened {
		l.log(&r.Happened[i])
	}
	for _, nt := range r.Notices {
		if nt.Durable {
			later.notices = append(later.notices, nt)
		} else {
			l.notice(nt)
		}
	}
	if len(later.messages)+len(later.notices) > 0 {
		l.durable = append(l.durable, later)
	}
	return nil
}

// load reads inputs of waiting tasks again, outside the loop.
func (n *Node) load(x tasks.Load) {
	n.tasks.Go(func() {
		ins, err := n.journal.Inputs(x.Job, x.First, int(x.Count), x.Bytes)
		for errors.Is(err, journal.ErrNotFound) && n.journal.Stalled() { // not written yet
			select {
			case <-time.After(100 * time.Millisecond):
			case <-n.ctx.Done():
				return
			}
			ins, err = n.journal.Inputs(x.Job, x.First, int(x.Count), x.Bytes)
		}
		if err == nil {
			n.post(input{event: tasks.Loaded{Job: x.Job, First: x.First, Inputs: ins}})
			return
		}
		n.do(func(s *tasks.Scheduler) {
			if st, ok := s.Job(x.Job); ok && st.State < tasks.JobDone { // else it was forgotten meanwhile
				n.loop.broken = fmt.Errorf("read inputs of job %s: %w", x.Job.Short(), err)
			}
		})
	})
}

// log writes what the scheduler did as a line.
func (l *loop) log(h *tasks.Happening) {
	as := []slog.Attr{slog.String("what", h.Code.String()), slog.String("peer", string(h.Peer))}
	if !h.Attempt.Job.IsZero() {
		as = append(as, slog.String("job", h.Attempt.Job.Short()))
		if h.Attempt.N > 0 {
			as = append(as, slog.Uint64("task", uint64(h.Attempt.Index)), slog.Uint64("attempt", uint64(h.Attempt.N)))
		}
	}
	if h.What != "" {
		as = append(as, slog.String("reason", h.What))
	}
	if h.Code == tasks.Trespass {
		l.n.log.LogAttrs(l.n.ctx, slog.LevelWarn, "a member wants to run here what it may not", as...)
		return
	}
	l.n.log.LogAttrs(l.n.ctx, slog.LevelDebug, "scheduler", as...)
}

// releaseDurable carries out what waited for batches that are synced now.
func (l *loop) releaseDurable() {
	for len(l.durable) > 0 && l.durable[0].batch <= l.synced {
		d := l.durable[0]
		l.durable[0] = durable{}
		l.durable = l.durable[1:]
		for _, m := range d.messages {
			l.n.sessions.send(m)
		}
		for _, nt := range d.notices {
			l.notice(nt)
		}
		if d.then != nil {
			d.then()
		}
	}
}

// shutdown has the scheduler give everything back, and returns once that was handed to the streams.
func (l *loop) shutdown() string {
	const reason = "the node is stopping"
	flushed := make(chan struct{})
	l.n.post(input{event: tasks.Shutdown{Reason: reason}, after: func() { close(flushed) }})
	select {
	case <-flushed:
	case <-l.n.done:
	case <-time.After(time.Second):
	}
	return reason
}

// end ends run.
func (l *loop) end() { close(l.quit) }

var errStopping = &Error{Code: CodeStopping, Message: "the node is stopping", Fix: "start it again: meshnode up -d"}

// post hands an input to the loop; false: the loop has ended.
func (n *Node) post(in input) bool {
	select {
	case n.inbox <- in:
		return true
	case <-n.done:
		return false
	}
}

// step hands an event to the scheduler and returns its verdict.
func (n *Node) step(ev tasks.Event) error {
	reply := make(chan error, 1)
	if !n.post(input{event: ev, reply: reply}) {
		return errStopping
	}
	select {
	case err := <-reply:
		return err
	case <-n.done:
		return errStopping
	}
}

// do runs f in the loop's goroutine, without waiting for it.
func (n *Node) do(f func(*tasks.Scheduler)) bool { return n.post(input{do: f}) }

// ask runs f in the loop's goroutine and waits for it.
func (n *Node) ask(f func(*tasks.Scheduler)) error {
	ended := make(chan struct{})
	if !n.do(func(s *tasks.Scheduler) { f(s); close(ended) }) {
		return errStopping
	}
	select {
	case <-ended:
		return nil
	case <-n.done:
		return errStopping
	}
}

// emit takes events of the executor.
func (n *Node) emit(ev tasks.Event) { n.post(input{event: ev}) }
