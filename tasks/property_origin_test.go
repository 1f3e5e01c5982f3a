package tasks

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"meshnode/protocol"
)

// originModel is an origin with three workers that do whatever comes, and what must be true of it.
type originModel struct {
	s           *Scheduler
	now, last   int64
	lives       uint64
	disk        [][]Record // batches
	synced      int        // of them
	later       []promise
	jobs        map[protocol.JobID]*jobModel
	forgotten   map[protocol.JobID]bool  // ever
	refused     map[protocol.JobID]bool  // forgotten, as the disk has it
	endedAt     map[protocol.JobID]int64 // ever, the last time
	retain      int64
	granted     map[protocol.Attempt]grantModel // ever, in all lives
	attempts    []protocol.Attempt              // of granted, in order
	offered     map[protocol.Attempt][]*protocol.Outcome
	workers     []*workerModel
	sessions    uint64
	slots       map[int][]Item
	fetches     []Fetch
	loads       []Load
	window      int
	promised    map[protocol.TaskID]protocol.Attempt // results answered as accepted
	promisedFor map[protocol.JobID]uint32            // tasks told as durably accepted
	limits      map[protocol.JobID]int               // of groups, as they were said in this life
	unknown     map[protocol.JobID]int64             // groups of earlier lives, until when a limit is awaited
}

type promise struct {
	batch int
	do    func(t *rapid.T)
}

type grantModel struct {
	to    protocol.NodeID
	mac   []byte
	alone bool
}

type jobModel struct {
	tasks     uint32
	closed    bool
	cancelled bool
	halted    bool // this is why it counts as cancelled
	spec      *protocol.Job
	detached  bool
	done      map[uint32]*protocol.Outcome
	deaths    map[protocol.Attempt]bool
	died      map[uint32]int // the same of tasks in earlier lives, as the disk has it
	told      uint32         // TaskDone in this life
	ended     bool           // JobEnded in this life
}

// halts says that its failed tasks end it.
func (j *jobModel) halts() bool {
	bad := uint32(0)
	for _, o := range j.done {
		if o.Status != protocol.Status_OK && o.Status != protocol.Status_CANCELLED {
			bad++
		}
	}
	return j.spec.Halt != nil && bad >= j.spec.Halt.Failed
}

func (j *jobModel) over() bool { return j.cancelled || j.closed && len(j.done) == int(j.tasks) }

type workerModel struct {
	id          protocol.NodeID
	up          bool
	session     uint64
	incarnation uint64
	asked       uint64
	read        uint64
	owed        map[protocol.Attempt][]answer // what may be said to a result that it brought
	since       map[protocol.Attempt]int64    // when it brought it, put off by our pauses
}

func newOriginModel(t *rapid.T) *originModel {
	m := &originModel{
		now:  second,
		jobs: map[protocol.JobID]*jobModel{}, forgotten: map[protocol.JobID]bool{}, endedAt: map[protocol.JobID]int64{}, granted: map[protocol.Attempt]grantModel{},
		offered: map[protocol.Attempt][]*protocol.Outcome{}, promised: map[protocol.TaskID]protocol.Attempt{}, promisedFor: map[protocol.JobID]uint32{},
	}
	for _, id := range []protocol.NodeID{"p", "q", "r"} {
		m.workers = append(m.workers, &workerModel{id: id})
	}
	m.retain = rapid.SampledFrom([]int64{0, 3 * second}).Draw(t, "retain")
	m.window = rapid.SampledFrom([]int{0, 1, 200, 400}).Draw(t, "window")
	m.start(t)
	return m
}

// start begins a life with what is on the disk, and the model anew from that.
func (m *originModel) start(t *rapid.T) {
	m.lives++
	epoch := uint64(1)
	var kept []Record
	for _, b := range m.disk {
		for _, r := range b {
			kept = append(kept, r)
			if e, ok := r.(EpochRecord); ok {
				epoch = max(epoch, e.Epoch+1)
			}
		}
	}
	m.disk = append(m.disk, []Record{EpochRecord{epoch}})
	m.synced = len(m.disk)
	s, err := New(Config{Self: "o", Epoch: epoch, Incarnation: m.lives, Key: [32]byte{1}, Slots: 1, Runtimes: []string{"wasm"}, InputWindow: m.window, Retention: Retention{Detached: m.retain}, Rand: rand.New(rand.NewPCG(1, m.lives))})
	if err != nil {
		t.Fatal(err)
	}
	m.s, m.later, m.slots, m.fetches, m.loads = s, nil, map[int][]Item{}, nil, nil
	m.jobs, m.refused = map[protocol.JobID]*jobModel{}, map[protocol.JobID]bool{}
	for _, r := range kept {
		if err := s.Restore(m.now, r); err != nil {
			t.Fatalf("Restore %s: %v", recordText(r), err)
		}
		m.enter(t, r)
		if r, ok := r.(TroubleRecord); ok {
			m.jobs[r.Job].died[r.Index] = int(r.Deaths)
		}
	}
	s.Restored(m.now)
	m.limits, m.unknown = map[protocol.JobID]int{}, map[protocol.JobID]int64{}
	for _, j := range m.jobs {
		if len(j.spec.Group) > 0 && !j.over() {
			m.unknown[protocol.JobID(j.spec.Group)] = m.now + limbo
		}
		j.told = uint32(len(j.done)) // the end of a job is told once more
	}
	// What ran here died with the process. In an epoch that was raised and not yet synced its attempt may be named again.
	maps.DeleteFunc(m.granted, func(_ protocol.Attempt, g grantModel) bool { return g.to == "o" })
	for _, w := range m.workers {
		w.up, w.owed, w.since = false, map[protocol.Attempt][]answer{}, map[protocol.Attempt]int64{}
	}
	for task, a := range m.promised {
		if j := m.jobs[task.Job]; !m.forgotten[task.Job] && (j == nil || j.done[task.Index] == nil || j.done[task.Index].AttemptOf() != a) {
			t.Fatalf("the result of %v was answered as accepted, and lost", a)
		}
	}
	for id, n := range m.promisedFor {
		if j := m.jobs[id]; !m.forgotten[id] && (j == nil || j.tasks < n) {
			t.Fatalf("%d tasks of %s were durably accepted, and lost: %+v", n, id.Short(), j)
		}
	}
	m.ready(t, nil)
}

