package sim

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
	"meshnode/tasks"
)

// job is a submission, and the client that made it: it chose the id, repeats what was not accepted, and
// remembers what it was told.
type job struct {
	w        *world
	n        *node
	id       protocol.JobID
	seed     uint64
	tasks    uint32
	chunk    uint32
	gap      int64 // between chunks
	detached bool
	at       int64 // of the submission
	mean     int64 // run time of a task at speed 100
	spread   spread
	parallel uint32
	priority int32
	code     uint64   // bytes of its program; 0: 1000
	program  *program // whose job it is, if that has a limit
	noSpares bool     // no spare copies: they would cover up what is looked for

	invalid   bool         // no node can run it
	notAt     map[int]bool // nodes that cannot
	room      int          // it runs only in this one; 0: in any
	failPer   int          // of 1000 tasks, that fail
	poisonPer int          // that kill their worker process
	killPer   int          // that kill their node
	flakyPer  int          // of 1000 attempts, that fail
	retries   uint32
	halt      *protocol.Halt
	bigPer    int    // whose result is a blob
	blobSize  uint64 // of these; 0: 100 KiB
	reads     bool   // its tasks read blobs

	deadline    int64 // its end must be told by then; 0: none
	cancelAt    int64 // 0: never
	cancelTasks bool  // only every third task
	cancelAsked bool
	slowPer     int    // of 1000 attempts, that take slowBy times as long
	runs        []runs // by index
	firstRun    int64
	atOnce      int   // attempts that run
	spent       int64 // slot time up to
	spentAt     int64
	endAt       int64 // first told to have ended,
	closed      bool  // and counted so
	accepted    bool  // told so, durably
	ended       bool  // told so
	state       tasks.JobState
	durable     map[uint32]protocol.Status // told, durably
	p           *process
	seen        map[uint32]bool // told by p
	endTold     bool
	endedIn     *process // who told so
	endKept     bool     // its records were synced by then
}

// spread is how run times differ.
type spread byte

const (
	constant spread = iota
	exponential
	heavy // a few tasks take ten times as long
)

func (w *world) addJob(n *node, tasks uint32, mean int64) *job {
	j := &job{w: w, n: n, seed: hash64(w.seed, uint64(len(w.order)), 0x6a6f62), tasks: tasks, chunk: max(tasks, 1), mean: mean,
		durable: map[uint32]protocol.Status{}, notAt: map[int]bool{}}
	binary.LittleEndian.PutUint64(j.id[:], hash64(j.seed, 1))
	binary.LittleEndian.PutUint64(j.id[8:], hash64(j.seed, 2))
	w.jobs[j.id] = j
	w.order = append(w.order, j)
	return j
}

func (j *job) work(i uint32) int64 {
	u := hash64(j.seed, uint64(i), 3)
	switch j.spread {
	case exponential:
		return int64(-float64(j.mean) * math.Log(float64(u>>11|1)/(1<<53)))
	case heavy:
		if u%16 == 0 {
			return 10 * j.mean
		}
		return j.mean * 2 / 5
	}
	return j.mean
}

func (j *job) one(i uint32, salt uint64, per int) bool {
	return int(hash64(j.seed, uint64(i), salt)%1000) < per
}

// slowBy is how much longer a slow attempt takes: its node swaps, or its processor is throttled.
const slowBy = 10

// slowDraw says whether the n-th start of a task is slow.
func (j *job) slowDraw(i uint32, n uint8) bool { return j.one(i, 1000+uint64(n), j.slowPer) }

func (j *job) fails(i uint32) bool  { return j.one(i, 4, j.failPer) }
func (j *job) poison(i uint32) bool { return j.one(i, 5, j.poisonPer) }
func (j *job) big(i uint32) bool    { return j.one(i, 6, j.bigPer) }

