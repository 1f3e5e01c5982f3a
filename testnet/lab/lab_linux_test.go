package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// quiet is how long a test waits for what must not arrive.
const quiet = 150 * time.Millisecond

// listen accepts TCP connections on the host's port 4001, on all its addresses.
func listen(t *testing.T, h *Host) {
	t.Helper()
	var l net.Listener
	if err := h.Do(func() (err error) { l, err = net.Listen("tcp", ":4001"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// dial says whether from reaches what listens at to: nil, or how it does not.
func dial(from *Host, to netip.Addr, limit time.Duration) error {
	return from.Do(func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 4001).String(), limit)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// silent fails the test unless from's attempt to reach to is answered by nothing at all, not by a refusal either.
func silent(t *testing.T, what string, from *Host, to netip.Addr) {
	t.Helper()
	if e := net.Error(nil); !errors.As(dial(from, to, quiet), &e) || !e.Timeout() {
		t.Errorf("%s: %v, and no silence", what, e)
	}
}

func reaches(t *testing.T, what string, from *Host, to netip.Addr) {
	t.Helper()
	if err := dial(from, to, 5*time.Second); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func TestSwitch(t *testing.T) {
	t.Parallel()
	l := New(t)
	left, right := l.Switch(), l.Switch()
	a, b, c := l.Host("a"), l.Host("b"), l.Host("c")
	for i, h := range []*Host{a, b, c} {
		h.Plug(left, fmt.Sprintf("10.1.0.%d/24", i+1))
		listen(t, h)
	}
	reaches(t, "at first", a, b.Addr())
	reaches(t, "at first, back", b, a.Addr())

	l.Drop(a, b)
	silent(t, "what a says is lost", a, b.Addr())
	silent(t, "its answers are, too", b, a.Addr())
	reaches(t, "others are not concerned", a, c.Addr())
	l.Pass(a, b)
	reaches(t, "and no longer", a, b.Addr())

	a.Cut()
	silent(t, "cut off", a, c.Addr())
	silent(t, "cut off, back", c, a.Addr())
	reaches(t, "the others", b, c.Addr())
	a.Heal()
	reaches(t, "healed", a, c.Addr())

	c.Link(0).Move(right)
	silent(t, "on another switch", a, c.Addr())
	b.Link(0).Move(right)
	reaches(t, "on the other switch together", b, c.Addr())
	c.Link(0).Move(left)
	reaches(t, "back", a, c.Addr())

	// What a host sees of its cable, and of its interface.
	flags := func() (f net.Flags) {
		if err := a.Do(func() error {
			i, err := net.InterfaceByName("eth0")
			if err == nil {
				f = i.Flags
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		return f
	}
	link := a.Link(0)
	link.Pull()
	for end := time.Now().Add(5 * time.Second); flags()&net.FlagRunning != 0 && time.Now().Before(end); { // the kernel says it a moment later
		time.Sleep(time.Millisecond)
	}
	if f := flags(); f&net.FlagUp == 0 || f&net.FlagRunning != 0 {
		t.Errorf("without a cable: %v", f)
	}
	link.Push()
	reaches(t, "with its cable", a, c.Addr())
	link.Down()
	if f := flags(); f&net.FlagUp != 0 {
		t.Errorf("down: %v", f)
	}
	link.Up()
	reaches(t, "up again", a, c.Addr())

	old := a.Addr()
	link.SetAddr("10.1.0.77/24")
	reaches(t, "at another address", c, a.Addr())
	silent(t, "at the old one", b, old)
	link.SetAddr("")
	if err := dial(a, c.Addr(), time.Second); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("without an address: %v", err)
	}
}

// udp is a UDP socket at port 4001 of a host.
type udp struct{ net.PacketConn }

func open(t *testing.T, h *Host) udp {
	t.Helper()
	var c net.PacketConn
	if err := h.Do(func() (err error) { c, err = net.ListenPacket("udp", ":4001"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return udp{c}
}

func (u udp) send(t *testing.T, to netip.AddrPort) {
	t.Helper()
	if _, err := u.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
}

// from is where the next packet came from; the zero value: none came.
func (u udp) from(limit time.Duration) netip.AddrPort {
	u.SetReadDeadline(time.Now().Add(limit))
	_, a, err := u.ReadFrom(make([]byte, 64))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(a.String())
}

func TestRouter(t *testing.T) {
	t.Parallel()
	l := New(t)
	internet := l.Switch()
	s1, s2 := l.Host("s1"), l.Host("s2")
	s1.Plug(internet, "8.8.0.1/16")
	s2.Plug(internet, "8.8.0.2/16")
	home := func(name, outside string, nat NAT) (*Host, *Host) {
		inside := l.Switch()
		r := l.Router(name+"r", inside, "192.168.1.1/24", internet, outside+"/16", nat)
		h := l.Host(name)
		h.Plug(inside, "192.168.1.2/24")
		h.Gateway("192.168.1.1")
		return h, r
	}
	a, ra := home("a", "8.8.1.1", PortPreserving)
	b, rb := home("b", "8.8.2.1", PortPreserving)
	y, ry := home("y", "8.8.3.1", Symmetric)
	u1, u2, ua, ub, uy := open(t, s1), open(t, s2), open(t, a), open(t, b), open(t, y)
	at := func(h *Host, link int) netip.AddrPort { return netip.AddrPortFrom(h.Link(link).Addr(), 4001) }
	maps := func(u udp) (netip.AddrPort, netip.AddrPort) {
		u.send(t, at(s1, 0))
		u.send(t, at(s2, 0))
		return u1.from(5 * time.Second), u2.from(5 * time.Second)
	}
	if m1, m2 := maps(ua); m1 != at(ra, 1) || m2 != m1 {
		t.Errorf("port-preserving: %v and %v", m1, m2)
	}
	if m1, m2 := maps(uy); m1.Addr() != at(ry, 1).Addr() || m2.Addr() != m1.Addr() || m1.Port() == m2.Port() {
		t.Errorf("symmetric: %v and %v", m1, m2)
	}
	// Nobody gets in who was not asked for, and a hole opens for whom both sides have knocked at.
	ub.send(t, at(ra, 1))
	if f := ua.from(quiet); f.IsValid() {
		t.Errorf("from %v, unasked", f)
	}
	ua.send(t, at(rb, 1))
	if f := ub.from(5 * time.Second); f != at(ra, 1) {
		t.Errorf("through the hole: from %v", f)
	}
	ub.send(t, at(ra, 1))
	if f := ua.from(5 * time.Second); f != at(rb, 1) {
		t.Errorf("through the hole, back: from %v", f)
	}
	uy.send(t, at(ra, 1))
	ua.send(t, at(ry, 1))
	if f := uy.from(quiet); f.IsValid() {
		t.Errorf("through a symmetric router, from %v", f)
	}

	listen(t, a)
	listen(t, s1)
	reaches(t, "outwards", a, s1.Addr())
	silent(t, "a port nobody listens at", s1, ra.Link(1).Addr())
	a.Link(0).Down()
	if err := dial(a, s1.Addr(), time.Second); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("interface down: %v", err)
	}
	a.Link(0).Up()
	reaches(t, "up again, with its way out", a, s1.Addr())
	ra.Link(1).SetAddr("8.8.1.9/16")
	reaches(t, "the provider's new address", a, s1.Addr())
}

// TCP connections that both sides open at the same time, which hole punching needs.
func TestPunchTCP(t *testing.T) {
	t.Parallel()
	l := New(t)
	internet := l.Switch()
	homes := make([]*Host, 2)
	outside := []string{"8.8.1.1", "8.8.2.1"}
	for i := range homes {
		inside := l.Switch()
		l.Router(fmt.Sprint("r", i), inside, "192.168.1.1/24", internet, outside[i]+"/16", PortPreserving)
		homes[i] = l.Host(fmt.Sprint("h", i))
		homes[i].Plug(inside, "192.168.1.2/24")
		homes[i].Gateway("192.168.1.1")
	}
	var wait sync.WaitGroup
	for i, h := range homes {
		wait.Go(func() {
			if err := h.Do(func() error {
				d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{Port: 4001}}
				c, err := d.Dial("tcp", outside[1-i]+":4001")
				if err == nil {
					c.Close()
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

func TestMulticast(t *testing.T) {
	t.Parallel()
	l := New(t)
	s := l.Switch()
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}
	hosts := map[string]*Host{}
	ears := map[string]udp{}
	for i, name := range []string{"a", "b", "deaf"} {
		h := l.Host(name)
		h.Plug(s, fmt.Sprintf("10.1.0.%d/24", i+1))
		if err := h.Do(func() error {
			i, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			c, err := net.ListenMulticastUDP("udp4", i, group)
			ears[name] = udp{c}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ears[name].Close() })
		hosts[name] = h
	}
	hosts["deaf"].Link(0).LoseMulticast()
	say := func(name string) {
		if _, err := ears[name].WriteTo([]byte("hello"), group); err != nil {
			t.Error(err)
		}
	}
	// ListenMulticastUDP turns the loop of one's own words off.
	say("a")
	if f := ears["b"].from(5 * time.Second); f.Addr() != hosts["a"].Addr() {
		t.Errorf("b heard %v", f)
	}
	if f := ears["deaf"].from(quiet); f.IsValid() {
		t.Errorf("the deaf host heard %v", f)
	}
	say("deaf")
	if f := ears["b"].from(quiet); f.IsValid() {
		t.Errorf("b heard the deaf host: %v", f)
	}
	listen(t, hosts["a"])
	reaches(t, "other than by multicast", hosts["deaf"], hosts["a"].Addr())
	hosts["a"].Link(0).NoMulticast()
	if err := hosts["a"].Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil && i.Flags&net.FlagMulticast != 0 {
			err = errors.New("the interface says that it has multicast")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// What a thread has started with endWithParent ends with it: so no thread may end that others use as well.
func TestDoEndsNobody(t *testing.T) {
	t.Parallel()
	h := New(t).Host("a")
	var ended []<-chan error
	for range 20 {
		cmd := h.Command(t.Context(), "sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c := make(chan error, 1)
		ended = append(ended, c)
		go func() { c <- cmd.Wait() }()
		var wait sync.WaitGroup
		for range 4 {
			wait.Go(func() {
				if err := h.Do(func() error { return nil }); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
	}
	for i, c := range ended {
		select {
		case err := <-c:
			t.Errorf("command %d: %v", i, err)
		default:
		}
	}
}

func TestRerun(t *testing.T) {
	if name := Inside(); name != "" {
		addrs, err := net.InterfaceAddrs()
		if got := fmt.Sprint(addrs); err != nil || !strings.Contains(got, os.Getenv("WANT")+"/24") || !strings.Contains(got, "127.0.0.1/8") {
			t.Errorf("%s has %s, %v", name, got, err)
		}
		return
	}
	t.Parallel()
	l := New(t)
	s := l.Switch()
	var wait sync.WaitGroup
	for _, addr := range []string{"10.1.0.1", "10.1.0.2"} {
		h := l.Host("h" + addr)
		h.Plug(s, addr+"/24")
		wait.Go(func() { h.Rerun(t, "WANT="+addr) })
	}
	wait.Wait()
	if out, err := l.hosts[1].Command(t.Context(), "ip", "-4", "-o", "addr").CombinedOutput(); err != nil || !strings.Contains(string(out), "10.1.0.2/24") {
		t.Errorf("%v %s", err, out)
	}
}

// Nothing stays, neither of a lab nor of a process that was killed.
func TestRemoved(t *testing.T) {
	t.Parallel()
	New(t) // or skip
	name := ""
	t.Run("lab", func(t *testing.T) {
		l := New(t)
		l.Host("a").Plug(l.Switch(), "10.1.0.1/24")
		name = l.name
	})
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	left := fmt.Sprintf("%s%d-1-", prefix, dead.Process.Pid)
	if out, err := exec.Command("ip", "netns", "add", left).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	sweep()
	files, err := os.ReadDir("/run/netns")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), name) || f.Name() == left {
			t.Errorf("%s is still there", f.Name())
		}
	}
}
