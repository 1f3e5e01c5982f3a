package tasks

import (
	"slices"

	"meshnode/protocol"
)

// Times of leases and beats.
const (
	// beatEvery is the time between beats to a peer with which there is a lease, in either direction.
	beatEvery = 500 * millisecond
	// idleBeatEvery is the time between beats otherwise: 50 laptops at 2 Hz would fill their Wi-Fi. It varies
	// by a tenth, so that they do not beat together.
	idleBeatEvery = 5 * second
	// suspectAfter a beat was due, a peer gets no more work; leaseTime after the last one that counted, its
	// leases expire: six beats, so that a single stall of a laptop costs nothing.
	suspectAfter = 1500 * millisecond
	leaseTime    = 3 * second
	// beatSlack is how much later than its time a beat may come from the scheduler before the last one is repeated.
	beatSlack = 100 * millisecond
	// idleSuspectAfter is suspectAfter for a peer without leases: a beat and a half.
	idleSuspectAfter = 7500 * millisecond
	// resetGrace is how long attempts wait for the same incarnation after their stream broke.
	resetGrace = 100 * millisecond
	// deadStepAge is the age of a peer's last Step from which on its beats come from a hung process.
	deadStepAge = 30 * second
)

// peer is what a node knows of another one, or of itself (self), in both roles.
type peer struct {
	id   protocol.NodeID
	self bool

	// The stream. In: PeerUp. Out: PeerDown of the same session, or the PeerUp of the next.
	up          bool
	session     uint64
	incarnation uint64 // of the process at the other end
	downAt      int64  // when the last stream ended
	asleep      int64  // since when it sleeps, as it said when it ended; 0: it does not. See sleep.go
	absentFrom  int64  // we slept, or stood still, and it has
	absentUntil int64  // so long to come back
	heard       int64  // last frame read
	nextBeat    int64
	roundTrip   int64
	beats       int  // sent on this stream
	beaten      bool // a beat with the lists was sent on this stream since they last changed

	// What it says of itself.
	Facts
	version                 string
	runtimes                []string
	mayUseHere, mayUseThere []string
	slots                   int
	running, queued         int
	paused                  string
	throwAway               bool // it ends with the program that started it
	warned                  bool // that it wants here what it may not

	// Our pauses, as it knows them; see Scheduler.advance.
	challengeSeen uint64 // its last challenge, to be answered
	answer        uint64 // our last challenge that it answered

	lessee
	lessor
}

// peer returns the state of a peer, making it at the first mention.
func (s *Scheduler) peer(id protocol.NodeID) *peer {
	p := s.peers[id]
	if p == nil {
		p = &peer{id: id, lessee: lessee{gone: true}} // nothing of it was ever lost
		p.here = &s.here
		p.leases = map[protocol.Attempt]*lease{}
		p.held = map[protocol.Attempt]*held{}
		p.jobs = map[protocol.JobID]*heldJob{}
		p.cannot, p.fits = map[protocol.JobID]cannot{}, map[protocol.JobID]Code{}
		s.peers[id] = p
		i, _ := slices.BinarySearch(s.order, id)
		s.order = slices.Insert(s.order, i, id)
		s.line = slices.Insert(s.line, i, p)
	}
	return p
}

// shift moves all deadlines of p by a pause of our own.
func (p *peer) shift(gap int64) {
	for _, t := range []*int64{&p.heard, &p.renewed, &p.upAt, &p.downAt, &p.asleep, &p.absentFrom, &p.absentUntil, &p.nextBeat, &p.eagerFrom, &p.recallFrom, &p.recalledAt, &p.answersAt, &p.askFrom, &p.flushAt} {
		if *t != 0 {
			*t += gap
		}
	}
}

// slotsOf is how many slots count of those that a peer says it has: more attempts of one origin it could not hold.
func slotsOf(n uint32) int { return int(min(n, maxHeld)) }

