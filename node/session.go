package node

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
	"meshnode/tasks"
)

const (
	// sessionCredit frames of one peer may wait for the loop; with protocol.MaxBatch this bounds the memory that
	// one peer can take.
	sessionCredit = 16
	// sessionBacklog bytes of messages may wait for a peer that reads slowly; more closes its stream, and its
	// leases end like those of any lost peer.
	sessionBacklog = 64 << 20
	sessionFew     = 64
	// helloTimeout bounds opening a stream, both Hellos included.
	helloTimeout = 5 * time.Second
	// sessionPiece bytes are written at once, with a beat in between if it is due, and a deadline each: at 1 Mbit/s one takes half a second.
	sessionPiece = 64 << 10
	// writeTimeout of a piece: a peer that reads nothing for so long is gone.
	writeTimeout = 10 * time.Second
	// byeTime is how long a clean stop waits for streams to take the last frames.
	byeTime = time.Second
	// byeRead is how long the last frames before a sleep may be on their way.
	byeRead = 300 * time.Millisecond
	// reopenFirst and reopenMost bound the pause before a stream is opened again on a connection that is there.
	reopenFirst, reopenMost = 50 * time.Millisecond, 2 * time.Second
	// moveTime bounds a session's move to another stream: what is still on its way on the first one must be read by then.
	moveTime = 5 * time.Second
	// idleAgain is between the times after which a beat is repeated where there are leases, and where there are none.
	idleAgain = 2 * time.Second
	// aliveWithin says that another process with a peer's identity is alive: it was read from within the time of a lease.
	aliveWithin = 3 * time.Second
)

// sessions are what goes on with all peers: one per peer, on a stream. The node with the lower ID opens it; who the connection
// was dialled by does not matter.
type sessions struct {
	n    *Node
	mu   sync.Mutex // guards what follows
	all  map[protocol.NodeID]*session
	next uint64
	// opening has the peers for which a goroutine opens streams, and what tells it that a direct connection is there.
	opening map[peer.ID]chan struct{}
	closed  bool
	asleep  bool // from sleep to wake there are no sessions
	wg      sync.WaitGroup
}

// session is one stream, from its Hello to its end; or two, of which the second goes on where the first ends.
type session struct {
	n           *Node
	id          uint64
	node        protocol.NodeID
	peer        peer.ID
	opens       bool           // this side opened it
	stream      network.Stream // that it begins on
	version     int            // of the protocol that both speak on it
	incarnation uint64
	credit      chan struct{}
	met         chan struct{} // closed with the first frame after the Hello: the other side has this session, too
	came        chan struct{} // closed when next is there

	mu      sync.Mutex // guards what follows
	queue   []tasks.Outgoing
	bytes   int // of the queue, beyond its first sessionFew messages
	bye     *protocol.Bye
	dead    error
	wake    chan struct{} // has room for one
	flushed chan struct{} // closed when the writer has ended
	// next is the stream that it goes on with, nil: none. Once set, it and what belongs to it stay.
	next     network.Stream
	nextRead *bufio.Reader
	moveID   uint64
	turned   bool // what comes is read from next

	readAt   atomic.Int64 // scheduler time of the last frame read
	sleptAt  atomic.Int64 // how much the machine had slept then, ns
	leased   atomic.Bool  // there are leases in either direction: beats are twice a second
	asleep   atomic.Bool  // its Bye said that it goes to sleep
	pings    pings
	clean    atomic.Bool
	out      network.Stream // this and what follows is the writer's
	lastBeat *protocol.Beat
	beatAt   time.Time
	again    time.Duration
}

// pings measures the round trip by the beats' ping and pong.
type pings struct {
	mu     sync.Mutex
	sent   uint64
	sentAt [16]time.Time // of the last pings, by number
	seen   uint64        // the peer's last ping
	seenAt time.Time
	rtt    time.Duration // smoothed; 0: not known
}

