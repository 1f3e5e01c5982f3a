package members

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

// Options of Open. The zero value works.
type Options struct {
	// Name is this node's label, put into the certificate of a mesh made here and asked for when joining. It is kept in the
	// directory until another is given. Default: the one that is kept, else the host name.
	Name string
	// Volatile says that the directory is of no use after this process: nothing is synced.
	Volatile bool
	// Logger gets refused strangers and the like. Default: none.
	Logger *slog.Logger
	// Speak are the protocol versions that the node speaks, the preferred one first. Default: protocol.Spoken. Others are for tests.
	Speak protocol.Versions
	// Machine replaces the machine's own id, and Now the wall clock, in tests.
	Machine func() string
	Now     func() time.Time
}

// Opened is what Open did that a person should hear of. Each field may be empty.
type Opened struct {
	// RecoveryCode is set when Open made a mesh, and by each Open after that until RecoveryTold: whoever has it can take the mesh over
	// (see Recover).
	RecoveryCode string
	// Copied says that the node has a new identity, because the data directory came from another machine or the old one was revoked:
	// what else the directory holds in the name of the old one (its jobs) is not this node's.
	Copied bool
	// Notices are sentences for the person who starts the node.
	Notices []string
}

// Membership is one node's membership in one mesh at a time. It may be used concurrently.
type Membership struct {
	dir     string // the node's data directory
	sync    bool   // what is written there
	name    string
	log     *slog.Logger
	wall    func() time.Time
	speak   protocol.Versions
	key     crypto.PrivKey
	rawKey  ed25519.PrivateKey
	self    peer.ID
	opened  Opened
	gate    *gate
	ports   *ports
	tries   *tries
	refused *OnceIn
	shaking ongoing // handshakes of dials

	mu sync.RWMutex // guards what follows, and the files in membership/
	inMesh
	guess int64 // the newest signed time, while this machine's clock is not set
	subs  map[chan struct{}]bool

	pairing pairing
}

// inMesh is what a node has of the mesh that it is in.
type inMesh struct {
	st        state
	own       *Cert // may have expired
	met       map[peer.ID]*Cert
	rev       *revocations
	unwritten bool        // rev is obeyed, and not on disk
	void      *revocation // of this node's own certificate; nil: it is a member
	saidVoid  bool
	untold    []*protocol.Revocation
	recent    []recentRevocation
	policy    policy
}

// elsewhere is the node in another mesh, of which it knows nothing yet.
func elsewhere(st state) inMesh {
	return inMesh{st: st, met: map[peer.ID]*Cert{}, rev: newRevocations(nil), policy: policy{}}
}

// state is membership/state.json.
type state struct {
	Mesh     []byte    `json:"mesh"`
	Root     []byte    `json:"root_seed,omitempty"`       // only where the mesh was made, or recovered
	Untold   bool      `json:"recovery_untold,omitempty"` // nobody was shown the recovery code of Root yet
	Chain    []byte    `json:"chain"`                     // protocol.Chain
	Newest   int64     `json:"newest_signed_unix_s"`
	Inviter  *inviter  `json:"inviter,omitempty"`
	Tickets  []*ticket `json:"tickets,omitempty"`
	Codes    []*code   `json:"codes,omitempty"`
	Circle   []byte    `json:"circle,omitempty"`       // of this mesh, where its root key is
	BySecret bool      `json:"by_secret,omitempty"`    // a shared secret let this node in
	Older    [][]byte  `json:"older_chains,omitempty"` // what Chain was before it was renewed, while that has not ended
}

// inviter is who let this node in: the first member to look for.
type inviter struct {
	Peer  string   `json:"peer"`
	Addrs []string `json:"addresses"`
}

// The files. The key has a place of its own because it is the node's, not the mesh's.
const (
	keyFile     = "key"
	folder      = "membership"
	stateFile   = "state.json"
	metFile     = "members.json"
	outcastFile = "new-identity" // is there: the next start makes a new identity
	machineFile = "machine"
	nameFile    = "name" // beside the key: the label that was given last
)

