package members

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"meshnode/protocol"
)

// crew is a mesh as most are: desk holds the root key and admitted lap and pad; lap admitted guest.
type crew struct {
	desk, lap, pad, guest *Membership
}

func newCrew(t testing.TB) crew {
	c := crew{desk: open(t, "", Options{Name: "desk"}), lap: open(t, "", Options{Name: "lap"}), pad: open(t, "", Options{Name: "pad"}), guest: open(t, "", Options{Name: "guest"})}
	h := listen(t, c.desk)
	mine := invite(t, c.desk, h, InviteOptions{Mine: true, Uses: 2})
	join(t, c.lap, mine)
	join(t, c.pad, mine)
	join(t, c.guest, invite(t, c.lap, listen(t, c.lap), InviteOptions{}))
	for _, m := range c.all() {
		for _, o := range c.all() {
			m.Add(o.Own().chain)
		}
	}
	return c
}

func (c crew) all() []*Membership { return []*Membership{c.desk, c.lap, c.pad, c.guest} }

// meet connects from a to b once.
func meet(t testing.TB, a, b *Membership) error {
	t.Helper()
	ha, hb := listen(t, a), listen(t, b)
	defer ha.Close()
	defer hb.Close()
	return ha.Connect(ctx(t), info(hb))
}

func revoked(t testing.TB, err error) {
	t.Helper()
	var refused *Refused
	var rejected *Rejected
	switch {
	case errors.As(err, &refused) && refused.Denial == protocol.Denial_REVOKED:
	case errors.As(err, &rejected) && errors.Is(err, ErrRevoked):
	default:
		t.Errorf("a revoked member met: %v", err)
	}
}

// TestRevoke: who was revoked is refused by whom it was revoked, and by all who met that one since, and hears why.
func TestRevoke(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	if _, err := c.desk.Revoke(c.guest.Self(), RevokeOptions{Reason: "lost on the train"}); err != nil {
		t.Fatal(err)
	}
	// lap does not know it yet, and meets guest first; then desk, and is told before it is connected.
	if err := meet(t, c.guest, c.lap); err != nil {
		t.Fatal(err)
	}
	changes, stop := c.lap.Subscribe()
	defer stop()
	if err := meet(t, c.lap, c.desk); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changes:
	default:
		t.Error("no subscriber heard of it")
	}
	if !c.lap.Revoked(c.guest.Self()) || len(c.lap.Untold()) != 1 || len(c.lap.Recent()) != 1 {
		t.Error("lap met desk and does not know it")
	}
	for _, m := range c.lap.Members() {
		if m.Peer == c.guest.Self() {
			t.Error("its certificate is still given to others")
		}
	}
	// pad hears it from lap, which dials it: the listening side learns too.
	if err := meet(t, c.lap, c.pad); err != nil {
		t.Fatal(err)
	}
	if d, ok := c.pad.Departed(c.guest.Self()); !ok || d.Left || d.Name != "guest" || d.By != "the root" || d.Reason != "lost on the train" {
		t.Errorf("pad knows %+v", d)
	}
	revoked(t, meet(t, c.guest, c.pad))
	if tr := c.guest.Trouble(); len(tr) != 1 || !strings.Contains(tr[0], "lost on the train") || !strings.Contains(tr[0], "meshnode leave") {
		t.Errorf("what it sees itself: %q", tr)
	}
	if _, ok := c.guest.Certificate(c.guest.Self()); ok {
		t.Error("it takes its own certificate for good")
	}
	revoked(t, meet(t, c.desk, c.guest))
	// It lasts, and the set with it.
	pad := open(t, c.pad.dir, Options{})
	if !pad.Revoked(c.guest.Self()) {
		t.Error("forgotten with a restart")
	}
	_, want := c.pad.held()
	if _, got := pad.held(); !bytes.Equal(got, want) {
		t.Error("the set changed with a restart")
	}
	// No ticket lets that key in again.
	if err := c.guest.Join(ctx(t), invite(t, c.desk, listen(t, c.desk), InviteOptions{}), JoinOptions{}); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("join of a revoked key: %v", err)
	}
	// Left, it has a new identity with the next start, and may come back with that.
	old := c.guest.Self()
	if _, restart, err := c.guest.Leave(false); err != nil || !restart {
		t.Fatalf("leave: restart %v, %v", restart, err)
	}
	again := open(t, c.guest.dir, Options{})
	if again.Self() == old || !again.Opened().Copied {
		t.Errorf("after leaving it is %s, as before", again.Self())
	}
	join(t, again, invite(t, c.desk, listen(t, c.desk), InviteOptions{}))
	if err := meet(t, again, c.pad); err != nil {
		t.Error(err)
	}
	if open(t, again.dir, Options{}).Self() != again.Self() {
		t.Error("another new identity with the second start")
	}
}

