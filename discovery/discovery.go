package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	// firstRetry after a dial that failed; each further one waits twice as long, up to lastRetry.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// yield is how much later than the lower peer ID the higher one dials, so that usually one of them does.
	yield = time.Second
	// minDialGap between two dials of one peer.
	minDialGap  = time.Second
	dialTimeout = 10 * time.Second
	// maxDials at once: a node that starts in a mesh of 300 must not flood its router.
	maxDials = 32
	// duplicateWindow: connections of one peer that began within it come from both sides dialling at once, and the
	// older stays. Beyond it the newer stays: whoever dialled it had lost the older.
	duplicateWindow = 5 * time.Second
	bookSave        = 5 * time.Second
	upkeep          = 10 * time.Minute
	// maxUnmet peers whose addresses are remembered although no certificate of theirs is held.
	maxUnmet = 256
)

// Config of New. Host and Members are required.
type Config struct {
	Host    host.Host // from NewHost; New's caller closes it after Run has returned
	Members *members.Membership
	Dir     string // where the address book is kept: the membership folder
	Given   []Given
	MDNS    bool // look on the local network, and be found there
	Logger  *slog.Logger
}

// State is what is known of a member, or of a given address where no member was found yet.
type State struct {
	Peer     peer.ID // empty for a given address that is no member yet
	Name     string  // from its certificate, or the address as it was given
	State    Standing
	Reason   string    // why it is not connected; a sentence
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
	givens  []Given
	news    signal // interfaces or mesh have changed
	calls   chan func()
	view    atomic.Pointer[[]State]
	running sync.WaitGroup // goroutines that Run has started

	// Of Run's goroutine:
	ctx     context.Context
	mesh    members.MeshID
	peers   map[peer.ID]*known
	unmet   map[peer.ID][]ma.Multiaddr
	given   map[string]givenState
	book    *book
	dialing int
	inviter string // whose ticket's addresses were taken up
	// announcing are the members that the others are to be told of at announceAt, all at once: when a class starts, each
	// would otherwise be a message to everybody.
	announcing map[peer.ID]bool
	announceAt time.Time
}

// known is a member: its certificate is held.
type known struct {
	cert     *members.Cert
	addrs    []hint // best first
	up       bool   // connected, as far as the events tell
	public   bool   // the other members know of it, or have been told
	dialing  bool
	backoff  backoff
	next     time.Time // of the next dial; zero: none planned
	lastDial time.Time
	lastSeen time.Time
	reason   string
	version  *protocol.Incompatible // why it is not connected
}

