package members

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

// Refused is the error of a connection that the other side did not admit. Reason is its sentence, made safe to print.
type Refused struct {
	Peer   peer.ID
	Denial protocol.Denial
	Reason string
}

func (r *Refused) Error() string { return r.Reason }

// Rejected is the error of a connection whose other side is no member by this node's judgement. It wraps ErrExpired,
// ErrOtherMesh or ErrCertificate.
type Rejected struct {
	Peer peer.ID
	Err  error
}

func (r *Rejected) Error() string { return fmt.Sprintf("the other side is no member: %v", r.Err) }

// Unwrap makes errors.Is find the cause.
func (r *Rejected) Unwrap() error { return r.Err }

// The exchange, inside the encrypted channel that has proven both keys:
//
//	dialer → listener   Admission: a chain, or a JoinRequest, or a PairStart (pair.go goes on from there)
//	listener → dialer   AdmissionReply: its chain, or a denial with a sentence
//	dialer → listener   AdmissionDone
//
// and, if both are members who hold different revocations:
//
//	dialer → listener   in that AdmissionDone, all that it holds
//	listener → dialer   AdmissionReply: all that it holds; or, by what it has just heard, a denial
//	dialer → listener   AdmissionDone
//
// A connection is handed up by the listener only after the last, by the dialer after the last that it reads, so that neither
// ever shows libp2p a peer that the other side refuses. Each message is a varint length and a protobuf.

// admitOut is the dialing side. It returns the member's certificate.
func (m *Membership) admitOut(c sec.SecureConn, probe bool) (*Cert, error) {
	held, digest := m.held()
	if err := writeMsg(c, &protocol.Admission{Chain: m.Own().chain, Probe: probe, Revocations: digest}); err != nil {
		return nil, err
	}
	reply, err := readReply(c)
	if err != nil {
		return nil, fmt.Errorf("read the answer to this node's certificate: %w", err)
	}
	if reply.Denial == protocol.Denial_EXPIRED && reply.Issued != nil {
		if err := m.TakeRenewal(reply.Issued); err == nil {
			return nil, errRenewed
		}
	}
	if reply.Denial != protocol.Denial_ADMITTED {
		m.hearDenial(reply)
		return nil, refusedBy(c.RemotePeer(), reply)
	}
	cert, _, err := m.judge(reply.Chain, c.RemotePeer())
	if err != nil {
		var issued *protocol.Chain
		if errors.Is(err, ErrExpired) {
			issued = m.Renew(cert)
		}
		sayDone(c, err, issued)
		return nil, &Rejected{c.RemotePeer(), err}
	}
	differ := differ(digest, reply.Revocations)
	done := &protocol.AdmissionDone{}
	if differ {
		done.Revoked = held
	}
	if err := writeMsg(c, done); err != nil {
		return nil, err
	}
	if differ {
		second := &protocol.AdmissionReply{}
		if err := readMsg(c, second, protocol.MaxRevocationSet); err != nil {
			return nil, fmt.Errorf("read which members it knows to be revoked: %w", err)
		}
		if second.Denial != protocol.Denial_ADMITTED {
			m.hearDenial(second)
			return nil, refusedBy(c.RemotePeer(), second)
		}
		if cert, err = m.hearHeld(second.Revoked, reply.Chain, c.RemotePeer()); err != nil {
			sayDone(c, err, nil)
			return nil, &Rejected{c.RemotePeer(), err}
		}
		if err := writeMsg(c, &protocol.AdmissionDone{}); err != nil {
			return nil, err
		}
	}
	return cert, m.learn(cert)
}

