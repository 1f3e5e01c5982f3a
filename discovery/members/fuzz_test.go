package members

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

// FuzzTicket: any text is a ticket or one line of error, and what is a ticket is written as it was read.
func FuzzTicket(f *testing.F) {
	m := open(f, "", Options{})
	s, err := m.Invite(InviteOptions{Uses: 3})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s)
	f.Add("")
	f.Add(ticketPrefix)
	f.Add(ticketPrefix + "aaaaaaaaaa")
	raw := []byte{0x0a, 0x00, 0x08}
	f.Add(ticketPrefix + b32.EncodeToString(append(raw, checksum(raw)...)))
	f.Fuzz(func(t *testing.T, s string) {
		tk, err := parseTicket(s)
		if err != nil {
			if !errors.Is(err, ErrTicket) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		again, err := formatTicket(tk)
		if err != nil {
			t.Fatal(err)
		}
		if tk2, err := parseTicket(again); err != nil || !proto.Equal(tk, tk2) {
			t.Errorf("%q reads as %v, %v", again, tk2, err)
		}
	})
}

// FuzzTicketBody: what has the right checksum is still only a stranger's bytes.
func FuzzTicketBody(f *testing.F) {
	m := open(f, "", Options{})
	s, err := m.Invite(InviteOptions{})
	if err != nil {
		f.Fatal(err)
	}
	tk, err := parseTicket(s)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := proto.Marshal(tk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		tk, err := parseTicket(ticketPrefix + b32.EncodeToString(append(bytes.Clone(raw), checksum(raw)...)))
		if err == nil && (len(tk.Mesh) != 32 || len(tk.Inviter) != 32 || len(tk.Secret) != 16) {
			t.Errorf("taken: %v", tk)
		}
	})
}

// FuzzAdmission: whatever a stranger sends, nobody is admitted by it, and nothing is allocated beyond the limit.
func FuzzAdmission(f *testing.F) {
	m := open(f, "", Options{})
	x := open(f, "", Options{})
	seed := func(a *protocol.Admission) {
		var b bytes.Buffer
		if err := writeMsg(&b, a); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	seed(&protocol.Admission{Chain: m.Own().chain}) // stolen
	seed(&protocol.Admission{Chain: x.Own().chain, Probe: true})
	seed(&protocol.Admission{Join: &protocol.JoinRequest{Mesh: m.st.Mesh, Ticket: make([]byte, 16), Proof: make([]byte, 32), Name: "x\x00\u202e"}})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		a := &protocol.Admission{}
		if err := readMsg(r, a, protocol.MaxAdmission); err != nil {
			return
		}
		if n := len(b) - r.Len(); n > protocol.MaxAdmission+2 {
			t.Errorf("%d bytes read", n)
		}
		if a.Join != nil {
			if reply := m.redeem(a.Join, x.Self(), ""); reply.Denial == protocol.Denial_ADMITTED || reply.Issued != nil || reply.Reason == "" {
				t.Errorf("admitted: %v", reply)
			}
		}
		if c, _, err := m.judge(a.Chain, x.Self()); err == nil {
			t.Errorf("admitted: %+v", c)
		}
		cleanName(a.GetJoin().GetName())
	})
}

// FuzzReply: what a listener answers is printable and makes nobody a member.
func FuzzReply(f *testing.F) {
	m, x := open(f, "", Options{}), open(f, "", Options{})
	for _, r := range []*protocol.AdmissionReply{
		{Chain: x.Own().chain}, {Denial: protocol.Denial_TICKET_USED, Reason: "used\x1b[2J\n"}, {Issued: x.Own().chain, Chain: m.Own().chain},
	} {
		var b bytes.Buffer
		if err := writeMsg(&b, r); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readReply(bytes.NewReader(b))
		if err != nil {
			return
		}
		if s := refusedBy(x.Self(), r).Error(); len(s) > 330 || !utf8.ValidString(s) || strings.ContainsAny(s, "\x1b\n\r") || s == "" {
			t.Errorf("%q", s)
		}
		if c, _, err := m.judge(r.Chain, x.Self()); err == nil {
			t.Errorf("a member: %+v", c)
		}
		if err := m.TakeRenewal(r.Issued); err == nil && !bytes.Equal(r.Issued.Certificates[0].Body, m.Own().chain.Certificates[0].Body) {
			t.Errorf("a renewal: %v", r.Issued)
		}
	})
}