// Open loads the membership below the data directory dir, which is made if it is not there (0700). On the
// first start it makes a key and a mesh of the node's own, with this node as its admin. The caller holds the
// lock of the data directory: two Memberships of one directory would overwrite each other's files.
//
// The directory is bound to the machine. If it was copied from another one, the identity in it is moved to
// the folder old-identity-N in dir and a new one made; should the other machine be gone for good, moving those
// files back (with the node stopped, over the new ones) gives the old identity a new home.
func Open(dir string, o Options) (*Membership, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Machine == nil {
		o.Machine = machineID
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if len(o.Speak) == 0 {
		o.Speak = protocol.Spoken
	}
	m := &Membership{
		speak: o.Speak,
		dir:   dir, sync: !o.Volatile, log: o.Logger, wall: o.Now,
		tries: newTries(), refused: NewOnceIn(time.Minute), inMesh: elsewhere(state{}), subs: map[chan struct{}]bool{},
	}
	m.gate, m.ports = newGate(m), &ports{all: map[*portListener]bool{}}
	if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
		return nil, fmt.Errorf("make the membership folder: %w", err)
	}
	if err := m.castOff(); err != nil {
		return nil, err
	}
	if err := m.bindMachine(o.Machine()); err != nil {
		return nil, err
	}
	if err := m.keepName(cleanName(o.Name)); err != nil {
		return nil, err
	}
	if err := m.loadKey(); err != nil {
		return nil, err
	}
	if err := m.load(); err != nil {
		return nil, err
	}
	return m, nil
}

// keepName sets the label: what was given, else what was given before, else the host name.
func (m *Membership) keepName(given string) error {
	path := filepath.Join(m.dir, nameFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the node's name: %w", err)
	}
	kept := cleanName(strings.TrimSpace(string(b)))
	if given != "" && given != kept {
		if err := m.writeFile(path, []byte(given+"\n")); err != nil {
			return fmt.Errorf("write the node's name: %w", err)
		}
	}
	host := ""
	if given == "" && kept == "" {
		host, _ = os.Hostname()
	}
	m.name = cmp.Or(given, kept, cleanName(host), "node")
	return nil
}

// Opened says what Open did that a person should hear of.
func (m *Membership) Opened() Opened { return m.opened }

// RecoveryTold says that a person was shown the recovery code: it is not to be had again.
func (m *Membership) RecoveryTold() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.st.Untold {
		return nil
	}
	m.st.Untold = false
	return m.saveState()
}

// Key is the node's private key, for libp2p.Identity.
func (m *Membership) Key() crypto.PrivKey { return m.key }

// Self is this node.
func (m *Membership) Self() peer.ID { return m.self }

// Name is this node's label: what Options say, not what its certificate does.
func (m *Membership) Name() string { return m.name }

// Speaks are the protocol versions that this node speaks, the preferred one first. Not to be changed.
func (m *Membership) Speaks() protocol.Versions { return m.speak }

// Newest is when the newest signature that this node has seen was made: no right clock is before it.
func (m *Membership) Newest() time.Time {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return time.Unix(m.st.Newest, 0)
}

// Mesh is the mesh that this node is in now. It changes with Join, Leave and Recover; see Subscribe.
func (m *Membership) Mesh() MeshID {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return MeshID(m.st.Mesh)
}

// Own is this node's own certificate. It may have expired; then nobody lets this node in until it has
// been renewed (which any admin it can reach does) or has joined again.
func (m *Membership) Own() *Cert {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.own
}

// Certificate is the certificate that this node holds of a member of its mesh, itself included; false if it
// holds none that is good now.
func (m *Membership) Certificate(p peer.ID) (*Cert, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c := m.met[p]
	if p == m.self {
		c = m.own
		if m.void != nil {
			return nil, false
		}
	}
	if c == nil || m.now().After(c.NotAfter) {
		return nil, false
	}
	return c, true
}

// knows reports whether a certificate of p's is held, be it over.
func (m *Membership) knows(p peer.ID) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.met[p] != nil
}

