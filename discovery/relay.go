package discovery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// Members that no direct connection leads to are met through a relay: a third member that both can reach. A node that others reach from
// outside, and whose certificate lets it, relays; each node keeps reservations at up to two such members, which is what lets a
// relay pass on a connection to it. Both sides of a relayed connection then try for a direct one, now and later.

const (
	// wantRelays reservations are kept: when one relay dies, the circuits through the other are there.
	wantRelays = 2
	// mostRelays is how many circuits to one peer are believed and tried.
	mostRelays = 3
	// reserveTimeout: a member that is connected answers within a round trip.
	reserveTimeout = 5 * time.Second
	// reserveRetry after a relay that refused or did not answer.
	reserveRetry = 30 * time.Second
	// reservationTime that a relay keeps a reservation, which is renewed at half of it: a relay that stopped for a while and whose word of it was lost has
	// none. 300 members at two relays are one renewal a second.
	reservationTime = 10 * time.Minute

	// relayBuffer bytes are copied at once, of which each circuit has two. Between two processes with a third as their relay, on two processors:
	// see docs/decisions.md, "How much does a relay carry?".
	relayBuffer = 16 << 10
	// relayMemory bounds the circuits of a relay by their buffers: 1024 of them, a full mesh of 45 nodes none of which can reach another. What a slow
	// receiver leaves waiting is in the windows of two streams, which count as memory of their peers: at least half of allMemory for so many.
	relayMemory = 1024 * 2 * relayBuffer

	// provenFor is how long a connection from outside shows that others can come in, after the last of them has ended.
	provenFor = 15 * time.Minute

	// punchTimeout bounds each of the three dials of a hole punch. Five round trips are in one, and the longest are 0.3 s.
	punchTimeout = 2 * time.Second
	// punchDelay is left to both sides to end the dials that led to the relayed connection, and to be told each other's addresses.
	punchDelay = 100 * time.Millisecond
	// upgradeFirst and upgradeMost bound the pause before a direct connection is tried again. Routers remember a connection between the same ports that was reset for 10 s, and spoil that try.
	upgradeFirst, upgradeMost = 15 * time.Second, 30 * time.Minute
	// moveTime is how long a relayed connection may go on carrying streams beside a direct one. Blobs that are under way may end; after that
	// they go on where they were, over the other.
	moveTime = 30 * time.Second
	// arrangeEvery is for what no event tells of.
	arrangeEvery = 5 * time.Second
)

func init() {
	// libp2p's are a minute: a member that is connected answers within a round trip, and a person waits.
	client.ReserveTimeout, client.DialTimeout = reserveTimeout, dialTimeout
}

// ways is what Discovery knows of relays. It belongs to Run's goroutine.
type ways struct {
	service   *relay.Relay
	relays    []peer.ID // that are connected
	held      map[peer.ID]*reservation
	proven    map[netip.Addr]time.Time // addresses of this machine at which connections from outside came in
	upgrades  map[peer.ID]*upgrade
	published []peer.ID
	moved     event.Emitter // tells libp2p that published has changed
	changed   bool          // arrange has something to do
}

func newWays() ways {
	return ways{changed: true, held: map[peer.ID]*reservation{}, proven: map[netip.Addr]time.Time{}, upgrades: map[peer.ID]*upgrade{}}
}

// close ends what Run began.
func (w *ways) close() {
	if w.service != nil {
		w.service.Close()
	}
	w.moved.Close()
}

type reservation struct {
	until time.Time // zero: it is being asked for
	next  time.Time // when to ask again
}

// Relayed reports whether a connection goes through a relay, and which.
func Relayed(c network.Conn) (peer.ID, bool) { return members.Circuit(c.RemoteMultiaddr()) }

// paths are the open connections of p: those that lead to it directly, and the others.
func (d *Discovery) paths(p peer.ID) (straight, others []network.Conn) {
	for _, c := range d.host.Network().ConnsToPeer(p) {
		if c.IsClosed() {
			continue
		}
		if _, is := Relayed(c); is {
			others = append(others, c)
		} else {
			straight = append(straight, c)
		}
	}
	return straight, others
}

// Path is how p is connected: directly, or through a relay. Both are false if it is not. It may be called by any goroutine.
func (d *Discovery) Path(p peer.ID) (direct bool, relay peer.ID) {
	straight, others := d.paths(p)
	if len(straight) > 0 {
		return true, ""
	}
	if len(others) > 0 {
		relay, _ = Relayed(others[0])
	}
	return false, relay
}

// findRelays are the members that are connected directly and relay, in this node's order of choice: another node has another one, so that
// they share the work.
func (d *Discovery) findRelays() []peer.ID {
	var out []peer.ID
	for p, k := range d.peers {
		if !k.up || !slices.Contains(k.cert.Capabilities, protocol.Capability_RELAY) {
			continue
		}
		has, err := d.host.Peerstore().SupportsProtocols(p, proto.ProtoIDv2Hop)
		relays := err == nil && len(has) > 0
		if d.book.relays(p, relays) {
			d.save()
		}
		if !relays {
			continue
		}
		if straight, _ := d.paths(p); len(straight) > 0 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b peer.ID) int { return cmp.Compare(rendezvous(a, d.host.ID()), rendezvous(b, d.host.ID())) })
	return out
}

