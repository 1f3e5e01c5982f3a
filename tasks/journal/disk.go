package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// failure is the first error that ends the journal.
type failure struct {
	dir  string
	once sync.Once
	c    chan struct{} // closed after err was set
	err  error
}

func newFailure(dir string) *failure { return &failure{dir: dir, c: make(chan struct{})} }

func (f *failure) set(err error) {
	f.once.Do(func() {
		f.err = fmt.Errorf("journal %s: %w", f.dir, err)
		close(f.c)
	})
}

func (f *failure) get() error {
	select {
	case <-f.c:
		return f.err
	default:
		return nil
	}
}

// do runs fn and waits for it, or for the failure: then fn may be stopped for ever in a write.
func (f *failure) do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				f.set(fmt.Errorf("storage: %v", p))
			}
		}()
		done <- fn()
	}()
	select {
	case err := <-done:
		if failed := f.get(); failed != nil {
			return failed
		}
		return err
	case <-f.c:
		return f.err
	}
}

// disk is the file system that Pebble works on. An error of anything that writes is a failure, and
// Pebble never sees it: see the package comment. Errors of reading pass, and so do those of removing files, without which
// Pebble can live. Where there is no room, the writer is held until there is.
type disk struct {
	vfs.FS
	failure *failure
	// volatile: nothing is synced.
	volatile bool
	ballast  string // a file that is removed when the room is needed
	opened   atomic.Bool
	held     atomic.Int32 // writers
	onHold   func()       // called with the first of them
}

// fullEvery is how often a held writer looks for room.
const fullEvery = 100 * time.Millisecond

// isFull says that err is the want of room, which may come. (112 is Windows' ERROR_DISK_FULL.)
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || runtime.GOOS == "windows" && errors.Is(err, syscall.Errno(112))
}

// whenRoom does f, again and again as long as there is no room for it. Any other error stops the caller for ever. While the
// journal is opened nobody is held: then a full disk is an error like others.
func (d *disk) whenRoom(op, name string, f func() error) {
	held := false
	for {
		d.fence()
		err := f()
		if isFull(err) && d.ballast != "" && d.FS.Remove(d.ballast) == nil {
			continue
		}
		if !isFull(err) || !d.opened.Load() {
			if held {
				d.held.Add(-1)
			}
			d.must(op, name, err)
			return
		}
		if !held {
			held = true
			if d.held.Add(1) == 1 {
				d.onHold()
			}
		}
		select {
		case <-time.After(fullEvery):
		case <-d.failure.c:
			select {}
		}
	}
}

// fill makes the ballast of that size, if it is not there and leaves as much room again above least.
func (d *disk) fill(size, least int64) {
	dir := d.FS.PathDir(d.ballast)
	if u, err := d.FS.GetDiskUsage(dir); err != nil || int64(u.AvailBytes) < least+2*size {
		return
	}
	if _, err := d.FS.Stat(d.ballast); err == nil {
		return
	}
	f, err := d.FS.Create(d.ballast, vfs.WriteCategoryUnspecified)
	if err != nil {
		return
	}
	// Linux gives a file its room at once; elsewhere it has to be written.
	if err = f.Preallocate(0, size); runtime.GOOS != "linux" {
		zeros := make([]byte, 1<<20)
		for n := int64(0); n < size && err == nil; n += int64(len(zeros)) {
			_, err = f.Write(zeros)
		}
	}
	if cerr := f.Close(); err != nil || cerr != nil {
		d.FS.Remove(d.ballast)
	}
}

// fence stops the caller for ever once the journal has failed: nothing is written after that.
func (d *disk) fence() {
	if d.failure.get() != nil {
		select {}
	}
}

// must stops the caller for ever if err is not nil.
func (d *disk) must(op, name string, err error) {
	if err == nil {
		return
	}
	var pe *fs.PathError
	var le *os.LinkError
	if errors.As(err, &pe) {
		err = pe.Err // the operation and the name are in our line already
	} else if errors.As(err, &le) {
		err = le.Err
	}
	d.failure.set(fmt.Errorf("%s %s: %w", op, filepath.Base(name), err))
	select {}
}

func (d *disk) file(op, name string, open func() (vfs.File, error)) (file vfs.File, _ error) {
	d.whenRoom(op, name, func() (err error) {
		file, err = open()
		return err
	})
	return &diskFile{File: file, disk: d, name: name}, nil
}

