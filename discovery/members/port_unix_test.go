//go:build unix

package members

import (
	"context"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sys/unix"
)

// What is dialled from the listening port comes from there, and nobody else can listen on it, before or after, not even who asks the system to share it.
func TestPortIsDialledFromAndNotShared(t *testing.T) {
	t.Parallel()
	p := &ports{all: map[*portListener]bool{}}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	own := p.add(l)
	port := l.Addr().(*net.TCPAddr).Port
	defer own.Close()
	share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
	}}
	exclusive := func(when string) {
		t.Helper()
		for what, config := range map[string]net.ListenConfig{"plain": {}, "sharing": share} {
			if other, err := config.Listen(t.Context(), "tcp4", own.Addr().String()); err == nil {
				other.Close()
				t.Errorf("%s: another program that is %s can listen there", when, what)
			}
		}
	}
	exclusive("at first")
	there, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	dial := func(ctx context.Context) int {
		t.Helper()
		c, err := p.DialContext(ctx, "tcp4", there.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		s, err := there.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s.RemoteAddr().(*net.TCPAddr).Port
	}
	punch := network.WithSimultaneousConnect(t.Context(), true, "test")
	if from := dial(t.Context()); from == port {
		t.Error("a plain dial comes from the listening port")
	}
	if from := dial(punch); from != port {
		t.Errorf("a punch comes from port %d, not from %d, on which this node listens", from, port)
	}
	exclusive("with a connection from there")
	if from := dial(punch); from == port {
		t.Error("two connections between the same ports")
	} else {
		t.Logf("the second one comes from port %d", from)
	}
	exclusive("after two")
}

// A node at a private address dials from its port the members that others can reach, and nobody else.
func TestMeetAt(t *testing.T) {
	t.Parallel()
	m := open(t, "", Options{})
	m.MeetAt([]ma.Multiaddr{ma.StringCast("/ip4/8.8.8.8/tcp/4001"), ma.StringCast("/ip4/192.168.1.5/tcp/4001"), ma.StringCast("/dns/example.org/tcp/4001"), ma.StringCast("/p2p-circuit")})
	var got []string
	for a := range m.ports.met {
		got = append(got, a.String())
	}
	if strings.Join(got, " ") != "8.8.8.8:4001" {
		t.Errorf("%v", got)
	}
}
