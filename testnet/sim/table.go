package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A table is a group of scenarios that are measured rather than broken: meshes of a purpose, each a row with its goals.
type table struct {
	name string
	rows []row
}

type row struct {
	name  string
	goal  Goal
	build func(*world)
}

// Goal is what a row should reach; zero: nothing is asked.
type Goal struct {
	Efficiency float64 // at least
	Attempts   float64 // executed for each needed one, at most
	PerTask    float64 // messages for each task, at most
	Slowdown   float64 // of any job, at most
	First      time.Duration
}

// goal is what is asked of a mesh without faults.
func goal(efficiency float64) Goal { return Goal{Efficiency: efficiency} }

var tables = []table{
	{"efficiency", efficiencyRows()},
	{"stragglers", []row{
		mesh{nodes: 100, mean: 10 * ms, rtt: 300 * us, slowPer: 50, ideal: 2 * sec}.row("5 % slow attempts, ", goal(0.95)),
		mesh{nodes: 100, mean: 10 * ms, rtt: 40 * ms, slowPer: 50}.row("5 % slow attempts, ", Goal{}),
		mesh{nodes: 10, mean: 100 * ms, rtt: 300 * us, slowPer: 50, ideal: 20 * sec}.row("5 % slow attempts, ", goal(0.95)),
		mesh{nodes: 100, mean: 10 * ms, rtt: 300 * us, slowNodes: 5, ideal: 2 * sec}.row("5 % slow nodes, ", goal(0.95)),
		mesh{nodes: 100, mean: 10 * ms, rtt: 40 * ms, slowNodes: 5}.row("5 % slow nodes, ", goal(0.95)),
	}},
	{"exponential", []row{
		mesh{nodes: 3, mean: 100 * ms, spread: exponential, rtt: 300 * us, ideal: 10 * sec}.row("exp. ", goal(0.97)),
		mesh{nodes: 10, mean: 100 * ms, spread: exponential, rtt: 300 * us, ideal: 10 * sec}.row("exp. ", goal(0.97)),
		mesh{nodes: 100, mean: 100 * ms, spread: exponential, rtt: 300 * us, ideal: 10 * sec}.row("exp. ", goal(0.97)),
		mesh{nodes: 10, mean: 100 * ms, spread: exponential, rtt: 40 * ms, ideal: 10 * sec}.row("exp. ", goal(0.97)),
		mesh{nodes: 100, mean: 100 * ms, spread: exponential, rtt: 40 * ms, ideal: 10 * sec}.row("exp. ", goal(0.97)),
		mesh{nodes: 100, mean: 100 * ms, spread: exponential, rtt: 40 * ms, ideal: 10 * sec, mixed: true}.row("exp. ", goal(0.97)),
		mesh{nodes: 100, mean: 100 * ms, spread: heavy, rtt: 40 * ms, ideal: 10 * sec}.row("heavy tail, ", Goal{}),
	}},
	{"churn", []row{
		mesh{nodes: 20, mean: 100 * ms, rtt: 300 * us, ideal: 60 * sec, life: 60 * sec}.row("killed, ", Goal{Efficiency: 0.97}),
		mesh{nodes: 20, mean: 100 * ms, rtt: 300 * us, ideal: 60 * sec, life: 60 * sec, silent: true}.row("power lost, ", Goal{Efficiency: 0.97}),
		mesh{nodes: 20, mean: 100 * ms, rtt: 40 * ms, ideal: 60 * sec, life: 60 * sec, silent: true}.row("power lost, ", Goal{Efficiency: 0.97}),
		mesh{nodes: 20, mean: 100 * ms, rtt: 300 * us, ideal: 60 * sec, flap: 5 * sec}.row("flapping, ", Goal{Efficiency: 0.95, Attempts: 1.02}),
		mesh{nodes: 20, mean: 100 * ms, rtt: 40 * ms, ideal: 60 * sec, flap: 5 * sec}.row("flapping, ", Goal{Efficiency: 0.95, Attempts: 1.02}),
	}},
	{"scale", []row{
		mesh{nodes: 1000, mean: sec, rtt: 20 * ms, ideal: 10 * sec}.row("", goal(0.90)),
		mesh{nodes: 3000, mean: sec, rtt: 20 * ms, ideal: 10 * sec}.row("", goal(0.90)),
		mesh{nodes: 10_000, mean: sec, rtt: 20 * ms, ideal: 10 * sec}.row("", goal(0.90)),
		mesh{nodes: 10_000, origins: 4, mean: sec, rtt: 20 * ms, ideal: 10 * sec}.row("", goal(0.90)),
	}},
	{"submitters", []row{
		{"4 submitters, equal jobs, 10 nodes", Goal{Efficiency: 0.95, Slowdown: 4.4}, submitters(0.3, func(w *world) {
			for i := range 4 {
				w.jobAt(w.nodes[i], 1500, 10*ms, sec)
			}
		})},
		{"4 submitters, jobs 1:2:4:8, 10 nodes", Goal{Efficiency: 0.95, Slowdown: 4.4}, submitters(0.3, func(w *world) {
			for i := range 4 {
				w.jobAt(w.nodes[i], 400<<i, 10*ms, sec)
			}
		})},
		{"10 tasks behind 100 k, other origin", Goal{First: time.Second}, submitters(0.3, func(w *world) {
			w.jobAt(w.nodes[0], 100_000, 1*ms, sec)
			w.jobAt(w.nodes[1], 10, 1*ms, 3*sec)
		})},
		{"10 tasks behind 100 k, same origin", Goal{First: time.Second}, submitters(0.3, func(w *world) {
			w.jobAt(w.nodes[0], 100_000, 1*ms, sec)
			w.jobAt(w.nodes[0], 10, 1*ms, 3*sec)
		})},
		{"10 tasks of 100 ms behind 2 k, WAN", Goal{First: time.Second}, submitters(40, func(w *world) {
			w.jobAt(w.nodes[0], 2000, 100*ms, sec)
			w.jobAt(w.nodes[1], 10, 100*ms, 3*sec)
		})},
	}},
}

