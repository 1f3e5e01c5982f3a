package node

import (
	"context"
	"sync"
	"time"

	"meshnode/tasks"
)

// What a node does before its machine sleeps, where the system says so before, and when it is awake again.

const (
	// sleepReason is what others are told.
	sleepReason = "goes to sleep"
	// beforeSleep bounds what is done before a sleep: logind waits 5 s, Windows 2 s, and lids are closed.
	beforeSleep = 1500 * time.Millisecond
	// calledOff: who is awake for so long after the word that the machine sleeps does so no more, whether somebody says so or not.
	calledOff = 30 * time.Second
)

// bed is where the node is between the word that its machine goes to sleep and the end of that sleep.
type bed struct {
	mu     sync.Mutex // held while the node goes to sleep or wakes up
	asleep bool
	off    *time.Timer
}

// watchSleep goes to sleep and wakes up with the machine, as far as the system announces it.
func (n *Node) watchSleep(ctx context.Context) error {
	return announceSleep(ctx, n.log, n.goToSleep, n.wakeUp)
}

// goToSleep gives back what has not started, tells the others, and has on disk what they were told. What runs stays: it goes on with
// the machine, if that is soon.
func (n *Node) goToSleep() {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	if n.bed.asleep {
		return
	}
	n.bed.asleep = true
	begun := time.Now()
	late := time.After(beforeSleep)
	told, synced := make(chan struct{}), make(chan struct{})
	n.post(input{event: tasks.Sleep{Reason: sleepReason}, after: func() { close(told) }})
	wait := func(c <-chan struct{}) {
		select {
		case <-c:
		case <-late:
		case <-n.done:
		}
	}
	wait(told)
	n.loop.onSynced(func() { close(synced) })
	wait(synced)
	n.sessions.sleep(sleepReason)
	n.bed.off = time.AfterFunc(calledOff, n.wakeUp)
	n.log.Info("this computer goes to sleep", "prepared_in", time.Since(begun).Round(time.Millisecond))
}

// wakeUp takes up again what goToSleep has ended. It does nothing if that was not called.
func (n *Node) wakeUp() {
	n.bed.mu.Lock()
	defer n.bed.mu.Unlock()
	if !n.bed.asleep {
		return
	}
	n.bed.asleep = false
	n.bed.off.Stop()
	n.log.Info("this computer is awake")
	n.post(input{event: tasks.Woke{}}) // also if it did not sleep: what was given up has to be taken up
	n.sessions.wake()
	n.finder.Rediscover()
	select {
	case n.presence.wake <- struct{}{}:
	default:
	}
}

// onSynced calls f once all that was written until now is on disk.
func (l *loop) onSynced(f func()) {
	l.n.post(input{do: func(*tasks.Scheduler) {
		b, err := l.n.journal.Append(nil, true)
		if err != nil {
			l.broken = err
			return
		}
		l.batch = b
		l.durable = append(l.durable, durable{batch: b, then: f})
	}})
}
