package testnet

import (
	"slices"
	"testing"
	"time"
)

// TestPartition: five nodes fall into two and three while a job runs on each side. Both end right, without the other side,
// and when the network is one again so is the mesh.
func TestPartition(t *testing.T) {
	t.Parallel()
	const tasks = 100
	b := newTable(t)
	l, lan, hosts := office(t, 5)
	other := l.Switch()
	n := Start(t, 5, Options{Hosts: hosts, ArgsOf: byName})
	left, right := n.nodes[:2], n.nodes[2:]
	one, five := n.Node(1).submitTasks(t, tasks), n.Node(5).submitTasks(t, tasks)
	// Until each side has brought something to the other's job.
	for k := 1; ; k++ {
		one.read(k)
		five.read(k)
		if one.onNodes(right) > 0 && five.onNodes(left) > 0 {
			break
		}
		if k > tasks/2 {
			t.Fatalf("%d results, and none of the other side's nodes", k)
		}
	}
	for i := range right {
		hosts[2+i].Link(0).Move(other)
	}
	cut := time.Now()
	one.finish()
	five.finish()
	t.Logf("both jobs ended %v after the cut, %d and %d tasks granted anew", time.Since(cut).Round(time.Millisecond), one.stats.Reissued, five.stats.Reissued)
	for _, s := range []line{one.stats, five.stats} {
		if s.Done != tasks || s.Reissued == 0 {
			t.Errorf("nothing was lost, or not all is there: %+v", s)
		}
	}
	n.Await(startTimeout, "no node of one side counts one of the other as connected", func() bool {
		return !slices.ContainsFunc(left, func(a *Node) bool {
			return slices.ContainsFunc(right, func(b *Node) bool { return a.sees(b) || b.sees(a) })
		})
	})
	t.Logf("each side has missed the other after %v", time.Since(cut).Round(time.Millisecond))
	// Each side goes on for itself.
	n.Node(1).runOn(n.Node(2))
	n.Node(5).runOn(n.Node(3))
	for i := range right {
		hosts[2+i].Link(0).Move(lan)
	}
	b.row("5 nodes, after a partition into 2 and 3", n.awaitMesh(time.Now(), n.nodes...), 5*time.Second)
	n.Node(1).runOn(n.Node(5))
	n.Node(4).runOn(n.Node(2))
}

// onNodes is how many results the nodes have brought.
func (r *faultRun) onNodes(nodes []*Node) int {
	sum := 0
	for _, nd := range nodes {
		sum += r.onNode(id(r.t, nd))
	}
	return sum
}
