package discovery

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

const (
	// joinService is what nodes announce that let others in by a short code or a shared secret, and only while they do. It names no
	// mesh: whoever comes does not know it yet.
	joinService = "_mn-join._udp"
	// joinCode and joinSecret are in the text: the number with which an open code begins, or that a secret is open. Neither tells
	// anything of the words or of the secret.
	joinCode   = "code="
	joinSecret = "secret=1"

	// codeSearch is how long a code is looked for, and codeMore how much longer after the first machine that has one with that
	// number: two may have.
	codeSearch = lanSearch
	codeMore   = 300 * time.Millisecond
	// maxFound machines for one code: each is an impostor's chance, see members.JoinCode.
	maxFound = 8
	// maxStrangers with a secret are remembered. Each is tried again after strangerRetry.
	maxStrangers  = 256
	strangerRetry = time.Minute
)

// lookout announces what is open here, and looks for others with a secret, until ctx ends.
func (d *Discovery) lookout(ctx context.Context) {
	changes, stop := d.members.Subscribe()
	defer stop()
	tick := time.NewTicker(codeCheck)
	defer tick.Stop()
	open := map[string]func(){} // what is announced, and its end
	defer func() {
		for _, end := range open {
			end()
		}
	}()
	seen := map[peer.ID]time.Time{}
	for {
		want := map[string]bool{}
		for _, n := range d.members.OpenCodes() {
			want[codeText(n)] = true
		}
		if d.secret != "" {
			want[joinSecret] = true
		}
		for text, end := range open {
			if !want[text] {
				end()
				delete(open, text)
			}
		}
		for text := range want {
			if open[text] == nil {
				open[text] = d.announceJoin(ctx, text, seen)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changes:
		case <-tick.C: // a code expires without a word
		}
	}
}

// codeCheck is how often it is looked whether a code has expired.
const codeCheck = 10 * time.Second

// codeText is what is announced of an open code.
func codeText(nameplate uint32) string { return joinCode + strconv.Itoa(int(nameplate)) }

// announceJoin announces one thing that is open here, until end is called.
func (d *Discovery) announceJoin(ctx context.Context, text string, seen map[peer.ID]time.Time) (end func()) {
	l := newLAN(joinService, d.log)
	l.text = func(f face) []string { return append([]string{text}, d.lanText(f)...) }
	if text == joinSecret {
		if !d.brief { // it admits nobody
			l.name = lanName(d.host.ID(), l.service)
		}
		l.heard = func(heard []string) {
			if slices.Contains(heard, joinSecret) {
				d.heardSecret(ctx, seen, heard)
			}
		}
	} else {
		l.name = codeName(text, l.service)
		l.heard = func([]string) {}
	}
	run, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { l.run(run) })
	d.do(ctx, func() {
		d.joins[text] = l
		l.use(d.nets, true)
	})
	return func() {
		cancel()
		running.Wait()
		d.do(ctx, func() { delete(d.joins, text) })
	}
}

// codeName is what an announcement of a code is asked for by: only those who have one with that number answer.
func codeName(text, service string) string {
	return strings.ReplaceAll(text, "=", "-") + "." + service
}

// lanText is where this node is, on one interface.
func (d *Discovery) lanText(f face) []string {
	var text []string
	for _, a := range listens(d.host, []face{f}) {
		if len(text) < maxOwnAddrs {
			text = append(text, dnsaddr+a.String()+"/p2p/"+d.host.ID().String())
		}
	}
	return text
}

// heardSecret pairs with a node on the local network that takes a secret, unless it is connected. Anybody may have written text.
func (d *Discovery) heardSecret(ctx context.Context, seen map[peer.ID]time.Time, text []string) {
	p, addrs := peerIn(text)
	if p == "" || p == d.host.ID() || len(addrs) == 0 || d.connected(p) {
		return
	}
	if own := d.members.Own(); own.Circle != "" {
		if c, ok := d.members.Certificate(p); ok && c.Circle == own.Circle {
			return // a member: the redial loop does it
		}
	}
	now := time.Now()
	if at, ok := seen[p]; ok && now.Sub(at) < strangerRetry {
		return
	}
	if len(seen) >= maxStrangers {
		clear(seen)
	}
	seen[p] = now
	d.spawnPairing(ctx, func() {
		if _, err := d.pairAny(ctx, d.secret, []peer.AddrInfo{{ID: p, Addrs: addrs}}, false); err != nil {
			d.log.Warn("a node in the local network takes a secret, and this one's does not connect them", "peer", p.String(), "addr", addrs[0].String(), "err", reasonOf(err))
		}
	})
}

