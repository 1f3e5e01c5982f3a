// Package tasks decides who runs what and when: the scheduler of one node, both as the origin of its own
// jobs and as a worker for others (and for itself).
//
// It is a pure state machine. Events go in with the time at which they happened, Ready comes out: what to
// write, send, start and tell, in that order. It has no goroutine, clock, file, socket or random source of
// its own but the one in Config, so equal events at equal times give equal bytes: whole meshes of it run in
// a simulator. Package node drives the real one.
//
// The way of a task through it, from top to bottom:
//
//	submit.go   Submit: a job and its pending tasks                          (origin)
//	input.go    their inputs: in memory, or on disk until it is their turn   (origin)
//	grant.go    who gets how many of them: leases                            (origin)
//	match.go    which nodes may run a job                                    (origin)
//	share.go    whose turn it is: jobs in grants, origins and jobs in slots  (both)
//	bytes.go    who is too far away for a job's bytes                        (origin)
//	group.go    how much of a program runs at its own node                   (both)
//	mac.go      what proves that an attempt was granted                      (origin)
//	worker.go   queued, running in a slot, outcome kept until answered       (worker)
//	steal.go    asking for more, giving back                                 (worker)
//	tail.go     nothing is pending: tasks move, stragglers get a spare copy  (origin)
//	result.go   the first valid terminal outcome wins, all are answered      (origin)
//	blame.go    whose fault a failure is: tried again, or the end            (origin)
//	poison.go   tasks that kill their worker process, or their node          (origin)
//	halt.go     too many of them end the job                                 (origin)
//	retain.go   how long what has ended is kept                              (both)
//	peer.go     streams, beats, expiring leases: when a worker is lost       (both)
//	sleep.go    machines that sleep, this one too                            (both)
//
// Beside it: event.go and ready.go are what goes in and comes out, status.go what is asked, why.go the reasons with their words,
// explain.go and story.go what is said of a job, a task or a peer with them, mean.go how durations are smoothed, check.go
// what must always hold.
//
// Time is int64 nanoseconds since an arbitrary start, from a monotonic clock. A Scheduler is not safe for
// concurrent use.
package tasks

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"meshnode/protocol"
)

// Errors of Step that a client can act on.
var (
	ErrNoJob   = errors.New("no such job")
	ErrNoTask  = errors.New("no such task")
	ErrGap     = errors.New("tasks before this index are missing")
	ErrTooMany = errors.New("too many tasks")
	ErrClosed  = errors.New("the job is closed")
	ErrRunning = errors.New("the job has not ended")
	ErrStopped = errors.New("the node is stopping")

	ErrPlacement = errors.New("what the job asks of its nodes cannot be understood")
	// ErrForgotten: an id is not used again before the last result of the old job cannot come any more.
	ErrForgotten = errors.New("a job of this id was forgotten")
)

// Units of Scheduler time.
const (
	microsecond = int64(1000)
	millisecond = 1000 * microsecond
	second      = 1000 * millisecond
)

// Config is what a Scheduler starts with. Self, Epoch, Key and Rand are required.
type Config struct {
	Self        protocol.NodeID
	Epoch       uint64     // higher than in any earlier life of this data directory, and already on disk
	Incarnation uint64     // random, of this process
	Key         [32]byte   // secret of this node, the same in every life: authenticates its grants
	Rand        *rand.Rand // jitter only
	Slots       int        // ≥ 0
	Runtimes    []string   // that can run here, as in Hello: "wasm"
	Retention   Retention
	InputWindow int  // bytes of waiting tasks' inputs in memory; 0: 16 MiB. The others are read again (Ready.Load)
	ThrowAway   bool // this node ends with the program that started it, and says so to others
	Facts            // of this node
	Tell        bool // in Ready.Happened, for logs
}

