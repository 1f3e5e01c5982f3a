package node

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/proto"

	"meshnode/discovery"
	"meshnode/protocol"
)

// Members ask each other how they reach each other: an echo measures the round trip, and a member is asked to connect to this one.

const (
	// checkTime bounds an echo, from the opening of its stream on.
	checkTime = 5 * time.Second
	// checkIdle is how long a stream may wait for its next request: a person who pings looks once in a second.
	checkIdle = 30 * time.Second
	// checkStreams are served at once; a member has one or two.
	checkStreams = 32
	// checkDials of ports are under way at once, for all members together: each costs a handshake.
	checkDials = 4
	// checkDialTime bounds each: what does not answer by then is dropped on the way.
	checkDialTime = 3 * time.Second
	// checkAgain is how soon a member may have its ports tried again.
	checkAgain = time.Second
)

// checks bounds what others have this node do. The zero value works.
type checks struct {
	mu     sync.Mutex // guards what follows
	served int
	dials  int
	dialed map[peer.ID]time.Time // when a member last had its ports tried
}

// take takes up to want dials for p.
func (c *checks) take(p peer.ID, want int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for q, at := range c.dialed {
		if now.Sub(at) > checkAgain {
			delete(c.dialed, q)
		}
	}
	if _, lately := c.dialed[p]; lately {
		return 0
	}
	n := min(want, checkDials-c.dials)
	if n > 0 {
		if c.dialed == nil {
			c.dialed = map[peer.ID]time.Time{}
		}
		c.dialed[p] = now
		c.dials += n
	}
	return max(0, n)
}

func (c *checks) give(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dials -= n
}

// enter takes a place for a stream.
func (c *checks) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.served >= checkStreams {
		return false
	}
	c.served++
	return true
}

func (c *checks) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served--
}

// checkProtocols are the IDs of the streams of checks; there are none in version 1.
func (n *Node) checkProtocols() []libp2pproto.ID {
	return n.fromVersion2(protocol.NameCheck)
}

func (n *Node) serveChecks() {
	for _, id := range n.checkProtocols() {
		n.host.SetStreamHandler(id, func(s network.Stream) {
			if !n.checks.enter() {
				n.log.Warn("limit hit: streams of checks", "limit", checkStreams, "peer", s.Conn().RemotePeer())
				s.Reset()
				return
			}
			defer n.checks.leave()
			if err := n.serveCheck(s); errors.Is(err, protocol.ErrProtocol) {
				s.Reset()
				n.misbehaved(s, err)
				return
			}
			s.Close()
		})
	}
}

func (n *Node) serveCheck(s network.Stream) error {
	r := bufio.NewReaderSize(s, protocol.MaxCheck)
	for n.ctx.Err() == nil {
		s.SetReadDeadline(time.Now().Add(checkIdle))
		req := &protocol.CheckRequest{}
		if err := readCheck(r, req); err != nil {
			return err
		}
		if len(req.Echo) > protocol.MaxCheckEcho || len(req.Ports) > protocol.MaxCheckPorts {
			return fmt.Errorf("%w: %d bytes of echo, %d ports", protocol.ErrProtocol, len(req.Echo), len(req.Ports))
		}
		ans := &protocol.CheckAnswer{Echo: req.Echo, UnixMs: n.wall().UnixMilli()}
		at := seenAt(s.Conn())
		if at.IsValid() {
			ans.SeenAt = at.WithZone("").String()
			ans.SeenPort = uint32(portOf(s.Conn().RemoteMultiaddr()))
		}
		if len(req.Ports) > 0 {
			ans.Ports = n.tryPorts(s.Conn().RemotePeer(), at, req.Ports)
		}
		s.SetWriteDeadline(time.Now().Add(checkTime))
		if err := writeCheck(s, ans); err != nil {
			return err
		}
	}
	return nil
}

// portOf is the TCP port of an address; 0: none.
func portOf(a ma.Multiaddr) uint16 {
	s, _ := a.ValueForProtocol(ma.P_TCP)
	p, _ := strconv.ParseUint(s, 10, 16)
	return uint16(p)
}

// seenAt is where the other side of a connection is; invalid if it comes through a relay.
func seenAt(c network.Conn) netip.Addr {
	if _, through := discovery.Relayed(c); through {
		return netip.Addr{}
	}
	a, err := manet.ToNetAddr(c.RemoteMultiaddr())
	if err != nil {
		return netip.Addr{}
	}
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}

