package testnet

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// A member that is revoked is cut off by everybody within seconds: by those that are connected, and by one that was off at the
// time as soon as it meets anybody, though it would find the revoked one by itself. Only who may revoke can.
func TestRevokedMember(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	_, _, hosts := office(t, 5)
	n := Start(t, 5, Options{Hosts: hosts, MDNS: true, ArgsOf: byName})
	n1, n2, n3, off, lost := n.Node(1), n.Node(2), n.Node(3), n.Node(4), n.Node(5)
	n2.runOn(lost)

	if out := n2.CLI("peers", "revoke", "node3"); out.Code != 125 || !strings.Contains(out.Stderr, "root key") {
		t.Errorf("a sibling revokes: %+v", out)
	}
	n2.runOn(n3)

	off.Down()
	n1.AwaitPeers(3)
	began := time.Now()
	if out := n1.CLI("peers", "revoke", "node5"); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	b.row("revoked member cut off by all that are connected", awaitWithout(t, began, lost, n1, n2, n3), 5*time.Second)
	lost.AwaitPeers(0)

	// The one that was off comes back while who revoked is off, and knows the addresses of all.
	n1.Down()
	n2.AwaitPeers(1)
	began = time.Now()
	n.Up(off)
	awaitMesh(t, began, off, n2, n3)
	b.row("by one that was off, from its start", awaitWithout(t, began, lost, off), 5*time.Second)

	// And it stays out, at a new address and after a new start, of nodes that have started anew, too.
	n2.Down()
	lost.Down()
	hosts[4].Link(0).SetAddr("10.99.0.105/24")
	n.Up(n2, lost)
	awaitMesh(t, time.Now(), off, n2, n3)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, nd := range []*Node{off, n2, n3} {
			if nd.sees(t.Context(), lost) {
				t.Fatalf("%s is connected to the revoked node again\n%s", nd.name(), nd.CLI("peers").Stdout)
			}
		}
	}
	if out := lost.CLI("submit", "--remote-only", "--timeout", "1s", "-d", sumPrimes, ":::", "10"); out.Code == 0 {
		time.Sleep(500 * time.Millisecond)
		if st := lost.CLI("jobs", "--json"); !strings.Contains(st.Stdout, `"done":0`) {
			t.Errorf("somebody has worked for the revoked node: %s", st.Stdout)
		}
	}
}

// awaitWithout waits until none of the nodes is connected to lost, and says how long that took from begun on.
func awaitWithout(t *testing.T, begun time.Time, lost *Node, nodes ...*Node) time.Duration {
	t.Helper()
	for end := time.Now().Add(startTimeout); ; time.Sleep(5 * time.Millisecond) {
		if !slices.ContainsFunc(nodes, func(nd *Node) bool { return nd.sees(t.Context(), lost) }) {
			return time.Since(begun)
		}
		if time.Now().After(end) {
			var lists []string
			for _, nd := range nodes {
				lists = append(lists, nd.CLI("peers").Stdout)
			}
			t.Fatalf("still connected to %s after %v\n%s", lost.name(), startTimeout, strings.Join(lists, "\n"))
		}
	}
}
