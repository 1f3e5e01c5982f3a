package doctor

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func find(fs []Finding, check string) Finding {
	for _, f := range fs {
		if f.Check == check {
			return f
		}
	}
	return Finding{}
}

// one is what a judge said: its state and what has to be in its text and fix; nothing is "".
func one(t *testing.T, what string, got []Finding, state State, words ...string) {
	t.Helper()
	if state == "" {
		if len(got) > 0 {
			t.Errorf("%s: %+v, want nothing", what, got)
		}
		return
	}
	if len(got) != 1 || got[0].State != state {
		t.Errorf("%s: %+v, want one %s", what, got, state)
		return
	}
	for _, w := range words {
		if !strings.Contains(got[0].Text+" "+got[0].Fix, w) {
			t.Errorf("%s: no %q in %+v", what, w, got[0])
		}
	}
	if state != OK && got[0].Fix == "" {
		t.Errorf("%s: nothing to do: %+v", what, got[0])
	}
}

func TestFirewallsOfLinux(t *testing.T) {
	t.Parallel()
	one(t, "no ufw", ufw("", "", 4001), "")
	one(t, "ufw off", ufw("Status: inactive\n", "ENABLED=no\n", 4001), "")
	one(t, "ufw off, no root", ufw("", "# x\nENABLED=no\n", 4001), "")
	one(t, "ufw on, no root", ufw("", "# x\nENABLED=yes\n", 4001), Warn, "without root", "sudo ufw allow 4001/tcp && sudo ufw allow 5353/udp")
	const head = "Status: active\n\nTo                         Action      From\n--                         ------      ----\n"
	one(t, "ufw on", ufw(head+"22/tcp                     ALLOW       Anywhere\n14001/tcp                  ALLOW       Anywhere\n", "ENABLED=yes", 4001), Warn, "no rule for TCP port 4001")
	one(t, "ufw denies", ufw(head+"4001/tcp                   DENY        Anywhere\n", "ENABLED=yes", 4001), Warn)
	one(t, "ufw allows", ufw(head+"4001/tcp                   ALLOW       Anywhere\n", "ENABLED=yes", 4001), OK)
	one(t, "ufw allows both", ufw(head+"4001                       ALLOW IN    192.168.0.0/16\n", "ENABLED=yes", 4001), OK)

	one(t, "firewalld lets in", firewalld("yes", "yes", 4001), OK)
	one(t, "firewalld", firewalld("no", "yes", 4001), Warn, "does not let in TCP port 4001", "--add-port=4001/tcp --add-service=mdns", "--reload")
	one(t, "firewalld without mDNS", firewalld("yes", "no", 4001), Warn, "does not let in mDNS")
	one(t, "firewalld is silent", firewalld("", "", 4001), Warn, "cannot be read")

	ruleset := func(policy, rules string) string {
		return "table ip nat {\n\tchain out {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t\tdrop\n\t}\n}\n" +
			"table inet filter {\n\tset ports {\n\t\ttype inet_service\n\t}\n\n\tchain input {\n\t\ttype filter hook input priority filter; policy " + policy + ";\n" + rules +
			"\t}\n\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t\ttcp dport 4001 drop\n\t}\n}\n"
	}
	one(t, "no nft", nftables("", 4001), "")
	one(t, "nft open", nftables(ruleset("accept", "\t\ttcp dport 22 drop\n"), 4001), "")
	one(t, "nft drops", nftables(ruleset("accept", "\t\tiifname \"eth0\" tcp dport 4001 counter packets 3 bytes 180 drop\n"), 4001), Fail, "stops TCP port 4001", "sudo nft insert rule inet filter input tcp dport 4001 accept")
	one(t, "nft rejects a set", nftables(ruleset("accept", "\t\ttcp dport { 22, 4001 } reject with tcp reset\n"), 4001), Fail)
	one(t, "nft accepts first", nftables(ruleset("drop", "\t\ttcp dport { 22, 4001 } accept\n\t\ttcp dport 4001 drop\n"), 4001), "")
	one(t, "nft by policy", nftables(ruleset("drop", "\t\tct state established,related accept\n\t\ttcp dport 22 accept\n"), 4001), Warn, "none names TCP port 4001")
	one(t, "nft drops mDNS", nftables(ruleset("accept", "\t\tudp dport 5353 drop\n"), 4001), Fail, "stops mDNS", "udp dport 5353 accept")
	one(t, "nft, another port", nftables(ruleset("accept", "\t\ttcp dport 40011 drop\n"), 4001), "")

	one(t, "no iptables", iptables("", 4001), "")
	one(t, "iptables open", iptables("-P INPUT ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j DROP\n", 4001), "")
	one(t, "iptables drops", iptables("-P INPUT ACCEPT\n-A INPUT -p tcp -m tcp --dport 4001 -j DROP\n", 4001), Fail, "--dport 4001 -j ACCEPT")
	one(t, "iptables by policy", iptables("-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n", 4001), Warn)
	one(t, "iptables accepts", iptables("-P INPUT DROP\n-A INPUT -p tcp -m multiport --dports 22,4001 -j ACCEPT\n", 4001), "")
}

