package journal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"meshnode/tasks"
)

// format is the version of what the package comment describes.
const format = 1

const (
	// syncWithin is when a batch that nobody waits for is synced: half of the 100 ms that are promised, for
	// the sync takes its time, too.
	syncWithin = 50 * time.Millisecond
	// maxQueued is how many bytes Append queues before it makes its caller wait: a second of a slow disk.
	// It is also the size from which Pebble would take a batch apart from its memtable.
	maxQueued = 8 << 20
	// memTable is Pebble's unit of writing. Two may exist; both are read again at the next start.
	memTable = 16 << 20
	// ballastEvery is how often the ballast is looked for, once it was used.
	ballastEvery = 10 * time.Second
	// cache is for reading results again; the operating system caches the files as well.
	cache = 16 << 20
)

// Config of a journal. The zero value works.
type Config struct {
	// Logger gets the store's own chatter at debug level, and what an operator should see at warn. Default: discards.
	Logger *slog.Logger

	// Ballast is the size, in bytes, of a file that keeps room for what must still be written when the disk is full: cancels
	// and results. It is made when there is room for it twice above MinFree, and removed when a write needs it. 0: none.
	Ballast int64
	MinFree int64

	// Volatile says that the folder is of no use after this process: nothing is ever synced.
	Volatile bool

	// FS is where the journal is written. Default: the system's files. Tests have one that fails.
	FS vfs.FS
}

// ErrNotFound: the journal has no such job, task or result.
var ErrNotFound = errors.New("not in the journal")

// ErrClosed is returned by calls after Close, and by Append after Run has ended.
var ErrClosed = errors.New("journal is closed")

// Journal is an open journal. Its methods may be called concurrently, but for the order that their
// comments ask for: Open, then Epoch, Key and Load, then Run, then Append.
type Journal struct {
	dir     string
	log     *slog.Logger
	db      *pebble.DB
	lock    *pebble.Lock
	disk    *disk
	config  Config
	key     [32]byte
	failure *failure
	syncedC chan uint64   // holds one
	wake    chan struct{} // holds one: there is something to commit

	mu       sync.Mutex // guards what follows; nothing that waits is done under it
	enc      encoder
	queue    *pebble.Batch // what Append collects for the next commit; nil if there is nothing
	wantSync bool          // somebody waits for the queue's sync
	appended uint64        // the number of the newest batch
	applied  uint64        // the newest in the store: it can be read
	synced   uint64        // the newest on disk
	epoch    uint64        // on disk or queued; never falls
	changed  chan struct{} // closed when one of these moves, nil if nobody waits
	ended    bool          // Run has taken the last queue
	closed   bool
	users    int // calls under way that Close waits for
}

// Open opens the journal in dir, or creates it. The errors are one line for a person: it is in use by
// another process, was written by a newer version, is damaged, or the disk failed.
func Open(dir string, c Config) (*Journal, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.FS == nil {
		c.FS = vfs.Default
	}
	j := &Journal{dir: dir, log: c.Logger, config: c, failure: newFailure(dir), syncedC: make(chan uint64, 1), wake: make(chan struct{}, 1)}
	if err := c.FS.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal %s: %w", dir, err)
	}
	// Locked here, and not by Pebble, to tell this apart from all else that can go wrong.
	lock, err := pebble.LockDirectory(dir, c.FS)
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return nil, fmt.Errorf("journal %s: %w", dir, err) // the file cannot even be made
	}
	if err != nil {
		return nil, fmt.Errorf("journal %s: in use by another process: %w", dir, err)
	}
	j.lock = lock
	if err := j.failure.do(func() error { return j.open(c) }); err != nil {
		lock.Close()
		return nil, err
	}
	return j, nil
}

func (j *Journal) open(c Config) error {
	j.disk = &disk{FS: c.FS, failure: j.failure, volatile: c.Volatile, onHold: func() {
		j.mu.Lock()
		j.tell()
		j.mu.Unlock()
	}}
	if c.Ballast > 0 {
		j.disk.ballast = c.FS.PathJoin(j.dir, "ballast")
	}
	opts := &pebble.Options{
		FS:                    j.disk,
		Lock:                  j.lock,
		Cache:                 pebble.NewCache(cache),
		MemTableSize:          memTable,
		FormatMajorVersion:    pebble.FormatNewest,
		FlushDelayDeleteRange: 10 * time.Second, // a forgotten job's room is free soon after
		Logger:                pebbleLogger{c.Logger, j.failure},
		EventListener:         events(c.Logger, j.failure),
	}
	defer opts.Cache.Unref()
	db, err := pebble.Open(j.dir, opts)
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.dir, err)
	}
	if err := j.readMeta(db); err != nil {
		db.Close()
		return fmt.Errorf("journal %s: %w", j.dir, err)
	}
	j.db = db
	j.disk.opened.Store(true)
	j.refill()
	return nil
}

// refill makes the ballast, once there is room for it.
func (j *Journal) refill() {
	if j.config.Ballast > 0 {
		j.disk.fill(j.config.Ballast, j.config.MinFree)
	}
}

