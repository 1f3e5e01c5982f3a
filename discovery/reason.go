package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// reasonOf is a dial's error in one sentence: the other side's own word if it gave one, else what went wrong with each
// address.
func reasonOf(err error) string {
	var refused *members.Refused
	var rejected *members.Rejected
	var other sec.ErrPeerIDMismatch
	var version *protocol.Incompatible
	switch {
	case errors.As(err, &version):
		return version.Error()
	case errors.As(err, &refused):
		return "the other side refuses: " + refused.Error()
	case errors.As(err, &rejected):
		return rejected.Error()
	}
	var dialErr *swarm.DialError
	if !errors.As(err, &dialErr) || len(dialErr.DialErrors) == 0 {
		return short(err)
	}
	var parts []string
	for _, e := range dialErr.DialErrors {
		cause := short(e.Cause)
		if errors.As(e.Cause, &other) {
			cause = "another node is at this address now"
		}
		if parts = append(parts, fmt.Sprintf("%s: %s", e.Address, cause)); len(parts) == 3 {
			break
		}
	}
	if n := len(dialErr.DialErrors) - len(parts); n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more addresses", n))
	}
	return "cannot be reached: " + strings.Join(parts, "; ")
}

// nothingSent reports whether a dial failed on this machine, for there is no way to any of the addresses.
func nothingSent(err error) bool {
	var dialErr *swarm.DialError
	return errors.As(err, &dialErr) && len(dialErr.DialErrors) > 0 && !slices.ContainsFunc(dialErr.DialErrors, func(e swarm.TransportError) bool {
		return !errors.Is(e.Cause, syscall.ENETUNREACH)
	})
}

func short(err error) string {
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("the name %q is not known", dns.Name)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there"
	case timedOut(err):
		return "no answer in time"
	case errors.As(err, &op):
		return oneLine(op.Err)
	}
	return oneLine(err)
}

func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || os.IsTimeout(err)
}

// oneLine is an error for a person's eyes, whoever's bytes are in it: printable, on one line, at most 200 bytes.
func oneLine(err error) string {
	s := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(err.Error()), " "))
	return strings.ToValidUTF8(s[:min(len(s), 200)], "")
}
