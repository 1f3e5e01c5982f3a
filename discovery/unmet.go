package discovery

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// maxUnmet peers of the mesh's name on the local network whose certificates are not held. They are asked for them: probers at once, one each
	// probeGap, each peer again after firstProbe and then after twice as long, up to lastProbe. Anybody on the network can make up such peers.
	maxUnmet   = 256
	probers    = 2
	probeGap   = 200 * time.Millisecond
	firstProbe = 5 * time.Second
	lastProbe  = 10 * time.Minute
)

// unmet is a peer of the mesh's name on the local network whose certificate is not held.
type unmet struct {
	addrs  []ma.Multiaddr
	heard  time.Time
	next   time.Time // of the next probe
	wait   time.Duration
	asking bool
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
		if len(addrs) == 0 {
			return
		}
		for q, o := range d.unmet {
			if len(d.unmet) < maxUnmet {
				break
			}
			if !o.asking { // any: those that are made up are to keep nobody out
				delete(d.unmet, q)
			}
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
