// Package paced is the stream multiplexer of all connections between nodes: yamux, as libp2p has it, on which a stream that
// carries much leaves room for the others. It is the same on the wire.
//
// A connection is one queue: what a message of a few bytes waits for is all that was written before it, in yamux (up to 4 MiB), in
// the kernel (as much again) and in the network. So only so much may be under way at once as keeps the connection busy: a window, made from
// yamux's pings. A ping is answered when all that was sent before it has arrived, which says how fast bytes go, and how long a message
// waits. Streams that carry little do not wait for the window.
//
// Package members uses it for its hosts; nobody else needs to know of it.
package paced

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	mux "github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-yamux/v5"
)

const (
	// littleBurst bytes at once, and littleRate a second, of one stream do not wait: beats, calls, and lists of them.
	littleBurst, littleRate = 16 << 10, 1 << 20
	// largeChunk is the most that is written at once; smallChunk where the window is below manyChunks of the large ones. Each fills whole
	// TLS records of 16 KiB, with the 12 bytes of yamux's header.
	largeChunk, smallChunk = 64<<10 - header, 16<<10 - header
	header                 = 12
	manyChunks             = 8

	// firstWindow of a connection of which nothing is known: at 10 Mbit/s it takes 25 ms.
	firstWindow = 32 << 10
	// leastWindow, so that something goes at all: at 1 Mbit/s it takes a quarter of a second. A lease lasts three.
	leastWindow = 32 << 10
	// nearWindow is the least where the quickest ping takes less than near, as in a local network. With so little the processors of busy machines
	// decide, not the network: 20 Mbit/s carry it in 0.1 s.
	nearWindow = 256 << 10
	near       = 2 * time.Millisecond
	// mostWindow is that of yamux's streams.
	mostWindow = 16 << 20
	// Between these two, shortQueue decides: so much of what the connection carries may be under way, whatever the pings say. On a
	// machine with other work they are late for reasons that no window mends.
	shortQueue = 10 // a tenth
	fairWindow = 2 << 20
	// A ping that comes back later than the quickest by less than free (or an eighth of it, or two chunks' time) says that nothing waits;
	// by more than twice that, that too much does.
	free = 3 * time.Millisecond
	// Pings cost 20 µs each. The next follows after an eighth of the last one's time, between these two; where nobody waits, after mostGap.
	leastGap, mostGap = 200 * time.Microsecond, 4 * time.Millisecond
	// Where a round trip takes spreadFrom or more, the window is not given away at once, but at spreadFast times the rate at which
	// bytes arrive, or spreadSlow times if something waits. What is spread over less than spreadLeast is not worth a timer.
	spreadFrom, spreadLeast = 10 * time.Millisecond, time.Millisecond
	spreadFast, spreadSlow  = 2, 1.125
	// quickest round trips are remembered for two of these; then the window is closed for one ping, to see the path without us.
	quickFor = 10 * time.Second
	// rateOver is the time over which the rate is taken, and rateFor how long the best one counts.
	rateOver, rateFor = 50 * time.Millisecond, time.Second
	// idle after that long without anything large, a connection is not pinged any more.
	idle = 500 * time.Millisecond
)

// Transport makes the multiplexer. The zero value works.
type Transport struct{}

// NewConn implements network.Multiplexer.
func (Transport) NewConn(nc net.Conn, isServer bool, scope network.PeerScope) (network.MuxedConn, error) {
	p := &pace{window: firstWindow}
	inner, err := mux.DefaultTransport.NewConn(&watched{Conn: nc, p: p}, isServer, scope)
	if err != nil {
		return nil, err
	}
	inner.As(&p.session)
	return &conn{MuxedConn: inner, p: p}, nil
}

// watched sees what really leaves: yamux writes one frame at a time.
type watched struct {
	net.Conn
	p *pace
}

var begin = time.Now()

// yamux's frames, as far as they matter here.
const (
	typeData = 0
	typePing = 2
	flagSYN  = 1
)

func (w *watched) Write(b []byte) (int, error) {
	if len(b) >= header {
		switch {
		case b[1] == typePing && binary.BigEndian.Uint16(b[2:])&flagSYN != 0:
			w.p.pinged.Store(w.p.sent.Load())
			w.p.pingedAt.Store(int64(time.Since(begin)))
		case b[1] == typeData:
			defer w.p.sent.Add(uint64(len(b) - header))
		}
	}
	return w.Conn.Write(b)
}

type conn struct {
	network.MuxedConn
	p *pace
}

func (c *conn) OpenStream(ctx context.Context) (network.MuxedStream, error) {
	s, err := c.MuxedConn.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return newStream(s, c.p), nil
}

func (c *conn) AcceptStream() (network.MuxedStream, error) {
	s, err := c.MuxedConn.AcceptStream()
	if err != nil {
		return nil, err
	}
	return newStream(s, c.p), nil
}

