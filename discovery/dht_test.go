package discovery

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-msgio/pbio"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
)

// listener counts who dials it.
func listener(t *testing.T) (addr ma.Multiaddr, dials *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dials = new(atomic.Int32)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dials.Add(1)
			c.Close()
		}
	}()
	addr, err = ma.NewMultiaddr(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	return addr, dials
}

const loopback = "/ip4/127.0.0.1/tcp/0"

func withDHT(c *Config) { c.DHT = true }

// A member that is missed is found by the DHT alone: the one that both are connected to says nothing of others but by its
// protocol. And a node that leaves the mesh leaves its DHT.
func TestDHT(t *testing.T) {
	t.Parallel()
	m := member(t, t.TempDir(), "hub")
	hub, err := NewHost(HostConfig{Members: m, Listen: []ma.Multiaddr{ma.StringCast(loopback)}})
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	table, err := dht.New(hub, dht.ProtocolPrefix(dhtPrefix(m.Mesh())), dht.Mode(dht.ModeServer), dht.DisableValues(), dht.DisableProviders())
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	a := &testNode{Membership: m, host: hub}
	b, c := startWith(t, loopback, t.TempDir(), "b", withDHT), startWith(t, loopback, t.TempDir(), "c", withDHT)
	a.admit(t, b.Membership)
	a.admit(t, c.Membership)
	until(t, 5*time.Second, "both are connected to the hub", func() bool {
		return b.state(m.Self()).State == Connected && c.state(m.Self()).State == Connected
	})
	if b.has(c) || c.has(b) {
		t.Fatal("connected without certificates: this test shows nothing")
	}
	if _, err := b.Add(c.Own().Chain()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	b.d.do(t.Context(), b.d.sync)
	until(t, 10*time.Second, "b finds c", func() bool { return b.has(c) && c.has(b) })
	t.Logf("found by the DHT after %v", time.Since(begun).Round(time.Millisecond))

	was := m.Mesh()
	serves := func(mesh members.MeshID) bool {
		return slices.ContainsFunc(b.host.Mux().Protocols(), func(id libp2pproto.ID) bool { return strings.HasPrefix(string(id), string(dhtPrefix(mesh))) })
	}
	if !serves(was) {
		t.Errorf("b serves %v", b.host.Mux().Protocols())
	}
	if _, _, err := b.Leave(false); err != nil {
		t.Fatal(err)
	}
	until(t, 5*time.Second, "b serves its new mesh's DHT only", func() bool { return serves(b.Mesh()) && !serves(was) })
}

// A member that answers lookups with lies makes nobody dial strangers, nor a victim often.
func TestDHTLies(t *testing.T) {
	t.Parallel()
	a := startWith(t, loopback, t.TempDir(), "a", withDHT)
	liar := start(t, t.TempDir(), "liar")
	a.admit(t, liar.Membership)
	away := member(t, t.TempDir(), "away")
	a.admit(t, away)
	victim, dials := listener(t)
	other, strange := listener(t)
	stranger := member(t, t.TempDir(), "stranger").Self()
	var asked atomic.Int32
	liar.host.SetStreamHandler(dhtPrefix(a.Mesh())+"/kad/1.0.0", func(s network.Stream) {
		defer s.Close()
		r, w := pbio.NewDelimitedReader(s, 1<<20), pbio.NewDelimitedWriter(s)
		for {
			q := &dhtpb.Message{}
			if r.ReadMsg(q) != nil {
				return
			}
			asked.Add(1)
			addrs := []ma.Multiaddr{victim}
			for i := range 2000 {
				addrs = append(addrs, ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", 1+i)))
			}
			infos := []peer.AddrInfo{{ID: away.Self(), Addrs: addrs}, {ID: stranger, Addrs: []ma.Multiaddr{other}}}
			q.CloserPeers = dhtpb.PeerInfosToPBPeers(liar.host.Network(), infos)
			if w.WriteMsg(q) != nil {
				return
			}
		}
	})
	until(t, 5*time.Second, "a and the liar connect", func() bool { return a.has(liar) && liar.has(a) })
	until(t, 10*time.Second, "the liar is asked, and a dials what it says", func() bool { return asked.Load() > 0 && dials.Load() > 0 })
	began, before := time.Now(), dials.Load()
	time.Sleep(3 * time.Second) // nothing else shows what does not happen
	if n := len(a.state(away.Self()).Addrs); n > maxHearsay {
		t.Errorf("%d addresses are believed", n)
	}
	if n, most := dials.Load()-before, int32(time.Since(began)/time.Second)+2; n > most {
		t.Errorf("the victim was dialled %d times in %v, want at most %d", n, time.Since(began), most)
	}
	if strange.Load() > 0 {
		t.Error("a stranger was dialled")
	}
	if a.d.host.Peerstore().Addrs(stranger) != nil {
		t.Errorf("libp2p knows addresses of a stranger: %v", a.d.host.Peerstore().Addrs(stranger))
	}
}
