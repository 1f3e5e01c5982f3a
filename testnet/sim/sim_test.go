package sim

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

// seedsPerGroup seeds run in one parallel subtest, so that a failing one is not lost among thousands of names.
const seedsPerGroup = 50

// TestFaults runs worlds with faults. A seed that fails prints itself; replay it with
//
//	go run ./testnet/sim/cmd -seed N -v
func TestFaults(t *testing.T) {
	seeds := 2000
	if testing.Short() {
		seeds = 1000
	}
	for first := 1; first <= seeds; first += seedsPerGroup {
		t.Run(fmt.Sprintf("from%d", first), func(t *testing.T) {
			t.Parallel()
			for seed := first; seed < first+seedsPerGroup; seed++ {
				if r := Run(Options{Seed: uint64(seed)}); r.Violation != "" {
					t.Errorf("seed %d (%s): %s", seed, r.Scenario, r.Violation)
				}
			}
		})
	}
}

// TestFound holds seeds that find what was once wrong in the scheduler, when it is put back; most are in
// testdata/mutants.txt.
func TestFound(t *testing.T) {
	for _, c := range []struct {
		name, scenario string
		seed           uint64
	}{
		{"a paused node granted to itself without end", "person", 1},
		{"a failure changed the outcome that the worker held", "poison", 1},
		{"a raised epoch was used before it was synced", "rollback", 4},
		{"max_parallel stopped a job after a local task", "crash", 119},
		{"results for an absent origin kept the loop spinning", "crash", 5},
		{"a task started while a slot that was taken away still ran", "person", 21},
		{"one death of a worker process was charged twice", "poison", 266},
		{"a deaf worker got the same tasks again and again", "deaf", 1},
		{"grants under way when their lease ended were started", "thaw", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if r := Run(Options{Seed: c.seed, Scenario: c.scenario}); r.Violation != "" {
				t.Error(r.Violation)
			}
		})
	}
}

// TestEqualSeeds: the scheduler and the world depend on nothing but the seed.
func TestEqualSeeds(t *testing.T) {
	t.Parallel()
	seen := map[uint64]uint64{}
	for seed := uint64(1); seed <= 60; seed++ {
		a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed, Trace: io.Discard})
		if a != b {
			t.Errorf("seed %d gives two reports:\n%v\n%v", seed, a, b)
		}
		if other, ok := seen[a.Digest]; ok {
			t.Errorf("seeds %d and %d give one digest %016x", seed, other, a.Digest)
		}
		seen[a.Digest] = seed
	}
}

// TestTrace: a trace names what happens, and is the same in each run.
func TestTrace(t *testing.T) {
	t.Parallel()
	var a, b strings.Builder
	Run(Options{Seed: 3, Scenario: "liar", Trace: &a})
	Run(Options{Seed: 3, Scenario: "liar", Trace: &b})
	if a.String() != b.String() {
		t.Error("two traces of one seed differ")
	}
	for _, want := range []string{"Submit", "Grant", "Finished", "Result", "ResultAnswer", "Beat", "JobEnded"} {
		if !strings.Contains(a.String(), want) {
			t.Errorf("no %s in the trace", want)
		}
	}
}

// TestFaultsHappen: a world without the faults that its name promises would prove nothing.
func TestFaultsHappen(t *testing.T) {
	t.Parallel()
	want := map[string][]string{
		"crash":     {" dies: ", "dies in the middle of a Ready"},
		"streams":   {"cut n"},
		"partition": {"partition n"},
		"freeze":    {"is suspended", "is frozen", "is paused", "its loop hangs"},
		"rollback":  {"restored from a backup"},
		"person":    {"SetSlots", "SetPaused", "stops cleanly", "GiveBack"},
		"poison":    {"the worker process of"},
		"blobs":     {"fetches", "unpins"},
		"liar":      {"1099511627776"},
		"deaf":      {"partition n"},
		"silent":    {"n1 is", "n1 dies"},
		"thaw":      {"n1 goes on", "Revoke"},
		"reboot":    {"n1 dies"},
		"reset":     {"cut n"},
		"origin":    {"n0 dies"},
		"disk":      {"fetches", "dies"},
		"pause":     {" is frozen", " is paused", " is suspended"},
		"calm":      {"JobEnded"},
	}
	for scenario, words := range want {
		var trace strings.Builder
		tasks := 0
		seeds := uint64(15)
		if scenario == "thaw" || scenario == "reboot" { // long ones, and all alike
			seeds = 2
		}
		for seed := uint64(1); seed <= seeds; seed++ {
			tasks += Run(Options{Seed: seed, Scenario: scenario, Trace: &trace}).Tasks
		}
		for _, w := range words {
			if !strings.Contains(trace.String(), w) {
				t.Errorf("%s: %q never happens", scenario, w)
			}
		}
		if tasks < 100 {
			t.Errorf("%s: only %d tasks in %d worlds", scenario, tasks, seeds)
		}
	}
	for _, s := range mixed {
		if s != "faults" && want[s] == nil {
			t.Errorf("nothing is expected of %s", s)
		}
	}
}

// TestUnknownScenario: a mistyped name is an error, not a world without faults.
func TestUnknownScenario(t *testing.T) {
	t.Parallel()
	if r := Run(Options{Seed: 1, Scenario: "typo"}); !strings.Contains(r.Violation, `no scenario "typo"`) {
		t.Errorf("violation %q", r.Violation)
	}
}

// TestEfficiency holds meshes without faults to floors of bound / makespan and to budgets of attempts and
// messages; see the scenarios. The table is in the output of go test -v.
func TestEfficiency(t *testing.T) {
	names := Efficiency()
	if testing.Short() {
		names = names[:2]
	}
	t.Log("\n" + Header)
	for _, s := range names {
		r := Run(Options{Seed: 1, Scenario: s})
		t.Log("\n" + r.String())
		if r.Violation != "" {
			t.Errorf("%s: %s", s, r.Violation)
		}
	}
}