// stream waits for the window before it writes, if it carries much.
type stream struct {
	network.MuxedStream
	p     *pace
	ended chan struct{} // nothing is written any more
	once  sync.Once

	mu    sync.Mutex // guards what follows
	until time.Time  // the deadline of writes
	moved chan struct{}
	left  float64 // bytes that need not wait
	at    time.Time
}

func newStream(s network.MuxedStream, p *pace) *stream {
	return &stream{MuxedStream: s, p: p, ended: make(chan struct{}), left: littleBurst, moved: make(chan struct{})}
}

// little reports whether n more bytes are few.
func (s *stream) little(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.at.IsZero() {
		s.left = min(littleBurst, s.left+littleRate*now.Sub(s.at).Seconds())
	}
	s.at = now
	if s.left < float64(n) {
		return false
	}
	s.left -= float64(n)
	return true
}

func (s *stream) Write(b []byte) (n int, err error) {
	for {
		part := b[n:min(len(b), n+s.p.chunk())]
		if !s.little(len(part)) {
			if err := s.wait(len(part)); err != nil {
				return n, err
			}
		} else {
			s.p.queued.Add(uint64(len(part)))
		}
		m, err := s.MuxedStream.Write(part)
		if n += m; err != nil {
			s.p.queued.Add(^uint64(len(part) - m - 1))
			return n, err
		}
		if n == len(b) {
			return n, nil
		}
	}
}

// wait waits for room in the window, for as long as the stream may be written to. n bytes are counted in then, but after an error.
func (s *stream) wait(n int) error {
	w := s.p.enter(n)
	if w == nil {
		return nil
	}
	for {
		s.mu.Lock()
		until, moved := s.until, s.moved
		s.mu.Unlock()
		var late <-chan time.Time
		var timer *time.Timer
		if !until.IsZero() {
			timer = time.NewTimer(time.Until(until))
			late = timer.C
		}
		over, end := false, false
		select {
		case <-w.ready:
		case <-moved:
		case <-late:
			over = true
		case <-s.ended:
			end = true
		case <-s.p.session.CloseChan():
			end = true
		}
		if timer != nil {
			timer.Stop()
		}
		select {
		case <-w.ready:
			return nil
		default:
		}
		switch {
		case over && s.p.leave(w):
			return os.ErrDeadlineExceeded
		case end && s.p.leave(w):
			s.p.queued.Add(uint64(n)) // why it cannot be written, yamux says
			return nil
		case over || end:
			return nil // there was room at the last moment
		}
	}
}

func (s *stream) end() { s.once.Do(func() { close(s.ended) }) }

func (s *stream) Close() error      { s.end(); return s.MuxedStream.Close() }
func (s *stream) CloseWrite() error { s.end(); return s.MuxedStream.CloseWrite() }
func (s *stream) Reset() error      { s.end(); return s.MuxedStream.Reset() }

func (s *stream) ResetWithError(code network.StreamErrorCode) error {
	s.end()
	return s.MuxedStream.ResetWithError(code)
}

func (s *stream) deadline(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = t
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *stream) SetDeadline(t time.Time) error {
	s.deadline(t)
	return s.MuxedStream.SetDeadline(t)
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.deadline(t)
	return s.MuxedStream.SetWriteDeadline(t)
}

// pace is how much one connection may have under way.
type pace struct {
	session *yamux.Session

	// In bytes of all streams since the beginning:
	queued atomic.Uint64 // handed to yamux
	sent   atomic.Uint64 // handed to the connection
	pinged atomic.Uint64 // sent when the last ping was

	pingedAt atomic.Int64 // when that was, in ns since begin: yamux measures from when its goroutine runs again

	mu        sync.Mutex // guards what follows
	window    int
	delivered uint64    // has arrived
	waiting   []*waiter // in the order in which they came
	limited   bool      // somebody has waited since the last ping
	pinging   bool
	usedAt    time.Time
	quick     [2]time.Duration // quickest round trips of this time and of the one before; 0: none
	quickAt   time.Time        // when this time began
	closed    int              // for so many pings nobody is let in
	rate      float64          // bytes a second, the best of late; 0: not known
	rateAt    time.Time        // when that was
	from      uint64           // delivered at
	fromAt    time.Time
	learntAt  time.Time
	late      bool        // the last ping was
	nextAt    time.Time   // when the next bytes may go, if they are spread
	next      *time.Timer // until then; nil: none runs
}

type waiter struct {
	n     int
	ready chan struct{}
}

func (p *pace) chunk() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.window < manyChunks*largeChunk {
		return smallChunk
	}
	return largeChunk
}

// enter counts n bytes in, at once (nil) or when the waiter is ready.
func (p *pace) enter(n int) *waiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.pinging {
		p.pinging = true
		p.fromAt, p.learntAt = time.Time{}, now
		if now.Sub(p.usedAt) > quickFor { // the path may be another one
			p.window, p.rate, p.quick, p.nextAt = firstWindow, 0, [2]time.Duration{}, time.Time{}
		}
		go p.ping()
	}
	p.usedAt = now
	if len(p.waiting) == 0 && p.room(n) {
		p.take(n)
		return nil
	}
	w := &waiter{n: n, ready: make(chan struct{})}
	p.waiting = append(p.waiting, w)
	return w
}

