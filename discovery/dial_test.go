package discovery

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"meshnode/discovery/members"
)

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

func TestRedial(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	for range 2 {
		old := a.host.Network().ConnsToPeer(b.Self())
		for _, c := range old {
			c.Close()
		}
		until(t, 4*time.Second, "they connect again", func() bool {
			now := a.host.Network().ConnsToPeer(b.Self())
			return len(now) == 1 && !slices.Contains(old, now[0]) && a.has(b) && b.has(a)
		})
	}
}

// While nobody answers, a reason and the next try are told.
func TestReasons(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	b := member(t, t.TempDir(), "b")
	a.admit(t, b)
	until(t, 3*time.Second, "a knows b", func() bool { return a.state(b.Self()).Name == "b" })
	if s := a.state(b.Self()); s.State != Unknown || !strings.Contains(s.Reason, "no address") {
		t.Errorf("without an address: %+v", s)
	}
	a.hint(b.Self(), "/ip4/127.0.0.1/tcp/1")
	until(t, 8*time.Second, "two dials", func() bool { return strings.Count(a.log.String(), "msg=dial") >= 2 })
	s := a.state(b.Self())
	if s.State != Waiting || !strings.Contains(s.Reason, "nothing listens there") || strings.Contains(s.Reason, "\n") || s.Via != "test" || s.NextTry.IsZero() || time.Until(s.NextTry) > 2*time.Second {
		t.Errorf("after two dials: %+v, next in %v", s, time.Until(s.NextTry))
	}
	// At its address is somebody else now.
	c := start(t, t.TempDir(), "c")
	a.admit(t, c.Membership)
	for _, x := range c.host.Addrs() {
		a.hint(b.Self(), x.String())
	}
	until(t, 5*time.Second, "told so", func() bool { return strings.Contains(a.state(b.Self()).Reason, "another node is at this address") })
	if len(a.host.Network().ConnsToPeer(b.Self())) != 0 {
		t.Error("connected to b")
	}
}
