package tasks

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"

	"meshnode/protocol"
)

// Bounds of grants.
const (
	// maxGrant tasks in one Grant, and maxGrantBytes of inputs, keep it below protocol.MaxBatch.
	maxGrant      = 4096
	maxGrantBytes = protocol.MaxBatch - protocol.MaxInline - protocol.MaxTaskBlobs*grantBlob - maxGrant*64
	// grantBlob is what a blob takes in a Grant: its hash, its size, and their tags.
	grantBlob = 50
	// loadEvery is the least time between two Loads to one peer.
	loadEvery = 10 * millisecond
	// firstFew tasks go to each slot of a peer at fewFrom or more when nobody knows yet how long they take and there is plenty:
	// with one, a worker of short tasks would stand still for a round trip before it can ask for as many as it needs.
	firstFew = 4
	fewFrom  = 2 * millisecond
	// eagerPause is how long a peer that handed an unasked task back gets no other unasked one: what we know
	// of its free slots is older than its next beat.
	eagerPause = second
	// cannotFirst and cannotMost bound how long a job is not offered again to a peer that could not run it.
	cannotFirst, cannotMost = 5 * second, 60 * second
	// unfetchedFirst is the same where it ran the job and the bytes of its results could not be had, or not be kept.
	unfetchedFirst = second / 2
	// maxMoves of one task by Recall: a task that moves for ever never runs.
	maxMoves = 2
)

// lessee is a peer in its role as a worker for our jobs.
type lessee struct {
	leases   map[protocol.Attempt]*lease // live ones
	listed   map[protocol.Attempt]bool   // what it said last that it holds of us
	grants   uint64                      // Grants sent on this stream
	informed map[protocol.JobID]int64    // jobs whose JobInfo went over this stream, and when
	perMiB   mean                        // time that 1 MiB of blobs needs to p or from it, ns
	renewed  int64                       // when its last beat that counts was read, or its first lease began

	// lostAt is when its leases expired though its stream is up: it is deaf, or its beats do not come through. It gets
	// no work before a beat shows that it has heard us since. 0: no such thing.
	lostAt int64

	row         []*lease                  // its leases in the order of their grants, nil where one has ended
	rowBase     int                       // place of row[0]
	front       int                       // place of the first one that has not started
	begun       int                       // of the leases, started
	taken       map[protocol.Attempt]bool // what was taken from it when it was lost, until it is back
	alone       int                       // leases of tasks that are to run alone
	blamed      []blamed                  // what its loss was charged to, until it is known whether the process is gone
	gone        bool                      // its loss was handled, and
	countedLost bool                      // is in Scheduler.lost; the same
	upAt        int64                     // when it was last connected

	heldOfUs int // queued and running attempts that it listed last
	spares   int // of the leases, second copies
	others   int // attempts that it holds of other origins, as it said last

	told       uint64 // pending tasks that it knows of, by our last Load or Grant
	loadFrom   int64  // no Load before
	eagerFrom  int64  // no unasked Grant before
	recalling  uint64 // id of the Recall under way, 0: none
	recalledAt int64  // when it was sent
	recalls    uint64
	recallFrom int64 // no Recall before
	wait       int64 // its smoothed time from request to grant

	cannot      map[protocol.JobID]cannot
	fits        map[protocol.JobID]Code       // what fit said of jobs with a Placement
	answers     map[answer][]protocol.Attempt // to be sent
	answersAt   int64                         // at the latest
	answerBytes int64                         // of the outcomes that they let go
}

// cannot is why a peer does not run a job, and from when on it is asked again.
type cannot struct {
	code   Code
	reason string // what its words are to say
	from   int64
	pause  int64
}

// lease is a live attempt: granted, neither answered nor lost.
type lease struct {
	attempt protocol.Attempt
	job     *job
	to      *peer
	session uint64 // the stream of the grant; an adopted lease has the stream of its adoption
	number  uint64 // of the Grant on that stream, 0: adopted
	at      int64
	cost    int64 // slot time that its job is charged for it until it ends, ns
	running bool  // said its last beat
	input   Input // of its task, if kept
	kept    bool
	started int64 // when it came to the front of what p holds of us, as far as we can tell; 0: it waits
	place   int   // in p.row
	share   *share
	also    *lease // the next live one of the same task
	spare   bool   // a second copy of a straggler
	alone   bool   // nothing else is to run there meanwhile
}

