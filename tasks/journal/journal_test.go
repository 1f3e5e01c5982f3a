package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
	"meshnode/tasks"
)

// start opens the journal and runs it; stop ends it, and fails the test if that fails.
func start(t testing.TB, dir string, c Config) (j *Journal, stop func()) {
	t.Helper()
	j, err := Open(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	stopped := false
	stop = func() {
		t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-ran:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("Run does not return")
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return j, stop
}

func must(t testing.TB, j *Journal, sync bool, rs ...tasks.Record) uint64 {
	t.Helper()
	n, err := j.Append(rs, sync)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func wait(t testing.TB, j *Journal, n uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := j.Wait(ctx, n); err != nil {
		t.Fatal(err)
	}
}

func job(b byte) protocol.JobID { return protocol.JobID{b, 1, 2, 3} }

func inputs(from, n int) []tasks.Input {
	ins := make([]tasks.Input, n)
	for i := range ins {
		ins[i].Data = fmt.Appendf(nil, "input %d", from+i)
	}
	return ins
}

func outcome(j protocol.JobID, index uint32) *protocol.Outcome {
	return &protocol.Outcome{Job: j[:], Index: index, Epoch: 3, N: 1, Mac: make([]byte, 16), Status: protocol.Status_OK,
		Output: fmt.Appendf(nil, "output %d", index), RunUs: 1234}
}

func done(j protocol.JobID, seq, index uint32) tasks.DoneRecord {
	return tasks.DoneRecord{Job: j, Done: &tasks.Done{Seq: seq, Outcome: outcome(j, index), Worker: "12D3KooWworker", Attempts: 2}}
}

func trouble(j protocol.JobID, index uint32) tasks.TroubleRecord {
	return tasks.TroubleRecord{Job: j, Index: index, Attempts: 300, Last: protocol.Attempt{Job: j, Index: index, Epoch: 1 << 40, N: 9},
		Failed: 1 << 20, Deaths: 3, Losses: 2}
}

// text writes records in a form that can be compared; portions of tasks are written input by input.
func text(r tasks.Record) string {
	m := func(m proto.Message) string {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		return fmt.Sprintf("%x %v", b, err)
	}
	switch r := r.(type) {
	case tasks.JobRecord:
		return "job " + m(r.Spec)
	case tasks.TasksRecord:
		var b strings.Builder
		for i, in := range r.Inputs {
			for _, x := range in.Blobs {
				fmt.Fprintf(&b, "task %s/%d reads %s\n", r.Job, r.First+uint32(i), m(x))
			}
			if in.Blob != nil {
				fmt.Fprintf(&b, "task %s/%d blob %s\n", r.Job, r.First+uint32(i), m(in.Blob))
			} else {
				fmt.Fprintf(&b, "task %s/%d %q\n", r.Job, r.First+uint32(i), in.Data)
			}
		}
		return strings.TrimSuffix(b.String(), "\n")
	case tasks.DoneRecord:
		return fmt.Sprintf("done %s %d %s %d %s", r.Job, r.Done.Seq, r.Done.Worker, r.Done.Attempts, m(r.Done.Outcome))
	case tasks.HeldRecord:
		return fmt.Sprintf("held %s %s", r.Origin, m(r.Outcome))
	}
	return fmt.Sprintf("%T %+v", r, r)
}

func load(t testing.TB, j *Journal) []string {
	t.Helper()
	var out []string
	if err := j.Load(func(r tasks.Record) error { out = append(out, strings.Split(text(r), "\n")...); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func texts(rs ...tasks.Record) (out []string) {
	for _, r := range rs {
		out = append(out, strings.Split(text(r), "\n")...)
	}
	return out
}

func same(t testing.TB, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "nothing", "nothing"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Fatalf("record %d of %d, want %d\n got %.300s\nwant %.300s", i, len(got), len(want), g, w)
		}
	}
}

// All kinds of records, appended in an order of life, come back in the order that Restore wants.
func TestReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, stop := start(t, dir, Config{})
	if e, err := j.Epoch(); e != 1 || err != nil {
		t.Fatal(e, err)
	}
	key := j.Key()
	a, b, c := job(1), job(2), job(3)
	spec := func(id protocol.JobID) tasks.JobRecord {
		return tasks.JobRecord{Spec: &protocol.Job{Job: id[:], Name: "primes", Detached: true,
			Program: &protocol.Program{Runtime: "wasm", Code: &protocol.Blob{Id: make([]byte, 32), Size: 7}, Args: []string{"{}"}}}}
	}
	big := tasks.TasksRecord{Job: a, First: 0, Inputs: inputs(0, 3000)}
	big.Inputs[5] = tasks.Input{Blob: &protocol.Blob{Id: make([]byte, 32), Size: 1 << 40}}
	big.Inputs[6] = tasks.Input{}
	shared := []*protocol.Blob{{Id: bytes.Repeat([]byte{1}, 32), Size: 200 << 20}, {Id: bytes.Repeat([]byte{2}, 32)}}
	big.Inputs[8].Blobs, big.Inputs[9].Blobs = shared, shared
	big.Inputs[10] = tasks.Input{Blob: shared[1], Blobs: shared[:1]}
	big.Inputs[7] = tasks.Input{Data: make([]byte, protocol.MaxInline)}
	more := tasks.TasksRecord{Job: a, First: 3000, Inputs: inputs(3000, 1)}
	held := tasks.HeldRecord{Origin: "origin", Outcome: outcome(c, 9)}
	gone := tasks.HeldRecord{Origin: "origin", Outcome: outcome(c, 10)}

	must(t, j, false, spec(b), spec(a), big, held)
	must(t, j, false, tasks.GrantedRecord{Job: a, Worker: "worker-1"}, done(a, 0, 17), gone)
	must(t, j, true, more, tasks.ClosedRecord{Job: a, Count: 3001}, done(a, 1, 300), done(a, 2, 256), tasks.GrantedRecord{Job: a, Worker: "worker-2"})
	must(t, j, false, spec(c), tasks.TasksRecord{Job: c, Inputs: inputs(0, 10)}, done(c, 0, 1))
	must(t, j, false, tasks.AnsweredRecord{Origin: "origin", Attempt: gone.Outcome.AttemptOf()})
	must(t, j, false, tasks.ForgetRecord{Job: c, Until: 1 << 40}, tasks.ForgetRecord{Job: job(4), Until: 3}, tasks.ReusableRecord{Job: job(4)})
	must(t, j, false, tasks.EndedRecord{Job: b, At: 12345}, tasks.AwakeRecord{Awake: 5}, tasks.AwakeRecord{Awake: 7},
		tasks.AwayRecord{Origin: "origin", Since: 6}, tasks.AwayRecord{Origin: "other", Since: 0}, tasks.AwayRecord{Origin: "other", Since: -1})
	must(t, j, false, tasks.EpochRecord{Epoch: 41}, tasks.CancelRecord{Job: b, Reason: "by hand"},
		tasks.CancelRecord{Job: a, Reason: "too many failed", Halted: true}, trouble(a, 2), trouble(a, 9))
	must(t, j, false, trouble(a, 2)) // again
	must(t, j, false, tasks.EpochRecord{Epoch: 7})
	stop() // syncs what nobody waited for
	if _, err := j.Append(nil, true); !errors.Is(err, ErrClosed) {
		t.Errorf("Append after the end: %v", err)
	}
	if _, err := j.Result(a, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("Result after the end: %v", err)
	}

	j, _ = start(t, dir, Config{})
	if j.Key() != key || key == [32]byte{} {
		t.Error("the key changed, or was never made")
	}
	if e, err := j.Epoch(); e != 42 || err != nil {
		t.Errorf("epoch %d, %v; want 42", e, err)
	}
	same(t, load(t, j), texts(tasks.EpochRecord{Epoch: 42}, tasks.AwakeRecord{Awake: 7}, tasks.ForgetRecord{Job: c, Until: 1 << 40},
		spec(a), big, more, tasks.ClosedRecord{Job: a, Count: 3001}, tasks.GrantedRecord{Job: a, Worker: "worker-1"},
		tasks.GrantedRecord{Job: a, Worker: "worker-2"}, done(a, 0, 17), done(a, 1, 300), done(a, 2, 256),
		tasks.CancelRecord{Job: a, Reason: "too many failed", Halted: true}, trouble(a, 2), trouble(a, 9),
		spec(b), tasks.CancelRecord{Job: b, Reason: "by hand"}, tasks.EndedRecord{Job: b, At: 12345}, held, tasks.AwayRecord{Origin: "origin", Since: 6}))

	// The same job id may come again after it was forgotten, in one batch even.
	must(t, j, false, tasks.ForgetRecord{Job: a}, spec(a), done(a, 5, 1))
	r, err := j.Results(a, 0, 10, 1<<20)
	if err != nil || len(r) != 1 || r[0].Seq != 5 {
		t.Errorf("after forget and a new start: %v %v", r, err)
	}
}

func TestLoadStopsAtError(t *testing.T) {
	t.Parallel()
	j, _ := start(t, t.TempDir(), Config{})
	a := job(1)
	wait(t, j, must(t, j, true, tasks.JobRecord{Spec: &protocol.Job{Job: a[:]}}, done(a, 0, 0), done(a, 1, 1)))
	n, stopped := 0, errors.New("enough")
	err := j.Load(func(tasks.Record) error {
		if n++; n == 2 {
			return stopped
		}
		return nil
	})
	if err != stopped || n != 2 {
		t.Errorf("%d records, %v", n, err)
	}
}

// What was appended can be read at once, from any cursor.
func TestRead(t *testing.T) {
	t.Parallel()
	j, _ := start(t, t.TempDir(), Config{})
	a, b := job(1), job(2)
	for _, id := range []protocol.JobID{a, b} {
		rs := []tasks.Record{tasks.TasksRecord{Job: id, Inputs: inputs(0, 2500)}, tasks.TasksRecord{Job: id, First: 2500, Inputs: inputs(2500, 500)}}
		for i := range uint32(300) {
			rs = append(rs, done(id, i, 2*i))
		}
		must(t, j, false, rs...)
	}
	for _, c := range []struct {
		from          uint64
		max, maxBytes int
		want          int
	}{{0, 1000, 1 << 20, 300}, {0, 7, 1 << 20, 7}, {255, 1000, 1 << 20, 45}, {299, 2, 1, 1}, {300, 2, 1, 0}, {1 << 32, 2, 1, 0},
		{5, 1000, 1, 1}, {5, 1000, 0, 1}, {10, 1000, len("output 20") + 1, 2}, {0, 0, 1, 0}} {
		got, err := j.Results(a, c.from, c.max, c.maxBytes)
		if err != nil || len(got) != c.want {
			t.Errorf("%+v: %d, %v", c, len(got), err)
		}
		for i, d := range got {
			if d.Seq != uint32(c.from)+uint32(i) || d.Outcome.Index != 2*d.Seq || d.Attempts != 2 || d.Worker != "12D3KooWworker" {
				t.Errorf("%+v: %d is %v", c, i, d)
			}
		}
	}
	if d, err := j.Result(b, 299); err != nil || d.Outcome.Index != 598 {
		t.Error(d, err)
	}
	if _, err := j.Result(b, 300); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	const all = 1 << 30
	for _, c := range []struct{ first, n, bytes, want int }{{0, 3000, all, 3000}, {0, 1, all, 1}, {1023, 2, all, 2}, {1024, 1, all, 1}, {2499, 3, all, 3}, {2999, 100, all, 1},
		{17, 0, all, 0}, {1, 9999, all, 2999}, {1, 9999, 0, 1}, {1023, 9999, 1, 1}, {1022, 9999, len("input 1022") + 1, 2}, {1022, 9999, 2 * len("input 1022"), 2}} {
		ins, err := j.Inputs(a, uint32(c.first), c.n, c.bytes)
		if err != nil || len(ins) != c.want {
			t.Errorf("%+v: %d, %v", c, len(ins), err)
		}
		for i, in := range ins {
			if want := fmt.Sprintf("input %d", c.first+i); string(in.Data) != want {
				t.Errorf("%+v: %q, want %q", c, in.Data, want)
			}
		}
	}
	for _, c := range []struct {
		job   protocol.JobID
		first uint32
	}{{a, 3000}, {a, 1<<32 - 1}, {job(3), 0}, {job(0), 0}} {
		if ins, err := j.Inputs(c.job, c.first, 5, 1<<30); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v: %d inputs, %v", c, len(ins), err)
		}
	}
}

// A record that cannot be encoded leaves nothing of its Append behind, and harms no other.
func TestBadRecord(t *testing.T) {
	t.Parallel()
	j, _ := start(t, t.TempDir(), Config{})
	a := job(1)
	good := done(a, 0, 0)
	for _, bad := range []tasks.Record{
		tasks.JobRecord{}, tasks.JobRecord{Spec: &protocol.Job{Job: []byte("short")}}, tasks.JobRecord{Spec: &protocol.Job{Job: a[:], Name: "\xff"}},
		tasks.DoneRecord{Job: a}, tasks.DoneRecord{Job: a, Done: &tasks.Done{}}, tasks.HeldRecord{}, tasks.HeldRecord{Outcome: &protocol.Outcome{}},
		tasks.TasksRecord{Job: a, Inputs: []tasks.Input{{Blob: &protocol.Blob{Id: []byte("x")}}}},
		tasks.TasksRecord{Job: a, First: 1<<32 - 1, Inputs: inputs(0, 1)}, &tasks.EpochRecord{}, nil,
	} {
		if _, err := j.Append([]tasks.Record{good, bad}, true); err == nil {
			t.Errorf("%T %v was taken", bad, bad)
		}
	}
	n := must(t, j, true, done(a, 1, 1))
	if n != 1 {
		t.Errorf("number %d: a refused call must not count", n)
	}
	wait(t, j, n)
	if r, err := j.Results(a, 0, 10, 1<<20); err != nil || len(r) != 1 || r[0].Seq != 1 {
		t.Errorf("%v %v", r, err)
	}
}

// Without a request a batch is synced soon, too, and numbers are reported rising.
func TestSyncedSoon(t *testing.T) {
	t.Parallel()
	j, _ := start(t, t.TempDir(), Config{})
	for range 3 {
		n := must(t, j, false, done(job(1), 0, 0))
		limit := time.After(20 * time.Second)
		for got := uint64(0); got < n; {
			select {
			case s := <-j.Synced():
				if s <= got || s > n {
					t.Fatalf("synced %d after %d, appended %d", s, got, n)
				}
				got = s
			case <-limit:
				t.Fatal("not synced")
			}
		}
	}
	// An empty sync covers all before.
	must(t, j, false, done(job(1), 1, 1))
	wait(t, j, must(t, j, true))
	if n := must(t, j, false); n != 6 {
		t.Errorf("number %d, want 6", n)
	}
}

func TestLockedAndNewer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, stop := start(t, dir, Config{})
	oneLine := func(err error, has string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), has) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v: want one line with %q and the folder", err, has)
		}
	}
	_, err := Open(dir, Config{})
	oneLine(err, "in use by another process")
	stop()
	db, err := pebble.Open(dir, &pebble.Options{FormatMajorVersion: pebble.FormatNewest, Logger: pebbleLogger{log: discard, failure: newFailure(dir)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Set(keyFormat, []byte{0, 0, 0, 2}, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a refused Open lets go of the lock
		_, err = Open(dir, Config{})
		oneLine(err, "newer version")
	}
	_, err = Open(dir+"/LOCK/x", Config{}) // LOCK is a file
	oneLine(err, "not a directory")
}