// admitIn is the listening side. What it reads is bounded by maxPreAdmission, until it has judged the other side a member and calls grow.
func (m *Membership) admitIn(c sec.SecureConn, relayed bool, grow func(bytes int64)) (*Cert, error) {
	a := &protocol.Admission{}
	if err := readMsg(c, a, protocol.MaxAdmission); err != nil {
		return nil, fmt.Errorf("read its certificate: %w", err)
	}
	if relayed && (a.Pair != nil || a.Join != nil) {
		// Tickets and codes are good on the direct way only, where tries are counted by address.
		reply := &protocol.AdmissionReply{Denial: protocol.Denial_BAD_CERTIFICATE, Reason: "not admitted: through a relay come members only"}
		if err := writeMsg(c, reply); err == nil {
			awaitDone(c)
		}
		return nil, errJoinRelayed
	}
	if a.Pair != nil {
		return nil, m.pairIn(c, a.Pair)
	}
	if a.Join != nil {
		reply := m.redeem(a.Join, c.RemotePeer(), source(addrOf(c.RemoteAddr())).String())
		if err := writeMsg(c, reply); err != nil {
			return nil, err
		}
		awaitDone(c)
		if reply.Denial != protocol.Denial_ADMITTED {
			return nil, fmt.Errorf("join refused: %s", reply.Reason)
		}
		if _, err := m.Add(reply.Issued); err != nil {
			return nil, err
		}
		m.mu.Lock()
		m.changed()
		m.mu.Unlock()
		m.log.Info("gave a certificate to a new member", "peer", c.RemotePeer(), "name", cleanName(a.Join.Name))
		return nil, errJoined
	}
	deny := func(cert *Cert, denial protocol.Denial, err error) error {
		reply := &protocol.AdmissionReply{Denial: denial, Reason: "not admitted: " + err.Error(), Revoked: proofOf(err)}
		if denial == protocol.Denial_EXPIRED {
			reply.Issued = m.Renew(cert)
		}
		if err := writeMsg(c, reply); err == nil {
			awaitDone(c)
		}
		return err
	}
	cert, denial, err := m.judge(a.Chain, c.RemotePeer())
	if err != nil {
		return nil, deny(cert, denial, err)
	}
	held, digest := m.held()
	if err := writeMsg(c, &protocol.AdmissionReply{Chain: m.Own().chain, Revocations: digest}); err != nil {
		return nil, err
	}
	done, limit := &protocol.AdmissionDone{}, protocol.MaxAdmission
	differ := differ(digest, a.Revocations)
	if differ {
		limit = protocol.MaxRevocationSet
		grow(maxExchange)
	}
	if err := readMsg(c, done, limit); err != nil {
		return nil, fmt.Errorf("read whether it takes this node's certificate: %w", err)
	}
	if done.Refused != "" {
		m.hearRefusal(done)
		return nil, fmt.Errorf("it refuses this node's certificate: %s", plain(done.Refused))
	}
	if differ {
		if cert, err = m.hearHeld(done.Revoked, a.Chain, c.RemotePeer()); err != nil {
			return nil, deny(cert, denialOf(err), err)
		}
		if err := writeMsg(c, &protocol.AdmissionReply{Revoked: held}); err != nil {
			return nil, err
		}
		done := &protocol.AdmissionDone{}
		if err := readMsg(c, done, protocol.MaxAdmission+maxRevocation); err != nil {
			return nil, fmt.Errorf("read whether it takes this node's certificate: %w", err)
		}
		if done.Refused != "" {
			m.hearRefusal(done)
			return nil, fmt.Errorf("it refuses this node's certificate: %s", plain(done.Refused))
		}
	}
	if a.Probe {
		return nil, errProbe
	}
	return cert, m.learn(cert)
}

// maxExchange bytes may be read of a member besides maxPreAdmission: a set of revocations and what encrypts it.
const maxExchange = protocol.MaxRevocationSet + protocol.MaxRevocationSet/16

// differ reports whether two members hold different revocations, by their digests. One that sends none knows of none such.
func differ(mine, theirs []byte) bool { return len(theirs) == len(mine) && !bytes.Equal(mine, theirs) }

// hearHeld takes up the revocations that a member holds, and judges that member again by them.
func (m *Membership) hearHeld(set []*protocol.Revocation, chain *protocol.Chain, remote peer.ID) (*Cert, error) {
	if err := m.AddRevocations(set...); err != nil {
		m.log.Warn("revocations told by a member", "peer", remote.String(), "protocol", protocol.AdmissionProtocol, "err", err)
	}
	cert, _, err := m.judge(chain, remote)
	return cert, err
}

// hearDenial and hearRefusal take up what revokes this node itself, or its renewal. Who says so need not be a member any more than this node is: the
// signatures count.
func (m *Membership) hearDenial(r *protocol.AdmissionReply) {
	if r.Denial == protocol.Denial_REVOKED {
		m.hearOwn(r.Revoked)
	}
}

func (m *Membership) hearRefusal(d *protocol.AdmissionDone) {
	m.hearOwn(d.Revoked)
	if d.Issued == nil {
		return
	}
	if err := m.TakeRenewal(d.Issued); err != nil {
		m.log.Warn("a renewed certificate is no good", "err", err)
	}
}

func (m *Membership) hearOwn(proof []*protocol.Revocation) {
	if len(proof) > maxChain {
		return
	}
	if err := m.AddRevocations(proof...); err != nil {
		m.log.Warn("what a peer says of this node's revocation is no good", "err", err)
	}
}

