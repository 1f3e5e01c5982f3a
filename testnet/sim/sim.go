// Package sim runs whole meshes of the real scheduler (package tasks) in one goroutine, in virtual time, with
// faults: crashes, cut streams, partitions, frozen and suspended machines, slow disks, restored backups, a lying peer.
// Everything follows from one seed: equal seeds give equal digests. After each step it checks what must always
// hold (check.go), and at the end what must have come true.
//
// It takes the place of package node and drives a Scheduler as node does: waiting events are handed in, then Tick, one Ready
// is taken, its records are appended to the disk, what is not Durable is carried out, and the rest when the disk was synced.
// All messages pass through the codec of package protocol. It is not a model of the scheduler: the only thing
// modelled is the world around it.
//
// Time is int64 nanoseconds since the start of the world; each node's own clock starts elsewhere and stops
// while its machine is suspended.
package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
)

const (
	us  = int64(time.Microsecond)
	ms  = int64(time.Millisecond)
	sec = int64(time.Second)
)

// Options say what Run runs.
type Options struct {
	Seed     uint64
	Scenario string    // a name of Scenarios; "": Mix chooses one by the seed
	Trace    io.Writer // every event and output, one a line; nil: none
	clocks   int64     // by how much all clocks are ahead, ns: nothing may come of it
}

// Report is what came of a world.
type Report struct {
	Seed      uint64
	Scenario  string
	Violation string // the first one; "": none. The world ends with it
	Digest    uint64 // of all that every scheduler put out, and when

	Tasks     int // accepted, that ended
	Failed    int // of these, badly
	Cancelled int // of these
	Granted   int // attempts granted, spare copies included
	Executed  int // attempts started by an executor
	Messages  int // between nodes
	Steps     int // of schedulers

	Needed   int           // tasks that ended otherwise than by being cancelled
	Innocent int           // tasks that failed though nothing was wrong with them
	Sent     int           // of Messages, from the first submission to the end of the last job
	Idle     time.Duration // slot time without a task while there was one to run
	Detected int           // losses of running attempts that an origin noticed,
	Noticed  time.Duration // after this time, at the median,
	Latest   time.Duration // and at the most
	Slowdown [2]float64    // least and greatest of all jobs: its time over that on an idle mesh without latency
	First    time.Duration // longest time from a submission to the first start of a task of it

	Virtual  time.Duration // that passed until all was over
	Makespan time.Duration // from the first submission to the end of the last job
	Bound    time.Duration // of the makespan; see the bounds
	Kind     string        // of Bound
	Slots    int           // of all nodes
}

// PerTask is n for each needed task of the report.
func (r Report) PerTask(n int) float64 { return float64(n) / float64(max(r.Needed, 1)) }

// IdleShare is Idle as a part of all slot time until the last job ended.
func (r Report) IdleShare() float64 {
	return float64(r.Idle) / float64(max(1, int64(r.Makespan)*int64(r.Slots)))
}

// Efficiency is Bound / Makespan.
func (r Report) Efficiency() float64 { return float64(r.Bound) / float64(max(r.Makespan, 1)) }

// Run runs the world of one seed to its end. Equal options give equal reports.
func Run(o Options) (r Report) {
	if o.Scenario == "" {
		o.Scenario = Mix(o.Seed)
	}
	w := &world{
		seed: o.Seed, scenario: o.Scenario, out: o.Trace, clocks: o.clocks,
		rng: rand.New(rand.NewPCG(o.Seed, 0x6d657368)), digest: 14695981039346656037,
		byID: map[protocol.NodeID]*node{}, jobs: map[protocol.JobID]*job{},
		deathOf: map[protocol.TaskID]int{}, brokeOf: map[protocol.TaskID]int{}, killed: map[protocol.TaskID]int{}, ran: map[ranKey]bool{}, grants: map[protocol.TaskID]*history{},
		ever: map[everKey]bool{}, bound: 90 * sec, redial: [2]int64{5 * ms, 300 * ms},
		prepare: [2]int64{1 * ms, 40 * ms}, handoff: 100 * us, meter: meter{lost: map[protocol.TaskID]int64{}},
	}
	build := find(o.Scenario)
	if build == nil {
		return Report{Seed: o.Seed, Scenario: o.Scenario, Violation: fmt.Sprintf("no scenario %q: one of %s", o.Scenario, strings.Join(Scenarios(), ", "))}
	}
	defer func() {
		if e := recover(); e != nil {
			w.fail("panic: %v\n%s", e, debug.Stack())
		}
		r = w.report()
	}()
	build(w)
	for _, n := range w.nodes {
		n.start()
	}
	for _, j := range w.order {
		if j.deadline > 0 {
			w.at(j.deadline, func() {
				if !j.endTold {
					w.fail("budget: %s has not ended after %.0f s", j.id.Short(), float64(j.deadline)/1e9)
				}
			})
		}
	}
	w.run()
	return
}

