package members

import (
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// maxAddress bytes of an address that is taken from others: the longest DNS name, a port, and a relay's ID.
const maxAddress = 400

// Dialable reports whether a is an address that this node's transport can dial by itself: an IP address or DNS name with
// a TCP port, and nothing else.
func Dialable(a ma.Multiaddr) bool {
	if len(a) != 2 || len(a.Bytes()) > maxAddress || a[1].Protocol().Code != ma.P_TCP {
		return false
	}
	switch a[0].Protocol().Code {
	case ma.P_IP4, ma.P_IP6, ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		return true
	}
	return false
}

// Circuit is the relay of an address that leads through one: /p2p/RELAY/p2p-circuit, with or without a Dialable address
// before it. ok is false for any other address, a circuit through two relays included. Whether the relay is a member is
// for the caller to ask.
func Circuit(a ma.Multiaddr) (relay peer.ID, ok bool) {
	n := len(a)
	if n != 2 && n != 4 || len(a.Bytes()) > maxAddress || a[n-1].Protocol().Code != ma.P_CIRCUIT || a[n-2].Protocol().Code != ma.P_P2P {
		return "", false
	}
	if n == 4 && !Dialable(a[:2]) {
		return "", false
	}
	relay, err := peer.IDFromBytes(a[n-2].RawValue())
	return relay, err == nil
}

// CircuitThrough is the address of any peer through relay. Where the relay itself is, who dials knows.
func CircuitThrough(relay peer.ID) ma.Multiaddr {
	a, err := ma.NewMultiaddr("/p2p/" + relay.String() + "/p2p-circuit")
	if err != nil {
		panic(err) // a peer.ID that is no ID
	}
	return a
}
