package testnet

import (
	"testing"
	"time"

	"meshnode/node"
)

// A node whose packets are lost, without a reset: what it runs runs elsewhere, it says once that it is its own network, and is
// back soon after the network is, whether its connections were given up meanwhile or not.
func TestLinkCut(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	_, _, hosts := office(t, 3)
	n := Start(t, 3, Options{Hosts: hosts, ArgsOf: byName})
	origin := n.Node(1)
	status := func(nd *Node) node.Status {
		s, err := nd.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	await := func(what string, ok func() bool) time.Duration {
		t.Helper()
		return n.Await(startTimeout, what, ok)
	}
	if out := origin.CLI("submit", "-d", "--remote-only", "--spare", "off", "../tasks/executor/wasm/testdata/misbehave.wasm", ":::", "loop"); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	victim, other := n.Node(2), n.Node(3)
	await("a task runs", func() bool { return status(victim).Running+status(other).Running == 1 })
	if status(other).Running == 1 {
		victim, other = other, victim
	}
	hosts[victim.i-1].Cut()
	b.row("link cut: what ran there runs elsewhere", await("it runs elsewhere", func() bool { return status(other).Running == 1 }), 3500*time.Millisecond)
	await("it is gone", func() bool { return !origin.sees(victim) })
	what := ""
	t.Logf("the node that was cut off knows after another %v", await("it knows", func() bool { what = status(victim).Network; return what != "" }))
	t.Log(what)
	hosts[victim.i-1].Heal()
	b.row("... after the healing the mesh is whole", n.awaitMesh(time.Now(), n.nodes...), 5*time.Second)
	b.row("... and the old attempt is stopped", await("it stops", func() bool { return status(victim).Running == 0 }), 5*time.Second)
	await("it says no more that its network is away", func() bool { return status(victim).Network == "" })
	if out := origin.CLI("cancel", "@last"); out.Code != 0 {
		t.Fatalf("%+v", out)
	}

	// For less time than it takes to give up connections that nobody has leases on: their retransmissions are far apart by then.
	time.Sleep(time.Second) // both sides have forgotten the leases
	hosts[victim.i-1].Cut()
	time.Sleep(7 * time.Second)
	hosts[victim.i-1].Heal()
	healed := time.Now()
	origin.runOn(victim)
	b.row("link cut for 7 s, idle: a task ran there after", time.Since(healed), 5*time.Second)
}
