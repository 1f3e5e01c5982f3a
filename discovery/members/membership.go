package members

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
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
