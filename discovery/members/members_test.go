package members

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/protocol"
)

// open opens a membership in dir (a fresh folder if empty) that needs no machine id.
func open(t testing.TB, dir string, o Options) *Membership {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	if o.Machine == nil {
		o.Machine = func() string { return "this machine" }
	}
	if o.Name == "" {
		o.Name = filepath.Base(dir)
	}
	m, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// listen makes a host that only members can connect to.
func listen(t testing.TB, m *Membership) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.Identity(m.Key()), TransportOptions(m), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func invite(t testing.TB, m *Membership, h host.Host, o InviteOptions) string {
	t.Helper()
	if h != nil {
		o.Addrs = h.Addrs()
	}
	s, err := m.Invite(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func join(t testing.TB, m *Membership, ticket string) {
	t.Helper()
	if err := m.Join(ctx(t), ticket, JoinOptions{}); err != nil {
		t.Fatal(err)
	}
}

func info(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// events counts the Connected events of a host.
func events(h host.Host) func() int {
	var mu sync.Mutex
	n := 0
	h.Network().Notify(&network.NotifyBundle{ConnectedF: func(network.Network, network.Conn) { mu.Lock(); n++; mu.Unlock() }})
	return func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// eventually waits for something that no event tells of.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

func TestJoinAndConnect(t *testing.T) {
	t.Parallel()
	a, b := open(t, "", Options{Name: "desk"}), open(t, "", Options{Name: "sofa"})
	ha := listen(t, a)
	changes, stop := b.Subscribe()
	defer stop()
	join(t, b, invite(t, a, ha, InviteOptions{Mine: true}))
	select {
	case <-changes:
	default:
		t.Error("a join told no subscriber")
	}
	if b.Mesh() != a.Mesh() || b.Own().Owner != a.Own().Owner || b.Own().Name != "sofa" || b.Inviter().ID != a.Self() || len(b.Inviter().Addrs) != 1 {
		t.Errorf("after the join: mesh %s, want %s; certificate %+v; inviter %v", b.Mesh(), a.Mesh(), b.Own(), b.Inviter())
	}
	hb := listen(t, b)
	ha.SetStreamHandler("/echo", func(s network.Stream) {
		buf := make([]byte, 5)
		if _, err := s.Read(buf); err == nil {
			s.Write(buf)
		}
		s.Close()
	})
	if err := hb.Connect(ctx(t), info(ha)); err != nil {
		t.Fatal(err)
	}
	s, err := hb.NewStream(ctx(t), a.Self(), "/echo")
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 5)
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(buf); string(buf[:n]) != "hello" {
		t.Errorf("echo: %q, %v", buf[:n], err)
	}
	if c, ok := a.Certificate(b.Self()); !ok || c.Name != "sofa" {
		t.Errorf("a's certificate of b: %+v, %v", c, ok)
	}
	if got := a.MayUseHere(b.Self()); !slices.Equal(got, allRuntimes) {
		t.Errorf("a machine of the same owner may use %v", got)
	}
	// What was met survives a restart.
	if a2 := open(t, a.dir, Options{}); len(a2.Members()) != 1 || a2.Mesh() != a.Mesh() || a2.Self() != a.Self() {
		t.Errorf("after a restart: %d members, opened %+v", len(a2.Members()), a2.Opened())
	}
}

func BenchmarkConnect(b *testing.B) {
	x, y := open(b, "", Options{}), open(b, "", Options{})
	hx := listen(b, x)
	join(b, y, invite(b, x, hx, InviteOptions{Mine: true}))
	hy := listen(b, y)
	hy.Peerstore().AddAddrs(hx.ID(), hx.Addrs(), time.Hour)
	for b.Loop() {
		c, err := hy.Network().DialPeer(b.Context(), hx.ID())
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkConnectPlain is libp2p's own TLS, to compare with.
func BenchmarkConnectPlain(b *testing.B) {
	mk := func() host.Host {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { h.Close() })
		return h
	}
	hx, hy := mk(), mk()
	hy.Peerstore().AddAddrs(hx.ID(), hx.Addrs(), time.Hour)
	for b.Loop() {
		c, err := hy.Network().DialPeer(b.Context(), hx.ID())
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

func TestRights(t *testing.T) {
	t.Parallel()
	a := open(t, "", Options{})
	ha := listen(t, a)
	mine, other, guest := open(t, "", Options{}), open(t, "", Options{}), open(t, "", Options{})
	join(t, mine, invite(t, a, ha, InviteOptions{Mine: true}))
	join(t, other, invite(t, a, ha, InviteOptions{Runtimes: []string{Wasm, Python}}))
	join(t, guest, invite(t, a, ha, InviteOptions{Guest: true}))
	for _, m := range []*Membership{a, mine, other, guest} { // the inviter itself notes a joiner when that has gone
		if _, err := m.Add(a.Own().Chain(), mine.Own().Chain(), other.Own().Chain(), guest.Own().Chain()); err != nil {
			t.Fatal(err)
		}
	}
	all, wasm := fmt.Sprint(allRuntimes), fmt.Sprint([]string{Wasm})
	for _, c := range []struct {
		who               string
		here              *Membership
		peer              *Membership
		mayHere, mayThere string
	}{
		{"two of one owner", a, mine, all, all},
		{"another owner, even with python in its certificate", a, other, wasm, wasm},
		{"a guest works for nobody", a, guest, wasm, "[]"},
		{"seen from the guest", guest, a, "[]", wasm},
		{"two other owners", other, guest, wasm, "[]"},
	} {
		if here, there := fmt.Sprint(c.here.MayUseHere(c.peer.Self())), fmt.Sprint(c.here.MayUseThere(c.peer.Self())); here != c.mayHere || there != c.mayThere {
			t.Errorf("%s: may use here %s, there %s; want %s, %s", c.who, here, there, c.mayHere, c.mayThere)
		}
	}
	if got := a.MayUseHere(open(t, "", Options{}).Self()); got != nil {
		t.Errorf("a stranger may use %v", got)
	}
	// Who may invite: the owner's machines, as far as the chain goes.
	if _, err := other.Invite(InviteOptions{}); !errors.Is(err, ErrNotAdmin) {
		t.Errorf("a member of another owner invites: %v", err)
	}
	second, third := open(t, "", Options{}), open(t, "", Options{})
	hm := listen(t, mine)
	join(t, second, invite(t, mine, hm, InviteOptions{Mine: true}))
	hs := listen(t, second)
	if !second.Own().Can(protocol.Capability_ADMIN) || len(second.Own().Chain().Certificates) != 2 {
		t.Errorf("invited by an admin: %v", second.Own())
	}
	join(t, third, invite(t, second, hs, InviteOptions{Mine: true}))
	if third.Own().Can(protocol.Capability_ADMIN) || len(third.Own().Chain().Certificates) != 3 {
		t.Errorf("at the end of the chain: %v", third.Own())
	}
	if _, err := third.Invite(InviteOptions{}); !errors.Is(err, ErrNotAdmin) {
		t.Errorf("the end of the chain invites: %v", err)
	}
	if err := listen(t, third).Connect(ctx(t), info(ha)); err != nil {
		t.Errorf("a chain of three: %v", err)
	}
}

func TestTickets(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	skew := time.Duration(0)
	a := open(t, "", Options{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(skew) }})
	ha := listen(t, a)
	refused := func(m *Membership, ticket string, d protocol.Denial, says string) {
		t.Helper()
		err := m.Join(ctx(t), ticket, JoinOptions{})
		var r *Refused
		if !errors.As(err, &r) || r.Denial != d || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("join: %v; want %v, saying %q", err, d, says)
		}
		if !m.Alone() {
			t.Error("a refused join changed the joiner")
		}
	}
	one := invite(t, a, ha, InviteOptions{})
	if strings.ContainsAny(one, " \n") || !strings.HasPrefix(one, "meshnode-ticket-") {
		t.Errorf("ticket %q is not one word", one)
	}
	b, c := open(t, "", Options{}), open(t, "", Options{})
	join(t, b, " "+strings.ToUpper(one[:40])+"\n "+one[40:]+"\r\n")
	refused(c, one, protocol.Denial_TICKET_USED, "used already")
	// The same key may fetch its certificate again, and gets the same.
	serial := b.Own().Serial
	join(t, b, one)
	if b.Own().Serial != serial {
		t.Error("fetched again, the certificate is another one")
	}
	two := invite(t, a, ha, InviteOptions{Uses: 2})
	join(t, c, two)
	join(t, open(t, "", Options{}), two)
	d := open(t, "", Options{})
	refused(d, two, protocol.Denial_TICKET_USED, "used already")

	late := invite(t, a, ha, InviteOptions{Expires: time.Hour})
	mu.Lock()
	skew = time.Hour + 2*time.Second
	mu.Unlock()
	refused(d, late, protocol.Denial_TICKET_EXPIRED, "expired on")
	mu.Lock()
	skew = 0
	mu.Unlock()

	unknown := invite(t, a, ha, InviteOptions{})
	a.mu.Lock()
	a.st.Tickets = a.st.Tickets[:len(a.st.Tickets)-1]
	a.mu.Unlock()
	refused(d, unknown, protocol.Denial_TICKET_UNKNOWN, "unknown")

	typo := one[:30] + map[bool]string{true: "b", false: "a"}[one[30] == 'a'] + one[31:]
	if err := d.Join(ctx(t), typo, JoinOptions{}); !errors.Is(err, ErrTicket) || !strings.Contains(err.Error(), "typing error") {
		t.Errorf("a typo: %v", err)
	}
	for _, s := range []string{"", "hello", "meshnode-ticket-", "meshnode-ticket-aaaaaaa", strings.Repeat("x", 1<<20)} {
		if err := d.Join(ctx(t), s, JoinOptions{}); !errors.Is(err, ErrTicket) || strings.Contains(err.Error(), "\n") {
			t.Errorf("join %.20q: %v", s, err)
		}
	}
	if err := a.Join(ctx(t), one, JoinOptions{}); !errors.Is(err, ErrOwnTicket) {
		t.Errorf("its own ticket: %v", err)
	}
	elsewhere := open(t, "", Options{})
	he := listen(t, elsewhere)
	if err := b.Join(ctx(t), invite(t, elsewhere, he, InviteOptions{}), JoinOptions{}); !errors.Is(err, ErrLeaveFirst) {
		t.Errorf("join from within another mesh: %v", err)
	}
	old := invite(t, elsewhere, he, InviteOptions{})
	if _, _, err := elsewhere.Leave(false); err != nil {
		t.Fatal(err)
	}
	refused(d, old, protocol.Denial_OTHER_MESH, "another mesh")
	if err := d.Join(ctx(t), invite(t, open(t, "", Options{}), nil, InviteOptions{}), JoinOptions{}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a ticket without addresses: %v", err)
	}
	// Left and alone again, b may join elsewhere.
	if _, _, err := b.Leave(true); err != nil {
		t.Fatal(err)
	}
	join(t, b, invite(t, elsewhere, he, InviteOptions{}))

	for _, o := range []InviteOptions{{Mine: true, Guest: true}, {Uses: -1}, {Uses: 1001}, {Expires: -time.Second}, {Expires: 400 * 24 * time.Hour}, {Runtimes: []string{"java"}}} {
		if _, err := a.Invite(o); err == nil {
			t.Errorf("invite %+v: no error", o)
		}
	}
}

// A ticket also finds an inviter whose address has changed; who has the old one now refuses connections, or takes them and is silent.
func TestJoinByLAN(t *testing.T) {
	t.Parallel()
	a := open(t, "", Options{})
	ha := listen(t, a)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, at := range []string{"/ip4/127.0.0.1/tcp/1", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", silent.Addr().(*net.TCPAddr).Port)} {
		gone, err := ma.NewMultiaddr(at)
		if err != nil {
			t.Fatal(err)
		}
		ticket, err := a.Invite(InviteOptions{Addrs: []ma.Multiaddr{gone}})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := open(t, "", Options{}).Join(ctx(t), ticket, JoinOptions{Find: func(_ context.Context, mesh MeshID, p peer.ID) []ma.Multiaddr {
			if mesh != a.Mesh() || p != a.Self() {
				t.Errorf("looks for %s in %s", p, mesh)
			}
			return ha.Addrs()
		}}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > admissionTimeout {
			t.Errorf("%s: it was looked for after %v", at, took)
		}
	}
}

func TestWrongTicketsAreSlowedDown(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	skew := time.Duration(0)
	a := open(t, "", Options{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(skew) }})
	good := invite(t, a, nil, InviteOptions{})
	w, err := parseTicket(good)
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, "", Options{})
	own, err := keyOf(b.Self())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(secret []byte, source string) protocol.Denial {
		return a.redeem(&protocol.JoinRequest{Mesh: w.Mesh, Ticket: ticketID(secret), Proof: joinProof(secret, w.Mesh, w.Inviter, own)}, b.Self(), source).Denial
	}
	wrong := bytes.Repeat([]byte{7}, 16)
	for i := range wrongTickets {
		if d := ask(wrong, "10.0.0.0/24"); d != protocol.Denial_TICKET_UNKNOWN {
			t.Fatalf("wrong ticket %d: %v", i, d)
		}
	}
	if d := ask(wrong, "10.0.0.0/24"); d != protocol.Denial_TOO_MANY_TRIES {
		t.Errorf("one more: %v", d)
	}
	if d := ask(w.Secret, "10.0.0.0/24"); d != protocol.Denial_ADMITTED {
		t.Errorf("the right one from the same address: %v", d)
	}
	mu.Lock()
	skew = 2 * wrongWindow
	mu.Unlock()
	if d := ask(wrong, "10.0.0.0/24"); d != protocol.Denial_TICKET_UNKNOWN {
		t.Errorf("a wrong one after a while: %v", d)
	}
	// A right id with a wrong proof, and a proof made for another joiner.
	for name, proof := range map[string][]byte{"a wrong proof": bytes.Repeat([]byte{1}, 32), "no proof": nil, "another's proof": joinProof(w.Secret, w.Mesh, w.Inviter, w.Inviter)} {
		if d := a.redeem(&protocol.JoinRequest{Mesh: w.Mesh, Ticket: ticketID(w.Secret), Proof: proof}, b.Self(), name).Denial; d != protocol.Denial_TICKET_UNKNOWN {
			t.Errorf("%s: %v", name, d)
		}
	}
}

// The use of a ticket is on disk before its certificate leaves: whatever happens in between, its joiner gets in and
// nobody else does.
func TestCrashDuringJoin(t *testing.T) {
	t.Parallel()
	a := open(t, "", Options{})
	ha := listen(t, a)
	ticket := invite(t, a, ha, InviteOptions{})
	w, err := parseTicket(ticket)
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, "", Options{})
	own, err := keyOf(b.Self())
	if err != nil {
		t.Fatal(err)
	}
	request := &protocol.JoinRequest{Mesh: w.Mesh, Ticket: ticketID(w.Secret), Proof: joinProof(w.Secret, w.Mesh, w.Inviter, own)}

	// The disk cannot be written: no certificate, and the ticket is still good.
	away := a.path("") + "-away"
	if err := os.Rename(a.path(""), away); err != nil {
		t.Fatal(err)
	}
	if r := a.redeem(request, b.Self(), "x"); r.Denial != protocol.Denial_CANNOT_ISSUE || r.Issued != nil {
		t.Errorf("with a disk that fails: %v", r)
	}
	if err := os.Rename(away, a.path("")); err != nil {
		t.Fatal(err)
	}

	// Bound, and the answer is lost with the process.
	first := a.redeem(request, b.Self(), "x")
	if first.Denial != protocol.Denial_ADMITTED {
		t.Fatal(first)
	}
	ha.Close()
	a = open(t, a.dir, Options{})
	ha = listen(t, a)
	w.Addresses = nil
	for _, x := range ha.Addrs() {
		w.Addresses = append(w.Addresses, x.Bytes())
	}
	if ticket, err = formatTicket(w); err != nil {
		t.Fatal(err)
	}
	var r *Refused
	if err := open(t, "", Options{}).Join(ctx(t), ticket, JoinOptions{}); !errors.As(err, &r) || r.Denial != protocol.Denial_TICKET_USED {
		t.Errorf("somebody else after the crash: %v", err)
	}
	join(t, b, ticket)
	if !bytes.Equal(b.Own().Chain().Certificates[0].Signature, first.Issued.Certificates[0].Signature) {
		t.Error("the certificate after the crash is another one")
	}
}

// The recovery code is there until somebody was shown it: a first start may end before it comes so far.
func TestRecoveryTold(t *testing.T) {
	t.Parallel()
	a := open(t, "", Options{})
	code := a.Opened().RecoveryCode
	b := open(t, a.dir, Options{})
	if got := b.Opened().RecoveryCode; got != code || code == "" {
		t.Errorf("the second start says the recovery code %q, the first said %q", got, code)
	}
	if err := b.RecoveryTold(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, a.dir, Options{}).Opened().RecoveryCode; got != "" {
		t.Errorf("the recovery code %q is said again after it was told", got)
	}
	c := open(t, "", Options{})
	if err := c.Recover(code); err != nil {
		t.Fatal(err)
	}
	if got := open(t, c.dir, Options{}).Opened().RecoveryCode; got != "" {
		t.Errorf("who typed the recovery code is told %q", got)
	}
}

// A name that was given is kept until another is; a copy on another machine has none.
func TestNameIsKept(t *testing.T) {
	t.Parallel()
	dir, machine := t.TempDir(), "machine one"
	host, _ := os.Hostname()
	host = cmp.Or(cleanName(host), "node")
	for _, step := range []struct{ machine, given, want string }{
		{"machine one", "", host},
		{"machine one", "sofa", "sofa"},
		{"machine one", "", "sofa"},
		{"machine one", "desk", "desk"},
		{"machine one", "", "desk"},
		{"machine two", "", host},
	} {
		machine = step.machine
		m, err := Open(dir, Options{Name: step.given, Machine: func() string { return machine }})
		if err != nil {
			t.Fatal(err)
		}
		if m.Name() != step.want {
			t.Errorf("on %s, given %q: %q, want %q", step.machine, step.given, m.Name(), step.want)
		}
	}
}

func TestCopiedDataDirectory(t *testing.T) {
	t.Parallel()
	first := func() string { return "machine one" }
	second := func() string { return "machine two" }
	a := open(t, "", Options{Machine: first})
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(a.dir)); err != nil {
		t.Fatal(err)
	}
	b := open(t, copied, Options{Machine: second})
	o := b.Opened()
	if b.Self() == a.Self() || b.Mesh() == a.Mesh() || !o.Copied || len(o.Notices) != 1 || !strings.Contains(o.Notices[0], "another machine") || o.RecoveryCode == "" {
		t.Errorf("the copy is %s (the original %s) and says %+v", b.Self(), a.Self(), o)
	}
	if again := open(t, copied, Options{Machine: second}); again.Self() != b.Self() || again.Opened().Copied {
		t.Errorf("the copy's second start: %s, %+v", again.Self(), again.Opened())
	}
	if again := open(t, a.dir, Options{Machine: first}); again.Self() != a.Self() || again.Opened().Copied {
		t.Error("the original has changed")
	}
	// A machine that does not say who it is cannot tell.
	if again := open(t, a.dir, Options{Machine: func() string { return "" }}); again.Self() != a.Self() {
		t.Error("a machine without an id has a new identity")
	}
	// The old identity, moved back on purpose, lives here from now on.
	for _, f := range []string{"key", "membership/state.json"} {
		if err := os.Rename(filepath.Join(copied, "old-identity-1", f), filepath.Join(copied, f)); err != nil {
			t.Fatal(err)
		}
	}
	if back := open(t, copied, Options{Machine: second}); back.Self() != a.Self() || back.Opened().Copied {
		t.Errorf("moved back: %s, %+v", back.Self(), back.Opened())
	}
}

func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(dir string) error{
		"no key":    func(dir string) error { return os.Remove(filepath.Join(dir, "key")) },
		"not a key": func(dir string) error { return os.WriteFile(filepath.Join(dir, "key"), []byte("x"), 0o600) },
		"another key": func(dir string) error {
			return os.Rename(filepath.Join(open(t, "", Options{}).dir, "key"), filepath.Join(dir, "key"))
		},
		"empty state": func(dir string) error { return os.WriteFile(filepath.Join(dir, "membership/state.json"), nil, 0o600) },
		"state of what": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "membership/state.json"), []byte("{}"), 0o600)
		},
	} {
		dir := open(t, "", Options{}).dir
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{Machine: func() string { return "this machine" }}); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v; want a line that names the file", name, err)
		}
	}
	m := open(t, "", Options{})
	if err := os.WriteFile(m.path(metFile), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, m.dir, Options{}) // a cache
	for _, f := range []string{"key", "membership", "membership/state.json", "membership/machine"} {
		if st, err := os.Stat(filepath.Join(m.dir, f)); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v; want nobody else to read it", f, st.Mode(), err)
		}
	}
}

