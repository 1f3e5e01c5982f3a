package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"meshnode/tasks"
)

var discard = slog.New(slog.DiscardHandler)

// faulty is a file system in memory that asks fault before each operation.
func faulty(fault func(errorfs.Op) error) (*vfs.MemFS, vfs.FS) {
	mem := vfs.NewCrashableMem()
	return mem, errorfs.Wrap(mem, errorfs.InjectorFunc(fault))
}

// pair is the i-th batch of the crash tests, from 0: two records that must be there both or not at all.
func pair(i int) []tasks.Record {
	return []tasks.Record{tasks.TasksRecord{Job: job(1), First: uint32(i), Inputs: inputs(i, 1)}, done(job(1), uint32(i), uint32(i))}
}

// checkPrefix fails unless j has the first n batches of pair, for an n of at least least, each whole, and nothing else.
func checkPrefix(t *testing.T, j *Journal, least int) (n int) {
	t.Helper()
	ins, err := j.Inputs(job(1), 0, 1<<20, 1<<30)
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	rs, err := j.Results(job(1), 0, 1<<20, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if len(ins) != len(rs) {
		t.Fatalf("%d inputs and %d results: a batch is there by half", len(ins), len(rs))
	}
	for i := range ins {
		if string(ins[i].Data) != fmt.Sprintf("input %d", i) || rs[i].Seq != uint32(i) || rs[i].Outcome.Index != uint32(i) {
			t.Fatalf("batch %d: %q, %v", i, ins[i].Data, rs[i])
		}
	}
	if len(ins) < least {
		t.Fatalf("%d batches: %d were reported as synced", len(ins), least)
	}
	return len(ins)
}

// The power goes at any write, sync or other change of the disk: all that was reported as synced is there, batches
// are whole, and none is there without those before it.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	// run appends 60 batches and takes images of the disk before its at-th change, each with other parts of what is not synced, and what was reported by then.
	run := func(at int64) (images []*vfs.MemFS, reported int, changes int64) {
		var count, synced atomic.Int64
		var mem *vfs.MemFS
		var fs vfs.FS
		mem, fs = faulty(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && count.Add(1) == at {
				reported = int(synced.Load()) // before the image: what is reported later need not be in it
				for percent := 30; percent < 100; percent += 40 {
					rng := rand.New(rand.NewPCG(uint64(at), uint64(percent)))
					images = append(images, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
				}
			}
			return nil
		})
		j, stop := start(t, "journal", Config{FS: fs})
		for i := range 60 {
			n := must(t, j, i%3 == 0, pair(i)...)
			if i%7 == 0 {
				wait(t, j, must(t, j, true))
				n++
			}
			j.mu.Lock()
			// Empty batches have numbers, too: count those of pair only.
			if s := j.synced; s == n {
				synced.Store(int64(i + 1))
			}
			j.mu.Unlock()
		}
		stop()
		return images, reported, count.Load()
	}
	_, _, changes := run(0)
	if changes < 50 {
		t.Fatalf("%d changes of the disk: too few to mean anything", changes)
	}
	most := 0
	for at := int64(1); at <= changes; at++ {
		images, reported, _ := run(at) // none if this run took fewer changes
		for _, image := range images {
			j, stop := start(t, "journal", Config{FS: image})
			most = max(most, checkPrefix(t, j, reported))
			stop()
		}
	}
	if most < 50 {
		t.Errorf("at most %d batches were found: the images are wrong", most)
	}
}