func (ss *sessions) open(n *Node) {
	ss.n, ss.all, ss.opening = n, map[protocol.NodeID]*session{}, map[peer.ID]chan struct{}{}
}

// start serves streams and opens them for each connection, from now on.
func (ss *sessions) start() {
	h := ss.n.host
	for _, id := range ss.protocols() {
		h.SetStreamHandler(id, func(s network.Stream) {
			ss.run(func() { ss.incoming(s) })
		})
	}
	for _, id := range ss.n.fromVersion2(protocol.NameMove) {
		h.SetStreamHandler(id, func(s network.Stream) {
			ss.run(func() { ss.incomingMove(s) })
		})
	}
	h.Network().Notify(&network.NotifyBundle{
		ConnectedF: func(_ network.Network, c network.Conn) {
			ss.mu.Lock()
			asleep := ss.asleep
			ss.mu.Unlock()
			if asleep {
				ss.run(func() { c.Close() })
				return
			}
			ss.connected(c.RemotePeer())
		},
	})
	for _, p := range h.Network().Peers() {
		ss.connected(p)
	}
}

// protocols are the IDs of the stream in the versions that this node speaks, the preferred one first.
func (ss *sessions) protocols() []libp2pproto.ID {
	return libp2pproto.ConvertFromStrings(ss.n.members.Speaks().IDs(protocol.NamePeer))
}

// run starts a goroutine that bye waits for, unless the node stops.
func (ss *sessions) run(f func()) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.closed {
		return
	}
	ss.wg.Add(1)
	go func() { defer ss.wg.Done(); f() }()
}

// connected opens a stream to p, and again after it ended, for as long as there is a connection.
func (ss *sessions) connected(p peer.ID) {
	if ss.n.host.ID() > p {
		return // it opens
	}
	ss.mu.Lock()
	if better := ss.opening[p]; better != nil {
		ss.mu.Unlock()
		select {
		case better <- struct{}{}:
		default:
		}
		return
	}
	better := make(chan struct{}, 1)
	ss.opening[p] = better
	ss.mu.Unlock()
	ss.run(func() {
		defer func() {
			ss.mu.Lock()
			delete(ss.opening, p)
			ss.mu.Unlock()
			// A connection that came while this goroutine was ending is not to be missed.
			if ss.n.ctx.Err() == nil && ss.n.host.Network().Connectedness(p) == network.Connected {
				ss.connected(p)
			}
		}()
		pause := reopenFirst
		for ss.n.ctx.Err() == nil && ss.n.host.Network().Connectedness(p) == network.Connected {
			s, err := ss.openStream(p, ss.protocols()...)
			if err == nil {
				began := time.Now()
				err = ss.serve(s, better)
				if time.Since(began) > reopenMost {
					pause = reopenFirst
				}
			}
			if err != nil {
				ss.n.log.Debug("stream ended", "peer", p, "err", err)
			}
			select {
			case <-time.After(pause):
			case <-ss.n.ctx.Done():
			}
			pause = min(2*pause, reopenMost)
		}
	})
}

func (ss *sessions) openStream(p peer.ID, ids ...libp2pproto.ID) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(network.WithNoDial(ss.n.ctx, "stream of a connection"), helloTimeout)
	defer cancel()
	return ss.n.host.NewStream(ctx, p, ids...) // on a direct connection, if there is one
}

func (ss *sessions) incoming(s network.Stream) {
	if p := s.Conn().RemotePeer(); p >= ss.n.host.ID() {
		ss.misbehaved(s, fmt.Errorf("%w: we open the stream of this pair", protocol.ErrProtocol))
		s.Reset()
		return
	}
	if err := ss.serve(s, nil); err != nil {
		ss.n.log.Debug("stream ended", "peer", s.Conn().RemotePeer(), "err", err)
	}
}

