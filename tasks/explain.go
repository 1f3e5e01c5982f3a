package tasks

import (
	"fmt"
	"slices"
	"strings"

	"meshnode/protocol"
)

// Why is what there is to say about a job, a task or a peer: what is first is what matters most.
type Why struct {
	Summary string
	Reasons []Reason
}

// Bounds of a Why: a screen.
const (
	maxStory   = 50 // happenings of a task, or of a peer
	maxGrouped = 10 // lines about one thing
	maxNames   = 3  // nodes named in one line
)

// asked moves the clock to the time of a question, which is no event, and returns what moves it back.
func (s *Scheduler) asked(now int64) func() {
	was := s.now
	s.now = max(s.now, now)
	return func() { s.now = was }
}

// WhyJob says why a job is not further, as of now; false: there is none.
func (s *Scheduler) WhyJob(now int64, id protocol.JobID) (Why, bool) {
	defer s.asked(now)()
	j := s.jobs[id]
	if j == nil {
		return Why{}, false
	}
	st := s.status(j)
	w := Why{Summary: fmt.Sprintf("%v: %d of %d tasks ended", st.State, st.Done+st.Failed, j.tasks.n)}
	if st.Failed > 0 {
		w.Summary += fmt.Sprintf(", %d of them badly", st.Failed)
	}
	if j.state >= JobDone {
		what := j.state.String()
		if j.reason != "" {
			what += " (" + j.reason + ")"
		}
		w.Reasons = append(w.Reasons, EndedJob.Reason("", what))
		w.Reasons = append(w.Reasons, s.storyOf(j)...)
		return w, true
	}
	w.Summary += fmt.Sprintf(", %d with nodes, %d waiting", j.leased, j.pending)
	w.Reasons = append(w.Reasons, s.whyPending(j)...)
	w.Reasons = append(w.Reasons, s.whereabouts(j)...)
	if !j.closed {
		w.Reasons = append(w.Reasons, j.whyOpen())
	}
	w.Reasons = append(w.Reasons, s.storyOf(j)...)
	return w, true
}

// whyOpen is what there is to say of a job that its client has not closed.
func (j *job) whyOpen() Reason {
	if j.pending+j.leased > 0 {
		return Open.Reason("", "")
	}
	return Open.Reason("", ", and there is nothing to do now")
}

// whyPending is why the pending tasks of j are not granted, and which nodes get none of them.
func (s *Scheduler) whyPending(j *job) []Reason {
	if j.pending == 0 {
		return nil
	}
	if j.halting != "" {
		return []Reason{Halting.Reason("", j.halting)}
	}
	if j.limboUntil != 0 {
		return []Reason{Limbo.Reason("", "")}
	}
	var rs []Reason
	able, busy, unable := s.takers(j)
	full := slices.ContainsFunc(busy, func(p *peer) bool { return s.groupStarts(p, j) == 0 })
	m := int(j.spec.MaxParallel)
	higher, equal := 0, 0
	for _, k := range s.active {
		if k != j && s.remaining(k) > 0 {
			switch {
			case k.spec.Priority > j.spec.Priority:
				higher++
			case k.spec.Priority == j.spec.Priority:
				equal++
			}
		}
	}
	switch {
	case m > 0 && j.leased >= m:
		rs = append(rs, MaxParallel.Reason("", fmt.Sprint(m)))
	case s.grantable(j) == 0:
		rs = append(rs, Loading.Reason("", some(j.pending)))
	case len(able)+len(busy) == 0:
		rs = append(rs, NoNode.Reason("", fmt.Sprintf("none of %s takes it", counted(len(unable), "connected node"))))
	case len(able) == 0 && full && len(busy) == 1:
		rs = append(rs, GroupLimit.Reason("", some(j.group.limit)))
	case len(able) == 0:
		rs = append(rs, NoSlotFree.Reason("", names(busy)))
		if full {
			rs = append(rs, GroupLimit.Reason("", some(j.group.limit)))
		}
	default:
		rs = append(rs, Next.Reason("", some(j.pending)))
	}
	if len(able) == 0 && len(busy) > 0 && higher > 0 {
		rs = append(rs, Priority.Reason("", jobs(higher)))
	}
	if len(able) == 0 && len(busy) > 0 && equal > 0 {
		rs = append(rs, Sharing.Reason("", jobs(equal)))
	}
	return append(rs, grouped(unable)...)
}

// refusal is a node that gets nothing of a job, and why.
type refusal struct {
	of   *peer
	code Code
	what string // its Text, the node left out
	all  Reason
}

