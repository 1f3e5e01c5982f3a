package main

import (
	"bytes"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
	"meshnode/testnet"
)

// The programs, from the module's root.
const (
	echoReactor = "tasks/executor/wasm/testdata/reactor.wasm" // a call returns its input
	echoCommand = "tasks/executor/wasm/testdata/echo.wasm"    // standard input to standard output
	sumPrimes   = "examples/wasm/sum_primes.wasm"
	sleep       = "testnet/bench/testdata/sleep.wasm" // really sleeps, unlike the "sleep" of misbehave.wasm
)

// mesh starts n nodes with that many slots each, and a cache of compiled programs of their own.
func (b *bench) mesh(n, slots int, env ...string) *testnet.Net {
	dir, err := os.MkdirTemp("", "mn-cache-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return testnet.Start(b, n, testnet.Options{Slots: slots, Env: append(env, "MESHNODE_CACHE_DIR="+dir)})
}

// twoNodes is a mesh of an origin and another node with the slots. Local says that the work stays at the origin,
// otherwise it all goes to the other.
func (b *bench) twoNodes(local bool, slots int) *testnet.Net {
	n := b.mesh(2, slots)
	idle := 1
	if local {
		idle = 2
	}
	b.slots(n.Node(idle), 0)
	return n
}

func (b *bench) slots(nd *testnet.Node, k int) {
	if err := nd.Client().SetSlots(b.ctx, k); err != nil {
		b.Fatal("set slots:", err)
	}
}

func (b *bench) status(nd *testnet.Node) node.Status {
	s, err := nd.Client().Status(b.ctx)
	if err != nil {
		b.Fatal("status:", err)
	}
	return s
}

// program hands a program to a node.
func (b *bench) program(nd *testnet.Node, path string) node.JobSpec {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	id, err := nd.Client().PutProgram(b.ctx, f)
	if err != nil {
		b.Fatal("put the program:", err)
	}
	return node.JobSpec{Runtime: "wasm", Code: id, ClockReal: path == sleep}
}

// done is an attached job that ended well, each task of it.
type done struct {
	node.Job
	took time.Duration // as the client saw it
	run  time.Duration // of all tasks together
}

// submit runs a job and waits for its end. Each, if there is one, is called with every result.
func (b *bench) submit(nd *testnet.Node, spec node.JobSpec, inputs iter.Seq2[[]byte, error], each func(control.Result)) done {
	var d done
	began := time.Now()
	j, err := nd.Client().Submit(b.ctx, spec, inputs, func(rs []control.Result) error {
		for _, r := range rs {
			if r.Status != protocol.Status_OK {
				return fmt.Errorf("task %d: %v, %s", r.Index, r.Status, r.Error)
			}
			d.run += r.Run
			if each != nil {
				each(r)
			}
		}
		return nil
	})
	if err == nil && j.State != "done" {
		err = fmt.Errorf("job %s: %s", j.State, j.Reason)
	}
	if err != nil {
		b.Fatal("submit:", err)
	}
	d.Job, d.took = j, time.Since(began)
	return d
}

// same is n times one input.
func same(n int, input string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for range n {
			if !yield([]byte(input), nil) {
				return
			}
		}
	}
}

// numbered is n inputs of that many bytes, no two alike.
func numbered(n, size int) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		in := make([]byte, 0, max(size, 20))
		for i := range n {
			if !yield(fmt.Appendf(in[:0], "%0*d", size, i), nil) {
				return
			}
		}
	}
}

// primes is the example's inputs: n of them from first on, 100 apart.
func primes(first, n int) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for i := range n {
			if !yield(fmt.Appendf(nil, "%d", first+100*i), nil) {
				return
			}
		}
	}
}

// random is n inputs of size random bytes, which neither compress nor repeat.
func random(n, size int) [][]byte {
	ins := make([][]byte, n)
	src := rand.NewChaCha8([32]byte{})
	seed := rand.Uint64()
	for i := range ins {
		ins[i] = make([]byte, size)
		src.Read(ins[i])
		copy(ins[i], fmt.Sprintf("%d %d", seed, i))
	}
	return ins
}

func all(ins [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, in := range ins {
			if !yield(in, nil) {
				return
			}
		}
	}
}

// resident is the resident memory of one process in bytes, its workers not counted.
func (b *bench) resident(nd *testnet.Node) float64 {
	p, err := process.NewProcess(int32(nd.PID()))
	if err != nil {
		b.Fatal(err)
	}
	m, err := p.MemoryInfo()
	if err != nil {
		b.Fatal(err)
	}
	return float64(m.RSS)
}

// settled waits until a node's memory does not shrink or grow any more, and returns it.
func (b *bench) settled(nd *testnet.Node) float64 {
	const still, most = 3 * time.Second, 20 * time.Second
	began, since, last := time.Now(), time.Now(), b.resident(nd)
	for time.Since(since) < still && time.Since(began) < most {
		b.pause(100 * time.Millisecond)
		if now := b.resident(nd); now < 0.99*last || now > 1.01*last {
			since, last = time.Now(), now
		}
	}
	return b.resident(nd)
}

func (b *bench) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-b.ctx.Done():
		b.Fatal("wait")
	}
}

// mustEqual fails the run where a result is not what it should be: a fast wrong answer is no measurement.
func (b *bench) mustEqual(what string, got, want []byte) {
	if !bytes.Equal(got, want) {
		b.Fatalf("%s: %q, want %q", what, short(got), short(want))
	}
}

func short(s []byte) string { return strings.ToValidUTF8(string(s[:min(len(s), 60)]), "?") }
