package sim

import (
	"meshnode/protocol"
	"meshnode/tasks"
)

// A fault happens to a node or link that it chooses itself.
type fault func(w *world)

// plague lets faults happen until they stop: each of them, on average, once in every.
func (w *world) plague(every int64, faults ...fault) {
	for _, f := range faults {
		var again func()
		again = func() {
			if w.now >= w.settleAt {
				return
			}
			f(w)
			w.after(w.between(every/4, every*7/4), again)
		}
		w.after(w.between(0, every*3/2), again)
	}
}

func (w *world) anyNode() *node { return w.nodes[w.rng.IntN(len(w.nodes))] }

// alive is a node whose process runs, or nil.
func (w *world) alive() *node {
	n := w.anyNode()
	if n.p == nil || n.stands() || n.p.stopping {
		return nil
	}
	return n
}

func faultKill(w *world)  { w.anyNode().crash(false, w.between(20*ms, 3*sec)) }
func faultPower(w *world) { w.anyNode().crash(true, w.between(300*ms, 6*sec)) }

// faultMidReady kills a node between two outputs of a Ready.
func faultMidReady(w *world) {
	if n := w.alive(); n != nil {
		n.crashIn = 1 + w.rng.IntN(20)
	}
}

func faultCut(w *world) {
	if c := w.anyLink().conn; c != nil {
		c.cut([]cutMode{cutReset, cutReset, cutHalf0, cutHalf1, cutSilent}[w.rng.IntN(5)])
	}
}

// faultFlap resets streams again and again, so that many old ones are about.
func faultFlap(w *world) {
	l := w.anyLink()
	for range 4 {
		w.after(w.between(0, 800*ms), func() {
			if l.conn != nil {
				l.conn.cut([]cutMode{cutReset, cutHalf0, cutHalf1}[w.rng.IntN(3)])
			}
		})
	}
}

func faultWall(w *world) {
	k := w.rng.IntN(3)
	w.anyLink().wall(k != 0, k != 1, w.between(200*ms, 7*sec))
}

func faultSpike(w *world) {
	l := w.anyLink()
	l.spike, l.spikeTo = w.between(50*ms, 2500*ms), w.now+w.between(200*ms, 3*sec)
}

func faultFreeze(w *world)  { w.anyNode().stopFor(w.between(200*ms, 9*sec), frozen) }
func faultHost(w *world)    { w.anyNode().stopFor(w.between(200*ms, 9*sec), paused) }
func faultSuspend(w *world) { w.anyNode().stopFor(w.between(500*ms, 20*sec), suspended) }

// faultSleep is a machine that knows before that it will sleep, or that it will and then does not.
func faultSleep(w *world) {
	d := w.between(1100*ms, 20*sec)
	if w.chance(200) {
		d = 0
	}
	w.anyNode().lieDown(d)
}

func faultHang(w *world) {
	if n := w.alive(); n != nil {
		d := w.between(300*ms, 6*sec)
		if w.chance(100) {
			d = w.between(29*sec, 34*sec)
		}
		n.p.hang(d)
	}
}

// faultSlowSync is a disk that takes 5 s for a sync. The node must not look dead to anybody for it.
func faultSlowSync(w *world) {
	n := w.anyNode()
	n.syncTakes = func() int64 { return w.between(1*sec, 5*sec) }
	w.after(w.between(1*sec, 6*sec), func() { n.syncTakes = func() int64 { return w.between(150*us, 900*us) } })
}

// faultCommit lets the next write or sync of a node fail.
func faultCommit(w *world) {
	if n := w.alive(); n != nil {
		n.failWrite = w.chance(500)
		n.failSync = !n.failWrite
	}
}

// faultSlowReader lets a node read its streams slowly.
func faultSlowReader(w *world) {
	n := w.anyNode()
	n.readGap = w.between(5*ms, 60*ms)
	w.after(w.between(1*sec, 6*sec), func() { n.readGap = 0 })
}

func faultRollBack(w *world) { w.anyNode().rollBack() }

func faultEvict(w *world) {
	for _, n := range w.nodes {
		n.blobs.evict()
	}
}

func faultShutdown(w *world) {
	if n := w.alive(); n != nil {
		n.p.shutdown()
	}
}

func faultSlots(w *world) {
	if n := w.alive(); n != nil {
		n.p.setSlots(w.rng.IntN(5))
	}
}

func faultPause(w *world) {
	n := w.alive()
	if n == nil {
		return
	}
	set := func(reason string) {
		n.idle = reason
		if n.p != nil && !n.p.stopping {
			n.p.post(tasks.SetPaused{Reason: reason})
		}
	}
	set("its person said so")
	w.after(w.between(300*ms, 4*sec), func() { set("") })
}

func faultUnable(w *world) {
	n := w.anyNode()
	n.unable = true
	w.after(w.between(500*ms, 6*sec), func() { n.unable = false })
}

// faultSlow makes a node's event loop, or its processors, slow.
func faultSlow(w *world) {
	n := w.anyNode()
	n.cpu = w.between(100, 3000)
	w.after(w.between(500*ms, 5*sec), func() { n.cpu = 100 })
}