// takers are the nodes that would take a task of j now, those that would if they had a free slot, and the others that are connected.
func (s *Scheduler) takers(j *job) (able, busy []*peer, unable []refusal) {
	for _, id := range s.order {
		p := s.peers[id]
		switch c := s.cannotHave(p, j); {
		case c == None && s.free(p) > 0 && s.groupStarts(p, j) > 0:
			able = append(able, p)
		case c == None:
			busy = append(busy, p)
		case c != NotConnected: // it may have left the mesh
			r := s.explain(c, p, j)
			unable = append(unable, refusal{p, c, strings.TrimPrefix(r.Text, p.called()), r})
		}
	}
	return able, busy, unable
}

// cannotHave is why p gets nothing of j now, a free slot or not; or None.
func (s *Scheduler) cannotHave(p *peer, j *job) Code {
	if c := s.whyNot(p, j); c != None && p.up { // what stays comes before what passes
		return c
	}
	if c := s.idle(p); c != None {
		return c
	}
	if s.tooFar(p, j) {
		return TooFar
	}
	return None
}

// grouped makes one Reason of the nodes that refuse a job for the same reason.
func grouped(all []refusal) []Reason {
	var rs []Reason
	for len(all) > 0 {
		first, rest := all[0], all[:0:0]
		var same []string
		for _, r := range all[1:] {
			if r.code == first.code && r.what == first.what {
				same = append(same, r.of.called())
			} else {
				rest = append(rest, r)
			}
		}
		r := first.all
		if n := len(same); n > maxNames {
			r.Text += fmt.Sprintf(" (%s and %d more too)", strings.Join(same[:maxNames-1], ", "), n-maxNames+1)
		} else if n > 0 {
			r.Text += fmt.Sprintf(" (%s too)", strings.Join(same, ", "))
		}
		rs, all = append(rs, r), rest
	}
	return rs
}

// waitReason says why no task of j runs, or is zero if one will at any moment.
func (s *Scheduler) waitReason(j *job) Reason {
	switch {
	case j.halting != "":
		return Halting.Reason("", j.halting)
	case j.pending == 0 && !j.closed:
		return j.whyOpen()
	}
	rs := s.whyPending(j)
	if len(rs) == 0 || rs[0].Code == table[Next].Code || rs[0].Code == table[Loading].Code {
		return Reason{}
	}
	if rs[0].Code != table[NoNode].Code {
		return rs[0]
	}
	// All in one sentence, by name.
	var texts []string
	for _, r := range rs[1:] {
		texts = append(texts, r.Text)
	}
	r := NoNode.Reason("", strings.Join(texts, "; "))
	if len(rs) == 2 {
		r.Fix = rs[1].Fix
	}
	return r
}

// whereabouts says where the granted tasks of j are.
func (s *Scheduler) whereabouts(j *job) []Reason {
	var rs []Reason
	for _, id := range s.order {
		p := s.peers[id]
		running, queued, fetching, sleeping := 0, 0, 0, 0
		for _, l := range p.leases {
			switch {
			case l.job != j:
			case s.fetchingFrom(j, l.attempt):
				fetching++
			case p.asleep != 0:
				sleeping++
			case s.startedAt(l) != 0:
				running++
			default:
				queued++
			}
		}
		for _, x := range []struct {
			c Code
			n int
		}{{RunsOn, running}, {SleepsOn, sleeping}, {Fetching, fetching}, {QueuedOn, queued}} {
			if x.n > 0 {
				rs = append(rs, x.c.Reason(p.called(), some(x.n)))
			}
		}
	}
	return rs
}

// startedAt is when the worker of l started it, as far as it is known; 0: not yet.
func (s *Scheduler) startedAt(l *lease) int64 {
	if l.to.self {
		if h := l.to.held[l.attempt]; h == nil || !h.running {
			return 0
		}
	}
	return l.started
}

// storyOf is what happened to tasks of j, counted: what is usual left out.
func (s *Scheduler) storyOf(j *job) []Reason {
	type kind struct {
		c Code
		p protocol.NodeID
	}
	count := map[kind]int{}
	var order []kind
	last := map[kind]Happening{}
	for _, h := range s.happened(func(h *Happening) bool { return h.Attempt.Job == j.id && h.Code != Granted && h.Code != Ended }) {
		k := kind{h.Code, h.Peer}
		if count[k] == 0 {
			order = append(order, k)
		}
		count[k]++
		last[k] = h
	}
	var rs []Reason
	for _, k := range order[max(0, len(order)-maxGrouped):] {
		h := last[k]
		r := h.Reason(s.peer(k.p).called())
		when := "once, " + ago(s.now-h.At)
		if n := count[k]; n > 1 {
			when = fmt.Sprintf("%d times, the last one %s", n, ago(s.now-h.At))
		}
		r.Text = when + ": " + r.Text
		rs = append(rs, r)
	}
	return rs
}

