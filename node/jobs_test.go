package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/blob"
)

// However many large outputs a job has, only few of them are in memory for one client.
func TestLargeOutputsAreDeliveredInPortions(t *testing.T) {
	t.Parallel()
	store, err := blob.Open(t.TempDir(), blob.Config{})
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{blobs: store}
	var ds []*tasks.Done
	for i := range 10 {
		b, err := store.Put(context.Background(), bytes.NewReader(bytes.Repeat([]byte{byte(i)}, 600<<10)))
		if err != nil {
			t.Fatal(err)
		}
		ds = append(ds, &tasks.Done{Seq: uint32(i), Outcome: &protocol.Outcome{Index: uint32(i), OutputBlob: b}})
	}
	ds = append(ds, &tasks.Done{Seq: 10, Outcome: &protocol.Outcome{Index: 10, Output: []byte("small")}})
	next := uint32(0)
	err = n.deliver(ds, protocol.MaxOutput, func(rs []TaskResult) error {
		size := 0
		for _, r := range rs {
			if r.Seq != next {
				t.Errorf("result %d, want %d", r.Seq, next)
			}
			next++
			size += len(r.Output)
		}
		if size > watchBytes {
			t.Errorf("%d bytes at once, at most %d", size, watchBytes)
		}
		return nil
	})
	if err != nil || next != 11 {
		t.Errorf("%d of 11 delivered, %v", next, err)
	}
}

// A job's close is accepted when it is on disk itself, not when the tasks before it are.
func TestCloseWaitsForItsOwnSync(t *testing.T) {
	t.Parallel()
	l := &loop{jobs: map[protocol.JobID]*jobWatch{}, scheduler: idleScheduler(t)}
	id := protocol.JobID{1}
	spec := &protocol.Job{Job: id[:], Detached: true, Program: &protocol.Program{}}
	step := func(ev tasks.Event) tasks.Notice {
		if err := l.scheduler.Step(0, ev); err != nil {
			t.Fatal(err)
		}
		for _, nt := range l.scheduler.Ready().Notices {
			if nt.Kind == tasks.Accepted {
				return nt
			}
		}
		t.Fatalf("%T is not accepted", ev)
		return tasks.Notice{}
	}
	tasksAccepted := step(tasks.Submit{Job: id, Spec: spec, Inputs: make([]tasks.Input, 2)})
	closeAccepted := step(tasks.Submit{Job: id, First: 2, Close: true, Count: 2})
	c := make(chan struct{})
	l.job(id).accepted = []chan<- struct{}{c}
	isTold := func() bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	if l.notice(tasksAccepted); isTold() {
		t.Error("told when only the tasks were on disk")
	}
	if l.notice(closeAccepted); !isTold() {
		t.Error("not told")
	}
}

// Nothing is kept for a job that has ended, or never was.
func TestNothingIsKeptOfEndedJobs(t *testing.T) {
	t.Parallel()
	n := start(t, "a", 1)
	submit(t, n, "sum_primes.wasm", [][]byte{[]byte("10"), bytes.Repeat([]byte("1"), protocol.MaxInline+1)})
	if err := n.AddTasks(context.Background(), protocol.JobID{9}, 0, []TaskInput{{Data: make([]byte, protocol.MaxInline+1)}}); err == nil {
		t.Error("tasks of an unknown job were accepted")
	}
	kept := 0
	if err := n.ask(func(*tasks.Scheduler) { kept = len(n.loop.jobs) }); err != nil || kept != 0 {
		t.Errorf("%d jobs are kept, %v", kept, err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		pinned := 0
		for _, b := range n.blobs.List() {
			if b.Pins > 0 && b.Size < 200<<10 { // but the program: who put it has it for putGrace
				pinned++
			}
		}
		if pinned <= 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d blobs are pinned", pinned)
		}
	}
}

// A program that is not to be had is said to the loop, which may be about to drop another: neither waits for the other.
func TestProgramsAndTheLoopDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	store, err := blob.Open(t.TempDir(), blob.Config{})
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{
		self: "a", blobs: store, log: testLogger(t), programs: programs{all: map[programKey]*program{}},
		inbox: make(chan input), done: make(chan struct{}), ctx: context.Background(), // an inbox that is full
	}
	info := func(b byte) *protocol.JobInfo {
		id := protocol.JobID{b}
		return &protocol.JobInfo{Job: id[:], Program: &protocol.Program{Code: &protocol.Blob{Id: make([]byte, 32)}}}
	}
	n.prepare(tasks.Prepare{Origin: "a", Info: info(1)})
	time.Sleep(100 * time.Millisecond) // it has given up on its program, and waits for the inbox
	looped := make(chan struct{})
	go func() {
		defer close(looped)
		n.prepare(tasks.Prepare{Origin: "a", Info: info(2), Drop: true})
	}()
	select {
	case <-looped:
	case <-time.After(5 * time.Second):
		t.Error("the loop waits for the lock of a goroutine that waits for the loop")
	}
	close(n.done)
	<-looped
	n.tasks.Wait()
}