// boast offers endless work, ten times a second, to everybody. Its scheduler answers each request: nothing.
func (p *process) boast() {
	p.after(100*ms, func() {
		if p.n.w.now >= p.n.w.settleAt {
			return
		}
		for _, e := range p.sortedEnds() {
			if e.up && e.greeted && !e.down {
				e.forging = true
				e.send(&protocol.Load{Epoch: p.s.Hello(e.peer).Epoch, Pending: 1<<64 - 1})
				e.forging = false
			}
		}
		p.boast()
	})
}

// lie makes the node say, besides what its scheduler says, what is not true.
func (p *process) lie() {
	w := p.n.w
	var again func()
	again = func() {
		if w.now >= w.settleAt {
			return
		}
		var ups []*end
		for _, e := range p.sortedEnds() {
			if e.up && e.greeted && !e.down {
				ups = append(ups, e)
			}
		}
		if len(ups) > 0 && len(w.log) > 0 {
			p.forge(ups)
		}
		p.after(w.between(10*ms, 150*ms), again)
	}
	p.after(w.between(50*ms, 500*ms), again)
}

func (p *process) forge(ups []*end) {
	w := p.n.w
	for _, e := range ups {
		e.forging = true
		defer func() { e.forging = false }()
	}
	end := func(n *node) *end {
		for _, e := range ups {
			if e.peer == n.id {
				return e
			}
		}
		return ups[w.rng.IntN(len(ups))]
	}
	g := w.log[len(w.log)-1-w.rng.IntN(min(len(w.log), 20))]
	if g.from == p.n || g.to == p.n {
		return
	}
	as := protocol.GroupAttempts([]protocol.Attempt{g.a})
	mac := make([]byte, 16)
	for i := range mac {
		mac[i] = byte(w.rng.IntN(256))
	}
	if w.chance(200) {
		mac = nil
	}
	switch w.rng.IntN(10) {
	case 0: // a result of another's attempt
		end(g.from).send(&protocol.Result{Outcomes: []*protocol.Outcome{{Job: g.a.Job[:], Index: g.a.Index, Epoch: g.a.Epoch,
			N: g.a.N, Mac: mac, Status: protocol.Status_OK, Output: []byte("a lie")}}})
	case 1: // a failure of an attempt that nobody was granted
		end(g.from).send(&protocol.Result{Outcomes: []*protocol.Outcome{{Job: g.a.Job[:], Index: g.a.Index, Epoch: g.a.Epoch,
			N: g.a.N + 1000, Mac: mac, Status: protocol.Status_FAILED, Error: "a lie"}}})
	case 2: // worker processes that never died
		end(g.from).send(&protocol.Result{Outcomes: []*protocol.Outcome{{Job: g.a.Job[:], Index: g.a.Index, Epoch: g.a.Epoch,
			N: g.a.N, Mac: mac, Status: protocol.Status_WORKER_LOST, Error: "a lie"}}})
	case 3: // an answer from who is not the origin
		m := &protocol.ResultAnswer{}
		switch w.rng.IntN(3) {
		case 0:
			m.Accepted = as
		case 1:
			m.Superseded = as
		default:
			m.Unknown = as
		}
		end(g.to).send(m)
	case 4: // hands back what another holds
		end(g.from).send(&protocol.GiveBack{Epoch: g.a.Epoch, Attempts: as, Reason: "a lie", Why: protocol.Refusal(w.rng.IntN(3))})
	case 5: // ends attempts or jobs of another origin
		if w.chance(500) {
			end(g.to).send(&protocol.Revoke{Epoch: 1 << 40, Attempts: as})
		} else {
			end(g.to).send(&protocol.Cancel{Epoch: 1 << 40, Job: g.a.Job[:]})
		}
	case 6: // claims to hold what another holds
		end(g.from).send(&protocol.Beat{Epoch: 1, GrantsRead: 1 << 60, Held: as, Unanswered: as, RunningOfYours: as, Slots: 1 << 30})
	case 7: // wants all, or offers endless work
		if w.chance(500) {
			end(g.from).send(&protocol.StealRequest{Epoch: g.a.Epoch, Id: w.rng.Uint64(), Want: 1<<32 - 1, Free: 1<<32 - 1})
		} else {
			end(g.to).send(&protocol.Load{Epoch: 1 << 40, Pending: 1<<64 - 1})
		}
	case 8: // grants tasks of a job that has the name of another's
		e := end(g.to)
		code := w.jobs[g.a.Job].blob(1<<32 - 1)
		e.send(&protocol.JobInfo{Job: g.a.Job[:], Epoch: 1, Program: &protocol.Program{Runtime: "wasm", Code: &protocol.Blob{Id: code[:], Size: 10}}})
		in := []byte{byte(g.a.Index), byte(g.a.Index >> 8), 0, 0}
		e.send(&protocol.Grant{Epoch: 1, Number: 1 << 20, Jobs: []*protocol.JobGrant{{Job: g.a.Job[:], Tasks: []*protocol.Assignment{{Index: g.a.Index, N: g.a.N, Input: in, Mac: mac}}}}})
	case 9: // recalls what another granted
		end(g.to).send(&protocol.Recall{Epoch: 1 << 40, Id: 1, Count: 1<<32 - 1})
	}
}