// WhyTask says where a task is and what became of its attempts, as of now; false: there is no such task.
func (s *Scheduler) WhyTask(now int64, id protocol.JobID, i uint32) (Why, bool) {
	defer s.asked(now)()
	j := s.jobs[id]
	if j == nil || i >= j.tasks.n {
		return Why{}, false
	}
	var w Why
	story := func() {
		hs := s.happened(func(h *Happening) bool {
			return h.Attempt.Job == id && h.Attempt.Index == i && (h.Attempt.N > 0 || h.Code == CancelledTask)
		})
		for _, h := range hs[max(0, len(hs)-maxStory):] {
			r := h.Reason(s.peer(h.Peer).called())
			r.Text = ago(s.now-h.At) + ": " + r.Text
			w.Reasons = append(w.Reasons, r)
		}
	}
	if _, ended := s.Seq(id, i); ended || j.state >= JobDone {
		w.Summary = "ended"
		if !ended {
			w.Summary = "cancelled with its job"
		}
		w.Reasons = append(w.Reasons, AlreadyEnded.Reason("", ""))
		story()
		return w, true
	}
	t := j.tasks.at(i)
	if t.state == pending {
		w.Summary = "waiting"
		w.Reasons = append(w.Reasons, s.whyPending(j)...)
	}
	copies := 0
	for l := j.leaseOf(i); l != nil; l = l.also {
		copies++
		name := l.to.called()
		started := s.startedAt(l)
		usual := s.runOn(l.to, j)
		w.Summary = "with " + name
		if copies > 1 {
			w.Summary = fmt.Sprintf("with %d nodes", copies)
		}
		switch {
		case s.fetchingFrom(j, l.attempt):
			w.Reasons = append(w.Reasons, Fetching.Reason(name, "it"))
		case started == 0:
			w.Reasons = append(w.Reasons, QueuedOn.Reason(name, "it since "+span(s.now-l.at)))
		default:
			what := "it since " + span(s.now-started)
			if l.spare {
				what = "a spare copy of " + what
			}
			if usual > 0 {
				what += "; tasks of its job take " + span(usual) + " there"
			} else {
				what += "; none of its job has ended yet, so nobody knows how long it takes"
			}
			w.Reasons = append(w.Reasons, RunsOn.Reason(name, what))
			if usual > 0 && s.now-started > 2*usual+second {
				w.Reasons = append(w.Reasons, Overdue.Reason(name, span(usual)))
			}
		}
	}
	if t.grants > 0 {
		w.Summary += "; granted " + times(int(t.grants))
	} else if t.state == pending {
		w.Summary += "; not granted yet"
	}
	if tr := j.trouble[i]; tr != nil {
		if tr.failed > 0 {
			w.Summary += fmt.Sprintf(", failed %s and tried again (--retries %d)", times(int(tr.failed)), j.spec.Retries)
		}
		if tr.doubts > 0 {
			w.Summary += fmt.Sprintf(", failed %s where others do well, which does not count", times(int(tr.doubts)))
		}
		if tr.losses > 0 {
			w.Summary += fmt.Sprintf(", lost with its node %s while it ran there", times(int(tr.losses)))
		}
		if j.suspected(i) {
			w.Reasons = append(w.Reasons, Alone.Reason("", times(int(tr.losses))))
		}
		if tr.deaths > 0 {
			w.Summary += fmt.Sprintf(", killed its worker process %s of at most %d", times(int(tr.deaths)), maxDeaths)
		}
		if t.state == pending && tr.at != "" && s.now < tr.until {
			w.Reasons = append(w.Reasons, Elsewhere.Reason(s.peer(tr.at).called(), span(tr.until-s.now)))
		}
	}
	if t.moves > 0 {
		w.Summary += ", moved " + times(int(t.moves))
	}
	story()
	return w, true
}