func (p *peer) openLessee() {
	p.grants, p.informed, p.told, p.loadFrom, p.eagerFrom = 0, map[protocol.JobID]int64{}, 0, 0, 0
	p.recalling, p.recallFrom, p.lostAt, p.others = 0, 0, 0, 0
	p.answers, p.answerBytes = nil, 0
}

// grantable is how many tasks of j could be granted now.
func (s *Scheduler) grantable(j *job) int {
	if j.limboUntil != 0 || j.state >= JobDone || j.halting != "" {
		return 0
	}
	return max(0, min(s.remaining(j), j.ready))
}

// remaining is how many tasks of j are to be granted, now or when their inputs were read.
func (s *Scheduler) remaining(j *job) int {
	n := j.pending
	if m := int(j.spec.MaxParallel); m > 0 {
		n = min(n, m-j.leased)
	}
	return max(n, 0)
}

// pendingFor is how many tasks p could get now.
func (s *Scheduler) pendingFor(p *peer) int {
	n := 0
	for _, j := range s.active {
		n += s.open(p, j)
	}
	return n
}

// available says whether p may get work at all.
func (s *Scheduler) available(p *peer) bool {
	if p.self { // it sends itself no beats that say so
		return s.unavailable() == ""
	}
	return s.grants() && p.up && p.paused == "" && !s.suspect(p)
}

// weight is p's share of the work, in slots of mean speed times 1000.
func (s *Scheduler) weight(p *peer, j *job) int64 {
	slots := p.slotsHere(s)
	if p.self {
		slots = s.most(j.group)
	}
	w := int64(max(1, slots)) * 1000
	if sh := j.byWorker[p.id]; sh != nil && sh.run.n > 0 && j.run.n > 0 {
		// Between a 16th and 16 times the mean: one odd task must not starve a peer or flood it.
		w = max(w/16, min(w*16, w*j.run.ns/sh.run.ns))
	}
	return max(w, 1)
}

func (p *peer) slotsHere(s *Scheduler) int {
	if p.self {
		return s.wanted
	}
	return p.slots
}

// fairShare is the most that p may take of j's n remaining tasks in one grant: what its speed is of all speeds.
// So the last tasks spread over all, and no one hoards them.
func (s *Scheduler) fairShare(p *peer, j *job, n int) int {
	mine := s.weight(p, j)
	if j.weighedAt != s.readies || j.weights == 0 { // once for all grants of a Ready: there may be thousands of both
		j.weighedAt, j.weights = s.readies, 0
		for _, q := range s.line {
			if s.canRun(q, j) && q.slotsHere(s) > 0 && (q == p || s.available(q)) {
				j.weights += s.weight(q, j)
			}
		}
	}
	all := j.weights
	if all <= mine {
		return n
	}
	return int((int64(n)*mine + all - 1) / all)
}

// grant leases up to want tasks to p, of all jobs as they share (share.go), and sends them; request is what it answers, nil: nobody
// asked. It returns how many.
func (s *Scheduler) grant(p *peer, want int, request *protocol.StealRequest) int {
	want = min(want, maxGrant)
	g := &protocol.Grant{Epoch: s.epoch, Number: p.grants + 1, Request: request.GetId()}
	// The next tasks may be longer than the last ones at p: it gets as much time as it asked for, but what starts at once.
	time, spent, least := int64(min(request.GetTimeUs(), 1<<40))*microsecond, int64(0), int(min(request.GetFree(), maxGrant))
	size, given := 0, 0
	of := map[*job]*protocol.JobGrant{}
	left := map[*job]int{}
	more := func(j *job) int {
		n, looked := left[j]
		if !looked {
			if n = s.open(p, j); n > 0 {
				n = min(n, s.fairShare(p, j, s.remaining(j)))
			}
			left[j] = n
		}
		if request == nil { // behind others it would wait while another node may be idle
			return min(n, s.groupStarts(p, j))
		}
		return min(n, s.groupRoom(p, j))
	}
	enough := func() bool {
		return given >= want || size >= maxGrantBytes || time > 0 && spent >= time && given >= max(1, least)
	}
	for !enough() {
		j := s.nextJob(more)
		if j == nil {
			break
		}
		jg := of[j]
		if jg == nil {
			s.inform(p, j)
			jg = &protocol.JobGrant{Job: j.id[:], RunUs: j.run.us()}
			of[j], g.Jobs = jg, append(g.Jobs, jg)
		}
		s.turns.serve(&j.claim)
		for turn, one := j.claim.used+quantum, true; more(j) > 0 && (one || j.claim.used < turn) && !enough(); one = false {
			i, in, ok := s.take(p, j)
			if !ok {
				left[j] = 0
				break
			}
			t := s.lease(p, j, i, in)
			size += len(t.Input) + len(t.Blobs)*grantBlob
			spent += cmp.Or(s.runOn(p, j), time/int64(firstFew*max(1, p.slotsHere(s))))
			jg.Tasks = append(jg.Tasks, t)
			left[j]--
			given++
		}
	}
	if given == 0 {
		return 0
	}
	p.grants++
	g.Left = uint64(s.pendingFor(p))
	p.told = g.Left
	s.send(p, g)
	p.beatSoon(s.now)
	return given
}

