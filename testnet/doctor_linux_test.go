package testnet

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshnode/node/doctor"
	"meshnode/testnet/lab"
)

// report is what doctor said, and its exit code.
type report struct {
	t *testing.T
	doctor.Report
	code int
	text string
}

func reportOf(t *testing.T, out string, code int) *report {
	t.Helper()
	r := &report{t: t, code: code, text: out}
	if err := json.Unmarshal([]byte(out), &r.Report); err != nil {
		t.Fatalf("doctor: %v: %s", err, out)
	}
	if r.code != r.Failures {
		t.Errorf("exit code %d with %d failures: %s", r.code, r.Failures, out)
	}
	return r
}

// doctorOf has a node's doctor look.
func doctorOf(t *testing.T, n *Node) *report {
	t.Helper()
	out := n.CLI("doctor", "--json")
	return reportOf(t, out.Stdout, out.Code)
}

// has wants a finding of this check and subject ("" for any) in this state, with all of these words in its text or fix.
func (r *report) has(check, subject string, state doctor.State, words ...string) {
	r.t.Helper()
	for _, f := range r.Findings {
		if f.Check != check || f.State != state || subject != "" && f.Subject != subject {
			continue
		}
		all := true
		for _, w := range words {
			all = all && strings.Contains(f.Text+" "+f.Fix, w)
		}
		if all && (f.State == doctor.OK || f.Fix != "") {
			return
		}
	}
	r.t.Errorf("no finding %s %s %s %q among %s", check, subject, state, words, r.text)
}