func TestFirewallsOfMacOSAndWindows(t *testing.T) {
	t.Parallel()
	const on, program = "Firewall is enabled. (State = 1)", "/usr/local/bin/meshnode"
	one(t, "macOS off", appFirewall("Firewall is disabled. (State = 0)", "", "", program), "")
	one(t, "macOS blocks all", appFirewall("Firewall is enabled. (State = 2)", "Firewall has block all state set to enabled.", "", program), Fail, "Block all incoming connections")
	one(t, "macOS blocks it", appFirewall(on, "Firewall has block all state set to disabled.", "Incoming connection to the application is blocked.", program), Fail, "--unblockapp")
	one(t, "macOS lets it in", appFirewall(on, "Block all DISABLED!", "Incoming connection to the application is permitted.", program), OK)
	one(t, "macOS does not know it", appFirewall(on, "Block all DISABLED!", "The application is not part of the firewall.", program), Warn, program, "--add")

	const exe = `C:\Program Files\meshnode\meshnode.exe`
	rule := func(action, active, dir, app string) string {
		return "v2.31|Action=" + action + "|Active=" + active + "|Dir=" + dir + "|Protocol=6|Profile=Private|Profile=Domain|App=" + app + "|Name=meshnode.exe|"
	}
	allow, block := rule("Allow", "TRUE", "In", `c:\program files\meshnode\meshnode.exe`), rule("Block", "TRUE", "In", exe)
	one(t, "Windows off", windowsFirewall([]string{block}, exe, nil), "")
	one(t, "Windows, no rule", windowsFirewall([]string{rule("Allow", "TRUE", "Out", exe), rule("Allow", "FALSE", "In", exe), rule("Allow", "TRUE", "In", `C:\x.exe`)}, exe, []string{"private"}), Warn,
		`netsh advfirewall firewall add rule name="meshnode" dir=in action=allow program="C:\Program Files\meshnode\meshnode.exe" enable=yes profile=private,domain`)
	one(t, "Windows allows", windowsFirewall([]string{allow}, exe, []string{"private", "public"}), OK, "private,domain")
	one(t, "Windows blocks, whatever allows", windowsFirewall([]string{allow, block}, exe, []string{"private"}), Fail, `netsh advfirewall firewall delete rule name=all program=`)
}

