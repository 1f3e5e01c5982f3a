package discovery

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

const (
	// duplicateWindow: two connections of one peer, one from each side, that began within it come from both dialling at once,
	// and the older stays. Beyond it the newer stays: whoever dialled it had lost the older. A handshake over a slow link
	// takes a second.
	duplicateWindow = 2 * time.Second
	// upkeep is how often what ends is renewed.
	upkeep = 10 * time.Minute
)

// Config of New. Host and Members are required.
type Config struct {
	Host    host.Host // from NewHost; New's caller closes it after Run has returned
	Members *members.Membership
	Dir     string // where the address book is kept: the membership folder
	Given   []Given
	MDNS    bool // look on the local network, and be found there
	DHT     bool // look for members that moved by the mesh's private DHT, and serve it
	// Secret has members.Pair with those who are given and do not belong yet, and admits those who come with it; "": none.
	Secret string
	Brief  bool // the node ends with the program that started it
	Logger *slog.Logger
}

// Discovery keeps the host connected to the members of its mesh. Its state belongs to the goroutine of Run; what
// happens is handed to it as a function.
type Discovery struct {
	host    host.Host
	members *members.Membership
	log     *slog.Logger
	mdns    bool
	dht     bool
	seldom  *members.OnceIn // for lines of the log that peers cause
	secret  string
	brief   bool
	pairers chan struct{} // places for pairings that nobody waits for
	news    signal        // interfaces or mesh have changed, or the machine woke
	calls   chan func()
	again   chan struct{} // Rediscover
	view    atomic.Pointer[[]State]
	running sync.WaitGroup // goroutines that Run has started

	// Of Run's goroutine:
	ctx     context.Context
	mesh    members.MeshID
	serial  uint64 // of this node's own certificate, as the others know it
	peers   map[peer.ID]*known
	unmet   map[peer.ID]*unmet
	circle  string // of its own certificate
	givens  []Given
	given   map[string]givenState
	book    *book
	dialing int
	window  float64 // see maxWindow
	cut     time.Time
	inviter string // whose ticket's addresses were taken up
	nets    networks
	self    []ma.Multiaddr // own addresses on nets
	past    []ma.Multiaddr // and those before
	ends    *endpoints
	lan     *lan            // nil without mDNS
	joins   map[string]*lan // the same for codes and secrets, by what they say
	probing int
	probeAt time.Time // of the next probe, at the earliest
	saveAt  time.Time // of the book; zero: it has not changed
	saved   time.Time
	outbox  outbox
	ways    ways
}

// known is a member: its certificate is held.
type known struct {
	cert      *members.Cert
	addrs     hints
	up        bool // connected, as far as the events tell
	met       bool // and it has said what it speaks
	placed    bool // and where it is now: libp2p's word on that may be a minute old
	public    bool // the other members know of it, or have been told
	dialing   int  // dials that go on: a second one if a new address is heard of meanwhile
	stopDials []*context.CancelFunc
	round     int       // dials since it was connected
	hot       time.Time // until then it is dialled often
	sign      time.Time // a sign of its life had it dialled
	backoff   backoff
	next      time.Time // of the next dial; zero: none planned
	lastDial  time.Time
	followed  time.Time // the last pairing with it, by the secret
	lastSeen  time.Time
	name      string    // what it said last that it is called
	learnt    time.Time // that it is a member
	greeted   time.Time // since it is up
	reason    string
	code      Code                   // of reason; "" if it is no answer to a dial
	version   *protocol.Incompatible // why it is not connected
}

// New prepares a Discovery; Run runs it. It fails if the address book cannot be read.
func New(c Config) (*Discovery, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := openBook(c.Dir)
	if err != nil {
		c.Logger.Warn("the address book is unreadable and begun anew", "file", b.path, "err", err)
	}
	d := &Discovery{
		host: c.Host, members: c.Members, log: c.Logger, mdns: c.MDNS, dht: c.DHT, givens: c.Given,
		seldom: members.NewOnceIn(10 * time.Second),
		secret: c.Secret, brief: c.Brief, pairers: make(chan struct{}, maxPairers),
		calls: make(chan func(), 64), again: make(chan struct{}, 1), mesh: c.Members.Mesh(),
		peers: map[peer.ID]*known{}, unmet: map[peer.ID]*unmet{}, given: map[string]givenState{}, book: b,
		window: firstWindow, ends: newEndpoints(), outbox: newOutbox(), joins: map[string]*lan{}, ways: newWays(),
	}
	d.view.Store(new([]State))
	return d, nil
}

