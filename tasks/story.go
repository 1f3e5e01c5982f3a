package tasks

import (
	"strings"

	"meshnode/protocol"
)

// Happening is something that the scheduler did, or learned, of an attempt or of a peer. All of them come from tell: the
// lines of the log (Ready.Happened) and what why shows are the same.
type Happening struct {
	At      int64
	Code    Code
	Attempt protocol.Attempt // zero: it is about the peer
	Peer    protocol.NodeID
	What    string // {what} of the code's words
}

// Reason is a happening in words. name is what the peer is called.
func (h *Happening) Reason(name string) Reason { return h.Code.Reason(name, h.What) }

// storySize bounds what is remembered of each kind: the usual (granted, ended) and what is worth a question later (lost, given
// back, died). 2 × 2048 × 88 bytes at most; a job of a million tasks that all end well does not push out why one of them moved.
const storySize = 2048

// maxWhat bounds a remembered text of a peer or a task.
const maxWhat = 200

// story is the last happenings of a node, as an origin.
type story struct{ usual, rare ring }

// ring keeps the last storySize happenings; next is where the next one goes once it is full.
type ring struct {
	all  []Happening
	next int
}

func (r *ring) add(h Happening) {
	if len(r.all) < storySize {
		r.all = append(r.all, h)
		return
	}
	r.all[r.next] = h
	r.next = (r.next + 1) % storySize
}

// each calls f with what is remembered, the oldest first.
func (r *ring) each(f func(*Happening)) {
	for i := range r.all {
		f(&r.all[(r.next+i)%len(r.all)])
	}
}

// tell says that something happened. It is called for each task: it allocates nothing once the story is full.
func (s *Scheduler) tell(c Code, a protocol.Attempt, p *peer, what string) {
	if len(what) > maxWhat {
		what = strings.Clone(cut(what, maxWhat))
	}
	h := Happening{At: s.now, Code: c, Attempt: a, Peer: p.id, What: what}
	if c == Granted || c == Ended {
		s.story.usual.add(h)
	} else {
		s.story.rare.add(h)
	}
	if s.cfg.Tell || c == Trespass {
		s.out.Happened = append(s.out.Happened, h)
	}
}

// tellPeer is tell about p itself.
func (s *Scheduler) tellPeer(c Code, p *peer, what string) { s.tell(c, protocol.Attempt{}, p, what) }

// happened is what is remembered of those that want says, in order of time.
func (s *Scheduler) happened(want func(*Happening) bool) []Happening {
	var usual, rare, out []Happening
	s.story.usual.each(func(h *Happening) {
		if want(h) {
			usual = append(usual, *h)
		}
	})
	s.story.rare.each(func(h *Happening) {
		if want(h) {
			rare = append(rare, *h)
		}
	})
	for len(usual)+len(rare) > 0 {
		if len(rare) == 0 || len(usual) > 0 && usual[0].At < rare[0].At {
			out, usual = append(out, usual[0]), usual[1:]
		} else {
			out, rare = append(out, rare[0]), rare[1:]
		}
	}
	return out
}