// inform sends p what it must know of j, once per stream.
func (s *Scheduler) inform(p *peer, j *job) {
	if p.informed == nil {
		p.informed = map[protocol.JobID]int64{}
	}
	if _, told := p.informed[j.id]; !told {
		p.informed[j.id] = s.now
		s.send(p, j.info(s.epoch))
	}
}

// lease makes a task, with its input, a new attempt of p.
func (s *Scheduler) lease(p *peer, j *job, i uint32, in Input) *protocol.Assignment {
	t := j.tasks.at(i)
	t.n++
	a := protocol.Attempt{Job: j.id, Index: i, N: t.n, Epoch: s.epoch}
	switch {
	case t.state == leased:
		j.spares++
	case t.grants > 0:
		j.reissued++
	}
	j.attempts++
	if !p.self {
		j.stolen++
	}
	if len(p.leases) == 0 {
		p.renewed = s.now
	}
	spare := t.state == leased
	l := s.leaseRoom.next()
	*l = lease{attempt: a, job: j, to: p, session: p.session, number: p.grants + 1, at: s.now, cost: s.cost(p, j), spare: spare, alone: j.suspected(i)}
	s.addLease(l)
	s.keep(l, in)
	if spare {
		s.tell(SpareGranted, a, p, "")
	} else {
		s.tell(Granted, a, p, "")
	}
	if !p.self && !j.grantedTo[p.id] {
		j.grantedTo[p.id] = true
		s.record(GrantedRecord{j.id, p.id})
	}
	if t.grants < 1<<16-1 {
		t.grants++
	}
	as := s.taskRoom.next()
	as.Index, as.N, as.Input, as.InputBlob, as.Blobs, as.Spare, as.Alone = i, t.n, in.Data, in.Blob, in.Blobs, spare, l.alone
	if len(in.Blobs) > 0 {
		l.share.has(j, &in)
	}
	if n := j.numbers.Of(i); n != i {
		as.Number = n + 1
	}
	if !p.self {
		as.Mac = s.mac.of(a, p.id)
	}
	return as
}

// addLease books a live attempt of a task that is not terminal.
func (s *Scheduler) addLease(l *lease) {
	j, i := l.job, l.attempt.Index
	if t := j.tasks.at(i); t.state == pending {
		s.unready(j, i, l)
		t.state = leased
		j.pending--
		j.leased++
		if n := len(j.places); n > 0 {
			t.seq, j.places = j.places[n-1], j.places[:n-1]
			j.live[t.seq] = l
		} else {
			t.seq, j.live = uint32(len(j.live)), append(j.live, l)
		}
	} else {
		last := j.live[t.seq]
		for last.also != nil {
			last = last.also
		}
		last.also = l
	}
	l.to.leases[l.attempt] = l
	if l.to.self && j.group != nil {
		j.group.leases++
	}
	if l.spare {
		l.to.spares++
	}
	if l.alone {
		l.to.alone++
	}
	if l.share == nil {
		l.share = j.share(l.to.id)
	}
	l.share.live++
	j.claim.used += l.cost
	l.place = l.to.rowBase + len(l.to.row)
	l.to.row = append(l.to.row, l)
	s.advanceRow(l.to)
	if j.state == JobWaiting {
		j.state = JobRunning
	}
}

