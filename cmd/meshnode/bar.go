package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/term"

	"meshnode/node/control"
	"meshnode/protocol"
)

// bar draws the progress of a job on standard error: done of how many, rate, time left, nodes. A nil bar
// draws nothing. Its methods may be called concurrently.
type bar struct {
	w     io.Writer
	width func() int
	total *progressTotal
	start time.Time

	mu    sync.Mutex // guards the rest
	done  int
	nodes map[protocol.NodeID]bool
	drawn time.Time
	shown bool
}

const (
	// barDelay spares short jobs the flicker.
	barDelay = 500 * time.Millisecond
	// barInterval is below what the eye follows.
	barInterval = 100 * time.Millisecond
)

// newBar is nil if there is to be none: standard error is no terminal, or results go to the same one and --bar
// was not given.
func (c *cli) newBar(f *submitFlags, total *progressTotal) *bar {
	if !c.errTTY || f.noBar || f.detach || c.outTTY && !f.bar {
		return nil
	}
	return &bar{w: c.stderr, total: total, start: time.Now(), nodes: make(map[protocol.NodeID]bool), width: func() int {
		type descriptor interface{ Fd() uintptr }
		if f, ok := c.stderr.(descriptor); ok {
			if w, _, err := term.GetSize(int(f.Fd())); err == nil {
				return w
			}
		}
		return 80
	}}
}

func (b *bar) add(rs []control.Result) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += len(rs)
	for i := range rs {
		if i == 0 || rs[i].Worker != rs[i-1].Worker {
			b.nodes[rs[i].Worker] = true
		}
	}
	if now := time.Now(); now.Sub(b.start) > barDelay && now.Sub(b.drawn) > barInterval {
		b.drawn, b.shown = now, true
		line := b.line(now.Sub(b.start))
		if w := b.width() - 1; len(line) > w {
			line = line[:max(w, 0)]
		}
		fmt.Fprintf(b.w, "\r\x1b[K%s", line)
	}
}

// line is what the bar says after a time.
func (b *bar) line(d time.Duration) string {
	rate := float64(b.done) / d.Seconds()
	n := b.total.n.Load()
	if !b.total.known.Load() {
		return fmt.Sprintf("%d done of %d so far, %.1f/s, %d nodes", b.done, n, rate, len(b.nodes))
	}
	left := "?"
	if rate > 0 {
		left = (time.Duration(float64(n-int64(b.done)) / rate * float64(time.Second))).Round(time.Second).String()
	}
	percent := 100.0
	if n > 0 {
		percent = 100 * float64(b.done) / float64(n)
	}
	return fmt.Sprintf("%d/%d (%.0f%%), %.1f/s, %s left, %d nodes", b.done, n, percent, rate, left, len(b.nodes))
}

// clear takes the bar away, so that something else can be written.
func (b *bar) clear() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shown {
		io.WriteString(b.w, "\r\x1b[K")
		b.shown = false
	}
}
