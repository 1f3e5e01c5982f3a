//go:build unix

package discovery

import "syscall"

// openFiles is how many files this process may have open. Go has raised the soft limit to the hard one before main; programs that it
// starts get the old one.
func openFiles() uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return wantedFiles
	}
	return uint64(l.Cur)
}
