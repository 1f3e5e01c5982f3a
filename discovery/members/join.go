package members

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	mss "github.com/multiformats/go-multistream"

	"meshnode/protocol"
)

// Errors of Join that a caller can act on; a ticket that its inviter refuses is a *Refused.
var (
	ErrLeaveFirst  = errors.New("this node is in a mesh with other members already: leave first (meshnode leave)")
	ErrLesser      = errors.New("this node is a member of that mesh already, with more rights than the ticket gives: nothing was changed; to give them up, leave first (meshnode leave)")
	ErrOwnTicket   = errors.New("this ticket was made by this node: use it on the other machine")
	ErrUnreachable = errors.New("the node that made the ticket cannot be reached")
)

// JoinOptions of Join. The zero value works.
type JoinOptions struct {
	// Find is asked when no address of the ticket answers soon. Default: not asked.
	Find LANFinder
}

// Join makes this node a member of the ticket's mesh, in place of the one that it made for itself on its first start. It
// works whether or not the node is running: it makes a connection of its own to the inviter. Calling it again with the
// same ticket fetches the certificate again. Subscribers hear of the change.
//
// The secret stays here: the inviter's key is proven by TLS and named in the ticket, and it gets a proof that is good for
// these two keys only.
func (m *Membership) Join(ctx context.Context, ticket string, o JoinOptions) error {
	t, err := parseTicket(ticket)
	if err != nil {
		return err
	}
	inviterID, err := peerOf(t.Inviter)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrTicket, err)
	}
	if inviterID == m.self {
		return ErrOwnTicket
	}
	m.mu.RLock()
	free := MeshID(m.st.Mesh) == MeshID(t.Mesh) || m.alone()
	lesser := MeshID(m.st.Mesh) == MeshID(t.Mesh) && m.now().Before(m.own.NotAfter) && slices.ContainsFunc(m.own.Capabilities, func(c protocol.Capability) bool {
		return !slices.Contains(t.Capabilities, c)
	})
	m.mu.RUnlock()
	if !free {
		return ErrLeaveFirst
	}
	if lesser {
		return ErrLesser
	}
	var addrs []ma.Multiaddr
	for _, b := range t.Addresses {
		if a, err := ma.NewMultiaddrBytes(b); err == nil && Dialable(a) {
			addrs = append(addrs, a)
		}
	}
	reply, addr, err := m.findInviter(ctx, t, inviterID, addrs, o.Find)
	if err != nil {
		if errors.Is(err, ErrUnreachable) && m.wall().Unix() > t.ExpiresUnixS {
			err = fmt.Errorf("%w; and by this machine's clock the ticket expired on %s", err, time.Unix(t.ExpiresUnixS, 0).UTC().Format("2006-01-02 15:04 MST"))
		}
		return err
	}
	return m.enter(t, reply, inviterID, append([]ma.Multiaddr{addr}, addrs...))
}

// enter puts the certificate that the inviter gave in place of what was.
func (m *Membership) enter(t *protocol.Ticket, reply *protocol.AdmissionReply, inviterID peer.ID, addrs []ma.Multiaddr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mesh := MeshID(t.Mesh)
	if mesh != MeshID(m.st.Mesh) && !m.movable() { // somebody joined this node meanwhile
		return ErrLeaveFirst
	}
	by, err := verify(reply.Chain, mesh, m.now())
	if err != nil || by.Peer != inviterID {
		return fmt.Errorf("%w: the inviter's own (%v)", ErrCertificate, err)
	}
	if mesh == MeshID(m.st.Mesh) && m.now().Before(m.own.NotAfter) {
		// A ticket for another owner's machine, used on one that has its owner already.
		if c, err := verify(reply.Issued, mesh, m.now()); err == nil && !bytes.Equal(c.body.Owner, m.own.body.Owner) && bytes.Equal(c.body.Owner, c.body.Key) {
			return ErrLesser
		}
	}
	old := m.inMesh
	other := mesh != MeshID(m.st.Mesh)
	if other {
		m.inMesh = elsewhere(state{Mesh: t.Mesh, Newest: old.st.Newest})
	}
	m.st.Inviter = &inviter{Peer: inviterID.String()}
	for _, a := range addrs {
		if s := a.String(); len(m.st.Inviter.Addrs) < protocol.MaxMemberAddresses && (len(m.st.Inviter.Addrs) == 0 || m.st.Inviter.Addrs[0] != s) {
			m.st.Inviter.Addrs = append(m.st.Inviter.Addrs, s)
		}
	}
	if err := m.setOwn(reply.Issued); err != nil {
		m.inMesh = old
		return err
	}
	m.add(by, true)
	m.changed()
	if other {
		return m.forgetMesh()
	}
	return m.saveMet()
}

// lanDelay is how long the ticket's addresses have to answer before the inviter is looked for in the local network, too: in that they
// answer within milliseconds, and one that is nobody's any more takes three seconds to fail, or never does.
const lanDelay = 400 * time.Millisecond

