package tasks

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"meshnode/protocol"
)

// holderModel is a real worker, and two origins that grant, revoke, recall and forget as they like: it starts nothing
// that was revoked, drops an outcome only after an answer, and lists exactly what it holds.
type holderModel struct {
	s         *Scheduler
	now, last int64
	lives     uint64
	sessions  uint64
	disk      [][]Record
	synced    int
	origins   []*lessorModel
	slots     map[int][]protocol.Attempt // of the executor
	of        map[int]*lessorModel
	wanted    int
	idle      bool // paused or stopping
	stopping  bool
	challenge uint64
	preparing []Prepare
	pins      map[protocol.BlobID]int
	blobs     uint64
	next      uint32
	began     int64 // this life
	lost      int64 // awake time that no record counted, in all lives
	keep      int64 // how long outcomes of an origin that is away are kept
}

type lessorModel struct {
	id          protocol.NodeID
	up          bool
	session     uint64
	incarnation uint64
	epoch       uint64
	grants      uint64
	downAt      int64
	heard       int64
	answered    bool // since our last pause
	held        map[protocol.Attempt]*heldModel
	prepared    map[protocol.JobID]bool
	said        string // lists of the last beat on this stream that had them
	away        int64  // since when it was away, and noted so: by the awake time of that record
	awayAt      map[int64]int64
	before      string // lists before an event that came right after a pause: the beat of the pause says these
}

type heldModel struct {
	state   heldState
	alone   bool // nothing else may run meanwhile
	spare   bool // a second copy: it may be stopped and given back
	outcome *protocol.Outcome
	at      int64  // when it ended
	sent    uint64 // session on which its outcome was sent
}

type heldState string

const (
	isQueued     heldState = "queued"
	isRunning    heldState = "running"
	isUnanswered heldState = "unanswered"
)

// invalidJob is one whose program is no program.
var invalidJob = protocol.JobID{3}

func newHolderModel(t *rapid.T) *holderModel {
	m := &holderModel{now: second, wanted: rapid.IntRange(1, 2).Draw(t, "slots"), keep: rapid.SampledFrom([]int64{retainOutcomes, 5 * second}).Draw(t, "keep")}
	for _, id := range []protocol.NodeID{"x", "y"} {
		m.origins = append(m.origins, &lessorModel{id: id, held: map[protocol.Attempt]*heldModel{}, awayAt: map[int64]int64{}})
	}
	m.start(t)
	return m
}

func (m *holderModel) start(t *rapid.T) {
	m.lives++
	m.lost += m.now - m.began
	m.began = m.now
	m.disk = append(m.disk, []Record{EpochRecord{m.lives}})
	m.synced = len(m.disk)
	s, err := New(Config{Self: "w", Epoch: m.lives, Incarnation: m.lives, Slots: m.wanted, Runtimes: []string{"wasm"}, Retention: Retention{Outcomes: m.keep}, Rand: rand.New(rand.NewPCG(2, m.lives))})
	if err != nil {
		t.Fatal(err)
	}
	m.s, m.slots, m.of, m.idle, m.stopping, m.challenge, m.preparing = s, map[int][]protocol.Attempt{}, map[int]*lessorModel{}, false, false, 0, nil
	m.pins = map[protocol.BlobID]int{}
	for _, o := range m.origins {
		o.up, o.away, o.prepared, o.held = false, 0, map[protocol.JobID]bool{}, map[protocol.Attempt]*heldModel{}
	}
	for _, b := range m.disk {
		for _, r := range b {
			if err := s.Restore(m.now, r); err != nil {
				t.Fatal(err)
			}
			switch r := r.(type) {
			case HeldRecord:
				m.origin(r.Origin).held[r.Outcome.AttemptOf()] = &heldModel{state: isUnanswered, outcome: r.Outcome, at: m.now}
			case AnsweredRecord:
				delete(m.origin(r.Origin).held, r.Attempt)
			case AwayRecord:
				o := m.origin(r.Origin)
				o.away = o.awayAt[r.Since]
			}
		}
	}
	for _, o := range m.origins {
		for _, h := range o.held {
			if b := h.outcome.OutputBlob; b != nil {
				m.pins[protocol.BlobID(b.Id)]++
			}
		}
	}
	s.Restored(m.now)
	m.last = m.now
	m.ready(t, nil)
}

