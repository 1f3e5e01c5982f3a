package discovery

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/protocol"
)

// Limits of what is believed and dialled.
const (
	// maxHeard addresses of a member that others tell of: the other half is for what the member says itself.
	maxHearsay = protocol.MaxMemberAddresses / 2
	// fewFails in a row of an address that never led to the member: from then on it is tried each fourth time only.
	fewFails = 5

	// An endpoint that never answered as a member is tried once in endpointGap, after manyFails in a row once in endpointRest:
	// whatever is said of members, of however many, it does not become a flood for whoever is there.
	endpointGap  = time.Second
	manyFails    = 20
	endpointRest = time.Minute
	// hostBurst such tries of one host at once, then hostRate a second: what leads to a member does not count.
	hostBurst = 64
	hostRate  = 2.0
	// maxEndpoints are remembered. Beyond it only what has led to its member before is dialled, until others are forgotten.
	maxEndpoints = 8192
)

// rank says how much a hint counts.
type rank int

// The ranks.
const (
	hearsay rank = iota // what others say: mDNS, members, the DHT
	itself              // what the member says, on an authenticated connection; and the address that a ticket names
	person              // what a person gave
)

// hint is an address where a member may be.
type hint struct {
	addr   ma.Multiaddr
	rank   rank
	source string    // for people
	heard  time.Time // last
	proven bool      // the member answered there, when this node dialled it
	fails  int       // in a row
}

// hints are a member's, best first; at most protocol.MaxMemberAddresses.
type hints []hint

func (l hints) find(a ma.Multiaddr) int {
	return slices.IndexFunc(l, func(h hint) bool { return h.addr.Equal(a) })
}

// take adds what is said, and reports whether there is a new address among it.
func (l *hints) take(now time.Time, r rank, source string, addrs ...ma.Multiaddr) (fresh bool) {
	for i := range *l {
		if h := &(*l)[i]; r == person && h.rank == person { // the name that was given leads elsewhere now
			h.rank = itself
		}
	}
	said := map[int]bool{}
	for _, a := range addrs {
		if i := l.find(a); i >= 0 {
			h := &(*l)[i]
			h.heard = now
			if r > h.rank {
				h.rank, h.source = r, source
			}
			said[i] = true
		} else if len(said) < protocol.MaxMemberAddresses {
			said[len(*l)] = true
			*l = append(*l, hint{addr: a, rank: r, source: source, heard: now})
			fresh = true
		}
	}
	l.sort()
	return fresh
}

// own takes what the member says of itself instead of what it said before.
func (l *hints) own(now time.Time, source string, addrs ...ma.Multiaddr) (fresh bool) {
	for i := range *l {
		if h := &(*l)[i]; h.rank == itself {
			h.rank = hearsay
		}
	}
	return l.take(now, itself, source, addrs...)
}