// arrange does what follows from the connections that there are now: serves as a relay or not, keeps reservations, plans direct connections,
// and closes relayed ones that are not needed any more.
func (d *Discovery) arrange() {
	h, ok := d.host.(*meshHost)
	if !ok || h.punch == nil {
		return
	}
	d.ways.changed = false
	old := d.ways.relays
	d.ways.relays = d.findRelays()
	d.meetAt()
	d.serve(h)
	d.reserve(h)
	d.straighten(h)
	for _, r := range d.ways.relays {
		if !slices.Contains(old, r) {
			d.through(r)
		}
	}
}

// meetAt says which members others can reach: they relay, or did; or a person says so, or they gave this node its certificate.
func (d *Discovery) meetAt() {
	var addrs []ma.Multiaddr
	for p, k := range d.peers {
		e := d.book.peers[p]
		for _, a := range k.addrs {
			if a.rank == person || e != nil && e.Relays {
				addrs = append(addrs, a.addr)
			}
		}
	}
	if i := d.members.Inviter(); len(i.Addrs) > 0 {
		addrs = append(addrs, i.Addrs[0]) // the one that answered
	}
	d.members.MeetAt(addrs)
}

// serve starts and stops relaying for others.
func (d *Discovery) serve(h *meshHost) {
	may := slices.Contains(d.members.Own().Capabilities, protocol.Capability_RELAY) && d.reachable(h)
	if may == (d.ways.service != nil) {
		return
	}
	if !may {
		d.ways.service.Close()
		d.ways.service = nil
		d.log.Info("this node does not relay any more: nothing shows that others reach it from outside")
		return
	}
	var err error
	d.ways.service, err = relay.New(h,
		relay.WithACL(&admitted{d.members, d.log, d.seldom}),
		relay.WithResources(relay.Resources{
			// Without a limit of bytes or time: a circuit is a member's connection like another, and may carry blobs of 1 GiB.
			Limit:                 nil,
			ReservationTTL:        reservationTime,
			MaxReservations:       MaxMembers,
			MaxReservationsPerIP:  MaxMembers, // all of them may be behind one router
			MaxReservationsPerASN: MaxMembers,
			MaxCircuits:           MaxMembers, // of one member: one to each other
			BufferSize:            relayBuffer,
		}))
	if err != nil {
		d.ways.service = nil
		d.log.Warn("this node cannot relay", "err", err)
		return
	}
	d.log.Info("this node relays for members that cannot reach each other", "circuits", relayMemory/2/relayBuffer)
}

// reachable says whether others reach this node from outside of its network: somebody says so who set it up, or somebody came in.
func (d *Discovery) reachable(h *meshHost) bool {
	if len(h.told.announce) > 0 {
		return true
	}
	now := time.Now()
	for _, c := range h.Network().Conns() {
		if at, ok := d.cameIn(h, c); ok {
			d.ways.proven[at] = now
		}
	}
	for at, last := range d.ways.proven {
		if now.Sub(last) > provenFor || !d.nets.has(at) {
			delete(d.ways.proven, at)
		}
	}
	return len(d.ways.proven) > 0
}

// cameIn says whether a connection was accepted from a public address outside of this node's network, and at which address of this machine. It proves
// that the way in is open, and costs nothing; libp2p's AutoNAT would have a member dial back with another key, which is no member's.
func (d *Discovery) cameIn(h *meshHost, c network.Conn) (netip.Addr, bool) {
	if c.Stat().Direction != network.DirInbound || c.IsClosed() {
		return netip.Addr{}, false
	}
	at, ok := ipOf(c.LocalMultiaddr())
	from, ok2 := ipOf(c.RemoteMultiaddr())
	if !ok || !ok2 || !members.Dialable(c.RemoteMultiaddr()) || !manet.IsPublicAddr(c.RemoteMultiaddr()) || near(at, from) {
		return netip.Addr{}, false
	}
	// A router that a hole was punched in lets in that one peer.
	if h.punched.lately(c.RemotePeer(), c.Stat().Opened) {
		return netip.Addr{}, false
	}
	return at, true
}

// near says whether two addresses are in one network, for what may be between them: within it, a firewall does not count.
func near(a, b netip.Addr) bool {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	return err == nil && p.Contains(b)
}

