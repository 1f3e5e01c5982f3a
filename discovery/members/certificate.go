package members

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

const (
	// lifetime of a certificate: long enough for a laptop left in a drawer over a summer, short enough that
	// a key nobody remembers ends by itself.
	lifetime = 90 * 24 * time.Hour
	// renewBefore is when an admin who meets the member renews: two thirds of the lifetime are left for it.
	renewBefore = 60 * 24 * time.Hour
	// maxChain: root → admin → admin → member. Longer would only make each connection dearer.
	maxChain = 3

	maxRuntimes = 16

	// maxRevokers of a renewed certificate: the chain above the first one, and that of a second admission.
	maxRevokers = 4

	// lastUnixS is in the year 9999: up to there every time.Time can be printed.
	lastUnixS = 253402300799

	signContext = "meshnode certificate 1\x00"
)

// Runtimes that certificates may name, without versions.
const (
	Wasm    = "wasm"
	Python  = "python"
	Command = "command"
)

var allRuntimes = []string{Wasm, Python, Command}

// Why a chain of certificates is not accepted. ErrExpired is only returned for a chain that is good but for
// its time.
var (
	ErrCertificate = errors.New("the certificate is not valid")
	ErrOtherMesh   = errors.New("the certificate is of another mesh")
	ErrExpired     = errors.New("the certificate has expired")
)

// MeshID names a mesh: the SHA-256 of its root public key. The zero MeshID names none.
type MeshID [32]byte

// String is how people see a mesh: the first 80 bits in base32.
func (m MeshID) String() string { return b32.EncodeToString(m[:10]) }

// IsZero reports whether m names no mesh.
func (m MeshID) IsZero() bool { return m == MeshID{} }

var b32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func meshOf(root ed25519.PublicKey) MeshID { return sha256.Sum256(root) }

// Cert is a verified certificate with the chain that proves it. It is immutable; read it from any goroutine.
type Cert struct {
	Mesh         MeshID
	Peer         peer.ID
	Name         string // a label for people; valid UTF-8 without control characters, at most 64 bytes
	Owner        string // the person: equal for machines of one owner. Opaque
	Capabilities []protocol.Capability
	Runtimes     []string
	Circle       string // equal for members admitted by the same shared secret; "" for others. Opaque
	Brief        bool   // of a node that ends with the program that started it
	Serial       uint64
	NotBefore    time.Time // when it was signed
	NotAfter     time.Time // the earliest end in the chain

	body   *protocol.CertificateBody
	bodies []*protocol.CertificateBody // of the chain: body first
	chain  *protocol.Chain
}

// Can reports whether the certificate carries the capability.
func (c *Cert) Can(k protocol.Capability) bool { return slices.Contains(c.Capabilities, k) }

// signedAt is the newest time that the chain proves: when a root or an admin signed, whose own certificate had not ended by then. The word of
// a member that admits others to its circle does not count.
func (c *Cert) signedAt() int64 {
	for i, b := range c.bodies[:len(c.bodies)-1] {
		if by := c.bodies[i+1]; slices.Contains(by.Capabilities, protocol.Capability_ADMIN) && b.NotBeforeUnixS <= by.NotAfterUnixS {
			return b.NotBeforeUnixS
		}
	}
	return c.bodies[len(c.bodies)-1].NotBeforeUnixS
}

// gives reports whether the certificate gives all that another of the same key does, so that nothing is lost with the other.
func (c *Cert) gives(other *Cert) bool {
	for _, k := range other.Capabilities {
		if !c.Can(k) {
			return false
		}
	}
	for _, r := range other.Runtimes {
		if !slices.Contains(c.Runtimes, r) {
			return false
		}
	}
	// An owner is the root's, or the key itself, which is less.
	return (c.Owner == other.Owner || !bytes.Equal(c.body.Owner, c.body.Key)) && (other.Circle == "" || c.Circle == other.Circle) && (!c.Brief || other.Brief)
}

// Chain is what proves the certificate to others. It is not to be changed.
func (c *Cert) Chain() *protocol.Chain { return c.chain }

// Subject reads whose certificate a chain is, without verifying anything.
func Subject(chain *protocol.Chain) (peer.ID, error) {
	if len(chain.GetCertificates()) == 0 {
		return "", ErrCertificate
	}
	b := &protocol.CertificateBody{}
	if err := proto.Unmarshal(chain.Certificates[0].GetBody(), b); err != nil {
		return "", fmt.Errorf("%w: %v", ErrCertificate, err)
	}
	return peerOf(b.Key)
}

