package node

import (
	"fmt"
	"testing"
)

// Tasks of a wasm reactor with 16-byte inputs, from submission to the last result, per second.
func BenchmarkReactorTasks(b *testing.B) {
	const tasks = 200_000
	inputs := make([][]byte, tasks)
	for i := range inputs {
		inputs[i] = fmt.Appendf(nil, "%016d", i%50)
	}
	run := func(b *testing.B, origin *Node) {
		for b.Loop() {
			submit(b, origin, "sum_primes_reactor.wasm", inputs)
		}
		b.ReportMetric(float64(tasks)*float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	}
	b.Run("local", func(b *testing.B) {
		run(b, start(b, "a", 2))
	})
	b.Run("other", func(b *testing.B) {
		a, c := start(b, "a", 0), start(b, "c", 2)
		join(b, a, c)
		run(b, a)
	})
}
