package members

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

// Two that have proven to know one shared secret (pair.go) find out who joins whom. Members that it admitted are a circle.

// settle is the dialling side's part after both have proven the secret.
func (x *pact) settle(p *Paired, o PairOptions) error {
	m := x.m
	m.pairing.courting.Lock()
	defer m.pairing.courting.Unlock()
	own := m.Own()
	if own.Mesh != MeshID(x.start.Mesh) {
		return errMoved
	}
	m.mu.RLock()
	standing := &protocol.PairStanding{
		Chain: own.chain, Alone: m.alone() || (!m.sync && o.Free != nil && o.Free() && time.Since(m.pairing.entered) > settleTime), Brief: !m.sync, Founder: len(m.st.Root) > 0, Loose: m.loose(), Sent: o.Sent,
	}
	m.mu.RUnlock()
	if err := writeMsg(x.c, &protocol.AdmissionDone{Standing: standing}); err != nil {
		return err
	}
	reply, err := x.read()
	if err != nil {
		return err
	}
	v := reply.Verdict
	if v == nil {
		return errPact
	}
	switch v.Step {
	case protocol.PairStep_DONE:
		if by, _, err := m.judge(v.Chain, x.c.RemotePeer()); err == nil {
			return m.learn(by)
		}
		return nil
	case protocol.PairStep_ASK:
		p.Ask = multiaddrs(v.Others)
		return nil
	case protocol.PairStep_ENTER:
		if err := m.enterBy(x.c, x, v.Chain, v.Issued, p.Addr); err != nil {
			sayDone(x.c, err, nil)
			return err
		}
		return x.finish(&protocol.AdmissionDone{Gift: &protocol.PairGift{}})
	case protocol.PairStep_TAKE:
		if err := m.takeCircle(v.Circle, v.Chain, x.c.RemotePeer()); err != nil {
			sayDone(x.c, err, nil)
			return err
		}
		return x.finish(&protocol.AdmissionDone{Gift: &protocol.PairGift{Chain: m.Own().chain}})
	case protocol.PairStep_GIVE:
		gift, err := x.gift(v.Chain)
		if err != nil {
			sayDone(x.c, err, nil)
			return err
		}
		if err := x.finish(&protocol.AdmissionDone{Gift: gift}); err != nil {
			return err
		}
		if p.Mesh = m.Mesh(); gift.Issued != nil {
			_, err = m.Add(gift.Issued)
			m.mu.Lock()
			m.changed()
			m.mu.Unlock()
		}
		p.Sent = len(gift.Others) > 0
		return err
	}
	return errPact
}

// finish says the dialling side's last word, and hears whether it was taken.
func (x *pact) finish(last *protocol.AdmissionDone) error {
	if err := writeMsg(x.c, last); err != nil {
		return err
	}
	_, err := x.read()
	return err
}

// answerStanding is the listening side's part after both have proven the secret.
func (x *pact) answerStanding() error {
	m := x.m
	done := &protocol.AdmissionDone{}
	if err := readMsg(x.c, done, protocol.MaxAdmission); err != nil {
		if errors.Is(err, io.EOF) {
			return errJoined // it has moved meanwhile, and begins anew
		}
		return fmt.Errorf("read where it stands: %w", err)
	}
	s := done.Standing
	if s == nil {
		return errPact
	}
	m.mu.RLock()
	now := m.now()
	m.mu.RUnlock()
	their, err := verify(s.Chain, MeshID(x.start.Mesh), now)
	if their == nil || their.Peer != x.c.RemotePeer() {
		return fmt.Errorf("its own certificate: %w", err)
	}
	if !m.pairing.courting.TryLock() {
		return x.deny(protocol.Denial_BUSY, "it is pairing with another node just now: try again")
	}
	defer m.pairing.courting.Unlock()
	if m.Mesh() != MeshID(x.answer.Mesh) {
		return x.deny(protocol.Denial_BUSY, "it went to another mesh just now: try again")
	}
	v, err := x.decide(s, their)
	if err != nil {
		return x.deny(protocol.Denial_CANNOT_PAIR, plain(err.Error()))
	}
	if err := writeMsg(x.c, &protocol.AdmissionReply{Verdict: v}); err != nil {
		return err
	}
	if v.Step == protocol.PairStep_DONE || v.Step == protocol.PairStep_ASK {
		return errJoined
	}
	done.Reset()
	if err := readMsg(x.c, done, protocol.MaxAdmission); err != nil {
		return fmt.Errorf("read whether it agrees: %w", err)
	}
	if done.Refused != "" || done.Gift == nil {
		return fmt.Errorf("pairing refused by the other side: %s", plain(done.Refused))
	}
	if err := x.take(v, done.Gift); err != nil {
		return x.deny(protocol.Denial_CANNOT_PAIR, plain(err.Error()))
	}
	if err := writeMsg(x.c, &protocol.AdmissionReply{Verdict: &protocol.PairVerdict{Step: protocol.PairStep_DONE}}); err != nil {
		return err
	}
	return errJoined
}

