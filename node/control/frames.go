package control

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"meshnode/node"
	"meshnode/protocol"
)

// MaxInput is the largest input of a task: one frame has to hold it.
const MaxInput = 16 << 20

// MaxProgram is the largest program, MaxBlob the largest blob that a node takes.
const (
	MaxProgram = 256 << 20
	MaxBlob    = 16 << 30
)

const (
	// batchBytes bounds a frame of tasks or results that holds more than one: large enough that a frame's
	// cost is shared by thousands of small ones, small enough that nobody waits long behind it.
	batchBytes = 256 << 10
	batchTasks = 4096
	// maxResultInput is the largest input that a result brings back; larger ones are asked for one by one.
	maxResultInput = 64 << 10

	addHeader    = 4 + 1 + 8 + 16 + 4 + 4 // of a whole ControlAdd frame, its length included
	resultHeader = 52
	noWorker     = math.MaxUint16
	maxWorkers   = noWorker

	inputLeftOut  = 1 << 0
	outputLeftOut = 1 << 1

	outputName = 32 + 8 // bytes in the place of an output that is left out
)

// openBody is the JSON of ControlOpen.
type openBody struct {
	Job         string   `json:"job"`
	Name        string   `json:"name"`
	Runtime     string   `json:"runtime"`
	Code        string   `json:"code"`
	Args        []string `json:"args"`
	ClockReal   bool     `json:"clock_real"`
	TimeoutUS   int64    `json:"timeout_us"`
	Memory      uint64   `json:"memory"`
	MaxParallel uint32   `json:"max_parallel"`
	Detached    bool     `json:"detached"`

	Retries    uint32            `json:"retries,omitempty"`
	Priority   int               `json:"priority,omitempty"`
	On         string            `json:"on,omitempty"`
	Not        []protocol.NodeID `json:"not,omitempty"`
	LocalOnly  bool              `json:"local_only,omitempty"`
	RemoteOnly bool              `json:"remote_only,omitempty"`
	Spare      protocol.Spare    `json:"spare,omitempty"` // number of job.proto
	HaltFailed uint32            `json:"halt_failed,omitempty"`
	HaltNow    bool              `json:"halt_now,omitempty"`
	Runs       []uint32          `json:"runs,omitempty"`

	Group string     `json:"group,omitempty"` // 32 hex digits
	Local *localBody `json:"local,omitempty"`
}

// localBody is protocol.Local as JSON.
type localBody struct {
	Interpreter string   `json:"interpreter"`
	Version     string   `json:"version"`
	Path        []string `json:"path"`
	Dir         string   `json:"dir"`
}

func encodeOpen(s node.JobSpec) ([]byte, error) {
	o := openBody{
		Job: s.ID.String(), Name: s.Name, Runtime: s.Runtime, Code: s.Code.String(), Args: s.Args, ClockReal: s.ClockReal,
		TimeoutUS: s.Timeout.Microseconds(), Memory: s.Memory, MaxParallel: s.MaxParallel, Detached: s.Detached,
		Retries: s.Retries, Priority: s.Priority, On: s.Placement.On, Not: s.Placement.Not, LocalOnly: s.Placement.LocalOnly,
		RemoteOnly: s.Placement.RemoteOnly, Spare: s.Spare, HaltFailed: s.HaltFailed, HaltNow: s.HaltNow, Runs: s.Runs,
	}
	if !s.Group.IsZero() {
		o.Group = s.Group.String()
	}
	if l := s.Local; l != nil {
		o.Local = &localBody{l.Interpreter, l.Version, l.Path, l.Dir}
	}
	return json.Marshal(o)
}

// maxTimeout keeps a timeout in microseconds within a time.Duration.
const maxTimeout = int64(math.MaxInt64 / int64(time.Microsecond))

