package tasks

import (
	"testing"

	"meshnode/protocol"
)

// sleepUntil lets time pass as the node does: a Tick whenever Wake says so, and nothing else. It collects what Ready says.
func sleepUntil(s *Scheduler, now, until int64) (all Ready) {
	for {
		r := s.Ready()
		all.Messages = append(all.Messages, r.Messages...)
		all.Prepare = append(all.Prepare, r.Prepare...)
		all.Start = append(all.Start, r.Start...)
		if r.Wake == 0 || r.Wake > until {
			return all
		}
		now = max(now, r.Wake)
		s.Step(now, Tick{})
	}
}

// The origin of a job is started again and finds nobody of those who worked for it: after the limbo it goes on alone.
func TestLimboEndsWithoutAnyOtherEvent(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	id := protocol.JobID{1}
	for _, r := range []Record{
		JobRecord{spec(id)}, TasksRecord{Job: id, Inputs: make([]Input, 3)}, ClosedRecord{id, 3}, GrantedRecord{id, "b"},
	} {
		if err := s.Restore(0, r); err != nil {
			t.Fatal(err)
		}
	}
	s.Restored(0)
	if r := sleepUntil(s, 0, limbo+second); len(r.Prepare) == 0 {
		st, _ := s.Job(id)
		t.Errorf("%v after its start the job is %v: %s", limbo+second, st.State, st.Reason)
	}
}

// A mesh without work sleeps between its beats. That is no pause of ours: work that comes then starts at once.
func TestWorkAfterIdleTimeStartsAtOnce(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	s.Step(0, PeerUp{
		Peer: "b", Session: 1, Hello: &protocol.Hello{Epoch: 1, Incarnation: 9, Runtimes: []string{"wasm"}},
		MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"},
	})
	beats := 0
	now := int64(0)
	for range 6 { // b is alive
		now += 10 * second
		for _, m := range sleepUntil(s, now-10*second, now).Messages {
			if _, ok := m.Message.(*protocol.Beat); ok {
				beats++
			}
		}
		s.Step(now, Receive{Peer: "b", Session: 1, Message: &protocol.Beat{Epoch: 1, SameHeld: true}})
	}
	if beats < 8 || beats > 20 {
		t.Errorf("%d beats in %d s without work, want one in %d s", beats, now/second, idleBeatEvery/second)
	}
	now += 3 * second
	sleepUntil(s, now-3*second, now)
	id := protocol.JobID{1}
	sp := spec(id)
	s.Step(now, Receive{Peer: "b", Session: 1, Message: &protocol.JobInfo{Job: id[:], Epoch: 1, Program: sp.Program, Limits: sp.Limits, Tasks: 1}})
	s.Step(now, Receive{Peer: "b", Session: 1, Message: &protocol.Grant{Epoch: 1, Number: 1, Jobs: []*protocol.JobGrant{{Job: id[:], Tasks: []*protocol.Assignment{{N: 1}}}}}})
	s.Ready()
	s.Step(now+millisecond, Prepared{Origin: "b", Job: id})
	if r := s.Ready(); len(r.Start) != 1 {
		t.Errorf("the task was not started when its program was there: %+v", r)
	}
}
