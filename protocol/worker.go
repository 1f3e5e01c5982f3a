package protocol

import (
	"encoding/binary"
	"fmt"
)

// A node and its worker process speak over the process's standard input (node → worker) and standard
// output (worker → node); standard error is the worker's log, for people. All integers are little-endian.
// The node loads a program, waits for WorkerLoaded, then sends items; the worker runs them one after the
// other and answers each, in the order in which they came. It reads on while an item runs. Answers may wait
// for each other while there is more to run, but for 1 ms at most, and never for an item that hangs. A
// worker whose standard input ends exits at once, whatever it is doing: its node is gone. There is no
// greeting: both are of the same build, or the worker came with the build.
const (
	// WorkerRunFile is WorkerRun with the input in a file. Body: u64 handle, u32 index, path (UTF-8).
	WorkerRunFile LocalType = 0x04
	// WorkerSkip withdraws item id if it has not begun; if it has, nothing happens. No body.
	WorkerSkip LocalType = 0x05
	// WorkerRest says that the items to come are of another job: program id, if it is loaded, keeps nothing of those before. No body.
	WorkerRest LocalType = 0x06

	// WorkerRunFiles is WorkerRun for a task that reads blobs. Body: u64 handle, u32 index, u8 flags (1: the last of the paths
	// is that of the input), u16 number of paths, for each u16 length and the path (UTF-8), then the raw input.
	WorkerRunFiles LocalType = 0x07

	// WorkerSkipped answers an item that was withdrawn, in its turn. No body.
	WorkerSkipped LocalType = 0x84
)

// WorkerProgram is the body of WorkerLoad, as JSON.
type WorkerProgram struct {
	Path      string   `json:"path"`           // of the program's file; it does not change while it is loaded
	Name      string   `json:"name,omitempty"` // what the program may call itself: argv[0]
	Args      []string `json:"args,omitempty"` // as Program.args
	ClockReal bool     `json:"clock_real,omitempty"`
	// Limits of each item, in bytes; the node has put its defaults in. At the largest MaxOutput and MaxLog.
	MemoryBytes uint64 `json:"memory_bytes"`
	OutputBytes uint64 `json:"output_bytes"`
	LogBytes    uint64 `json:"log_bytes"`
}

// Limits of what an item may write; an Outcome with more than MaxInline carries it as a blob.
const (
	MaxOutput = 16 << 20 // standard output or result; more ends the item with OUTPUT_LIMIT
	MaxLog    = 1 << 20  // standard error; the rest is dropped and the log says so
)

// WorkerFailure is the body of WorkerLoadFailed, as JSON; one of its fields is set. (The body of
// WorkerLoaded is an empty object.)
type WorkerFailure struct {
	Invalid string `json:"invalid,omitempty"` // no node can run the program, and why
	Unable  string `json:"unable,omitempty"`  // this worker cannot, now, and why
}

// WorkerOutcome is what the body of WorkerDone says.
type WorkerOutcome struct {
	Status   Status // OK, FAILED, OUTPUT_LIMIT, MEMORY_LIMIT or INVALID
	ExitCode int32
	RunUs    uint64 // wall clock time of the item alone
	Output   []byte
	Log      []byte
	Error    []byte // a sentence, if Status is not OK
}

const workerDoneHeader = 1 + 4 + 8 + 4 + 4 + 4

// AppendWorkerDone appends the frame of item id's outcome to b.
func AppendWorkerDone(b []byte, id uint64, o *WorkerOutcome) []byte {
	n := localHeader + workerDoneHeader + len(o.Output) + len(o.Log) + len(o.Error)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = append(b, byte(WorkerDone))
	b = binary.LittleEndian.AppendUint64(b, id)
	b = append(b, byte(o.Status))
	b = binary.LittleEndian.AppendUint32(b, uint32(o.ExitCode))
	b = binary.LittleEndian.AppendUint64(b, o.RunUs)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(o.Output)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(o.Log)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(o.Error)))
	b = append(b, o.Output...)
	b = append(b, o.Log...)
	return append(b, o.Error...)
}

// ParseWorkerDone reads the body of a WorkerDone. The outcome's slices are parts of body. Errors wrap ErrProtocol.
func ParseWorkerDone(body []byte) (WorkerOutcome, error) {
	if len(body) < workerDoneHeader {
		return WorkerOutcome{}, fmt.Errorf("%w: outcome of %d bytes", ErrProtocol, len(body))
	}
	o := WorkerOutcome{
		Status:   Status(body[0]),
		ExitCode: int32(binary.LittleEndian.Uint32(body[1:])),
		RunUs:    binary.LittleEndian.Uint64(body[5:]),
	}
	output := uint64(binary.LittleEndian.Uint32(body[13:]))
	log := uint64(binary.LittleEndian.Uint32(body[17:]))
	text := uint64(binary.LittleEndian.Uint32(body[21:]))
	rest := body[workerDoneHeader:]
	if output+log+text != uint64(len(rest)) {
		return WorkerOutcome{}, fmt.Errorf("%w: outcome of %d + %d + %d bytes in %d", ErrProtocol, output, log, text, len(rest))
	}
	switch o.Status {
	case Status_OK, Status_FAILED, Status_OUTPUT_LIMIT, Status_MEMORY_LIMIT, Status_INVALID:
	default:
		return WorkerOutcome{}, fmt.Errorf("%w: outcome with status %d", ErrProtocol, body[0])
	}
	o.Output, rest = rest[:output:output], rest[output:]
	o.Log, o.Error = rest[:log:log], rest[log:]
	return o, nil
}