func (s *Scheduler) peerUp(ev PeerUp) {
	p, h := s.peer(ev.Peer), ev.Hello
	if p.self || ev.Session <= p.session {
		return
	}
	f := Facts{Name: h.Name, OS: h.Os, Arch: h.Arch, Labels: h.Labels, CPUs: h.Cpus, Memory: h.MemoryBytes}
	if p.incarnation != h.Incarnation || !p.Facts.equal(&f) {
		if p.incarnation != h.Incarnation && p.asleep == 0 { // who loses its power asleep is not taken down by a task
			s.nodeLost(p, NodeRestarted)
			p.blamed, p.countedLost = nil, false // and that is sure
		}
		s.lose(p, NodeRestarted) // all that the old process held is lost; one that says other things of itself is another
	}
	s.notLost(p)
	if !p.up {
		p.upAt = s.now
	}
	p.up, p.session, p.incarnation = true, ev.Session, h.Incarnation
	p.asleep, p.absentUntil = 0, 0
	p.heard, p.renewed, p.nextBeat = s.now, s.now, s.now+beatEvery
	p.throwAway, p.warned = h.ThrowAway, false
	p.version, p.Facts, p.fits = h.NodeVersion, f, map[protocol.JobID]Code{}
	p.runtimes, p.mayUseHere, p.mayUseThere = h.Runtimes, ev.MayUseHere, ev.MayUseThere
	p.slots, p.running, p.queued, p.paused = slotsOf(h.Slots), 0, 0, ""
	s.tellPeer(Connected, p, "")
	p.answer, p.challengeSeen = s.challenge, 0 // a Hello made after our pause; see advance
	p.beats = 0
	p.beaten = false // what we hold may have changed since our Hello was made
	if h.SeenEpoch > s.epoch || h.SeenEpoch == s.epoch && h.SeenIncarnation != s.cfg.Incarnation {
		// It has seen us in a later life: this data directory is an old copy. Epochs must rise, so go above it.
		s.setEpoch(h.SeenEpoch + 1)
		s.record(EpochRecord{s.epoch})
		s.out.Sync = true
	}
	s.present(p)
	p.openLessor(s, h)
	p.openLessee()
	p.listed, p.heldOfUs = listed(h.Held, h.Unanswered), count(h.Held)
	s.adopt(p, protocol.UngroupAttempts(h.Held), protocol.UngroupAttempts(h.Unanswered))
	p.taken = nil
	s.reconcile(p, protocol.UngroupAttempts(h.Held), 0)
	s.answeredWithout(p.id)
	for _, j := range s.active {
		if j.halting != "" {
			s.recallAll(p, j)
		}
	}
	s.sendBeat(p) // a ping; what we hold of it now, too
}

func (s *Scheduler) peerDown(ev PeerDown) {
	p := s.peers[ev.Peer]
	if p == nil || !p.up || p.session != ev.Session {
		return // of a stream that another one has replaced
	}
	s.upTime += s.now - p.upAt
	p.up, p.downAt = false, s.now
	s.tellPeer(Disconnected, p, ev.Reason)
	s.wentAway(p, s.awake())
	if ev.Clean {
		p.gone = true // and said so: no loss
		if ev.Asleep {
			s.fellAsleep(p)
		} else {
			s.lose(p, NodeLeft)
		}
		s.dropQueued(p)
	}
}

// Hello is the first frame of a new stream to peer: who we are, and what we hold of it.
func (s *Scheduler) Hello(id protocol.NodeID) *protocol.Hello {
	h := &protocol.Hello{
		Version: protocol.Version, Epoch: s.epoch, Incarnation: s.cfg.Incarnation,
		Slots: uint32(s.wanted), Runtimes: s.cfg.Runtimes,
		ThrowAway: s.cfg.ThrowAway, Name: s.cfg.Name, Os: s.cfg.OS, Arch: s.cfg.Arch, Labels: s.cfg.Labels, Cpus: s.cfg.CPUs, MemoryBytes: s.cfg.Memory,
	}
	if p := s.peers[id]; p != nil {
		h.SeenEpoch, h.SeenIncarnation = p.epoch, p.epochOf
		queued, unanswered := p.heldLists()
		h.Held, h.Unanswered = protocol.GroupAttempts(queued), protocol.GroupAttempts(unanswered)
	}
	return h
}

