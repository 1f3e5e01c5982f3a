package tasks

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"meshnode/protocol"
)

// one is a single node whose executor runs every task in d.
func one(t *testing.T, slots int) *Scheduler {
	t.Helper()
	s, err := New(Config{Self: "a", Epoch: 1, Incarnation: 7, Slots: slots, Runtimes: []string{"wasm"}, Rand: rand.New(rand.NewPCG(1, 2))})
	if err != nil {
		t.Fatal(err)
	}
	s.Restored(0)
	return s
}

func spec(id protocol.JobID) *protocol.Job {
	return &protocol.Job{Job: id[:], Name: "t", Program: &protocol.Program{Runtime: "wasm", Code: &protocol.Blob{Id: make([]byte, 32), Size: 1}}, Limits: &protocol.Limits{}}
}

func TestOneNodeRunsAJob(t *testing.T) {
	t.Parallel()
	s := one(t, 2)
	id := protocol.JobID{1}
	var in []Input
	for i := range 100 {
		in = append(in, Input{Data: fmt.Append(nil, i)})
	}
	if err := s.Step(0, Submit{Job: id, Spec: spec(id), Inputs: in, Close: true, Count: 100}); err != nil {
		t.Fatal(err)
	}
	now, done, ended := int64(0), 0, false
	var running []Start
	for range 1000 {
		r := s.Ready()
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Prepare {
			if !p.Drop {
				s.Step(now, Prepared{Origin: p.Origin, Job: id})
			}
		}
		running = append(running, r.Start...)
		for _, n := range r.Notices {
			switch n.Kind {
			case TaskDone:
				done++
			case JobEnded:
				ended = n.State == JobDone
			}
		}
		if len(running) == 0 {
			if ended {
				break
			}
			continue
		}
		st := running[0]
		running = running[1:]
		now += 3 * millisecond
		for k, it := range st.Items {
			o := &protocol.Outcome{Job: id[:], Index: it.Attempt.Index, Epoch: it.Attempt.Epoch, N: it.Attempt.N, Status: protocol.Status_OK, RunUs: 3000}
			s.Step(now, Finished{Slot: st.Slot, Outcomes: []*protocol.Outcome{o}, Idle: k == len(st.Items)-1})
		}
	}
	if done != 100 || !ended {
		t.Fatalf("%d of 100 tasks done, ended: %v; %+v", done, ended, s.Jobs())
	}
}

// A program sees the places that tasks have in the list of which they are a part.
func TestNumbersOfTasks(t *testing.T) {
	t.Parallel()
	s := one(t, 4)
	id := protocol.JobID{1}
	sp := spec(id)
	sp.Runs = []uint32{1, 2, 3} // places 1, 2, 6, …
	if err := s.Step(0, Submit{Job: id, Spec: sp, Inputs: make([]Input, 4), Close: true, Count: 4}); err != nil {
		t.Fatal(err)
	}
	s.Ready()
	s.Step(0, Prepared{Origin: "a", Job: id})
	seen := map[uint32]uint32{}
	for _, st := range s.Ready().Start {
		for _, it := range st.Items {
			seen[it.Attempt.Index] = it.Seen()
		}
	}
	if want := map[uint32]uint32{0: 1, 1: 2, 2: 6, 3: 7}; !maps.Equal(seen, want) {
		t.Errorf("programs see %v, want %v", seen, want)
	}
}
