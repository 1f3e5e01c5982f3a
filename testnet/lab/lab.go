// Package lab builds networks for tests out of network namespaces, on one Linux machine and as root: switches, hosts
// with cables to them, links that go down and come back with other addresses, frames that are lost without a word, home
// routers that translate addresses, networks without multicast. Nothing of it touches the machine's own network: public
// addresses such as 8.8.0.1 are public only in there.
//
//	l := lab.New(t)                                  // skips t where it cannot be
//	lan, internet := l.Switch(), l.Switch()
//	l.Router("r", lan, "192.168.1.1/24", internet, "8.8.1.1/16", lab.PortPreserving)
//	a := l.Host("a")
//	a.Plug(lan, "192.168.1.2/24")
//	a.Gateway("192.168.1.1")
//	cmd := a.Command(ctx, "meshnode", "up")          // or a.Rerun(t), or a.Do(func() error {…})
//
// A mesh of nodes on hosts: testnet.Options.Hosts.
//
// What a lab made is gone after the test, failed or not; what a killed test left behind, the next lab removes. Many labs
// may be there at once, in one process or in several. The methods are for the test's goroutine and end the test where the
// system refuses something; Command, Prefix, Do and Addr may be called by any goroutine.
package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Lab is the networks of one test.
type Lab struct {
	t     testing.TB
	name  string // what the namespaces' names begin with
	made  int    // switches and cables, for their names: the system allows 15 bytes
	core  string // the namespace of the switches
	hosts []*Host
}

// prefix of the namespaces' names; the number of the process follows.
const prefix = "meshlab-"

var labs atomic.Int32

// Missing says why there can be no lab here, or nil.
func Missing() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("a lab of network namespaces needs Linux, and this is %s", runtime.GOOS)
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("a lab of network namespaces needs root")
	}
	for tool, of := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("a lab of network namespaces needs %s: apt-get install %s", tool, of)
		}
	}
	return nil
}

// New makes an empty lab, or skips t and says why.
func New(t testing.TB) *Lab {
	t.Helper()
	if err := Missing(); err != nil {
		t.Skip(err)
	}
	sweepOnce()
	l := &Lab{t: t, name: fmt.Sprintf("%s%d-%d-", prefix, os.Getpid(), labs.Add(1))}
	l.core = l.space("")
	l.Switch() // unused: rules that are older than a namespace's first bridge see no frames, on Linux 6.18 at least
	// The rules about frames go by the switch's ports and not by addresses: those change.
	l.nft(l.core, `
table bridge lab {
	set lost { type ifname . ifname; }
	set deaf { type ifname; }
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname . oifname @lost drop
		ip daddr 224.0.0.0/4 iifname @deaf drop
		ip daddr 224.0.0.0/4 oifname @deaf drop
		ip6 daddr ff02::fb iifname @deaf drop
		ip6 daddr ff02::fb oifname @deaf drop
	}
}`)
	return l
}

var sweepOnce = sync.OnceFunc(sweep)

// sweep removes the namespaces of processes that ended without having done it.
func sweep() {
	names, _ := filepath.Glob("/run/netns/" + prefix + "*")
	for _, n := range names {
		n = filepath.Base(n)
		pid, _, _ := strings.Cut(strings.TrimPrefix(n, prefix), "-")
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			exec.Command("ip", "netns", "del", n).Run() // another process may just be doing the same
		}
	}
}

// space makes a namespace that ends with the test, with loopback up.
func (l *Lab) space(name string) string {
	l.t.Helper()
	name = l.name + name
	l.ip("netns", "add", name)
	l.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			l.t.Errorf("remove namespace %s: %v: %s", name, err, out)
		}
	})
	l.ip("-n", name, "link", "set", "lo", "up")
	return name
}

func (l *Lab) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %q: %v: %s", args, err, out)
	}
}

// nft carries out commands of nft(8) in a namespace.
func (l *Lab) nft(space, commands string) {
	l.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", space, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("nft: %v: %s\n%s", err, out, commands)
	}
}

// Switch is a network that cables go to.
type Switch struct {
	lab  *Lab
	name string
}

// Switch makes one, without cables.
func (l *Lab) Switch() *Switch {
	l.t.Helper()
	l.made++
	s := &Switch{lab: l, name: fmt.Sprint("s", l.made)}
	// Without snooping multicast reaches everybody, as on a simple switch.
	l.ip("-n", l.core, "link", "add", "name", s.name, "type", "bridge", "mcast_snooping", "0")
	l.ip("-n", l.core, "link", "set", "dev", s.name, "addrgenmode", "none", "up")
	return s
}

// Host is a machine: a namespace with loopback and the cables that are plugged in.
type Host struct {
	lab     *Lab
	Name    string
	space   string
	links   []*Link
	gateway netip.Addr
}

