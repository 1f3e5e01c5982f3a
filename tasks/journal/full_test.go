package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"meshnode/tasks"
)

// until waits for a condition that an event elsewhere brings.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 30 s: %s", what)
		}
	}
}

// A disk that is full holds what is to be written, of whatever kind: nothing is reported, reads go on. Once there is room all of it is
// written, and nothing lost or there twice.
func TestFullForAWhile(t *testing.T) {
	t.Parallel()
	for name, kinds := range map[string][]errorfs.OpKind{
		"write": {errorfs.OpFileWrite}, "create": {errorfs.OpCreate, errorfs.OpReuseForWrite, errorfs.OpRename, errorfs.OpLink},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var full atomic.Bool
			mem, fs := faulty(func(op errorfs.Op) error {
				for _, k := range kinds {
					if full.Load() && op.Kind == k {
						return syscall.ENOSPC
					}
				}
				return nil
			})
			j, stop := start(t, "journal", Config{FS: fs})
			n := uint64(0)
			for i := range 20 {
				n = must(t, j, true, pair(i)...)
			}
			wait(t, j, n)
			full.Store(true)
			// Large ones rotate the log, which creates files.
			appended := make(chan int, 1)
			go func() {
				i := 20
				for ; i < 60 || name == "create" && !j.Stalled() && i < 4000; i++ {
					rs := pair(i)
					rs = append(rs, blob(i))
					if _, err := j.Append(rs, i%2 == 0); err != nil {
						break
					}
				}
				appended <- i
			}()
			until(t, "a write is held", j.Stalled)
			if rs, err := j.Results(job(1), 0, 10, 1<<20); name == "write" && (err != nil || len(rs) != 10) {
				t.Fatalf("%d results, %v: reads have to go on", len(rs), err)
			}
			if err := j.Err(); err != nil {
				t.Fatal(err)
			}
			all := 0
			select {
			case all = <-appended:
			case <-time.After(30 * time.Second):
				t.Fatal("Append waits for a full disk")
			}
			went := make(chan struct{})
			go func() { // more than memory has room for otherwise
				defer close(went)
				for end := all + 2*(memTable+maxQueued)/(64<<10); all < end; all++ {
					if _, err := j.Append(append(pair(all), blob(all)), all%2 == 0); err != nil {
						break
					}
				}
			}()
			select {
			case <-went:
			case <-time.After(30 * time.Second):
				t.Fatal("Append waits for a full disk")
			}
			full.Store(false)
			n = must(t, j, true)
			wait(t, j, n)
			if j.Stalled() {
				t.Fatal("it is stalled, and all is written")
			}
			if got := checkPrefix(t, j, all); got != all {
				t.Fatalf("%d batches, want %d", got, all)
			}
			stop()
			again, stop := start(t, "journal", Config{FS: mem})
			checkPrefix(t, again, all)
			stop()
		})
	}
}

// The same with a small file system of its own, which is really full. The ballast gives way first.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("only root may mount a small file system")
	}
	dir := t.TempDir()
	mountSmall(t, dir, "48m")
	j, stop := start(t, filepath.Join(dir, "journal"), Config{Ballast: 4 << 20, MinFree: 8 << 20})
	ballast := filepath.Join(dir, "journal", "ballast")
	if st, err := os.Stat(ballast); err != nil || !st.Mode().IsRegular() {
		t.Fatalf("ballast: %v %v", st, err)
	}
	n := uint64(0)
	for i := range 100 {
		n = must(t, j, true, pair(i)...)
	}
	wait(t, j, n)
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 64<<10))
	}
	filler.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if free, ok := j.Free(); !ok || free > 1<<20 {
		t.Fatalf("%d bytes free, %v", free, ok)
	}
	// What is small still goes, by the room of the ballast.
	done := make(chan error, 1)
	go func() {
		for i := 100; i < 400; i++ {
			if _, err := j.Append(append(pair(i), blob(i)), true); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	until(t, "a write is held", j.Stalled)
	if _, err := os.Stat(ballast); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the ballast is still there: %v", err)
	}
	if rs, err := j.Results(job(1), 0, 100, 1<<20); err != nil || len(rs) != 100 {
		t.Fatalf("%d results, %v: reads have to go on", len(rs), err)
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := j.Wait(ctx, must(t, j, true)); err != nil {
		t.Fatal(err)
	}
	until(t, "no write is held", func() bool { return !j.Stalled() })
	if got := checkPrefix(t, j, 400); got != 400 {
		t.Fatalf("%d batches, want 400", got)
	}
	stop()
	j, stop = start(t, filepath.Join(dir, "journal"), Config{})
	checkPrefix(t, j, 400)
	stop()
}

// blob is a result of 64 KiB, of another job.
func blob(i int) tasks.Record {
	d := done(job(2), uint32(i), 0)
	d.Done.Outcome.Output = make([]byte, 64<<10)
	for k := range d.Done.Outcome.Output { // it does not compress
		d.Done.Outcome.Output[k] = byte(i*k*k>>3 + k*i)
	}
	return d
}
