package tasks

import (
	"math"
	"testing"

	"meshnode/protocol"
)

// Whatever a transfer looked like, what the next one costs is a time: at least nothing, and never more than at the slowest.
func TestBytesOfAnySizeCostTime(t *testing.T) {
	t.Parallel()
	for _, bytes := range []uint64{0, 1, measuredFrom - 1, measuredFrom, 1 << 30, 1 << 40, math.MaxUint64} {
		for _, took := range []int64{math.MinInt64, -1, 0, 1, second, math.MaxInt64} {
			s := one(t, 1)
			member(s, 0, "b", 1, 1)
			s.Step(0, Transferred{Peer: "b", Bytes: bytes, Took: took})
			s.Step(0, Transferred{Peer: "nobody", Bytes: bytes, Took: took})
			p := s.peers["b"]
			if known := p.perMiB.n > 0; known != (bytes >= measuredFrom) {
				t.Errorf("%d bytes in %d ns: known %v", bytes, took, known)
			}
			last := int64(0)
			for _, next := range []uint64{0, 1, 1 << 20, 1 << 40, math.MaxUint64} {
				m := p.moving(next)
				if m < last || m > slowest*(mostBytes>>20) {
					t.Errorf("after %d bytes in %d ns, %d bytes need %d ns", bytes, took, next, m)
				}
				last = m
			}
		}
	}
	s := one(t, 1)
	member(s, 0, "b", 1, 1)
	s.Step(0, Transferred{Peer: "b", Bytes: 10 << 20, Took: second})
	if m := s.peers["b"].moving(20 << 20); m < 1900*millisecond || m > 2100*millisecond {
		t.Errorf("20 MiB at 10 MiB/s need %d ns", m)
	}
}

// A peer to which a job's input needs longer than others need for the whole of it gets none of it, until nobody else works.
func TestTooFarForItsInput(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	member(s, 0, "b", 1, 1)
	s.Step(0, Transferred{Peer: "b", Bytes: 10 << 20, Took: 10 * second})
	id := protocol.JobID{1}
	in := make([]Input, 3)
	for i := range in {
		in[i].Blob = &protocol.Blob{Id: make([]byte, 32), Size: 5 << 20} // 5 s
	}
	if err := s.Step(0, Submit{Job: id, Spec: spec(id), Inputs: in, Close: true, Count: 3}); err != nil {
		t.Fatal(err)
	}
	grants := func(r Ready) int {
		n := 0
		for _, m := range r.Messages {
			if g, ok := m.Message.(*protocol.Grant); ok {
				n += len(grantsOf(g))
			}
		}
		return n
	}
	if n := grants(s.Ready()); n > 0 {
		t.Fatalf("%d tasks granted whose input needs 5 s to get there", n)
	}
	s.Step(0, Prepared{Origin: "a", Job: id})
	check(t, s)
	s.Step(0, SetPaused{"on battery"})
	if n := grants(s.Ready()); n != 1 {
		t.Errorf("%d tasks granted when nobody else works", n)
	}
	check(t, s)
}

// What tasks share costs a node its first one only; what one reads alone costs each.
func TestSharedBytesCostOnce(t *testing.T) {
	t.Parallel()
	s := one(t, 1)
	member(s, 0, "b", 1, 4)
	s.Step(0, Transferred{Peer: "b", Bytes: 10 << 20, Took: second})
	id := protocol.JobID{1}
	shared := &protocol.Blob{Id: make([]byte, 32), Size: 100 << 20} // 10 s
	in := make([]Input, 10)
	for i := range in {
		own := make([]byte, 32)
		own[0] = byte(i + 1)
		in[i].Blobs = []*protocol.Blob{shared, {Id: own, Size: 1 << 20}} // and 100 ms
	}
	s.Step(0, SetPaused{"on battery"}) // nobody else works
	if err := s.Step(0, Submit{Job: id, Spec: spec(id), Inputs: in, Close: true, Count: 10}); err != nil {
		t.Fatal(err)
	}
	j, p := s.jobs[id], s.peers["b"]
	about := func(what string, got, want int64) {
		t.Helper()
		if got < want*95/100 || got > want*105/100 {
			t.Errorf("%s: %d ms, want %d", what, got/millisecond, want/millisecond)
		}
	}
	about("before anything is there", s.missing(p, j), 10*second+100*millisecond)
	granted := false
	for _, m := range s.Ready().Messages {
		if g, ok := m.Message.(*protocol.Grant); ok {
			granted = true
			if bs := g.Jobs[0].Tasks[0].Blobs; len(bs) != 2 || bs[0].Size != 100<<20 {
				t.Errorf("the grant names %v", bs)
			}
		}
	}
	if !granted {
		t.Fatal("nothing was granted")
	}
	about("with what they share there", s.missing(p, j), 100*millisecond)
	check(t, s)
}
