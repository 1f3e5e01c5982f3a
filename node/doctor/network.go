package doctor

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
)

// kind of a network interface.
type kind string

const (
	loopback kind = "loopback"
	inside   kind = "inside"  // a network inside this machine: containers, virtual machines
	tunnel   kind = "tunnel"  // a VPN
	ignored  kind = "ignored" // of the system's own
	network  kind = "network"
)

// prefixes of interfaces' names, by what makes them. A bridge that an administrator has made for a real network may have any of these
// names; then it is called what it is not, and works.
var prefixes = []struct {
	name string
	kind kind
}{
	{"docker", inside}, {"br-", inside}, {"veth", inside}, {"virbr", inside}, {"vnet", inside}, {"cni", inside}, {"flannel", inside}, {"cali", inside},
	{"lxc", inside}, {"lxdbr", inside}, {"podman", inside}, {"vmnet", inside}, {"vboxnet", inside}, {"VirtualBox", inside}, {"VMware", inside}, {"vEthernet", inside},
	{"bridge10", inside}, // of macOS, for virtual machines and a shared connection
	{"tun", tunnel}, {"tap", tunnel}, {"wg", tunnel}, {"utun", tunnel}, {"ppp", tunnel}, {"ipsec", tunnel}, {"tailscale", tunnel}, {"Tailscale", tunnel},
	{"zt", tunnel}, {"ZeroTier", tunnel}, {"nebula", tunnel}, {"WireGuard", tunnel}, {"proton", tunnel}, {"nordlynx", tunnel},
	{"awdl", ignored}, {"llw", ignored}, {"anpi", ignored}, {"ap1", ignored}, {"gif", ignored}, {"stf", ignored},
}

func kindOf(i net.Interface) kind {
	if i.Flags&net.FlagLoopback != 0 {
		return loopback
	}
	for _, p := range prefixes {
		if strings.HasPrefix(i.Name, p.name) {
			return p.kind
		}
	}
	if i.Flags&net.FlagPointToPoint != 0 {
		return tunnel
	}
	return network
}

// link is an interface with its addresses.
type link struct {
	net.Interface
	kind  kind
	addrs []netip.Prefix
}

func links() ([]link, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []link
	for _, i := range all {
		l := link{Interface: i, kind: kindOf(i)}
		addrs, _ := i.Addrs() // none: it went away
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					bits, _ := n.Mask.Size()
					l.addrs = append(l.addrs, netip.PrefixFrom(ip.Unmap(), bits))
				}
			}
		}
		out = append(out, l)
	}
	return out, nil
}

func (l link) up() bool { return l.Flags&net.FlagUp != 0 && l.Flags&net.FlagRunning != 0 }

// from says whether the network gave the interface an address: one that it gave itself says that nobody did.
func (l link) fromNetwork() bool {
	return slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return !p.Addr().IsLinkLocalUnicast() })
}

func (l link) String() string {
	words := make([]string, len(l.addrs))
	for i, a := range l.addrs {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}

// Near says whether an address is in the network of one of this machine's interfaces, tunnels and itself apart: whoever has it should
// be reachable directly, and hear multicast.
func Near(a netip.Addr) bool {
	all, _ := links()
	return slices.ContainsFunc(all, func(l link) bool { return l.kind == network && l.up() && l.near(a) })
}

func (l link) near(a netip.Addr) bool {
	return slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) && p.Addr() != a })
}

// Own says whether an address is one of this machine's.
func Own(a netip.Addr) bool {
	all, _ := links()
	return slices.ContainsFunc(all, func(l link) bool {
		return slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr() == a.WithZone("") })
	})
}

// network looks at the interfaces, and at multicast on each that has it.
func (m Machine) network(ctx context.Context) []Finding {
	all, err := links()
	if err != nil {
		return []Finding{{Check: CheckInterface, State: Fail, Text: "the network interfaces cannot be listed: " + err.Error(), Fix: "see whether something confines this program (a sandbox, a container)"}}
	}
	var out []Finding
	var test, down []link
	found := false
	for _, l := range all {
		f := Finding{Check: CheckInterface, Subject: l.Name, State: OK}
		switch {
		case l.kind == loopback, l.kind == ignored:
			continue
		case !l.up():
			if l.kind == network {
				down = append(down, l)
			}
			continue
		case l.kind == inside:
			f.Text = fmt.Sprintf("%s is a network inside this machine (%s), of containers or virtual machines: it leads to no other computer", l.Name, cmp.Or(l.String(), "no address"))
		case l.kind == tunnel && !l.fromNetwork():
			continue // macOS has several, for its own purposes
		case l.kind == tunnel:
			found = true
			f.Text = fmt.Sprintf("%s is a VPN (%s): members behind it are found by their addresses (meshnode up --peer HOST:PORT) and through other members, for most pass no multicast on", l.Name, l)
		case !l.fromNetwork():
			f.State = Warn
			f.Text = fmt.Sprintf("%s is up, and has no address that the network gave it (%s)", l.Name, cmp.Or(l.String(), "none"))
			f.Fix = "look at the network's DHCP server, or give the interface an address"
		case l.Flags&net.FlagMulticast == 0:
			found = true
			f.State = Warn
			f.Text = fmt.Sprintf("%s is up (%s), and has no multicast: nobody is found there by searching", l.Name, l)
			f.Fix = "give addresses: meshnode up --peer HOST:PORT; or on Linux: sudo ip link set dev " + l.Name + " multicast on"
		default:
			found = true
			f.Text = fmt.Sprintf("%s is up: %s", l.Name, l)
			test = append(test, l)
		}
		out = append(out, f)
	}
	if !found {
		f := Finding{Check: CheckInterface, State: Fail, Text: "this machine is in no network: only loopback is up", Fix: "connect it: Wi-Fi, or a cable; the node finds the others by itself when there is a network"}
		if len(down) > 0 {
			f.Text += ", and " + down[0].Name + " is down"
		}
		out = append(out, f)
	}
	if m.NoMDNS {
		return append(out, Finding{Check: CheckMDNS, State: Warn, Text: "this node does not search the local network, and is not found there: it was started with --no-mdns",
			Fix: "start it without, unless that is meant: meshnode down; meshnode up -d"})
	}
	tested := make([]Finding, len(test))
	var wg sync.WaitGroup
	for i, l := range test {
		wg.Go(func() { tested[i] = m.multicast(ctx, l) })
	}
	wg.Wait()
	return append(out, tested...)
}

