package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery"
	"meshnode/discovery/members"
	"meshnode/protocol"
	"meshnode/tasks"
)

// gates hold back what comes on streams of some protocols, as a slow way does, until they are opened.
type gates struct {
	host.Host
	mu   sync.Mutex // guards what follows
	held map[libp2pproto.ID]chan struct{}
}

// gated puts gates before what a node reads. The node must not run yet.
func gated(n *Node) *gates {
	g := &gates{Host: n.host, held: map[libp2pproto.ID]chan struct{}{}}
	n.host = g
	return g
}

// hold holds back what comes on streams of a protocol from now on, until the function that it returns is called.
func (g *gates) hold(t *testing.T, id string) (open func()) {
	gate := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[libp2pproto.ID(id)] = gate
	open = sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.held, libp2pproto.ID(id))
		close(gate)
	})
	t.Cleanup(open)
	return open
}

func (g *gates) NewStream(ctx context.Context, p peer.ID, ids ...libp2pproto.ID) (network.Stream, error) {
	s, err := g.Host.NewStream(ctx, p, ids...)
	if err != nil {
		return nil, err
	}
	return gatedStream{s, g}, nil
}

func (g *gates) SetStreamHandler(id libp2pproto.ID, f network.StreamHandler) {
	g.Host.SetStreamHandler(id, func(s network.Stream) { f(gatedStream{s, g}) })
}

type gatedStream struct {
	network.Stream
	g *gates
}

func (s gatedStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	s.g.mu.Lock()
	gate := s.g.held[s.Protocol()]
	s.g.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return n, err
}

// quiet is a node without a scheduler: it keeps what its sessions hand on, in that order.
type quiet struct {
	*Node
	*gates
	mu     sync.Mutex // guards what follows
	events []tasks.Event
}

// quietPair is two members that are connected, the one with the lower ID first. Sessions begin when they are started.
func quietPair(t *testing.T) (low, high *quiet) {
	t.Helper()
	low, high = twoQuiet(t)
	low.connect(t, high, high.Node.host.Addrs()...)
	return low, high
}

// twoQuiet is two members, and those that are in their mesh already.
func twoQuiet(t *testing.T, more ...*Node) (low, high *quiet) {
	t.Helper()
	dirs := []string{t.TempDir(), t.TempDir()}
	a, stopA := startIn(t, dirs[0], "a", 0)
	b, stopB := startIn(t, dirs[1], "b", 0)
	join(t, a, append(more, b)...)
	stopA()
	stopB()
	low, high = newQuiet(t, dirs[0]), newQuiet(t, dirs[1])
	if low.Node.host.ID() > high.Node.host.ID() {
		low, high = high, low
	}
	return low, high
}

// connect connects to another node at these addresses, beside what connection there may be.
func (q *quiet) connect(t *testing.T, other *quiet, addrs ...ma.Multiaddr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p := other.Node.host.ID()
	q.Node.host.Peerstore().AddAddrs(p, addrs, time.Hour)
	if !slices.ContainsFunc(addrs, isCircuit) {
		ctx = network.WithForceDirectDial(ctx, "directly")
	}
	if _, err := q.Node.host.Network().DialPeer(ctx, p); err != nil {
		t.Fatal(err)
	}
}

func isCircuit(a ma.Multiaddr) bool { _, is := members.Circuit(a); return is }

func newQuiet(t *testing.T, dir string) *quiet {
	n := open(t, dir, "quiet", 0)
	q := &quiet{Node: n, gates: gated(n)}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case in := <-n.inbox:
				q.take(in)
			case <-quit:
				return
			}
		}
	}()
	t.Cleanup(func() {
		n.close()
		close(quit)
		<-ended
	})
	return q
}

func (q *quiet) take(in input) {
	if in.do != nil {
		in.do(q.loop.scheduler)
	}
	if in.event != nil {
		q.mu.Lock()
		q.events = append(q.events, in.event)
		q.mu.Unlock()
	}
	if in.reply != nil {
		in.reply <- nil
	}
	if in.done != nil {
		in.done()
	}
}

