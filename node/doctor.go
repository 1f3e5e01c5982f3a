package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery"
	"meshnode/discovery/members"
	"meshnode/node/doctor"
	"meshnode/protocol"
	"meshnode/tasks/executor"
)

const (
	// clockOff is how far a clock may be from those of others before a person should hear of it: certificates and logs bear that much.
	clockOff = time.Minute
	// maxAsked members are asked whether they reach this node: some may be behind the same router, or have an old version.
	maxAsked = 3
	// maxClocks members are asked for the time.
	maxClocks = 9
	// maxExamined members that are not connected are looked for at all of their addresses.
	maxExamined = 32
	// doctorTime bounds all of it: a person waits.
	doctorTime = 20 * time.Second
)

// Doctor implements clientAPI.
func (n *Node) Doctor(ctx context.Context) (doctor.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorTime)
	defer cancel()
	known := n.finder.Known()
	m := CheckMachine(n.cfg.DataDir, n.cfg.Runtimes)
	m.MinFree, m.NoMDNS, m.Running, m.PID = n.cfg.MinFree, !n.cfg.MDNS, true, os.Getpid()
	m.Ports, m.Neighbours = n.listenPorts(), n.neighbours()
	m.Service, _ = n.finder.LANNames(n.host.ID())
	m.Serves = func(ctx context.Context, addr string) error {
		_, _, err := n.members.Probe(ctx, "tcp", addr, n.host.ID())
		if refused := (*members.Refused)(nil); errors.As(err, &refused) {
			return nil // a node that was revoked refuses itself: that is an answer
		}
		return err
	}
	looks := []func(context.Context) []doctor.Finding{
		m.Look, n.keptPort,
		func(ctx context.Context) []doctor.Finding { return n.examine(ctx, known) },
		n.membership, n.versions, n.sleep, n.askOthers,
	}
	found := make([][]doctor.Finding, len(looks))
	var wg sync.WaitGroup
	for i, look := range looks {
		wg.Go(func() { found[i] = look(ctx) })
	}
	wg.Wait()
	all := []doctor.Finding{{Check: doctor.CheckNode, State: doctor.OK, Text: fmt.Sprintf("the node %s runs, as process %d, since %s", n.cfg.Name, os.Getpid(), n.started.Format(time.DateTime))}}
	all = append(all, slices.Concat(found...)...)
	return doctor.NewReport(true, all), nil
}

// CheckMachine is what there is to look at on this machine, for a node in dataDir, whether it runs or not.
func CheckMachine(dataDir string, runtimes []executor.Runtime) doctor.Machine {
	m := doctor.Machine{DataDir: dataDir, MinFree: minFree}
	m.Program, _ = os.Executable()
	for _, r := range runtimes {
		v, here := r.Version()
		m.Runtimes = append(m.Runtimes, doctor.Runtime{Name: r.Name(), Version: v, Here: here})
	}
	if p := readPort(dataDir); p != 0 {
		m.Ports = []int{p}
	}
	return m
}

// readPort is the port that the node of dataDir keeps; 0: none.
func readPort(dataDir string) int {
	b, err := os.ReadFile(filepath.Join(dataDir, "membership", "port"))
	if err != nil {
		return 0
	}
	p, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || p < 1 || p > 65535 {
		return 0
	}
	return p
}