func (m *holderModel) origin(id protocol.NodeID) *lessorModel {
	for _, o := range m.origins {
		if o.id == id {
			return o
		}
	}
	return nil
}

// step has one event happen, and looks at all that comes of it.
func (m *holderModel) step(t *rapid.T, ev Event) {
	if gap := m.now - m.last; gap > ownPause {
		m.challenge++
		for _, o := range m.origins {
			o.before = o.lists()
			o.answered = false
			o.heard += gap
			o.downAt += gap
			for _, h := range o.held {
				h.at += gap
			}
		}
	}
	m.last = m.now
	if err := m.s.Step(m.now, ev); err != nil {
		t.Fatal(err)
	}
	m.ready(t, ev)
	for _, o := range m.origins {
		o.before = ""
	}
}

// listed says whether a is among gs.
func listedIn(a protocol.Attempt, gs ...[]*protocol.Attempts) bool {
	for _, g := range gs {
		if slices.Contains(protocol.UngroupAttempts(g), a) {
			return true
		}
	}
	return false
}

// lists is what o is to hear that we hold of it.
func (o *lessorModel) lists() string {
	var queued, unanswered []protocol.Attempt
	for _, a := range sortedAttempts(o.held) {
		if o.held[a].state == isUnanswered {
			unanswered = append(unanswered, a)
		} else {
			queued = append(queued, a)
		}
	}
	return attemptsText(queued) + ", unanswered " + attemptsText(unanswered)
}

