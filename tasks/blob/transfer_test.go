package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lukechampine.com/blake3"

	"meshnode/protocol"
)

// serve connects a stream to a store that serves; the other end is what Fetch gets.
func serve(t testing.TB, s *Store, allow func(protocol.BlobID) bool) net.Conn {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- Serve(a, s, func(id protocol.BlobID) Turn { return Turn{Refuse: allow != nil && !allow(id)} })
	}()
	t.Cleanup(func() {
		b.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Error("Serve does not return")
		}
		a.Close()
	})
	b.SetDeadline(time.Now().Add(20 * time.Second))
	return b
}

func blobOf(b []byte) *protocol.Blob {
	id := blake3.Sum256(b)
	return &protocol.Blob{Id: id[:], Size: uint64(len(b))}
}

var sizes = []int{0, 1, 1024, slice - 1, slice, slice + 1, 2 * slice, 2*slice + 1, 5*slice + 1000, 16 * slice, 33*slice - 1}

func TestFetch(t *testing.T) {
	t.Parallel()
	from, to := open(t, t.TempDir(), 100<<20), open(t, t.TempDir(), 100<<20)
	secret := content(100, 99)
	put(t, from, secret)
	conn := serve(t, from, func(id protocol.BlobID) bool { return id != blake3.Sum256(secret) })
	for i, n := range sizes { // all on one stream
		b := content(n, uint64(i))
		put(t, from, b)
		for range 2 { // the second is here already
			if err := Fetch(ctx, conn, blobOf(b), to); err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
		}
		check(t, to, b)
		for _, missing := range [][]byte{secret, content(5, 98)} {
			if err := Fetch(ctx, conn, blobOf(missing), to); !errors.Is(err, ErrNotFound) {
				t.Fatalf("not there, or not allowed: %v", err)
			}
		}
	}
	for _, i := range to.List() {
		if i.Pins != 2 {
			t.Errorf("%d pins after two fetches", i.Pins)
		}
	}
}

// flip changes a byte of what is read, at offset at; read counts all bytes. cut ends the stream before that offset.
type flip struct {
	net.Conn
	at, read int
	cut      bool
}

func (f *flip) Read(b []byte) (int, error) {
	if f.cut && f.read+len(b) > f.at {
		if b = b[:f.at-f.read]; len(b) == 0 {
			return 0, io.EOF
		}
	}
	n, err := f.Conn.Read(b)
	if i := f.at - f.read; !f.cut && i >= 0 && i < n {
		b[i] ^= 0x40
	}
	f.read += n
	return n, err
}

// A wrong byte anywhere is noticed before more than one slice after it was read, and nothing is kept.
func TestCorrupt(t *testing.T) {
	t.Parallel()
	b := content(9*slice+500, 1)
	from := open(t, t.TempDir(), 100<<20)
	put(t, from, b)
	total := 9 + 9*64 + len(b) // head; a parent less than slices; bytes
	for _, at := range []int{0, 1, 5, 9, 9 + 31, 9 + 64, 9 + 4*64, 9 + 4*64 + 1, 9 + 4*64 + slice - 1, 9 + 4*64 + slice, total / 2, total - 501, total - 500, total - 1} {
		to := open(t, t.TempDir(), 100<<20)
		conn := &flip{Conn: serve(t, from, nil), at: at}
		err := Fetch(ctx, conn, blobOf(b), to)
		want := ErrCorrupt
		if at == 0 {
			want = ErrProtocol
		}
		if !errors.Is(err, want) {
			t.Errorf("byte %d: %v, want %v", at, err, want)
		}
		if late := conn.read - at; late > slice {
			t.Errorf("byte %d: noticed %d bytes later", at, late)
		}
		empty(t, to)
		conn.Close()
	}
}

// A stream that ends early, anywhere, is an error, and the next fetch asks for the rest only.
func TestTruncatedAndResumed(t *testing.T) {
	t.Parallel()
	b := content(9*slice+500, 1)
	from := open(t, t.TempDir(), 100<<20)
	put(t, from, b)
	total := 9 + 9*64 + len(b)
	for _, at := range []int{0, 1, 8, 9, 100, 9 + 4*64, 9 + 4*64 + slice, total / 2, total - 501, total - 1} {
		to := open(t, t.TempDir(), 100<<20)
		conn := &flip{Conn: serve(t, from, nil), at: at, cut: true}
		if err := Fetch(ctx, conn, blobOf(b), to); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", at, err)
		}
		conn.Close()
		if to.Has(blake3.Sum256(b)) {
			t.Errorf("cut at %d: it is there", at)
		}
		kept := int(to.Occupied())
		if kept%slice != 0 || kept < at-2*slice-1000 {
			t.Errorf("cut at %d: %d bytes kept", at, kept)
		}
		if kept == 0 {
			empty(t, to)
		}
		// A wrong size does not take what was kept, and cannot be true.
		wrong := blobOf(b)
		wrong.Size++
		if err := Fetch(ctx, serve(t, from, nil), wrong, to); !errors.Is(err, ErrCorrupt) {
			t.Errorf("wrong size: %v", err)
		}
		again := &flip{Conn: serve(t, from, nil), at: -1}
		if err := Fetch(ctx, again, blobOf(b), to); err != nil {
			t.Errorf("cut at %d, then: %v", at, err)
			continue
		}
		if most := total - kept; again.read > most {
			t.Errorf("cut at %d: %d bytes the second time, want at most %d", at, again.read, most)
		}
		check(t, to, b)
		if to.Occupied() != int64(len(b)) || len(files(t, to)) != 1 {
			t.Errorf("%d bytes, files %v", to.Occupied(), files(t, to))
		}
	}
}