// Scheduler is the state machine. What must always hold of it is listed at Check.
type Scheduler struct {
	cfg      Config
	now      int64 // of the current or last Step
	stepped  bool  // now is set
	epoch    uint64
	mac      macKey
	stopping string // reason, once Shutdown came
	paused   string // reason, while no work is taken
	asleep   string // reason, from Sleep to Woke

	peers map[protocol.NodeID]*peer // this node too: it is a worker of its own jobs, by the same messages
	order []protocol.NodeID         // of peers, sorted: iteration that can be seen from outside
	line  []*peer                   // the same, without looking each of them up
	here  load                      // of this node, from all origins

	jobs       map[protocol.JobID]*job
	jobOrder   []*job                    // that have not ended, in the order of their opening
	active     []*job                    // of these, those with tasks that have not ended: a program may keep thousands open that have nothing to do
	opened     uint64                    // jobs
	limboEnds  int64                     // when the last job of an earlier life may be granted, 0: all may
	turns      turns                     // of jobs, for grants; see share.go
	groups     map[protocol.JobID]*group // see group.go
	groupsFrom int64                     // until when the limits of those from before the start are awaited, 0: they are not
	tailWake   int64                     // when a straggler may be due for a spare copy, 0: not known

	slots   []slot
	guests  turns // of origins, for slots; see share.go
	ownWork int64 // since when guests' tasks wait here for own ones; 0: they do not
	lone    *held // runs alone, or is next and waits for the slots to be empty
	wanted  int   // slots to have; slots above it only finish

	kept retained

	challenge uint64 // counts own pauses
	readies   uint64 // counts Readys
	lost      uint32 // nodes that were gone without a word, and ran no task alone
	upTime    int64  // of all streams that ended, together, ns

	loop      []loopback // messages between this node's two sides, in order
	unsettled bool       // the last Ready did not come to their end
	out       Ready

	story story

	// Room for what each task needs.
	leaseRoom room[lease]
	heldRoom  room[held]
	doneRoom  room[Done]
	taskRoom  room[protocol.Assignment]
}

// loopback is a message of this node to itself. It does not pass through the codec; both sides
// treat messages as values that nobody changes.
type loopback struct{ message protocol.Message }

// room is made for some at once, which is less work than for one at a time: theirs is freed together.
type room[T any] []T

const roomFor = 32

// next is a new T.
func (r *room[T]) next() *T {
	if len(*r) == 0 {
		*r = make([]T, roomFor)
	}
	x := &(*r)[0]
	*r = (*r)[1:]
	return x
}

// New returns the scheduler of a node with nothing in it. Feed it the journal with Restore, then call Restored.
func New(cfg Config) (*Scheduler, error) {
	switch {
	case cfg.Self == "":
		return nil, errors.New("tasks: Config.Self is empty")
	case cfg.Epoch == 0:
		return nil, errors.New("tasks: Config.Epoch is 0")
	case cfg.Rand == nil:
		return nil, errors.New("tasks: Config.Rand is nil")
	case cfg.Slots < 0:
		return nil, fmt.Errorf("tasks: %d slots", cfg.Slots)
	}
	if cfg.InputWindow <= 0 {
		cfg.InputWindow = inputWindow
	}
	cfg.Retention = cfg.Retention.defaults()
	s := &Scheduler{
		cfg:   cfg,
		mac:   newMACKey(cfg.Key),
		peers: map[protocol.NodeID]*peer{},
		jobs:  map[protocol.JobID]*job{},
		turns: turns{credit: jobCredit},
	}
	self := s.peer(cfg.Self)
	self.self, self.up = true, true
	self.incarnation = cfg.Incarnation
	self.Facts = cfg.Facts
	self.runtimes, self.mayUseHere, self.mayUseThere = cfg.Runtimes, cfg.Runtimes, cfg.Runtimes
	s.setEpoch(cfg.Epoch)
	s.setSlots(cfg.Slots)
	return s, nil
}

func (s *Scheduler) setEpoch(e uint64) {
	s.epoch = e
	s.peers[s.cfg.Self].seenEpoch(e)
}