func TestRecover(t *testing.T) {
	t.Parallel()
	a := open(t, "", Options{})
	code := a.Opened().RecoveryCode
	b := open(t, "", Options{})
	for _, wrong := range []string{"", "hello", code[1:], strings.Replace(code, code[:1], map[bool]string{true: "b", false: "a"}[code[0] == 'a'], 1)} {
		if err := b.Recover(wrong); err == nil {
			t.Errorf("recovered with %q", wrong)
		}
	}
	if err := b.Recover(strings.ToUpper(strings.ReplaceAll(code, "-", " "))); err != nil {
		t.Fatal(err)
	}
	if b.Mesh() != a.Mesh() || !b.Own().Can(protocol.Capability_ADMIN) || b.Own().Owner != a.Own().Owner {
		t.Errorf("recovered: %+v", b.Own())
	}
	if err := listen(t, open(t, b.dir, Options{})).Connect(ctx(t), info(listen(t, a))); err != nil {
		t.Error(err)
	}
}

// logged collects log lines.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *logged) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }
func (l *logged) logger() *slog.Logger        { return slog.New(slog.NewTextHandler(l, nil)) }

func tcpAddr(t testing.TB, h host.Host) string {
	t.Helper()
	for _, a := range h.Network().ListenAddresses() {
		if p, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			return net.JoinHostPort("127.0.0.1", p)
		}
	}
	t.Fatal("no TCP address")
	return ""
}