// nft carries out rules on a host.
func nft(t *testing.T, h *lab.Host, rules string) {
	t.Helper()
	cmd := h.Command(t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

// What keeps nodes of one network from finding each other is found, and only that.
func TestDoctor(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	lan := l.Switch()
	var hosts []*lab.Host
	for i := range 3 {
		h := l.Host(fmt.Sprint("node", i+1))
		h.Plug(lan, fmt.Sprintf("10.99.0.%d/24", i+1))
		hosts = append(hosts, h)
	}
	n := Start(t, 3, Options{Hosts: hosts, MDNS: true})
	one, port := n.Node(1), ""
	for a := range strings.SplitSeq(one.Ready, ",") {
		if _, p, ok := strings.Cut(a, "/ip4/10.99.0.1/tcp/"); ok {
			port, _, _ = strings.Cut(p, "/")
		}
	}

	r := doctorOf(t, one)
	if r.code != 0 || !r.Running {
		t.Errorf("all is well, and doctor says %d: %s", r.code, r.text)
	}
	r.has(doctor.CheckInterface, "eth0", doctor.OK, "10.99.0.1/24")
	r.has(doctor.CheckMulticast, "eth0", doctor.OK, "answered by", "10.99.0.2", "10.99.0.3")
	r.has(doctor.CheckPort, port, doctor.OK)
	r.has(doctor.CheckMember, "", doctor.OK, "is connected, direct")
	r.has(doctor.CheckReach, "", doctor.OK, "10.99.0.1:"+port)
	r.has(doctor.CheckNAT, "", doctor.OK, "no router")
	r.has(doctor.CheckClock, "", doctor.OK, "agrees with those of 2 members")

	// A firewall on this machine.
	nft(t, hosts[0], `table inet wall { chain in { type filter hook input priority filter; policy accept;
		iifname "eth0" tcp flags & (syn | ack) == syn tcp dport `+port+` drop
		udp dport 5353 drop
		}
	}`)
	r = doctorOf(t, one)
	r.has(doctor.CheckReach, "", doctor.Fail, "10.99.0.1:"+port+": no answer", "a firewall on this machine", "sudo ufw allow "+port+"/tcp")
	r.has(doctor.CheckFirewall, "", doctor.Fail, "stops TCP port "+port, "sudo nft insert rule inet wall in tcp dport "+port+" accept")
	r.has(doctor.CheckFirewall, "", doctor.Fail, "stops mDNS")
	r.has(doctor.CheckMulticast, "eth0", doctor.Fail, "not even heard on this machine itself", "ufw allow 5353/udp")
	r.has(doctor.CheckPort, port, doctor.OK)
	if r.code != 4 {
		t.Errorf("%d failures, want 4: %s", r.code, r.text)
	}
	nft(t, hosts[0], "delete table inet wall")

	// The network loses multicast between some.
	hosts[1].Link(0).LoseMulticast()
	r = doctorOf(t, one)
	r.has(doctor.CheckMulticast, "eth0", doctor.Warn, "at 10.99.0.2, in the same network, did not answer", "10.99.0.3 did", "client isolation")

	// Members that are not there: one whose node has ended, one whose machine says nothing.
	n.Node(2).Down()
	nft(t, hosts[1], `table inet wall { chain in { type filter hook input priority filter; policy drop; }
	}`)
	n.Node(3).Down()
	one.AwaitPeers(0)
	r = doctorOf(t, one)
	if r.code != 0 {
		t.Errorf("members that are off are no failure: %s", r.text)
	}
	r.has(doctor.CheckMember, "", doctor.Warn, "10.99.0.3", "nothing listens there", "start the node there")
	r.has(doctor.CheckMember, "", doctor.Warn, "10.99.0.2", "no answer", "wake that machine")
	r.has(doctor.CheckReach, "", doctor.Warn, "not known")
	if ping := one.CLI("peers", "ping", "-c", "1", "node3"); ping.Code != 1 || !strings.Contains(ping.Stdout, "10.99.0.3") || !strings.Contains(ping.Stdout, "nothing listens there") || !strings.Contains(ping.Stdout, "1 sent, none answered") {
		t.Errorf("ping of nobody: %+v", ping)
	}

	// A machine in no network, and one whose only network has no multicast. No node runs there.
	alone := func(h *lab.Host) *report {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := h.Command(ctx, Binary(t), "doctor", "--json", "--data-dir", filepath.Join(t.TempDir(), "none"))
		out, _ := cmd.Output()
		return reportOf(t, string(out), cmd.ProcessState.ExitCode())
	}
	dark := l.Host("dark")
	r = alone(dark)
	if r.code != 1 || r.Running {
		t.Errorf("in no network: %s", r.text)
	}
	r.has(doctor.CheckInterface, "", doctor.Fail, "only loopback is up")
	r.has(doctor.CheckNode, "", doctor.Warn, "no node runs")
	k := dark.Plug(lan, "10.99.0.9/24")
	k.NoMulticast()
	alone(dark).has(doctor.CheckInterface, "eth0", doctor.Warn, "has no multicast", "--peer")
	k.Down()
	alone(dark).has(doctor.CheckInterface, "", doctor.Fail, "eth0 is down")
}

// Behind a router that lets nothing in, doctor knows that no rule on the machine is at fault.
func TestDoctorBehindRouter(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	n := Start(t, 3, Options{Hosts: behind(l, 1, lab.PortPreserving, lab.Symmetric), Apart: true})
	ticket := strings.TrimSpace(n.Node(1).CLI("invite", "--mine", "--uses", "2").Stdout)
	for i := 2; i <= 3; i++ {
		if out := n.Node(i).CLI("join", ticket); out.Code != 0 {
			t.Fatalf("join: %+v", out)
		}
	}
	n.Node(1).AwaitPeers(2)
	n.within(20*time.Second, "they meet through the relay", func() bool { p, _ := n.Node(3).pathTo(t, n.Node(2)); return p == "relay" })
	r := doctorOf(t, n.Node(3))
	r.has(doctor.CheckMember, "", doctor.OK, "is connected, through the relay")
	r.has(doctor.CheckNAT, "", doctor.OK, "behind a router", "8.8.2.1", "a symmetric one")
	r = doctorOf(t, n.Node(2))
	r.has(doctor.CheckNAT, "", doctor.OK, "behind a router", "8.8.1.1", "keeps the ports")
	r.has(doctor.CheckReach, "", doctor.Warn, "8.8.1.1", "no answer", "which is a router's")
	r = doctorOf(t, n.Node(1))
	r.has(doctor.CheckReach, "", doctor.OK, "8.8.100.1")
	r.has(doctor.CheckNAT, "", doctor.OK, "public")
	if _, err := exec.LookPath("ping"); err == nil { // and the round trip is that of the network
		out := n.Node(2).CLI("peers", "ping", "-c", "2", strings.Fields(n.Node(1).Ready)[1])
		if out.Code != 0 || !strings.Contains(out.Stdout, "direct") || !strings.Contains(out.Stdout, "2 sent, 2 answered") {
			t.Errorf("ping: %+v", out)
		}
	}
}