// enter takes a record into the model.
func (m *originModel) enter(t *rapid.T, r Record) {
	switch r := r.(type) {
	case JobRecord:
		m.jobs[protocol.JobID(r.Spec.Job)] = &jobModel{detached: r.Spec.Detached, spec: r.Spec, done: map[uint32]*protocol.Outcome{}, deaths: map[protocol.Attempt]bool{}, died: map[uint32]int{}}
	case TasksRecord:
		if j := m.jobs[r.Job]; r.First != j.tasks || j.closed {
			t.Fatalf("%s: %d tasks are there", recordText(r), j.tasks)
		}
		m.jobs[r.Job].tasks += uint32(len(r.Inputs))
	case ClosedRecord:
		if j := m.jobs[r.Job]; j.closed || j.tasks != r.Count {
			t.Fatalf("%s: %+v", recordText(r), j)
		}
		m.jobs[r.Job].closed = true
	case CancelRecord:
		m.jobs[r.Job].cancelled, m.jobs[r.Job].halted = true, r.Halted
	case EndedRecord:
		if !m.jobs[r.Job].over() {
			t.Fatalf("%s: %+v", recordText(r), m.jobs[r.Job])
		}
	case ForgetRecord:
		if !m.jobs[r.Job].over() {
			t.Fatalf("%s: %+v", recordText(r), m.jobs[r.Job])
		}
		delete(m.jobs, r.Job)
		m.refused[r.Job] = true
	case DoneRecord:
		j, o := m.jobs[r.Job], r.Done.Outcome
		if j.cancelled || j.done[o.Index] != nil || o.Index >= j.tasks || int(r.Done.Seq) != len(j.done) {
			t.Fatalf("%s: the job is %+v", recordText(r), j)
		}
		j.done[o.Index] = o
	}
}

// step has one event happen, and looks at all that comes of it.
func (m *originModel) step(t *rapid.T, ev Event) error {
	if gap := m.now - m.last; gap > ownPause {
		for _, w := range m.workers {
			for a := range w.since {
				w.since[a] += gap
			}
		}
	}
	m.last = m.now
	err := m.s.Step(m.now, ev)
	m.ready(t, ev)
	return err
}

