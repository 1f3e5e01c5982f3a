package blob

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"lukechampine.com/blake3"

	"meshnode/protocol"
)

// MaxSize is the largest blob, in bytes: its tree of hashes, which a node that serves it holds in memory, is 16 MiB.
const MaxSize = 16 << 30

const (
	// defaultQuota is at most this, and at most defaultShare of what is free.
	defaultQuota = 10 << 30
	defaultShare = 0.2
	// usedGrain is how exactly the time of the last use is kept on disk.
	usedGrain = time.Minute
	// maxPartials is how many unfinished fetches are kept.
	maxPartials = 64
)

// Errors of this package; test with errors.Is.
var (
	// ErrNotFound: no such blob here, or at the other side.
	ErrNotFound = errors.New("blob not found")
	// ErrCorrupt: the other side sent bytes that are not the blob's; the source is at fault.
	ErrCorrupt = errors.New("blob is corrupt")
	// ErrFull: the quota, or the disk, has no room, even after all unpinned blobs are gone.
	ErrFull = errors.New("no room for the blob")
	// ErrPinned: something needs it.
	ErrPinned = errors.New("blob is pinned")
	// ErrTooLarge: larger than MaxSize.
	ErrTooLarge = errors.New("blob is too large")
	// ErrProtocol: the other side does not speak Protocol.
	ErrProtocol = errors.New("blob protocol violated")
)

// Config of a store. The zero value works.
type Config struct {
	// Quota is the most that the store occupies, in bytes, pinned blobs and unfinished ones included.
	// Default: 20 % of the disk's free space at Open plus what the store has, at most 10 GiB.
	Quota int64
	// Logger gets evictions and damaged files. Default: discards.
	Logger *slog.Logger
	// Pace, if set, is called by Serve before each chunk of n ≤ 64 KiB bytes: it may wait, to leave the connection to others.
	Pace func(n int)
	// Volatile says that the folder is of no use after this process: nothing is synced.
	Volatile bool
}

// Info describes a stored blob.
type Info struct {
	ID   protocol.BlobID
	Size int64
	Used time.Time // last Put, Fetch, Open, Path or Pin; after a restart to the minute
	Pins int
}

// Store is a folder of blobs. Its methods may be called concurrently.
type Store struct {
	dir      string
	quota    int64
	log      *slog.Logger
	pace     func(n int)
	trees    trees
	volatile bool

	mu       sync.Mutex // guards what follows, and that a file has its name exactly while it has an entry
	entries  map[protocol.BlobID]*entry
	idle     *list.List              // of *entry: the unpinned ones, least recently used first
	partials []*partial              // oldest first
	lost     map[protocol.BlobID]int // pins of blobs whose files were found gone or damaged: they hold again when it is back
	fresh    map[string]bool         // folders whose own names are perhaps not on disk
	occupied int64                   // bytes of all entries and partials, and reserved for what is being written
}

type entry struct {
	id   protocol.BlobID
	size int64
	used time.Time
	kept time.Time // used, as it is on disk
	pins int
	elem *list.Element // in idle, if pins == 0
	// loose: its bytes may not be on disk yet. doubtful: it was, in an earlier process, and they are to be checked before they are used.
	loose, doubtful bool
}

// partial is the verified beginning of a blob whose fetch broke off.
type partial struct {
	id   protocol.BlobID
	size int64 // of the blob
	file string
	have int64
	old  bool // of an earlier process: that it is on disk as it was verified is not certain
}

// partialName is the pattern of names of unfinished fetches: a later process goes on with them.
func partialName(id protocol.BlobID, size int64) string { return fmt.Sprintf("%s-%d-*", id, size) }

// parsePartial reads such a name.
func parsePartial(name string) (id protocol.BlobID, size int64, ok bool) {
	parts := strings.Split(name, "-")
	if len(parts) != 3 {
		return id, 0, false
	}
	id, err := protocol.ParseBlobID(parts[0])
	size, serr := strconv.ParseInt(parts[1], 10, 64)
	return id, size, err == nil && serr == nil && size > 0 && size <= MaxSize
}