// take counts n bytes in. The caller holds mu.
func (p *pace) take(n int) {
	p.queued.Add(uint64(n))
	if p.rate == 0 || p.quick[0] < spreadFrom {
		return
	}
	rate := p.rate
	if p.late {
		rate *= spreadSlow
	} else {
		rate *= spreadFast
	}
	if now := time.Now(); p.nextAt.Before(now) {
		p.nextAt = now
	}
	p.nextAt = p.nextAt.Add(time.Duration(float64(n) / rate * float64(time.Second)))
}

// room reports whether n bytes more may be under way. If only the time has not come, it comes back then. The caller holds mu.
func (p *pace) room(n int) bool {
	under := int(p.queued.Load() - p.delivered)
	if p.closed > 0 || under > 0 && under+n > p.window {
		p.limited = true
		return false
	}
	early := time.Until(p.nextAt)
	if early < spreadLeast {
		return true
	}
	if p.next == nil {
		p.next = time.AfterFunc(early, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.next = nil
			p.admit()
		})
	}
	return false
}

// leave takes a waiter out; false: it was let in before.
func (p *pace) leave(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.waiting, w)
	if i < 0 {
		return false
	}
	p.waiting = slices.Delete(p.waiting, i, i+1)
	p.admit() // who comes after it may need less room
	return true
}

// admit lets those in for whom there is room. The caller holds mu.
func (p *pace) admit() {
	for len(p.waiting) > 0 && p.room(p.waiting[0].n) {
		w := p.waiting[0]
		p.waiting[0] = nil
		p.waiting = p.waiting[1:]
		p.take(w.n)
		close(w.ready)
	}
}

// ping pings for as long as something large goes on, and makes the window of it. It ends with the session at the latest.
func (p *pace) ping() {
	for {
		_, err := p.session.Ping()
		rtt := max(time.Since(begin)-time.Duration(p.pingedAt.Load()), time.Microsecond)
		if p.session.IsClosed() {
			return // all who wait see it
		}
		p.mu.Lock()
		now := time.Now()
		if err == nil {
			p.learn(now, rtt, p.pinged.Load())
		}
		if len(p.waiting) == 0 && now.Sub(p.usedAt) > idle {
			p.pinging = false
			p.mu.Unlock()
			return
		}
		gap := max(mostGap, rtt/8)
		if len(p.waiting) > 0 {
			gap = max(leastGap, rtt/8)
		}
		p.mu.Unlock()
		time.Sleep(gap)
	}
}

// learn makes the window of a ping that was answered after rtt, when delivered bytes had arrived. The caller holds mu.
func (p *pace) learn(now time.Time, rtt time.Duration, delivered uint64) {
	p.delivered = delivered
	if p.closed > 0 {
		p.closed--
	}
	if d := now.Sub(p.fromAt); p.fromAt.IsZero() {
		p.from, p.fromAt = delivered, now
	} else if d >= max(rateOver, rtt) {
		if r := float64(delivered-p.from) / d.Seconds(); r >= p.rate || now.Sub(p.rateAt) > rateFor {
			p.rate, p.rateAt = r, now
		}
		p.from, p.fromAt = delivered, now
	}

	if d := now.Sub(p.quickAt); d > max(quickFor, 100*rtt) {
		if p.quick[1] = p.quick[0]; p.quick[0] != 0 {
			p.closed = 2 // after the first of them all has arrived, and the second meets nothing
		}
		p.quick[0], p.quickAt = rtt, now
	}
	if p.quick[0] == 0 || rtt < p.quick[0] {
		p.quick[0] = rtt
	}
	quick := p.quick[0]
	if p.quick[1] != 0 {
		quick = min(quick, p.quick[1])
	}

	part := min(1, now.Sub(p.learntAt).Seconds()/max(rtt, time.Millisecond).Seconds()) // of a round trip
	p.learntAt = now
	late, some := rtt-quick, max(free, quick/8)
	if p.rate > 0 {
		some = max(some, time.Duration(2*smallChunk/p.rate*float64(time.Second)))
	}
	p.late = late > some
	switch {
	case !p.late:
		if p.limited { // twice as much in each round trip
			p.window += int(part * float64(p.window))
		}
	case late > 2*some: // half as much in each, down to what is carried
		p.window = max(int(p.rate*(quick+some).Seconds()), p.window-int(part/2*float64(p.window)))
	}
	least := leastWindow
	if quick < near {
		least = nearWindow
	}
	least = min(max(int(p.rate/shortQueue), least), fairWindow)
	p.window = min(max(p.window, least), mostWindow)
	p.limited = false
	p.admit()
}
