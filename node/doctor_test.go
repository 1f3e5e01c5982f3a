package node

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"meshnode/discovery"
	"meshnode/node/doctor"
	"meshnode/protocol"
)

// finding wants one with this check, subject ("": any) and state, with all of these words.
func finding(t *testing.T, fs []doctor.Finding, check, subject string, state doctor.State, words ...string) {
	t.Helper()
	for _, f := range fs {
		ok := f.Check == check && (subject == "" || f.Subject == subject) && f.State == state
		for _, w := range words {
			ok = ok && strings.Contains(f.Text+" "+f.Fix, w)
		}
		if ok {
			if state != doctor.OK && f.Fix == "" {
				t.Errorf("nothing to do: %+v", f)
			}
			return
		}
	}
	t.Errorf("no %s %s %s %q among %+v", check, subject, state, words, fs)
}

// Each way in which a member is not there has its own words, in doctor and in ping.
func TestWhyAMemberIsNotThere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		code  discovery.Code
		state doctor.State
		words string
		// then puts something else where the member was, at the same address, or nothing.
		then func(t *testing.T, dir, addr string)
	}{
		{"off", discovery.NobodyThere, doctor.Warn, "nothing listens there", func(*testing.T, string, string) {}},
		{"another node", discovery.OtherIdentity, doctor.Warn, "another node is at this address now", func(t *testing.T, _, addr string) {
			_, stop := startIn(t, t.TempDir(), "other", 0, func(c *Config) { c.Listen = []string{addr} })
			t.Cleanup(stop)
		}},
		{"left", discovery.OtherMesh, doctor.Fail, "another mesh", func(t *testing.T, dir, addr string) {
			if err := os.RemoveAll(filepath.Join(dir, "membership")); err != nil { // a leave that nobody heard of
				t.Fatal(err)
			}
			_, stop := startIn(t, dir, "b", 0, func(c *Config) { c.Listen = []string{addr} })
			t.Cleanup(stop)
		}},
		{"newer", discovery.OtherVersion, doctor.Fail, "it speaks protocol 4", func(t *testing.T, dir, addr string) {
			_, stop := startIn(t, dir, "b", 0, func(c *Config) { c.Listen = []string{addr}; c.Speak = protocol.Versions{4, 3} })
			t.Cleanup(stop)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := start(t, "a", 0)
			dir := t.TempDir()
			b, stop := startIn(t, dir, "b", 0)
			join(t, a, b)
			addr := b.host.Addrs()[0].String()
			id := string(b.ID())
			stop()
			c.then(t, dir, addr)
			await(t, "a has lost b", func() bool { return peerOf(t, a, b).State == "gone" })
			p, err := a.Ping(t.Context(), id)
			if err != nil || p.Answered || p.Fix == "" || p.Name != "b" {
				t.Fatalf("ping: %+v, %v", p, err)
			}
			said := false
			for _, ans := range p.Addresses {
				said = said || ans.Code == c.code && ans.Addr == addr
			}
			if !said {
				t.Errorf("ping: %+v, want %s of %s", p, c.code, addr)
			}
			await(t, "its connection has ended", func() bool { return len(a.host.Network().ConnsToPeer(b.host.ID())) == 0 })
			r, err := a.Doctor(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			finding(t, r.Findings, doctor.CheckMember, "b", c.state, c.words)
			if c.state == doctor.Fail && r.Failures == 0 {
				t.Errorf("counted as nothing: %+v", r)
			}
		})
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	a, b := start(t, "a", 0), start(t, "b", 0)
	join(t, a, b)
	p, err := a.Ping(t.Context(), string(b.ID()))
	if err != nil || !p.Answered || p.RTT <= 0 || p.RTT > 5000 || p.Path != "direct" || !strings.HasPrefix(p.Addr, "/ip4/127.0.0.1/tcp/") || p.Reason != "" {
		t.Errorf("ping: %+v, %v", p, err)
	}
	var e *Error
	if _, err := a.Ping(t.Context(), string(a.ID())); !errors.As(err, &e) || e.Code != CodeRefused {
		t.Errorf("ping of itself: %v", err)
	}
	if _, err := a.Ping(t.Context(), string(start(t, "c", 0).ID())); !errors.As(err, &e) || e.Code != CodeNoPeer {
		t.Errorf("ping of a stranger: %v", err)
	}
	// One that is of an older version has no such question; its beats say it.
	old, stop := startIn(t, t.TempDir(), "old", 0, speaks(1))
	t.Cleanup(stop)
	join2(t, a, old, []*Node{b})
	await(t, "a beat has come back", func() bool { return peerOf(t, a, old).RTT > 0 })
	p, err = a.Ping(t.Context(), string(old.ID()))
	if err != nil || !p.Answered || p.RTT <= 0 || !strings.Contains(p.Reason, "round trip of its beats") {
		t.Errorf("ping of an older one: %+v, %v", p, err)
	}
	r, err := a.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	finding(t, r.Findings, doctor.CheckMember, "old", doctor.OK, "it speaks protocol 1")
	finding(t, r.Findings, doctor.CheckReach, "", doctor.OK, "b at 127.0.0.1")
}

// A clock that is wrong is seen by those of others, and a clock before a signature by that alone.
func TestDoctorSeesAWrongClock(t *testing.T) {
	t.Parallel()
	a, stopA := startIn(t, t.TempDir(), "a", 0)
	t.Cleanup(stopA)
	b, stopB := startIn(t, t.TempDir(), "b", 0)
	t.Cleanup(stopB)
	join(t, a, b)
	var mu sync.Mutex
	var off time.Duration
	// b has a certificate that a has signed just now. Only doctor's clock is changed.
	b.cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(off) }
	look := func(d time.Duration) []doctor.Finding {
		mu.Lock()
		off = d
		mu.Unlock()
		r, err := b.Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r.Findings
	}
	finding(t, look(0), doctor.CheckClock, "", doctor.OK, "agrees with that of a")
	finding(t, look(time.Hour), doctor.CheckClock, "", doctor.Warn, "is 1h0m0s ahead of what 1 of the members say")
	finding(t, look(-time.Hour), doctor.CheckClock, "", doctor.Fail, "a member signed something")
}

