package tasks

import (
	"math"
	"testing"

	"meshnode/protocol"
)

// What one rule does to another: each of these was a defect that no rule's own test had found.

// grantWith is a Grant of single tasks of id, as edit changes them.
func grantWith(id protocol.JobID, number, request uint64, first, n int, runUs uint64, edit func(*protocol.Assignment)) *protocol.Grant {
	g := grantOf(id, number, first, n, nil)
	g.Request, g.Jobs[0].RunUs = request, runUs
	for _, t := range g.Jobs[0].Tasks {
		if edit != nil {
			edit(t)
		}
	}
	return g
}

func returned(r Ready) (as []protocol.Attempt) {
	for _, m := range r.Messages {
		if g, ok := m.Message.(*protocol.GiveBack); ok {
			as = append(as, protocol.UngroupAttempts(g.Attempts)...)
		}
	}
	return as
}

func started(r Ready) (as []protocol.Attempt) {
	for _, st := range r.Start {
		for _, it := range st.Items {
			as = append(as, it.Attempt)
		}
	}
	return as
}

// worker is a node with a stream to an origin b, whose job 1 it can run.
func worker(t *testing.T, slots int) (*Scheduler, protocol.JobID) {
	t.Helper()
	s, id := one(t, slots), protocol.JobID{1}
	member(s, 0, "b", 1, 1)
	announce(s, 0, "b", 1, id)
	s.Step(0, Prepared{Origin: "b", Job: id})
	s.Ready()
	return s, id
}

// A node that gives up its slots while one of them has a few short tasks keeps none of those that come back from it, and
// none that it had asked for: they would wait for as long as it has no slots.
func TestANodeWithoutSlotsHoldsNothing(t *testing.T) {
	t.Parallel()
	s, id := worker(t, 1)
	s.Step(0, Receive{Peer: "b", Session: 1, Message: grantWith(id, 1, 0, 0, 2, 100, nil)})
	as := started(s.Ready())
	if len(as) != 2 {
		t.Fatalf("started %v", as)
	}
	s.Step(0, SetSlots{0})
	s.Step(0, Finished{Slot: 0, Returned: as[:1]})
	if got := returned(s.Ready()); len(got) != 1 || got[0] != as[0] {
		t.Errorf("gave back %v, want %v", got, as[0])
	}
	check(t, s)
	s.Step(0, Receive{Peer: "b", Session: 1, Message: grantWith(id, 2, 1, 10, 1, 100, nil)})
	if got := returned(s.Ready()); len(got) != 1 || got[0].Index != 10 {
		t.Errorf("gave back %v, want what it had asked for", got)
	}
	check(t, s)
}

// A spare copy and a first attempt come at once: the copy is not even started, and the first attempt does not wait for another event.
func TestAFirstAttemptTakesTheSlotOfACopyAtOnce(t *testing.T) {
	t.Parallel()
	s, id := worker(t, 1)
	s.Step(0, Receive{Peer: "b", Session: 1, Message: grantWith(id, 1, 0, 0, 1, 100_000, func(a *protocol.Assignment) { a.Spare = true })})
	s.Step(0, Receive{Peer: "b", Session: 1, Message: grantWith(id, 2, 1, 1, 1, 100_000, nil)})
	r := s.Ready()
	if as := started(r); len(as) != 1 || as[0].Index != 1 {
		t.Errorf("started %v, want the first attempt alone", as)
	}
	if as := returned(r); len(as) != 1 || as[0].Index != 0 {
		t.Errorf("gave back %v, want the copy", as)
	}
	check(t, s)
}

// A node that runs a task alone asks for no more, and an origin has no other slot of it for anybody.
func TestNothingIsAskedForBehindALoneTask(t *testing.T) {
	t.Parallel()
	s, id := worker(t, 3)
	s.Step(0, Receive{Peer: "b", Session: 1, Message: &protocol.Load{Epoch: 1, Pending: 100}})
	g := grantWith(id, 1, 0, 0, 1, 0, func(a *protocol.Assignment) { a.Alone = true })
	g.Left = 100
	s.Step(0, Receive{Peer: "b", Session: 1, Message: g})
	s.Ready() // may ask before it starts: the request comes from before
	for range 5 {
		s.Step(10*second, Receive{Peer: "b", Session: 1, Message: &protocol.Beat{Epoch: 1, SameHeld: true, Answer: s.challenge}})
		for _, m := range s.Ready().Messages {
			if _, ok := m.Message.(*protocol.StealRequest); ok {
				t.Fatal("asks for tasks that would stand behind the lone one")
			}
		}
	}
	s = one(t, 0)
	member(s, 0, "b", 1, 4)
	j := s.openJob(id, spec(id))
	s.addTasks(j, make([]Input, 3))
	j.troubleOf(0).losses = aloneAfter
	s.Ready() // grants
	p := s.peers["b"]
	if p.alone != 1 {
		t.Fatalf("%d of its %d leases are alone", p.alone, len(p.leases))
	}
	if f := s.free(p); f != 0 {
		t.Errorf("%d of its slots count as free", f)
	}
}