// count is how many of the events are of the type of T.
func count[T tasks.Event](q *quiet) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, e := range q.events {
		if _, is := e.(T); is {
			n++
		}
	}
	return n
}

// read are the messages that were read, but for beats.
func (q *quiet) read() (all []protocol.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.events {
		if r, is := e.(tasks.Receive); is {
			if _, beat := r.Message.(*protocol.Beat); !beat {
				all = append(all, r.Message)
			}
		}
	}
	return all
}

// beats are how many came.
func (q *quiet) beats() int { return count[tasks.Receive](q) - len(q.read()) }

// session is q's with the other, once it is there.
func (q *quiet) session(t *testing.T, other *quiet) *session {
	t.Helper()
	await(t, "a session", func() bool { return q.sessions.get(other.self) != nil })
	return q.sessions.get(other.self)
}

// moveStream opens a stream from q for a session to go on with.
func (q *quiet) moveStream(t *testing.T, other *quiet) network.Stream {
	t.Helper()
	return q.stream(t, other, protocol.ID(protocol.NameMove, 2))
}

func (q *quiet) stream(t *testing.T, other *quiet, id string) network.Stream {
	t.Helper()
	s, err := q.sessions.openStream(other.Node.host.ID(), libp2pproto.ID(id))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Both sides send while a session moves, whichever of the two streams is the slower one: each message comes once, in its order, on one session, and
// beats go on.
func TestMove(t *testing.T) {
	t.Parallel()
	const messages = 600
	for _, slow := range []string{"", protocol.NamePeer, protocol.NameMove} {
		t.Run("slow "+slow, func(t *testing.T) {
			t.Parallel()
			low, high := quietPair(t)
			for _, q := range []*quiet{low, high} {
				q.sessions.start()
			}
			a, b := low.session(t, high), high.session(t, low)
			await(t, "both have met", func() bool { return count[tasks.PeerUp](low) == 1 && count[tasks.PeerUp](high) == 1 })
			send := func(s *session, from, to int) {
				for i := from; i < to; i++ {
					var m protocol.Message = &protocol.Load{Pending: uint64(i)}
					if i%20 == 0 { // more than a piece
						m = &protocol.Result{Outcomes: []*protocol.Outcome{
							{Job: make([]byte, 16), Status: protocol.Status_OK, Index: uint32(i), Output: make([]byte, 8<<10)},
							{Job: make([]byte, 16), Status: protocol.Status_OK},
						}}
					}
					s.enqueue(tasks.Outgoing{Peer: s.node, Session: s.id, Message: m})
				}
			}
			for _, s := range []*session{a, b} {
				s.enqueue(tasks.Outgoing{Peer: s.node, Session: s.id, Message: &protocol.Beat{}, Again: int64(20 * time.Millisecond)})
				send(s, 0, messages/3)
			}
			var open []func()
			if slow != "" {
				for _, q := range []*quiet{low, high} {
					open = append(open, q.hold(t, protocol.ID(slow, 2)))
				}
			}
			if err := a.moveTo(low.moveStream(t, high)); err != nil {
				t.Fatal(err)
			}
			send(a, messages/3, 2*messages/3)
			send(b, messages/3, 2*messages/3)
			await(t, "all that can be is under way", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return len(a.queue) == 0
			})
			for _, f := range open {
				f()
			}
			send(a, 2*messages/3, messages)
			send(b, 2*messages/3, messages)
			for _, q := range []*quiet{low, high} {
				await(t, "all came", func() bool { return len(q.read()) >= messages })
				for i, m := range q.read() {
					at := -1
					switch m := m.(type) {
					case *protocol.Load:
						at = int(m.Pending)
					case *protocol.Result:
						at = int(m.Outcomes[0].Index)
					}
					if at != i {
						t.Fatalf("message %d came in place %d", at, i)
					}
				}
			}
			before := []int{low.beats(), high.beats()}
			await(t, "beats go on", func() bool { return low.beats() > before[0]+2 && high.beats() > before[1]+2 })
			for q, s := range map[*quiet]*session{low: a, high: b} {
				if count[tasks.PeerUp](q) != 1 || count[tasks.PeerDown](q) != 0 || q.sessions.get(s.node) != s {
					t.Errorf("%d sessions began, %d ended", count[tasks.PeerUp](q), count[tasks.PeerDown](q))
				}
				if len(q.read()) != messages {
					t.Errorf("%d messages of %d", len(q.read()), messages)
				}
				if s.pings.roundTrip() == 0 || s.heardAge() > time.Second {
					t.Errorf("round trip %v, heard %v ago", s.pings.roundTrip(), s.heardAge())
				}
				await(t, "nothing is left on the first stream", func() bool { // nor the stream itself, which would keep a relayed connection
					for _, st := range s.conn().GetStreams() {
						if protocol.VersionOf(protocol.NamePeer, string(st.Protocol())) != 0 {
							return false
						}
					}
					return true
				})
			}
			// A clean end, on the stream that it is on now.
			low.sessions.say(&protocol.Bye{Reason: "the end"}, time.Second, time.Second)
			await(t, "a clean end", func() bool {
				high.mu.Lock()
				defer high.mu.Unlock()
				down, is := high.events[len(high.events)-1].(tasks.PeerDown)
				return is && down.Clean
			})
		})
	}
}