// Run finds and connects members until ctx ends; then all that it has started has ended. The connections stay open.
func (d *Discovery) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer d.running.Wait()
	defer cancel()
	d.ctx = ctx

	notify := &network.NotifyBundle{
		ConnectedF:    func(_ network.Network, c network.Conn) { d.do(ctx, func() { d.connChanged(c.RemotePeer()) }) },
		DisconnectedF: func(_ network.Network, c network.Conn) { d.do(ctx, func() { d.connChanged(c.RemotePeer()) }) },
	}
	d.host.Network().Notify(notify)
	defer d.host.Network().StopNotify(notify)
	var err error
	if d.ways.moved, err = d.host.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated)); err != nil {
		return err
	}
	defer d.ways.close()
	identified, err := d.host.EventBus().Subscribe([]any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerIdentificationFailed), new(event.EvtLocalAddressesUpdated)})
	if err != nil {
		return err
	}
	defer identified.Close()
	for _, id := range d.members.Speaks().IDs(protocol.NameMembers) {
		d.host.SetStreamHandler(libp2pproto.ID(id), d.hear)
		defer d.host.RemoveStreamHandler(libp2pproto.ID(id))
	}
	changes, stop := d.members.Subscribe()
	defer stop()

	// Before anything is learnt, what is on disk.
	for p := range d.book.peers {
		d.members.Expect(d.book.addrs(p))
	}
	d.mesh, d.circle, d.serial = d.members.Mesh(), d.members.Own().Circle, d.members.Own().Serial
	defer d.openToSecret(ctx)()
	d.sync()
	for _, k := range d.peers {
		k.public = true
	}
	for _, p := range d.host.Network().Peers() {
		d.connChanged(p)
	}
	d.nets = readNetworks()
	d.self = listens(d.host, d.nets.faces)
	d.spawn(func() { watchNetworks(ctx, func(n networks) { d.do(ctx, func() { d.networksChanged(n) }) }) })
	if d.mdns {
		d.spawn(func() { d.announce(ctx) })
		d.spawn(func() { d.lookout(ctx) })
	}
	if d.dht {
		d.spawn(func() { d.seekByDHT(ctx) })
	}
	for _, g := range d.givens {
		d.spawn(func() { d.seek(ctx, g) })
	}

	timer := time.NewTimer(0)
	defer timer.Stop()
	keep := time.NewTicker(upkeep)
	defer keep.Stop()
	arrange := time.NewTicker(arrangeEvery)
	defer arrange.Stop()
	d.upkeep()
	for {
		if d.ways.changed {
			d.arrange()
		}
		d.show()
		timer.Reset(min(d.dialDue(), d.probeDue(), d.saveDue(), d.newsDue()))
		select {
		case <-ctx.Done():
			for p, k := range d.peers {
				if k.up {
					d.book.seen(p, time.Now())
				}
			}
			d.saveBook()
			return nil
		case f := <-d.calls:
			f()
			for range len(d.calls) { // those that wait now: a flood of them is not to keep this from its other work
				(<-d.calls)()
			}
		case <-timer.C:
		case e := <-identified.Out():
			switch e := e.(type) {
			case event.EvtPeerIdentificationCompleted:
				d.identified(e)
			case event.EvtPeerIdentificationFailed:
				if k := d.peers[e.Peer]; k != nil && k.up && !k.met {
					k.met = true
					d.greet(e.Peer, k)
				}
			case event.EvtLocalAddressesUpdated:
				d.sayOwn()
			}
		case <-changes:
			d.meshChanged()
		case <-d.again:
			d.rediscover(true)
		case <-keep.C:
			d.upkeep()
		case <-arrange.C:
			d.ways.changed = true
		}
	}
}

// do hands f to Run's goroutine. It may be dropped once ctx has ended.
func (d *Discovery) do(ctx context.Context, f func()) {
	select {
	case d.calls <- f:
	case <-ctx.Done():
	}
}

// spawn starts a goroutine that Run waits for.
func (d *Discovery) spawn(f func()) { d.running.Go(f) }

func (d *Discovery) connected(p peer.ID) bool {
	return d.host.Network().Connectedness(p) == network.Connected
}

