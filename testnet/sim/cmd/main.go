// Command sim runs seeds of testnet/sim and prints what came of them, one line a scenario: medians over its seeds.
//
//	go run ./testnet/sim/cmd -seeds 1000                           seeds 1 to 1000, each with the scenario it chooses
//	go run ./testnet/sim/cmd -seeds 100 -scenario crash
//	go run ./testnet/sim/cmd -seed 1001 -seeds 5 -scenario efficiency   a table of meshes without faults
//	go run ./testnet/sim/cmd -replay 17 -scenario crash            one seed with its full trace
//	go run ./testnet/sim/cmd -seeds 20 -digest                     a line and the digest of each seed
//
// Columns: bound says what the efficiency is measured against (see lowerBound in testnet/sim); tries are attempts that ran
// for each task that ended; lost is the time from the loss of a running attempt to the next grant of its task, at the median and
// at the most; slowdown is the time of a job over what it would take on an idle mesh without latency, the least and the
// greatest of all jobs; first is the time from submission to the first start; idle is slot time without a task while one waited.
//
// It ends with 1 at the first violation, unless -all.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"meshnode/testnet/sim"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	fs.SetOutput(stderr)
	seeds := fs.Int("seeds", 1, "run so many seeds of each scenario")
	seed := fs.Uint64("seed", 1, "the first seed")
	scenario := fs.String("scenario", "", "one of "+strings.Join(sim.Scenarios(), ", ")+"; a table: "+strings.Join(sim.Tables(), ", ")+
		"; a row of a table; empty: each seed chooses")
	replay := fs.Uint64("replay", 0, "run this seed alone and print its trace")
	digest := fs.Bool("digest", false, "print a line with the digest of each seed")
	profile := fs.String("cpuprofile", "", "write a CPU profile of all of it to this file")
	all := fs.Bool("all", false, "go on after a violation")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(stderr, err)
			return 2
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	if *replay != 0 {
		r := sim.Run(sim.Options{Seed: *replay, Scenario: *scenario, Trace: out})
		fmt.Fprintf(out, "%s\n%v\n", sim.Header, r)
		if r.Violation != "" {
			fmt.Fprintf(out, "  %s\n", r.Violation)
			return 1
		}
		return 0
	}
	var todo []sim.Options
	for _, s := range sim.Rows(*scenario) {
		for i := range *seeds {
			o := sim.Options{Seed: *seed + uint64(i), Scenario: s}
			if s == "" {
				o.Scenario = sim.Mix(o.Seed)
			}
			todo = append(todo, o)
		}
	}
	begun := time.Now()
	done, bad := 0, 0
	by := map[string][]sim.Report{}
	var order []string
	if *digest {
		fmt.Fprintln(out, sim.Header)
	} else {
		fmt.Fprintln(out, sim.TableHeader)
	}
	for r := range results(todo) {
		done++
		if *digest || r.Violation != "" {
			fmt.Fprintln(out, r)
		}
		if by[r.Scenario] = append(by[r.Scenario], r); len(by[r.Scenario]) == 1 {
			order = append(order, r.Scenario)
		}
		if r.Violation != "" {
			bad++
			fmt.Fprintf(out, "  %s\n", r.Violation)
			if !*all {
				break
			}
		}
		if *scenario != "" && !*digest && len(by[r.Scenario]) == *seeds { // as they come
			fmt.Fprintln(out, sim.Summary(r.Scenario, by[r.Scenario]))
			out.Flush()
		}
	}
	if *scenario == "" && !*digest {
		slices.Sort(order)
		for _, s := range order {
			fmt.Fprintln(out, sim.Summary(s, by[s]))
		}
	}
	if bad > 0 {
		fmt.Fprintf(out, "%d of %d seeds broke a promise\n", bad, done)
		return 1
	}
	fmt.Fprintf(out, "%d worlds, none broke a promise; %.0f s\n", done, time.Since(begun).Seconds())
	return 0
}

// results yields the reports in the order of todo, computed on all processors.
func results(todo []sim.Options) func(func(sim.Report) bool) {
	return func(yield func(sim.Report) bool) {
		out := make([]chan sim.Report, len(todo))
		for i := range out {
			out[i] = make(chan sim.Report, 1)
		}
		next, stop := make(chan int), make(chan struct{})
		var wg sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				for i := range next {
					out[i] <- sim.Run(todo[i])
				}
			})
		}
		wg.Go(func() {
			defer close(next)
			for i := range todo {
				select {
				case next <- i:
				case <-stop:
					return
				}
			}
		})
		defer wg.Wait()
		defer close(stop)
		for _, c := range out {
			if !yield(<-c) {
				return
			}
		}
	}
}
