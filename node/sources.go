package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"meshnode/protocol"
	"meshnode/tasks/blob"
)

// A large blob that many nodes want goes from its origin to two of them at once. The others are told who has it by now, and
// ask them; who has it all can give it, by the same rule. So the time that it takes grows with the logarithm of the number of nodes,
// and the origin's connection carries other things, too.

const (
	// givesAtOnce is to how many nodes one blob is given at once.
	givesAtOnce = 2
	// sharedFrom is the least blob for which that counts: a smaller one is there before anybody else could be asked.
	sharedFrom = 1 << 20
	// maxGifts is of how many blobs it is remembered who has them.
	maxGifts = 1024
	// askFirst and askMost bound the pause before a busy source is asked again.
	askFirst, askMost = 50 * time.Millisecond, time.Second
	// brokenMost is how often a stream may break without anything having come.
	brokenMost = 3
)

// gifts is who has which blobs by us.
type gifts struct {
	mu  sync.Mutex // guards all
	all map[protocol.BlobID]*gift
	old []protocol.BlobID // of all, in the order in which they came
}

type gift struct {
	active  int       // answers under way
	holders []peer.ID // who has it whole, the last at the end
}

// turn decides how p is answered that asks for a blob of size bytes, and whom it could ask instead.
func (g *gifts) turn(p peer.ID, id protocol.BlobID, size int64, connected func(peer.ID) bool) blob.Turn {
	if size < sharedFrom {
		return blob.Turn{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	x := g.all[id]
	if x == nil {
		if len(g.old) == maxGifts {
			g.forget()
		}
		if g.all == nil {
			g.all = map[protocol.BlobID]*gift{}
		}
		x = &gift{}
		g.all[id] = x
		g.old = append(g.old, id)
	}
	if x.active >= givesAtOnce {
		t := blob.Turn{Busy: true}
		for _, h := range slices.Backward(x.holders) {
			if h != p && connected(h) && len(t.Holders) < blob.MaxHolders {
				t.Holders = append(t.Holders, h.String())
			}
		}
		return t
	}
	x.active++
	return blob.Turn{End: func(whole bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		x.active--
		if whole {
			x.holders = append(slices.DeleteFunc(x.holders, func(h peer.ID) bool { return h == p }), p)
			if len(x.holders) > 2*blob.MaxHolders {
				x.holders = slices.Delete(x.holders, 0, 1)
			}
		}
	}}
}

// forget forgets the oldest gift that is not under way. g.mu is held.
func (g *gifts) forget() {
	i := max(0, slices.IndexFunc(g.old, func(id protocol.BlobID) bool { return g.all[id].active == 0 }))
	delete(g.all, g.old[i])
	g.old = slices.Delete(g.old, i, i+1)
}

// flights are the fetches under way: a blob that several want at once comes once.
type flights struct {
	mu  sync.Mutex // guards all
	all map[flightKey]*flight
}

type flightKey struct {
	id   protocol.BlobID
	size uint64
}

type flight struct {
	done chan struct{} // closed at its end
	err  error
}

// fetch brings a blob of at most limit bytes here and pins it, with sync on the disk: from its origin, or from others that have it by now.
func (n *Node) fetch(ctx context.Context, origin protocol.NodeID, b *protocol.Blob, limit uint64, sync bool) error {
	id, err := protocol.BlobIDFrom(b.GetId())
	if err != nil {
		return err
	}
	if b.Size > limit {
		return fmt.Errorf("blob %s of %d bytes: at most %d", id, b.Size, limit)
	}
	key := flightKey{id, b.Size}
	for {
		if err := n.blobs.Pin(id); err == nil || origin == n.self {
			if err == nil && sync {
				if err = n.blobs.Sync(id); err != nil {
					n.blobs.Unpin(id)
				}
			}
			return err
		}
		n.flights.mu.Lock()
		f := n.flights.all[key]
		if f == nil {
			if n.flights.all == nil {
				n.flights.all = map[flightKey]*flight{}
			}
			f = &flight{done: make(chan struct{})}
			n.flights.all[key] = f
			n.flights.mu.Unlock()
			f.err = n.bring(ctx, origin, b, sync)
			n.flights.mu.Lock()
			delete(n.flights.all, key)
			n.flights.mu.Unlock()
			close(f.done)
			return f.err
		}
		n.flights.mu.Unlock()
		select {
		case <-f.done: // if it failed, our origin may have what the other had not
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bring fetches a blob and pins it.
func (n *Node) bring(ctx context.Context, origin protocol.NodeID, b *protocol.Blob, sync bool) error {
	pause := askFirst
	broken := 0
	var holders []protocol.NodeID // as the origin said last
	for {
		began := n.meter.received.Load()
		err := n.bringFrom(ctx, origin, b, sync)
		var busy *blob.BusyError
		switch {
		case err == nil, ctx.Err() != nil, errors.Is(err, blob.ErrNotFound), errors.Is(err, blob.ErrCorrupt), errors.Is(err, blob.ErrFull),
			errors.Is(err, blob.ErrTooLarge), errors.Is(err, blob.ErrProtocol):
			return err
		case errors.As(err, &busy):
			holders = holders[:0]
			for _, h := range busy.Holders {
				holders = append(holders, protocol.NodeID(h))
			}
		default: // its stream broke
			if n.meter.received.Load()-began >= sharedFrom {
				broken = 0
			}
			if broken++; broken >= brokenMost {
				return err
			}
		}
		rand.Shuffle(len(holders), func(i, k int) { holders[i], holders[k] = holders[k], holders[i] })
		for _, h := range holders {
			if h == n.self || h == origin || !n.isConnected(h) {
				continue
			}
			if err := n.bringFrom(ctx, h, b, sync); err == nil || ctx.Err() != nil || errors.Is(err, blob.ErrFull) {
				return err
			}
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2)):
			pause = min(2*pause, askMost)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// isConnected says whether there is a connection to a node: blobs open none.
func (n *Node) isConnected(id protocol.NodeID) bool {
	p, err := peer.Decode(string(id))
	return err == nil && n.host.Network().Connectedness(p) == network.Connected
}

// bringFrom fetches a blob from one node and pins it.
func (n *Node) bringFrom(ctx context.Context, from protocol.NodeID, b *protocol.Blob, sync bool) error {
	select {
	case n.fetching.of(from) <- struct{}{}:
		defer func() { <-n.fetching.of(from) }()
	case <-ctx.Done():
		return ctx.Err()
	}
	p, err := peer.Decode(string(from))
	if err != nil {
		return err
	}
	octx, cancel := context.WithTimeout(network.WithNoDial(ctx, "blob"), helloTimeout)
	defer cancel()
	s, err := n.host.NewStream(octx, p, n.blobProtocols()...)
	if err != nil {
		return fmt.Errorf("fetch from %s: %w", from.Short(), err)
	}
	began := time.Now()
	in := &counted{stalling: stalling{s}, to: &n.meter.received}
	fetch := blob.FetchLoose
	if sync {
		fetch = blob.Fetch
	}
	if err := fetch(ctx, in, b, n.blobs); err != nil {
		s.Reset()
		return fmt.Errorf("from %s: %w", from.Short(), err)
	}
	s.Close()
	n.transferred(from, in.n, time.Since(began))
	return nil
}