// What is reported as synced is, also if it was written long before and only then synced: by an empty batch,
// after a time, or at the end.
func TestSyncedLater(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"empty batch", "time", "end"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			mem := vfs.NewCrashableMem()
			j, err := Open("journal", Config{FS: mem})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ran := make(chan error, 1)
			go func() { ran <- j.Run(ctx) }()
			wait(t, j, must(t, j, true))
			n := must(t, j, false, pair(0)...)
			checkPrefix(t, j, 1) // reads, so it was written
			switch how {
			case "empty batch":
				wait(t, j, must(t, j, true))
			case "time":
				wait(t, j, n)
			case "end":
				cancel()
				if err := <-ran; err != nil {
					t.Fatal(err)
				}
				wait(t, j, n)
			}
			again, stop := start(t, "journal", Config{FS: mem.CrashClone(vfs.CrashCloneCfg{})})
			checkPrefix(t, again, 1)
			stop()
			if how != "end" {
				cancel()
				<-ran
			}
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A disk that fails at a write or a sync, at any of them: one error, at once and for ever, from everything;
// nothing is written afterwards; what was reported as synced is on the disk.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		kinds []errorfs.OpKind
		skips int64 // up to so many are let pass
		err   error
		line  string
	}{
		{"write", []errorfs.OpKind{errorfs.OpFileWrite}, 6, syscall.EIO, "input/output error"},
		{"sync", []errorfs.OpKind{errorfs.OpFileSync, errorfs.OpFileSyncData}, 6, syscall.EIO, "sync"},
		{"create", []errorfs.OpKind{errorfs.OpCreate, errorfs.OpReuseForWrite}, 3, syscall.EIO, "input/output error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for skip := int64(0); skip < c.skips; skip++ {
				var armed, broken atomic.Bool
				var count, late atomic.Int64
				mem, fs := faulty(func(op errorfs.Op) error {
					if broken.Load() {
						if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose {
							late.Add(1)
						}
						return nil
					}
					if !armed.Load() {
						return nil
					}
					for _, k := range c.kinds {
						if op.Kind == k && count.Add(1) > skip {
							broken.Store(true)
							return c.err
						}
					}
					return nil
				})
				j, err := Open("journal", Config{FS: fs})
				if err != nil {
					t.Fatal(err)
				}
				ran := make(chan error, 1)
				go func() { ran <- j.Run(context.Background()) }()
				armed.Store(true)
				// Small batches, then large ones, which rotate the log and flush memtables.
				synced := 0
				var first error
				deadline := time.Now().Add(30 * time.Second)
				for i := 0; first == nil; i++ {
					if time.Now().After(deadline) {
						t.Fatalf("skip %d: the disk never failed", skip)
					}
					rs := pair(i)
					if i > 5 {
						big := done(job(2), uint32(i), 0)
						big.Done.Outcome.Output = make([]byte, 3<<20)
						rs = append(rs, big)
					}
					var n uint64
					if n, first = j.Append(rs, i%2 == 0); first == nil && i%2 == 0 {
						ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
						if first = j.Wait(ctx, n); first == nil {
							synced = i + 1
						}
						cancel()
					}
				}
				if !errors.Is(first, c.err) || !strings.Contains(first.Error(), c.line) || strings.Contains(first.Error(), "\n") {
					t.Fatalf("skip %d: %q: want one line with %q", skip, first, c.line)
				}
				select {
				case err := <-ran:
					if err != first {
						t.Fatalf("Run: %v, want %v", err, first)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("skip %d: Run does not return", skip)
				}
				<-j.Failed()
				for name, err := range map[string]error{
					"Append": func() error { _, err := j.Append(pair(0), false); return err }(), "Err": j.Err(),
					"Epoch":   func() error { _, err := j.Epoch(); return err }(),
					"Results": func() error { _, err := j.Results(job(1), 0, 1, 1); return err }(),
					"Wait":    j.Wait(context.Background(), 1<<60), "Load": j.Load(func(tasks.Record) error { return nil }),
				} {
					if err != first {
						t.Errorf("%s: %v, want %v", name, err, first)
					}
				}
				if err := j.Close(); err != nil {
					t.Error(err)
				}
				// Log, flush and compaction may each be in the middle of a change.
				if n := late.Load(); n > 3 {
					t.Errorf("skip %d: %d changes of the disk after the failure", skip, n)
				}
				again, stop := start(t, "journal", Config{FS: mem.CrashClone(vfs.CrashCloneCfg{})})
				checkPrefix(t, again, synced)
				stop()
			}
		})
	}
}