func (m *originModel) ready(t *rapid.T, ev Event) {
	r := m.s.Ready()
	if r.Wake != 0 && r.Wake < m.now-3600*second {
		t.Fatalf("Wake %d at %d", r.Wake, m.now)
	}
	before := map[protocol.TaskID]bool{}
	for id, j := range m.jobs {
		for i := range j.tasks {
			if j.done[i] != nil || j.cancelled || j.halts() {
				before[protocol.TaskID{Job: id, Index: i}] = true
			}
		}
	}
	told := map[protocol.JobID][]*Done{}
	for _, x := range r.Records {
		if d, ok := x.(DoneRecord); ok {
			m.checkDone(t, ev, d)
			told[d.Job] = append(told[d.Job], d.Done)
		}
		if c, ok := x.(CancelRecord); ok {
			if c.Halted {
				if j := m.jobs[c.Job]; !j.halts() || j.over() {
					t.Fatalf("%s: %+v", recordText(x), j)
				}
			} else if e, ok := ev.(Cancel); !ok || e.Job != c.Job || e.Task != nil {
				t.Fatalf("%s, after %T", recordText(x), ev)
			}
		}
		switch x := x.(type) {
		case EndedRecord:
			m.endedAt[x.Job] = m.now
		case ForgetRecord:
			if e, ok := ev.(Forget); (!ok || e.Job != x.Job) && (m.retain == 0 || m.now < m.endedAt[x.Job]+m.retain) {
				t.Fatalf("%s at %d: it ended at %d", recordText(x), m.now, m.endedAt[x.Job])
			}
			m.forgotten[x.Job] = true
		}
		m.enter(t, x)
	}
	if len(r.Records) > 0 {
		m.disk = append(m.disk, r.Records)
	}
	batch := len(m.disk)
	when := func(durable bool, f func(*rapid.T)) {
		if durable && m.synced < batch {
			m.later = append(m.later, promise{batch, f})
		} else {
			f(t)
		}
	}
	answers := 0
	for _, x := range r.Messages {
		w := m.worker(x.Peer)
		if !w.up || w.session != x.Session {
			t.Fatalf("%s → %s on stream %d: it has %d, up %v", messageText(x.Message), x.Peer, x.Session, w.session, w.up)
		}
		switch y := x.Message.(type) {
		case *protocol.Grant:
			if y.Request != 0 {
				answers++
			}
			for _, a := range grantsOf(y) {
				if j := m.jobs[a.Job]; j == nil || a.Index >= j.tasks || before[a.Task()] {
					t.Fatalf("%v is granted; its task is not there or has ended", a)
				}
			}
			when(x.Durable, func(t *rapid.T) {
				if w.up && w.session == x.Session {
					m.takeGrant(t, w, y)
				}
			})
		case *protocol.ResultAnswer:
			if !x.Durable && m.synced < batch {
				t.Fatalf("%s does not wait for the disk", messageText(y))
			}
			m.checkAnswer(t, w, y)
			for _, a := range protocol.UngroupAttempts(y.Accepted) {
				if j := m.jobs[a.Job]; j != nil && j.done[a.Index] != nil && j.done[a.Index].AttemptOf() == a {
					when(true, func(*rapid.T) { m.promised[a.Task()] = a })
				}
			}
		}
	}
	if rc, ok := ev.(Receive); ok {
		if q, ok := rc.Message.(*protocol.StealRequest); ok && answers != 1 && m.worker(rc.Peer).session == rc.Session {
			t.Fatalf("request %d was answered %d times", q.Id, answers)
		}
	}
	// What is owed is answered with the Ready that settles it. Only bytes on their way put that off, and a chance to say
	// more at once to somebody who is not refused anything.
	_, tick := ev.(Tick)
	for _, w := range m.workers {
		for a, want := range w.owed {
			if slices.Contains(want, accepted) && !(tick && m.now >= w.since[a]+answerMost) {
				continue
			}
			if j := m.s.jobs[a.Job]; w.up && (j == nil || j.fetching[a] == nil) && !slices.ContainsFunc(m.fetches, func(f Fetch) bool { return f.Attempt == a }) &&
				!slices.ContainsFunc(r.Fetch, func(f Fetch) bool { return f.Attempt == a }) {
				t.Fatalf("the result of %v was not answered", a)
			}
		}
	}
	m.fetches = append(m.fetches, r.Fetch...)
	m.loads = append(m.loads, r.Load...)
	for _, x := range r.Notices {
		j := m.jobs[x.Job]
		switch x.Kind {
		case TaskDone:
			ds := told[x.Job]
			if len(ds) == 0 || ds[0] != x.Done || x.Done.Seq != j.told {
				t.Fatalf("told %s, %d were told; recorded now: %v", noticeText(x), j.told, ds)
			}
			told[x.Job] = ds[1:]
			j.told++
		case JobEnded:
			if j.ended || !j.over() {
				t.Fatalf("told %s: %+v", noticeText(x), j)
			}
			j.ended = true
		case Accepted:
			if x.Count != j.tasks || x.Durable != (j.detached && !j.cancelled) {
				t.Fatalf("told %s, durable %v: %+v", noticeText(x), x.Durable, j)
			}
			when(x.Durable, func(*rapid.T) {
				if x.Durable {
					m.promisedFor[x.Job] = max(m.promisedFor[x.Job], x.Count)
				}
			})
			if x.Durable && m.synced < batch && !r.Sync && len(r.Records) > 0 {
				t.Fatalf("told %s, and no sync is asked for", noticeText(x))
			}
		}
	}
	for id, ds := range told {
		if len(ds) > 0 {
			t.Fatalf("%d results of %s are recorded and not told", len(ds), id.Short())
		}
	}
	var next []Event
	for _, x := range r.Stop {
		items := m.slots[x.Slot]
		if items == nil {
			t.Fatalf("stops slot %d, which is idle", x.Slot)
		}
		m.slots[x.Slot] = slices.DeleteFunc(items, func(it Item) bool { return slices.Contains(x.Attempts, it.Attempt) })
		next = append(next, Finished{Slot: x.Slot, Returned: x.Attempts, Idle: len(m.slots[x.Slot]) == 0})
		if len(m.slots[x.Slot]) == 0 {
			delete(m.slots, x.Slot)
		}
	}
	for _, x := range r.Prepare {
		if !x.Drop {
			next = append(next, Prepared{Origin: "o", Job: protocol.JobID(x.Info.Job)})
		}
	}
	for _, x := range r.Start {
		m.checkGroup(t, x)
		if busy := m.slots[x.Slot]; x.Origin != "o" || busy != nil && busy[0].Attempt.Job != x.Job {
			t.Fatalf("starts slot %d of %s: busy with %v", x.Slot, x.Origin, m.slots[x.Slot])
		}
		m.slots[x.Slot] = append(m.slots[x.Slot], x.Items...)
		for _, it := range x.Items {
			if g, ok := m.granted[it.Attempt]; ok && g.to != "o" {
				t.Fatalf("starts %v, which %s has", it.Attempt, g.to)
			}
			m.granted[it.Attempt] = grantModel{to: "o"}
			if before[it.Attempt.Task()] {
				t.Fatalf("starts %v, which has ended", it.Attempt)
			}
			if len(it.Input.Data) != 1 || it.Input.Data[0] != byte(it.Attempt.Index) {
				t.Fatalf("starts %v with the input %x", it.Attempt, it.Input.Data)
			}
		}
	}
	if err := m.s.Check(); err != nil {
		t.Fatal(err)
	}
	for _, x := range next {
		m.step(t, x)
	}
}

