package discovery

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
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

// A member that was there a moment ago is dialled once in one to two seconds; Rediscover does it at once.
func TestHotRedial(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	b := member(t, t.TempDir(), "b")
	a.admit(t, b)
	until(t, 3*time.Second, "a knows b", func() bool { return a.state(b.Self()).Name == "b" })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var mu sync.Mutex
	var at []time.Time
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			at = append(at, time.Now())
			mu.Unlock()
			c.Close()
		}
	}()
	dials := func() []time.Time { mu.Lock(); defer mu.Unlock(); return slices.Clone(at) }
	a.hint(b.Self(), "/ip4/127.0.0.1/tcp/"+fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	until(t, 15*time.Second, "five dials", func() bool { return len(dials()) >= 5 })
	got := dials()
	for i := 1; i < len(got); i++ {
		if gap := got[i].Sub(got[i-1]); gap < minDialGap-50*time.Millisecond || gap > 4*time.Second { // 1.75 s, on a machine that is not busy
			t.Errorf("%v between two dials", gap)
		}
	}
	// A long time after, the next dial is far away.
	a.d.do(t.Context(), func() {
		k := a.d.peers[b.Self()]
		k.hot, k.next = time.Time{}, time.Now().Add(time.Hour)
	})
	until(t, 3*time.Second, "it waits", func() bool { return time.Until(a.state(b.Self()).NextTry) > time.Minute })
	n := len(dials())
	time.Sleep(time.Until(got[len(got)-1].Add(minDialGap)))
	begun := time.Now()
	a.d.Rediscover()
	until(t, 3*time.Second, "it is dialled", func() bool { return len(dials()) > n })
	t.Logf("dialled %v after Rediscover", dials()[n].Sub(begun).Round(time.Millisecond))
}

// What was learnt is on the disk within a second: a node that is killed has it.
func TestBookIsSavedSoon(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	begun := time.Now()
	until(t, 3*time.Second, "b's address is in a's book", func() bool {
		var book map[string]entry
		raw, err := os.ReadFile(filepath.Join(a.dir, "membership", bookFile))
		return err == nil && json.Unmarshal(raw, &book) == nil && len(book[b.Self().String()].Addrs) > 0
	})
	t.Logf("on the disk %v after the connection", time.Since(begun).Round(time.Millisecond))
	// What others say of b is not.
	a.hint(b.Self(), "/ip4/127.0.0.1/tcp/9")
	a.stop()
	raw, err := os.ReadFile(filepath.Join(a.dir, "membership", bookFile))
	if err != nil || len(raw) == 0 || slices.Contains(a.d.book.peers[b.Self()].Addrs, "/ip4/127.0.0.1/tcp/9") {
		t.Errorf("hearsay in the book: %s, %v", raw, err)
	}
}

// Handshakes that break off halve how many dials go on at once, once a second; dials that reach nobody do not, and a window of them that succeed allows one more.
func TestPace(t *testing.T) {
	t.Parallel()
	failed := func(cause error) *swarm.DialError {
		return &swarm.DialError{DialErrors: []swarm.TransportError{{Cause: fmt.Errorf("handshake: %w", cause)}}}
	}
	d := &Discovery{window: 16}
	for range 3 {
		d.pace(failed(io.EOF))
	}
	if d.window != 8 {
		t.Errorf("after three that broke off at once: %v", d.window)
	}
	d.cut = time.Time{}
	d.pace(failed(syscall.ECONNREFUSED))
	d.pace(failed(&net.OpError{Op: "dial", Net: "tcp4", Err: os.ErrDeadlineExceeded}))
	relayed := failed(context.DeadlineExceeded)
	relayed.DialErrors[0].Address = members.CircuitThrough(member(t, t.TempDir(), "relay").Self())
	d.pace(relayed)
	if d.window != 8 {
		t.Errorf("after three that reached nobody: %v", d.window)
	}
	d.pace(failed(os.ErrDeadlineExceeded))
	if d.window != 4 {
		t.Errorf("after one that took too long: %v", d.window)
	}
	for range 3 {
		d.cut = time.Time{}
		d.pace(failed(syscall.EPIPE))
	}
	if d.window != leastWindow {
		t.Errorf("after many: %v", d.window)
	}
	for range maxWindow * maxWindow {
		d.pace(nil)
	}
	if int(d.window) != maxWindow {
		t.Errorf("after many that succeeded: %v", d.window)
	}
}

