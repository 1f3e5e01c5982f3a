// Package doctor looks at one machine for what keeps a node there from finding others, from being found, or from working: its
// network interfaces, multicast, firewall, clock, ports, disk, limits. It needs no node and knows no peers; package node asks it,
// and adds what only a running node can tell. It changes nothing on the machine, and needs no root: what cannot be read without is
// judged by its effect.
package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// State is how serious a Finding is.
type State string

// The states.
const (
	OK   State = "ok"
	Warn State = "warn" // works, and may not always; or is as somebody wanted it
	Fail State = "fail" // something does not work, and somebody has to do something
)

// Finding is one thing that was looked at. Check and State are for programs and stay; Text and Fix are sentences.
type Finding struct {
	Check   string `json:"check"`             // what was tested, one of the Check constants
	Subject string `json:"subject,omitempty"` // of several alike: the interface, the member, the port
	State   State  `json:"state"`
	Text    string `json:"text"`
	Fix     string `json:"fix,omitempty"` // what to do, where something is to be done
}

// The checks.
const (
	CheckNode       = "node"       // does it run
	CheckInterface  = "interface"  // is there a network
	CheckMulticast  = "multicast"  // is what is sent to all in the local network received
	CheckMDNS       = "mdns"       // is the local network searched at all
	CheckFirewall   = "firewall"   // do rules on this machine stop what comes in
	CheckNAT        = "nat"        // is there a router that translates addresses
	CheckReach      = "reach"      // can others connect to this node
	CheckMember     = "member"     // can this node connect to each member
	CheckMembership = "membership" // is this node one itself
	CheckVersion    = "version"    // who speaks another protocol version
	CheckClock      = "clock"      // is it right
	CheckPort       = "port"       // does the node listen where it should
	CheckDisk       = "disk"       // is there room
	CheckDirectory  = "directory"  // is the data directory private and writable
	CheckLimits     = "limits"     // are there descriptors enough
	CheckSleep      = "sleep"      // did the machine sleep
	CheckRuntime    = "runtime"    // what can run here
	CheckOtherNodes = "othernodes" // of this user on this machine
)

// Report is what doctor has found.
type Report struct {
	Running  bool      `json:"running"` // a node runs in the data directory
	Findings []Finding `json:"findings"`
	Warnings int       `json:"warnings"`
	Failures int       `json:"failures"`
}

// NewReport counts the findings.
func NewReport(running bool, findings []Finding) Report {
	r := Report{Running: running, Findings: findings}
	for _, f := range findings {
		switch f.State {
		case Warn:
			r.Warnings++
		case Fail:
			r.Failures++
		}
	}
	return r
}

// Machine is what to look at. The zero value looks at the network and the clock alone.
type Machine struct {
	DataDir string // "": not looked at
	MinFree uint64 // bytes below which the node takes no new work
	// Ports are the TCP ports that the node listens on; or, where Running is false, those that it is going to.
	Ports   []int
	Running bool
	PID     int    // of the node; 0: none
	Program string // path of the node's program, which firewalls go by
	NoMDNS  bool   // the node does not search the local network: a search is not tested either
	// Neighbours are members by address: those in a local network should answer a search there.
	Neighbours map[netip.Addr]Neighbour
	Service    string // what all nodes of the mesh are asked for by, fully qualified; "": only for services of any kind
	Runtimes   []Runtime
	// Serves, if set, says whether the node itself answers at an address (HOST:PORT), not only somebody.
	Serves func(ctx context.Context, addr string) error
}

// Neighbour is a member that should answer a search in the local network.
type Neighbour struct {
	Name    string // for people
	Service string // what it alone is asked for by, fully qualified
}

// Runtime is one that tasks may need.
type Runtime struct {
	Name    string
	Version string
	Here    bool
}

// patience is how long each look may take; those that wait for answers wait less.
const patience = 5 * time.Second

// Look looks at all of it, within some seconds, several at a time. The order of the findings does not change.
func (m Machine) Look(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	looks := []func(context.Context) []Finding{m.network, m.firewall, m.clock, m.ports, m.disk, m.directory, m.limits, m.runtimes, m.otherNodes}
	found := make([][]Finding, len(looks))
	var wg sync.WaitGroup
	for i, look := range looks {
		wg.Go(func() { found[i] = look(ctx) })
	}
	wg.Wait()
	var all []Finding
	for _, f := range found {
		all = append(all, f...)
	}
	return all
}

func (m Machine) runtimes(context.Context) []Finding {
	var out []Finding
	for _, r := range m.Runtimes {
		f := Finding{Check: CheckRuntime, Subject: r.Name, State: OK, Text: fmt.Sprintf("%s %s programs run here", r.Name, r.Version)}
		if r.Version == "" {
			f.Text = r.Name + " programs run here"
		}
		if !r.Here {
			f.State, f.Text = Warn, r.Name+" programs do not run here"
			if r.Name == "python" {
				f.Text = "no Python interpreter was found: Python functions do not run here"
				f.Fix = "install Python 3.6 or later, or name one: meshnode up --python PATH"
			}
		}
		out = append(out, f)
	}
	return out
}
