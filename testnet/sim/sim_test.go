package sim

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// seedsPerGroup seeds run in one parallel subtest, so that a failing one is not lost among thousands of names.
const seedsPerGroup = 50

// TestFaults runs worlds with faults. A seed that fails prints itself; replay it with
//
//	go run ./testnet/sim/cmd -replay N
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
		{"a node recalled a task from itself and granted it to itself without end", "poison", 302634},
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

// TestClocks: what a clock shows decides nothing, only how far it goes.
func TestClocks(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 40; seed++ {
		for _, ahead := range []int64{3600 * sec, 3650 * 24 * 3600 * sec} {
			if a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed, clocks: ahead}); a != b {
				t.Errorf("seed %d: two reports if all clocks are %d s ahead:\n%v\n%v", seed, ahead/sec, a, b)
			}
		}
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
		"crash":        {" dies: ", "dies in the middle of a Ready"},
		"streams":      {"cut n"},
		"partition":    {"partition n"},
		"freeze":       {"is suspended", "is frozen", "is paused", "its loop hangs"},
		"rollback":     {"restored from a backup"},
		"person":       {"SetSlots", "SetPaused", "stops cleanly", "GiveBack"},
		"poison":       {"the worker process of"},
		"blobs":        {"fetches", "unpins"},
		"reads":        {"obtains", "unpins", "no room for the blob", "dies"},
		"liar":         {"1099511627776"},
		"expelled":     {"Expelled"},
		"deaf":         {"partition n"},
		"silent":       {"n1 is", "n1 dies"},
		"thaw":         {"n1 goes on", "Revoke"},
		"reboot":       {"n1 dies"},
		"reset":        {"cut n"},
		"origin":       {"n0 dies"},
		"disk":         {"fetches", "dies"},
		"retention":    {"ForgetRecord", "AwayRecord", "ReusableRecord"},
		"pause":        {" is frozen", " is paused", " is suspended"},
		"black hole":   {"FAILED", "Recall"},
		"bad program":  {"FAILED"},
		"life of 60 s": {" dies: ", "Losses:2"},
		"killer":       {"is taken down by", "Losses:6"},
		"retried":      {"Failed:1"},
		"halted":       {"so it was halted"},
		"groups":       {"SetGroup", "n0 dies", "GiveBack"},
		"calm":         {"JobEnded"},
		"sleep":        {"tasks.Sleep", "tasks.Woke", "goes to sleep", "is suspended"},
		"lid":          {"goes to sleep", "is suspended", "tasks.Woke"},
		"lid for good": {"goes to sleep"},
		"commit":       {"cannot write", "cannot sync"},
		"lost":         {"has lost its disk"},
		"mute":         {"fetches"},
		"sleeper":      {"JobEnded"},
		"slow reader":  {"JobEnded"},
		"hung":         {"its loop hangs"},
		"boaster":      {"18446744073709551615"},
	}
	for scenario, words := range want {
		var trace strings.Builder
		tasks := 0
		seeds := uint64(15)
		if slices.Contains([]string{"thaw", "reboot", "mute", "slow reader", "hung", "boaster", "life of 60 s"}, scenario) { // long ones, and all alike
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

// TestShare holds jobs and submitters to their parts of the slots.
func TestShare(t *testing.T) {
	seeds := uint64(10)
	if testing.Short() {
		seeds = 3
	}
	for _, s := range []string{"jobs share", "submitters share", "priorities", "owner", "far", "group elsewhere"} {
		t.Run(s, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= seeds; seed++ {
				if r := Run(Options{Seed: seed, Scenario: s}); r.Violation != "" {
					t.Errorf("seed %d: %s", seed, r.Violation)
				}
			}
		})
	}
}

// TestUnknownScenario: a mistyped name is an error, not a world without faults.
func TestUnknownScenario(t *testing.T) {
	t.Parallel()
	if r := Run(Options{Seed: 1, Scenario: "typo"}); !strings.Contains(r.Violation, `no scenario "typo"`) {
		t.Errorf("violation %q", r.Violation)
	}
}

// TestEfficiency holds meshes without faults to floors of bound / makespan and to budgets of attempts and messages. The
// whole tables, with their goals: go run ./testnet/sim/cmd -scenario efficiency.
func TestEfficiency(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		row                        string
		efficiency, tries, perTask float64
	}{
		{"10 ms, 0.3 ms, 3 nodes, equal", 0.97, 1, 3},
		{"10 ms, 0.3 ms, 10 nodes, 1-8x", 0.95, 1.02, 3},
		{"10 ms, 40 ms, 10 nodes, equal", 0.92, 1.02, 2},
		{"100 ms, 40 ms, 10 nodes, 1-8x", 0.92, 1.02, 3},
		{"exp. 100 ms, 40 ms, 10 nodes, equal", 0.92, 1.05, 4},
		{"flapping, 100 ms, 0.3 ms, 20 nodes, equal", 0.90, 1.02, 6},
	} {
		t.Run(c.row, func(t *testing.T) {
			t.Parallel()
			r := Run(Options{Seed: 1, Scenario: c.row})
			t.Log("\n" + TableHeader + "\n" + Summary(c.row, []Report{r}))
			if r.Violation != "" {
				t.Error(r.Violation)
			}
			if r.Efficiency() < c.efficiency || r.PerTask(r.Executed) > c.tries || r.PerTask(r.Sent) > c.perTask || r.Innocent > 0 {
				t.Errorf("efficiency %.3f, at least %.3f; %.3f attempts a task, at most %.3f; %.2f messages, at most %.2f; %d innocent failures",
					r.Efficiency(), c.efficiency, r.PerTask(r.Executed), c.tries, r.PerTask(r.Sent), c.perTask, r.Innocent)
			}
		})
	}
}

// TestBounds: the bounds are what they say, by hand.
func TestBounds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		got, want int64
	}{
		{"7 tasks on 3 slots", wholeTasks(7, 10, []int64{100, 100, 100}), 30},
		{"9 tasks, one twice as fast", wholeTasks(9, 10, []int64{200, 100}), 30},
		{"8 tasks, one twice as fast: 5 and 3", wholeTasks(8, 10, []int64{200, 100}), 30},
		{"one task", wholeTasks(1, 10, []int64{100, 800}), 1},
		{"greedy, the last one long", greedy([]int64{10, 10, 10, 40}, []int64{100, 100}), 50},
		{"greedy, the fastest first", greedy([]int64{80}, []int64{100, 800}), 10},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", c.name, c.got, c.want)
		}
	}
}
