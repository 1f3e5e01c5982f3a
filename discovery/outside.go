package discovery

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	bhost "github.com/libp2p/go-libp2p/p2p/host/basic"
	"github.com/libp2p/go-libp2p/p2p/host/observedaddrs"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

func init() {
	// One member outside is enough to learn this node's address there from. libp2p asks for four, because it believes no single
	// stranger; here it is a member who says it, and what it says is a hint.
	observedaddrs.ActivationThresh = 1
}

// meshHost is NewHost's host, with what Discovery needs of it beside libp2p's interface.
type meshHost struct {
	host.Host
	told    *told
	router  *router
	punch   *holepunch.Service // nil: the node does not listen
	punched punched
	outside outside
}

// Close implements host.Host.
func (h *meshHost) Close() error {
	if h.punch != nil {
		h.punch.Close()
	}
	err := h.Host.Close()
	h.punched.wg.Wait()
	return err
}

// told is what the node tells others of its addresses.
type told struct {
	announce []ma.Multiaddr
	relays   atomic.Pointer[[]peer.ID] // through which it can be met
}

// addrs is libp2p's AddrsFactory: of all that the node sees itself at, what it tells.
func (t *told) addrs(own []ma.Multiaddr) []ma.Multiaddr {
	out := slices.DeleteFunc(slices.Clone(own), func(a ma.Multiaddr) bool {
		return !members.Dialable(a) || slices.ContainsFunc(t.announce, func(b ma.Multiaddr) bool { return kind(a) == kind(b) })
	})
	out = append(out, t.announce...)
	if relays := t.relays.Load(); relays != nil {
		for _, r := range *relays {
			out = append(out, members.CircuitThrough(r))
		}
	}
	return out
}

// The kinds of addresses.
const (
	onLoopback = iota
	private
	public
	circuit
)

func kind(a ma.Multiaddr) int {
	switch {
	case !members.Dialable(a):
		return circuit
	case manet.IsIPLoopback(a):
		return onLoopback
	case manet.IsPublicAddr(a):
		return public
	}
	return private
}

// plausible is what can be said of an address without knowing the members. A circuit is kept in its short form: where the
// relay is, its own addresses tell.
func plausible(a ma.Multiaddr) (ma.Multiaddr, bool) {
	if members.Dialable(a) {
		return a, true
	}
	relay, ok := members.Circuit(a)
	if !ok {
		return nil, false
	}
	return members.CircuitThrough(relay), true
}

// best are the first MaxMemberAddresses of a peer's addresses without repetitions, those that lead through a relay before the others: a
// machine with many interfaces must not crowd out the one way that is left from outside.
func best(addrs []ma.Multiaddr) []ma.Multiaddr {
	var circuits, rest []ma.Multiaddr
	for _, a := range addrs[:min(len(addrs), 4*protocol.MaxMemberAddresses)] {
		a, ok := plausible(a)
		if !ok || slices.ContainsFunc(circuits, a.Equal) || slices.ContainsFunc(rest, a.Equal) {
			continue
		}
		if kind(a) == circuit {
			if len(circuits) < mostRelays {
				circuits = append(circuits, a)
			}
		} else {
			rest = append(rest, a)
		}
	}
	return append(circuits, rest[:min(len(rest), protocol.MaxMemberAddresses-len(circuits))]...)
}

// relayDelay is how long direct addresses are dialled alone: a connection within a country takes half of it. Where they do not answer it is what a
// relayed connection takes longer.
const relayDelay = 250 * time.Millisecond

// directFirst is when which address of a peer is dialled: direct ones as libp2p does, circuits after them. (libp2p's own ranker waits for 1.5 s with
// circuits that do not say where the relay is.)
func directFirst(addrs []ma.Multiaddr) []network.AddrDelay {
	var circuits []ma.Multiaddr
	direct := make([]ma.Multiaddr, 0, len(addrs))
	for _, a := range addrs {
		if _, ok := members.Circuit(a); ok {
			circuits = append(circuits, a)
		} else {
			direct = append(direct, a)
		}
	}
	out := swarm.DefaultDialRanker(direct)
	for i, a := range circuits {
		d := network.AddrDelay{Addr: a, Delay: time.Duration(i) * relayDelay}
		if len(direct) > 0 {
			d.Delay += relayDelay
		}
		out = append(out, d)
	}
	return out
}

// mayPunch has the node take part in hole punches.
func (h *meshHost) mayPunch(log *slog.Logger) error {
	all, ok := h.Host.(interface {
		AllAddrs() []ma.Multiaddr
		IDService() identify.IDService
	})
	if !ok {
		return fmt.Errorf("punch holes: %T tells no addresses", h.Host)
	}
	h.punched.log = log
	// At other interfaces than the public one, too: two members that a VPN connects may know of each other through a relay only.
	addrs := func() []ma.Multiaddr {
		return h.outside.with(slices.DeleteFunc(all.AllAddrs(), func(a ma.Multiaddr) bool { return !members.Dialable(a) || kind(a) == onLoopback }))
	}
	var err error
	h.punch, err = holepunch.NewService(quiet{h}, all.IDService(), addrs,
		holepunch.DirectDialTimeout(punchTimeout), holepunch.WithAddrFilter(punchable{}), holepunch.WithTracer(&h.punched))
	return err
}

