package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"lukechampine.com/blake3"

	"meshnode/protocol"
)

var ctx = context.Background()

func open(t testing.TB, dir string, quota int64) *Store {
	t.Helper()
	s, err := Open(dir, Config{Quota: quota})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// content is n bytes that differ with seed.
func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7}).Read(b)
	return b
}

func put(t testing.TB, s *Store, b []byte) protocol.BlobID {
	t.Helper()
	blob, err := s.Put(ctx, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if want := blake3.Sum256(b); !bytes.Equal(blob.Id, want[:]) || blob.Size != uint64(len(b)) {
		t.Fatalf("put %d bytes: %x of %d, want %x", len(b), blob.Id, blob.Size, want)
	}
	return protocol.BlobID(blob.Id)
}

// files are the paths of all files in the store's folder.
func files(t testing.TB, s *Store) (out []string) {
	t.Helper()
	err := filepath.WalkDir(s.dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(p, s.dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// empty fails unless nothing is left of an attempt to store something.
func empty(t testing.TB, s *Store) {
	t.Helper()
	if f, n := files(t, s), s.Occupied(); len(f) != 0 || n != 0 {
		t.Fatalf("left behind: %d bytes on the books, files %v", n, f)
	}
}

func check(t testing.TB, s *Store, want []byte) {
	t.Helper()
	f, size, err := s.Open(blake3.Sum256(want))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || size != int64(len(want)) || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, size %d, %v: not what was stored", len(got), size, err)
	}
}

func TestPut(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "blobs")
	s := open(t, dir, 0)
	if s.Quota() <= 0 || s.Quota() > defaultQuota {
		t.Errorf("default quota %d", s.Quota())
	}
	total := int64(0)
	var all [][]byte
	for i, n := range []int{0, 1, 1023, slice - 1, slice, slice + 1, 3*slice + 17, 1<<20 + 3} {
		b := content(n, uint64(i))
		all = append(all, b)
		id := put(t, s, b)
		put(t, s, b)
		total += int64(n)
		check(t, s, b)
		p, err := s.Path(id)
		if err != nil || p != filepath.Join(dir, id.String()[:2], id.String()[2:]) {
			t.Errorf("path %s, %v", p, err)
		}
		if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, b) {
			t.Errorf("file of %d bytes: %v", n, err)
		}
	}
	if s.Occupied() != total || len(files(t, s)) != len(all) {
		t.Errorf("%d bytes in %d files, want %d in %d", s.Occupied(), len(files(t, s)), total, len(all))
	}
	for _, i := range s.List() {
		if i.Pins != 2 {
			t.Errorf("%v: %d pins after two puts", i.ID, i.Pins)
		}
	}
	name := filepath.Join(t.TempDir(), "input")
	os.WriteFile(name, all[3], 0o600)
	if b, err := s.PutFile(ctx, name); err != nil || b.Size != slice-1 {
		t.Error(b, err)
	}
	if _, err := s.PutFile(ctx, t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("put of a folder: %v", err)
	}

	// A crash in the middle of writing, and files of others.
	for _, n := range []string{"tmp/123", "notes.txt", "ab/short"} {
		os.MkdirAll(filepath.Dir(filepath.Join(dir, n)), 0o700)
		if err := os.WriteFile(filepath.Join(dir, n), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, 0)
	if s.Occupied() != total || len(s.List()) != len(all) {
		t.Errorf("reopened: %d bytes, %d blobs", s.Occupied(), len(s.List()))
	}
	for _, b := range all {
		check(t, s, b)
	}
	if left := files(t, s); slices.ContainsFunc(left, func(f string) bool { return strings.Contains(f, "tmp") }) || len(left) != len(all)+2 {
		t.Errorf("files after reopening: %v", left)
	}
}

func TestPutFails(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	broken := errors.New("broken")
	if _, err := s.Put(ctx, io.MultiReader(bytes.NewReader(content(300<<10, 1)), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Error(err)
	}
	empty(t, s)
	c, cancel := context.WithCancel(ctx)
	r := readerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
	if _, err := s.Put(c, r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	empty(t, s)
	endless := readerFunc(func(b []byte) (int, error) { return len(b), nil })
	if _, err := s.Put(ctx, endless); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	empty(t, s)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestConcurrentPut(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	b := content(1<<20+5, 1)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.Put(ctx, iotest.HalfReader(bytes.NewReader(b))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check(t, s, b)
	if l := s.List(); len(l) != 1 || l[0].Pins != 16 || s.Occupied() != int64(len(b)) || len(files(t, s)) != 1 {
		t.Errorf("%v, %d bytes, files %v", l, s.Occupied(), files(t, s))
	}
}

func TestEviction(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 10_000)
	var ids []protocol.BlobID
	for i := range 10 {
		ids = append(ids, put(t, s, content(1000, uint64(i))))
		if i != 3 {
			s.Unpin(ids[i])
		}
	}
	s.Unpin(ids[4])                           // too often: ignored
	if _, err := s.Path(ids[0]); err != nil { // used: now the latest of the unpinned
		t.Fatal(err)
	}
	left := func() (out []int) {
		for i, id := range ids {
			if s.Has(id) {
				out = append(out, i)
			}
		}
		return out
	}
	ids = append(ids, put(t, s, content(2500, 10))) // pinned
	if got := left(); !slices.Equal(got, []int{0, 3, 5, 6, 7, 8, 9, 10}) {
		t.Errorf("left: %v", got)
	}
	if n := s.GC(5500); n != 4000 || !slices.Equal(left(), []int{0, 3, 9, 10}) {
		t.Errorf("freed %d, left %v", n, left())
	}
	// What does not fit beside the pinned ones is refused, and so is what never fits: without evicting anything.
	if _, err := s.Put(ctx, bytes.NewReader(content(10_001, 11))); !errors.Is(err, ErrFull) || !slices.Equal(left(), []int{0, 3, 9, 10}) {
		t.Errorf("%v, left %v", err, left())
	}
	if _, err := s.Put(ctx, bytes.NewReader(content(6501, 12))); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	if got := left(); !slices.Equal(got, []int{3, 10}) || s.Occupied() != 3500 {
		t.Errorf("left %v, %d bytes", got, s.Occupied())
	}
	ids = append(ids, put(t, s, content(6500, 13)))
	if s.Occupied() != 10_000 || !slices.Equal(left(), []int{3, 10, 11}) {
		t.Errorf("%d bytes, left %v", s.Occupied(), left())
	}
	s.Unpin(ids[3])
	if s.GC(0) != 1000 {
		t.Error("unpinned, and not evicted")
	}

	// Pins do not survive, uses do, and opening evicts nothing even if the quota is smaller now.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(s.path(ids[11]), old, old); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 5000)
	if !slices.Equal(left(), []int{10, 11}) || s.List()[0].ID != ids[11] {
		t.Fatalf("reopened: %v", s.List())
	}
	if err := s.Pin(ids[11]); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(s.path(ids[11])); err != nil || time.Since(info.ModTime()) > time.Minute {
		t.Errorf("the use is not kept: %v %v", info, err)
	}
	s.GC(-1)
	if !slices.Equal(left(), []int{11}) {
		t.Errorf("left %v", left())
	}
}

// A file that somebody removed is noticed; pins on it hold again once it is back.
func TestLostFile(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	b := content(1000, 1)
	id := put(t, s, b)
	os.Remove(s.path(id))
	if _, err := s.Path(id); !errors.Is(err, ErrNotFound) || s.Has(id) {
		t.Error(err)
	}
	empty(t, s)
	put(t, s, b)
	check(t, s, b)
	s.Unpin(id)
	if s.GC(0); !s.Has(id) {
		t.Error("one of two pins is gone, and the blob is too")
	}
	s.Unpin(id)
	if s.GC(0); s.Has(id) {
		t.Error("still pinned")
	}
	if err := s.Pin(id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, _, err := s.Open(id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// A file that is taken becomes the blob's: it is not copied, counts, and is gone where it was, also if it cannot be taken.
func TestTake(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	scratch, err := s.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	file := func(b []byte) string {
		t.Helper()
		name := filepath.Join(scratch, "out")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for i, n := range []int{0, 1, 300 << 10, 300 << 10} {
		b := content(n, uint64(min(i, 2))) // the last is there already
		name := file(b)
		before, _ := os.Stat(name)
		taken, err := s.Take(ctx, name, true)
		if want := blake3.Sum256(b); err != nil || !bytes.Equal(taken.Id, want[:]) || taken.Size != uint64(n) {
			t.Fatalf("%d bytes: %v, %v", n, taken, err)
		}
		check(t, s, b)
		id := protocol.BlobID(taken.Id)
		after, err := os.Stat(s.path(id))
		if err != nil || after.Mode().Perm() != 0o400 || i < 3 && !os.SameFile(before, after) {
			t.Errorf("%d bytes: %v, %v: not the same file", n, after, err)
		}
		if _, err := os.Lstat(name); !os.IsNotExist(err) {
			t.Errorf("%d bytes: the file is still there: %v", n, err)
		}
	}
	if s.Occupied() != 300<<10+1 {
		t.Errorf("%d bytes occupied", s.Occupied())
	}
	kept := s.Occupied()
	link := filepath.Join(scratch, "link")
	if err := os.Symlink(s.path(blake3.Sum256(content(1, 1))), link); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for name, c := range map[string]struct {
		path string
		ctx  context.Context
		want error
	}{
		"too large": {file(content(2<<20, 9)), ctx, ErrFull}, "a link": {link, ctx, nil}, "a folder": {filepath.Join(scratch), ctx, nil},
		"nothing": {filepath.Join(scratch, "none"), ctx, os.ErrNotExist},
	} {
		if b, err := s.Take(c.ctx, c.path, true); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
	if err := os.MkdirAll(scratch, 0o700); err != nil { // taking a folder removes it, if it is empty
		t.Fatal(err)
	}
	if _, err := s.Take(cancelled, file(content(100, 8)), true); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if s.Occupied() != kept {
		t.Errorf("%d bytes occupied, want %d", s.Occupied(), kept)
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	id := put(t, s, content(1000, 1))
	if err := s.Remove(id); !errors.Is(err, ErrPinned) || !s.Has(id) {
		t.Errorf("a pinned one: %v", err)
	}
	if n, err := s.PinSize(id); n != 1000 || err != nil {
		t.Error(n, err)
	}
	s.Unpin(id)
	s.Unpin(id)
	if err := s.Remove(id); err != nil || s.Has(id) {
		t.Error(err)
	}
	if err := s.Remove(id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.PinSize(id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	empty(t, s)
}

// A blob that was put loosely is checked before a later process uses it: the machine may have died before it was on disk. Sync, and
// whoever puts it again and waits for the disk, make it as any other.
func TestLoose(t *testing.T) {
	t.Parallel()
	if !canBeLoose {
		t.Skip("no blob is loose on this system")
	}
	dir := t.TempDir()
	s := open(t, dir, 10<<20)
	var bs [][]byte
	var ids []protocol.BlobID
	for i := range 5 {
		b := content(100_000, uint64(i))
		loose, err := s.PutLoose(ctx, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		bs, ids = append(bs, b), append(ids, protocol.BlobID(loose.Id))
	}
	mode := func(i int) os.FileMode {
		t.Helper()
		info, err := os.Stat(s.path(ids[i]))
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	for range 2 {
		if err := s.Sync(ids[0]); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, bs[1])
	if err := Fetch(ctx, untouched{t}, blobOf(bs[2]), s); err != nil {
		t.Fatal(err)
	}
	for i, want := range []os.FileMode{modeSynced, modeSynced, modeSynced, modeLoose, modeLoose} {
		if got := mode(i); got != want {
			t.Errorf("blob %d has mode %v, want %v", i, got, want)
		}
	}
	damage := func(i int) {
		t.Helper()
		os.Chmod(s.path(ids[i]), 0o600)
		if err := os.WriteFile(s.path(ids[i]), make([]byte, 100_000), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chmod(s.path(ids[i]), modeLoose)
	}
	damage(4)
	s = open(t, dir, 10<<20)
	for i := range 4 {
		check(t, s, bs[i])
	}
	if err := s.Pin(ids[4]); !errors.Is(err, ErrNotFound) || s.Has(ids[4]) {
		t.Errorf("a loose one that is damaged: %v", err)
	}
	if err := s.Sync(ids[4]); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.Sync(ids[3]); err != nil || mode(3) != modeSynced {
		t.Errorf("%v, %v", err, mode(3))
	}
	if err := s.Remove(ids[3]); err != nil { // Sync has not left a pin
		t.Error(err)
	}
}
