package wasm

import (
	"fmt"

	"github.com/tetratelabs/wazero/experimental"
)

// pageSize is WebAssembly's.
const pageSize = 64 << 10

// keepClear is how much memory is cleared for the next instance instead of given back: a page that is cleared costs about as much as
// one that the system has to map anew, and most small modules stay below.
const keepClear = 1 << 20

// allocator gives instances their linear memory: a reserved range of addresses that grows in place. (wazero's own would move and
// copy it, or fill all of the limit at once: a task of 429 MiB took 1.76 GB and 7.6 s so.) It holds them to the limit,
// and remembers that it had to. It serves one instance at a time.
type allocator struct {
	limit   uint64 // bytes
	refused bool   // an instance wanted more
	kept    *linear
}

// linear is the memory of one instance.
type linear struct {
	a        *allocator
	reserved []byte // all that it may become
	usable   uint64 // bytes at its beginning that may be touched
	size     uint64
}

func (a *allocator) Allocate(_, most uint64) experimental.LinearMemory {
	most = max(min(most, a.limit), pageSize)
	if l := a.kept; l != nil {
		a.kept = nil
		if uint64(len(l.reserved)) == most {
			return l
		}
		release(l.reserved)
	}
	b, err := reserve(most)
	if err != nil {
		panic(fmt.Errorf("out of memory: reserve %d bytes: %w", most, err)) // the system's trouble: this process ends
	}
	return &linear{a: a, reserved: b}
}

func (l *linear) Reallocate(size uint64) []byte {
	if size > l.a.limit {
		l.a.refused = true
		return nil
	}
	if size > uint64(len(l.reserved)) {
		return nil
	}
	if size > l.usable {
		if err := commit(l.reserved[:size]); err != nil {
			l.a.refused = true
			return nil
		}
		l.usable = size
	}
	l.size = max(l.size, size)
	return l.reserved[:size:size]
}

func (l *linear) Free() {
	if l.reserved == nil {
		return
	}
	if l.size <= keepClear && l.a.kept == nil {
		clear(l.reserved[:l.size])
		l.a.kept = &linear{a: l.a, reserved: l.reserved, usable: l.usable}
	} else {
		release(l.reserved)
	}
	l.reserved = nil
}

// close gives back what is kept.
func (a *allocator) close() {
	if a.kept != nil {
		release(a.kept.reserved)
		a.kept = nil
	}
}
