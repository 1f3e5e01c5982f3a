package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// firewall looks at the rules of the system's firewall, as far as they can be read without root. Where they cannot, what comes in says it:
// see the checks multicast and reach.
func (m Machine) firewall(ctx context.Context) []Finding {
	port := 0
	if len(m.Ports) > 0 {
		port = m.Ports[0]
	}
	out := systemFirewall(ctx, port, m.Program)
	for i := range out {
		out[i].Check = CheckFirewall
	}
	if len(out) == 0 {
		f := Finding{Check: CheckFirewall, State: OK, Text: "no firewall was found on this machine"}
		if runtime.GOOS == "linux" {
			f.Text = "no rule that stops this node was found"
			if os.Getuid() != 0 {
				f.Text = "no firewall was found that says so to everybody; the rules themselves only root can read: run this with sudo if others cannot connect"
			}
		}
		out = append(out, f)
	}
	return out
}

// output runs a program of the system and returns what it prints, or "" if it is not there or fails.
func output(ctx context.Context, name string, args ...string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		for _, dir := range []string{"/usr/sbin/", "/sbin/"} { // not on the path of ordinary users everywhere
			if path, err = exec.LookPath(dir + name); err == nil {
				break
			}
		}
		if err != nil {
			return ""
		}
	}
	b, err := exec.CommandContext(ctx, path, args...).Output()
	if err != nil {
		return ""
	}
	return string(b)
}

func openTCP(port int) string {
	if port == 0 {
		return "PORT"
	}
	return strconv.Itoa(port)
}

// ---- Linux

// ufw judges `ufw status` (root only), or the settings in /etc/ufw/ufw.conf.
func ufw(status, conf string, port int) []Finding {
	fix := fmt.Sprintf("sudo ufw allow %s/tcp && sudo ufw allow 5353/udp", openTCP(port))
	switch {
	case strings.HasPrefix(status, "Status: inactive"):
		return nil
	case strings.HasPrefix(status, "Status: active"):
		// "4001/tcp  ALLOW  Anywhere", "4001  ALLOW IN …", "4000:4010/tcp …"
		if port != 0 && regexp.MustCompile(`(?m)^`+strconv.Itoa(port)+`(/tcp)?\s+ALLOW`).MatchString(status) {
			return []Finding{{State: OK, Text: fmt.Sprintf("ufw is on and lets TCP port %d in", port)}}
		}
		return []Finding{{State: Warn, Text: fmt.Sprintf("ufw is on, and has no rule for TCP port %s: others may not be able to connect", openTCP(port)), Fix: fix}}
	case regexp.MustCompile(`(?mi)^ENABLED=yes`).MatchString(conf):
		return []Finding{{State: Warn, Text: "ufw is on; its rules cannot be read without root. If others cannot connect, it lacks one", Fix: fix}}
	}
	return nil
}

// firewalld judges whether firewalld, which runs, lets in the port and mDNS ("yes", "no", or "" where it does not say).
func firewalld(tcp, mdns string, port int) []Finding {
	fix := fmt.Sprintf("sudo firewall-cmd --permanent --add-port=%s/tcp --add-service=mdns && sudo firewall-cmd --reload", openTCP(port))
	if tcp == "yes" && mdns == "yes" {
		return []Finding{{State: OK, Text: fmt.Sprintf("firewalld is on and lets TCP port %d and mDNS in", port)}}
	}
	if tcp == "" && mdns == "" {
		return []Finding{{State: Warn, Text: "firewalld is on; its rules cannot be read. If others cannot connect, it lacks one", Fix: fix}}
	}
	var missing []string
	if tcp != "yes" {
		missing = append(missing, "TCP port "+openTCP(port))
	}
	if mdns != "yes" {
		missing = append(missing, "mDNS")
	}
	return []Finding{{State: Warn, Text: "firewalld is on, and does not let in " + strings.Join(missing, " and "), Fix: fix}}
}

