package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"meshnode/discovery"
	"meshnode/protocol"
	"meshnode/tasks"
)

// Status implements clientAPI.
func (n *Node) Status(ctx context.Context) (Status, error) {
	st := Status{
		ID: string(n.self), Name: n.cfg.Name, Version: n.cfg.Version, Mesh: n.members.Mesh().String(), Addrs: n.Addrs(),
		Started: n.started, UI: "off", DataDir: n.cfg.DataDir, PID: os.Getpid(),
	}
	st.Disk, st.Network, st.Membership = n.diskState(), n.networkTrouble(), strings.Join(n.members.Trouble(), "; ")
	st.BlobsSent, st.BlobsReceived = n.meter.sent.Load(), n.meter.received.Load()
	err := n.ask(func(s *tasks.Scheduler) {
		for _, p := range s.Peers() {
			switch {
			case p.Self:
				st.Slots, st.Running, st.Queued, st.Results = p.Slots, p.Running, p.Queued, p.Unanswered
				if p.Paused != "" {
					st.Paused = &p.Paused
				}
			case p.Up:
				st.Peers++
			}
		}
	})
	return st, err
}

// Peers implements clientAPI.
func (n *Node) Peers(ctx context.Context) ([]Peer, error) {
	var all []tasks.PeerStatus
	if err := n.ask(func(s *tasks.Scheduler) { all = s.Peers() }); err != nil {
		return nil, err
	}
	byID := map[string]*Peer{}
	own := n.members.Own()
	at := func(id string) *Peer {
		if byID[id] == nil {
			byID[id] = &Peer{ID: id, Name: n.nameOf(protocol.NodeID(id)), State: "gone", Path: "direct", Runtimes: []string{}, Sandbox: "wasm", Labels: []string{}, Addrs: []string{}}
			if p, err := peer.Decode(id); err == nil {
				byID[id].MayUseHere, byID[id].MayUseThere = n.members.MayUseHere(p), n.members.MayUseThere(p)
				if c, ok := n.members.Certificate(p); ok {
					if byID[id].Owner = shortOwner(c.Owner); c.Owner == own.Owner {
						byID[id].Owner = "mine"
					}
				}
			}
		}
		return byID[id]
	}
	for _, k := range n.finder.Known() {
		id := k.Peer.String()
		if k.Peer == "" { // an address that was given and where no member was found yet
			id = k.Name
		}
		p := at(id)
		p.Name, p.Reason = cmp.Or(n.labelOf(id), k.Name, p.Name), k.Reason
		switch {
		case k.Version != nil:
			p.fix = k.Version.Fix()
		default:
			p.fix = k.Fix
		}
		if wait := time.Until(k.NextTry); p.Reason != "" && wait > 0 {
			p.Reason += fmt.Sprintf("; next try in %s", inWords(wait))
		}
		p.Via = k.Via
		if !k.NextTry.IsZero() {
			p.NextTry = &k.NextTry
		}
		if !k.LastSeen.IsZero() {
			p.LastSeen = &k.LastSeen
		}
		for _, a := range k.Addrs {
			p.Addrs = append(p.Addrs, a.String())
		}
	}
	for _, st := range all {
		if !st.Self && !st.Up {
			if p := byID[string(st.ID)]; p != nil && st.Name != "" {
				p.Name, p.Version, p.Slots = cmp.Or(n.labelOf(p.ID), st.Name), st.Version, st.Slots
				if st.Asleep {
					p.State, p.Reason = "asleep", "it said that it goes to sleep"
				}
			}
			continue // known only if discovery knows it: it may have left the mesh
		}
		p := at(string(st.ID))
		p.Slots, p.Running, p.Queued = st.Slots, st.Running, st.Queued
		p.Version, p.Reason = st.Version, st.Paused
		p.Runtimes = append(p.Runtimes, st.Runtimes...)
		for _, r := range st.Runtimes {
			if kind := strings.TrimRight(r, "0123456789."); kind != "wasm" {
				p.Sandbox += "; " + kind + ": none"
			}
		}
		p.OS, p.Arch, p.CPUs, p.Memory = st.OS, st.Arch, st.CPUs, st.Memory
		p.Labels = append(p.Labels, st.Labels...)
		switch {
		case st.Self:
			p.State, p.Version, p.Addrs, p.Owner = "self", n.cfg.Version, n.Addrs(), "mine"
			p.Protocol = n.members.Speaks()[0]
			p.MayUseHere, p.MayUseThere = nil, nil
			if trouble := n.members.Trouble(); len(trouble) > 0 {
				p.Reason = strings.Join(append(trouble, p.Reason), "; ")
				p.Reason = strings.TrimSuffix(p.Reason, "; ")
			}
		case st.Suspect:
			p.State, p.Name = "suspect", cmp.Or(st.Name, p.Name)
			p.Reason = "no sign of life"
		default:
			p.State, p.Name = "connected", cmp.Or(st.Name, p.Name)
		}
		if id, err := peer.Decode(string(st.ID)); err == nil && !st.Self {
			if direct, relay := n.finder.Path(id); !direct && relay != "" {
				p.Path, p.Relay = "relay", relay.String()
			}
		}
		if s := n.sessions.get(st.ID); s != nil {
			p.RTT = float64(s.pings.roundTrip()) / float64(time.Millisecond)
			age := s.heardAge()
			p.Heard = float64(age) / float64(time.Millisecond)
			if p.State == "suspect" {
				p.Reason += fmt.Sprintf(" for %.1f s", age.Seconds())
			}
			p.Protocol = s.version
			// Of one that dialled us, the connection's address is not where it listens: that is known from what it says.
			if c := s.conn(); p.Path == "direct" && (c.Stat().Direction == network.DirOutbound || len(p.Addrs) == 0) {
				p.Addrs = []string{c.RemoteMultiaddr().String()}
			}
		}
	}
	out := make([]Peer, 0, len(byID))
	for _, p := range byID {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b Peer) int {
		return cmp.Or(-compareBool(a.State == "self", b.State == "self"), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// nameOf is the label of a node, as far as this one has met it.
func (n *Node) nameOf(id protocol.NodeID) string {
	if id == n.self {
		return n.cfg.Name
	}
	if label := n.labelOf(string(id)); label != "" {
		return label
	}
	if name, ok := n.names.Load(id); ok && name != "" {
		return name.(string)
	}
	if p, err := peer.Decode(string(id)); err == nil {
		if c, ok := n.members.Certificate(p); ok {
			return c.Name
		}
	}
	return id.Short()
}

// inWords is a wait for people: "4 s", "3 min".
func inWords(d time.Duration) string {
	if d > 2*time.Minute {
		return fmt.Sprintf("%d min", d.Round(time.Minute)/time.Minute)
	}
	return fmt.Sprintf("%d s", max(1, d.Round(time.Second)/time.Second))
}

func shortOwner(o string) string { return o[:min(8, len(o))] }

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// connectTime is how long Connect tries: a program waits for it.
const connectTime = 3 * time.Second

// Connect implements clientAPI.
func (n *Node) Connect(ctx context.Context, addr string) (Connected, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	p, err := peer.Decode(addr)
	if err == nil {
		err = n.finder.Reach(ctx, p)
	} else {
		g, perr := discovery.ParseGiven(addr)
		if perr != nil {
			return Connected{}, &Error{Code: CodeBadRequest, Message: fmt.Sprintf("no member is called %.80q, and it is no address", addr), Fix: "meshnode peers lists the members; an address is HOST:PORT or a multiaddr"}
		}
		p, err = n.finder.Connect(ctx, g)
	}
	if err == nil {
		err = n.awaitSession(ctx, p)
	}
	var cannot *discovery.ConnectError
	switch {
	case err == nil:
	case errors.Is(err, discovery.ErrSelf):
		return Connected{}, &Error{Code: CodeRefused, Message: addr + " is this node itself", Fix: "name another node"}
	case errors.Is(err, discovery.ErrNotMember):
		return Connected{}, &Error{Code: CodeNoPeer, Message: addr + " is no member of this mesh", Fix: "invite it: meshnode invite"}
	case errors.As(err, &cannot) && cannot.Refused:
		return Connected{}, &Error{Code: CodeRefused, Message: fmt.Sprintf("%s: %s", addr, cannot.Reason), Fix: "it must be a member of this mesh: meshnode invite here, meshnode join there"}
	default:
		return Connected{}, &Error{Code: CodeUnavailable, Message: fmt.Sprintf("%s: %v", addr, err), Fix: "see whether a node runs there, and listens on that port: meshnode status there says so"}
	}
	return n.connected(p), nil
}

// awaitSession waits until p can be given work.
func (n *Node) awaitSession(ctx context.Context, p peer.ID) error {
	for n.sessions.get(protocol.NodeID(p.String())) == nil {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("it is connected, and says nothing")
		}
	}
	return nil
}

// connected is what Connect returns for a peer that is connected.
func (n *Node) connected(p peer.ID) Connected {
	c := Connected{Peer: p.String(), Name: n.nameOf(protocol.NodeID(p.String()))}
	if cert, ok := n.members.Certificate(p); ok {
		c.Name = cmp.Or(cert.Name, c.Name)
	}
	return c
}