// sort puts the best first and forgets the worst.
func (l *hints) sort() {
	slices.SortStableFunc(*l, func(a, b hint) int {
		return cmp.Or(cmp.Compare(b.rank, a.rank), b2i(b.proven)-b2i(a.proven), b.heard.Compare(a.heard))
	})
	n := 0
	*l = slices.DeleteFunc(*l, func(h hint) bool {
		if h.rank == hearsay && !h.proven {
			n++
		}
		return n > maxHearsay && h.rank == hearsay && !h.proven
	})
	*l = (*l)[:min(len(*l), protocol.MaxMemberAddresses)]
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

var (
	errNoNetwork = errors.New("this machine is connected to no network")
	errNoWay     = errors.New("no address of it can be reached from the networks of this machine")
	errHeldBack  = errors.New("what is at its addresses is not tried so often: nothing there ever answered as this member")
)

// choose picks what of it is dialled now.
func (l hints) choose(now time.Time, round int, n networks, e *endpoints, self []ma.Multiaddr) ([]ma.Multiaddr, error) {
	var out []ma.Multiaddr
	usable := false
	for _, h := range l {
		if kind(h.addr) == circuit {
			continue // Discovery.circuits has them
		}
		ip, isIP := addrIP(h.addr)
		if (isIP && !n.leadsTo(ip)) || (!isIP && n.alone()) || ma.Contains(self, h.addr) {
			continue
		}
		usable = true
		if !h.proven && h.rank < person {
			if h.fails >= fewFails && round%4 != 0 || !e.may(now, h.addr) {
				continue
			}
		}
		out = append(out, h.addr)
	}
	switch {
	case len(out) > 0:
		return out, nil
	case usable:
		return nil, errHeldBack
	case n.alone():
		return nil, errNoNetwork
	}
	return nil, errNoWay
}

// dialled notes how a dial ended: conn is nil if it failed at all that was tried.
func (l hints) dialled(now time.Time, tried []ma.Multiaddr, conn network.Conn, e *endpoints) {
	if conn != nil {
		if conn.Stat().Direction != network.DirOutbound {
			return
		}
		if i := l.find(conn.RemoteMultiaddr()); i >= 0 {
			l[i].proven, l[i].fails = true, 0
		}
		e.worked(conn.RemoteMultiaddr())
		return
	}
	for _, a := range tried {
		if i := l.find(a); i >= 0 {
			l[i].fails++
		}
		e.failed(now, a)
	}
}

// endpoints remembers what answered where nobody has proven to be a member.
type endpoints struct {
	all   map[string]*endpoint
	hosts map[string]*bucket
}

type endpoint struct {
	last  time.Time
	fails int
}

// bucket allows a burst, and then so many a second.
type bucket struct {
	left float64
	at   time.Time
}

func newEndpoints() *endpoints {
	return &endpoints{all: map[string]*endpoint{}, hosts: map[string]*bucket{}}
}

// endpointOf is a multiaddr's host, and host with port.
func endpointOf(a ma.Multiaddr) (host, hostPort string) {
	if ip, ok := addrIP(a); ok {
		host = ip.String()
		if ip.Is6() { // one machine has many of a network
			p, _ := ip.Prefix(64)
			host = p.String()
		}
	}
	network, hp, err := manet.DialArgs(a)
	if err != nil {
		return a.String(), a.String()
	}
	if host == "" {
		host = network + hp
	}
	if ap, err := netip.ParseAddrPort(hp); err == nil {
		hp = ap.String()
	}
	return host, hp
}

// may reports whether an address may be tried now, and counts it.
func (e *endpoints) may(now time.Time, a ma.Multiaddr) bool {
	host, hp := endpointOf(a)
	p := e.all[hp]
	if p == nil {
		if len(e.all) >= maxEndpoints {
			if e.forget(now); len(e.all) >= maxEndpoints {
				return false
			}
		}
		p = &endpoint{}
		e.all[hp] = p
	}
	gap := endpointGap
	if p.fails >= manyFails {
		gap = endpointRest
	}
	// Two members at one address, which only one of them can have, are each tried.
	if now.Sub(p.last) < gap-gap/10 {
		return false
	}
	b := e.hosts[host]
	if b == nil {
		b = &bucket{left: hostBurst, at: now}
		e.hosts[host] = b
	}
	b.left = min(hostBurst, b.left+hostRate*now.Sub(b.at).Seconds())
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	p.last = now
	return true
}

func (e *endpoints) failed(now time.Time, a ma.Multiaddr) {
	if _, hp := endpointOf(a); e.all[hp] != nil {
		e.all[hp].fails++
	}
}

func (e *endpoints) worked(a ma.Multiaddr) {
	host, hp := endpointOf(a)
	if e.all[hp] == nil {
		return
	}
	delete(e.all, hp)
	if b := e.hosts[host]; b != nil {
		b.left++
	}
}

// forget drops what was last tried long ago.
func (e *endpoints) forget(now time.Time) {
	for k, p := range e.all {
		if now.Sub(p.last) > 10*endpointRest {
			delete(e.all, k)
		}
	}
	for k, b := range e.hosts {
		if now.Sub(b.at) > 10*endpointRest {
			delete(e.hosts, k)
		}
	}
}

// reachable leaves out what cannot lead from here to a peer that is at other: another machine's loopback.
func reachable(addrs []ma.Multiaddr, other ma.Multiaddr) []ma.Multiaddr {
	local := manet.IsIPLoopback(other)
	return slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool {
		if _, ok := plausible(a); !ok {
			return true
		}
		return kind(a) != circuit && (manet.IsIPUnspecified(a) || (!local && manet.IsIPLoopback(a)))
	})
}
