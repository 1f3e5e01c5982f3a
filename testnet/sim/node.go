package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
	"meshnode/tasks"
)

// What a step costs the event loop of a node. Without a price a herd of messages would be free: messages wait for the loop, and what
// comes of them leaves it when their time has passed. From profiles of the real node on a busy core (docs/benchmarks.md):
// 10 µs of processor time at both ends together for a task that travels, 3 µs of it in the scheduler. Higher here than there,
// because the scheduler's goroutine is not alone on its core.
const (
	costMessage = 20 * us // a message read, besides what is in it: a frame, a wake-up, and one sent in return
	costTask    = 5 * us  // each task, outcome or attempt in it
	costEvent   = 2 * us  // any other event
	costPeer    = 50      // ns: each peer, for each turn of the loop. Ready looks at all: 0.4 ms with 10 000
)

// node is a machine of the mesh: what survives its process.
type node struct {
	w         *world
	index     int
	id        protocol.NodeID
	key       [32]byte
	speed     int64 // percent: a task of 1 s takes 100/speed s
	slots     int   // wanted by its person,
	mostSlots int   // and the most of that so far
	window    int   // bytes of inputs in memory; 0: as usual
	room      int   // that its label says; 0: none
	moves     bool  // it may be in another room each time it starts
	cpu       int64 // percent: how much longer its event loop takes, 100 being normal

	disk  *disk
	blobs *blobs
	links []*link // by index of the other

	p         *process
	life      uint64
	lives     *rand.Rand
	stop      stopKind
	stopped   int64 // when that began
	slept     int64 // in all
	base      int64 // of its clock
	deferred  []func()
	syncTakes func() int64
	held      bool   // does not restart by itself
	unable    bool   // cannot prepare programs of others, for now
	idle      string // the reason for which its person wants it to take no work
	liar      bool
	hole      bool  // fails every task at once
	crashIn   int   // the process dies after so many outputs were carried out; 0: no plan
	failWrite bool  // its next write fails, before anything of it is on the disk
	failSync  bool  // its next sync fails
	boaster   bool  // it says again and again that it has endless work, and grants nothing
	mute      bool  // it answers no result
	readGap   int64 // between two frames that it reads, ns: a slow reader
	sleeper   sleep // what it takes and never runs
	rollbacks int
	disturbed int64                    // the last time at which it was frozen, suspended or its loop hung
	stepped   int64                    // by the node's clock
	endedAt   map[protocol.JobID]int64 // by the node's clock: when the end of its jobs was written,
	awayAt    map[awayKey]int64        // and that an origin is away
}

func (w *world) addNode(speed int64, slots int) *node {
	i := len(w.nodes)
	n := &node{w: w, index: i, id: protocol.NodeID(fmt.Sprintf("12D3KooWsim%08d", i)), speed: speed, slots: slots, cpu: 100,
		disk: &disk{book: newBook()}, blobs: newBlobs(), base: w.between(1*sec, 1000*sec) + w.clocks,
		lives: rand.New(rand.NewPCG(w.seed, 77+uint64(i)))}
	for k := range n.key {
		n.key[k] = byte(n.lives.Uint32())
	}
	n.syncTakes = func() int64 { return w.between(150*us, 900*us) }
	for _, m := range w.nodes {
		if w.hubs > 0 && m.index >= w.hubs {
			break
		}
		l := &link{w: w, n: [2]*node{m, n}, latency: 200 * us, jitter: 100 * us}
		m.links = append(m.links, l)
		n.links = append(n.links, l)
		w.links = append(w.links, l)
	}
	w.nodes = append(w.nodes, n)
	n.endedAt, n.awayAt = map[protocol.JobID]int64{}, map[awayKey]int64{}
	w.byID[n.id] = n
	return n
}

// link joins n and m; nil if nothing does.
func (n *node) link(m *node) *link {
	i, ok := slices.BinarySearchFunc(n.links, m.index, func(l *link, i int) int { return l.n[1-l.side(n)].index - i })
	if !ok {
		return nil
	}
	return n.links[i]
}

func (n *node) String() string { return fmt.Sprintf("n%d", n.index) }

// clock is what the node's monotonic clock shows.
func (n *node) clock() int64 { return n.base + n.w.now - n.slept }