// checkGroup says whether a slot may begin to run tasks of its group.
func (m *originModel) checkGroup(t *rapid.T, x Start) {
	g := m.jobs[x.Job].spec.Group
	if len(g) == 0 || m.slots[x.Slot] != nil {
		return
	}
	busy := 0
	for _, items := range m.slots {
		if j := m.jobs[items[0].Attempt.Job]; j != nil && bytes.Equal(j.spec.Group, g) {
			busy++
		}
	}
	limit, said := m.limits[protocol.JobID(g)]
	if said && limit >= 0 && busy >= limit || !said && m.now < m.unknown[protocol.JobID(g)] {
		t.Fatalf("starts slot %d with %s, and %d run tasks of its group: limit %d, said %v", x.Slot, x.Job.Short(), busy, limit, said)
	}
}

func (m *originModel) Group(t *rapid.T) {
	g := drawGroup(t)
	m.limits[g] = rapid.IntRange(-1, 2).Draw(t, "limit")
	if err := m.step(t, SetGroup{g, m.limits[g]}); err != nil {
		t.Fatal(err)
	}
}

func drawGroup(t *rapid.T) protocol.JobID {
	return protocol.JobID{15: byte(rapid.IntRange(1, 2).Draw(t, "group"))}
}

// checkDone says whether somebody had the right to end this task like that now.
func (m *originModel) checkDone(t *rapid.T, ev Event, d DoneRecord) {
	o := d.Done.Outcome
	a := o.AttemptOf()
	if d.Done.Worker == "" {
		if c, ok := ev.(Cancel); !ok || c.Job != d.Job || c.Task == nil || *c.Task != o.Index || o.Status != protocol.Status_CANCELLED {
			t.Fatalf("%s, after %T", recordText(d), ev)
		}
		return
	}
	if g, ok := m.granted[a]; !ok || g.to != d.Done.Worker {
		t.Fatalf("%s: granted to %q", recordText(d), g.to)
	}
	deaths, failed := m.jobs[d.Job].died[o.Index], uint32(0)
	for x, os := range m.offered {
		if x.Task() == a.Task() && slices.ContainsFunc(os, func(o *protocol.Outcome) bool { return o.Status == protocol.Status_FAILED }) {
			failed++
		}
	}
	if retries := m.jobs[d.Job].spec.Retries; o.Status == protocol.Status_FAILED && o.Error == "" && failed <= retries {
		t.Fatalf("%s: %d attempts failed, and %d may be tried again", recordText(d), failed, retries)
	}
	for x := range m.jobs[d.Job].deaths {
		if x.Index == o.Index {
			deaths++
		}
	}
	if strings.Contains(o.Error, "nodes were lost") {
		alone := 0
		for x, g := range m.granted {
			if x.Task() == a.Task() && g.alone && m.worker(g.to) != nil {
				alone++
			}
		}
		if o.Status == protocol.Status_FAILED && alone >= maxLosses {
			return
		}
		t.Fatalf("%s: granted alone to others %d times", recordText(d), alone)
	}
	for _, x := range m.offered[a] {
		switch {
		case x.Status == o.Status && bytes.Equal(x.Output, o.Output) && proto.Equal(x.OutputBlob, o.OutputBlob) && o.Status != protocol.Status_WORKER_LOST,
			x.Status == protocol.Status_WORKER_LOST && o.Status == protocol.Status_FAILED && deaths >= maxDeaths: // those of a node in doubt do not count
			return
		}
	}
	t.Fatalf("%s, with %d deaths: nobody brought that", recordText(d), deaths)
}

// takeGrant is a grant that leaves the node.
func (m *originModel) takeGrant(t *rapid.T, w *workerModel, g *protocol.Grant) {
	w.read++
	if g.Number != w.read {
		t.Fatalf("grant %d to %s, which has %d", g.Number, w.id, w.read-1)
	}
	for _, jg := range g.Jobs {
		for _, x := range jg.Tasks {
			a := protocol.Attempt{Job: protocol.JobID(jg.Job), Index: x.Index, N: x.N, Epoch: g.Epoch}
			if old, twice := m.granted[a]; twice {
				t.Fatalf("%v is granted to %s and was to %s", a, w.id, old.to)
			}
			if len(x.Input) != 1 || x.Input[0] != byte(x.Index) {
				t.Fatalf("grants %v with the input %x", a, x.Input)
			}
			m.granted[a] = grantModel{w.id, x.Mac, x.Alone}
			m.attempts = append(m.attempts, a)
		}
	}
}

func (m *originModel) checkAnswer(t *rapid.T, w *workerModel, y *protocol.ResultAnswer) {
	for v, gs := range map[answer][]*protocol.Attempts{accepted: y.Accepted, superseded: y.Superseded, unknown: y.Unknown} {
		for _, a := range protocol.UngroupAttempts(gs) {
			if want, owed := w.owed[a]; !owed || !slices.Contains(want, v) {
				t.Fatalf("%s to %s: want one of %v for %v", messageText(y), w.id, want, a)
			}
			delete(w.owed, a)
		}
	}
}

func (m *originModel) worker(id protocol.NodeID) *workerModel {
	return m.workers[slices.IndexFunc(m.workers, func(w *workerModel) bool { return w.id == id })]
}