// tryPorts connects to ports of a member, at the address where it is seen and nowhere else.
func (n *Node) tryPorts(p peer.ID, at netip.Addr, ports []uint32) []*protocol.PortAnswer {
	out := make([]*protocol.PortAnswer, len(ports))
	may := 0
	if at.IsValid() {
		may = n.checks.take(p, len(ports))
		defer n.checks.give(may)
	}
	var wg sync.WaitGroup
	for i, port := range ports {
		out[i] = &protocol.PortAnswer{Port: port}
		if i >= may || port == 0 || port > 65535 {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(n.ctx, checkDialTime)
			defer cancel()
			began := time.Now()
			_, _, err := n.members.Probe(ctx, "tcp", net.JoinHostPort(at.String(), strconv.Itoa(int(port))), p)
			out[i].TookMs = uint32(time.Since(began).Milliseconds())
			code, _ := discovery.AnswerOf(err)
			switch code {
			case discovery.Answered:
				out[i].State = protocol.PortState_REACHED
			case discovery.NobodyThere:
				out[i].State = protocol.PortState_REFUSED
			case discovery.Silence:
				out[i].State = protocol.PortState_NO_ANSWER
			case discovery.NoWay:
				out[i].State = protocol.PortState_NO_ROUTE
			default:
				out[i].State = protocol.PortState_SOMEBODY
			}
		})
	}
	wg.Wait()
	return out
}

// readCheck reads one message, its limit checked first.
func readCheck(r *bufio.Reader, m proto.Message) error {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return err
	}
	if size > protocol.MaxCheck {
		return fmt.Errorf("%w: a check of %d bytes, at most %d", protocol.ErrProtocol, size, protocol.MaxCheck)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %v", protocol.ErrProtocol, err)
	}
	return nil
}

func writeCheck(w io.Writer, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
	return err
}

// checked is what a member answered.
type checked struct {
	roundTrip time.Duration
	ahead     time.Duration // the member's clock before this one's
	seenAt    netip.Addr    // where it sees this node; invalid: through a relay
	seenPort  uint16        // and at which port of the connection
	port      uint16        // which here is this one; 0: the member connected to this node
	ports     []*protocol.PortAnswer
}

// errNoChecks says that a member is of a version without checks.
var errNoChecks = errors.New("it is of an older version, which answers no such question")

