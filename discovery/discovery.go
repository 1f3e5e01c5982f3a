package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// The redial loop's times.
const (
	// A member that was lost, or seen within seenLately, or heard of anew, is dialled every hotGap for the time of hot, and then after
	// firstRetry, each further time after twice as long, up to lastRetry; longRetry for one that was not seen for longGone.
	// A computer that lost its network for a moment, or slept, is mostly back within hot, and nobody wants to wait for it then.
	hot        = 30 * time.Second
	hotGap     = 1500 * time.Millisecond
	seenLately = 10 * time.Minute
	firstRetry = 2 * time.Second
	lastRetry  = time.Minute
	longRetry  = 5 * time.Minute
	longGone   = time.Hour
	// wakeHot is hot for all members after the network changed, or the computer woke.
	wakeHot = 10 * time.Second
	// yield is how much later than the lower peer ID the higher one dials, so that usually one of them does: a dial within a
	// building takes a tenth of it. Over slower links both may, and one connection of the two stays.
	// Where many start at once and machines are busy with that, a dial takes longer: yieldEach for every member that is missed,
	// mostYield at most.
	yield     = 300 * time.Millisecond
	yieldEach = 20 * time.Millisecond
	mostYield = 2 * time.Second
	// minDialGap between two dials of one peer.
	minDialGap  = time.Second
	dialTimeout = 10 * time.Second
	// noWayRetry is when a member with no address that could be dialled is looked at again, besides each change of the networks.
	noWayRetry = 30 * time.Second
	// signGap is how often a sign of life of a member at a known address has it dialled at once.
	signGap = 10 * time.Second
	// maxDials at once: a node that starts in a mesh of 300 must not flood its router. Of these only a window of maxWindow handshakes,
	// and dials that are younger than answerTime: a member that is off answers nothing for seconds, and holds up nobody.
	maxDials   = 64
	maxWindow  = 32
	answerTime = 200 * time.Millisecond
	// The window is firstWindow in the beginning, and one more for as many that succeed as there may be: with 16 each, sixty nodes that start
	// at once on two cores spent half of their handshakes on admissions that did not end in time.
	firstWindow = 4
	// Dials whose handshakes break off or take too long halve it, down to leastWindow, once in cutGap. Machines that
	// are too busy for them would else try for ever.
	leastWindow = 2
	cutGap      = time.Second
	// duplicateWindow: two connections of one peer, one from each side, that began within it come from both dialling at once,
	// and the older stays. Beyond it the newer stays: whoever dialled it had lost the older. A handshake over a slow link
	// takes a second.
	duplicateWindow = 2 * time.Second
	// bookSave is how soon after a change the address book is written, and how long after that at the earliest the next time.
	bookSave = time.Second
	upkeep   = 10 * time.Minute
	// staleGrace is how long a connection from an address that this machine has no more is kept: addresses are taken away
	// and given back when they are renewed.
	staleGrace = 500 * time.Millisecond
	// maxPast own addresses of before are remembered: libp2p goes on saying them for a minute.
	maxPast = 64

	// maxUnmet peers of the mesh's name on the local network whose certificates are not held. They are asked for them: probers at once, one each
	// probeGap, each peer again after firstProbe and then after twice as long, up to lastProbe. Anybody on the network can make up such peers.
	maxUnmet   = 256
	probers    = 2
	probeGap   = 200 * time.Millisecond
	firstProbe = 5 * time.Second
	lastProbe  = 10 * time.Minute
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

// State is what is known of a member, or of a given address where no member was found yet.
type State struct {
	Peer     peer.ID // empty for a given address that is no member yet
	Name     string  // from its certificate, or the address as it was given
	State    Standing
	Reason   string    // why it is not connected; a sentence
	Via      string    // where its first address was heard: "itself", "given", "ticket", "mDNS", "member NAME", "DHT"; "" if it has none
	NextTry  time.Time // zero: none is planned, or it is being dialled now
	LastSeen time.Time // connected until then; zero: never
	Addrs    []ma.Multiaddr
	Version  *protocol.Incompatible // why it is not connected, if that is why
}

// Standing is where a member stands.
type Standing string

// The standings.
const (
	Connected Standing = "connected"
	Dialing   Standing = "dialing"
	Waiting   Standing = "waiting" // for the next try
	Unknown   Standing = "unknown" // for an address to try
)

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
	learnt    time.Time // that it is a member
	greeted   time.Time // since it is up
	reason    string
	version   *protocol.Incompatible // why it is not connected
}

