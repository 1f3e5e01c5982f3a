package tasks

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"meshnode/protocol"
)

// What a member may not run here is not even prepared: its grants go back, and a line says so, once.
func TestTrespass(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		may     []string
		runtime string
		runs    bool
	}{
		{[]string{"wasm", "python", "command"}, "python", true},
		{[]string{"wasm", "python", "command"}, "python3.11", true},
		{[]string{"wasm", "python", "command"}, "python3.12", false},
		{[]string{"wasm"}, "python", false},
		{[]string{"wasm"}, "python3.11", false},
		{[]string{"wasm"}, "wasm", true},
		{nil, "wasm", false},
	} {
		s, err := New(Config{Self: "a", Epoch: 1, Incarnation: 7, Slots: 1, Runtimes: []string{"wasm", "python3.11"}, Rand: rand.New(rand.NewPCG(1, 2))})
		if err != nil {
			t.Fatal(err)
		}
		s.Restored(0)
		s.Step(0, PeerUp{Peer: "b", Session: 1, Hello: &protocol.Hello{Epoch: 1, Incarnation: 9}, MayUseHere: c.may})
		given, prepared, told := 0, 0, 0
		for i := range byte(3) {
			id := protocol.JobID{i}
			for _, m := range []protocol.Message{
				&protocol.JobInfo{Epoch: 1, Job: id[:], Program: &protocol.Program{Runtime: c.runtime}},
				&protocol.Grant{Epoch: 1, Number: uint64(i + 1), Jobs: []*protocol.JobGrant{{Job: id[:], Tasks: []*protocol.Assignment{{N: 1}}}}},
			} {
				s.Step(0, Receive{Peer: "b", Session: 1, Message: m})
			}
			r := s.Ready()
			prepared += len(r.Prepare)
			for _, h := range r.Happened {
				if h.Code == Trespass && h.What == c.runtime && h.Peer == "b" {
					told++
				}
			}
			for _, m := range r.Messages {
				if g, ok := m.Message.(*protocol.GiveBack); ok && g.Why == protocol.Refusal_CANNOT_RUN && g.Reason != "" {
					given++
				}
			}
		}
		got, want := fmt.Sprint(given, prepared), "3 0"
		if c.runs {
			want = "0 3"
		}
		may := told == 0
		if got != want || may != permits(c.may, c.runtime) || told > 1 {
			t.Errorf("%v for a member that may use %v: given back and prepared %s, want %s; told %d times", c.runtime, c.may, got, want, told)
		}
	}
}
