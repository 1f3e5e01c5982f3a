package node

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"meshnode/protocol"
	"meshnode/tasks"
)

// rawPair is two members; the stream that it returns goes from the one with the lower ID to the other, in place of
// that pair's own.
func rawPair(t *testing.T) (sender, victim *Node, s network.Stream) {
	a, b := start(t, "a", 1), start(t, "b", 1)
	join(t, a, b)
	low, high := a, b
	if peer.ID(low.host.ID()) > peer.ID(high.host.ID()) {
		low, high = high, low
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := low.host.NewStream(ctx, high.host.ID(), protocol.PeerProtocol)
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(4 * time.Second))
	return low, high, s
}

// What a member may not send closes its stream, at once, and the node lives.
func TestBrokenFramesCloseTheStream(t *testing.T) {
	t.Parallel()
	load := must(protocol.AppendMessage(nil, &protocol.Load{Epoch: 1, Pending: 5}))
	for name, c := range map[string]struct {
		hello  bool
		frames []byte
	}{
		"no hello first":  {false, load},
		"unknown kind":    {true, []byte{200, 1, 0}},
		"endless length":  {true, []byte{byte(protocol.KindBeat), 0xff, 0xff, 0xff, 0xff, 0x7f}},
		"not a message":   {false, []byte{byte(protocol.KindHello), 3, 0xff, 0xff, 0xff}},
		"a second hello":  {true, must(protocol.AppendMessage(nil, &protocol.Hello{Version: 1}))},
		"a broken result": {true, []byte{byte(protocol.KindResult), 2, 0x0a, 0x7f}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sender, v, s := rawPair(t)
			var frames []byte
			if c.hello {
				frames = must(protocol.AppendMessage(nil, &protocol.Hello{Version: 1, Epoch: 1, Incarnation: sender.incarnation, Slots: 1}))
			}
			if _, err := s.Write(append(frames, c.frames...)); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(4 * time.Second); !logged(v, "peer broke the protocol"); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the stream was not closed, or nobody said why")
				}
			}
			if _, err := v.Status(context.Background()); err != nil {
				t.Errorf("the node does not answer any more: %v", err)
			}
		})
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// A second process with the identity of a peer that is alive is refused, with the reason.
func TestSecondProcessOfOneIdentityIsRefused(t *testing.T) {
	t.Parallel()
	_, victim, s := rawPair(t)
	hello := must(protocol.AppendMessage(nil, &protocol.Hello{Version: 1, Epoch: 1, Incarnation: 99, Slots: 1}))
	if _, err := s.Write(hello); err != nil {
		t.Fatal(err)
	}
	r := &byteReader{s}
	if _, err := protocol.ReadMessage(r); err != nil { // its hello
		t.Fatal(err)
	}
	m, err := protocol.ReadMessage(r)
	if err != nil {
		t.Fatal(err)
	}
	if bye, ok := m.(*protocol.Bye); !ok || bye.Reason == "" {
		t.Errorf("answered with %T %v, want a Bye with a reason", m, m)
	}
	if st, err := victim.Status(context.Background()); err != nil || st.Peers != 1 {
		t.Errorf("the process that was there first lost its place: %+v, %v", st, err)
	}
}

type byteReader struct{ network.Stream }

func (r *byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := r.Read(b[:])
	return b[0], err
}

// A peer that reads nothing costs bounded memory: its stream is closed.
func TestSlowReaderIsClosed(t *testing.T) {
	t.Parallel()
	a, b := start(t, "a", 1), start(t, "b", 1)
	join(t, a, b)
	s := a.sessions.get(b.self)
	big := &protocol.Result{}
	for range 15 {
		big.Outcomes = append(big.Outcomes, &protocol.Outcome{Job: make([]byte, 16), Status: protocol.Status_OK, Output: make([]byte, protocol.MaxInline)})
	}
	s.mu.Lock() // the writer takes nothing meanwhile
	n := 0
	for ; s.dead == nil && n < 1000; n++ {
		s.enqueueLocked(tasks.Outgoing{Peer: b.self, Session: s.id, Message: big})
	}
	dead := s.dead
	s.mu.Unlock()
	if dead == nil {
		t.Fatalf("%d messages of 1 MiB wait for a peer that does not read", n)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if now := a.sessions.get(b.self); now != nil && now != s {
			return // a new stream took its place
		}
		if time.Now().After(end) {
			t.Fatal("no new stream after the slow one")
		}
	}
}
