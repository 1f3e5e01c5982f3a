package discovery

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
)

// testNode is a node of a test: a membership, a host on loopback and a Discovery that runs.
type testNode struct {
	*members.Membership
	dir  string
	host host.Host
	d    *Discovery
	log  *lines
	stop func() // ends Run and the host; twice is once
}

type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func member(t testing.TB, dir, name string) *members.Membership {
	t.Helper()
	m, err := members.Open(dir, members.Options{Name: name, Machine: func() string { return "this machine" }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// start runs a node in dir.
func start(t testing.TB, dir, name string, given ...string) *testNode {
	t.Helper()
	return startAt(t, "/ip4/127.0.0.1/tcp/0", false, dir, name, given...)
}

func startAt(t testing.TB, at string, mdns bool, dir, name string, given ...string) *testNode {
	t.Helper()
	return startWith(t, at, dir, name, func(c *Config) { c.MDNS = mdns }, given...)
}

func startWith(t testing.TB, at, dir, name string, config func(*Config), given ...string) *testNode {
	t.Helper()
	return startMember(t, member(t, dir, name), at, dir, name, config, given...)
}

func startMember(t testing.TB, m *members.Membership, at, dir, name string, config func(*Config), given ...string) *testNode {
	t.Helper()
	n := &testNode{Membership: m, dir: dir, log: &lines{}}
	listen, err := ma.NewMultiaddr(at)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n.host, err = NewHost(HostConfig{Members: n.Membership, Listen: []ma.Multiaddr{listen}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Host: n.host, Members: n.Membership, Dir: filepath.Join(dir, "membership"), Logger: log}
	config(&c)
	n.host = c.Host
	for _, s := range given {
		g, err := ParseGiven(s)
		if err != nil {
			t.Fatal(err)
		}
		c.Given = append(c.Given, g)
	}
	if n.d, err = New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.d.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run of %s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("Run of %s does not end", name)
		}
		n.host.Close()
	})
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("log of %s (%s):\n%s", name, n.Self(), n.log)
		}
	})
	return n
}

func (n *testNode) addr() string {
	for _, a := range n.host.Addrs() {
		if p, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			return "127.0.0.1:" + p
		}
	}
	return ""
}

func (n *testNode) state(p peer.ID) State {
	for _, s := range n.d.Known() {
		if s.Peer == p {
			return s
		}
	}
	return State{}
}

func (n *testNode) has(p *testNode) bool { return n.state(p.Self()).State == Connected }

// in runs f in the goroutine of n's Run, and waits for it.
func (n *testNode) in(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	n.d.do(t.Context(), func() { defer close(done); f() })
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not take calls")
	}
}

