package testnet

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/node"
)

// cutGoal is how soon a revoked member is to be cut off.
const cutGoal = 5 * time.Second

// peer is what the node says of the member called name.
func (nd *Node) peer(t *testing.T, name string) (node.Peer, bool) {
	t.Helper()
	peers, err := nd.peers()
	if err != nil {
		t.Fatalf("node %d: %v", nd.i, err)
	}
	i := slices.IndexFunc(peers, func(p node.Peer) bool { return p.Name == name })
	if i < 0 {
		return node.Peer{}, false
	}
	return peers[i], true
}

func (nd *Node) lists(t *testing.T, name string) bool {
	_, ok := nd.peer(t, name)
	return ok
}

func (nd *Node) connectedTo(t *testing.T, name string) bool {
	p, ok := nd.peer(t, name)
	return ok && p.State == "connected"
}

// must runs a command that has to end well.
func (nd *Node) must(t *testing.T, args ...string) Output {
	t.Helper()
	out := nd.CLI(args...)
	if out.Code != 0 {
		t.Fatalf("node %d, meshnode %s: %+v", nd.i, strings.Join(args, " "), out)
	}
	return out
}

// A stolen member is cut off by all at once, while tasks of others run there and its own run at others; by one that was
// offline, and that it reaches first, as soon as that one meets any other. Its tasks are done elsewhere.
func TestStolenLaptop(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("processes cannot be frozen there")
	}
	n := Start(t, 4, Options{Slots: 1})
	n1, n2, n3, n4 := n.Node(1), n.Node(2), n.Node(3), n.Node(4)
	n3.Down()
	run := n1.submitTasks(t, 60)
	n.within(20*time.Second, "a task of node 1 runs at node 4", func() bool {
		p, _ := n1.peer(t, "node4")
		return p.Running > 0
	})
	if out := n2.CLI("peers", "revoke", "node4"); out.Code != 125 || !strings.Contains(out.Stderr, "root key") {
		t.Errorf("a sibling revokes: %+v", out)
	}
	began := time.Now()
	n1.must(t, "peers", "revoke", "node4", "--reason", "left on a bench")
	for _, nd := range []*Node{n1, n2} {
		n.within(cutGoal, "a member that is connected cuts it off", func() bool { return !nd.lists(t, "node4") })
	}
	n.within(cutGoal, "it sees nobody", func() bool { return !n4.connectedTo(t, "node1") && !n4.connectedTo(t, "node2") })
	t.Logf("cut off everywhere %v after the command", time.Since(began).Round(time.Millisecond))
	n.within(cutGoal, "it knows why", func() bool {
		return strings.Contains(n4.must(t, "status").Stdout, "left on a bench")
	})
	for _, what := range []string{"status", "peers"} {
		if out := n4.must(t, what).Stdout; !strings.Contains(out, "left on a bench") || !strings.Contains(out, "meshnode leave") {
			t.Errorf("%s of the revoked node: %s", what, out)
		}
	}
	if out := n4.must(t, "why", "node4").Stdout; !strings.Contains(out, "left on a bench") {
		t.Errorf("why of the revoked node: %s", out)
	}
	if out := n2.must(t, "why", "node4").Stdout; !strings.Contains(out, "was revoked") {
		t.Errorf("why at another: %s", out)
	}
	run.finish()

	// Node 3 knows nothing yet, and node 4 is all that it can reach; which, being a thief's, does not say what it has heard.
	n1.Down()
	n4.Down()
	if err := os.Remove(filepath.Join(n4.Dir, "membership", "revocations.json")); err != nil {
		t.Fatal(err)
	}
	n2.Stop()
	n.Up(n3, n4)
	n.within(20*time.Second, "node 3 takes it for a member", func() bool { return n3.connectedTo(t, "node4") })
	n2.Cont()
	n.within(cutGoal, "who was offline cuts it off when it meets a member", func() bool { return !n3.lists(t, "node4") && n3.connectedTo(t, "node2") })
	if strings.Contains(n2.must(t, "peers").Stdout, "node4") {
		t.Error("node 2 lists it again")
	}

	// It comes back as another.
	n4.willEnd()
	out := n4.must(t, "leave", "--json").Stdout
	var left node.Left
	if err := json.Unmarshal([]byte(out), &left); err != nil || !left.Restart {
		t.Fatalf("leave of the revoked node: %s, %v", out, err)
	}
	n4.awaitExit("leave")
	n.Up(n1, n4)
	n4.must(t, "join", strings.TrimSpace(n1.must(t, "invite", "--mine").Stdout))
	n.within(10*time.Second, "it is back with a new identity", func() bool { return n1.connectedTo(t, "node4") && n3.connectedTo(t, "node4") })
}