// peerOf is the libp2p peer ID of an Ed25519 public key of 32 bytes.
func peerOf(key []byte) (peer.ID, error) {
	pub, err := crypto.UnmarshalEd25519PublicKey(key)
	if err != nil {
		return "", err
	}
	return peer.IDFromPublicKey(pub)
}

// keyOf is the inverse of peerOf; it fails for peers whose key is not Ed25519.
func keyOf(p peer.ID) (ed25519.PublicKey, error) {
	pub, err := p.ExtractPublicKey()
	if err != nil {
		return nil, err
	}
	if _, ok := pub.(*crypto.Ed25519PublicKey); !ok {
		return nil, fmt.Errorf("the key of %s is not Ed25519", p)
	}
	raw, err := pub.Raw()
	return raw, err
}

// issue signs body with key and puts the certificate before those of the issuer. Body's mesh, issuer and
// serial are set here.
func issue(key ed25519.PrivateKey, mesh MeshID, body *protocol.CertificateBody, issuer *protocol.Chain) (*protocol.Chain, error) {
	var serial [8]byte
	rand.Read(serial[:])
	body.Mesh, body.Serial = mesh[:], binary.LittleEndian.Uint64(serial[:])
	body.Issuer = key.Public().(ed25519.PublicKey)
	raw, err := proto.Marshal(body)
	if err != nil {
		return nil, err
	}
	c := &protocol.Certificate{Body: raw, Signature: ed25519.Sign(key, append([]byte(signContext), raw...))}
	return &protocol.Chain{Certificates: append([]*protocol.Certificate{c}, issuer.GetCertificates()...)}, nil
}

// verify checks a chain as it came from somebody: every signature up to the root of the mesh, that no
// certificate carries what its issuer lacks, and the time. On ErrExpired the Cert is returned too.
//
// Who may make admins: the root. Taken alone that would end a mesh with its first laptop, so the root stands
// here for the person who owns it: a machine of the root's own owner that was made an admin may make other
// machines of that owner admins, as long as those still have room in the chain to issue something. A guest
// never can, because an issuer passes on only its own owner, or gives the member its own key as owner.
func verify(chain *protocol.Chain, mesh MeshID, now time.Time) (*Cert, error) {
	n := len(chain.GetCertificates())
	if n == 0 || n > maxChain {
		return nil, fmt.Errorf("%w: %d certificates in its chain, want 1 to %d", ErrCertificate, n, maxChain)
	}
	bodies := make([]*protocol.CertificateBody, n)
	for i, c := range chain.Certificates {
		b := &protocol.CertificateBody{}
		if err := proto.Unmarshal(c.GetBody(), b); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
		}
		if err := checkBody(b); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
		}
		bodies[i] = b
	}
	root := bodies[n-1].Issuer
	if rootMesh := meshOf(root); rootMesh != mesh {
		return nil, fmt.Errorf("%w (%s, not %s)", ErrOtherMesh, rootMesh, mesh)
	}
	end := bodies[0].NotAfterUnixS
	for i, b := range bodies {
		if MeshID(b.Mesh) != mesh {
			return nil, fmt.Errorf("%w (%s, not %s)", ErrOtherMesh, MeshID(b.Mesh), mesh)
		}
		issuer := root
		if i+1 < n {
			issuer = bodies[i+1].Key
		}
		if !bytes.Equal(b.Issuer, issuer) {
			return nil, fmt.Errorf("%w: its chain is broken", ErrCertificate)
		}
		if !ed25519.Verify(issuer, append([]byte(signContext), chain.Certificates[i].Body...), chain.Certificates[i].Signature) {
			return nil, fmt.Errorf("%w: wrong signature", ErrCertificate)
		}
		if i+1 < n {
			if err := mayIssue(bodies[i+1], b, root, n-i); err != nil {
				return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
			}
		} else if !bytes.Equal(b.Owner, root) && !bytes.Equal(b.Owner, b.Key) {
			return nil, fmt.Errorf("%w: an owner that is neither its issuer's nor itself", ErrCertificate)
		} else if slices.Contains(b.Capabilities, protocol.Capability_ADMIN) && !bytes.Equal(b.Owner, root) {
			return nil, fmt.Errorf("%w: an admin of another owner than the root's", ErrCertificate)
		}
		end = min(end, b.NotAfterUnixS)
	}
	p, err := peerOf(bodies[0].Key)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrCertificate, err)
	}
	b := bodies[0]
	cert := &Cert{
		Mesh: mesh, Peer: p, Name: b.Name, Owner: b32.EncodeToString(b.Owner), Capabilities: b.Capabilities, Runtimes: b.Runtimes,
		Circle: b32.EncodeToString(b.Circle), Brief: b.Brief, Serial: b.Serial, NotBefore: time.Unix(b.NotBeforeUnixS, 0), NotAfter: time.Unix(end, 0), body: b, bodies: bodies, chain: chain,
	}
	if now.Unix() > end {
		return cert, fmt.Errorf("%w (on %s)", ErrExpired, cert.NotAfter.UTC().Format(time.DateOnly))
	}
	return cert, nil
}