// listenPorts are the TCP ports that this node listens on.
func (n *Node) listenPorts() []int {
	ports := []int{}
	for _, a := range n.host.Network().ListenAddresses() {
		s, err := a.ValueForProtocol(ma.P_TCP)
		if err != nil {
			continue
		}
		if p, err := strconv.Atoi(s); err == nil && !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	return ports
}

// neighbours are the members that are connected, by the addresses that they have in the networks of this machine.
func (n *Node) neighbours() map[netip.Addr]doctor.Neighbour {
	out := map[netip.Addr]doctor.Neighbour{}
	for _, p := range n.host.Network().Peers() {
		for _, c := range n.host.Network().ConnsToPeer(p) {
			if a := seenAt(c); a.IsValid() && !doctor.Own(a) && doctor.Near(a) {
				_, service := n.finder.LANNames(p)
				out[a] = doctor.Neighbour{Name: n.nameOf(protocol.NodeID(p.String())), Service: service}
			}
		}
	}
	return out
}

// keptPort says whether the node listens where it did before.
func (n *Node) keptPort(context.Context) []doctor.Finding {
	kept, ports := readPort(n.cfg.DataDir), n.listenPorts()
	if kept == 0 || len(n.cfg.Listen) > 0 || n.cfg.Private || slices.Contains(ports, kept) {
		return nil
	}
	return []doctor.Finding{{Check: doctor.CheckPort, Subject: strconv.Itoa(kept), State: doctor.Warn,
		Text: fmt.Sprintf("this node kept TCP port %d and listens on %v now: the addresses that others remember are wrong", kept, ports),
		Fix:  "end the program that has taken the port, and start the node again: meshnode down; meshnode up -d"}}
}

// examine says of each member how it is connected, or why it is not.
func (n *Node) examine(ctx context.Context, known []discovery.State) []doctor.Finding {
	if len(known) == 0 {
		return []doctor.Finding{{Check: doctor.CheckMember, State: doctor.Warn, Text: "this node knows of no other member", Fix: "invite one: meshnode invite --mine here, and meshnode join TICKET there"}}
	}
	out := make([]doctor.Finding, len(known))
	examined := 0
	var wg sync.WaitGroup
	for i, st := range known {
		name := st.Name
		if st.Peer != "" {
			name = cmp.Or(n.nameOf(protocol.NodeID(st.Peer.String())), name)
		}
		out[i] = doctor.Finding{Check: doctor.CheckMember, Subject: name, State: doctor.OK}
		f := &out[i]
		switch {
		case st.Peer == "": // a given address, where nobody was found yet
			f.State, f.Text = doctor.Warn, fmt.Sprintf("nobody was found at %s, which was given with --peer: %s", name, cmp.Or(st.Reason, "it is being tried"))
			f.Fix = cmp.Or(st.Fix, "run this again in a moment")
			continue
		case n.host.Network().Connectedness(st.Peer) != network.NotConnected:
			n.sayConnected(st.Peer, name, f)
			continue
		}
		if examined++; examined > maxExamined {
			f.State, f.Text = doctor.Warn, fmt.Sprintf("%s is not connected: %s", name, cmp.Or(st.Reason, "it is being tried"))
			continue
		}
		wg.Go(func() { n.sayAbsent(ctx, st, name, f) })
	}
	wg.Wait()
	return out
}

func (n *Node) sayConnected(p peer.ID, name string, f *doctor.Finding) {
	how := "direct"
	if direct, relay := n.finder.Path(p); !direct && relay != "" {
		how = "through the relay " + n.nameOf(protocol.NodeID(relay.String()))
	}
	f.Text = fmt.Sprintf("%s is connected, %s", name, how)
	if s := n.sessions.get(protocol.NodeID(p.String())); s == nil {
		f.State, f.Text = doctor.Warn, name+" is connected, and says nothing yet"
		f.Fix = "look again in some seconds; meshnode peers shows it"
	} else {
		if rtt := s.pings.roundTrip(); rtt > 0 {
			f.Text += fmt.Sprintf(", round trip %.1f ms", milli(rtt))
		}
		if s.version != n.members.Speaks()[0] {
			f.Text += fmt.Sprintf("; it speaks protocol %d", s.version)
		}
	}
}

func (n *Node) sayAbsent(ctx context.Context, st discovery.State, name string, f *doctor.Finding) {
	f.State = doctor.Fail
	if n.wall().After(n.members.Own().NotAfter) {
		f.Text = fmt.Sprintf("%s is not connected: this node's own certificate ended on %s", name, n.members.Own().NotAfter.UTC().Format(time.DateOnly))
		f.Fix = "connect to an admin of the mesh, who renews it; else join again with a new ticket"
		return
	}
	answers := n.finder.Ask(ctx, st.Peer, st.Addrs)
	if !slices.ContainsFunc(answers, func(a discovery.Answer) bool { return a.Code.Final() }) {
		f.State = doctor.Warn // it may be asleep, or somewhere else, as laptops are
	}
	if i := slices.IndexFunc(answers, func(a discovery.Answer) bool { return a.Code == discovery.Answered }); i >= 0 {
		f.State, f.Text = doctor.Warn, fmt.Sprintf("%s was not connected, and answers now at %s: it will be connected soon", name, answers[i].Addr)
		return
	}
	if st.Version != nil && !slices.ContainsFunc(answers, func(a discovery.Answer) bool { return a.Code == discovery.OtherVersion }) {
		f.State, f.Text, f.Fix = doctor.Fail, fmt.Sprintf("%s is not connected: %s", name, st.Version), st.Version.Fix()
		return
	}
	if len(answers) == 0 {
		f.Text = fmt.Sprintf("%s is not connected, and no address of it is known", name)
	} else {
		var said, each []string // what was said, and where: each once
		for _, a := range answers {
			if i := slices.Index(said, a.Text); i >= 0 {
				each[i] += ", " + a.Addr
			} else {
				said, each = append(said, a.Text), append(each, a.Addr)
			}
		}
		for i := range each {
			each[i] += ": " + said[i]
		}
		f.Text = fmt.Sprintf("%s is not connected: %s", name, strings.Join(each, "; "))
	}
	if !st.LastSeen.IsZero() {
		f.Text += "; last seen " + st.LastSeen.Local().Format(time.DateTime)
	}
	f.Fix = discovery.Advice(answers)
}

// membership says what is wrong with this node's own.
func (n *Node) membership(context.Context) []doctor.Finding {
	var out []doctor.Finding
	for _, s := range n.members.Trouble() {
		out = append(out, doctor.Finding{Check: doctor.CheckMembership, State: doctor.Fail, Text: s, Fix: "it says what helps; for a new ticket: meshnode invite on a member's machine, meshnode join TICKET here"})
	}
	return out
}

// sleep says whether this machine has slept, and when it woke: what was lost then is found again within seconds.
func (n *Node) sleep(context.Context) []doctor.Finding {
	f := doctor.Finding{Check: doctor.CheckSleep, State: doctor.OK, Text: "this computer has not slept since the node was started"}
	if at := n.wokeAt.Load(); at != 0 {
		f.Text = fmt.Sprintf("this computer woke from a sleep %v ago; members are looked for anew then", time.Since(time.Unix(at, 0)).Round(time.Second))
	}
	return []doctor.Finding{f}
}

// versions names who came here and speaks another version. Who it was is not known: it did not come as far as that.
func (n *Node) versions(context.Context) []doctor.Finding {
	var out []doctor.Finding
	for _, v := range n.members.Visitors() {
		if time.Since(v.At) > time.Hour {
			continue
		}
		out = append(out, doctor.Finding{Check: doctor.CheckVersion, Subject: v.IP.String(), State: doctor.Warn,
			Text: fmt.Sprintf("a node at %s tried to connect at %s: %s", v.IP, v.At.Format(time.TimeOnly), v.Version), Fix: v.Version.Fix()})
	}
	return out
}

// askOthers asks connected members for the time, and to connect to this node.
func (n *Node) askOthers(ctx context.Context) []doctor.Finding {
	var asked []peer.ID
	for _, p := range n.host.Network().Peers() {
		if n.host.Network().Connectedness(p) != network.NotConnected {
			asked = append(asked, p)
		}
	}
	// Those that are seen directly first: through a relay nobody knows where this node is.
	slices.SortStableFunc(asked, func(a, b peer.ID) int {
		far := func(p peer.ID) int {
			for _, c := range n.host.Network().ConnsToPeer(p) {
				if seenAt(c).IsValid() {
					return 0
				}
			}
			return 1
		}
		return cmp.Or(cmp.Compare(far(a), far(b)), cmp.Compare(a, b))
	})
	ports := make([]uint32, 0, protocol.MaxCheckPorts)
	for _, p := range n.listenPorts() {
		if len(ports) < cap(ports) {
			ports = append(ports, uint32(p))
		}
	}
	answers := make([]answered, min(len(asked), maxClocks))
	var wg sync.WaitGroup
	for i, p := range asked[:len(answers)] {
		wg.Go(func() {
			want := ports
			if i >= maxAsked {
				want = nil
			}
			c, err := n.check(ctx, p, want)
			answers[i] = answered{n.nameOf(protocol.NodeID(p.String())), c, err}
		})
	}
	wg.Wait()
	return slices.Concat(n.judgeClock(answers), judgeReach(answers, ports), judgeNAT(answers, doctor.Own, slices.ContainsFunc(n.host.Addrs(), manet.IsPublicAddr)))
}

type answered struct {
	name string
	checked
	err error
}

// judgeClock compares this machine's clock with what others say, and with what they have signed.
func (n *Node) judgeClock(answers []answered) []doctor.Finding {
	if newest := n.members.Newest(); n.wall().Add(clockOff).Before(newest) {
		return []doctor.Finding{{Check: doctor.CheckClock, State: doctor.Fail,
			Text: fmt.Sprintf("this machine's clock says %s, but a member signed something at %s", n.wall().UTC().Format(time.DateTime), newest.UTC().Format(time.DateTime)),
			Fix:  "set the clock right: switch on the system's time synchronisation"}}
	}
	var ahead []time.Duration
	for _, a := range answers {
		if a.err == nil {
			ahead = append(ahead, a.ahead)
		}
	}
	if len(ahead) == 0 {
		return nil
	}
	slices.Sort(ahead)
	off := ahead[len(ahead)/2]
	f := doctor.Finding{Check: doctor.CheckClock, State: doctor.OK, Text: fmt.Sprintf("the clock agrees with those of %d members, within %v", len(ahead), max(off, -off).Round(time.Millisecond)+time.Millisecond)}
	if len(ahead) == 1 {
		f.Text = fmt.Sprintf("the clock agrees with that of %s, within %v", nameOfFirst(answers), max(off, -off).Round(time.Millisecond)+time.Millisecond)
	}
	if off > clockOff || off < -clockOff {
		word := "behind"
		if off < 0 {
			word = "ahead of"
		}
		f.State = doctor.Warn
		f.Text = fmt.Sprintf("this machine's clock is %v %s what %d of the members say (the median)", max(off, -off).Round(time.Second), word, len(ahead))
		f.Fix = "set the clock right: switch on the system's time synchronisation, here or, if only this machine is right, there"
	}
	return []doctor.Finding{f}
}

func nameOfFirst(answers []answered) string {
	for _, a := range answers {
		if a.err == nil {
			return a.name
		}
	}
	return ""
}

// judgeReach says whether members could connect to this node. Who has a connection to it may have it only because this node dialled.
func judgeReach(answers []answered, ports []uint32) []doctor.Finding {
	if len(ports) == 0 {
		return []doctor.Finding{{Check: doctor.CheckReach, State: doctor.OK, Text: "this node listens on no port: it connects to others, and they do not to it"}}
	}
	var reached, failed []string
	here, near := false, false // others on this machine, or in its network, saw it
	seen := ""
	for _, a := range answers {
		if a.err != nil || !a.seenAt.IsValid() {
			continue
		}
		for _, p := range a.ports {
			at := fmt.Sprintf("%s at %s", a.name, netip.AddrPortFrom(a.seenAt, uint16(p.Port)))
			switch p.State {
			case protocol.PortState_REACHED:
				reached = append(reached, fmt.Sprintf("%s (%d ms)", at, p.TookMs))
				here = here || a.seenAt.IsLoopback()
			case protocol.PortState_NOT_TRIED:
			default:
				failed = append(failed, at+": "+portWords[p.State])
				near = near || doctor.Own(a.seenAt)
				seen = cmp.Or(seen, a.seenAt.String())
			}
		}
	}
	f := doctor.Finding{Check: doctor.CheckReach, State: doctor.OK}
	switch {
	case len(reached) > 0 && len(failed) == 0:
		f.Text = "others can connect to this node: " + strings.Join(reached, ", ")
		if here && len(reached) == 1 {
			f.Text += ", on this very machine"
		}
	case len(reached) > 0:
		f.State = doctor.Warn
		f.Text = fmt.Sprintf("some can connect to this node: %s; and some cannot: %s", strings.Join(reached, ", "), strings.Join(failed, ", "))
		f.Fix = "it is enough if of each two members one can connect to the other; else look at the firewalls and routers between"
	case len(failed) > 0 && near:
		f.State = doctor.Fail
		f.Text = "others cannot connect to this node: " + strings.Join(failed, ", ") + ". They see it at its own address, so no router is between that would hide it: a firewall on this machine stops them, or one in the network"
		f.Fix = "let TCP port " + strconv.Itoa(int(ports[0])) + " in: " + openPort(int(ports[0]))
	case len(failed) > 0:
		f.State = doctor.Warn
		f.Text = "others cannot connect to this node: " + strings.Join(failed, ", ") + ". They see it at " + seen + ", which is a router's: this node is behind it"
		f.Fix = "nothing, as long as members find each other: this node connects to them, or through a relay; else forward TCP port " + strconv.Itoa(int(ports[0])) + " in the router and give that address with meshnode up --announce"
	default:
		f.State = doctor.Warn
		f.Text = "whether others can connect to this node is not known: no member is connected that could try"
		for _, a := range answers {
			if a.err != nil {
				f.Text += fmt.Sprintf("; %s: %v", a.name, a.err)
				break
			}
		}
		f.Fix = "run this again when another member is connected"
	}
	return []doctor.Finding{f}
}

var portWords = map[protocol.PortState]string{
	protocol.PortState_REFUSED: "nothing listens there", protocol.PortState_NO_ANSWER: "no answer: something drops it on the way",
	protocol.PortState_SOMEBODY: "another answers there", protocol.PortState_NO_ROUTE: "no way there from there",
}

// openPort is how a TCP port is opened in the firewalls of the usual systems.
func openPort(port int) string {
	return fmt.Sprintf("ufw: sudo ufw allow %d/tcp · firewalld: sudo firewall-cmd --permanent --add-port=%[1]d/tcp && sudo firewall-cmd --reload · "+
		"Windows, as administrator: netsh advfirewall firewall add rule name=\"meshnode\" dir=in action=allow protocol=TCP localport=%[1]d · macOS: System Settings, Network, Firewall, Options", port)
}

// judgeNAT says whether a router that translates addresses is between this node and others, and of which kind.
func judgeNAT(answers []answered, own func(netip.Addr) bool, public bool) []doctor.Finding {
	var elsewhere []string
	asked, kept, changed := 0, 0, 0
	for _, a := range answers {
		if a.err != nil || !a.seenAt.IsValid() {
			continue
		}
		asked++
		if own(a.seenAt) {
			continue
		}
		if !slices.Contains(elsewhere, a.seenAt.String()) {
			elsewhere = append(elsewhere, a.seenAt.String())
		}
		switch a.port {
		case 0: // the member connected to this node: the router lets it in
		case a.seenPort:
			kept++
		default:
			changed++
		}
	}
	f := doctor.Finding{Check: doctor.CheckNAT, State: doctor.OK}
	switch {
	case asked == 0:
		return nil
	case len(elsewhere) > 0:
		f.Text = "this node is behind a router that translates addresses: members see it at " + strings.Join(elsewhere, ", ")
		switch {
		case changed > 0:
			f.Text += ". The router takes other ports for connections that go out, perhaps one for each (a symmetric one): members behind such routers reach each other through a relay, that is a member which can be reached"
		case kept > 0:
			f.Text += ". The router keeps the ports of connections that go out: direct connections to members behind other routers can work"
		}
	case public:
		f.Text = "members see this node at its own address, and it has a public one: no router translates"
	default:
		f.Text = "members see this node at its own address: no router translates between them"
	}
	return []doctor.Finding{f}
}