// unmet is a peer of the mesh's name on the local network whose certificate is not held.
type unmet struct {
	addrs  []ma.Multiaddr
	heard  time.Time
	next   time.Time // of the next probe
	wait   time.Duration
	asking bool
}

type givenState struct {
	peer   peer.ID // found there
	self   bool
	reason string
	next   time.Time
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

// Known says how each member that is known stands, by peer ID, and then each given address where nobody was found yet. It
// may be called concurrently, before Run as well. The slice is the caller's, the addresses are not to be changed.
func (d *Discovery) Known() []State { return slices.Clone(*d.view.Load()) }

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
			k.lastSeen = e.LastSeen
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

// hint takes up where a member may be. What is said of peers whose certificate is not held is of no use.
func (d *Discovery) hint(p peer.ID, r rank, source string, addrs ...ma.Multiaddr) {
	k := d.peers[p]
	if k == nil || p == d.host.ID() {
		return
	}
	addrs = slices.DeleteFunc(best(addrs), manet.IsIPUnspecified)
	now := time.Now()
	fresh := k.addrs.take(now, r, source, addrs...)
	d.ways.changed = d.ways.changed || fresh
	if k.up && fresh {
		d.upgradeSoon(p)
	}
	if k.up || len(addrs) == 0 {
		return
	}
	// A person's word is taken at once, and again. Who has just joined is not known to the other side by any address.
	switch urgent := r == person || (fresh && source == fromTicket); {
	case urgent:
		k.backoff.reset()
		d.plan(p, k, 0)
	case fresh:
		k.backoff.reset()
		k.hot = now.Add(hot)
		d.planAlso(p, k, d.turn(p))
	case now.Sub(k.sign) >= signGap && k.version == nil: // it is there, says somebody, where it was; of another version it dials itself, once updated
		k.sign = now
		k.backoff.reset()
		d.plan(p, k, d.turn(p))
	}
}

// Sources of hints.
const (
	fromLAN    = "mDNS"
	fromPerson = "given"
	fromTicket = "ticket"
)

// turn is how long this node leaves the dial to p, if both have just heard of each other.
func (d *Discovery) turn(p peer.ID) time.Duration {
	if d.host.ID() < p {
		return 0
	}
	missing := 0
	for _, k := range d.peers {
		if !k.up {
			missing++
		}
	}
	return min(yield+yieldEach*time.Duration(missing), mostYield)
}

// plan sets the next dial of a peer that has just been lost or heard of, after wait or sooner.
func (d *Discovery) plan(p peer.ID, k *known, wait time.Duration) {
	if k.dialing == 0 {
		d.planAlso(p, k, wait)
	}
}

// planAlso is plan, for a dial beside one that goes on: an address where nothing answers takes seconds, and there is a new one now.
func (d *Discovery) planAlso(p peer.ID, k *known, wait time.Duration) {
	if k.up || k.dialing > 1 || len(k.addrs) == 0 && len(d.circuits(p, k)) == 0 {
		return
	}
	at := time.Now().Add(wait)
	if early := k.lastDial.Add(minDialGap); at.Before(early) {
		at = early
	}
	if k.next.IsZero() || at.Before(k.next) {
		k.next = at
	}
}

// again is when a member is dialled again after a dial that began at k.lastDial failed.
func (k *known) again(now time.Time) time.Time {
	if now.Before(k.hot) {
		// Counted from its begin: while frames are lost the dial itself takes longer than the gap, and asks the other side
		// again in that time.
		at := k.lastDial.Add(hotGap - hotGap/6 + rand.N(hotGap/3))
		if soon := now.Add(rand.N(100 * time.Millisecond)); at.Before(soon) {
			return soon
		}
		return at
	}
	most := lastRetry
	if !k.lastSeen.IsZero() && now.Sub(k.lastSeen) > longGone {
		most = longRetry
	}
	return now.Add(k.backoff.next(most))
}

// dialDue starts the dials that are due and returns how long there is nothing to do.
func (d *Discovery) dialDue() time.Duration {
	now := time.Now()
	wait := time.Hour
	var due []peer.ID
	for p, k := range d.peers {
		if k.up || k.next.IsZero() {
			continue
		}
		if left := k.next.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		due = append(due, p)
	}
	if len(due) == 0 {
		return wait
	}
	slices.SortFunc(due, func(a, b peer.ID) int { return d.peers[a].next.Compare(d.peers[b].next) }) // who waits longest
	places, more := d.places(now)
	for _, p := range due[:min(len(due), places)] {
		k := d.peers[p]
		if d.dial(p, k); !k.next.IsZero() {
			wait = min(wait, k.next.Sub(now)) // there was no way
		}
	}
	if len(due) > places {
		wait = min(wait, more) // the end of any dial comes back here, too
	}
	return wait
}

// places is how many dials may begin now, and after what time it may be more.
func (d *Discovery) places(now time.Time) (n int, more time.Duration) {
	busy := 0
	more = time.Hour
	for p, k := range d.peers {
		if k.dialing == 0 {
			continue
		}
		young := k.lastDial.Add(answerTime).Sub(now)
		if young > 0 {
			more = min(more, young)
		}
		if young > 0 || d.members.Shaking(p) {
			busy++
		}
	}
	return max(0, min(int(d.window)-busy, maxDials-d.dialing)), more
}

func (d *Discovery) order() []peer.ID {
	ids := make([]peer.ID, 0, len(d.peers))
	for p := range d.peers {
		ids = append(ids, p)
	}
	slices.Sort(ids)
	return ids
}

func (d *Discovery) dial(p peer.ID, k *known) {
	now := time.Now()
	addrs, err := k.addrs.choose(now, k.round, d.nets, d.ends, d.self)
	k.round++
	ways := d.circuits(p, k)
	if err != nil && len(ways) == 0 {
		k.reason, k.next = err.Error(), now.Add(noWayRetry-noWayRetry/10+rand.N(noWayRetry/5))
		if errors.Is(err, errHeldBack) {
			k.lastDial = now
			k.next = k.again(now)
		}
		return
	}
	k.dialing++
	k.next, k.lastDial = time.Time{}, now
	d.dialing++
	also := k.dialing > 1
	ctx, cancel := context.WithTimeout(d.ctx, dialTimeout)
	k.stopDials = append(k.stopDials, &cancel)
	d.spawn(func() {
		defer cancel()
		// libp2p would wait with a peer whose last dial failed; this loop has its own times.
		if s, ok := d.host.Network().(*swarm.Swarm); ok {
			s.Backoff().Clear(p)
		}
		if !also { // else libp2p takes the new ones into the dial that goes on
			d.host.Peerstore().ClearAddrs(p)
		}
		d.host.Peerstore().AddAddrs(p, append(ways, addrs...), peerstore.TempAddrTTL)
		c, err := d.host.Network().DialPeer(ctx, p)
		err = d.incompatible(ctx, err)
		d.do(d.ctx, func() {
			d.pace(err)
			k.stopDials = slices.DeleteFunc(k.stopDials, func(f *context.CancelFunc) bool { return f == &cancel })
			d.dialled(p, k, addrs, c, err)
		})
	})
}

// pace sets how many dials there may be by how one ended.
func (d *Discovery) pace(err error) {
	now := time.Now()
	var refused *members.Refused
	var rejected *members.Rejected
	switch {
	case err == nil:
		d.window = min(d.window+1/d.window, maxWindow)
	case errors.As(err, &refused), errors.As(err, &rejected):
	case now.Sub(d.cut) >= cutGap && brokeOff(err):
		d.window, d.cut = max(d.window/2, leastWindow), now
	}
}

// brokeOff reports whether somebody was there and the handshake came to no end, or to none in time. A relay answers slowly for others, and a dial to
// many addresses that answer nothing takes its time, too.
func brokeOff(err error) bool {
	var dialErr *swarm.DialError
	return errors.As(err, &dialErr) && slices.ContainsFunc(dialErr.DialErrors, func(e swarm.TransportError) bool {
		var op *net.OpError
		silent := errors.As(e.Cause, &op) && op.Op == "dial"
		_, relayed := members.Circuit(e.Address)
		return errors.Is(e.Cause, io.EOF) || errors.Is(e.Cause, syscall.EPIPE) || errors.Is(e.Cause, syscall.ECONNRESET) || timedOut(e.Cause) && !silent && !relayed
	})
}

func (d *Discovery) dialled(p peer.ID, k *known, tried []ma.Multiaddr, c network.Conn, err error) {
	d.dialing--
	k.dialing--
	if err == nil || !d.connected(p) {
		k.addrs.dialled(time.Now(), tried, c, d.ends)
	}
	if d.peers[p] != k {
		return
	}
	if d.connected(p) {
		if d.connChanged(p); k.up { // else it was lost in between, and no event plans the next dial of what was never up
			return
		}
	}
	if err == nil { // gone again, or not to be used
		err = errors.New("the connection was lost")
	}
	if k.version = nil; errors.As(err, &k.version) && k.reason != reasonOf(err) {
		d.log.Warn("member of another version", "peer", p.String(), "name", k.cert.Name, "err", err)
	}
	k.reason = reasonOf(err)
	if next := k.nextTry(err); k.dialing == 0 && (k.next.IsZero() || next.Before(k.next)) {
		k.next = next
	}
	if nothingSent(err) {
		k.lastDial = time.Time{} // no dial that anybody noticed
	}
	d.follow(p, k, err)
	d.log.Debug("dial", "peer", p.String(), "name", k.cert.Name, "err", k.reason)
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
		k.next, k.reason = time.Time{}, ""
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
	k.reason = "the connection was lost"
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

// reachable leaves out what cannot lead from here to a peer that is at other: another machine's loopback.
func reachable(addrs []ma.Multiaddr, other ma.Multiaddr) []ma.Multiaddr {
	local := manet.IsIPLoopback(other)
	return slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool {
		if _, ok := plausible(a); !ok {
			return true
		}
		return kind(a) != circuit && (manet.IsIPUnspecified(a) || (!local && manet.IsIPLoopback(a)))
	})
}

// Rediscover starts over with everybody who is not connected, at once: the computer has woken, or its network has changed in
// a way that its interfaces do not show. It may be called concurrently, while Run runs.
func (d *Discovery) Rediscover() {
	select {
	case d.again <- struct{}{}:
	default: // it is about to
	}
}

// rediscover says anew on the local networks where this node is: on all of them, or on those that have changed.
func (d *Discovery) rediscover(all bool) {
	d.news.fire()
	if d.lan != nil {
		d.lan.use(d.nets, all)
	}
	for _, l := range d.joins {
		l.use(d.nets, true)
	}
	now := time.Now()
	// A dial costs both sides a millisecond: not all in the same one.
	spread := 10*time.Millisecond + time.Duration(len(d.peers))*2*time.Millisecond
	for p, k := range d.peers {
		if !k.up {
			k.backoff.reset()
			k.round = 0
			if until := now.Add(wakeHot); k.hot.Before(until) {
				k.hot = until
			}
			d.plan(p, k, rand.N(spread))
		}
	}
}

// networksChanged starts over when the machine's addresses have.
func (d *Discovery) networksChanged(n networks) {
	if n.text == d.nets.text {
		return
	}
	d.log.Debug("the networks of this machine have changed", "now", strings.ReplaceAll(n.text, "\n", "; "))
	d.nets = n
	d.past = append(d.past, d.self...)
	d.past = d.past[max(0, len(d.past)-maxPast):]
	d.self = listens(d.host, n.faces)
	ctx := d.ctx
	d.spawn(func() {
		select {
		case <-ctx.Done():
		case <-time.After(staleGrace):
			d.do(ctx, d.cutStale)
		}
	})
	d.rediscover(false)
	d.sayOwn()
	d.wayMoved()
}

// cutStale closes the connections from addresses that this machine has no more: nothing would come through them, and the
// other side would not hear that either.
func (d *Discovery) cutStale() {
	for _, c := range d.host.Network().Conns() {
		local := c.LocalMultiaddr()
		if ip, ok := addrIP(local); ok && len(local) == 2 && !ip.IsLoopback() && !d.nets.has(ip) {
			d.log.Info("connection closed: its address is not this machine's any more", "peer", c.RemotePeer().String(), "addr", local.String())
			d.spawn(func() { c.Close() })
		}
	}
}

// heardOnLAN takes up what somebody on the local network says of a peer.
func (d *Discovery) heardOnLAN(p peer.ID, addrs []ma.Multiaddr) {
	if d.peers[p] != nil {
		d.hint(p, hearsay, fromLAN, addrs...)
		return
	}
	addrs = slices.DeleteFunc(addrs, func(a ma.Multiaddr) bool {
		ip, ok := addrIP(a)
		return !ok || !d.nets.onLink(ip) || ma.Contains(d.self, a) // else anybody could send us anywhere
	})
	now := time.Now()
	u := d.unmet[p]
	if u == nil {
		for q, o := range d.unmet {
			if now.Sub(o.heard) > 2*lastProbe {
				delete(d.unmet, q)
			}
		}
		if len(d.unmet) >= maxUnmet || len(addrs) == 0 {
			return
		}
		u = &unmet{wait: firstProbe, next: now}
		d.unmet[p] = u
	}
	u.addrs, u.heard = addrs, now
}

// probeDue asks who is at the addresses of peers that call themselves of this mesh, so as to get their certificates, and
// returns how long there is nothing to do: two members that were let in by a third and met nobody in common know nothing of each other.
func (d *Discovery) probeDue() time.Duration {
	now := time.Now()
	wait := time.Hour
	for p, u := range d.unmet {
		if u.asking || len(u.addrs) == 0 {
			continue
		}
		at := u.next
		if at.Before(d.probeAt) {
			at = d.probeAt
		}
		if left := at.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		if d.probing >= probers {
			continue // the end of any of them comes back here
		}
		u.next = now.Add(u.wait - u.wait/10 + rand.N(u.wait/5))
		u.wait = min(2*u.wait, lastProbe)
		d.probeAt = now.Add(probeGap)
		i := slices.IndexFunc(u.addrs, func(a ma.Multiaddr) bool { return d.ends.may(now, a) })
		if i < 0 {
			continue
		}
		u.asking = true
		d.probing++
		ctx, a := d.ctx, u.addrs[i]
		d.spawn(func() {
			network, host, err := manet.DialArgs(a)
			if err == nil {
				_, _, err = d.members.Probe(ctx, network, host, p)
			}
			d.do(ctx, func() {
				d.probing--
				u.asking = false
				if err != nil {
					d.ends.failed(time.Now(), a)
					d.log.Debug("ask an unknown peer on the local network for its certificate", "peer", p.String(), "addr", a.String(), "err", reasonOf(err))
					return
				}
				d.ends.worked(a)
				d.sync()
			})
		})
	}
	return wait
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
			k.reason = "its certificate has ended"
			d.log.Warn("certificate ended", "peer", p.String(), "name", k.cert.Name)
			d.host.Network().ClosePeer(p)
		} else if d.members.Renew(k.cert) != nil {
			d.outbox.to(p).renewal = true
			d.outbox.soon()
		}
	}
}

