package tasks

import (
	"testing"

	"meshnode/protocol"
)

// member connects a peer that may use wasm here, and lets this node use it there.
func member(s *Scheduler, now int64, id protocol.NodeID, session uint64, slots uint32) {
	s.Step(now, PeerUp{
		Peer: id, Session: session, Hello: &protocol.Hello{Epoch: 1, Incarnation: 9, Slots: slots, Runtimes: []string{"wasm"}},
		MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"},
	})
}

func announce(s *Scheduler, now int64, from protocol.NodeID, session uint64, id protocol.JobID) {
	sp := spec(id)
	s.Step(now, Receive{Peer: from, Session: session, Message: &protocol.JobInfo{Job: id[:], Epoch: 1, Program: sp.Program, Limits: sp.Limits, Tasks: 1 << 20}})
}

func grantOf(id protocol.JobID, number uint64, first, n int, input []byte) *protocol.Grant {
	jg := &protocol.JobGrant{Job: id[:]}
	for i := range n {
		jg.Tasks = append(jg.Tasks, &protocol.Assignment{Index: uint32(first + i), N: 1, Input: input})
	}
	return &protocol.Grant{Epoch: 1, Number: number, Request: 1, Jobs: []*protocol.JobGrant{jg}}
}

func check(t *testing.T, s *Scheduler) {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

// A member that announces jobs without end, and never ends one, has no more than maxJobs of them here.
func TestJobsOfOneOriginAreBounded(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	member(s, 0, "b", 1, 1)
	prepared := 0
	for i := range 5000 {
		announce(s, 0, "b", 1, protocol.JobID{1, byte(i), byte(i >> 8)})
		prepared += len(s.Ready().Prepare)
	}
	if prepared > 1024 {
		t.Errorf("%d programs prepared", prepared)
	}
	check(t, s)
}

// A member that grants more input than anybody could want queued gets it back.
func TestInputsOfOneOriginAreBounded(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	member(s, 0, "b", 1, 1)
	id := protocol.JobID{1}
	announce(s, 0, "b", 1, id)
	input := make([]byte, protocol.MaxInline)
	back := 0
	const n = 4000
	for i := range n / 10 {
		s.Step(0, Receive{Peer: "b", Session: 1, Message: grantOf(id, uint64(i+1), 10*i, 10, input)})
		for _, m := range s.Ready().Messages {
			if g, ok := m.Message.(*protocol.GiveBack); ok {
				back += len(protocol.UngroupAttempts(g.Attempts))
			}
		}
	}
	if kept := (n - back) * len(input); kept > 65<<20 {
		t.Errorf("%d bytes of inputs are queued", kept)
	}
	check(t, s)
}

// Outcomes that nobody answers fill no disk: their blobs count.
func TestUnansweredBlobsAreBounded(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	member(s, 0, "b", 1, 1)
	id := protocol.JobID{1}
	announce(s, 0, "b", 1, id)
	s.Step(0, Prepared{Origin: "b", Job: id})
	s.Step(0, Receive{Peer: "b", Session: 1, Message: grantOf(id, 1, 0, 1000, nil)})
	var size uint64
	now := int64(0)
	for range 1000 {
		r := s.Ready()
		check(t, s)
		if len(r.Start) == 0 {
			break
		}
		now += 10 * millisecond
		a := r.Start[0].Items[0].Attempt
		s.Step(now, Receive{Peer: "b", Session: 1, Message: &protocol.Beat{Epoch: 1, SameHeld: true}})
		s.Step(now, Finished{Slot: 0, Idle: true, Outcomes: []*protocol.Outcome{{
			Job: id[:], Index: a.Index, Epoch: a.Epoch, N: a.N, Status: protocol.Status_OK, RunUs: 10_000,
			OutputBlob: &protocol.Blob{Id: make([]byte, 32), Size: protocol.MaxOutput},
		}}})
		size += protocol.MaxOutput
	}
	if size > 2<<30 {
		t.Errorf("%d bytes of blobs are kept for an origin that answers nothing", size)
	}
}

// A slot that cannot run a task, for want of its input, of room for its output or of a process, is not asked for ever.
func TestATaskThatNoSlotCanRunGoesBack(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	id := protocol.JobID{1}
	if err := s.Step(0, Submit{Job: id, Spec: spec(id), Inputs: make([]Input, 1), Close: true, Count: 1}); err != nil {
		t.Fatal(err)
	}
	starts := 0
	for range 100 {
		r := s.Ready()
		check(t, s)
		for range r.Prepare {
			s.Step(0, Prepared{Origin: "a", Job: id})
		}
		for _, st := range r.Start {
			starts++
			s.Step(0, Finished{Slot: st.Slot, Returned: []protocol.Attempt{st.Items[0].Attempt}, Idle: true})
		}
	}
	if starts == 0 || starts > 5 {
		t.Errorf("started %d times at once", starts)
	}
	if st, _ := s.Job(id); st.Reason == "" {
		t.Errorf("nothing says why it waits: %+v", st)
	}
	if r := sleepUntil(s, 0, 10*second); len(r.Start) == 0 {
		t.Error("not tried again later")
	}
}

// Results whose bytes cannot be had, or not be kept, are not computed again and again without a pause.
func TestUnfetchableResultsPauseTheirWorker(t *testing.T) {
	t.Parallel()
	s := one(t, 0)
	member(s, 0, "b", 1, 1)
	id := protocol.JobID{1}
	if err := s.Step(0, Submit{Job: id, Spec: spec(id), Inputs: make([]Input, 1), Close: true, Count: 1}); err != nil {
		t.Fatal(err)
	}
	grants := 0
	now := int64(0)
	for range 1000 {
		r := s.Ready()
		check(t, s)
		for _, m := range r.Messages {
			g, ok := m.Message.(*protocol.Grant)
			if !ok || len(g.Jobs) == 0 {
				continue
			}
			grants++
			s.Step(now, Receive{Peer: "b", Session: 1, Message: &protocol.Result{Outcomes: []*protocol.Outcome{{
				Job: id[:], Epoch: 1, N: g.Jobs[0].Tasks[0].N, Mac: g.Jobs[0].Tasks[0].Mac, Status: protocol.Status_OK,
				OutputBlob: &protocol.Blob{Id: make([]byte, 32), Size: 1 << 20},
			}}}})
		}
		for _, f := range r.Fetch {
			s.Step(now, Fetched{Attempt: f.Attempt, Peer: f.Peer, Err: "no room for the blob"})
		}
		now += 10 * millisecond
		s.Step(now, Receive{Peer: "b", Session: 1, Message: &protocol.Beat{Epoch: 1, Slots: 1}})
	}
	if grants < 2 || grants > 8 {
		t.Errorf("granted %d times in 10 s", grants)
	}
}

// The blobs of an own result that came too late are let go.
func TestBlobsOfASupersededOwnResultAreUnpinned(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	id := protocol.JobID{1}
	if err := s.Step(0, Submit{Job: id, Spec: spec(id), Inputs: make([]Input, 2), Close: true, Count: 2}); err != nil {
		t.Fatal(err)
	}
	s.Ready()
	s.Step(0, Prepared{Origin: "a", Job: id})
	r := s.Ready()
	if len(r.Start) != 1 {
		t.Fatalf("%+v", r)
	}
	a := r.Start[0].Items[0].Attempt
	blob := &protocol.Blob{Id: make([]byte, 32), Size: 1 << 20}
	// It ends, and is cancelled before the result is looked at.
	s.Step(1, Finished{Slot: 0, Idle: true, Outcomes: []*protocol.Outcome{{Job: id[:], Index: a.Index, Epoch: a.Epoch, N: a.N, OutputBlob: blob, Status: protocol.Status_OK}}})
	s.Step(1, Cancel{Job: id, Task: &a.Index})
	if r := s.Ready(); len(r.Unpin) != 1 {
		t.Errorf("%d blobs unpinned, want 1", len(r.Unpin))
	}
	check(t, s)
}

// An origin that goes away, or comes back over a new stream, leaves no job and no program behind.
func TestNothingIsKeptOfJobsOfAnOldStream(t *testing.T) {
	t.Parallel()
	for name, back := range map[string]bool{"gone": false, "back": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := one(t, 1)
			member(s, 0, "b", 1, 1)
			idle, id := protocol.JobID{1}, protocol.JobID{2}
			announce(s, 0, "b", 1, idle)
			announce(s, 0, "b", 1, id)
			s.Step(0, Prepared{Origin: "b", Job: id})
			s.Step(0, Receive{Peer: "b", Session: 1, Message: grantOf(id, 1, 0, 1, nil)})
			r := s.Ready()
			if len(r.Start) != 1 {
				t.Fatalf("%+v", r)
			}
			a := r.Start[0].Items[0].Attempt
			s.Step(millisecond, PeerDown{Peer: "b", Session: 1})
			dropped := 0
			count := func(r Ready) {
				for _, p := range r.Prepare {
					if p.Drop {
						dropped++
					}
				}
			}
			if back {
				member(s, 2*millisecond, "b", 2, 1)
			}
			now := 300 * millisecond
			s.Step(now, Tick{})
			count(s.Ready())
			s.Step(now, Finished{Slot: 0, Idle: true, Outcomes: []*protocol.Outcome{{Job: id[:], Epoch: a.Epoch, N: a.N, Status: protocol.Status_OK}}})
			if back {
				s.Step(now, Receive{Peer: "b", Session: 2, Message: &protocol.ResultAnswer{Accepted: protocol.GroupAttempts([]protocol.Attempt{a})}})
			}
			count(s.Ready())
			s.Step(now+millisecond, Tick{})
			count(s.Ready())
			if check(t, s); dropped != 2 {
				t.Errorf("%d of 2 programs dropped", dropped)
			}
		})
	}
}
