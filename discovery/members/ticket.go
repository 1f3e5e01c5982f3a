package members

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

const (
	ticketPrefix = "meshnode-ticket-"
	// maxTicket bounds a ticket's text: 16 addresses of the longest kind that can be dialled, in base32.
	maxTicket = 4 << 10
	// ticketMemory is how long an expired ticket is remembered, to say "expired" and not "unknown".
	ticketMemory = 30 * 24 * time.Hour
	// maxTickets bounds the tickets remembered.
	maxTickets = 1000
	// DefaultExpiry of a ticket.
	DefaultExpiry = 24 * time.Hour
	// maxExpiry: a ticket is a secret that lies in chats and mail boxes.
	maxExpiry = 365 * 24 * time.Hour
	maxUses   = 1000
)

// InviteOptions say what a ticket is good for. The zero value invites one machine of another owner, which may
// submit wasm tasks and works for others, within 24 hours.
type InviteOptions struct {
	Mine     bool           // a machine of this node's own owner: every runtime, and an admin as far as the chain allows
	Guest    bool           // a visitor: submits wasm tasks and does no work for others
	Expires  time.Duration  // default DefaultExpiry, at most a year
	Uses     int            // how many machines may join, 1 to 1000; 0: 1
	Runtimes []string       // in the joiner's certificate; default: wasm, with Mine all
	Addrs    []ma.Multiaddr // where this node listens, best first; the first 16 that are TCP are put into the ticket
}

// ticket is one that this node gave out.
type ticket struct {
	ID           []byte                `json:"id"`
	Secret       []byte                `json:"secret"`
	Expires      int64                 `json:"expires_unix_s"`
	Uses         int                   `json:"uses"`
	Mine         bool                  `json:"mine,omitempty"`
	Capabilities []protocol.Capability `json:"capabilities"`
	Runtimes     []string              `json:"runtimes"`
	Bound        []bound               `json:"bound,omitempty"`
}

// bound is a use of a ticket: on disk before the certificate leaves, so that a crash in between costs the joiner a
// second try and not the ticket.
type bound struct {
	Key   []byte `json:"key"`
	Chain []byte `json:"chain"`
}

// ErrNotAdmin is returned by Invite on a node whose certificate does not let it invite.
var ErrNotAdmin = errors.New("this node may not invite")

