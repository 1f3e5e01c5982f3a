package members

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"filippo.io/cpace"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/protocol"
)

const (
	// MinSecret is how many characters a shared secret has where others than this machine could try it: the wrong tries of a
	// patient neighbour, 5 a minute for a year, are 2²² at most, and people choose badly.
	MinSecret = 16
	// MaxSecret bounds a secret in bytes.
	MaxSecret = 1024

	circleSize = 16
	// briefLifetime of a throw-away node's certificate: its program may run for days, and is admitted again by its secret.
	briefLifetime = 7 * 24 * time.Hour

	// busyTries while the other side pairs with somebody else, which takes some milliseconds.
	busyTries = 8
	// settleTime after a throw-away node was admitted to a mesh and before it would leave that for another: it is not connected yet.
	settleTime = time.Second
	busyPause  = 30 * time.Millisecond
)

// What a shared secret gives, and no more.
var (
	circleCapabilities = []protocol.Capability{protocol.Capability_SUBMIT, protocol.Capability_WORK}
	circleRuntimes     = []string{Wasm, Python}
)

// Errors of Pair and JoinCode that a caller can act on; what the other side refuses is a *Refused.
var (
	// ErrWrongSecret: the other side does not know the same code or secret.
	ErrWrongSecret = errors.New("the other side does not know the same secret")
	// ErrNoAnswer: nobody was reached.
	ErrNoAnswer = errors.New("it cannot be reached")
	// ErrItself: at that place is this node.
	ErrItself = errors.New("that is this node itself")
	// ErrShortSecret: a secret of less than MinSecret characters, and another machine.
	ErrShortSecret = fmt.Errorf("a secret that other machines can try has at least %d characters", MinSecret)
)

// CheckSecret says what is wrong with a shared secret; local says that only this machine can reach those who know it.
func CheckSecret(secret string, local bool) error {
	switch {
	case len(secret) > MaxSecret:
		return fmt.Errorf("the secret is too long: at most %d bytes", MaxSecret)
	case !utf8.ValidString(secret):
		return errors.New("the secret is not text in UTF-8")
	case strings.TrimSpace(secret) == "":
		return errors.New("the secret is empty")
	case !local && utf8.RuneCountInString(secret) < MinSecret:
		return ErrShortSecret
	}
	return nil
}

// pairing is what a Membership knows of shared secrets.
type pairing struct {
	secret string                                 // Membership.mu guards it, and what follows
	where  func(peer.ID) []ma.Multiaddr           // may be nil
	ask    func(secret string, _ []peer.AddrInfo) // may be nil

	entered time.Time // when the secret let this node into its mesh

	// courting is held while two nodes that know the secret agree on who joins whom: a node that lets one in while it moves to
	// another mesh itself would leave the first behind.
	courting sync.Mutex
}

// OpenToSecret has this node admit others that know the secret, until it is called with "". where tells the addresses of members,
// and ask is called with those whom this node is to ask in its turn (Pair); both may be nil.
func (m *Membership) OpenToSecret(secret string, where func(peer.ID) []ma.Multiaddr, ask func(secret string, at []peer.AddrInfo)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pairing.secret, m.pairing.where, m.pairing.ask = secret, where, ask
	m.changed()
}

// Secret reports whether a shared secret is open here.
func (m *Membership) Secret() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pairing.secret != ""
}

// PairOptions of Pair.
type PairOptions struct {
	// Free says of a throw-away node whether it may leave the mesh that it was admitted to: nobody is there any more. nil: no.
	Free func() bool
	// Sent says that a member of the other's mesh told this node to ask there (Paired.Ask, OpenToSecret): it is to join that mesh.
	Sent bool
}

// Paired is what came of a pairing.
type Paired struct {
	Peer peer.ID
	Name string // what the other calls itself
	Addr ma.Multiaddr
	Mesh MeshID
	// Ask are members of the other's mesh who can admit this node, which the other cannot: nothing has changed yet.
	Ask []peer.AddrInfo
	// Sent says that the other was told whom to ask: it is no member of this node's mesh yet, and will be.
	Sent bool
}

// Pair finds out whether the node at a place knows the same secret, and if so makes the two members of one mesh, in the same
// circle: whichever is alone joins the other's; of two that are alone the one with the higher peer ID.
func (m *Membership) Pair(ctx context.Context, at Place, secret string, o PairOptions) (*Paired, error) {
	for try := 1; ; try++ {
		p, err := m.pairBy(ctx, at, 0, secret, o)
		var refused *Refused
		again := errors.Is(err, errMoved) || (errors.As(err, &refused) && refused.Denial == protocol.Denial_BUSY)
		if try == busyTries || !again {
			return p, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(busyPause/2 + mathrand.N(time.Duration(try)*busyPause)):
		}
	}
}