// Members are the certificates of the other members that this node knows, by peer ID. Some may have expired;
// they stay for 90 days more, so that an admin can renew them. The slice is the caller's.
func (m *Membership) Members() []*Cert {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]*Cert, 0, len(m.met))
	for _, c := range m.met {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *Cert) int { return strings.Compare(string(a.Peer), string(b.Peer)) })
	return out
}

// Inviter is the member whose ticket let this node in, with the addresses that the ticket had or that
// answered; its ID is empty if this node made the mesh. These addresses are hints.
func (m *Membership) Inviter() peer.AddrInfo {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var info peer.AddrInfo
	if m.st.Inviter == nil {
		return info
	}
	info.ID, _ = peer.Decode(m.st.Inviter.Peer)
	for _, s := range m.st.Inviter.Addrs {
		if a, err := ma.NewMultiaddr(s); err == nil {
			info.Addrs = append(info.Addrs, a)
		}
	}
	return info
}

// Subscribe returns a channel that gets a value after the node's mesh or its own certificate changed, or somebody
// joined through this node (at most one value waits in it), until stop is called.
func (m *Membership) Subscribe() (changes <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subs[ch] = true
	return ch, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.subs, ch)
	}
}

// changed tells the subscribers. The caller holds mu.
func (m *Membership) changed() {
	for ch := range m.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Add takes up certificates that a member told of (or showed, or that were read from disk). It returns those that
// are new: of a member not known before, or renewed. One that is not good is left out; err is the first such. Those of
// another mesh are ErrOtherMesh.
func (m *Membership) Add(chains ...*protocol.Chain) (fresh []*Cert, err error) {
	m.mu.RLock()
	mesh, now := MeshID(m.st.Mesh), m.now()
	// Most of what members tell is held already: when sixty start, each hears of each from each.
	chains = slices.DeleteFunc(slices.Clone(chains), func(ch *protocol.Chain) bool {
		p, err := Subject(ch)
		c := m.met[p]
		return err == nil && c != nil && proto.Equal(c.chain, ch)
	})
	m.mu.RUnlock()
	var good []*Cert // checked outside the lock: 600 chains take 100 ms
	for _, ch := range chains {
		c, e := verify(ch, mesh, now)
		if e != nil {
			err = cmp.Or(err, e)
			continue
		}
		good = append(good, c)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if mesh != MeshID(m.st.Mesh) {
		return nil, cmp.Or(err, ErrOtherMesh)
	}
	for _, c := range good {
		if !m.forgotten(c) && m.add(c, false) {
			fresh = append(fresh, c)
		}
	}
	if len(fresh) == 0 {
		return nil, err
	}
	return fresh, errors.Join(err, m.saveMet())
}

// maxMembers bounds the certificates kept: far above the 300 members that a mesh can have, so that only an
// admin gone mad meets it.
const maxMembers = 2000

// add puts a verified certificate into met if it says something new. shown says that its member itself has shown it, and not that another
// tells of it. The caller holds mu.
func (m *Membership) add(c *Cert, shown bool) bool {
	if c.Peer == m.self || m.rev.voidedBy(c) != nil {
		return false
	}
	m.see(c)
	if old := m.met[c.Peer]; old == nil && len(m.met) >= maxMembers || old != nil && !m.instead(c, old, shown) {
		return false
	}
	m.met[c.Peer] = c
	return true
}

// instead reports whether c is to be held in place of old. Any admin, and in part any member of a circle, can sign a certificate for any key:
// so the word of others may add to what a member's gives, or to its time, and takes nothing. What the member shows itself counts if it is
// newer, or gives something that old does not. The caller holds mu.
func (m *Membership) instead(c, old *Cert, shown bool) bool {
	newer := c.NotAfter.After(old.NotAfter) || c.NotBefore.After(old.NotBefore)
	switch {
	case m.now().After(old.NotAfter):
		return newer
	case !shown && !c.gives(old):
		return false
	}
	return newer || !old.gives(c)
}

// HoldsRoot reports whether the root key of the mesh is on this machine.
func (m *Membership) HoldsRoot() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.st.Root) > 0
}