// judge verifies the chain that a peer showed, whose connection has proven its key.
func (m *Membership) judge(chain *protocol.Chain, remote peer.ID) (*Cert, protocol.Denial, error) {
	m.mu.RLock()
	mesh, now, rev := MeshID(m.st.Mesh), m.now(), m.rev
	m.mu.RUnlock()
	cert, err := verify(chain, mesh, now)
	if cert != nil && cert.Peer != remote {
		return nil, protocol.Denial_BAD_CERTIFICATE, fmt.Errorf("%w: it is another key's", ErrCertificate)
	}
	if cert != nil {
		if r := rev.voidedBy(cert); r != nil {
			err = revokedError{r}
		}
	}
	if err == nil {
		return cert, protocol.Denial_ADMITTED, nil
	}
	return cert, denialOf(err), err
}

// denialOf is the code of what judge says.
func denialOf(err error) protocol.Denial {
	switch {
	case errors.Is(err, ErrRevoked):
		return protocol.Denial_REVOKED
	case errors.Is(err, ErrExpired):
		return protocol.Denial_EXPIRED
	case errors.Is(err, ErrOtherMesh):
		return protocol.Denial_OTHER_MESH
	}
	return protocol.Denial_BAD_CERTIFICATE
}

// learn keeps the certificate of a member that was met, which judge has verified.
func (m *Membership) learn(c *Cert) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.Mesh != MeshID(m.st.Mesh) { // left in between
		return ErrOtherMesh
	}
	if r := m.rev.voidedBy(c); r != nil { // heard of in between
		return revokedError{r}
	}
	m.recall(c.Peer)
	if !m.add(c, true) {
		return nil
	}
	return m.saveMet()
}

func refusedBy(p peer.ID, r *protocol.AdmissionReply) *Refused {
	reason := plain(r.Reason)
	if reason == "" {
		reason = "not admitted: " + r.Denial.String()
	}
	return &Refused{Peer: p, Denial: r.Denial, Reason: reason}
}

// plain makes a peer's sentence safe to print: one line, at most 300 bytes.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s[:min(len(s), 300)])
	return strings.TrimSpace(s)
}

// sayDone ends an exchange that this side breaks off, and gives the other side the time to read why: closing at once
// could reset the connection under it.
func sayDone(c sec.SecureConn, reason error, issued *protocol.Chain) {
	if writeMsg(c, &protocol.AdmissionDone{Refused: plain(reason.Error()), Revoked: proofOf(reason), Issued: issued}) == nil {
		awaitDone(c)
	}
}

// awaitDone waits for the other side to end the exchange, within the deadline that the connection has.
func awaitDone(c io.Reader) {
	readMsg(c, &protocol.AdmissionDone{}, protocol.MaxAdmission)
}

func writeMsg(w io.Writer, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	return err
}

// readMsg reads one message of at most limit bytes and not one byte more: what follows belongs to libp2p.
func readMsg(r io.Reader, m proto.Message, limit int) error {
	n, err := binary.ReadUvarint(byteReader{r})
	if err != nil {
		return err
	}
	if n > uint64(limit) {
		return fmt.Errorf("%w: %d bytes, at most %d", protocol.ErrProtocol, n, limit)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if err := protocol.CheckParts(body, m); err != nil {
		return err
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return fmt.Errorf("%w: %v", protocol.ErrProtocol, err)
	}
	return nil
}

func readReply(r io.Reader) (*protocol.AdmissionReply, error) {
	reply := &protocol.AdmissionReply{}
	return reply, readMsg(r, reply, protocol.MaxAdmissionReply)
}

type byteReader struct{ io.Reader }

func (r byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// limitTime sets the deadline of an exchange: ctx's, and admissionTimeout at the latest.
func limitTime(ctx context.Context, c net.Conn) {
	end := time.Now().Add(admissionTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	c.SetDeadline(end)
}

// logRefused logs a connection that came to nothing, once a minute for each source and reason: the one form of all that
// strangers do. A source is a network where one machine may have all its addresses, as with IPv6. peer is empty if the connection did not get as far as proving it.
func (m *Membership) logRefused(p peer.ID, addr ma.Multiaddr, err error) {
	from := "?"
	if i, e := manet.ToIP(addr); e == nil {
		if ip, ok := netip.AddrFromSlice(i); ok && ip.Unmap().Is6() {
			from = source(ip).String()
		} else {
			from = i.String()
		}
	}
	reason := err.Error()
	if m.refused.OK(from + " " + reason[:min(len(reason), 40)]) {
		m.log.Warn("connection refused", "peer", p.String(), "addr", addr.String(), "protocol", protocol.ID(protocol.NameAdmission, m.speak[0]), "err", reason)
	}
}