// Who leaves is dropped from the lists at once; one that was offline hears it later; a node that does not run can leave as well.
func TestLeaveTellsOthers(t *testing.T) {
	t.Parallel()
	n := Start(t, 4, Options{})
	n1, n2, n3, n4 := n.Node(1), n.Node(2), n.Node(3), n.Node(4)
	n2.Down()
	n3.willEnd()
	n3.must(t, "leave")
	n.within(cutGoal, "it is dropped from peers", func() bool { return !n1.lists(t, "node3") && !n4.lists(t, "node3") })
	n4.Down()
	out := n4.CLI("leave")
	if out.Code != 0 || !strings.Contains(out.Stderr, "Told: 1 of 2") {
		t.Errorf("leave of a node that does not run: %+v", out)
	}
	n.within(cutGoal, "and so is one that did not run", func() bool { return !n1.lists(t, "node4") })
	n.Up(n2)
	n.within(2*cutGoal, "who was offline drops both", func() bool {
		return n2.connectedTo(t, "node1") && !n2.lists(t, "node3") && !n2.lists(t, "node4")
	})
	if out := n1.CLI("leave"); out.Code != 125 || !strings.Contains(out.Stderr, "root key") || !strings.Contains(out.Stderr, "--force") {
		t.Errorf("the machine with the root key leaves: %+v", out)
	}
	code := recoveryOf(t, n1)
	if out := n2.CLI("recover", code[1:]); out.Code != 125 || strings.Count(out.Stderr, "\n") != 1 || !strings.Contains(out.Stderr, "recovery code") {
		t.Errorf("a wrong code: %+v", out)
	}
	if out := n2.CLI("peers", "revoke", "node1"); out.Code != 125 || !strings.Contains(out.Stderr, "meshnode recover") {
		t.Errorf("one that the root admitted revokes the root's machine: %+v", out)
	}
	n2.must(t, "recover", code)
	n2.must(t, "peers", "revoke", "node1")
	n.within(cutGoal, "who recovered the root key revokes the first machine", func() bool { return !n2.lists(t, "node1") && !n1.connectedTo(t, "node2") })
}

// recoveryOf finds the recovery code that the node showed when it made its mesh.
func recoveryOf(t *testing.T, nd *Node) string {
	t.Helper()
	const before = "to be kept apart from this computer: "
	log := nd.Log()
	i := strings.Index(log, before)
	if i < 0 {
		t.Fatalf("node %d showed no recovery code:\n%s", nd.i, log)
	}
	return strings.Fields(log[i+len(before):])[0]
}

// What the owner of a machine says of another counts at once, without a new connection, and lasts.
func TestAllowAndDeny(t *testing.T) {
	t.Parallel()
	n := Start(t, 2, Options{Apart: true})
	n1, n2 := n.Node(1), n.Node(2)
	n2.must(t, "join", strings.TrimSpace(n1.must(t, "invite").Stdout))
	n1.AwaitPeers(1)
	n2.AwaitPeers(1)
	may := func(nd *Node, name string) (string, string) {
		p, _ := nd.peer(t, name)
		return strings.Join(p.MayUseHere, ","), strings.Join(p.MayUseThere, ",")
	}
	if here, there := may(n1, "node2"); here != "wasm" || there != "wasm" {
		t.Fatalf("of another owner: here %q, there %q", here, there)
	}
	remote := func() Output {
		return n1.CLI("submit", "--remote-only", "--timeout", "20s", sumPrimes, ":::", "1000")
	}
	if out := remote(); out.Code != 0 {
		t.Fatalf("before: %+v", out)
	}
	n2.must(t, "deny", "node1", "--runtime", "wasm")
	if here, _ := may(n2, "node1"); here != "" {
		t.Errorf("denied: it may %q", here)
	}
	id := strings.TrimSpace(n1.must(t, "submit", "-d", "--remote-only", sumPrimes, ":::", "1001").Stdout)
	n.within(10*time.Second, "the task waits, and why says for what", func() bool {
		return strings.Contains(n1.must(t, "why", id).Stdout, "does not run wasm for that origin")
	})
	n2.must(t, "allow", "node1", "--runtime", "wasm,python")
	n1.must(t, "cancel", id) // it would be asked again within a minute
	if out := remote(); out.Code != 0 {
		t.Errorf("allowed again: %+v", out)
	}
	if here, there := may(n2, "node1"); here != "wasm,python" || there != "wasm" {
		t.Errorf("allowed: here %q, there %q", here, there)
	}
	n1.must(t, "allow", "node2", "--work", "--runtime", "python")
	n1.must(t, "peers", "rename", "node2", "kitchen")
	if out := n1.CLI("peers", "forget", "kitchen"); out.Code != 125 || !strings.Contains(out.Stderr, "is connected") {
		t.Errorf("forget of one that is connected: %+v", out)
	}
	if out := n1.CLI("allow", "kitchen"); out.Code != 125 || !strings.Contains(out.Stderr, "--runtime") {
		t.Errorf("allow without a word of what: %+v", out)
	}
	if out := n1.CLI("allow", "kitchen", "--runtime", "java"); out.Code != 125 || !strings.Contains(out.Stderr, "java") {
		t.Errorf("allow of no runtime: %+v", out)
	}
	n1.Restart()
	n.within(10*time.Second, "what was said is there after a restart", func() bool { return n1.connectedTo(t, "kitchen") })
	if here, there := may(n1, "kitchen"); here != "wasm" || there != "wasm,python" {
		t.Errorf("after a restart: here %q, there %q", here, there)
	}
	if out := n1.must(t, "submit", "--json", "--remote-only", sumPrimes, ":::", "1000").Stdout; !strings.Contains(out, `"peer_name":"kitchen"`) {
		t.Errorf("a result of a renamed member: %s", out)
	}
	n2.Down()
	n.within(10*time.Second, "it is gone", func() bool { return !n1.connectedTo(t, "kitchen") })
	n1.must(t, "peers", "forget", "kitchen")
	if n1.lists(t, "kitchen") || n1.lists(t, "node2") {
		t.Error("forgotten, and listed")
	}
	n.Up(n2)
	n.within(20*time.Second, "forgotten, it comes back by itself", func() bool { return n1.connectedTo(t, "node2") })
}