// FuzzCertificate: a body of any bytes, rightly signed by the root (an admin gone mad), is refused or makes sense.
func FuzzCertificate(f *testing.F) {
	m := open(f, "", Options{})
	root := ed25519.NewKeyFromSeed(m.st.Root)
	f.Add(m.own.chain.Certificates[0].Body)
	f.Add([]byte{})
	if raw, err := proto.Marshal(&protocol.CertificateBody{Mesh: m.st.Mesh, NotAfterUnixS: math.MinInt64}); err == nil {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c := &protocol.Certificate{Body: body, Signature: ed25519.Sign(root, append([]byte(signContext), body...))}
		cert, err := verify(&protocol.Chain{Certificates: []*protocol.Certificate{c}}, m.Mesh(), time.Now())
		if err != nil {
			return
		}
		if len(cert.Name) > protocol.MaxMemberName || cert.Name != cleanName(cert.Name) || cert.Peer.Validate() != nil || cert.NotAfter.Before(cert.NotBefore) {
			t.Errorf("good: %+v", cert)
		}
		mayUse(cert, m.own)
	})
}

// FuzzRevocation: any bytes in place of a revocation, rightly signed by the root or an admin gone mad or not signed at all, are refused or make
// sense, and void nothing but what they name.
func FuzzRevocation(f *testing.F) {
	m, lap := open(f, "", Options{}), open(f, "", Options{})
	admit(f, m, lap, InviteOptions{Mine: true})
	root := ed25519.NewKeyFromSeed(m.st.Root)
	body := &protocol.RevocationBody{Mesh: m.st.Mesh, Key: lap.own.body.Key, Issuer: pub(root), Number: 1}
	for _, b := range []*protocol.RevocationBody{body, {Mesh: m.st.Mesh, Key: m.own.body.Key, Issuer: lap.own.body.Key, Number: math.MaxUint64, Serial: 7, Kept: []uint64{1}}} {
		raw, err := proto.Marshal(b)
		if err != nil {
			f.Fatal(err)
		}
		for by := range byte(3) {
			f.Add(raw, by, true)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, by byte, chains bool) {
		msg := &protocol.Revocation{Body: body}
		switch by {
		case 0:
			msg.Signature = ed25519.Sign(root, append([]byte(revokeContext), body...))
		case 1:
			msg.Signature = ed25519.Sign(lap.rawKey, append([]byte(revokeContext), body...))
		}
		if chains {
			msg.Target, msg.Issuer = lap.own.chain, lap.own.chain
		}
		r, err := checkRevocation(msg, m.Mesh())
		if err != nil {
			return
		}
		set, _, _ := newRevocations(nil).with([]*revocation{r})
		if by > 1 || r.body.Reason != plain(r.body.Reason) || departure(r).String() == "" {
			t.Errorf("good: %v", r.body)
		}
		if set.voidedBy(m.own) != nil && string(r.body.Key) != string(m.own.body.Key) {
			t.Errorf("%v voids another certificate", r.body)
		}
	})
}