// Alone reports whether the node is in a mesh that it made itself and that nobody joined but throw-away nodes: one that can be
// left without a thought.
func (m *Membership) Alone() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.alone()
}

func (m *Membership) alone() bool {
	if len(m.st.Root) == 0 {
		return false
	}
	for _, c := range m.met {
		if !c.Brief {
			return false
		}
	}
	for _, t := range m.st.Tickets {
		if len(t.Bound) > 0 {
			return false
		}
	}
	return !slices.ContainsFunc(m.st.Codes, func(c *code) bool { return len(c.Bound) > 0 })
}

// ErrRootHere is returned by Leave on the machine with the mesh's root key.
var ErrRootHere = errors.New("this machine holds the root key of the mesh, and others are in it")

// Leave ends this node's membership and makes a mesh of its own, as on the first start. The other members should be told before, with what
// Farewell returns. The machine with the mesh's root key leaves a mesh with others in it only by force: after that, only the
// recovery code brings the root key back.
//
// A node that was revoked gets a new identity with its next start (restart is true), because the old one is of no use in the mesh any
// more; until then it is in no mesh with others.
func (m *Membership) Leave(force bool) (code string, restart bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.st.Root) > 0 && !m.alone() && !force {
		return "", false, ErrRootHere
	}
	old := m.inMesh
	restart = m.void != nil
	if restart {
		if err := m.writeFile(m.path(outcastFile), []byte("the identity of this node was revoked\n")); err != nil {
			return "", false, err
		}
	}
	m.inMesh = elsewhere(state{Newest: old.st.Newest})
	if err := m.makeMesh(); err != nil {
		m.inMesh = old
		return "", false, errors.Join(err, os.RemoveAll(m.path(outcastFile)))
	}
	m.changed()
	return recoveryCode(m.st.Root), restart, m.forgetMesh()
}

// forgetMesh writes what there is of a mesh that was just entered: next to nothing. The caller holds mu.
func (m *Membership) forgetMesh() error {
	return errors.Join(m.saveMet(), m.saveRevocations(m.rev), m.savePolicy())
}

// Recover makes this node the holder of the root key of the mesh that the recovery code is of, and an admin in it. It leaves a mesh
// in which it is alone; one with others has to be left before (ErrLeaveFirst).
func (m *Membership) Recover(code string) error {
	seed, err := parseRecoveryCode(code)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.inMesh
	root := ed25519.NewKeyFromSeed(seed)
	mesh := meshOf(root.Public().(ed25519.PublicKey))
	same := mesh == MeshID(m.st.Mesh)
	switch {
	case same && m.void != nil:
		return revokedError{m.void}
	case !same && !m.alone():
		return ErrLeaveFirst
	case !same:
		m.inMesh = elsewhere(state{Mesh: mesh[:], Newest: old.st.Newest})
	}
	m.st.Root, m.st.Untold = seed, false // who has typed the code knows it
	if err := m.certifySelf(); err != nil {
		m.inMesh = old
		return err
	}
	m.changed()
	if !same {
		return m.forgetMesh()
	}
	return nil
}

// Maintain renews this node's own certificate where it holds the root key, drops certificates and tickets that ended long ago, and writes
// revocations that could not be written. Call it about once an hour.
func (m *Membership) Maintain() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	var errs []error
	// That so much time has passed is believed where somebody's certificate is good now: else it is this machine's clock.
	passed := false
	for _, c := range m.met {
		passed = passed || now.Before(c.NotAfter)
	}
	forgot := false
	for p, c := range m.met {
		if passed && now.Sub(c.NotAfter) > lifetime {
			delete(m.met, p)
			forgot = true
		}
	}
	if forgot {
		errs = append(errs, m.saveMet())
	}
	if m.unwritten {
		errs = append(errs, m.saveRevocations(m.rev))
	}
	m.st.Tickets = slices.DeleteFunc(m.st.Tickets, func(t *ticket) bool { return now.Unix()-t.Expires > int64(ticketMemory/time.Second) })
	m.dropCodes(now)
	if len(m.st.Root) > 0 && m.own.NotAfter.Sub(now) < renewBefore {
		errs = append(errs, m.certifySelf())
		m.changed()
	}
	return errors.Join(errs...)
}

