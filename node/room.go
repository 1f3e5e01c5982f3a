package node

import (
	"fmt"
	"time"
)

// minFree is the room on the disk below which nothing new is submitted: what is under way has to end. The ballast is the last of it.
const (
	minFree = 256 << 20
	ballast = 64 << 20
	// roomFor is how long the disk is not asked again for its room: calls that come one by one would ask some thousand times in a
	// second, and meanwhile a client sends less than the room that is kept free.
	roomFor = 20 * time.Millisecond
)

// room refuses submissions when the disk is nearly full.
func (n *Node) room() error {
	why := n.diskState()
	if why == "" {
		return nil
	}
	return &Error{Code: CodeUnavailable, Message: "no new tasks: " + why,
		Fix: "make room on the disk of " + n.cfg.DataDir + "; jobs under way go on, and results can be read"}
}

// roomLately is room for what comes often: the disk is not asked again within roomFor.
func (n *Node) roomLately() error {
	now := n.loop.now()
	if found := n.roomAt.Load(); found != 0 && now-found < int64(roomFor) && !n.journal.Stalled() {
		return nil
	}
	err := n.room()
	if err == nil {
		n.roomAt.Store(now)
	}
	return err
}

// diskState is what is wrong with the room on the disk, "" if nothing is.
func (n *Node) diskState() string {
	free, known := n.journal.Free()
	switch {
	case n.journal.Stalled():
		return "stalled: the disk is full"
	case known && uint64(free) < n.cfg.MinFree:
		return fmt.Sprintf("the disk has %d MiB left, of which the last %d are for work under way", free>>20, n.cfg.MinFree>>20)
	}
	return ""
}