// misbehaved logs a peer that broke the protocol, in the one form that operators can search for: once in ten seconds for each peer and
// protocol, as it may do so thousands of times.
func (ss *sessions) misbehaved(s network.Stream, err error) { ss.n.misbehaved(s, err) }

func (n *Node) misbehaved(s network.Stream, err error) {
	if !n.seldom.OK(string(s.Conn().RemotePeer()) + string(s.Protocol())) {
		return
	}
	n.log.Warn("peer broke the protocol", "peer", s.Conn().RemotePeer(), "addr", s.Conn().RemoteMultiaddr(), "protocol", s.Protocol(), "err", err)
}

// serve exchanges Hellos and runs a session until it ends. The side that opened the stream hears from better of direct connections.
func (ss *sessions) serve(stream network.Stream, better <-chan struct{}) (err error) {
	defer stream.Reset()
	n, remote := ss.n, stream.Conn().RemotePeer()
	node := protocol.NodeID(remote.String())
	stream.SetDeadline(time.Now().Add(helloTimeout))

	var hello *protocol.Hello
	if err := n.ask(func(s *tasks.Scheduler) { hello = s.Hello(node) }); err != nil {
		return err
	}
	hello.NodeVersion = n.cfg.Version
	hello.Version = uint32(protocol.VersionOf(protocol.NamePeer, string(stream.Protocol())))
	b, err := protocol.AppendMessage(nil, hello)
	if err != nil {
		return err
	}
	if _, err := stream.Write(b); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	r := bufio.NewReaderSize(stream, 16<<10) // each of 300 peers has one; what is larger is read past it
	m, err := protocol.ReadMessage(r)
	if err != nil {
		return ss.readError(stream, fmt.Errorf("read hello: %w", err))
	}
	theirs, ok := m.(*protocol.Hello)
	if bye, refused := m.(*protocol.Bye); refused {
		n.log.Warn("peer refused the stream", "peer", node, "reason", bye.Reason)
		return fmt.Errorf("refused: %s", bye.Reason)
	}
	if !ok {
		return ss.readError(stream, fmt.Errorf("%w: first frame is a %T, not a hello", protocol.ErrProtocol, m))
	}
	stream.SetDeadline(time.Time{})

	s := &session{
		n: n, node: node, peer: remote, opens: n.host.ID() < remote, stream: stream, out: stream, version: int(hello.Version), incarnation: theirs.Incarnation,
		credit: make(chan struct{}, sessionCredit), wake: make(chan struct{}, 1), flushed: make(chan struct{}),
		met: make(chan struct{}), came: make(chan struct{}),
	}
	defer s.reset()
	if err := ss.add(s); err != nil {
		refusal, _ := protocol.AppendMessage(nil, &protocol.Bye{Reason: err.Error()})
		stream.SetWriteDeadline(time.Now().Add(byeTime))
		stream.Write(refusal)
		stream.Close()
		return err
	}
	s.heard()
	n.names.Store(node, theirs.Name)
	own := theirs.Name
	n.tasks.Go(func() { n.finder.Named(n.ctx, remote, own) })
	theirs.Name = cmp.Or(n.members.Label(remote), theirs.Name)
	up := tasks.PeerUp{
		Peer: node, Session: s.id, Hello: theirs,
		MayUseHere: n.members.MayUseHere(remote), MayUseThere: n.members.MayUseThere(remote),
	}
	if err := n.step(up); err != nil {
		ss.remove(s)
		return err
	}
	if !n.judge(s) { // what changed while it came up
		ss.remove(s)
		return errNoMember
	}
	n.log.Info("peer connected", "peer", node, "name", theirs.Name, "addr", stream.Conn().RemoteMultiaddr())
	go s.write()
	if better != nil {
		ss.run(func() { ss.follow(s, better) })
	}
	err = ss.readError(stream, s.read(r))
	s.end(err)
	<-s.flushed
	ss.remove(s)
	n.post(input{event: tasks.PeerDown{Peer: node, Session: s.id, Clean: s.clean.Load(), Asleep: s.asleep.Load(), Reason: fmt.Sprint(err)}})
	n.log.Info("peer disconnected", "peer", node, "name", theirs.Name, "clean", s.clean.Load(), "err", err)
	return err
}

