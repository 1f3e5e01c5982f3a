package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/cockroachdb/pebble/v2"

	"meshnode/protocol"
	"meshnode/tasks"
)

// The first byte of a key, and for jobs the one after the job. In the order in which Load hands them on.
const (
	kindMeta = 'm'
	kindJob  = 'j'
	kindHeld = 'h'
	kindAway = 'a'
	kindGone = 'g'

	partJob     = 1
	partTasks   = 2
	partClosed  = 3
	partGranted = 4
	partDone    = 5
	partCancel  = 6
	partHalt    = 7
	partTrouble = 8
	partEnded   = 9
)

// Odd numbers in the place of an input's length say what is there instead: a blob, or blobs that come before an input of
// any other form.
const (
	formBlob  = 1
	formBlobs = 3

	blobName = 40 // bytes that a blob's id and size take, about
)

const (
	maxPortion      = 1024     // inputs in one value
	maxPortionBytes = 64 << 10 // a value that has as much gets no further input
)

var (
	keyFormat = []byte("mformat")
	keyEpoch  = []byte("mepoch")
	keyKey    = []byte("mkey")
	keyAwake  = []byte("mawake")
)

func jobKey(b []byte, job protocol.JobID, part byte) []byte {
	b = append(b, kindJob)
	b = append(b, job[:]...)
	return append(b, part)
}

func numberKey(b []byte, job protocol.JobID, part byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32(jobKey(b, job, part), n)
}

// jobStart is the smallest key of a job, jobEnd the smallest after all of them.
func jobStart(b []byte, job protocol.JobID) []byte { return jobKey(b, job, 0) }
func jobEnd(b []byte, job protocol.JobID) []byte   { return jobKey(b, job, 0xff) }

func heldKey(b []byte, origin protocol.NodeID, a protocol.Attempt) []byte {
	b = append(b, kindHeld)
	b = binary.AppendUvarint(b, uint64(len(origin)))
	b = append(b, origin...)
	b = append(b, a.Job[:]...)
	b = binary.BigEndian.AppendUint32(b, a.Index)
	b = binary.BigEndian.AppendUint64(b, a.Epoch)
	return binary.BigEndian.AppendUint32(b, a.N)
}

func goneKey(b []byte, job protocol.JobID) []byte { return append(append(b, kindGone), job[:]...) }

// describe names a key for an error.
func describe(k []byte) string {
	switch {
	case len(k) > 1 && k[0] == kindMeta:
		return fmt.Sprintf("key %q", k[1:])
	case len(k) >= 18 && k[0] == kindJob:
		job, rest := protocol.JobID(k[1:17]), k[18:]
		name := "unknown part"
		switch k[17] {
		case partJob:
			name = "its spec"
		case partTasks:
			name = "inputs"
		case partClosed:
			name = "its count"
		case partGranted:
			return fmt.Sprintf("job %s, grant to %.80q", job, rest)
		case partDone:
			name = "result"
		case partCancel, partHalt:
			name = "its cancel"
		case partTrouble:
			name = "failures of task"
		case partEnded:
			name = "its end"
		}
		if len(rest) == 4 {
			return fmt.Sprintf("job %s, %s %d", job, name, binary.BigEndian.Uint32(rest))
		}
		return fmt.Sprintf("job %s, %s (key %x)", job, name, k)
	}
	return fmt.Sprintf("key %.200x", k)
}

// encoder turns records into writes. They are collected first, so that a record that cannot be encoded leaves no
// half of its Append in the batch.
type encoder struct {
	buf []byte
	ops []op
}

type op struct {
	kind           opKind
	key, mid, stop int // key is buf[key:mid], value or end of range buf[mid:stop]
}

type opKind byte

const (
	opSet opKind = iota
	opDelete
	opDeleteRange
)

func (e *encoder) reset() {
	if cap(e.buf) > 1<<20 {
		e.buf = nil // one large Append must not hold its memory for ever
	}
	e.buf, e.ops = e.buf[:0], e.ops[:0]
}