func TestSendFixNamesLocalNetwork(t *testing.T) {
	t.Parallel()
	if s := sendFix("darwin", os.ErrDeadlineExceeded); !strings.Contains(s, "Local Network") {
		t.Error(s)
	}
	if s := openUDP("darwin"); !strings.Contains(s, "Local Network") {
		t.Error(s)
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]kind{
		"eth0": network, "wlp3s0": network, "en0": network, "Wi-Fi": network, "docker0": inside, "br-1234": inside, "veth12ab": inside, "wg0": tunnel, "utun3": tunnel, "tailscale0": tunnel,
		"vEthernet (WSL)": inside, "awdl0": ignored, "bridge100": inside, "bridge0": network, "br0": network,
	} {
		if got := kindOf(net.Interface{Name: name, Flags: net.FlagUp}); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if kindOf(net.Interface{Name: "x0", Flags: net.FlagPointToPoint}) != tunnel || kindOf(net.Interface{Name: "lo", Flags: net.FlagLoopback}) != loopback {
		t.Error("flags do not count")
	}
}

func TestDiskIsFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if runtime.GOOS == "linux" && os.Getuid() == 0 {
		if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", dir).CombinedOutput(); err != nil {
			t.Skipf("no tmpfs here: %v: %s", err, out)
		}
		t.Cleanup(func() {
			if err := exec.Command("umount", dir).Run(); err != nil {
				t.Error(err)
			}
		})
		m := Machine{DataDir: filepath.Join(dir, "not", "yet"), MinFree: 256 << 20}
		one(t, "64 MiB", m.disk(t.Context()), Fail, "only 64 MiB free", "below 256 MiB", "meshnode blob gc")
		m.MinFree = 16 << 20
		one(t, "64 MiB of which 16 are kept", m.disk(t.Context()), Warn, "may not fit")
		return
	}
	m := Machine{DataDir: dir, MinFree: 1 << 62}
	one(t, "any disk", m.disk(t.Context()), Fail, "takes no new jobs")
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("modes say nothing on Windows")
	}
	dir := filepath.Join(t.TempDir(), "d")
	m := Machine{DataDir: dir}
	one(t, "none", m.directory(t.Context()), OK, "not there yet")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	one(t, "open", m.directory(t.Context()), Fail, "chmod 700 "+dir)
	os.Chmod(dir, 0o700)
	one(t, "private", m.directory(t.Context()), OK)
	if err := os.WriteFile(filepath.Join(dir, "key"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	one(t, "open key", m.directory(t.Context()), Fail, "chmod 600 ")
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	state := func(m Machine) State { return m.ports(t.Context())[0].State }
	for try := 1; ; try++ { // a port that was given back may be somebody else's at once
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		m := Machine{Ports: []int{l.Addr().(*net.TCPAddr).Port}}
		one(t, "taken", m.ports(t.Context()), Warn, "taken by another program")
		m.Running = true
		one(t, "served", m.ports(t.Context()), OK, "listens on TCP port")
		l.Close()
		closed := state(m)
		m.Running = false
		free := state(m)
		if closed == Fail && free == OK {
			return
		}
		if try == 5 {
			t.Fatalf("not served: %s, want fail; free: %s, want ok", closed, free)
		}
	}
}

// All of it looks, within its time, and says something of each kind that is here in any case.
func TestLook(t *testing.T) {
	t.Parallel()
	m := Machine{DataDir: t.TempDir(), Runtimes: []Runtime{{"wasm", "", true}, {"python", "", false}}, NoMDNS: true}
	fs := m.Look(t.Context())
	if f := find(fs, CheckMDNS); f.State != Warn || !strings.Contains(f.Text, "--no-mdns") {
		t.Errorf("mdns: %+v", f)
	}
	if f := find(fs, CheckMulticast); f.Check != "" {
		t.Errorf("a search that is not wanted: %+v", f)
	}
	for _, check := range []string{CheckInterface, CheckFirewall, CheckDisk, CheckDirectory, CheckRuntime, CheckOtherNodes} {
		if f := find(fs, check); f.Text == "" {
			t.Errorf("nothing of %s in %+v", check, fs)
		}
	}
	python := 0
	for _, f := range fs {
		if f.Check == CheckRuntime && f.Subject == "python" && f.State == Warn && f.Fix != "" {
			python++
		}
	}
	if python != 1 {
		t.Errorf("no Python: %+v", fs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m.NoMDNS = false
	m.Look(ctx) // ends
}