// After a failure nothing that would change the disk is done, nor does it return to Pebble with an error.
func TestFence(t *testing.T) {
	t.Parallel()
	d := &disk{FS: vfs.NewMem(), failure: newFailure("journal")}
	f, err := d.Create("f", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	d.failure.set(syscall.EIO)
	passed := make(chan string)
	for name, op := range map[string]func(){
		"create": func() { d.Create("g", vfs.WriteCategoryUnspecified) }, "open": func() { d.OpenReadWrite("f", vfs.WriteCategoryUnspecified) },
		"reuse": func() { d.ReuseForWrite("f", "g", vfs.WriteCategoryUnspecified) }, "link": func() { d.Link("f", "g") },
		"rename": func() { d.Rename("f", "g") }, "mkdir": func() { d.MkdirAll("h", 0o700) }, "remove": func() { d.Remove("f") },
		"remove all": func() { d.RemoveAll("f") }, "write": func() { f.Write([]byte("x")) }, "write at": func() { f.WriteAt([]byte("x"), 0) },
		"preallocate": func() { f.Preallocate(0, 1) }, "sync": func() { f.Sync() }, "sync data": func() { f.SyncData() }, "sync to": func() { f.SyncTo(1) },
	} {
		go func() {
			op()
			passed <- name
		}()
	}
	select {
	case name := <-passed:
		t.Errorf("%s passed", name)
	case <-time.After(100 * time.Millisecond): // they must never return: this waits for a defect, not for success
	}
}

// A disk that fails while the journal is opened is an error, not a hang, a panic, or the end of the process.
func TestDiskFailsAtOpen(t *testing.T) {
	t.Parallel()
	opened := false
	for skip := int64(0); !opened; skip++ {
		if skip > 1000 {
			t.Fatal("never opens")
		}
		var count atomic.Int64
		_, fs := faulty(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpRemove, errorfs.OpRemoveAll, errorfs.OpFilePreallocate:
				return nil // harmless
			}
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && count.Add(1) == skip+1 {
				return syscall.ENOSPC
			}
			return nil
		})
		j, err := Open("journal", Config{FS: fs})
		if err == nil {
			opened = count.Load() <= skip
			if !opened {
				t.Errorf("operation %d failed, and Open did not notice", skip)
			}
			j.Close()
			return
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("operation %d: %v", skip, err)
		}
	}
}

// A file that rots is found when it is read, and named.
func TestDamagedValue(t *testing.T) {
	t.Parallel()
	j, _ := start(t, t.TempDir(), Config{})
	a := job(1)
	wait(t, j, must(t, j, true, done(a, 0, 0), done(a, 1, 1), tasks.TasksRecord{Job: a, Inputs: inputs(0, 3)}))
	if err := j.db.Set(numberKey(nil, a, partDone, 1), []byte{0xff}, nil); err != nil {
		t.Fatal(err)
	}
	if err := j.db.Set(numberKey(nil, a, partTasks, 0), []byte{200, 1}, nil); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"result 1": func() error { _, err := j.Result(a, 1); return err }(),
		"result 1 of all": func() error {
			_, err := j.Results(a, 0, 9, 1<<20)
			return err
		}(),
		"inputs 0":         func() error { _, err := j.Inputs(a, 0, 1, 1<<30); return err }(),
		"inputs 0 at load": j.Load(func(tasks.Record) error { return nil }),
	} {
		name, _, _ := strings.Cut(name, " of ")
		name, _, _ = strings.Cut(name, " at ")
		if err == nil || !strings.Contains(err.Error(), a.String()) || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: want the job and %q in it", err, name)
		}
	}
	if _, err := j.Result(a, 0); err != nil {
		t.Errorf("a damaged neighbour: %v", err)
	}
}