// Open opens the store in dir, or creates it, and removes what a crash left unfinished, but for the beginnings of blobs that were fetched. One process at a
// time: the data directory's lock sees to that. It reads names, not contents.
func Open(dir string, c Config) (*Store, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Quota < 0 {
		return nil, fmt.Errorf("blobs %s: quota of %d bytes: must not be negative", dir, c.Quota)
	}
	s := &Store{dir: dir, quota: c.Quota, log: c.Logger, pace: c.Pace, volatile: c.Volatile, entries: map[protocol.BlobID]*entry{}, lost: map[protocol.BlobID]int{}, fresh: map[string]bool{}, idle: list.New()}
	s.trees.max = maxTrees
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o700); err != nil {
		return nil, fmt.Errorf("blobs %s: %w", dir, err)
	}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("blobs %s: %w", dir, err)
	}
	if err := s.scanPartials(); err != nil {
		return nil, fmt.Errorf("blobs %s: %w", dir, err)
	}
	if s.quota == 0 {
		free, err := diskFree(dir)
		if err != nil {
			return nil, fmt.Errorf("blobs %s: free space: %w", dir, err)
		}
		s.quota = min(defaultQuota, s.occupied+int64(defaultShare*float64(free)))
	}
	return s, nil
}

func (s *Store) scan() error {
	var found []*entry
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if !d.IsDir() || len(d.Name()) != 2 {
			continue
		}
		files, err := os.ReadDir(filepath.Join(s.dir, d.Name()))
		if err != nil {
			return err
		}
		for _, f := range files {
			id, err := protocol.ParseBlobID(d.Name() + f.Name())
			if err != nil || !f.Type().IsRegular() || s.path(id) != filepath.Join(s.dir, d.Name(), f.Name()) {
				continue // not ours
			}
			info, err := f.Info()
			if err != nil {
				return err
			}
			loose := canBeLoose && info.Mode().Perm() != modeSynced
			found = append(found, &entry{id: id, size: info.Size(), used: info.ModTime(), kept: info.ModTime(), loose: loose, doubtful: loose})
		}
	}
	slices.SortFunc(found, byUse)
	for _, e := range found {
		s.entries[e.id] = e
		e.elem = s.idle.PushBack(e)
		s.occupied += e.size
	}
	return nil
}

// scanPartials finds what an earlier process had fetched of blobs, whole slices of it, and removes what else it left.
func (s *Store) scanPartials() error {
	dir := filepath.Join(s.dir, "tmp")
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	best := map[protocol.BlobID]*partial{}
	at := map[*partial]time.Time{}
	for _, f := range files {
		name := filepath.Join(dir, f.Name())
		id, size, ok := parsePartial(f.Name())
		info, err := f.Info()
		if err == nil && ok && s.entries[id] == nil && info.Mode().IsRegular() {
			p := &partial{id: id, size: size, file: name, have: min(info.Size(), size-1) / slice * slice, old: true}
			if q := best[id]; p.have > 0 && (q == nil || q.have < p.have) {
				if q != nil {
					err = os.Remove(q.file)
				}
				if err == nil {
					err = os.Truncate(name, p.have)
				}
				if err != nil {
					return err
				}
				best[id], at[p] = p, info.ModTime()
				continue
			}
		}
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	for _, p := range best {
		s.partials = append(s.partials, p)
		s.occupied += p.have
	}
	slices.SortFunc(s.partials, func(a, b *partial) int { return cmp.Or(at[a].Compare(at[b]), cmp.Compare(a.file, b.file)) })
	for len(s.partials) > maxPartials {
		s.dropPartial(0)
	}
	return nil
}

func byUse(a, b *entry) int {
	return cmp.Or(a.used.Compare(b.used), cmp.Compare(string(a.id[:]), string(b.id[:])))
}

func (s *Store) path(id protocol.BlobID) string {
	h := id.String()
	return filepath.Join(s.dir, h[:2], h[2:])
}

// Scratch is a folder beside the blobs for files that Take is to take, empty at first; their bytes count only from then on.
func (s *Store) Scratch() (string, error) {
	dir, err := filepath.Abs(filepath.Join(s.dir, "scratch"))
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("blobs %s: %w", s.dir, err)
	}
	return dir, nil
}