// save has the address book written soon.
func (d *Discovery) save() {
	if d.saveAt.IsZero() {
		d.saveAt = time.Now().Add(bookSave / 4)
		if early := d.saved.Add(bookSave); d.saveAt.Before(early) {
			d.saveAt = early
		}
	}
}

// saveDue writes the address book if that is due, and returns when it is.
func (d *Discovery) saveDue() time.Duration {
	if d.saveAt.IsZero() {
		return time.Hour
	}
	if left := time.Until(d.saveAt); left > 0 {
		return left
	}
	d.saveBook()
	return time.Hour
}

func (d *Discovery) saveBook() {
	err := d.book.save(func(p peer.ID) bool { return d.peers[p] != nil })
	if err != nil {
		d.log.Warn("the address book cannot be written", "err", err)
	}
	d.saveAt, d.saved = time.Time{}, time.Now()
}

// show publishes what Known returns.
func (d *Discovery) show() {
	out := make([]State, 0, len(d.peers)+len(d.given))
	for _, p := range d.order() {
		k := d.peers[p]
		s := State{Peer: p, Name: k.cert.Name, Reason: k.reason, NextTry: k.next, LastSeen: k.lastSeen, State: Waiting, Version: k.version}
		for _, h := range k.addrs {
			s.Addrs = append(s.Addrs, h.addr)
		}
		if len(k.addrs) > 0 {
			s.Via = k.addrs[0].source
		}
		switch {
		case k.up:
			s.State, s.Reason, s.LastSeen, s.NextTry, s.Version = Connected, "", time.Now(), time.Time{}, nil
		case k.dialing > 0:
			s.State = Dialing
			if s.Reason == "" {
				s.Reason = "it is being called for the first time"
			}
		case len(k.addrs) == 0:
			s.State, s.Reason = Unknown, errNothing.Error()
		case s.Reason == "":
			s.Reason = "it was heard of just now"
		}
		out = append(out, s)
	}
	for _, g := range d.givens {
		if st := d.given[g.Text]; st.peer == "" && !st.self {
			s := State{Name: g.Text, State: Waiting, Reason: st.reason, NextTry: st.next}
			if st.reason == "" {
				s.State = Dialing
			}
			out = append(out, s)
		}
	}
	d.view.Store(&out)
}