// stuckStream is one whose reset waits, as it does behind a peer that reads nothing.
type stuckStream struct {
	network.Stream
	free chan struct{}
}

func (s stuckStream) Reset() error { <-s.free; return nil }

func TestTheLoopDoesNotWaitForAReset(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*session){
		"reads too slowly": func(s *session) {
			m := &protocol.Grant{Jobs: []*protocol.JobGrant{{Tasks: []*protocol.Assignment{{Input: make([]byte, 1<<20)}}}}}
			for range sessionFew + sessionBacklog>>20 + 1 {
				s.enqueue(tasks.Outgoing{Message: m})
			}
		},
		"replaced": func(s *session) {
			go s.end(nil)
			for dead := false; !dead; time.Sleep(time.Millisecond) {
				s.mu.Lock()
				dead = s.dead != nil
				s.mu.Unlock()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := &Node{log: testLogger(t)}
			stream := stuckStream{free: make(chan struct{})}
			s := &session{n: n, stream: stream, wake: make(chan struct{}, 1)}
			looped := make(chan struct{})
			go func() {
				defer close(looped)
				end(s)
				s.enqueue(tasks.Outgoing{Message: &protocol.Load{}})
			}()
			select {
			case <-looped:
			case <-time.After(5 * time.Second):
				t.Error("a message to the stream waits for its reset")
			}
			close(stream.free)
			<-looped
			n.sessions.wait()
		})
	}
}

func testLogger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(&testLog{t: t}, nil)) }

// idleScheduler has no slots.
func idleScheduler(t *testing.T) *tasks.Scheduler {
	t.Helper()
	s, err := tasks.New(tasks.Config{Self: "a", Epoch: 1, Rand: newRand()})
	if err != nil {
		t.Fatal(err)
	}
	s.Restored(0)
	return s
}

// What a client asks for arrives in the job that the scheduler gets, and what no job may ask for is refused.
func TestJobSpec(t *testing.T) {
	t.Parallel()
	n := start(t, "one", 1)
	f, err := os.Open("../examples/wasm/sum_primes.wasm")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code := put(t, n, f)
	id, of := protocol.NewJobID(), protocol.NewJobID()
	err = n.OpenJob(t.Context(), JobSpec{ID: id, Runtime: "wasm", Code: code, Retries: 3, Priority: -7, Spare: protocol.Spare_SPARE_OFF,
		HaltFailed: 2, HaltNow: true, RerunOf: of, Runs: []uint32{1, 2, 3}, Placement: Placement{Not: []protocol.NodeID{n.ID()}, LocalOnly: true}})
	if err != nil {
		t.Fatal(err)
	}
	var st tasks.JobStatus
	if err := n.ask(func(s *tasks.Scheduler) { st, _ = s.Job(id) }); err != nil {
		t.Fatal(err)
	}
	got := &protocol.Job{Retries: st.Spec.Retries, Priority: st.Spec.Priority, Spare: st.Spec.Spare, Halt: st.Spec.Halt, RerunOf: st.Spec.RerunOf, Placement: st.Spec.Placement, Runs: st.Spec.Runs}
	want := &protocol.Job{Retries: 3, Priority: -7, Runs: []uint32{1, 2, 3}, Spare: protocol.Spare_SPARE_OFF, Halt: &protocol.Halt{Failed: 2, Now: true}, RerunOf: of[:],
		Placement: &protocol.Placement{Not: []string{string(n.ID())}, LocalOnly: true}}
	if !proto.Equal(got, want) {
		t.Errorf("the scheduler got %v, want %v", got, want)
	}
	for _, bad := range []JobSpec{
		{Retries: MaxRetries + 1}, {Priority: 101}, {Priority: -101}, {Spare: 9}, {Runs: []uint32{1, 1 << 31}}, {HaltNow: true},
		{Placement: Placement{LocalOnly: true, RemoteOnly: true}}, {Placement: Placement{Not: []protocol.NodeID{"nobody"}}},
		{Placement: Placement{Not: make([]protocol.NodeID, MaxNot+1)}}, {Placement: Placement{On: strings.Repeat("a", 1000)}},
	} {
		bad.ID, bad.Runtime, bad.Code = protocol.NewJobID(), "wasm", code
		if e := (*Error)(nil); !errors.As(n.OpenJob(t.Context(), bad), &e) || e.Code != CodeBadRequest {
			t.Errorf("%+v was not refused: %v", bad, e)
		}
	}
}