// Host makes one, without cables. No two of a lab have the same name.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	h := &Host{lab: l, Name: name, space: l.space(name)}
	l.hosts = append(l.hosts, h)
	return h
}

// Link is a host's network interface and the cable from it to a switch.
type Link struct {
	host *Host
	Name string // eth0, eth1 …
	port string // of the switch

	mu   sync.Mutex // guards addr
	addr netip.Prefix
}

// Plug adds an interface with a cable to s and an address such as 192.168.1.2/24, and brings it up. Without an address
// (""), the interface is down.
func (h *Host) Plug(s *Switch, addr string) *Link {
	l := h.lab
	l.t.Helper()
	l.made++
	k := &Link{host: h, Name: fmt.Sprint("eth", len(h.links)), port: fmt.Sprint("p", l.made)}
	h.links = append(h.links, k)
	l.ip("-n", l.core, "link", "add", "name", k.port, "type", "veth", "peer", "name", k.Name, "netns", h.space)
	l.ip("-n", l.core, "link", "set", "dev", k.port, "addrgenmode", "none", "master", s.name, "up")
	if addr != "" {
		k.SetAddr(addr)
		k.Up()
	}
	return k
}

// Gateway makes addr the way to everywhere else, now and whenever the interface that leads to it comes up again or has a
// new address.
func (h *Host) Gateway(addr string) {
	h.lab.t.Helper()
	h.gateway = h.lab.addr(addr)
	for _, k := range h.links {
		k.route()
	}
}

func (l *Lab) addr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		l.t.Helper()
		l.t.Fatal(err)
	}
	return a
}

func (k *Link) route() {
	if k.host.gateway.IsValid() && k.addr.Contains(k.host.gateway) {
		k.host.lab.t.Helper()
		k.host.lab.ip("-n", k.host.space, "route", "replace", "default", "via", k.host.gateway.String(), "dev", k.Name)
	}
}

// SetAddr gives the interface this address, such as 192.168.1.2/24, instead of those that it has; "": none.
func (k *Link) SetAddr(addr string) {
	h := k.host
	h.lab.t.Helper()
	var p netip.Prefix
	if addr != "" {
		var err error
		if p, err = netip.ParsePrefix(addr); err != nil {
			h.lab.t.Fatal(err)
		}
	}
	had := k.addr.IsValid()
	k.mu.Lock()
	k.addr = p
	k.mu.Unlock()
	if had {
		h.lab.ip("-n", h.space, "addr", "flush", "dev", k.Name, "scope", "global")
	}
	if addr == "" {
		return
	}
	h.lab.ip("-n", h.space, "addr", "add", addr, "dev", k.Name)
	if had {
		k.route()
	}
}

// Addr is the address of the interface, without the network's size; invalid if it has none.
func (k *Link) Addr() netip.Addr {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.addr.Addr()
}

// Addr is the address of the host's first interface.
func (h *Host) Addr() netip.Addr { return h.links[0].Addr() }

// Link is the host's i-th interface, from 0.
func (h *Host) Link(i int) *Link { return h.links[i] }

// Up and Down are what an operating system does with an interface. Its address stays; connections are told of nothing.
func (k *Link) Up() {
	k.host.lab.t.Helper()
	k.host.lab.ip("-n", k.host.space, "link", "set", "dev", k.Name, "up")
	k.route()
}

func (k *Link) Down() {
	k.host.lab.t.Helper()
	k.host.lab.ip("-n", k.host.space, "link", "set", "dev", k.Name, "down")
}

// Pull takes the cable out of the switch: the host sees that there is no carrier. Push puts it in again.
func (k *Link) Pull() {
	k.host.lab.t.Helper()
	k.host.lab.ip("-n", k.host.lab.core, "link", "set", "dev", k.port, "down")
}

func (k *Link) Push() {
	k.host.lab.t.Helper()
	k.host.lab.ip("-n", k.host.lab.core, "link", "set", "dev", k.port, "up")
}

// Move puts the cable into another switch, so quickly that the host does not see it. Its address stays. Frames on their
// way are lost, and nobody is told: so a network falls into two, and becomes one again.
func (k *Link) Move(s *Switch) {
	k.host.lab.t.Helper()
	k.host.lab.ip("-n", k.host.lab.core, "link", "set", "dev", k.port, "master", s.name)
}

// NoMulticast makes the interface one that has no multicast and says so, as the tunnel of a VPN has none.
func (k *Link) NoMulticast() {
	k.host.lab.t.Helper()
	k.host.lab.ip("-n", k.host.space, "link", "set", "dev", k.Name, "multicast", "off")
}