// Quota is the most that the store occupies, in bytes.
func (s *Store) Quota() int64 { return s.quota }

// Occupied is what it occupies now, in bytes.
func (s *Store) Occupied() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.occupied
}

// buffers are what Put reads into: enough for the hash to use the processor's widest instructions.
var buffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// Put stores what r has, and returns when it is synced to disk. The blob is pinned once for the caller, who
// calls Unpin when it is not needed any more. What is there already is not stored again. ctx is asked between reads.
// Errors: r's, ErrFull, ErrTooLarge, the disk's.
func (s *Store) Put(ctx context.Context, r io.Reader) (*protocol.Blob, error) {
	return s.put(ctx, r, true)
}

// PutLoose is Put that does not wait for the disk. If the machine dies, not only the process, the blob may be gone afterwards, or
// Sync was called and returned before.
func (s *Store) PutLoose(ctx context.Context, r io.Reader) (*protocol.Blob, error) {
	return s.put(ctx, r, false)
}

func (s *Store) put(ctx context.Context, r io.Reader, sync bool) (*protocol.Blob, error) {
	f, err := s.temp()
	if err != nil {
		return nil, fmt.Errorf("put blob: %w", err)
	}
	size := int64(0) // written or about to be: reserved
	drop := func(err error) (*protocol.Blob, error) {
		f.Close()
		os.Remove(f.Name())
		s.release(size)
		return nil, fmt.Errorf("put blob: %w", full(err))
	}
	hash := blake3.New(32, nil)
	pooled := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(pooled)
	buf := pooled[:]
	for {
		if err := ctx.Err(); err != nil {
			return drop(err)
		}
		n, rerr := fill(r, buf)
		if n > 0 {
			if size+int64(n) > MaxSize {
				return drop(ErrTooLarge)
			}
			if err := s.reserve(int64(n)); err != nil {
				return drop(err)
			}
			size += int64(n)
			if _, err := f.Write(buf[:n]); err != nil {
				return drop(err)
			}
			hash.Write(buf[:n])
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return drop(rerr)
		}
	}
	id := protocol.BlobID(hash.Sum(nil))
	if err := s.install(f, id, size, sync); err != nil {
		return nil, fmt.Errorf("put blob %s: %w", id, full(err))
	}
	return &protocol.Blob{Id: id[:], Size: uint64(size)}, nil
}

// fill reads until b is full or r has no more: the hash of many bytes at once costs less than that of few.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = r.Read(b[n:])
		n += k
	}
	return n, err
}

// Take is PutFile, or with sync false PutLoose, of a file on the same disk, which becomes the blob's: it is hashed, and neither copied nor there afterwards, also if that
// fails. Whoever made it must not write to it any more.
func (s *Store) Take(ctx context.Context, name string, sync bool) (*protocol.Blob, error) {
	drop := func(err error) (*protocol.Blob, error) {
		os.Remove(name)
		return nil, fmt.Errorf("take blob: %w", full(err))
	}
	info, err := os.Lstat(name)
	if err != nil {
		return drop(err)
	}
	if !info.Mode().IsRegular() {
		return drop(&fs.PathError{Op: "read", Path: name, Err: errors.New("is no file")})
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return drop(err)
	}
	size := info.Size()
	if size > MaxSize {
		f.Close()
		return drop(ErrTooLarge)
	}
	if err := s.reserve(size); err != nil {
		f.Close()
		return drop(err)
	}
	id, err := hash(ctx, f, size)
	if err != nil {
		f.Close()
		s.release(size)
		return drop(err)
	}
	if err := s.install(f, id, size, sync); err != nil {
		return nil, fmt.Errorf("take blob %s: %w", id, full(err))
	}
	return &protocol.Blob{Id: id[:], Size: uint64(size)}, nil
}