func frames(ms ...protocol.Message) (all []byte) {
	for _, m := range ms {
		all = must(protocol.AppendMessage(all, m))
	}
	return all
}

// What can go wrong on the way, by a peer's fault or not: the session ends, or goes on where it was, the reason is logged, and the next stream with
// Hellos is as good as any.
func TestMoveGoesWrong(t *testing.T) {
	t.Parallel()
	type side struct {
		t         *testing.T
		low, high *quiet
		old       network.Stream
	}
	next := func(x *side, ms ...protocol.Message) network.Stream {
		s := x.low.moveStream(x.t, x.high)
		if _, err := s.Write(frames(ms...)); err != nil {
			x.t.Fatal(err)
		}
		return s
	}
	write := func(x *side, s network.Stream, ms ...protocol.Message) {
		if _, err := s.Write(frames(ms...)); err != nil {
			x.t.Fatal(err)
		}
	}
	closed := func(x *side, s network.Stream) {
		x.t.Helper()
		s.SetReadDeadline(time.Now().Add(2 * moveTime))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
			x.t.Errorf("not reset: %v", err)
		}
	}
	taken := func(x *side) {
		x.t.Helper()
		await(x.t, "the stream was taken", func() bool { return len(x.high.session(x.t, x.low).streams()) == 2 })
	}
	one, two := &protocol.Move{Id: 1}, &protocol.Move{Id: 2}
	for name, c := range map[string]struct {
		do    func(x *side)
		lives bool // the session goes on
		fault bool // the peer's
	}{
		"the other stream does not come":     {do: func(x *side) { write(x, x.old, one) }},
		"the first stream does not end":      {do: func(x *side) { closed(x, next(x, one)) }},
		"the first stream breaks":            {do: func(x *side) { s := next(x, one); taken(x); x.old.Reset(); closed(x, s) }},
		"the other stream breaks":            {do: func(x *side) { s := next(x, one); taken(x); write(x, x.old, one); s.Reset() }},
		"the other stream ends":              {do: func(x *side) { s := next(x, one); taken(x); write(x, x.old, one); s.Close() }},
		"another move":                       {do: func(x *side) { s := next(x, one); taken(x); write(x, x.old, two); closed(x, s) }, fault: true},
		"twice on the other stream":          {do: func(x *side) { s := next(x, one, one); write(x, x.old, one); closed(x, s) }, fault: true},
		"no move first":                      {do: func(x *side) { closed(x, next(x, &protocol.Load{})) }, fault: true, lives: true},
		"a hello first":                      {do: func(x *side) { closed(x, next(x, &protocol.Hello{})) }, fault: true, lives: true},
		"nothing first":                      {do: func(x *side) { closed(x, next(x)) }, lives: true},
		"two streams at once":                {do: func(x *side) { next(x, one); taken(x); closed(x, next(x, two)); write(x, x.old, one) }, fault: true, lives: true},
		"a stream of another version":        {do: func(x *side) { x.high.session(x.t, x.low).version = 3; closed(x, next(x, one)) }, fault: true, lives: true},
		"a move of the side that opens none": {do: func(x *side) { s := x.high.moveStream(x.t, x.low); s.Write(frames(one)); closed(x, s) }, fault: true, lives: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			low, high := quietPair(t)
			x := &side{t, low, high, nil}
			hello := &protocol.Hello{Version: 2, Epoch: 1, Incarnation: low.incarnation}
			low.Node.host.SetStreamHandler(libp2pproto.ID(protocol.ID(protocol.NameMove, 2)), low.sessions.incomingMove)
			begin := func() {
				x.old = low.stream(t, high, protocol.PeerProtocol)
				write(x, x.old, hello)
				if _, err := protocol.ReadMessage(bufio.NewReader(x.old)); err != nil {
					t.Fatal(err)
				}
			}
			high.sessions.start()
			begin()
			first := high.session(t, low)
			c.do(x)
			if !c.lives {
				await(t, "the session ends", func() bool { return count[tasks.PeerDown](high) == 1 && high.sessions.get(low.self) == nil })
				begin()
				await(t, "a new session", func() bool { return high.sessions.get(low.self) != nil && count[tasks.PeerUp](high) == 2 })
			} else if high.sessions.get(low.self) != first || count[tasks.PeerDown](high) != 0 {
				t.Error("the session ended")
			}
			if got := logged(high.Node, "peer broke the protocol") || logged(low.Node, "peer broke the protocol"); got != c.fault {
				t.Errorf("logged as the peer's fault: %v, want %v", got, c.fault)
			}
		})
	}
	t.Run("no session", func(t *testing.T) {
		t.Parallel()
		low, high := quietPair(t)
		high.sessions.start()
		x := &side{t, low, high, nil}
		closed(x, next(x, one))
	})
	t.Run("the side that did not open the stream ends it", func(t *testing.T) {
		t.Parallel()
		low, high := quietPair(t)
		high.Node.host.SetStreamHandler(protocol.PeerProtocol, func(s network.Stream) {
			s.Write(frames(&protocol.Hello{Version: 2, Epoch: 1, Incarnation: high.incarnation}, one))
		})
		low.sessions.start()
		await(t, "the session ends, and another begins", func() bool { return count[tasks.PeerDown](low) > 0 && count[tasks.PeerUp](low) > 1 })
		if !logged(low.Node, "a move that nobody began") {
			t.Error("nobody says why")
		}
	})
}

