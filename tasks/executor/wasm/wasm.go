// Package wasm is the runtime for WebAssembly modules. Runtime is what the node's executor is given; WorkerMain is
// the worker process, where modules are compiled and run by wazero. The node itself only looks at a module's
// outline (Check) and never compiles or runs one.
//
// A module is one of two things, told apart by its exports; what has both is a reactor.
//
//   - A command exports _start, as any WASI preview 1 program does. Each task is a fresh instance. With no argument
//     words in the job, the task's input is its standard input; with words, they are its arguments, {} replaced by the
//     input and {#} by the task's index from 1, and standard input is empty. Standard output is the result, standard error the
//     log, exit code 0 means that it went well.
//   - A reactor exports mesh_run(ptr i32, len i32) → i64, mesh_alloc(len i32) → i32, and may export mesh_free(ptr i32) and
//     _initialize(). The host calls mesh_alloc, writes the input there, and calls mesh_run, to which the input belongs
//     from then on. The answer is ptr<<32 | len of the result, which the host copies and gives to mesh_free; or −1: the task
//     failed, and the last line on standard error says why. With argument words in the job, the input is those words with one
//     space between them, {} and {#} replaced. One instance serves many tasks of a job, unless one of them traps, exits,
//     or leaves it with more than half of its memory limit.
//
// Modules see no files, no network and no environment. Clock and random source are deterministic, the same on each
// machine, unless the job wants real ones.
package wasm

import (
	"os"
	"strings"

	"meshnode/protocol"
	"meshnode/tasks/executor"
)

// Name is the name of this runtime.
const Name = "wasm"

// Config says how a worker process is started.
type Config struct {
	// Command is the argv of a process that calls WorkerMain: {"/path/to/meshnode", "worker", "wasm"}.
	Command []string
	// Env are variables for it beside those that each worker process gets.
	Env []string
}

// Runtime is the executor.Runtime for WebAssembly.
type Runtime struct{ cfg Config }

// New makes the runtime. cfg.Command must not be empty.
func New(cfg Config) *Runtime { return &Runtime{cfg} }

// Name is "wasm".
func (r *Runtime) Name() string { return Name }

// Check is the function Check.
func (r *Runtime) Check(path string) error { return Check(path) }

// Version is always here: there is nothing that a machine could lack.
func (r *Runtime) Version() (version string, here bool) { return "", true }

// Worker is what Config says: a process runs the programs of anybody, since each has its sandbox.
func (r *Runtime) Worker(string, protocol.NodeID, *protocol.Local) (executor.Worker, error) {
	return executor.Worker{Argv: r.cfg.Command, Env: r.cfg.Env}, nil
}

// Check looks at the outline of the module at path: magic, version, size, what it imports and exports. It takes
// milliseconds and little memory, whatever the file holds. Its error is one line for the person who submits the
// module, without the path; an *fs.PathError if the file cannot be read.
func Check(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = readOutline(f, st.Size())
	return err
}

// quote makes a name out of a module fit for an error of one line.
func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return `"` + strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '"' {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?")) + `"`
}
