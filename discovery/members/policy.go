package members

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"meshnode/protocol"
)

// policy is what this machine's owner says of other members, by peer ID: kept in membership/policy.json, told to nobody, and
// above what certificates say.
type policy map[string]*said

// said is the owner's word on one member. Its zero value says nothing.
type said struct {
	Name   string   `json:"name,omitempty"`       // what it is called on this machine
	Here   []string `json:"may_here,omitempty"`   // runtimes that it may use here
	Never  []string `json:"never_here,omitempty"` // that it may not
	There  []string `json:"may_there,omitempty"`  // that this node's tasks may use there
	Not    []string `json:"not_there,omitempty"`  // that they may not
	Forgot uint64   `json:"forgot,omitempty"`     // the serial of the certificate with which it was forgotten
}

const (
	policyFile = "policy.json"
	// maxPolicies is above the members that a mesh can have.
	maxPolicies = 2 * maxMembers
)

// PolicyOptions of Allow and Deny.
type PolicyOptions struct {
	Runtimes []string // wasm, python, command; empty: all of them
	Work     bool     // this node's own tasks at that member, not that member's tasks here
}

// ErrSelf is returned where a member other than this node is wanted.
var ErrSelf = errors.New("that is this node itself")

// Allow lets the member p use these runtimes on this node, whatever its certificate says; or, with Work, lets this node's own tasks go
// there by default. It is on disk when Allow returns nil, and counts for connections from then on: Subscribe.
func (m *Membership) Allow(p peer.ID, o PolicyOptions) error { return m.setPolicy(p, o, true) }

// Deny is the opposite of Allow: it forbids what certificates would allow.
func (m *Membership) Deny(p peer.ID, o PolicyOptions) error { return m.setPolicy(p, o, false) }

func (m *Membership) setPolicy(p peer.ID, o PolicyOptions, allow bool) error {
	if len(o.Runtimes) == 0 {
		o.Runtimes = allRuntimes
	}
	for _, r := range o.Runtimes {
		if !slices.Contains(allRuntimes, r) {
			return fmt.Errorf("no runtime is called %.40q: there are %s", r, strings.Join(allRuntimes, ", "))
		}
	}
	return m.say(p, func(s *said) {
		yes, no := &s.Here, &s.Never
		if o.Work {
			yes, no = &s.There, &s.Not
		}
		if !allow {
			yes, no = no, yes
		}
		for _, r := range o.Runtimes {
			if !slices.Contains(*yes, r) {
				*yes = append(*yes, r)
			}
		}
		slices.Sort(*yes)
		*no = slices.DeleteFunc(*no, func(r string) bool { return slices.Contains(o.Runtimes, r) })
	})
}

// Rename gives the member p a name of this machine's own choice: "" takes it back. Only this node knows it by that name; a machine's
// own name, which the others see, is what it was started with.
func (m *Membership) Rename(p peer.ID, name string) error {
	if name != cleanName(name) || name != strings.TrimSpace(name) || strings.HasPrefix(name, "-") {
		return fmt.Errorf("a name is at most %d bytes of plain text", protocol.MaxMemberName)
	}
	m.mu.RLock()
	taken := name != "" && name == m.name
	for q, c := range m.met {
		taken = taken || name != "" && q != p && m.nameOf(c) == name
	}
	m.mu.RUnlock()
	if taken {
		return fmt.Errorf("another member is called %s here", name)
	}
	return m.say(p, func(s *said) { s.Name = name })
}

// say changes the owner's word on p and puts it on disk.
func (m *Membership) say(p peer.ID, change func(*said)) error {
	if p == m.self {
		return ErrSelf
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.met[p] == nil {
		return ErrNoMember
	}
	old := m.policy
	if len(old) >= maxPolicies && old[p.String()] == nil {
		return fmt.Errorf("this machine has words on %d members already", len(old))
	}
	s := said{}
	if x := old[p.String()]; x != nil {
		s = said{Name: x.Name, Here: slices.Clone(x.Here), Never: slices.Clone(x.Never), There: slices.Clone(x.There), Not: slices.Clone(x.Not)}
	}
	change(&s)
	m.policy = maps.Clone(old)
	m.policy[p.String()] = &s
	if err := m.savePolicy(); err != nil {
		m.policy = old
		return err
	}
	m.changed()
	return nil
}

// nameOf is what a member is called here. The caller holds mu.
func (m *Membership) nameOf(c *Cert) string {
	if s := m.policy[c.Peer.String()]; s != nil && s.Name != "" {
		return s.Name
	}
	return c.Name
}

// Label is the name that this machine's owner gave p; "" if none.
func (m *Membership) Label(p peer.ID) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if s := m.policy[p.String()]; s != nil {
		return s.Name
	}
	return ""
}

