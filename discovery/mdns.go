package discovery

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/zeroconf/v2"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
)

const (
	// interfaceCheck: a laptop that comes up again should find its peers within a few seconds.
	interfaceCheck = 2 * time.Second
	// mdnsRetry after a start that failed, beside each change of the interfaces.
	mdnsRetry = 30 * time.Second
	// lanSearch is how long Join looks for an inviter on the local network: mDNS asks again after four seconds.
	lanSearch = 6 * time.Second
)

// serviceName is what a mesh's nodes announce: meshes do not see each other. At most 15 characters (RFC 6763).
func serviceName(mesh members.MeshID) string { return "_mn-" + mesh.String()[:11] + "._udp" }

// found passes on what mDNS hears.
type found func(peer.AddrInfo)

func (f found) HandlePeerFound(i peer.AddrInfo) { f(i) }

// announce runs mDNS until ctx ends. libp2p's service publishes the addresses it had at its start, once, and fails to
// start where there is no network yet; so it is started anew whenever the interfaces or the mesh change.
func (d *Discovery) announce(ctx context.Context) {
	var service mdns.Service
	stop := func() {
		if service != nil {
			service.Close()
			service = nil
		}
	}
	defer func() { stop() }()
	said := false
	for {
		wait := d.news.wait()
		stop()
		s := mdns.NewMdnsService(d.host, serviceName(d.members.Mesh()), found(func(i peer.AddrInfo) {
			d.do(ctx, func() { d.hint(i.ID, "mDNS", i.Addrs...) })
		}))
		var retry <-chan time.Time
		if err := s.Start(); err != nil {
			s.Close()
			if !said {
				d.log.Info("mDNS does not work here now; it is tried again when the network changes", "err", err)
				said = true
			}
			timer := time.NewTimer(mdnsRetry)
			defer timer.Stop()
			retry = timer.C
		} else {
			service, said = s, false
		}
		select {
		case <-ctx.Done():
			return
		case <-wait:
		case <-retry:
		}
	}
}

// watchInterfaces calls changed when the machine's addresses have changed.
func watchInterfaces(ctx context.Context, changed func()) {
	last := interfaceAddrs()
	tick := time.NewTicker(interfaceCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := interfaceAddrs(); now != last {
			last = now
			changed()
		}
	}
}

func interfaceAddrs() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	slices.Sort(s)
	return strings.Join(s, " ")
}

// FindOnLAN is a members.LANFinder: it asks the local network for a member of a mesh, by mDNS, without a host of its own. It
// returns as soon as the peer has answered, after six seconds at the latest.
func FindOnLAN(ctx context.Context, mesh members.MeshID, p peer.ID) []ma.Multiaddr {
	ctx, cancel := context.WithTimeout(ctx, lanSearch)
	defer cancel()
	entries := make(chan *zeroconf.ServiceEntry, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		zeroconf.Browse(ctx, serviceName(mesh), "local", entries) // no network: nothing is found
	}()
	defer func() { <-done }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-done:
			return nil
		case e, ok := <-entries:
			if !ok {
				return nil
			}
			if addrs := addrsIn(e.Text, p); len(addrs) > 0 {
				cancel()
				return addrs
			}
		}
	}
}

// addrsIn reads the addresses of p from the text of a libp2p mDNS record.
func addrsIn(text []string, p peer.ID) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, t := range text {
		s, ok := strings.CutPrefix(t, "dnsaddr=")
		if !ok {
			continue
		}
		info, err := peer.AddrInfoFromString(s)
		if err != nil || info.ID != p {
			continue
		}
		for _, a := range info.Addrs {
			if dialable(a) && len(out) < 16 {
				out = append(out, a)
			}
		}
	}
	return out
}
