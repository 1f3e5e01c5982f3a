package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"

	"meshnode/protocol"
)

func speaks(vs ...int) func(*Config) { return func(c *Config) { c.Speak = vs } }

// peerOf is what n's peers say of m.
func peerOf(t testing.TB, n, m *Node) Peer {
	t.Helper()
	ps, err := n.Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		if p.ID == string(m.ID()) {
			return p
		}
	}
	return Peer{State: "not listed"}
}

// Adjacent versions work together: whoever invites, jobs go both ways, with programs, inputs and outputs as blobs.
func TestAdjacentVersions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		here, more []int
		common     int
	}{
		{"the older joins", []int{2, 1}, []int{1}, 1},
		{"the newer joins", []int{1}, []int{2, 1}, 1},
		{"the next joins", []int{2, 1}, []int{3, 2}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, stopA := startIn(t, t.TempDir(), "a", 1, speaks(c.here...))
			t.Cleanup(stopA)
			b, stopB := startIn(t, t.TempDir(), "b", 1, speaks(c.more...))
			t.Cleanup(stopB)
			join(t, a, b)
			for n, m := range map[*Node]*Node{a: b, b: a} {
				if p := peerOf(t, n, m); p.State != "connected" || p.Protocol != c.common || p.Reason != "" {
					t.Errorf("%s sees %s as %+v, want protocol %d", n.Name(), m.Name(), p, c.common)
				}
			}
			large := bytes.Repeat([]byte("large "), 40_000)
			for _, n := range []*Node{a, b} {
				inputs := [][]byte{[]byte("small"), large}
				for i := range 38 {
					inputs = append(inputs, append([]byte(fmt.Sprint(i)), large...))
				}
				results, job := submit(t, n, "../../tasks/executor/wasm/testdata/echo.wasm", inputs, func(s *JobSpec) { s.Placement.RemoteOnly = true })
				if job.State != "done" || len(results) != len(inputs) {
					t.Fatalf("job of %s: %+v", n.Name(), job)
				}
				for i, r := range results {
					if r.Worker == n.ID() || !bytes.Equal(r.Output, inputs[i]) {
						t.Fatalf("task %d of %s: by %s, %d bytes, want %d", i, n.Name(), r.Name, len(r.Output), len(inputs[i]))
					}
				}
			}
		})
	}
}

// Without a version in common, each side that can know it says so, tries rarely, and goes on knowing the other; and they are
// together again once one of them has been updated.
func TestIncompatibleVersions(t *testing.T) {
	t.Parallel()
	dirA, dirB := t.TempDir(), t.TempDir()
	a, stopA := startIn(t, dirA, "a", 1)
	t.Cleanup(func() { stopA() })
	b, stopB := startIn(t, dirB, "b", 1)
	join(t, a, b)
	addr := b.host.Addrs()[0].String()
	stopB()
	// The same machine, with a program that is two versions ahead.
	b, stopB = startIn(t, dirB, "b", 1, speaks(4, 3), func(c *Config) { c.Listen = []string{addr} })
	t.Cleanup(func() { stopB() })
	// Whoever has the higher ID dials a second later: both dial.
	reason := func(n, m *Node, want string) {
		t.Helper()
		await(t, fmt.Sprintf("%s says %q of %s", n.Name(), want, m.Name()), func() bool {
			p := peerOf(t, n, m)
			return p.State == "gone" && strings.Contains(p.Reason, want)
		})
	}
	reason(a, b, "it speaks protocol 4, this node 2 and 1: update the older one, meshnode on this machine")
	reason(b, a, "this node 4 and 3: update the older one, meshnode on the other machine")
	for n, m := range map[*Node]*Node{a: b, b: a} {
		await(t, n.Name()+" knows one, to be tried in some minutes", func() bool {
			known := n.finder.Known()
			return len(known) == 1 && time.Until(known[0].NextTry) > 5*time.Minute
		})
		why, err := n.WhyPeer(t.Context(), string(m.ID()))
		if err != nil || len(why.Reasons) == 0 || !strings.Contains(why.Summary, "speaks protocol") || !strings.Contains(why.Reasons[0].Fix, "update") {
			t.Errorf("why on %s: %+v, %v", n.Name(), why, err)
		}
		await(t, n.Name()+" logs it", func() bool { return logged(n, "member of another version") })
	}
	// The visitor knows it first: whom it visits notes it when the connection ends.
	await(t, "a has noted who visited it", func() bool { return len(a.members.Visitors()) > 0 && logged(a, "it speaks protocol 4 and 3") })
	if v := a.members.Visitors(); len(v) != 1 || v[0].Version.Error() == "" {
		t.Errorf("a was visited by %+v", v)
	}
	// A ticket of the one is of no use to the other, which says why.
	ticket, err := b.Invite(t.Context(), InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, "c", 0)
	if _, err := c.Join(t.Context(), ticket); err == nil || !strings.Contains(err.Error(), "it speaks protocol 4, this node 2 and 1: update the older one, meshnode on this machine") {
		t.Errorf("join: %v", err)
	}
	stopB()
	b, stopB = startIn(t, dirB, "b", 1, func(c *Config) { c.Listen = []string{addr} })
	await(t, "they are together again", func() bool {
		return peerOf(t, a, b).State == "connected" && peerOf(t, b, a).State == "connected"
	})
}

// A member that was admitted and then speaks the streams in other versions only is shown as such, too.
func TestIncompatibleStreams(t *testing.T) {
	t.Parallel()
	for _, name := range []string{protocol.NamePeer, protocol.NameMembers, protocol.NameBlob} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := start(t, "a", 0), start(t, "b", 0)
			join(t, a, b)
			for _, id := range protocol.Spoken.IDs(name) {
				b.host.RemoveStreamHandler(libp2pproto.ID(id))
			}
			b.host.SetStreamHandler(libp2pproto.ID(protocol.ID(name, 3)), func(s network.Stream) { s.Reset() })
			closed := time.Time{}
			await(t, "a says so", func() bool {
				p := peerOf(t, a, b)
				if p.State == "connected" && time.Since(closed) > time.Second { // what it speaks is asked for once for each connection
					closed = time.Now()
					b.host.Network().ClosePeer(a.host.ID())
				}
				return p.State == "gone" && strings.Contains(p.Reason, "it speaks protocol 3, this node 2 and 1: update the older one, meshnode on this machine")
			})
		})
	}
}

func TestDataDirectoryFormat(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n, stop := startIn(t, dir, "a", 0)
	id := n.ID()
	stop()
	path := filepath.Join(dir, formatFile)
	if b, err := os.ReadFile(path); err != nil || string(b) != "2\n" {
		t.Fatalf("format: %q, %v", b, err)
	}
	if err := os.Remove(path); err != nil { // as earlier versions left it
		t.Fatal(err)
	}
	n, stop = startIn(t, dir, "a", 0)
	if n.ID() != id {
		t.Error("another identity")
	}
	stop()
	if b, err := os.ReadFile(path); err != nil || string(b) != "2\n" {
		t.Fatalf("format of a directory that was taken over: %q, %v", b, err)
	}
	for text, want := range map[string]string{"3\n": "has format 3, of a newer meshnode; this one knows formats up to 2", "x": "says no format", "0": "says no format"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := New(Config{DataDir: dir})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("format %q: %v", text, err)
		}
	}
}
