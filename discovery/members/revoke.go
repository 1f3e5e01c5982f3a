package members

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

// Limits of revocations. A mesh has at most some hundred members, and a person revokes a few.
const (
	// maxRevocation bytes of one: two chains are 2 KiB, the serials of maxKept certificates 3.2 KiB.
	maxRevocation = 8 << 10
	// maxRevocations and maxRevocationBytes of a set: it is exchanged as a whole when two members meet who hold different
	// ones. The root's have half of it for themselves, so that no stolen admin can fill it.
	maxRevocations     = 2000
	maxRevocationBytes = protocol.MaxRevocationSet - 64<<10
	// maxPerBranch of one machine that the root admitted, and of all below it: what a stolen admin can put upon everybody.
	maxPerBranch = 256

	maxKept            = 400
	maxKeptRevocations = 64
	maxRevokeReason    = 200

	revokeContext   = "meshnode revocation 1\x00"
	revocationsFile = "revocations.json"
)

// ErrRevoked is wrapped by the errors about a certificate that is void.
var ErrRevoked = errors.New("the certificate was revoked")

// revocation is a Revocation that was checked; see checkRevocation. It is immutable.
type revocation struct {
	id     [32]byte // of all that decides: body, signature and the issuer's chain
	hash   uint64   // of the body, as kept_revocations has it
	size   int
	body   *protocol.RevocationBody
	target *Cert  // of the revoked key; nil if the root revoked a key that it knows nothing of
	issuer *Cert  // nil: the root, or the key itself
	depth  int    // of the issuer below the root; 0 too for a key that leaves, which needs nobody's leave
	branch string // the key that the root admitted and that the issuer is, or is below; "" for the root
	msg    *protocol.Revocation
}

func (r *revocation) byRoot() bool { return r.branch == "" }

// leaves reports whether the key itself gave up the certificate.
func (r *revocation) leaves() bool { return bytes.Equal(r.body.Key, r.body.Issuer) }

// revocationID names a revocation with its issuer's chain. Equal bodies with other such chains count as others: which of them are good
// may change. The target decides nothing once it was checked, and any admin can sign more certificates of the same key: were it
// part of the name, one revocation could be told in as many guises as there is room for.
func revocationID(msg *protocol.Revocation) (id [32]byte) {
	h := sha256.New()
	part := func(b []byte) {
		h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(b))))
		h.Write(b)
	}
	part(msg.GetBody())
	part(msg.GetSignature())
	for _, x := range msg.GetIssuer().GetCertificates() {
		part(x.GetBody())
		part(x.GetSignature())
	}
	return [32]byte(h.Sum(nil))
}