func (m *holderModel) ready(t *rapid.T, ev Event) {
	r := m.s.Ready()
	if err := m.s.Check(); err != nil {
		t.Fatal(err)
	}
	if len(r.Records) > 0 {
		m.disk = append(m.disk, r.Records)
	}
	// What the event alone takes away.
	rc, received := ev.(Receive)
	from := m.origin(rc.Peer)
	received = received && from.up && from.session == rc.Session
	stops := map[protocol.Attempt]bool{} // to come
	drop := func(o *lessorModel, a protocol.Attempt) {
		if h := o.held[a]; h != nil && h.state != isUnanswered {
			if h.state == isRunning {
				stops[a] = true
			}
			delete(o.held, a)
		}
	}
	dropQueued := func(o *lessorModel) {
		for _, a := range sortedAttempts(o.held) {
			if o.held[a].state == isQueued {
				delete(o.held, a)
			}
		}
	}
	down, _ := ev.(PeerDown)
	if down.Clean && down.Reason == "taken" {
		dropQueued(m.origin(down.Peer))
	}
	if _, tick := ev.(Tick); tick {
		for _, o := range m.origins {
			if !o.up && m.now >= o.downAt+resetGrace {
				dropQueued(o)
			}
		}
	}
	var answers *protocol.ResultAnswer
	if received {
		switch x := rc.Message.(type) {
		case *protocol.Revoke:
			if x.Epoch >= from.epoch {
				for _, a := range protocol.UngroupAttempts(x.Attempts) {
					drop(from, a)
				}
			}
		case *protocol.Cancel:
			for _, a := range sortedAttempts(from.held) {
				if x.Epoch >= from.epoch && a.Job == protocol.JobID(x.Job) {
					drop(from, a)
				}
			}
		case *protocol.Grant:
			if x.Epoch >= from.epoch {
				for _, a := range grantsOf(x) {
					if from.held[a] == nil {
						from.held[a] = &heldModel{state: isQueued, alone: isAlone(x, a), spare: isSpare(x, a)}
					}
				}
			}
		case *protocol.ResultAnswer:
			answers = x
		}
	}
	fin, _ := ev.(Finished)
	for _, x := range r.Records {
		switch x := x.(type) {
		case HeldRecord:
			o, a := m.origin(x.Origin), x.Outcome.AttemptOf()
			h := o.held[a]
			ended := slices.ContainsFunc(fin.Outcomes, func(p *protocol.Outcome) bool { return p.AttemptOf() == a })
			if h == nil || !(h.state == isRunning && ended || h.state == isQueued && a.Job == invalidJob && x.Outcome.Status == protocol.Status_INVALID) {
				t.Fatalf("%s: %+v, after %T", recordText(x), h, ev)
			}
			h.state, h.outcome, h.at = isUnanswered, x.Outcome, m.now
		case AnsweredRecord:
			o := m.origin(x.Origin)
			h := o.held[x.Attempt]
			late := !o.up && o.away != 0 && m.now >= o.away+m.keep
			if h == nil || h.state != isUnanswered || !late && (answers == nil || from != o || !listedIn(x.Attempt, answers.Accepted, answers.Superseded, answers.Unknown)) {
				t.Fatalf("%s: %+v, after %T", recordText(x), h, ev)
			}
			delete(o.held, x.Attempt)
		case AwayRecord:
			o := m.origin(x.Origin)
			if o.away != 0 == (x.Since >= 0) || x.Since >= 0 && o.up {
				t.Fatalf("%s: %+v", recordText(x), o)
			}
			if o.away = 0; x.Since >= 0 {
				o.away = m.now
				o.awayAt[x.Since] = m.now
			}
		case AwakeRecord:
		default:
			t.Fatalf("a worker writes %s", recordText(x))
		}
	}
	for _, o := range fin.Outcomes {
		for _, x := range m.origins {
			if h := x.held[o.AttemptOf()]; h != nil && h.state == isRunning {
				t.Fatalf("the outcome of %v is not kept", o.AttemptOf())
			}
		}
	}
	_, stop := ev.(Shutdown)
	for _, a := range fin.Returned { // of those that were not revoked
		for _, o := range m.origins {
			if h := o.held[a]; h != nil && h.state == isRunning {
				h.state = isQueued
			}
		}
	}
	for _, x := range r.Messages {
		o := m.origin(x.Peer)
		if !o.up || o.session != x.Session {
			t.Fatalf("%s → %s on stream %d", messageText(x.Message), x.Peer, x.Session)
		}
		switch y := x.Message.(type) {
		case *protocol.GiveBack:
			for _, a := range protocol.UngroupAttempts(y.Attempts) {
				h := o.held[a]
				if h == nil || h.state == isUnanswered || h.state == isRunning && !stop && !h.spare {
					t.Fatalf("%s: %v is %+v", messageText(y), a, h)
				}
				if h.spare && y.Why == protocol.Refusal_NO_SLOT { // a beat of this Ready came before
					o.before = o.lists()
				}
				drop(o, a)
			}
		case *protocol.Result:
			for _, p := range y.Outcomes {
				h := o.held[p.AttemptOf()]
				if h == nil || h.state != isUnanswered || h.sent == x.Session {
					t.Fatalf("%s: %+v", messageText(y), h)
				}
				h.sent = x.Session
			}
		}
	}
	for _, o := range m.origins {
		if !o.up { // what it is not told now, it reads in our next Hello
			for _, a := range sortedAttempts(o.held) {
				h := o.held[a]
				if h.state == isUnanswered || m.s.peers[o.id].held[a] != nil {
					continue
				}
				paused, _ := ev.(SetPaused)
				if _, slots := ev.(SetSlots); !(stop || paused.Reason != "" || slots && m.wanted == 0 || slices.Contains(fin.Returned, a)) {
					t.Fatalf("%v of %s, which is away, is gone after %T", a, o.id, ev)
				}
				drop(o, a)
			}
		}
	}
	for _, x := range r.Start {
		o := m.origin(x.Origin)
		busy := m.slots[x.Slot]
		if m.idle || len(m.slots) > m.wanted || busy == nil && len(m.slots) == m.wanted || busy != nil && (m.of[x.Slot] != o || busy[0].Job != x.Job) {
			t.Fatalf("starts slot %d of %d, which has %v; idle: %v", x.Slot, m.wanted, m.slots[x.Slot], m.idle)
		}
		if !m.confirmed(o) || !o.prepared[x.Job] {
			t.Fatalf("starts slot %d of %+v at %d, job %d", x.Slot, o, m.now, x.Job[0])
		}
		m.of[x.Slot] = o
		for _, it := range x.Items {
			h := o.held[it.Attempt]
			if h == nil || h.state != isQueued {
				t.Fatalf("starts %v, which is %+v", it.Attempt, h)
			}
			for i, as := range m.slots {
				for _, a := range as {
					if r := m.of[i].held[a]; r != nil && (r.alone || h.alone) {
						t.Fatalf("starts %v beside %v; one is to run alone", it.Attempt, a)
					}
				}
			}
			h.state = isRunning
			m.slots[x.Slot] = append(m.slots[x.Slot], it.Attempt)
		}
	}
	for _, b := range r.Unpin {
		if m.pins[b]--; m.pins[b] < 0 {
			t.Fatalf("unpins %x once too often", b[:2])
		}
	}
	for _, x := range r.Messages {
		if b, ok := x.Message.(*protocol.Beat); ok {
			o := m.origin(x.Peer)
			if !b.SameHeld {
				o.said = groupsText(b.Held) + ", unanswered " + groupsText(b.Unanswered)
			}
			if o.said != o.lists() && o.said != o.before {
				t.Fatalf("%s: %s hears %s, we hold %s", beatText(b), o.id, o.said, o.lists())
			}
		}
	}
	for _, x := range r.Prepare {
		o, id := m.origin(x.Origin), protocol.JobID(x.Info.Job)
		if !x.Drop {
			m.preparing = append(m.preparing, x)
			continue
		}
		m.preparing = slices.DeleteFunc(m.preparing, func(y Prepare) bool { return y.Origin == x.Origin && bytes.Equal(y.Info.Job, x.Info.Job) })
		delete(o.prepared, id)
		for a := range o.held {
			if a.Job == id && o.held[a].state != isUnanswered {
				t.Fatalf("drops the program of %v, which is %s", a, o.held[a].state)
			}
		}
	}
	for _, o := range m.origins {
		unanswered := 0
		for _, h := range o.held {
			if h.state == isUnanswered {
				unanswered++
			}
		}
		if !o.up && unanswered > 0 && (o.away == 0 || m.now >= o.away+m.keep+m.lost) {
			t.Fatalf("%d outcomes are kept at %d for %s, which is away since %d", unanswered, m.now, o.id, o.away)
		}
	}
	m.check(t, ev)
	for _, x := range r.Stop {
		var ended Finished
		ended.Slot = x.Slot
		for _, a := range x.Attempts {
			if !stops[a] || !slices.Contains(m.slots[x.Slot], a) {
				t.Fatalf("stops %v in slot %d, which has %v", a, x.Slot, m.slots[x.Slot])
			}
			delete(stops, a)
			if m.slots[x.Slot][0] == a && rapid.Bool().Draw(t, "was ready") {
				ended.Outcomes = append(ended.Outcomes, m.outcome(t, a))
			} else {
				ended.Returned = append(ended.Returned, a)
			}
		}
		m.slots[x.Slot] = slices.DeleteFunc(m.slots[x.Slot], func(a protocol.Attempt) bool { return slices.Contains(x.Attempts, a) })
		if ended.Idle = len(m.slots[x.Slot]) == 0; ended.Idle {
			delete(m.slots, x.Slot)
		}
		m.step(t, ended)
	}
	if len(stops) > 0 {
		t.Fatalf("%v are revoked and still run", sortedAttempts(stops))
	}
}