// WhyPeer says why a node gets no work of this one, or how much it has, as of now; false: it was never met in this life.
func (s *Scheduler) WhyPeer(now int64, id protocol.NodeID) (Why, bool) {
	defer s.asked(now)()
	p := s.peers[id]
	if p == nil {
		return Why{}, false
	}
	var w Why
	name := p.called()
	ours := len(p.leases)
	c := s.idle(p)
	if c != None {
		r := s.explain(c, p, nil)
		w.Summary = r.Text
		w.Reasons = append(w.Reasons, r)
	}
	free := s.free(p)
	if c == None {
		w.Summary = fmt.Sprintf("%s takes work: %d of its %s free", name, max(0, free), slotsText(p.slotsHere(s)))
		if free <= 0 {
			w.Summary = fmt.Sprintf("%s is busy: none of its %s is free", name, slotsText(p.slotsHere(s)))
			w.Reasons = append(w.Reasons, Busy.Reason(name, fmt.Sprint(p.slotsHere(s))))
		}
	}
	if s.stopping != "" && !p.self {
		w.Reasons = append(w.Reasons, Stopping.Reason("", ""))
	}
	waiting, n := 0, 0
	for _, j := range s.active {
		if s.remaining(j) == 0 {
			continue
		}
		waiting++
		c := s.whyNot(p, j)
		if c == None && p.up && s.tooFar(p, j) {
			c = TooFar
		}
		if c == None {
			n += s.remaining(j)
		} else if waiting <= maxGrouped {
			r := s.explain(c, p, j)
			r.Text = "job " + j.id.Short() + ": " + r.Text
			w.Reasons = append(w.Reasons, r)
		}
	}
	switch {
	case c != None || free <= 0:
	case n == 0 && waiting == 0 && ours == 0:
		w.Reasons = append(w.Reasons, Idle.Reason(name, ""))
	case n > 0 && p.told > 0 && ours == 0:
		w.Reasons = append(w.Reasons, Told.Reason(name, some(n)))
	}
	if p.asleep != 0 && ours > 0 {
		w.Reasons = append(w.Reasons, SleepsOn.Reason(name, some(ours)+" of this node's jobs"))
	} else if ours > 0 {
		running := 0
		for _, l := range p.leases {
			if s.startedAt(l) != 0 {
				running++
			}
		}
		if running > 0 {
			w.Reasons = append(w.Reasons, RunsOn.Reason(name, some(running)+" of this node's jobs"))
		}
		if ours > running {
			w.Reasons = append(w.Reasons, QueuedOn.Reason(name, some(ours-running)+" of this node's jobs"))
		}
	}
	if p.full() && !p.self {
		w.Reasons = append(w.Reasons, Unanswered.Reason(name, sizeText(uint64(p.unansweredBytes+p.unansweredBlobs))))
	}
	if p.queuedHere > 0 && !s.confirmed(p) {
		w.Reasons = append(w.Reasons, Unconfirmed.Reason(name, some(p.queuedHere)))
	}
	hs := s.happened(func(h *Happening) bool { return h.Peer == id && h.Attempt.N == 0 })
	for _, h := range hs[max(0, len(hs)-maxGrouped):] {
		r := h.Reason(name)
		r.Text = ago(s.now-h.At) + ": " + r.Text
		w.Reasons = append(w.Reasons, r)
	}
	return w, true
}

func names(ps []*peer) string {
	var ns []string
	for _, p := range ps {
		ns = append(ns, p.called())
	}
	slices.Sort(ns)
	if len(ns) > maxNames {
		return fmt.Sprintf("%s and %d more", strings.Join(ns[:maxNames-1], ", "), len(ns)-maxNames+1)
	}
	return strings.Join(ns, ", ")
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func some(n int) string      { return counted(n, "task") }
func slotsText(n int) string { return counted(n, "slot") }
func jobs(n int) string      { return counted(n, "other job") }
func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// span is a duration for people, to two digits or so.
func span(ns int64) string {
	switch {
	case ns < 10*millisecond:
		return fmt.Sprintf("%d.%d ms", ns/millisecond, ns%millisecond/(millisecond/10))
	case ns < second:
		return fmt.Sprintf("%d ms", ns/millisecond)
	case ns < 60*second:
		return fmt.Sprintf("%d.%d s", ns/second, ns%second/(second/10))
	case ns < 3600*second:
		return fmt.Sprintf("%d min %d s", ns/(60*second), ns/second%60)
	}
	return fmt.Sprintf("%d h %d min", ns/(3600*second), ns/(60*second)%60)
}

func ago(ns int64) string {
	if ns < millisecond {
		return "just now"
	}
	return span(ns) + " ago"
}
