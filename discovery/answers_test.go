package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p/core/sec"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// Each way in which a member does not answer has its code, a sentence, and what to do.
func TestAnswerOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err   error
		code  Code
		words string // in what to do
	}{
		{nil, Answered, ""},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, NobodyThere, "meshnode up -d"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, NoWay, "--peer"},
		{fmt.Errorf("dial: %w", context.DeadlineExceeded), Silence, "wake that machine"},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, Silence, "wake that machine"},
		{&net.DNSError{Name: "nobody.example", IsNotFound: true}, NoName, "--peer"},
		{fmt.Errorf("tls: %w", sec.ErrPeerIDMismatch{}), OtherIdentity, "it has moved"},
		{fmt.Errorf("start: %w", &protocol.Incompatible{Theirs: protocol.Versions{4}, Ours: protocol.Spoken}), OtherVersion, "update meshnode"},
		{&members.Refused{Denial: protocol.Denial_OTHER_MESH, Reason: "not admitted: another mesh"}, OtherMesh, "invite it again"},
		{&members.Refused{Denial: protocol.Denial_EXPIRED, Reason: "not admitted: expired"}, Expired, "renews it"},
		{&members.Refused{Denial: protocol.Denial_REVOKED, Reason: "not admitted: revoked"}, Revoked, "meshnode leave here"},
		{&members.Refused{Denial: protocol.Denial_BAD_CERTIFICATE, Reason: "not admitted: forged"}, NotAdmitted, "log of the other node"},
		{&members.Rejected{Err: fmt.Errorf("%w: x", members.ErrOtherMesh)}, OtherMesh, "invite it again"},
		{&members.Rejected{Err: fmt.Errorf("%w: x", members.ErrExpired)}, Expired, "renews it"},
		{errors.New("something\nelse"), Broken, "--peer"},
	} {
		code, text := AnswerOf(c.err)
		if code != c.code || text == "" || strings.Contains(text, "\n") {
			t.Errorf("%v: %s %q, want %s", c.err, code, text, c.code)
		}
		if advice := advice("linux", []Answer{{Code: code}}); !strings.Contains(advice, c.words) {
			t.Errorf("%v: %q", c.err, advice)
		}
	}
	if s := advice("darwin", []Answer{{Code: NoWay}}); !strings.Contains(s, "Local Network") {
		t.Error(s)
	}
}