// awayKey is one absence of an origin, by the awake time at which it began.
type awayKey struct {
	origin protocol.NodeID
	since  int64
}

// process is one life of a node: its event loop.
type process struct {
	n           *node
	s           *tasks.Scheduler
	incarnation uint64
	session     uint64
	expelled    map[protocol.NodeID]bool
	ends        map[uint64]*end // streams, by session; also broken ones until their PeerDown
	inbox       []waiting
	turning     bool  // a turn is planned
	busyUntil   int64 // the loop is in a turn, or hangs
	wake        int64 // by the node's clock; 0: none
	wakes       int
	carrying    int // turns whose outputs are still to come
	later       []later
	obtains     map[obtaining]bool // under way
	syncing     bool
	syncWanted  int // batches that somebody waits for
	dead        bool
	stopping    bool
	lying       bool // its machine is about to sleep, or sleeps: it has said so to all
	turns       int
	spins       int // turns in a row that had nothing to do and want another one at once

	slot     map[int]*slot
	hasSlots int // as the scheduler was told
	prepared map[programKey]bool
	answered map[heldKey]bool // the origin released it: an answer, a revoke
	gone     map[protocol.JobID]bool
	revoked  map[protocol.Attempt]bool
	gave     map[heldKey]bool
	stale    map[heldKey]bool           // granted in an epoch below one that was seen before
	seenNow  map[protocol.NodeID]uint64 // highest epoch
	current  map[protocol.NodeID]uint64 // session that the scheduler was told of last

	limits   map[protocol.JobID]told // of groups
	restored map[protocol.JobID]bool // groups with jobs of an earlier life
	born     int64                   // by the node's clock
}

// programKey names a job: its id is the choice of its origin, so another origin may use the same.
type programKey struct {
	origin protocol.NodeID
	job    protocol.JobID
}

// waiting is an event before the loop took it; or, with call, something else that the loop does.
type waiting struct {
	ev   tasks.Event
	call func()
	done func(error)
}

// later is a Durable output: carried out when the batches before it are synced.
type later struct {
	batch int
	do    func()
}

// start is what node does at its start: raise the epoch, sync it, restore, connect.
func (n *node) start() {
	w := n.w
	if n.p != nil {
		return
	}
	epoch := uint64(1)
	if k := len(n.disk.book.epoch); k > 0 {
		epoch = n.disk.book.epoch[k-1].epoch + 1
	}
	kept := n.disk.kept(w)
	n.blobs.repin(kept)
	n.write([]tasks.Record{tasks.EpochRecord{Epoch: epoch}})
	n.disk.synced = len(n.disk.batches)
	n.life++
	p := &process{n: n, incarnation: n.lives.Uint64(), ends: map[uint64]*end{}, expelled: map[protocol.NodeID]bool{}, slot: map[int]*slot{}, hasSlots: n.slots,
		prepared: map[programKey]bool{}, answered: map[heldKey]bool{}, gone: map[protocol.JobID]bool{},
		revoked: map[protocol.Attempt]bool{}, gave: map[heldKey]bool{}, stale: map[heldKey]bool{}, seenNow: map[protocol.NodeID]uint64{}, current: map[protocol.NodeID]uint64{},
		limits: map[protocol.JobID]told{}, restored: map[protocol.JobID]bool{}, born: n.clock()}
	if n.moves && n.life > 1 && n.lives.IntN(2) == 0 {
		n.room = 3 - n.room
	}
	var facts tasks.Facts
	if n.room > 0 {
		facts.Labels = []string{roomLabel(n.room)}
	}
	s, err := tasks.New(tasks.Config{Facts: facts, Self: n.id, Epoch: epoch, Incarnation: p.incarnation, Key: n.key,
		Rand: rand.New(rand.NewPCG(n.lives.Uint64(), n.lives.Uint64())), Slots: n.slots, Runtimes: []string{"wasm"}, InputWindow: n.window, Retention: n.w.retention})
	if err != nil {
		w.fail("%v: New: %v", n, err)
		return
	}
	p.s = s
	w.trace("%v starts: epoch %d, incarnation %x, %d records", n, epoch, p.incarnation>>48, len(kept))
	for _, r := range kept {
		if err := s.Restore(n.clock(), r); err != nil {
			w.fail("%v: Restore %T: %v", n, r, err)
			return
		}
	}
	s.Restored(n.clock())
	for _, j := range s.Jobs() {
		if k := w.jobs[j.ID]; k != nil && k.program != nil && j.State < tasks.JobDone {
			p.restored[k.program.id] = true
		}
	}
	n.p = p
	n.mostSlots = max(n.mostSlots, p.hasSlots)
	w.count(n, 0, p.hasSlots)
	n.stepped = n.clock()
	if err := s.Check(); err != nil {
		w.fail("%v after Restored: %v", n, err)
		return
	}
	if n.idle != "" {
		p.post(tasks.SetPaused{Reason: n.idle})
	}
	p.kick()
	for _, l := range n.links {
		l.dialLater(w.between(1*ms, 80*ms))
	}
	for _, g := range w.programs {
		if g.n == n { // on its first day before the jobs, else when it has noticed
			p.after(w.between(1*ms, 20*ms)*int64(min(n.life, 10)), func() { g.say(p) })
		}
	}
	for _, j := range w.order {
		if j.n == n {
			j.connect(p)
		}
	}
	if n.liar {
		p.lie()
	}
	if n.boaster {
		p.boast()
	}
}