// What was kept of a broken fetch goes before any blob does.
func TestPartialGivesWay(t *testing.T) {
	t.Parallel()
	b := content(4*slice, 1)
	from, to := open(t, t.TempDir(), 1<<20), open(t, t.TempDir(), 5*slice)
	put(t, from, b)
	conn := &flip{Conn: serve(t, from, nil), at: 3*slice + 500, cut: true}
	if err := Fetch(ctx, conn, blobOf(b), to); err == nil || to.Occupied() != 3*slice {
		t.Fatalf("%v, %d bytes", err, to.Occupied())
	}
	put(t, to, content(4*slice, 2))
	if to.Occupied() != 4*slice || len(files(t, to)) != 1 {
		t.Errorf("%d bytes, files %v", to.Occupied(), files(t, to))
	}
}

// untouched fails the test if anything is sent.
type untouched struct{ t *testing.T }

func (u untouched) Read([]byte) (int, error)  { u.t.Error("read"); return 0, io.EOF }
func (u untouched) Write([]byte) (int, error) { u.t.Error("written"); return 0, io.EOF }

func TestHugeSize(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	id := make([]byte, 32)
	for _, c := range []struct {
		size uint64
		want error
	}{{1<<20 + 1, ErrFull}, {MaxSize, ErrFull}, {MaxSize + 1, ErrTooLarge}, {1 << 63, ErrTooLarge}, {1<<64 - 1, ErrTooLarge}, {0, ErrCorrupt}} {
		if err := Fetch(ctx, untouched{t}, &protocol.Blob{Id: id, Size: c.size}, s); !errors.Is(err, c.want) {
			t.Errorf("%d bytes: %v, want %v", c.size, err, c.want)
		}
	}
	for _, bad := range []*protocol.Blob{nil, {}, {Id: id[:31], Size: 1}} {
		if err := Fetch(ctx, untouched{t}, bad, s); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	// A source that claims another size than it was asked for, and sends for ever.
	conn, other := net.Pipe()
	go func() {
		io.ReadFull(other, make([]byte, requestSize))
		other.Write([]byte{answerBlob, 255, 255, 255, 255, 255, 255, 255, 127})
		for {
			if _, err := other.Write(make([]byte, slice)); err != nil {
				return
			}
		}
	}()
	if err := Fetch(ctx, conn, &protocol.Blob{Id: id, Size: 1000}, s); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	conn.Close()
	empty(t, s)
}

// A file that rots at the server is not served, and is gone from there.
func TestDamagedAtSource(t *testing.T) {
	t.Parallel()
	b := content(3*slice, 1)
	from, to := open(t, t.TempDir(), 1<<20), open(t, t.TempDir(), 1<<20)
	id := put(t, from, b)
	os.Chmod(from.path(id), 0o600)
	bad := bytes.Clone(b)
	bad[2*slice+1] ^= 1
	if err := os.WriteFile(from.path(id), bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Fetch(ctx, serve(t, from, nil), blobOf(b), to); !errors.Is(err, ErrNotFound) || from.Has(id) {
		t.Errorf("%v, still there: %v", err, from.Has(id))
	}
	put(t, from, b)
	if err := Fetch(ctx, serve(t, from, nil), blobOf(b), to); err != nil {
		t.Errorf("stored again: %v", err)
	}
}

func TestBadRequest(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	id := put(t, s, content(2*slice, 1))
	for _, offset := range []uint64{1, slice - 1, 2 * slice, 1 << 63, 1<<64 - slice} {
		in, out := bytes.NewReader(appendRequest(nil, id, offset)), &bytes.Buffer{}
		err := Serve(rw{in, out}, s, nil)
		if !errors.Is(err, ErrProtocol) || !bytes.Equal(out.Bytes(), []byte{answerBadRequest}) {
			t.Errorf("offset %d: %v, %x", offset, err, out.Bytes())
		}
	}
	if err := Serve(rw{strings.NewReader("short"), io.Discard}, s, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := Serve(rw{strings.NewReader(""), io.Discard}, s, nil); err != nil {
		t.Error(err)
	}
}

type rw struct {
	io.Reader
	io.Writer
}

func TestContext(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	conn, silent := net.Pipe()
	defer silent.Close()
	c, cancel := context.WithCancel(ctx)
	go func() {
		io.ReadFull(silent, make([]byte, requestSize))
		cancel()
	}()
	done := make(chan error, 1)
	go func() { done <- Fetch(c, conn, blobOf(content(10, 1)), s) }()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Fetch does not return")
	}
	empty(t, s)
	if err := Fetch(c, untouched{t}, blobOf(content(10, 1)), s); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Serve writes no more than a slice at once, and asks before each.
func TestPace(t *testing.T) {
	t.Parallel()
	b := content(10*slice+1, 1)
	var asked, written atomic.Int64
	s, err := Open(t.TempDir(), Config{Quota: 10 << 20, Pace: func(n int) { asked.Add(int64(n)) }})
	if err != nil {
		t.Fatal(err)
	}
	id := put(t, s, b)
	w := writerFunc(func(p []byte) (int, error) {
		if written.Add(int64(len(p))) != asked.Load() || len(p) > slice {
			t.Errorf("%d bytes written at once, %d in all, %d asked for", len(p), written.Load(), asked.Load())
		}
		return len(p), nil
	})
	if err := Serve(rw{bytes.NewReader(appendRequest(nil, id, 0)), w}, s, nil); err != nil {
		t.Error(err)
	}
	if want := int64(9 + 10*64 + len(b)); written.Load() != want {
		t.Errorf("%d bytes, want %d", written.Load(), want)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Trees are computed once per blob, and their memory is bounded.
func TestTrees(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 10<<20)
	for i := range 5 {
		id := put(t, s, content(3*slice, uint64(i)))
		f, size, err := s.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		a, err1 := s.trees.of(id, f, size)
		b, err2 := s.trees.of(id, nil, size) // would fail if it read
		if err1 != nil || err2 != nil || &a[0] != &b[0] {
			t.Error(err1, err2)
		}
		s.trees.max = 2 * len(a)
		if n := len(s.trees.list); n != min(i+1, 2) || s.trees.size != n*len(a) {
			t.Errorf("%d trees of %d bytes", n, s.trees.size)
		}
		f.Close()
	}
}

// Whatever comes, Serve answers or refuses, and sends nothing but what the store has.
func FuzzServe(f *testing.F) {
	s := open(f, f.TempDir(), 10<<20)
	id := put(f, s, content(2*slice+1, 1))
	f.Add(appendRequest(nil, id, 0))
	f.Add(appendRequest(appendRequest(nil, id, slice), protocol.BlobID{}, 7))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out counter
		out.w = io.Discard
		err := Serve(rw{bytes.NewReader(in), &out}, s, nil)
		if err != nil && !errors.Is(err, ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		if most := int64(len(in)/requestSize) * (9 + 2*64 + 2*slice + 1); out.n > most {
			t.Fatalf("%d bytes for %d", out.n, len(in))
		}
	})
}

// Whatever a source answers, only the blob itself is ever stored.
func FuzzFetch(f *testing.F) {
	b := content(slice+1000, 1)
	from := open(f, f.TempDir(), 10<<20)
	put(f, from, b)
	var good bytes.Buffer
	if err := Serve(rw{bytes.NewReader(appendRequest(nil, blake3.Sum256(b), 0)), &good}, from, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add(good.Bytes()[:slice])
	f.Add([]byte{answerNotFound})
	f.Add([]byte{answerBusy, 1, 3, 'a', 'b', 'c'})
	f.Add([]byte{9, 1, 2, 3})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, answer []byte) {
		s := open(t, dir, 1<<20)
		err := Fetch(ctx, rw{bytes.NewReader(answer), io.Discard}, blobOf(b), s)
		if err == nil {
			if !bytes.HasPrefix(answer, good.Bytes()) {
				t.Fatalf("%d bytes that are not the answer were taken", len(answer))
			}
			check(t, s, b)
			s.Unpin(blake3.Sum256(b))
		}
		s.GC(0)
		empty(t, s)
	})
}

func BenchmarkFetch(b *testing.B) {
	for _, size := range []int{100 << 10, 64 << 20} {
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			data := content(size, 1)
			from, to := open(b, b.TempDir(), 1<<30), open(b, b.TempDir(), 1<<30)
			id := put(b, from, data)
			conn := serve(b, from, nil)
			conn.SetDeadline(time.Time{})
			b.SetBytes(int64(size))
			for b.Loop() {
				if err := Fetch(ctx, conn, blobOf(data), to); err != nil {
					b.Fatal(err)
				}
				to.Unpin(id)
				to.GC(0)
			}
		})
	}
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{100 << 10, 64 << 20} {
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			data := content(size, 1)
			s := open(b, b.TempDir(), 1<<30)
			b.SetBytes(int64(size))
			for b.Loop() {
				s.Unpin(put(b, s, data))
				s.GC(0)
			}
		})
	}
}

