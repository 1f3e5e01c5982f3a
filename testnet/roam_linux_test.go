package testnet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshnode/node"
	"meshnode/testnet/lab"
)

// office makes n hosts on a switch, at 10.99.0.1 and on.
func office(t *testing.T, n int) (*lab.Lab, *lab.Switch, []*lab.Host) {
	t.Helper()
	l := lab.New(t)
	lan := l.Switch()
	var hosts []*lab.Host
	for i := range n {
		h := l.Host(fmt.Sprint("node", i+1))
		h.Plug(lan, fmt.Sprintf("10.99.0.%d/24", i+1))
		hosts = append(hosts, h)
	}
	return l, lan, hosts
}

// byName lets jobs ask for a node: submit --on host=2.
func byName(i int) []string { return []string{"--label", fmt.Sprint("host=", i)} }

// allowance is what a busy machine may need for what takes a quiet one goal: the figures are of quiet ones.
func allowance(goal time.Duration) time.Duration { return 3*goal + 2*time.Second }

// table collects how long things took beside what they may.
type table struct {
	t    *testing.T
	mu   sync.Mutex
	rows []string
}

func (b *table) row(what string, took, goal time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = append(b.rows, fmt.Sprintf("%-64s %6.2f s  (goal %v)", what, took.Seconds(), goal))
	if took > allowance(goal) {
		b.t.Errorf("%s: %v, and not within %v", what, took, allowance(goal))
	}
}

func (b *table) print() { b.t.Logf("\n%s", strings.Join(b.rows, "\n")) }

// sees reports whether the node is connected to all the others.
func (nd *Node) sees(ctx context.Context, others ...*Node) bool {
	peers, err := nd.client.Peers(ctx)
	if err != nil {
		return false
	}
	for _, o := range others {
		if o != nd && !slices.ContainsFunc(peers, func(p node.Peer) bool { return p.Name == o.name() && p.State == "connected" }) {
			return false
		}
	}
	return true
}

func (nd *Node) name() string { return fmt.Sprint("node", nd.i) }

// awaitMesh waits until each of the nodes sees each, and says how long that took from begun on.
func awaitMesh(t *testing.T, begun time.Time, nodes ...*Node) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	for _, nd := range nodes {
		for !nd.sees(ctx, nodes...) {
			if ctx.Err() != nil {
				t.Fatalf("%s does not see all others after %v\n%s\n%s", nd.name(), time.Since(begun), nd.CLI("peers", "-o", "wide").Stdout, nd.Log())
			}
			time.Sleep(5 * time.Millisecond) // the interface has no event for it
		}
	}
	return time.Since(begun)
}

// runOn runs a task from the node on another one, whatever that takes.
func (nd *Node) runOn(other *Node) {
	nd.net.t.Helper()
	if out := nd.CLI("submit", "--on", fmt.Sprint("host=", other.i), sumPrimes, ":::", "10"); out.Code != 0 || out.Stdout != "17\n" {
		nd.net.t.Fatalf("a task for %s: %+v", other.name(), out)
	}
}