func isAlone(g *protocol.Grant, a protocol.Attempt) bool { return assignmentOf(g, a).GetAlone() }
func isSpare(g *protocol.Grant, a protocol.Attempt) bool { return assignmentOf(g, a).GetSpare() }

func assignmentOf(g *protocol.Grant, a protocol.Attempt) *protocol.Assignment {
	for _, jg := range g.Jobs {
		for _, x := range jg.Tasks {
			if x.Index == a.Index && x.N == a.N && protocol.JobID(jg.Job) == a.Job {
				return x
			}
		}
	}
	return nil
}

// aloneWaits says that a task is held that has to run alone, and is next, or runs.
func (m *holderModel) aloneWaits() bool {
	for _, o := range m.origins {
		for a, h := range o.held {
			if h.alone && (h.state == isRunning || h.state == isQueued && m.confirmed(o) && o.prepared[a.Job]) {
				return true
			}
		}
	}
	return false
}

func (m *holderModel) confirmed(o *lessorModel) bool {
	return o.up && o.answered && m.now <= o.heard+leaseTime
}

// check compares what the worker holds with the model.
func (m *holderModel) check(t *rapid.T, ev Event) {
	pinned := 0
	for _, o := range m.origins {
		h := m.s.Hello(o.id)
		if got := groupsText(h.Held) + ", unanswered " + groupsText(h.Unanswered); got != o.lists() {
			t.Fatalf("after %T it holds %s of %s, want %s", ev, got, o.id, o.lists())
		}
		for a, x := range o.held {
			if x.state == isUnanswered && x.outcome.OutputBlob != nil {
				pinned++
				if m.pins[protocol.BlobID(x.outcome.OutputBlob.Id)] != 1 {
					t.Fatalf("the bytes of %v are not pinned", a)
				}
			}
			pu, _ := ev.(PeerUp)
			_, tick := ev.(Tick)
			if o.up && x.state == isUnanswered && x.sent != o.session && (pu.Peer == o.id || tick && m.now > x.at+flushMost) {
				t.Fatalf("the outcome of %v was not sent on stream %d", a, o.session)
			}
			if x.state == isQueued && m.confirmed(o) && o.prepared[a.Job] && !m.idle && len(m.slots) < m.wanted && !(m.aloneWaits() && len(m.slots) > 0) {
				t.Fatalf("%v waits, and %d of %d slots are busy", a, len(m.slots), m.wanted)
			}
		}
	}
	for _, n := range m.pins {
		pinned -= n
	}
	if pinned != 0 {
		t.Fatalf("%d blobs are pinned for nothing", -pinned)
	}
}

