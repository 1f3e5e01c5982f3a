package members

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/fx"

	"meshnode/discovery/paced"
	"meshnode/protocol"
)

// ConnectTimeout is how long a dial waits for the other side's kernel: two of the packets that ask for a connection fit, the first and
// the one after a second. A third would come after three and the fourth after seven; whoever lost sight of its network for a while
// asks sooner by dialling anew.
const ConnectTimeout = 2500 * time.Millisecond

// TransportOptions makes a libp2p host that only members of m's mesh can connect to, and that connects to nobody
// else. It sets the transports (TCP alone), the security protocol (TLS 1.3, then the exchange of certificates) and the
// muxer (yamux, with libp2p's window of 16 MiB); give no other of these to libp2p.New, and m.Key() as its identity.
//
// QUIC, WebSocket, WebTransport and WebRTC are left out: the last two do not pass the security protocol at all, so a
// stranger would come in through them.
//
// When m changes its mesh, connections that are open stay; the caller closes them.
func TransportOptions(m *Membership) libp2p.Option {
	var security []libp2p.Option
	for _, id := range m.speak.IDs(protocol.NameAdmission) { // the dialing side prefers the first, and both then know the version
		security = append(security, libp2p.Security(id, func(id libp2pproto.ID, key crypto.PrivKey, muxers []tptu.StreamMuxer) (*secured, error) {
			t, err := libp2ptls.New(id, key, muxers)
			return &secured{Transport: t, m: m}, err
		}))
	}
	return libp2p.ChainOptions(
		libp2p.ChainOptions(security...),
		libp2p.Transport(func(u transport.Upgrader, r network.ResourceManager) (*tcpTransport, error) {
			return newTCP(gatedUpgrader{u, m.gate}, r, m.ports)
		}),
		libp2p.Muxer(yamux.ID, countedMuxer{paced.Transport{}}),
		// libp2p.New has no option for the upgrader's; its constructor takes them from here. The default holds a
		// silent connection for 15 s.
		libp2p.WithFxOption(fx.Provide(func() []tptu.Option {
			return []tptu.Option{tptu.WithAcceptTimeout(admissionTimeout)}
		})),
	)
}

// secured is TLS as libp2p has it, and then the exchange of certificates.
type secured struct {
	*libp2ptls.Transport
	m *Membership
}

// SecureInbound implements sec.SecureTransport.
func (s *secured) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	pending, _ := insecure.(*pendingConn)
	if pending != nil {
		pending.reached.Store(true)
	}
	refuse := func(p peer.ID, err error) error {
		if !errors.Is(err, errProbe) && !errors.Is(err, errJoined) {
			s.m.logRefused(p, remoteOf(insecure), err)
		}
		return err
	}
	if pending != nil {
		if err := s.m.gate.handshakes.wait(ctx); err != nil {
			return nil, refuse(p, errTurn)
		}
	}
	c, err := s.Transport.SecureInbound(ctx, insecure, p)
	if err != nil {
		return nil, refuse(p, err)
	}
	if pending != nil && s.m.knows(c.RemotePeer()) {
		s.m.gate.prove(pending)
	}
	limitTime(ctx, c)
	grow := func(n int64) {
		if pending != nil {
			pending.more.Store(n)
		}
	}
	if _, err := s.m.admitIn(c, throughRelay(remoteOf(insecure)), grow); err != nil {
		err = refuse(c.RemotePeer(), err)
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	if pending != nil {
		pending.admit()
	}
	return c, nil
}

// SecureOutbound implements sec.SecureTransport.
func (s *secured) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	c, err := s.Transport.SecureOutbound(ctx, insecure, p)
	if err != nil {
		return nil, err
	}
	limitTime(ctx, c)
	if _, err := s.m.admitOut(c, false); err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// Shaking reports whether a dial to p has come as far as its handshake: somebody is there, and it goes on. It may be called concurrently.
func (m *Membership) Shaking(p peer.ID) bool { return m.shaking.has(p) }

// ongoing counts what goes on, by peer. The zero value counts nothing; it may be used concurrently.
type ongoing struct {
	mu sync.Mutex // guards n
	n  map[peer.ID]int
}

// begin counts one until end is called.
func (o *ongoing) begin(p peer.ID) (end func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n == nil {
		o.n = map[peer.ID]int{}
	}
	o.n[p]++
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.n[p]--; o.n[p] == 0 {
			delete(o.n, p)
		}
	}
}

func (o *ongoing) has(p peer.ID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.n[p] > 0
}

// throughRelay reports whether a connection from there came through a relay, wherever that is: one in the same link has an address that
// nobody could dial by it.
func throughRelay(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}

// remoteOf is where a connection comes from: an address, or a relay's and /p2p-circuit.
func remoteOf(c net.Conn) ma.Multiaddr {
	if m, ok := c.(manet.Conn); ok {
		return m.RemoteMultiaddr()
	}
	a, _ := manet.FromNetAddr(c.RemoteAddr())
	return a
}