// Step takes one event that happened at now (never before the last one). An error means that a client's event
// was refused and changed nothing; events of peers are never refused, only ignored.
func (s *Scheduler) Step(now int64, ev Event) error {
	s.advance(now)
	err := s.handle(ev)
	s.drainLoop()
	return err
}

// advance moves the clock. If this process itself stood still, no lease may expire for it: every deadline
// moves by the gap.
func (s *Scheduler) advance(now int64) {
	if !s.stepped {
		s.stepped, s.now = true, now
		s.kept.began = now
		return
	}
	gap := now - s.now
	s.now = max(now, s.now)
	if gap <= ownPause {
		return
	}
	for _, p := range s.line {
		p.shift(gap)
	}
	s.interrupted(gap >= noticedAfter)
	for _, j := range s.jobOrder {
		if j.limboUntil != 0 {
			j.limboUntil += gap
		}
	}
	if s.groupsFrom != 0 {
		s.groupsFrom += gap
	}
	if s.limboEnds != 0 {
		s.limboEnds += gap
	}
}

// ownPause is the time between two Steps from which on this node counts as having stood still. A node that waits for
// anything wakes in half of it: else its own sleep would count, and put off what it waits for, again and again.
const ownPause = second

func (s *Scheduler) handle(ev Event) error {
	switch ev := ev.(type) {
	case Submit:
		return s.submit(ev)
	case Cancel:
		return s.cancel(ev)
	case Forget:
		return s.forget(ev)
	case Watching:
		s.watching(ev)
	case PeerUp:
		s.peerUp(ev)
	case PeerDown:
		s.peerDown(ev)
	case Expelled:
		s.expelled(ev)
	case SetPolicy:
		s.setPolicy(ev)
	case Receive:
		if p := s.peers[ev.Peer]; p != nil && p.up && p.session == ev.Session && !p.self {
			p.heard = s.now
			if ev.RoundTrip > 0 {
				p.roundTrip = ev.RoundTrip
				p.waited.prior(ev.RoundTrip)
			}
			s.receive(p, ev.Message)
		}
	case Prepared:
		s.prepared(ev)
	case Finished:
		s.finished(ev)
	case Fetched:
		s.fetched(ev)
	case Obtained:
		s.obtained(ev)
	case Transferred:
		s.transferred(ev)
	case Loaded:
		s.loaded(ev)
	case SetSlots:
		s.setSlots(ev.Slots)
	case SetGroup:
		return s.setGroup(ev)
	case SetPaused:
		s.setPaused(ev.Reason)
	case Sleep:
		s.sleep(ev.Reason)
	case Woke:
		s.woke()
	case Shutdown:
		s.shutdown(ev.Reason)
	case Tick:
		s.tick()
	default:
		return fmt.Errorf("tasks: unknown event %T", ev)
	}
	return nil
}

// receive handles a message of p, which may be this node itself.
func (s *Scheduler) receive(p *peer, m protocol.Message) {
	switch m := m.(type) {
	// As an origin.
	case *protocol.StealRequest:
		s.stealRequest(p, m)
	case *protocol.GiveBack:
		s.givenBack(p, m)
	case *protocol.Result:
		for _, o := range m.Outcomes {
			s.result(p, o)
		}
		if p.self { // its worker side waits for no disk
			s.sendAnswers(p)
		}
		if m.Ask != nil {
			s.stealRequest(p, m.Ask)
		}
	// As a worker.
	case *protocol.JobInfo:
		s.jobInfo(p, m)
	case *protocol.Load:
		s.load(p, m)
	case *protocol.Grant:
		s.granted(p, m)
	case *protocol.Recall:
		s.recalled(p, m)
	case *protocol.ResultAnswer:
		s.answered(p, m)
	case *protocol.Revoke:
		s.revoked(p, m)
	case *protocol.Cancel:
		s.jobCancelled(p, m)
	// Both.
	case *protocol.Beat:
		s.beat(p, m)
	}
}