// write appends to the disk and checks what is written.
func (n *node) write(rs []tasks.Record) {
	n.disk.append(rs)
	batch := len(n.disk.batches) - 1
	for _, r := range n.disk.batches[batch] {
		n.w.trace("%v writes %s", n, describeRecord(r))
		n.checkRecord(r)
		if wrong := n.disk.book.add(batch, r); wrong != "" {
			n.w.fail("%v: %s: %s", n, wrong, describeRecord(r))
		}
	}
}

// die is kill -9 (or, silent, a cut power cord: nobody is told).
func (n *node) die(silent bool) {
	p := n.p
	if p == nil {
		return
	}
	w := n.w
	kept := n.disk.synced
	if extra := len(n.disk.batches) - kept; extra > 0 {
		kept += w.rng.IntN(extra + 1)
	}
	n.losing(p)
	w.trace("%v dies: keeps %d of %d batches, %d were synced", n, kept, len(n.disk.batches), n.disk.synced)
	p.dead = true
	for _, st := range n.p.s.Jobs() {
		n.w.spares += int(st.Spares)
	}
	n.p = nil
	n.stop, n.deferred = 0, nil
	n.disk.cut(kept)
	n.disk.synced = kept
	for _, e := range p.sortedEnds() {
		e.conn.cut(cutKill(silent, e.side))
	}
}

func (p *process) sortedEnds() []*end {
	out := make([]*end, 0, len(p.ends))
	for _, e := range p.ends {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *end) int { return int(a.session) - int(b.session) })
	return out
}

// at plans something that this process does at time t, if it still lives; a frozen process does it when it
// goes on, a suspended machine as much later as it slept.
func (p *process) at(t int64, do func()) {
	slept := p.n.slept
	p.n.w.at(t, func() { p.fire(t, slept, do) })
}

func (p *process) after(d int64, do func()) { p.at(p.n.w.now+d, do) }

func (p *process) fire(t, slept int64, do func()) {
	n := p.n
	switch {
	case p.dead:
	case n.stands():
		n.deferred = append(n.deferred, func() { p.fire(t, slept, do) })
	case n.slept > slept:
		t, slept := t+n.slept-slept, n.slept
		n.w.at(t, func() { p.fire(t, slept, do) })
	default:
		do()
	}
}

// outside runs do now, or when the machine takes frames and clients again.
func (p *process) outside(do func()) {
	switch {
	case p.dead:
	case p.n.stands():
		p.n.deferred = append(p.n.deferred, func() { p.outside(do) })
	default:
		do()
	}
}

// stopKind is how a node stands still.
type stopKind byte

const (
	frozen    stopKind = iota + 1 // its process is stopped: the kernel still takes frames, the clock goes on
	paused                        // a virtual machine is: its clock jumps, frames are sent again later
	suspended                     // the machine is: its clock stands still, frames are sent again later
)

func (k stopKind) String() string { return [...]string{"", "frozen", "paused", "suspended"}[k] }