// findInviter asks the inviter at the ticket's addresses, and at those that find has of it.
func (m *Membership) findInviter(ctx context.Context, t *protocol.Ticket, inviterID peer.ID, addrs []ma.Multiaddr, find LANFinder) (*protocol.AdmissionReply, ma.Multiaddr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		reply *protocol.AdmissionReply
		addr  ma.Multiaddr
		err   error
	}
	ask := func(addrs []ma.Multiaddr) (a answer) {
		a.reply, a.addr, a.err = m.askInviter(ctx, t, inviterID, addrs)
		return a
	}
	known, found, silent := make(chan answer, 1), make(chan answer, 1), make(chan struct{})
	go func() { known <- ask(addrs) }()
	go func() {
		none := answer{err: ErrUnreachable}
		if find == nil {
			found <- none
			return
		}
		select {
		case <-time.After(lanDelay):
		case <-silent:
		case <-ctx.Done():
		}
		if at := find(ctx, MeshID(t.Mesh), inviterID); len(at) > 0 {
			found <- ask(at)
		} else {
			found <- none
		}
	}()
	var a answer
	select {
	case a = <-known:
		if errors.Is(a.err, ErrUnreachable) {
			close(silent)
			if b := <-found; !errors.Is(b.err, ErrUnreachable) {
				a = b
			}
		}
	case a = <-found:
		if errors.Is(a.err, ErrUnreachable) { // what the ticket's addresses say is more to the point
			a = <-known
		}
	}
	return a.reply, a.addr, a.err
}

// askInviter tries all addresses at once and has the first connection that proves to be the inviter ask.
func (m *Membership) askInviter(ctx context.Context, t *protocol.Ticket, inviterID peer.ID, addrs []ma.Multiaddr) (*protocol.AdmissionReply, ma.Multiaddr, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*admissionTimeout)
	defer cancel()
	own, err := keyOf(m.self)
	if err != nil {
		return nil, nil, err
	}
	request := &protocol.Admission{Join: &protocol.JoinRequest{
		Mesh: t.Mesh, Ticket: ticketID(t.Secret), Proof: joinProof(t.Secret, t.Mesh, t.Inviter, own), Name: m.name,
	}}
	type answer struct {
		reply *protocol.AdmissionReply
		addr  ma.Multiaddr
		err   error
	}
	answers := make(chan answer, len(addrs))
	var asking sync.Mutex // one exchange at a time: the others are spares
	for _, a := range addrs {
		go func() {
			try := func() (*protocol.AdmissionReply, error) {
				c, err := m.dial(ctx, a, inviterID)
				if err != nil {
					return nil, err
				}
				defer c.Close()
				asking.Lock()
				defer asking.Unlock()
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				limitTime(ctx, c)
				if err := writeMsg(c, request); err != nil {
					return nil, err
				}
				reply, err := readReply(c)
				if err == nil {
					writeMsg(c, &protocol.AdmissionDone{})
				}
				return reply, err
			}
			r, err := try()
			// A node with more newcomers than it has places for closes some unread: these try again.
			for pause := crowdedPause; crowdedOut(err); pause *= 2 {
				select {
				case <-time.After(pause + rand.N(pause)):
				case <-ctx.Done():
				}
				if ctx.Err() != nil {
					break
				}
				r, err = try()
			}
			answers <- answer{r, a, err}
		}()
	}
	var errs []string
	var other *protocol.Incompatible
	for range addrs {
		a := <-answers
		errors.As(a.err, &other)
		if a.err == nil {
			if a.reply.Denial != protocol.Denial_ADMITTED {
				return nil, nil, refusedBy(inviterID, a.reply)
			}
			return a.reply, a.addr, nil
		}
		errs = append(errs, fmt.Sprintf("%s: %s", a.addr, plain(a.err.Error())))
	}
	if other != nil {
		return nil, nil, fmt.Errorf("the node that made the ticket cannot let this one in: %w", other)
	}
	if len(errs) == 0 {
		errs = []string{"the ticket holds no address"}
	}
	return nil, nil, fmt.Errorf("%w: %s. Is it running, and on a network that this machine can reach? (%s)", ErrUnreachable, inviterID, strings.Join(errs, "; "))
}

// crowdedPause, doubled each time and up to twice as long, is between two tries of a joiner that was crowded out.
const crowdedPause = 100 * time.Millisecond

// crowdedOut reports whether a connection was there and then ended without an answer.
func crowdedOut(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// Probe learns who listens at addr (an address without /p2p/, or host:port as ParseDial has it): it proves this node's
// membership and asks for the other's, then closes. expect is the peer that must be there, or empty. The
// certificate is kept; the address returned is the one that answered.
func (m *Membership) Probe(ctx context.Context, network, hostPort string, expect peer.ID) (*Cert, ma.Multiaddr, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*admissionTimeout)
	defer cancel()
	c, err := m.dialHost(ctx, network, hostPort, expect)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	limitTime(ctx, c)
	cert, err := m.admitOut(c, true)
	if err != nil {
		return nil, nil, err
	}
	addr, err := manet.FromNetAddr(c.RemoteAddr())
	return cert, addr, err
}

// dial opens an encrypted channel to p, without libp2p's host. The exchange is the caller's.
func (m *Membership) dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (sec.SecureConn, error) {
	network, host, err := manet.DialArgs(a)
	if err != nil {
		return nil, err
	}
	return m.dialHost(ctx, network, host, p)
}

func (m *Membership) dialHost(ctx context.Context, network, host string, p peer.ID) (sec.SecureConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, host)
	if err != nil {
		return nil, err
	}
	limitTime(ctx, c)
	id, err := mss.SelectOneOf(m.speak.IDs(protocol.NameAdmission), io.ReadWriteCloser(c))
	if err != nil {
		if errors.Is(err, mss.ErrNotSupported[string]{}) {
			err = m.otherVersion(c)
		}
		c.Close()
		return nil, fmt.Errorf("start the admission protocol: %w", err)
	}
	tls, err := libp2ptls.New(libp2pproto.ID(id), m.key, nil)
	if err != nil {
		c.Close()
		return nil, err
	}
	sc, err := tls.SecureOutbound(ctx, c, p)
	if err != nil {
		c.Close()
		return nil, err
	}
	return sc, nil
}