// checkRevocation checks what can be checked of a revocation alone: form, signature, and that its issuer may revoke the target
// that it shows. Whether it counts depends on what else was revoked, and whether it voids a certificate on that one's
// own chain: see revocations.
func checkRevocation(msg *protocol.Revocation, mesh MeshID) (*revocation, error) {
	bad := func(format string, args ...any) error { return fmt.Errorf("revocation: "+format, args...) }
	size := proto.Size(msg)
	if size > maxRevocation {
		return nil, bad("%d bytes, at most %d", size, maxRevocation)
	}
	b := &protocol.RevocationBody{}
	if err := proto.Unmarshal(msg.GetBody(), b); err != nil {
		return nil, bad("%v", err)
	}
	switch {
	case len(b.Mesh) != 32 || len(b.Key) != ed25519.PublicKeySize || len(b.Issuer) != ed25519.PublicKeySize:
		return nil, bad("a key of the wrong length")
	case MeshID(b.Mesh) != mesh:
		return nil, ErrOtherMesh
	case meshOf(b.Key) == mesh:
		return nil, bad("nobody revokes the root")
	case len(b.Kept) > maxKept || len(b.KeptRevocations) > maxKeptRevocations:
		return nil, bad("it keeps too much")
	case len(b.Reason) > maxRevokeReason || b.Reason != plain(b.Reason):
		return nil, bad("its reason is too long or not plain text")
	case b.Number == 0 || b.AtUnixS < 0 || b.AtUnixS > lastUnixS:
		return nil, bad("its number or its time makes no sense")
	case !ed25519.Verify(b.Issuer, append([]byte(revokeContext), msg.Body...), msg.Signature):
		return nil, bad("wrong signature")
	}
	sum := sha256.Sum256(msg.Body)
	r := &revocation{id: revocationID(msg), hash: binary.LittleEndian.Uint64(sum[:8]), size: size, body: b, msg: msg}
	var err error
	if msg.Target != nil {
		if r.target, err = verifyAnytime(msg.Target, mesh); err != nil {
			return nil, bad("of whom: %w", err)
		}
		if !bytes.Equal(r.target.body.Key, b.Key) || (b.Serial != 0 && r.target.Serial != b.Serial) {
			return nil, bad("its target is another certificate")
		}
	}
	switch {
	case meshOf(b.Issuer) == mesh:
		if msg.Issuer != nil {
			return nil, bad("the root has no chain")
		}
		return r, nil
	case r.target == nil:
		return nil, bad("it shows no certificate of whom it revokes")
	case r.leaves():
		if b.Serial == 0 || msg.Issuer != nil {
			return nil, bad("who leaves names one certificate")
		}
		r.branch = string(r.target.top())
		return r, nil
	}
	if r.issuer, err = verifyAnytime(msg.Issuer, mesh); err != nil {
		return nil, bad("of its issuer: %w", err)
	}
	if !bytes.Equal(r.issuer.body.Key, b.Issuer) || !r.issuer.Can(protocol.Capability_ADMIN) {
		return nil, bad("its issuer is no admin")
	}
	if !mayRevoke(b.Issuer, r.target.bodies, 0) {
		return nil, bad("its issuer is not above whom it revokes")
	}
	r.depth, r.branch = len(r.issuer.bodies), string(r.issuer.top())
	return r, nil
}

// verifyAnytime is verify without the time.
func verifyAnytime(chain *protocol.Chain, mesh MeshID) (*Cert, error) {
	c, err := verify(chain, mesh, time.Time{})
	if errors.Is(err, ErrExpired) {
		err = nil
	}
	return c, err
}

// top is the key in the chain that the root itself admitted.
func (c *Cert) top() []byte { return c.bodies[len(c.bodies)-1].Key }

// mayRevoke reports whether key, which is not the root, stands above the certificate bodies[i] of a chain: who issued it, and who
// is above that one. Of a renewal it is who stood above the certificate that it renews: signing it for another 90 days puts
// nobody above a sibling.
func mayRevoke(key []byte, bodies []*protocol.CertificateBody, i int) bool {
	for ; i < len(bodies); i++ {
		if bodies[i].Renewed {
			return slices.ContainsFunc(bodies[i].Revokers, func(k []byte) bool { return bytes.Equal(k, key) })
		}
		if i+1 < len(bodies) && bytes.Equal(bodies[i+1].Key, key) {
			return true
		}
	}
	return false
}

// above lists who mayRevoke reports, in order.
func above(bodies []*protocol.CertificateBody) [][]byte {
	var keys [][]byte
	for i, b := range bodies {
		if b.Renewed {
			keys = append(keys, b.Revokers...)
			break
		}
		if i+1 < len(bodies) {
			keys = append(keys, bodies[i+1].Key)
		}
	}
	slices.SortFunc(keys, bytes.Compare)
	return slices.CompactFunc(keys, bytes.Equal)
}

// revocations is a set of checked revocations. It is immutable, and all that it says follows from what is in it: the order
// in which they came decides nothing. (Only at the limits it is first come, first kept; there somebody floods.)
type revocations struct {
	all      []*revocation // by id
	byKey    map[string][]*revocation
	good     map[*revocation]bool // those that count
	branches map[string]int
	bytes    int
	others   int // bytes of what is not the root's
	digest   []byte
}

