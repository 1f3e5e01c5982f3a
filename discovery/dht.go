package discovery

import (
	"context"
	"fmt"
	"slices"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// The private DHT: members ask those nearest to a member's key, by Kademlia, where it is. It holds nothing but what the routing of
// peers needs (no values, no providers), knows no other mesh and no node of the Internet, and dials nobody: what it answers is a hint
// like others, and the redial loop decides.
const (
	// A member that is missed is looked for after firstLookup, and then after twice as long, up to lastLookup: each lookup
	// is a question to some twenty members, of 0.3 ms each.
	firstLookup = time.Second
	lastLookup  = 5 * time.Minute
	// lookupGap between two lookups, for a mesh of which half is missing; lookupTime bounds one.
	lookupGap  = 200 * time.Millisecond
	lookupTime = 5 * time.Second

	fromDHT = "DHT"
)

// dhtPrefix is what the DHT's protocol begins with: each mesh has its own.
func dhtPrefix(mesh members.MeshID) libp2pproto.ID {
	return libp2pproto.ID("/meshnode/" + mesh.String())
}

// seekByDHT runs the DHT of the mesh that the node is in, until ctx ends.
func (d *Discovery) seekByDHT(ctx context.Context) {
	for ctx.Err() == nil {
		changed := d.news.wait()
		mesh := d.members.Mesh()
		of, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if err := d.lookUp(of, mesh); err != nil {
				d.log.Warn("the DHT does not run", "err", err)
			}
		}()
		for d.members.Mesh() == mesh && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-changed:
				changed = d.news.wait()
			}
		}
		stop()
		<-ended
	}
}

// lookUp serves one mesh's DHT, and looks for members that are missed.
func (d *Discovery) lookUp(ctx context.Context, mesh members.MeshID) error {
	isMember := func(p peer.ID) bool { _, ok := d.members.Certificate(p); return ok }
	table, err := dht.New(d.host,
		dht.ProtocolPrefix(dhtPrefix(mesh)),
		dht.Mode(dht.ModeServer),
		dht.DisableValues(), dht.DisableProviders(),
		dht.DisableAutoRefresh(), // the table is filled by connections, and all members are to be connected
		// Only who is connected is asked, and addresses in answers do not get to where libp2p dials from.
		dht.QueryFilter(func(_ any, i peer.AddrInfo) bool { return isMember(i.ID) && d.connected(i.ID) }),
		dht.RoutingTableFilter(func(_ any, p peer.ID) bool { return isMember(p) }),
		dht.AddressFilter(func([]ma.Multiaddr) []ma.Multiaddr { return nil }),
	)
	if err != nil {
		return fmt.Errorf("start the DHT: %w", err)
	}
	defer func() {
		table.Close()
		d.host.RemoveStreamHandler(dhtPrefix(mesh) + "/kad/1.0.0")
	}()
	type search struct {
		at   time.Time
		wait time.Duration
	}
	searches := map[peer.ID]*search{}
	tick := time.NewTicker(lookupGap)
	defer tick.Stop()
	for {
		changed := d.news.wait()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			clear(searches)
		case <-tick.C:
		}
		now := time.Now()
		missed := map[peer.ID]bool{}
		for _, s := range d.Known() {
			if s.Peer != "" && s.State != Connected {
				missed[s.Peer] = true
			}
		}
		for p := range searches {
			if !missed[p] {
				delete(searches, p)
			}
		}
		for p := range missed {
			s := searches[p]
			if s == nil {
				s = &search{at: now.Add(firstLookup), wait: firstLookup}
				searches[p] = s
			}
			if now.Before(s.at) {
				continue
			}
			s.wait = min(2*s.wait, lastLookup)
			s.at = now.Add(s.wait)
			d.lookFor(ctx, table, p)
			break // the next one after lookupGap
		}
	}
}

// lookFor asks for one member and takes all answers as hints.
func (d *Discovery) lookFor(ctx context.Context, table *dht.IpfsDHT, p peer.ID) {
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "the DHT asks the connected"), lookupTime)
	defer cancel()
	ctx, events := routing.RegisterForQueryEvents(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range events {
			if e.Type == routing.PeerResponse {
				d.takeAnswer(e.Responses, func(f func()) { d.do(d.ctx, f) })
			}
		}
	}()
	table.FindPeer(ctx, p) // what it found, the events told
	cancel()
	<-done
}

// takeAnswer takes a member's answer as hints; do runs in Run's goroutine what it is given.
func (d *Discovery) takeAnswer(peers []*peer.AddrInfo, do func(func())) {
	for _, i := range peers[:min(len(peers), maxDHTPeers)] {
		if i != nil && i.ID != d.host.ID() {
			addrs := slices.Clone(i.Addrs[:min(len(i.Addrs), protocol.MaxMemberAddresses)])
			do(func() { d.hint(i.ID, hearsay, fromDHT, addrs...) })
		}
	}
}

// maxDHTPeers of one answer are looked at: Kademlia's is twenty, and the one that was asked for.
const maxDHTPeers = 21
