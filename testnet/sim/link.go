package sim

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
	"meshnode/tasks"
)

// link joins two machines. It has at most one stream that both ends believe in.
type link struct {
	w       *world
	n       [2]*node
	latency int64 // one way
	jitter  int64
	perMiB  int64 // that the bytes of a program need; 0: none
	spike   int64 // extra latency until spikeTo
	spikeTo int64
	blocked [2]bool // frames from n[i] wait
	walls   int     // counts partitions
	wallEnd int64   // of the last one
	conn    *conn
	dials   bool
}

// conn is a stream: reliable and in order, until it breaks. Then what is under way is lost from some frame
// on, and what is before that may come late; each end learns of it in its own time.
type conn struct {
	l      *link
	ends   [2]*end
	dead   bool
	flight [2][]*frame // by sender
	last   [2]int64    // arrival of the last frame
}

// frame is bytes under way.
type frame struct {
	b    []byte
	at   int64 // of arrival; 0: it waits behind a partition
	lost bool
}

// end is one process's side of a stream.
type end struct {
	p         *process
	peer      protocol.NodeID
	session   uint64
	conn      *conn
	side      int
	greeted   bool // our Hello was sent
	up        bool // the peer's Hello was read
	down      bool // the loop was told, or the process has let go
	bye       bool
	asleep    bool  // said its Bye
	forging   bool  // what is sent now is a lie
	heard     int64 // when the last frame was read, sleep included
	beat      *protocol.Beat
	again     int64 // the beat is sent again after so long
	beats     int
	pings     uint64
	pinged    uint64
	pingAt    int64
	sentPing  [8]int64 // when the last pings were sent
	roundTrip int64
}

func (l *link) side(n *node) int {
	if l.n[0] == n {
		return 0
	}
	return 1
}

func (l *link) dialLater(d int64) {
	if l.dials {
		return
	}
	l.dials = true
	l.w.after(d, l.dial)
}

// dial opens a stream, if there is none that both ends believe in.
func (l *link) dial() {
	w := l.w
	l.dials = false
	a, b := l.n[0].p, l.n[1].p
	if a == nil || b == nil || a.stopping || b.stopping || a.lying || b.lying {
		return // the start of a process dials, and its getting up
	}
	if l.conn != nil && !l.conn.dead {
		return
	}
	if l.blocked[0] || l.blocked[1] || l.n[0].stands() || l.n[1].stands() {
		l.dialLater(w.between(100*ms, 500*ms))
		return
	}
	c := &conn{l: l, last: [2]int64{w.now, w.now}}
	for i, p := range []*process{a, b} {
		p.session++
		e := &end{p: p, peer: l.n[1-i].id, session: p.session, conn: c, side: i, heard: w.now}
		c.ends[i] = e
		p.ends[e.session] = e
	}
	l.conn = c
	w.trace("stream %v#%d - %v#%d", l.n[0], a.session, l.n[1], b.session)
	for _, e := range c.ends {
		e.p.put(waiting{call: func() {
			if !e.down {
				e.greeted = true
				e.send(e.p.s.Hello(e.peer))
			}
		}})
	}
}

// send puts a message on its way, as bytes.
func (e *end) send(m protocol.Message) {
	c, l := e.conn, e.conn.l
	w := l.w
	b, err := protocol.AppendMessage(nil, m)
	if err != nil {
		w.fail("%v sends %T: %v", e.p.n, m, err)
		return
	}
	w.messages++
	w.mixInt(w.now)
	w.mix(b)
	if w.out != nil {
		w.trace("%v#%d > %s %s", e.p.n, e.session, w.byID[e.peer], describeMessage(m))
	}
	if !e.forging {
		e.p.checkEpoch(m)
	}
	if c.dead {
		return
	}
	f := &frame{b: b}
	c.flight[e.side] = append(c.flight[e.side], f)
	if !l.blocked[e.side] && !l.n[1-e.side].off() {
		c.fly(e.side, f, 0)
	}
}

