package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"

	"meshnode/node/control"
	"meshnode/protocol"
)

// bar draws the progress of a job on standard error: done of how many, rate, time left, nodes. A nil bar
// draws nothing. Its methods may be called concurrently.
type bar struct {
	w     io.Writer
	total *progressTotal
	start time.Time

	mu    sync.Mutex // guards the rest
	drawn *progressbar.ProgressBar
	done  int
	nodes map[protocol.NodeID]bool
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
	return &bar{w: c.stderr, total: total, start: time.Now(), nodes: make(map[protocol.NodeID]bool)}
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
	n := int64(-1) // more inputs may come: a spinner
	if b.total.known.Load() {
		n = b.total.n.Load()
	}
	if b.drawn == nil {
		b.drawn = progressbar.NewOptions64(n,
			progressbar.OptionSetWriter(late{b.w, b.start.Add(barDelay)}), progressbar.OptionThrottle(barInterval), progressbar.OptionClearOnFinish(),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("tasks"),
			progressbar.OptionSetPredictTime(true), progressbar.OptionSetWidth(20),
			// No goroutine of its own that turns the spinner: it would draw while others write.
			progressbar.OptionSetSpinnerChangeInterval(0),
			progressbar.OptionUseANSICodes(true))
	}
	if b.drawn.GetMax64() != n {
		b.drawn.ChangeMax64(n)
	}
	b.drawn.Set(b.done)
	b.drawn.Describe(fmt.Sprintf("%d %s", len(b.nodes), plural(len(b.nodes), "node")))
}

// late drops what is written before a time.
type late struct {
	w    io.Writer
	from time.Time
}

func (l late) Write(b []byte) (int, error) {
	if time.Now().Before(l.from) {
		return len(b), nil
	}
	return l.w.Write(b)
}

// clear takes the bar away, so that something else can be written.
func (b *bar) clear() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drawn != nil {
		b.drawn.Clear()
	}
}
