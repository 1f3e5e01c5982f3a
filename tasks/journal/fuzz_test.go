package journal

import (
	"encoding/binary"
	"testing"

	"meshnode/protocol"
	"meshnode/tasks"
)

// Any key and value gives a record or an error, and a record that is written again reads as the same.
func FuzzDecode(f *testing.F) {
	var e encoder
	a := job(1)
	for _, r := range []tasks.Record{tasks.JobRecord{Spec: &protocol.Job{Job: a[:], Name: "x"}}, tasks.ClosedRecord{Job: a, Count: 3},
		tasks.TasksRecord{Job: a, Inputs: append(inputs(0, 3), tasks.Input{Blob: &protocol.Blob{Id: make([]byte, 32), Size: 1 << 40}})},
		tasks.TasksRecord{Job: a, Inputs: []tasks.Input{{Data: []byte("x"), Blobs: []*protocol.Blob{{Id: make([]byte, 32), Size: 9}, {Id: make([]byte, 32)}}}, {Data: []byte("y")}}},
		tasks.GrantedRecord{Job: a, Worker: "w"}, done(a, 7, 8), tasks.CancelRecord{Job: a, Reason: "no"}, tasks.CancelRecord{Job: a, Reason: "so many", Halted: true},
		trouble(a, 7), tasks.HeldRecord{Origin: "o", Outcome: outcome(a, 5)},
		tasks.EndedRecord{Job: a, At: 9}, tasks.AwakeRecord{Awake: 9}, tasks.AwayRecord{Origin: "o", Since: 9}} {
		e.reset()
		if err := e.record(r); err != nil {
			f.Fatal(err)
		}
		o := e.ops[0]
		f.Add(append([]byte(nil), e.buf[o.key:o.mid]...), append([]byte(nil), e.buf[o.mid:o.stop]...))
	}
	f.Add(numberKey(nil, a, partTasks, 0), binary.AppendUvarint(nil, 1<<40-1)) // more inputs than there is memory
	f.Add(numberKey(nil, a, partTasks, 0), binary.AppendUvarint([]byte{1}, 1<<40))
	f.Add(numberKey(nil, a, partDone, 0), binary.AppendUvarint([]byte{1}, 1<<63))
	f.Add(append([]byte{kindHeld}, binary.AppendUvarint(nil, 1<<63)...), []byte{})
	f.Fuzz(func(t *testing.T, k, v []byte) {
		_ = describe(k)
		decode := decodeJobPart
		if len(k) > 0 && k[0] != kindJob {
			decode = decodeOther
		}
		r, err := decode(k, v)
		if err != nil {
			return
		}
		var e encoder
		if err := e.record(r); err != nil {
			if tr, ok := r.(tasks.TasksRecord); ok && uint64(tr.First)+uint64(len(tr.Inputs)) >= 1<<32 {
				return // indices that no job has
			}
			t.Fatalf("%x %x is %v, which cannot be written: %v", k, v, text(r), err)
		}
		if _, ok := r.(tasks.ForgetRecord); ok {
			return // it deletes, too
		}
		for _, o := range e.ops { // more than one if the portion was larger than ours
			if _, err := decode(e.buf[o.key:o.mid], e.buf[o.mid:o.stop]); err != nil {
				t.Fatalf("%v reads, and not again: %v", text(r), err)
			}
		}
		if len(e.ops) != 1 {
			return
		}
		again, err := decode(e.buf[:e.ops[0].mid], e.buf[e.ops[0].mid:])
		if err != nil || text(again) != text(r) {
			t.Fatalf("%v became %v, %v", text(r), text(again), err)
		}
	})
}