// A ticket that gives less than a member has changes nothing: not its rights, and not its owner.
func TestLesserTicketChangesNothing(t *testing.T) {
	t.Parallel()
	a, b, c := open(t, "", Options{}), open(t, "", Options{}), open(t, "", Options{})
	ha := listen(t, a)
	join(t, b, invite(t, a, ha, InviteOptions{Mine: true}))
	for name, o := range map[string]InviteOptions{"guest": {Guest: true}, "other owner": {}} {
		before := b.Own()
		if err := b.Join(ctx(t), invite(t, a, ha, o), JoinOptions{}); !errors.Is(err, ErrLesser) {
			t.Errorf("a ticket for a %s: %v", name, err)
		}
		if b.Own() != before || !b.Own().Can(protocol.Capability_ADMIN) || b.Own().Owner != a.Own().Owner {
			t.Errorf("a ticket for a %s changed the certificate to %+v", name, b.Own())
		}
	}
	d := open(t, "", Options{})
	join(t, d, invite(t, a, ha, InviteOptions{}))
	if err := d.Join(ctx(t), invite(t, a, ha, InviteOptions{Guest: true}), JoinOptions{}); !errors.Is(err, ErrLesser) || !d.Own().Can(protocol.Capability_WORK) {
		t.Errorf("a guest's ticket for a worker: %v, %+v", err, d.Own())
	}
	// The other way it is a promotion.
	join(t, c, invite(t, a, ha, InviteOptions{Guest: true}))
	join(t, c, invite(t, a, ha, InviteOptions{Mine: true}))
	if !c.Own().Can(protocol.Capability_ADMIN) || c.Own().Owner != a.Own().Owner {
		t.Errorf("promoted to %+v", c.Own())
	}
}
