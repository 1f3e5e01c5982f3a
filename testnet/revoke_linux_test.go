package testnet

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A member that was revoked stays out, at a new address and after a new start, of nodes that have started anew, too: it finds them by itself in the
// local network, and is refused. It hides what it has heard of that. TestStolenLaptop has the cut itself.
func TestRevokedStaysOut(t *testing.T) {
	t.Parallel()
	_, _, hosts := office(t, 3)
	n := Start(t, 3, Options{Hosts: hosts, MDNS: true, ArgsOf: byName})
	n1, n2, lost := n.Node(1), n.Node(2), n.Node(3)
	n2.runOn(lost)
	n1.must(t, "peers", "revoke", "node3")
	members := []*Node{n1, n2}
	n.within(cutGoal, "members cut it off", func() bool {
		return !slices.ContainsFunc(members, func(nd *Node) bool { return nd.sees(lost) })
	})

	n2.Down()
	lost.Down()
	hosts[2].Link(0).SetAddr("10.99.0.105/24")
	if err := os.Remove(filepath.Join(lost.Dir, "membership", "revocations.json")); err != nil {
		t.Fatal(err)
	}
	n.Up(n2, lost)
	n.awaitMesh(time.Now(), members...)
	n.within(cutGoal, "it has asked a member and was refused", func() bool {
		return strings.Contains(lost.must(t, "status").Stdout, "was revoked")
	})
	for _, nd := range members {
		if nd.sees(lost) {
			t.Errorf("%s is connected to the revoked node again\n%s", nd.name(), n.views())
		}
	}
}
