package protocol

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// A node and its worker process speak over the process's standard input (node → worker) and standard
// output (worker → node); standard error is the worker's log, for people. All integers are little-endian.
// The node loads a program, waits for WorkerLoaded, then sends items; the worker runs them one after the
// other and answers each, in the order in which they came. It reads on while an item runs, or, a Python one, after it. Answers may wait
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

	// WorkerDoneFile is WorkerDone with the output in a file, for what is too large for a frame. Body: as WorkerDone, with the name of
	// the file in place of the output: one in the directory WorkerProgram.Scratch, which from then on is the node's.
	WorkerDoneFile LocalType = 0x85

	// WorkerSkipped answers an item that was withdrawn, in its turn. No body.
	WorkerSkipped LocalType = 0x84
)

// WorkerProgram is the body of WorkerLoad, as JSON.
type WorkerProgram struct {
	Path      string   `json:"path"`           // of the program's file; it does not change while it is loaded
	Name      string   `json:"name,omitempty"` // what the program may call itself: argv[0]
	Args      []string `json:"args,omitempty"` // as Program.args
	ClockReal bool     `json:"clock_real,omitempty"`
	// PathEntries is where the program's person has its modules, and Dir the working directory that it runs in, at its origin. Else none.
	PathEntries []string `json:"path_entries,omitempty"`
	Dir         string   `json:"dir,omitempty"`
	// Scratch is a directory where the process may leave outputs as files, for WorkerDoneFile. Their names are its own to choose, and
	// unlike those of other processes. Empty: there is none.
	Scratch string `json:"scratch,omitempty"`
	// Limits of each item, in bytes; the node has put its defaults in. At the largest MaxOutputOf and MaxLog.
	MemoryBytes uint64 `json:"memory_bytes"`
	OutputBytes uint64 `json:"output_bytes"`
	LogBytes    uint64 `json:"log_bytes"`
}

// Limits of what an item may write; an Outcome with more than MaxInline carries it as a blob.
const (
	MaxOutput     = 16 << 20 // standard output or result; more ends the item with OUTPUT_LIMIT
	MaxFileOutput = 1 << 30  // the same for runtimes that leave large ones in files: a large array, and a part of the least quota of blobs
	MaxLog        = 1 << 20  // standard error; the rest is dropped and the log says so
)

// MaxOutputOf is the largest output of a task of a runtime, which may be named with a version.
func MaxOutputOf(runtime string) uint64 {
	if strings.HasPrefix(runtime, "python") {
		return MaxFileOutput
	}
	return MaxOutput
}

// WorkerFiles is what the body of WorkerRunFiles says.
type WorkerFiles struct {
	Handle    uint64
	Index     uint32
	Paths     []string // of the task's blobs, in their order, without that of the input
	InputPath string   // of the input, if it is in a file; Input is empty then
	Input     []byte
}

// inputInFile is the flag of WorkerRunFiles.
const inputInFile = 1 << 0

// AppendWorkerRunFiles appends the frame of item id to b. A path has at most 65,535 bytes.
func AppendWorkerRunFiles(b []byte, id uint64, f *WorkerFiles) []byte {
	start := len(b)
	b = AppendLocal(b, WorkerRunFiles, id)
	b = binary.LittleEndian.AppendUint64(b, f.Handle)
	b = binary.LittleEndian.AppendUint32(b, f.Index)
	paths := f.Paths
	if f.InputPath == "" {
		b = append(b, 0)
	} else {
		b = append(b, inputInFile)
		paths = append(paths[:len(paths):len(paths)], f.InputPath)
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(paths)))
	for _, p := range paths {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(p)))
		b = append(b, p...)
	}
	b = append(b, f.Input...)
	binary.LittleEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

// ParseWorkerRunFiles reads the body of a WorkerRunFiles. Input is a part of body. Errors wrap ErrProtocol.
func ParseWorkerRunFiles(body []byte) (f WorkerFiles, err error) {
	const head = 8 + 4 + 1 + 2
	if len(body) < head {
		return f, fmt.Errorf("%w: item with files of %d bytes", ErrProtocol, len(body))
	}
	f.Handle, f.Index = binary.LittleEndian.Uint64(body), binary.LittleEndian.Uint32(body[8:])
	flags, n := body[12], int(binary.LittleEndian.Uint16(body[13:]))
	rest := body[head:]
	if flags&^inputInFile != 0 || n > MaxTaskBlobs+1 || flags != 0 && n == 0 {
		return f, fmt.Errorf("%w: item with flags %#x and %d files", ErrProtocol, flags, n)
	}
	f.Paths = make([]string, n)
	for i := range f.Paths {
		if len(rest) < 2 || len(rest) < 2+int(binary.LittleEndian.Uint16(rest)) {
			return f, fmt.Errorf("%w: item ends in file %d of %d", ErrProtocol, i, n)
		}
		k := 2 + int(binary.LittleEndian.Uint16(rest))
		f.Paths[i], rest = string(rest[2:k]), rest[k:]
	}
	if flags&inputInFile != 0 {
		if f.InputPath, f.Paths = f.Paths[n-1], f.Paths[:n-1]; f.InputPath == "" || len(rest) > 0 {
			return f, fmt.Errorf("%w: item with its input in file %q, and %d bytes of it besides", ErrProtocol, f.InputPath, len(rest))
		}
	}
	f.Input = rest
	return f, nil
}

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
	return appendDone(b, WorkerDone, id, o)
}

// AppendWorkerDoneFile is AppendWorkerDone of an outcome whose Output is the name of a file.
func AppendWorkerDoneFile(b []byte, id uint64, o *WorkerOutcome) []byte {
	return appendDone(b, WorkerDoneFile, id, o)
}

func appendDone(b []byte, kind LocalType, id uint64, o *WorkerOutcome) []byte {
	n := localHeader + workerDoneHeader + len(o.Output) + len(o.Log) + len(o.Error)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = append(b, byte(kind))
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

// ParseWorkerDone reads the body of a WorkerDone, or of a WorkerDoneFile, whose Output is the name of the file. The outcome's slices are parts of body. Errors wrap ErrProtocol.
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
