package testnet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"meshnode/node"
	"meshnode/testnet/lab"
)

// What a mesh of sixty may cost: the goals, on a quiet machine.
const (
	// sixty is what the goals are for, by MESHNODE_SIXTY=60; thirty show the same limits and need half a minute on two busy cores.
	thirty = 30
	// together is from the ticket to a full mesh, each of the others being admitted with it.
	together = 20 * time.Second
	// idleCPU of one core, for a node that is connected to 59 others and has nothing to do.
	idleCPU = 0.015
	// idleMemory of such a node, resident.
	idleMemory = 60 << 20
	// noisy is by how much times may be missed on a machine that does other things, too.
	noisy = 6
)

// Thirty nodes, or as many as MESHNODE_SIXTY says, behind one address: each joins with the same ticket, at once; then the mesh is
// full, and costs each of them little while nothing happens.
func TestSixty(t *testing.T) {
	nodes := numberOf(t, "MESHNODE_SIXTY", thirty)
	// libp2p's own limits per address do not count loopback, so that tests there do not show them.
	l := lab.New(t)
	host := l.Host("crowd")
	addr := host.Plug(l.Switch(), "10.98.0.1/24").Addr()
	n := Start(t, nodes, Options{Apart: true, Hosts: slices.Repeat([]*lab.Host{host}, nodes), Args: []string{"--listen", fmt.Sprintf("/ip4/%s/tcp/0", addr)}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	used := func() (all float64, each []float64) {
		for _, nd := range n.nodes {
			each = append(each, processorTime(t, nd.PID()))
			all += each[len(each)-1]
		}
		return all, each
	}
	started, _ := used()
	began := time.Now()
	ticket, err := n.Node(1).Client().Invite(ctx, node.InviteOptions{Mine: true, Expires: time.Hour, Uses: nodes - 1})
	if err != nil {
		t.Fatal(err)
	}
	var joining sync.WaitGroup
	for _, nd := range n.nodes[1:] {
		joining.Go(func() {
			if _, err := nd.Client().Join(ctx, ticket); err != nil {
				t.Errorf("node %d joins: %v", nd.i, err)
			}
		})
	}
	joining.Wait()
	joined := time.Since(began)
	n.Await(noisy*together, "a full mesh", func() bool {
		return !slices.ContainsFunc(n.nodes, func(nd *Node) bool { return !nd.hasPeers(nodes - 1) })
	})
	full := time.Since(began)
	joinUsed, _ := used()
	t.Logf("%d nodes: all joined after %.1f s, full mesh after %.1f s, for which they used %.1f s of processors", nodes, joined.Seconds(), full.Seconds(), joinUsed-started)
	if full > noisy*together {
		t.Errorf("full mesh after %v, want %v", full, together)
	}

	// What comes of joining has to end: books are saved, identify speaks once more.
	time.Sleep(8 * time.Second)
	const idle = 10 * time.Second
	_, before := used()
	at := time.Now()
	time.Sleep(idle)
	_, after := used()
	took := time.Since(at).Seconds()
	var share []float64
	var memory []int64
	for i := range after {
		share = append(share, (after[i]-before[i])/took)
		memory = append(memory, resident(n.nodes[i].PID()))
	}
	slices.Sort(share)
	slices.Sort(memory)
	mid, last := len(share)/2, len(share)-1
	t.Logf("idle: %.2f %% of a core each (median; most %.2f), resident %.1f MB (median; most %.1f)",
		100*share[mid], 100*share[last], float64(memory[mid])/1e6, float64(memory[last])/1e6)
	if share[mid] > noisy*idleCPU {
		t.Errorf("an idle node needs %.2f %% of a core, want %.2f", 100*share[mid], 100*idleCPU)
	}
	if memory[last] > idleMemory {
		t.Errorf("an idle node has %d bytes resident, want %d", memory[last], idleMemory)
	}
}