// Stalled says that writes wait because the disk is full. Reads go on, and so do writes once there is room.
func (j *Journal) Stalled() bool { return j.disk.held.Load() > 0 }

// Free is how many bytes this user may still write where the journal is; false: the system does not say.
func (j *Journal) Free() (int64, bool) {
	u, err := j.disk.FS.GetDiskUsage(j.dir)
	return int64(u.AvailBytes), err == nil
}

// readMeta reads the journal's format, epoch and key, or makes them.
func (j *Journal) readMeta(db *pebble.DB) error {
	f, err := get(db, keyFormat)
	if errors.Is(err, pebble.ErrNotFound) {
		rand.Read(j.key[:]) // never fails; see crypto/rand
		b := db.NewBatch()
		b.Set(keyFormat, binary.BigEndian.AppendUint32(nil, format), nil)
		b.Set(keyKey, j.key[:], nil)
		return db.Apply(b, pebble.Sync)
	}
	if err != nil {
		return err
	}
	if len(f) != 4 {
		return fmt.Errorf("%s: %d bytes, want 4", describe(keyFormat), len(f))
	}
	if v := binary.BigEndian.Uint32(f); v != format {
		return fmt.Errorf("written in format %d by a newer version of meshnode, this one knows format %d: update meshnode", v, format)
	}
	k, err := get(db, keyKey)
	if err != nil || len(k) != len(j.key) {
		return fmt.Errorf("%s: %d bytes, want %d (%v)", describe(keyKey), len(k), len(j.key), err)
	}
	j.key = [32]byte(k)
	e, err := get(db, keyEpoch)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil || len(e) != 8 {
		return fmt.Errorf("%s: %d bytes, want 8 (%v)", describe(keyEpoch), len(e), err)
	}
	j.epoch = binary.BigEndian.Uint64(e)
	return nil
}

// get returns a copy of a value.
func get(db *pebble.DB, key []byte) ([]byte, error) {
	v, closer, err := db.Get(key)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	return append([]byte(nil), v...), nil
}

// Epoch raises the epoch, syncs it and returns it: from 1, one more at each call. Once at each start, before Load.
func (j *Journal) Epoch() (uint64, error) {
	if err := j.begin(); err != nil {
		return 0, err
	}
	defer j.end()
	j.mu.Lock()
	j.epoch++
	e := j.epoch
	j.mu.Unlock()
	err := j.failure.do(func() error {
		return j.db.Set(keyEpoch, binary.BigEndian.AppendUint64(nil, e), pebble.Sync)
	})
	return e, err
}

// Key is 32 random bytes, made with the journal and the same for ever: the origin's key for its MACs.
func (j *Journal) Key() [32]byte { return j.key }

// Append queues records as part of one atomic batch and returns its number; numbers rise by one with each call. It does
// not wait for the disk; it blocks only while 8 MiB are queued already, and not while the disk is full: its callers have to answer
// others meanwhile, and bring less and less, since nothing is accepted and no result answered. Batches are written in the order of the calls,
// and what the methods below read includes them.
// With sync the batch is synced at once, without it with a later one, or within 100 ms. No records and sync: all before is synced.
// The records are not kept. After the first failed write or sync every call returns that error.
// A record that cannot be encoded (invalid UTF-8 in a string, no such record) is an error of this call alone: nothing of it
// is written, and it has no number.
// An EpochRecord below the epoch is passed over.
func (j *Journal) Append(records []tasks.Record, sync bool) (uint64, error) {
	err := j.await(context.Background(), func() bool { // returns with the lock held if it returns nil
		return j.ended || j.queue == nil || j.queue.Len() < maxQueued || j.Stalled()
	})
	if err != nil {
		return 0, err
	}
	defer j.mu.Unlock()
	if j.ended || j.closed {
		return 0, ErrClosed
	}
	j.enc.reset()
	epoch := j.epoch
	for _, r := range records {
		if e, ok := r.(tasks.EpochRecord); ok {
			if e.Epoch <= epoch {
				continue
			}
			epoch = e.Epoch
		}
		if err := j.enc.record(r); err != nil {
			return 0, fmt.Errorf("journal %s: record %T: %w", j.dir, r, err)
		}
	}
	if j.queue == nil {
		j.queue = j.db.NewBatch()
	}
	if err := j.enc.write(j.queue); err != nil {
		j.failure.set(err) // the queue may have a half of it
		return 0, j.failure.get()
	}
	j.epoch = epoch
	j.appended++
	j.wantSync = j.wantSync || sync
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return j.appended, nil
}

