//go:build unix

package main

import (
	"io/fs"
	"os"
	"syscall"
)

// mine says that a file is this user's: what others put into a directory that all can write to is not to be touched.
func mine(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}