// decide says what the dialling side is to do. The caller holds courting.
func (x *pact) decide(s *protocol.PairStanding, their *Cert) (*protocol.PairVerdict, error) {
	m := x.m
	m.mu.Lock()
	defer m.mu.Unlock()
	give := &protocol.PairVerdict{Step: protocol.PairStep_GIVE, Chain: m.own.chain}
	if their.Mesh == m.own.Mesh && !m.renewable(their) {
		return m.host(x.c.RemotePeer(), x.other, s.Brief, nil) // by the secret, with what that gives
	}
	if their.Mesh == m.own.Mesh {
		good := m.now().Before(their.NotAfter)
		switch {
		case m.own.Circle != "" && m.own.Circle == their.Circle && good:
			return &protocol.PairVerdict{Step: protocol.PairStep_DONE, Chain: m.own.chain}, nil
		case their.Circle != "" && m.own.Circle == "":
			return give, nil
		case m.own.Circle == "" && len(m.st.Root) == 0 && s.Founder:
			return give, nil
		case their.Circle != "" && m.own.Circle != their.Circle && !s.Founder:
			return nil, errors.New("both are in one mesh, but were admitted by different secrets: let one leave it (meshnode leave)")
		case s.Founder:
			if m.own.Circle == "" { // this node has the root key as well
				if err := m.foundCircle(their.body.Circle); err != nil {
					return nil, err
				}
			}
			return &protocol.PairVerdict{Step: protocol.PairStep_TAKE, Circle: m.own.body.Circle, Chain: m.own.chain}, nil
		}
		return m.host(x.c.RemotePeer(), x.other, s.Brief, their)
	}
	alone, loose := m.alone(), m.loose()
	var enter bool // the other comes to this one's mesh
	switch {
	case s.Alone != alone:
		enter = s.Alone
	case alone:
		enter = s.Brief || s.Sent || m.self < x.c.RemotePeer()
	case s.Loose && loose:
		enter = bytes.Compare(m.st.Mesh, x.start.Mesh) < 0
	case s.Loose != loose:
		enter = s.Loose
	default:
		return nil, fmt.Errorf("the secret is right, but both nodes are in meshes with others (%s and %s): let one leave its mesh (meshnode leave)", MeshID(m.st.Mesh), their.Mesh)
	}
	if !enter {
		return give, nil
	}
	return m.host(x.c.RemotePeer(), x.other, s.Brief, nil)
}

// movable reports whether the node may go to another mesh without a person's word. The caller holds mu.
func (m *Membership) movable() bool { return m.alone() || m.loose() || !m.sync }

// loose reports whether this node's mesh is nothing but a circle: its first node, and members who were admitted by the secret. When
// many nodes with one secret start at once, several such meshes begin; those who are in one go to the other as they meet, so that
// one is left: that of the lowest ID. The caller holds mu.
func (m *Membership) loose() bool {
	circle := m.own.Circle
	if circle == "" || !m.sync {
		return false
	}
	founders := 0
	for _, c := range append(slices.Collect(maps.Values(m.met)), m.own) {
		if !c.bySecret(circle) {
			return false
		}
		if c.Can(protocol.Capability_ADMIN) {
			founders++
		}
	}
	if founders > 1 || (len(m.st.Root) == 0 && !m.st.BySecret) {
		return false
	}
	for _, t := range m.st.Tickets {
		if len(t.Bound) > 0 {
			return false
		}
	}
	return !slices.ContainsFunc(m.st.Codes, func(c *code) bool { return len(c.Bound) > 0 })
}

