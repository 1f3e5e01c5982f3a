//go:build !linux && !windows

package node

import (
	"context"
	"log/slog"
)

// announceSleep does nothing: here the clocks tell of a sleep when it is over. macOS announces it to programs with a run loop of
// its frameworks, which this one has not.
func announceSleep(context.Context, *slog.Logger, func(), func()) error { return nil }
