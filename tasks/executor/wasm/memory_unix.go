//go:build unix

package wasm

import "golang.org/x/sys/unix"

// reserve takes a range of addresses that must not be touched yet.
func reserve(n uint64) ([]byte, error) {
	return unix.Mmap(-1, 0, int(n), unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

// commit makes the beginning of a reserved range usable. New memory is zero.
func commit(b []byte) error { return unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE) }

func release(b []byte) { unix.Munmap(b) }