// hash is the hash of the first size bytes of f, which has no more.
func hash(ctx context.Context, f *os.File, size int64) (protocol.BlobID, error) {
	h := blake3.New(32, nil)
	pooled := buffers.Get().(*[256 << 10]byte)
	defer buffers.Put(pooled)
	n := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return protocol.BlobID{}, err
		}
		k, err := f.ReadAt(pooled[:], n)
		h.Write(pooled[:k])
		if n += int64(k); err == io.EOF {
			break
		}
		if err != nil {
			return protocol.BlobID{}, err
		}
	}
	if n != size {
		return protocol.BlobID{}, fmt.Errorf("%s: %d bytes, and then %d", f.Name(), size, n)
	}
	return protocol.BlobID(h.Sum(nil)), nil
}

// PutFile is Put of a file's bytes. The file is copied, for its owner may change it.
func (s *Store) PutFile(ctx context.Context, name string) (*protocol.Blob, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is a folder")}
	}
	return s.Put(ctx, f)
}

// Open opens a blob for reading; the caller closes it. size is in bytes. ErrNotFound if it is not here.
func (s *Store) Open(id protocol.BlobID) (f *os.File, size int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.use(id)
	if err != nil {
		return nil, 0, err
	}
	f, err = os.Open(s.path(id))
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	return f, e.size, nil
}

// Path is where a blob's file is, for a process that reads it; it must not write. Pin it for as long. ErrNotFound if it is not here.
func (s *Store) Path(id protocol.BlobID) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.use(id); err != nil {
		return "", err
	}
	return s.path(id), nil
}

// Size is how many bytes the blob has; 0: it is not here, or empty.
func (s *Store) Size(id protocol.BlobID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		return e.size
	}
	return 0
}

// Has reports whether the blob is here.
func (s *Store) Has(id protocol.BlobID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[id] != nil
}

// Pin keeps a blob from being evicted until as many Unpins were called. Pins are this process's: after a
// start the node pins again what it needs. ErrNotFound if it is not here.
func (s *Store) Pin(id protocol.BlobID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.use(id)
	if err != nil {
		return err
	}
	s.pin(e)
	return nil
}

func (s *Store) pin(e *entry) {
	if e.pins++; e.elem != nil {
		s.idle.Remove(e.elem)
		e.elem = nil
	}
}

// PinSize is Pin, and says how many bytes the blob has.
func (s *Store) PinSize(id protocol.BlobID) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.use(id)
	if err != nil {
		return 0, err
	}
	s.pin(e)
	return e.size, nil
}

// Unpin takes one pin back; the blob stays until its room is needed. Too many are ignored.
func (s *Store) Unpin(id protocol.BlobID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost[id]--; s.lost[id] <= 0 {
		delete(s.lost, id)
	}
	e := s.entries[id]
	if e == nil || e.pins == 0 {
		return
	}
	if e.pins--; e.pins == 0 {
		e.elem = s.idle.PushBack(e)
	}
}

// List lists the blobs, the least recently used first.
func (s *Store) List() []Info {
	s.mu.Lock()
	es := make([]*entry, 0, len(s.entries))
	for _, e := range s.entries {
		es = append(es, e)
	}
	slices.SortFunc(es, byUse)
	out := make([]Info, len(es))
	for i, e := range es {
		out[i] = Info{e.id, e.size, e.used, e.pins}
	}
	s.mu.Unlock()
	return out
}

