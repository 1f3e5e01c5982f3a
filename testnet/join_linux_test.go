package testnet

import (
	"fmt"
	"testing"
	"time"

	"meshnode/testnet/lab"
)

// In a VPN there is no multicast, and nodes have other addresses than in the local network: --peer with one member's name is enough
// to be connected to all.
func TestVPN(t *testing.T) {
	t.Parallel()
	b := &table{t: t}
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
	b.row("VPN without multicast, --peer with one member, all see all", awaitMesh(t, began, n.nodes...), 5*time.Second)
	n2.runOn(n3)
	b.print()
}