// sync takes up members whose certificates are held, and drops those whose are not.
func (d *Discovery) sync() {
	held := map[peer.ID]bool{}
	now := time.Now()
	for _, c := range d.members.Members() {
		held[c.Peer] = true
		if k := d.peers[c.Peer]; k != nil {
			k.cert = c
			continue
		}
		k := &known{cert: c, backoff: newBackoff(), learnt: now}
		d.peers[c.Peer] = k
		k.addrs.take(now, itself, "itself", d.book.addrs(c.Peer)...)
		if e := d.book.peers[c.Peer]; e != nil {
			k.lastSeen, k.name = e.LastSeen, e.Name
			if now.Sub(e.LastSeen) < seenLately {
				k.hot = now.Add(hot)
			}
		}
		d.plan(c.Peer, k, 0)
		if u := d.unmet[c.Peer]; u != nil {
			delete(d.unmet, c.Peer)
			d.hint(c.Peer, hearsay, fromLAN, u.addrs...)
		}
	}
	for p := range d.peers {
		if !held[p] {
			delete(d.peers, p)
		}
	}
	if i := d.members.Inviter(); i.ID != "" && i.String() != d.inviter {
		d.inviter = i.String()
		if len(i.Addrs) > 0 { // it was met at the first; its ticket has all
			d.hint(i.ID, itself, fromTicket, reachable(i.Addrs, i.Addrs[0])...)
		}
	}
}

func (d *Discovery) order() []peer.ID {
	ids := make([]peer.ID, 0, len(d.peers))
	for p := range d.peers {
		ids = append(ids, p)
	}
	slices.Sort(ids)
	return ids
}

// connChanged looks at a peer of which a connection came or went. One event says nothing: there may be another
// connection.
func (d *Discovery) connChanged(p peer.ID) {
	d.ways.changed = true
	for _, c := range d.host.Network().ConnsToPeer(p) {
		if c.Stat().Limited && !c.IsClosed() { // libp2p opens no streams on one, so to the rest of the node it is none
			d.log.Warn("a relay limits its circuits: not used", "relay", c.RemoteMultiaddr().String(), "peer", p.String())
			d.spawn(func() { c.Close() })
		}
	}
	up := d.connected(p)
	k := d.peers[p]
	if k == nil && up {
		d.sync() // it was admitted, so its certificate is held now
		k = d.peers[p]
	}
	if k == nil {
		if up {
			d.host.Network().ClosePeer(p) // of a mesh that was left meanwhile
		}
		return
	}
	if up {
		d.oneConnection(p)
	}
	if up == k.up {
		return
	}
	k.up, k.met, k.placed, k.round = up, false, false, 0
	k.lastSeen = time.Now()
	if up {
		k.backoff.reset()
		for _, stop := range k.stopDials {
			(*stop)() // it came from the other side; libp2p would go on, and a hole punch would join what is no punch
		}
		k.next, k.reason, k.code = time.Time{}, "", ""
		if _, ok := d.members.Certificate(p); !ok { // expired between the exchange and now, or forgotten
			d.host.Network().ClosePeer(p)
			return
		}
		d.log.Info("member connected", "peer", p.String(), "name", k.cert.Name)
		d.tellRevoked(p, d.members.Recent())
		return
	}
	d.outbox.drop(p)
	d.book.seen(p, k.lastSeen)
	d.save()
	k.reason, k.code = "the connection was lost", ""
	d.log.Info("member disconnected", "peer", p.String(), "name", k.cert.Name)
	if k.cert.Brief {
		d.forgetBrief(p)
	}
	k.hot = k.lastSeen.Add(hot)
	d.plan(p, k, d.turn(p))
	d.missed(p)
	if d.lan != nil {
		d.lan.ask()
	}
	if k.version != nil {
		k.reason, k.next = k.version.Error(), k.nextTry(k.version)
	}
}

// Named keeps what a member says that it is called, for when it is away.
func (d *Discovery) Named(ctx context.Context, p peer.ID, name string) {
	d.do(ctx, func() {
		if k := d.peers[p]; k != nil && !k.cert.Brief {
			if k.name = name; d.book.named(p, name) {
				d.save()
			}
		}
	})
}