// dropLease takes an attempt off the books. Its task is pending again if that was the last live one.
func (s *Scheduler) dropLease(l *lease) {
	j, i := l.job, l.attempt.Index
	s.unbook(l)
	t := j.tasks.at(i)
	at := &j.live[t.seq]
	for *at != l {
		at = &(*at).also
	}
	if *at, l.also = l.also, nil; j.live[t.seq] != nil {
		return
	}
	j.places = append(j.places, t.seq)
	t.state = pending
	j.leased--
	j.pending++
	j.cameBack(i, l.input, l.kept)
}

// leaseOf is the first live lease of a task; the others follow it.
func (j *job) leaseOf(i uint32) *lease {
	if t := j.tasks.at(i); t.state == leased {
		return j.live[t.seq]
	}
	return nil
}

// leases are all live ones of a job, in no order.
func (j *job) leases() iter.Seq[*lease] {
	return func(yield func(*lease) bool) {
		for _, l := range j.live {
			for ; l != nil; l = l.also {
				if !yield(l) {
					return
				}
			}
		}
	}
}

// takeLeases is leaseOf for a task that becomes terminal: the job has none of it any more.
func (j *job) takeLeases(i uint32) *lease {
	l := j.leaseOf(i)
	if l != nil {
		k := j.tasks.at(i).seq
		j.live[k], j.places = nil, append(j.places, k)
	}
	return l
}

// unbook takes a lease off the books of its worker, and what its job counts of it.
func (s *Scheduler) unbook(l *lease) {
	j := l.job
	delete(l.to.leases, l.attempt)
	if l.to.self && j.group != nil {
		j.group.leases--
	}
	if l.spare {
		l.to.spares--
	}
	if l.alone {
		l.to.alone--
	}
	l.share.live--
	j.claim.used -= l.cost
	if l.kept {
		j.inputs.leased -= l.input.size()
	}
	l.to.row[l.place-l.to.rowBase] = nil
	if l.started != 0 {
		l.to.begun--
	}
	s.advanceRow(l.to)
}

// takeBack drops leases that are lost or were given back, for the reason c.
func (s *Scheduler) takeBack(ls []*lease, c Code, what string) {
	slices.SortFunc(ls, func(a, b *lease) int { return a.attempt.Compare(b.attempt) })
	for _, l := range ls {
		if l.to.leases[l.attempt] == l { // else it was named twice
			s.tell(c, l.attempt, l.to, what)
			s.dropLease(l)
		}
	}
}

// lose gives up every attempt that p holds, for the reason c; they are granted anew.
func (s *Scheduler) lose(p *peer, c Code) {
	if p.self {
		return
	}
	if len(p.leases) > 0 && c != NodeLeft && c != NodeExpelled {
		p.taken = map[protocol.Attempt]bool{}
		for a := range p.leases {
			p.taken[a] = true
		}
	}
	s.takeBack(slices.Collect(maps.Values(p.leases)), c, "")
	p.recalling = 0
	p.listed = nil
}

// revoke tells p to drop attempts that it holds and that are not live any more.
func (s *Scheduler) revoke(p *peer, as []protocol.Attempt) {
	if len(as) == 0 {
		return
	}
	slices.SortFunc(as, protocol.Attempt.Compare)
	s.send(p, &protocol.Revoke{Epoch: s.epoch, Attempts: protocol.GroupAttempts(as)})
}

// adopt makes live again what p still holds from before its stream broke, or from before we were started anew,
// if the task waits. Whether we granted it shows with the result's MAC; that we granted p something of the job, here.
func (s *Scheduler) adopt(p *peer, queued, unanswered []protocol.Attempt) {
	for _, as := range [][]protocol.Attempt{queued, unanswered} {
		for _, a := range as {
			if l := p.leases[a]; l != nil {
				l.session, l.number = p.session, 0
				continue
			}
			j := s.jobs[a.Job]
			if j == nil || j.state >= JobDone || a.Index >= j.tasks.n || !j.grantedTo[p.id] {
				continue
			}
			if t := j.tasks.at(a.Index); t.state == pending && (j.spec.Placement == nil || p.fit(j) == None) && (a.Epoch < s.epoch && len(p.leases) < 2*maxHeld || p.taken[a]) {
				if len(p.leases) == 0 {
					p.renewed = s.now
				}
				s.tell(Adopted, a, p, "")
				s.addLease(&lease{attempt: a, job: j, to: p, session: p.session, at: s.now, alone: j.suspected(a.Index)})
			}
		}
	}
}

