package wasm_test

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/runtimetest"
	"meshnode/tasks/executor/wasm"
)

// flow keeps slots busy with batches of items and counts the outcomes.
func flow(b *testing.B, path string, slots, batch int, input string) {
	events := make(chan tasks.Event, 1<<12)
	e, err := executor.New(executor.Config{
		Runtimes: []executor.Runtime{newRuntime()},
		Emit:     func(ev tasks.Event) { events <- ev },
		Blobs:    struct{ executor.Blobs }{},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	job := protocol.NewJobID()
	e.Prepare("", &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: "wasm"}}, nil, path)
	if p := (<-events).(tasks.Prepared); p.Invalid+p.Unable != "" {
		b.Fatal(p)
	}
	start := func(slot, n int) {
		s := tasks.Start{Slot: slot, Job: job, Items: make([]tasks.Item, n)}
		for i := range s.Items {
			s.Items[i] = tasks.Item{Attempt: protocol.Attempt{Job: job, Index: uint32(i)}, Input: tasks.Input{Data: []byte(input)}}
		}
		e.Start(s)
	}
	run := func(n int) {
		idle := slots
		for s := range slots {
			if m := min(batch, n); m > 0 {
				start(s, m)
				n -= m
				idle--
			}
		}
		for idle < slots {
			f := (<-events).(tasks.Finished)
			for _, o := range f.Outcomes {
				if o.Status != protocol.Status_OK {
					b.Fatal(o)
				}
			}
			if len(f.Returned) > 0 {
				b.Fatal(f)
			}
			if f.Idle {
				if m := min(batch, n); m > 0 {
					start(f.Slot, m)
					n -= m
				} else {
					idle++
				}
			}
		}
	}
	run(slots * batch * 4) // processes, instances, and the executor's idea of how long an item takes
	b.ResetTimer()
	run(b.N)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	for _, pid := range e.Processes()[:1] {
		if p, err := process.NewProcess(int32(pid)); err == nil {
			if m, err := p.MemoryInfo(); err == nil {
				b.ReportMetric(float64(m.RSS)/(1<<20), "worker-MiB")
			}
		}
	}
}

// BenchmarkReactor runs tasks of almost no work with 16 bytes of input.
func BenchmarkReactor(b *testing.B) {
	for _, slots := range []int{1, 2} {
		for _, batch := range []int{1, 16, 256, 1024} {
			b.Run(fmt.Sprintf("slots=%d/batch=%d", slots, batch), func(b *testing.B) {
				flow(b, "testdata/reactor.wasm", slots, batch, "0123456789abcdef")
			})
		}
	}
}

// BenchmarkCommand runs tasks in instances of their own.
func BenchmarkCommand(b *testing.B) {
	for _, name := range []string{"echo", "misbehave"} {
		b.Run(name, func(b *testing.B) { flow(b, "testdata/"+name+".wasm", 1, 256, "exit 0") })
	}
	if path := os.Getenv("MESHNODE_BENCH_WASM"); path != "" { // such as what build.sh --go makes
		b.Run("other", func(b *testing.B) { flow(b, path, 1, 16, "0") })
	}
}

// BenchmarkSumPrimes is the task of the demo.
func BenchmarkSumPrimes(b *testing.B) {
	flow(b, "../../../examples/wasm/sum_primes.wasm", 1, 1, "1000000")
}

// BenchmarkFirstTask is a new executor, a module that is in the cache, one task, and the end of the process.
func BenchmarkFirstTask(b *testing.B) {
	run := func() time.Duration {
		events := make(chan tasks.Event, 10)
		e, err := executor.New(executor.Config{
			Runtimes: []executor.Runtime{newRuntime()},
			Emit:     func(ev tasks.Event) { events <- ev },
			Blobs:    struct{ executor.Blobs }{},
		})
		if err != nil {
			b.Fatal(err)
		}
		defer e.Close()
		began := time.Now()
		job := protocol.NewJobID()
		e.Prepare("", &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: "wasm"}}, nil, "testdata/echo.wasm")
		<-events
		ready := time.Since(began)
		e.Start(tasks.Start{Job: job, Items: []tasks.Item{{Attempt: protocol.Attempt{Job: job}}}})
		for {
			if f := (<-events).(tasks.Finished); f.Idle {
				return ready
			}
		}
	}
	run()
	var ready time.Duration
	for b.Loop() {
		ready += run()
	}
	b.ReportMetric(float64(ready.Milliseconds())/float64(b.N), "ms-prepared")
	runtime.KeepAlive(ready)
}

// BenchmarkCompile compiles a module with an empty cache, the start of the process included.
func BenchmarkCompile(b *testing.B) {
	path := cmp.Or(os.Getenv("MESHNODE_BENCH_WASM"), "../../../examples/wasm/sum_primes.wasm")
	for b.Loop() {
		self, err := os.Executable()
		if err != nil {
			b.Fatal(err)
		}
		rt := wasm.New(wasm.Config{Command: []string{self}, Env: []string{role + "=worker", "MESHNODE_CACHE_DIR=" + b.TempDir()}})
		r := runtimetest.NewRig(b, executor.Config{Runtimes: []executor.Runtime{rt}})
		r.Job("wasm", path, nil)
		r.Close()
	}
}
