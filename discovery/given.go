package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
)

// Given is an address that a person gave, as ParseGiven read it.
type Given struct {
	Text    string  // as it was given
	Network string  // for package net: "tcp", "tcp4" or "tcp6"
	Host    string  // host:port for package net; the host may be a DNS name
	Peer    peer.ID // who has to be there; empty: any member
	Secret  string  // that admits there, or has whoever is there admitted; "": the node's own, if it has one
}

// ParseGiven reads MULTIADDR or HOST:PORT: /ip4/192.168.1.5/tcp/4001, with or without /p2p/PEER; 192.168.1.5:4001;
// laptop.local:4001; [fe80::1%eth0]:4001. It looks nothing up. Errors are one line.
func ParseGiven(s string) (Given, error) {
	g := Given{Text: s, Network: "tcp"}
	if !strings.HasPrefix(s, "/") {
		host, port, err := net.SplitHostPort(s)
		if err != nil || host == "" || strings.ContainsFunc(host, notInHost) || len(host) > 255 {
			return Given{}, fmt.Errorf("address %.80q: want HOST:PORT (192.168.1.5:4001) or a multiaddr (/ip4/192.168.1.5/tcp/4001)", s)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return Given{}, fmt.Errorf("address %.80q: the port must be a number from 1 to 65535", s)
		}
		g.Host = net.JoinHostPort(host, port)
		return g, nil
	}
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return Given{}, fmt.Errorf("address %.80q: want HOST:PORT (192.168.1.5:4001) or a multiaddr (/ip4/192.168.1.5/tcp/4001)", s)
	}
	a, id := peer.SplitAddr(a)
	g.Peer = id
	if !members.Dialable(a) {
		return Given{}, fmt.Errorf("address %.80q: want an IP address or DNS name and a TCP port, as in /ip4/192.168.1.5/tcp/4001, optionally with /p2p/PEER", s)
	}
	if g.Network, g.Host, err = manet.DialArgs(a); err != nil {
		return Given{}, fmt.Errorf("address %.80q: %s", s, oneLine(err))
	}
	if _, port, _ := net.SplitHostPort(g.Host); port == "0" {
		return Given{}, fmt.Errorf("address %.80q: the port must be a number from 1 to 65535", s)
	}
	return g, nil
}

// ParseAnnounce reads the address at which a node tells others to reach it: /ip4/203.0.113.5/tcp/4001, /dns/example.org/tcp/4001 or
// HOST:PORT. It looks nothing up. Errors are one line.
func ParseAnnounce(s string) (ma.Multiaddr, error) {
	g, err := ParseGiven(s)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(g.Host)
	if err != nil {
		return nil, fmt.Errorf("address %.80q: %s", s, oneLine(err))
	}
	protocol := "dns"
	if ip, err := netip.ParseAddr(host); err == nil {
		if protocol = "ip6"; ip.Unmap().Is4() {
			protocol, host = "ip4", ip.Unmap().String()
		}
		if ip.IsUnspecified() || ip.Zone() != "" || ip.IsMulticast() {
			return nil, fmt.Errorf("address %.80q: want one at which other computers reach this node", s)
		}
	} else if strings.HasPrefix(s, "/dns4/") || strings.HasPrefix(s, "/dns6/") {
		protocol = s[1:5]
	}
	a, err := ma.NewMultiaddr("/" + protocol + "/" + host + "/tcp/" + port)
	if err != nil {
		return nil, fmt.Errorf("address %.80q: %s", s, oneLine(err))
	}
	return a, nil
}

func notInHost(r rune) bool {
	return !unicode.IsPrint(r) || unicode.IsSpace(r) || strings.ContainsRune(`/\@?#"'`, r)
}

