package discovery

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelEvents calls event whenever the kernel tells of a change of links or addresses, until ctx ends; done is closed then.
// nil: it does not tell, as in some sandboxes.
func kernelEvents(ctx context.Context, event func()) (done <-chan struct{}) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR}); err != nil {
		unix.Close(fd)
		return nil
	}
	f := os.NewFile(uintptr(fd), "netlink")
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		defer close(ended)
		defer f.Close()
		defer stop()
		buf := make([]byte, 64<<10)
		for {
			// What is said does not matter: the interfaces are read anew. ENOBUFS: more was said than there was room for.
			if _, err := f.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			event()
		}
	}()
	return ended
}

// tentativeAddrs are IPv6 addresses that cannot be used yet, because the kernel still asks whether somebody else has
// them, or never, because somebody has. The kernel tells when that ends.
func tentativeAddrs() map[netip.Addr]bool {
	f, err := os.Open("/proc/net/if_inet6")
	if err != nil {
		return nil // no IPv6
	}
	defer f.Close()
	out := map[netip.Addr]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text()) // address, interface, prefix length, scope, flags, name
		if len(w) < 5 {
			continue
		}
		flags, err := strconv.ParseUint(w[4], 16, 32)
		if err != nil || flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			continue
		}
		if b, err := hex.DecodeString(w[0]); err == nil {
			if a, ok := netip.AddrFromSlice(b); ok {
				out[a] = true
			}
		}
	}
	return out
}
