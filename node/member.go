package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"meshnode/discovery"
	"meshnode/discovery/members"
	"meshnode/protocol"
	"meshnode/tasks"
)

// Revoked is a member that was put out of the mesh.
type Revoked struct {
	Peer string `json:"peer"`
	Name string `json:"name"`
	// Keeps are the members that it had admitted, or whose certificates it had renewed, and that stay, by name.
	Keeps []string `json:"keeps"`
	// Secret says that it knows a shared secret of the mesh, by which it could come back as another.
	Secret bool `json:"secret"`
}

// Left is how a node left its mesh.
type Left struct {
	Told int `json:"told"` // members that heard it
	// Known are the members that it had, itself not counted.
	Known        int    `json:"known"`
	RecoveryCode string `json:"recovery_code,omitempty"` // of the mesh of its own in which it is now
	// Restart says that the node was revoked and gets a new identity: it stops, and has that with its next start.
	Restart bool `json:"restart"`
}

// PeerPolicy is a word of this machine's owner on a member.
type PeerPolicy struct {
	Runtimes []string // wasm, python, command; empty: all
	Work     bool     // this node's tasks at that member; else that member's tasks here
}

var errNoMember = errors.New("it is no member any more")

// farewellWait is how long a node that leaves waits for a member to tell: the command line may just have started it for that.
const farewellWait = 4 * time.Second

// watchMembership keeps what is between this node and others in step with who they are: when the node joins or leaves a mesh, all of it
// ends; when a member is revoked or has left, all that is between it and this node, at once; and what the owner allows or denies counts
// for what is under way.
func (n *Node) watchMembership(ctx context.Context) error {
	changes, stop := n.members.Subscribe()
	defer stop()
	mesh := n.members.Mesh()
	trouble := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		}
		if now := n.members.Mesh(); now != mesh {
			mesh = now
			n.log.Info("mesh changed", "mesh", mesh)
			for _, p := range n.host.Network().Peers() {
				n.host.Network().ClosePeer(p)
			}
		}
		if now := strings.Join(n.members.Trouble(), "; "); now != trouble {
			if trouble = now; now != "" {
				n.log.Warn("membership", "notice", now)
			}
		}
		for _, s := range n.sessions.list() {
			n.judge(s)
		}
		for _, d := range n.members.AllDeparted() { // of one whose stream is down, too
			n.step(tasks.Expelled{Peer: protocol.NodeID(d.Peer.String()), Reason: d.String()})
		}
	}
}

// judge brings a session in step with what its peer is and may now; false: it is no member, and all that was between the two has ended.
func (n *Node) judge(s *session) bool {
	if _, ok := n.members.Certificate(s.peer); !ok {
		reason := "its certificate has ended, or it is of another mesh"
		if d, gone := n.members.Departed(s.peer); gone {
			reason = d.String()
			n.step(tasks.Expelled{Peer: s.node, Reason: reason})
		}
		s.end(fmt.Errorf("%w: %s", errNoMember, reason))
		n.host.Network().ClosePeer(s.peer)
		return false
	}
	said, _ := n.names.Load(s.node)
	own, _ := said.(string)
	n.step(tasks.SetPolicy{
		Peer: s.node, Name: cmp.Or(n.members.Label(s.peer), own),
		MayUseHere: n.members.MayUseHere(s.peer), MayUseThere: n.members.MayUseThere(s.peer),
	})
	return true
}

// list is a copy of all sessions.
func (ss *sessions) list() []*session {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	out := make([]*session, 0, len(ss.all))
	for _, s := range ss.all {
		out = append(out, s)
	}
	return out
}

// labelOf is what this machine's owner calls a member, "" if nothing else than it calls itself.
func (n *Node) labelOf(id string) string {
	p, err := peer.Decode(id)
	if err != nil {
		return ""
	}
	return n.members.Label(p)
}