// readError logs an error that the peer's bytes caused.
func (ss *sessions) readError(s network.Stream, err error) error {
	if errors.Is(err, protocol.ErrProtocol) {
		ss.misbehaved(s, err)
	}
	return err
}

// add makes s the session of its peer. Another process with the same identity that is alive keeps its place: two
// of them, each answering for the other's leases, would undo each other.
func (ss *sessions) add(s *session) error {
	ss.mu.Lock()
	if ss.asleep {
		ss.mu.Unlock()
		return errAsleep
	}
	old := ss.all[s.node]
	if old != nil && old.incarnation != s.incarnation && old.heardAge() < aliveWithin {
		ss.mu.Unlock()
		return fmt.Errorf("another process with the identity of %s is connected: was its data directory copied?", s.node.Short())
	}
	ss.next++
	s.id = ss.next
	ss.all[s.node] = s
	ss.mu.Unlock()
	if old != nil {
		old.end(errors.New("replaced by a newer stream"))
	}
	return nil
}

func (ss *sessions) remove(s *session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.all[s.node] == s {
		delete(ss.all, s.node)
	}
}

// get is the session with a peer, or nil.
func (ss *sessions) get(node protocol.NodeID) *session {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.all[node]
}

// send queues a message of the scheduler for its stream; if that is gone, the message is dropped.
func (ss *sessions) send(m tasks.Outgoing) {
	if s := ss.get(m.Peer); s != nil && s.id == m.Session {
		s.enqueue(m)
	}
}

func (s *session) enqueue(m tasks.Outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueueLocked(m)
}

func (s *session) enqueueLocked(m tasks.Outgoing) {
	if s.dead != nil {
		return
	}
	s.queue = append(s.queue, m)
	if len(s.queue) > sessionFew { // a peer that keeps up never gets here: sizes are only counted for one that does not
		if s.bytes += proto.Size(m.Message); s.bytes > sessionBacklog {
			s.n.log.Warn("limit hit: messages waiting for a peer", "limit", sessionBacklog, "peer", s.node)
			s.dead = fmt.Errorf("it reads too slowly: %d bytes wait for it", s.bytes)
			s.queue = nil
			// Not here: the reset waits behind what the peer does not read, and this is the loop.
			s.n.sessions.run(s.reset)
		}
	}
	s.signal()
}

func (s *session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end ends the session; its reader and writer return.
func (s *session) end(err error) {
	s.mu.Lock()
	if s.dead != nil {
		s.mu.Unlock()
		return
	}
	if err == nil {
		err = io.EOF
	}
	s.dead = err
	bye := s.bye
	s.signal()
	s.mu.Unlock()
	if bye == nil {
		s.reset() // it may wait, and the loop must not wait for the lock
	}
}

// streams are those that there are.
func (s *session) streams() []network.Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		return []network.Stream{s.stream}
	}
	return []network.Stream{s.stream, s.next}
}

func (s *session) reset() {
	for _, st := range s.streams() {
		st.Reset()
	}
}

// conn is the connection that it is on, the newer one while it moves.
func (s *session) conn() network.Conn {
	all := s.streams()
	return all[len(all)-1].Conn()
}

