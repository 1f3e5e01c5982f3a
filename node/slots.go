package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"meshnode/tasks"
)

// SetSlots implements clientAPI.
func (n *Node) SetSlots(ctx context.Context, k int) error {
	if k < 0 {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("%d slots", k), Fix: "want 0 or more"}
	}
	return n.step(tasks.SetSlots{Slots: k})
}

// Pause implements clientAPI.
func (n *Node) Pause(ctx context.Context, d time.Duration) error {
	reason := "paused by its owner"
	if d > 0 {
		reason += " until " + time.Now().Add(d).Format("15:04:05")
	}
	return n.pauseFor(d, reason)
}

// Drain implements clientAPI.
func (n *Node) Drain(ctx context.Context) error { return n.pauseFor(0, "drained by its owner") }

// pauseFor pauses for d, or until Resume if d is 0.
func (n *Node) pauseFor(d time.Duration, reason string) error {
	n.pause.mu.Lock()
	defer n.pause.mu.Unlock()
	if n.pause.timer != nil {
		n.pause.timer.Stop()
		n.pause.timer = nil
	}
	if d > 0 {
		n.pause.timer = time.AfterFunc(d, func() { n.step(tasks.SetPaused{}) })
	}
	return n.step(tasks.SetPaused{Reason: reason})
}

// Resume implements clientAPI.
func (n *Node) Resume(ctx context.Context) error {
	n.pause.mu.Lock()
	defer n.pause.mu.Unlock()
	if n.pause.timer != nil {
		n.pause.timer.Stop()
		n.pause.timer = nil
	}
	return n.step(tasks.SetPaused{})
}

// pauseEnd is the end of a pause for a while.
type pauseEnd struct {
	mu    sync.Mutex
	timer *time.Timer
}
