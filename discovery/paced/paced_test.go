package paced

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	mux "github.com/libp2p/go-libp2p/p2p/muxer/yamux"
)

// link is a cable that carries so many bytes a second, with so much of them in its queue as routers have, and so long a delay.
type link struct {
	rate  float64 // bytes a second; 0: as fast as the machine
	delay time.Duration
	queue int // bytes
}

// pair connects two multiplexers over TCP on loopback, through a proxy that is the link in each direction.
func pair(t testing.TB, l link, m network.Multiplexer) (a, b network.MuxedConn) {
	t.Helper()
	accept := func() (net.Listener, chan net.Conn) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		ch := make(chan net.Conn, 1)
		go func() {
			if c, err := ln.Accept(); err == nil {
				ch <- c
			}
		}()
		return ln, ch
	}
	dial := func(ln net.Listener) net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	far, farCh := accept()
	var near net.Conn
	if l.rate == 0 {
		near = dial(far)
	} else {
		mid, midCh := accept()
		near = dial(mid)
		p1, p2 := <-midCh, dial(far)
		// Small buffers: what waits does so in the link's queue, or where it comes from.
		for _, c := range []net.Conn{p1, p2} {
			c.(*net.TCPConn).SetReadBuffer(32 << 10)
			c.(*net.TCPConn).SetWriteBuffer(32 << 10)
		}
		go l.carry(p1, p2)
		go l.carry(p2, p1)
	}
	end := <-farCh
	t.Cleanup(func() { end.Close() })
	a, err := m.NewConn(near, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = m.NewConn(end, true, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func (l link) carry(from, to net.Conn) {
	type piece struct {
		b  []byte
		at time.Time // when it leaves
	}
	const size = 4 << 10
	queue := make(chan piece, max(1, l.queue/size))
	go func() {
		defer to.Close()
		for p := range queue {
			time.Sleep(time.Until(p.at))
			if _, err := to.Write(p.b); err != nil {
				from.Close()
			}
		}
	}()
	defer close(queue)
	free := time.Now()
	for {
		b := make([]byte, size)
		n, err := from.Read(b)
		if n > 0 {
			if now := time.Now(); free.Before(now) {
				free = now
			}
			free = free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
			queue <- piece{b[:n], free.Add(l.delay)}
			// The queue is as long as it is: what it does not hold waits at the sender.
			if over := time.Until(free) - time.Duration(float64(l.queue)/l.rate*float64(time.Second)); over > 0 {
				time.Sleep(over)
			}
		}
		if err != nil {
			return
		}
	}
}

func serve(c network.MuxedConn) {
	for {
		s, err := c.AcceptStream()
		if err != nil {
			return
		}
		go func() {
			defer s.Close()
			kind := make([]byte, 1)
			if _, err := io.ReadFull(s, kind); err != nil {
				return
			}
			if kind[0] == 'b' { // bulk: takes it
				io.Copy(io.Discard, s)
				return
			}
			b := make([]byte, 64) // a beat: answers it
			for {
				if _, err := io.ReadFull(s, b); err != nil {
					return
				}
				if _, err := s.Write(b); err != nil {
					return
				}
			}
		}()
	}
}

// crowd sends bulk both ways, two streams each, for so long, with small messages there and back in between. It returns the times
// that these took, sorted, and how much went each way.
func crowd(t testing.TB, a, b network.MuxedConn, long time.Duration) (trips []time.Duration, carried [2]float64) {
	go serve(a)
	go serve(b)
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	var wait sync.WaitGroup
	var bytes [2]atomic.Int64
	for i, c := range []network.MuxedConn{a, b} {
		for range 2 {
			s, err := c.OpenStream(ctx)
			if err != nil {
				t.Fatal(err)
			}
			wait.Go(func() {
				defer s.Reset()
				buf := make([]byte, 64<<10)
				s.Write([]byte{'b'})
				for ctx.Err() == nil {
					s.SetWriteDeadline(time.Now().Add(10 * time.Second))
					n, err := s.Write(buf)
					bytes[i].Add(int64(n))
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	s, err := a.OpenStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	s.Write([]byte{'s'})
	msg := make([]byte, 64)
	began := time.Now()
	for time.Since(began) < long {
		at := time.Now()
		if _, err := s.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, msg); err != nil {
			t.Fatal(err)
		}
		trips = append(trips, time.Since(at))
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	took := time.Since(began).Seconds()
	wait.Wait()
	slices.Sort(trips)
	return trips, [2]float64{float64(bytes[0].Load()) / took, float64(bytes[1].Load()) / took}
}

func at(d []time.Duration, percent int) time.Duration { return d[len(d)*percent/100] }

var links = []struct {
	name string
	link link
}{
	{"loopback", link{}},
	{"20 Mbit/s, 30 ms", link{rate: 2.5e6, delay: 15 * time.Millisecond, queue: 1 << 20}},
	{"100 Mbit/s, 100 ms", link{rate: 12.5e6, delay: 50 * time.Millisecond, queue: 4 << 20}},
	{"1 Mbit/s, 40 ms", link{rate: 125e3, delay: 20 * time.Millisecond, queue: 256 << 10}},
}

// By hand: what pacing does, beside yamux alone. MESHNODE_PACED=1 go test -v -run TestCompare ./discovery/paced
func TestCompare(t *testing.T) {
	if os.Getenv("MESHNODE_PACED") == "" {
		t.Skip("by hand, with MESHNODE_PACED=1: a comparison, and on a machine with nothing else to do")
	}
	for _, l := range links {
		for _, m := range []struct {
			name string
			m    network.Multiplexer
		}{{"yamux", mux.DefaultTransport}, {"paced", Transport{}}} {
			a, b := pair(t, l.link, m.m)
			trips, carried := crowd(t, a, b, 6*time.Second)
			t.Logf("%-20s %s: %.2f and %.2f MB/s, small messages p50 %v, p99 %v, most %v (%d)", l.name, m.name, carried[0]/1e6, carried[1]/1e6,
				at(trips, 50).Round(100*time.Microsecond), at(trips, 99).Round(100*time.Microsecond), trips[len(trips)-1].Round(100*time.Microsecond), len(trips))
			a.Close()
			b.Close()
		}
	}
}

// While bulk goes both ways, a message there and back takes a fraction of the 3 s that a lease lasts, on a slow link too; without pacing it
// takes more than a second there. The goal on the first is 30 ms, on a quiet machine.
func TestBulkLeavesRoom(t *testing.T) {
	for _, c := range []struct {
		link     link
		p50, p99 time.Duration
		carried  float64 // bytes a second, each way
	}{
		{links[0].link, 300 * time.Millisecond, time.Second, 1e6},
		{links[1].link, 400 * time.Millisecond, 1500 * time.Millisecond, 0.4e6},
	} {
		a, b := pair(t, c.link, Transport{})
		trips, carried := crowd(t, a, b, 3*time.Second)
		t.Logf("%+v: %.2f and %.2f MB/s, small messages p50 %v, p99 %v (%d)", c.link, carried[0]/1e6, carried[1]/1e6, at(trips, 50), at(trips, 99), len(trips))
		if at(trips, 50) > c.p50 || at(trips, 99) > c.p99 {
			t.Errorf("%+v: p50 %v, p99 %v, want %v, %v", c.link, at(trips, 50), at(trips, 99), c.p50, c.p99)
		}
		if min(carried[0], carried[1]) < c.carried {
			t.Errorf("%+v: %v bytes a second, want %v", c.link, carried, c.carried)
		}
	}
}

// What is written arrives, whole and in order, however large the pieces, on many streams at once; and afterwards nothing counts as
// under way.
func TestArrives(t *testing.T) {
	t.Parallel()
	a, b := pair(t, link{}, Transport{})
	go func() {
		for {
			s, err := b.AcceptStream()
			if err != nil {
				return
			}
			go func() { // gives back what comes
				io.Copy(s, s)
				s.CloseWrite()
			}()
		}
	}()
	var wait sync.WaitGroup
	for seed := range uint64(8) {
		wait.Go(func() {
			s, err := a.OpenStream(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			r := rand.New(rand.NewPCG(seed, 1))
			data := make([]byte, 3<<20)
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			wait.Go(func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+r.IntN(200<<10))
					if m, err := s.Write(rest[:n]); m != n || err != nil {
						t.Error(m, err)
						break
					}
					rest = rest[n:]
				}
				s.CloseWrite()
			})
			back, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(back, data) {
				t.Errorf("%d bytes came back of %d: %v", len(back), len(data), err)
			}
		})
	}
	wait.Wait()
	for _, c := range []network.MuxedConn{a, b} {
		p := c.(*conn).p
		if q, s := p.queued.Load(), p.sent.Load(); q != s || q != 8*3<<20 {
			t.Errorf("%d bytes queued, %d sent, want %d", q, s, 8*3<<20)
		}
		if _, err := p.session.Ping(); err != nil {
			t.Error(err)
		}
		if q, arrived := p.queued.Load(), p.pinged.Load(); q != arrived {
			t.Errorf("%d bytes under way", q-arrived)
		}
	}
}

// Who waits for the window stops waiting at its deadline, when its stream is reset, and when the connection ends.
func TestStopsWaiting(t *testing.T) {
	t.Parallel()
	waits := func(p *pace) {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			p.mu.Lock()
			n := len(p.waiting)
			p.mu.Unlock()
			if n > 0 {
				return
			}
			if time.Now().After(end) {
				t.Fatal("nobody waits for the window")
			}
		}
	}
	for name, stop := range map[string]func(c network.MuxedConn, s network.MuxedStream){
		"deadline": func(_ network.MuxedConn, s network.MuxedStream) {
			s.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		},
		"reset": func(_ network.MuxedConn, s network.MuxedStream) { s.Reset() },
		"close": func(c network.MuxedConn, _ network.MuxedStream) { c.Close() },
	} {
		// So slow that all of it never goes, and nobody reads.
		a, _ := pair(t, link{rate: 50e3, queue: 8 << 10, delay: time.Second}, Transport{})
		s, err := a.OpenStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := s.Write(make([]byte, 200<<10))
			ended <- err
		}()
		p := a.(*conn).p
		waits(p)
		stop(a, s)
		select {
		case err := <-ended:
			if err == nil || name == "deadline" && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: it still waits", name)
		}
		p.mu.Lock()
		if len(p.waiting) != 0 && name != "close" {
			t.Errorf("%s: %d wait", name, len(p.waiting))
		}
		p.mu.Unlock()
		if name == "deadline" { // the stream is good for more
			s.SetWriteDeadline(time.Time{})
			if _, err := s.Write([]byte{1}); err != nil {
				t.Error(err)
			}
		}
	}
}