// When a direct connection comes beside a relayed one, the session moves to it; one of version 1 ends, and the next is on it.
func TestFollow(t *testing.T) {
	t.Parallel()
	for _, version := range []int{2, 1} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			t.Parallel()
			relay, stop := startIn(t, t.TempDir(), "relay", 0, func(c *Config) { c.Announce = []string{"relay.example:4001"} })
			t.Cleanup(stop)
			await(t, "it relays", func() bool { return slices.Contains(relay.host.Mux().Protocols(), proto.ProtoIDv2Hop) })
			low, high := twoQuiet(t, relay)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			at := peer.AddrInfo{ID: relay.host.ID(), Addrs: relay.host.Network().ListenAddresses()}
			if _, err := client.Reserve(ctx, high.Node.host, at); err != nil {
				t.Fatal(err)
			}
			low.Node.host.Peerstore().AddAddrs(at.ID, at.Addrs, time.Hour)
			low.connect(t, high, members.CircuitThrough(at.ID))
			high.sessions.start()
			if version == 1 {
				high.Node.host.RemoveStreamHandler(protocol.PeerProtocol)
			}
			low.sessions.start()
			s := low.session(t, high)
			if _, through := discovery.Relayed(s.conn()); !through || s.version != version {
				t.Fatalf("version %d at %v", s.version, s.conn().RemoteMultiaddr())
			}
			b := high.session(t, low)
			b.enqueue(tasks.Outgoing{Peer: b.node, Session: b.id, Message: &protocol.Beat{}, Again: int64(time.Second)})
			await(t, "they have met", func() bool { return low.beats() > 0 })
			low.connect(t, high, high.Node.host.Addrs()...)
			await(t, "a session on the direct connection, at both ends", func() bool {
				for _, s := range []*session{low.sessions.get(high.self), high.sessions.get(low.self)} {
					if s == nil {
						return false
					}
					if _, through := discovery.Relayed(s.conn()); through {
						return false
					}
				}
				return true
			})
			for _, q := range []*quiet{low, high} {
				if ended := count[tasks.PeerDown](q); ended != 2-version {
					t.Errorf("%d sessions ended", ended)
				}
			}
		})
	}
}