// efficiencyRows are meshes without faults and tasks of one length. The ideal time is 100 round trips, 100 tasks or 1 s, whichever is more;
// in the rows "short" it is 100 round trips of a local network.
func efficiencyRows() []row {
	var rows []row
	for _, mean := range []int64{10 * ms, 100 * ms} {
		for _, rtt := range []int64{300 * us, 40 * ms} {
			for _, n := range []int{3, 10, 100} {
				for _, mixed := range []bool{false, true} {
					g := goal(0.95)
					if mean == 100*ms {
						g.PerTask = 2.5
					}
					rows = append(rows, mesh{nodes: n, mean: mean, rtt: rtt, mixed: mixed}.row("", g))
				}
			}
		}
	}
	for _, n := range []int{3, 10, 100} {
		rows = append(rows, mesh{nodes: n, mean: 2 * ms, rtt: 300 * us, ideal: 30 * ms}.row("short, ", goal(0.95)))
	}
	return rows
}

// mesh describes a mesh with one job of the first node (or of several), which works as all others do. Programs are ready at once and a
// worker process goes from task to task without a pause: what these take is measured with real processes.
type mesh struct {
	nodes     int
	origins   int   // the first ones, each with an equal part of the tasks as a job; 0: one
	mean      int64 // of run times at speed 100, ns
	spread    spread
	rtt       int64
	mixed     bool  // speeds from 1 to 8, else all 1
	ideal     int64 // makespan without latency; 0: 100 rtt, and at least 1 s
	slowPer   int   // of 1000 attempts, slow
	slowNodes int   // nodes at a tenth of the speed
	life      int64 // mean life of a worker
	silent    bool  // and its end is told to nobody
	flap      int64 // mean time between resets of a link
}

