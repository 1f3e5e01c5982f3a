package discovery

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

const (
	// briefGrace is how long a throw-away node that is gone is remembered: as long as what others keep for it.
	briefGrace = time.Minute
	// followGap between two pairings with a member that says it is in another mesh.
	followGap = 3 * time.Second
	// sentPoll is how often it is looked whether a node that was sent to another to be admitted has been.
	sentPoll = 100 * time.Millisecond
	// maxPairers pairings at once that nobody waits for.
	maxPairers = 8
)

// openToSecret has the node admit who knows its secret, if it has one.
func (d *Discovery) openToSecret(ctx context.Context) (stop func()) {
	if d.secret == "" {
		return func() {}
	}
	d.members.OpenToSecret(d.secret, d.whereIs, func(secret string, at []peer.AddrInfo) {
		d.spawnPairing(ctx, func() { d.pairAny(ctx, secret, at, true) })
	})
	return func() { d.members.OpenToSecret("", nil, nil) }
}

// spawnPairing runs f, unless so many are under way that what it is for will come again.
func (d *Discovery) spawnPairing(ctx context.Context, f func()) {
	select {
	case d.pairers <- struct{}{}:
	default:
		return
	}
	d.do(ctx, func() {
		d.spawn(func() {
			defer func() { <-d.pairers }()
			f()
		})
	})
}

// whereIs tells the addresses of a member, from what is published: it is called while Membership is locked.
func (d *Discovery) whereIs(p peer.ID) []ma.Multiaddr {
	for _, s := range *d.view.Load() {
		if s.Peer == p {
			return s.Addrs
		}
	}
	return nil
}

// free says of a throw-away node that nobody of its mesh is connected: it may go to another.
func (d *Discovery) free() bool { return d.brief && len(d.host.Network().Peers()) == 0 }

// pairAny pairs with the first of these that can be reached, and says who that was. sent: a member of theirs named them.
func (d *Discovery) pairAny(ctx context.Context, secret string, at []peer.AddrInfo, sent bool) (peer.ID, error) {
	err := error(&ConnectError{Reason: "nobody who may admit this node is known"})
	for _, info := range at {
		if info.ID == d.host.ID() {
			continue
		}
		for _, a := range info.Addrs {
			network, host, e := manet.DialArgs(a)
			if e != nil {
				continue
			}
			p, e := d.members.Pair(ctx, members.Place{Peer: info.ID, Network: network, Host: host}, secret, members.PairOptions{Free: d.free, Sent: sent})
			if e == nil && len(p.Ask) == 0 && !p.Sent {
				d.paired(ctx, p.Peer, p.Addr)
				return p.Peer, nil
			}
			if e != nil {
				err = e
			}
			if ctx.Err() != nil {
				return "", err
			}
		}
	}
	return "", err
}

// paired has the node connect to whom it has paired with.
func (d *Discovery) paired(ctx context.Context, p peer.ID, at ma.Multiaddr) {
	d.do(ctx, func() {
		d.meshChanged()
		d.hint(p, person, fromPerson, at)
	})
}

// meet finds out who is at an address, as a member; and where that is not possible, and the node has a secret, by that.
func (d *Discovery) meet(ctx context.Context, g Given) (peer.ID, ma.Multiaddr, error) {
	secret := cmp.Or(g.Secret, d.secret)
	probe := func() (*members.Cert, ma.Multiaddr, error) {
		return d.members.Probe(ctx, g.Network, g.Host, g.Peer)
	}
	if secret == "" {
		cert, addr, err := probe()
		if err != nil {
			return "", nil, err
		}
		return cert.Peer, addr, nil
	}
	var member peer.ID // it is one, but not of the circle yet
	var at ma.Multiaddr
	if !d.members.Alone() && !d.brief {
		cert, addr, err := probe()
		if err == nil {
			if own := d.members.Own(); cert.Peer == d.host.ID() || (own.Circle != "" && own.Circle == cert.Circle) {
				return cert.Peer, addr, nil
			}
			member, at = cert.Peer, addr
		} else if !otherMesh(err) {
			return "", nil, err
		}
	}
	for {
		p, err := d.members.Pair(ctx, members.Place{Peer: g.Peer, Network: g.Network, Host: g.Host}, secret, members.PairOptions{Free: d.free})
		switch {
		case errors.Is(err, members.ErrItself):
			return d.host.ID(), nil, nil
		case err != nil && member != "":
			d.log.Info("a member that does not have the same secret", "peer", member.String(), "err", reasonOf(err))
			return member, at, nil
		case err != nil:
			return "", nil, err
		case len(p.Ask) > 0:
			_, err = d.pairAny(ctx, secret, p.Ask, true)
		case !p.Sent:
			return p.Peer, p.Addr, nil
		case !d.pause(ctx, sentPoll): // until the other has asked those to whom it was sent
			err = ctx.Err()
		}
		if err != nil {
			return "", nil, err
		}
	}
}

