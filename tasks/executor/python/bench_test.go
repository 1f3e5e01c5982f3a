package python_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/shirou/gopsutil/v4/process"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
)

// flow keeps slots busy with Starts of so many items, each a packet of so many calls that do nothing.
func flow(b *testing.B, slots, items, count int) {
	events := make(chan tasks.Event, 1<<12)
	e, err := executor.New(executor.Config{
		Runtimes: []executor.Runtime{newRuntime(b, false)},
		Emit:     func(ev tasks.Event) { events <- ev },
		Blobs:    struct{ executor.Blobs }{},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	job := protocol.NewJobID()
	e.Prepare("", &protocol.JobInfo{Job: job[:], Program: &protocol.Program{Runtime: "python"}}, nil, bundle(b, "def main(n):\n    return n\n"))
	if p := (<-events).(tasks.Prepared); p.Invalid+p.Unable != "" {
		b.Fatal(p)
	}
	input := calls(0, count)
	start := func(slot, n int) {
		s := tasks.Start{Slot: slot, Job: job, Items: make([]tasks.Item, n)}
		for i := range s.Items {
			s.Items[i] = tasks.Item{Attempt: protocol.Attempt{Job: job, Index: uint32(i)}, Input: tasks.Input{Data: input}}
		}
		e.Start(s)
	}
	run := func(n int) {
		idle := slots
		for s := range slots {
			if m := min(items, n); m > 0 {
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
			if f.Idle {
				if m := min(items, n); m > 0 {
					start(f.Slot, m)
					n -= m
				} else {
					idle++
				}
			}
		}
	}
	run(slots * items * 4)
	// Processor time of all processes: the machine may have more to do than this.
	used := func() (node, workers float64) {
		of := func(pid int32) float64 {
			p, err := process.NewProcess(pid)
			if err != nil {
				b.Fatal(err)
			}
			c, err := p.Times()
			if err != nil {
				b.Fatal(err)
			}
			return c.User + c.System
		}
		for _, pid := range e.Processes() {
			workers += of(int32(pid))
		}
		return of(int32(os.Getpid())), workers
	}
	node, workers := used()
	b.ResetTimer()
	run((b.N + count - 1) / count)
	b.StopTimer()
	nodeAfter, workersAfter := used()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
	b.ReportMetric((nodeAfter-node)/float64(b.N)*1e6, "node-µs/call")
	b.ReportMetric((workersAfter-workers)/float64(b.N)*1e6, "worker-µs/call")
}

// BenchmarkCalls runs calls that do nothing, one by one and in packets.
func BenchmarkCalls(b *testing.B) {
	for _, count := range []int{1, 16, 256, 1024} {
		for _, items := range []int{1, 64} {
			b.Run(fmt.Sprintf("packet=%d/items=%d", count, items), func(b *testing.B) { flow(b, 1, items, count) })
		}
	}
}
