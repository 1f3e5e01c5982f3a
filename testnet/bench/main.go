// Command bench measures what a user of the mesh feels, with real processes on this machine, and prints it beside the
// goals: one JSON line for each row on standard output, a table on standard error. `make bench` runs it; from the
// module's root: go run ./testnet/bench [-row REGEXP] [-rounds N].
//
// A row is the median of its rounds. What is compared is measured in turn within the same round, because machines are
// shared and noisy: trust the ratios more than the numbers. Nodes are processes of their own, joined over encrypted
// loopback; programs are handed in through the Go client. docs/benchmarks.md says what each row means.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/shirou/gopsutil/v4/load"
)

// row is one line of the output.
type row struct {
	name, unit string
	goal       goal
	note       string // what the value is, where the name does not say it
}

// goal of a row; the zero value is none: the row is there to compare others with.
type goal struct {
	op    string // ≥ or ≤
	value float64
}

func (g goal) String() string {
	if g.op == "" {
		return ""
	}
	return g.op + " " + strconv.FormatFloat(g.value, 'f', -1, 64)
}

func (g goal) met(v float64) bool {
	return g.op == "" || g.op == "≥" && v >= g.value || g.op == "≤" && v <= g.value
}

// group measures some rows together.
type group struct {
	name  string
	rows  []row
	limit time.Duration // of the whole group, starting its mesh included
	run   func(b *bench)
}

// measured is a row's JSON line.
type measured struct {
	Row    string   `json:"row"`
	Value  *float64 `json:"value"` // the median; null if it could not be measured, the note says why
	Unit   string   `json:"unit"`
	Goal   string   `json:"goal"`
	Met    *bool    `json:"met"` // null: no goal, or no value
	Rounds int      `json:"rounds"`
	Min    float64  `json:"min"`
	Max    float64  `json:"max"`
	Load   float64  `json:"load"` // of the machine before: the processes that wanted to run, averaged over a minute
	Note   string   `json:"note"`
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == sleeper {
		os.Exit(sleep10(os.Stdin, os.Stdout))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	only := fs.String("row", "", "only groups and rows whose name matches this `regexp`")
	rounds := fs.Int("rounds", 5, "`how many` rounds; fewer where one takes more than 20 s")
	list := fs.Bool("list", false, "print the names of the rows and their goals, and measure nothing")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	match, err := regexp.Compile(*only)
	if err != nil || *rounds < 1 || fs.NArg() > 0 {
		fmt.Fprintf(stderr, "bench: want -row with a regular expression, -rounds from 1, and nothing else: %v %q\n", err, fs.Args())
		return 2
	}
	if *list {
		for _, g := range groups {
			for _, r := range g.rows {
				fmt.Fprintf(stdout, "%s\t%s\t%s\n", r.name, r.goal, r.unit)
			}
		}
		return 0
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	clean, err := prepare()
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	defer clean()
	fmt.Fprintf(stderr, "%s/%s, %d cores, %s\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())

	var all []measured
	code, tried := 0, 0
	for _, g := range groups {
		wanted := func(r row) bool { return match.MatchString(g.name) || match.MatchString(r.name) }
		if !slices.ContainsFunc(g.rows, wanted) {
			continue
		}
		tried++
		before := 0.0
		if avg, err := load.Avg(); err == nil { // not on every system
			before = avg.Load1
		}
		fmt.Fprintf(stderr, "%s …\n", g.name)
		b := &bench{most: *rounds, stderr: stderr, values: map[string][]float64{}, notes: map[string]string{}}
		b.measure(ctx, g)
		if ctx.Err() != nil {
			return 130
		}
		for _, r := range g.rows {
			if !wanted(r) {
				continue
			}
			m := b.result(r)
			m.Load = before
			if m.Value == nil && b.Failed() { // else there was nothing to compare with
				code = 1
			}
			all = append(all, m)
			line, err := json.Marshal(m)
			if err == nil {
				_, err = fmt.Fprintf(stdout, "%s\n", line)
			}
			if err != nil {
				fmt.Fprintln(stderr, "bench:", err)
				return 1
			}
		}
	}
	if tried == 0 {
		fmt.Fprintf(stderr, "bench: no row matches %q; -list shows them\n", *only)
		return 2
	}
	table(stderr, all)
	return code
}

// prepare goes to the module's root, for the programs, and builds the node unless MESHNODE_BIN names one.
func prepare() (clean func(), err error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	mod := strings.TrimSpace(string(out))
	if err != nil || mod == "" || mod == os.DevNull {
		return nil, fmt.Errorf("run this inside the module's folder: %q, %v", mod, err)
	}
	bin := os.Getenv("MESHNODE_BIN")
	if bin != "" {
		if bin, err = filepath.Abs(bin); err != nil {
			return nil, err
		}
	}
	if err := os.Chdir(filepath.Dir(mod)); err != nil {
		return nil, err
	}
	clean = func() {}
	if bin == "" {
		dir, err := os.MkdirTemp("", "mn-bench-")
		if err != nil {
			return nil, err
		}
		clean = func() { os.RemoveAll(dir) }
		bin = filepath.Join(dir, "meshnode")
		cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "./cmd/meshnode")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			clean()
			return nil, fmt.Errorf("go build ./cmd/meshnode: %w\n%s", err, out)
		}
	}
	return clean, os.Setenv("MESHNODE_BIN", bin)
}

// bench is one run of a group. It stands in for a test where testnet wants one.
type bench struct {
	testing.TB // nil; the methods that testnet calls are below
	most       int
	stderr     io.Writer
	ctx        context.Context

	mu       sync.Mutex // guards the rest
	values   map[string][]float64
	notes    map[string]string
	failed   string // why, the first time
	cleanups []func()
}

// slowRound is above what one may repeat five times.
const slowRound = 20 * time.Second

// measure runs the group to its end, and all that was started has ended when it returns.
func (b *bench) measure(ctx context.Context, g group) {
	var cancel context.CancelFunc
	b.ctx, cancel = context.WithTimeoutCause(ctx, g.limit, fmt.Errorf("not done within its limit of %v", g.limit))
	defer cancel()
	done := make(chan struct{})
	go func() { // its own goroutine, because Fatal ends it
		defer close(done)
		defer func() {
			for len(b.cleanups) > 0 {
				last := b.cleanups[len(b.cleanups)-1]
				b.cleanups = b.cleanups[:len(b.cleanups)-1]
				last()
			}
		}()
		g.run(b)
	}()
	<-done
}

// rounds yields the numbers of the rounds to do.
func (b *bench) rounds(yield func(int) bool) {
	most := b.most
	for i := 0; i < most; i++ {
		began := time.Now()
		if !yield(i) {
			return
		}
		if time.Since(began) > slowRound {
			most = min(most, 3)
		}
	}
}

// add records a row's value in this round.
func (b *bench) add(row string, v float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.values[row] = append(b.values[row], v)
}

// note adds to what is said of a row.
func (b *bench) note(row, format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notes[row] = fmt.Sprintf(format, args...)
}

func (b *bench) result(r row) measured {
	m := measured{Row: r.name, Unit: r.unit, Goal: r.goal.String()}
	notes := []string{r.note, b.notes[r.name]}
	if vs := b.values[r.name]; len(vs) > 0 {
		v := median(vs)
		m.Value, m.Rounds, m.Min, m.Max = &v, len(vs), slices.Min(vs), slices.Max(vs)
		if r.goal.op != "" {
			met := r.goal.met(v)
			m.Met = &met
		}
	}
	if b.failed != "" {
		notes = append(notes, b.failed)
	}
	m.Note = strings.Join(slices.DeleteFunc(notes, func(s string) bool { return s == "" }), "; ")
	return m
}

func median(vs []float64) float64 { return quantile(vs, 0.5) }

// quantile of unsorted values: the mean of the two in the middle for the median of an even number of them.
func quantile(vs []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(vs))
	at := q * float64(len(s)-1)
	low, high := s[int(math.Floor(at))], s[int(math.Ceil(at))]
	return low + (high-low)*(at-math.Floor(at))
}