// quiet is a host for libp2p's hole punching that is told of no connections and knows no addresses. Left to itself it begins with each relayed connection that
// comes in, on both sides if both dialled, and with a plain dial for as long as a punch may take. A punch of the other side then finds a dial to the same address
// under way, joins it, and fails: that one does not come from the right port.
type quiet struct{ host.Host }

// Network implements host.Host.
func (h quiet) Network() network.Network { return unnoticed{h.Host.Network()} }

// Peerstore implements host.Host.
func (h quiet) Peerstore() peerstore.Peerstore { return addressless{h.Host.Peerstore()} }

type unnoticed struct{ network.Network }

// Notify implements network.Network.
func (unnoticed) Notify(network.Notifiee) {}

type addressless struct{ peerstore.Peerstore }

// Addrs implements peerstore.Peerstore.
func (addressless) Addrs(peer.ID) []ma.Multiaddr { return nil }

// outside are the public IP addresses under which members saw this node last.
type outside struct {
	mu  sync.Mutex // guards ips
	ips []netip.Addr
}

// mostOutside: one of each version of IP, and those of a second provider.
const mostOutside = 4

func (o *outside) saw(a ma.Multiaddr) {
	ip, ok := ipOf(a)
	if !ok || !manet.IsPublicAddr(a) {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ips = append([]netip.Addr{ip}, slices.DeleteFunc(o.ips, func(x netip.Addr) bool { return x == ip })...)
	o.ips = o.ips[:min(len(o.ips), mostOutside)]
}

// with adds to the node's addresses where a router would let it be met that keeps ports: most do. It is for hole punches, if no address with this IP
// is known better: from a connection that was dialled from the port that the node listens on.
func (o *outside) with(own []ma.Multiaddr) []ma.Multiaddr {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := slices.Clone(own)
	for _, ip := range o.ips {
		if slices.ContainsFunc(own, func(a ma.Multiaddr) bool { x, ok := ipOf(a); return ok && x == ip }) {
			continue
		}
		guess, err := manet.FromIP(ip.AsSlice())
		if err != nil {
			continue
		}
		for _, a := range own {
			if x, ok := ipOf(a); ok && x.Is4() == ip.Is4() {
				g := ma.Join(guess, ma.Multiaddr{a[1]})
				if !slices.ContainsFunc(out, g.Equal) {
					out = append(out, g)
				}
			}
		}
	}
	return out
}

// punchable bounds what is dialled in a punch: addresses of the kind that is dialled otherwise, and no more of them.
type punchable struct{}

// FilterLocal implements holepunch.AddrFilter.
func (punchable) FilterLocal(_ peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr { return direct(addrs) }

// FilterRemote implements holepunch.AddrFilter.
func (punchable) FilterRemote(_ peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr { return direct(addrs) }

func direct(addrs []ma.Multiaddr) []ma.Multiaddr {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool { return kind(a) == circuit || kind(a) == onLoopback })
	return addrs[:min(len(addrs), protocol.MaxMemberAddresses)]
}

// router asks the network's router for a port that leads to this node, by libp2p's NAT manager. That looks for a router once, when it is
// made; a laptop meets another one with each network.
type router struct {
	log *slog.Logger

	mu     sync.Mutex // guards what follows
	net    network.Network
	now    bhost.NATManager
	closed bool
}

// serve is libp2p's constructor.
func (r *router) serve(n network.Network) bhost.NATManager {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.net, r.now = n, bhost.NewNATManager(n)
	return r
}

// moved begins anew after the network has changed. It may take seconds: the old router is told that the port is not wanted any more.
func (r *router) moved() {
	r.mu.Lock()
	old := r.now
	r.now = nil
	r.mu.Unlock()
	if old == nil {
		return
	}
	old.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.now = bhost.NewNATManager(r.net)
	}
}

// GetMapping implements bhost.NATManager.
func (r *router) GetMapping(a ma.Multiaddr) ma.Multiaddr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil {
		return nil
	}
	return r.now.GetMapping(a)
}

// HasDiscoveredNAT implements bhost.NATManager.
func (r *router) HasDiscoveredNAT() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now != nil && r.now.HasDiscoveredNAT()
}

// Close implements bhost.NATManager.
func (r *router) Close() error {
	r.mu.Lock()
	r.closed = true
	old := r.now
	r.now = nil
	r.mu.Unlock()
	if old != nil {
		return old.Close()
	}
	return nil
}
