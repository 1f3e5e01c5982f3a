package main

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
)

// fill takes all the room that there is on the disk of dir, and what becomes free, until the function that it returns is called.
func fill(t *testing.T, dir string) (stop func()) {
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	full, quit, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer os.Remove(f.Name())
		defer f.Close()
		size, first := 1<<20, full
		for {
			if _, err := f.Write(make([]byte, size)); err == nil {
				continue
			} else if !errors.Is(err, syscall.ENOSPC) {
				t.Error(err)
			}
			if size > 4<<10 {
				size = 4 << 10
				continue
			}
			if first != nil {
				close(first)
				first = nil
			}
			select {
			case <-quit:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	<-full
	return func() {
		close(quit)
		<-ended
	}
}

// On a disk without a free byte a node refuses submissions in one line that names the disk, why names it, results can be read, and
// results of what ran are held. With room again all of it goes on, and each result is there once.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if raced {
		t.Skip("large: in the stage of that name, without the race detector")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=600m"); err != nil {
		t.Skipf("a small file system needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	dir := filepath.Join(disk, "node")
	_, c := startNode(t, dir, "--slots", "2")
	meshnode := func(args ...string) (int, string, string) {
		t.Helper()
		cmd, out, errs := start(t, dir, args...)
		return wait(t, cmd, 30*time.Second), out.String(), errs.String()
	}
	if code, out, errs := meshnode("submit", sumPrimes, ":::", "10", "100"); code != 0 || strings.Count(out, "\n") != 2 {
		t.Fatal(code, out, errs)
	}
	before, err := c.Job(ctx, "@last")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Pause(ctx, 0); err != nil {
		t.Fatal(err)
	}
	echo, err := os.Open("../../tasks/executor/wasm/testdata/echo.wasm")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	program, err := c.PutProgram(ctx, echo)
	if err != nil {
		t.Fatal(err)
	}
	// 54 MB of results: more than the rooms that the store has taken before, and than what may wait in memory.
	const count, size = 900, 60_000
	noise := make([]byte, count+size)
	rand.Read(noise)
	spec := node.JobSpec{ID: protocol.NewJobID(), Name: "held", Runtime: "wasm", Code: program, Detached: true}
	if _, err := c.Submit(ctx, spec, func(yield func([]byte, error) bool) {
		for i := range count {
			if !yield(noise[i:i+size], nil) {
				return
			}
		}
	}, nil); err != nil {
		t.Fatal(err)
	}

	empty := fill(t, disk)
	if err := c.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	for { // the ballast goes first, which the filler takes
		if st, err := c.Status(ctx); err != nil {
			t.Fatal(err)
		} else if strings.HasPrefix(st.Disk, "stalled") {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("no write is held")
		}
		time.Sleep(5 * time.Millisecond)
	}
	code, out, errs := meshnode("submit", sumPrimes, ":::", "10")
	if code != exitFailure || out != "" || strings.Count(errs, "\n") > 2 || !strings.HasPrefix(errs, "meshnode: no new tasks: stalled: the disk is full") {
		t.Errorf("submit: %d, %q, %q", code, out, errs)
	}
	if code, out, errs := meshnode("why", spec.ID.String()); code != 0 || !strings.Contains(out, "\n  disk") || !strings.Contains(out, "the disk is full") {
		t.Errorf("why: %d, %q, %q", code, out, errs)
	}
	if code, out, errs := meshnode("results", before.ID); code != 0 || strings.Count(out, "\n") != 2 {
		t.Errorf("results: %d, %q, %q", code, out, errs)
	}
	if j, err := c.Job(ctx, spec.ID.String()); err != nil || j.State == "done" {
		t.Errorf("%+v, %v: its results are not on the disk", j, err)
	}

	empty()
	j, err := c.Wait(ctx, spec.ID.String())
	if err != nil || j.State != "done" || j.Done != count || j.Failed != 0 {
		t.Fatalf("%+v, %v", j, err)
	}
	seen := map[uint32]bool{}
	if _, err := c.Follow(ctx, spec.ID, control.Watching{}, func(rs []control.Result) error {
		for _, r := range rs {
			if seen[r.Index] || string(r.Output) != string(noise[r.Index:r.Index+size]) {
				t.Errorf("task %d: twice, or wrong", r.Index)
			}
			seen[r.Index] = true
		}
		return nil
	}); err != nil || len(seen) != count {
		t.Fatalf("%d results, %v", len(seen), err)
	}
	if code, out, errs := meshnode("submit", sumPrimes, ":::", "10"); code != 0 || out != "17\n" {
		t.Errorf("submit with room again: %d, %q, %q", code, out, errs)
	}
}