// GC evicts unpinned blobs, least recently used first, until the store occupies no more than size bytes
// (negative: the quota), and returns the bytes freed.
func (s *Store) GC(size int64) int64 {
	if size < 0 {
		size = s.quota
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.occupied
	s.shrink(size)
	return before - s.occupied
}

// Remove removes a blob that is not pinned. ErrNotFound if it is not here, ErrPinned if it is needed.
func (s *Store) Remove(id protocol.BlobID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	switch {
	case e == nil:
		return fmt.Errorf("blob %s: %w", id, ErrNotFound)
	case e.pins > 0:
		return fmt.Errorf("%w %d times", ErrPinned, e.pins)
	}
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove blob %s: %w", id, err)
	}
	s.forget(e)
	return nil
}

// use finds an entry whose file is there and notes that it was used; the lock is held.
func (s *Store) use(id protocol.BlobID) (*entry, error) {
	e := s.entries[id]
	if e == nil {
		return nil, fmt.Errorf("blob %s: %w", id, ErrNotFound)
	}
	if info, err := os.Stat(s.path(id)); err != nil || info.Size() != e.size {
		s.log.Warn("blob: its file is gone or was changed", "blob", id, "err", err)
		s.forget(e)
		return nil, fmt.Errorf("blob %s: %w", id, ErrNotFound)
	}
	if e.doubtful {
		if !s.whole(e) {
			s.log.Info("blob: was not whole on disk when the machine stopped, removed", "blob", id, "size", e.size)
			s.forget(e)
			return nil, fmt.Errorf("blob %s: %w", id, ErrNotFound)
		}
		e.doubtful = false
	}
	e.used = time.Now()
	if e.used.Sub(e.kept) > usedGrain {
		e.kept = e.used
		_ = os.Chtimes(s.path(id), e.used, e.used) // only the order of evictions after a restart depends on it
	}
	if e.elem != nil {
		s.idle.MoveToBack(e.elem)
	}
	return e, nil
}

// whole says that a file has the bytes that its name says.
func (s *Store) whole(e *entry) bool {
	f, err := os.Open(s.path(e.id))
	if err != nil {
		return false
	}
	defer f.Close()
	id, err := hash(context.Background(), f, e.size)
	return err == nil && id == e.id
}