func (m *holderModel) drawUp(t *rapid.T) *lessorModel {
	up := slices.DeleteFunc(slices.Clone(m.origins), func(o *lessorModel) bool { return !o.up })
	if len(up) == 0 {
		t.Skip("no stream")
	}
	return rapid.SampledFrom(up).Draw(t, "origin")
}

// receive hands over a message, rarely on a stream that was replaced.
func (m *holderModel) receive(t *rapid.T, o *lessorModel, x protocol.Message) {
	session := o.session
	if rapid.IntRange(0, 15).Draw(t, "old stream") == 0 {
		session--
	} else {
		o.heard = m.now
		if gap := m.now - m.last; gap > ownPause {
			o.heard -= gap // step moves it
		}
	}
	m.step(t, Receive{Peer: o.id, Session: session, Message: x})
}

// drawEpoch is that of the origin, or rarely the one before.
func (o *lessorModel) drawEpoch(t *rapid.T) uint64 {
	if rapid.IntRange(0, 9).Draw(t, "stale") == 0 {
		return o.epoch - 1
	}
	return o.epoch
}

// drawHeld are some of what we hold of o, and one that we do not.
func (m *holderModel) drawHeld(t *rapid.T, o *lessorModel) []*protocol.Attempts {
	var as []protocol.Attempt
	for _, a := range sortedAttempts(o.held) {
		if rapid.IntRange(0, 2).Draw(t, "this") == 0 {
			as = append(as, a)
		}
	}
	return protocol.GroupAttempts(append(as, protocol.Attempt{Job: protocol.JobID{1}, Index: 999999, N: 1, Epoch: 1}))
}