func newRevocations(all []*revocation) *revocations {
	rs := &revocations{all: all, byKey: map[string][]*revocation{}, good: map[*revocation]bool{}, branches: map[string]int{}}
	slices.SortFunc(rs.all, func(a, b *revocation) int { return bytes.Compare(a.id[:], b.id[:]) })
	h := sha256.New()
	for _, r := range rs.all {
		h.Write(r.id[:])
		rs.byKey[string(r.body.Key)] = append(rs.byKey[string(r.body.Key)], r)
		rs.bytes += r.size
		if !r.byRoot() {
			rs.branches[r.branch]++
			rs.others += r.size
		}
	}
	rs.digest = h.Sum(nil)
	// Those of the root count; those of others unless somebody nearer to the root, whose own are judged by then, voids them.
	for depth := range maxChain + 1 {
		for _, r := range rs.all {
			if r.depth == depth && (r.issuer == nil || rs.voids(r.issuer.bodies, r) == nil) {
				rs.good[r] = true
			}
		}
	}
	return rs
}

func (rs *revocations) has(id [32]byte) bool {
	_, ok := slices.BinarySearchFunc(rs.all, id, func(r *revocation, id [32]byte) int { return bytes.Compare(r.id[:], id[:]) })
	return ok
}

// with is the set with those of more that it has room for; fresh are those that were taken, full says why others were not.
func (rs *revocations) with(more []*revocation) (out *revocations, fresh []*revocation, full error) {
	all, count, size, others, branches := slices.Clone(rs.all), len(rs.all), rs.bytes, rs.others, map[string]int{}
	seen := map[[32]byte]bool{}
	for _, r := range more {
		if rs.has(r.id) || seen[r.id] {
			continue
		}
		seen[r.id] = true
		switch {
		case count >= maxRevocations || size+r.size > maxRevocationBytes:
			full = errors.New("there is no room for more revocations")
			continue
		case r.byRoot():
		case rs.branches[r.branch]+branches[r.branch] >= maxPerBranch || others+r.size > maxRevocationBytes/2 || count >= maxRevocations/2:
			p, _ := peerOf([]byte(r.branch))
			full = fmt.Errorf("too many revocations from the machine %s and those that it admitted: was it stolen? Revoke it where the root key is", p)
			continue
		default:
			branches[r.branch]++
			others += r.size
		}
		count++
		size += r.size
		all, fresh = append(all, r), append(fresh, r)
	}
	if len(fresh) == 0 {
		return rs, nil, full
	}
	return newRevocations(all), fresh, full
}

// voidedBy is a revocation that voids a certificate, or nil.
func (rs *revocations) voidedBy(c *Cert) *revocation { return rs.voids(c.bodies, nil) }

// voids finds the revocation that voids the chain bodies: of its first certificate, or of a key above, which then voids all that was
// issued through it but for what it keeps. If of is not nil, bodies are the chain of its issuer, and the question is whether of
// counts: then only revocations by somebody nearer to the root matter, and not that the issuer has left since.
func (rs *revocations) voids(bodies []*protocol.CertificateBody, of *revocation) *revocation {
	for i, b := range bodies {
		for _, r := range rs.byKey[string(b.Key)] {
			switch {
			case !rs.good[r], of != nil && r.depth >= of.depth:
			case r.body.Serial != 0 && (of != nil || i > 0 || r.body.Serial != b.Serial):
			case !r.byRoot() && !r.leaves() && !mayRevoke(r.body.Issuer, bodies, i):
			case i > 0 && slices.Contains(r.body.Kept, bodies[i-1].Serial):
			case of != nil && slices.Contains(r.body.KeptRevocations, of.hash):
			default:
				return r
			}
		}
	}
	return nil
}

// Departure is a member that was revoked or has left.
type Departure struct {
	Peer   peer.ID
	Name   string // by its last certificate that is known; may be empty
	Left   bool   // of its own will
	By     string // who revoked it: a name, or a peer ID; "the root" if that was the mesh's root key
	At     time.Time
	Reason string // of the person who revoked it; may be empty
}

