package members

import (
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"filippo.io/cpace"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/protocol"
)

const testSecret = "correct horse battery staple"

// placeOf is where a host listens.
func placeOf(t testing.TB, h host.Host) Place {
	t.Helper()
	network, at, err := manet.DialArgs(h.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	return Place{Network: network, Host: at}
}

func inviteCode(t testing.TB, m *Membership, o InviteOptions) string {
	t.Helper()
	s, err := m.InviteCode(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCodeWords(t *testing.T) {
	t.Parallel()
	if len(codeWords) != 512 || !slices.IsSorted(codeWords) {
		t.Fatalf("%d words, sorted %v; want 512, sorted", len(codeWords), slices.IsSorted(codeWords))
	}
	for i, a := range codeWords {
		if len(a) < 4 || len(a) > 8 || strings.Trim(a, "abcdefghijklmnopqrstuvwxyz") != "" {
			t.Errorf("the word %q", a)
		}
		for _, b := range codeWords[:i] {
			if a[:4] == b[:4] || oneSlip(a, b) {
				t.Errorf("%s and %s are too near to each other", a, b)
			}
		}
		// Every slip in it is put right, or refused, and never taken for another word.
		for j := range a {
			for _, s := range []string{a[:j] + a[j+1:], a[:j] + "x" + a[j:], a[:j] + "q" + a[j+1:]} {
				if w := codeWord(s); w != a && w != "" && !strings.HasPrefix(w, s) {
					t.Errorf("%q is taken for %s, not for %s", s, w, a)
				}
			}
		}
	}
}

func TestParseCode(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"7-kitchen-sunset", " 7 Kitchen SUNSET\n", "7_kitchen_sunset", "7-kitc-suns", "7-kicthen-sunsett", "07-kitchen-sunset", "7 - kitchen - sunset", "7–kitchen–sunset"} {
		n, words, err := ParseCode(text)
		if n != 7 || words != "kitchen-sunset" || err != nil {
			t.Errorf("%q: %d %q %v", text, n, words, err)
		}
	}
	for _, text := range []string{"", "7", "7-kitchen", "7-kitchen-sunset-apple", "kitchen-sunset-7", "0-kitchen-sunset", "100-kitchen-sunset", "7-kit-sunset", "7-kxtchxn-sunset", "-7-kitchen", "7-kitchen-\xff\xfe\xfd", strings.Repeat("7-", 200), "99999999999-kitchen-sunset"} {
		if n, words, err := ParseCode(text); !errors.Is(err, ErrCode) || strings.Contains(err.Error(), "\n") || !utf8.ValidString(err.Error()) {
			t.Errorf("%q: %d %q %v", text, n, words, err)
		}
	}
	for _, text := range []string{"kitchen-sunset", "Kitchen sunset", "kitchn", "sunset-kitchen-7"} {
		if _, _, err := ParseCode(text); !IsCode(text) || err == nil || !strings.Contains(err.Error(), "number before the words is missing") {
			t.Errorf("%q: a code: %v, %v; want that its number is missing", text, IsCode(text), err)
		}
	}
	for _, text := range []string{"", "-", "abc", "meshnode-ticket-kitchen", strings.Repeat("kitchen ", 40)} {
		if IsCode(text) {
			t.Errorf("%q is taken for a code", text)
		}
	}
	if got := CompleteCode("7-kit"); !slices.Equal(got, []string{"7-kitchen"}) {
		t.Errorf("7-kit is completed to %v", got)
	}
	if got := CompleteCode("7-kitchen-suns"); !slices.Equal(got, []string{"7-kitchen-sunset"}) {
		t.Errorf("7-kitchen-suns is completed to %v", got)
	}
}

func TestJoinByCode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := open(t, dir, Options{Name: "desk"}), open(t, "", Options{Name: "sofa"})
	ha := listen(t, a)
	text := inviteCode(t, a, InviteOptions{Mine: true})
	began := time.Now()
	p, err := b.JoinCode(ctx(t), strings.ToUpper(text), CodeOptions{At: []Place{placeOf(t, ha)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("joined by a code in %v", time.Since(began))
	if p.Peer != a.Self() || p.Name != "desk" || p.Mesh != a.Mesh() || b.Mesh() != a.Mesh() || b.Own().Owner != a.Own().Owner || b.Own().Circle != "" {
		t.Errorf("joined %+v; mesh %s, want %s; certificate %+v", p, b.Mesh(), a.Mesh(), b.Own())
	}
	if s, ok := a.CodeState(text); !ok || s.Standing != CodeUsed || len(s.Joined) != 1 || s.Joined[0] != (Joiner{b.Self().String(), "sofa"}) {
		t.Errorf("the code: %+v, %v", s, ok)
	}
	eventually(t, time.Second, "the inviter knows the new member", func() bool { _, ok := a.Certificate(b.Self()); return ok })
	if err := listen(t, b).Connect(ctx(t), info(ha)); err != nil {
		t.Error(err)
	}
	// Used up: nobody else gets in, also after a restart.
	again := open(t, dir, Options{})
	hagain := listen(t, again)
	c := open(t, "", Options{})
	if _, err := c.JoinCode(ctx(t), text, CodeOptions{At: []Place{placeOf(t, hagain)}}); !refusedAs(err, protocol.Denial_WRONG_SECRET) {
		t.Errorf("a used code: %v", err)
	}
	if c.Mesh() == a.Mesh() {
		t.Error("it is in the mesh")
	}
}

func refusedAs(err error, d protocol.Denial) bool {
	var r *Refused
	return errors.As(err, &r) && r.Denial == d
}

// TestCodeIsBoundToItsJoiner: the joiner that lost its connection with the answer may fetch it again, and nobody else.
func TestCodeIsBoundToItsJoiner(t *testing.T) {
	t.Parallel()
	dir, joiner := t.TempDir(), t.TempDir()
	a := open(t, dir, Options{})
	ha := listen(t, a)
	text := inviteCode(t, a, InviteOptions{})
	nameplate, words, err := ParseCode(text)
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, joiner, Options{})
	c, err := b.dial(ctx(t), ha.Addrs()[0], "")
	if err != nil {
		t.Fatal(err)
	}
	limitTime(ctx(t), c)
	x := &pact{m: b, c: c, start: &protocol.PairStart{Nameplate: nameplate}}
	first, err := x.dialer(words)
	if err != nil {
		t.Fatal(err)
	}
	c.Close() // before anything was kept
	ha.Close()
	hagain := listen(t, open(t, dir, Options{}))
	if _, err := open(t, "", Options{}).JoinCode(ctx(t), text, CodeOptions{At: []Place{placeOf(t, hagain)}}); !refusedAs(err, protocol.Denial_WRONG_SECRET) {
		t.Errorf("another key: %v", err)
	}
	if _, err := b.JoinCode(ctx(t), text, CodeOptions{At: []Place{placeOf(t, hagain)}}); err != nil {
		t.Fatal(err)
	}
	want, err := verify(first.Issued, a.Mesh(), time.Now())
	if err != nil || b.Own().Serial != want.Serial {
		t.Errorf("another certificate than the first time: %v", err)
	}
}

func TestFiveWrongTriesEndACode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := open(t, dir, Options{})
	ha := listen(t, a)
	text := inviteCode(t, a, InviteOptions{})
	nameplate, words, _ := ParseCode(text)
	wrong := formatCode(nameplate, codeWords[0]+"-"+codeWords[1])
	if words == codeWords[0]+"-"+codeWords[1] {
		wrong = formatCode(nameplate, "zebra-zenith")
	}
	try := func(a *Membership, ha host.Host, text string) error {
		a.mu.Lock()
		a.tries = newTries() // the limit of a source is another matter
		a.mu.Unlock()
		_, err := open(t, "", Options{}).JoinCode(ctx(t), text, CodeOptions{At: []Place{placeOf(t, ha)}})
		return err
	}
	for range wrongCodes - 1 {
		if err := try(a, ha, wrong); !refusedAs(err, protocol.Denial_WRONG_SECRET) {
			t.Fatal(err)
		}
	}
	if s, _ := a.CodeState(text); s.Standing != CodeOpen || s.Wrong != wrongCodes-1 || len(a.OpenCodes()) != 1 {
		t.Errorf("before the last try: %+v", s)
	}
	ha.Close()
	a = open(t, dir, Options{}) // restarted: the tries are on disk
	ha = listen(t, a)
	changes, stop := a.Subscribe()
	defer stop()
	if err := try(a, ha, wrong); !refusedAs(err, protocol.Denial_WRONG_SECRET) {
		t.Fatal(err)
	}
	select {
	case <-changes: // who waits for the joiner hears of it
	case <-time.After(5 * time.Second):
		t.Error("nobody was told that the code has ended")
	}
	if s, _ := a.CodeState(text); s.Standing != CodeEnded || len(a.OpenCodes()) != 0 {
		t.Errorf("after the last try: %+v", s)
	}
	right, wrongAgain := try(a, ha, text), try(a, ha, wrong)
	if !refusedAs(right, protocol.Denial_WRONG_SECRET) || right.Error() != wrongAgain.Error() {
		t.Errorf("the right code after its end: %v; a wrong one: %v", right, wrongAgain)
	}
	// And a number that nobody has gives the same sentence.
	if err := try(a, ha, formatCode(nameplate%99+1, words)); err == nil || err.Error() != right.Error() {
		t.Errorf("another number: %v", err)
	}
}

// TestManyTriesAtOnce: five guesses count, however many are under way together.
func TestManyTriesAtOnce(t *testing.T) {
	t.Parallel()
	a := open(t, "", Options{})
	h := listen(t, a)
	text := inviteCode(t, a, InviteOptions{Uses: 10})
	nameplate, right, _ := ParseCode(text)
	a.gate.sawMember(addrOf(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))
	const n = 12
	var pacts []*pact
	var pending []sec.SecureConn
	var states []*cpace.State
	for range n { // all have their answer before any gives its proof
		b := open(t, "", Options{})
		c, err := b.dial(ctx(t), h.Addrs()[0], "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		limitTime(ctx(t), c)
		mesh := b.Mesh()
		x := &pact{m: b, c: c, isDialer: true, start: &protocol.PairStart{Nameplate: nameplate, Mesh: mesh[:]}}
		password := "zebra-zenith"
		if len(pacts) == n-1 {
			password = right
		}
		share, st, err := cpace.Start(password, x.context())
		if err != nil {
			t.Fatal(err)
		}
		x.start.Share = share
		if err := writeMsg(c, &protocol.Admission{Pair: x.start}); err != nil {
			t.Fatal(err)
		}
		reply, err := readReply(c)
		if err != nil || reply.Pair == nil {
			t.Fatal(reply, err)
		}
		x.answer = reply.Pair
		pacts, pending, states = append(pacts, x), append(pending, c), append(states, st)
	}
	for i, x := range pacts {
		var err error
		if x.key, err = states[i].Finish(x.answer.Share); err != nil {
			t.Fatal(err)
		}
		if err := writeMsg(pending[i], &protocol.AdmissionDone{Pair: &protocol.PairProof{Proof: x.proof(true, "x"), Name: "x"}}); err != nil {
			t.Fatal(err)
		}
		reply, err := readReply(pending[i])
		if err != nil || reply.Denial != protocol.Denial_WRONG_SECRET {
			t.Errorf("try %d: %v, %v; the twelfth is right, but too late", i, reply, err)
		}
		writeMsg(pending[i], &protocol.AdmissionDone{})
	}
	if s, _ := a.CodeState(text); s.Wrong != wrongCodes || len(s.Joined) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestCodeExpiresAndIsWithdrawn(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := time.Now()
	a := open(t, "", Options{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	at := placeOf(t, listen(t, a))
	old, other := inviteCode(t, a, InviteOptions{}), inviteCode(t, a, InviteOptions{Expires: time.Hour})
	if err := a.Withdraw(other); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	now = now.Add(DefaultCodeExpiry)
	mu.Unlock()
	for _, text := range []string{old, other} {
		if _, err := open(t, "", Options{}).JoinCode(ctx(t), text, CodeOptions{At: []Place{at}}); !refusedAs(err, protocol.Denial_WRONG_SECRET) {
			t.Errorf("%s: %v", text, err)
		}
		if s, ok := a.CodeState(text); !ok || s.Standing != CodeExpired || s.Wrong != 0 {
			t.Errorf("%+v, %v", s, ok)
		}
	}
	for range maxCodes - 2 {
		inviteCode(t, a, InviteOptions{Expires: time.Minute})
	}
	if _, err := a.InviteCode(InviteOptions{}); err == nil {
		t.Error("there is no limit to open codes")
	}
	mu.Lock()
	now = now.Add(3 * time.Hour)
	mu.Unlock()
	inviteCode(t, a, InviteOptions{}) // the old ones are forgotten
	for _, o := range []InviteOptions{{Expires: 25 * time.Hour}, {Uses: -1}, {Mine: true, Guest: true}} {
		if s, err := a.InviteCode(o); err == nil {
			t.Errorf("%+v gave %s", o, s)
		}
	}
}

// pair has b dial a.
func pair(t testing.TB, b *Membership, h host.Host) *Paired {
	t.Helper()
	p, err := b.Pair(ctx(t), placeOf(t, h), testSecret, PairOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shared opens a membership to the secret, and listens.
func shared(t testing.TB, dir string, o Options) (*Membership, host.Host) {
	m := open(t, dir, o)
	m.OpenToSecret(testSecret, nil, nil)
	return m, listen(t, m)
}

func mayUseEachOther(t testing.TB, a, b *Membership) {
	t.Helper()
	for _, x := range [][2]*Membership{{a, b}, {b, a}} {
		if got := mayUse(x[0].Own(), x[1].Own()); !slices.Equal(got, []string{Wasm, Python}) {
			t.Errorf("%s may use %v on %s", x[0].Name(), got, x[1].Name())
		}
	}
}

func TestPairTwoAlone(t *testing.T) {
	t.Parallel()
	a, ha := shared(t, "", Options{Name: "a"})
	b, hb := shared(t, "", Options{Name: "b"})
	if a.Self() > b.Self() {
		a, b, ha, hb = b, a, hb, ha
	}
	mesh := a.Mesh()
	began := time.Now()
	if p := pair(t, a, hb); p.Peer != b.Self() || p.Mesh != mesh { // the lower ID dials: the other joins it all the same
		t.Errorf("%+v", p)
	}
	t.Logf("admitted by a secret in %v", time.Since(began))
	if a.Mesh() != mesh || b.Mesh() != mesh || a.Own().Circle == "" || a.Own().Circle != b.Own().Circle {
		t.Errorf("meshes %s and %s, circles %q and %q", a.Mesh(), b.Mesh(), a.Own().Circle, b.Own().Circle)
	}
	own := b.Own()
	if !slices.Equal(own.Capabilities, circleCapabilities) || !slices.Equal(own.Runtimes, circleRuntimes) || own.Owner == a.Own().Owner {
		t.Errorf("the certificate gives %+v", own)
	}
	mayUseEachOther(t, a, b)
	if err := hb.Connect(ctx(t), info(ha)); err != nil {
		t.Error(err)
	}
	if _, ok := a.Certificate(b.Self()); !ok {
		t.Error("who admitted does not know whom")
	}
	// Again, from both sides: nothing changes.
	serial := b.Own().Serial
	pair(t, a, hb)
	pair(t, b, ha)
	if b.Own().Serial != serial {
		t.Error("a second pairing made a new certificate")
	}
	if _, err := b.Invite(InviteOptions{}); !errors.Is(err, ErrNotAdmin) {
		t.Errorf("a member by secret may invite: %v", err)
	}
}

// TestPairChain: members by secret admit others, so that the mesh outlives its first node; but the chain of certificates ends.
func TestPairChain(t *testing.T) {
	t.Parallel()
	var all []*Membership
	var hosts []host.Host
	where := func(p peer.ID) []ma.Multiaddr {
		for i, m := range all {
			if m.Self() == p {
				return hosts[i].Addrs()
			}
		}
		return nil
	}
	add := func() *Membership {
		m := open(t, "", Options{})
		m.OpenToSecret(testSecret, where, nil)
		all, hosts = append(all, m), append(hosts, listen(t, m))
		return m
	}
	first := add()
	second := add()
	first.mu.Lock() // not alone, so that it is the others who join
	first.met[peer.ID("somebody")] = &Cert{Peer: "somebody"}
	first.mu.Unlock()
	mesh := first.Mesh()
	pair(t, second, hosts[0])
	hosts[0].Close()
	third, fourth := add(), add()
	pair(t, third, hosts[1])
	if third.Mesh() != mesh || len(third.Own().chain.Certificates) != 2 {
		t.Errorf("the third is in %s by %d certificates, want %s", third.Mesh(), len(third.Own().chain.Certificates), mesh)
	}
	mayUseEachOther(t, first, third)
	pair(t, fourth, hosts[2])
	if fourth.Mesh() != mesh || len(fourth.Own().chain.Certificates) != 3 {
		t.Errorf("the fourth is in %s by %d certificates", fourth.Mesh(), len(fourth.Own().chain.Certificates))
	}
	// The fourth is at the end of the chain: it names those who can.
	fifth := add()
	fourth.mu.Lock()
	fourth.add(second.Own(), true)
	fourth.mu.Unlock()
	p := pair(t, fifth, hosts[3])
	if !slices.ContainsFunc(p.Ask, func(i peer.AddrInfo) bool { return i.ID == second.Self() && len(i.Addrs) > 0 }) || fifth.Mesh() == mesh {
		t.Fatalf("%+v", p)
	}
	pair(t, fifth, hosts[1])
	if fifth.Mesh() != mesh {
		t.Error("the fifth is not in")
	}
}

func TestPairSameMesh(t *testing.T) {
	t.Parallel()
	a, ha := shared(t, "", Options{})
	b := open(t, "", Options{})
	join(t, b, invite(t, a, ha, InviteOptions{}))
	hb := listen(t, b)
	if got := mayUse(b.Own(), a.Own()); !slices.Equal(got, []string{Wasm}) {
		t.Fatal(got)
	}
	// Whoever dials, the member by ticket gets the circle and keeps what it has.
	b.OpenToSecret(testSecret, nil, nil)
	pair(t, a, hb)
	mayUseEachOther(t, a, b)
	c := open(t, "", Options{})
	join(t, c, invite(t, a, ha, InviteOptions{Mine: true}))
	pair(t, c, ha)
	if c.Own().Circle != a.Own().Circle || !c.Own().Can(protocol.Capability_ADMIN) || c.Own().Owner != a.Own().Owner {
		t.Errorf("%+v", c.Own())
	}
	// From a member that has it the root's machine takes it.
	d, hd := shared(t, "", Options{})
	e := open(t, "", Options{})
	join(t, e, invite(t, d, hd, InviteOptions{Mine: true}))
	pair(t, e, hd)
	d.mu.Lock()
	d.st.Circle = nil
	if err := d.certifySelf(); err != nil {
		t.Fatal(err)
	}
	d.mu.Unlock()
	pair(t, e, hd)
	if d.Own().Circle != e.Own().Circle || d.Own().Circle == "" {
		t.Errorf("circles %q and %q", d.Own().Circle, e.Own().Circle)
	}
}

func TestPairRefused(t *testing.T) {
	t.Parallel()
	a, ha := shared(t, "", Options{})
	b := open(t, "", Options{})
	at := placeOf(t, ha)
	if _, err := b.Pair(ctx(t), at, "another secret of some length", PairOptions{}); !refusedAs(err, protocol.Denial_WRONG_SECRET) {
		t.Errorf("a wrong secret: %v", err)
	}
	if _, err := a.Pair(ctx(t), at, testSecret, PairOptions{}); !errors.Is(err, ErrItself) {
		t.Errorf("with itself: %v", err)
	}
	none := open(t, "", Options{})
	if _, err := b.Pair(ctx(t), placeOf(t, listen(t, none)), testSecret, PairOptions{}); !refusedAs(err, protocol.Denial_NO_SECRET) {
		t.Errorf("no secret there: %v", err)
	}
	for _, s := range []string{"", " ", strings.Repeat("x", MaxSecret+1), "\xff\xff"} {
		if _, err := b.Pair(ctx(t), at, s, PairOptions{}); err == nil {
			t.Errorf("the secret %.20q was tried", s)
		}
	}
	if err := CheckSecret("fifteen letters", false); !errors.Is(err, ErrShortSecret) {
		t.Error(err)
	}
	if err := errors.Join(CheckSecret("fifteen letters", true), CheckSecret("sixteen letters!", false), CheckSecret("ééééééééééééééééé", false)); err != nil {
		t.Error(err)
	}
	// Neither is alone.
	c, hc := shared(t, "", Options{})
	join(t, open(t, "", Options{}), invite(t, c, hc, InviteOptions{}))
	join(t, b, invite(t, a, ha, InviteOptions{}))
	before := c.Mesh()
	if _, err := c.Pair(ctx(t), at, testSecret, PairOptions{}); !refusedAs(err, protocol.Denial_CANNOT_PAIR) || !strings.Contains(err.Error(), "leave") {
		t.Errorf("two meshes: %v", err)
	}
	if c.Mesh() != before || a.Own().Circle != "" {
		t.Error("a refused pairing changed something")
	}
	// Too many wrong tries of one source: not even the right one is looked at; tickets are.
	for range wrongTickets {
		open(t, "", Options{}).Pair(ctx(t), at, "another secret of some length", PairOptions{})
	}
	if _, err := open(t, "", Options{}).Pair(ctx(t), at, testSecret, PairOptions{}); !refusedAs(err, protocol.Denial_TOO_MANY_TRIES) {
		t.Errorf("after %d wrong tries: %v", wrongTickets+1, err)
	}
	if err := open(t, "", Options{}).Join(ctx(t), invite(t, a, ha, InviteOptions{}), JoinOptions{}); err != nil {
		t.Errorf("a ticket after %d wrong secrets: %v", wrongTickets+1, err)
	}
}

// TestPairThrowAway: a node that ends with its program joins, submits only, leaves no trace on disk and keeps nobody from moving.
func TestPairThrowAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, ha := shared(t, dir, Options{})
	p := open(t, "", Options{Volatile: true})
	pair(t, p, ha)
	own := p.Own()
	if !own.Brief || own.Can(protocol.Capability_WORK) || p.Mesh() != a.Mesh() || time.Until(own.NotAfter) > briefLifetime {
		t.Errorf("%+v", own)
	}
	if got := mayUse(own, a.Own()); !slices.Equal(got, []string{Wasm, Python}) {
		t.Errorf("it may use %v", got)
	}
	eventually(t, 5*time.Second, "it is known", func() bool { _, ok := a.Certificate(p.Self()); return ok })
	if !a.Alone() || len(open(t, dir, Options{}).Members()) != 0 {
		t.Error("a throw-away member counts, or is on disk")
	}
	// It meets another node that is alone: it cannot admit it, and says who can.
	asked := make(chan []peer.AddrInfo, 2)
	b := open(t, "", Options{})
	b.OpenToSecret(testSecret, nil, func(_ string, at []peer.AddrInfo) { asked <- at })
	hb := listen(t, b)
	p.OpenToSecret(testSecret, func(peer.ID) []ma.Multiaddr { return ha.Addrs() }, nil)
	if got := pair(t, p, hb); !got.Sent {
		t.Errorf("%+v", got)
	}
	select {
	case at := <-asked:
		if len(at) != 1 || at[0].ID != a.Self() {
			t.Errorf("sent to %v", at)
		}
	case <-time.After(5 * time.Second):
		t.Error("the other was not told whom to ask")
	}
	// Where nobody is left it may go elsewhere, but not as soon as it has come.
	free := PairOptions{Free: func() bool { return true }}
	if got, err := p.Pair(ctx(t), placeOf(t, hb), testSecret, free); err != nil || !got.Sent {
		t.Errorf("just admitted: %+v, %v", got, err)
	}
	p.mu.Lock()
	p.pairing.entered = time.Now().Add(-time.Hour)
	p.mu.Unlock()
	if _, err := p.Pair(ctx(t), placeOf(t, hb), testSecret, free); err != nil || p.Mesh() != b.Mesh() {
		t.Errorf("free to move: %v", err)
	}
}

// TestPairStorm: many nodes that are alone find each other at once, each dialling each, and end in one mesh.
func TestPairStorm(t *testing.T) {
	t.Parallel()
	const n = 5
	var all []*Membership
	var hosts []host.Host
	for range n {
		m, h := shared(t, "", Options{})
		all, hosts = append(all, m), append(hosts, h)
	}
	one := func() bool {
		return !slices.ContainsFunc(all, func(m *Membership) bool { return m.Mesh() != all[0].Mesh() || m.Own().Circle != all[0].Own().Circle })
	}
	for round := 0; !one(); round++ {
		if round == 20 {
			for _, m := range all {
				t.Logf("%s: %s alone %v", m.Self(), m.Mesh(), m.Alone())
			}
			t.Fatal("they do not come together")
		}
		var wg sync.WaitGroup
		for i, m := range all {
			for j, h := range hosts {
				if i != j {
					wg.Go(func() { m.Pair(ctx(t), placeOf(t, h), testSecret, PairOptions{}) })
				}
			}
		}
		wg.Wait()
	}
}

// TestCodeAfterLeaving: a machine that left, and uses the code again, gets a certificate that is good; one that was revoked hears so.
func TestCodeAfterLeaving(t *testing.T) {
	t.Parallel()
	a, b, c := open(t, "", Options{}), open(t, "", Options{}), open(t, "", Options{})
	at := CodeOptions{At: []Place{placeOf(t, listen(t, a))}}
	text := inviteCode(t, a, InviteOptions{Uses: 3})
	for _, m := range []*Membership{b, c} {
		if _, err := m.JoinCode(ctx(t), text, at); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, "the inviter knows both", func() bool { return a.knows(b.Self()) && a.knows(c.Self()) })
	farewell, err := b.Farewell()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.AddRevocations(farewell...); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Revoke(c.Self(), RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Membership{b, c} {
		if _, _, err := m.Leave(false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.JoinCode(ctx(t), text, at); err != nil {
		t.Fatal(err)
	}
	if err, _ := admission(b, a); err != nil {
		t.Errorf("joined again, and not let in: %v", err)
	}
	if _, err := c.JoinCode(ctx(t), text, at); !refusedAs(err, protocol.Denial_REVOKED) || !c.Alone() {
		t.Errorf("a revoked machine is told %v", err)
	}
	if s, _ := a.CodeState(text); s.Wrong != 0 || s.Standing != CodeUsed || len(s.Joined) != 3 {
		t.Errorf("%+v", s)
	}
}
