package testnet

import (
	"strings"
	"testing"
)

// A mesh on hosts of its own: one that moves to another address while its node is down finds the others, whose addresses it
// has.
func TestHosts(t *testing.T) {
	t.Parallel()
	_, _, hosts := office(t, 3)
	n := Start(t, 3, Options{Hosts: hosts})
	if !strings.Contains(n.Node(1).Ready, "/ip4/10.99.0.1/tcp/") {
		t.Errorf("node 1 is not on its host: %s", n.Node(1).Ready)
	}
	if out := n.Node(1).CLI("submit", "-k", sumPrimes, ":::", "10", "100000"); out.Code != 0 || out.Stdout != "17\n454396537\n" {
		t.Errorf("%+v", out)
	}
	n.Node(2).Down()
	n.Node(1).AwaitPeers(1)
	hosts[1].Link(0).SetAddr("10.99.0.22/24")
	n.Up(n.Node(2))
	for i := range 3 {
		n.Node(i + 1).AwaitPeers(2)
	}
}