// fly plans the arrival of a frame, behind those before it.
func (c *conn) fly(side int, f *frame, extra int64) {
	l := c.l
	w := l.w
	t := w.now + extra + l.latency
	if l.jitter > 0 {
		t += w.rng.Int64N(l.jitter)
	}
	if w.now < l.spikeTo {
		t += l.spike
	}
	t = max(t, c.last[side]+l.n[1-side].readGap)
	c.last[side] = t
	f.at = t
	w.at(t, func() { c.arrive(side, f) })
}

func (c *conn) arrive(side int, f *frame) {
	if f.lost {
		return
	}
	if fl := c.flight[side]; len(fl) > 0 && fl[0] == f {
		c.flight[side] = fl[1:]
	}
	e := c.ends[1-side]
	e.p.outside(func() { e.read(f.b) })
}

// read is what the goroutine that reads a stream does with a frame.
func (e *end) read(b []byte) {
	p := e.p
	if p.dead || e.down {
		return
	}
	m, err := protocol.ReadMessage(bytes.NewReader(b))
	if err != nil {
		p.n.w.fail("%v reads from %s: %v", p.n, p.n.w.byID[e.peer], err)
		return
	}
	e.heard = p.n.w.now
	switch m := m.(type) {
	case *protocol.Hello:
		if e.up {
			p.n.w.fail("%v reads a second Hello on one stream", p.n)
			return
		}
		e.up = true
		p.post(tasks.PeerUp{Peer: e.peer, Session: e.session, Hello: m, MayUseHere: []string{"wasm"}, MayUseThere: []string{"wasm"}})
		return
	case *protocol.Bye:
		e.bye, e.asleep = true, m.Asleep
		return
	case *protocol.Beat:
		if m.Ping > e.pinged {
			e.pinged, e.pingAt = m.Ping, p.n.clock()
		}
		if m.Pong > 0 && e.pings-m.Pong < uint64(len(e.sentPing)) {
			e.roundTrip = max(1, p.n.clock()-e.sentPing[m.Pong%uint64(len(e.sentPing))]-int64(m.PongDelayUs)*us)
		}
	}
	if !e.up {
		p.n.w.fail("%v reads %T before a Hello", p.n, m)
		return
	}
	ev := tasks.Receive{Peer: e.peer, Session: e.session, Message: m}
	if _, ok := m.(*protocol.Beat); ok {
		ev.RoundTrip = e.roundTrip
	}
	p.post(ev)
}

// sendBeat sends the last Beat that the scheduler made, with fresh ages.
func (e *end) sendBeat() {
	p := e.p
	b := proto.Clone(e.beat).(*protocol.Beat)
	now := p.n.clock()
	b.HeardAgeMs = uint32((p.n.w.now - e.heard) / ms)
	b.StepAgeMs = uint32((now - p.n.stepped) / ms)
	e.pings++
	e.sentPing[e.pings%uint64(len(e.sentPing))] = now
	b.Ping = e.pings
	b.Pong = e.pinged
	if e.pinged > 0 {
		b.PongDelayUs = uint32((now - e.pingAt) / us)
	}
	e.send(b)
	e.beats++
	if mine := e.beats; e.again > 0 {
		p.after(e.again, func() {
			if mine == e.beats && !e.down {
				e.sendBeat()
			}
		})
	}
}

// How a stream ends.
type cutMode struct {
	tell [2][2]int64 // when each end learns of it: from, to
	keep bool        // what is under way arrives in time
	bye  bool
}

var (
	// Both ends are told at once.
	cutReset = cutMode{tell: [2][2]int64{{1 * ms, 30 * ms}, {1 * ms, 30 * ms}}}
	// One direction is reset: the other end goes on for a while, into nothing.
	cutHalf0 = cutMode{tell: [2][2]int64{{1 * ms, 30 * ms}, {300 * ms, 5 * sec}}}
	cutHalf1 = cutMode{tell: [2][2]int64{{300 * ms, 5 * sec}, {1 * ms, 30 * ms}}}
	// Both ends hear nothing, and hang up each in its time.
	cutSilence = cutMode{tell: [2][2]int64{{1 * ms, 2 * sec}, {1 * ms, 2 * sec}}}
	// Nobody is told: a cable was pulled.
	cutSilent = cutMode{tell: [2][2]int64{{2 * sec, 20 * sec}, {2 * sec, 20 * sec}}}
)

