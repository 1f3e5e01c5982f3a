package journal

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
)

// Batches of 1000 inputs of 8 bytes, as a client's frames bring them.
func BenchmarkTasks(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%v", sync), func(b *testing.B) {
			j, _ := start(b, b.TempDir(), Config{})
			ins := make([]tasks.Input, 1000)
			for i := range ins {
				ins[i].Data = []byte("12345678")
			}
			rs := []tasks.Record{nil}
			n, last := 0, uint64(0)
			for b.Loop() {
				rs[0] = tasks.TasksRecord{Job: job(1), First: uint32(n), Inputs: ins}
				last = must(b, j, sync, rs...)
				n += len(ins)
				if sync && last%16 == 0 { // at most 16 frames wait for an answer
					wait(b, j, last)
				}
			}
			wait(b, j, must(b, j, true))
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}

// One DoneRecord per task in batches as the node's loop drains them.
func BenchmarkDone(b *testing.B) {
	for _, size := range []int{1, 16, 256} {
		for _, sync := range []bool{false, true} {
			b.Run(fmt.Sprintf("batch=%d/sync=%v", size, sync), func(b *testing.B) {
				j, _ := start(b, b.TempDir(), Config{})
				n, last := 0, uint64(0)
				rs := make([]tasks.Record, size)
				for b.Loop() {
					for i := range rs {
						rs[i] = done(job(1), uint32(n), uint32(n))
						n++
					}
					last = must(b, j, sync, rs...)
				}
				wait(b, j, max(last, must(b, j, true)))
				b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
			})
		}
	}
}

// From Append to the report of the sync, one at a time.
func BenchmarkSync(b *testing.B) {
	j, _ := start(b, b.TempDir(), Config{})
	var took []time.Duration
	for i := uint32(0); b.Loop(); i++ {
		t := time.Now()
		n := must(b, j, true, done(job(1), i, i))
		for <-j.Synced() < n {
		}
		took = append(took, time.Since(t))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
}

// Opening a journal of a million tasks, half of them done, and handing all to a function.
func BenchmarkReopen(b *testing.B) {
	dir := b.TempDir()
	j, stop := start(b, dir, Config{})
	a := job(1)
	must(b, j, false, tasks.JobRecord{Spec: &protocol.Job{Job: a[:], Name: "million"}})
	const million = 1_000_000
	for n := 0; n < million; n += 1000 {
		must(b, j, false, tasks.TasksRecord{Job: a, First: uint32(n), Inputs: inputs(n, 1000)})
	}
	for n := 0; n < million/2; n += 250 {
		var rs []tasks.Record
		for i := range 250 {
			rs = append(rs, done(a, uint32(n+i), uint32(n+i)))
		}
		must(b, j, false, rs...)
	}
	stop()
	for b.Loop() {
		j, err := Open(dir, Config{})
		if err != nil {
			b.Fatal(err)
		}
		ins, ends := 0, 0
		err = j.Load(func(r tasks.Record) error {
			switch r := r.(type) {
			case tasks.TasksRecord:
				ins += len(r.Inputs)
			case tasks.DoneRecord:
				ends++
			}
			return nil
		})
		if err != nil || ins != million || ends != million/2 {
			b.Fatal(ins, ends, err)
		}
		if err := j.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