// The words for each way in which others do, or do not, get through.
func TestJudgeReach(t *testing.T) {
	t.Parallel()
	own, router := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("8.8.1.1")
	at := func(name string, seen netip.Addr, s protocol.PortState) answered {
		return answered{name: name, checked: checked{seenAt: seen, ports: []*protocol.PortAnswer{{Port: 4001, State: s}}}}
	}
	for _, c := range []struct {
		what    string
		answers []answered
		state   doctor.State
		words   string
	}{
		{"all", []answered{at("x", own, protocol.PortState_REACHED)}, doctor.OK, "x at 127.0.0.1:4001"},
		{"some", []answered{at("x", own, protocol.PortState_REACHED), at("y", own, protocol.PortState_NO_ANSWER)}, doctor.Warn, "some cannot: y at"},
		{"a firewall", []answered{at("x", own, protocol.PortState_NO_ANSWER)}, doctor.Fail, "firewall-cmd --permanent --add-port=4001/tcp"},
		{"a router", []answered{at("x", router, protocol.PortState_NO_ANSWER)}, doctor.Warn, "a router's"},
		{"busy", []answered{at("x", own, protocol.PortState_NOT_TRIED)}, doctor.Warn, "not known"},
		{"a relay", []answered{at("x", netip.Addr{}, protocol.PortState_NOT_TRIED)}, doctor.Warn, "not known"},
		{"nobody", nil, doctor.Warn, "not known"},
		{"an error", []answered{{name: "x", err: errNoChecks}}, doctor.Warn, "x: it is of an older version"},
	} {
		fs := judgeReach(c.answers, []uint32{4001})
		if len(fs) != 1 || fs[0].State != c.state || !strings.Contains(fs[0].Text+fs[0].Fix, c.words) {
			t.Errorf("%s: %+v", c.what, fs)
		}
	}
}

// What members see says which kind of router there is.
func TestJudgeNAT(t *testing.T) {
	t.Parallel()
	home, router := netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("8.8.1.1")
	own := func(a netip.Addr) bool { return a == home }
	at := func(seen netip.Addr, port, seenPort uint16) answered {
		return answered{checked: checked{seenAt: seen, port: port, seenPort: seenPort}}
	}
	for _, c := range []struct {
		what    string
		answers []answered
		public  bool
		words   string
	}{
		{"nobody", nil, false, ""},
		{"a relay alone", []answered{at(netip.Addr{}, 0, 0)}, false, ""},
		{"a LAN", []answered{at(home, 5, 5)}, false, "no router translates between"},
		{"the Internet", []answered{at(home, 5, 5)}, true, "has a public one"},
		{"port-preserving", []answered{at(home, 4, 4), at(router, 5, 5), at(router, 6, 6)}, false, "keeps the ports"},
		{"symmetric", []answered{at(router, 5, 1005), at(router, 6, 6)}, false, "a symmetric one"},
		{"forwarded", []answered{at(router, 0, 99)}, false, "members see it at 8.8.1.1"},
	} {
		fs := judgeNAT(c.answers, own, c.public)
		if text := fmt.Sprint(fs); (c.words == "") != (len(fs) == 0) || !strings.Contains(text, c.words) {
			t.Errorf("%s: %+v", c.what, fs)
		}
	}
}

func TestDoctorSeesASleep(t *testing.T) {
	t.Parallel()
	var slept atomic.Int64
	n, stop := startIn(t, t.TempDir(), "a", 0, func(c *Config) { c.sleptSoFar = func() time.Duration { return time.Duration(slept.Load()) } })
	t.Cleanup(stop)
	finding(t, n.sleep(t.Context()), doctor.CheckSleep, "", doctor.OK, "has not slept")
	slept.Store(int64(time.Hour))
	await(t, "the sleep is noticed", func() bool { return strings.Contains(n.sleep(t.Context())[0].Text, "woke from a sleep") })
}