// What was fetched of a blob before a stream broke is there after a restart, and the rest comes from another source. What is damaged
// of it meanwhile is noticed, and all of it is fetched again on the same stream.
func TestResumeAfterRestart(t *testing.T) {
	t.Parallel()
	for _, damage := range []int64{-1, 0, slice + 5} {
		b := content(9*slice+500, 1)
		one, other, dir := open(t, t.TempDir(), 100<<20), open(t, t.TempDir(), 100<<20), t.TempDir()
		put(t, one, b)
		put(t, other, b)
		cut := &flip{Conn: serve(t, one, nil), at: 5*slice + 1000, cut: true}
		if err := Fetch(ctx, cut, blobOf(b), open(t, dir, 100<<20)); err == nil {
			t.Fatal("the cut was not noticed")
		}
		names, _ := filepath.Glob(filepath.Join(dir, "tmp", "*"))
		if len(names) != 1 {
			t.Fatal(names)
		}
		// A crash in the middle of a write; what has another name, or is the shorter one, goes.
		f, err := os.OpenFile(names[0], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Seek(0, io.SeekEnd)
		f.Write(make([]byte, 1000))
		if damage >= 0 {
			f.WriteAt([]byte{^b[damage]}, damage)
		}
		f.Close()
		id := protocol.BlobID(blake3.Sum256(b))
		for _, name := range []string{"123", fmt.Sprintf("%s-%d-77", id, len(b)), fmt.Sprintf("%s-99999999999999-1", id)} {
			if err := os.WriteFile(filepath.Join(dir, "tmp", name), make([]byte, slice), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, dir, 100<<20)
		if left := files(t, s); s.Occupied() != 5*slice && s.Occupied() != 4*slice || len(left) != 1 {
			t.Fatalf("%d bytes occupied after a restart, files %v", s.Occupied(), left)
		}
		kept := s.Occupied()
		again := &flip{Conn: serve(t, other, nil), at: -1}
		if err := Fetch(ctx, again, blobOf(b), s); err != nil {
			t.Fatalf("damage at %d: %v", damage, err)
		}
		check(t, s, b)
		most := len(b) + 10*64 + 9 - int(kept)
		if damage >= 0 {
			most += len(b) + 10*64 + 9
		}
		if again.read > most || s.Occupied() != int64(len(b)) || len(files(t, s)) != 1 {
			t.Errorf("damage at %d: %d bytes were read, at most %d; %d occupied, files %v", damage, again.read, most, s.Occupied(), files(t, s))
		}
	}
}

// A source that is busy names others, and can be asked again on the same stream; one that gives is told when it has given all.
func TestBusy(t *testing.T) {
	t.Parallel()
	b := content(3*slice, 1)
	from, to := open(t, t.TempDir(), 1<<20), open(t, t.TempDir(), 1<<20)
	id := put(t, from, b)
	a, conn := net.Pipe()
	defer conn.Close()
	busy, whole := 2, []bool{}
	done := make(chan error, 1)
	go func() {
		done <- Serve(a, from, func(asked protocol.BlobID) Turn {
			if asked != id {
				t.Errorf("asked for %s", asked)
			}
			if busy--; busy >= 0 {
				return Turn{Busy: true, Holders: []string{"one", strings.Repeat("x", 255)}[:busy+1]}
			}
			return Turn{End: func(w bool) { whole = append(whole, w) }}
		})
	}()
	for want := 2; want > 0; want-- {
		var e *BusyError
		if err := Fetch(ctx, conn, blobOf(b), to); !errors.As(err, &e) || len(e.Holders) != want || e.Holders[0] != "one" {
			t.Fatalf("%v, want %d holders", err, want)
		}
	}
	if err := Fetch(ctx, conn, blobOf(b), to); err != nil {
		t.Fatal(err)
	}
	check(t, to, b)
	conn.Close()
	if <-done; len(whole) != 1 || !whole[0] {
		t.Errorf("whole: %v", whole)
	}
	for name, answer := range map[string][]byte{"17 holders": append([]byte{answerBusy, 17}, make([]byte, 17)...), "cut": {answerBusy, 2, 1, 'a', 5}} {
		if err := Fetch(ctx, rw{bytes.NewReader(answer), io.Discard}, blobOf(content(5, 9)), to); err == nil || errors.As(err, new(*BusyError)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