func decodeOpen(b []byte) (node.JobSpec, error) {
	var o openBody
	if err := json.Unmarshal(b, &o); err != nil {
		return node.JobSpec{}, fmt.Errorf("%w: open: %v", protocol.ErrProtocol, err)
	}
	id, err := protocol.ParseJobID(o.Job)
	if err != nil {
		return node.JobSpec{}, fmt.Errorf("%w: open: %v", protocol.ErrProtocol, err)
	}
	code, err := protocol.ParseBlobID(o.Code)
	if err != nil {
		return node.JobSpec{}, fmt.Errorf("%w: open: %v", protocol.ErrProtocol, err)
	}
	if o.TimeoutUS < 0 || o.TimeoutUS > maxTimeout || len(o.Name) > protocol.MaxName || len(o.Runtime) > protocol.MaxName {
		return node.JobSpec{}, fmt.Errorf("%w: open: timeout, name or runtime over its limit", protocol.ErrProtocol)
	}
	spec := node.JobSpec{
		ID: id, Name: o.Name, Runtime: o.Runtime, Code: code, Args: o.Args, ClockReal: o.ClockReal,
		Timeout: time.Duration(o.TimeoutUS) * time.Microsecond, Memory: o.Memory, MaxParallel: o.MaxParallel, Detached: o.Detached,
		Retries: o.Retries, Priority: o.Priority,
		Placement: node.Placement{On: o.On, Not: o.Not, LocalOnly: o.LocalOnly, RemoteOnly: o.RemoteOnly},
		Spare:     o.Spare, HaltFailed: o.HaltFailed, HaltNow: o.HaltNow, Runs: o.Runs,
	}
	if o.Group != "" {
		if spec.Group, err = protocol.ParseJobID(o.Group); err != nil {
			return node.JobSpec{}, fmt.Errorf("%w: open: group: %v", protocol.ErrProtocol, err)
		}
	}
	if l := o.Local; l != nil {
		spec.Local = &protocol.Local{Interpreter: l.Interpreter, Version: l.Version, Path: l.Path, Dir: l.Dir}
	}
	return spec, nil
}

// decodeAdd reads the body of ControlAdd, or with blobs that of ControlAddBlobs. The inputs are parts of b.
func decodeAdd(b []byte, blobs bool) (job protocol.JobID, first uint32, ins []node.TaskInput, err error) {
	if len(b) < 24 {
		return job, 0, nil, fmt.Errorf("%w: add of %d bytes", protocol.ErrProtocol, len(b))
	}
	copy(job[:], b)
	first = binary.LittleEndian.Uint32(b[16:])
	count := binary.LittleEndian.Uint32(b[20:])
	b = b[24:]
	least := 4
	if blobs {
		least = 2 + 4
	}
	if uint64(count) > uint64(len(b)/least) || uint64(first)+uint64(count) > protocol.MaxTasks {
		return job, 0, nil, fmt.Errorf("%w: add of %d tasks from %d in %d bytes", protocol.ErrProtocol, count, first, len(b))
	}
	ins = make([]node.TaskInput, count)
	var last []byte // the ids of the task before: neighbours often read the same
	for i := range ins {
		if blobs {
			if len(b) < 2 {
				return job, 0, nil, fmt.Errorf("%w: add ends in task %d of %d", protocol.ErrProtocol, i, count)
			}
			n := int(binary.LittleEndian.Uint16(b))
			if n > protocol.MaxTaskBlobs || len(b) < 2+32*n {
				return job, 0, nil, fmt.Errorf("%w: add: task %d with %d blobs in %d bytes", protocol.ErrProtocol, i, n, len(b))
			}
			ids := b[2 : 2+32*n]
			b = b[2+32*n:]
			switch {
			case n == 0:
			case i > 0 && bytes.Equal(ids, last):
				ins[i].Blobs = ins[i-1].Blobs
			default:
				ins[i].Blobs = make([]protocol.BlobID, n)
				for k := range ins[i].Blobs {
					ins[i].Blobs[k] = protocol.BlobID(ids[32*k:])
				}
			}
			last = ids
		}
		if len(b) < 4 {
			return job, 0, nil, fmt.Errorf("%w: add ends in task %d of %d", protocol.ErrProtocol, i, count)
		}
		n := binary.LittleEndian.Uint32(b)
		b = b[4:]
		if n > MaxInput || uint64(n) > uint64(len(b)) {
			return job, 0, nil, fmt.Errorf("%w: add: input %d of %d bytes in %d", protocol.ErrProtocol, i, n, len(b))
		}
		ins[i].Data = b[:n:n]
		b = b[n:]
	}
	if len(b) != 0 {
		return job, 0, nil, fmt.Errorf("%w: add: %d bytes too many", protocol.ErrProtocol, len(b))
	}
	return job, first, ins, nil
}