// oneConnection closes what is too much when both sides dialled. Only the lower peer ID closes: two judges could each
// close the other's choice.
func (d *Discovery) oneConnection(p peer.ID) {
	if d.host.ID() > p {
		return
	}
	conns, others := d.paths(p)
	if len(conns) == 0 {
		conns = others // beside a direct one, closeRelayed has them
	}
	if len(conns) < 2 {
		return
	}
	slices.SortFunc(conns, func(a, b network.Conn) int {
		return cmp.Or(a.Stat().Opened.Compare(b.Stat().Opened), cmp.Compare(a.ID(), b.ID()))
	})
	stay := conns[0]
	for _, c := range conns[1:] {
		// Nobody dials a second time who still has the first connection.
		if c.Stat().Direction == stay.Stat().Direction || c.Stat().Opened.Sub(stay.Stat().Opened) > duplicateWindow {
			stay = c
		}
	}
	for _, c := range conns {
		if c != stay {
			d.spawn(func() { c.Close() })
		}
	}
}

// identified takes up what a member says of itself on an authenticated connection.
func (d *Discovery) identified(e event.EvtPeerIdentificationCompleted) {
	d.ways.changed = true
	if h, ok := d.host.(*meshHost); ok {
		h.outside.saw(e.ObservedAddr)
	}
	k := d.peers[e.Peer]
	if k == nil || e.Conn == nil || d.otherStreams(e.Peer, k, e.Protocols) {
		return
	}
	d.saysItself(e.Peer, k, e.Conn, e.ListenAddrs)
	// Who connects again beside a connection that is up has lost that one, and what was said on it: as in oneConnection.
	if !k.met || e.Conn.Stat().Opened.Sub(k.greeted) > duplicateWindow {
		k.met = true
		d.greet(e.Peer, k)
	}
	if members.ConnVersion(e.Conn) < 2 { // it says no more than that
		k.placed = true
		d.tellOf(e.Peer)
	}
}

// saysItself takes up the addresses that a member says it has, on a connection of its own.
func (d *Discovery) saysItself(p peer.ID, k *known, c network.Conn, said []ma.Multiaddr) {
	now := time.Now()
	var addrs []ma.Multiaddr
	if c.Stat().Direction == network.DirOutbound {
		addrs = append(addrs, c.RemoteMultiaddr())
	}
	addrs = append(addrs, reachable(said[:min(len(said), 4*protocol.MaxMemberAddresses)], c.RemoteMultiaddr())...)
	if d.book.put(p, addrs, now) {
		d.save()
	}
	k.addrs.own(now, "itself", d.book.addrs(p)...)
	if c.Stat().Direction == network.DirOutbound {
		k.addrs.dialled(now, nil, c, d.ends)
	}
	d.members.Expect(d.book.addrs(p))
}

// meshChanged follows the node into another mesh: connections of the old one are cut.
func (d *Discovery) meshChanged() {
	mesh := d.members.Mesh()
	if mesh == d.mesh {
		d.sync() // the certificate was renewed, or somebody was revoked
		d.expel()
		d.tellRenewed()
		d.circleChanged()
		return
	}
	d.log.Info("the node is in another mesh", "mesh", mesh.String())
	d.mesh, d.circle, d.serial = mesh, d.members.Own().Circle, d.members.Own().Serial
	d.peers, d.unmet, d.inviter = map[peer.ID]*known{}, map[peer.ID]*unmet{}, ""
	d.outbox = newOutbox()
	clear(d.ways.held)
	clear(d.ways.upgrades)
	d.ways.changed = true
	for _, p := range d.host.Network().Peers() {
		d.host.Network().ClosePeer(p)
	}
	for text, g := range d.given {
		if !g.self {
			delete(d.given, text)
		}
	}
	d.sync()
	d.news.fire()
}

// upkeep renews what ends, and cuts whoever's certificate has ended.
func (d *Discovery) upkeep() {
	if err := d.members.Maintain(); err != nil {
		d.log.Warn("the membership cannot be kept up", "err", err)
	}
	d.sync()
	for p, k := range d.peers {
		if !k.up {
			if k.cert.Brief {
				d.forgetBrief(p) // one that was admitted and never came, too
			}
			continue
		}
		d.book.seen(p, time.Now())
		d.save()
		if _, ok := d.members.Certificate(p); !ok {
			k.reason, k.code = "its certificate has ended", Expired
			d.log.Warn("certificate ended", "peer", p.String(), "name", k.cert.Name)
			d.host.Network().ClosePeer(p)
		} else if d.members.Renew(k.cert) != nil {
			d.outbox.to(p).renewal = true
			d.outbox.soon()
		}
	}
}

// signal wakes whoever waits. The zero value works; it may be used concurrently.
type signal struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
