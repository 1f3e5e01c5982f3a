package members

import (
	"net"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-yamux/v5"
)

// Traffic is what comes over a connection, whatever stream it is for: a peer whose large blob fills the link is not silent. A
// connection of a host with TransportOptions gives it to As(**Traffic). Its methods may be called concurrently.
type Traffic struct {
	in      atomic.Uint64
	session *yamux.Session
}

// Heard is how many bytes have come so far.
func (t *Traffic) Heard() uint64 { return t.in.Load() }

// Ping has the other side answer, and returns when it has, or after some 10 s with an error. Every yamux answers, without its
// program's doing.
func (t *Traffic) Ping() error {
	_, err := t.session.Ping()
	return err
}

// countedMuxer is yamux that counts what comes. Its own keepalive stays as it is: each frame puts it off for 30 s, so with beats
// every five it never speaks.
type countedMuxer struct{ network.Multiplexer }

// NewConn implements network.Multiplexer.
func (m countedMuxer) NewConn(c net.Conn, isServer bool, scope network.PeerScope) (network.MuxedConn, error) {
	t := &Traffic{}
	mux, err := m.Multiplexer.NewConn(&countedConn{c, t}, isServer, scope)
	if err != nil {
		return nil, err
	}
	mux.As(&t.session)
	return &countedMux{mux, t}, nil
}

type countedConn struct {
	net.Conn
	t *Traffic
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.t.in.Add(uint64(n))
	return n, err
}

type countedMux struct {
	network.MuxedConn
	t *Traffic
}

// As implements network.MuxedConn.
func (c *countedMux) As(target any) bool {
	if t, ok := target.(**Traffic); ok {
		*t = c.t
		return true
	}
	return c.MuxedConn.As(target)
}
