package members

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Limits of connections that have not shown a certificate yet.
const (
	// admissionTimeout is from the accepted TCP connection to the end of the exchange: three round trips at
	// 300 ms and a slow laptop's signatures fit three times.
	admissionTimeout = 3 * time.Second
	// maxPending connections at once. A handshake among members takes about a millisecond of CPU.
	maxPending = 64
	// maxStrangers of these may come from addresses where no member was seen: the rest is the members' share.
	maxStrangers = 48
	// maxPerNet pending connections from one IPv4 /24 or IPv6 /64 where no member was seen.
	maxPerNet = 8
	// maxPerMemberAddress pending connections from one address where a member was seen: several nodes behind
	// one router, or on one machine.
	maxPerMemberAddress = 16
	// maxPreAdmission bytes are read of a connection before its exchange has ended: a TLS handshake is about
	// 1.5 KiB, an Admission at most 4.
	maxPreAdmission = 8 << 10
	// maxMemberAddresses that are remembered.
	maxSeenAddresses = 4096
)

// gate bounds the connections that are not admitted yet. It may be used concurrently.
type gate struct {
	m        *Membership
	visitors visitors

	mu        sync.Mutex // guards what follows
	pending   int
	strangers int
	perNet    map[netip.Prefix]int
	perAddr   map[netip.Addr]int
	seen      map[netip.Addr]bool // a member was admitted from there
}

func newGate(m *Membership) *gate {
	return &gate{m: m, perNet: map[netip.Prefix]int{}, perAddr: map[netip.Addr]int{}, seen: map[netip.Addr]bool{}}
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

// enter takes a place among the pending; leave gives it back.
func (g *gate) enter(a netip.Addr) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	net, known := source(a), g.seen[a]
	if g.pending >= maxPending {
		return nil, false
	}
	if known {
		if g.perAddr[a] >= maxPerMemberAddress {
			return nil, false
		}
		g.perAddr[a]++
	} else {
		if g.strangers >= maxStrangers || g.perNet[net] >= maxPerNet {
			return nil, false
		}
		g.strangers++
		g.perNet[net]++
	}
	g.pending++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.pending--
		if known {
			if g.perAddr[a]--; g.perAddr[a] == 0 {
				delete(g.perAddr, a)
			}
			return
		}
		g.strangers--
		if g.perNet[net]--; g.perNet[net] == 0 {
			delete(g.perNet, net)
		}
	}), true
}

// gatedUpgrader puts the gate where connections are accepted, before anything is read from them.
type gatedUpgrader struct {
	transport.Upgrader
	gate *gate
}

func (u gatedUpgrader) GateMaListener(l manet.Listener) transport.GatedMaListener {
	return u.Upgrader.GateMaListener(&gateListener{l, u.gate})
}

type gateListener struct {
	manet.Listener
	gate *gate
}

func (l *gateListener) Accept() (manet.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := addrOf(c.RemoteAddr())
		leave, ok := l.gate.enter(addr)
		if ok {
			return &pendingConn{Conn: c, gate: l.gate, addr: addr, leave: leave}, nil
		}
		l.gate.m.logRefused("", c.RemoteMultiaddr(), errCrowded)
		if t, ok := c.(interface{ SetLinger(int) error }); ok {
			t.SetLinger(0) // no TIME-WAIT for each of a flood
		}
		c.Close()
	}
}

var (
	errCrowded  = errors.New("too many connections at once that have shown no certificate")
	errTooMuch  = errors.New("more bytes than an admission has")
	errNoneOfUs = errors.New("it does not speak the admission protocol, or said nothing")
	errProbe    = errors.New("closed after a probe")
	errJoined   = errors.New("closed after a join")
	errRenewed  = errors.New("this node's certificate had ended and was renewed")
)

// pendingConn is an accepted connection: bounded in bytes until it is admitted.
type pendingConn struct {
	manet.Conn
	gate     *gate
	addr     netip.Addr
	leave    func()
	read     atomic.Int64
	askedMu  sync.Mutex  // guards asked
	asked    asked       // until reached
	reached  atomic.Bool // the security protocol has begun: it logs what goes wrong from there
	admitted atomic.Bool
}

func (c *pendingConn) Read(b []byte) (int, error) {
	if c.admitted.Load() {
		return c.Conn.Read(b)
	}
	left := maxPreAdmission - c.read.Load()
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
	c.leave()
	c.gate.sawMember(c.addr)
}

func (c *pendingConn) Close() error {
	c.leave()
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
