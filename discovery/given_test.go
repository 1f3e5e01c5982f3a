package discovery

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestGivenAddress(t *testing.T) {
	t.Parallel()
	dirB := t.TempDir()
	a := start(t, t.TempDir(), "a")
	b := member(t, dirB, "b")
	a.admit(t, b)
	// c joins too, and b and c never heard of each other, nor do they hear of a: it is stopped.
	dirC := t.TempDir()
	c := member(t, dirC, "c")
	a.admit(t, c)
	a.stop()
	nb := start(t, dirB, "b")
	nc := start(t, dirC, "c", nb.addr(), "127.0.0.1:1", "/dns4/localhost/tcp/2")
	until(t, 8*time.Second, "they connect", func() bool { return nb.has(nc) && nc.has(nb) })
	until(t, 3*time.Second, "the wrong ones have a reason", func() bool {
		n := 0
		for _, s := range nc.d.Known() {
			if s.Peer == "" && strings.Contains(s.Reason, "nothing listens") && !s.NextTry.IsZero() {
				n++
			}
		}
		return n == 2
	})
	// A given address of a stranger's says so.
	x := start(t, t.TempDir(), "x", nb.addr())
	until(t, 5*time.Second, "the stranger is told", func() bool {
		k := x.d.Known()
		return len(k) == 1 && strings.Contains(k[0].Reason, "another mesh")
	})
}

// What a person names is connected at once, or it is said why not.
func TestConnect(t *testing.T) {
	t.Parallel()
	dirB, dirC := t.TempDir(), t.TempDir()
	a := start(t, t.TempDir(), "a")
	b, c := member(t, dirB, "b"), member(t, dirC, "c")
	a.admit(t, b)
	a.admit(t, c)
	a.stop()
	nb, nc := start(t, dirB, "b"), start(t, dirC, "c")
	x := start(t, t.TempDir(), "x")
	connect := func(n *testNode, addr string) (peer.ID, error) {
		t.Helper()
		g, err := ParseGiven(addr)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		return n.d.Connect(ctx, g)
	}
	if p, err := connect(nc, nb.addr()); err != nil || p != nb.Self() || !nc.d.connected(nb.Self()) {
		t.Fatalf("%v, %v", p, err)
	}
	if _, err := connect(nc, nc.addr()); !errors.Is(err, ErrSelf) {
		t.Errorf("itself: %v", err)
	}
	var e *ConnectError
	if _, err := connect(nc, x.addr()); !errors.As(err, &e) || !e.Refused || !strings.Contains(e.Reason, "another mesh") {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := connect(nc, "127.0.0.1:1"); !errors.As(err, &e) || e.Refused || !strings.Contains(e.Reason, "nothing listens") {
		t.Errorf("nobody: %v", err)
	}
	if err := nc.d.Reach(t.Context(), x.Self()); !errors.Is(err, ErrNotMember) {
		t.Errorf("a stranger by its id: %v", err)
	}
	if err := nc.d.Reach(t.Context(), nc.Self()); !errors.Is(err, ErrSelf) {
		t.Errorf("itself by its id: %v", err)
	}
	// A member that is away, and comes back where it was.
	nb.stop()
	until(t, 5*time.Second, "it is gone", func() bool { return !nc.d.connected(nb.Self()) })
	short, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := nc.d.Reach(short, nb.Self()); !errors.As(err, &e) || e.Refused {
		t.Errorf("a member that is away: %v", err)
	}
}

func TestParseGiven(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"192.168.1.5:4001":              "tcp 192.168.1.5:4001",
		"laptop.local:4001":             "tcp laptop.local:4001",
		"[::1]:80":                      "tcp [::1]:80",
		"/ip4/192.168.1.5/tcp/4001":     "tcp4 192.168.1.5:4001",
		"/dns4/laptop.example/tcp/4001": "tcp4 laptop.example:4001",
		"/ip6/::1/tcp/4001/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo": "tcp6 [::1]:4001",
	} {
		g, err := ParseGiven(in)
		if err != nil || g.Network+" "+g.Host != want || g.Text != in || (g.Peer != "") != strings.Contains(in, "p2p") {
			t.Errorf("%s: %+v, %v", in, g, err)
		}
	}
	for _, in := range []string{
		"", "laptop", ":4001", "laptop:", "laptop:http", "laptop:0", "laptop:65536", "lap top:1", "http://x:1", "/", "/ip4", "/ip4/1.2.3.4", "/ip4/1.2.3.4/tcp/0",
		"/ip4/1.2.3.4/udp/1/quic-v1", "/ip4/1.2.3.4/tcp/1/ws", "/unix/x", "/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo", strings.Repeat("x", 1000) + ":1", "a\nb:1",
	} {
		if g, err := ParseGiven(in); err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "address ") {
			t.Errorf("%q: %+v, %v", in, g, err)
		}
	}
}
