package discovery

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Who makes up peers on the local network keeps nobody from being heard there.
func TestMadeUpPeersGiveWay(t *testing.T) {
	t.Parallel()
	d, _, _ := listening(t)
	d.nets = networks{faces: []face{{addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}}}
	for i := range 2 * maxUnmet {
		d.heardOnLAN(peer.ID(fmt.Sprintf("made up %d", i)), []ma.Multiaddr{maddr(t, "/ip4/10.0.0.2/tcp/4001")})
	}
	d.heardOnLAN("a member", []ma.Multiaddr{maddr(t, "/ip4/10.0.0.3/tcp/4001")})
	if d.unmet["a member"] == nil || len(d.unmet) != maxUnmet {
		t.Errorf("a member is among the %d that were heard: %v", len(d.unmet), d.unmet["a member"] != nil)
	}
}