// stealRequest answers an idle worker: with tasks, or with none, and then with those of a busier peer, later.
func (s *Scheduler) stealRequest(p *peer, m *protocol.StealRequest) {
	p.wait = max(p.roundTrip, int64(min(m.WaitUs, uint64(1)<<40))*microsecond)
	if m.Free > 0 { // newer than its last beat
		p.others = max(0, p.slots-int(min(m.Free, 1<<16))-len(p.leases)+p.spares)
	}
	if m.Epoch == s.epoch && s.available(p) {
		want := int(min(m.Want, maxGrant))
		if m.Free == 0 { // it has work: whoever has none comes first, or what is recalled from p would go back to it
			want = min(want, s.pendingFor(p)-s.idleBesides(p))
		}
		if want > 0 && s.grant(p, want, m) > 0 {
			return
		}
	}
	p.grants++
	p.told = 0
	s.send(p, &protocol.Grant{Epoch: s.epoch, Number: p.grants, Request: m.Id})
}

// idleBesides is how many tasks that are pending now others than p could start at once.
func (s *Scheduler) idleBesides(p *peer) int {
	n := 0
	for _, q := range s.line {
		if q != p && s.available(q) && (q.self || s.now >= q.eagerFrom) {
			if f := s.free(q); f > 0 {
				n += min(f, s.pendingFor(q))
			}
		}
	}
	return n
}

// advanceRow notes which leases of p have come to the front: as many as it has slots count as started. Its beats tell us
// of starts only twice a second; that it runs tasks in the order of their grants is known at once.
func (s *Scheduler) advanceRow(p *peer) {
	for len(p.row) > 0 && p.row[0] == nil {
		p.row = p.row[1:]
		p.rowBase++
	}
	if len(p.row) == 0 {
		p.row = nil
	}
	slots := max(1, p.slotsHere(s))
	if p.alone > 0 {
		slots = 1
	}
	for p.front = max(p.front, p.rowBase); p.begun < slots && p.front < p.rowBase+len(p.row); p.front++ {
		if l := p.row[p.front-p.rowBase]; l != nil {
			l.started = max(s.now, l.at+p.wait/2, 1)
			p.begun++
		}
	}
}

// free is how many slots p has that nothing here says are taken by more than a spare copy.
func (s *Scheduler) free(p *peer) int {
	if p.alone > 0 { // nothing runs beside that one
		return 0
	}
	if p.self { // what guests have of its slots keeps own tasks from none; leases may be on their way between its two sides
		return s.wanted - max(p.runningHere+p.queuedHere, len(p.leases)) + p.spares
	}
	return p.slots - p.others - len(p.leases) + p.spares
}

// atWork is how many attempts run or are queued on this node.
func (s *Scheduler) atWork() int { return s.here.running + s.here.queued }

// grantEagerly sends new work to peers that are known to be idle without waiting for them to ask (this saves a
// round trip): one task to each before a second to any. Then it tells the others that there is work.
func (s *Scheduler) grantEagerly() {
	if !s.grants() || len(s.active) == 0 {
		return
	}
	any := false
	for _, j := range s.active {
		any = any || s.grantable(j) > 0
	}
	if !any {
		return
	}
	type room struct {
		p    *peer
		free int
		give int
	}
	var rooms []room
	total, slots := 0, 0
	for _, p := range s.line {
		slots += p.slotsHere(s)
		if s.available(p) && (p.self || s.now >= p.eagerFrom) {
			n := 0
			for _, j := range s.active {
				n += min(s.open(p, j), s.groupStarts(p, j))
			}
			if f := min(s.free(p), n); f > 0 {
				rooms = append(rooms, room{p: p, free: f})
				total = max(total, n)
			}
		}
	}
	// This node first: it needs no message. But last if guests have its slots. Then whoever has least to do.
	here := s.wanted > s.atWork()
	slices.SortStableFunc(rooms, func(a, b room) int {
		return cmp.Or(-cmpBool(a.p.self == here, b.p.self == here), cmp.Compare(len(a.p.leases), len(b.p.leases)))
	})
	few := 1
	if total >= 2*firstFew*slots && s.durationUnknown() {
		few = firstFew
	}
	for more := true; more && total > 0; {
		more = false
		for i := range rooms {
			if r := &rooms[i]; r.give < r.free && total > 0 {
				r.give++
				total--
				more = true
			}
		}
	}
	for _, r := range rooms {
		if r.give > 0 && r.p.roundTrip >= fewFrom {
			r.give *= few
		}
		if r.give > 0 {
			s.grantUnasked(r.p, r.give)
		}
	}
	s.tellLoad()
}