// connect is what the client does when the process is there: submit, or repeat what was not accepted.
func (j *job) connect(p *process) {
	w := j.w
	j.p = p
	j.seen = map[uint32]bool{}
	j.endTold = j.ended
	if j.ended {
		// An attached client has what it wanted and is gone: what the crash brought back is cancelled.
		if b := j.n.disk.book.jobs[j.id]; b != nil && !b.ended() && !j.detached {
			p.after(10*sec, func() { j.cancel(p, "the client is gone", nil) })
		}
		return
	}
	begin := func() {
		if j.ended {
			return
		}
		if !j.detached || !j.accepted {
			j.submit(p, 0)
		}
	}
	if w.now < j.at {
		p.at(j.at, begin)
	} else {
		p.after(w.between(1*ms, 50*ms), begin)
	}
	if j.cancelAt > 0 {
		p.at(max(j.cancelAt, w.now+60*ms), func() {
			if j.ended {
				return
			}
			j.cancelAsked = true
			if !j.cancelTasks {
				j.cancel(p, "asked", nil)
				return
			}
			for i := uint32(0); i < j.tasks; i += 3 {
				j.cancel(p, "asked", &i)
			}
		})
	}
}

func (j *job) cancel(p *process, reason string, task *uint32) {
	j.cancelAsked = true
	p.put(waiting{ev: tasks.Cancel{Job: j.id, Task: task, Reason: reason}, done: func(err error) {
		if err != nil && !errors.Is(err, tasks.ErrNoJob) && !errors.Is(err, tasks.ErrNoTask) && !p.stopErr(err) {
			j.w.fail("%v refuses to cancel %s: %v", p.n, j.id.Short(), err)
		}
	}})
}

// input is what task i gets. If the job reads: a blob that all read, one that a few neighbours read, and of some tasks the input is one.
func (j *job) input(i uint32) tasks.Input {
	in := tasks.Input{Data: binary.LittleEndian.AppendUint32(nil, i)}
	if !j.reads {
		return in
	}
	give := func(k uint32, size uint64) *protocol.Blob {
		id := j.blob(k)
		return &protocol.Blob{Id: id[:], Size: size}
	}
	in.Blobs = append(in.Blobs, give(math.MaxUint32-1, 200<<10))
	if i%3 == 0 {
		in.Blobs = append(in.Blobs, give(1<<31+i/6, 100<<10), in.Blobs[0])
	}
	if i%5 == 0 {
		in.Data, in.Blob = nil, give(1<<30+i, 70<<10)
	}
	return in
}

// isInput says that in is what task i gets.
func (j *job) isInput(in *tasks.Input, i uint32) bool {
	want := j.input(i)
	same := func(a, b *protocol.Blob) bool { return proto.Equal(a, b) }
	return bytes.Equal(in.Data, want.Data) && same(in.Blob, want.Blob) && slices.EqualFunc(in.Blobs, want.Blobs, same)
}

// readBy is what a task reads, each blob once.
func readBy(in *tasks.Input) (ids []protocol.BlobID) {
	for _, b := range append(in.Blobs[:len(in.Blobs):len(in.Blobs)], in.Blob) {
		if b != nil && !slices.Contains(ids, protocol.BlobID(b.Id)) {
			ids = append(ids, protocol.BlobID(b.Id))
		}
	}
	return ids
}

