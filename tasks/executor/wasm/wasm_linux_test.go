package wasm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
