package node

import (
	"context"
	"errors"
	"fmt"

	"meshnode/discovery"
	"meshnode/discovery/members"
)

// checkSecret says what is wrong with a shared secret.
func checkSecret(secret string, local bool) error {
	err := members.CheckSecret(secret, local)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, members.ErrShortSecret):
		return &Error{Code: CodeBadRequest, Message: err.Error() + ", since whoever reaches the port can guess at it", Fix: fmt.Sprintf("take a longer one, of %d characters or more", members.MinSecret)}
	}
	return &Error{Code: CodeBadRequest, Message: err.Error(), Fix: fmt.Sprintf("want a line of %d characters or more", members.MinSecret)}
}

// IsCode reports whether what a person gave to join with is meant for a short code, and not for a ticket.
func IsCode(text string) bool { return members.IsCode(text) }

// CompleteCode are the codes that text may be the beginning of.
func CompleteCode(text string) []string { return members.CompleteCode(text) }

// CheckCode says what is wrong with a code as it was typed, before anybody is asked.
func CheckCode(text string) error {
	if _, _, err := members.ParseCode(text); err != nil {
		return &Error{Code: CodeBadRequest, Message: err.Error(), Fix: "ask again what the other machine shows"}
	}
	return nil
}

// CheckTicket says what is wrong with a ticket as it was typed, before anybody is asked.
func CheckTicket(text string) error {
	if err := members.CheckTicket(text); err != nil {
		return &Error{Code: CodeBadRequest, Message: err.Error(), Fix: "copy the whole line that meshnode invite printed on the other machine"}
	}
	return nil
}

// InviteCode implements clientAPI.
func (n *Node) InviteCode(ctx context.Context, o InviteOptions) (string, error) {
	code, err := n.members.InviteCode(members.InviteOptions{Mine: o.Mine, Guest: o.Guest, Expires: o.Expires, Uses: o.Uses, Runtimes: o.Runtimes})
	return code, inviteError(err)
}

// Code implements clientAPI.
func (n *Node) Code(ctx context.Context, code string, withdraw bool) (Code, error) {
	if err := CheckCode(code); err != nil {
		return Code{}, err
	}
	if withdraw {
		if err := n.members.Withdraw(code); err != nil {
			return Code{}, err
		}
	}
	s, ok := n.members.CodeState(code)
	if !ok {
		return Code{}, &Error{Code: CodeBadRequest, Message: "this node has given out no such code, or it ended more than an hour ago", Fix: "make one: meshnode invite --code"}
	}
	c := Code{State: string(s.Standing), Uses: s.Uses, Joined: []Joiner{}, Wrong: s.Wrong, Expires: s.Expires}
	for _, j := range s.Joined {
		c.Joined = append(c.Joined, Joiner{j.Peer, j.Name})
	}
	return c, nil
}

// JoinCode implements clientAPI.
func (n *Node) JoinCode(ctx context.Context, code, at string) (Joined, error) {
	if err := CheckCode(code); err != nil {
		return Joined{}, err
	}
	o := members.CodeOptions{Find: discovery.FindCode}
	if at != "" {
		g, err := discovery.ParseGiven(at)
		if err != nil {
			return Joined{}, &Error{Code: CodeBadRequest, Message: "--peer: " + err.Error(), Fix: "meshnode status on the other machine shows its addresses"}
		}
		o.At = []members.Place{{Peer: g.Peer, Network: g.Network, Host: g.Host}}
	}
	p, err := n.members.JoinCode(ctx, code, o)
	var refused *members.Refused
	switch {
	case err == nil:
		c, ok := n.members.Certificate(p.Peer)
		mine := ok && c.Owner == n.members.Own().Owner
		return Joined{Mesh: p.Mesh.String(), Peer: p.Peer.String(), Name: p.Name, Mine: mine}, nil
	case errors.Is(err, members.ErrWrongSecret):
		return Joined{}, &Error{Code: CodeRefused, Message: "the machine that answered does not know this code", Fix: "ask for a new code, and name the machine that gives it out: --peer HOST:PORT"}
	case errors.As(err, &refused), errors.Is(err, members.ErrLeaveFirst):
		return Joined{}, &Error{Code: CodeRefused, Message: err.Error()}
	}
	fix := ""
	if at != "" {
		fix = "see whether a node runs there, and listens on that port: meshnode status there says so"
	}
	return Joined{}, &Error{Code: CodeUnavailable, Message: err.Error(), Fix: fix}
}

// ConnectBySecret implements clientAPI.
func (n *Node) ConnectBySecret(ctx context.Context, addr, secret string) (Connected, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	g, err := discovery.ParseGiven(addr)
	if err != nil {
		return Connected{}, &Error{Code: CodeBadRequest, Message: err.Error(), Fix: "an address is HOST:PORT or a multiaddr"}
	}
	if err := checkSecret(secret, true); err != nil {
		return Connected{}, err
	}
	g.Secret = secret
	p, err := n.finder.ConnectBySecret(ctx, g)
	if err == nil {
		err = n.awaitSession(ctx, p)
	}
	var cannot *discovery.ConnectError
	switch {
	case err == nil:
		return n.connected(p), nil
	case errors.Is(err, discovery.ErrSelf):
		return Connected{}, &Error{Code: CodeRefused, Message: addr + " is this node itself", Fix: "name another node"}
	case errors.As(err, &cannot) && cannot.Refused:
		return Connected{}, &Error{Code: CodeRefused, Message: fmt.Sprintf("%s: %s", addr, cannot.Reason), Fix: "start both with the same secret"}
	}
	return Connected{}, &Error{Code: CodeUnavailable, Message: fmt.Sprintf("%s: %v", addr, err), Fix: "see whether a node runs there, and listens on that port: meshnode status there says so"}
}
