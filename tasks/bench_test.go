package tasks

import (
	"math/rand/v2"
	"testing"

	"meshnode/protocol"
)

// What a task costs in the scheduler alone: submitted, granted, started, ended, answered. Short ones, of which batches are as
// large as they can be; in straggler the
// first does not end before all others have. Messages between two nodes are passed on as they are.
func BenchmarkTasks(b *testing.B) {
	const tasks = 100_000
	for _, where := range []string{"local", "other", "straggler"} {
		b.Run(where, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				nodes := map[protocol.NodeID]*benchNode{"a": newBenchNode(b, "a", 2)}
				nodes["a"].holds = where == "straggler"
				if where == "other" {
					nodes["a"], nodes["b"] = newBenchNode(b, "a", 0), newBenchNode(b, "b", 2)
					for id, peer := range map[protocol.NodeID]protocol.NodeID{"a": "b", "b": "a"} {
						nodes[id].inbox = append(nodes[id].inbox, PeerUp{
							Peer: peer, Session: 1, Hello: nodes[peer].s.Hello(id), MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"},
						})
					}
				}
				runBench(b, nodes, tasks)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*tasks), "ns/task")
		})
	}
}

// benchNode is a scheduler whose slots do everything at once.
type benchNode struct {
	s     *Scheduler
	inbox []Event
	ended int
	holds bool // the next Start of slot 0 ends last
	held  []Event
}

func newBenchNode(b *testing.B, id protocol.NodeID, slots int) *benchNode {
	s, err := New(Config{Self: id, Epoch: 1, Incarnation: 1, Rand: rand.New(rand.NewPCG(1, 1)), Slots: slots, Runtimes: []string{"wasm"}})
	if err != nil {
		b.Fatal(err)
	}
	return &benchNode{s: s}
}

// runBench runs a job of a on nodes.
func runBench(b *testing.B, nodes map[protocol.NodeID]*benchNode, n uint32) {
	const piece = 4096
	id := protocol.JobID{1}
	origin := nodes["a"]
	origin.inbox = append(origin.inbox, Submit{Job: id, Spec: spec(id)})
	input := []byte("0123456789abcdef")
	for i := uint32(0); i < n; i += piece {
		ins := make([]Input, min(piece, n-i))
		for k := range ins {
			ins[k].Data = input
		}
		origin.inbox = append(origin.inbox, Submit{Job: id, First: i, Inputs: ins})
	}
	origin.inbox = append(origin.inbox, Submit{Job: id, First: n, Close: true, Count: n})
	now := int64(0)
	for turn := 0; origin.ended < int(n); turn++ {
		busy := false
		for _, name := range []protocol.NodeID{"a", "b"} {
			nd := nodes[name]
			if nd == nil || len(nd.inbox) == 0 {
				continue
			}
			busy = true
			events := nd.inbox[:min(len(nd.inbox), 4)]
			nd.inbox = nd.inbox[len(events):]
			for _, ev := range events {
				now += microsecond
				if err := nd.s.Step(now, ev); err != nil {
					b.Fatal(err)
				}
			}
			nd.carryOut(nodes, name, nd.s.Ready(), &now)
		}
		if origin.ended == int(n)-len(origin.held) {
			origin.inbox, origin.held = append(origin.inbox, origin.held...), nil
		}
		if !busy { // something is due
			now += millisecond
			for _, nd := range nodes {
				nd.inbox = append(nd.inbox, Tick{})
			}
		}
		if turn > 1_000_000 {
			b.Fatalf("%d of %d tasks have ended", origin.ended, n)
		}
	}
}

func (nd *benchNode) carryOut(nodes map[protocol.NodeID]*benchNode, name protocol.NodeID, r Ready, now *int64) {
	for _, m := range r.Messages {
		to := nodes[m.Peer]
		to.inbox = append(to.inbox, Receive{Peer: name, Session: m.Session, Message: m.Message, RoundTrip: 100 * microsecond})
	}
	for _, p := range r.Prepare {
		if !p.Drop {
			nd.inbox = append(nd.inbox, Prepared{Origin: p.Origin, Job: protocol.JobID(p.Info.Job)})
		}
	}
	for _, st := range r.Start {
		f := Finished{Slot: st.Slot, Idle: true}
		for i := range st.Items {
			a := st.Items[i].Attempt
			f.Outcomes = append(f.Outcomes, &protocol.Outcome{
				Job: st.Job[:], Index: a.Index, Epoch: a.Epoch, N: a.N, Status: protocol.Status_OK, Output: st.Items[i].Input.Data, RunUs: 1,
			})
			*now += microsecond / 2
		}
		if nd.holds && st.Slot == 0 {
			nd.holds, nd.held = false, append(nd.held, f)
		} else {
			nd.inbox = append(nd.inbox, f)
		}
	}
	for _, x := range r.Load {
		ins := make([]Input, x.Count)
		for k := range ins {
			ins[k].Data = []byte("0123456789abcdef")
		}
		nd.inbox = append(nd.inbox, Loaded{Job: x.Job, First: x.First, Inputs: ins})
	}
	for _, n := range r.Notices {
		if n.Kind == TaskDone {
			nd.ended++
		}
	}
}

// What a call costs while its program keeps many jobs open, as those of Python do: one task at a time, of one job after another.
func BenchmarkOpenJobs(b *testing.B) {
	for _, c := range []struct {
		name  string
		jobs  int
		slots int // of the origin; none: another node runs all
	}{{"local, 1", 1, 2}, {"local, 1000", 1000, 2}, {"local, 10000", 10_000, 2}, {"other, 1", 1, 0}, {"other, 1000", 1000, 0}} {
		b.Run(c.name, func(b *testing.B) {
			nodes := map[protocol.NodeID]*benchNode{"a": newBenchNode(b, "a", c.slots)}
			if c.slots == 0 {
				nodes["b"] = newBenchNode(b, "b", 2)
				for id, peer := range map[protocol.NodeID]protocol.NodeID{"a": "b", "b": "a"} {
					nodes[id].inbox = append(nodes[id].inbox, PeerUp{
						Peer: peer, Session: 1, Hello: nodes[peer].s.Hello(id), MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"},
					})
				}
			}
			now := int64(0)
			settle := func() {
				for busy := true; busy; {
					busy = false
					for _, name := range []protocol.NodeID{"a", "b"} {
						nd := nodes[name]
						if nd == nil || len(nd.inbox) == 0 {
							continue
						}
						busy = true
						for _, ev := range nd.inbox {
							now += microsecond
							if err := nd.s.Step(now, ev); err != nil {
								b.Fatal(err)
							}
						}
						nd.inbox = nil
						nd.carryOut(nodes, name, nd.s.Ready(), &now)
					}
				}
			}
			origin := nodes["a"]
			calls := make([]uint32, c.jobs)
			call := func(k int) {
				id := protocol.JobID{1, byte(k), byte(k >> 8)}
				ev := Submit{Job: id, First: calls[k], Inputs: []Input{{Data: []byte("0123456789abcdef")}}}
				if calls[k] == 0 {
					ev.Spec = spec(id)
				}
				calls[k]++
				want := origin.ended + 1
				origin.inbox = append(origin.inbox, ev)
				for settle(); origin.ended < want; settle() {
					now += millisecond
					for _, nd := range nodes {
						nd.inbox = append(nd.inbox, Tick{})
					}
				}
			}
			for k := range c.jobs {
				call(k)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				call(i * 7 % c.jobs)
			}
		})
	}
}