// check asks a connected member, first for an echo and then to try ports, if there are any.
func (n *Node) check(ctx context.Context, p peer.ID, ports []uint32) (checked, error) {
	var out checked
	ctx, cancel := context.WithTimeout(network.WithNoDial(network.WithAllowLimitedConn(ctx, "check"), "check of a connection"), checkTime+checkDialTime)
	defer cancel()
	if ids := n.checkProtocols(); len(ids) > 0 {
		if has, err := n.host.Peerstore().SupportsProtocols(p, ids...); err == nil && len(has) == 0 {
			if all, err := n.host.Peerstore().GetProtocols(p); err == nil && len(all) > 0 {
				return out, errNoChecks
			}
		}
	} else {
		return out, errNoChecks
	}
	s, err := n.host.NewStream(ctx, p, n.checkProtocols()...)
	if err != nil {
		return out, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	r := bufio.NewReaderSize(s, protocol.MaxCheck)
	ask := func(req *protocol.CheckRequest) (*protocol.CheckAnswer, time.Duration, error) {
		req.Echo = make([]byte, 16)
		rand.Read(req.Echo)
		began := time.Now()
		if err := writeCheck(s, req); err != nil {
			return nil, 0, err
		}
		ans := &protocol.CheckAnswer{}
		if err := readCheck(r, ans); err != nil {
			return nil, 0, err
		}
		if !bytes.Equal(ans.Echo, req.Echo) {
			return nil, 0, fmt.Errorf("%w: another echo", protocol.ErrProtocol)
		}
		return ans, time.Since(began), nil
	}
	// The first pays for the stream's negotiation.
	if _, _, err := ask(&protocol.CheckRequest{}); err != nil {
		return out, err
	}
	ans, took, err := ask(&protocol.CheckRequest{})
	if err != nil {
		return out, err
	}
	out.roundTrip = took
	out.ahead = time.UnixMilli(ans.UnixMs).Sub(n.wall().Add(-took / 2))
	if a, err := netip.ParseAddr(ans.SeenAt); err == nil {
		out.seenAt, out.seenPort = a.Unmap(), uint16(ans.SeenPort)
		if s.Conn().Stat().Direction == network.DirOutbound {
			out.port = portOf(s.Conn().LocalMultiaddr())
		}
	}
	if len(ports) > 0 {
		if ans, _, err = ask(&protocol.CheckRequest{Ports: ports[:min(len(ports), protocol.MaxCheckPorts)]}); err != nil {
			return out, err
		}
		out.ports = ans.Ports[:min(len(ans.Ports), len(ports))]
	}
	return out, nil
}

// Ping is one look at a member (`peers ping`).
type Ping struct {
	ID        string             `json:"id"`
	Name      string             `json:"name"`
	Answered  bool               `json:"answered"`
	RTT       float64            `json:"rtt_ms"`
	Path      string             `json:"path,omitempty"` // direct, or relay; empty: not connected
	Addr      string             `json:"addr,omitempty"` // of the connection
	Reason    string             `json:"reason,omitempty"`
	Fix       string             `json:"fix,omitempty"`
	Addresses []discovery.Answer `json:"addresses"` // what each known address says, if it is not connected
}

// Ping implements clientAPI.
func (n *Node) Ping(ctx context.Context, id string) (Ping, error) {
	out := Ping{ID: id, Name: n.nameOf(protocol.NodeID(id)), Addresses: []discovery.Answer{}}
	p, err := decodePeer(id)
	if err != nil {
		return out, err
	}
	if p == n.host.ID() {
		return out, &Error{Code: CodeRefused, Message: "that is this node itself", Fix: "name another one; meshnode doctor looks at this one"}
	}
	known := n.finder.Known()
	at := slices.IndexFunc(known, func(s discovery.State) bool { return s.Peer == p })
	if at < 0 {
		return out, &Error{Code: CodeNoPeer, Message: "no member " + id, Fix: "meshnode peers lists them"}
	}
	st := known[at]
	out.Name = cmp.Or(out.Name, st.Name)
	if n.host.Network().Connectedness(p) != network.NotConnected {
		direct, _ := n.finder.Path(p)
		out.Path = "relay"
		if direct {
			out.Path = "direct"
		}
		for _, c := range n.host.Network().ConnsToPeer(p) {
			if _, through := discovery.Relayed(c); through != direct {
				out.Addr = c.RemoteMultiaddr().String()
			}
		}
		ch, err := n.check(ctx, p, nil)
		late := errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err)
		switch s := n.sessions.get(protocol.NodeID(id)); {
		case err == nil:
			out.Answered, out.RTT = true, milli(ch.roundTrip)
		case errors.Is(err, errNoChecks) && s != nil:
			out.Answered, out.RTT = true, milli(s.pings.roundTrip())
			out.Reason = err.Error() + ": this is the round trip of its beats"
		case late || n.host.Network().Connectedness(p) != network.NotConnected && s != nil:
			out.Reason = "it is connected, and does not answer: " + err.Error()
			out.Fix = "wake that machine; after 3 s without a sign of life its connection counts as lost"
		}
		if out.Answered || out.Reason != "" {
			return out, nil
		}
		// The connection ended meanwhile: what do its addresses say?
		out.Path, out.Addr, st.Reason = "", "", cmp.Or(st.Reason, "the connection was lost")
	}
	out.Reason = st.Reason
	out.Addresses = n.finder.Ask(ctx, p, st.Addrs)
	out.Fix = discovery.Advice(out.Addresses)
	if len(out.Addresses) == 0 {
		out.Reason = cmp.Or(out.Reason, "no address of it is known")
	}
	if i := slices.IndexFunc(out.Addresses, func(a discovery.Answer) bool { return a.Code == discovery.Answered }); i >= 0 {
		out.Answered, out.RTT = true, milli(out.Addresses[i].Took)
		out.Reason, out.Fix = "it was not connected, and answers now: the time is that of a whole handshake", ""
		ctx, cancel := context.WithTimeout(ctx, connectTime)
		defer cancel()
		n.finder.Reach(ctx, p) // so that it stays connected; if that fails, the redial loop goes on
	}
	return out, nil
}

func milli(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