func (m mesh) row(prefix string, g Goal) row {
	speeds := "equal"
	if m.mixed {
		speeds = "1-8x"
	}
	if m.origins > 1 {
		speeds += fmt.Sprintf(", %d origins", m.origins)
	}
	name := fmt.Sprintf("%s%d ms, %s, %d nodes, %s", prefix, m.mean/ms, strings.TrimSuffix(fmt.Sprintf("%.1f", float64(m.rtt)/1e6), ".0")+" ms", m.nodes, speeds)
	return row{name, g, m.build}
}

func (m mesh) build(w *world) {
	w.measured()
	w.hubs = max(1, m.origins)
	capacity := int64(0)
	for i := range m.nodes {
		speed := int64(100)
		if m.mixed {
			speed *= w.between(1, 8)
		}
		if i > 0 && i <= m.slowNodes {
			speed /= 10
		}
		capacity += speed
		w.addNode(speed, 1)
	}
	for _, l := range w.links {
		l.latency, l.jitter = m.rtt/2, m.rtt/20
	}
	if m.ideal == 0 {
		m.ideal = max(100*m.rtt, 100*m.mean, sec)
	}
	work := m.mean
	if m.slowPer > 0 {
		work = m.mean * int64(1000+m.slowPer*(slowBy-1)) / 1000
	}
	for i := range w.hubs {
		j := w.jobAt(w.nodes[i], uint32(m.ideal*capacity/100/work/int64(w.hubs)), m.mean, 1*sec)
		j.spread, j.slowPer = m.spread, m.slowPer
	}
	switch {
	case m.life > 0:
		w.kind = boundAlive
		w.settleAt = 1*sec + m.ideal*3/2
		w.at(1*sec, func() { w.churn(m) })
	case m.flap > 0:
		w.kind = boundWhole
		w.settleAt = 1*sec + m.ideal*3/2
		w.at(1*sec, func() {
			for _, l := range w.links {
				w.again(m.flap, func() {
					if l.conn != nil {
						l.conn.cut([]cutMode{cutReset, cutHalf0, cutHalf1}[w.rng.IntN(3)])
					}
				})
			}
		})
	case m.slowPer > 0:
		w.kind = boundWork
	case m.spread != constant:
		w.kind = boundGreedy
	default:
		w.kind = boundWhole
	}
}

// measured prepares a world for measuring: the first node is the origin, and it alone has links unless hubs says otherwise.
func (w *world) measured() {
	w.hubs = 1
	w.prepare, w.handoff = [2]int64{}, 0
	w.settleAt = 1 * sec
	w.bound = 3600 * sec
	w.checkEach = 20_000
}

// jobAt submits a job at a time, in pieces, as clients do.
func (w *world) jobAt(n *node, tasks uint32, mean, at int64) *job {
	j := w.addJob(n, tasks, mean)
	j.at, j.chunk = at, 2000
	return j
}

// again lets something happen until faults stop, on average once in every, at moments without memory.
func (w *world) again(every int64, do func()) {
	var next func()
	next = func() {
		w.after(int64(w.rng.ExpFloat64()*float64(every)), func() {
			if w.now < w.settleAt {
				do()
				next()
			}
		})
	}
	next()
}

// churn ends workers after lives of a mean length; each is back after a second, or so late that its lease has to end first.
func (w *world) churn(m mesh) {
	back := 1 * sec
	if m.silent {
		back = 8 * sec
	}
	for _, n := range w.nodes[1:] {
		w.again(m.life, func() { n.crash(m.silent, back) })
	}
}

// submitters is a mesh of ten nodes, all of which know each other, with the jobs that add makes. The round trip is in ms.
func submitters(rtt float64, add func(w *world)) func(*world) {
	return func(w *world) {
		w.measured()
		w.hubs = 0
		for range 10 {
			w.addNode(100, 1)
		}
		for _, l := range w.links {
			l.latency = int64(rtt * float64(ms) / 2)
			l.jitter = l.latency / 10
		}
		add(w)
	}
}

