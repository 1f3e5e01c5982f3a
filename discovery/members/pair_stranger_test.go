package members

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/cpace"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

// channel is an encrypted channel whose two ends have proven who they are, without TLS.
type channel struct {
	net.Conn
	local, remote peer.ID
}

func (c channel) LocalPeer() peer.ID                 { return c.local }
func (c channel) RemotePeer() peer.ID                { return c.remote }
func (c channel) RemotePublicKey() crypto.PubKey     { return nil }
func (c channel) ConnState() network.ConnectionState { return network.ConnectionState{} }
func (c channel) LocalAddr() net.Addr                { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
func (c channel) RemoteAddr() net.Addr               { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// channels are the two ends, which time out together.
func channels(a, b peer.ID) (sec.SecureConn, sec.SecureConn) {
	x, y := net.Pipe()
	for _, c := range []net.Conn{x, y} {
		c.SetDeadline(time.Now().Add(5 * time.Second))
	}
	return channel{x, a, b}, channel{y, b, a}
}

// heard runs the listening side, as admitIn does.
func heard(m *Membership, c sec.SecureConn) <-chan error {
	ended := make(chan error, 1)
	go func() {
		defer c.Close()
		_, err := m.admitIn(c, false, func(int64) {})
		ended <- err
	}()
	return ended
}

// TestPairStrangers: every broken message ends the exchange; nobody gets in, and who has the secret does afterwards.
func TestPairStrangers(t *testing.T) {
	t.Parallel()
	m := open(t, "", Options{})
	m.OpenToSecret(testSecret, nil, nil)
	text := inviteCode(t, m, InviteOptions{})
	nameplate, _, _ := ParseCode(text)
	mesh := bytes.Repeat([]byte{7}, 32)
	share := bytes.Repeat([]byte{9}, 48) // no point of the group
	identity := make([]byte, 48)         // the neutral point, whose key all could tell
	starts := map[string]*protocol.PairStart{
		"nothing": {}, "no share": {Mesh: mesh}, "no point": {Mesh: mesh, Share: share}, "neutral point": {Mesh: mesh, Share: identity},
		"short share": {Mesh: mesh, Share: share[:47]}, "long share": {Mesh: mesh, Share: append(slices.Clone(share), 1)},
		"short mesh": {Mesh: mesh[:31], Share: share}, "nameplate": {Mesh: mesh, Nameplate: 100, Share: share},
		"code, no point": {Mesh: mesh, Nameplate: nameplate, Share: share}, "unknown code, no point": {Mesh: mesh, Nameplate: nameplate%99 + 1, Share: share},
		"large": {Mesh: mesh, Share: make([]byte, protocol.MaxAdmission)},
	}
	stranger := open(t, "", Options{}).Self()
	for name, start := range starts {
		us, them := channels(stranger, m.Self())
		ended := heard(m, them)
		writeMsg(us, &protocol.Admission{Pair: start})
		if reply, err := readReply(us); err == nil {
			t.Errorf("%s is answered by %v", name, reply)
		}
		if err := <-ended; err == nil || errors.Is(err, errJoined) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// After an honest beginning.
	for name, done := range map[string]*protocol.AdmissionDone{
		"no proof": {}, "refusal": {Refused: "no"}, "standing at once": {Standing: &protocol.PairStanding{Alone: true}}, "gift at once": {Gift: &protocol.PairGift{}},
	} {
		us, them := channels(stranger, m.Self())
		ended := heard(m, them)
		begin(t, us, stranger, 0, testSecret)
		writeMsg(us, done)
		if reply, err := readReply(us); err == nil {
			t.Errorf("%s is answered by %v", name, reply)
		}
		if err := <-ended; err == nil || errors.Is(err, errJoined) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, proof := range map[string][]byte{"empty": nil, "zero": make([]byte, 32), "long": make([]byte, 3000)} {
		m.mu.Lock()
		m.tries = newTries()
		m.mu.Unlock()
		us, them := channels(stranger, m.Self())
		ended := heard(m, them)
		begin(t, us, stranger, 0, testSecret)
		writeMsg(us, &protocol.AdmissionDone{Pair: &protocol.PairProof{Proof: proof, Name: "x\x00\u202e"}})
		if reply, err := readReply(us); err != nil || reply.Denial != protocol.Denial_WRONG_SECRET || reply.Issued != nil || reply.Proof != nil {
			t.Errorf("%s proof: %v, %v", name, reply, err)
		}
		writeMsg(us, &protocol.AdmissionDone{})
		<-ended
	}
	if s, _ := m.CodeState(text); s.Wrong != 0 || len(m.Members()) != 0 || !m.Alone() {
		t.Errorf("afterwards: %+v, %d members", s, len(m.Members()))
	}
	m.mu.Lock()
	m.tries = newTries()
	m.mu.Unlock()
	pair(t, open(t, "", Options{}), listen(t, m))
	if len(m.Members()) != 1 && m.Own().Circle == "" {
		t.Error("who has the secret is not admitted any more")
	}
}

// begin is the dialling side up to the answer, by somebody who may know the secret. It returns what the proofs are made of.
func begin(t *testing.T, c sec.SecureConn, self peer.ID, nameplate uint32, secret string) {
	t.Helper()
	x := &pact{m: &Membership{self: self}, c: c, isDialer: true, start: &protocol.PairStart{Nameplate: nameplate, Mesh: make([]byte, 32)}}
	share, _, err := cpace.Start(secret, x.context())
	if err != nil {
		t.Fatal(err)
	}
	x.start.Share = share
	if err := writeMsg(c, &protocol.Admission{Pair: x.start}); err != nil {
		t.Fatal(err)
	}
	if reply, err := readReply(c); err != nil || reply.Pair == nil {
		t.Fatal(reply, err)
	}
}

// TestPairReplay: what an honest joiner said proves nothing a second time.
func TestPairReplay(t *testing.T) {
	t.Parallel()
	m, b := open(t, "", Options{}), open(t, "", Options{})
	text := inviteCode(t, m, InviteOptions{Uses: 5})
	nameplate, words, _ := ParseCode(text)
	us, them := channels(b.Self(), m.Self())
	var said bytes.Buffer
	ended := heard(m, them)
	x := &pact{m: b, c: recorded{us, &said}, start: &protocol.PairStart{Nameplate: nameplate}}
	if _, err := x.dialer(words); err != nil {
		t.Fatal(err)
	}
	writeMsg(us, &protocol.AdmissionDone{})
	if err := <-ended; !errors.Is(err, errJoined) {
		t.Fatal(err)
	}
	for _, from := range []peer.ID{b.Self(), open(t, "", Options{}).Self()} {
		us, them := channels(from, m.Self())
		ended := heard(m, them)
		r := bytes.NewReader(said.Bytes())
		var start protocol.Admission
		var proof protocol.AdmissionDone
		if err := errors.Join(readMsg(r, &start, protocol.MaxAdmission), readMsg(r, &proof, protocol.MaxAdmission)); err != nil {
			t.Fatal(err)
		}
		writeMsg(us, &start)
		if _, err := readReply(us); err != nil {
			t.Fatal(err)
		}
		writeMsg(us, &proof)
		if reply, err := readReply(us); err != nil || reply.Denial != protocol.Denial_WRONG_SECRET || reply.Issued != nil {
			t.Errorf("replayed by %s: %v, %v", from, reply, err)
		}
		writeMsg(us, &protocol.AdmissionDone{})
		<-ended
	}
	if s, _ := m.CodeState(text); s.Wrong != 2 || len(s.Joined) != 1 {
		t.Errorf("%+v", s)
	}
}

type recorded struct {
	sec.SecureConn
	said *bytes.Buffer
}

func (r recorded) Write(b []byte) (int, error) {
	r.said.Write(b)
	return r.SecureConn.Write(b)
}

// TestPairReflection: a listener who knows nothing sends the dialling side's own words back.
func TestPairReflection(t *testing.T) {
	t.Parallel()
	for _, nameplate := range []uint32{0, 7} {
		b, evil := open(t, "", Options{}), open(t, "", Options{})
		us, them := channels(b.Self(), evil.Self())
		go func() {
			defer them.Close()
			var start protocol.Admission
			var done protocol.AdmissionDone
			if readMsg(them, &start, protocol.MaxAdmission) != nil {
				return
			}
			writeMsg(them, &protocol.AdmissionReply{Pair: &protocol.PairAnswer{Mesh: start.Pair.Mesh, Share: start.Pair.Share[16:]}})
			if readMsg(them, &done, protocol.MaxAdmission) != nil {
				return
			}
			writeMsg(them, &protocol.AdmissionReply{Proof: done.Pair, Chain: evil.Own().chain, Issued: evil.Own().chain})
		}()
		x := &pact{m: b, c: us, start: &protocol.PairStart{Nameplate: nameplate}}
		if _, err := x.dialer(testSecret); !errors.Is(err, ErrWrongSecret) {
			t.Errorf("a mirror is taken for somebody who knows the secret: %v", err)
		}
	}
}

// TestPairManInTheMiddle: somebody who passes on every word between two that know the secret, but has to show a key of their own to
// each, ends with neither.
func TestPairManInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, byCode := range []bool{false, true} {
		m, b, evil := open(t, "", Options{}), open(t, "", Options{}), open(t, "", Options{})
		m.OpenToSecret(testSecret, nil, nil)
		nameplate, secret := uint32(0), testSecret
		text := inviteCode(t, m, InviteOptions{})
		if byCode {
			nameplate, secret, _ = ParseCode(text)
		}
		victim, left := channels(b.Self(), evil.Self())
		right, listener := channels(evil.Self(), m.Self())
		ended := heard(m, listener)
		go func() { io.Copy(right, left); right.Close() }()
		go func() { io.Copy(left, right); left.Close() }()
		x := &pact{m: b, c: victim, start: &protocol.PairStart{Nameplate: nameplate}}
		_, err := x.dialer(secret)
		if !refusedAs(err, protocol.Denial_WRONG_SECRET) {
			t.Errorf("by code %v: the dialling side: %v", byCode, err)
		}
		victim.Close()
		if err := <-ended; err == nil || errors.Is(err, errJoined) {
			t.Errorf("by code %v: the listening side: %v", byCode, err)
		}
		if s, _ := m.CodeState(text); byCode && (s.Wrong != 1 || len(s.Joined) != 0) {
			t.Errorf("%+v", s)
		}
		if len(m.Members()) != 0 || b.Mesh() == m.Mesh() {
			t.Error("somebody became a member")
		}
	}
}

// TestPairEvilInsider: who knows the secret gets, and gives, what it gives and no more.
func TestPairEvilInsider(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(evil *Membership, b *protocol.CertificateBody){
		"owner": func(evil *Membership, b *protocol.CertificateBody) { b.Owner = evil.own.body.Owner },
		"admin": func(_ *Membership, b *protocol.CertificateBody) {
			b.Capabilities = append(b.Capabilities, protocol.Capability_RELAY)
		},
		"command": func(_ *Membership, b *protocol.CertificateBody) { b.Runtimes = append(b.Runtimes, Command) },
		"circle":  func(_ *Membership, b *protocol.CertificateBody) { b.Circle = nil },
		"brief":   func(_ *Membership, b *protocol.CertificateBody) { b.Brief = true },
		"nothing": nil,
	} {
		// The insider dials and is not alone, so that the other is to enter its mesh.
		m, evil := open(t, "", Options{}), open(t, "", Options{})
		m.OpenToSecret(testSecret, nil, nil)
		us, them := channels(evil.Self(), m.Self())
		ended := heard(m, them)
		x := &pact{m: evil, c: us, start: &protocol.PairStart{}}
		if _, err := x.dialer(testSecret); err != nil {
			t.Fatal(err)
		}
		writeMsg(us, &protocol.AdmissionDone{Standing: &protocol.PairStanding{Chain: evil.Own().chain}})
		reply, err := readReply(us)
		if err != nil || reply.Verdict.GetStep() != protocol.PairStep_GIVE {
			t.Fatal(reply, err)
		}
		evil.mu.Lock()
		if err := evil.foundCircle(nil); err != nil {
			t.Fatal(err)
		}
		good, err := evil.introduce(m.Self(), "x", false, nil)
		if err != nil {
			t.Fatal(err)
		}
		by, _ := evil.issuer()
		body := &protocol.CertificateBody{}
		if err := proto.Unmarshal(good.Certificates[0].Body, body); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(evil, body)
		}
		issued, err := evil.sign(by, body, nil, false)
		evil.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		writeMsg(us, &protocol.AdmissionDone{Gift: &protocol.PairGift{Chain: evil.Own().chain, Issued: issued, Circle: evil.Own().body.Circle}})
		reply, err = readReply(us)
		if (change == nil) != (err == nil && reply.Denial == protocol.Denial_ADMITTED) || (m.Mesh() == evil.Mesh()) != (change == nil) {
			t.Errorf("%s: %v, %v", name, reply, err)
		}
		writeMsg(us, &protocol.AdmissionDone{})
		<-ended
	}
	// Standings that are not.
	for name, standing := range map[string]*protocol.PairStanding{
		"none": nil, "no chain": {Alone: true}, "another's": {Alone: true, Chain: open(t, "", Options{}).Own().chain},
	} {
		m, evil := open(t, "", Options{}), open(t, "", Options{})
		m.OpenToSecret(testSecret, nil, nil)
		us, them := channels(evil.Self(), m.Self())
		ended := heard(m, them)
		x := &pact{m: evil, c: us, start: &protocol.PairStart{}}
		if _, err := x.dialer(testSecret); err != nil {
			t.Fatal(err)
		}
		writeMsg(us, &protocol.AdmissionDone{Standing: standing})
		if reply, err := readReply(us); err == nil {
			t.Errorf("%s is answered by %v", name, reply)
		}
		if err := <-ended; err == nil || errors.Is(err, errJoined) || m.Own().Circle != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCircleCertificates: what members of a circle may sign, and nothing else.
func TestCircleCertificates(t *testing.T) {
	t.Parallel()
	a, ha := shared(t, "", Options{})
	a.mu.Lock()
	a.met["somebody"] = &Cert{Peer: "somebody"}
	a.mu.Unlock()
	b := open(t, "", Options{})
	pair(t, b, ha)
	key, err := keyOf(open(t, "", Options{}).Self())
	if err != nil {
		t.Fatal(err)
	}
	good := func() *protocol.CertificateBody {
		return &protocol.CertificateBody{
			Key: key, Name: "x", Owner: key, Circle: b.Own().body.Circle, NotAfterUnixS: time.Now().Add(time.Hour).Unix(),
			Capabilities: slices.Clone(circleCapabilities), Runtimes: slices.Clone(circleRuntimes),
		}
	}
	for name, change := range map[string]func(*protocol.CertificateBody){
		"nothing":        func(*protocol.CertificateBody) {},
		"no circle":      func(c *protocol.CertificateBody) { c.Circle = nil },
		"another circle": func(c *protocol.CertificateBody) { c.Circle = make([]byte, 16) },
		"short circle":   func(c *protocol.CertificateBody) { c.Circle = c.Circle[:15] },
		"its owner":      func(c *protocol.CertificateBody) { c.Owner = b.Own().body.Owner },
		"root's owner":   func(c *protocol.CertificateBody) { c.Owner = a.Own().body.Owner },
		"relay":          func(c *protocol.CertificateBody) { c.Capabilities = append(c.Capabilities, protocol.Capability_RELAY) },
		"admin":          func(c *protocol.CertificateBody) { c.Capabilities = append(c.Capabilities, protocol.Capability_ADMIN) },
		"commands":       func(c *protocol.CertificateBody) { c.Runtimes = append(c.Runtimes, Command) },
	} {
		body := good()
		change(body)
		chain, err := issue(b.rawKey, a.Mesh(), body, b.Own().chain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify(chain, a.Mesh(), time.Now()); (err == nil) != (name == "nothing") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A throw-away member admits nobody, and neither does one without a circle.
	p := open(t, "", Options{Volatile: true})
	pair(t, p, ha)
	c := open(t, "", Options{})
	join(t, c, invite(t, a, ha, InviteOptions{}))
	for _, m := range []*Membership{p, c} {
		body := good()
		body.Circle = m.Own().body.Circle
		chain, err := issue(m.rawKey, a.Mesh(), body, m.Own().chain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify(chain, a.Mesh(), time.Now()); err == nil || !strings.Contains(err.Error(), "no admin") {
			t.Errorf("%v", err)
		}
	}
}

// FuzzPair: whatever a stranger says to one who has a secret and a code open, and whatever one says who is dialled, nothing comes of it.
func FuzzPair(f *testing.F) {
	m, x := open(f, "", Options{Volatile: true}), open(f, "", Options{Volatile: true})
	m.OpenToSecret(testSecret, nil, nil)
	text, err := m.InviteCode(InviteOptions{})
	if err != nil {
		f.Fatal(err)
	}
	nameplate, _, _ := ParseCode(text)
	mesh := x.Mesh()
	for _, n := range []uint32{0, nameplate} {
		p := &pact{m: x, c: channel{nil, x.Self(), m.Self()}, isDialer: true, start: &protocol.PairStart{Nameplate: n, Mesh: mesh[:]}}
		share, _, err := cpace.Start("zebra-zenith", p.context())
		if err != nil {
			f.Fatal(err)
		}
		p.start.Share = share
		var b bytes.Buffer
		writeMsg(&b, &protocol.Admission{Pair: p.start})
		writeMsg(&b, &protocol.AdmissionDone{Pair: &protocol.PairProof{Proof: make([]byte, 32), Name: "x"}})
		writeMsg(&b, &protocol.AdmissionDone{Standing: &protocol.PairStanding{Alone: true, Chain: x.Own().chain}})
		f.Add(b.Bytes())
		b.Reset()
		writeMsg(&b, &protocol.AdmissionReply{Pair: &protocol.PairAnswer{Mesh: mesh[:], Share: share[16:]}})
		writeMsg(&b, &protocol.AdmissionReply{Proof: &protocol.PairProof{Proof: make([]byte, 32)}})
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m.mu.Lock()
		m.tries = newTries()
		m.st.Codes[0].Wrong = 0
		m.mu.Unlock()
		c := channel{&script{r: bytes.NewReader(b)}, m.Self(), x.Self()}
		a := &protocol.Admission{}
		if readMsg(c, a, protocol.MaxAdmission) == nil && a.Pair != nil {
			if err := m.pairIn(c, a.Pair); err == nil || errors.Is(err, errJoined) {
				t.Errorf("somebody joined: %v", err)
			}
		}
		p := &pact{m: x, c: channel{&script{r: bytes.NewReader(b)}, x.Self(), m.Self()}, start: &protocol.PairStart{}}
		if r, err := p.dialer(testSecret); err == nil {
			t.Errorf("taken for one who knows the secret: %v", r)
		}
		if len(m.Members()) != 0 || m.Own().Circle != "" {
			t.Error("something has changed")
		}
	})
}

// script is a connection on which the other side has said all that it says.
type script struct {
	net.Conn
	r io.Reader
}

func (s *script) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s *script) Write(b []byte) (int, error) { return len(b), nil }

// FuzzCode: any text is a code of known words, or one line of error.
func FuzzCode(f *testing.F) {
	for _, s := range []string{"7-kitchen-sunset", "7 kitchn SUNST", "", "0-a-b", "99-\xff-\xff", strings.Repeat("1-", 80)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, words, err := ParseCode(s)
		if err != nil {
			if !errors.Is(err, ErrCode) || strings.ContainsAny(err.Error(), "\n\r\x1b") {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if n2, words2, err := ParseCode(formatCode(n, words)); n2 != n || words2 != words || err != nil {
			t.Errorf("%q reads as %d %q", s, n, words)
		}
		CompleteCode(s)
	})
}