// pairBy dials and pairs by a code or, if nameplate is 0, a shared secret.
func (m *Membership) pairBy(ctx context.Context, at Place, nameplate uint32, secret string, o PairOptions) (*Paired, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*admissionTimeout)
	defer cancel()
	c, err := m.dialHost(ctx, at.Network, at.Host, at.Peer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", at.Host, ErrNoAnswer, err)
	}
	defer c.Close()
	limitTime(ctx, c)
	addr, err := manet.FromNetAddr(c.RemoteAddr())
	if err != nil {
		return nil, err
	}
	if nameplate == 0 {
		if err := CheckSecret(secret, addrOf(c.RemoteAddr()).IsLoopback()); err != nil {
			return nil, err
		}
	}
	if c.RemotePeer() == m.self {
		return nil, ErrItself
	}
	x := &pact{m: m, c: c, start: &protocol.PairStart{Nameplate: nameplate}}
	reply, err := x.dialer(secret)
	if err != nil {
		return nil, err
	}
	p := &Paired{Peer: c.RemotePeer(), Name: x.other, Addr: addr, Mesh: MeshID(x.answer.Mesh)}
	if nameplate > 0 {
		if err := m.enterBy(c, x, reply.Chain, reply.Issued, addr); err != nil {
			sayDone(c, err, nil)
			return nil, err
		}
		return p, writeMsg(c, &protocol.AdmissionDone{})
	}
	return p, x.settle(p, o)
}

// enterBy makes this node a member of the mesh of the other, who has proven the code or secret.
func (m *Membership) enterBy(c sec.SecureConn, x *pact, chain, issued *protocol.Chain, addr ma.Multiaddr) error {
	mesh := x.start.Mesh
	if x.isDialer {
		mesh = x.answer.Mesh
	}
	var addrs []ma.Multiaddr
	if addr != nil {
		addrs = append(addrs, addr)
	}
	old := m.Mesh()
	if x.start.Nameplate == 0 {
		if err := m.checkGiven(issued, MeshID(mesh)); err != nil {
			return err
		}
	}
	if err := m.enter(&protocol.Ticket{Mesh: mesh}, &protocol.AdmissionReply{Chain: chain, Issued: issued}, c.RemotePeer(), addrs); err != nil {
		return err
	}
	if x.start.Nameplate > 0 || old == MeshID(mesh) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.st.BySecret = true
	m.pairing.entered = time.Now()
	return m.saveState()
}

// checkGiven sees to it that a certificate that a secret got is for no more than a secret gives: who knows it must not make this
// node a machine of theirs, on which they could run commands.
func (m *Membership) checkGiven(chain *protocol.Chain, mesh MeshID) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c, err := verify(chain, mesh, m.now())
	if err != nil {
		return err
	}
	own := &protocol.CertificateBody{Owner: m.rawKey.Public().(ed25519.PublicKey)}
	if m.own.Mesh == mesh {
		own = m.own.body
	}
	within := func(what bool) {
		if !what && err == nil {
			err = fmt.Errorf("%w: it is not what a shared secret gives", ErrCertificate)
		}
	}
	within(len(c.body.Circle) == circleSize && bytes.Equal(c.body.Owner, own.Owner) && c.Brief == !m.sync)
	for _, k := range c.Capabilities {
		within(slices.Contains(circleCapabilities, k) || slices.Contains(own.Capabilities, k))
	}
	for _, r := range c.Runtimes {
		within(slices.Contains(circleRuntimes, r) || slices.Contains(own.Runtimes, r))
	}
	return err
}

// pact is one exchange of two sides that may know the same code or secret.
//
// CPace makes a key of what both know, their two peer IDs, which TLS has proven, and the dialling side's mesh. Somebody in the
// middle of two TLS channels has other IDs, so the keys differ; so they do if anything that was said is another for the other side,
// since each proof is over all of it. The dialling side proves first: so the listening side can count wrong tries, and one that
// breaks off before its proof has learnt nothing that it could test a guess with.
type pact struct {
	m        *Membership
	c        sec.SecureConn
	isDialer bool
	start    *protocol.PairStart
	answer   *protocol.PairAnswer
	key      []byte
	other    string // what the other calls itself
}

// errBrokeOff says that the other side had this side's proof, with which it could test one guess, and gave none.
var errBrokeOff = errors.New("the other side broke off when it was to show that it knows the same")

