package discovery

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
)

// Times of the watcher of the machine's interfaces.
const (
	// settle is how long a change may go on before it is looked at: an address and its link come as several messages.
	settle = 20 * time.Millisecond
	// eventPoll is how often the interfaces are looked at where the system tells of changes, in case it lost one;
	// slowPoll where it does not. A look takes 0.1–0.3 ms.
	eventPoll = time.Minute
	slowPoll  = time.Second
)

// networks is what this machine is connected to at one moment.
type networks struct {
	faces []face
	text  string // all of it, to compare
}

// face is an interface that is up and has a carrier.
type face struct {
	net.Interface
	addrs []netip.Prefix // that can be used now: IPv6 ones that are still being checked for duplicates are left out
}

// readNetworks looks at the interfaces.
func readNetworks() networks {
	var n networks
	all, err := net.Interfaces()
	if err != nil {
		return n
	}
	tentative := tentativeAddrs()
	var text []string
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&(net.FlagRunning|net.FlagLoopback) == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // gone in between
		}
		f := face{Interface: i}
		for _, a := range addrs {
			ipnet, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, ok := netip.AddrFromSlice(ipnet.IP)
			ip = ip.Unmap()
			bits, _ := ipnet.Mask.Size()
			if ok && !tentative[ip] {
				f.addrs = append(f.addrs, netip.PrefixFrom(ip, bits))
			}
		}
		n.faces = append(n.faces, f)
		text = append(text, f.text())
	}
	slices.Sort(text)
	n.text = strings.Join(text, "\n")
	return n
}

// text is the face with its addresses, to compare. One with nothing but link-local addresses, as each container brings, is
// of no account.
func (f face) text() string {
	var s []string
	for _, a := range f.addrs {
		if !a.Addr().IsLinkLocalUnicast() || a.Addr().Is4() {
			s = append(s, a.String())
		}
	}
	if len(s) == 0 {
		return ""
	}
	for _, a := range f.addrs { // mDNS over IPv6 begins when the link-local address can be used
		if a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
			s = append(s, a.String())
		}
	}
	slices.Sort(s)
	return fmt.Sprint(f.Index, f.Name, s)
}

// has reports whether ip is this machine's own.
func (n networks) has(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return slices.ContainsFunc(n.faces, func(f face) bool {
		return slices.ContainsFunc(f.addrs, func(p netip.Prefix) bool { return p.Addr() == ip })
	})
}

// leadsTo reports whether this machine has an address from which ip can be reached at all: one of that family, and on
// the same machine for loopback. Names are for the resolver to judge.
func (n networks) leadsTo(ip netip.Addr) bool {
	ip = ip.Unmap()
	return slices.ContainsFunc(n.faces, func(f face) bool {
		return slices.ContainsFunc(f.addrs, func(p netip.Prefix) bool {
			a := p.Addr()
			switch {
			case ip.IsLoopback():
				return a.IsLoopback()
			case a.IsLoopback(), a.Is4() != ip.Is4():
				return a == ip
			case ip.Is6() && !ip.IsLinkLocalUnicast() && a.IsLinkLocalUnicast():
				return false
			}
			return true
		})
	})
}

// alone reports whether there is no network at all, but for the machine itself.
func (n networks) alone() bool {
	return !slices.ContainsFunc(n.faces, func(f face) bool {
		return slices.ContainsFunc(f.addrs, func(p netip.Prefix) bool { return !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() })
	})
}

// onLink reports whether ip is a neighbour's on one of the networks.
func (n networks) onLink(ip netip.Addr) bool {
	ip = ip.Unmap()
	return slices.ContainsFunc(n.faces, func(f face) bool {
		return slices.ContainsFunc(f.addrs, func(p netip.Prefix) bool { return p.Contains(ip) })
	})
}

// addrIP is the IP address of a multiaddr that begins with one.
func addrIP(a ma.Multiaddr) (netip.Addr, bool) {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	n, ok := netip.AddrFromSlice(ip)
	return n.Unmap(), ok
}

// listens are the addresses under which h can be reached on the faces: libp2p's own list is up to a minute old, for it
// remembers the interfaces for that long.
func listens(h host.Host, faces []face) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, l := range h.Network().ListenAddresses() {
		ip, ok := addrIP(l)
		if !ok || !members.Dialable(l) {
			continue
		}
		for _, f := range faces {
			for _, p := range f.addrs {
				a := p.Addr()
				if a.Is4() != ip.Is4() || (!ip.IsUnspecified() && ip != a) || (a.Is6() && a.IsLinkLocalUnicast()) {
					continue
				}
				if m, err := manet.FromIP(a.AsSlice()); err == nil {
					out = append(out, append(m, l[1:]...))
				}
			}
		}
	}
	return out
}

// watchNetworks calls changed with the networks, at once and whenever they change, until ctx ends.
func watchNetworks(ctx context.Context, changed func(networks)) {
	events := make(chan struct{}, 1)
	poll := slowPoll
	if done := kernelEvents(ctx, func() {
		select {
		case events <- struct{}{}:
		default:
		}
	}); done != nil {
		poll = eventPoll
		defer func() { <-done }()
	}
	last := readNetworks()
	changed(last)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-events:
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
		}
		if now := readNetworks(); now.text != last.text {
			last = now
			changed(now)
		}
	}
}
