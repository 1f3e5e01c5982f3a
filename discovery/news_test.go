package discovery

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// deaf has a node listen nowhere: it dials, and nobody dials it.
func deaf(t *testing.T) func(*Config) {
	return func(c *Config) {
		c.Host.Close()
		h, err := NewHost(HostConfig{Members: c.Members, Deaf: true})
		if err != nil {
			t.Fatal(err)
		}
		c.Host = h
	}
}

// Whoever is behind a router, and dials only, hears of a newcomer whom the hub has met, though nobody that it is connected to let it in.
func TestWhoOnlyDialsHearsOfANewcomer(t *testing.T) {
	t.Parallel()
	for _, told := range []bool{false, true} { // the hub knows of the newcomer by the news of a third, which tells others itself
		t.Run(fmt.Sprintf("told=%v", told), func(t *testing.T) {
			t.Parallel()
			hub := start(t, t.TempDir(), "hub")
			third := member(t, t.TempDir(), "third")
			hub.admit(t, third)
			dirD := t.TempDir()
			hub.admit(t, member(t, dirD, "dialer"))
			dialer := startWith(t, loopback, dirD, "dialer", deaf(t))
			until(t, 10*time.Second, "the dialer and the hub connect", func() bool { return hub.has(dialer) && dialer.has(hub) })

			h, err := NewHost(HostConfig{Members: third, Listen: []ma.Multiaddr{ma.StringCast(loopback)}})
			if err != nil {
				t.Fatal(err)
			}
			dirN := t.TempDir()
			m := member(t, dirN, "newcomer")
			(&testNode{Membership: third, host: h}).admit(t, m)
			h.Close() // gone before it could tell anybody
			if told {
				if _, err := hub.Add(m.Own().Chain()); err != nil {
					t.Fatal(err)
				}
				hub.in(t, func() { hub.d.sync(); hub.d.peers[m.Self()].public = true })
			}
			newcomer := start(t, dirN, "newcomer", hub.addr())
			until(t, 10*time.Second, "the newcomer knows the dialer", func() bool { return newcomer.state(dialer.Self()).Name == "dialer" })
			if told {
				// It asks again when it has missed the dialer for a while.
				newcomer.in(t, func() {
					newcomer.d.peers[dialer.Self()].learnt = time.Now().Add(-missGap - time.Second)
					newcomer.d.outbox.asked = time.Time{}
				})
			}
			until(t, 10*time.Second, "they connect", func() bool { return newcomer.has(dialer) && dialer.has(newcomer) })
		})
	}
}

// Two that hold each other's certificates, and no address, are told by a third that both meet.
func TestCertificatesWithoutAddresses(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	dirs := []string{t.TempDir(), t.TempDir()}
	b, c := member(t, dirs[0], "b"), member(t, dirs[1], "c")
	a.admit(t, b)
	a.admit(t, c)
	for _, p := range [][2]*members.Membership{{b, c}, {c, b}} {
		if _, err := p[0].Add(p[1].Own().Chain()); err != nil {
			t.Fatal(err)
		}
	}
	nb, nc := startMember(t, b, loopback, dirs[0], "b", func(*Config) {}), startMember(t, c, loopback, dirs[1], "c", func(*Config) {})
	until(t, 10*time.Second, "they connect", func() bool { return nb.has(nc) && nc.has(nb) })
}

// pipe forwards one TCP port to another until cut: then the dialing side is told so, and the other hears nothing any more.
type pipe struct {
	net.Listener
	addr ma.Multiaddr
	mu   sync.Mutex // guards in
	in   []net.Conn
}

func newPipe(t *testing.T, to string) *pipe {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &pipe{Listener: l, addr: maddr(t, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port))}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				return
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			p.mu.Lock()
			p.in = append(p.in, in)
			p.mu.Unlock()
			go io.Copy(in, out)
			go io.Copy(out, in)
		}
	}()
	return p
}

func (p *pipe) cut() {
	p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.in {
		c.Close()
	}
}