// set appends a write: its key must be buf[start:mid], its value the rest of buf.
func (e *encoder) add(kind opKind, start, mid int) {
	e.ops = append(e.ops, op{kind, start, mid, len(e.buf)})
}

func (e *encoder) record(r tasks.Record) error {
	start := len(e.buf)
	switch r := r.(type) {
	case tasks.EpochRecord:
		e.buf = append(e.buf, keyEpoch...)
		mid := len(e.buf)
		e.buf = binary.BigEndian.AppendUint64(e.buf, r.Epoch)
		e.add(opSet, start, mid)
	case tasks.JobRecord:
		if r.Spec == nil {
			return errors.New("job without a spec")
		}
		job, err := protocol.JobIDFrom(r.Spec.Job)
		if err != nil {
			return err
		}
		e.buf = jobKey(e.buf, job, partJob)
		return e.message(start, r.Spec)
	case tasks.TasksRecord:
		return e.inputs(r)
	case tasks.ClosedRecord:
		e.buf = jobKey(e.buf, r.Job, partClosed)
		mid := len(e.buf)
		e.buf = binary.BigEndian.AppendUint32(e.buf, r.Count)
		e.add(opSet, start, mid)
	case tasks.GrantedRecord:
		e.buf = append(jobKey(e.buf, r.Job, partGranted), r.Worker...)
		e.add(opSet, start, len(e.buf))
	case tasks.DoneRecord:
		if r.Done == nil || r.Done.Outcome == nil {
			return fmt.Errorf("done task of job %s without an outcome", r.Job)
		}
		e.buf = numberKey(e.buf, r.Job, partDone, r.Done.Seq)
		mid := len(e.buf)
		e.buf = binary.AppendUvarint(e.buf, uint64(r.Done.Attempts))
		e.buf = binary.AppendUvarint(e.buf, uint64(len(r.Done.Worker)))
		e.buf = append(e.buf, r.Done.Worker...)
		return e.messageAt(start, mid, r.Done.Outcome)
	case tasks.CancelRecord:
		part := byte(partCancel)
		if r.Halted {
			part = partHalt
		}
		e.buf = jobKey(e.buf, r.Job, part)
		mid := len(e.buf)
		e.buf = append(e.buf, r.Reason...)
		e.add(opSet, start, mid)
	case tasks.TroubleRecord:
		e.buf = numberKey(e.buf, r.Job, partTrouble, r.Index)
		mid := len(e.buf)
		for _, x := range []uint64{uint64(r.Attempts), uint64(r.Failed), uint64(r.Deaths), uint64(r.Losses), r.Last.Epoch, uint64(r.Last.N)} {
			e.buf = binary.AppendUvarint(e.buf, x)
		}
		e.add(opSet, start, mid)
	case tasks.EndedRecord:
		e.number(start, jobKey(e.buf, r.Job, partEnded), r.At)
	case tasks.ForgetRecord:
		e.buf = jobStart(e.buf, r.Job)
		mid := len(e.buf)
		e.buf = jobEnd(e.buf, r.Job)
		e.add(opDeleteRange, start, mid)
		e.number(len(e.buf), goneKey(e.buf, r.Job), r.Until)
	case tasks.ReusableRecord:
		e.buf = goneKey(e.buf, r.Job)
		e.add(opDelete, start, len(e.buf))
	case tasks.AwakeRecord:
		e.number(start, append(e.buf, keyAwake...), r.Awake)
	case tasks.AwayRecord:
		if r.Since < 0 {
			e.buf = append(append(e.buf, kindAway), r.Origin...)
			e.add(opDelete, start, len(e.buf))
			return nil
		}
		e.number(start, append(append(e.buf, kindAway), r.Origin...), r.Since)
	case tasks.HeldRecord:
		if r.Outcome == nil {
			return fmt.Errorf("held attempt of %s without an outcome", r.Origin)
		}
		if _, err := protocol.JobIDFrom(r.Outcome.Job); err != nil {
			return err
		}
		e.buf = heldKey(e.buf, r.Origin, r.Outcome.AttemptOf())
		return e.message(start, r.Outcome)
	case tasks.AnsweredRecord:
		e.buf = heldKey(e.buf, r.Origin, r.Attempt)
		e.add(opDelete, start, len(e.buf))
	default:
		return fmt.Errorf("no such record: %T", r)
	}
	return nil
}

