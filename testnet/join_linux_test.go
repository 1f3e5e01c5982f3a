package testnet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"meshnode/testnet/lab"
)

// A ticket whose address is old leads to its node all the same, if that is in the local network: before that node's end and
// after its new start, while the joining node runs and before it has ever run.
func TestJoinWithOldAddress(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	_, _, hosts := office(t, 3)
	n := Start(t, 3, Options{Hosts: hosts, MDNS: true, Apart: true, ArgsOf: byName})
	n1, n2, n3 := n.Node(1), n.Node(2), n.Node(3)
	ticket := func() string {
		out := n1.CLI("invite", "--mine", "--uses", "2")
		if out.Code != 0 {
			t.Fatalf("%+v", out)
		}
		return strings.TrimSpace(out.Stdout)
	}
	old := ticket()
	hosts[0].Link(0).SetAddr("10.99.0.101/24")
	began := time.Now()
	if out := n2.CLI("join", old); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	b.row("join with a ticket whose address has changed, by mDNS", time.Since(began), 3*time.Second)
	b.row("the same, until they see each other", n.awaitMesh(began, n1, n2), 3*time.Second)

	n1.Down()
	n3.Down()
	// The ticket names all addresses that its node has on its own machine; here, its loopback is somebody else's.
	n2.AwaitPeers(0)
	peers, err := n2.Client().Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if text := fmt.Sprint(p.Addrs, p.Reason); p.Name == n1.name() && (strings.Contains(text, "127.0.0.1") || !strings.Contains(text, "10.99.0.101")) {
			t.Errorf("node 2 looks for node 1 at %s", text)
		}
	}
	hosts[0].Link(0).SetAddr("10.99.0.111/24")
	n.Up(n1)
	began = time.Now()
	// Its node does not run: the command joins by itself.
	if out := n3.CLI("join", old); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	b.row("join by a node that does not run", time.Since(began), 3*time.Second)
	began = time.Now()
	n.Up(n3)
	b.row("from its start until all see all", n.awaitMesh(began, n1, n2, n3), 3*time.Second)
	n1.runOn(n3)
	n3.runOn(n2)
}

// In a VPN there is no multicast, and nodes have other addresses than in the local network: --peer with one member's name is enough
// to be connected to all.
func TestVPN(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	l := lab.New(t)
	tunnel := l.Switch()
	var hosts []*lab.Host
	for i := range 3 {
		h := l.Host(fmt.Sprint("node", i+1))
		h.Plug(tunnel, fmt.Sprintf("100.64.0.%d/10", i+1)).NoMulticast()
		hosts = append(hosts, h)
	}
	n := Start(t, 3, Options{Hosts: hosts, MDNS: true, ArgsOf: func(i int) []string {
		if i == 1 {
			return append(byName(1), "--listen", "/ip4/0.0.0.0/tcp/4001")
		}
		return append(byName(i), "--peer", "100.64.0.1:4001")
	}})
	// All know each other, at addresses that lead nowhere now; but for that of node 1.
	n2, n3 := n.Node(2), n.Node(3)
	n2.Down()
	n3.Down()
	for i := range 2 {
		hosts[1+i].Link(0).SetAddr(fmt.Sprintf("100.64.0.%d/10", i+12))
	}
	n.Node(1).AwaitPeers(0)
	began := time.Now()
	n.Up(n2, n3)
	b.row("VPN without multicast, --peer with one member, all see all", n.awaitMesh(began, n.nodes...), 5*time.Second)
	n2.runOn(n3)
}