// drainLoop handles what this node said to itself, until it is silent.
func (s *Scheduler) drainLoop() {
	self := s.peers[s.cfg.Self]
	for len(s.loop) > 0 {
		l := s.loop
		s.loop = nil
		for _, m := range l {
			s.receive(self, m.message)
		}
	}
}

// send hands a message to p's stream, or to this node's other side. A message to a peer that is not there
// is dropped: its next Hello reconciles.
func (s *Scheduler) send(p *peer, m protocol.Message) { s.sendAs(p, m, false) }

// sendDurable is send, after what was recorded so far has been synced.
func (s *Scheduler) sendDurable(p *peer, m protocol.Message) { s.sendAs(p, m, true) }

func (s *Scheduler) sendAs(p *peer, m protocol.Message, durable bool) {
	switch {
	case p.self:
		s.loop = append(s.loop, loopback{m})
	case p.up:
		if _, beat := m.(*protocol.Beat); !beat && s.epoch != s.cfg.Epoch {
			// The epoch was raised in this life: it must be synced before a grant or revoke is sent in it. That is
			// so rare (a restored backup) that all messages of this life may wait for the disk. Beats fence nothing.
			durable = true
		}
		s.out.Messages = append(s.out.Messages, Outgoing{Peer: p.id, Session: p.session, Message: m, Durable: durable})
	}
}

func (s *Scheduler) record(r Record) { s.out.Records = append(s.out.Records, r) }
func (s *Scheduler) notice(n Notice) { s.out.Notices = append(s.out.Notices, n) }
func (s *Scheduler) sortedJobs() []*job {
	js := make([]*job, 0, len(s.jobs))
	for _, j := range s.jobs {
		js = append(js, j)
	}
	slices.SortFunc(js, func(a, b *job) int { return a.id.Compare(b.id) })
	return js
}

// maxRounds of what this node's two sides say to each other are in one Ready. A few are usual; Check calls more a defect.
const maxRounds = 1000

// Ready decides what there is to decide after the events since the last Ready, and returns all that is to be
// done. See Ready for the order in which to do it.
func (s *Scheduler) Ready() Ready {
	if s.stepped {
		for round := 0; ; round++ {
			if s.unsettled = round == maxRounds; s.unsettled {
				break // what is left of the loop waits for the next one: a node that goes round for ever would lose all it holds
			}
			s.flush(s.peers[s.cfg.Self]) // before anything starts: a result may end a job, and the tasks that would be next
			s.drainLoop()
			s.endHalted()
			s.drainLoop()
			s.startTasks()
			s.waitedLongEnough()
			s.grantEagerly()
			if len(s.loop) > 0 { // this node has tasks of its own now: it need not ask for as many
				s.drainLoop()
				continue
			}
			s.askForTasks()
			s.flushResults()
			if len(s.loop) == 0 {
				s.finishTail() // only once it is settled who has what
			}
			if len(s.loop) == 0 {
				break
			}
			s.drainLoop()
		}
		s.flushAnswers()
		s.loadInputs()
		s.retain()
		s.active = slices.DeleteFunc(s.active, func(j *job) bool {
			j.active = j.isActive()
			return !j.active
		})
	}
	s.readies++
	r := s.out
	// The next one will have about as much of what comes with each task.
	s.out = Ready{Records: make([]Record, 0, len(r.Records)), Notices: make([]Notice, 0, len(r.Notices))}
	if r.Wake = s.wake(); s.unsettled {
		r.Wake = s.now + millisecond
	}
	return r
}

// wake is when something is due that no event brings.
func (s *Scheduler) wake() int64 {
	w := int64(0)
	at := func(t int64) {
		if t > 0 && (w == 0 || t < w) {
			w = t
		}
	}
	for _, p := range s.line {
		p.wake(s, at)
	}
	for _, j := range s.active {
		at(j.limboUntil)
		at(j.elsewhereAt())
	}
	at(s.groupsFrom)
	s.retainWake(at)
	if s.ownWork != 0 {
		at(s.ownWork + guestsWait)
	}
	at(s.tailWake)
	return min(w, s.now+ownPause/2) // 0 stays 0
}