// earliest is before the first day of this program: a clock that is behind it was never set.
var earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// now is the wall clock, unless that is behind a time that a member signed: such a clock is wrong, and judging by it
// would let expired certificates in. The caller holds mu, for reading at least.
func (m *Membership) now() time.Time {
	now := m.wall()
	newest := m.st.Newest
	if now.Before(earliest) {
		newest = max(newest, m.guess, earliest.Unix())
	}
	if newest := time.Unix(newest, 0); now.Before(newest) {
		return newest
	}
	return now
}

// see remembers the newest signed time, of what others signed. One more than a certificate's lifetime ahead of all that is known is
// not believed: an admin whose clock says 2099 must not end everybody else's certificates. But a clock that was never
// set knows nothing: then this node's own certificate says what time it was, until the clock is set. The caller holds mu.
func (m *Membership) see(c *Cert) {
	// What this machine's own clock said proves nothing to that clock.
	own := bytes.Equal(c.body.Issuer, m.rawKey.Public().(ed25519.PublicKey)) || len(m.st.Root) > 0 && meshOf(c.body.Issuer) == MeshID(m.st.Mesh)
	t := c.signedAt()
	switch unset := m.wall().Before(earliest); {
	case own && !unset:
	case t > m.now().Add(lifetime).Unix() && !(unset && c.Peer == m.self):
	case unset:
		m.guess = max(m.guess, t)
	default:
		m.st.Newest = max(m.st.Newest, t)
	}
}

// Trouble is what is wrong with this node's own membership, as sentences for a person: it was revoked, its certificate has ended, its
// clock cannot be right. Empty: nothing.
func (m *Membership) Trouble() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	wall, now := m.wall(), m.now()
	var out []string
	if m.void != nil {
		out = append(out, "this node is no member any more: it "+departure(m.void).String()+"; "+comeBack)
	} else if now.After(m.own.NotAfter) {
		out = append(out, fmt.Sprintf("this node's certificate ended on %s: it is renewed when the node reaches an admin of the mesh; else join again with a new ticket",
			m.own.NotAfter.UTC().Format(time.DateOnly)))
	}
	ended := 0
	for _, c := range m.met {
		if now.After(c.NotAfter) {
			ended++
		}
	}
	switch {
	case now.Sub(wall) > 24*time.Hour:
		out = append(out, fmt.Sprintf("the clock of this machine says %s, but a member signed something on %s: set the clock right",
			wall.UTC().Format(time.DateOnly), now.UTC().Format(time.DateOnly)))
	case ended > 0 && ended == len(m.met):
		out = append(out, fmt.Sprintf("by the clock of this machine, which says %s, the certificates of all other members have ended: is it right?", wall.UTC().Format(time.DateOnly)))
	}
	return out
}