// world is a mesh, its clients and the faults that wait for it.
type world struct {
	seed     uint64
	scenario string
	out      io.Writer
	rng      *rand.Rand
	digest   uint64

	now       int64
	seq       uint64
	queue     []timed
	violation string
	over      bool

	nodes    []*node
	byID     map[protocol.NodeID]*node
	links    []*link
	jobs     map[protocol.JobID]*job
	order    []*job // jobs, as they were made
	programs []*program

	retention     tasks.Retention
	settleAt      int64    // faults stop
	bound         int64    // all is over within this time after settleAt
	deathsPer     int      // of 1000 attempts, whose worker process dies
	stragglePer   int      // of 1000, that take twelve times as long
	redial        [2]int64 // how long until a broken stream is replaced: from, to
	patient       bool     // streams that stand still do not break
	partial       bool     // slots report outcomes late and in groups
	deathOf       map[protocol.TaskID]int
	brokeOf       map[protocol.TaskID]int // attempts that failed
	killed        map[protocol.TaskID]int // nodes
	ruined        int                     // tasks, by nodes that fail everything
	maxKills      int                     // of one task; 0: no budget
	ran           map[ranKey]bool
	grants        map[protocol.TaskID]*history
	ever          map[everKey]bool
	log           []logged
	lastEnd       int64
	firstSubmit   int64
	granted       int
	executed      int
	spares        int // granted in lives that have ended
	messages      int
	steps         int
	maxRegrants   float64 // executed per needed attempt at the end; 0: no budget
	extra         int     // attempts that a fault of the scenario costs
	maxPerTask    float64 // messages a task
	minEfficiency float64
	checkEach     int      // Scheduler.Check after each k-th turn
	clocks        int64    // added to all clocks
	hubs          int      // the first nodes, to which all others have links, and to nobody else; 0: everybody has
	prepare       [2]int64 // how long a program takes to be ready: from, to
	handoff       int64    // between two tasks of a worker process
	kind          bound
	meter
}

// timed is something that happens at a time; those of one time happen in the order in which they were planned.
type timed struct {
	at  int64
	seq uint64
	do  func()
}

func (a timed) before(b timed) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// at plans do for time t, not before now.
func (w *world) at(t int64, do func()) {
	w.seq++
	w.queue = append(w.queue, timed{max(t, w.now), w.seq, do})
	q, i := w.queue, len(w.queue)-1
	for i > 0 && q[i].before(q[(i-1)/2]) {
		q[i], q[(i-1)/2] = q[(i-1)/2], q[i]
		i = (i - 1) / 2
	}
}

func (w *world) after(d int64, do func()) { w.at(w.now+d, do) }

func (w *world) next() timed {
	q := w.queue
	e, n := q[0], len(q)-1
	q[0] = q[n]
	q[n] = timed{}
	q = q[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && q[c+1].before(q[c]) {
			c++
		}
		if !q[c].before(q[i]) {
			break
		}
		q[i], q[c] = q[c], q[i]
		i = c
	}
	w.queue = q
	return e
}

// maxSteps ends a world whose schedulers talk without end at one time.
const maxSteps = 20_000_000

func (w *world) run() {
	w.at(w.settleAt, w.settle)
	storm := 10_000 // messages: ten times what is allowed at the end
	for _, j := range w.order {
		storm += int(10 * w.maxPerTask * float64(j.tasks))
	}
	for len(w.queue) > 0 && w.violation == "" && !w.over {
		e := w.next()
		w.now = e.at
		e.do()
		if w.steps > maxSteps || w.maxPerTask > 0 && w.messages > storm {
			w.fail("%d steps, %d messages: a storm", w.steps, w.messages)
		}
	}
}

