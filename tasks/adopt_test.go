package tasks

import (
	"math/rand/v2"
	"testing"

	"meshnode/protocol"
)

// A worker that returns finds again what was taken from it, and not what another one had.
func TestAdoptsOnlyWhatWasGranted(t *testing.T) {
	t.Parallel()
	s, err := New(Config{Self: "o", Epoch: 1, Incarnation: 1, Runtimes: []string{"wasm"}, Rand: rand.New(rand.NewPCG(1, 1))})
	if err != nil {
		t.Fatal(err)
	}
	now := second
	step := func(ev Event) {
		t.Helper()
		if err := s.Step(now, ev); err != nil {
			t.Fatal(err)
		}
		s.Ready()
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
	}
	id := protocol.JobID{1}
	up := func(p protocol.NodeID, session uint64, held ...protocol.Attempt) {
		t.Helper()
		step(PeerUp{Peer: p, Session: session, MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"}, Hello: &protocol.Hello{
			Epoch: 1, Incarnation: 7, Slots: 1, Runtimes: []string{"wasm"}, Held: protocol.GroupAttempts(held)}})
	}
	up("p", 1)
	up("q", 2)
	step(Submit{Job: id, Spec: spec(id), Inputs: make([]Input, 2), Close: true, Count: 2})
	j := s.jobs[id]
	if len(s.peers["p"].leases) != 1 || len(s.peers["q"].leases) != 1 {
		t.Fatalf("one task each is the start of this test: %v", j.live)
	}
	all := append(sortedAttempts(s.peers["p"].leases), sortedAttempts(s.peers["q"].leases)...)
	step(PeerDown{Peer: "p", Session: 1})
	step(PeerDown{Peer: "q", Session: 2})
	now += 200 * millisecond
	step(Tick{})
	if j.pending != 2 {
		t.Fatalf("%d tasks are pending, want 2", j.pending)
	}
	up("p", 3, all...)
	if l := s.peers["p"].leases; len(l) != 1 || l[all[0]] == nil || j.pending != 1 {
		t.Errorf("p listed %v and has %v; %d pending", all, sortedAttempts(l), j.pending)
	}
}