// seek finds out who is at a given address, and again whenever that peer is not connected: the address may be a
// name whose machine changes. It ends with ctx.
func (d *Discovery) seek(ctx context.Context, g Given) {
	var found peer.ID
	wait := newBackoff()
	for {
		if found == "" || (found != d.host.ID() && !d.connected(found)) {
			p, addr, err := d.meet(ctx, g)
			switch {
			case err == nil && p == d.host.ID():
				d.do(ctx, func() { d.given[g.Text] = givenState{self: true} })
				return
			case err == nil:
				found = p
				wait.reset()
				d.do(ctx, func() {
					d.given[g.Text] = givenState{peer: found}
					d.meshChanged()
					d.hint(found, person, fromPerson, addr)
				})
			default:
				next := wait.next(givenRetry)
				found = ""
				if wrongSecret(err) {
					next = lastRetry
				}
				d.do(ctx, func() {
					d.notMet(g, reasonOf(err))
					d.given[g.Text] = givenState{reason: reasonOf(err), fix: d.givenFix(g, err), next: time.Now().Add(next)}
				})
				if !d.pause(ctx, next) {
					return
				}
				continue
			}
		}
		if !d.pause(ctx, givenCheck) {
			return
		}
	}
}

// givenCheck is how soon a given address is asked again after its peer was lost; the redial loop is quicker where the
// address is still right.
const givenCheck = 5 * time.Second

// givenRetry is the longest wait between two tries of a given address: they are few, and the name in one may lead elsewhere
// at any time.
const givenRetry = 15 * time.Second

// pause waits; false if ctx ended. A change of the interfaces or of the mesh ends it early.
func (d *Discovery) pause(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-d.news.wait():
	}
	return ctx.Err() == nil
}

var errNothing = errors.New("no address is known yet: waiting to hear from it, on the local network (mDNS) or through another member")

// Errors of Connect and Reach that a caller can tell apart.
var (
	ErrSelf      = errors.New("that is this node itself")
	ErrNotMember = errors.New("no member is known by that id")
)

// ConnectError says that a member could not be connected now. Refused: somebody is there, and one of the two sides does not want the other.
type ConnectError struct {
	Reason  string // a sentence
	Refused bool
}

func (e *ConnectError) Error() string { return e.Reason }

// Connect finds out who is at an address and connects that member, once, before ctx ends. From then on it is kept connected like others.
func (d *Discovery) Connect(ctx context.Context, g Given) (peer.ID, error) {
	cert, addr, err := d.members.Probe(ctx, g.Network, g.Host, g.Peer)
	if err != nil {
		return "", connectError(err)
	}
	if cert.Peer == d.host.ID() {
		return "", ErrSelf
	}
	return cert.Peer, d.reach(ctx, cert.Peer, func() {
		d.sync()
		d.hint(cert.Peer, person, fromPerson, addr)
	})
}

// Reach connects a member that is known, before ctx ends.
func (d *Discovery) Reach(ctx context.Context, p peer.ID) error {
	if p == d.host.ID() {
		return ErrSelf
	}
	if _, ok := d.members.Certificate(p); !ok {
		return ErrNotMember
	}
	return d.reach(ctx, p, func() {
		if k := d.peers[p]; k != nil {
			k.backoff.reset()
			d.plan(p, k, 0)
		}
	})
}

// reach has begin done, and waits until p is connected.
func (d *Discovery) reach(ctx context.Context, p peer.ID, begin func()) error {
	d.do(ctx, begin)
	poll := time.NewTicker(reachPoll)
	defer poll.Stop()
	for !d.connected(p) {
		select {
		case <-ctx.Done():
			reason := "no answer in time"
			for _, s := range d.Known() {
				if s.Peer == p && s.Reason != "" {
					reason = s.Reason
				}
			}
			return &ConnectError{Reason: reason}
		case <-poll.C:
		}
	}
	return nil
}

// reachPoll is how often reach looks: a person waits, for a dial that takes milliseconds.
const reachPoll = 5 * time.Millisecond

func connectError(err error) error {
	var refused *members.Refused
	var rejected *members.Rejected
	return &ConnectError{Reason: reasonOf(err), Refused: errors.As(err, &refused) || errors.As(err, &rejected) || wrongSecret(err)}
}

type givenState struct {
	peer   peer.ID // found there
	self   bool
	reason string
	fix    string // what to do about the reason
	next   time.Time
}

// givenFix is what to do where no member was found at a given address.
func (d *Discovery) givenFix(g Given, err error) string {
	switch code, _ := AnswerOf(err); {
	case code == OtherMesh && d.secret == "" && g.Secret == "":
		return "the two are not in one mesh: meshnode invite on one machine, meshnode join TICKET on the other"
	case code == Revoked, code == Expired, code == OtherVersion:
		return Advice([]Answer{{Code: code}})
	}
	return "see that a node runs there and listens on that port (meshnode status there says so), or leave the address out"
}