func (d Departure) String() string {
	on := d.At.UTC().Format(time.DateOnly)
	if d.Left {
		return "left the mesh on " + on
	}
	s := fmt.Sprintf("was revoked on %s by %s", on, d.By)
	if d.Reason != "" {
		s += ": " + d.Reason
	}
	return s
}

func departure(r *revocation) Departure {
	d := Departure{Left: r.leaves(), At: time.Unix(r.body.AtUnixS, 0), Reason: r.body.Reason, By: "the root"}
	d.Peer, _ = peerOf(r.body.Key)
	if r.target != nil {
		d.Name = r.target.Name
	}
	if r.issuer != nil {
		d.By = cmp.Or(r.issuer.Name, r.issuer.Peer.String())
	}
	return d
}

// revokedError is ErrRevoked with what happened.
type revokedError struct{ r *revocation }

func (e revokedError) Error() string {
	d := departure(e.r)
	if d.Left {
		return "this certificate was given up: its node " + d.String()
	}
	return fmt.Sprintf("%v: %s %s", ErrRevoked, cmp.Or(d.Name, d.Peer.String()), d)
}

func (e revokedError) Is(err error) bool { return err == ErrRevoked }

// Departed says of a key that is no member any more what became of it: the newest word, if there are several.
func (m *Membership) Departed(p peer.ID) (Departure, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.met[p] != nil || p == m.self && m.void == nil {
		return Departure{}, false
	}
	key, err := keyOf(p)
	if err != nil {
		return Departure{}, false
	}
	var last *revocation
	for _, r := range m.rev.byKey[string(key)] {
		if m.rev.good[r] && (last == nil || last.leaves() && !r.leaves() || r.leaves() == last.leaves() && r.body.AtUnixS > last.body.AtUnixS) {
			last = r
		}
	}
	if last == nil {
		return Departure{}, false
	}
	return departure(last), true
}

// AllDeparted lists those that were revoked or have left and are no members now, by peer ID.
func (m *Membership) AllDeparted() []Departure {
	m.mu.RLock()
	keys := make([]string, 0, len(m.rev.byKey))
	for k := range m.rev.byKey {
		keys = append(keys, k)
	}
	m.mu.RUnlock()
	var out []Departure
	for _, k := range keys {
		if p, err := peerOf([]byte(k)); err == nil {
			if d, ok := m.Departed(p); ok {
				out = append(out, d)
			}
		}
	}
	slices.SortFunc(out, func(a, b Departure) int { return strings.Compare(string(a.Peer), string(b.Peer)) })
	return out
}

// Revoked reports whether p was revoked: it is no member and, with this key, never will be. One that left of its own will is not.
func (m *Membership) Revoked(p peer.ID) bool {
	d, ok := m.Departed(p)
	return ok && !d.Left
}

// revokedKey is Revoked of a key, as an error. The caller holds mu.
func (m *Membership) revokedKey(key []byte) error {
	if p, err := peerOf(key); err != nil || m.met[p] != nil {
		return err
	}
	for _, r := range m.rev.byKey[string(key)] {
		if m.rev.good[r] && r.body.Serial == 0 {
			return revokedError{r}
		}
	}
	return nil
}

// RevokeOptions of Revoke.
type RevokeOptions struct {
	Reason string // for people, everywhere in the mesh: at most 200 bytes of plain text
	// WithIssued voids all that the revoked machine has admitted and renewed, too, and its revocations. Else what of it this
	// node knows of and finds good stays good; what the machine signs from now on, or signed unseen, is void in any case.
	WithIssued bool
}

// Errors of Revoke.
var (
	ErrNoMember  = errors.New("no member of this mesh is known by that key")
	ErrNotAbove  = errors.New("this node may not revoke it")
	ErrDeparted  = errors.New("it is no member any more")
	ErrOwnRevoke = errors.New("this is the node itself: to take it out of the mesh, leave (meshnode leave)")
)