func ipOf(a ma.Multiaddr) (netip.Addr, bool) {
	if !members.Dialable(a) {
		return netip.Addr{}, false
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	out, ok := netip.AddrFromSlice(ip)
	return out.Unmap(), ok
}

// admitted lets members use a relay. A connection is a member's already; its certificate may have ended, or been revoked, since.
type admitted struct {
	members *members.Membership
	log     *slog.Logger
	seldom  *members.OnceIn
}

// AllowReserve implements relay.ACLFilter.
func (a *admitted) AllowReserve(p peer.ID, _ ma.Multiaddr) bool { return a.allow("reservation", p, p) }

// AllowConnect implements relay.ACLFilter.
func (a *admitted) AllowConnect(src peer.ID, _ ma.Multiaddr, dest peer.ID) bool {
	return a.allow("circuit", src, dest)
}

func (a *admitted) allow(what string, p, to peer.ID) bool {
	_, ok := a.members.Certificate(p)
	_, ok2 := a.members.Certificate(to)
	if (!ok || !ok2) && a.seldom.OK(what+string(p)) {
		a.log.Warn("relay refused: not for members alone", "what", what, "peer", p.String(), "to", to.String(), "protocol", proto.ProtoIDv2Hop)
	}
	return ok && ok2
}

// reserve keeps reservations at relays, and tells others of them. A node that is reachable keeps them, too: what it takes for outside may be
// the other side of its own firewall.
func (d *Discovery) reserve(h *meshHost) {
	relays := d.ways.relays
	for p := range d.ways.held {
		if !slices.Contains(relays, p) {
			delete(d.ways.held, p)
		}
	}
	now := time.Now()
	good := 0
	for _, r := range d.ways.held {
		if r.until.After(now) {
			good++
		}
	}
	for _, p := range relays {
		r := d.ways.held[p]
		switch {
		case r == nil && good < wantRelays:
			good++
			d.askRelay(p)
		case r != nil && !r.next.IsZero() && now.After(r.next) && (r.until.After(now) || good < wantRelays):
			d.askRelay(p)
		}
	}
	d.publish(h)
}

// askRelay asks a relay for a reservation, or to renew it.
func (d *Discovery) askRelay(p peer.ID) {
	r := d.ways.held[p]
	if r == nil {
		r = &reservation{}
		d.ways.held[p] = r
	}
	r.next = time.Time{}
	d.spawn(func() {
		ctx, cancel := context.WithTimeout(network.WithNoDial(d.ctx, "reservation at a connected member"), reserveTimeout)
		defer cancel()
		err := reserveAt(ctx, d.host, p)
		d.do(d.ctx, func() {
			if d.ways.held[p] != r {
				return
			}
			now := time.Now()
			if err != nil {
				d.log.Debug("no reservation at a relay", "relay", p.String(), "err", err)
				r.next = now.Add(reserveRetry)
				d.ways.changed = true
				return
			}
			fresh := !r.until.After(now)
			r.until, r.next = now.Add(reservationTime), now.Add(reservationTime/2)
			d.ways.changed = true
			if fresh {
				d.log.Info("reachable through a relay", "relay", p.String(), "name", d.nameOf(p))
				d.through(p)
			}
		})
	})
}

// reserveAt makes a reservation at a relay.
func reserveAt(ctx context.Context, h host.Host, relay peer.ID) error {
	_, err := client.Reserve(ctx, h, peer.AddrInfo{ID: relay})
	var refused client.ReservationError
	if errors.As(err, &refused) && refused.Status == pb.Status_MALFORMED_MESSAGE && strings.Contains(refused.Reason, "expiration date in the past") {
		return nil // by the relay's clock, or by ours: times are told here in durations
	}
	return err
}

func (d *Discovery) nameOf(p peer.ID) string {
	if k := d.peers[p]; k != nil {
		return k.cert.Name
	}
	return ""
}

// publish tells the other members through which relays this node can be met, when that has changed.
func (d *Discovery) publish(h *meshHost) {
	now := time.Now()
	var relays []peer.ID
	for p, r := range d.ways.held {
		if r.until.After(now) {
			relays = append(relays, p)
		}
	}
	slices.Sort(relays)
	if slices.Equal(relays, d.ways.published) {
		return
	}
	d.ways.published = relays
	h.told.relays.Store(&relays)
	// libp2p looks at its addresses every five seconds, and when this event comes.
	var circuits []ma.Multiaddr
	for _, r := range relays {
		circuits = append(circuits, members.CircuitThrough(r))
	}
	if err := d.ways.moved.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: circuits}); err != nil {
		d.log.Debug("tell of the relays", "err", err)
	}
}

// circuits are the ways to p through the relays that are connected now: those first that it has told of, but others, too. Whether p can be met
// there the relay says at once.
func (d *Discovery) circuits(p peer.ID, k *known) []ma.Multiaddr {
	var out []ma.Multiaddr
	add := func(r peer.ID) {
		if a := members.CircuitThrough(r); r != p && len(out) < mostRelays && !slices.ContainsFunc(out, a.Equal) {
			out = append(out, a)
		}
	}
	for _, h := range k.addrs {
		if r, ok := members.Circuit(h.addr); ok && slices.Contains(d.ways.relays, r) {
			add(r)
		}
	}
	for _, r := range d.ways.relays {
		add(r)
	}
	return out
}

// through dials everybody who is not connected through a relay that was just met, and again once this node has a reservation there: of two nodes
// that do so, the later one finds the other's.
func (d *Discovery) through(via peer.ID) {
	for _, p := range d.order() {
		k := d.peers[p]
		if k.up || p == via {
			continue
		}
		// Beside a dial to addresses that do not answer, too.
		k.backoff.reset()
		if k.dialing <= 1 {
			k.next = time.Now()
		}
	}
}