// chain of nft, as `nft list ruleset` prints one.
var chain = regexp.MustCompile(`(?ms)^\s*table (\w+ \S+) \{|^\s*chain (\S+) \{\n(.*?)^\t\}`)

// nftables judges a ruleset: chains through which what comes in goes, and what they say of the port and of mDNS. It reads only what can be
// read without doubt; jumps to other chains are not followed.
func nftables(rules string, port int) []Finding {
	var out []Finding
	table := ""
	for _, c := range chain.FindAllStringSubmatch(rules, -1) {
		if c[1] != "" {
			table = c[1]
			continue
		}
		if !strings.Contains(c[3], "hook input") || !strings.Contains(c[3], "type filter") {
			continue
		}
		where := fmt.Sprintf("nft's chain %s of table %s", c[2], table)
		accepted := false
		for line := range strings.Lines(c[3]) {
			words := strings.Fields(line)
			verdict := ""
			for _, w := range words {
				if w == "drop" || w == "reject" || w == "accept" {
					verdict = w
				}
			}
			names := func(proto string, port int) bool {
				return port != 0 && strings.Contains(line, proto+" dport") && slices.Contains(strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ',' || r == '{' || r == '}' || r == '\t' || r == '\n' }), strconv.Itoa(port))
			}
			if names("tcp", port) {
				accepted = accepted || verdict == "accept"
				if verdict != "" && verdict != "accept" && !accepted {
					out = append(out, Finding{State: Fail, Text: fmt.Sprintf("%s has a rule that stops TCP port %d: %s", where, port, strings.TrimSpace(line)),
						Fix: fmt.Sprintf("sudo nft insert rule %s %s tcp dport %d accept", table, c[2], port)})
				}
			}
			if names("udp", 5353) && (verdict == "drop" || verdict == "reject") {
				out = append(out, Finding{State: Fail, Text: fmt.Sprintf("%s has a rule that stops mDNS: %s", where, strings.TrimSpace(line)),
					Fix: fmt.Sprintf("sudo nft insert rule %s %s udp dport 5353 accept", table, c[2])})
			}
		}
		if strings.Contains(c[3], "policy drop") && !accepted {
			out = append(out, Finding{State: Warn, Text: fmt.Sprintf("%s drops what no rule of it accepts, and none names TCP port %s", where, openTCP(port)),
				Fix: fmt.Sprintf("sudo nft insert rule %s %s tcp dport %s accept; sudo nft insert rule %[1]s %[2]s udp dport 5353 accept", table, c[2], openTCP(port))})
		}
	}
	return out
}

// iptables judges `iptables -S INPUT`. Where iptables is a front of nftables, nft has told already.
func iptables(rules string, port int) []Finding {
	accepted := port != 0 && regexp.MustCompile(`(?m)^-A INPUT .*--dports? (\S*,)?`+strconv.Itoa(port)+`(,\S*)?\s.*-j ACCEPT`).MatchString(rules)
	fix := fmt.Sprintf("sudo iptables -I INPUT -p tcp --dport %s -j ACCEPT; sudo iptables -I INPUT -p udp --dport 5353 -j ACCEPT", openTCP(port))
	if port != 0 && !accepted {
		if line := regexp.MustCompile(`(?m)^-A INPUT .*--dports? (\S*,)?` + strconv.Itoa(port) + `(,\S*)?\s.*-j (DROP|REJECT).*$`).FindString(rules); line != "" {
			return []Finding{{State: Fail, Text: fmt.Sprintf("iptables has a rule that stops TCP port %d: %s", port, line), Fix: fix}}
		}
	}
	if regexp.MustCompile(`(?m)^-P INPUT DROP`).MatchString(rules) && !accepted {
		return []Finding{{State: Warn, Text: "iptables drops what no rule accepts, and none names TCP port " + openTCP(port), Fix: fix}}
	}
	return nil
}

// ---- macOS