// number adds a write of n, once the key was appended.
func (e *encoder) number(start int, withKey []byte, n int64) {
	e.buf = binary.BigEndian.AppendUint64(withKey, uint64(n))
	e.add(opSet, start, len(withKey))
}

func (e *encoder) message(start int, m proto.Message) error { return e.messageAt(start, len(e.buf), m) }

func (e *encoder) messageAt(start, mid int, m proto.Message) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(e.buf, m)
	if err != nil {
		return err
	}
	e.buf = b
	e.add(opSet, start, mid)
	return nil
}

func (e *encoder) inputs(r tasks.TasksRecord) error {
	first, inputs := r.First, r.Inputs
	if uint64(first)+uint64(len(inputs)) > math.MaxUint32 {
		return fmt.Errorf("job %s: inputs from %d on: too many", r.Job, first)
	}
	for len(inputs) > 0 {
		n, size := 0, 0
		for n < len(inputs) && n < maxPortion && size < maxPortionBytes {
			size += len(inputs[n].Data) + len(inputs[n].Blobs)*blobName
			n++
		}
		start := len(e.buf)
		e.buf = numberKey(e.buf, r.Job, partTasks, first)
		mid := len(e.buf)
		e.buf = binary.AppendUvarint(e.buf, uint64(n))
		for _, in := range inputs[:n] {
			if len(in.Blobs) > 0 {
				e.buf = append(e.buf, formBlobs)
				e.buf = binary.AppendUvarint(e.buf, uint64(len(in.Blobs)))
				for _, b := range in.Blobs {
					if err := e.blob(r.Job, b); err != nil {
						return err
					}
				}
			}
			if in.Blob == nil {
				e.buf = binary.AppendUvarint(e.buf, uint64(len(in.Data))<<1)
				e.buf = append(e.buf, in.Data...)
				continue
			}
			e.buf = append(e.buf, formBlob)
			if err := e.blob(r.Job, in.Blob); err != nil {
				return err
			}
		}
		e.add(opSet, start, mid)
		first, inputs = first+uint32(n), inputs[n:]
	}
	return nil
}

func (e *encoder) blob(job protocol.JobID, b *protocol.Blob) error {
	if len(b.GetId()) != 32 {
		return fmt.Errorf("job %s: input blob with an id of %d bytes: want 32", job, len(b.GetId()))
	}
	e.buf = append(e.buf, b.Id...)
	e.buf = binary.AppendUvarint(e.buf, b.Size)
	return nil
}