// stands says that nothing happens in the node now; off, that it takes no frames either.
func (n *node) stands() bool { return n.stop != 0 }
func (n *node) off() bool    { return n.stop == paused || n.stop == suspended }

// stopFor lets the node stand still for d.
func (n *node) stopFor(d int64, kind stopKind) {
	if n.p == nil || n.stands() {
		return
	}
	p, w := n.p, n.w
	w.trace("%v is %v for %.3f s", n, kind, float64(d)/1e9)
	n.stop, n.stopped = kind, w.now
	n.silent(p)
	n.hungUpOn()
	w.after(d, func() {
		if p.dead || !n.stands() {
			return
		}
		n.goOn()
	})
}

// hungUpOn lets the others close their streams to a node from which nothing comes: after the time of a lease, or later where there
// is none. It learns of it when it goes on, after what had come before.
func (n *node) hungUpOn() {
	w, since := n.w, n.stopped
	if w.patient {
		return
	}
	for _, l := range n.links {
		c, k := l.conn, l.side(n)
		if c == nil || c.dead {
			continue
		}
		// Not of the world's own numbers: those decide what else happens.
		x := int64(hash64(w.seed, uint64(w.now), uint64(c.ends[0].session)) % 1000)
		d := 3*sec + x*ms
		if x%4 == 0 {
			d = 5*sec + x*5*ms
		}
		w.after(d, func() {
			if n.stands() && n.stopped == since && l.conn == c && !c.ends[1-k].p.n.stands() {
				m := cutMode{keep: true}
				m.tell[k] = [2]int64{1 * ms, 30 * ms}
				c.cut(m)
			}
		})
	}
}

// lieDown lets the machine sleep for d, after it was told so: it says so to the others first. With d of 0 it does not sleep.
func (n *node) lieDown(d int64) {
	p, w := n.p, n.w
	if p == nil || n.stands() || p.stopping || p.lying {
		return
	}
	p.lying = true
	w.trace("%v is to sleep for %.3f s", n, float64(d)/1e9)
	p.post(tasks.Sleep{Reason: "its lid is closed"})
	p.after(w.between(5*ms, 60*ms), func() {
		if n.stands() || p.stopping {
			return
		}
		for _, e := range p.sortedEnds() {
			if !e.down && e.up {
				e.send(&protocol.Bye{Reason: "goes to sleep", Asleep: true})
			}
			e.conn.cut(cutClean(e.side))
		}
		p.after(w.between(1*ms, 400*ms), func() {
			if d > 0 {
				n.stopFor(d, suspended)
				return
			}
			p.getUp()
		})
	})
}

// getUp is what the system's word does that the machine is awake: it comes behind the word that it was to sleep.
func (p *process) getUp() {
	w := p.n.w
	p.lying = false
	p.post(tasks.Woke{})
	for _, l := range p.n.links {
		l.dialLater(w.between(w.redial[0], w.redial[1]))
	}
}

func (n *node) goOn() {
	w := n.w
	w.trace("%v goes on", n)
	slept := int64(0)
	if n.stop == suspended {
		slept = w.now - n.stopped
		n.slept += slept
	}
	off := n.off()
	n.stop = 0
	if n.p != nil {
		n.heard(n.p)
	}
	if p := n.p; p != nil && slept > sec { // the loop looks at the clocks before it steps anything
		p.inbox = slices.Insert(p.inbox, 0, waiting{ev: tasks.Woke{}})
		p.kick()
	}
	if n.p != nil && n.p.lying {
		n.p.getUp()
	}
	for _, l := range n.links {
		if off {
			l.resend(1-l.side(n), w.between(0, 800*ms))
		}
	}
	n.disturbed = max(n.disturbed+w.now-n.stopped, w.now) // what hung goes on hanging
	ds := n.deferred
	n.deferred = nil
	for _, do := range ds {
		do()
	}
}

// post hands an event to the loop.
func (p *process) post(ev tasks.Event) { p.put(waiting{ev: ev}) }

func (p *process) put(x waiting) {
	if p.dead {
		return
	}
	p.inbox = append(p.inbox, x)
	p.kick()
}

// kick plans a turn of the loop, as soon as it is free.
func (p *process) kick() {
	if p.turning || p.dead {
		return
	}
	p.turning = true
	p.at(max(p.n.w.now, p.busyUntil), p.turn)
}