// FindCode asks the local network for machines that have a code with that number open. It returns soon after the first has
// answered, after six seconds at the latest.
func FindCode(ctx context.Context, nameplate uint32) []members.Place {
	ctx, cancel := context.WithTimeout(ctx, codeSearch)
	defer cancel()
	l := newLAN(joinService, slog.New(slog.DiscardHandler))
	l.asking = codeName(codeText(nameplate), l.service)
	heard := make(chan peer.AddrInfo, maxFound)
	l.heard = func(text []string) {
		p, addrs := peerIn(text)
		if p == "" || len(addrs) == 0 || !slices.Contains(text, codeText(nameplate)) {
			return
		}
		select {
		case heard <- peer.AddrInfo{ID: p, Addrs: addrs}:
		default:
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { l.run(ctx) })
	running.Go(func() { watchNetworks(ctx, func(n networks) { l.use(n, false) }) })
	var found []members.Place
	seen := map[peer.ID]bool{}
	var more <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return found
		case <-more:
			return found
		case i := <-heard:
			if seen[i.ID] || len(seen) >= maxFound {
				continue
			}
			seen[i.ID] = true
			for _, a := range i.Addrs {
				if at, ok := placeAt(i.ID, a); ok {
					found = append(found, at)
				}
			}
			if more == nil {
				more = time.After(codeMore)
			}
		}
	}
}

func placeAt(p peer.ID, a ma.Multiaddr) (members.Place, bool) {
	network, host, err := manet.DialArgs(a)
	if err != nil {
		return members.Place{}, false
	}
	if _, port, err := net.SplitHostPort(host); err != nil || port == "0" {
		return members.Place{}, false
	}
	return members.Place{Peer: p, Network: network, Host: host}, true
}

// serviceName is what a mesh's nodes announce: meshes do not see each other. At most 15 characters (RFC 6763).
func serviceName(mesh members.MeshID) string { return "_mn-" + mesh.String()[:11] + "._udp" }

// lanName is the name of a peer in its mesh's service: the end of its peer ID, which is enough to tell members apart.
func lanName(p peer.ID, service string) string {
	s := strings.ToLower(p.String())
	return s[max(0, len(s)-16):] + "." + service
}

// LANNames are the names, fully qualified, by which nodes of the mesh are asked for in a local network: of all, and of p alone.
func (d *Discovery) LANNames(p peer.ID) (all, one string) {
	all = serviceName(d.members.Mesh()) + ".local."
	return all, lanName(p, all)
}

// announce runs mDNS until ctx ends, for the mesh that the node is in.
func (d *Discovery) announce(ctx context.Context) {
	for ctx.Err() == nil {
		changed := d.news.wait()
		mesh := d.members.Mesh()
		l := newLAN(serviceName(mesh), d.log)
		l.name = lanName(d.host.ID(), l.service)
		l.text = func(f face) []string {
			var text []string
			for _, a := range listens(d.host, []face{f}) {
				if len(text) < maxOwnAddrs {
					text = append(text, dnsaddr+a.String()+"/p2p/"+d.host.ID().String())
				}
			}
			return text
		}
		l.heard = func(text []string) {
			if p, addrs := peerIn(text); p != "" && p != d.host.ID() {
				d.do(ctx, func() { d.heardOnLAN(p, addrs) })
			}
		}
		l.known = func() map[string]bool {
			names := map[string]bool{}
			for _, p := range d.host.Network().Peers() {
				names[lanName(p, l.service)] = true
			}
			return names
		}
		run, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() { l.run(run) })
		d.do(ctx, func() {
			d.lan = l
			l.use(d.nets, true)
		})
		for d.members.Mesh() == mesh && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-changed:
				changed = d.news.wait()
			}
		}
		stop()
		running.Wait()
	}
}

// dnsaddr begins each address in the text of a node: as of libp2p's mDNS.
const dnsaddr = "dnsaddr="

// peerIn reads who a node says that it is, and its addresses. Anybody may have written it.
func peerIn(text []string) (p peer.ID, addrs []ma.Multiaddr) {
	for _, t := range text {
		s, ok := strings.CutPrefix(t, dnsaddr)
		if !ok {
			continue
		}
		info, err := peer.AddrInfoFromString(s)
		if err != nil || (p != "" && info.ID != p) {
			continue
		}
		p = info.ID
		for _, a := range info.Addrs {
			if members.Dialable(a) && len(addrs) < protocol.MaxMemberAddresses {
				addrs = append(addrs, a)
			}
		}
	}
	return p, addrs
}

// FindOnLAN is a members.LANFinder: it asks the local network for a member of a mesh, by mDNS, without a host of its own. It
// returns as soon as the peer has answered, after six seconds at the latest.
func FindOnLAN(ctx context.Context, mesh members.MeshID, p peer.ID) []ma.Multiaddr {
	ctx, cancel := context.WithTimeout(ctx, lanSearch)
	defer cancel()
	l := newLAN(serviceName(mesh), slog.New(slog.DiscardHandler))
	found := make(chan []ma.Multiaddr, 1)
	l.asking = lanName(p, l.service)
	l.heard = func(text []string) {
		if who, addrs := peerIn(text); who == p && len(addrs) > 0 {
			select {
			case found <- addrs:
			default:
			}
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { l.run(ctx) })
	running.Go(func() { watchNetworks(ctx, func(n networks) { l.use(n, false) }) })
	select {
	case <-ctx.Done():
		return nil
	case addrs := <-found:
		return addrs
	}
}