// bySecret reports whether the certificate is of a member admitted by the secret of that circle, or of the circle's first node.
func (c *Cert) bySecret(circle string) bool {
	if c.Brief {
		return true
	}
	if c.Can(protocol.Capability_ADMIN) {
		return c.Circle == circle && len(c.chain.Certificates) == 1 && bytes.Equal(c.body.Owner, c.body.Issuer)
	}
	return c.Circle == circle && bytes.Equal(c.body.Owner, c.body.Key)
}

// host admits a node to this one's mesh and circle, or names who can. was is its certificate in this mesh, if it has one that is
// renewable: what that gives, it keeps. The caller holds mu.
func (m *Membership) host(p peer.ID, name string, brief bool, was *Cert) (*protocol.PairVerdict, error) {
	issued, err := m.introduce(p, name, brief, was)
	if err != nil {
		if others := m.introducers(p); len(others) > 0 {
			return &protocol.PairVerdict{Step: protocol.PairStep_ASK, Others: others}, nil
		}
		return nil, err
	}
	return &protocol.PairVerdict{Step: protocol.PairStep_ENTER, Chain: m.own.chain, Issued: issued}, nil
}

// introduce signs a certificate of this node's circle, which it begins if there is none and the mesh is this node's. The caller
// holds mu.
func (m *Membership) introduce(p peer.ID, name string, brief bool, was *Cert) (*protocol.Chain, error) {
	key, err := keyOf(p)
	if err != nil {
		return nil, err
	}
	if m.own.Circle == "" {
		if len(m.st.Root) == 0 {
			return nil, errors.New("the secret is right, but only the machine that made the mesh can begin with it: start that one with the secret, too")
		}
		if err := m.foundCircle(nil); err != nil {
			return nil, err
		}
	}
	by, err := m.issuer()
	if err != nil {
		if m.void != nil || m.now().After(m.own.NotAfter) {
			return nil, errors.New("the secret is right, but this node's own certificate has ended")
		}
		if m.own.Brief || len(m.own.chain.Certificates) >= maxChain {
			return nil, errors.New("the secret is right, but this node may admit nobody, and knows nobody who may")
		}
		by = signer{key: m.rawKey, chain: m.own.chain}
	}
	body := &protocol.CertificateBody{
		Key: key, Name: name, Owner: key, Capabilities: slices.Clone(circleCapabilities), Runtimes: slices.Clone(circleRuntimes), Brief: brief,
	}
	if brief {
		body.Capabilities = []protocol.Capability{protocol.Capability_SUBMIT}
	}
	if was != nil && !was.Brief {
		// A member keeps what it has.
		body = proto.Clone(was.body).(*protocol.CertificateBody)
		for _, r := range circleRuntimes {
			if !slices.Contains(body.Runtimes, r) {
				body.Runtimes = append(body.Runtimes, r)
			}
		}
	}
	body.Circle = m.own.body.Circle
	if was == nil {
		was = m.metKey(key)
	}
	return m.sign(by, body, was, false)
}

// foundCircle begins a circle, or takes up one that the mesh has, where the mesh's root key is. The caller holds mu.
func (m *Membership) foundCircle(circle []byte) error {
	old := m.st.Circle
	if m.st.Circle = circle; len(circle) == 0 {
		m.st.Circle = make([]byte, circleSize)
		rand.Read(m.st.Circle)
	}
	if err := m.certifySelf(); err != nil {
		m.st.Circle = old
		return err
	}
	m.changed()
	return nil
}

// takeCircle takes up the mesh's circle from a member who has it.
func (m *Membership) takeCircle(circle []byte, chain *protocol.Chain, from peer.ID) error {
	by, _, err := m.judge(chain, from)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.st.Root) == 0 || len(circle) != circleSize || !bytes.Equal(circle, by.body.Circle) {
		return errPact
	}
	m.add(by, true)
	return m.foundCircle(circle)
}

