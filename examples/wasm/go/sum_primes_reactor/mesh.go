//go:build wasip1

package main

import (
	"fmt"
	"os"
	"unsafe"
)

// This file is what a reactor module exports, in Go; copy it and write func task(input []byte) ([]byte, error).

var held = map[uint32][]byte{} // what the host points into: the garbage collector must not take it

//go:wasmexport mesh_alloc
func meshAlloc(n uint32) uint32 { return hold(make([]byte, n)) }

//go:wasmexport mesh_free
func meshFree(p uint32) { delete(held, p) }

//go:wasmexport mesh_run
func meshRun(p, n uint32) uint64 {
	input := held[p][:n]
	delete(held, p)
	result, err := task(input)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return ^uint64(0)
	}
	return uint64(hold(result))<<32 | uint64(len(result))
}

func hold(b []byte) uint32 {
	if cap(b) == 0 {
		b = make([]byte, 0, 1)
	}
	p := uint32(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	held[p] = b
	return p
}

func main() {} // never called: -buildmode=c-shared
