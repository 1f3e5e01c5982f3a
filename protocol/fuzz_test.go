package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
)

// Whatever bytes come: no panic, a message or an error of one of three kinds; and what was read is what its
// own frame reads as again.
func FuzzReadMessage(f *testing.F) {
	for _, s := range samples() {
		f.Add(frame(f, s.m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		m, err := ReadMessage(r)
		if err != nil {
			if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrProtocol) {
				t.Fatalf("an error of no kind: %v", err)
			}
			if m != nil {
				t.Fatalf("%v with a message", err)
			}
			return
		}
		if k := Kind(b[0]); kindOf(m) != k {
			t.Fatalf("kind %d read as %T", k, m)
		}
		again, err := AppendMessage(nil, m)
		if err != nil {
			return // small on the wire only because of a form that we never write; over its limit in ours
		}
		n, err := ReadMessage(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("%v reads once, not twice: %v", m, err)
		}
		if !proto.Equal(m, n) {
			t.Fatalf("%v became %v", m, n)
		}
	})
}

func FuzzReadLocal(f *testing.F) {
	for _, s := range localSamples() {
		f.Add(AppendLocal(nil, s.t, s.id, s.body), 1<<10)
	}
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		if limit > MaxLocal {
			limit = MaxLocal // the largest that anybody passes
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		typ, id, body, err := ReadLocal(bytes.NewReader(b), limit)
		runtime.ReadMemStats(&after)
		if got, allow := after.TotalAlloc-before.TotalAlloc, uint64(max(limit, 0)+64<<10); got > allow {
			t.Fatalf("%d bytes allocated under a limit of %d", got, limit)
		}
		if err != nil {
			if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrProtocol) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if n := 4 + localHeader + len(body); !bytes.Equal(AppendLocal(nil, typ, id, body), b[:n]) {
			t.Fatalf("%x does not read as what it was", b[:n])
		}
	})
}

// An outcome either is refused or is made of exactly the body's bytes.
func FuzzParseWorkerDone(f *testing.F) {
	for _, s := range localSamples() {
		if s.t == WorkerDone {
			f.Add(s.body)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseWorkerDone(b)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if got := AppendWorkerDone(nil, 7, &o); !bytes.Equal(got, AppendLocal(nil, WorkerDone, 7, b)) {
			t.Fatalf("%x became %x", b, got)
		}
	})
}

// Any attempts come back from their groups as they were.
func FuzzGroupAttempts(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 4*attemptBytes))
	f.Add(seq(0, 5*attemptBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		var as []Attempt
		for ; len(b) >= attemptBytes; b = b[attemptBytes:] {
			as = append(as, Attempt{
				Job: JobID{b[0]}, Epoch: uint64(b[1]), // few values, so that runs come up
				N: binary.LittleEndian.Uint32(b[2:]), Index: binary.LittleEndian.Uint32(b[6:]),
			})
		}
		gs := GroupAttempts(as)
		if got := UngroupAttempts(gs); !slices.Equal(got, as) {
			t.Fatalf("%v became %v", as, got)
		}
		for i, g := range gs {
			if i > 0 && bytes.Equal(g.Job, gs[i-1].Job) && g.Epoch == gs[i-1].Epoch {
				t.Fatalf("groups %d and %d could be one", i-1, i)
			}
		}
	})
}

func FuzzWorkerRunFiles(f *testing.F) {
	for _, s := range localSamples() {
		if s.t == WorkerRunFiles {
			f.Add(s.body)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseWorkerRunFiles(b)
		if err != nil {
			return
		}
		if got := AppendWorkerRunFiles(nil, 7, &x); !bytes.Equal(got, AppendLocal(nil, WorkerRunFiles, 7, b)) {
			t.Fatalf("%x became %x", b, got)
		}
	})
}

const attemptBytes = 10

func FuzzParseIDs(f *testing.F) {
	f.Add(JobID(seq(1, 16)).String())
	f.Add(BlobID(seq(1, 32)).String())
	f.Fuzz(func(t *testing.T, s string) {
		if j, err := ParseJobID(s); err == nil {
			if k, err := ParseJobID(j.String()); err != nil || k != j {
				t.Fatalf("%q: %v, %v", s, k, err)
			}
		}
		if b, err := ParseBlobID(s); err == nil {
			if c, err := ParseBlobID(b.String()); err != nil || c != b {
				t.Fatalf("%q: %v, %v", s, c, err)
			}
		}
	})
}
