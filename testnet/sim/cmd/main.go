// Command sim runs seeds of testnet/sim and prints what came of them.
//
//	go run ./testnet/sim/cmd -seeds 1000            seeds 1 to 1000, scenarios mixed
//	go run ./testnet/sim/cmd -seed 17 -v            one seed with its full trace
//	go run ./testnet/sim/cmd -scenario crash -seeds 100
//	go run ./testnet/sim/cmd -table                 the efficiency scenarios
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
	"strings"
	"sync"

	"meshnode/testnet/sim"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	fs.SetOutput(stderr)
	seeds := fs.Int("seeds", 1, "run so many seeds")
	seed := fs.Uint64("seed", 1, "the first seed")
	scenario := fs.String("scenario", "", "one of "+strings.Join(sim.Scenarios(), ", ")+"; empty: by the seed")
	verbose := fs.Bool("v", false, "print the trace of each seed")
	table := fs.Bool("table", false, "run the scenarios that measure efficiency")
	all := fs.Bool("all", false, "go on after a violation")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	var todo []sim.Options
	for i := range *seeds {
		o := sim.Options{Seed: *seed + uint64(i), Scenario: *scenario}
		if !*table {
			todo = append(todo, o)
			continue
		}
		for _, s := range sim.Efficiency() {
			o.Scenario = s
			todo = append(todo, o)
		}
	}
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	if *verbose {
		for i := range todo {
			todo[i].Trace = out
		}
	}
	fmt.Fprintln(out, sim.Header)
	bad := 0
	for r := range results(todo, *verbose, *all) {
		fmt.Fprintln(out, r)
		if r.Violation != "" {
			bad++
			fmt.Fprintf(out, "  %s\n", r.Violation)
			if !*all {
				break
			}
		}
	}
	if bad > 0 {
		fmt.Fprintf(out, "%d of %d seeds broke a promise\n", bad, len(todo))
		return 1
	}
	return 0
}

// results yields the reports in the order of todo, computed on all processors unless they are traced.
func results(todo []sim.Options, traced, all bool) func(func(sim.Report) bool) {
	return func(yield func(sim.Report) bool) {
		workers := runtime.GOMAXPROCS(0)
		if traced {
			workers = 1
		}
		for len(todo) > 0 {
			batch := todo[:min(len(todo), 8*workers)]
			if traced {
				batch = todo[:1]
			}
			todo = todo[len(batch):]
			rs := make([]sim.Report, len(batch))
			var wg sync.WaitGroup
			next := make(chan int)
			for range workers {
				wg.Go(func() {
					for i := range next {
						rs[i] = sim.Run(batch[i])
					}
				})
			}
			for i := range batch {
				next <- i
			}
			close(next)
			wg.Wait()
			for _, r := range rs {
				if !yield(r) {
					return
				}
			}
		}
	}
}
