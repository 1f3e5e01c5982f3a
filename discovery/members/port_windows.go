package members

import (
	"errors"
	"net/netip"
	"syscall"

	"golang.org/x/sys/windows"
)

// share binds a socket that is about to dial to an address with the port that l listens on. Windows lets it, if it asks to; the listening
// socket has no part in that.
func (l *portListener) share(c syscall.RawConn, at netip.AddrPort) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		if err = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1); err != nil {
			return
		}
		var to windows.Sockaddr = &windows.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
		if a := at.Addr().Unmap(); a.Is4() {
			to = &windows.SockaddrInet4{Port: int(at.Port()), Addr: a.As4()}
		}
		err = windows.Bind(windows.Handle(fd), to)
	}), err)
}

// taken reports whether a dial failed because there is a connection between these two ports.
func taken(err error) bool {
	return errors.Is(err, windows.WSAEADDRNOTAVAIL) || errors.Is(err, windows.WSAEADDRINUSE)
}
