package doctor

import (
	"context"

	"golang.org/x/sys/windows/registry"
)

// The firewall's settings in the registry, which every user may read, and which do not change with the language as netsh's words do.
const firewallPolicy = `SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy`

func systemFirewall(_ context.Context, _ int, program string) []Finding {
	var on []string
	for _, p := range []struct{ key, name string }{{"StandardProfile", "private"}, {"PublicProfile", "public"}, {"DomainProfile", "domain"}} {
		k, err := registry.OpenKey(registry.LOCAL_MACHINE, firewallPolicy+`\`+p.key, registry.QUERY_VALUE)
		if err != nil {
			continue
		}
		if v, _, err := k.GetIntegerValue("EnableFirewall"); err == nil && v != 0 {
			on = append(on, p.name)
		}
		k.Close()
	}
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, firewallPolicy+`\FirewallRules`, registry.QUERY_VALUE)
	if err != nil {
		return nil
	}
	defer k.Close()
	names, err := k.ReadValueNames(-1)
	if err != nil {
		return nil
	}
	var rules []string
	for _, n := range names {
		if s, _, err := k.GetStringValue(n); err == nil {
			rules = append(rules, s)
		}
	}
	return windowsFirewall(rules, program, on)
}
