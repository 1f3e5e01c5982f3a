package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/shirou/gopsutil/v4/process"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
)

// raced says that the race detector is here, and all takes ten times as long.
var raced bool

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
	ctx, cancel := context.WithTimeout(t.Context(), 180*time.Second)
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

// A job of a million tasks, of which none has run or some do, is cancelled at once, and its node goes on.
func TestCancelOfAMillion(t *testing.T) {
	t.Parallel()
	if raced {
		t.Skip("large: in the stage of that name, without the race detector")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	_, c := startNode(t, t.TempDir(), "--slots", "2")
	if err := c.Pause(ctx, 0); err != nil {
		t.Fatal(err)
	}
	code, err := os.Open("../../examples/wasm/sum_primes_reactor.wasm")
	if err != nil {
		t.Fatal(err)
	}
	defer code.Close()
	program, err := c.PutProgram(ctx, code)
	if err != nil {
		t.Fatal(err)
	}
	for _, running := range []bool{false, true} {
		const count = 1_000_000
		spec := node.JobSpec{ID: protocol.NewJobID(), Name: "many", Runtime: "wasm", Code: program, Detached: true}
		if _, err := c.Submit(ctx, spec, func(yield func([]byte, error) bool) {
			for range count {
				if !yield([]byte("1000"), nil) {
					return
				}
			}
		}, nil); err != nil {
			t.Fatal(err)
		}
		if running {
			if err := c.Resume(ctx); err != nil {
				t.Fatal(err)
			}
			for { // until some have ended, and most have not
				if j, err := c.Job(ctx, spec.ID.String()); err != nil {
					t.Fatal(err)
				} else if j.Done > 1000 {
					break
				}
				time.Sleep(time.Millisecond)
			}
		}
		began := time.Now()
		j, err := c.Cancel(ctx, spec.ID.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(ctx); err != nil { // it was the loop's turn
			t.Fatal(err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("cancelled after %v", took)
		}
		if j, err = c.Wait(ctx, spec.ID.String()); err != nil || j.State != "cancelled" || j.Tasks != count || j.Done+j.Failed != count || running == (j.Done == 0) {
			t.Errorf("%+v, %v", j, err)
		}
	}
	spec := node.JobSpec{ID: protocol.NewJobID(), Name: "after", Runtime: "wasm", Code: program, Detached: true}
	if _, err := c.Submit(ctx, spec, func(yield func([]byte, error) bool) { yield([]byte("10"), nil) }, nil); err != nil {
		t.Fatal(err)
	}
	if j, err := c.Wait(ctx, spec.ID.String()); err != nil || j.Done != 1 {
		t.Errorf("%+v, %v", j, err)
	}
}

// What results writes passes through the node and the command, and stays in neither.
func TestResultsStream(t *testing.T) {
	t.Parallel()
	if raced {
		t.Skip("large: in the stage of that name, without the race detector")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 240*time.Second)
	defer cancel()
	dir := t.TempDir()
	nd, c := startNode(t, dir, "--slots", "2")
	code, err := os.Open("../../tasks/executor/wasm/testdata/echo.wasm")
	if err != nil {
		t.Fatal(err)
	}
	defer code.Close()
	program, err := c.PutProgram(ctx, code)
	if err != nil {
		t.Fatal(err)
	}
	const count, size = 2500, 60_000
	input := append(bytes.Repeat([]byte("x"), size-1), '\n')
	spec := node.JobSpec{ID: protocol.NewJobID(), Name: "large", Runtime: "wasm", Code: program, Detached: true}
	if _, err := c.Submit(ctx, spec, func(yield func([]byte, error) bool) {
		for range count {
			if !yield(input, nil) {
				return
			}
		}
	}, nil); err != nil {
		t.Fatal(err)
	}
	if j, err := c.Wait(ctx, spec.ID.String()); err != nil || j.Done != count {
		t.Fatalf("%+v, %v", j, err)
	}
	resident := func(pid int) uint64 {
		p, err := process.NewProcess(int32(pid))
		if err != nil {
			return 0
		}
		m, err := p.MemoryInfo()
		if err != nil {
			return 0
		}
		return m.RSS >> 20
	}
	before := resident(nd.Process.Pid)
	bin, err := exec.LookPath("meshnode")
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--tag=false", "-k"} {
		cmd := exec.CommandContext(ctx, bin, "results", flag, spec.ID.String())
		cmd.Env = append(os.Environ(), "MESHNODE_DATA_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var came int64
		var client, server uint64
		for buf := make([]byte, 1<<20); ; {
			n, err := io.ReadFull(out, buf)
			came += int64(n)
			client, server = max(client, resident(cmd.Process.Pid)), max(server, resident(nd.Process.Pid))
			if err != nil {
				break
			}
		}
		if err := cmd.Wait(); err != nil || came != count*size {
			t.Fatalf("%s: %d bytes, %v", flag, came, err)
		}
		t.Logf("%s: %d MiB of results; the command took %d MiB, the node %d MiB, %d before", flag, came>>20, client, server, before)
		// Besides 64 MiB of what waits for its turn with -k: a megabyte or two of buffers, and garbage.
		if client > map[bool]uint64{true: 180, false: 120}[flag == "-k"] || server > before+100 {
			t.Errorf("%s: the command took %d MiB, the node %d MiB, %d before", flag, client, server, before)
		}
	}
}
