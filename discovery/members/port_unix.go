//go:build unix

package members

import (
	"errors"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// share binds a socket that is about to dial to an address with the port that l listens on, and closes the port to others again. The systems ask
// the listening socket whether it shares at the moment in which another one comes.
func (l *portListener) share(c syscall.RawConn, at netip.AddrPort) error {
	allow := func(on int) error {
		var err error
		return errors.Join(l.raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, on)
		}), err)
	}
	if err := allow(1); err != nil {
		return err
	}
	defer allow(0)
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return
		}
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return
		}
		var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
		if a := at.Addr().Unmap(); a.Is4() {
			to = &unix.SockaddrInet4{Port: int(at.Port()), Addr: a.As4()}
		}
		err = unix.Bind(int(fd), to)
	}), err)
}

// taken reports whether a dial failed because there is a connection between these two ports.
func taken(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE)
}
