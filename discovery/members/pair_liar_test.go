package members

import (
	"context"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/cpace"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	mss "github.com/multiformats/go-multistream"

	"meshnode/protocol"
)

// verdictOf has somebody who knows the secret say where it stands, and returns what the other makes of it.
func verdictOf(t *testing.T, m, x *Membership, s *protocol.PairStanding) *protocol.PairVerdict {
	t.Helper()
	us, them := channels(x.Self(), m.Self())
	defer us.Close()
	ended := heard(m, them)
	p := &pact{m: x, c: us, start: &protocol.PairStart{}}
	if _, err := p.dialer(testSecret); err != nil {
		t.Fatal(err)
	}
	writeMsg(us, &protocol.AdmissionDone{Standing: s})
	reply, err := readReply(us)
	if err != nil || reply.Verdict == nil {
		t.Fatal(reply, err, <-ended)
	}
	return reply.Verdict
}

// TestPairLaundersNothing: a secret gives what a secret gives, and does not make good again a certificate that is void or ended long ago.
func TestPairLaundersNothing(t *testing.T) {
	t.Parallel()
	small := func(t *testing.T, m *Membership, v *protocol.PairVerdict) {
		t.Helper()
		if v.Step != protocol.PairStep_ENTER {
			t.Fatalf("who knows the secret is not let in: %v", v.Step)
		}
		c, err := verify(v.Issued, m.Mesh(), m.now())
		if err != nil {
			t.Fatal(err)
		}
		if c.Owner == m.Own().Owner || !slices.Equal(c.Capabilities, circleCapabilities) || !slices.Equal(c.Runtimes, circleRuntimes) || m.rev.voidedBy(c) != nil {
			t.Errorf("a secret gave %v, %v, of the root's owner: %v", c.Capabilities, c.Runtimes, c.Owner == m.Own().Owner)
		}
	}
	t.Run("of a revoked admin", func(t *testing.T) {
		c := newCrew(t)
		accomplice := open(t, "", Options{})
		admit(t, c.lap, accomplice, InviteOptions{Mine: true})
		if _, err := c.desk.Revoke(c.lap.Self(), RevokeOptions{WithIssued: true}); err != nil {
			t.Fatal(err)
		}
		c.desk.OpenToSecret(testSecret, nil, nil)
		small(t, c.desk, verdictOf(t, c.desk, accomplice, &protocol.PairStanding{Chain: accomplice.Own().chain}))
	})
	t.Run("of a member of the circle whose introducer was revoked", func(t *testing.T) {
		a, b, x := open(t, "", Options{}), open(t, "", Options{}), open(t, "", Options{})
		admit(t, a, b, InviteOptions{Mine: true})
		a.OpenToSecret(testSecret, nil, nil)
		a.mu.Lock()
		err := a.foundCircle(nil)
		a.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		signed, err := issue(b.rawKey, a.Mesh(), &protocol.CertificateBody{
			Key: pub(x.rawKey), Owner: pub(x.rawKey), Circle: a.Own().body.Circle, Capabilities: circleCapabilities, Runtimes: circleRuntimes,
			NotAfterUnixS: b.Own().NotAfter.Unix(),
		}, b.Own().chain)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.enter(&protocol.Ticket{Mesh: b.st.Mesh}, &protocol.AdmissionReply{Chain: b.Own().chain, Issued: signed}, b.Self(), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Revoke(b.Self(), RevokeOptions{WithIssued: true}); err != nil {
			t.Fatal(err)
		}
		small(t, a, verdictOf(t, a, x, &protocol.PairStanding{Chain: signed}))
	})
	t.Run("ended long ago", func(t *testing.T) {
		c := newClock(time.Now())
		a, b := open(t, "", Options{Now: c.now}), open(t, "", Options{Now: c.now})
		admit(t, a, b, InviteOptions{Mine: true})
		c.forward(2*lifetime + 24*time.Hour)
		if err := a.Maintain(); err != nil {
			t.Fatal(err)
		}
		a.OpenToSecret(testSecret, nil, nil)
		small(t, a, verdictOf(t, a, b, &protocol.PairStanding{Chain: b.Own().chain}))
	})
}

// TestManySecretsAtOnce: the limit of wrong tries holds, however many are under way together.
func TestManySecretsAtOnce(t *testing.T) {
	t.Parallel()
	m := open(t, "", Options{})
	m.OpenToSecret(testSecret, nil, nil)
	var all []sec.SecureConn
	for range 3 * wrongTickets { // all have their answer before any gives its proof
		stranger := newPeer(t)
		us, them := channels(stranger, m.Self())
		heard(m, them)
		begin(t, us, stranger, 0, "a wrong secret of some length")
		all = append(all, us)
	}
	var told []protocol.Denial
	for _, us := range all {
		writeMsg(us, &protocol.AdmissionDone{Pair: &protocol.PairProof{Proof: make([]byte, 32)}})
		reply, err := readReply(us)
		if err != nil {
			t.Fatal(err)
		}
		told = append(told, reply.Denial)
		writeMsg(us, &protocol.AdmissionDone{})
	}
	for i, d := range told {
		want := protocol.Denial_WRONG_SECRET
		if i >= wrongTickets {
			want = protocol.Denial_TOO_MANY_TRIES
		}
		if d != want {
			t.Errorf("try %d: %v, want %v", i+1, d, want)
		}
	}
}

// TestImpostorsOfACode: who answers in the inviter's place and breaks off once it has the joiner's proof has had its guess, too.
func TestImpostorsOfACode(t *testing.T) {
	t.Parallel()
	var guesses atomic.Int32
	var places []Place
	for range 3 * maxCodeAsked {
		evil := open(t, "", Options{})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				raw, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer raw.Close()
					c, err := accept(evil, raw)
					if err != nil {
						return
					}
					a, done := &protocol.Admission{}, &protocol.AdmissionDone{}
					if readMsg(c, a, protocol.MaxAdmission) != nil {
						return
					}
					x := &pact{m: evil, c: c, start: a.Pair}
					share, _, err := cpace.Exchange("zebra-zenith", x.context(), a.Pair.Share)
					mesh := evil.Mesh()
					if err != nil || writeMsg(c, &protocol.AdmissionReply{Pair: &protocol.PairAnswer{Mesh: mesh[:], Share: share}}) != nil {
						return
					}
					if readMsg(c, done, protocol.MaxAdmission) == nil && done.Pair != nil {
						guesses.Add(1)
					}
				}()
			}
		}()
		places = append(places, Place{Peer: evil.Self(), Network: "tcp", Host: l.Addr().String()})
	}
	b := open(t, "", Options{})
	if _, err := b.JoinCode(ctx(t), "7-kitchen-sunset", CodeOptions{At: places}); err == nil {
		t.Fatal("joined")
	}
	if n := guesses.Load(); n != maxCodeAsked {
		t.Errorf("impostors had %d guesses, want %d", n, maxCodeAsked)
	}
}

// accept is the listening side of an encrypted channel, without what follows.
func accept(m *Membership, raw net.Conn) (sec.SecureConn, error) {
	mux := mss.NewMultistreamMuxer[string]()
	for _, id := range m.speak.IDs(protocol.NameAdmission) {
		mux.AddHandler(id, nil)
	}
	id, _, err := mux.Negotiate(raw)
	if err != nil {
		return nil, err
	}
	tls, err := libp2ptls.New(libp2pproto.ID(id), m.key, nil)
	if err != nil {
		return nil, err
	}
	return tls.SecureInbound(context.Background(), raw, "")
}