// FuzzRevocationsTold: whatever a member sends as the revocations that it holds, nobody is put out by it.
func FuzzRevocationsTold(f *testing.F) {
	m, lap, guest := open(f, "", Options{Volatile: true}), open(f, "", Options{Volatile: true}), open(f, "", Options{Volatile: true})
	admit(f, m, lap, InviteOptions{Mine: true})
	admit(f, m, guest, InviteOptions{})
	// One of a key that nobody has, and what lap cannot revoke.
	stranger, _ := keyOf(newPeer(f))
	m.mu.Lock()
	good, err := m.signRevocation(signer{key: ed25519.NewKeyFromSeed(m.st.Root)}, &protocol.RevocationBody{Key: stranger}, nil)
	bad, err2 := lap.signRevocation(signer{key: lap.rawKey, chain: lap.own.chain}, &protocol.RevocationBody{Key: guest.own.body.Key}, guest.own.chain)
	m.mu.Unlock()
	if err := errors.Join(err, err2); err != nil {
		f.Fatal(err)
	}
	for _, done := range []*protocol.AdmissionDone{{}, {Revoked: []*protocol.Revocation{good, bad, {}}}, {Refused: "no", Revoked: []*protocol.Revocation{bad}, Issued: lap.own.chain}} {
		var b bytes.Buffer
		if err := writeMsg(&b, done); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		done := &protocol.AdmissionDone{}
		if readMsg(bytes.NewReader(b), done, protocol.MaxRevocationSet) != nil {
			return
		}
		m.hearRefusal(done)
		if _, err := m.hearHeld(done.Revoked, lap.own.chain, lap.Self()); err != nil {
			t.Errorf("lap is put out: %v", err)
		}
		if m.knows(guest.Self()) != true || m.void != nil {
			t.Error("somebody is put out")
		}
	})
}

// FuzzVersionsAsked: whatever was asked for before the security protocol is one line about a version, or nothing; and so is what is answered.
func FuzzVersionsAsked(f *testing.F) {
	f.Add([]byte("\x13/multistream/1.0.0\n\x10/meshnode/tls/9\n"))
	f.Add([]byte("\x13/multistream/1.0.0\n\x03na\n"))
	f.Add([]byte("/meshnode/tls/99999999999999999999\n/meshnode/tls/-1\n/meshnode/\n\n"))
	f.Add(bytes.Repeat([]byte("x"), maxAsked*2/3))
	m := open(f, "", Options{Volatile: true})
	f.Fuzz(func(t *testing.T, b []byte) {
		var a asked
		a.add(b)
		a.add(b)
		if len(a.b) > maxAsked {
			t.Errorf("%d bytes are kept", len(a.b))
		}
		said := a.incompatible(m.speak)
		if said != nil && (said.Error() == "" || len(said.Error()) > 1000 || strings.ContainsAny(said.Error(), "\n\x1b")) {
			t.Errorf("%q", said)
		}
		if err := m.otherVersion(&script{r: bytes.NewReader(b)}); err == nil {
			t.Error("a version in common among those that this node does not speak")
		}
	})
}

// FuzzAddressesTold: what is told as addresses is dialled as addresses with a peer, at most sixteen, or not at all.
func FuzzAddressesTold(f *testing.F) {
	f.Add([]byte{4, 127, 0, 0, 1, 6, 0, 1})
	f.Add(ma.StringCast("/ip4/127.0.0.1/tcp/1/p2p/" + newPeer(f).String()).Bytes())
	f.Add(ma.StringCast("/ip4/127.0.0.1/udp/1/p2p/" + newPeer(f).String()).Bytes())
	f.Add(ma.StringCast("/dns4/x/tcp/1/p2p/" + newPeer(f).String() + "/p2p-circuit").Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		for _, info := range multiaddrs(slices.Repeat([][]byte{b, nil}, 20)) {
			for _, a := range info.Addrs {
				if n++; !Dialable(a) || info.ID.Validate() != nil {
					t.Errorf("%v of %v", a, info.ID)
				}
			}
		}
		if n > protocol.MaxMemberAddresses {
			t.Errorf("%d addresses", n)
		}
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			if relay, ok := Circuit(a); ok && (!throughRelay(a) || relay.Validate() != nil || Dialable(a)) {
				t.Errorf("%v leads through %v", a, relay)
			}
			throughRelay(a)
		}
	})
}

// FuzzRecoveryCode: any text is the code of one root key, or an error.
func FuzzRecoveryCode(f *testing.F) {
	f.Add(recoveryCode(make([]byte, 32)))
	f.Add("")
	f.Add(strings.Repeat("a", 56))
	f.Fuzz(func(t *testing.T, s string) {
		seed, err := parseRecoveryCode(s)
		if err != nil {
			return
		}
		if again, err := parseRecoveryCode(recoveryCode(seed)); len(seed) != ed25519.SeedSize || err != nil || !bytes.Equal(seed, again) {
			t.Errorf("%q is %x, %v", s, seed, err)
		}
	})
}