// turn is one round of the event loop: all that waits, Tick if it is due, one Ready.
func (p *process) turn() {
	n, w := p.n, p.n.w
	p.turning = false
	if w.now < p.busyUntil { // it hangs
		p.kick()
		return
	}
	now := n.clock()
	cost := int64(0)
	events := p.inbox
	p.inbox = nil
	for _, x := range events {
		if x.call != nil {
			cost += costEvent
			x.call()
			continue
		}
		cost += cpuOf(x.ev)
		err := p.step(now, x.ev)
		if x.done != nil {
			x.done(err)
		} else if err != nil {
			w.fail("%v refuses %T: %v", n, x.ev, err)
		}
		if p.dead || w.violation != "" {
			return
		}
	}
	if p.wake != 0 && now >= p.wake {
		p.wake = 0
		if err := p.step(now, tasks.Tick{}); err != nil {
			w.fail("%v refuses Tick: %v", n, err)
			return
		}
		cost += costEvent
	}
	r := p.s.Ready()
	p.turns++
	if w.checkEach <= 1 || p.turns%w.checkEach == 0 {
		if err := p.s.Check(); err != nil {
			w.fail("%v: %v", n, err)
			return
		}
	}
	p.wake = r.Wake
	if len(events) > 0 || !r.Empty() || r.Wake == 0 || r.Wake > now {
		p.spins = 0
	} else if p.spins++; p.spins > 5 {
		w.fail("%v is woken again and again for nothing: now %d, Wake %d", n, now, r.Wake)
		return
	}
	p.armWake()
	p.busyUntil = w.now + max(cost, costEvent)*n.cpu/100 + costPeer*int64(len(n.links))
	if !r.Empty() {
		p.carrying++
		p.at(p.busyUntil, func() {
			p.carrying--
			p.carryOut(r)
		})
	}
	if len(p.inbox) > 0 {
		p.kick()
	}
}

func (p *process) armWake() {
	p.wakes++
	if p.wake == 0 {
		return
	}
	mine := p.wakes
	p.after(max(0, p.wake-p.n.clock()), func() {
		if mine == p.wakes {
			p.kick()
		}
	})
}

func (p *process) step(now int64, ev tasks.Event) error {
	n, w := p.n, p.n.w
	w.steps++
	w.mixInt(w.now)
	if w.out != nil {
		if _, tick := ev.(tasks.Tick); !tick {
			w.trace("%v < %s", n, describeEvent(ev))
		}
	}
	switch ev := ev.(type) {
	case tasks.Receive:
		p.heed(ev)
	case tasks.PeerUp:
		if ev.Session > p.current[ev.Peer] {
			p.current[ev.Peer] = ev.Session
			p.seenNow[ev.Peer] = max(p.seenNow[ev.Peer], ev.Hello.Epoch)
		}
	case tasks.PeerDown:
		if p.current[ev.Peer] == ev.Session {
			p.current[ev.Peer] = 0
		}
	case tasks.SetSlots:
		n.mostSlots = max(n.mostSlots, ev.Slots)
		w.count(n, p.hasSlots, ev.Slots)
		p.hasSlots = ev.Slots
	case tasks.Submit:
		if b := n.disk.book.gone[ev.Job]; b != nil && b.free {
			return tasks.ErrForgotten // no client repeats itself so late
		}
	}
	n.stepped = now
	err := p.s.Step(now, ev)
	if x, ok := ev.(tasks.Expelled); ok {
		if h := p.s.Hello(x.Peer); len(h.Held)+len(h.Unanswered) > 0 {
			n.w.fail("I12: %v keeps what %v wanted done, which is no member any more", n, n.w.byID[x.Peer])
		}
	}
	return err
}

func cpuOf(ev tasks.Event) int64 {
	switch ev := ev.(type) {
	case tasks.Receive:
		return costMessage + costTask*int64(tasksIn(ev.Message))
	case tasks.Finished:
		return costEvent + costTask*int64(len(ev.Outcomes))
	case tasks.Submit:
		return costEvent + us*int64(len(ev.Inputs))
	}
	return costEvent
}