// mayIssue says whether a certificate with body issuer may have signed body, which is at depth (the root's own
// are at depth 1).
func mayIssue(issuer, body *protocol.CertificateBody, root []byte, depth int) error {
	if !slices.Contains(issuer.Capabilities, protocol.Capability_ADMIN) {
		return mayIntroduce(issuer, body)
	}
	for _, c := range body.Capabilities {
		if !slices.Contains(issuer.Capabilities, c) {
			return fmt.Errorf("it has the capability %v, which its issuer lacks", c)
		}
	}
	for _, r := range body.Runtimes {
		if !slices.Contains(issuer.Runtimes, r) {
			return fmt.Errorf("it has the runtime %q, which its issuer lacks", r)
		}
	}
	if !bytes.Equal(body.Owner, issuer.Owner) && !bytes.Equal(body.Owner, body.Key) {
		return errors.New("an owner that is neither its issuer's nor itself")
	}
	if slices.Contains(body.Capabilities, protocol.Capability_ADMIN) && (!bytes.Equal(body.Owner, root) || depth >= maxChain) {
		return errors.New("only the root's owner makes admins, and none at the end of a chain")
	}
	return nil
}

// mayIntroduce says whether a member that is no admin may have signed body: one that was admitted by a shared secret admits
// others who know it, to the same circle and with no more than such members have. It gives away nothing that it could not by
// telling them the secret.
func mayIntroduce(issuer, body *protocol.CertificateBody) error {
	if len(issuer.Circle) == 0 || issuer.Brief {
		return errors.New("its issuer is no admin")
	}
	if !bytes.Equal(body.Circle, issuer.Circle) || !bytes.Equal(body.Owner, body.Key) {
		return errors.New("its issuer is no admin, and may admit others to its own circle only")
	}
	for _, c := range body.Capabilities {
		if !slices.Contains(circleCapabilities, c) || !slices.Contains(issuer.Capabilities, c) {
			return fmt.Errorf("it has the capability %v, which a circle does not give", c)
		}
	}
	for _, r := range body.Runtimes {
		if !slices.Contains(circleRuntimes, r) || !slices.Contains(issuer.Runtimes, r) {
			return fmt.Errorf("it has the runtime %q, which a circle does not give", r)
		}
	}
	return nil
}

func checkBody(b *protocol.CertificateBody) error {
	if len(b.Mesh) != 32 || len(b.Key) != ed25519.PublicKeySize || len(b.Owner) != ed25519.PublicKeySize || len(b.Issuer) != ed25519.PublicKeySize {
		return errors.New("a key of the wrong length")
	}
	if b.Name != cleanName(b.Name) {
		return errors.New("its name is too long or not plain text")
	}
	if len(b.Capabilities) > 16 || len(b.Runtimes) > maxRuntimes {
		return errors.New("too many capabilities or runtimes")
	}
	for _, r := range b.Runtimes {
		if r == "" || len(r) > 32 || r != cleanName(r) {
			return errors.New("a runtime's name is not plain text")
		}
	}
	if len(b.Circle) != 0 && len(b.Circle) != circleSize {
		return errors.New("a circle of the wrong length")
	}
	if len(b.Revokers) > maxRevokers || (!b.Renewed && len(b.Revokers) > 0) {
		return errors.New("it names too many who may revoke it")
	}
	for _, k := range b.Revokers {
		if len(k) != ed25519.PublicKeySize {
			return errors.New("a key of the wrong length")
		}
	}
	if b.NotBeforeUnixS < 0 || b.NotAfterUnixS < b.NotBeforeUnixS || b.NotAfterUnixS > lastUnixS {
		return errors.New("its times make no sense")
	}
	return nil
}

// cleanName makes any string a name: valid UTF-8, printable, at most protocol.MaxMemberName bytes.
func cleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	for len(s) > protocol.MaxMemberName {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}
