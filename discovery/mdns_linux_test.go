package discovery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sys/unix"

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

// Two members that were let in by a third, which is gone, and that met nobody in common: they hear each other in the local
// network, ask each other for their certificates, and connect. Someone who only says that it is of the mesh gains nothing by it,
// and nobody is sent out of the local network by it.
func TestUnmetMembersOnLAN(t *testing.T) {
	if lab.Inside() == "" {
		t.Parallel()
		l := lab.New(t)
		h := l.Host("alone")
		h.Plug(l.Switch(), "10.77.1.1/24")
		h.Rerun(t)
		return
	}
	any := "/ip4/0.0.0.0/tcp/0"
	dirA, dirB, dirC := t.TempDir(), t.TempDir(), t.TempDir()
	a := start(t, dirA, "a")
	a.admit(t, member(t, dirB, "b"))
	a.admit(t, member(t, dirC, "c"))
	a.stop()
	b := startAt(t, any, true, dirB, "b")
	time.Sleep(200 * time.Millisecond) // it is there first
	begun := time.Now()
	c := startAt(t, any, true, dirC, "c")
	until(t, 10*time.Second, "they connect", func() bool { return b.has(c) && c.has(b) })
	t.Logf("connected after %v, strangers before", time.Since(begun).Round(time.Millisecond))

	// A liar names strangers at its neighbours' addresses, and a member of the mesh at addresses far away.
	victim, err := net.Listen("tcp", "10.77.1.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	var dials atomic.Int32
	go func() {
		for {
			conn, err := victim.Accept()
			if err != nil {
				return
			}
			dials.Add(1)
			conn.Close()
		}
	}()
	began := time.Now()
	m := maddr(t, fmt.Sprintf("/ip4/10.77.1.1/tcp/%d", victim.Addr().(*net.TCPAddr).Port))
	far := maddr(t, "/ip4/8.8.8.8/tcp/443")
	for range 3 * maxUnmet {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		p, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		b.d.do(t.Context(), func() { b.d.heardOnLAN(p, []ma.Multiaddr{far, m}) })
	}
	time.Sleep(4 * time.Second) // nothing else shows what does not happen
	unmet := make(chan map[peer.ID]*unmet, 1)
	b.d.do(t.Context(), func() { unmet <- maps.Clone(b.d.unmet) })
	all := <-unmet
	if len(all) != maxUnmet {
		t.Errorf("%d unknown peers are remembered", len(all))
	}
	for p, u := range all {
		if len(u.addrs) != 1 {
			t.Fatalf("%s would be dialled at %v", p, u.addrs)
		}
	}
	if n, most := int(dials.Load()), int(time.Since(began)/endpointGap)+3; n == 0 || n > most {
		t.Errorf("the victim was dialled %d times, want at most %d", n, most)
	}
}

// What it costs the network that 50 nodes of a mesh come at once: how many frames.
func TestMDNSIsQuiet(t *testing.T) {
	if lab.Inside() == "" {
		t.Parallel()
		l := lab.New(t)
		h := l.Host("alone")
		h.Plug(l.Switch(), "10.77.2.1/24")
		h.Rerun(t)
		return
	}
	const nodes = 50
	sent := func() (frames, octets int) {
		b, err := os.ReadFile("/proc/net/dev")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if w := strings.Fields(line); w[0] == "eth0:" {
				octets, _ = strconv.Atoi(w[9])
				frames, _ = strconv.Atoi(w[10])
			}
		}
		return frames, octets
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	nets := readNetworks()
	var mu sync.Mutex
	met := map[int]map[string]bool{} // who has heard whom
	text := make([]string, nodes)
	for i := range nodes {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		p, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		text[i] = fmt.Sprintf("%s/ip4/10.77.2.%d/tcp/4001/p2p/%s", dnsaddr, i+2, p)
		met[i] = map[string]bool{}
	}
	f0, o0 := sent()
	begun := time.Now()
	for i := range nodes {
		l := newLAN("_mn-quiet._udp", slog.New(slog.DiscardHandler))
		id, _ := peerIn(text[i : i+1])
		l.name = lanName(id, l.service)
		l.text = func(face) []string { return text[i : i+1] }
		// Whom it has heard of it is connected to a moment later.
		l.heard = func(said []string) { mu.Lock(); defer mu.Unlock(); met[i][said[0]] = true }
		l.known = func() map[string]bool {
			mu.Lock()
			defer mu.Unlock()
			names := map[string]bool{}
			for s := range met[i] {
				if p, _ := peerIn([]string{s}); p != "" {
					names[lanName(p, l.service)] = true
				}
			}
			return names
		}
		running.Go(func() { l.run(ctx) })
		l.use(nets, true)
		time.Sleep(20 * time.Millisecond) // all within a second
	}
	until(t, 20*time.Second, "each has heard three", func() bool { // one would do
		mu.Lock()
		defer mu.Unlock()
		for _, m := range met {
			if len(m) < 3 {
				return false
			}
		}
		return true
	})
	heard := time.Since(begun)
	time.Sleep(time.Until(begun.Add(sayTimes[len(sayTimes)-1] + 1500*time.Millisecond)))
	f, o := sent()
	t.Logf("%d nodes within a second: each has heard three others after %v; %d frames, %d KiB in %v", nodes, heard.Round(10*time.Millisecond), f-f0, (o-o0)>>10, time.Since(begun).Round(time.Second))
	// Each says four times where it is, asks once, and three answer; 1100 were there no end of answers.
	if most := nodes * (len(sayTimes) + 1 + maxAnswers) * 12 / 5; f-f0 > most {
		t.Errorf("%d frames, want at most %d", f-f0, most)
	}
	if d, err := time.ParseDuration(os.Getenv("MESHNODE_QUIET")); err == nil {
		f0, o0, begun = f, o, time.Now()
		time.Sleep(d)
		f, o = sent()
		t.Logf("then %d frames, %d KiB in %v", f-f0, (o-o0)>>10, time.Since(begun).Round(time.Second))
	}
}

// Where there is IPv6 alone, and the kernel has not yet made sure that nobody else has the address: it is used as soon as it can be.
func TestIPv6Alone(t *testing.T) {
	if lab.Inside() == "" {
		t.Parallel()
		l := lab.New(t)
		h := l.Host("alone")
		h.Plug(l.Switch(), "")
		h.Rerun(t)
		return
	}
	any := "/ip6/::/tcp/0"
	dirA, dirB := t.TempDir(), t.TempDir()
	a := start(t, dirA, "a")
	a.admit(t, member(t, dirB, "b"))
	a.stop()
	a, b := startAt(t, any, true, dirA, "a"), startAt(t, any, true, dirB, "b")
	for _, args := range []string{"addr add fd00:77::1/64 dev eth0", "link set eth0 up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	begun := time.Now()
	tentative := false
	until(t, 10*time.Second, "the address can be used", func() bool {
		n := len(tentativeAddrs())
		tentative = tentative || n > 0
		return tentative && n == 0
	})
	usable := time.Now()
	until(t, 10*time.Second, "they connect", func() bool { return a.has(b) && b.has(a) })
	t.Logf("the address could be used after %v; connected after %v more", usable.Sub(begun).Round(time.Millisecond), time.Since(usable).Round(time.Millisecond))
}

// A given name that leads elsewhere from some time on: the member is found there. Nothing else tells of it.
func TestGivenNameMoves(t *testing.T) {
	if lab.Inside() == "" {
		t.Parallel()
		l := lab.New(t)
		h := l.Host("alone")
		h.Plug(l.Switch(), "10.77.3.1/24")
		h.Rerun(t)
		return
	}
	// The names of this process's own view of the files, in which ip(8) has started it.
	hosts := filepath.Join(t.TempDir(), "hosts")
	lead := func(ip string) {
		if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"+ip+" laptop.example\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	lead("10.77.3.1")
	if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "addr", "add", "10.77.3.2/24", "dev", "eth0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dirB := t.TempDir()
	b := startAt(t, "/ip4/10.77.3.1/tcp/4001", false, dirB, "b")
	a := startAt(t, "/ip4/127.0.0.1/tcp/0", false, t.TempDir(), "a", "laptop.example:4001")
	b.admit(t, a.Membership)
	until(t, 10*time.Second, "they connect", func() bool { return a.has(b) && b.has(a) })
	b.stop()
	if err := os.Remove(filepath.Join(dirB, "membership", bookFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	lead("10.77.3.2")
	begun := time.Now()
	startAt(t, "/ip4/10.77.3.2/tcp/4001", false, dirB, "b")
	until(t, 45*time.Second, "it is found where the name leads now", func() bool { return a.state(b.Self()).State == Connected })
	t.Logf("found %v after the name led elsewhere", time.Since(begun).Round(100*time.Millisecond))
	if s := a.state(b.Self()); len(s.Addrs) == 0 || s.Addrs[0].String() != "/ip4/10.77.3.2/tcp/4001" || s.Via != fromPerson {
		t.Errorf("a knows %+v", s)
	}
}
