package tasks

import (
	"encoding/binary"
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

// readsOf are n tasks of a Grant, from first on, each of which reads k blobs of its own of size bytes.
func readsOf(id protocol.JobID, number uint64, first, n, k int, size uint64) *protocol.Grant {
	g := grantOf(id, number, first, n, nil)
	for i, t := range g.Jobs[0].Tasks {
		for b := range k {
			name := make([]byte, 32)
			binary.LittleEndian.PutUint64(name, uint64((first+i)*k+b))
			t.Blobs = append(t.Blobs, &protocol.Blob{Id: name, Size: size})
		}
	}
	return g
}

func backOf(r Ready) (as []protocol.Attempt) {
	for _, m := range r.Messages {
		if g, ok := m.Message.(*protocol.GiveBack); ok {
			as = append(as, protocol.UngroupAttempts(g.Attempts)...)
		}
	}
	return as
}

// A member that grants tasks with more blobs than anybody could want here gets them back; few are fetched at once, and what
// came for tasks that are gone is let go.
func TestBlobsOfOneOriginAreBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		k    int
		size uint64
		most int // tasks that may be kept
	}{
		"many": {protocol.MaxTaskBlobs, 1, maxInputs/(protocol.MaxTaskBlobs*inputBlobSize) + 10}, "large": {1, 1 << 30, 4}, "huge": {2, 1 << 63, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := one(t, 1)
			member(s, 0, "b", 1, 1)
			id := protocol.JobID{1}
			announce(s, 0, "b", 1, id)
			s.Step(0, Prepared{Origin: "b", Job: id})
			var asked []Obtain
			const n = 10_000
			back := 0
			for i := range n / 100 {
				s.Step(0, Receive{Peer: "b", Session: 1, Message: readsOf(id, uint64(i+1), 100*i, 100, c.k, c.size)})
				r := s.Ready()
				asked = append(asked, r.Obtain...)
				back += len(backOf(r))
				if len(r.Start) > 0 {
					t.Fatalf("%v starts without its blobs", r.Start)
				}
			}
			if kept := n - back; kept > c.most || kept == 0 {
				t.Errorf("%d tasks are kept, at most %d", kept, c.most)
			}
			if len(asked) > obtainsAtOnce {
				t.Errorf("%d blobs are asked for at once", len(asked))
			}
			if name != "many" { // it looks at each blob
				check(t, s)
			}
			p := s.peers["b"]
			s.Step(1, Receive{Peer: "b", Session: 1, Message: &protocol.Cancel{Epoch: 1, Job: id[:]}})
			s.Ready()
			if len(p.needs.all) > obtainsAtOnce {
				t.Errorf("%d blobs are needed for nothing", len(p.needs.all))
			}
			for _, x := range asked {
				s.Step(1, Obtained{Origin: "b", Blob: protocol.BlobID(x.Blob.Id)})
			}
			if r := s.Ready(); len(r.Unpin) != len(asked) || len(p.needs.all) != 0 || p.needs.bytes != 0 || p.inputBytes != 0 {
				t.Errorf("%d of %d blobs unpinned; %d needed, %d and %d bytes in the books", len(r.Unpin), len(asked), len(p.needs.all), p.needs.bytes, p.inputBytes)
			}
			check(t, s)
		})
	}
}

// A blob that cannot be had sends back those that read it, with the reason, and no others; what they share comes once and goes with the last.
func TestABlobThatIsNotToBeHad(t *testing.T) {
	t.Parallel()
	s := one(t, 2)
	member(s, 0, "b", 1, 2)
	id := protocol.JobID{1}
	announce(s, 0, "b", 1, id)
	s.Step(0, Prepared{Origin: "b", Job: id})
	blob := func(k byte) *protocol.Blob {
		return &protocol.Blob{Id: append(make([]byte, 31), k), Size: 1 << 20}
	}
	g := grantOf(id, 1, 0, 3, nil)
	g.Jobs[0].Tasks[0].Blobs = []*protocol.Blob{blob(1), blob(2), blob(1)}
	g.Jobs[0].Tasks[1].Blobs = []*protocol.Blob{blob(1)}
	g.Jobs[0].Tasks[2].InputBlob = blob(1)
	s.Step(0, Receive{Peer: "b", Session: 1, Message: g})
	r := s.Ready()
	if len(r.Obtain) != 2 || len(r.Start) != 0 {
		t.Fatalf("%+v", r)
	}
	check(t, s)
	s.Step(1, Obtained{Origin: "b", Blob: protocol.BlobID(blob(2).Id), Err: "no room"})
	r = s.Ready()
	if as := backOf(r); len(as) != 1 || as[0].Index != 0 || len(r.Unpin) != 0 {
		t.Fatalf("%v went back; unpinned: %v", as, r.Unpin)
	}
	if m := r.Messages[0].Message.(*protocol.GiveBack); m.Reason != "no room" || m.Why != protocol.Refusal_CANNOT_RUN {
		t.Errorf("%v", m)
	}
	check(t, s)
	s.Step(2, Obtained{Origin: "b", Blob: protocol.BlobID(blob(1).Id)})
	r = s.Ready()
	if len(r.Start) != 2 || len(r.Unpin) != 0 {
		t.Fatalf("%+v", r)
	}
	for i, want := range []int{0, 1} { // the last one lets go
		a := r.Start[i].Items[0].Attempt
		s.Step(3, Finished{Slot: i, Idle: true, Outcomes: []*protocol.Outcome{{Job: id[:], Index: a.Index, Epoch: a.Epoch, N: a.N, Status: protocol.Status_OK}}})
		if u := s.Ready().Unpin; len(u) != want {
			t.Errorf("after task %d ended %d blobs were unpinned, want %d", a.Index, len(u), want)
		}
		check(t, s)
	}
}
