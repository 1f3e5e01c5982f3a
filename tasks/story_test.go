package tasks

import (
	"fmt"
	"strings"
	"testing"

	"meshnode/protocol"
)

// TestStoryIsBounded: what is remembered has a bound, what is usual does not push out what is rare, and telling it
// allocates nothing once the story is full.
func TestStoryIsBounded(t *testing.T) { // not parallel: it counts allocations
	s := newOrigin(t)
	self := s.peers["a"]
	job := protocol.JobID{1}
	s.tell(ProcessDied, protocol.Attempt{Job: job, Index: 7, N: 1}, self, strings.Repeat("x", 10000))
	for i := range uint32(3 * storySize) {
		s.now++
		s.tell(Granted, protocol.Attempt{Job: job, Index: i, N: 1}, self, "")
	}
	if n := len(s.story.usual.all); n != storySize {
		t.Errorf("%d usual happenings are kept, want %d", n, storySize)
	}
	hs := s.happened(func(*Happening) bool { return true })
	if len(hs) != storySize+1 || hs[0].Code != ProcessDied || len(hs[0].What) > maxWhat {
		t.Errorf("%d happenings, the first %+v", len(hs), hs[0])
	}
	for i, h := range hs[1:] {
		if want := uint32(2*storySize + i); h.Attempt.Index != want {
			t.Fatalf("happening %d is of task %d, want %d", i, h.Attempt.Index, want)
		}
	}
	if n := testing.AllocsPerRun(1000, func() { s.tell(Granted, protocol.Attempt{Job: job, N: 1}, self, "") }); n > 0 {
		t.Errorf("%v allocations to tell a task", n)
	}
	if len(s.out.Happened) > 0 {
		t.Error("told to nobody, and collected")
	}
}

// TestEveryHappeningReachesTheLog: what why shows is what Ready has for the log.
func TestEveryHappeningReachesTheLog(t *testing.T) {
	t.Parallel()
	s := newOrigin(t)
	s.cfg.Tell = true
	s.connectTest(second, "b", 1, 4, Facts{Name: "kitchen"})
	id := protocol.JobID{1}
	if err := s.Step(second, Submit{Job: id, Spec: wasmJob(id, &protocol.Placement{RemoteOnly: true}, 0), Inputs: make([]Input, 3), Close: true, Count: 3}); err != nil {
		t.Fatal(err)
	}
	var told []Happening
	told = append(told, s.Ready().Happened...)
	s.Step(second+1, PeerDown{Peer: "b", Session: 1, Clean: true, Reason: "bye"})
	told = append(told, s.Ready().Happened...)
	var words []string
	for _, h := range told {
		words = append(words, h.Code.String())
	}
	want := "connected granted granted granted disconnected node_left node_left node_left"
	if got := strings.Join(words, " "); got != want {
		t.Errorf("the log has %s, want %s", got, want)
	}
	if kept := s.happened(func(*Happening) bool { return true }); fmt.Sprint(kept) != fmt.Sprint(told) {
		t.Errorf("why has\n%v\nand the log\n%v", kept, told)
	}
	w, _ := s.WhyTask(second+5*second, id, 0)
	if w.Summary != "waiting; granted once" || len(w.Reasons) != 4 || w.Reasons[3].Text != "4.9 s ago: kitchen was stopped, and gave up what it held" {
		t.Errorf("%+v", w)
	}
}

// TestWhyOfManyNodes: a line has a bound, however many nodes refuse a job for the same reason.
func TestWhyOfManyNodes(t *testing.T) {
	t.Parallel()
	s := newOrigin(t)
	for i := range 50 {
		s.connectTest(second, protocol.NodeID(fmt.Sprintf("p%02d", i)), uint64(i+1), 1, Facts{Name: fmt.Sprintf("lab-%d", i)})
	}
	id := protocol.JobID{1}
	s.Step(second, Submit{Job: id, Spec: wasmJob(id, &protocol.Placement{On: "gpu"}, 0), Inputs: make([]Input, 3), Close: true, Count: 3})
	s.Ready()
	st, _ := s.Job(id)
	if want := "no node can run it now: this node has no label gpu (lab-0, lab-1 and 48 more too)"; st.Reason != want {
		t.Errorf("%q, want %q", st.Reason, want)
	}
}

// TestSpans: durations for people.
func TestSpans(t *testing.T) {
	t.Parallel()
	for ns, want := range map[int64]string{
		0: "0.0 ms", 1500 * microsecond: "1.5 ms", 20 * millisecond: "20 ms", 1234 * millisecond: "1.2 s", 75 * second: "1 min 15 s", 3661 * second: "1 h 1 min",
	} {
		if got := span(ns); got != want {
			t.Errorf("%d: %q, want %q", ns, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 bytes", 1023: "1023 bytes", 1536: "1.5 KiB", 6 << 30: "6 GiB", 1 << 40: "1 TiB"} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// BenchmarkTell is what the story costs for each task and happening.
func BenchmarkTell(b *testing.B) {
	s := newOrigin(b)
	self := s.peers["a"]
	for b.Loop() {
		s.tell(Granted, protocol.Attempt{Job: protocol.JobID{1}, N: 1}, self, "")
	}
}

// BenchmarkWhyNot is what matching costs for each job and peer, after the first time.
func BenchmarkWhyNot(b *testing.B) {
	s := newOrigin(b)
	s.connectTest(second, "b", 1, 4, Facts{Name: "kitchen", Labels: []string{"gpu"}})
	for _, on := range []string{"", "gpu,cpus<=8"} {
		id := protocol.JobID{byte(len(on))}
		var at *protocol.Placement
		if on != "" {
			at = &protocol.Placement{On: on}
		}
		s.Step(second, Submit{Job: id, Spec: wasmJob(id, at, 0), Inputs: make([]Input, 1), Close: true, Count: 1})
		b.Run("on="+on, func(b *testing.B) {
			for b.Loop() {
				s.whyNot(s.peers["b"], s.jobs[id])
			}
		})
	}
}

// TestWhyTooFar: a node that is idle because bytes take too long to get there says so.
func TestWhyTooFar(t *testing.T) {
	t.Parallel()
	s := newOrigin(t)
	s.connectTest(second, "b", 1, 4, Facts{Name: "kitchen"})
	s.Step(second, Transferred{Peer: "b", Bytes: 8 << 20, Took: 8 * 60 * second})
	id := protocol.JobID{1}
	spec := wasmJob(id, nil, 0)
	spec.Program.Code.Size = 64 << 20
	s.Step(second, Submit{Job: id, Spec: spec, Inputs: make([]Input, 20), Close: true, Count: 20})
	s.Ready()
	want := "kitchen is too far away: the bytes of a task need 1 h "
	for name, w := range map[string]func() (Why, bool){
		"job":  func() (Why, bool) { return s.WhyJob(second, id) },
		"peer": func() (Why, bool) { return s.WhyPeer(second, "b") },
	} {
		w, _ := w()
		found := false
		for _, r := range w.Reasons {
			found = found || r.Code == "too_far" && strings.Contains(r.Text, want)
		}
		if !found {
			t.Errorf("%s: no %q in %+v", name, want, w)
		}
	}
}
