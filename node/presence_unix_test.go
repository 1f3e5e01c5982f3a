//go:build unix

package node

import (
	"context"
	"syscall"
	"testing"
	"time"
)

// After a sleep, a connection at whose other end nothing answers is closed within seconds, and the member is found again when
// it is there.
func TestWakeToDeadConnection(t *testing.T) {
	t.Parallel()
	var bed sleeper
	a, stop := startIn(t, t.TempDir(), "a", 0, bed.config)
	t.Cleanup(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	_, child, s := startChild(t, ctx, a, "worker")
	if err := child.Signal(syscall.SIGSTOP); err != nil { // its system answers for it, it does not
		t.Fatal(err)
	}
	bed.sleep(time.Hour)
	slept := time.Now()
	for a.sessions.get(s.node) != nil {
		if ctx.Err() != nil {
			t.Fatal("the connection stays open")
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(slept)
	t.Logf("the dead connection was closed %v after the sleep", took.Round(time.Millisecond))
	if took > 2*(wakeDead+2*watchEvery) {
		t.Errorf("the dead connection was closed only %v after the sleep", took)
	}
	if err := child.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for a.sessions.get(s.node) == nil {
		if ctx.Err() != nil {
			t.Fatal("the member is not found again")
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("found again %v after it was back", time.Since(back).Round(time.Millisecond))
	if d := time.Since(back); d > 11*time.Second {
		t.Errorf("found again only after %v: want 3 s on a quiet machine", d)
	}
}