// number is short and exact enough to compare.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

func table(w io.Writer, all []measured) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "row\tvalue\tunit\tgoal\t\trounds\tmin\tmax\tload")
	for _, m := range all {
		value, met := "–", ""
		if m.Value != nil {
			value = number(*m.Value)
		}
		if m.Met != nil {
			met = map[bool]string{true: "met", false: "MISSED"}[*m.Met]
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%.1f\n", m.Row, value, m.Unit, m.Goal, met, m.Rounds, number(m.Min), number(m.Max), m.Load)
	}
	t.Flush()
	for _, m := range all {
		if m.Note != "" {
			fmt.Fprintf(w, "%s: %s\n", m.Row, m.Note)
		}
	}
}

// What testnet calls of testing.TB.

func (b *bench) Helper() {}

func (b *bench) Context() context.Context { return b.ctx }

func (b *bench) Cleanup(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cleanups = append(b.cleanups, f)
}

func (b *bench) Failed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed != ""
}

func (b *bench) Logf(format string, args ...any) { fmt.Fprintf(b.stderr, format+"\n", args...) }

func (b *bench) Error(args ...any) {
	text := strings.TrimSuffix(fmt.Sprintln(args...), "\n")
	if b.ctx.Err() != nil && !errors.Is(context.Cause(b.ctx), context.Canceled) {
		text = context.Cause(b.ctx).Error() + ": " + text
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintln(b.stderr, text)
	if b.failed == "" {
		b.failed, _, _ = strings.Cut(text, "\n")
	}
}

func (b *bench) Errorf(format string, args ...any) { b.Error(fmt.Sprintf(format, args...)) }

func (b *bench) Fatal(args ...any) {
	b.Error(args...)
	runtime.Goexit()
}

func (b *bench) Fatalf(format string, args ...any) { b.Fatal(fmt.Sprintf(format, args...)) }
