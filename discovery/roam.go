package discovery

import (
	"math/rand/v2"
	"strings"
	"time"
)

const (
	// staleGrace is how long a connection from an address that this machine has no more is kept: addresses are taken away
	// and given back when they are renewed.
	staleGrace = 500 * time.Millisecond
	// maxPast own addresses of before are remembered: libp2p goes on saying them for a minute.
	maxPast = 64
)

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
