package testnet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"meshnode/node"
)

// Await waits until ok, and says how long that took. After limit it fails the test, and tells what each node says of the others. It fails
// it at once when a node has ended that nobody ended: what is waited for would not come, or for another reason than the test's.
func (n *Net) Await(limit time.Duration, what string, ok func() bool) time.Duration {
	n.t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) { // the interface has no event for it
		if ok() {
			return time.Since(began)
		}
		for _, nd := range n.nodes {
			if nd.ended() && !nd.ending.Load() {
				n.t.Fatalf("not to be waited for, since %s ended by itself (%v): %s", nd.name(), nd.cmd.ProcessState, what)
			}
		}
		if time.Since(began) > limit {
			n.t.Fatalf("not within %v: %s\n%s", limit, what, n.views())
		}
	}
}

// AwaitPeers waits until the node is connected to count others.
func (nd *Node) AwaitPeers(count int) {
	nd.net.t.Helper()
	nd.net.Await(startTimeout, fmt.Sprintf("%s has %d peers", nd.name(), count), func() bool { return nd.hasPeers(count) })
}

func (nd *Node) hasPeers(count int) bool {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	st, err := nd.client.Status(ctx)
	return err == nil && st.Peers == count
}

// peers is what the node says of the members.
func (nd *Node) peers() ([]node.Peer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	return nd.client.Peers(ctx)
}

// sees reports whether the node is connected to all the others.
func (nd *Node) sees(others ...*Node) bool {
	peers, err := nd.peers()
	return err == nil && !slices.ContainsFunc(others, func(o *Node) bool {
		return o != nd && !slices.ContainsFunc(peers, func(p node.Peer) bool { return p.Name == o.name() && p.State == "connected" })
	})
}

// views tells, a line for each node, whom it is connected to, and whom it misses and why; or that it does not run, and how it ended.
func (n *Net) views() string {
	var lines []string
	for _, nd := range n.nodes {
		lines = append(lines, nd.name()+" "+nd.view())
	}
	return strings.Join(lines, "\n")
}

func (nd *Node) view() string {
	switch {
	case nd.ended():
		return fmt.Sprint("has ended: ", nd.cmd.ProcessState)
	case nd.frozen:
		return "is frozen"
	}
	peers, err := nd.peers()
	if err != nil {
		return fmt.Sprint("does not answer: ", err)
	}
	var has, misses []string
	for _, p := range peers {
		switch p.State {
		case "self":
		case "connected":
			has = append(has, p.Name)
		default:
			misses = append(misses, fmt.Sprintf("%s (%s: %s)", p.Name, p.State, p.Reason))
		}
	}
	return fmt.Sprintf("is connected to %d (%s) and misses %d: %s", len(has), strings.Join(has, ", "), len(misses), strings.Join(misses, "; "))
}
