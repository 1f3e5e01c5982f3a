package discovery

import (
	"cmp"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/protocol"
)

// State is what is known of a member, or of a given address where no member was found yet.
type State struct {
	Peer     peer.ID // empty for a given address that is no member yet
	Name     string  // what it said last that it is called, or its certificate does; or the address as it was given
	State    Standing
	Reason   string    // why it is not connected; a sentence
	Fix      string    // what to do about that; "" if it is not known
	Via      string    // where its first address was heard: "itself", "given", "ticket", "mDNS", "member NAME", "DHT"; "" if it has none
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

// Known says how each member that is known stands, by peer ID, and then each given address where nobody was found yet. It
// may be called concurrently, before Run as well. The slice is the caller's, the addresses are not to be changed.
func (d *Discovery) Known() []State { return slices.Clone(*d.view.Load()) }

// show publishes what Known returns.
func (d *Discovery) show() {
	out := make([]State, 0, len(d.peers)+len(d.given))
	for _, p := range d.order() {
		k := d.peers[p]
		s := State{Peer: p, Name: cmp.Or(k.name, k.cert.Name), Reason: k.reason, NextTry: k.next, LastSeen: k.lastSeen, State: Waiting, Version: k.version}
		for _, h := range k.addrs {
			s.Addrs = append(s.Addrs, h.addr)
		}
		if len(k.addrs) > 0 {
			s.Via = k.addrs[0].source
		}
		if k.code != "" {
			s.Fix = Advice([]Answer{{Code: k.code}})
		}
		switch {
		case k.up:
			s.State, s.Reason, s.Fix, s.LastSeen, s.NextTry, s.Version = Connected, "", "", time.Now(), time.Time{}, nil
		case k.dialing > 0:
			s.State = Dialing
			if s.Reason == "" {
				s.Reason = "it is being called for the first time"
			}
		case len(k.addrs) == 0:
			s.State, s.Reason = Unknown, errNothing.Error()
		case s.Reason == "":
			s.Reason = "it was heard of just now"
		}
		out = append(out, s)
	}
	for _, g := range d.givens {
		if st := d.given[g.Text]; st.peer == "" && !st.self {
			s := State{Name: g.Text, State: Waiting, Reason: st.reason, Fix: st.fix, NextTry: st.next}
			if st.reason == "" {
				s.State = Dialing
			}
			out = append(out, s)
		}
	}
	d.view.Store(&out)
}