// mDNS, by RFC 6762.
var mdnsGroup = &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}

// answerTime is how long answers are waited for: responders may take their time, up to half a second (RFC 6762, 6).
const answerTime = 1200 * time.Millisecond

// maxNamed members are asked for by name: so many fit into a frame.
const maxNamed = 16

// heard is what came of a search on one interface.
type heard struct {
	itself  bool
	others  map[netip.Addr]bool // who answered to all
	privat  map[netip.Addr]bool // who answered to this machine alone: that says nothing of what comes to all
	sendErr error
	bindErr error
}

func (m Machine) multicast(ctx context.Context, l link) Finding {
	f := Finding{Check: CheckMulticast, Subject: l.Name, State: OK}
	var near []netip.Addr
	for a := range m.Neighbours {
		if l.near(a) && a.Is4() {
			near = append(near, a)
		}
	}
	slices.SortFunc(near, netip.Addr.Compare)
	near = near[:min(len(near), maxNamed)]
	var names []string // who hears its own name answers at once; of all the others only some do
	for _, a := range near {
		names = append(names, m.Neighbours[a].Service)
	}
	names = append(names, "_services._dns-sd._udp.local.")
	if m.Service != "" {
		names = append(names, m.Service)
	}
	h := search(ctx, l, names)
	var missing []string
	for _, a := range near {
		if !h.others[a] {
			missing = append(missing, fmt.Sprintf("%s at %s", m.Neighbours[a].Name, a))
		}
	}
	missing = missing[:min(len(missing), 5)]
	var others []string
	for _, a := range slices.SortedFunc(maps.Keys(h.others), netip.Addr.Compare) {
		others = append(others, a.String())
	}
	if n := len(others); n > 5 {
		others = append(others[:5], fmt.Sprintf("%d more", n-5))
	}
	switch {
	case errors.Is(h.bindErr, errNoIPv4):
		f.State, f.Text = Warn, fmt.Sprintf("%s has no IPv4 address: multicast was not tested there", l.Name)
	case h.bindErr != nil:
		f.State, f.Text = Warn, fmt.Sprintf("multicast cannot be tested on %s: %v", l.Name, h.bindErr)
		f.Fix = "see which program holds UDP port 5353 for itself alone, and end it or let it share the port"
	case h.sendErr != nil:
		f.State = Fail
		f.Text = fmt.Sprintf("multicast cannot be sent on %s: %v", l.Name, h.sendErr)
		f.Fix = sendFix(runtime.GOOS, h.sendErr)
	case !h.itself:
		f.State = Fail
		f.Text = fmt.Sprintf("a search on %s is not even heard on this machine itself: something here drops UDP port 5353", l.Name)
		f.Fix = "let it in: " + openUDP(runtime.GOOS)
	case len(missing) > 0:
		f.State = Warn
		f.Text = fmt.Sprintf("multicast is sent and heard on this machine on %s, but %s, in the same network, did not answer", l.Name, strings.Join(missing, " and "))
		if len(others) > 0 {
			f.Text += "; " + strings.Join(others, ", ") + " did"
		}
		f.Fix = "run meshnode doctor there; if all is well there, the network loses multicast: turn off client isolation (AP isolation, guest network) in the access point, and IGMP snooping in switches without a querier; or give addresses: meshnode up --peer HOST:PORT"
	case len(others) > 0:
		f.Text = fmt.Sprintf("multicast on %s: heard here, and answered by %s", l.Name, strings.Join(others, ", "))
	default:
		f.Text = fmt.Sprintf("multicast on %s: heard here; no other machine answered. If one with a node is in this network: client isolation of the access point, or a switch that snoops IGMP without a querier, keeps it away", l.Name)
	}
	return f
}