// read hands frames to the loop until the stream ends.
func (s *session) read(r *bufio.Reader) error {
	met := s.met
	for {
		m, err := protocol.ReadMessage(r)
		if err != nil {
			return s.whileMoving(err)
		}
		s.heard()
		if met != nil {
			close(met)
			met = nil
		}
		roundTrip := time.Duration(0)
		switch m := m.(type) {
		case *protocol.Hello:
			return fmt.Errorf("%w: a second hello", protocol.ErrProtocol)
		case *protocol.Move:
			if r, err = s.turn(m); err != nil {
				return err
			}
			continue
		case *protocol.Bye:
			s.clean.Store(true)
			s.asleep.Store(m.Asleep)
			return fmt.Errorf("bye: %s", m.Reason)
		case *protocol.Beat:
			s.pings.read(m)
			roundTrip = s.pings.roundTrip()
		}
		select {
		case s.credit <- struct{}{}:
		case <-s.n.done:
			return errStopping
		}
		ev := tasks.Receive{Peer: s.node, Session: s.id, Message: m, RoundTrip: int64(roundTrip)}
		if !s.n.post(input{event: ev, done: func() { <-s.credit }}) {
			return errStopping
		}
	}
}

// write sends what is queued, and the last beat again when its time has come, until the session ends.
func (s *session) write() {
	defer close(s.flushed)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var buf []byte
	for {
		s.mu.Lock()
		queue, bye, dead := s.queue, s.bye, s.dead
		s.queue, s.bytes = nil, 0
		s.mu.Unlock()
		if dead != nil && bye == nil {
			return
		}
		buf = buf[:0]
		for _, m := range queue {
			if b, ok := m.Message.(*protocol.Beat); ok {
				s.lastBeat, s.again = b, time.Duration(m.Again)
				s.leased.Store(s.again < idleAgain)
				s.beatAt = time.Now()
				s.fill(b)
			}
			var err error
			if buf, err = protocol.AppendMessage(buf, m.Message); err != nil {
				s.n.log.Error("message not sent", "peer", s.node, "err", err)
				s.end(err)
				return
			}
			if len(buf) >= sessionPiece {
				if !s.flush(s.repeatBeat(buf)) { // a long queue on a slow link must not keep the next beat waiting
					return
				}
				buf = buf[:0]
			}
		}
		buf = s.repeatBeat(buf)
		if bye != nil {
			buf, _ = protocol.AppendMessage(buf, bye)
		}
		if !s.flush(buf) {
			return
		}
		if bye != nil {
			s.out.CloseWrite()
			return
		}
		if s.lastBeat != nil {
			timer.Reset(max(0, s.again-time.Since(s.beatAt)))
		}
		select {
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// repeatBeat appends the last beat again if its time has come. What a beat lists is true for the grants that it has counted, however
// old it is.
func (s *session) repeatBeat(buf []byte) []byte {
	if s.lastBeat == nil || time.Since(s.beatAt) < s.again {
		return buf
	}
	s.beatAt = time.Now()
	s.fill(s.lastBeat)
	if b, err := protocol.AppendMessage(buf, s.lastBeat); err == nil {
		return b
	}
	return buf
}

// heard notes that something was read.
func (s *session) heard() {
	s.sleptAt.Store(s.n.slept.Load())
	s.readAt.Store(s.n.loop.now())
}

// heardAge is how long ago that was, with sleep: the other side's time went on.
func (s *session) heardAge() time.Duration {
	slept := s.n.sleptSoFar()
	s.n.slept.Store(int64(slept))
	return time.Duration(s.n.loop.now()-s.readAt.Load()) + max(0, slept-time.Duration(s.sleptAt.Load()))
}

// fill puts into a beat what is true only at the moment of sending.
func (s *session) fill(b *protocol.Beat) {
	now := s.n.loop.now()
	b.HeardAgeMs = uint32(min(s.heardAge()/time.Millisecond, math.MaxUint32))
	b.StepAgeMs = uint32((now - s.n.steppedAt.Load()) / int64(time.Millisecond))
	s.pings.fill(b)
}

// flush writes frames, each whole: on the other stream, if the session is to go on there.
func (s *session) flush(buf []byte) bool {
	if next, last := s.turnWriter(); next != nil {
		if !s.put(last) {
			return false
		}
		if s.opens {
			s.out.CloseWrite() // it is still read
		} else {
			s.out.Close()
		}
		s.out = next
	}
	return s.put(buf)
}

func (s *session) put(buf []byte) bool {
	for len(buf) > 0 {
		n := min(len(buf), sessionPiece)
		s.out.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := s.out.Write(buf[:n]); err != nil {
			s.end(fmt.Errorf("write: %w", err))
			return false
		}
		buf = buf[n:]
	}
	return true
}

func (p *pings) fill(b *protocol.Beat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.sent++
	p.sentAt[p.sent%uint64(len(p.sentAt))] = now
	b.Ping, b.Pong = p.sent, p.seen
	if p.seen > 0 {
		b.PongDelayUs = uint32(min(now.Sub(p.seenAt)/time.Microsecond, 1<<31))
	}
}

func (p *pings) read(b *protocol.Beat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if b.Ping > p.seen {
		p.seen, p.seenAt = b.Ping, now
	}
	if b.Pong == 0 || b.Pong > p.sent || p.sent-b.Pong >= uint64(len(p.sentAt)) {
		return
	}
	rtt := now.Sub(p.sentAt[b.Pong%uint64(len(p.sentAt))]) - time.Duration(b.PongDelayUs)*time.Microsecond
	if rtt < 0 {
		return
	}
	if p.rtt == 0 {
		p.rtt = rtt
	}
	p.rtt += (rtt - p.rtt) / 4
}

func (p *pings) roundTrip() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rtt
}

// wait waits until all sessions have ended, once the host is closed.
func (ss *sessions) wait() {
	ss.mu.Lock()
	ss.closed = true
	ss.mu.Unlock()
	ss.wg.Wait()
}

// bye ends all sessions cleanly: what is queued goes out, then a Bye.
func (ss *sessions) bye(reason string) {
	ss.mu.Lock()
	ss.closed = true
	ss.mu.Unlock()
	for _, id := range append(ss.protocols(), ss.n.fromVersion2(protocol.NameMove)...) {
		ss.n.host.RemoveStreamHandler(id)
	}
	ss.say(&protocol.Bye{Reason: reason}, byeTime, 0)
}

// say ends the sessions there are with a Bye; each has as long as it takes, at most within, to be written, and then
// the other side as long as linger to end it first.
func (ss *sessions) say(bye *protocol.Bye, within, linger time.Duration) {
	ss.mu.Lock()
	var all []*session
	for _, s := range ss.all {
		all = append(all, s)
	}
	ss.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		s.bye = bye
		s.signal()
		s.mu.Unlock()
	}
	late := time.After(within)
	for _, s := range all {
		select {
		case <-s.flushed:
		case <-late:
			late = time.After(0)
		}
		for _, st := range s.streams() {
			st.SetReadDeadline(time.Now().Add(linger)) // its reader returns, and with it the session
		}
	}
}

// sleep ends all sessions and connections, and lets none begin before wake.
func (ss *sessions) sleep(reason string) {
	ss.mu.Lock()
	ss.asleep = true
	ss.mu.Unlock()
	ss.say(&protocol.Bye{Reason: reason, Asleep: true}, byeTime/2, byeRead)
	for end := time.Now().Add(byeRead); time.Now().Before(end) && ss.any(); { // a connection that is closed takes along what was not sent
		time.Sleep(5 * time.Millisecond)
	}
	for _, c := range ss.n.host.Network().Conns() {
		ss.run(func() { c.Close() })
	}
}

func (ss *sessions) any() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return len(ss.all) > 0
}

// wake ends what sleep began.
func (ss *sessions) wake() {
	ss.mu.Lock()
	ss.asleep = false
	ss.mu.Unlock()
	for _, p := range ss.n.host.Network().Peers() { // that came, and were not closed yet
		ss.connected(p)
	}
}

var errAsleep = errors.New("this computer goes to sleep")