func tasksIn(m protocol.Message) int {
	n := 0
	count := func(gs []*protocol.Attempts) {
		for _, g := range gs {
			n += len(g.Index)
		}
	}
	switch m := m.(type) {
	case *protocol.Grant:
		for _, j := range m.Jobs {
			n += len(j.Tasks)
		}
	case *protocol.Result:
		n = len(m.Outcomes)
	case *protocol.GiveBack:
		count(m.Attempts)
	case *protocol.ResultAnswer:
		count(m.Accepted)
		count(m.Superseded)
		count(m.Unknown)
	case *protocol.Revoke:
		count(m.Attempts)
	case *protocol.Beat:
		count(m.Held)
		n /= 8 // compared, not worked on
	}
	return n
}

// carryOut does what a Ready says, in its order.
func (p *process) carryOut(r tasks.Ready) {
	n, w := p.n, p.n.w
	outputs := 0
	do := func(f func()) {
		if p.dead || w.violation != "" {
			return
		}
		f()
		outputs++
		if n.crashIn > 0 {
			if n.crashIn--; n.crashIn == 0 && !p.dead {
				w.trace("%v dies in the middle of a Ready", n)
				n.crash(false, w.between(50*ms, 3*sec))
			}
		}
	}
	if len(r.Records) > 0 {
		if n.failWrite { // nothing of the Ready may be done
			n.failWrite = false
			w.trace("%v cannot write", n)
			n.crash(false, w.between(50*ms, 2*sec))
			return
		}
		do(func() { n.write(r.Records) })
		if p.dead {
			return
		}
		if !r.Sync {
			p.after(100*ms, func() { p.wantSync() })
		}
	}
	batch := len(n.disk.batches)
	when := func(durable bool, f func()) {
		if !durable || n.disk.synced >= batch {
			do(f)
		} else {
			p.later = append(p.later, later{batch, f})
		}
	}
	for _, m := range r.Messages {
		if p.dead {
			return
		}
		p.checkOutgoing(m, r.Stop)
		when(m.Durable, func() { p.send(m) })
	}
	for _, x := range r.Stop {
		do(func() { p.stop(x) })
	}
	for _, x := range r.Prepare {
		do(func() { p.prepare(x) })
	}
	for _, x := range r.Start {
		do(func() { p.startSlot(x) })
	}
	for _, x := range r.Fetch {
		do(func() { p.fetch(x) })
	}
	for _, x := range r.Obtain {
		do(func() { p.obtain(x) })
	}
	for _, x := range r.Load {
		do(func() { p.load(x) })
	}
	for _, x := range r.Unpin {
		do(func() { p.unpin(x) })
	}
	for _, x := range r.Notices {
		when(x.Durable, func() { p.notice(x) })
	}
	if p.dead {
		return
	}
	if r.Sync {
		p.wantSync()
	}
	if p.stopping && p.carrying == 0 {
		p.leave()
	}
}

// wantSync asks for a sync of all that is written. One runs at a time and covers what was written before it began.
func (p *process) wantSync() {
	n := p.n
	p.syncWanted = max(p.syncWanted, len(n.disk.batches))
	if p.syncing || n.disk.synced >= p.syncWanted {
		return
	}
	p.syncing = true
	covers := len(n.disk.batches)
	p.after(n.syncTakes(), func() {
		p.syncing = false
		if n.failSync { // what it was to bring to the disk may be there or not: the node ends, and reads what is
			n.failSync = false
			n.w.trace("%v cannot sync", n)
			n.crash(false, n.w.between(50*ms, 2*sec))
			return
		}
		n.disk.synced = max(n.disk.synced, covers)
		ready := p.later
		p.later = nil
		for i, l := range ready {
			if l.batch > n.disk.synced {
				p.later = append(p.later, ready[i:]...)
				break
			}
			if !p.dead {
				l.do()
			}
		}
		if !p.dead {
			p.wantSync()
		}
	})
}