// appFirewall judges what socketfilterfw says: its global state, whether all is blocked, and of the program.
func appFirewall(global, blockAll, app, program string) []Finding {
	if !strings.Contains(global, "enabled") {
		return nil
	}
	const tool = "/usr/libexec/ApplicationFirewall/socketfilterfw"
	if s := strings.ToLower(blockAll); strings.Contains(s, "block all") && (strings.Contains(s, "enabled") || strings.Contains(s, "set to on")) {
		return []Finding{{State: Fail, Text: "the firewall of macOS blocks all incoming connections: others cannot connect", Fix: "System Settings, Network, Firewall, Options: turn off \"Block all incoming connections\"; or sudo " + tool + " --setblockall off"}}
	}
	fix := fmt.Sprintf("sudo %s --add %q; sudo %[1]s --unblockapp %[2]q", tool, program)
	switch s := strings.ToLower(app); {
	case strings.Contains(s, "block"):
		return []Finding{{State: Fail, Text: "the firewall of macOS blocks incoming connections to " + program, Fix: fix}}
	case strings.Contains(s, "permitted"), strings.Contains(s, "allow"):
		return []Finding{{State: OK, Text: "the firewall of macOS is on and lets connections to this program in"}}
	}
	return []Finding{{State: Warn, Text: "the firewall of macOS is on, and has no rule for " + program + ": macOS asks when the node first listens, and a node in the background cannot answer", Fix: fix}}
}

// ---- Windows

// windowsRule is a rule of the Windows firewall, as the registry has it: "v2.31|Action=Allow|Active=TRUE|Dir=In|Protocol=6|App=C:\…|Name=…|".
func windowsRule(s string) map[string]string {
	r := map[string]string{}
	for part := range strings.SplitSeq(s, "|") {
		if k, v, ok := strings.Cut(part, "="); ok {
			if r[k] != "" {
				v = r[k] + "," + v // Profile comes several times
			}
			r[k] = v
		}
	}
	return r
}

// windowsFirewall judges the rules, for a program, of a firewall that is on in the named profiles ("private", "public", "domain").
func windowsFirewall(rules []string, program string, on []string) []Finding {
	if len(on) == 0 {
		return nil
	}
	add := fmt.Sprintf(`as administrator: netsh advfirewall firewall add rule name="meshnode" dir=in action=allow program="%s" enable=yes profile=private,domain`, program)
	allowed := false
	var out []Finding
	for _, s := range rules {
		r := windowsRule(s)
		if r["Active"] != "TRUE" || r["Dir"] != "In" || !strings.EqualFold(r["App"], program) {
			continue
		}
		switch r["Action"] {
		case "Block":
			// Windows makes such a rule when somebody cancels its question at the first start; it wins over those that allow.
			return []Finding{{State: Fail, Text: fmt.Sprintf("the Windows firewall has a rule that blocks this program (%q)", r["Name"]),
				Fix: fmt.Sprintf(`as administrator: netsh advfirewall firewall delete rule name=all program="%s"; then %s`, program, strings.TrimPrefix(add, "as administrator: "))}}
		case "Allow":
			allowed = true
			if p := r["Profile"]; p != "" {
				out = append(out, Finding{State: OK, Text: fmt.Sprintf("the Windows firewall is on (%s) and lets connections to this program in, in networks of the kind %s", strings.Join(on, ", "), strings.ToLower(p))})
			} else {
				out = append(out, Finding{State: OK, Text: fmt.Sprintf("the Windows firewall is on (%s) and lets connections to this program in", strings.Join(on, ", "))})
			}
		}
	}
	if !allowed {
		out = append(out, Finding{State: Warn, Text: fmt.Sprintf("the Windows firewall is on (%s), and has no rule for this program: others cannot connect", strings.Join(on, ", ")),
			Fix: add + "; and see that the network is a private one: Get-NetConnectionProfile shows it, Set-NetConnectionProfile -NetworkCategory Private changes it"})
	}
	return out[:1]
}