// reasonOf is a dial's error in one sentence: the other side's own word if it gave one, else what went wrong with each
// address.
func reasonOf(err error) string {
	var refused *members.Refused
	var rejected *members.Rejected
	var other sec.ErrPeerIDMismatch
	var version *protocol.Incompatible
	switch {
	case errors.As(err, &version):
		return version.Error()
	case errors.As(err, &refused):
		return "the other side refuses: " + refused.Error()
	case errors.As(err, &rejected):
		return rejected.Error()
	}
	var dialErr *swarm.DialError
	if !errors.As(err, &dialErr) || len(dialErr.DialErrors) == 0 {
		return short(err)
	}
	var parts []string
	for _, e := range dialErr.DialErrors {
		cause := short(e.Cause)
		if errors.As(e.Cause, &other) {
			cause = "another node is at this address now"
		}
		if parts = append(parts, fmt.Sprintf("%s: %s", e.Address, cause)); len(parts) == 3 {
			break
		}
	}
	if n := len(dialErr.DialErrors) - len(parts); n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more addresses", n))
	}
	return "cannot be reached: " + strings.Join(parts, "; ")
}

// nothingSent reports whether a dial failed on this machine, for there is no way to any of the addresses.
func nothingSent(err error) bool {
	var dialErr *swarm.DialError
	return errors.As(err, &dialErr) && len(dialErr.DialErrors) > 0 && !slices.ContainsFunc(dialErr.DialErrors, func(e swarm.TransportError) bool {
		return !errors.Is(e.Cause, syscall.ENETUNREACH)
	})
}

func short(err error) string {
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("the name %q is not known", dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there"
	case timedOut(err):
		return "no answer in time"
	case errors.As(err, &op):
		return oneLine(op.Err)
	}
	return oneLine(err)
}

func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || os.IsTimeout(err)
}

// oneLine is an error for a person's eyes, whoever's bytes are in it: printable, on one line, at most 200 bytes.
func oneLine(err error) string {
	s := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(err.Error()), " "))
	return strings.ToValidUTF8(s[:min(len(s), 200)], "")
}

// backoff doubles from firstRetry to the most that is asked for, with a fifth of jitter.
type backoff struct{ d time.Duration }

func newBackoff() backoff { return backoff{firstRetry} }

func (b *backoff) reset() { b.d = firstRetry }

func (b *backoff) next(most time.Duration) time.Duration {
	d := min(b.d, most)
	b.d = min(2*b.d, most)
	return d - d/10 + rand.N(d/5)
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