// Whatever a member says of its slots and of the time that tasks took, the origin's sums stay in range: with them out of it, it would
// grant for ever.
func TestWhatAMemberSaysOverflowsNothing(t *testing.T) {
	t.Parallel()
	for _, says := range []struct {
		slots uint32
		run   uint64
	}{{math.MaxUint32, 0}, {4, 1 << 53}, {4, math.MaxUint64}} {
		s, id := one(t, 0), protocol.JobID{1}
		s.cfg.InputWindow = 1 << 30
		const n = 150_000
		now := second
		s.Step(now, Submit{Job: id, Spec: spec(id), Inputs: make([]Input, n), Close: true, Count: n})
		member(s, now, "c", 1, 1)
		member(s, now, "b", 2, says.slots)
		for range 10 {
			now += 100 * millisecond
			for _, m := range s.Ready().Messages {
				g, ok := m.Message.(*protocol.Grant)
				if !ok || len(g.Jobs) == 0 {
					continue
				}
				took := says.run
				if m.Peer == "c" {
					took = 90_000
				}
				x := g.Jobs[0].Tasks[0]
				s.Step(now, Receive{Peer: m.Peer, Session: m.Session, Message: &protocol.Result{
					Outcomes: []*protocol.Outcome{{Job: id[:], Index: x.Index, Epoch: 1, N: x.N, Mac: x.Mac, Status: protocol.Status_OK, RunUs: took}},
					Ask:      &protocol.StealRequest{Epoch: 1, Id: m.Session, Want: math.MaxUint32, Free: math.MaxUint32, WaitUs: math.MaxUint64, TimeUs: math.MaxUint64},
				}})
			}
			s.Step(now, Receive{Peer: "b", Session: 2, Message: &protocol.Beat{Epoch: 1, Slots: says.slots, Running: math.MaxUint32, Queued: math.MaxUint32, SameHeld: true}})
		}
		if j := s.jobs[id]; j.claim.used < 0 || j.run.ns < 0 || j.run.ns > maxRunUs*microsecond {
			t.Errorf("after tasks of %d µs: used %d, mean %d", says.run, j.claim.used, j.run.ns)
		}
		check(t, s)
	}
}

// A loss is a node that is gone without a word: not one that comes for the first time, says Bye, or is only known by its outcomes.
func TestOnlyNodesThatAreLostCountAsLost(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	s.peer("never seen")
	member(s, 0, "b", 1, 1)
	s.Step(second/2, PeerDown{Peer: "b", Session: 1, Clean: true})
	s.Step(second, Tick{})
	if s.lost != 0 {
		t.Errorf("%d nodes are lost, and none was", s.lost)
	}
	member(s, second, "b", 2, 1)
	s.Step(second, PeerDown{Peer: "b", Session: 2})
	s.Step(2*second, Tick{})
	if s.lost != 1 {
		t.Errorf("%d nodes are lost, and one was", s.lost)
	}
}

// A member that names an attempt twice gives it back once.
func TestAnAttemptIsGivenBackOnce(t *testing.T) {
	t.Parallel()
	s, id := one(t, 0), protocol.JobID{1}
	member(s, 0, "b", 1, 2)
	s.Step(0, Submit{Job: id, Spec: spec(id), Inputs: make([]Input, 5), Close: true, Count: 5})
	for _, m := range s.Ready().Messages {
		if g, ok := m.Message.(*protocol.Grant); ok {
			as := grantsOf(g)
			s.Step(0, Receive{Peer: "b", Session: 1, Message: &protocol.GiveBack{Epoch: 1, Attempts: protocol.GroupAttempts(append(as, as...))}})
			check(t, s)
		}
	}
	if j := s.jobs[id]; j.pending != 5 || j.share("b").live != 0 || j.claim.used != 0 {
		t.Errorf("%d pending, %d live, %d ns charged; all is given back", j.pending, j.share("b").live, j.claim.used)
	}
}

// An origin that gives its job the id of another's, and its attempts the same names, ends none of the other's tasks.
func TestAnOriginRevokesItsOwnAttemptsOnly(t *testing.T) {
	t.Parallel()
	s, id := worker(t, 2)
	member(s, 0, "c", 2, 1)
	announce(s, 0, "c", 2, id)
	s.Step(0, Prepared{Origin: "c", Job: id})
	for i, from := range []protocol.NodeID{"b", "c"} {
		s.Step(0, Receive{Peer: from, Session: uint64(i + 1), Message: grantWith(id, 1, 0, 0, 1, 0, nil)})
	}
	if as := started(s.Ready()); len(as) != 2 {
		t.Fatalf("started %v", as)
	}
	s.Step(0, Receive{Peer: "c", Session: 2, Message: &protocol.Revoke{Epoch: 1, Attempts: protocol.GroupAttempts([]protocol.Attempt{{Job: id, Index: 0, N: 1, Epoch: 1}})}})
	if r := s.Ready(); len(r.Stop) != 1 {
		t.Errorf("stops %v", r.Stop)
	}
	check(t, s)
}