func (m *holderModel) Up(t *rapid.T) {
	o := rapid.SampledFrom(m.origins).Draw(t, "origin")
	if o.incarnation == 0 || rapid.IntRange(0, 2).Draw(t, "new") == 0 {
		o.incarnation++
		o.epoch += 2
	}
	m.sessions += 2
	if gap := m.now - m.last; gap > ownPause { // the pause comes first
		m.step(t, Tick{})
	}
	o.up, o.session, o.grants, o.heard, o.answered, o.said = true, m.sessions, 0, m.now, true, "nothing"
	m.step(t, PeerUp{Peer: o.id, Session: o.session, Hello: &protocol.Hello{Epoch: o.epoch, Incarnation: o.incarnation, Slots: 1},
		MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"}})
}

func (m *holderModel) Down(t *rapid.T) {
	o := m.drawUp(t)
	ev := PeerDown{Peer: o.id, Session: o.session, Clean: rapid.Bool().Draw(t, "clean")}
	if rapid.IntRange(0, 3).Draw(t, "old") == 0 {
		ev.Session--
		m.step(t, ev)
		return
	}
	if gap := m.now - m.last; gap > ownPause {
		m.step(t, Tick{})
	}
	o.up, o.downAt = false, m.now
	if ev.Clean {
		ev.Reason = "taken"
	}
	m.step(t, ev)
}

func (m *holderModel) Job(t *rapid.T) {
	o := m.drawUp(t)
	m.announce(t, o, drawJob(t))
	if rapid.Bool().Draw(t, "load") {
		m.receive(t, o, &protocol.Load{Epoch: o.epoch, Pending: uint64(rapid.IntRange(0, 20).Draw(t, "pending"))})
	}
}

func (m *holderModel) announce(t *rapid.T, o *lessorModel, id protocol.JobID) {
	m.receive(t, o, &protocol.JobInfo{Job: id[:], Epoch: o.drawEpoch(t), Program: spec(id).Program, Limits: &protocol.Limits{}, Tasks: uint64(rapid.IntRange(1, 50).Draw(t, "tasks"))})
}

func (m *holderModel) Prepare(t *rapid.T) {
	if len(m.preparing) == 0 {
		t.Skip("none")
	}
	x := m.preparing[0]
	m.preparing = m.preparing[1:]
	id := protocol.JobID(x.Info.Job)
	ev := Prepared{Origin: x.Origin, Job: id}
	switch {
	case id == invalidJob:
		ev.Invalid = "no module"
	case rapid.IntRange(0, 5).Draw(t, "unable") == 0:
		ev.Unable = "no room"
		for a, h := range m.origin(x.Origin).held { // given back, though nobody may be there to hear it
			if o := m.origin(x.Origin); a.Job == id && h.state == isQueued && !o.up {
				delete(o.held, a)
			}
		}
	default:
		m.origin(x.Origin).prepared[id] = true
	}
	m.step(t, ev)
}

func (m *holderModel) Grant(t *rapid.T) {
	o := m.drawUp(t)
	id := drawJob(t)
	if rapid.IntRange(0, 3).Draw(t, "as it should be") > 0 {
		m.announce(t, o, id)
		for len(m.preparing) > 0 {
			m.Prepare(t)
		}
	}
	g := &protocol.Grant{Epoch: o.drawEpoch(t), Left: uint64(rapid.IntRange(0, 5).Draw(t, "left"))}
	if p := m.s.peers[o.id]; p.asking != 0 && rapid.Bool().Draw(t, "asked") {
		g.Request = p.asking
	}
	o.grants++
	g.Number = o.grants
	jg := &protocol.JobGrant{Job: id[:], RunUs: uint64(rapid.SampledFrom([]int{0, 100, 50000}).Draw(t, "run"))}
	for range rapid.IntRange(0, 5).Draw(t, "tasks") {
		m.next++
		kind := rapid.IntRange(0, 9).Draw(t, "kind") // a suspected task is never copied
		jg.Tasks = append(jg.Tasks, &protocol.Assignment{Index: m.next, N: 1, Alone: kind == 0, Spare: kind > 7})
	}
	for a, h := range o.held { // the same again
		if a.Job == id && a.Epoch == g.Epoch && h.state != isUnanswered && len(jg.Tasks) == 1 {
			jg.Tasks = append(jg.Tasks, &protocol.Assignment{Index: a.Index, N: a.N})
			break
		}
	}
	g.Jobs = []*protocol.JobGrant{jg}
	m.receive(t, o, g)
}

func (m *holderModel) Revoke(t *rapid.T) {
	o := m.drawUp(t)
	m.receive(t, o, &protocol.Revoke{Epoch: o.drawEpoch(t), Attempts: m.drawHeld(t, o)})
}

func (m *holderModel) Recall(t *rapid.T) {
	o := m.drawUp(t)
	m.receive(t, o, &protocol.Recall{Epoch: o.drawEpoch(t), Id: 1, Count: uint32(rapid.IntRange(0, 4).Draw(t, "count"))})
}

func (m *holderModel) Cancel(t *rapid.T) {
	o := m.drawUp(t)
	id := drawJob(t)
	m.receive(t, o, &protocol.Cancel{Epoch: o.drawEpoch(t), Job: id[:]})
}

// Answer may name what has not ended, and what is another origin's: that changes nothing.
func (m *holderModel) Answer(t *rapid.T) {
	o := m.drawUp(t)
	of := rapid.SampledFrom(m.origins).Draw(t, "of")
	x := &protocol.ResultAnswer{}
	switch as := m.drawHeld(t, of); rapid.IntRange(0, 2).Draw(t, "answer") {
	case 0:
		x.Accepted = as
	case 1:
		x.Superseded = as
	default:
		x.Unknown = as
	}
	m.receive(t, o, x)
}

func (m *holderModel) Beat(t *rapid.T) {
	o := m.drawUp(t)
	b := &protocol.Beat{Epoch: o.epoch, SameHeld: true, Challenge: uint64(rapid.IntRange(0, 1).Draw(t, "challenge"))}
	if gap := m.now - m.last; gap > ownPause {
		m.step(t, Tick{})
	}
	session := o.session
	o.heard = m.now
	if rapid.Bool().Draw(t, "answers") {
		b.Answer = m.challenge
		o.answered = true
	}
	m.step(t, Receive{Peer: o.id, Session: session, Message: b})
}

// outcome ends a in some way.
func (m *holderModel) outcome(t *rapid.T, a protocol.Attempt) *protocol.Outcome {
	o := drawOutcome(t, a)
	if o.OutputBlob != nil {
		m.blobs++
		o.OutputBlob.Id = append([]byte{byte(m.blobs >> 8), byte(m.blobs)}, make([]byte, 30)...)
		m.pins[protocol.BlobID(o.OutputBlob.Id)]++
	}
	return o
}

func (m *holderModel) Finish(t *rapid.T) {
	if len(m.slots) == 0 {
		t.Skip("idle")
	}
	i := rapid.SampledFrom(sortedKeys(m.slots)).Draw(t, "slot")
	ev := Finished{Slot: i}
	for range rapid.IntRange(1, len(m.slots[i])).Draw(t, "items") {
		a := m.slots[i][0]
		m.slots[i] = m.slots[i][1:]
		if rapid.IntRange(0, 7).Draw(t, "returned") == 0 {
			ev.Returned = append(ev.Returned, a)
		} else {
			ev.Outcomes = append(ev.Outcomes, m.outcome(t, a))
		}
	}
	if ev.Idle = len(m.slots[i]) == 0; ev.Idle {
		delete(m.slots, i)
	}
	m.step(t, ev)
}

func (m *holderModel) Slots(t *rapid.T) {
	m.wanted = rapid.IntRange(0, 3).Draw(t, "slots")
	m.step(t, SetSlots{m.wanted})
}

func (m *holderModel) Pause(t *rapid.T) {
	reason := rapid.SampledFrom([]string{"", "on battery"}).Draw(t, "reason")
	m.idle = reason != "" || m.stopping
	m.step(t, SetPaused{reason})
}

func (m *holderModel) Shutdown(t *rapid.T) {
	if rapid.IntRange(0, 5).Draw(t, "really") > 0 {
		return
	}
	m.idle, m.stopping = true, true
	m.step(t, Shutdown{"stops"})
}

func (m *holderModel) Tick(t *rapid.T) {
	m.now += int64(rapid.SampledFrom([]int{1, 10, 25, 120, 600, 900, 4000}).Draw(t, "ms")) * millisecond
	if rapid.IntRange(0, 3).Draw(t, "wait") > 0 { // else the next event comes before it
		m.step(t, Tick{})
	}
}

func (m *holderModel) Restart(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		return
	}
	m.disk = m.disk[:rapid.IntRange(m.synced, len(m.disk)).Draw(t, "kept")]
	m.start(t)
}

func (m *holderModel) Sync(*rapid.T) { m.synced = len(m.disk) }

func (m *holderModel) Check(*rapid.T) {} // each step is checked

func TestWorkerModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) { t.Repeat(rapid.StateMachineActions(newHolderModel(t))) })
}
