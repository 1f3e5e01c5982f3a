package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"meshnode/protocol"
)

func maddr(t testing.TB, s string) ma.Multiaddr {
	t.Helper()
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func many(t testing.TB, format string, n int) (out []ma.Multiaddr) {
	t.Helper()
	for i := range n {
		out = append(out, maddr(t, fmt.Sprintf(format, i)))
	}
	return out
}

// What others say of a member drives out neither what it said itself nor what led to it.
func TestHintsAreRanked(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var l hints
	led := maddr(t, "/ip4/10.0.0.1/tcp/1")
	l.take(now, hearsay, "mDNS", led)
	l[0].proven = true
	own := many(t, "/ip4/10.0.1.%d/tcp/4001", 3)
	if !l.own(now, "itself", own...) || l.own(now, "itself", own...) {
		t.Error("which addresses are new is told wrongly")
	}
	given := maddr(t, "/dns4/laptop.example/tcp/4001")
	l.take(now, person, "given", given)
	for i := range 100 {
		l.take(now.Add(time.Duration(i)*time.Second), hearsay, "member x", many(t, fmt.Sprintf("/ip4/10.%d.9.%%d/tcp/25", i), 200)...)
	}
	if len(l) != 1+len(own)+1+maxHearsay || len(l) > protocol.MaxMemberAddresses {
		t.Errorf("%d addresses are kept", len(l))
	}
	if !l[0].addr.Equal(given) || l[0].source != "given" || l.find(led) < 0 {
		t.Errorf("kept: %+v", l)
	}
	for _, a := range own {
		if i := l.find(a); i < 0 || i > len(own) {
			t.Errorf("%s is at %d", a, i)
		}
	}
	if first := l[len(l)-1].addr.String(); len(first) < 7 || first[:7] != "/ip4/10" || l.find(maddr(t, "/ip4/10.99.9.0/tcp/25")) < 0 {
		t.Errorf("the last that was heard is not kept: %+v", l)
	}
	// The name that was given leads elsewhere now.
	l.take(now.Add(time.Minute), person, "given", maddr(t, "/ip4/10.0.3.1/tcp/4001"))
	if l[0].addr.String() != "/ip4/10.0.3.1/tcp/4001" || l[1].rank == person {
		t.Errorf("another address was given: %+v", l)
	}
	// It has moved: what it said before is hearsay now, of which the oldest goes first.
	l.own(now.Add(time.Hour), "itself", maddr(t, "/ip4/10.0.2.1/tcp/4001"))
	if l[1].addr.String() != "/ip4/10.0.2.1/tcp/4001" || slices.ContainsFunc(l[2:], func(h hint) bool { return h.rank > hearsay }) {
		t.Errorf("after it moved: %+v", l)
	}
}

// However many members are said to be at a victim, and at however many of its ports: it is not flooded. And members behind one
// address do not suffer from that.
func TestNobodyIsFlooded(t *testing.T) {
	t.Parallel()
	n := networks{faces: []face{{addrs: []netip.Prefix{netip.MustParsePrefix("192.168.1.2/24")}}}}
	e := newEndpoints()
	port, ports := maddr(t, "/ip4/8.8.8.8/tcp/443"), many(t, "/ip4/8.8.4.4/tcp/%d", 800)
	absent := make([]hints, 100)
	start := time.Now()
	for i := range absent {
		absent[i].take(start, itself, "itself", port)
		absent[i].take(start, hearsay, "member x", ports[i*8:i*8+8]...)
	}
	onePort, oneHost := 0, 0
	const minutes = 5
	for now := start; now.Before(start.Add(minutes * time.Minute)); now = now.Add(time.Second) {
		for i := range absent {
			addrs, _ := absent[i].choose(now, 4, n, e, nil)
			for _, a := range addrs {
				if a.Equal(port) {
					onePort++
				} else {
					oneHost++
				}
			}
			absent[i].dialled(now, addrs, nil, e)
		}
	}
	if most := manyFails + minutes + 2; onePort > most || onePort < manyFails {
		t.Errorf("one port was dialled %d times in %d minutes, want at most %d", onePort, minutes, most)
	}
	if most := hostBurst + int(hostRate*60*minutes) + 1; oneHost > most || oneHost < hostBurst {
		t.Errorf("one host was dialled %d times in %d minutes, want at most %d", oneHost, minutes, most)
	}
	t.Logf("100 members said to be at one port: %d dials in %d minutes; at 800 ports of one host: %d", onePort, minutes, oneHost)

	// A whole mesh behind one router.
	now := start
	e = newEndpoints()
	for i, a := range many(t, "/ip4/198.51.100.7/tcp/%d", 301)[1:] {
		var l hints
		l.take(now, itself, "itself", a)
		if i%60 == 59 {
			now = now.Add(100 * time.Millisecond) // they answer within a moment
		}
		if got, err := l.choose(now, 1, n, e, nil); len(got) != 1 {
			t.Fatalf("member %d is not dialled: %v", i, err)
		}
		e.worked(a)
	}
	// The memory for all that has a bound.
	e = newEndpoints()
	for i := range 2 * maxEndpoints {
		e.may(start, maddr(t, fmt.Sprintf("/ip4/10.%d.%d.%d/tcp/1", i>>16&255, i>>8&255, i&255)))
	}
	if len(e.all) > maxEndpoints || len(e.hosts) > maxEndpoints {
		t.Errorf("%d endpoints of %d hosts are remembered", len(e.all), len(e.hosts))
	}
	if !e.may(start.Add(time.Hour), maddr(t, "/ip4/11.0.0.1/tcp/1")) {
		t.Error("and never forgotten")
	}
}

// What cannot lead there is not dialled, and it is said why.
func TestNoWay(t *testing.T) {
	t.Parallel()
	prefixes := func(s ...string) networks {
		f := face{}
		for _, p := range s {
			f.addrs = append(f.addrs, netip.MustParsePrefix(p))
		}
		return networks{faces: []face{f}}
	}
	lo := []string{"127.0.0.1/8", "::1/128"}
	v4, v6, none := prefixes(append(lo, "192.168.1.2/24", "fe80::1/64")...), prefixes(append(lo, "2001:db8::2/64", "fe80::1/64")...), prefixes(append(lo, "fe80::1/64")...)
	for _, c := range []struct {
		addr string
		n    networks
		want error
	}{
		{"/ip4/10.0.0.1/tcp/1", v4, nil}, {"/ip4/10.0.0.1/tcp/1", v6, errNoWay}, {"/ip4/10.0.0.1/tcp/1", none, errNoNetwork},
		{"/ip6/2001:db8::1/tcp/1", v6, nil}, {"/ip6/2001:db8::1/tcp/1", v4, errNoWay},
		{"/ip4/127.0.0.1/tcp/1", none, nil}, {"/ip4/127.0.0.1/tcp/1", v4, nil}, {"/ip6/::1/tcp/1", v6, nil},
		{"/dns4/x.example/tcp/1", v4, nil}, {"/dns4/x.example/tcp/1", none, errNoNetwork},
		{"/ip4/192.168.1.2/tcp/1", v4, nil}, {"/ip4/192.168.1.2/tcp/4001", v4, errNoWay}, // this node's own
	} {
		var l hints
		l.take(time.Now(), itself, "itself", maddr(t, c.addr))
		got, err := l.choose(time.Now(), 1, c.n, newEndpoints(), []ma.Multiaddr{maddr(t, "/ip4/192.168.1.2/tcp/4001")})
		if err != c.want || (err == nil) != (len(got) == 1) {
			t.Errorf("%s: %v, %v; want %v", c.addr, got, err, c.want)
		}
	}
}
