package discovery

import (
	"sync/atomic"
	"testing"
	"time"

	"meshnode/discovery/members"
)

// later starts a node whose wall clock is as far ahead as ahead says.
func later(t *testing.T, name string, ahead *atomic.Int64) *testNode {
	t.Helper()
	dir := t.TempDir()
	m, err := members.Open(dir, members.Options{Name: name, Machine: func() string { return "this machine" }, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	return startMember(t, m, "/ip4/127.0.0.1/tcp/0", dir, name, func(*Config) {})
}

// TestCertificatesOnLiveConnections: while connections last for months, certificates are renewed over them, and everybody connected
// hears it; one that ends all the same ends its connections.
func TestCertificatesOnLiveConnections(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	a, b, c := later(t, "a", &ahead), later(t, "b", &ahead), later(t, "c", &ahead)
	a.admit(t, b.Membership)
	a.admit(t, c.Membership)
	nodes := []*testNode{a, b, c}
	whole := func() bool { return a.has(b) && a.has(c) && b.has(c) && c.has(b) && b.has(a) && c.has(a) }
	until(t, 10*time.Second, "all are connected", whole)
	upkeep := func(n *testNode) { n.d.do(t.Context(), n.d.upkeep) }
	const day = 24 * time.Hour
	for _, d := range []time.Duration{50 * day, 100 * day, 150 * day} { // each certificate ends after 90
		ahead.Store(int64(d))
		was := c.Own().Serial
		upkeep(a)
		until(t, 10*time.Second, "everybody has a new certificate", func() bool {
			for _, n := range nodes {
				for _, o := range nodes {
					if x, ok := n.Certificate(o.Self()); !ok || time.Until(x.NotAfter) < d+80*day {
						return false
					}
				}
			}
			return c.Own().Serial != was
		})
		for _, n := range nodes {
			upkeep(n)
		}
		if !whole() {
			t.Fatalf("after %v somebody was cut off", d)
		}
	}
	// Nobody renews c for half a year: a is away. b goes by c's end, and c by b's.
	a.stop()
	a.host.Close()
	ahead.Store(int64(300 * day))
	upkeep(b)
	until(t, 10*time.Second, "a certificate that ends ends its connection", func() bool { return !b.has(c) && !c.has(b) })
}

// TestRevocationsArePassedOn: what one hears of a revocation goes on to all that it is connected to, and the revoked one is cut off, though neither of
// the two was there when it was revoked.
func TestRevocationsArePassedOn(t *testing.T) {
	t.Parallel()
	a, b, c, lost := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b"), start(t, t.TempDir(), "c"), start(t, t.TempDir(), "lost")
	for _, n := range []*testNode{b, c, lost} {
		a.admit(t, n.Membership)
	}
	until(t, 10*time.Second, "all are connected", func() bool { return b.has(c) && b.has(lost) && c.has(lost) && a.has(b) && a.has(lost) })
	if _, err := a.Revoke(lost.Self(), members.RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	until(t, 15*time.Second, "it is cut off everywhere", func() bool {
		return !a.has(lost) && !b.has(lost) && !c.has(lost) && len(lost.host.Network().Peers()) == 0
	})
	t.Logf("cut off everywhere after %v", time.Since(began))
	for _, n := range []*testNode{a, b, c} {
		for _, s := range n.d.Known() {
			if s.Peer == lost.Self() {
				t.Errorf("still listed: %+v", s)
			}
		}
	}
	until(t, 10*time.Second, "it knows", func() bool { return len(lost.Trouble()) == 1 })
}
