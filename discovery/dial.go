package discovery

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
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
)

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

func (d *Discovery) dial(p peer.ID, k *known) {
	now := time.Now()
	addrs, err := k.addrs.choose(now, k.round, d.nets, d.ends, d.self)
	k.round++
	ways := d.circuits(p, k)
	if err != nil && len(ways) == 0 {
		k.reason, k.code, k.next = err.Error(), "", now.Add(noWayRetry-noWayRetry/10+rand.N(noWayRetry/5))
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
	k.code, _ = AnswerOf(err)
	if next := k.nextTry(err); k.dialing == 0 && (k.next.IsZero() || next.Before(k.next)) {
		k.next = next
	}
	if nothingSent(err) {
		k.lastDial = time.Time{} // no dial that anybody noticed
	}
	d.follow(p, k, err)
	d.log.Debug("dial", "peer", p.String(), "name", k.cert.Name, "err", k.reason)
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
