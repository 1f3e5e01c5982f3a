package members

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// tcpTransport is libp2p's, but for the port that connections are dialled from.
//
// A router translates addresses for each port of its own network apart. So only what is dialled from the port that this node
// listens on tells where it can be met from outside, and opens the way for one who dials that at the same moment (a hole
// punch). Two things speak against dialling everything from there: nodes that happen to dial each other at the same moment would meet in one
// TCP connection that both take for their own; and for a port to be shared by sockets, the listening one has to allow it, and
// then another program of the same user can listen there, too, without either noticing. Hence:
//
//   - Dialled from there is only a hole punch, for which the two have agreed on their roles; and, by a node at a private address, a member that
//     others can reach (MeetAt): what such a node has dialled from there is where it can be met, and no unplanned dial gets through to it. A dial to
//     one behind another router would be worse than useless: what it leaves in this one's tables spoils the punch that follows.
//   - The port is taken as any, and fails if another program has it. Sharing is allowed for the few microseconds in which a
//     socket that dials takes it, and only for that one's own address. So no two nodes share a port, and no other program does without asking for just that.
type tcpTransport struct {
	*tcp.TcpTransport
	up    transport.Upgrader
	ports *ports
}

func newTCP(up transport.Upgrader, r network.ResourceManager, p *ports) (*tcpTransport, error) {
	t, err := tcp.NewTCPTransport(up, r, nil, tcp.DisableReuseport(), tcp.WithConnectionTimeout(ConnectTimeout),
		tcp.WithDialerForAddr(func(ma.Multiaddr) (tcp.ContextDialer, error) { return p, nil }))
	return &tcpTransport{t, up, p}, err
}

// Listen implements transport.Transport.
func (t *tcpTransport) Listen(a ma.Multiaddr) (transport.Listener, error) {
	network, addr, err := manet.DialArgs(a)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		return nil, err
	}
	ml, err := manet.WrapNetListener(t.ports.add(l))
	if err != nil {
		l.Close()
		return nil, err
	}
	return t.up.UpgradeGatedMaListener(t, t.up.GateMaListener(ml)), nil
}

// ports are those that this node listens on. It may be used concurrently.
type ports struct {
	mu  sync.Mutex // guards what follows, and the time in which a port is shared
	all map[*portListener]bool
	met map[netip.AddrPort]bool // MeetAt's
}

// MeetAt says at which addresses there are members that others can reach, in place of what it said before. Others than public ones do not
// count.
func (m *Membership) MeetAt(addrs []ma.Multiaddr) {
	met := map[netip.AddrPort]bool{}
	for _, a := range addrs {
		if !Dialable(a) || !manet.IsPublicAddr(a) {
			continue
		}
		if n, err := manet.ToNetAddr(a); err == nil {
			if t, ok := n.(*net.TCPAddr); ok {
				met[netip.AddrPortFrom(t.AddrPort().Addr().Unmap(), uint16(t.Port))] = true
			}
		}
	}
	m.ports.mu.Lock()
	defer m.ports.mu.Unlock()
	m.ports.met = met
}

type portListener struct {
	net.Listener
	of   *ports
	addr netip.AddrPort
	raw  syscall.RawConn
}

func (p *ports) add(l net.Listener) net.Listener {
	tl, ok := l.(*net.TCPListener)
	if !ok {
		return l
	}
	raw, err := tl.SyscallConn()
	if err != nil {
		return l
	}
	pl := &portListener{Listener: l, of: p, addr: tl.Addr().(*net.TCPAddr).AddrPort(), raw: raw}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[pl] = true
	return pl
}

// Close implements net.Listener.
func (l *portListener) Close() error {
	l.of.mu.Lock()
	delete(l.of.all, l)
	l.of.mu.Unlock()
	return l.Listener.Close()
}

// DialContext implements tcp.ContextDialer.
func (p *ports) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var plain net.Dialer
	from, local := p.from(ctx, address)
	if from == nil {
		return plain.DialContext(ctx, network, address)
	}
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.all[from] {
			from.share(c, netip.AddrPortFrom(local, from.addr.Port())) // if it cannot be had, any port will do
		}
		return nil
	}}
	c, err := d.DialContext(ctx, network, address)
	if taken(err) {
		// There is a connection between the same two ports: one that nothing comes through any more, and nobody has noticed yet.
		return plain.DialContext(ctx, network, address)
	}
	return c, err
}

// from is the listener whose port a dial is to come from, and the address of this machine that it is to come from; or nil.
func (p *ports) from(ctx context.Context, address string) (*portListener, netip.Addr) {
	var none netip.Addr
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, none
	}
	punch, _, _ := network.GetSimultaneousConnect(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !punch && !p.met[netip.AddrPortFrom(to.Addr().Unmap(), to.Port())] {
		return nil, none
	}
	local := sourceOf(to)
	if !local.IsValid() || !punch && isPublic(local) {
		return nil, none
	}
	var any *portListener
	for l := range p.all {
		at := l.addr.Addr().Unmap()
		switch {
		case at.Is4() != local.Is4():
		case at == local:
			return l, local
		case at.IsUnspecified():
			any = l
		}
	}
	return any, local
}

// sourceOf is the address of this machine that the system's routes choose for a connection to a. Nothing is sent for it.
func sourceOf(a netip.AddrPort) netip.Addr {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
}

func isPublic(a netip.Addr) bool {
	m, err := manet.FromIP(a.Unmap().AsSlice())
	return err == nil && manet.IsPublicAddr(m)
}
