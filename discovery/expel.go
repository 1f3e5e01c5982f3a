package discovery

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

// maxNewsRevocations in one MemberNews: each costs up to seven signatures to check (0.3 ms).
const maxNewsRevocations = 400

// expel cuts off whoever was revoked or has left, and tells the others what has become known of that. It is told at once and to
// all: who was revoked is to have no member left that does not know.
func (d *Discovery) expel() {
	for _, p := range d.host.Network().Peers() {
		if d.peers[p] == nil {
			d.log.Info("connection cut: it is no member", "peer", p.String())
			d.host.Network().ClosePeer(p)
		}
	}
	if news := d.members.Untold(); len(news) > 0 {
		for _, to := range d.order() {
			if d.peers[to].up {
				d.tellRevoked(to, news)
			}
		}
	}
}

// tellRevoked sends revocations to a connected member, which passes on those that are new to it.
func (d *Discovery) tellRevoked(to peer.ID, revocations []*protocol.Revocation) {
	ctx := d.ctx
	for len(revocations) > 0 {
		n, size := 0, 0
		for n < len(revocations) && n < maxNewsRevocations && (n == 0 || size < protocol.MaxMemberNews/2) {
			size += proto.Size(revocations[n])
			n++
		}
		news := &protocol.MemberNews{Revocations: revocations[:n]}
		revocations = revocations[n:]
		d.spawn(func() {
			ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "news for the connected"), newsTimeout)
			defer cancel()
			if err := send(ctx, d.host, to, news, d.members.Speaks()); err != nil {
				d.log.Debug("tell a member of revocations", "peer", to.String(), "protocol", protocol.MembersProtocol, "err", err)
			}
		})
	}
}

// tellRenewed tells all that are connected of this node's own certificate when it has another: they would go by the old one until they
// meet it again, and cut it off when that ends.
func (d *Discovery) tellRenewed() {
	own := d.members.Own()
	if own.Serial == d.serial {
		return
	}
	d.serial = own.Serial
	news := &protocol.MemberNews{Members: []*protocol.MemberRecord{{Chain: own.Chain()}}}
	ctx := d.ctx
	for to, k := range d.peers {
		if !k.up {
			continue
		}
		d.spawn(func() {
			ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "news for the connected"), newsTimeout)
			defer cancel()
			if err := send(ctx, d.host, to, news, d.members.Speaks()); err != nil {
				d.log.Debug("tell a member of this node's new certificate", "peer", to.String(), "protocol", protocol.MembersProtocol, "err", err)
			}
		})
	}
}

// Tell sends revocations to all members that are connected now and returns how many have taken them, when all have or ctx ends: the
// last word of a node that leaves.
func (d *Discovery) Tell(ctx context.Context, revocations []*protocol.Revocation) int {
	var told atomic.Int32
	var wg sync.WaitGroup
	for _, p := range d.host.Network().Peers() {
		wg.Go(func() {
			if send(network.WithNoDial(ctx, "news for the connected"), d.host, p, &protocol.MemberNews{Revocations: revocations}, d.members.Speaks()) == nil {
				told.Add(1)
			}
		})
	}
	wg.Wait()
	return int(told.Load())
}