// write puts all that was encoded into b, in order.
func (e *encoder) write(b *pebble.Batch) error {
	for _, o := range e.ops {
		k, v := e.buf[o.key:o.mid], e.buf[o.mid:o.stop]
		var err error
		switch o.kind {
		case opSet:
			err = b.Set(k, v, nil)
		case opDelete:
			err = b.Delete(k, nil)
		case opDeleteRange:
			err = b.DeleteRange(k, v, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var errShort = errors.New("value ends early")

func uvarint(b []byte) (uint64, []byte, error) {
	x, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errShort
	}
	return x, b[n:], nil
}

// decodeInputs reads a portion of inputs. It keeps v: their bytes are slices of it.
func decodeInputs(v []byte) ([]tasks.Input, error) {
	count, v, err := uvarint(v)
	if err != nil {
		return nil, err
	}
	if count > uint64(len(v)) { // an input takes a byte at least
		return nil, errShort
	}
	ins := make([]tasks.Input, count)
	var last []*protocol.Blob // of the input before: neighbours often read the same, and share it then
	for i := range ins {
		var x uint64
		if x, v, err = uvarint(v); err != nil {
			return nil, err
		}
		if x == formBlobs {
			var n uint64
			if n, v, err = uvarint(v); err != nil {
				return nil, err
			}
			if n == 0 || n > protocol.MaxTaskBlobs {
				return nil, fmt.Errorf("input with %d blobs", n)
			}
			blobs := make([]*protocol.Blob, n)
			for k := range blobs {
				if blobs[k], v, err = decodeBlob(v); err != nil {
					return nil, err
				}
			}
			if slices.EqualFunc(blobs, last, func(a, b *protocol.Blob) bool { return string(a.Id) == string(b.Id) && a.Size == b.Size }) {
				blobs = last
			}
			ins[i].Blobs, last = blobs, blobs
			if x, v, err = uvarint(v); err != nil {
				return nil, err
			}
		}
		switch {
		case x == formBlob:
			if ins[i].Blob, v, err = decodeBlob(v); err != nil {
				return nil, err
			}
		case x&1 != 0:
			return nil, fmt.Errorf("input of an unknown form %d", x)
		case x>>1 > uint64(len(v)):
			return nil, errShort
		case x > 0:
			ins[i].Data, v = v[:x>>1:x>>1], v[x>>1:]
		}
	}
	if len(v) > 0 {
		return nil, fmt.Errorf("%d bytes after the last input", len(v))
	}
	return ins, nil
}

// decodeBlob reads the name of a blob; it keeps nothing of v.
func decodeBlob(v []byte) (*protocol.Blob, []byte, error) {
	if len(v) < 32 {
		return nil, nil, errShort
	}
	size, rest, err := uvarint(v[32:])
	return &protocol.Blob{Id: append([]byte(nil), v[:32]...), Size: size}, rest, err
}

// decodeDone reads a result; it keeps nothing of v.
func decodeDone(seq uint32, v []byte) (*tasks.Done, error) {
	attempts, v, err := uvarint(v)
	if err != nil {
		return nil, err
	}
	n, v, err := uvarint(v)
	if err != nil {
		return nil, err
	}
	if attempts > math.MaxUint32 || n > uint64(len(v)) {
		return nil, errShort
	}
	d := &tasks.Done{Seq: seq, Worker: protocol.NodeID(v[:n]), Attempts: uint32(attempts), Outcome: &protocol.Outcome{}}
	if err := proto.Unmarshal(v[n:], d.Outcome); err != nil {
		return nil, err
	}
	return d, nil
}

func decodeTrouble(job protocol.JobID, index uint32, v []byte) (tasks.Record, error) {
	r := tasks.TroubleRecord{Job: job, Index: index, Last: protocol.Attempt{Job: job, Index: index}}
	for _, to := range []*uint32{&r.Attempts, &r.Failed, &r.Deaths, &r.Losses, nil, &r.Last.N} {
		x, rest, err := uvarint(v)
		switch {
		case err != nil:
			return nil, err
		case to == nil:
			r.Last.Epoch = x
		case x > math.MaxUint32:
			return nil, fmt.Errorf("a number of %d: too large", x)
		default:
			*to = uint32(x)
		}
		v = rest
	}
	if len(v) > 0 {
		return nil, fmt.Errorf("%d bytes after the last number", len(v))
	}
	return r, nil
}

// decodeJobPart reads a record from the key of a job (which begins j, job) and its value, of which it keeps nothing.
func decodeJobPart(k, v []byte) (tasks.Record, error) {
	if len(k) < 18 || k[0] != kindJob {
		return nil, errors.New("malformed key")
	}
	job, part, rest := protocol.JobID(k[1:17]), k[17], k[18:]
	want := 0
	if part == partTasks || part == partDone || part == partTrouble {
		want = 4
	}
	if part != partGranted && len(rest) != want {
		return nil, errors.New("malformed key")
	}
	switch part {
	case partJob:
		spec := &protocol.Job{}
		if err := proto.Unmarshal(v, spec); err != nil {
			return nil, err
		}
		if id, err := protocol.JobIDFrom(spec.Job); err != nil || id != job {
			return nil, fmt.Errorf("spec of another job: %x", spec.Job)
		}
		return tasks.JobRecord{Spec: spec}, nil
	case partTasks:
		ins, err := decodeInputs(append([]byte(nil), v...))
		if err != nil {
			return nil, err
		}
		return tasks.TasksRecord{Job: job, First: binary.BigEndian.Uint32(rest), Inputs: ins}, nil
	case partClosed:
		if len(v) != 4 {
			return nil, fmt.Errorf("count of %d bytes: want 4", len(v))
		}
		return tasks.ClosedRecord{Job: job, Count: binary.BigEndian.Uint32(v)}, nil
	case partGranted:
		return tasks.GrantedRecord{Job: job, Worker: protocol.NodeID(rest)}, nil
	case partDone:
		d, err := decodeDone(binary.BigEndian.Uint32(rest), v)
		if err != nil {
			return nil, err
		}
		return tasks.DoneRecord{Job: job, Done: d}, nil
	case partCancel:
		return tasks.CancelRecord{Job: job, Reason: string(v)}, nil
	case partHalt:
		return tasks.CancelRecord{Job: job, Reason: string(v), Halted: true}, nil
	case partTrouble:
		return decodeTrouble(job, binary.BigEndian.Uint32(rest), v)
	case partEnded:
		n, err := decodeNumber(v)
		return tasks.EndedRecord{Job: job, At: n}, err
	}
	return nil, fmt.Errorf("unknown part %d", part)
}

// decodeNumber reads an awake time.
func decodeNumber(v []byte) (int64, error) {
	if len(v) != 8 {
		return 0, fmt.Errorf("awake time of %d bytes: want 8", len(v))
	}
	n := binary.BigEndian.Uint64(v)
	if n > math.MaxInt64/2 {
		return 0, fmt.Errorf("awake time %d", n)
	}
	return int64(n), nil
}

// decodeOther reads a record that is of no job that is there; it keeps nothing of its arguments.
func decodeOther(k, v []byte) (tasks.Record, error) {
	if len(k) == 0 || k[0] == kindHeld {
		return decodeHeld(k, v)
	}
	n, err := decodeNumber(v)
	switch {
	case err != nil:
		return nil, err
	case k[0] == kindAway:
		return tasks.AwayRecord{Origin: protocol.NodeID(k[1:]), Since: n}, nil
	case k[0] == kindGone && len(k) == 17:
		return tasks.ForgetRecord{Job: protocol.JobID(k[1:]), Until: n}, nil
	case string(k) == string(keyAwake):
		return tasks.AwakeRecord{Awake: n}, nil
	}
	return nil, errors.New("malformed key")
}

// decodeHeld reads a held outcome; it keeps nothing of its arguments.
func decodeHeld(k, v []byte) (tasks.Record, error) {
	if len(k) == 0 || k[0] != kindHeld {
		return nil, errors.New("malformed key")
	}
	n, rest, err := uvarint(k[1:])
	if err != nil || n > uint64(len(rest)) || uint64(len(rest))-n != 16+4+8+4 {
		return nil, errors.New("malformed key")
	}
	o := &protocol.Outcome{}
	if err := proto.Unmarshal(v, o); err != nil {
		return nil, err
	}
	r := tasks.HeldRecord{Origin: protocol.NodeID(rest[:n]), Outcome: o}
	if string(heldKey(nil, r.Origin, o.AttemptOf())) != string(k) {
		return nil, errors.New("outcome of another attempt")
	}
	return r, nil
}