// Create first syncs the folder if name is one of Pebble's markers, which name another new file: Pebble syncs the
// folder only afterwards, and a power loss could leave the marker without what it names, and the store unreadable.
func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	d.fence()
	if strings.HasPrefix(filepath.Base(name), "marker.") {
		dir := d.FS.PathDir(name)
		f, err := d.FS.OpenDir(dir)
		d.must("open", dir, err)
		if !d.volatile {
			d.must("sync", dir, f.Sync())
		}
		d.must("close", dir, f.Close())
	}
	return d.file("create", name, func() (vfs.File, error) { return d.FS.Create(name, c) })
}

func (d *disk) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.file("open", name, func() (vfs.File, error) { return d.FS.OpenReadWrite(name, c, opts...) })
}

func (d *disk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return d.file("reuse", to, func() (vfs.File, error) { return d.FS.ReuseForWrite(from, to, c) })
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &diskFile{File: f, disk: d, name: name}, nil
}

func (d *disk) Link(from, to string) error {
	d.whenRoom("link", to, func() error { return d.FS.Link(from, to) })
	return nil
}

func (d *disk) Rename(from, to string) error {
	d.whenRoom("rename", to, func() error { return d.FS.Rename(from, to) })
	return nil
}

func (d *disk) MkdirAll(dir string, perm os.FileMode) error {
	d.whenRoom("mkdir", dir, func() error { return d.FS.MkdirAll(dir, perm) })
	return nil
}

func (d *disk) Remove(name string) error {
	d.fence()
	return d.FS.Remove(name)
}

func (d *disk) RemoveAll(name string) error {
	d.fence()
	return d.FS.RemoveAll(name)
}

func (d *disk) Unwrap() vfs.FS { return d.FS }

type diskFile struct {
	vfs.File
	disk *disk
	name string
}

func (f *diskFile) Write(p []byte) (int, error) {
	n := 0
	f.disk.whenRoom("write", f.name, func() error {
		k, err := f.File.Write(p[n:]) // a part may fit
		n += k
		return err
	})
	return n, nil
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	f.disk.whenRoom("write", f.name, func() error {
		k, err := f.File.WriteAt(p[n:], off+int64(n))
		n += k
		return err
	})
	return n, nil
}

// Preallocate is a hint: where it fails for want of room, the write that needs the room will fail.
func (f *diskFile) Preallocate(off, length int64) error {
	f.disk.fence()
	_ = f.File.Preallocate(off, length)
	return nil
}

func (f *diskFile) Sync() error {
	f.disk.fence()
	if f.disk.volatile {
		return nil
	}
	f.disk.must("sync", f.name, f.File.Sync())
	return nil
}

func (f *diskFile) SyncData() error {
	f.disk.fence()
	if f.disk.volatile {
		return nil
	}
	f.disk.must("sync", f.name, f.File.SyncData())
	return nil
}

func (f *diskFile) SyncTo(length int64) (bool, error) {
	f.disk.fence()
	if f.disk.volatile {
		return true, nil
	}
	full, err := f.File.SyncTo(length)
	f.disk.must("sync", f.name, err)
	return full, nil
}

func (f *diskFile) Close() error {
	f.disk.must("close", f.name, f.File.Close())
	return nil
}

// pebbleLogger takes what Pebble says.
type pebbleLogger struct {
	log     *slog.Logger
	failure *failure
}

func (l pebbleLogger) Infof(format string, args ...any) {
	l.log.Debug("storage", "text", fmt.Sprintf(format, args...))
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.log.Warn("storage", "text", fmt.Sprintf(format, args...))
}

// Fatalf must not return, and may hold Pebble's locks. Its own way would be to end the process here.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.failure.set(fmt.Errorf("storage: "+format, args...))
	select {}
}

// events are what of Pebble's doings an operator should know.
func events(log *slog.Logger, f *failure) *pebble.EventListener {
	return &pebble.EventListener{
		BackgroundError: func(err error) { log.Warn("journal: background work", "err", err) },
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			f.set(fmt.Errorf("%s is damaged: %w", filepath.Base(i.Path), i.Details))
		},
		DiskSlow: func(i pebble.DiskSlowInfo) {
			log.Warn("journal: the disk is slow", "file", filepath.Base(i.Path), "op", i.OpType.String(), "duration", i.Duration)
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) { log.Debug("journal: writes wait", "reason", i.Reason) },
		WriteStallEnd:   func() { log.Debug("journal: writes go on") },
	}
}
