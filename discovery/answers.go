package discovery

import (
	"context"
	"errors"
	"net"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// Answer is what an address said when it was asked for a member.
type Answer struct {
	Addr string        `json:"addr"`
	Code Code          `json:"code"`
	Text string        `json:"text"` // a sentence
	Took time.Duration `json:"-"`
}

// Code says what kind of Answer it is.
type Code string

// The codes.
const (
	Answered      Code = "answered"       // the member is there, and both are members for each other
	NobodyThere   Code = "refused"        // the machine is there, and nothing listens
	Silence       Code = "timeout"        // nothing came back
	NoWay         Code = "no_route"       // this machine's network says that there is no way
	NoName        Code = "no_name"        // the DNS name is not known
	OtherIdentity Code = "other_identity" // another key answers
	OtherVersion  Code = "other_version"  // what answers speaks another version of the protocol
	OtherMesh     Code = "other_mesh"     // it, or this node, is in another mesh by now
	Expired       Code = "expired"        // the certificate of one of the two has ended
	Revoked       Code = "revoked"        // one of the two was revoked
	NotAdmitted   Code = "not_admitted"   // refused for another reason
	NotTried      Code = "not_tried"      // a relay's address, of which only a connection could say something
	Broken        Code = "broken"         // anything else
)

// Final says that a person has to do something about it: it does not pass when the other machine wakes up or comes back.
func (c Code) Final() bool {
	switch c {
	case OtherVersion, OtherMesh, Expired, Revoked, NotAdmitted:
		return true
	}
	return false
}

// askTime bounds the asking of one address, with a slow machine's handshake.
const askTime = 3 * time.Second

// maxAsks at once.
const maxAsks = 16

// Ask finds out what each of these addresses says now, where a member is looked for. It connects, and closes at once, and takes
// askTime at most for every sixteen addresses.
func (d *Discovery) Ask(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) []Answer {
	out := make([]Answer, len(addrs))
	slots := make(chan struct{}, maxAsks)
	var wg sync.WaitGroup
	for i, a := range addrs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[i] = d.ask(ctx, p, a)
		})
	}
	wg.Wait()
	return out
}

func (d *Discovery) ask(ctx context.Context, p peer.ID, a ma.Multiaddr) Answer {
	network, host, err := manet.DialArgs(a)
	if err != nil || !members.Dialable(a) {
		return Answer{Addr: a.String(), Code: NotTried, Text: "this leads through a relay"}
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	began := time.Now()
	_, _, err = d.members.Probe(ctx, network, host, p)
	ans := Answer{Addr: a.String(), Took: time.Since(began)}
	ans.Code, ans.Text = AnswerOf(err)
	return ans
}

// AnswerOf is what the error of a Probe says of the other side.
func AnswerOf(err error) (Code, string) {
	var refused *members.Refused
	var rejected *members.Rejected
	var other sec.ErrPeerIDMismatch
	var dns *net.DNSError
	switch {
	case err == nil:
		return Answered, "answers"
	case errors.As(err, new(*protocol.Incompatible)):
		return OtherVersion, reasonOf(err)
	case errors.As(err, &refused):
		code := NotAdmitted
		switch refused.Denial {
		case protocol.Denial_OTHER_MESH:
			code = OtherMesh
		case protocol.Denial_EXPIRED:
			code = Expired
		case protocol.Denial_REVOKED:
			code = Revoked
		}
		return code, reasonOf(err)
	case errors.As(err, &rejected):
		code := NotAdmitted
		switch {
		case errors.Is(err, members.ErrOtherMesh):
			code = OtherMesh
		case errors.Is(err, members.ErrExpired):
			code = Expired
		}
		return code, reasonOf(err)
	case errors.As(err, &other):
		return OtherIdentity, "another node is at this address now"
	case errors.As(err, &dns):
		return NoName, short(err)
	case isErrno(err, syscall.ECONNREFUSED, 10061):
		return NobodyThere, "nothing listens there: the node is not running, or listens on another port"
	case isErrno(err, syscall.EHOSTUNREACH, 10065), isErrno(err, syscall.ENETUNREACH, 10051), isErrno(err, syscall.EADDRNOTAVAIL, 10049):
		return NoWay, "there is no way to that address from here now"
	case timedOut(err):
		return Silence, "no answer: the machine is off or elsewhere, or a firewall drops what comes in"
	}
	return Broken, short(err)
}

// isErrno says whether err is the system's error of that name, which on Windows has a number of its own (WSA…).
func isErrno(err error, unix, windows syscall.Errno) bool {
	if runtime.GOOS == "windows" {
		return errors.Is(err, windows)
	}
	return errors.Is(err, unix)
}

// Advice is what to do where no address of a member answers.
func Advice(answers []Answer) string { return advice(runtime.GOOS, answers) }

func advice(system string, answers []Answer) string {
	has := func(c Code) bool { return slices.ContainsFunc(answers, func(a Answer) bool { return a.Code == c }) }
	switch {
	case has(OtherVersion):
		return "update meshnode on the older of the two machines"
	case has(Revoked):
		return "this node was revoked: meshnode leave here gives it a new identity, for meshnode join with a new ticket"
	case has(OtherMesh):
		return "one of the two is in another mesh now: invite it again, meshnode invite here and meshnode join there; or forget it"
	case has(Expired):
		return "its certificate has ended: an admin that it reaches renews it; else invite it again"
	case has(NotAdmitted):
		return "see the log of the other node for the reason; invite it again if need be"
	case has(NobodyThere):
		return "start the node there: meshnode up -d"
	case has(Silence):
		return "wake that machine and see that it is in a network that this one can reach; run meshnode doctor there: its firewall may drop what comes in"
	case has(NoWay) && system == "darwin": // what it says, too, where it denies in silence
		return "see that this Mac is in that network, and allow meshnode, or the program that it is started from (Terminal), in System Settings, Privacy & Security, Local Network; then start the node again"
	case has(OtherIdentity):
		return "it has moved; when it is up in the same network, or connected to another member, it is found again; or give its address: meshnode up --peer HOST:PORT"
	}
	return "start the node there: meshnode up -d; in the same network it is found by itself, elsewhere by its address: meshnode up --peer HOST:PORT"
}