// Sync returns when a blob that was put loosely is on disk. ErrNotFound if it is not here.
func (s *Store) Sync(id protocol.BlobID) error {
	s.mu.Lock()
	e, err := s.use(id)
	loose := err == nil && e.loose
	if loose {
		s.pin(e) // it stays meanwhile
	}
	s.mu.Unlock()
	if !loose {
		return err
	}
	defer s.Unpin(id)
	f, err := os.Open(s.path(id))
	if err == nil {
		if !s.volatile {
			err = syncFile(f)
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err == nil {
		err = os.Chmod(s.path(id), modeSynced)
	}
	if err == nil {
		err = s.syncDir(filepath.Dir(s.path(id)))
	}
	if err == nil {
		err = s.syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("sync blob %s: %w", id, full(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		e.loose = false
	}
	return nil
}

// forget removes an entry, and its file if it is there; the lock is held.
func (s *Store) forget(e *entry) {
	os.Remove(s.path(e.id))
	delete(s.entries, e.id)
	if e.elem != nil {
		s.idle.Remove(e.elem)
	} else {
		s.lost[e.id] = e.pins
	}
	s.occupied -= e.size
}

// drop removes a blob whose bytes are not what its name says, pinned or not: it has to be fetched again.
func (s *Store) drop(id protocol.BlobID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		s.log.Warn("blob: its bytes are damaged, removed", "blob", id, "size", e.size)
		s.forget(e)
	}
}

// reserve makes room for n bytes that are about to be written, or returns ErrFull.
func (s *Store) reserve(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > s.quota { // do not evict everything in vain
		return fmt.Errorf("%w: %d bytes, the quota is %d", ErrFull, n, s.quota)
	}
	s.shrink(s.quota - n)
	if s.occupied > s.quota-n {
		return fmt.Errorf("%w: %d bytes in use, the quota is %d", ErrFull, s.occupied, s.quota)
	}
	s.occupied += n
	return nil
}

func (s *Store) release(n int64) {
	s.mu.Lock()
	s.occupied -= n
	s.mu.Unlock()
}

// shrink evicts until no more than size is occupied, if it can; the lock is held.
func (s *Store) shrink(size int64) {
	for s.occupied > size && len(s.partials) > 0 {
		s.dropPartial(0)
	}
	for next := s.idle.Front(); s.occupied > size && next != nil; {
		e := next.Value.(*entry)
		next = next.Next()
		if err := os.Remove(s.path(e.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("blob: cannot be evicted", "blob", e.id, "err", err) // Windows, while it is read
			continue
		}
		s.log.Debug("blob: evicted", "blob", e.id, "size", e.size, "used", e.used)
		s.forget(e)
	}
}

func (s *Store) dropPartial(i int) {
	p := s.partials[i]
	os.Remove(p.file)
	s.occupied -= p.have
	s.partials = slices.Delete(s.partials, i, i+1)
}

// takePartial hands over the verified beginning of a blob, or nil; its bytes stay reserved.
func (s *Store) takePartial(id protocol.BlobID, size int64) *partial {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.partials {
		if p.id == id && p.size == size {
			s.partials = slices.Delete(s.partials, i, i+1)
			return p
		}
	}
	return nil
}

// keepPartial keeps the verified beginning of a blob, whose bytes are reserved.
func (s *Store) keepPartial(p *partial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.partials) == maxPartials {
		s.dropPartial(0)
	}
	s.partials = append(s.partials, p)
}

// have pins a blob that is here already.
func (s *Store) have(id protocol.BlobID) bool { return s.Pin(id) == nil }

func (s *Store) temp() (*os.File, error) { return os.CreateTemp(filepath.Join(s.dir, "tmp"), "*") }

// Files whose bytes are on disk have modeSynced, others modeLoose: what a machine that died left of these is checked before it is used.
// Nobody writes to either.
const (
	modeSynced fs.FileMode = 0o400
	modeLoose  fs.FileMode = 0o440 // their folder is nobody else's
)

// install gives f, whose size bytes are verified and reserved, its name, with sync after its bytes are on disk, and pins it. It closes f. On an error
// nothing of it is left.
func (s *Store) install(f *os.File, id protocol.BlobID, size int64, sync bool) error {
	sync = sync || !canBeLoose
	mode := modeLoose
	var err error
	if sync {
		mode = modeSynced
	}
	if sync && !s.volatile {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), mode)
	}
	if err == nil {
		err = s.rename(f.Name(), id, size, sync)
	}
	if err != nil {
		os.Remove(f.Name())
		s.release(size)
		return err
	}
	if !sync {
		return nil
	}
	// Also when it was there already: another Put may have renamed it, and not synced the folder yet, or nothing of it.
	err = s.Sync(id)
	if err == nil {
		err = s.syncDir(filepath.Dir(s.path(id)))
	}
	if err != nil {
		s.Unpin(id)
		return err
	}
	return nil
}

func (s *Store) syncDir(dir string) error {
	if s.volatile {
		return nil
	}
	return syncDir(dir)
}

// rename moves a file to its name and pins it, or drops it if the blob is there.
func (s *Store) rename(name string, id protocol.BlobID, size int64, sync bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, err := s.use(id); err == nil {
		s.pin(e)
		s.occupied -= size
		os.Remove(name)
		return nil
	}
	dir := filepath.Dir(s.path(id))
	if err := os.Mkdir(dir, 0o700); err == nil {
		s.fresh[dir] = true
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if sync && s.fresh[dir] {
		if err := s.syncDir(s.dir); err != nil {
			return err
		}
		delete(s.fresh, dir)
	}
	if err := os.Rename(name, s.path(id)); err != nil {
		return err
	}
	now := time.Now()
	s.entries[id] = &entry{id: id, size: size, used: now, kept: now, pins: 1 + s.lost[id], loose: !sync}
	delete(s.lost, id)
	return nil
}

// full makes ErrFull of a disk without room.
func full(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
