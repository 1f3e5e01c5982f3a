package members

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Limits of connections that have not shown a certificate yet.
const (
	// admissionTimeout is from the accepted TCP connection to the end of the exchange: three round trips at
	// 300 ms and a slow laptop's signatures fit three times.
	admissionTimeout = 3 * time.Second
	// MaxPending connections at once, so many that whoever only holds places needs 170 new ones a second to hold them all for
	// admissionTimeout. One takes a descriptor and, once it has begun to speak, up to 50 KiB.
	MaxPending = 512
	// maxStrangers of these may come from addresses where no member was seen: the rest is the members' share.
	maxStrangers = 384
	// acceptRate is how many connections a second are let in, in the long run, and acceptBurst how many at once: 300 members that start at
	// the same moment, some of them twice. Beyond it they are closed unread, which costs 20 µs; one that is let in costs 100.
	acceptRate, acceptBurst = 1000, 1000
	// handshakeRate and handshakeBurst are the same for TLS handshakes, which cost 0.4 ms each: strangers can make this node
	// spend an eighth of a core on them. Others wait for their turn, in no order.
	handshakeRate, handshakeBurst = 300, 300
	// maxPreAdmission bytes are read of a connection before its exchange has ended: a TLS handshake is about
	// 1.5 KiB, an Admission at most 4.
	maxPreAdmission = 8 << 10
	// maxSeenAddresses that are remembered.
	maxSeenAddresses = 4096
)

// gate bounds the connections that are not admitted yet. It may be used concurrently.
//
// Many members may be behind one address, a hostile machine among them, so an address cannot be bounded by a number. While there is room
// everybody gets in. When there is none, the newcomer takes the place of one of the source that has most of them, whichever: who is quick,
// as a member on a healthy network is, is rarely hit (with a flood of 1000 a second and an exchange of 50 ms, once in ten times), and
// who holds places for long nearly always. Whoever has proven the key of a known member keeps its place.
type gate struct {
	m          *Membership
	visitors   visitors
	handshakes bucket

	mu       sync.Mutex // guards what follows
	accepts  bucket
	sources  map[netip.Prefix]*pendings
	pending  int                 // in all sources, those included that have proven a member's key
	strange  int                 // from addresses where no member was seen
	seen     map[netip.Addr]bool // a member was admitted from there
	limitLog map[string]time.Time
}

// pendings are the connections of one source that may have to make room.
type pendings struct {
	known bool
	conns []*pendingConn
}

func newGate(m *Membership) *gate {
	return &gate{
		m: m, handshakes: newBucket(handshakeRate, handshakeBurst), accepts: newBucket(acceptRate, acceptBurst),
		sources: map[netip.Prefix]*pendings{}, seen: map[netip.Addr]bool{}, limitLog: map[string]time.Time{},
	}
}

// Expect reserves a share of the pending connections for these addresses, because members were last seen there.
func (m *Membership) Expect(addrs []ma.Multiaddr) {
	for _, a := range addrs {
		if ip, err := manet.ToIP(a); err == nil {
			if addr, ok := netip.AddrFromSlice(ip); ok {
				m.gate.sawMember(addr.Unmap())
			}
		}
	}
}

func (g *gate) sawMember(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.seen) < maxSeenAddresses {
		g.seen[a] = true
	}
}

