package node

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// What a program names is connected, or it hears why not, within 3 s.
func TestConnect(t *testing.T) {
	t.Parallel()
	a, b, x := start(t, "a", 1), start(t, "b", 1), start(t, "x", 1)
	join(t, a, b)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	hostPort := func(n *Node) string {
		words := strings.Split(n.Addrs()[0], "/") // /ip4/127.0.0.1/tcp/PORT/p2p/ID
		return "127.0.0.1:" + words[4]
	}
	for _, c := range []struct{ addr, code, text string }{
		{b.ID().Short(), CodeBadRequest, "no address"}, // names are found by the server
		{string(b.ID()), "", ""},
		{hostPort(b), "", ""},
		{b.Addrs()[0], "", ""},
		{hostPort(a), CodeRefused, "this node itself"},
		{string(a.ID()), CodeRefused, "this node itself"},
		{hostPort(x), CodeRefused, "another mesh"},
		{string(x.ID()), CodeNoPeer, "no member"},
		{"127.0.0.1:1", CodeUnavailable, "nothing listens there"},
		{"no-such-host.invalid:4001", CodeUnavailable, "no-such-host.invalid"},
		{silent.Addr().String(), CodeUnavailable, "no answer in time"},
		{"kitchen", CodeBadRequest, "kitchen"},
		{"host:port:more", CodeBadRequest, "no address"},
	} {
		began := time.Now()
		got, err := a.Connect(context.Background(), c.addr)
		if d := time.Since(began); d > 3500*time.Millisecond {
			t.Errorf("%s: after %v", c.addr, d)
		}
		if e := (*Error)(nil); c.code != "" && (!errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Message, c.text) || e.Fix == "") {
			t.Errorf("%s: %+v, %v", c.addr, got, err)
		}
		if c.code == "" && (err != nil || got.Peer != string(b.ID()) || got.Name != "b") {
			t.Errorf("%s: %+v, %v", c.addr, got, err)
		}
	}
}

// Of a member that is away it is told why, when it is tried again, when it was there and where its address was heard.
func TestAwayMember(t *testing.T) {
	t.Parallel()
	a, b := start(t, "a", 1), start(t, "b", 1)
	join(t, a, b)
	peer := func() Peer {
		ps, err := a.Peers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			if p.ID == string(b.ID()) {
				return p
			}
		}
		return Peer{}
	}
	await(t, "b has said where it is", func() bool { return peer().Via == "itself" })
	if p := peer(); p.State != "connected" || p.NextTry != nil || p.LastSeen == nil || p.Via != "itself" || p.Reason != "" {
		t.Errorf("while it is there: %+v", p)
	}
	left := time.Now()
	b.Shutdown()
	ends := time.Now().Add(10 * time.Second)
	for p := peer(); p.State != "gone" || !strings.Contains(p.Reason, "nothing listens there; next try in "); p = peer() {
		if time.Now().After(ends) {
			t.Fatalf("away: %+v", p)
		}
		time.Sleep(5 * time.Millisecond)
	}
	p := peer()
	for p.NextTry == nil && time.Now().Before(ends) { // it is just being dialled
		p = peer()
	}
	if p.NextTry == nil || time.Until(*p.NextTry) > 3*time.Second || p.LastSeen == nil || p.LastSeen.Before(left.Add(-time.Second)) || p.Via != "itself" || len(p.Addrs) == 0 {
		t.Errorf("away: %+v", p)
	}
	w, err := a.WhyPeer(t.Context(), string(b.ID()))
	if err != nil || !strings.Contains(w.Summary, "nothing listens there") {
		t.Errorf("why: %+v, %v", w, err)
	}
}