// makeBeat says that we live and what we hold of p. The shell fills in the ages and the ping.
func (s *Scheduler) makeBeat(p *peer) *protocol.Beat {
	b := &protocol.Beat{
		Epoch: s.epoch, GrantsRead: p.grantsRead, Slots: uint32(s.wanted), Paused: cut(s.unavailable(), protocol.MaxName),
		Challenge: s.challenge, Answer: p.challengeSeen,
	}
	b.Running, b.Queued = uint32(s.here.running), uint32(s.here.queued)
	if b.SameHeld = p.beaten; !p.beaten {
		queued, unanswered := p.heldLists()
		b.Held, b.Unanswered = protocol.GroupAttempts(queued), protocol.GroupAttempts(unanswered)
		p.beaten = true
	}
	var running []protocol.Attempt
	for i := range s.slots {
		for _, h := range s.slots[i].items {
			if h.from == p {
				running = append(running, h.attempt)
			}
		}
	}
	slices.SortFunc(running, protocol.Attempt.Compare)
	b.RunningOfYours = protocol.GroupAttempts(running)
	return b
}

func (s *Scheduler) beat(p *peer, m *protocol.Beat) {
	if p.self {
		return
	}
	p.seenEpoch(m.Epoch)
	p.slots, p.running, p.queued, p.paused = slotsOf(m.Slots), int(m.Running), int(m.Queued), m.Paused
	p.answer = max(p.answer, m.Answer)
	if m.Challenge != p.challengeSeen {
		p.challengeSeen = m.Challenge
		s.sendBeat(p)
	} else if p.beats == 1 {
		s.sendBeat(p) // it brings back the ping: the first measure of the round trip
	}
	// A beat renews only if its sender lives and hears us: else a one-way partition would renew for ever
	// the lease of an attempt whose grant never arrived.
	if int64(m.HeardAgeMs)*millisecond <= leaseTime && int64(m.StepAgeMs)*millisecond <= deadStepAge {
		p.renewed, p.absentUntil = s.now, 0
	}
	if p.lostAt != 0 && s.now-int64(m.HeardAgeMs)*millisecond > p.lostAt {
		p.lostAt = 0
		s.notLost(p)
	}
	if !m.SameHeld {
		p.listed, p.heldOfUs = listed(m.Held, m.Unanswered), count(m.Held)
	}
	p.others = max(0, p.running+p.queued-p.heldOfUs)
	for _, l := range p.leases {
		l.running = false
	}
	for _, a := range protocol.UngroupAttempts(m.RunningOfYours) {
		if l := p.leases[a]; l != nil {
			l.running = true
		}
	}
	s.reconcile(p, protocol.UngroupAttempts(m.Held), m.GrantsRead)
}

// listed is the set of attempts of a Hello or Beat.
func listed(held, unanswered []*protocol.Attempts) map[protocol.Attempt]bool {
	set := map[protocol.Attempt]bool{}
	for _, gs := range [][]*protocol.Attempts{held, unanswered} {
		for _, a := range protocol.UngroupAttempts(gs) {
			set[a] = true
		}
	}
	return set
}

func count(gs []*protocol.Attempts) int {
	n := 0
	for _, g := range gs {
		n += len(g.Index)
	}
	return n
}

