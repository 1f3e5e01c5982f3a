package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
)

// badDisk is meshnode on a disk whose syncs fail as soon as there is a file named as the variable says.
func badDisk() {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		main()
	}
	e := system()
	e.journal.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			if _, err := os.Stat(os.Getenv("BAD_DISK")); err == nil {
				return syscall.EIO
			}
		}
		return nil
	}))
	os.Exit(run(context.Background(), e, os.Args[1:]))
}

// A sync that fails ends the node with one line that says so. Started again on a disk that is whole it has each job that was
// accepted, and each of them ends with each result once.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	bin, err := exec.LookPath("meshnode-bad-disk")
	if err != nil {
		t.Fatal(err)
	}
	nd := exec.Command(bin, "up", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0", "--slots", "2", "--data-dir", dir)
	nd.Env = append(os.Environ(), "BAD_DISK="+bad)
	var errs strings.Builder
	nd.Stderr = &errs
	nd.WaitDelay = time.Second
	if err := nd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nd.Process.Kill(); nd.Wait() })
	var c *control.Client
	for end := time.Now().Add(20 * time.Second); c == nil; time.Sleep(5 * time.Millisecond) {
		if c, err = control.Dial(dir); err != nil && time.Now().After(end) {
			t.Fatal(err)
		}
	}
	defer c.Close()
	code, err := os.Open(sumPrimes)
	if err != nil {
		t.Fatal(err)
	}
	defer code.Close()
	program, err := c.PutProgram(ctx, code)
	if err != nil {
		t.Fatal(err)
	}
	const count = 50
	inputs := func(yield func([]byte, error) bool) {
		for i := range count {
			if !yield(fmt.Append(nil, 2000+i), nil) {
				return
			}
		}
	}
	lost, gone := context.WithCancel(ctx) // ends with the node
	go func() {
		nd.Wait()
		gone()
	}()
	var accepted []protocol.JobID
	for lost.Err() == nil {
		if len(accepted) == 10 {
			if err := os.WriteFile(bad, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		spec := node.JobSpec{ID: protocol.NewJobID(), Name: "sync", Runtime: "wasm", Code: program, Detached: true}
		if _, err := c.Submit(lost, spec, inputs, nil); err == nil {
			accepted = append(accepted, spec.ID)
		} else if len(accepted) < 10 {
			t.Fatal(err)
		}
	}
	if ctx.Err() != nil {
		t.Fatalf("the node goes on\n%s", &errs)
	}
	if len(accepted) > 11 { // one may have been on its way
		t.Errorf("%d jobs were accepted, 10 of them before the disk failed", len(accepted))
	}
	if code := nd.ProcessState.ExitCode(); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
	said := 0
	for line := range strings.Lines(errs.String()) {
		if strings.HasPrefix(line, "meshnode: ") && !strings.Contains(line, "recovery code") {
			said++
			if !strings.Contains(line, "cannot be written") || !strings.Contains(line, "sync ") || !strings.Contains(line, "input/output error") || !strings.Contains(line, dir) {
				t.Errorf("%q", line)
			}
		}
	}
	if said != 1 || strings.Contains(errs.String(), "goroutine ") {
		t.Errorf("want one line\n%s", &errs)
	}

	_, c = startNode(t, dir, "--slots", "2")
	for _, id := range accepted {
		j, err := c.Wait(ctx, id.String())
		if err != nil || j.State != "done" || j.Done != count {
			t.Fatalf("%+v, %v", j, err)
		}
		seen := map[uint32]int{}
		if _, err := c.Follow(ctx, id, control.Watching{}, func(rs []control.Result) error {
			for _, r := range rs {
				seen[r.Index]++
			}
			return nil
		}); err != nil || len(seen) != count {
			t.Fatalf("%d results, %v", len(seen), err)
		}
		for i, n := range seen {
			if n != 1 {
				t.Errorf("task %d has %d results", i, n)
			}
		}
	}
}