func cutKill(silent bool, side int) cutMode {
	m := cutReset
	m.keep = true
	if silent {
		m = cutSilent
	}
	m.tell[side] = [2]int64{}
	return m
}

func cutClean(side int) cutMode {
	m := cutKill(false, side)
	m.bye = true
	return m
}

// cut breaks the stream.
func (c *conn) cut(m cutMode) {
	if c.dead {
		return
	}
	l := c.l
	w := l.w
	c.dead = true
	w.trace("cut %v#%d - %v#%d", l.n[0], c.ends[0].session, l.n[1], c.ends[1].session)
	for side, fl := range c.flight {
		n := len(fl)
		if !m.bye && !(m.keep && w.chance(700)) {
			n = w.rng.IntN(n + 1)
		}
		late := int64(0)
		if !m.keep && w.chance(500) {
			late = w.between(0, 1500*ms)
		}
		for i, f := range fl {
			if i >= n || f.at == 0 {
				f.lost = true
				continue
			}
			if late > 0 {
				f.lost = true // that arrival; it comes again later
				g := &frame{b: f.b}
				t := f.at + late
				c.last[side] = max(c.last[side], t)
				w.at(t, func() { c.arrive(side, g) })
			}
		}
		c.flight[side] = nil
	}
	for i, e := range c.ends {
		if e.p.dead {
			continue
		}
		if w.patient && m.tell[i][1] > sec {
			m.tell[i] = [2]int64{40 * sec, 40 * sec}
		}
		told := max(w.now+w.between(m.tell[i][0], m.tell[i][1]), c.last[1-i]+us)
		w.at(told, func() { e.lose(m.bye) })
	}
}

// lose tells the loop that the stream is gone.
func (e *end) lose(clean bool) {
	p := e.p
	p.outside(func() {
		if e.down {
			return
		}
		e.down = true
		delete(p.ends, e.session)
		if e.up {
			p.post(tasks.PeerDown{Peer: e.peer, Session: e.session, Clean: clean && e.bye, Asleep: clean && e.asleep, Reason: "reset"})
		}
		l := e.conn.l
		l.dialLater(l.w.between(l.w.redial[0], l.w.redial[1]))
	})
}

// wall stops frames from one side (or both) for d. Streams that stand still for too long break.
func (l *link) wall(from0, from1 bool, d int64) {
	w := l.w
	l.walls++
	mine := l.walls
	l.blocked[0] = l.blocked[0] || from0
	l.blocked[1] = l.blocked[1] || from1
	l.wallEnd = max(l.wallEnd, w.now+d)
	w.trace("partition %v>%v:%v %v>%v:%v for %.1f s", l.n[0], l.n[1], from0, l.n[1], l.n[0], from1, float64(d)/1e9)
	if c := l.conn; c != nil && !w.patient {
		w.after(w.between(3*sec, 12*sec), func() {
			if (l.blocked[0] || l.blocked[1]) && l.conn == c {
				c.cut(cutSilence)
			}
		})
	}
	w.after(d, func() {
		if mine == l.walls {
			l.heal()
		}
	})
}

// heal lets frames through again, after what a retransmission takes.
func (l *link) heal() {
	w := l.w
	if l.blocked[0] || l.blocked[1] {
		w.trace("partition %v - %v heals", l.n[0], l.n[1])
	}
	l.blocked = [2]bool{}
	l.wallEnd = w.now
	l.resend(0, w.between(0, 1*sec))
	l.resend(1, w.between(0, 1*sec))
}

// resend brings the frames from one side that wait, if nothing stops them any more.
func (l *link) resend(side int, extra int64) {
	c := l.conn
	if c == nil || c.dead || l.blocked[side] || l.n[1-side].off() {
		return
	}
	for _, f := range c.flight[side] {
		if f.at == 0 {
			c.fly(side, f, extra)
		}
	}
}

func (w *world) anyLink() *link { return w.links[w.rng.IntN(len(w.links))] }