// MayUseHere lists the runtimes (without versions) that the member p may use on this node: none if p may not
// submit; all if p's owner is this node's owner; wasm and python between two that were admitted by the same secret; else wasm, if p's
// certificate has it. What this machine's owner says of p stands above that; see Allow.
func (m *Membership) MayUseHere(p peer.ID) []string {
	c, ok := m.Certificate(p)
	if !ok {
		return nil
	}
	here := mayUse(c, m.Own())
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := m.policy[p.String()]
	if s == nil {
		return here
	}
	return but(here, s.Here, s.Never)
}

// MayUseThere lists the runtimes that this node may use on the member p and by default does: the mirror of
// MayUseHere, and none if p does no work for others. Python and commands carry their submitter's data, so they
// go to machines of the same owner, or that this machine's owner named, only.
func (m *Membership) MayUseThere(p peer.ID) []string {
	c, ok := m.Certificate(p)
	if !ok {
		return nil
	}
	own, ok := m.Certificate(m.self)
	if !ok {
		return nil
	}
	there := mayUse(own, c)
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := m.policy[p.String()]
	if s == nil {
		return there
	}
	return but(there, s.There, s.Not)
}

// but is what certificates give, with what the owner adds and without what the owner takes.
func but(base, add, without []string) []string {
	var out []string
	for _, r := range allRuntimes {
		if (slices.Contains(base, r) || slices.Contains(add, r)) && !slices.Contains(without, r) {
			out = append(out, r)
		}
	}
	return out
}

// mayUse lists what submitter may use on worker, by their certificates.
func mayUse(submitter, worker *Cert) []string {
	if submitter == nil || worker == nil || !submitter.Can(protocol.Capability_SUBMIT) || !worker.Can(protocol.Capability_WORK) {
		return nil
	}
	if submitter.Owner == worker.Owner {
		return slices.Clone(allRuntimes)
	}
	if submitter.Circle != "" && submitter.Circle == worker.Circle {
		return slices.Clone(circleRuntimes)
	}
	if slices.Contains(submitter.Runtimes, Wasm) {
		return []string{Wasm}
	}
	return nil
}

// Forget drops what is known of a member, and this machine's words on it. It is known again when it comes itself, or is given another
// certificate; that others tell of it is not enough.
func (m *Membership) Forget(p peer.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.met[p]
	if c == nil {
		return nil
	}
	delete(m.met, p)
	m.policy = maps.Clone(m.policy)
	delete(m.policy, p.String())
	if len(m.policy) < maxPolicies {
		m.policy[p.String()] = &said{Forgot: c.Serial}
	}
	m.changed()
	return errors.Join(m.savePolicy(), m.saveMet())
}

// forgotten reports whether the certificate is the one with which its member was forgotten. The caller holds mu.
func (m *Membership) forgotten(c *Cert) bool {
	s := m.policy[c.Peer.String()]
	return s != nil && s.Forgot == c.Serial && s.Forgot != 0
}

// recall ends that a member is forgotten: it is here. The caller holds mu.
func (m *Membership) recall(p peer.ID) {
	if s := m.policy[p.String()]; s != nil && s.Forgot != 0 {
		m.policy = maps.Clone(m.policy)
		delete(m.policy, p.String())
		if err := m.savePolicy(); err != nil {
			m.log.Warn("this machine's words on members cannot be written", "err", err)
		}
	}
}

func (m *Membership) savePolicy() error {
	b, err := json.MarshalIndent(m.policy, "", "  ")
	if err != nil {
		return err
	}
	if err := m.writeFile(m.path(policyFile), b); err != nil {
		return fmt.Errorf("write what this machine allows: %w", err)
	}
	return nil
}

// loadPolicy reads the owner's words. A file that cannot be read stops the node: without it, it would allow what was denied.
func (m *Membership) loadPolicy() error {
	b, err := os.ReadFile(m.path(policyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m.policy)
	}
	if err != nil {
		return fmt.Errorf("read what this machine allows: %s: %w: restore it, or remove it and say again what was allowed and denied", m.path(policyFile), err)
	}
	for p, s := range m.policy {
		if s == nil {
			delete(m.policy, p)
		}
	}
	if m.policy == nil {
		m.policy = policy{}
	}
	return nil
}