// What a member may have us do is bounded, and what breaks the protocol ends its stream.
func TestChecksAreBounded(t *testing.T) {
	t.Parallel()
	a, b := start(t, "a", 0), start(t, "b", 0)
	join(t, a, b)
	open := func() network.Stream {
		s, err := b.host.NewStream(t.Context(), a.host.ID(), libp2pproto.ID(protocol.ID(protocol.NameCheck, 2)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Reset() })
		s.SetDeadline(time.Now().Add(10 * time.Second))
		return s
	}
	ask := func(s network.Stream, req *protocol.CheckRequest) (*protocol.CheckAnswer, error) {
		if err := writeCheck(s, req); err != nil {
			return nil, err
		}
		ans := &protocol.CheckAnswer{}
		return ans, readCheck(bufio.NewReader(s), ans)
	}
	s := open()
	port := uint32(b.listenPorts()[0])
	// Its own ports, and nobody else's: the request has no field for an address.
	ans, err := ask(s, &protocol.CheckRequest{Ports: []uint32{port, 1, 0, 70000}})
	if err != nil || ans.SeenAt != "127.0.0.1" || len(ans.Ports) != 4 || ans.Ports[0].State != protocol.PortState_REACHED ||
		ans.Ports[1].State != protocol.PortState_REFUSED || ans.Ports[2].State != protocol.PortState_NOT_TRIED || ans.Ports[3].State != protocol.PortState_NOT_TRIED {
		t.Errorf("ports: %v, %v", ans, err)
	}
	if off := time.Since(time.UnixMilli(ans.GetUnixMs())); off < 0 || off > 10*time.Second {
		t.Errorf("the time is %v ago", off)
	}
	if ans, err = ask(s, &protocol.CheckRequest{Ports: []uint32{port}}); err != nil || ans.Ports[0].State != protocol.PortState_NOT_TRIED {
		t.Errorf("at once again: %v, %v", ans, err)
	}
	// Another's port behind the same address is seen as that.
	if got := a.tryPorts(b.host.ID(), netip.MustParseAddr("127.0.0.1"), []uint32{uint32(a.listenPorts()[0])}); got[0].State == protocol.PortState_REACHED {
		t.Errorf("somebody else's port counts as b's: %v", got)
	}
	long := binary.AppendUvarint(nil, 1<<30)
	many, _ := proto.Marshal(&protocol.CheckRequest{Ports: []uint32{1, 2, 3, 4, 5}})
	echo, _ := proto.Marshal(&protocol.CheckRequest{Echo: make([]byte, protocol.MaxCheckEcho+1)})
	for what, raw := range map[string][]byte{
		"too long": long, "no message": {2, 0xff, 0xff},
		"too many ports": append(binary.AppendUvarint(nil, uint64(len(many))), many...), "too long an echo": append(binary.AppendUvarint(nil, uint64(len(echo))), echo...),
	} {
		s := open()
		s.Write(raw)
		if _, err := io.ReadAll(s); !errors.Is(err, network.ErrReset) {
			t.Errorf("%s: the stream was not reset: %v", what, err)
		}
	}
	await(t, "logged", func() bool { return logged(a, "protocol=/meshnode/check/2") })

	var c checks
	for i := range checkStreams {
		if !c.enter() {
			t.Fatalf("stream %d", i)
		}
	}
	if c.enter() {
		t.Error("more streams than there are to be")
	}
	p, q := peer.ID("p"), peer.ID("q")
	if n := c.take(p, 3); n != 3 {
		t.Errorf("%d of 3", n)
	}
	if n := c.take(p, 1); n != 0 {
		t.Errorf("p at once again: %d", n)
	}
	if n := c.take(q, 3); n != 1 {
		t.Errorf("q beside p: %d, want what is left", n)
	}
}

func FuzzReadCheck(f *testing.F) {
	b, _ := proto.Marshal(&protocol.CheckRequest{Echo: []byte("x"), Ports: []uint32{1, 65535}})
	f.Add(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &protocol.CheckRequest{}
		if err := readCheck(bufio.NewReader(strings.NewReader(string(b))), req); err == nil && proto.Size(req) > protocol.MaxCheck {
			t.Errorf("%d bytes", proto.Size(req))
		}
	})
}

func TestKeptPort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n, stop := startIn(t, dir, "a", 0)
	t.Cleanup(stop)
	n.cfg.Listen = nil
	if err := os.WriteFile(filepath.Join(dir, "membership", "port"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	finding(t, n.keptPort(t.Context()), doctor.CheckPort, "1", doctor.Warn, "kept TCP port 1 and listens on")
	if err := os.WriteFile(filepath.Join(dir, "membership", "port"), fmt.Appendln(nil, n.listenPorts()[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	if fs := n.keptPort(t.Context()); len(fs) != 0 {
		t.Errorf("%+v", fs)
	}
}
