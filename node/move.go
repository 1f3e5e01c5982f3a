package node

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"

	"meshnode/discovery"
	"meshnode/protocol"
)

// A session that goes through a relay moves to a direct connection once there is one, and nobody above it notices. The side that opened
// its stream opens another one, ends what it writes on the first with a Move, and writes on on the second, which begins with the same
// Move. The other side reads the first to that Move, then the second, and then does the same with what it writes. So each direction keeps
// its order, and nothing is lost or said twice. Whatever goes wrong on the way ends the session, like a lost one: Hellos heal that.

// fromVersion2 are the IDs of a protocol that version 1 has not.
func (n *Node) fromVersion2(name string) []libp2pproto.ID {
	vs := slices.DeleteFunc(slices.Clone(n.members.Speaks()), func(v int) bool { return v < 2 })
	return libp2pproto.ConvertFromStrings(vs.IDs(name))
}

// follow has a session move when better says that there is a direct connection.
func (ss *sessions) follow(s *session, better <-chan struct{}) {
	// A new stream may overtake our Hello, and would belong to no session there.
	select {
	case <-s.met:
	case <-s.flushed:
		return
	}
	for {
		select {
		case <-better:
		case <-s.flushed:
			return
		}
		if _, through := discovery.Relayed(s.stream.Conn()); !through {
			continue
		}
		if s.version < 2 {
			s.end(errors.New("there is a direct connection now: the stream is opened anew")) // at once, and with Hellos
			return
		}
		next, err := ss.openStream(s.peer, libp2pproto.ID(protocol.ID(protocol.NameMove, s.version)))
		if err != nil {
			continue // the connection is gone again; if not, the relayed one is closed before long, and that opens a stream anew
		}
		if _, through := discovery.Relayed(next.Conn()); through {
			next.Reset()
			continue
		}
		if err := s.moveTo(next); err != nil {
			ss.n.log.Debug("session not moved", "peer", s.peer, "err", err)
			continue
		}
		return
	}
}

// moveTo begins the move to a stream that this side has opened.
func (s *session) moveTo(next network.Stream) error {
	m := &protocol.Move{Id: rand.Uint64()}
	b, err := protocol.AppendMessage(nil, m)
	if err == nil {
		next.SetWriteDeadline(time.Now().Add(helloTimeout))
		_, err = next.Write(b)
	}
	if err == nil {
		err = s.goOn(next, bufio.NewReaderSize(next, 16<<10), m.Id)
	}
	if err != nil {
		next.Reset()
	}
	return err
}

// incomingMove takes the stream that a session is to go on with.
func (ss *sessions) incomingMove(next network.Stream) {
	err := func() error {
		p := next.Conn().RemotePeer()
		if p >= ss.n.host.ID() {
			return fmt.Errorf("%w: we move the stream of this pair", protocol.ErrProtocol)
		}
		next.SetReadDeadline(time.Now().Add(helloTimeout))
		r := bufio.NewReaderSize(next, 16<<10)
		m, err := protocol.ReadMessage(r)
		if err != nil {
			return fmt.Errorf("read move: %w", err)
		}
		move, ok := m.(*protocol.Move)
		if !ok {
			return fmt.Errorf("%w: first frame is a %T, not a move", protocol.ErrProtocol, m)
		}
		next.SetReadDeadline(time.Time{})
		s := ss.get(protocol.NodeID(p.String()))
		if s == nil {
			return errors.New("there is no session to move") // it may just have ended
		}
		if v := protocol.VersionOf(protocol.NameMove, string(next.Protocol())); v != s.version {
			return fmt.Errorf("%w: a session of version %d goes on in version %d", protocol.ErrProtocol, s.version, v)
		}
		return s.goOn(next, r, move.Id)
	}()
	if err != nil {
		ss.readError(next, err)
		ss.n.log.Debug("stream ended", "peer", next.Conn().RemotePeer(), "err", err)
		next.Reset()
	}
}

// goOn says which stream the session goes on with: only one, ever, so a peer cannot have more of them kept here.
func (s *session) goOn(next network.Stream, r *bufio.Reader, id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.dead != nil || s.bye != nil:
		return errors.New("the session is ending")
	case s.next != nil:
		return fmt.Errorf("%w: a session moves once", protocol.ErrProtocol)
	}
	s.next, s.nextRead, s.moveID = next, r, id
	s.stream.SetReadDeadline(time.Now().Add(moveTime))
	close(s.came)
	s.signal()
	return nil
}

// turn is the reader's step to the other stream, when the first one has ended with m.
func (s *session) turn(m *protocol.Move) (*bufio.Reader, error) {
	if !s.opens { // this may be here before the beginning of the other stream
		select {
		case <-s.came:
		case <-s.flushed:
			return nil, errors.New("the session ended while it moved")
		case <-time.After(moveTime):
			return nil, errors.New("the stream that the session moves to does not come")
		}
	}
	s.mu.Lock()
	if s.next == nil || s.turned || m.Id != s.moveID {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: a move that nobody began", protocol.ErrProtocol)
	}
	s.turned = true
	s.signal()
	s.mu.Unlock()
	if s.opens {
		s.stream.Close() // the other side has read all of it: it turns first
	}
	s.n.log.Debug("stream moved to a direct connection", "peer", s.peer, "addr", s.next.Conn().RemoteMultiaddr())
	return s.nextRead, nil
}

// turnWriter is what the writer is to turn to, and the last frame before that; nil: nothing now. The side that moves turns its writer
// first, the other one when its reader has got there.
func (s *session) turnWriter() (next network.Stream, last []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil || s.out == s.next || !s.opens && !s.turned {
		return nil, nil
	}
	last, _ = protocol.AppendMessage(nil, &protocol.Move{Id: s.moveID})
	return s.next, last
}

// whileMoving says of an error that it ended a move.
func (s *session) whileMoving(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil && !s.turned {
		return fmt.Errorf("while the session moved to another stream: %w", err)
	}
	return err
}
