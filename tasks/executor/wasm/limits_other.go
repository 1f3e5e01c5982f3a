//go:build !linux

package wasm

func setUp() {}

// limitMemory does nothing: there is no such limit that holds here. What a guest has is bounded all the same, by allocator.
func limitMemory(uint64) {}
