package testnet

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

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

// table collects how long things took beside what they may, and is logged after the test.
type table struct {
	t    *testing.T
	mu   sync.Mutex
	rows []string
}

func newTable(t *testing.T) *table {
	b := &table{t: t}
	t.Cleanup(func() { t.Logf("\n%s", strings.Join(b.rows, "\n")) })
	return b
}

func (b *table) row(what string, took, goal time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = append(b.rows, fmt.Sprintf("%-64s %6.2f s  (goal %v)", what, took.Seconds(), goal))
	if took > allowance(goal) {
		b.t.Errorf("%s: %v, and not within %v", what, took, allowance(goal))
	}
}

// runOn runs a task from the node on another one, whatever that takes.
func (nd *Node) runOn(other *Node) {
	nd.net.t.Helper()
	if out := nd.CLI("submit", "--on", fmt.Sprint("host=", other.i), sumPrimes, ":::", "10"); out.Code != 0 || out.Stdout != "17\n" {
		nd.net.t.Fatalf("a task for %s: %+v", other.name(), out)
	}
}

// Nodes find each other, and go on doing it while their network changes below them. What is measured is logged as a table.
func TestRoam(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	_, _, hosts := office(t, 3)
	n := Start(t, 3, Options{Hosts: hosts, MDNS: true, ArgsOf: byName})
	n1, n2, n3 := n.Node(1), n.Node(2), n.Node(3)

	// What they know of each other leads nowhere.
	for i, h := range hosts {
		n.Node(i + 1).Down()
		h.Link(0).SetAddr(fmt.Sprintf("10.98.0.%d/24", i+1))
	}
	began := time.Now()
	n.Up(n1, n2, n3)
	ready := time.Now()
	took := n.awaitMesh(began, n1, n2, n3)
	t.Logf("ready after %v", ready.Sub(began))
	b.row("3 nodes on a switch, no address given, from their start", took, time.Second)

	n3.Down()
	eth := hosts[2].Link(0)
	eth.Down()
	eth.SetAddr("10.98.0.33/24")
	n.Up(n3)
	time.Sleep(time.Second) // so long it tries in vain
	began = time.Now()
	eth.Up()
	b.row("started before its interface is up, from link-up", n.awaitMesh(began, n1, n2, n3), 3*time.Second)

	began = time.Now()
	eth.SetAddr("10.98.0.44/24")
	n1.runOn(n3)
	b.row("address changed while it runs, until it has run a task", time.Since(began), 3*time.Second)
	b.row("address changed while it runs, until all see all", n.awaitMesh(began, n1, n2, n3), 3*time.Second)

	eth.Down()
	time.Sleep(10 * time.Second)
	if n1.sees(n3) || n3.sees(n1) {
		t.Errorf("connected without a link for 10 s:\n%s\n%s", n1.CLI("peers").Stdout, n3.CLI("peers").Stdout)
	}
	began = time.Now()
	eth.Up()
	b.row("interface down for 10 s, from its being up", n.awaitMesh(began, n1, n2, n3), 3*time.Second)
	n1.runOn(n3)
	n3.runOn(n2)
}

// Two nodes restart at the same time with new addresses, without mDNS: each knows a third, which knows neither's address.
func TestThroughAThird(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	_, _, hosts := office(t, 3)
	n := Start(t, 3, Options{Hosts: hosts, ArgsOf: byName})
	n1, n2, n3 := n.Node(1), n.Node(2), n.Node(3)
	for i, nd := range []*Node{n1, n2} {
		nd.Down()
		hosts[i].Link(0).SetAddr(fmt.Sprintf("10.99.0.%d/24", i+101))
	}
	n3.AwaitPeers(0)
	began := time.Now()
	n.Up(n1, n2)
	b.row("two restart at new addresses, no mDNS, through a third", n.awaitMesh(began, n1, n2, n3), 5*time.Second)
	n1.runOn(n2)

	// And while they run.
	began = time.Now()
	hosts[0].Link(0).SetAddr("10.99.0.201/24")
	hosts[1].Link(0).SetAddr("10.99.0.202/24")
	n1.runOn(n2)
	b.row("two change their addresses, no mDNS, until a task has run", time.Since(began), 5*time.Second)
	b.row("two change their addresses, no mDNS, until all see all", n.awaitMesh(began, n1, n2, n3), 5*time.Second)
}