type hint struct {
	addr   ma.Multiaddr
	source string
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
		host: c.Host, members: c.Members, log: c.Logger, mdns: c.MDNS, givens: c.Given,
		calls: make(chan func(), 64), mesh: c.Members.Mesh(),
		peers: map[peer.ID]*known{}, unmet: map[peer.ID][]ma.Multiaddr{}, given: map[string]givenState{}, book: b,
		announcing: map[peer.ID]bool{},
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
	d.mesh = d.members.Mesh()
	d.sync()
	for _, k := range d.peers {
		k.public = true
	}
	for _, p := range d.host.Network().Peers() {
		d.connChanged(p)
	}
	d.spawn(func() { watchInterfaces(ctx, func() { d.do(ctx, d.rediscover) }) })
	if d.mdns {
		d.spawn(func() { d.announce(ctx) })
	}
	for _, g := range d.givens {
		d.spawn(func() { d.seek(ctx, g) })
	}

	timer := time.NewTimer(0)
	defer timer.Stop()
	save := time.NewTicker(bookSave)
	defer save.Stop()
	keep := time.NewTicker(upkeep)
	defer keep.Stop()
	d.upkeep()
	for {
		d.show()
		timer.Reset(min(d.dialDue(), d.announceDue()))
		select {
		case <-ctx.Done():
			d.saveBook()
			return nil
		case f := <-d.calls:
			f()
			for more := true; more; {
				select {
				case f := <-d.calls:
					f()
				default:
					more = false
				}
			}
		case <-timer.C:
		case e := <-identified.Out():
			switch e := e.(type) {
			case event.EvtPeerIdentificationCompleted:
				d.identified(e)
			case event.EvtPeerIdentificationFailed:
				if k := d.peers[e.Peer]; k != nil && k.up && !k.public {
					d.announceSoon(e.Peer)
				}
			case event.EvtLocalAddressesUpdated:
				d.rediscover()
			}
		case <-changes:
			d.meshChanged()
		case <-save.C:
			d.saveBook()
		case <-keep.C:
			d.upkeep()
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
	for _, c := range d.members.Members() {
		held[c.Peer] = true
		if k := d.peers[c.Peer]; k != nil {
			k.cert = c
			continue
		}
		k := &known{cert: c, backoff: newBackoff()}
		d.peers[c.Peer] = k
		for _, a := range d.book.addrs(c.Peer) {
			k.addrs = append(k.addrs, hint{a, "address book"})
		}
		if e := d.book.peers[c.Peer]; e != nil {
			k.lastSeen = e.LastSeen
		}
		d.plan(c.Peer, k, false)
		if addrs := d.unmet[c.Peer]; addrs != nil {
			delete(d.unmet, c.Peer)
			d.hint(c.Peer, "mDNS", addrs...)
		}
	}
	for p := range d.peers {
		if !held[p] {
			delete(d.peers, p)
		}
	}
	if i := d.members.Inviter(); i.ID != "" && i.String() != d.inviter {
		d.inviter = i.String()
		d.hint(i.ID, fromTicket, i.Addrs...)
	}
}

// hint takes up where a member may be. Addresses of peers whose certificate is not held are kept aside, undialled, in
// case it comes.
func (d *Discovery) hint(p peer.ID, source string, addrs ...ma.Multiaddr) {
	if p == d.host.ID() {
		return
	}
	k := d.peers[p]
	if k == nil {
		if _, ok := d.unmet[p]; ok || len(d.unmet) < maxUnmet {
			d.unmet[p] = slices.Clone(addrs[:min(len(addrs), protocol.MaxMemberAddresses)])
		}
		return
	}
	fresh := false
	for _, a := range addrs {
		if dialable(a) && !slices.ContainsFunc(k.addrs, func(h hint) bool { return h.addr.Equal(a) }) {
			// Before the older ones: those have failed, or the peer would be connected.
			k.addrs = slices.Insert(k.addrs, 0, hint{a, source})
			fresh = true
		}
	}
	k.addrs = k.addrs[:min(len(k.addrs), protocol.MaxMemberAddresses)]
	// A person's word is taken at once, and again. Who has just joined is not known to the other side by any address.
	urgent := source == fromPerson || (fresh && source == fromTicket)
	if !k.up && (fresh || urgent) {
		k.backoff.reset()
		d.plan(p, k, urgent)
	}
}

// Sources of hints that count for more.
const (
	fromPerson = "given"
	fromTicket = "ticket"
)

// plan sets the next dial of a peer that has just been lost or heard of: the lower peer ID at once, the other a little
// later, so that one connection comes of it; or now, if it is urgent.
func (d *Discovery) plan(p peer.ID, k *known, urgent bool) {
	if k.up || k.dialing || len(k.addrs) == 0 {
		return
	}
	at := time.Now()
	if d.host.ID() > p && !urgent {
		at = at.Add(yield)
	}
	if early := k.lastDial.Add(minDialGap); at.Before(early) {
		at = early
	}
	if k.next.IsZero() || at.Before(k.next) {
		k.next = at
	}
}

// dialDue starts the dials that are due and returns how long there is nothing to do.
func (d *Discovery) dialDue() time.Duration {
	now := time.Now()
	wait := time.Hour
	for _, p := range d.order() {
		k := d.peers[p]
		if k.up || k.dialing || k.next.IsZero() {
			continue
		}
		if left := k.next.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		if d.dialing >= maxDials {
			continue // the end of any of them comes back here
		}
		d.dial(p, k)
	}
	return wait
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
	k.dialing, k.next, k.lastDial = true, time.Time{}, time.Now()
	d.dialing++
	addrs := make([]ma.Multiaddr, len(k.addrs))
	for i, h := range k.addrs {
		addrs[i] = h.addr
	}
	ctx := d.ctx
	d.spawn(func() {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		// libp2p would wait with a peer whose last dial failed; this loop has its own times.
		if s, ok := d.host.Network().(*swarm.Swarm); ok {
			s.Backoff().Clear(p)
		}
		d.host.Peerstore().ClearAddrs(p)
		d.host.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
		_, err := d.host.Network().DialPeer(ctx, p)
		err = d.incompatible(ctx, err)
		d.do(d.ctx, func() { d.dialled(p, k, err) })
	})
}

func (d *Discovery) dialled(p peer.ID, k *known, err error) {
	d.dialing--
	k.dialing = false
	if d.peers[p] != k {
		return
	}
	if err == nil || d.connected(p) {
		d.connChanged(p)
		return
	}
	if k.version = nil; errors.As(err, &k.version) && k.reason != reasonOf(err) {
		d.log.Warn("member of another version", "peer", p.String(), "name", k.cert.Name, "err", err)
	}
	k.reason = reasonOf(err)
	k.next = k.nextTry(err)
	d.log.Debug("dial", "peer", p.String(), "name", k.cert.Name, "err", k.reason)
}

// connChanged looks at a peer of which a connection came or went. One event says nothing: there may be another
// connection.
func (d *Discovery) connChanged(p peer.ID) {
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
	k.up = up
	k.lastSeen = time.Now()
	if up {
		k.backoff.reset()
		k.next, k.reason = time.Time{}, ""
		if _, ok := d.members.Certificate(p); !ok { // expired between the exchange and now, or forgotten
			d.host.Network().ClosePeer(p)
			return
		}
		d.log.Info("member connected", "peer", p.String(), "name", k.cert.Name)
		d.tell(p, d.records(p))
		return // the others are told when it has said where it listens
	}
	d.book.seen(p, k.lastSeen)
	k.reason = "the connection was lost"
	d.log.Info("member disconnected", "peer", p.String(), "name", k.cert.Name)
	d.plan(p, k, false)
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
	conns := slices.DeleteFunc(slices.Clone(d.host.Network().ConnsToPeer(p)), network.Conn.IsClosed)
	if len(conns) < 2 {
		return
	}
	slices.SortFunc(conns, func(a, b network.Conn) int {
		return cmp.Or(a.Stat().Opened.Compare(b.Stat().Opened), cmp.Compare(a.ID(), b.ID()))
	})
	stay := conns[0]
	if newest := conns[len(conns)-1]; newest.Stat().Opened.Sub(stay.Stat().Opened) > duplicateWindow {
		stay = newest
	}
	for _, c := range conns {
		if c != stay {
			d.spawn(func() { c.Close() })
		}
	}
}

// identified takes up what a member says of itself on an authenticated connection.
func (d *Discovery) identified(e event.EvtPeerIdentificationCompleted) {
	k := d.peers[e.Peer]
	if k == nil || e.Conn == nil || d.otherStreams(e.Peer, k, e.Protocols) {
		return
	}
	var addrs []ma.Multiaddr
	if e.Conn.Stat().Direction == network.DirOutbound {
		addrs = append(addrs, e.Conn.RemoteMultiaddr())
	}
	addrs = append(addrs, reachable(e.ListenAddrs, e.Conn.RemoteMultiaddr())...)
	if !k.public || len(d.book.addrs(e.Peer)) == 0 {
		d.announceSoon(e.Peer)
	}
	d.book.put(e.Peer, addrs, time.Now())
	old := k.addrs
	k.addrs = nil
	for _, a := range d.book.addrs(e.Peer) {
		k.addrs = append(k.addrs, hint{a, "itself"})
	}
	for _, h := range old {
		if !slices.ContainsFunc(k.addrs, func(n hint) bool { return n.addr.Equal(h.addr) }) && len(k.addrs) < protocol.MaxMemberAddresses {
			k.addrs = append(k.addrs, h)
		}
	}
	d.members.Expect(d.book.addrs(e.Peer))
}

// reachable leaves out what cannot lead from here to a peer that is at other: another machine's loopback.
func reachable(addrs []ma.Multiaddr, other ma.Multiaddr) []ma.Multiaddr {
	local := manet.IsIPLoopback(other)
	return slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool {
		return !dialable(a) || manet.IsIPUnspecified(a) || (!local && manet.IsIPLoopback(a))
	})
}

// rediscover starts over with everybody who is not connected: the network has changed.
func (d *Discovery) rediscover() {
	d.news.fire()
	for p, k := range d.peers {
		if !k.up {
			k.backoff.reset()
			d.plan(p, k, false)
		}
	}
}

// meshChanged follows the node into another mesh: connections of the old one are cut.
func (d *Discovery) meshChanged() {
	mesh := d.members.Mesh()
	if mesh == d.mesh {
		d.sync() // the certificate was renewed
		return
	}
	d.log.Info("the node is in another mesh", "mesh", mesh.String())
	d.mesh = mesh
	d.peers, d.unmet, d.inviter = map[peer.ID]*known{}, map[peer.ID][]ma.Multiaddr{}, ""
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
			continue
		}
		if _, ok := d.members.Certificate(p); !ok {
			k.reason = "its certificate has ended"
			d.log.Warn("certificate ended", "peer", p.String(), "name", k.cert.Name)
			d.host.Network().ClosePeer(p)
		} else if d.members.Renew(k.cert) != nil {
			d.tell(p, nil)
		}
	}
}

func (d *Discovery) saveBook() {
	err := d.book.save(func(p peer.ID) bool { return d.peers[p] != nil })
	if err != nil {
		d.log.Warn("the address book cannot be written", "err", err)
	}
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
		switch {
		case k.up:
			s.State, s.Reason, s.LastSeen, s.NextTry, s.Version = Connected, "", time.Now(), time.Time{}, nil
		case k.dialing:
			s.State = Dialing
		case len(k.addrs) == 0:
			s.State, s.Reason = Unknown, errNothing.Error()
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

func short(err error) string {
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("the name %q is not known", dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), os.IsTimeout(err):
		return "no answer in time"
	case errors.As(err, &op):
		return oneLine(op.Err)
	}
	return oneLine(err)
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

// backoff doubles from firstRetry to lastRetry, with a fifth of jitter.
type backoff struct{ d time.Duration }

func newBackoff() backoff { return backoff{firstRetry} }

func (b *backoff) reset() { b.d = firstRetry }

func (b *backoff) next() time.Duration {
	d := b.d
	b.d = min(2*b.d, lastRetry)
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