// TestWhoMayRevoke: the root any, an admin whom it admitted and renewed not more, siblings nobody.
func TestWhoMayRevoke(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	for _, x := range []struct {
		who, whom *Membership
		ok        bool
	}{
		{c.lap, c.pad, false}, {c.pad, c.lap, false}, {c.pad, c.guest, false}, {c.lap, c.desk, false}, {c.guest, c.pad, false}, {c.pad, c.pad, false},
		{c.lap, c.guest, true}, {c.desk, c.pad, true},
	} {
		_, err := x.who.Revoke(x.whom.Self(), RevokeOptions{})
		if (err == nil) != x.ok {
			t.Errorf("%s revokes %s: %v", x.who.Name(), x.whom.Name(), err)
		}
	}
	if _, err := c.lap.Revoke(c.guest.Self(), RevokeOptions{}); !errors.Is(err, ErrDeparted) {
		t.Errorf("twice: %v", err)
	}
	if _, err := c.desk.Revoke(newPeer(t), RevokeOptions{}); !errors.Is(err, ErrNoMember) {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := c.desk.Revoke(c.lap.Self(), RevokeOptions{Reason: "two\nlines"}); err == nil {
		t.Error("a reason of two lines")
	}
}

func newPeer(t testing.TB) peer.ID {
	p, err := peerOf(pub(newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSiblingForges: an admin that puts itself above its sibling in certificates of its own making, or renews it, cannot revoke it.
func TestSiblingForges(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	lap := signer{key: c.lap.rawKey, chain: c.lap.own.chain}
	body := proto.Clone(c.pad.own.body).(*protocol.CertificateBody) // with all that pad has
	below, err := issue(c.lap.rawKey, c.desk.Mesh(), body, c.lap.own.chain)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := c.lap.signRevocation(lap, &protocol.RevocationBody{Key: c.pad.own.body.Key}, below)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.desk.AddRevocations(forged); err != nil {
		t.Fatal(err) // it is in order, and says nothing of pad's certificate
	}
	if err := meet(t, c.pad, c.desk); err != nil {
		t.Errorf("a sibling was revoked: %v", err)
	}
	// As a renewal: pad does not take one that puts lap above it.
	later := time.Now().Add(61 * 24 * time.Hour)
	pad := open(t, c.pad.dir, Options{Now: func() time.Time { return later }})
	if err := pad.TakeRenewal(below); !errors.Is(err, ErrCertificate) {
		t.Errorf("a renewal that puts a sibling above it: %v", err)
	}
	// And a true renewal by lap lets lap revoke nothing, while desk still can.
	laplater := open(t, c.lap.dir, Options{Now: func() time.Time { return later }})
	desklater := open(t, c.desk.dir, Options{Now: func() time.Time { return later }})
	if err := laplater.TakeRenewal(desklater.Renew(laplater.Own())); err != nil {
		t.Fatal(err)
	}
	if err := pad.TakeRenewal(laplater.Renew(pad.Own())); err != nil {
		t.Fatal(err)
	}
	if len(pad.Own().bodies) != 2 {
		t.Fatalf("renewed by lap, the chain has %d certificates", len(pad.Own().bodies))
	}
	laplater.Add(pad.Own().chain)
	if _, err := laplater.Revoke(pad.Self(), RevokeOptions{}); !errors.Is(err, ErrNotAbove) {
		t.Errorf("who renewed a sibling revokes it: %v", err)
	}
	sneaky, err := laplater.signRevocation(signer{key: c.lap.rawKey, chain: laplater.own.chain}, &protocol.RevocationBody{Key: pad.own.body.Key}, pad.own.chain)
	if err != nil {
		t.Fatal(err)
	}
	if err := desklater.AddRevocations(sneaky); err == nil {
		t.Error("took a revocation by who only renewed")
	}
	// lap is stolen and revoked: with all it issued, pad goes on with the certificate that lap did not renew.
	desklater.Add(laplater.Own().chain, pad.Own().chain)
	if _, err := desklater.Revoke(c.lap.Self(), RevokeOptions{WithIssued: true}); err != nil {
		t.Fatal(err)
	}
	held, _ := desklater.held()
	if err := pad.AddRevocations(held...); err != nil {
		t.Fatal(err)
	}
	if len(pad.Own().bodies) != 1 || len(pad.Trouble()) != 0 {
		t.Errorf("after who renewed it was revoked: chain of %d, %q", len(pad.Own().bodies), pad.Trouble())
	}
	if err := meet(t, pad, desklater); err != nil {
		t.Error(err)
	}
}

// TestRevokedAdmin: what it admitted goes with it, or what is known of it stays; what it signs later never counts.
func TestRevokedAdmin(t *testing.T) {
	t.Parallel()
	for _, with := range []bool{false, true} {
		t.Run(fmt.Sprintf("withIssued=%v", with), func(t *testing.T) {
			t.Parallel()
			c := newCrew(t)
			keeps, err := c.desk.Revoke(c.lap.Self(), RevokeOptions{WithIssued: with})
			if err != nil || (len(keeps) == 1 && keeps[0] == "guest") == with {
				t.Fatalf("keeps %v, %v", keeps, err)
			}
			if err := meet(t, c.pad, c.desk); err != nil {
				t.Fatal(err)
			}
			if err := meet(t, c.guest, c.pad); (err == nil) == with {
				t.Errorf("whom it admitted: %v", err)
			}
			// The thief goes on admitting, and revokes whom lap had admitted.
			late := open(t, "", Options{Name: "late"})
			join(t, late, invite(t, c.lap, listen(t, c.lap), InviteOptions{Mine: true}))
			revoked(t, meet(t, late, c.pad))
			if with {
				return
			}
			if _, err := c.lap.Revoke(c.guest.Self(), RevokeOptions{}); err != nil {
				t.Fatal(err)
			}
			held, _ := c.lap.held()
			if err := c.pad.AddRevocations(held...); err != nil {
				t.Fatal(err)
			}
			if err := meet(t, c.guest, c.pad); err != nil {
				t.Errorf("a revoked admin revoked: %v", err)
			}
		})
	}
}

// TestRevocationsOfRevoked: what an admin revoked before it was revoked itself stays revoked, also below a machine of its that stays.
func TestRevocationsOfRevoked(t *testing.T) {
	t.Parallel()
	one := func(name string) *Membership { return open(t, "", Options{Name: name}) }
	desk, lap, tab, guest, pad := one("desk"), one("lap"), one("tab"), one("guest"), one("pad")
	admit(t, desk, lap, InviteOptions{Mine: true})
	admit(t, desk, pad, InviteOptions{Mine: true})
	admit(t, lap, tab, InviteOptions{Mine: true})
	admit(t, tab, guest, InviteOptions{})
	for _, x := range [][2]*Membership{{guest, lap}, {tab, desk}} {
		if err := together(x[0], x[1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := lap.Revoke(guest.self, RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := together(lap, desk); err != nil {
		t.Fatal(err)
	}
	if keeps, err := desk.Revoke(lap.self, RevokeOptions{}); err != nil || len(keeps) != 1 {
		t.Fatalf("keeps %v, %v", keeps, err)
	}
	if err := together(desk, pad); err != nil {
		t.Fatal(err)
	}
	if err := together(tab, pad); err != nil {
		t.Errorf("whom it had admitted, and who stays: %v", err)
	}
	for _, m := range []*Membership{guest, lap} {
		if err := together(m, pad); err == nil {
			t.Errorf("%s is let in", m.Name())
		}
	}
}

func TestFarewell(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	bye, err := c.lap.Farewell()
	if err != nil || len(bye) != 1 {
		t.Fatalf("%d, %v", len(bye), err)
	}
	if err := c.pad.AddRevocations(bye...); err != nil {
		t.Fatal(err)
	}
	if d, ok := c.pad.Departed(c.lap.Self()); !ok || !d.Left || c.pad.Revoked(c.lap.Self()) {
		t.Errorf("after a farewell: %+v", d)
	}
	if err := meet(t, c.guest, c.pad); err != nil {
		t.Errorf("whom it had admitted went with it: %v", err)
	}
	if _, restart, err := c.lap.Leave(false); err != nil || restart {
		t.Fatalf("leave: restart %v, %v", restart, err)
	}
	if err := meet(t, c.pad, c.desk); err != nil {
		t.Fatal(err)
	}
	join(t, c.lap, invite(t, c.desk, listen(t, c.desk), InviteOptions{Mine: true}))
	if err := meet(t, c.lap, c.pad); err != nil {
		t.Errorf("left, and come back: %v", err)
	}
	if _, ok := c.pad.Departed(c.lap.Self()); ok {
		t.Error("come back, and still counted as gone")
	}
	if _, _, err := c.desk.Leave(false); !errors.Is(err, ErrRootHere) {
		t.Errorf("the root leaves: %v", err)
	}
	if b, err := c.desk.Farewell(); err != nil || len(b) != 1 {
		t.Errorf("%d, %v", len(b), err)
	}
}

// TestBadRevocations: what does not add up is refused as it comes.
func TestBadRevocations(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	root := ed25519.NewKeyFromSeed(c.desk.st.Root)
	good := func() *protocol.RevocationBody {
		return &protocol.RevocationBody{Mesh: c.desk.st.Mesh, Key: c.guest.own.body.Key, Issuer: c.lap.own.body.Key, Number: 1, AtUnixS: 1}
	}
	sign := func(b *protocol.RevocationBody, k ed25519.PrivateKey) *protocol.Revocation {
		raw, err := proto.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return &protocol.Revocation{Body: raw, Signature: ed25519.Sign(k, append([]byte(revokeContext), raw...)), Target: c.guest.own.chain, Issuer: c.lap.own.chain}
	}
	if err := c.pad.AddRevocations(sign(good(), c.lap.rawKey)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*protocol.RevocationBody, *protocol.Revocation){
		"signature":       func(_ *protocol.RevocationBody, r *protocol.Revocation) { r.Signature[3]++ },
		"no target":       func(_ *protocol.RevocationBody, r *protocol.Revocation) { r.Target = nil },
		"other target":    func(_ *protocol.RevocationBody, r *protocol.Revocation) { r.Target = c.pad.own.chain },
		"no issuer":       func(_ *protocol.RevocationBody, r *protocol.Revocation) { r.Issuer = nil },
		"other issuer":    func(_ *protocol.RevocationBody, r *protocol.Revocation) { r.Issuer = c.pad.own.chain },
		"root with chain": func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Issuer = pub(root) },
		"number":          func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Number = 0 },
		"time":            func(b *protocol.RevocationBody, r *protocol.Revocation) { b.AtUnixS = -1 },
		"mesh":            func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Mesh = bytes.Repeat([]byte{1}, 32) },
		"key":             func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Key = b.Key[1:] },
		"the root":        func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Key = pub(root) },
		"reason":          func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Reason = "a\x1b[2J" },
		"long reason":     func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Reason = strings.Repeat("a", 201) },
		"kept":            func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Kept = make([]uint64, maxKept+1) },
		"serial":          func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Serial = 7 },
		"too long": func(b *protocol.RevocationBody, r *protocol.Revocation) {
			r.Target = &protocol.Chain{Certificates: []*protocol.Certificate{{Body: make([]byte, maxRevocation)}}}
		},
		"leaves whole": func(b *protocol.RevocationBody, r *protocol.Revocation) { b.Issuer, r.Issuer = b.Key, nil },
		"issuer no admin": func(b *protocol.RevocationBody, r *protocol.Revocation) {
			b.Key, b.Issuer = c.pad.own.body.Key, b.Key
			r.Issuer, r.Target = c.guest.own.chain, c.pad.own.chain
		},
		"issuer not above": func(b *protocol.RevocationBody, r *protocol.Revocation) {
			b.Issuer = c.pad.own.body.Key
			r.Issuer = c.pad.own.chain
		},
	} {
		b := good()
		b.Reason = "x" // another one than the good one
		r := sign(b, c.lap.rawKey)
		change(b, r)
		key := c.lap.rawKey
		for _, m := range c.all() {
			if bytes.Equal(b.Issuer, m.own.body.Key) {
				key = m.rawKey
			}
		}
		if bytes.Equal(b.Issuer, pub(root)) {
			key = root
		}
		raw, _ := proto.Marshal(b)
		r.Body = raw
		if name != "signature" {
			r.Signature = ed25519.Sign(key, append([]byte(revokeContext), raw...))
		}
		if err := c.pad.AddRevocations(r); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if len(c.pad.rev.all) != 1 {
		t.Errorf("%d were kept", len(c.pad.rev.all))
	}
}