func decodeClose(b []byte) (job protocol.JobID, count uint32, err error) {
	if len(b) != 20 {
		return job, 0, fmt.Errorf("%w: close of %d bytes, want 20", protocol.ErrProtocol, len(b))
	}
	return protocol.JobID(b[:16]), binary.LittleEndian.Uint32(b[16:]), nil
}

func decodeWatch(b []byte) (job protocol.JobID, cursor uint32, flags byte, err error) {
	if len(b) != 25 {
		return job, 0, 0, fmt.Errorf("%w: watch of %d bytes, want 25", protocol.ErrProtocol, len(b))
	}
	c := binary.LittleEndian.Uint64(b[16:])
	if c > protocol.MaxTasks {
		return job, 0, 0, fmt.Errorf("%w: watch from %d", protocol.ErrProtocol, c)
	}
	return protocol.JobID(b[:16]), uint32(c), b[24], nil
}

func encodeWatch(job protocol.JobID, cursor uint32, flags byte) []byte {
	b := append([]byte(nil), job[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(cursor))
	return append(b, flags)
}

// wholeJob is the index in ControlCancel that means all of the job.
const wholeJob = math.MaxUint32

func decodeCancel(b []byte) (job protocol.JobID, index *uint32, err error) {
	if len(b) != 20 {
		return job, nil, fmt.Errorf("%w: cancel of %d bytes, want 20", protocol.ErrProtocol, len(b))
	}
	if i := binary.LittleEndian.Uint32(b[16:]); i != wholeJob {
		index = &i
	}
	return protocol.JobID(b[:16]), index, nil
}

// noLimit in ControlGroup: as many as there are slots.
const noLimit = math.MaxUint32

// decodeGroup reads the body of ControlGroup. A negative limit is none.
func decodeGroup(b []byte) (group protocol.JobID, limit int, err error) {
	if len(b) != 20 {
		return group, 0, fmt.Errorf("%w: group of %d bytes, want 20", protocol.ErrProtocol, len(b))
	}
	limit = -1
	if n := binary.LittleEndian.Uint32(b[16:]); n != noLimit {
		limit = int(min(n, math.MaxInt32))
	}
	return protocol.JobID(b[:16]), limit, nil
}

// Result is a terminal task with its input. Error, Output, Log and Input share memory with the frame
// they came in.
type Result struct {
	node.TaskResult
	Input []byte
	// InputLeftOut: the input was asked for and is too large to come with the result.
	InputLeftOut bool
}

// size is about what the result takes in a frame.
func (r *Result) size() int {
	return resultHeader + len(r.Error) + len(r.Output) + len(r.Log) + len(r.Input)
}

// appendResults appends one ControlResults frame with the first results of rs to b, and says how many
// they were: at least one, and no more than fit well into one frame.
func appendResults(b []byte, id uint64, rs []Result) ([]byte, int) {
	n, size := 0, 0
	type worker struct {
		id   protocol.NodeID
		name string
	}
	var workers []worker
	find := func(w worker) int {
		if w.id == "" {
			return noWorker
		}
		for i := len(workers) - 1; i >= 0; i-- {
			if workers[i] == w {
				return i
			}
		}
		return -1
	}
	for n < len(rs) && n < batchTasks {
		s := rs[n].size()
		if n > 0 && size+s > batchBytes {
			break
		}
		if w := (worker{rs[n].Worker, rs[n].Name}); find(w) < 0 {
			if len(workers) == maxWorkers {
				break
			}
			workers = append(workers, w)
		}
		size += s
		n++
	}
	le := binary.LittleEndian
	start := len(b)
	b = protocol.AppendLocal(b, protocol.ControlResults, id)
	b = le.AppendUint32(b, uint32(n))
	b = le.AppendUint16(b, uint16(len(workers)))
	for _, w := range workers {
		b = le.AppendUint16(b, uint16(len(w.id)))
		b = append(b, w.id...)
		b = le.AppendUint16(b, uint16(len(w.name)))
		b = append(b, w.name...)
	}
	for i := range rs[:n] {
		r := &rs[i]
		var flags byte
		if r.InputLeftOut {
			flags |= inputLeftOut
		}
		output := r.Output
		if r.OutputBlob != nil {
			flags |= outputLeftOut
			output = le.AppendUint64(bytes.Clone(r.OutputBlob.Id), r.OutputBlob.Size)
		}
		b = le.AppendUint32(b, r.Seq)
		b = le.AppendUint32(b, r.Index)
		b = append(b, byte(r.Status), flags)
		b = le.AppendUint16(b, uint16(find(worker{r.Worker, r.Name})))
		b = le.AppendUint32(b, uint32(r.ExitCode))
		b = le.AppendUint32(b, r.Attempts)
		b = le.AppendUint64(b, uint64(r.Queued.Microseconds()))
		b = le.AppendUint64(b, uint64(r.Run.Microseconds()))
		b = le.AppendUint32(b, uint32(len(r.Error)))
		b = le.AppendUint32(b, uint32(len(output)))
		b = le.AppendUint32(b, uint32(len(r.Log)))
		b = le.AppendUint32(b, uint32(len(r.Input)))
		b = append(b, r.Error...)
		b = append(b, output...)
		b = append(b, r.Log...)
		b = append(b, r.Input...)
	}
	le.PutUint32(b[start:], uint32(len(b)-start-4))
	return b, n
}

// decodeResults appends the results in the body of a ControlResults frame to rs.
func decodeResults(rs []Result, b []byte) ([]Result, error) {
	le := binary.LittleEndian
	broken := func(what string) ([]Result, error) {
		return nil, fmt.Errorf("%w: results: %s", protocol.ErrProtocol, what)
	}
	if len(b) < 6 {
		return broken("no header")
	}
	count, workers := le.Uint32(b), int(le.Uint16(b[4:]))
	b = b[6:]
	str := func() (string, bool) {
		if len(b) < 2 {
			return "", false
		}
		n := int(le.Uint16(b))
		if len(b) < 2+n {
			return "", false
		}
		s := string(b[2 : 2+n])
		b = b[2+n:]
		return s, true
	}
	if workers > len(b)/4 {
		return broken("too many workers")
	}
	ids, names := make([]protocol.NodeID, workers), make([]string, workers)
	for i := range workers {
		id, ok1 := str()
		name, ok2 := str()
		if !ok1 || !ok2 {
			return broken("the list of workers is cut")
		}
		ids[i], names[i] = protocol.NodeID(id), name
	}
	if uint64(count) > uint64(len(b)/resultHeader) {
		return broken("more results than bytes")
	}
	for range count {
		if len(b) < resultHeader {
			return broken("cut in a header")
		}
		var r Result
		r.Seq, r.Index = le.Uint32(b), le.Uint32(b[4:])
		r.Status = protocol.Status(b[8])
		r.InputLeftOut = b[9]&inputLeftOut != 0
		leftOut := b[9]&outputLeftOut != 0
		if w := int(le.Uint16(b[10:])); w != noWorker {
			if w >= workers {
				return broken("a worker that is not in the list")
			}
			r.Worker, r.Name = ids[w], names[w]
		}
		r.ExitCode = int32(le.Uint32(b[12:]))
		r.Attempts = le.Uint32(b[16:])
		r.Queued = micros(le.Uint64(b[20:]))
		r.Run = micros(le.Uint64(b[28:]))
		ne, no, nl, ni := uint64(le.Uint32(b[36:])), uint64(le.Uint32(b[40:])), uint64(le.Uint32(b[44:])), uint64(le.Uint32(b[48:]))
		b = b[resultHeader:]
		if ne+no+nl+ni > uint64(len(b)) {
			return broken("cut in a result")
		}
		take := func(n uint64) []byte {
			p := b[:n:n]
			b = b[n:]
			return p
		}
		r.Error, r.Output, r.Log, r.Input = string(take(ne)), take(no), take(nl), take(ni)
		if leftOut {
			if no != outputName {
				return broken("an output that is left out has no name")
			}
			r.OutputBlob, r.Output = &protocol.Blob{Id: r.Output[:32:32], Size: le.Uint64(r.Output[32:])}, nil
		}
		rs = append(rs, r)
	}
	if len(b) != 0 {
		return broken("bytes too many")
	}
	return rs, nil
}

func micros(n uint64) time.Duration {
	return time.Duration(min(n, uint64(maxTimeout))) * time.Microsecond
}

// resultJSON is a result as GET /v1/jobs/{id}/tasks/{index} has it.
type resultJSON struct {
	Seq      uint32          `json:"seq"`
	Index    uint32          `json:"index"`
	Status   protocol.Status `json:"status"` // number of job.proto
	ExitCode int32           `json:"exit_code"`
	Error    string          `json:"error"`
	Output   []byte          `json:"output_b64"`
	Log      []byte          `json:"log_b64"`
	Worker   protocol.NodeID `json:"peer"`
	Name     string          `json:"peer_name"`
	Attempts uint32          `json:"attempts"`
	QueuedUS int64           `json:"queued_us"`
	RunUS    int64           `json:"run_us"`

	OutputBlob *blobAnswer `json:"output_blob,omitempty"` // the output, if it is over 16 MiB: output_b64 is empty then
}

func toJSON(r node.TaskResult) resultJSON {
	j := resultJSON{r.Seq, r.Index, r.Status, r.ExitCode, r.Error, r.Output, r.Log, r.Worker, r.Name, r.Attempts,
		r.Queued.Microseconds(), r.Run.Microseconds(), nil}
	if b := r.OutputBlob; b != nil {
		j.OutputBlob = &blobAnswer{hex.EncodeToString(b.Id), int64(b.Size)}
	}
	return j
}

func (j resultJSON) result() node.TaskResult {
	r := node.TaskResult{Seq: j.Seq, Index: j.Index, Status: j.Status, ExitCode: j.ExitCode, Error: j.Error, Output: j.Output, Log: j.Log,
		Worker: j.Worker, Name: j.Name, Attempts: j.Attempts, Queued: time.Duration(j.QueuedUS) * time.Microsecond,
		Run: time.Duration(j.RunUS) * time.Microsecond}
	if b := j.OutputBlob; b != nil {
		id, _ := hex.DecodeString(b.ID)
		r.OutputBlob = &protocol.Blob{Id: id, Size: uint64(b.Size)}
	}
	return r
}

// parsePrefix checks a shortened job id: hexadecimal digits, 32 at most.
func parsePrefix(s string) error {
	padded := s
	if len(padded)%2 == 1 {
		padded += "0"
	}
	if _, err := hex.DecodeString(padded); err != nil || s == "" || len(s) > 32 {
		return fmt.Errorf("%.40q is no job id: want up to 32 hexadecimal digits, or @last", s)
	}
	return nil
}
