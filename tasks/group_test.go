package tasks

import (
	"math/rand/v2"
	"testing"

	"meshnode/protocol"
)

// Programs that have ended, each with the limit that it set, keep no later one from its own, and are not remembered for ever.
func TestGroupsOfEndedPrograms(t *testing.T) {
	t.Parallel()
	s, err := New(Config{Self: "a", Epoch: 1, Incarnation: 7, Slots: 2, Runtimes: []string{"wasm"}, Rand: rand.New(rand.NewPCG(1, 2))})
	if err != nil {
		t.Fatal(err)
	}
	s.Restored(0)
	group := func(i int) (g protocol.JobID) {
		g[0], g[1], g[2] = 1, byte(i), byte(i>>8)
		return g
	}
	const programs = 3 * maxGroups
	for i := range programs {
		if err := s.Step(int64(i), SetGroup{Group: group(i), Limit: 1}); err != nil {
			t.Fatalf("program %d: %v", i, err)
		}
		job := protocol.JobID{2, byte(i), byte(i >> 8)}
		spec := &protocol.Job{Job: job[:], Group: groupBytes(group(i)), Program: &protocol.Program{Runtime: "wasm"}}
		if err := s.Step(int64(i), Submit{Job: job, Spec: spec}); err != nil {
			t.Fatal(err)
		}
		if got := s.most(s.jobs[job].group); got != 1 {
			t.Fatalf("program %d may run %d tasks here", i, got)
		}
		if err := s.Step(int64(i), Cancel{Job: job}); err != nil {
			t.Fatal(err)
		}
		s.Ready()
	}
	if len(s.groups) > maxGroups {
		t.Errorf("%d groups are remembered", len(s.groups))
	}
	if s.groups[group(programs-1)] == nil || s.groups[group(0)] != nil {
		t.Error("the newest is forgotten, or the oldest is not")
	}
}

func groupBytes(g protocol.JobID) []byte { return g[:] }