// ForgetBrief drops what is known of a throw-away node that is gone. If it comes back it is known again.
func (m *Membership) ForgetBrief(p peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.met[p]; c != nil && c.Brief {
		delete(m.met, p)
		m.changed()
	}
}

// introducers are members of the circle who can admit others, where they are known to be. The caller holds mu.
func (m *Membership) introducers(not peer.ID) [][]byte {
	if m.pairing.where == nil {
		return nil
	}
	var found []*Cert
	for _, c := range m.met {
		if c.Peer != not && c.Circle != "" && c.Circle == m.own.Circle && !c.Brief && len(c.chain.Certificates) < maxChain && m.now().Before(c.NotAfter) {
			found = append(found, c)
		}
	}
	slices.SortFunc(found, func(a, b *Cert) int {
		if d := len(a.chain.Certificates) - len(b.chain.Certificates); d != 0 {
			return d
		}
		return strings.Compare(string(a.Peer), string(b.Peer))
	})
	var out [][]byte
	for _, c := range found {
		for _, a := range m.pairing.where(c.Peer) {
			if len(out) < protocol.MaxMemberAddresses && Dialable(a) {
				out = append(out, a.Encapsulate(ma.StringCast("/p2p/"+c.Peer.String())).Bytes())
			}
		}
	}
	return out
}

// gift is what the dialling side gives when it is the one to admit: a certificate, or who can give one.
func (x *pact) gift(chain *protocol.Chain) (*protocol.PairGift, error) {
	m, mesh := x.m, MeshID(x.answer.Mesh)
	m.mu.Lock()
	defer m.mu.Unlock()
	their, err := verify(chain, mesh, m.now())
	if their == nil || their.Peer != x.c.RemotePeer() {
		return nil, fmt.Errorf("the other side's own certificate: %w", err)
	}
	if mesh != m.own.Mesh || !m.renewable(their) {
		their = nil
	}
	v, err := m.host(x.c.RemotePeer(), x.other, false, their)
	if err != nil {
		if their == nil || m.own.Circle == "" {
			return nil, err
		}
		v = &protocol.PairVerdict{} // it may hold the root key, and needs no more than the circle
	}
	return &protocol.PairGift{Chain: m.own.chain, Issued: v.Issued, Circle: m.own.body.Circle, Others: v.Others}, nil
}

// take ends the listening side's part of what it decided.
func (x *pact) take(v *protocol.PairVerdict, g *protocol.PairGift) error {
	m := x.m
	switch v.Step {
	case protocol.PairStep_ENTER: // it has entered
		if _, err := m.Add(v.Issued); err != nil {
			return err
		}
		m.mu.Lock()
		m.changed()
		m.mu.Unlock()
		m.log.Info("a new member was admitted by the shared secret", "peer", x.c.RemotePeer(), "name", x.other)
		return nil
	case protocol.PairStep_TAKE:
		by, _, err := m.judge(g.Chain, x.c.RemotePeer())
		if err != nil {
			return err
		}
		return m.learn(by)
	}
	if len(g.Others) > 0 {
		m.mu.RLock()
		ask, secret := m.pairing.ask, m.pairing.secret
		m.mu.RUnlock()
		if infos := multiaddrs(g.Others); ask != nil && len(infos) > 0 {
			ask(secret, infos)
		}
		return nil
	}
	m.mu.RLock()
	founder := len(m.st.Root) > 0 && bytes.Equal(m.st.Mesh, x.start.Mesh)
	m.mu.RUnlock()
	switch {
	case founder:
		return m.takeCircle(g.Circle, g.Chain, x.c.RemotePeer())
	case g.Issued == nil:
		return errors.New("the other side may not give a certificate, and knows nobody who may")
	}
	if err := m.enterBy(x.c, x, g.Chain, g.Issued, nil); err != nil {
		return err
	}
	m.log.Info("this node was admitted by the shared secret", "by", x.c.RemotePeer(), "name", x.other)
	return nil
}