var errMoved = errors.New("this node went to another mesh just now")

var errPact = fmt.Errorf("%w: it is no answer to what was said", protocol.ErrProtocol)

// context is what CPace binds besides the secret.
func (x *pact) context() *cpace.ContextInfo {
	a, b := x.m.self, x.c.RemotePeer()
	if !x.isDialer {
		a, b = b, a
	}
	ad := binary.BigEndian.AppendUint32([]byte("meshnode pair 1\x00"), x.start.Nameplate)
	return cpace.NewContextInfo(string(a), string(b), append(ad, x.start.Mesh...))
}

// proof is over the role of who makes it and all that was said before; name is of the side that makes it.
func (x *pact) proof(dialer bool, name string) []byte {
	role := "meshnode pair proof of the listener"
	if dialer {
		role = "meshnode pair proof of the dialling "
	}
	a, b := sha256.Sum256([]byte(x.m.self)), sha256.Sum256([]byte(x.c.RemotePeer()))
	if !x.isDialer {
		a, b = b, a
	}
	said := sha256.Sum256([]byte(name))
	return mac(x.key, []byte(role), binary.BigEndian.AppendUint32(nil, x.start.Nameplate), a[:], b[:],
		x.start.Mesh, x.start.Share, x.answer.Mesh, x.answer.Share, said[:])
}

// dialer says what the dialling side says until both have proven what they know, and returns what the other said last.
func (x *pact) dialer(secret string) (*protocol.AdmissionReply, error) {
	x.isDialer = true
	mesh := x.m.Mesh()
	x.start.Mesh = mesh[:]
	share, state, err := cpace.Start(secret, x.context())
	if err != nil {
		return nil, err
	}
	x.start.Share = share
	if err := writeMsg(x.c, &protocol.Admission{Pair: x.start}); err != nil {
		return nil, err
	}
	reply, err := x.read()
	if err != nil {
		return nil, err
	}
	if x.answer = reply.Pair; len(x.answer.GetMesh()) != 32 {
		return nil, errPact
	}
	if x.key, err = state.Finish(x.answer.Share); err != nil {
		return nil, errPact
	}
	if err := writeMsg(x.c, &protocol.AdmissionDone{Pair: &protocol.PairProof{Proof: x.proof(true, x.m.name), Name: x.m.name}}); err != nil {
		return nil, err
	}
	if reply, err = x.read(); err != nil {
		var refused *Refused
		if !errors.As(err, &refused) {
			err = fmt.Errorf("%w: %w", errBrokeOff, err)
		}
		return nil, err
	}
	if !hmac.Equal(x.proof(false, reply.Proof.GetName()), reply.Proof.GetProof()) {
		return nil, ErrWrongSecret
	}
	x.other = cleanName(reply.Proof.Name)
	return reply, nil
}

// read reads an answer that is no denial.
func (x *pact) read() (*protocol.AdmissionReply, error) {
	reply, err := readReply(x.c)
	if err != nil {
		return nil, fmt.Errorf("read the answer of the other side: %w", err)
	}
	if reply.Denial != protocol.Denial_ADMITTED {
		writeMsg(x.c, &protocol.AdmissionDone{})
		return nil, refusedBy(x.c.RemotePeer(), reply)
	}
	return reply, nil
}

func (x *pact) deny(d protocol.Denial, reason string) error {
	if err := writeMsg(x.c, &protocol.AdmissionReply{Denial: d, Reason: reason}); err != nil {
		return err
	}
	awaitDone(x.c)
	if d == protocol.Denial_BUSY {
		return errJoined // nothing to be told of
	}
	return fmt.Errorf("pairing refused: %s", reason)
}

const (
	wrongCodeReason   = "the code is not right, or is used up, or has ended: ask for a new one (meshnode invite --code)"
	tooManyReason     = "too many wrong tries from your address: wait a minute and try again"
	wrongSecretReason = "the two secrets are not the same"
	noSecretReason    = "it takes no shared secret: start it with one (meshnode up --secret-file FILE, ppserver -s SECRET)"
)