// submit sends one chunk, and plans the next.
func (j *job) submit(p *process, first uint32) {
	w := j.w
	n := min(j.chunk, j.tasks-first)
	ev := tasks.Submit{Job: j.id, First: first, Client: !j.detached}
	if first == 0 {
		code := j.blob(math.MaxUint32)
		j.n.blobs.here[code] = true
		spare := protocol.Spare_SPARE_AUTO
		if j.noSpares {
			spare = protocol.Spare_SPARE_OFF
		}
		ev.Spec = &protocol.Job{Job: j.id[:], Spare: spare, Name: "job", Detached: j.detached, MaxParallel: j.parallel, Priority: j.priority, Retries: j.retries, Halt: j.halt,
			Program: &protocol.Program{Runtime: "wasm", Code: &protocol.Blob{Id: code[:], Size: cmp.Or(j.code, 1000)}}}
		if j.program != nil {
			ev.Spec.Group = j.program.id[:]
		}
		if j.room > 0 {
			ev.Spec.Placement = &protocol.Placement{On: roomLabel(j.room)}
		}
	}
	for i := first; i < first+n; i++ {
		in := j.input(i)
		j.n.blobs.put(readBy(&in)...) // pinned for the job
		ev.Inputs = append(ev.Inputs, in)
	}
	last := first+n == j.tasks
	if last {
		ev.Close, ev.Count = true, j.tasks
	}
	if j.w.firstSubmit == 0 {
		j.w.firstSubmit, j.w.meter.at, j.w.sent0 = j.w.now, j.w.now, j.w.messages
	}
	j.offered(first + n)
	if hash64(j.seed, 98, uint64(first))%16 == 0 { // the client's connection broke before the answer: it says it again
		p.after(int64(hash64(j.seed, 99, uint64(first))%uint64(300*ms)), func() {
			p.put(waiting{ev: ev, done: func(err error) {
				if err != nil && !errors.Is(err, tasks.ErrForgotten) && !p.stopErr(err) && !(errors.Is(err, tasks.ErrClosed) && j.cancelAsked) {
					w.fail("%v refuses tasks from %d of %s when they come again: %v", p.n, first, j.id.Short(), err)
				}
			}})
		})
	}
	p.put(waiting{ev: ev, done: func(err error) {
		switch {
		case err == nil && !last:
			p.after(j.gap, func() { j.submit(p, first+n) })
		case err == nil, p.stopErr(err):
		case errors.Is(err, tasks.ErrClosed) && j.cancelAsked:
		case errors.Is(err, tasks.ErrForgotten) && j.n.disk.book.gone[j.id] != nil:
			j.ended = true // so long ago that it is forgotten
		default:
			j.w.fail("%v refuses tasks from %d of %s: %v", p.n, first, j.id.Short(), err)
		}
	}})
}

// told takes a notice.
func (j *job) told(p *process, x tasks.Notice) {
	switch x.Kind {
	case tasks.Accepted:
		if x.Count == j.tasks && (x.Durable || !j.detached) {
			if b := j.n.disk.book.jobs[j.id]; b != nil && b.closed {
				j.accepted = true
				j.ended = j.endTold
			}
		}
	case tasks.TaskDone:
		i := x.Done.Outcome.Index
		if j.seen[i] {
			j.w.fail("%v tells the end of %s/%d twice in one life", p.n, j.id.Short(), i)
		}
		j.seen[i] = true
		if x.Durable {
			if s, ok := j.durable[i]; ok && s != x.Done.Outcome.Status {
				j.w.fail("%v told that %s/%d was %v, and now %v", p.n, j.id.Short(), i, s, x.Done.Outcome.Status)
			}
			j.durable[i] = x.Done.Outcome.Status
		}
	case tasks.JobEnded:
		b := j.n.disk.book.jobs[j.id]
		if j.ended && x.State != j.state && (j.p == p && j.endedIn == p || j.endKept) {
			j.w.fail("%v told that %s was %v, and now %v", p.n, j.id.Short(), j.state, x.State)
		}
		j.endTold, j.state, j.endedIn = true, x.State, p
		j.ended = j.accepted || !j.detached // a client does not believe in the end of what is not accepted
		j.endKept = b != nil && j.n.disk.synced == len(j.n.disk.batches)
		j.w.lastEnd = max(j.w.lastEnd, j.w.now)
		if j.ended {
			j.closes()
		}
	}
}

// forgetPromises is what a restored backup does to them; the client submits anew.
func (j *job) forgetPromises() {
	j.accepted, j.ended, j.endKept = false, false, false
	clear(j.durable)
}