// peerError is an error about a member, for a person.
func (n *Node) peerError(id string, err error) error {
	name := n.nameOf(protocol.NodeID(id))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, members.ErrNoMember):
		return &Error{Code: CodeNoPeer, Message: fmt.Sprintf("no member %s", name), Fix: "meshnode peers lists them"}
	case errors.Is(err, members.ErrDeparted):
		return &Error{Code: CodeRefused, Message: fmt.Sprintf("%s: %v", name, err), Fix: "nothing: it is out already"}
	case errors.Is(err, members.ErrOwnRevoke):
		return &Error{Code: CodeRefused, Message: "this is the node itself", Fix: "to take it out of the mesh: meshnode leave"}
	case errors.Is(err, members.ErrSelf):
		return &Error{Code: CodeRefused, Message: "this is the node itself", Fix: "name another member"}
	case errors.Is(err, members.ErrNotAbove):
		return &Error{Code: CodeRefused, Message: fmt.Sprintf("revoke %s: %v", name, err), Fix: "revoke it on the machine that made the mesh; if that machine is lost: meshnode recover CODE makes this one hold the root key"}
	}
	return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("%s: %v", name, err)}
}

func decodePeer(id string) (peer.ID, error) {
	p, err := peer.Decode(id)
	if err != nil && strings.Contains(id, ":") {
		return "", &Error{Code: CodeNoPeer, Message: fmt.Sprintf("%.80s is an address that was given with --peer, and no member was found there", id), Fix: "meshnode peers says why"}
	}
	if err != nil {
		return "", &Error{Code: CodeNoPeer, Message: fmt.Sprintf("no member %.80q", id), Fix: "meshnode peers lists them"}
	}
	return p, nil
}

// Invite implements clientAPI.
func (n *Node) Invite(ctx context.Context, o InviteOptions) (string, error) {
	var addrs []ma.Multiaddr
	addrs = append(addrs, n.host.Addrs()...)
	t, err := n.members.Invite(members.InviteOptions{
		Mine: o.Mine, Guest: o.Guest, Expires: o.Expires, Uses: o.Uses, Runtimes: o.Runtimes, Addrs: addrs,
	})
	return t, inviteError(err)
}

// inviteError is what a person is told.
func inviteError(err error) error {
	switch {
	case errors.Is(err, members.ErrRevoked):
		return &Error{Code: CodeRefused, Message: err.Error(), Fix: "to be a member again: meshnode leave, then meshnode join with a new ticket"}
	case errors.Is(err, members.ErrNotAdmin):
		return &Error{Code: CodeRefused, Message: err.Error(), Fix: "invite from the machine that made the mesh, or from one that joined with a ticket of meshnode invite --mine"}
	case err != nil:
		return &Error{Code: CodeBadRequest, Message: err.Error()}
	}
	return nil
}

// Join implements clientAPI.
func (n *Node) Join(ctx context.Context, ticket string) (string, error) {
	if err := CheckTicket(ticket); err != nil {
		return "", err
	}
	if err := n.members.Join(ctx, strings.TrimSpace(ticket), members.JoinOptions{Find: discovery.FindOnLAN}); err != nil {
		return "", &Error{Code: CodeRefused, Message: err.Error()}
	}
	return n.members.Mesh().String(), nil
}

// Revoke implements clientAPI.
func (n *Node) Revoke(ctx context.Context, id, reason string, withIssued bool) (Revoked, error) {
	p, err := decodePeer(id)
	if err != nil {
		return Revoked{}, err
	}
	out := Revoked{Peer: id, Name: n.nameOf(protocol.NodeID(id)), Keeps: []string{}}
	for _, c := range n.members.Members() {
		out.Secret = out.Secret || c.Peer == p && c.Circle != ""
	}
	keeps, err := n.members.Revoke(p, members.RevokeOptions{Reason: reason, WithIssued: withIssued})
	if err != nil {
		return Revoked{}, n.peerError(id, err)
	}
	out.Keeps = append(out.Keeps, keeps...)
	return out, nil
}

// Rename implements clientAPI.
func (n *Node) Rename(ctx context.Context, id, name string) error {
	p, err := decodePeer(id)
	if err != nil {
		return err
	}
	if p == n.members.Self() {
		return &Error{Code: CodeRefused, Message: "this is the node itself", Fix: "its name is given when it is started: meshnode down, then meshnode up -d --name NAME"}
	}
	return n.peerError(id, n.members.Rename(p, name))
}

