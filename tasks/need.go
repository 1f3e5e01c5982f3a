package tasks

import (
	"slices"

	"meshnode/protocol"
)

// What a task reads besides a short input are blobs. At its worker each is fetched once for all attempts that read it, pinned
// from then on until the last of them has ended or gone, and none of these starts before all of its blobs are here: a slot
// never waits for bytes. The origin keeps what the tasks of an unfinished job read; that is the node's part.

// obtainsAtOnce blobs of an origin are asked for at once, in the order in which tasks came that read them; the others wait.
const obtainsAtOnce = 16

// maxNeeds bytes of blobs are needed for one origin's tasks here at once, unless one of them alone is larger: a part of the
// store's quota.
const maxNeeds = 4 << 30

// inputBlobSize is what a blob that an input names takes in memory, at its worker and at its origin.
const inputBlobSize = 128

// need is a blob of an origin that held attempts read.
type need struct {
	blob    *protocol.Blob
	id      protocol.BlobID
	users   int // held attempts that read it, and have no outcome
	asked   bool
	here    bool
	waiting []*held // those that came before it was here; may name some that are gone
}

// needs are the blobs of an origin.
type needs struct {
	all     map[protocol.BlobID]*need
	queue   []*need // not asked for yet
	obtains int     // asked for, and not answered
	bytes   int64   // of all
}

// tooMany says that the blobs of one more input would be more than an origin may have here.
func (ns *needs) tooMany(in *Input) bool {
	more := int64(0)
	in.reads(func(b *protocol.Blob, id protocol.BlobID) {
		if ns.all[id] == nil {
			more += int64(min(b.Size, blobBound))
		}
	})
	return more > 0 && ns.bytes > 0 && ns.bytes+more > maxNeeds
}

// drop forgets a blob.
func (ns *needs) drop(n *need) {
	delete(ns.all, n.id)
	ns.bytes -= int64(min(n.blob.Size, blobBound))
}

// reads calls f for each blob that the input names, those that it names twice once.
func (in *Input) reads(f func(*protocol.Blob, protocol.BlobID)) {
	if in.Blob == nil && len(in.Blobs) == 0 {
		return
	}
	var some [8]protocol.BlobID
	seen := some[:0]
	one := func(b *protocol.Blob) {
		if id := protocol.BlobID(b.Id); !slices.Contains(seen, id) {
			seen = append(seen, id)
			f(b, id)
		}
	}
	if in.Blob != nil {
		one(in.Blob)
	}
	for _, b := range in.Blobs {
		one(b)
	}
}

// size is what an input takes in memory, and bytes what of it is not the same for all.
func (in *Input) size() int { return inputOverhead + in.bytes() }

func (in *Input) bytes() int {
	n := len(in.Data) + len(in.Blobs)*inputBlobSize
	if in.Blob != nil {
		n += inputBlobSize
	}
	return n
}

// needBlobs has what h reads fetched, as far as it is not here. h waits for the rest.
func (s *Scheduler) needBlobs(p *peer, h *held) {
	h.needs = true
	h.input.reads(func(b *protocol.Blob, id protocol.BlobID) {
		n := p.needs.all[id]
		if n == nil {
			if p.needs.all == nil {
				p.needs.all = map[protocol.BlobID]*need{}
			}
			n = &need{blob: b, id: id}
			p.needs.all[id] = n
			p.needs.bytes += int64(min(b.Size, blobBound))
			if len(p.needs.queue) > 2*len(p.needs.all)+16 {
				p.needs.queue = slices.DeleteFunc(p.needs.queue, func(n *need) bool { return p.needs.all[n.id] != n })
			}
			p.needs.queue = append(p.needs.queue, n)
		}
		if n.users++; !n.here {
			h.missing++
			if len(n.waiting) > 2*n.users+16 {
				n.waiting = slices.DeleteFunc(n.waiting, func(h *held) bool { return !h.waitsHere() })
			}
			n.waiting = append(n.waiting, h)
		}
	})
	s.obtain(p)
}

// waitsHere says that an attempt is held, and waits for blobs.
func (h *held) waitsHere() bool { return h.from.held[h.attempt] == h && h.missing > 0 }

// obtain asks for the next blobs of p's that are needed.
func (s *Scheduler) obtain(p *peer) {
	for len(p.needs.queue) > 0 && p.needs.obtains < obtainsAtOnce {
		n := p.needs.queue[0]
		p.needs.queue[0] = nil
		p.needs.queue = p.needs.queue[1:]
		if p.needs.all[n.id] != n || n.asked {
			continue // nobody needs it any more
		}
		n.asked = true
		p.needs.obtains++
		s.out.Obtain = append(s.out.Obtain, Obtain{Origin: p.id, Blob: n.blob})
	}
}

// obtained goes on with what waited for a blob: it is here and pinned, or not to be had.
func (s *Scheduler) obtained(ev Obtained) {
	p := s.peer(ev.Origin)
	n := p.needs.all[ev.Blob]
	if n == nil || !n.asked || n.here {
		if ev.Err == "" {
			s.out.Unpin = append(s.out.Unpin, ev.Blob)
		}
		return
	}
	p.needs.obtains--
	waiting := slices.DeleteFunc(n.waiting, func(h *held) bool { return !h.waitsHere() })
	n.waiting = nil
	switch {
	case n.users == 0:
		p.needs.drop(n)
		if ev.Err == "" {
			s.out.Unpin = append(s.out.Unpin, n.id)
		}
	case ev.Err != "":
		n.asked = false // of no use but to those that still read it, and they go
		var hs []*held
		for _, h := range waiting {
			if p.dequeue(h) {
				hs = append(hs, h)
			}
		}
		s.giveBack(p, hs, protocol.Refusal_CANNOT_RUN, ev.Err)
	default:
		n.here = true
		for _, h := range waiting {
			if h.missing--; h.missing == 0 {
				p.stopWaiting(h)
				p.enqueue(h, false)
			}
		}
	}
	s.obtain(p)
}

// releaseBlobs lets go of what h reads: it has ended, or is not held any more.
func (s *Scheduler) releaseBlobs(p *peer, h *held) {
	if !h.needs {
		return // its program was invalid, or it is of an earlier life
	}
	h.input.reads(func(_ *protocol.Blob, id protocol.BlobID) {
		n := p.needs.all[id]
		if n == nil {
			return
		}
		if n.users--; n.users > 0 || n.asked && !n.here {
			return
		}
		p.needs.drop(n)
		if n.here {
			s.out.Unpin = append(s.out.Unpin, id)
		}
	})
	h.needs, h.missing = false, 0
}

// await makes h one that waits for its blobs before it is queued.
func (p *peer) await(h *held) {
	h.job.waits = append(h.job.waits, h)
	p.count(0, +1)
}

// stopWaiting takes h out of those.
func (p *peer) stopWaiting(h *held) bool {
	i := slices.Index(h.job.waits, h)
	if i < 0 {
		return false
	}
	h.job.waits = slices.Delete(h.job.waits, i, i+1)
	p.count(0, -1)
	return true
}
