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