// otherMesh reports whether a connection failed because the two are not members of one mesh, or are no more.
func otherMesh(err error) bool {
	var refused *members.Refused
	var rejected *members.Rejected
	return errors.As(err, &rejected) || (errors.As(err, &refused) && refused.Denial != protocol.Denial_TOO_MANY_TRIES)
}

// wrongSecret reports whether there is no use in trying again soon.
func wrongSecret(err error) bool {
	var refused *members.Refused
	return errors.Is(err, members.ErrWrongSecret) || errors.Is(err, members.ErrShortSecret) ||
		(errors.As(err, &refused) && (refused.Denial == protocol.Denial_WRONG_SECRET || refused.Denial == protocol.Denial_TOO_MANY_TRIES))
}

// notMet tells that nobody was met at a given address: once for each reason, if a secret was to admit.
func (d *Discovery) notMet(g Given, reason string) {
	if (g.Secret != "" || d.secret != "") && d.given[g.Text].reason != reason {
		d.log.Warn("the secret does not connect this node", "addr", g.Text, "err", reason)
	}
}

// follow pairs with a member that is in another mesh now: nodes with one secret come together in one.
func (d *Discovery) follow(p peer.ID, k *known, err error) {
	if d.secret == "" || !otherMesh(err) || time.Since(k.followed) < followGap {
		return
	}
	k.followed = time.Now()
	info := peer.AddrInfo{ID: p}
	for _, h := range k.addrs {
		info.Addrs = append(info.Addrs, h.addr)
	}
	ctx := d.ctx
	d.spawn(func() {
		if _, err := d.pairAny(ctx, d.secret, []peer.AddrInfo{info}, false); err != nil {
			d.log.Info("a member is in another mesh, and the secret does not bring it back", "peer", p.String(), "err", reasonOf(err))
		}
	})
}

// forgetBrief forgets a throw-away node soon, if it does not come back.
func (d *Discovery) forgetBrief(p peer.ID) {
	ctx := d.ctx
	time.AfterFunc(briefGrace, func() {
		d.do(ctx, func() {
			if k := d.peers[p]; k != nil && k.cert.Brief && !d.connected(p) && time.Since(k.lastSeen) >= briefGrace {
				d.members.ForgetBrief(p)
				d.sync()
			}
		})
	})
}

// circleChanged cuts the connections when this node has got another certificate with other rights: the peers have to see it.
func (d *Discovery) circleChanged() {
	own := d.members.Own()
	if own.Circle == d.circle {
		return
	}
	d.circle = own.Circle
	for _, p := range d.host.Network().Peers() {
		d.host.Network().ClosePeer(p)
	}
}

// ConnectBySecret is Connect where the one at the address is no member yet: whoever of the two is alone joins the other's mesh. The
// address is tried again from then on whenever nobody is connected there.
func (d *Discovery) ConnectBySecret(ctx context.Context, g Given) (peer.ID, error) {
	p, addr, err := d.meet(ctx, g)
	if err != nil {
		return "", connectError(err)
	}
	if p == d.host.ID() {
		return "", ErrSelf
	}
	d.do(ctx, func() {
		for _, other := range d.givens {
			if other.Text == g.Text && other.Secret == g.Secret {
				return
			}
		}
		d.givens = append(d.givens, g)
		d.given[g.Text] = givenState{peer: p}
		d.spawn(func() { d.seek(d.ctx, g) })
	})
	return p, d.reach(ctx, p, func() {
		d.meshChanged()
		d.hint(p, person, fromPerson, addr)
	})
}
