package testnet

import (
	"fmt"
	"testing"
	"time"

	"meshnode/testnet/lab"
)

// behind is a network of homes with one machine each behind a router of its own, and machines with public addresses: nodes 1 to
// open are those.
func behind(l *lab.Lab, open int, nats ...lab.NAT) []*lab.Host {
	internet := l.Switch()
	var hosts []*lab.Host
	for i := range open {
		h := l.Host(fmt.Sprint("public", i+1))
		h.Plug(internet, fmt.Sprintf("8.8.%d.1/16", 100+i))
		hosts = append(hosts, h)
	}
	for i, nat := range nats {
		lan := l.Switch()
		l.Router(fmt.Sprint("router", i+1), lan, "192.168.1.1/24", internet, fmt.Sprintf("8.8.%d.1/16", i+1), nat)
		h := l.Host(fmt.Sprint("home", i+1))
		h.Plug(lan, fmt.Sprintf("192.168.1.%d/24", i+2))
		h.Gateway("192.168.1.1")
		hosts = append(hosts, h)
	}
	return hosts
}

// pathTo is how nd is connected to other, "" if it is not, and through which relay.
func (nd *Node) pathTo(t *testing.T, other *Node) (path, relay string) {
	t.Helper()
	st, err := other.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	peers, err := nd.Client().Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if p.ID == st.ID && (p.State == "connected" || p.State == "suspect") {
			return p.Path, p.Relay
		}
	}
	return "", ""
}

// Two nodes behind two routers, which keep ports, meet through a public member's relay, and then directly.
func TestHolePunch(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	n := Start(t, 3, Options{Apart: true, Hosts: behind(l, 1, lab.PortPreserving, lab.PortPreserving), Args: []string{"--log-level", "debug", "--no-port-map"}})
	a, b := n.Node(2), n.Node(3)
	ticket := n.Node(1).CLI("invite", "--mine", "--uses", "2").Stdout
	if out := a.CLI("join", ticket); out.Code != 0 {
		t.Fatal(out)
	}
	a.AwaitPeers(1)
	if out := b.CLI("join", ticket); out.Code != 0 {
		t.Fatal(out)
	}
	within(t, 2*time.Second, "connected through the relay", func() bool { p, _ := a.pathTo(t, b); return p != "" })
	within(t, 5*time.Second, "connected directly", func() bool { p, _ := a.pathTo(t, b); return p == "direct" })
}
