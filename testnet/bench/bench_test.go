package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func newBench(most int) *bench {
	return &bench{most: most, stderr: &bytes.Buffer{}, values: map[string][]float64{}, notes: map[string]string{}}
}

func TestMedianAndGoal(t *testing.T) {
	t.Parallel()
	b := newBench(3)
	b.measure(t.Context(), group{limit: time.Minute, run: func(b *bench) {
		for i := range b.rounds {
			b.add("up", []float64{7, 1, 3}[i])
		}
	}})
	m := b.result(row{"up", "s", goal{"≥", 4}, "what"})
	if m.Value == nil || *m.Value != 3 || m.Min != 1 || m.Max != 7 || m.Rounds != 3 || m.Met == nil || *m.Met || m.Note != "what" {
		t.Errorf("%+v", m)
	}
	if m := b.result(row{"up", "s", goal{"≤", 4}, ""}); !*m.Met || m.Goal != "≤ 4" {
		t.Errorf("%+v", m)
	}
	if m := b.result(row{name: "up"}); m.Met != nil {
		t.Errorf("no goal, but met: %v", *m.Met)
	}
	if q := quantile([]float64{4, 1, 2, 3}, 0.5); q != 2.5 {
		t.Errorf("median of 1 to 4: %v", q)
	}
}

// A group that fails or hangs says so in its rows, and what it started is ended.
func TestAFailureIsNoValue(t *testing.T) {
	t.Parallel()
	for want, run := range map[string]func(*bench){
		"broken: 7":             func(b *bench) { b.Fatalf("broken: %d", 7) },
		"not done within its l": func(b *bench) { b.pause(time.Minute) },
	} {
		b, ended := newBench(1), false
		b.measure(t.Context(), group{limit: 50 * time.Millisecond, run: func(b *bench) {
			b.Cleanup(func() { ended = true })
			run(b)
			t.Error("it went on")
		}})
		if m := b.result(row{name: "x"}); m.Value != nil || !strings.Contains(m.Note, want) || !ended {
			t.Errorf("%+v, want %q; ended: %v", m, want, ended)
		}
	}
}

func TestRowsHaveNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, g := range groups {
		for _, r := range g.rows {
			if seen[r.name] || !strings.HasPrefix(r.name, g.name) || r.unit == "" || g.limit == 0 {
				t.Errorf("row %s of group %s: its name is taken or of another group, or it has no unit or limit", r.name, g.name)
			}
			seen[r.name] = true
		}
	}
}

// One short group, from the command line to the JSON.
func TestStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	code := make(chan int, 1)
	go func() { code <- run([]string{"-row", "^start$", "-rounds", "1"}, &out, &errs) }()
	select {
	case c := <-code:
		if c != 0 {
			t.Fatalf("exit code %d\n%s", c, errs.String())
		}
	case <-ctx.Done():
		t.Fatal("it hangs")
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %s", len(lines), out.String())
	}
	var m measured
	if err := json.Unmarshal([]byte(lines[0]), &m); err != nil || m.Row != "start.first" || m.Value == nil || *m.Value <= 0 || m.Unit != "s" || m.Rounds != 1 {
		t.Errorf("%s: %v", lines[0], err)
	}
	if !strings.Contains(errs.String(), "start.both") {
		t.Errorf("no table: %s", errs.String())
	}
}
