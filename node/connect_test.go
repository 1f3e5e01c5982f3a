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
