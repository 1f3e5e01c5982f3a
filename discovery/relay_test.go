package discovery

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// Whoever set up a node says that others reach it: it relays, for members, and for nobody else.
func TestStrangerGetsNoCircuit(t *testing.T) {
	t.Parallel()
	relay := startHost(t, HostConfig{Announce: []ma.Multiaddr{ma.StringCast("/dns/relay.example/tcp/4001")}}, "relay")
	until(t, 5*time.Second, "it relays", func() bool { return slices.Contains(relay.host.Mux().Protocols(), proto.ProtoIDv2Hop) })
	a, b := startHost(t, HostConfig{}, "a"), startHost(t, HostConfig{}, "b")
	relay.admit(t, a.Membership)
	relay.admit(t, b.Membership)
	for _, n := range []*testNode{a, b} {
		until(t, 10*time.Second, "a reservation", func() bool {
			return slices.ContainsFunc(n.host.Addrs(), members.CircuitThrough(relay.Self()).Equal)
		})
	}
	// A member has one through it, and the other end admits it as on any way.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	until(t, 10*time.Second, "a and b are connected", func() bool { return a.has(b) && b.has(a) })

	stranger := startHost(t, HostConfig{}, "stranger")
	listens := relay.host.Network().ListenAddresses()
	listens = listens[slices.IndexFunc(listens, members.Dialable):][:1]
	at := peer.AddrInfo{ID: relay.Self(), Addrs: listens}
	if _, err := client.Reserve(ctx, stranger.host, at); err == nil || !strings.Contains(err.Error(), "not admitted") {
		t.Errorf("a stranger asks for a reservation: %v", err) // refused before it can ask, and logged by package members
	}
	through := ma.Join(listens[0], members.CircuitThrough(relay.Self()))
	if err := stranger.host.Connect(ctx, peer.AddrInfo{ID: a.Self(), Addrs: []ma.Multiaddr{through}}); err == nil {
		t.Error("a stranger has a circuit")
	}

	// A connection that outlives its certificate.
	log := &lines{}
	acl := &admitted{relay.Membership, slog.New(slog.NewTextHandler(log, nil)), members.NewOnceIn(time.Second)}
	for what, c := range map[string]struct{ got, want bool }{
		"a member's reservation":             {acl.AllowReserve(a.Self(), nil), true},
		"a stranger's":                       {acl.AllowReserve(stranger.Self(), nil), false},
		"a circuit between members":          {acl.AllowConnect(a.Self(), nil, b.Self()), true},
		"a circuit from a stranger":          {acl.AllowConnect(stranger.Self(), nil, b.Self()), false},
		"a circuit to one who is no member ": {acl.AllowConnect(a.Self(), nil, stranger.Self()), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: allowed %v", what, c.got)
		}
	}
	if n := strings.Count(log.String(), "relay refused"); n != 3 {
		t.Errorf("%d refusals logged of 3:\n%s", n, log)
	}
}

// startHost runs a node on loopback, with what c says of its host.
func startHost(t *testing.T, c HostConfig, name string) *testNode {
	t.Helper()
	return startWith(t, "/ip4/127.0.0.1/tcp/0", t.TempDir(), name, func(o *Config) {
		if len(c.Announce) == 0 {
			return
		}
		o.Host.Close()
		c.Members, c.Listen, c.Dir, c.Logger = o.Members, []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, filepath.Dir(o.Dir), o.Logger
		h, err := NewHost(c)
		if err != nil {
			t.Fatal(err)
		}
		o.Host = h
	})
}

func TestToldAddresses(t *testing.T) {
	t.Parallel()
	all := func(s ...string) (out []ma.Multiaddr) {
		for _, a := range s {
			out = append(out, ma.StringCast(a))
		}
		return out
	}
	own := all("/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/tcp/1", "/ip4/8.8.8.8/tcp/1", "/p2p-circuit")
	for _, c := range []struct{ announce, want []ma.Multiaddr }{
		{nil, own[:3]},
		{all("/dns/example.org/tcp/2"), append(slices.Clone(own[:2]), all("/dns/example.org/tcp/2")...)},                                       // a forwarded port: at home it is found as before
		{all("/ip4/127.0.0.1/tcp/2"), append(slices.Clone(own[1:3]), all("/ip4/127.0.0.1/tcp/2")...)},                                          // a proxy before it
		{all("/ip4/10.0.0.1/tcp/2", "/ip4/9.9.9.9/tcp/2"), append(slices.Clone(own[:1]), all("/ip4/10.0.0.1/tcp/2", "/ip4/9.9.9.9/tcp/2")...)}, // both
	} {
		if got := (&told{announce: c.announce}).addrs(own); !slices.EqualFunc(got, c.want, func(a, b ma.Multiaddr) bool { return a.Equal(b) }) {
			t.Errorf("announced %v: %v, want %v", c.announce, got, c.want)
		}
	}
	// However many interfaces a machine has, the ways through relays are among what is taken of it; and only so many.
	var many []ma.Multiaddr
	for i := range 40 {
		many = append(many, ma.StringCast("/ip4/10.0.0.1/tcp/"+string(rune('1'+i%9))+string(rune('0'+i%10))))
	}
	for range 5 {
		id, err := test.RandPeerID()
		if err != nil {
			t.Fatal(err)
		}
		many = append(many, ma.Join(ma.StringCast("/ip4/8.8.8.8/tcp/1/p2p/"+id.String()), ma.StringCast("/p2p-circuit")))
	}
	got := best(many)
	n := 0
	for _, a := range got {
		if r, ok := members.Circuit(a); ok {
			n++
			if !a.Equal(members.CircuitThrough(r)) {
				t.Errorf("%s says where the relay is", a)
			}
		}
	}
	if n != mostRelays || len(got) > protocol.MaxMemberAddresses {
		t.Errorf("%d circuits of %d addresses: %v", n, len(got), got)
	}
}

func TestParseAnnounce(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"/ip4/1.2.3.4/tcp/4001":          "/ip4/1.2.3.4/tcp/4001",
		"1.2.3.4:4001":                   "/ip4/1.2.3.4/tcp/4001",
		"[2001:db8::1]:4001":             "/ip6/2001:db8::1/tcp/4001",
		"home.example.org:4001":          "/dns/home.example.org/tcp/4001",
		"/dns4/example.org/tcp/1":        "/dns4/example.org/tcp/1",
		"0.0.0.0:4001":                   "",
		"[fe80::1%eth0]:4001":            "",
		"/ip4/1.2.3.4/udp/4001":          "",
		"/ip4/1.2.3.4/tcp/0":             "",
		"1.2.3.4":                        "",
		"224.0.0.1:1":                    "",
		"/p2p-circuit":                   "",
		strings.Repeat("x", 999):         "",
		"a b:1":                          "",
		"/ip4/1.2.3.4/tcp/1/p2p-circuit": "",
	} {
		a, err := ParseAnnounce(in)
		if want == "" {
			if err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "address ") {
				t.Errorf("%q: %v, %v", in, a, err)
			}
		} else if err != nil || a.String() != want {
			t.Errorf("%q: %v, %v", in, a, err)
		}
	}
}
