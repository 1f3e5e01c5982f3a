package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"-seeds 40 -seed 7 -digest", 0, []string{"scenario", "\n7 ", "\n46 ", "40 worlds"}},
		{"-replay 3 -scenario crash", 0, []string{"n0 starts: epoch 1", "crash"}},
		{"-seeds 2 -scenario crash", 0, []string{"\ncrash   "}},
		{"-seed 1001 -scenario exponential", 0, []string{"\nexp. 100 ms, 0.3 ms, 3 nodes", "slowdown"}},
		{"-scenario typo", 1, []string{`no scenario "typo"`, "1 of 1 seeds broke a promise"}},
		{"-seeds x", 2, nil},
	} {
		var out, errs bytes.Buffer
		if code := run(strings.Fields(c.args), &out, &errs); code != c.code {
			t.Errorf("%s: exit code %d, want %d\n%s%s", c.args, code, c.code, &out, &errs)
		}
		for _, w := range c.want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: no %q in\n%s", c.args, w, &out)
			}
		}
	}
}
