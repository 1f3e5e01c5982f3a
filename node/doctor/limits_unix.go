//go:build unix

package doctor

import (
	"os"

	"golang.org/x/sys/unix"
)

// openFiles are the limit of this process and what it uses of it.
func openFiles() (limit, used int, known bool) {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 0, 0, false
	}
	entries, err := os.ReadDir("/dev/fd") // of this process, on Linux and on macOS
	if err != nil {
		return 0, 0, false
	}
	return int(min(uint64(r.Cur), 1<<30)), len(entries), true
}
