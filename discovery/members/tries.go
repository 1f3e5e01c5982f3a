package members

import (
	"sync"
	"time"
)

const (
	// wrongTickets per source in wrongWindow: enough for a person with a bad copy, nothing against 128 bits. It
	// slows a source down and never voids a ticket, or a stranger could.
	wrongTickets = 5
	wrongWindow  = time.Minute
	// maxSources bounds what is remembered of sources; beyond it the oldest window is dropped as a whole.
	maxSources = 4096
)

// tries counts wrong tickets by source. It is used under Membership.mu.
type tries struct {
	since  time.Time
	counts map[string]int
}

func newTries() *tries { return &tries{counts: map[string]int{}} }

func (t *tries) over(source string, now time.Time) bool {
	if d := now.Sub(t.since); d > wrongWindow || d < 0 {
		t.since = now
		clear(t.counts)
	}
	return t.counts[source] >= wrongTickets
}

func (t *tries) wrong(source string, now time.Time) {
	if len(t.counts) >= maxSources {
		clear(t.counts)
	}
	t.counts[source]++
}

// OnceIn lets each key through once in a time, so that whoever causes lines of the log cannot fill it. It may be used concurrently.
type OnceIn struct {
	every time.Duration
	mu    sync.Mutex // guards seen
	seen  map[string]time.Time
}

// NewOnceIn makes one that lets a key through again after every.
func NewOnceIn(every time.Duration) *OnceIn {
	return &OnceIn{every: every, seen: map[string]time.Time{}}
}

// OK reports whether the key may go through now.
func (o *OnceIn) OK(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if t, ok := o.seen[key]; ok && now.Sub(t) < o.every {
		return false
	}
	if len(o.seen) >= maxSources {
		clear(o.seen)
	}
	o.seen[key] = now
	return true
}
