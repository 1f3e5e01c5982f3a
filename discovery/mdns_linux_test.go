package discovery

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"meshnode/testnet/lab"
)

// TestMDNS needs an interface that is not loopback and that nobody else uses.
func TestMDNS(t *testing.T) {
	if lab.Inside() != "" {
		mdnsInside(t)
		return
	}
	t.Parallel()
	lab.New(t).Host("alone").Rerun(t)
}

func mdnsInside(t *testing.T) {
	ip := func(args string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	dirA, dirB := t.TempDir(), t.TempDir()
	a := start(t, dirA, "a")
	b := member(t, dirB, "b")
	a.admit(t, b)
	a.stop()

	// They start without a network and at other ports than before: what they know of each other leads nowhere.
	any := "/ip4/0.0.0.0/tcp/0"
	a = startAt(t, any, true, dirA, "a")
	nb := startAt(t, any, true, dirB, "b")
	stranger := startAt(t, any, true, t.TempDir(), "stranger")
	until(t, 5*time.Second, "mDNS says that it cannot start", func() bool {
		return strings.Contains(a.log.String(), "mDNS does not work here now") && strings.Contains(nb.log.String(), "mDNS does not work here now")
	})
	if a.has(nb) {
		t.Fatal("connected without mDNS: this test shows nothing")
	}
	ip("link add one type veth peer name two")
	ip("addr add 10.77.0.1/24 dev one")
	ip("link set two up")
	ip("link set one up")
	up := time.Now()
	until(t, 15*time.Second, "they find each other", func() bool { return a.has(nb) && nb.has(a) })
	t.Logf("found after %v from link up", time.Since(up).Round(time.Millisecond))
	if k := stranger.d.Known(); len(k) != 0 || len(stranger.host.Network().Peers()) != 0 {
		t.Errorf("a node of another mesh found %+v", k)
	}
	// And so does somebody who has a ticket with an old address.
	begun := time.Now()
	if addrs := FindOnLAN(t.Context(), a.Mesh(), nb.Self()); len(addrs) == 0 {
		t.Error("nothing found on the local network for a join")
	}
	t.Logf("found for a join after %v", time.Since(begun).Round(time.Millisecond))
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if addrs := FindOnLAN(short, a.Mesh(), member(t, t.TempDir(), "x").Self()); len(addrs) != 0 {
		t.Errorf("found somebody else: %v", addrs)
	}
	other, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if addrs := FindOnLAN(other, stranger.Mesh(), nb.Self()); len(addrs) != 0 {
		t.Errorf("a node is announced in another mesh: %v", addrs)
	}
	// A mesh that is joined while it runs is looked for, too.
	a.admit(t, stranger.Membership)
	until(t, 15*time.Second, "the newcomer is connected", func() bool { return stranger.has(nb) && stranger.has(a) })
}