// Tables lists the names of the tables.
func Tables() []string {
	var names []string
	for _, t := range tables {
		names = append(names, t.name)
	}
	return names
}

// Rows returns the scenarios of a table; of any other scenario, itself; of "", those that seeds are mixed from.
func Rows(name string) []string {
	for _, t := range tables {
		if t.name == name {
			var names []string
			for _, r := range t.rows {
				names = append(names, r.name)
			}
			return names
		}
	}
	return []string{name}
}

// TableHeader stands above summaries.
var TableHeader = fmt.Sprintf("%-44s %5s %7s %6s %6s %6s %8s %8s %8s %6s %11s %9s %6s  %s", "scenario", "seeds", "bound", "eff %", "min %",
	"tries", "msg/task", "lost ms", "max ms", "innoc.", "slowdown", "first ms", "idle %", "missed")

// Summary is a line of a table: medians over the reports of one scenario, but for the worst of innocent failures.
func Summary(name string, rs []Report) string {
	var eff, tries, msgs, noticed, latest, slow0, slow1, first, idle []float64
	innocent, detected, kind := 0, 0, ""
	for _, r := range rs {
		eff = append(eff, r.Efficiency())
		tries = append(tries, r.PerTask(r.Executed))
		msgs = append(msgs, r.PerTask(r.Sent))
		if r.Detected > 0 {
			noticed = append(noticed, float64(r.Noticed)/1e6)
			latest = append(latest, float64(r.Latest)/1e6)
		}
		slow0, slow1 = append(slow0, r.Slowdown[0]), append(slow1, r.Slowdown[1])
		first = append(first, float64(r.First)/1e6)
		idle = append(idle, r.IdleShare())
		innocent += r.Innocent
		detected += r.Detected
		kind = r.Kind
	}
	lost := "       -        -"
	if detected > 0 {
		lost = fmt.Sprintf("%8.0f %8.0f", median(noticed), slices.Max(latest))
	}
	var missed []string
	for _, t := range tables {
		for _, r := range t.rows {
			if r.name != name {
				continue
			}
			g := r.goal
			if median(eff) < g.Efficiency {
				missed = append(missed, fmt.Sprintf("eff ≥ %.0f", 100*g.Efficiency))
			}
			if g.Attempts > 0 && median(tries) > g.Attempts {
				missed = append(missed, fmt.Sprintf("tries ≤ %.2f", g.Attempts))
			}
			if g.PerTask > 0 && median(msgs) > g.PerTask {
				missed = append(missed, fmt.Sprintf("msg/task ≤ %.1f", g.PerTask))
			}
			if g.Slowdown > 0 && median(slow1) > g.Slowdown {
				missed = append(missed, fmt.Sprintf("slowdown ≤ %.1f", g.Slowdown))
			}
			if g.First > 0 && median(first) > float64(g.First)/1e6 {
				missed = append(missed, fmt.Sprintf("first ≤ %v", g.First))
			}
		}
	}
	if innocent > 0 {
		missed = append(missed, "innocent failures")
	}
	return fmt.Sprintf("%-44s %5d %7s %6.1f %6.1f %6.3f %8.2f %s %6d %5.2f-%5.2f %9.1f %6.2f  %s", name, len(rs), kind, 100*median(eff), 100*slices.Min(eff),
		median(tries), median(msgs), lost, innocent, slices.Min(slow0), slices.Max(slow1), median(first), 100*median(idle), strings.Join(missed, ", "))
}

func median(vs []float64) float64 {
	vs = slices.Sorted(slices.Values(vs))
	if n := len(vs); n%2 == 0 {
		return (vs[n/2-1] + vs[n/2]) / 2
	}
	return vs[len(vs)/2]
}
