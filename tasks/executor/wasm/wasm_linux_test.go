package wasm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meshnode/protocol"
)

// TestPriority looks at each thread of a worker process: on Linux the priority is theirs.
func TestPriority(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.Job("wasm", "testdata/echo.wasm", nil)
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", r.Processes()[0]))
	if err != nil || len(stats) == 0 {
		t.Fatal(stats, err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(b), ") ")
		if nice := strings.Fields(after)[16]; nice != "19" {
			t.Errorf("%s: nice %s", path, nice)
		}
	}
}

// TestDataLimit looks at what the system holds a worker process to, which is more than what a guest may have.
func TestDataLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, mib := range []int{64, 32} {
		r.Do(0, r.Job("wasm", "testdata/echo.wasm", &protocol.Limits{MemoryBytes: uint64(mib) << 20}), "x")
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", r.Processes()[0]))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(b), "Max data size")
		if got, want := strings.Fields(after)[0], fmt.Sprint((mib+700)<<20); got != want {
			t.Errorf("%d MiB: data limit %s, want %s", mib, got, want)
		}
	}
}