// send puts a message on its stream. Beats get their ages here, as late as can be.
func (p *process) send(m tasks.Outgoing) {
	e := p.ends[m.Session]
	if e == nil || e.down {
		return
	}
	if e.peer != m.Peer {
		p.n.w.fail("%v sends %T to %s on a stream of %s", p.n, m.Message, m.Peer.Short(), e.peer.Short())
		return
	}
	if r, ok := m.Message.(*protocol.ResultAnswer); ok {
		if p.n.mute {
			return
		}
		p.checkAnswers(r)
	}
	if b, ok := m.Message.(*protocol.Beat); ok {
		e.beat, e.again = proto.Clone(b).(*protocol.Beat), m.Again
		e.sendBeat()
		return
	}
	e.send(m.Message)
}

// notice passes a Notice to the client of its job.
func (p *process) notice(x tasks.Notice) {
	w := p.n.w
	w.trace("%v tells %s", p.n, describeNotice(x))
	w.mixInt(int64(x.Kind))
	p.checkNotice(x)
	if j := w.jobs[x.Job]; j != nil {
		j.told(p, x)
	}
}

// shutdown begins a clean stop; leave ends it.
func (p *process) shutdown() {
	p.put(waiting{ev: tasks.Shutdown{Reason: "stopped by its person"}, done: func(err error) {
		if err != nil {
			p.n.w.fail("%v refuses Shutdown: %v", p.n, err)
		}
		p.stopping = true
		// A Ready without anything in it ends the process too.
		p.after(20*ms, func() {
			if p.carrying == 0 {
				p.leave()
			}
		})
	}})
}

func (p *process) leave() {
	n, w := p.n, p.n.w
	if p.dead {
		return
	}
	n.disk.synced = len(n.disk.batches)
	ready := p.later
	p.later = nil
	for _, l := range ready {
		l.do()
	}
	if p.dead {
		return
	}
	for _, e := range p.sortedEnds() {
		if !e.down {
			e.send(&protocol.Bye{Reason: "stops"})
		}
	}
	w.trace("%v stops cleanly", n)
	n.losing(p)
	p.dead = true
	for _, st := range n.p.s.Jobs() {
		n.w.spares += int(st.Spares)
	}
	n.p = nil
	for _, e := range p.sortedEnds() {
		e.conn.cut(cutClean(e.side))
	}
	n.restartAfter(w.between(100*ms, 4*sec))
}

func (n *node) restartAfter(d int64) {
	n.w.after(d, func() {
		if !n.held && !n.w.over {
			n.start()
		}
	})
}

// crash is die and a restart after d.
func (n *node) crash(silent bool, d int64) {
	if n.p == nil {
		return
	}
	n.die(silent)
	n.restartAfter(d)
}

// rollBack is a restored backup: the process dies, and the disk is as it once was.
func (n *node) rollBack() {
	w := n.w
	if n.p == nil || len(n.disk.batches) < 2 {
		return
	}
	n.die(false)
	to := 1 + w.rng.IntN(len(n.disk.batches))
	w.trace("%v is restored from a backup: %d of %d batches", n, to, len(n.disk.batches))
	n.disk.cut(to)
	n.disk.synced = to
	n.rollbacks++
	for _, j := range w.order {
		if j.n == n {
			j.forgetPromises()
		}
	}
	for t := range w.grants {
		if j := w.jobs[t.Job]; j != nil && j.n == n {
			delete(w.grants, t)
		}
	}
	n.restartAfter(w.between(50*ms, 2*sec))
}

// wipe is a machine that is lost: its process dies without a word, and comes back with an empty disk.
func (n *node) wipe(d int64) {
	if n.p == nil {
		return
	}
	n.die(true)
	n.w.trace("%v has lost its disk", n)
	n.disk, n.blobs = &disk{book: newBook()}, newBlobs()
	n.restartAfter(d)
}

// hang stops the event loop for d; streams are still read and beats still sent by others than it.
func (p *process) hang(d int64) {
	n, w := p.n, p.n.w
	w.trace("%v: its loop hangs for %.1f s", n, float64(d)/1e9)
	p.busyUntil = max(p.busyUntil, w.now+d)
	n.disturbed = max(n.disturbed, p.busyUntil)
}

// setSlots is what its person asks for.
func (p *process) setSlots(k int) {
	p.n.slots = k
	p.post(tasks.SetSlots{Slots: k})
}

// stopErr says whether a client's event may be refused with err while its node stops.
func (p *process) stopErr(err error) bool { return p.stopping && errors.Is(err, tasks.ErrStopped) }
