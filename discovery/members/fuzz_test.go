package members

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

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