// Invite makes a ticket: one line without spaces, to be handed to Join on another machine. This node must be
// running and be reached at one of o.Addrs for the join to work.
func (m *Membership) Invite(o InviteOptions) (string, error) {
	if o.Expires == 0 {
		o.Expires = DefaultExpiry
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.newTicket(o)
	if err != nil {
		return "", err
	}
	t.Secret = make([]byte, 16)
	rand.Read(t.Secret)
	t.ID = ticketID(t.Secret)
	if len(m.st.Tickets) >= maxTickets {
		return "", fmt.Errorf("this node has given out %d tickets: wait until some have expired", maxTickets)
	}
	w := &protocol.Ticket{
		Mesh: m.st.Mesh, Inviter: m.rawKey.Public().(ed25519.PublicKey), Secret: t.Secret,
		ExpiresUnixS: t.Expires, Capabilities: t.Capabilities,
	}
	for _, a := range o.Addrs {
		if len(w.Addresses) < protocol.MaxMemberAddresses && Dialable(a) {
			w.Addresses = append(w.Addresses, a.Bytes())
		}
	}
	old := m.st.Tickets
	m.st.Tickets = append(slices.Clone(old), t)
	if err := m.saveState(); err != nil {
		m.st.Tickets = old
		return "", err
	}
	return formatTicket(w)
}

// newTicket checks what is asked for and makes a ticket of it, without secret. The caller holds mu.
func (m *Membership) newTicket(o InviteOptions) (*ticket, error) {
	if o.Mine && o.Guest {
		return nil, errors.New("a ticket is for a machine of your own (--mine) or a guest's (--guest), not both")
	}
	if o.Uses == 0 {
		o.Uses = 1
	}
	if o.Expires < time.Second || o.Expires > maxExpiry {
		return nil, fmt.Errorf("a ticket expires after 1s to %s, not after %s", maxExpiry, o.Expires)
	}
	if o.Uses < 0 || o.Uses > maxUses {
		return nil, fmt.Errorf("a ticket has 1 to %d uses, not %d", maxUses, o.Uses)
	}
	if len(o.Runtimes) == 0 {
		o.Runtimes = []string{Wasm}
		if o.Mine {
			o.Runtimes = allRuntimes
		}
	}
	for _, r := range o.Runtimes {
		if !slices.Contains(allRuntimes, r) {
			return nil, fmt.Errorf("no runtime is called %.40q: there are %s", r, strings.Join(allRuntimes, ", "))
		}
	}
	issuer, err := m.issuer()
	if err != nil {
		return nil, err
	}
	t := &ticket{
		Expires: m.now().Add(o.Expires).Unix(), Uses: o.Uses, Mine: o.Mine,
		Capabilities: []protocol.Capability{protocol.Capability_SUBMIT}, Runtimes: o.Runtimes,
	}
	if !o.Guest {
		t.Capabilities = append(t.Capabilities, protocol.Capability_WORK)
	}
	if o.Mine {
		t.Capabilities = append(t.Capabilities, protocol.Capability_RELAY)
		if len(issuer.chain.GetCertificates())+1 < maxChain {
			t.Capabilities = append(t.Capabilities, protocol.Capability_ADMIN)
		}
	}
	for _, r := range t.Runtimes {
		if !slices.Contains(m.own.Runtimes, r) {
			return nil, fmt.Errorf("this node's own certificate lacks the runtime %s, so it cannot give it", r)
		}
	}
	return t, nil
}

// signer is what this node can sign certificates with.
type signer struct {
	key   ed25519.PrivateKey
	chain *protocol.Chain // nil: the root itself
}

// issuer is what this node signs new certificates with: the root key if it is here, else its own. The caller holds mu.
func (m *Membership) issuer() (signer, error) {
	if len(m.st.Root) > 0 { // even if this node itself was revoked: the root cannot be
		return signer{key: ed25519.NewKeyFromSeed(m.st.Root)}, nil
	}
	if m.void != nil {
		return signer{}, fmt.Errorf("%w: %w", ErrNotAdmin, revokedError{m.void})
	}
	if m.now().After(m.own.NotAfter) {
		return signer{}, fmt.Errorf("%w: its certificate ended on %s; join again with a ticket from an admin", ErrNotAdmin, m.own.NotAfter.UTC().Format(time.DateOnly))
	}
	if !m.own.Can(protocol.Capability_ADMIN) || len(m.own.chain.Certificates) >= maxChain {
		return signer{}, fmt.Errorf("%w: its certificate is no admin's", ErrNotAdmin)
	}
	return signer{key: m.rawKey, chain: m.own.chain}, nil
}

// sign makes a certificate; its end is that of the issuer's at the latest. It is the renewal of prior, or a second admission of its key;
// or the first, if prior is nil. The caller holds mu.
func (m *Membership) sign(by signer, body *protocol.CertificateBody, prior *Cert, renewal bool) (*protocol.Chain, error) {
	if err := m.revokedKey(body.Key); err != nil {
		return nil, err
	}
	now := m.now()
	life := lifetime
	if body.Brief {
		life = briefLifetime
	}
	body.NotBeforeUnixS, body.NotAfterUnixS = now.Unix(), now.Add(life).Unix()
	if by.chain != nil {
		body.NotAfterUnixS = min(body.NotAfterUnixS, m.own.NotAfter.Unix())
	}
	body.Renewed, body.Revokers = false, nil
	if prior != nil {
		// Who could put it out before still can. A second admission adds who gives it.
		up := above(prior.bodies)
		if !renewal && by.chain != nil {
			for _, k := range append([][]byte{by.key.Public().(ed25519.PublicKey)}, above(m.own.bodies)...) {
				if !slices.ContainsFunc(up, func(x []byte) bool { return bytes.Equal(x, k) }) {
					up = append(up, k)
				}
			}
		}
		body.Renewed, body.Revokers = true, up[:min(len(up), maxRevokers)]
	}
	chain, err := issue(by.key, MeshID(m.st.Mesh), body, by.chain)
	if err != nil {
		return nil, err
	}
	if _, err := verify(chain, MeshID(m.st.Mesh), now); err != nil {
		return nil, err // what everybody would refuse does not leave this node
	}
	return chain, nil
}

// redeem answers a JoinRequest of the peer with that key, whose connection has proven it.
func (m *Membership) redeem(r *protocol.JoinRequest, joiner peer.ID, source string) *protocol.AdmissionReply {
	deny := func(d protocol.Denial, reason string, args ...any) *protocol.AdmissionReply {
		return &protocol.AdmissionReply{Denial: d, Reason: fmt.Sprintf(reason, args...)}
	}
	key, err := keyOf(joiner)
	if err != nil {
		return deny(protocol.Denial_BAD_CERTIFICATE, "%v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// Only wrong ones are slowed down: a class may be behind one address, and one machine there must not keep the others from joining.
	wrong := func() bool {
		over := m.tries.over(source, m.wall())
		m.tries.wrong(source, m.wall())
		return over
	}
	tooMany := deny(protocol.Denial_TOO_MANY_TRIES, "too many wrong tickets from your address: wait a minute and try again")
	if !bytes.Equal(r.GetMesh(), m.st.Mesh) {
		if wrong() {
			return tooMany
		}
		return deny(protocol.Denial_OTHER_MESH, "this ticket is for another mesh; the node that made it is in the mesh %s now: ask for a new one (meshnode invite)", MeshID(m.st.Mesh))
	}
	i := slices.IndexFunc(m.st.Tickets, func(t *ticket) bool { return hmac.Equal(t.ID, r.GetTicket()) })
	if i < 0 || !hmac.Equal(joinProof(m.st.Tickets[i].Secret, m.st.Mesh, m.rawKey.Public().(ed25519.PublicKey), key), r.GetProof()) {
		if wrong() {
			return tooMany
		}
		return deny(protocol.Denial_TICKET_UNKNOWN, "this ticket is unknown to the node that it names: ask for a new one (meshnode invite)")
	}
	t := m.st.Tickets[i]
	if m.now().Unix() >= t.Expires {
		return deny(protocol.Denial_TICKET_EXPIRED, "this ticket expired on %s: ask for a new one (meshnode invite)", time.Unix(t.Expires, 0).UTC().Format("2006-01-02 15:04 MST"))
	}
	if err := m.revokedKey(key); err != nil {
		return deny(protocol.Denial_REVOKED, revokedReason)
	}
	if chain := m.boundTo(t, key); chain != nil {
		return &protocol.AdmissionReply{Chain: m.own.chain, Issued: chain}
	}
	if len(t.Bound) >= t.Uses {
		return deny(protocol.Denial_TICKET_USED, "this ticket was used already: ask for a new one (meshnode invite)")
	}
	chain, err := m.admit(t, key, cleanName(r.GetName()))
	if err != nil {
		m.log.Error("cannot answer a join", "peer", joiner, "err", err)
		return deny(protocol.Denial_CANNOT_ISSUE, "the node that made this ticket cannot give a certificate now: look into its log")
	}
	return &protocol.AdmissionReply{Chain: m.own.chain, Issued: chain}
}

// metKey is the certificate that is held of a key, or nil. The caller holds mu.
func (m *Membership) metKey(key []byte) *Cert {
	p, err := peerOf(key)
	if err != nil {
		return nil
	}
	return m.met[p]
}

const revokedReason = "this node was revoked in that mesh: give it a new identity (meshnode leave) and join again"

// boundTo is the certificate that a key got for the ticket before; nil if there is none, or it was revoked or given up since. The caller holds mu.
func (m *Membership) boundTo(t *ticket, key []byte) *protocol.Chain {
	for _, b := range t.Bound {
		chain := &protocol.Chain{}
		if !bytes.Equal(b.Key, key) || proto.Unmarshal(b.Chain, chain) != nil {
			continue
		}
		if c, err := verify(chain, MeshID(m.st.Mesh), m.now()); err == nil && m.rev.voidedBy(c) == nil {
			return chain
		}
	}
	return nil
}

// admit signs a certificate for a ticket's next user and puts both on disk. The caller holds mu.
func (m *Membership) admit(t *ticket, key ed25519.PublicKey, name string) (*protocol.Chain, error) {
	by, err := m.issuer()
	if err != nil {
		return nil, err
	}
	owner := []byte(key)
	if t.Mine {
		owner = m.own.body.Owner
	}
	chain, err := m.sign(by, &protocol.CertificateBody{Key: key, Name: name, Owner: owner, Capabilities: t.Capabilities, Runtimes: t.Runtimes}, m.metKey(key), false)
	if err != nil {
		return nil, err
	}
	raw, err := proto.Marshal(chain)
	if err != nil {
		return nil, err
	}
	t.Bound = append(t.Bound, bound{Key: key, Chain: raw})
	if err := m.saveState(); err != nil {
		t.Bound = t.Bound[:len(t.Bound)-1]
		return nil, err
	}
	return chain, nil
}

// renewable reports whether what a certificate gives may be given again: nobody has voided it, and it did not end longer ago than it had
// lived, by when it may be forgotten who it was. The caller holds mu.
func (m *Membership) renewable(c *Cert) bool {
	return m.rev.voidedBy(c) == nil && m.now().Sub(c.NotAfter) <= lifetime
}

// Renew signs the certificate of a member anew, with the same rights, if less than two thirds of its lifetime are left
// and this node may do so; nil if not.
func (m *Membership) Renew(c *Cert) *protocol.Chain {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if c.Mesh != MeshID(m.st.Mesh) || c.NotAfter.Sub(m.now()) >= renewBefore || c.Peer == m.self || !m.renewable(c) || m.revokedKey(c.body.Key) != nil {
		return nil
	}
	by, err := m.issuer()
	if err != nil {
		return nil
	}
	body := proto.Clone(c.body).(*protocol.CertificateBody)
	chain, err := m.sign(by, body, c, true)
	if err != nil || body.NotAfterUnixS <= c.NotAfter.Add(24*time.Hour).Unix() {
		return nil // a certificate that this node cannot sign, or would make hardly better
	}
	return chain
}

// TakeRenewal takes up a new certificate for this node with the rights of the old one, which the same keys may revoke.
func (m *Membership) TakeRenewal(chain *protocol.Chain) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, err := verify(chain, MeshID(m.st.Mesh), m.now())
	if err != nil {
		return err
	}
	timeless := func(c *Cert) *protocol.CertificateBody {
		b := proto.Clone(c.body).(*protocol.CertificateBody)
		b.Serial, b.NotBeforeUnixS, b.NotAfterUnixS, b.Issuer, b.Renewed, b.Revokers = 0, 0, 0, nil, false, nil
		return b
	}
	if c.Peer != m.self || !proto.Equal(timeless(c), timeless(m.own)) || !slices.EqualFunc(above(c.bodies), above(m.own.bodies), bytes.Equal) {
		return fmt.Errorf("%w: a renewal that changes more than the time", ErrCertificate)
	}
	if r := m.rev.voidedBy(c); r != nil {
		return revokedError{r}
	}
	if c.NotBefore.After(m.now().Add(lifetime)) && !m.wall().Before(earliest) {
		return fmt.Errorf("%w: a renewal of %s: the clock of who signed it is wrong", ErrCertificate, c.NotBefore.UTC().Format(time.DateOnly))
	}
	if !c.NotAfter.After(m.own.NotAfter) {
		return nil
	}
	if err := m.setOwn(chain); err != nil {
		return err
	}
	m.changed()
	return nil
}

func ticketID(secret []byte) []byte { return mac(secret, []byte("meshnode ticket id 1"))[:16] }

// joinProof shows knowledge of the secret to the inviter only: it names both keys, which the channel has proven, so
// that nobody else can use it.
func joinProof(secret, mesh, inviter, joiner []byte) []byte {
	return mac(secret, []byte("meshnode join 1"), mesh, inviter, joiner)
}

// mac is over parts of fixed lengths.
func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func formatTicket(t *protocol.Ticket) (string, error) {
	raw, err := proto.Marshal(t)
	if err != nil {
		return "", err
	}
	return ticketPrefix + b32.EncodeToString(append(raw, checksum(raw)...)), nil
}

func checksum(b []byte) []byte {
	sum := sha256.Sum256(append([]byte("meshnode ticket 1\x00"), b...))
	return sum[:4]
}

// ErrTicket is wrapped by what Join and TicketInfo say of a text that is no ticket.
var ErrTicket = errors.New("this is no ticket")

// CheckTicket says what is wrong with a ticket as it was typed, before anybody is asked.
func CheckTicket(s string) error {
	_, err := parseTicket(s)
	return err
}

// parseTicket reads what Invite wrote; case, and blanks and line breaks that a copy may have brought, do not matter.
func parseTicket(s string) (*protocol.Ticket, error) {
	if len(s) > 2*maxTicket {
		return nil, fmt.Errorf("%w: it is too long", ErrTicket)
	}
	s = strings.ToLower(strings.Join(strings.Fields(s), ""))
	body, ok := strings.CutPrefix(s, ticketPrefix)
	if !ok {
		return nil, fmt.Errorf("%w: a ticket starts with %s", ErrTicket, ticketPrefix)
	}
	raw, err := b32.DecodeString(body)
	if err != nil || len(raw) < 4 || !bytes.Equal(checksum(raw[:len(raw)-4]), raw[len(raw)-4:]) {
		return nil, fmt.Errorf("%w, or it has a typing error or lacks its end", ErrTicket)
	}
	t := &protocol.Ticket{}
	if err := proto.Unmarshal(raw[:len(raw)-4], t); err != nil {
		return nil, fmt.Errorf("%w that this version of meshnode can read", ErrTicket)
	}
	if len(t.Mesh) != 32 || len(t.Inviter) != ed25519.PublicKeySize || len(t.Secret) != 16 || len(t.Addresses) > protocol.MaxMemberAddresses || len(t.Capabilities) > 16 {
		return nil, fmt.Errorf("%w that this version of meshnode can read", ErrTicket)
	}
	return t, nil
}

// LANFinder looks for a peer on the local network, for when the addresses in a ticket are old.
// It returns what it has found when ctx ends, or earlier.
type LANFinder func(ctx context.Context, mesh MeshID, p peer.ID) []ma.Multiaddr