// Revoke ends p's membership, with all its certificates, present and future, everywhere: at once here, and where the revocation
// is heard of. It cannot be undone: the machine comes back with a new key and a new ticket. Who may: where the root key
// is, any; else whom this node admitted, and who was admitted by those.
//
// When it returns nil the revocation is on disk. keeps are the members that p had admitted or renewed and that stay, by name.
func (m *Membership) Revoke(p peer.ID, o RevokeOptions) (keeps []string, err error) {
	key, err := keyOf(p)
	if err != nil {
		return nil, err
	}
	if p == m.self {
		return nil, ErrOwnRevoke
	}
	if o.Reason = strings.TrimSpace(o.Reason); len(o.Reason) > maxRevokeReason || o.Reason != plain(o.Reason) {
		return nil, fmt.Errorf("a reason is one line of at most %d bytes", maxRevokeReason)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.revokedKey(key); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrDeparted, err)
	}
	c := m.met[p]
	if c == nil {
		return nil, ErrNoMember
	}
	by := signer{key: m.rawKey, chain: m.own.chain}
	switch {
	case len(m.st.Root) > 0:
		by = signer{key: ed25519.NewKeyFromSeed(m.st.Root)}
	case m.void != nil:
		return nil, fmt.Errorf("%w: %v", ErrNotAbove, revokedError{m.void})
	case !m.own.Can(protocol.Capability_ADMIN):
		return nil, fmt.Errorf("%w: its certificate is no admin's", ErrNotAbove)
	case !mayRevoke(m.own.body.Key, c.bodies, 0):
		return nil, fmt.Errorf("%w: only the machine with the mesh's root key can, and %s", ErrNotAbove, m.whoIsAbove(c))
	}
	body := &protocol.RevocationBody{Key: key, Reason: o.Reason}
	if !o.WithIssued {
		keeps = m.keep(body, key)
	}
	msg, err := m.signRevocation(by, body, c.chain)
	if err != nil {
		return nil, err
	}
	return keeps, m.takeOwn(msg)
}

