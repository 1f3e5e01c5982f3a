package members

import (
	"errors"
	"syscall"

	"golang.org/x/sys/windows"
)

// share binds a socket that is about to dial to the port that l listens on. Windows lets it, if it asks to; the listening
// socket has no part in that.
func (l *portListener) share(c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		if err = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1); err != nil {
			return
		}
		var to windows.Sockaddr = &windows.SockaddrInet6{Port: int(l.addr.Port()), Addr: l.addr.Addr().As16()}
		if a := l.addr.Addr().Unmap(); a.Is4() {
			to = &windows.SockaddrInet4{Port: int(l.addr.Port()), Addr: a.As4()}
		}
		err = windows.Bind(windows.Handle(fd), to)
	}), err)
}
