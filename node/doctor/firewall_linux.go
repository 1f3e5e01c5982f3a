package doctor

import (
	"context"
	"fmt"
	"os"
	"strings"
)

func systemFirewall(ctx context.Context, port int, _ string) []Finding {
	conf, _ := os.ReadFile("/etc/ufw/ufw.conf") // readable by all where ufw is there
	out := ufw(output(ctx, "ufw", "status"), string(conf), port)
	if strings.HasPrefix(output(ctx, "firewall-cmd", "--state"), "running") {
		said := func(args ...string) string {
			if s := output(ctx, "firewall-cmd", args...); s != "" { // its exit code is 1 for no
				return strings.TrimSpace(s)
			}
			if output(ctx, "firewall-cmd", "--get-default-zone") == "" {
				return "" // it does not answer this user
			}
			return "no"
		}
		out = append(out, firewalld(said(fmt.Sprintf("--query-port=%d/tcp", port)), said("--query-service=mdns"), port)...)
	}
	if len(out) > 0 {
		return out // the rules below are theirs
	}
	if out = nftables(output(ctx, "nft", "list", "ruleset"), port); len(out) > 0 {
		return out
	}
	return iptables(output(ctx, "iptables", "-S", "INPUT"), port)
}