// reconcile compares our books with what p says it holds of us, having read our grants up to grantsRead: an
// attempt that it could know of and does not list is lost; one that it lists and that is not leased any more is revoked.
func (s *Scheduler) reconcile(p *peer, held []protocol.Attempt, grantsRead uint64) {
	var gone []*lease
	for a, l := range p.leases {
		if !p.listed[a] && (l.session != p.session || l.number <= grantsRead) {
			gone = append(gone, l)
		}
	}
	s.takeBack(gone, NotHeld, "")
	var dead []protocol.Attempt
	for _, a := range held {
		if p.leases[a] == nil {
			dead = append(dead, a)
		}
	}
	s.revoke(p, dead)
}

func (s *Scheduler) sendBeat(p *peer) {
	if p.self || !p.up {
		return
	}
	b := s.makeBeat(p)
	p.nextBeat = s.now + beatEvery
	p.beats++
	if len(p.leases) == 0 && len(p.held) == 0 && p.lostAt == 0 {
		tenth := idleBeatEvery / 10
		p.nextBeat = s.now + idleBeatEvery - tenth + s.cfg.Rand.Int64N(2*tenth)
	}
	s.out.Messages = append(s.out.Messages, Outgoing{Peer: p.id, Session: p.session, Message: b, Again: p.nextBeat - s.now + beatSlack})
}

// beatSoon brings the next beat forward once there is a lease.
func (p *peer) beatSoon(now int64) {
	if p.nextBeat > now+beatEvery {
		p.nextBeat = now + beatEvery
	}
}

// beatAll tells every peer at once what changed here.
func (s *Scheduler) beatAll() {
	for _, p := range s.line {
		s.sendBeat(p)
	}
}

// tick does what time alone brings.
func (s *Scheduler) tick() {
	for _, p := range s.line {
		if p.self {
			continue
		}
		if p.up && s.now >= p.nextBeat {
			s.sendBeat(p)
		}
		switch {
		case p.up && len(p.leases) > 0 && s.asleep == "" && s.now >= s.lossDue(p):
			lost := sortedAttempts(p.leases)
			s.nodeLost(p, NodeLost)
			p.lostAt = s.now
			s.revoke(p, lost) // behind the grants that may still be on their way: none of them is to start
		case !p.up && s.now >= p.downAt+resetGrace:
			switch {
			case s.asleep != "":
			case p.asleep != 0:
				s.oversleep(p)
			case s.now >= p.absentUntil:
				s.nodeLost(p, NodeGone)
			}
			s.dropQueued(p)
			if len(p.jobs) > 0 {
				s.forgetJobs(p)
			}
		}
	}
	s.limboTick()
}

func (p *peer) wake(s *Scheduler, at func(int64)) {
	if p.up && !p.self {
		at(p.nextBeat)
	}
	if !p.self {
		at(s.lossDue(p))
	}
	if !p.up && p.queuedHere > 0 {
		at(p.downAt + resetGrace)
	}
	if p.loadFrom > s.now && p.told == 0 && len(s.active) > 0 {
		at(p.loadFrom)
	}
	if len(p.cannot) > 0 { // a range over nothing costs, too, with ten thousand peers
		for _, c := range p.cannot {
			if c.from > s.now {
				at(c.from)
			}
		}
	}
	if p.up && len(p.results) > 0 {
		at(p.flushAt)
	}
	if p.up && len(p.answers) > 0 {
		at(p.answersAt)
	}
	if p.askFrom > s.now && p.pending > 0 {
		at(p.askFrom)
	}
	if p.asking != 0 && p.answerDue() > s.now {
		at(p.answerDue())
	}
	if p.eagerFrom > s.now {
		at(p.eagerFrom)
	}
}

// suspect says that p was not heard from for so long that it gets no more work.
func (s *Scheduler) suspect(p *peer) bool {
	if p.self {
		return false
	}
	if p.lostAt != 0 {
		return true
	}
	if len(p.leases) > 0 {
		return s.now > p.renewed+suspectAfter
	}
	return s.now > p.heard+idleSuspectAfter
}
