package discovery

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
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
	"meshnode/protocol"
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

// A member that nobody tells the newcomer's address still meets it: those who know it are told of the newcomer.
func TestMembersHearOfANewcomer(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	// c has a host and no Discovery: it dials a only.
	c := member(t, t.TempDir(), "c")
	a.admit(t, c)
	listen, err := ma.NewMultiaddr("/ip4/127.0.0.1/tcp/0")
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHost(HostConfig{Members: c, Listen: []ma.Multiaddr{listen}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: a.Self(), Addrs: a.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	until(t, 5*time.Second, "b knows c", func() bool { return b.state(c.Self()).Name == "c" })
}

func TestAddressBookAfterRestart(t *testing.T) {
	t.Parallel()
	dirA, dirB := t.TempDir(), t.TempDir()
	a, b := start(t, dirA, "a"), start(t, dirB, "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	until(t, 5*time.Second, "a knows b's address", func() bool { return len(a.state(b.Self()).Addrs) > 0 })
	a.stop()
	until(t, 5*time.Second, "b has lost a", func() bool { return !b.has(a) })
	if s := b.state(a.Self()); s.Reason == "" || s.State == Connected || s.LastSeen.IsZero() {
		t.Errorf("b says of a: %+v", s)
	}
	at := b.host.Addrs()[0].String()
	b.stop()
	// b comes back where it was, but without its book; a comes back elsewhere. Only a's book leads from one to the other.
	if err := os.Remove(filepath.Join(dirB, "membership", bookFile)); err != nil {
		t.Fatal(err)
	}
	b, a = startAt(t, at, false, dirB, "b"), start(t, dirA, "a")
	until(t, 8*time.Second, "they connect again", func() bool { return a.has(b) && b.has(a) })
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

func TestKeptPort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := member(t, dir, "a")
	open := func() (host.Host, string) {
		h, err := NewHost(HostConfig{Members: m, Dir: filepath.Join(dir, "membership")})
		if err != nil {
			t.Fatal(err)
		}
		p, err := h.Addrs()[0].ValueForProtocol(ma.P_TCP)
		if err != nil {
			t.Fatal(err)
		}
		return h, p
	}
	h1, p1 := open()
	h2, p2 := open() // taken
	if p2 == p1 {
		t.Error("two hosts at one port")
	}
	h1.Close()
	h2.Close()
	h3, p3 := open()
	h3.Close()
	if p3 != p2 {
		t.Errorf("port %s after a restart, %s before", p3, p2)
	}
}

// News from a member is checked like a stranger's word.
func TestNewsAreChecked(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	stranger := member(t, t.TempDir(), "stranger")
	news := &protocol.MemberNews{Members: []*protocol.MemberRecord{
		{Chain: stranger.Own().Chain(), Addresses: [][]byte{{4, 127, 0, 0, 1, 6, 0, 1}}},
		{}, {Chain: &protocol.Chain{}}, {Chain: a.Own().Chain(), Addresses: [][]byte{{1}, nil}},
	}}
	if err := send(t.Context(), b.host, a.Self(), news, protocol.Spoken); err != nil {
		t.Fatal(err)
	}
	s, err := b.host.NewStream(t.Context(), a.Self(), protocol.MembersProtocol)
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(5 * time.Second))
	s.Write([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}) // 4 GiB are coming
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a stream that breaks the protocol is answered")
	}
	until(t, 5*time.Second, "logged", func() bool { return strings.Contains(a.log.String(), "protocol violated") })
	if _, ok := a.Certificate(stranger.Self()); ok || a.state(stranger.Self()).Name != "" {
		t.Error("a stranger's certificate was taken from news")
	}
	if !a.has(b) {
		t.Error("the connection broke")
	}
}