// source is the network that a limit counts by.
func source(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// enter gives a connection a place among the pending, and returns the one that has to go for it, if any. Not ok: there is no place.
func (g *gate) enter(c *pendingConn) (evicted *pendingConn, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.accepts.take(time.Now()) {
		g.hit("new connections a second", acceptRate, c)
		return nil, false
	}
	c.source = source(c.addr)
	known := g.seen[c.addr]
	if known {
		c.source, _ = c.addr.Prefix(c.addr.BitLen()) // an address of its own, as long as others of its network are not known
	}
	switch {
	case !known && g.strange >= maxStrangers:
		g.hit("connections of strangers that have shown no certificate", maxStrangers, c)
		evicted = g.victim(true)
	case g.pending >= MaxPending:
		g.hit("connections that have shown no certificate", MaxPending, c)
		evicted = g.victim(false)
	}
	if evicted == nil && g.pending >= MaxPending {
		return nil, false
	}
	if evicted != nil {
		g.remove(evicted)
	}
	s := g.sources[c.source]
	if s == nil {
		s = &pendings{known: known}
		g.sources[c.source] = s
	}
	c.place = len(s.conns)
	s.conns = append(s.conns, c)
	g.pending++
	if !s.known {
		g.strange++
	}
	return evicted, true
}

// victim is any connection of the source that has most of them. The caller holds mu.
func (g *gate) victim(strangers bool) *pendingConn {
	var most *pendings
	for _, s := range g.sources {
		if (!strangers || !s.known) && (most == nil || len(s.conns) > len(most.conns)) {
			most = s
		}
	}
	if most == nil {
		return nil
	}
	return most.conns[rand.IntN(len(most.conns))]
}

// remove takes a connection out of those that may have to make room, and if it has not proven a member's key, gives its place
// back. The caller holds mu.
func (g *gate) remove(c *pendingConn) {
	if c.place < 0 {
		return
	}
	s := g.sources[c.source]
	last := s.conns[len(s.conns)-1]
	s.conns[c.place], last.place = last, c.place
	s.conns = s.conns[:len(s.conns)-1]
	c.place = -1
	g.pending--
	if !s.known {
		g.strange--
	}
	if len(s.conns) == 0 {
		delete(g.sources, c.source)
	}
}

// prove keeps the place of a connection whose other side has proven the key of a member.
func (g *gate) prove(c *pendingConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.place >= 0 {
		g.remove(c)
		g.pending++
		c.proven = true
	}
}

// leave gives a place back, once.
func (g *gate) leave(c *pendingConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(c)
	if c.proven {
		c.proven = false
		g.pending--
	}
}

// hit logs a limit, once in ten seconds each. The caller holds mu.
func (g *gate) hit(what string, limit int, c *pendingConn) {
	now := time.Now()
	if now.Sub(g.limitLog[what]) < 10*time.Second {
		return
	}
	g.limitLog[what] = now
	g.m.log.Warn("limit hit: "+what, "limit", limit, "addr", c.addr.String(),
		"means", "somebody floods this node with connections, or more members than it is made for start at once: some are closed, and members try again")
}

// bucket lets so many through in a second, and a burst.
type bucket struct {
	mu     sync.Mutex // guards what follows
	rate   float64
	burst  float64
	tokens float64
	at     time.Time
}

func newBucket(rate, burst float64) bucket { return bucket{rate: rate, burst: burst, tokens: burst} }

func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.at.IsZero() {
		b.tokens = min(b.burst, b.tokens+b.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// wait waits for a turn, at most until ctx ends.
func (b *bucket) wait(ctx context.Context) error {
	for !b.take(time.Now()) {
		select {
		case <-time.After(time.Duration(float64(time.Second) / b.rate * (1 + 20*rand.Float64()))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// gatedUpgrader puts the gate where connections are accepted, before anything is read from them, and counts the handshakes of those
// that are dialled.
type gatedUpgrader struct {
	transport.Upgrader
	gate *gate
}

func (u gatedUpgrader) GateMaListener(l manet.Listener) transport.GatedMaListener {
	return u.Upgrader.GateMaListener(&gateListener{l, u.gate})
}

func (u gatedUpgrader) Upgrade(ctx context.Context, t transport.Transport, c manet.Conn, dir network.Direction, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	defer u.gate.m.shaking.begin(p)()
	return u.Upgrader.Upgrade(ctx, t, c, dir, p, scope)
}

type gateListener struct {
	manet.Listener
	gate *gate
}

func (l *gateListener) Accept() (manet.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				l.gate.outOfFiles(err) // libp2p waits a little, and tries again
			}
			return nil, err
		}
		p := &pendingConn{Conn: c, gate: l.gate, addr: addrOf(c.RemoteAddr()), place: -1}
		evicted, ok := l.gate.enter(p)
		if evicted != nil {
			evicted.reached.Store(true) // why it ends is logged
			drop(evicted.Conn)
		}
		if ok {
			return p, nil
		}
		drop(c)
	}
}

// drop ends a connection of a stranger's, without TIME-WAIT for each of a flood.
func drop(c manet.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// outOfFiles says that connections wait because this process may open no more files.
func (g *gate) outOfFiles(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.limitLog["files"]) > 10*time.Second {
		g.limitLog["files"] = now
		g.m.log.Warn("limit hit: open files", "err", err, "means", "new connections wait, and jobs may fail: raise the limit (ulimit -n, LimitNOFILE) and start the node again")
	}
}

var (
	errTurn        = errors.New("more handshakes than this node does: its turn did not come in time")
	errTooMuch     = errors.New("more bytes than an admission has")
	errNoneOfUs    = errors.New("it does not speak the admission protocol, or said nothing")
	errJoinRelayed = errors.New("it is no member yet, and came through a relay")
	errProbe       = errors.New("closed after a probe")
	errJoined      = errors.New("closed after a join")
	errRenewed     = errors.New("this node's certificate had ended and was renewed")
)

// pendingConn is an accepted connection: bounded in bytes until it is admitted.
type pendingConn struct {
	manet.Conn
	gate     *gate
	addr     netip.Addr
	source   netip.Prefix
	place    int  // in its source's conns; -1: none. Guarded by the gate's mutex, as is
	proven   bool // it has a place for good
	read     atomic.Int64
	more     atomic.Int64 // bytes that may be read beyond maxPreAdmission: a member has revocations to tell
	askedMu  sync.Mutex   // guards asked
	asked    asked        // until reached
	reached  atomic.Bool  // the security protocol has begun: it logs what goes wrong from there
	admitted atomic.Bool
}

func (c *pendingConn) Read(b []byte) (int, error) {
	if c.admitted.Load() {
		return c.Conn.Read(b)
	}
	left := maxPreAdmission + c.more.Load() - c.read.Load()
	if left <= 0 {
		return 0, errTooMuch
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), left)])
	c.read.Add(int64(n))
	if !c.reached.Load() {
		c.askedMu.Lock()
		c.asked.add(b[:n])
		c.askedMu.Unlock()
	}
	return n, err
}

// admit ends the bounds: the peer is a member.
func (c *pendingConn) admit() {
	c.admitted.Store(true)
	c.gate.leave(c)
	c.gate.sawMember(c.addr)
}

func (c *pendingConn) Close() error {
	c.gate.leave(c)
	if !c.reached.Swap(true) {
		c.gate.refuse(c)
	}
	return c.Conn.Close()
}

// refuse logs a connection that did not get as far as the security protocol.
func (g *gate) refuse(c *pendingConn) {
	c.askedMu.Lock()
	other := c.asked.incompatible(g.m.speak)
	c.askedMu.Unlock()
	if other == nil {
		g.m.logRefused("", c.RemoteMultiaddr(), errNoneOfUs)
		return
	}
	g.visitors.add(Visitor{c.addr, time.Now(), other})
	g.m.logRefused("", c.RemoteMultiaddr(), other)
}

// libp2p's TCP transport looks for these methods. It would set the linger time to 0, which resets connections and
// can swallow the reason that a refused peer is owed; so that one is not passed on.

func (c *pendingConn) SetLinger(int) error { return nil }

func (c *pendingConn) SetKeepAlive(on bool) error {
	if t, ok := c.Conn.(interface{ SetKeepAlive(bool) error }); ok {
		return t.SetKeepAlive(on)
	}
	return nil
}

func (c *pendingConn) SetKeepAlivePeriod(d time.Duration) error {
	if t, ok := c.Conn.(interface {
		SetKeepAlivePeriod(time.Duration) error
	}); ok {
		return t.SetKeepAlivePeriod(d)
	}
	return nil
}
