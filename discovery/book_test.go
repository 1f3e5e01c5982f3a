package discovery

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What was learnt is on the disk within a second: a node that is killed has it.
func TestBookIsSavedSoon(t *testing.T) {
	t.Parallel()
	a, b := start(t, t.TempDir(), "a"), start(t, t.TempDir(), "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	begun := time.Now()
	until(t, 3*time.Second, "b's address is in a's book", func() bool {
		var book map[string]entry
		raw, err := os.ReadFile(filepath.Join(a.dir, "membership", bookFile))
		return err == nil && json.Unmarshal(raw, &book) == nil && len(book[b.Self().String()].Addrs) > 0
	})
	t.Logf("on the disk %v after the connection", time.Since(begun).Round(time.Millisecond))
	// What others say of b is not.
	a.hint(b.Self(), "/ip4/127.0.0.1/tcp/9")
	a.stop()
	raw, err := os.ReadFile(filepath.Join(a.dir, "membership", bookFile))
	if err != nil || len(raw) == 0 || slices.Contains(a.d.book.peers[b.Self()].Addrs, "/ip4/127.0.0.1/tcp/9") {
		t.Errorf("hearsay in the book: %s, %v", raw, err)
	}
}

func TestAddressBookAfterRestart(t *testing.T) {
	t.Parallel()
	dirA, dirB := t.TempDir(), t.TempDir()
	a, b := start(t, dirA, "a"), start(t, dirB, "b")
	a.admit(t, b.Membership)
	until(t, 5*time.Second, "a and b connect", func() bool { return a.has(b) && b.has(a) })
	until(t, 5*time.Second, "a knows b's address", func() bool { return len(a.state(b.Self()).Addrs) > 0 })
	a.stop()
	until(t, 5*time.Second, "b has lost a", func() bool { return !b.has(a) })
	if s := b.state(a.Self()); s.Reason == "" || s.State == Connected || s.LastSeen.IsZero() {
		t.Errorf("b says of a: %+v", s)
	}
	at := b.host.Addrs()[0].String()
	b.stop()
	// b comes back where it was, but without its book; a comes back elsewhere. Only a's book leads from one to the other.
	if err := os.Remove(filepath.Join(dirB, "membership", bookFile)); err != nil {
		t.Fatal(err)
	}
	b, a = startAt(t, at, false, dirB, "b"), start(t, dirA, "a")
	until(t, 8*time.Second, "they connect again", func() bool { return a.has(b) && b.has(a) })
}