// LoseMulticast loses all multicast to and from the interface, which does not know it, as some wireless networks do.
func (k *Link) LoseMulticast() {
	k.host.lab.t.Helper()
	k.host.lab.nft(k.host.lab.core, fmt.Sprintf("add element bridge lab deaf { %q }", k.port))
}

// Drop loses each frame that from sends to to, over the cables that both have now. Nobody is told. What to sends arrives.
func (l *Lab) Drop(from, to *Host) { l.t.Helper(); l.lose("add", from, to) }

// Pass ends Drop.
func (l *Lab) Pass(from, to *Host) { l.t.Helper(); l.lose("delete", from, to) }

func (l *Lab) lose(verb string, from, to *Host) {
	l.t.Helper()
	var pairs []string
	for _, a := range from.links {
		for _, b := range to.links {
			pairs = append(pairs, fmt.Sprintf("%q . %q", a.port, b.port))
		}
	}
	l.nft(l.core, verb+" element bridge lab lost { "+strings.Join(pairs, ", ")+" }")
}

// Cut loses each frame between h and the other hosts that the lab has now, as Drop does, both ways. Heal ends it.
func (h *Host) Cut()  { h.lab.t.Helper(); h.alone("add") }
func (h *Host) Heal() { h.lab.t.Helper(); h.alone("delete") }

func (h *Host) alone(verb string) {
	h.lab.t.Helper()
	for _, o := range h.lab.hosts {
		if o != h && len(o.links) > 0 {
			h.lab.lose(verb, h, o)
			h.lab.lose(verb, o, h)
		}
	}
}

// NAT is how a router translates the ports of what goes out through it. Either way it lets in only what answers
// something that went out, and is silent about the rest: as routers of homes are.
type NAT string

const (
	// PortPreserving keeps the port while that is free, and so shows the same one to everybody: holes can be punched.
	PortPreserving NAT = ""
	// Symmetric takes another port, at random, for each connection.
	Symmetric NAT = "fully-random"
)

// Router makes a host with a cable to each of two switches, eth0 inside and eth1 outside, that forwards from inside to
// outside under its own address. Hosts inside still need Gateway.
func (l *Lab) Router(name string, inside *Switch, insideAddr string, outside *Switch, outsideAddr string, nat NAT) *Host {
	l.t.Helper()
	h := l.Host(name)
	h.Plug(inside, insideAddr)
	h.Plug(outside, outsideAddr)
	l.nft(h.space, `
table ip nat {
	chain out {
		type nat hook postrouting priority srcnat;
		oifname "eth1" masquerade `+string(nat)+`
	}
}
table inet wall {
	chain through {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "eth0" oifname "eth1" accept
	}
	chain in {
		type filter hook input priority filter; policy accept;
		iifname "eth1" ct state new,invalid drop
	}
}`)
	// Of the namespace of the thread that writes it.
	if err := h.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		l.t.Fatal(err)
	}
	return h
}

// Prefix is the command that runs a command on the host, for which its arguments are to be appended.
func (h *Host) Prefix() []string { return []string{"ip", "netns", "exec", h.space} }

// Command runs a command on the host. It ends with ctx and with this process.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(h.Prefix(), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	endWithParent(cmd)
	return cmd
}

// insideVar is set in a process that Rerun started, to the host's name.
const insideVar = "MESHNODE_LAB_INSIDE"

// Inside is the name of the host on which Rerun runs this process, or "".
func Inside() string { return os.Getenv(insideVar) }

// RerunTimeout is for all that a test does on one host.
const RerunTimeout = 2 * time.Minute

// Rerun runs the test t once more, in a process on the host, where Inside tells it who it is and it does the test's
// work. t fails if that fails, and logs what it logged. env is for more variables. It may be called by several goroutines,
// for several hosts; then t.Error tells what failed.
func (h *Host) Rerun(t *testing.T, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), RerunTimeout+10*time.Second)
	defer cancel()
	binary, err := os.Executable()
	if err != nil {
		t.Error(err)
		return
	}
	var names []string
	for n := range strings.SplitSeq(t.Name(), "/") {
		names = append(names, "^"+regexp.QuoteMeta(n)+"$")
	}
	cmd := h.Command(ctx, binary, "-test.run="+strings.Join(names, "/"), "-test.v", "-test.timeout="+RerunTimeout.String(), fmt.Sprintf("-test.short=%v", testing.Short()))
	cmd.Env = append(append(os.Environ(), insideVar+"="+h.Name), env...)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Errorf("on %s: %v\n%s", h.Name, err, out)
		return
	}
	for _, line := range slices.Collect(strings.Lines(string(out))) {
		if logged.MatchString(line) {
			t.Logf("on %s: %s", h.Name, strings.TrimSpace(line))
		}
	}
}

// logged is a line of t.Log.
var logged = regexp.MustCompile(`^\s+\w+\.go:\d+: `)
