package testnet

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A spoken code leads to the machine that shows it, without an address: it is found in the local network, and nobody else
// answers.
func TestCodeInLocalNetwork(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	_, _, hosts := office(t, 4)
	n := Start(t, 4, Options{Hosts: hosts, MDNS: true, Apart: true, ArgsOf: byName})
	n1, n2, n3, n4 := n.Node(1), n.Node(2), n.Node(3), n.Node(4)
	// Others have codes open, too.
	for _, other := range []*Node{n3, n4} {
		if out := other.CLI("invite", "--code"); out.Code != 0 {
			t.Fatalf("%+v", out)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	inviting := n1.Command(ctx, "invite", "--code", "--mine", "--wait")
	stdout, err := inviting.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	inviting.Stderr = &told
	if err := inviting.Start(); err != nil {
		t.Fatal(err)
	}
	code, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out := n2.CLI("join", strings.ToUpper(strings.TrimSpace(code)))
	if out.Code != 0 || !strings.Contains(out.Stderr, "joined "+n1.name()) {
		t.Fatalf("%+v", out)
	}
	b.row("join by a code, found in the local network", time.Since(began), time.Second)
	if err := inviting.Wait(); err != nil || !strings.Contains(told.String(), "joined: "+n2.name()) {
		t.Errorf("the inviter: %v: %s", err, told.String())
	}
	b.row("until both see each other", n.awaitMesh(began, n1, n2), 2*time.Second)
	n1.runOn(n2)
	// A code that nobody has is not found, and says what to do.
	if out := n3.CLI("join", "100-kitchen-sunset"); out.Code != 125 {
		t.Errorf("%+v", out)
	}
}

// Nodes that are started with one secret in one local network come together without an address, all at once, and stay together;
// others do not.
func TestSecretInLocalNetwork(t *testing.T) {
	t.Parallel()
	b := newTable(t)
	const count = 5
	_, _, hosts := office(t, count)
	dir := t.TempDir()
	file := func(name, secret string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	same, other := file("same", "correct horse battery staple"), file("other", "another secret of some length")
	n := Start(t, count, Options{Hosts: hosts, MDNS: true, Apart: true, ArgsOf: func(i int) []string {
		secret := same
		if i == count {
			secret = other
		}
		return append(byName(i), "--secret-file", secret)
	}})
	var nodes []*Node
	for i := range count - 1 {
		nodes = append(nodes, n.Node(i+1))
	}
	began := time.Now()
	b.row(fmt.Sprintf("%d nodes with one secret, from the last one's start to one mesh", len(nodes)), n.awaitMesh(began, nodes...), 5*time.Second)
	nodes[0].runOn(nodes[3])
	nodes[3].runOn(nodes[1])
	meshOf := func(nd *Node) string {
		st, err := nd.Client().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Mesh
	}
	if meshOf(n.Node(count)) == meshOf(nodes[0]) {
		t.Error("another secret admits")
	}
	// All but one are ended, and a new one comes: the one that is left admits it.
	left := nodes[2]
	for _, nd := range slices.Concat(nodes[:2], nodes[3:]) {
		nd.Down()
	}
	stranger := n.Node(count)
	stranger.Down()
	if err := os.WriteFile(other, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	n.Up(stranger)
	b.row("a newcomer, while only one of the first is there", n.awaitMesh(began, left, stranger), 3*time.Second)
	began = time.Now()
	for _, nd := range slices.Concat(nodes[:2], nodes[3:]) {
		n.Up(nd)
	}
	b.row("the others come back", n.awaitMesh(began, append(nodes, stranger)...), 3*time.Second)
	stranger.runOn(nodes[0])
}