// await waits until ok, which is called with the lock held, is true; then it returns nil, and holds the lock.
func (j *Journal) await(ctx context.Context, ok func() bool) error {
	for {
		if err := j.failure.get(); err != nil {
			return err
		}
		j.mu.Lock()
		if ok() {
			return nil
		}
		if j.changed == nil {
			j.changed = make(chan struct{})
		}
		c := j.changed
		j.mu.Unlock()
		select {
		case <-c:
		case <-j.failure.c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tell wakes those who await something; the lock is held.
func (j *Journal) tell() {
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// Run writes what Append was given, syncs it and reports on Synced, until ctx is done; then it writes
// and syncs the rest and returns nil. If writing fails it returns the reason at once. Call it once.
func (j *Journal) Run(ctx context.Context) error {
	toSync := make(chan commit, 64) // syncs under way; one disk takes all of them in one or two
	done := make(chan struct{})
	go func() {
		defer close(toSync)
		defer j.recovered()
		j.commits(ctx, toSync)
	}()
	go func() {
		defer close(done)
		defer j.recovered()
		j.syncs(toSync)
	}()
	select {
	case <-done:
	case <-j.failure.c: // one of the two may be stopped in a write for ever
	}
	return j.failure.get()
}

func (j *Journal) recovered() {
	if p := recover(); p != nil {
		j.failure.set(fmt.Errorf("storage: %v", p))
	}
}

// commit is a batch that waits for its sync; with it, all up to last are synced.
type commit struct {
	batch *pebble.Batch
	last  uint64
}

func (j *Journal) commits(ctx context.Context, toSync chan<- commit) {
	late := time.NewTimer(0)
	late.Stop()
	ballast := time.NewTicker(ballastEvery)
	defer ballast.Stop()
	unsynced := false // something was written since the last sync was asked for
	for last := false; !last; {
		due := false
		select {
		case <-j.wake:
		case <-ballast.C:
			j.refill()
			continue
		case <-late.C:
			due = true
		case <-ctx.Done():
			last = true
		case <-j.failure.c:
			return
		}
		j.mu.Lock()
		b, upTo := j.queue, j.appended
		sync := j.wantSync || (unsynced && due) || last
		j.queue, j.wantSync, j.ended = nil, false, last
		j.tell()
		j.mu.Unlock()
		if b == nil {
			if !sync {
				continue
			}
			b = j.db.NewBatch()
		}
		var err error
		if sync {
			if b.Empty() {
				err = b.LogData(nil, nil) // Pebble passes over empty batches, syncs included
			}
			if err == nil {
				err = j.db.ApplyNoSyncWait(b, pebble.Sync)
			}
		} else if !b.Empty() {
			err = j.db.Apply(b, pebble.NoSync)
		}
		if err != nil {
			j.failure.set(err)
			return
		}
		j.mu.Lock()
		j.applied = upTo
		j.tell()
		j.mu.Unlock()
		if !sync {
			b.Close()
			if !unsynced {
				unsynced = true
				late.Reset(syncWithin)
			}
			continue
		}
		unsynced = false
		late.Stop()
		select {
		case toSync <- commit{b, upTo}:
		case <-j.failure.c:
			return
		}
	}
}

func (j *Journal) syncs(toSync <-chan commit) {
	for c := range toSync {
		if err := c.batch.SyncWait(); err != nil {
			j.failure.set(err)
			return
		}
		if j.failure.get() != nil {
			return // nothing is promised any more
		}
		c.batch.Close()
		j.mu.Lock()
		j.synced = c.last
		j.tell()
		j.mu.Unlock()
		select { // replace what nobody has taken
		case <-j.syncedC:
		default:
		}
		j.syncedC <- c.last // this goroutine alone sends: there is room
	}
}

// Synced delivers the number of the newest batch that is synced, and with it are all before. It holds
// only the newest number: one receiver, usually the node's loop.
func (j *Journal) Synced() <-chan uint64 { return j.syncedC }

// Wait waits until batch n is synced. Errors: ctx's, or that of the journal.
func (j *Journal) Wait(ctx context.Context, n uint64) error {
	if err := j.await(ctx, func() bool { return j.synced >= n }); err != nil {
		return err
	}
	j.mu.Unlock()
	return nil
}

// Failed is closed at the first failed write or sync. Err has the reason. The process has to end: nothing
// is written any more, and what was reported as synced is on disk.
func (j *Journal) Failed() <-chan struct{} { return j.failure.c }

// Err is why the journal failed; nil while it works.
func (j *Journal) Err() error { return j.failure.get() }

// begin is called by what uses the store, and end after it.
func (j *Journal) begin() error {
	if err := j.failure.get(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return ErrClosed
	}
	j.users++
	return nil
}

func (j *Journal) end() {
	j.mu.Lock()
	j.users--
	j.tell()
	j.mu.Unlock()
}

// Close closes the files. Call it after Run has returned; it waits for the other calls under way. After a failure it
// leaves the store as it is, for the process ends.
func (j *Journal) Close() error {
	err := j.await(context.Background(), func() bool {
		j.closed = true // from the first look on
		return j.users == 0
	})
	if err != nil {
		return nil // the lock, too, is held until the process ends
	}
	db, q := j.db, j.queue
	j.db, j.queue, j.ended = nil, nil, true
	j.mu.Unlock()
	if db == nil {
		return nil // closed before
	}
	if q != nil {
		q.Close() // Run was never called
	}
	err = j.failure.do(db.Close)
	return errors.Join(err, j.lock.Close())
}
