package members

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

const (
	submit = protocol.Capability_SUBMIT
	work   = protocol.Capability_WORK
	admin  = protocol.Capability_ADMIN
)

func newKey(t testing.TB) ed25519.PrivateKey {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pub(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

// link is one certificate of a chain to be built, the root's own issue first.
type link struct {
	caps     []protocol.Capability
	runtimes []string
	owner    string // "root", "self", "stranger", or the number of the link whose own key it is
	days     int
}

// TestChainRules says which chains are good. Each bad one differs from a good one in one thing.
func TestChainRules(t *testing.T) {
	t.Parallel()
	all := []protocol.Capability{submit, work, admin}
	for _, c := range []struct {
		name  string
		links []link
		says  string // "": good
	}{
		{"the root's own", []link{{all, allRuntimes, "root", 90}}, ""},
		{"a guest by the root", []link{{all[:1], nil, "self", 90}}, ""},
		{"an admin by the root", []link{{all, allRuntimes, "root", 90}, {all, allRuntimes, "root", 90}}, ""},
		{"three links", []link{{all, allRuntimes, "root", 90}, {all, allRuntimes, "root", 90}, {all[:2], allRuntimes, "root", 90}}, ""},
		{"a guest at the end", []link{{all, allRuntimes, "root", 90}, {all, []string{Wasm}, "root", 90}, {all[:1], []string{Wasm}, "self", 90}}, ""},
		{"four links", []link{{all, nil, "root", 90}, {all, nil, "root", 90}, {all[:2], nil, "root", 90}, {all[:1], nil, "self", 90}}, "4 certificates"},
		{"an admin at the end", []link{{all, nil, "root", 90}, {all, nil, "root", 90}, {all, nil, "root", 90}}, "none at the end"},
		{"an admin of a guest's", []link{{all, nil, "root", 90}, {all, nil, "self", 90}}, "only the root's owner makes admins"},
		{"a guest made admin by the root", []link{{all, nil, "self", 90}}, "another owner than the root's"},
		{"an issuer that is no admin", []link{{all[:2], nil, "root", 90}, {all[:1], nil, "self", 90}}, "no admin"},
		{"a capability out of nothing", []link{{[]protocol.Capability{submit, admin}, nil, "root", 90}, {all[:2], nil, "root", 90}}, "lacks"},
		{"a runtime out of nothing", []link{{all, []string{Wasm}, "root", 90}, {all[:1], []string{Wasm, Python}, "root", 90}}, "lacks"},
		{"somebody else's owner", []link{{all, nil, "root", 90}, {all[:1], nil, "stranger", 90}}, "owner"},
		{"somebody else's owner, by the root", []link{{all[:1], nil, "stranger", 90}}, "owner"},
		{"the issuer's key as owner", []link{{all, nil, "root", 90}, {all[:1], nil, "0", 90}}, "owner"},
		{"an issuer that has expired", []link{{all, nil, "root", -1}, {all[:1], nil, "self", 90}}, "expired"},
		{"a leaf that has expired", []link{{all, nil, "root", 90}, {all[:1], nil, "self", -1}}, "expired"},
	} {
		root := newKey(t)
		mesh := meshOf(pub(root))
		now := time.Now()
		var chain *protocol.Chain
		signer := root
		var keys []ed25519.PrivateKey
		for _, l := range c.links {
			k := newKey(t)
			owner := map[string]ed25519.PublicKey{"root": pub(root), "self": pub(k), "stranger": pub(newKey(t))}[l.owner]
			if owner == nil {
				owner = pub(keys[0])
			}
			end := now.Add(time.Duration(l.days) * 24 * time.Hour).Unix()
			var err error
			chain, err = issue(signer, mesh, &protocol.CertificateBody{
				Key: pub(k), Name: "x", Owner: owner, Capabilities: l.caps, Runtimes: l.runtimes,
				NotBeforeUnixS: min(end, now.Unix()), NotAfterUnixS: end,
			}, chain)
			if err != nil {
				t.Fatal(err)
			}
			signer = k
			keys = append(keys, k)
		}
		cert, err := verify(chain, mesh, now)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v; want it to say %q", c.name, err, c.says)
		case err == nil:
			if want, _ := peerOf(pub(signer)); cert.Peer != want {
				t.Errorf("%s: of %s, want %s", c.name, cert.Peer, want)
			}
			// Out of order or with a link left out it is nothing.
			if n := len(chain.Certificates); n > 1 {
				short := &protocol.Chain{Certificates: slices.Delete(slices.Clone(chain.Certificates), n-1, n)}
				if _, err := verify(short, mesh, now); err == nil {
					t.Errorf("%s: good without its last link", c.name)
				}
				turned := slices.Clone(chain.Certificates)
				slices.Reverse(turned)
				if _, err := verify(&protocol.Chain{Certificates: turned}, mesh, now); err == nil {
					t.Errorf("%s: good in reverse", c.name)
				}
			}
		}
	}
}

// TestChainLinks: each link names its mesh and its issuer, and these must be the ones of the chain, whoever signed.
func TestChainLinks(t *testing.T) {
	t.Parallel()
	root, k := newKey(t), newKey(t)
	mesh, now := meshOf(pub(root)), time.Now().Unix()
	above, err := issue(root, mesh, &protocol.CertificateBody{
		Key: pub(k), Name: "x", Owner: pub(root), Capabilities: []protocol.Capability{submit, admin}, NotBeforeUnixS: now, NotAfterUnixS: now + 100,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		mesh, issuer []byte
		want         error
	}{
		"right":          {mesh[:], pub(k), nil},
		"another mesh":   {make([]byte, 32), pub(k), ErrOtherMesh},
		"another issuer": {mesh[:], pub(root), ErrCertificate},
	} {
		leaf := newKey(t)
		body, err := proto.Marshal(&protocol.CertificateBody{
			Mesh: c.mesh, Key: pub(leaf), Name: "y", Owner: pub(leaf), Capabilities: []protocol.Capability{submit}, NotBeforeUnixS: now, NotAfterUnixS: now + 100, Issuer: c.issuer,
		})
		if err != nil {
			t.Fatal(err)
		}
		signed := &protocol.Certificate{Body: body, Signature: ed25519.Sign(k, append([]byte(signContext), body...))}
		chain := &protocol.Chain{Certificates: append([]*protocol.Certificate{signed}, above.Certificates...)}
		if _, err := verify(chain, mesh, time.Now()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestBodyLimits(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	mesh := meshOf(pub(k))
	good := func() *protocol.CertificateBody {
		return &protocol.CertificateBody{Key: pub(k), Name: "x", Owner: pub(k), NotBeforeUnixS: 1, NotAfterUnixS: time.Now().Unix() + 100}
	}
	if ch, err := issue(k, mesh, good(), nil); err != nil {
		t.Fatal(err)
	} else if _, err := verify(ch, mesh, time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(b *protocol.CertificateBody){
		"escape in the name": func(b *protocol.CertificateBody) { b.Name = "\x1b[2J" },
		"newline":            func(b *protocol.CertificateBody) { b.Name = "a\nb" },
		"long name":          func(b *protocol.CertificateBody) { b.Name = strings.Repeat("x", 65) },
		"short key":          func(b *protocol.CertificateBody) { b.Key = b.Key[:31] },
		"no owner":           func(b *protocol.CertificateBody) { b.Owner = nil },
		"runtimes":           func(b *protocol.CertificateBody) { b.Runtimes = make([]string, 17) },
		"empty runtime":      func(b *protocol.CertificateBody) { b.Runtimes = []string{""} },
		"times":              func(b *protocol.CertificateBody) { b.NotBeforeUnixS = b.NotAfterUnixS + 1 },
		"the year 300000":    func(b *protocol.CertificateBody) { b.NotAfterUnixS = 1 << 43 },
	} {
		b := good()
		change(b)
		ch, err := issue(k, mesh, b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify(ch, mesh, time.Now()); !errors.Is(err, ErrCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := cleanName("\x1b[31mé\n" + strings.Repeat("ü", 100)); len(got) > 64 || got != "[31mé"+strings.Repeat("ü", 29) {
		t.Errorf("%q", got)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	a := open(t, "", Options{})
	ha := listen(t, a)
	b := open(t, "", Options{})
	join(t, b, invite(t, a, ha, InviteOptions{Runtimes: []string{Wasm, Python}}))
	if a.Renew(b.Own()) != nil {
		t.Error("a fresh certificate is renewed")
	}
	// Two months on: what a renews has the same rights and b takes it.
	later := time.Now().Add(61 * 24 * time.Hour)
	clock := func() time.Time { return later }
	a, b = open(t, a.dir, Options{Now: clock}), open(t, b.dir, Options{Now: clock})
	chain := a.Renew(b.Own())
	if chain == nil {
		t.Fatal("not renewed")
	}
	if err := open(t, "", Options{}).TakeRenewal(chain); err == nil {
		t.Error("somebody else took the renewal")
	}
	if err := b.TakeRenewal(chain); err != nil {
		t.Fatal(err)
	}
	if end := b.Own().NotAfter; end.Before(later.Add(lifetime-time.Hour)) || !slices.Equal(b.Own().Runtimes, []string{Wasm, Python}) {
		t.Errorf("renewed: until %s, %v", end, b.Own().Runtimes)
	}
	more := proto.Clone(b.Own().body).(*protocol.CertificateBody)
	more.Capabilities = append(more.Capabilities, protocol.Capability_RELAY)
	more.NotAfterUnixS += 1000
	upgraded, err := issue(ed25519.NewKeyFromSeed(a.st.Root), a.Mesh(), more, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.TakeRenewal(upgraded); err == nil {
		t.Error("a renewal gave more rights")
	}
	for what, change := range map[string]func(b *protocol.CertificateBody){
		"a throw-away node of it": func(b *protocol.CertificateBody) { b.Brief = true },
		"another name":            func(b *protocol.CertificateBody) { b.Name = "another" },
		"a circle":                func(b *protocol.CertificateBody) { b.Circle = make([]byte, circleSize) },
	} {
		other := proto.Clone(b.Own().body).(*protocol.CertificateBody)
		other.NotAfterUnixS += 1000
		change(other)
		chain, err := issue(ed25519.NewKeyFromSeed(a.st.Root), a.Mesh(), other, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.TakeRenewal(chain); !errors.Is(err, ErrCertificate) {
			t.Errorf("a renewal made %s: %v", what, err)
		}
	}
	// Ended altogether: refused, but renewed on the way out, and let in the next time. The founder renews itself.
	later = later.Add(lifetime + time.Hour)
	a, b = open(t, a.dir, Options{Now: clock}), open(t, b.dir, Options{Now: clock})
	if len(b.Opened().Notices) != 2 || !strings.Contains(b.Opened().Notices[0], "ended") || !strings.Contains(b.Opened().Notices[1], "clock") {
		t.Errorf("notices: %q", b.Opened().Notices)
	}
	if a.Own().NotAfter.Before(later) {
		t.Error("the founder did not renew itself")
	}
	if _, ok := a.Certificate(b.Self()); ok {
		t.Error("an expired certificate counts")
	}
	ha, hb := listen(t, a), listen(t, b)
	if err := hb.Connect(ctx(t), info(ha)); !errors.Is(err, errRenewed) {
		t.Errorf("with an expired certificate: %v", err)
	}
	hb2 := listen(t, open(t, b.dir, Options{Now: clock}))
	if err := hb2.Connect(ctx(t), info(ha)); err != nil {
		t.Errorf("after the renewal: %v", err)
	}
}

// TestClocks: not-before never counts, a clock behind what was signed is not believed, and one signed in 2099 moves
// nobody's.
func TestClocks(t *testing.T) {
	t.Parallel()
	a := open(t, "", Options{})
	behind := open(t, a.dir, Options{Now: func() time.Time { return time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC) }})
	if n := behind.Opened().Notices; len(n) != 1 || !strings.Contains(n[0], "clock") {
		t.Errorf("notices: %q", n)
	}
	behind.mu.Lock()
	if now := behind.now(); now.Before(time.Now().Add(-time.Minute)) {
		t.Errorf("a clock in 2015 is taken for %s", now)
	}
	behind.mu.Unlock()

	// An admin whose clock is in 2099 signs a certificate: it is good, and changes nothing.
	k := newKey(t)
	far := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	ch, err := issue(ed25519.NewKeyFromSeed(a.st.Root), a.Mesh(), &protocol.CertificateBody{
		Key: pub(k), Name: "x", Owner: pub(k), Capabilities: []protocol.Capability{submit}, NotBeforeUnixS: far.Unix(), NotAfterUnixS: far.Add(lifetime).Unix(),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if fresh, err := a.Add(ch); err != nil || len(fresh) != 1 {
		t.Errorf("signed in 2099: %v, %v", fresh, err)
	}
	if _, ok := a.Certificate(a.Self()); !ok {
		t.Error("a certificate from 2099 ended this node's own")
	}
}

// TestClockByMembers: who is no admin says nothing of the time, and nobody says it of a time at which it was none any more: step by step
// that would end all certificates.
func TestClockByMembers(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	c := newClock(time.Now())
	a, b := open(t, "", Options{Now: c.now}), open(t, "", Options{Now: c.now})
	admit(t, a, b, InviteOptions{})
	for what, issuer := range map[string]*protocol.CertificateBody{
		"a member of a circle":        {Circle: make([]byte, circleSize), Capabilities: circleCapabilities, NotAfterUnixS: c.now().Add(lifetime).Unix()},
		"an admin beyond its own end": {Capabilities: []protocol.Capability{submit, protocol.Capability_ADMIN}, NotAfterUnixS: c.now().Add(60 * day).Unix()},
	} {
		evil, k := newKey(t), newKey(t)
		issuer.Key, issuer.Owner = pub(evil), pub(evil)
		if issuer.Circle == nil {
			issuer.Owner = a.own.body.Owner
		}
		above, err := issue(ed25519.NewKeyFromSeed(a.st.Root), a.Mesh(), issuer, nil)
		if err != nil {
			t.Fatal(err)
		}
		ahead, err := issue(evil, a.Mesh(), &protocol.CertificateBody{
			Key: pub(k), Owner: pub(k), Circle: issuer.Circle, NotBeforeUnixS: c.now().Add(80 * day).Unix(), NotAfterUnixS: c.now().Add(300 * day).Unix(),
		}, above)
		if err != nil {
			t.Fatal(err)
		}
		if fresh, err := b.Add(ahead); err != nil || len(fresh) != 1 {
			t.Fatalf("%s: %v, %v", what, fresh, err)
		}
		if n := b.Newest(); n.After(c.now().Add(day)) {
			t.Errorf("%s moved the clock by %v", what, n.Sub(c.now()))
		}
	}
}

// TestHearsayTakesNothing: nobody takes from a member what its certificate gives by signing it a lesser one, whichever others hear of first.
func TestHearsayTakesNothing(t *testing.T) {
	t.Parallel()
	lesser := map[string]func(b *protocol.CertificateBody){
		"capabilities": func(b *protocol.CertificateBody) { b.Capabilities = nil },
		"runtimes":     func(b *protocol.CertificateBody) { b.Runtimes = nil },
		"owner": func(b *protocol.CertificateBody) {
			b.Owner, b.Capabilities = b.Key, []protocol.Capability{protocol.Capability_SUBMIT, protocol.Capability_WORK}
		},
		"brief": func(b *protocol.CertificateBody) { b.Brief = true },
	}
	for name, change := range lesser {
		c := newCrew(t)
		body := proto.Clone(c.pad.own.body).(*protocol.CertificateBody)
		body.NotBeforeUnixS++
		change(body)
		forged, err := issue(c.lap.rawKey, c.desk.Mesh(), body, c.lap.own.chain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify(forged, c.desk.Mesh(), time.Now()); err != nil {
			t.Fatal(name, err)
		}
		whole := func(m *Membership, when string) {
			t.Helper()
			if got, ok := m.Certificate(c.pad.Self()); !ok || got.Serial != c.pad.Own().Serial {
				t.Errorf("%s: %s has another certificate", name, when)
			}
		}
		if _, err := c.guest.Add(forged); err != nil {
			t.Fatal(err)
		}
		whole(c.guest, "who knew it")
		late := open(t, "", Options{})
		admit(t, c.desk, late, InviteOptions{})
		if _, err := late.Add(forged); err != nil {
			t.Fatal(err)
		}
		if err, _ := admission(c.pad, late); err != nil {
			t.Fatal(err)
		}
		whole(late, "who heard the lie first, and then met it,")
		third := open(t, "", Options{})
		admit(t, c.desk, third, InviteOptions{})
		if _, err := third.Add(forged); err != nil {
			t.Fatal(err)
		}
		if _, err := third.Add(c.pad.Own().chain); err != nil {
			t.Fatal(err)
		}
		whole(third, "who heard the lie first, and then the truth,")
	}
}