// TestFloodOfRevocations: a stolen admin fills its own share, and the root's still count.
func TestFloodOfRevocations(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	lap := signer{key: c.lap.rawKey, chain: c.lap.own.chain}
	var flood []*protocol.Revocation
	for i := range maxPerBranch + 50 {
		k := newKey(t)
		chain, err := issue(c.lap.rawKey, c.desk.Mesh(), &protocol.CertificateBody{Key: pub(k), Owner: pub(k), NotAfterUnixS: 1}, c.lap.own.chain)
		if err != nil {
			t.Fatal(err)
		}
		msg, err := c.lap.signRevocation(lap, &protocol.RevocationBody{Key: pub(k), Number: uint64(i)}, chain)
		if err != nil {
			t.Fatal(err)
		}
		flood = append(flood, msg)
	}
	if err := c.pad.AddRevocations(flood...); err != nil {
		t.Fatal(err)
	}
	if n := len(c.pad.rev.all); n != maxPerBranch {
		t.Errorf("%d of a flood were kept, want %d", n, maxPerBranch)
	}
	if _, err := c.desk.Revoke(c.lap.Self(), RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	// Each side checks some hundred signatures within the time of an admission; a machine that is too slow for that knows them by the next one.
	var err error
	for range 5 {
		if err = meet(t, c.pad, c.desk); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if !c.pad.Revoked(c.lap.Self()) || c.pad.rev.bytes > maxRevocationBytes {
		t.Errorf("after a flood the root's does not count; %d bytes", c.pad.rev.bytes)
	}
}

// TestDamagedRevocations: a node does not start as if nobody had been revoked.
func TestDamagedRevocations(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	if _, err := c.desk.Revoke(c.guest.Self(), RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.desk.path(revocationsFile), []byte("[\"x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c.desk.dir, Options{Machine: func() string { return "this machine" }}); err == nil || !strings.Contains(err.Error(), "restore it") {
		t.Errorf("opened with damaged revocations: %v", err)
	}
}

// TestRevocationsInAnyOrder: whatever of the same certificates and revocations comes in whatever order and in whatever portions, the
// judgement is the same everywhere, and it is the one that the rules give when they are read word by word.
func TestRevocationsInAnyOrder(t *testing.T) {
	t.Parallel()
	root := newKey(t)
	mesh := meshOf(pub(root))
	keys := []ed25519.PrivateKey{newKey(t), newKey(t), newKey(t), newKey(t), newKey(t), newKey(t)}
	all := []protocol.Capability{submit, work, protocol.Capability_RELAY, protocol.Capability_ADMIN}
	seen := map[bool]int{}
	rapid.Check(t, func(rt *rapid.T) {
		var certs []*Cert
		serial := uint64(0)
		add := func(key, by ed25519.PrivateKey, from *Cert, admin bool, revokers [][]byte, renewed bool) {
			serial++
			b := &protocol.CertificateBody{Mesh: mesh[:], Key: pub(key), Owner: pub(root), Capabilities: all[:3], NotAfterUnixS: 1, Serial: serial, Issuer: pub(by), Renewed: renewed, Revokers: revokers}
			if admin {
				b.Capabilities = all
			}
			raw, _ := proto.Marshal(b)
			ch := &protocol.Chain{Certificates: []*protocol.Certificate{{Body: raw, Signature: ed25519.Sign(by, append([]byte(signContext), raw...))}}}
			if from != nil {
				ch.Certificates = append(ch.Certificates, from.chain.Certificates...)
			}
			if c, err := verifyAnytime(ch, mesh); err == nil {
				certs = append(certs, c)
			}
		}
		keyOfCert := func(c *Cert) ed25519.PrivateKey {
			return keys[slices.IndexFunc(keys, func(k ed25519.PrivateKey) bool { return bytes.Equal(pub(k), c.body.Key) })]
		}
		for range rapid.IntRange(2, 14).Draw(rt, "certificates") {
			key := rapid.SampledFrom(keys).Draw(rt, "whose")
			by, from := root, (*Cert)(nil)
			if i := rapid.IntRange(-1, len(certs)-1).Draw(rt, "by"); i >= 0 {
				from = certs[i]
				by = keyOfCert(from)
			}
			var revokers [][]byte
			renewed := rapid.Bool().Draw(rt, "renewed")
			if renewed && rapid.Bool().Draw(rt, "revoker") {
				revokers = [][]byte{pub(rapid.SampledFrom(keys).Draw(rt, "by whom"))}
			}
			add(key, by, from, rapid.IntRange(0, 3).Draw(rt, "admin") > 0, revokers, renewed)
		}
		if len(certs) == 0 {
			return
		}
		var rs []*revocation
		for n := range rapid.IntRange(1, 10).Draw(rt, "revocations") {
			target := rapid.SampledFrom(certs).Draw(rt, "target")
			b := &protocol.RevocationBody{Mesh: mesh[:], Key: target.body.Key, Number: uint64(n) + 1}
			msg := &protocol.Revocation{Target: target.chain}
			by := root
			switch rapid.IntRange(0, 3).Draw(rt, "who") {
			case 0: // the root
			case 1: // leaves
				by = keyOfCert(target)
			default:
				issuer := rapid.SampledFrom(certs).Draw(rt, "issuer")
				by, msg.Issuer = keyOfCert(issuer), issuer.chain
			}
			if bytes.Equal(pub(by), target.body.Key) || rapid.IntRange(0, 4).Draw(rt, "one") == 0 {
				b.Serial = target.Serial
				if bytes.Equal(pub(by), target.body.Key) {
					msg.Issuer = nil
				}
			}
			for _, c := range certs {
				if rapid.IntRange(0, 2).Draw(rt, "kept") == 0 {
					b.Kept = append(b.Kept, c.Serial)
				}
			}
			for _, r := range rs {
				if rapid.IntRange(0, 2).Draw(rt, "kept revocation") == 0 {
					b.KeptRevocations = append(b.KeptRevocations, r.hash)
				}
			}
			b.Issuer = pub(by)
			raw, _ := proto.Marshal(b)
			msg.Body, msg.Signature = raw, ed25519.Sign(by, append([]byte(revokeContext), raw...))
			if r, err := checkRevocation(msg, mesh); err == nil {
				rs = append(rs, r)
			}
		}
		whole, _, _ := newRevocations(nil).with(rs)
		bits := newRevocations(nil)
		for _, r := range rapid.Permutation(rs).Draw(rt, "order") {
			bits, _, _ = bits.with([]*revocation{r})
			bits, _, _ = bits.with(rapid.SliceOfN(rapid.SampledFrom(rs), 0, 2).Draw(rt, "again"))
		}
		if !bytes.Equal(whole.digest, bits.digest) {
			rt.Fatal("the digest depends on the order")
		}
		for _, c := range certs {
			a, b, want := whole.voidedBy(c) != nil, bits.voidedBy(c) != nil, wordByWord(rs, c.bodies, nil)
			seen[want]++
			if a != b || a != want {
				rt.Fatalf("certificate %d of %d in its chain: void %v, in bits %v, by the rules %v", c.Serial, len(c.bodies), a, b, want)
			}
		}
	})
	if seen[true] == 0 || seen[false] == 0 {
		t.Errorf("judged void %d times and good %d times: the test shows nothing", seen[true], seen[false])
	}
}

// wordByWord is the rules of revocation as they are written down: is the chain void? With signs, its first key is the issuer of that
// revocation, and void means that the revocation does not count.
func wordByWord(rs []*revocation, chain []*protocol.CertificateBody, signs *revocation) bool {
	has := func(list [][]byte, k []byte) bool {
		return slices.ContainsFunc(list, func(x []byte) bool { return bytes.Equal(x, k) })
	}
	for _, r := range rs {
		for i, c := range chain {
			if !bytes.Equal(c.Key, r.body.Key) {
				continue
			}
			self, byRoot := bytes.Equal(r.body.Issuer, r.body.Key), r.issuer == nil && !bytes.Equal(r.body.Issuer, r.body.Key)
			if r.body.Serial != 0 && (i > 0 || c.Serial != r.body.Serial || signs != nil) {
				continue // one certificate alone
			}
			if !byRoot && !self && !has(above(chain[i:]), r.body.Issuer) {
				continue // by nobody who may
			}
			if !byRoot && !self {
				if signs != nil && len(r.issuer.bodies) >= len(signs.issuer.bodies) {
					continue // by nobody nearer to the root
				}
				if wordByWord(rs, r.issuer.bodies, r) {
					continue // by somebody who was revoked
				}
			}
			if i > 0 && slices.Contains(r.body.Kept, chain[i-1].Serial) || signs != nil && slices.Contains(r.body.KeptRevocations, signs.hash) {
				continue
			}
			return true
		}
	}
	return false
}

// TestRevocationInManyGuises: who holds one revocation of another's cannot make many of it, by certificates that it shows with it, and
// so fill the share of who signed it.
func TestRevocationInManyGuises(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	if _, err := c.desk.Revoke(c.pad.Self(), RevokeOptions{}); err != nil { // the root's own
		t.Fatal(err)
	}
	below := open(t, "", Options{})
	admit(t, c.desk, below, InviteOptions{Mine: true})
	visitor := open(t, "", Options{})
	admit(t, below, visitor, InviteOptions{})
	if _, err := below.Revoke(visitor.Self(), RevokeOptions{}); err != nil { // an honest admin's
		t.Fatal(err)
	}
	honest, _ := c.desk.held()
	theirs, _ := below.held()
	if err := c.guest.AddRevocations(append(honest, theirs...)...); err != nil || len(c.guest.rev.all) != 2 {
		t.Fatal(err, len(c.guest.rev.all))
	}
	var flood []*protocol.Revocation
	for i := range maxPerBranch {
		for _, msg := range append(honest, theirs...) {
			r, err := checkRevocation(msg, c.desk.Mesh())
			if err != nil {
				t.Fatal(err)
			}
			body := proto.Clone(r.target.body).(*protocol.CertificateBody)
			body.NotAfterUnixS, body.Renewed, body.Revokers = int64(i+1), true, [][]byte{r.body.Issuer}
			body.Capabilities, body.Runtimes, body.Owner, body.NotBeforeUnixS = nil, nil, body.Key, 0
			guise := proto.Clone(msg).(*protocol.Revocation)
			if guise.Target, err = issue(c.lap.rawKey, c.desk.Mesh(), body, c.lap.own.chain); err != nil {
				t.Fatal(err)
			}
			if _, err := checkRevocation(guise, c.desk.Mesh()); err != nil {
				t.Fatal(err)
			}
			flood = append(flood, guise)
		}
	}
	if err := c.guest.AddRevocations(flood...); err != nil {
		t.Fatal(err)
	}
	if n := len(c.guest.rev.all); n != 2 {
		t.Errorf("two revocations are %d", n)
	}
}

// TestRevocationIsWrittenLater: what could not be written when it was heard is written as soon as that is possible.
func TestRevocationIsWrittenLater(t *testing.T) {
	t.Parallel()
	c := newCrew(t)
	if _, err := c.desk.Revoke(c.pad.Self(), RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	told, _ := c.desk.held()
	inWay := filepath.Join(c.guest.path(revocationsFile), "x")
	if err := errors.Join(os.Remove(filepath.Dir(inWay)), os.MkdirAll(inWay, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := c.guest.AddRevocations(told...); err == nil || !c.guest.Revoked(c.pad.Self()) {
		t.Fatalf("with a disk that takes nothing: %v, obeyed %v", err, c.guest.Revoked(c.pad.Self()))
	}
	if err := c.guest.Maintain(); err == nil {
		t.Error("nobody hears that it is still not written")
	}
	if err := os.RemoveAll(filepath.Dir(inWay)); err != nil {
		t.Fatal(err)
	}
	if err := c.guest.Maintain(); err != nil {
		t.Fatal(err)
	}
	if !open(t, c.guest.dir, Options{}).Revoked(c.pad.Self()) {
		t.Error("after a start it is forgotten")
	}
}