// A dial counts while it is young, and then only while it shakes hands: members that are off answer nothing, and hold up nobody.
func TestPlaces(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	busy := member(t, t.TempDir(), "busy")
	a.admit(t, busy)
	until(t, 10*time.Second, "a knows it", func() bool { return a.state(busy.Self()).Name == "busy" })
	a.hint(busy.Self(), fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", silent.Addr().(*net.TCPAddr).Port))
	until(t, 10*time.Second, "the handshake has begun", func() bool { return a.Shaking(busy.Self()) })

	now := time.Now()
	d := &Discovery{members: a.Membership, window: 4.9, peers: map[peer.ID]*known{}}
	add := func(n int, age time.Duration) {
		for i := range n {
			d.peers[peer.ID(fmt.Sprint(age, i))] = &known{dialing: 1, lastDial: now.Add(-age)}
			d.dialing++
		}
	}
	check := func(when string, places int, more time.Duration) {
		t.Helper()
		if n, m := d.places(now); n != places || m != more {
			t.Errorf("%s: %d places, more after %v; want %d and %v", when, n, m, places, more)
		}
	}
	check("nothing goes on", 4, time.Hour)
	add(30, answerTime)
	check("30 that do not answer", 4, time.Hour)
	d.peers[busy.Self()] = &known{dialing: 1, lastDial: now.Add(-time.Second)}
	check("one shakes hands", 3, time.Hour)
	add(1, answerTime/4)
	add(1, answerTime/2)
	check("two are young", 1, answerTime/2)
	add(3, 0)
	check("five are", 0, answerTime/2)
	add(maxDials, time.Hour)
	check("too many in all", 0, answerTime/2)
	silent.Close()
	until(t, 10*time.Second, "the handshake has ended", func() bool { return !a.Shaking(busy.Self()) })
}

// Dials of one member that overlap without end leave nothing behind.
func TestDialsLeaveNothing(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	b := member(t, t.TempDir(), "b")
	a.admit(t, b)
	until(t, 10*time.Second, "a knows b", func() bool { return a.state(b.Self()).Name == "b" })
	var k *known
	a.in(t, func() {
		k = a.d.peers[b.Self()]
		k.dialing++ // one that goes on
		k.addrs.take(time.Now(), itself, "test", many(t, "/ip4/127.0.0.1/tcp/%d", 9)[1:]...)
		for range 8 {
			a.d.dial(b.Self(), k)
		}
		if k.dialing < 2 {
			t.Error("nothing was dialled: this test shows nothing")
		}
	})
	until(t, 10*time.Second, "they have ended", func() (ended bool) {
		a.in(t, func() { ended = k.dialing == 1 && a.d.dialing == 0 })
		return ended
	})
	a.in(t, func() {
		if n := len(k.stopDials); n > 0 {
			t.Errorf("%d dials can be stopped that have ended", n)
		}
	})
}

// flicker is a network of which a peer is connected and not connected in turn.
type flicker struct {
	network.Network
	up bool
}

func (f *flicker) Connectedness(peer.ID) network.Connectedness {
	if f.up = !f.up; f.up {
		return network.Connected
	}
	return network.NotConnected
}

func (f *flicker) ConnsToPeer(peer.ID) []network.Conn { return nil }

type flickering struct {
	host.Host
	net *flicker
}

func (f flickering) Network() network.Network { return f.net }

// A connection that ends just when the dial that made it is looked at: the member is dialled again.
func TestLostWhileLookedAt(t *testing.T) {
	t.Parallel()
	a, b := member(t, t.TempDir(), "a"), member(t, t.TempDir(), "b").Self()
	d, err := New(Config{Host: flickering{net: &flicker{}}, Members: a, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	k := &known{cert: a.Own(), backoff: newBackoff(), dialing: 1, lastDial: time.Now()}
	d.peers[b], d.dialing = k, 1
	d.dialled(b, k, nil, nil, nil)
	if k.up || k.next.IsZero() {
		t.Errorf("connected: %v; next dial: %v", k.up, k.next)
	}
}

// What libp2p says of a handshake that somebody lets wait.
func TestHandshakeThatWaits(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	h, err := NewHost(HostConfig{Members: member(t, t.TempDir(), "a"), Deaf: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*dialTimeout)
	defer cancel()
	p := member(t, t.TempDir(), "b").Self()
	h.Peerstore().AddAddr(p, maddr(t, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", silent.Addr().(*net.TCPAddr).Port)), time.Hour)
	if _, err := h.Network().DialPeer(ctx, p); err == nil || !brokeOff(err) {
		t.Errorf("it does not count as broken off: %v", err)
	}
}
