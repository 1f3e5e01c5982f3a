package wasm

import (
	"os"

	"golang.org/x/sys/unix"
)

// setUp has the system prefer this process if it has to end one for want of memory.
func setUp() { os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) }

// limitMemory bounds the private memory of this process. Not its addresses (RLIMIT_AS): Go reserves far more than it uses.
func limitMemory(bytes uint64) {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_DATA, &l) == nil {
		l.Cur = min(bytes, l.Max)
		unix.Setrlimit(unix.RLIMIT_DATA, &l)
	}
}