// makeMesh makes a new mesh with this node as its only member. The caller holds mu, or is Open.
func (m *Membership) makeMesh() error {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	mesh := meshOf(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	m.st = state{Mesh: mesh[:], Root: seed, Untold: true, Newest: m.st.Newest}
	m.rev, m.void = newRevocations(nil), nil
	return m.certifySelf()
}

// certifySelf signs this node's own certificate with the root key and saves it. The caller holds mu, or is Open.
func (m *Membership) certifySelf() error {
	root := ed25519.NewKeyFromSeed(m.st.Root)
	now := m.now()
	chain, err := issue(root, MeshID(m.st.Mesh), &protocol.CertificateBody{
		Key: m.rawKey.Public().(ed25519.PublicKey), Name: m.name, Owner: root.Public().(ed25519.PublicKey),
		Capabilities: []protocol.Capability{
			protocol.Capability_SUBMIT, protocol.Capability_WORK, protocol.Capability_RELAY, protocol.Capability_ADMIN,
		},
		Circle: m.st.Circle, Runtimes: allRuntimes, NotBeforeUnixS: now.Unix(), NotAfterUnixS: now.Add(lifetime).Unix(),
	}, nil)
	if err != nil {
		return err
	}
	return m.setOwn(chain)
}

// setOwn verifies and saves this node's own chain. The caller holds mu, or is Open.
func (m *Membership) setOwn(chain *protocol.Chain) error {
	c, err := verify(chain, MeshID(m.st.Mesh), m.now())
	if err != nil {
		return fmt.Errorf("this node's own certificate: %w", err)
	}
	if c.Peer != m.self {
		return fmt.Errorf("%w: it is for %s, not for this node", ErrCertificate, c.Peer)
	}
	raw, err := proto.Marshal(chain)
	if err != nil {
		return err
	}
	old := m.st
	m.see(c)
	m.st.Chain, m.st.Older = raw, nil
	for _, older := range append([][]byte{old.Chain}, old.Older...) {
		chain := &protocol.Chain{}
		if bytes.Equal(older, raw) || proto.Unmarshal(older, chain) != nil || len(m.st.Older) == maxOlder {
			continue
		}
		if x, err := verify(chain, MeshID(m.st.Mesh), m.now()); err == nil && x.Peer == m.self && m.rev.voidedBy(x) == nil {
			m.st.Older = append(m.st.Older, older)
		}
	}
	if err := m.saveState(); err != nil {
		m.st = old
		return err
	}
	m.own, m.void = c, m.rev.voidedBy(c)
	return nil
}

// maxOlder certificates of its own that a node keeps besides the newest: it gets one a month, and they end after three.
const maxOlder = 4

// ---- disk

func (m *Membership) path(name string) string { return filepath.Join(m.dir, folder, name) }

func (m *Membership) loadKey() error {
	path := filepath.Join(m.dir, keyFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(m.path(stateFile)); err == nil {
			return fmt.Errorf("the key of this node is missing: put %s back, or remove %s to start as a new node", path, filepath.Join(m.dir, folder))
		}
		_, m.rawKey, err = ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKCS8PrivateKey(m.rawKey)
		if err != nil {
			return err
		}
		b = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err := m.writeFile(path, b); err != nil {
			return fmt.Errorf("write the node's key: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("read the node's key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return fmt.Errorf("%s is no key: put the right file back, or remove it and %s to start as a new node", path, filepath.Join(m.dir, folder))
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s is no key: %w", path, err)
	}
	var ok bool
	if m.rawKey, ok = k.(ed25519.PrivateKey); !ok {
		return fmt.Errorf("%s is a %T: want an Ed25519 key", path, k)
	}
	if m.key, err = crypto.UnmarshalEd25519PrivateKey(m.rawKey); err != nil {
		return err
	}
	m.self, err = peer.IDFromPrivateKey(m.key)
	return err
}

func (m *Membership) load() error {
	b, err := os.ReadFile(m.path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = m.makeMesh()
		m.opened.RecoveryCode = recoveryCode(m.st.Root)
		return err
	}
	if err != nil {
		return fmt.Errorf("read the membership: %w", err)
	}
	chain := &protocol.Chain{}
	if err := json.Unmarshal(b, &m.st); err != nil {
		return fmt.Errorf("%s is damaged (%v): restore it, or remove %s to start with a mesh of its own", m.path(stateFile), err, filepath.Join(m.dir, folder))
	}
	if len(m.st.Mesh) != 32 || (len(m.st.Root) != 0 && len(m.st.Root) != ed25519.SeedSize) || proto.Unmarshal(m.st.Chain, chain) != nil {
		return fmt.Errorf("%s is damaged: restore it, or remove %s to start with a mesh of its own", m.path(stateFile), filepath.Join(m.dir, folder))
	}
	if m.st.Untold && len(m.st.Root) > 0 {
		m.opened.RecoveryCode = recoveryCode(m.st.Root)
	}
	if err := m.loadRevocations(); err != nil {
		return err
	}
	if err := m.loadPolicy(); err != nil {
		return err
	}
	c, err := verify(chain, MeshID(m.st.Mesh), m.now())
	switch {
	case err == nil, errors.Is(err, ErrExpired):
		m.own = c
	default:
		return fmt.Errorf("%s: %w", m.path(stateFile), err)
	}
	if c.Peer != m.self {
		return fmt.Errorf("%s belongs to the key of %s, not to %s: put the right key back, or remove %s to start with a mesh of its own",
			m.path(stateFile), c.Peer, filepath.Join(m.dir, keyFile), filepath.Join(m.dir, folder))
	}
	if len(m.st.Root) > 0 && (err != nil || m.own.NotAfter.Sub(m.now()) < renewBefore) {
		if err := m.certifySelf(); err != nil {
			return err
		}
	}
	m.see(m.own)
	m.judgeOwn()
	if err := m.loadMet(); err != nil {
		return err
	}
	m.opened.Notices = append(m.opened.Notices, m.Trouble()...)
	return nil
}

// loadMet reads the certificates of members met. The file is a cache: what is damaged in it is left out, and members
// are met again.
func (m *Membership) loadMet() error {
	b, err := os.ReadFile(m.path(metFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the certificates of members: %w", err)
	}
	var chains [][]byte
	if err := json.Unmarshal(b, &chains); err != nil {
		m.log.Warn("the certificates of members met are unreadable and forgotten", "file", m.path(metFile), "err", err)
		return nil
	}
	for _, raw := range chains {
		chain := &protocol.Chain{}
		if proto.Unmarshal(raw, chain) != nil {
			continue
		}
		if c, err := verify(chain, MeshID(m.st.Mesh), m.now()); err == nil || errors.Is(err, ErrExpired) {
			m.add(c, true)
		}
	}
	return nil
}

func (m *Membership) saveState() error {
	b, err := json.MarshalIndent(&m.st, "", "  ")
	if err != nil {
		return err
	}
	if err := m.writeFile(m.path(stateFile), b); err != nil {
		return fmt.Errorf("write the membership: %w", err)
	}
	return nil
}

func (m *Membership) saveMet() error {
	chains := make([][]byte, 0, len(m.met))
	for _, c := range m.met {
		if c.Brief {
			continue // it does not outlive its program, and shows its certificate whenever it comes
		}
		raw, err := proto.Marshal(c.chain)
		if err != nil {
			return err
		}
		chains = append(chains, raw)
	}
	b, err := json.Marshal(chains)
	if err != nil {
		return err
	}
	if err := m.writeFile(m.path(metFile), b); err != nil {
		return fmt.Errorf("write the certificates of members: %w", err)
	}
	return nil
}

// writeFile replaces a file as a whole, so that a crash leaves the old one or the new one; it is on the disk when
// writeFile returns, unless it is volatile. Mode 0600.
func (m *Membership) writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if m.sync {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if !m.sync {
		return nil
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename last. Windows cannot sync a directory, and needs not.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// recoveryCode is the root seed for people: base32 in groups of five, with a checksum.
func recoveryCode(seed []byte) string {
	sum := sha256.Sum256(append([]byte("meshnode recovery code 1\x00"), seed...))
	return inFives(b32.EncodeToString(append(slices.Clone(seed), sum[:3]...)))
}

func parseRecoveryCode(code string) ([]byte, error) {
	s := strings.ToLower(strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' || r == '\n' || r == '\r' || r == '\t' {
			return -1
		}
		return r
	}, code))
	b, err := b32.DecodeString(s)
	if err != nil || len(b) != ed25519.SeedSize+3 || recoveryCode(b[:ed25519.SeedSize]) != inFives(s) {
		return nil, errors.New("this is no recovery code, or it has a typing error: want 56 letters and digits in groups of five")
	}
	return b[:ed25519.SeedSize], nil
}

func inFives(s string) string {
	var groups []string
	for i := 0; i < len(s); i += 5 {
		groups = append(groups, s[i:min(i+5, len(s))])
	}
	return strings.Join(groups, "-")
}
