package main

import "testing"

// Memory is given back once after each busy time, and not while it lasts.
func TestQuiet(t *testing.T) {
	t.Parallel()
	const MiB = 1 << 20
	var q quiet
	for i, look := range []struct {
		allocated uint64
		want      bool
	}{
		{10 * MiB, false},  // it starts
		{11 * MiB, false},  // little was needed
		{100 * MiB, false}, // busy
		{200 * MiB, false},
		{201 * MiB, true},
		{202 * MiB, false}, // once
		{206 * MiB, false},
		{210 * MiB, false},
		{214 * MiB, false},
		{218 * MiB, true}, // what is little adds up
		{218 * MiB, false},
		{223 * MiB, false}, // busy again, a little
		{224 * MiB, false},
	} {
		if got := q.after(look.allocated); got != look.want {
			t.Errorf("look %d, %d MiB allocated: %v", i, look.allocated/MiB, got)
		}
	}
}