// whoIsAbove names who may revoke c besides the root. The caller holds mu.
func (m *Membership) whoIsAbove(c *Cert) string {
	var names []string
	for _, k := range above(c.bodies) {
		p, err := peerOf(k)
		if err != nil {
			continue
		}
		name := p.String()
		if x := m.met[p]; x != nil {
			name = cmp.Or(x.Name, name)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return "no other: the root itself admitted it"
	}
	return "who admitted it: " + strings.Join(names, ", ")
}

// keep puts into body what stays good although key issued it. The caller holds mu.
func (m *Membership) keep(body *protocol.RevocationBody, key []byte) (names []string) {
	certs := []*Cert{m.own}
	for _, c := range m.met {
		certs = append(certs, c)
	}
	for _, c := range certs {
		for i := 1; i < len(c.bodies); i++ {
			if serial := c.bodies[i-1].Serial; bytes.Equal(c.bodies[i].Key, key) && len(body.Kept) < maxKept {
				if !slices.Contains(body.Kept, serial) {
					body.Kept = append(body.Kept, serial)
				}
				names = append(names, cmp.Or(c.Name, c.Peer.String()))
			}
		}
	}
	for _, r := range m.rev.all {
		if m.rev.good[r] && bytes.Equal(r.body.Issuer, key) && !r.leaves() && len(body.KeptRevocations) < maxKeptRevocations {
			body.KeptRevocations = append(body.KeptRevocations, r.hash)
		}
	}
	slices.Sort(body.Kept)
	slices.Sort(names)
	return names
}

// signRevocation completes and signs body. The caller holds mu.
func (m *Membership) signRevocation(by signer, body *protocol.RevocationBody, target *protocol.Chain) (*protocol.Revocation, error) {
	body.Mesh, body.Issuer, body.AtUnixS = m.st.Mesh, by.key.Public().(ed25519.PublicKey), m.now().Unix()
	for _, r := range m.rev.all {
		if bytes.Equal(r.body.Issuer, body.Issuer) && r.body.Number < math.MaxUint64 {
			body.Number = max(body.Number, r.body.Number)
		}
	}
	body.Number++
	raw, err := proto.Marshal(body)
	if err != nil {
		return nil, err
	}
	msg := &protocol.Revocation{Body: raw, Signature: ed25519.Sign(by.key, append([]byte(revokeContext), raw...)), Target: target}
	if by.chain != nil && !bytes.Equal(body.Key, body.Issuer) {
		msg.Issuer = by.chain
	}
	return msg, nil
}

// takeOwn puts what this node has just signed on disk, and obeys it then. The caller holds mu.
func (m *Membership) takeOwn(msgs ...*protocol.Revocation) error {
	var rs []*revocation
	for _, msg := range msgs {
		r, err := checkRevocation(msg, MeshID(m.st.Mesh))
		if err != nil {
			return err
		}
		rs = append(rs, r)
	}
	set, fresh, err := m.rev.with(rs)
	if err != nil {
		return err
	}
	if err := m.saveRevocations(set); err != nil {
		return err
	}
	m.obey(set, fresh)
	return m.saveMet()
}

// AddRevocations takes up what another member holds. Those that are new are obeyed at once, told to others (see Untold), and
// then written: what a full disk keeps from being written is written by Maintain, or comes again with the next member met. It stops at the
// first that is not good.
func (m *Membership) AddRevocations(msgs ...*protocol.Revocation) error {
	if len(msgs) == 0 {
		return nil
	}
	m.mu.RLock()
	mesh, known := MeshID(m.st.Mesh), m.rev
	m.mu.RUnlock()
	var rs []*revocation
	var err error
	for _, msg := range msgs { // checked outside the lock: each has up to seven signatures
		if known.has(revocationID(msg)) {
			continue
		}
		r, e := checkRevocation(msg, mesh)
		if e != nil {
			err = e
			break
		}
		rs = append(rs, r)
	}
	if len(rs) == 0 {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if mesh != MeshID(m.st.Mesh) {
		return cmp.Or(err, ErrOtherMesh)
	}
	set, fresh, full := m.rev.with(rs)
	if full != nil && m.refused.OK(full.Error()) {
		m.log.Warn("limit hit: revocations", "err", full)
	}
	if len(fresh) == 0 {
		return err
	}
	m.obey(set, fresh)
	return errors.Join(err, m.saveRevocations(set), m.saveMet())
}

// obey makes set what counts. The caller holds mu.
func (m *Membership) obey(set *revocations, fresh []*revocation) {
	m.rev = set
	now := time.Now()
	for _, r := range fresh {
		m.untold = append(m.untold, r.msg)
		m.recent = append(m.recent, recentRevocation{r.msg, now})
		d := departure(r)
		switch {
		case !set.good[r]:
			m.log.Warn("a revocation does not count: who signed it was revoked itself", "peer", d.Peer.String(), "name", d.Name, "by", d.By)
		case d.Left:
			m.log.Info("a member has left the mesh", "peer", d.Peer.String(), "name", d.Name)
		default:
			m.log.Warn("a member was revoked", "peer", d.Peer.String(), "name", d.Name, "by", d.By, "reason", d.Reason)
		}
	}
	for p, c := range m.met {
		if set.voidedBy(c) != nil {
			delete(m.met, p)
		}
	}
	m.judgeOwn()
	m.changed()
}

// judgeOwn looks whether this node's own certificate counts. If not, but an older one does, that one is shown again: a renewal is
// void with the machine that signed it. The caller holds mu, or is Open.
func (m *Membership) judgeOwn() {
	m.void = m.rev.voidedBy(m.own)
	if m.void == nil {
		return
	}
	for _, raw := range m.st.Older {
		chain := &protocol.Chain{}
		if proto.Unmarshal(raw, chain) != nil {
			continue
		}
		c, err := verify(chain, MeshID(m.st.Mesh), m.now())
		if err == nil && c.Peer == m.self && m.rev.voidedBy(c) == nil && m.setOwn(chain) == nil {
			m.void = nil
			m.log.Info("this node's certificate was void with the machine that had renewed it: an older one is used", "until", c.NotAfter)
			return
		}
	}
	if !m.saidVoid {
		m.saidVoid = true
		m.log.Error("this node is no member any more", "reason", departure(m.void).String(), "fix", comeBack)
	}
}

const comeBack = "to be one again it needs a new identity: meshnode leave, then meshnode join with a new ticket"

// recentRevocation is one with the time of the monotonic clock at which it came.
type recentRevocation struct {
	msg *protocol.Revocation
	at  time.Time
}

// Untold returns the revocations that have become known since the last call, for the other members to be told of: by then each
// who has connected meanwhile has either had them in its admission, or has them in Recent.
func (m *Membership) Untold() []*protocol.Revocation {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.untold
	m.untold = nil
	return out
}

// Recent are the revocations that have become known within the time of an admission and some more: a member that has just been
// connected may have been asked before.
func (m *Membership) Recent() []*protocol.Revocation {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recent = slices.DeleteFunc(m.recent, func(r recentRevocation) bool { return time.Since(r.at) > 2*admissionTimeout })
	var out []*protocol.Revocation
	for _, r := range m.recent {
		out = append(out, r.msg)
	}
	return out
}

// held is the set as it is exchanged.
func (m *Membership) held() (set []*protocol.Revocation, digest []byte) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, r := range m.rev.all {
		set = append(set, r.msg)
	}
	return set, m.rev.digest
}

// proofOf is what revokes the owner of a certificate that is refused with err, for it to see itself.
func proofOf(err error) []*protocol.Revocation {
	var revoked revokedError
	if errors.As(err, &revoked) {
		return []*protocol.Revocation{revoked.r.msg}
	}
	return nil
}

// Farewell signs that this node gives up its certificates, for the other members to be told before Leave. It changes nothing
// here. Nil if the node is no member.
func (m *Membership) Farewell() ([]*protocol.Revocation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.void != nil {
		return nil, nil
	}
	chains := []*protocol.Chain{m.own.chain}
	for _, raw := range m.st.Older {
		chain := &protocol.Chain{}
		if proto.Unmarshal(raw, chain) == nil {
			chains = append(chains, chain)
		}
	}
	var out []*protocol.Revocation
	for i, chain := range chains {
		c, err := verifyAnytime(chain, MeshID(m.st.Mesh))
		if err != nil {
			return nil, err
		}
		body := &protocol.RevocationBody{Key: c.body.Key, Serial: c.Serial, Number: uint64(i)}
		msg, err := m.signRevocation(signer{key: m.rawKey, chain: chain}, body, chain)
		if err != nil {
			return nil, err
		}
		out = append(out, msg)
	}
	return out, nil
}

// ---- disk

func (m *Membership) saveRevocations(set *revocations) error {
	raw := make([][]byte, 0, len(set.all))
	for _, r := range set.all {
		b, err := proto.Marshal(r.msg)
		if err != nil {
			return err
		}
		raw = append(raw, b)
	}
	b, err := json.Marshal(raw)
	if err != nil {
		return err
	}
	err = m.writeFile(m.path(revocationsFile), b)
	m.unwritten = err != nil && (m.unwritten || set == m.rev)
	if err != nil {
		return fmt.Errorf("write the revocations: %w", err)
	}
	return nil
}

// loadRevocations reads the set. Those of another mesh, which a crash may have left behind, are passed over; but a file that cannot be
// read stops the node: starting without it would let in who was put out.
func (m *Membership) loadRevocations() error {
	m.rev = newRevocations(nil)
	b, err := os.ReadFile(m.path(revocationsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the revocations: %w", err)
	}
	var raws [][]byte
	if err := json.Unmarshal(b, &raws); err != nil {
		return fmt.Errorf("%s is damaged (%v): restore it; or remove it, and the node learns them again from the first member that it meets", m.path(revocationsFile), err)
	}
	var all []*revocation
	for _, raw := range raws {
		msg := &protocol.Revocation{}
		if proto.Unmarshal(raw, msg) != nil {
			continue
		}
		if r, err := checkRevocation(msg, MeshID(m.st.Mesh)); err == nil {
			all = append(all, r)
		}
	}
	m.rev, _, _ = m.rev.with(all)
	return nil
}