// A member that lost its connection, and is back before the other side has noticed, is greeted anew: it knows nothing of the other by now.
func TestGreetedAgain(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir(), "b")
	var port string
	for _, a := range b.host.Addrs() {
		port, _ = a.ValueForProtocol(ma.P_TCP)
	}
	through := newPipe(t, "127.0.0.1:"+port)
	ticket, err := b.Invite(members.InviteOptions{Mine: true, Addrs: []ma.Multiaddr{through.addr}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := member(t, dir, "a")
	if err := m.Join(t.Context(), ticket, members.JoinOptions{}); err != nil {
		t.Fatal(err)
	}
	a := startMember(t, m, loopback, dir, "a", deaf(t))
	placed := func() (yes bool) {
		a.in(t, func() { k := a.d.peers[b.Self()]; yes = k.up && k.placed })
		return yes
	}
	until(t, 10*time.Second, "they connect, and b has said where it is", placed)
	old := b.host.Network().ConnsToPeer(a.Self())
	time.Sleep(time.Until(old[0].Stat().Opened.Add(duplicateWindow + 100*time.Millisecond))) // from then on it was lost, for whoever comes anew
	through.cut()
	until(t, 10*time.Second, "a is back, and b has said where it is", func() bool {
		now := a.host.Network().ConnsToPeer(b.Self())
		return len(now) == 1 && !now[0].RemoteMultiaddr().Equal(through.addr) && placed()
	})
	if strings.Contains(b.log.String(), "member disconnected") {
		t.Error("b has noticed that it was lost: this test shows nothing")
	}
}

// What a member says of others takes no more memory than there can be members, however often it says it.
func TestSummariesAreBounded(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 10*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	conn := a.host.Network().ConnsToPeer(b.Self())[0]
	wanted := 0
	a.in(t, func() {
		for i := range uint64(5) {
			s := &protocol.MemberSummary{}
			for j := range uint64(maxSummary) {
				s.Members, s.Serials = append(s.Members, i<<32+j), append(s.Serials, 1)
			}
			a.d.takeNews(b.Self(), conn, &protocol.MemberNews{Summary: s})
		}
		wanted = len(a.d.outbox.to(b.Self()).certs)
	})
	if wanted == 0 || wanted > maxSummary {
		t.Errorf("%d certificates would be asked for, want at most %d", wanted, maxSummary)
	}
}

// Calls that come without end do not keep Run from its other work.
func TestCallsDoNotStarveRun(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	ctx, cancel := context.WithCancel(t.Context())
	var floods sync.WaitGroup
	defer floods.Wait()
	defer cancel()
	var taken atomic.Int64
	for range 8 {
		floods.Go(func() {
			for ctx.Err() == nil {
				a.d.do(ctx, func() {
					taken.Add(1)
					for end := time.Now().Add(100 * time.Microsecond); time.Now().Before(end); {
					}
				})
			}
		})
	}
	until(t, 10*time.Second, "the flood is there", func() bool { return taken.Load() > 1000 })
	b := member(t, t.TempDir(), "b")
	a.admit(t, b)
	until(t, 10*time.Second, "a shows the newcomer", func() bool { return a.state(b.Self()).Name == "b" })
}

// More certificates than one letter may have go out in several.
func TestManyCertificates(t *testing.T) {
	t.Parallel()
	a := start(t, t.TempDir(), "a")
	b := member(t, t.TempDir(), "b")
	a.admit(t, b)
	h, err := NewHost(HostConfig{Members: b, Listen: []ma.Multiaddr{ma.StringCast(loopback)}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var records, bad atomic.Int32
	h.SetStreamHandler(protocol.MembersProtocol, func(s network.Stream) {
		defer s.Close()
		news, err := decodeNews(bufio.NewReader(s), func(int) (func(), error) { return func() {}, nil })
		if err != nil {
			bad.Add(1)
			return
		}
		for _, r := range news.Members {
			if r.Chain != nil {
				records.Add(1)
			}
		}
	})
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: a.Self(), Addrs: a.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	until(t, 10*time.Second, "a has greeted b", func() (met bool) {
		a.in(t, func() { met = a.d.peers[b.Self()].met && a.d.outbox.at.IsZero() })
		return met
	})
	before := records.Load()
	const many = maxRecords + 100
	a.in(t, func() {
		l := a.d.outbox.to(b.Self())
		for i := range many {
			p := peer.ID(fmt.Sprintf("a peer that is known, number %6d", i))
			a.d.peers[p] = &known{cert: a.Own(), backoff: newBackoff()}
			l.records[p] = true
		}
		a.d.outbox.soon()
	})
	until(t, 15*time.Second, "all are told", func() bool { return records.Load()-before >= many })
	if bad.Load() > 0 {
		t.Errorf("%d letters were no good", bad.Load())
	}
}

// A member that says what is no good, again and again, does not fill the log.
func TestLogIsNotFlooded(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 10*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	began := time.Now()
	for range 20 {
		for _, news := range []*protocol.MemberNews{{Renewed: &protocol.Chain{}}, {Revocations: []*protocol.Revocation{{}}}} {
			if err := send(t.Context(), b.host, a.Self(), news, protocol.Spoken); err != nil {
				t.Fatal(err)
			}
		}
	}
	stranger := member(t, t.TempDir(), "stranger").Self()
	acl := &admitted{a.Membership, a.d.log, a.d.seldom}
	for range 20 {
		if acl.AllowConnect(b.Self(), nil, stranger) {
			t.Fatal("a circuit for a stranger")
		}
	}
	until(t, 10*time.Second, "all of it was heard", func() bool {
		return strings.Contains(a.log.String(), "a renewed certificate is no good") && strings.Contains(a.log.String(), "revocations told by a member") && strings.Contains(a.log.String(), "relay refused")
	})
	most := 3 * (1 + int(time.Since(began)/(10*time.Second)))
	if n := strings.Count(a.log.String(), "level=WARN"); n > most {
		t.Errorf("%d lines, want at most %d", n, most)
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