// drawAttempt is one that was granted, or any.
func (m *originModel) drawAttempt(t *rapid.T) protocol.Attempt {
	if len(m.attempts) > 0 && rapid.IntRange(0, 9).Draw(t, "known") > 0 {
		k := len(m.attempts)
		return m.attempts[rapid.IntRange(max(0, k-8), k-1).Draw(t, "attempt")]
	}
	return protocol.Attempt{Job: drawJob(t), Index: uint32(rapid.IntRange(0, 9).Draw(t, "index")), N: uint32(rapid.IntRange(1, 3).Draw(t, "n")), Epoch: uint64(rapid.IntRange(1, 3).Draw(t, "epoch"))}
}

func (m *originModel) drawAttempts(t *rapid.T) []protocol.Attempt {
	var as []protocol.Attempt
	for range rapid.IntRange(0, 5).Draw(t, "attempts") {
		if a := m.drawAttempt(t); !slices.Contains(as, a) {
			as = append(as, a)
		}
	}
	return as
}

// listOf is mostly what the worker really has, as the origin sees it.
func (m *originModel) listOf(t *rapid.T, w *workerModel) []protocol.Attempt {
	if p := m.s.peers[w.id]; p != nil && rapid.IntRange(0, 2).Draw(t, "honest") > 0 {
		return sortedAttempts(p.leases)
	}
	return m.drawAttempts(t)
}

// drawUp is a worker with a stream.
func (m *originModel) drawUp(t *rapid.T) *workerModel {
	up := slices.DeleteFunc(slices.Clone(m.workers), func(w *workerModel) bool { return !w.up })
	if len(up) == 0 {
		t.Skip("no stream") // only before the first draw: else rapid ends the run early
	}
	return rapid.SampledFrom(up).Draw(t, "worker")
}

func (m *originModel) receive(t *rapid.T, w *workerModel, x protocol.Message) {
	m.step(t, Receive{Peer: w.id, Session: w.session, Message: x})
}

func (m *originModel) Submit(t *rapid.T) {
	id := drawJob(t)
	j := m.jobs[id]
	has := uint32(0)
	sp := spec(id)
	if j != nil {
		has = j.tasks
	} else {
		sp.Detached = rapid.Bool().Draw(t, "detached")
		sp.Retries = uint32(rapid.IntRange(0, 2).Draw(t, "retries"))
		if n := rapid.IntRange(0, 5).Draw(t, "halt"); n > 2 {
			sp.Halt = &protocol.Halt{Failed: uint32(n - 2), Now: rapid.Bool().Draw(t, "now")}
		}
		sp.MaxParallel = uint32(rapid.IntRange(0, 2).Draw(t, "parallel"))
		if rapid.Bool().Draw(t, "grouped") {
			g := drawGroup(t)
			sp.Group = g[:]
		}
	}
	ev := Submit{Job: id, Spec: sp, First: uint32(rapid.IntRange(max(0, int(has)-3), int(has)+1).Draw(t, "first"))}
	for i := range rapid.IntRange(0, 6).Draw(t, "tasks") {
		ev.Inputs = append(ev.Inputs, Input{Data: []byte{byte(int(ev.First) + i)}})
	}
	end := max(has, ev.First+uint32(len(ev.Inputs)))
	if ev.Close = rapid.IntRange(0, 2).Draw(t, "close") == 0; ev.Close {
		ev.Count = end + uint32(rapid.IntRange(0, 9).Draw(t, "wrong")/9)
	}
	var want error
	switch fresh := end > has; {
	case m.refused[id]:
		want = ErrForgotten
	case j != nil && j.cancelled:
	case ev.First > has:
		want = ErrGap
	case fresh && j != nil && j.closed:
		want = ErrClosed
	case ev.Close && ev.Count != end:
		want = ErrGap
	}
	if err := m.step(t, ev); !errors.Is(err, want) || (err == nil) != (want == nil) {
		t.Fatalf("%v, want %v", err, want)
	}
	if want == nil && (j == nil || !j.cancelled) && !(m.retain > 0 && m.refused[id]) {
		if j = m.jobs[id]; j == nil || j.tasks != end || ev.Close && !j.closed {
			t.Fatalf("submitted up to %d, close %v: %+v", end, ev.Close, j)
		}
	}
}

func (m *originModel) Cancel(t *rapid.T) {
	ev := Cancel{Job: drawJob(t), Reason: "because"}
	j := m.jobs[ev.Job]
	if rapid.IntRange(0, 3).Draw(t, "one") > 0 {
		i := uint32(rapid.IntRange(0, 9).Draw(t, "index"))
		ev.Task = &i
	}
	err := m.step(t, ev)
	switch {
	case j == nil:
		if !errors.Is(err, ErrNoJob) {
			t.Fatal(err)
		}
	case !j.over() && ev.Task != nil && *ev.Task >= j.tasks:
		if !errors.Is(err, ErrNoTask) {
			t.Fatal(err)
		}
	case err != nil:
		t.Fatal(err)
	case m.refused[ev.Job]: // ended, and its time was over at once
	case ev.Task == nil && !j.over(), ev.Task != nil && !j.over() && j.done[*ev.Task] == nil:
		t.Fatalf("cancelled, and not recorded: %+v", j)
	}
}

