//go:build !linux

package discovery

import (
	"context"
	"net/netip"
)

// kernelEvents is nil where the interfaces are looked at now and then.
func kernelEvents(context.Context, func()) (done <-chan struct{}) { return nil }

func tentativeAddrs() map[netip.Addr]bool { return nil }
