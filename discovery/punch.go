package discovery

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
)

type upgrade struct {
	next    time.Time
	backoff backoff
	busy    bool
}

// moveFirst is left to both sides to notice a direct connection.
const moveFirst = time.Second

// straighten plans direct connections to those that are connected through a relay only, and closes relayed connections beside direct ones.
func (d *Discovery) straighten(h *meshHost) {
	now := time.Now()
	for p := range d.ways.upgrades {
		if k := d.peers[p]; k == nil || !k.up {
			delete(d.ways.upgrades, p)
		}
	}
	for p, k := range d.peers {
		if !k.up {
			continue
		}
		straight, others := d.paths(p)
		u := d.ways.upgrades[p]
		switch {
		case len(others) == 0:
			delete(d.ways.upgrades, p)
		case len(straight) > 0:
			delete(d.ways.upgrades, p)
			d.closeRelayed(p, straight, others, now)
		case slices.ContainsFunc(others, func(c network.Conn) bool { return c.Stat().Direction != network.DirInbound }):
			delete(d.ways.upgrades, p) // the side that accepted asks; if both did, one connection is about to be closed
		case u == nil:
			d.ways.upgrades[p] = &upgrade{next: now.Add(punchDelay), backoff: backoff{upgradeFirst}}
			d.arrangeIn(punchDelay)
		case !u.busy && !now.Before(u.next):
			u.busy = true
			d.upgrade(h, p, k, u)
		}
	}
}

// closeRelayed closes relayed connections once they carry nothing. Only the lower peer ID does, as in oneConnection.
func (d *Discovery) closeRelayed(p peer.ID, straight, others []network.Conn, now time.Time) {
	if d.host.ID() > p {
		return
	}
	since := now
	for _, c := range straight {
		if o := c.Stat().Opened; o.Before(since) {
			since = o
		}
	}
	for _, c := range others {
		if now.Sub(since) < moveTime && (len(c.GetStreams()) > 0 || now.Sub(since) < moveFirst) {
			d.arrangeIn(moveFirst)
			continue
		}
		d.log.Info("a direct connection took the relayed one's place", "peer", p.String(), "name", d.nameOf(p))
		d.spawn(func() { c.Close() })
	}
}

// arrangeIn has arrange called once more after t.
func (d *Discovery) arrangeIn(t time.Duration) {
	time.AfterFunc(t, func() { d.do(d.ctx, func() { d.ways.changed = true }) })
}

// upgrade tries for a direct connection to a peer that is connected through a relay: both sides dial all that they know of each other at the same
// moment, which opens the way through routers, and which also is what a plain dial would do.
func (d *Discovery) upgrade(h *meshHost, p peer.ID, k *known, u *upgrade) {
	var addrs []ma.Multiaddr
	for _, a := range k.addrs {
		if members.Dialable(a.addr) {
			addrs = append(addrs, a.addr)
		}
	}
	h.punched.run(func() {
		err := errors.New("this node has no address yet")
		if slices.Contains(h.Mux().Protocols(), holepunch.Protocol) {
			h.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
			err = h.punch.DirectConnect(p)
		}
		d.do(d.ctx, func() {
			u.busy = false
			u.next = time.Now().Add(u.backoff.next(upgradeMost))
			if err != nil {
				d.log.Debug("no direct connection yet", "peer", p.String(), "next", u.next, "err", oneLine(err))
			}
			d.ways.changed = true
		})
	})
}

// wayMoved begins anew after the machine's addresses have changed.
func (d *Discovery) wayMoved() {
	h, ok := d.host.(*meshHost)
	if !ok {
		return
	}
	h.punched.run(h.router.moved)
	for p := range d.ways.upgrades {
		d.upgradeSoon(p)
	}
	d.ways.changed = true
}

// upgradeSoon has a direct connection tried at once to who is connected through a relay: something has changed.
func (d *Discovery) upgradeSoon(p peer.ID) {
	if u := d.ways.upgrades[p]; u != nil && !u.busy {
		u.backoff = backoff{upgradeFirst}
		u.next = time.Now()
		d.ways.changed = true
	}
}

// punched knows of hole punches: which were tried lately, and which go on.
type punched struct {
	log *slog.Logger
	wg  sync.WaitGroup

	mu   sync.Mutex // guards last
	last map[peer.ID]time.Time
}

// run starts f, which ends when the host is closed, soon after.
func (x *punched) run(f func()) { x.wg.Go(f) }

// Trace implements holepunch.EventTracer.
func (x *punched) Trace(e *holepunch.Event) {
	switch v := e.Evt.(type) {
	case *holepunch.StartHolePunchEvt:
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.last == nil {
			x.last = map[peer.ID]time.Time{}
		}
		x.last[e.Remote] = time.Now()
		for p, t := range x.last {
			if time.Since(t) > provenFor {
				delete(x.last, p)
			}
		}
	case *holepunch.EndHolePunchEvt:
		x.log.Debug("hole punch", "peer", e.Remote.String(), "ok", v.Success, "took", v.EllapsedTime, "err", v.Error)
	}
}

// lately says whether a connection of p's that began at t may come from a punch.
func (x *punched) lately(p peer.ID, t time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	last, ok := x.last[p]
	return ok && t.After(last.Add(-time.Second)) && t.Before(last.Add(2*punchTimeout))
}