// Forget implements clientAPI.
func (n *Node) Forget(ctx context.Context, id string) error {
	p, err := decodePeer(id)
	if err != nil {
		return err
	}
	if p == n.members.Self() {
		return n.peerError(id, members.ErrSelf)
	}
	if len(n.host.Network().ConnsToPeer(p)) > 0 {
		return &Error{Code: CodeRefused, Message: n.nameOf(protocol.NodeID(id)) + " is connected: only members that are gone can be forgotten", Fix: "to put it out of the mesh: meshnode peers revoke"}
	}
	known := false
	for _, c := range n.members.Members() {
		known = known || c.Peer == p
	}
	if !known {
		return n.peerError(id, members.ErrNoMember)
	}
	return n.members.Forget(p)
}

// Allow implements clientAPI.
func (n *Node) Allow(ctx context.Context, id string, o PeerPolicy) error {
	return n.setPolicy(id, o, n.members.Allow)
}

// Deny implements clientAPI.
func (n *Node) Deny(ctx context.Context, id string, o PeerPolicy) error {
	return n.setPolicy(id, o, n.members.Deny)
}

func (n *Node) setPolicy(id string, o PeerPolicy, set func(peer.ID, members.PolicyOptions) error) error {
	p, err := decodePeer(id)
	if err != nil {
		return err
	}
	return n.peerError(id, set(p, members.PolicyOptions{Runtimes: o.Runtimes, Work: o.Work}))
}

// Leave implements clientAPI.
func (n *Node) Leave(ctx context.Context, force bool) (Left, error) {
	var out Left
	out.Known = len(n.members.Members())
	_, member := n.members.Certificate(n.members.Self())
	switch {
	case force || !n.members.HoldsRoot():
	case n.members.Alone() && member:
		return out, &Error{Code: CodeRefused, Message: "this node is in a mesh of its own, and nobody else is in it: there is nothing to leave",
			Fix: "to enter another mesh: meshnode join TICKET; to make a new one of its own all the same: meshnode leave --force"}
	case !n.members.Alone():
		return out, &Error{Code: CodeRefused,
			Message: "this machine holds the root key of the mesh: without it nobody can revoke or make the other admins, and the mesh ends with their certificates, within 90 days",
			Fix:     "give the key to another machine with the recovery code that was shown when the mesh was made (there: meshnode recover CODE); then, or to leave all the same: meshnode leave --force"}
	}
	bye, err := n.members.Farewell()
	if err != nil {
		return out, err
	}
	if len(bye) > 0 && out.Known > 0 {
		out.Told = n.tellFarewell(ctx, bye)
	}
	out.RecoveryCode, out.Restart, err = n.members.Leave(force)
	if err != nil {
		return out, &Error{Code: CodeRefused, Message: err.Error()}
	}
	if out.Restart {
		out.RecoveryCode = "" // the next start makes another mesh, for the new identity
		n.Shutdown()
		return out, nil
	}
	return out, n.members.RecoveryTold() // by the answer
}

// tellFarewell tells the members that are connected; if none is, because the node has just been started, the first that comes.
func (n *Node) tellFarewell(ctx context.Context, bye []*protocol.Revocation) int {
	ctx, cancel := context.WithTimeout(ctx, farewellWait)
	defer cancel()
	for len(n.host.Network().Peers()) == 0 {
		select {
		case <-ctx.Done():
			return 0
		case <-time.After(20 * time.Millisecond):
		}
	}
	return n.finder.Tell(ctx, bye)
}

// Recover implements clientAPI.
func (n *Node) Recover(ctx context.Context, code string) (string, error) {
	err := n.members.Recover(code)
	switch {
	case errors.Is(err, members.ErrLeaveFirst):
		return "", &Error{Code: CodeRefused, Message: "the code is of another mesh than the one that this node is in with others", Fix: "leave that one first: meshnode leave"}
	case errors.Is(err, members.ErrRevoked):
		return "", &Error{Code: CodeRefused, Message: err.Error(), Fix: "meshnode leave gives this node a new identity; then start it, and recover again"}
	case err != nil:
		return "", &Error{Code: CodeBadRequest, Message: err.Error(), Fix: "copy the whole code as it was shown when the mesh was made"}
	}
	return n.members.Mesh().String(), nil
}