// sendFix is what helps where multicast cannot be sent.
func sendFix(system string, err error) string {
	switch {
	case system == "darwin":
		// macOS 15 and later ask once, and then deny in silence: sends fail as if there were no route.
		return "allow it in System Settings, Privacy & Security, Local Network: meshnode, or the program that it is started from (Terminal); then start the node again"
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return "a firewall on this machine drops what goes out to UDP port 5353: " + openUDP(system)
	}
	return "give the interface a route for multicast, or give addresses: meshnode up --peer HOST:PORT"
}

// openUDP is how UDP port 5353 is opened.
func openUDP(system string) string {
	switch system {
	case "windows":
		return `netsh advfirewall firewall add rule name="mDNS for meshnode" dir=in action=allow protocol=UDP localport=5353 profile=private,domain`
	case "darwin":
		return "System Settings, Privacy & Security, Local Network: allow meshnode, or the program that it is started from (Terminal); and Network, Firewall: allow incoming connections for it"
	case "linux":
		return "ufw: sudo ufw allow 5353/udp · firewalld: sudo firewall-cmd --permanent --add-service=mdns && sudo firewall-cmd --reload · nftables or iptables: accept udp dport 5353"
	}
	return "allow UDP port 5353, in and out"
}

var errNoIPv4 = errors.New("no IPv4 address")

// search asks everybody on an interface for these names, and listens for the question itself and for the answers with a second socket. All
// that speak mDNS answer which services they have.
func search(ctx context.Context, l link, names []string) (h heard) {
	h.others, h.privat = map[netip.Addr]bool{}, map[netip.Addr]bool{}
	var own netip.Addr
	for _, p := range l.addrs {
		if p.Addr().Is4() && (!own.IsValid() || own.IsLinkLocalUnicast()) {
			own = p.Addr()
		}
	}
	if !own.IsValid() {
		h.bindErr = errNoIPv4
		return h
	}
	in, err := net.ListenMulticastUDP("udp4", &l.Interface, mdnsGroup)
	if err != nil {
		h.bindErr = err
		return h
	}
	defer in.Close()
	out, err := net.ListenUDP("udp4", &net.UDPAddr{IP: own.AsSlice()})
	if err != nil {
		h.bindErr = err
		return h
	}
	defer out.Close()
	pin, pout := ipv4.NewPacketConn(in), ipv4.NewPacketConn(out)
	// What the sockets of another interface hear must not count for this one. Windows cannot tell; there each socket hears its own only.
	byLink := pin.SetControlMessage(ipv4.FlagInterface, true) == nil
	for _, err := range []error{pin.SetMulticastLoopback(true), pout.SetMulticastLoopback(true), pout.SetMulticastInterface(&l.Interface), pout.SetMulticastTTL(255)} {
		if err != nil {
			h.bindErr = err
			return h
		}
	}
	question, err := query(names)
	if err != nil {
		h.bindErr = err
		return h
	}
	end := time.Now().Add(answerTime)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	in.SetReadDeadline(end)
	out.SetReadDeadline(end)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 9000) // the largest that RFC 6762 allows
		for {
			n, _, from, err := pout.ReadFrom(buf)
			if err != nil && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)) {
				return
			} else if err != nil {
				continue // Windows tells of an unreachable port here
			}
			if a := addrOf(from); n > 2 && buf[2]&0x80 != 0 && !l.has(a) {
				h.privat[a] = true
			}
		}
	})
	wg.Go(func() {
		buf := make([]byte, 9000)
		for {
			n, cm, from, err := pin.ReadFrom(buf)
			if err != nil {
				return
			}
			if byLink && cm != nil && cm.IfIndex != l.Index {
				continue
			}
			a := addrOf(from)
			switch {
			case bytes.Equal(buf[:n], question):
				h.itself = true
			case n > 2 && buf[2]&0x80 != 0 && !l.has(a): // an answer, or an announcement
				h.others[a] = true
			}
		}
	})
	// Twice, for a datagram may be lost.
	for i := range 2 {
		if i > 0 {
			select {
			case <-time.After(answerTime / 3):
			case <-ctx.Done():
			}
		}
		if _, err := pout.WriteTo(question, nil, mdnsGroup); err != nil {
			h.sendErr = err
			if op := (*net.OpError)(nil); errors.As(err, &op) {
				h.sendErr = op.Err
			}
			in.SetReadDeadline(time.Now())
			out.SetReadDeadline(time.Now())
			break
		}
	}
	wg.Wait()
	return h
}

func (l link) has(a netip.Addr) bool {
	return slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

func addrOf(a net.Addr) netip.Addr {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// query is a question for these names, and for a random one, by which it is known again.
func query(names []string) ([]byte, error) {
	mark := make([]byte, 8)
	rand.Read(mark)
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{})
	b.EnableCompression()
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	for _, name := range append(names, "doctor-"+hex.EncodeToString(mark)+".local.") {
		n, err := dnsmessage.NewName(name)
		if err != nil {
			return nil, err
		}
		if err := b.Question(dnsmessage.Question{Name: n, Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}
