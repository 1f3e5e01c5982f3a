package discovery

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// incompatibleRetry is how often a member of another version is tried: a person has to update one of the two first. A change of
// the network, a new address of it, or its own dial come earlier.
const incompatibleRetry = 10 * time.Minute

// incompatible finds out what the other side speaks where that is why a dial failed: libp2p only says that nothing was taken. The
// error is then one that wraps *protocol.Incompatible.
func (d *Discovery) incompatible(ctx context.Context, err error) error {
	var dialErr *swarm.DialError
	if !errors.As(err, &dialErr) {
		return err
	}
	for _, e := range dialErr.DialErrors {
		if !members.NoCommonVersion(e.Cause) {
			continue
		}
		network, host, aerr := manet.DialArgs(e.Address)
		if aerr != nil {
			continue
		}
		if at := d.members.VersionAt(ctx, network, host); errors.As(at, new(*protocol.Incompatible)) {
			return at
		}
	}
	return err
}

// nextTry is when a member is dialled again after err.
func (k *known) nextTry(err error) time.Time {
	if errors.As(err, new(*protocol.Incompatible)) {
		return time.Now().Add(incompatibleRetry)
	}
	return k.again(time.Now())
}

// otherStreams cuts a member that was admitted and does not speak what comes after that: what it said of itself has the
// scheduler's messages or the members' news in other versions only. Both sides see that, and each says it.
func (d *Discovery) otherStreams(p peer.ID, k *known, spoken []libp2pproto.ID) bool {
	ids := make([]string, len(spoken))
	for i, id := range spoken {
		ids[i] = string(id)
	}
	k.version = cmp.Or(
		protocol.Incompatibility(protocol.NamePeer, ids, d.members.Speaks()),
		protocol.Incompatibility(protocol.NameMembers, ids, d.members.Speaks()),
		protocol.Incompatibility(protocol.NameBlob, ids, d.members.Speaks()))
	if k.version == nil {
		return false
	}
	d.log.Warn("member of another version", "peer", p.String(), "name", k.cert.Name, "err", k.version.Error())
	d.host.Network().ClosePeer(p)
	return true
}