func (m *originModel) Forget(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		return
	}
	id := drawJob(t)
	j := m.jobs[id]
	var want error
	if j == nil {
		want = ErrNoJob
	} else if !j.over() {
		want = ErrRunning
	}
	if err := m.step(t, Forget{id}); !errors.Is(err, want) || (err == nil) != (want == nil) {
		t.Fatalf("%v, want %v", err, want)
	}
}

func (m *originModel) Up(t *rapid.T) {
	w := rapid.SampledFrom(m.workers).Draw(t, "worker")
	if w.incarnation == 0 || rapid.IntRange(0, 2).Draw(t, "new") == 0 {
		w.incarnation++
	}
	h := &protocol.Hello{Epoch: w.incarnation, Incarnation: w.incarnation, Slots: uint32(rapid.IntRange(0, 3).Draw(t, "slots")), Runtimes: []string{"wasm"},
		SeenEpoch: m.s.epoch, SeenIncarnation: m.s.cfg.Incarnation}
	if rapid.IntRange(0, 9).Draw(t, "seen") == 0 {
		h.SeenEpoch, h.SeenIncarnation = m.s.epoch+uint64(rapid.IntRange(0, 2).Draw(t, "above")), 999
	}
	h.Held, h.Unanswered = protocol.GroupAttempts(m.listOf(t, w)), protocol.GroupAttempts(m.drawAttempts(t))
	above := m.s.epoch
	if h.SeenEpoch > above || h.SeenEpoch == above && h.SeenIncarnation != m.s.cfg.Incarnation {
		above = h.SeenEpoch + 1
	}
	m.sessions++
	w.up, w.session, w.read, w.asked = true, m.sessions, 0, 0
	for a := range w.owed { // but for those whose bytes are on their way
		if !slices.ContainsFunc(m.fetches, func(f Fetch) bool { return f.Attempt == a }) {
			delete(w.owed, a)
		}
	}
	m.step(t, PeerUp{Peer: w.id, Session: w.session, Hello: h, MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"}})
	if m.s.epoch != above {
		t.Fatalf("epoch %d, want %d: %s was seen by %s", m.s.epoch, above, helloText("us", h), w.id)
	}
}

func (m *originModel) Down(t *rapid.T) {
	w := m.drawUp(t)
	session := w.session
	if w.session > 1 && rapid.IntRange(0, 3).Draw(t, "old") == 0 {
		session-- // of a stream that another one has replaced, or of another peer: nothing happens
	} else {
		w.up = false
	}
	m.step(t, PeerDown{Peer: w.id, Session: session, Clean: rapid.Bool().Draw(t, "clean")})
}

func (m *originModel) Ask(t *rapid.T) {
	w := m.drawUp(t)
	w.asked++
	epoch := m.s.epoch - uint64(rapid.IntRange(0, 5).Draw(t, "stale")/5)
	m.receive(t, w, &protocol.StealRequest{Epoch: epoch, Id: w.asked, Want: uint32(rapid.IntRange(0, 5).Draw(t, "want")), Free: 1})
}

func (m *originModel) Beat(t *rapid.T) {
	w := m.drawUp(t)
	p := m.s.peers[w.id]
	held := m.listOf(t, w)
	b := &protocol.Beat{
		Epoch: w.incarnation, GrantsRead: uint64(rapid.IntRange(0, int(w.read)).Draw(t, "read")), Slots: uint32(rapid.IntRange(0, 3).Draw(t, "slots")),
		Held: protocol.GroupAttempts(held), HeardAgeMs: uint32(rapid.SampledFrom([]int{0, 0, 2900, 3100}).Draw(t, "age")),
	}
	unanswered := m.drawAttempts(t)
	b.Unanswered = protocol.GroupAttempts(unanswered)
	if rapid.IntRange(0, 9).Draw(t, "pause") == 0 {
		b.Paused = "asleep"
	}
	if len(held) > 0 {
		b.RunningOfYours = protocol.GroupAttempts(held[:1])
	}
	if err := m.s.Step(m.now, Receive{Peer: w.id, Session: w.session, Message: b}); err != nil {
		t.Fatal(err)
	}
	for a, l := range p.leases {
		if !slices.Contains(held, a) && !slices.Contains(unanswered, a) && l.number <= b.GrantsRead {
			t.Fatalf("%v is not listed by %s, which read grant %d, and stays live", l, w.id, b.GrantsRead)
		}
	}
	revoked := map[protocol.Attempt]bool{}
	for _, x := range m.s.out.Messages {
		if y, ok := x.Message.(*protocol.Revoke); ok && x.Peer == w.id {
			for _, a := range protocol.UngroupAttempts(y.Attempts) {
				revoked[a] = true
			}
		}
	}
	for _, a := range held {
		if p.leases[a] == nil != revoked[a] {
			t.Fatalf("%v is listed as held; live: %v, revoked: %v", a, p.leases[a] != nil, revoked[a])
		}
	}
	m.ready(t, nil)
}

func (m *originModel) GiveBack(t *rapid.T) {
	w := m.drawUp(t)
	m.receive(t, w, &protocol.GiveBack{
		Epoch: m.s.epoch, Recall: uint64(rapid.IntRange(0, 1).Draw(t, "recall")), Attempts: protocol.GroupAttempts(m.listOf(t, w)),
		Why: protocol.Refusal(rapid.IntRange(0, 2).Draw(t, "why")), Reason: "so",
	})
}

// Result brings what a worker ran, or what another did, or nobody, for the first time or again.
func (m *originModel) Result(t *rapid.T) {
	w := m.drawUp(t)
	a := m.drawAttempt(t)
	o := drawOutcome(t, a)
	if old := m.offered[a]; len(old) > 0 && m.granted[a].to == w.id { // an attempt ends once
		o = proto.Clone(old[0]).(*protocol.Outcome)
	}
	g, real := m.granted[a]
	o.Mac = slices.Clone(g.mac)
	flipped := len(o.Mac) > 0 && rapid.IntRange(0, 5).Draw(t, "flip") == 0
	if flipped {
		o.Mac[3] ^= 1
	}
	mine := real && g.to == w.id
	j := m.jobs[a.Job]
	l := m.s.peers[w.id].leases[a]
	if l != nil && l.number > 0 && !real {
		return // a guess of a grant to itself that waits for the disk
	}
	var want []answer
	switch {
	case j == nil || a.Index >= j.tasks || !mine:
		want = []answer{unknown}
	case m.s.fetchingFrom(m.s.jobs[a.Job], a):
		want = []answer{accepted, superseded, unknown} // as those bytes turn out
	case j.over() || j.done[a.Index] != nil:
		want = []answer{superseded}
	case o.Status == protocol.Status_WORKER_LOST:
		if want = []answer{superseded}; l != nil {
			want = []answer{accepted}
			if !flipped || l.number > 0 {
				j.deaths[a] = true
			}
		}
	case o.Status != protocol.Status_OK && m.s.othersLive(m.s.jobs[a.Job], a, m.s.peers[w.id]):
		want = []answer{superseded}
	case o.OutputBlob != nil:
		want = []answer{accepted, superseded, unknown}
	case o.Status != protocol.Status_OK && (j.spec.Retries > 0 || m.s.inDoubt(m.s.peers[w.id], m.s.jobs[a.Job])):
		want = []answer{accepted, superseded}
	default:
		want = []answer{accepted}
	}
	if mine {
		m.offered[a] = append(m.offered[a], o)
	}
	if flipped {
		want = append(want, unknown)
	}
	if before := w.owed[a]; slices.Contains(before, accepted) { // that answer may not have been sent yet, and is the one
		want = append(want, before...)
	} else {
		w.since[a] = m.now
	}
	w.owed[a] = want
	sure := len(want) == 1 && want[0] == accepted && o.Status != protocol.Status_WORKER_LOST
	had := j != nil && j.done[a.Index] != nil
	m.receive(t, w, &protocol.Result{Outcomes: []*protocol.Outcome{o}})
	if o.OutputBlob != nil && !had && j != nil && j.done[a.Index] != nil {
		t.Fatalf("%v is terminal before its bytes are here", a)
	}
	if sure && (m.jobs[a.Job].done[a.Index] == nil || m.jobs[a.Job].done[a.Index].AttemptOf() != a) {
		t.Fatalf("the first good result of %v did not end its task", a)
	}
}

func (m *originModel) Fetched(t *rapid.T) {
	if len(m.fetches) == 0 {
		t.Skip("none")
	}
	k := rapid.IntRange(0, len(m.fetches)-1).Draw(t, "fetch")
	f := m.fetches[k]
	m.fetches = slices.Delete(m.fetches, k, k+1)
	ev := Fetched{Attempt: f.Attempt, Peer: f.Peer}
	if rapid.IntRange(0, 2).Draw(t, "fails") == 0 {
		ev.Err = "corrupt"
	} else {
		ev.Blobs = []protocol.BlobID{protocol.BlobID(f.Blobs[0].Id)}
	}
	m.worker(f.Peer).owed[f.Attempt], m.worker(f.Peer).since[f.Attempt] = []answer{accepted, superseded, unknown}, m.now
	if !m.worker(f.Peer).up {
		delete(m.worker(f.Peer).owed, f.Attempt)
	}
	m.step(t, ev)
	if j := m.jobs[f.Attempt.Job]; ev.Err == "" && j != nil && !j.over() && j.done[f.Attempt.Index] == nil {
		t.Fatalf("the bytes of %v are here, and its task has not ended", f.Attempt)
	}
}

// Loaded is what was read of inputs: all that was asked for, or the first of it.
func (m *originModel) Loaded(t *rapid.T) {
	if len(m.loads) == 0 {
		t.Skip("none")
	}
	k := rapid.IntRange(0, len(m.loads)-1).Draw(t, "load")
	x := m.loads[k]
	m.loads = slices.Delete(m.loads, k, k+1)
	if m.jobs[x.Job] == nil { // forgotten meanwhile
		return
	}
	ins := readInputs(slices.Concat(m.disk...), x)
	m.step(t, Loaded{Job: x.Job, First: x.First, Inputs: ins[:rapid.IntRange(1, len(ins)).Draw(t, "some")]})
}

// Finish ends what an own slot runs, all of it or the first.
func (m *originModel) Finish(t *rapid.T) {
	if len(m.slots) == 0 {
		t.Skip("idle")
	}
	i := rapid.SampledFrom(sortedKeys(m.slots)).Draw(t, "slot")
	a := m.slots[i][0].Attempt
	o := drawOutcome(t, a)
	ev := Finished{Slot: i, Outcomes: []*protocol.Outcome{o}}
	if rapid.IntRange(0, 5).Draw(t, "returned") == 0 {
		ev = Finished{Slot: i, Returned: []protocol.Attempt{a}}
	} else if m.offered[a] = append(m.offered[a], proto.Clone(o).(*protocol.Outcome)); o.Status == protocol.Status_WORKER_LOST && m.jobs[a.Job] != nil && m.s.peers["o"].leases[a] != nil {
		m.jobs[a.Job].deaths[a] = true
	}
	m.slots[i] = m.slots[i][1:]
	if ev.Idle = len(m.slots[i]) == 0; ev.Idle {
		delete(m.slots, i)
	}
	m.step(t, ev)
}

func (m *originModel) Slots(t *rapid.T) {
	if rapid.Bool().Draw(t, "pause") {
		m.step(t, SetPaused{rapid.SampledFrom([]string{"", "", "busy"}).Draw(t, "reason")})
	} else {
		m.step(t, SetSlots{rapid.IntRange(0, 2).Draw(t, "slots")})
	}
}

func (m *originModel) Tick(t *rapid.T) {
	m.now += int64(rapid.SampledFrom([]int{1, 20, 120, 600, 900, 5000}).Draw(t, "ms")) * millisecond
	m.step(t, Tick{})
}

func (m *originModel) Sync(t *rapid.T) {
	m.synced = len(m.disk)
	ps := m.later
	m.later = nil
	for _, p := range ps {
		p.do(t)
	}
}

// Restart is a crash that keeps what was synced, and perhaps some of the rest.
func (m *originModel) Restart(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "really") > 0 {
		return
	}
	m.disk = m.disk[:rapid.IntRange(m.synced, len(m.disk)).Draw(t, "kept")]
	m.now += second
	m.start(t)
}

// Check compares what the origin says with the model.
func (m *originModel) Check(t *rapid.T) {
	sts := m.s.Jobs()
	if len(sts) != len(m.jobs) {
		t.Fatalf("%d jobs, want %d", len(sts), len(m.jobs))
	}
	for _, st := range sts {
		j := m.jobs[st.ID]
		if j == nil || st.Tasks != j.tasks || st.Closed != j.closed || (st.State >= JobDone) != j.over() || (st.State == JobCancelled) != (j.cancelled && !j.halted) {
			t.Fatalf("%+v, want %+v", st, j)
		}
		if !j.cancelled && (int(st.Done+st.Failed) != len(j.done) || st.Pending+st.Running+st.Done+st.Failed != st.Tasks) {
			t.Fatalf("%+v, want %d ended", st, len(j.done))
		}
		for i := range j.tasks {
			if _, has := m.s.Seq(st.ID, i); has != (j.done[i] != nil) {
				t.Fatalf("task %d of %s has a result: %v; in the model: %v", i, st.ID.Short(), has, j.done[i])
			}
		}
		if j.over() != j.ended {
			t.Fatalf("%s is over: %v; told: %v", st.ID.Short(), j.over(), j.ended)
		}
	}
}

// settle leaves the origin alone with two good slots: every job must end.
func (m *originModel) settle(t *rapid.T) {
	for _, w := range m.workers {
		if w.up {
			w.up = false
			m.step(t, PeerDown{Peer: w.id, Session: w.session, Clean: true})
		}
	}
	for _, f := range m.fetches {
		delete(m.worker(f.Peer).owed, f.Attempt)
		m.step(t, Fetched{Attempt: f.Attempt, Peer: f.Peer, Err: "gone"})
	}
	m.fetches = nil
	m.step(t, SetPaused{})
	m.step(t, SetSlots{2})
	for i := range byte(2) {
		m.limits[protocol.JobID{15: i + 1}] = int(i)*2 - 1 // none, and 1
		m.step(t, SetGroup{protocol.JobID{15: i + 1}, int(i)*2 - 1})
	}
	for id, j := range m.jobs {
		if !j.over() && !j.closed {
			if err := m.step(t, Submit{Job: id, First: j.tasks, Close: true, Count: j.tasks}); err != nil {
				t.Fatal(err)
			}
		}
	}
	open := func(j *jobModel) bool { return !j.over() }
	for range 2000 {
		if !slices.ContainsFunc(slices.Collect(maps.Values(m.jobs)), open) {
			m.Check(t)
			return
		}
		m.now += 20 * millisecond
		for _, i := range sortedKeys(m.slots) {
			if len(m.slots[i]) == 0 { // ended by what the other slot said
				continue
			}
			a := m.slots[i][0].Attempt
			o := &protocol.Outcome{Job: a.Job[:], Index: a.Index, Epoch: a.Epoch, N: a.N, Status: protocol.Status_OK, RunUs: 20000}
			m.offered[a] = append(m.offered[a], o)
			m.slots[i] = m.slots[i][1:]
			idle := len(m.slots[i]) == 0
			if idle {
				delete(m.slots, i)
			}
			m.step(t, Finished{Slot: i, Outcomes: []*protocol.Outcome{o}, Idle: idle})
		}
		loads := m.loads
		m.loads = nil
		for _, x := range loads {
			if m.jobs[x.Job] != nil {
				m.step(t, Loaded{Job: x.Job, First: x.First, Inputs: readInputs(slices.Concat(m.disk...), x)})
			}
		}
		m.step(t, Tick{})
	}
	t.Fatalf("a job has not ended: %+v", m.s.Jobs())
}

func TestOriginModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newOriginModel(t)
		t.Repeat(rapid.StateMachineActions(m))
		m.settle(t)
	})
}
