package doctor

import "context"

func systemFirewall(ctx context.Context, _ int, program string) []Finding {
	const tool = "/usr/libexec/ApplicationFirewall/socketfilterfw"
	return appFirewall(output(ctx, tool, "--getglobalstate"), output(ctx, tool, "--getblockall"), output(ctx, tool, "--getappblocked", program), program)
}