// admit lets m into n's mesh.
func (n *testNode) admit(t testing.TB, m *members.Membership) {
	t.Helper()
	ticket, err := n.Invite(members.InviteOptions{Mine: true, Addrs: n.host.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := m.Join(ctx, ticket, members.JoinOptions{}); err != nil {
		t.Fatal(err)
	}
}

func until(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// one reports whether two nodes have exactly one connection: the same one, for each side may for a moment have another.
func one(a, b *testNode) bool {
	as, bs := a.host.Network().ConnsToPeer(b.Self()), b.host.Network().ConnsToPeer(a.Self())
	return len(as) == 1 && len(bs) == 1 &&
		as[0].LocalMultiaddr().Equal(bs[0].RemoteMultiaddr()) && as[0].RemoteMultiaddr().Equal(bs[0].LocalMultiaddr())
}

func TestJoinerFindsTheThird(t *testing.T) {
	t.Parallel()
	a, b, c := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b"), start(t, t.TempDir(), "c")
	a.admit(t, b.Membership) // while it runs
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	a.admit(t, c.Membership)
	until(t, 5*time.Second, "all connect", func() bool { return c.has(a) && c.has(b) && b.has(c) && a.has(c) })
	until(t, 3*time.Second, "one connection for each pair", func() bool { return one(a, b) && one(a, c) && one(b, c) })
	until(t, 3*time.Second, "c knows where b is", func() bool { return len(c.state(b.Self()).Addrs) > 0 })
	if s := c.state(b.Self()); s.Name != "b" || len(s.Addrs) == 0 || s.Reason != "" || !s.NextTry.IsZero() || s.LastSeen.IsZero() {
		t.Errorf("c knows b as %+v", s)
	}
}

func (n *testNode) hint(p peer.ID, addr string) {
	a, err := ma.NewMultiaddr(addr)
	if err != nil {
		panic(err)
	}
	n.d.do(context.Background(), func() { n.d.hint(p, hearsay, "test", a) })
}

// Hints for keys without a certificate are not dialled.
func TestHintsOfStrangersAreNotDialled(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stranger, b := member(t, t.TempDir(), "x"), member(t, t.TempDir(), "b")
	addr := "/ip4/127.0.0.1/tcp/" + l.Addr().String()[len("127.0.0.1:"):]
	a.admit(t, b)
	until(t, 3*time.Second, "a knows b", func() bool { return a.state(b.Self()).Name == "b" })
	a.hint(stranger.Self(), addr)
	l.(*net.TCPListener).SetDeadline(time.Now().Add(1500 * time.Millisecond))
	if c, err := l.Accept(); err == nil {
		c.Close()
		t.Error("dialled a stranger")
	}
	// With a certificate, it is.
	a.hint(b.Self(), addr)
	l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal("a member is not dialled:", err)
	}
	c.Close()
}

func TestOneConnection(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return one(a, b) && a.has(b) && b.has(a) })
	twice := 0
	rounds := 0
	for ; rounds < 10 || twice == 0 && rounds < 100; rounds++ {
		var done sync.WaitGroup
		var mu sync.Mutex
		n := 0
		notify := &network.NotifyBundle{ConnectedF: func(network.Network, network.Conn) { mu.Lock(); n++; mu.Unlock() }}
		a.host.Network().Notify(notify)
		old := b.host.Network().ConnsToPeer(a.Self())
		a.host.Network().ClosePeer(b.Self())
		// Not "no connection": the next one may be there already.
		until(t, 5*time.Second, "disconnected", func() bool {
			return !slices.ContainsFunc(old, func(c network.Conn) bool { return !c.IsClosed() })
		})
		// Both dial at once, as they would if neither yielded.
		for _, p := range [][2]*testNode{{a, b}, {b, a}} {
			p[0].host.Peerstore().AddAddrs(p[1].Self(), p[1].host.Addrs(), time.Minute)
			done.Go(func() {
				if _, err := p[0].host.Network().DialPeer(t.Context(), p[1].Self()); err != nil {
					t.Error(err)
				}
			})
		}
		done.Wait()
		until(t, 5*time.Second, "one connection stays", func() bool { return one(a, b) && a.has(b) && b.has(a) })
		a.host.Network().StopNotify(notify)
		mu.Lock()
		if n > 1 {
			twice++
		}
		mu.Unlock()
	}
	if twice == 0 {
		t.Error("they never had two connections: this test shows nothing")
	}
	t.Logf("two connections in %d of %d rounds", twice, rounds)
}

func TestLeaveAndJoinElsewhere(t *testing.T) {
	t.Parallel()
	a, b, c := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b"), start(t, t.TempDir(), "c")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	if _, _, err := b.Leave(true); err != nil {
		t.Fatal(err)
	}
	until(t, 5*time.Second, "the connection is cut", func() bool { return len(b.host.Network().Peers()) == 0 && !a.has(b) })
	if k := b.d.Known(); len(k) != 0 {
		t.Errorf("b still knows %+v", k)
	}
	c.admit(t, b.Membership)
	until(t, 5*time.Second, "b and c connect", func() bool { return c.has(b) && b.has(c) })
	until(t, 5*time.Second, "a is told why", func() bool { return strings.Contains(a.state(b.Self()).Reason, "another mesh") })
}
