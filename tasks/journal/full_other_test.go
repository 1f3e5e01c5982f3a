//go:build !linux

package journal

import "testing"

func mountSmall(t *testing.T, dir, size string) { t.Skip("only on Linux") }
