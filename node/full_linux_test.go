package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshnode/protocol"
)

// On a disk that is full a submission is refused with that reason, results can be read and what runs ends; with room again all
// goes on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=420m"); err != nil {
		t.Skipf("a small file system needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	n, stop := startIn(t, filepath.Join(dir, "node"), "full", 2)
	defer stop()
	_, before := submit(t, n, "sum_primes.wasm", numbers(5))
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()

	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 1<<20))
	}
	filler.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	var refused *Error
	id, err := protocol.ParseJobID(before.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.AddTasks(ctx, protocol.NewJobID(), 0, plain(numbers(1))); !errors.As(err, &refused) || refused.Code != CodeUnavailable || !strings.Contains(refused.Message, "disk") {
		t.Fatalf("submitted to a full disk: %v", err)
	}
	if st, err := n.Status(ctx); err != nil || !strings.Contains(st.Disk, "disk") {
		t.Fatalf("status: %q, %v", st.Disk, err)
	}
	got := 0
	j, err := n.Watch(ctx, id, 0, protocol.MaxOutput, func(rs []TaskResult) error { got += len(rs); return nil })
	if err != nil || got != 5 || j.State != "done" {
		t.Fatalf("%d results, %+v, %v", got, j, err)
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	if _, j := submit(t, n, "sum_primes.wasm", numbers(5)); j.Done != 5 {
		t.Fatalf("after there was room: %+v", j)
	}
	if st, err := n.Status(ctx); err != nil || st.Disk != "" {
		t.Fatalf("status: %q, %v", st.Disk, err)
	}
}