// Jobs go both ways, and both ways of the first stream are slow at the moment of the move: every task runs once.
func TestTasksRunOnceInAMove(t *testing.T) {
	t.Parallel()
	var nodes []*Node
	var gs []*gates
	for _, name := range []string{"a", "b"} {
		n := open(t, t.TempDir(), name, 2)
		gs = append(gs, gated(n))
		nodes = append(nodes, n)
		t.Cleanup(run(t, n))
	}
	join(t, nodes[0], nodes[1])
	low, high := nodes[0], nodes[1]
	if low.host.ID() > high.host.ID() {
		low, high = high, low
	}
	for round := range 3 {
		s := low.sessions.get(high.self)
		var jobs sync.WaitGroup
		for _, n := range nodes {
			jobs.Go(func() {
				results, job := submit(t, n, "sum_primes.wasm", numbers(1500), func(s *JobSpec) { s.Placement.RemoteOnly = true })
				for _, r := range results {
					if r.Attempts != 1 {
						t.Errorf("round %d: task %d had %d attempts", round, r.Index, r.Attempts)
					}
				}
				if job.State != "done" {
					t.Errorf("round %d: %+v", round, job)
				}
			})
		}
		for _, n := range []*Node{low, high} {
			await(t, "tasks run", func() bool { st, err := n.Status(t.Context()); return err == nil && st.Running > 0 })
		}
		open := []func(){gs[0].hold(t, protocol.PeerProtocol), gs[1].hold(t, protocol.PeerProtocol)}
		next, err := low.sessions.openStream(high.host.ID(), libp2pproto.ID(protocol.ID(protocol.NameMove, 2)))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.moveTo(next); err != nil {
			t.Fatal(err)
		}
		// What they answer and grant meanwhile is on its way, on either stream. No longer: leases take 3 s.
		for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			a, errA := low.Status(t.Context())
			b, errB := high.Status(t.Context())
			if errA == nil && errB == nil && min(a.Results, b.Results) >= 10 {
				break
			}
		}
		for _, f := range open {
			f()
		}
		jobs.Wait()
		if low.sessions.get(high.self) != s {
			t.Errorf("round %d: the session ended", round)
		}
		s.end(errors.New("the next round")) // a session moves once
		await(t, "the next session", func() bool {
			now, there := low.sessions.get(high.self), high.sessions.get(low.self)
			return now != nil && now != s && there != nil && fmt.Sprint(peerOf(t, low, high).State, peerOf(t, high, low).State) == "connectedconnected"
		})
	}
}