// pairIn is the listening side. It returns errJoined when the exchange came to its end.
func (m *Membership) pairIn(c sec.SecureConn, start *protocol.PairStart) error {
	if len(start.Mesh) != 32 || start.Nameplate > maxNameplate {
		return errPact
	}
	x := &pact{m: m, c: c, start: start}
	from := source(addrOf(c.RemoteAddr())).String()
	m.mu.Lock()
	over := m.tries.over(from, m.wall())
	secret, mesh := m.pairing.secret, m.st.Mesh
	var given *code
	if start.Nameplate > 0 {
		// A number that nobody has is answered as one with other words.
		secret = rand.Text()
		if given = m.codeOf(start.Nameplate); given != nil {
			secret = given.Words
		}
	} else if CheckSecret(secret, addrOf(c.RemoteAddr()).IsLoopback()) != nil {
		secret = ""
	}
	m.mu.Unlock()
	if over {
		return x.deny(protocol.Denial_TOO_MANY_TRIES, tooManyReason)
	}
	if secret == "" {
		return x.deny(protocol.Denial_NO_SECRET, noSecretReason)
	}
	share, key, err := cpace.Exchange(secret, x.context(), start.Share)
	if err != nil {
		return errPact
	}
	x.key, x.answer = key, &protocol.PairAnswer{Mesh: mesh, Share: share}
	if err := writeMsg(c, &protocol.AdmissionReply{Pair: x.answer}); err != nil {
		return err
	}
	done := &protocol.AdmissionDone{}
	if err := readMsg(c, done, protocol.MaxAdmission); err != nil {
		return fmt.Errorf("read its proof: %w", err)
	}
	if done.Pair == nil {
		return errPact
	}
	right := hmac.Equal(x.proof(true, done.Pair.Name), done.Pair.Proof)
	x.other = cleanName(done.Pair.Name)
	if start.Nameplate > 0 {
		return x.joinedByCode(given, right, from)
	}
	m.mu.Lock()
	over = m.tries.over(from, m.wall()) // there may have been others since the exchange began
	if !over && !right {
		m.tries.wrong(from, m.wall())
	}
	m.mu.Unlock()
	if over {
		return x.deny(protocol.Denial_TOO_MANY_TRIES, tooManyReason)
	}
	if !right {
		return x.deny(protocol.Denial_WRONG_SECRET, wrongSecretReason)
	}
	if err := writeMsg(c, &protocol.AdmissionReply{Proof: &protocol.PairProof{Proof: x.proof(false, m.name), Name: m.name}}); err != nil {
		return err
	}
	return x.answerStanding()
}

// joinedByCode ends the listening side of a code.
func (x *pact) joinedByCode(given *code, right bool, from string) error {
	m := x.m
	reply, err := func() (*protocol.AdmissionReply, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		// It may have ended since the exchange began: many may be tried at once, and five count in all.
		if !right || given == nil || given.Wrong >= wrongCodes || !slices.Contains(m.st.Codes, given) {
			m.tries.wrong(from, m.wall())
			if given == nil || given.standing(m.now()) != CodeOpen {
				return nil, ErrWrongSecret
			}
			given.Wrong++
			left := wrongCodes - given.Wrong
			if err := m.saveState(); err != nil {
				given.Wrong = wrongCodes // what is not on disk could be tried again after a restart
				m.log.Error("a wrong try of a code cannot be noted: the code is ended", "err", err)
			}
			m.log.Warn("a wrong code was tried", "nameplate", given.Nameplate, "peer", x.c.RemotePeer(), "addr", x.c.RemoteAddr().String(), "left", left)
			if given.Wrong >= wrongCodes {
				m.log.Warn("a code has ended by wrong tries: somebody else may be guessing; make a new one (meshnode invite --code)", "nameplate", given.Nameplate)
				m.changed()
			}
			return nil, ErrWrongSecret
		}
		return m.redeemCode(given, x.c.RemotePeer(), x.other)
	}()
	if errors.Is(err, ErrWrongSecret) {
		return x.deny(protocol.Denial_WRONG_SECRET, wrongCodeReason)
	}
	if errors.Is(err, ErrRevoked) {
		return x.deny(protocol.Denial_REVOKED, revokedReason)
	}
	if err != nil {
		m.log.Error("cannot answer a join by code", "peer", x.c.RemotePeer(), "err", err)
		return x.deny(protocol.Denial_CANNOT_ISSUE, "the node that gave out this code cannot give a certificate now: look into its log")
	}
	reply.Proof = &protocol.PairProof{Proof: x.proof(false, m.name), Name: m.name}
	if err := writeMsg(x.c, reply); err != nil {
		return err
	}
	awaitDone(x.c)
	if _, err := m.Add(reply.Issued); err != nil {
		return err
	}
	m.mu.Lock()
	m.changed()
	m.mu.Unlock()
	m.log.Info("a new member joined by a code", "peer", x.c.RemotePeer(), "name", x.other)
	return errJoined
}
