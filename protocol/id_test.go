package protocol

import (
	"slices"
	"strings"
	"testing"
)

func TestParseIDs(t *testing.T) {
	t.Parallel()
	j := NewJobID()
	if got, err := ParseJobID(j.String()); err != nil || got != j {
		t.Errorf("ParseJobID(%s) = %v, %v", j, got, err)
	}
	b := BlobID(seq(1, 32))
	if got, err := ParseBlobID(b.String()); err != nil || got != b {
		t.Errorf("ParseBlobID(%s) = %v, %v", b, got, err)
	}
	for _, s := range []string{"", "12", j.String()[:31], j.String() + "00", strings.Repeat("g", 32), strings.Repeat("é", 16), b.String()[:63], b.String() + "0"} {
		if got, err := ParseJobID(s); err == nil {
			t.Errorf("ParseJobID(%q) = %v", s, got)
		}
		if got, err := ParseBlobID(s); err == nil {
			t.Errorf("ParseBlobID(%q) = %v", s, got)
		}
	}
	for n := range 40 {
		if _, err := JobIDFrom(make([]byte, n)); (err == nil) != (n == 16) {
			t.Errorf("JobIDFrom %d bytes: %v", n, err)
		}
		if _, err := BlobIDFrom(make([]byte, n)); (err == nil) != (n == 32) {
			t.Errorf("BlobIDFrom %d bytes: %v", n, err)
		}
	}
	// An error repeats what it was given, and must not repeat a megabyte of it.
	for _, parse := range []func(string) error{
		func(s string) error { _, err := ParseJobID(s); return err },
		func(s string) error { _, err := ParseBlobID(s); return err },
	} {
		if err := parse(strings.Repeat("x", 1<<20)); len(err.Error()) > 200 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

func TestNewJobIDs(t *testing.T) {
	t.Parallel()
	seen := map[JobID]bool{}
	for range 1000 {
		j := NewJobID()
		if j.IsZero() || seen[j] {
			t.Fatalf("%s is zero or was there before", j)
		}
		seen[j] = true
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for in, want := range map[NodeID]string{"": "", "abc": "abc", "12345678": "12345678", "12D3KooWabcdefgh": "abcdefgh"} {
		if got := in.Short(); got != want {
			t.Errorf("NodeID(%q).Short() = %q, want %q", in, got, want)
		}
	}
	a := Attempt{Job: JobID(seq(0xa0, 16)), Index: 3, N: 2, Epoch: 7}
	if got, want := a.String(), "a0a1a2a3/3#7.2"; got != want {
		t.Errorf("Attempt: %s, want %s", got, want)
	}
	if got, want := a.Task().String(), "a0a1a2a3/3"; got != want {
		t.Errorf("TaskID: %s, want %s", got, want)
	}
}

func TestAttemptOrder(t *testing.T) {
	t.Parallel()
	low, high := JobID(seq(1, 16)), JobID(seq(2, 16))
	sorted := []Attempt{
		{low, 0, 1, 1}, {low, 0, 2, 1}, {low, 0, 1, 2}, {low, 1, 1, 1}, {low, 300, 1, 1}, {high, 0, 1, 1},
	}
	for i, a := range sorted {
		for k, b := range sorted {
			want := 0
			if i < k {
				want = -1
			} else if i > k {
				want = 1
			}
			if got := a.Compare(b); got != want {
				t.Errorf("%v.Compare(%v) = %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestGroupAttempts(t *testing.T) {
	t.Parallel()
	one, two := JobID(seq(1, 16)), JobID(seq(2, 16))
	as := []Attempt{{one, 0, 1, 1}, {one, 1, 1, 1}, {one, 2, 1, 2}, {two, 2, 1, 2}, {one, 3, 1, 2}}
	gs := GroupAttempts(as)
	if len(gs) != 4 {
		t.Errorf("%d groups, want 4: one for each run of the same job and epoch", len(gs))
	}
	if got := UngroupAttempts(gs); !slices.Equal(got, as) {
		t.Errorf("got %v, want %v", got, as)
	}
	for i := range as { // the groups must not hold on to the caller's slice
		as[i].Job = JobID{}
	}
	if gs[0].Job[0] != 1 {
		t.Error("a group changed with the attempts that it was made of")
	}
	malformed := append(GroupAttempts([]Attempt{{two, 9, 1, 1}}), &Attempts{Job: seq(1, 3), Index: []uint32{1}, N: []uint32{1}}, &Attempts{Job: seq(1, 16), Index: []uint32{1}})
	if got := UngroupAttempts(malformed); len(got) != 1 {
		t.Errorf("%v: want only the well-formed group", got)
	}
}

func TestAttemptOf(t *testing.T) {
	t.Parallel()
	o := &Outcome{Job: seq(1, 16), Index: 3, Epoch: 7, N: 2}
	if got, want := o.AttemptOf(), (Attempt{JobID(seq(1, 16)), 3, 2, 7}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