// durationUnknown says whether nothing is known of how long the tasks take that are granted next.
func (s *Scheduler) durationUnknown() bool {
	j := s.nextJob(s.grantable)
	return j != nil && j.run.ns == 0
}

// grantUnasked grants n tasks, or fewer if fewer are p's fair share.
func (s *Scheduler) grantUnasked(p *peer, n int) {
	for n > 0 {
		g := s.grant(p, n, nil)
		if g == 0 {
			return
		}
		n -= g
	}
}

func cmpBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// tellLoad tells peers that believe us to be empty that we are not: as many as there are tasks.
func (s *Scheduler) tellLoad() {
	left := 0
	for _, j := range s.active {
		left += s.grantable(j)
	}
	for _, p := range s.line {
		if left == 0 {
			return
		}
		if p.told > 0 || !s.available(p) || s.now < p.loadFrom {
			continue
		}
		n := 0
		for _, j := range s.active {
			k := s.open(p, j)
			if n += k; k > 0 || j.run.ns == 0 && s.grantable(j) > 0 && s.canRun(p, j) { // bytes too far away may as well set out
				s.inform(p, j)
			}
		}
		if n == 0 {
			continue
		}
		p.told, p.loadFrom = uint64(n), s.now+loadEvery
		s.send(p, &protocol.Load{Epoch: s.epoch, Pending: uint64(n)})
		left--
	}
}

// givenBack takes back attempts that p has not started and never will. Not a failed attempt.
func (s *Scheduler) givenBack(p *peer, m *protocol.GiveBack) {
	if m.Recall != 0 && m.Recall == p.recalling {
		p.recalling = 0
		// Not again at once: it may be this very node, and ask for what it gave back before the thief has it.
		p.recallFrom = s.now + recallLead
		if len(m.Attempts) == 0 { // what we take for waiting there has started
			p.recallFrom = s.now + recallPause
		}
	}
	if m.Recall == 0 && m.Why == protocol.Refusal_NONE && !p.self {
		p.paused = m.Reason // it takes no work; the beat that says so, or otherwise, follows
	}
	if m.Epoch != s.epoch {
		return // for an earlier life; its next beat says the same
	}
	var back []*lease
	for _, a := range protocol.UngroupAttempts(m.Attempts) {
		l := p.leases[a]
		if l == nil {
			continue
		}
		back = append(back, l)
		t := l.job.tasks.at(a.Index)
		switch {
		case m.Recall != 0 && t.moves < 255:
			t.moves++
		case m.Why == protocol.Refusal_CANNOT_RUN:
			delete(p.informed, a.Job) // the next JobInfo has it try again
			s.refused(p, a.Job, Refused, m.Reason, cannotFirst)
		}
	}
	if m.Why == protocol.Refusal_NO_SLOT {
		p.eagerFrom = s.now + eagerPause
	}
	switch {
	case m.Recall != 0:
		s.takeBack(back, Moved, "")
	case m.Why == protocol.Refusal_NO_SLOT:
		s.takeBack(back, NoRoom, m.Reason)
	default:
		s.takeBack(back, GaveBack, m.Reason)
	}
}

// refused keeps a job from p for a time, first at least, that doubles with each refusal.
func (s *Scheduler) refused(p *peer, id protocol.JobID, code Code, reason string, first int64) {
	c := p.cannot[id]
	c.code, c.reason = code, reason
	if s.now >= c.from { // once per refusal, not per task
		s.tell(code, protocol.Attempt{Job: id}, p, reason)
		c.pause = min(max(first, 2*c.pause), cannotMost)
		c.from = s.now + c.pause
	}
	p.cannot[id] = c
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}

func (l *lease) String() string { return fmt.Sprintf("%v to %s", l.attempt, l.to.id.Short()) }