// fail records the first violation and ends the world.
func (w *world) fail(format string, args ...any) {
	if w.violation == "" {
		w.violation = fmt.Sprintf(format, args...)
		w.trace("VIOLATION %s", w.violation)
	}
}

func (w *world) trace(format string, args ...any) {
	if w.out != nil {
		fmt.Fprintf(w.out, "%12.6f ", float64(w.now)/1e9)
		fmt.Fprintf(w.out, format, args...)
		fmt.Fprintln(w.out)
	}
}

// mix adds to the digest (FNV-1a).
func (w *world) mix(b []byte) {
	h := w.digest
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	w.digest = h
}

func (w *world) mixInt(v int64) {
	h := w.digest
	for range 8 {
		h = (h ^ uint64(v&0xff)) * 1099511628211
		v >>= 8
	}
	w.digest = h
}

// between is a random number in [lo, hi].
func (w *world) between(lo, hi int64) int64 { return lo + w.rng.Int64N(hi-lo+1) }

// chance is true n times of 1000.
func (w *world) chance(n int) bool { return w.rng.IntN(1000) < n }

// hash64 scrambles its arguments: what belongs to a task must not depend on the order in which things happen.
func hash64(vs ...uint64) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for _, v := range vs {
		h ^= v
		h *= 0xbf58476d1ce4e5b9
		h ^= h >> 29
		h *= 0x94d049bb133111eb
		h ^= h >> 32
	}
	return h
}

func (w *world) report() Report {
	r := Report{Seed: w.seed, Scenario: w.scenario, Violation: w.violation, Digest: w.digest,
		Granted: w.granted, Executed: w.executed, Messages: w.messages, Steps: w.steps,
		Virtual: time.Duration(w.now), Makespan: time.Duration(w.lastEnd - w.firstSubmit), Bound: time.Duration(w.lowerBound()), Kind: w.kind.String(),
		Sent: w.sent1 - w.sent0, Idle: time.Duration(w.idle), Detected: len(w.detected)}
	for _, n := range w.nodes {
		r.Slots += n.slots
	}
	if len(w.detected) > 0 {
		slices.Sort(w.detected)
		r.Noticed, r.Latest = time.Duration(w.detected[len(w.detected)/2]), time.Duration(w.detected[len(w.detected)-1])
	}
	for _, j := range w.order {
		b := j.n.disk.book.job(j.id)
		if b == nil {
			continue
		}
		if j.firstRun > 0 {
			r.First = max(r.First, time.Duration(j.firstRun-j.at))
		}
		if j.endAt > 0 && !b.cancelled {
			s := float64(j.endAt-j.at) / float64(j.alone())
			r.Slowdown[1] = max(r.Slowdown[1], s)
			if r.Slowdown[0] == 0 || s < r.Slowdown[0] {
				r.Slowdown[0] = s
			}
		}
		r.Tasks += int(b.tasks)
		r.Needed += len(b.done)
		for i, d := range b.done {
			switch d.status {
			case protocol.Status_OK:
			case protocol.Status_CANCELLED:
				r.Cancelled++
				r.Needed--
			default:
				r.Failed++
				if !j.invalid && !j.fails(i) && !j.poison(i) {
					r.Innocent++
				}
			}
		}
		if b.cancelled {
			r.Cancelled += int(b.tasks) - len(b.done)
		}
	}
	return r
}

// Header stands above reports that are printed one a line.
const Header = "seed  scenario                tasks failed cancel  att/task  msg/task    steps  virtual_s  makespan_s    eff  digest"

func (r Report) String() string {
	eff := "     -"
	if r.Makespan > 0 {
		eff = fmt.Sprintf("%6.3f", r.Efficiency())
	}
	s := fmt.Sprintf("%-5d %-23s %5d %6d %6d %9.3f %9.2f %8d %10.2f %11.3f %s  %016x", r.Seed, r.Scenario, r.Tasks, r.Failed, r.Cancelled,
		r.PerTask(r.Executed), r.PerTask(r.Messages), r.Steps, r.Virtual.Seconds(), r.Makespan.Seconds(), eff, r.Digest)
	if r.Violation != "" {
		s += "  VIOLATION"
	}
	return s
}
