//go:build !linux && !darwin && !windows

package doctor

import "context"

func systemFirewall(context.Context, int, string) []Finding { return nil }
