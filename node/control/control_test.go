package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/node"
	"meshnode/protocol"
	"meshnode/tasks"
)

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // for hangs, on a busy machine
	t.Cleanup(cancel)
	return ctx
}

func count(n int) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		var b []byte
		for i := range n {
			b = fmt.Appendf(b[:0], "input %010d", i) // 16 bytes
			if !yield(b, nil) {
				return
			}
		}
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	for _, network := range []string{Unix, TCP} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			n, dir := newFakeNode(), t.TempDir()
			stop := serve(t, dir, network, n)
			c := dial(t, dir)
			if s, err := c.Status(ctx); err != nil || s.Name != "fake" {
				t.Errorf("Status: %+v, %v", s, err)
			}
			if p, err := c.Peers(ctx); err != nil || len(p) != 5 || p[0].State != "self" {
				t.Errorf("Peers: %+v, %v", p, err)
			}
			if j, err := c.Jobs(ctx); err != nil || len(j) != 0 {
				t.Errorf("Jobs: %+v, %v", j, err)
			}
			opts := node.InviteOptions{Guest: true, Expires: time.Hour, Uses: 3, Runtimes: []string{"wasm"}}
			if tk, err := c.Invite(ctx, opts); err != nil || tk != "mesh1ticket" || fmt.Sprint(n.invited) != fmt.Sprint(opts) {
				t.Errorf("Invite: %q, %v; the node saw %+v", tk, err, n.invited)
			}
			if m, err := c.Join(ctx, "tick"); err != nil || m != "home" || n.joined != "tick" {
				t.Errorf("Join: %q, %v", m, err)
			}
			_, err := c.Join(ctx, "used")
			if e := (*node.Error)(nil); !errors.As(err, &e) || e.Code != node.CodeRefused || e.Fix == "" {
				t.Errorf("Join with a used ticket: %v", err)
			}
			if m, err := c.Recover(ctx, "code"); err != nil || m != "mesh of code" {
				t.Errorf("Recover: %q, %v", m, err)
			}
			if r, err := c.Revoke(ctx, "fake", "stolen", true); err != nil || r.Name != "stolen" || r.Peer != "12D3fake" || r.Keeps[0] != "true" {
				t.Errorf("Revoke: %+v, %v", r, err)
			}
			allowed, denied := node.PeerPolicy{Runtimes: []string{"python"}}, node.PeerPolicy{Work: true}
			for want, do := range map[string]func() error{
				"rename 12D3fake x":             func() error { return c.Rename(ctx, "fake", "x") },
				"forget 12D3fake":               func() error { return c.Forget(ctx, "fake") },
				"allow 12D3fake [python] false": func() error { _, err := c.Allow(ctx, "12D3fake", allowed); return err },
				"deny 12D3fake [] true":         func() error { _, err := c.Deny(ctx, "fake", denied); return err },
			} {
				if err := do(); err != nil || n.said != want {
					t.Errorf("%s: %v; the node heard %q", want, err, n.said)
				}
			}
			if err := c.Forget(ctx, "nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
				t.Errorf("Forget nobody: %v", err)
			}
			left, err := c.Leave(ctx, true)
			if err != nil || left.Told != 2 || !left.Restart {
				t.Errorf("Leave: %+v, %v", left, err)
			}
			if err := errors.Join(c.SetSlots(ctx, 7), c.Pause(ctx, time.Minute)); err != nil || n.joined != "" || n.slots != 7 || n.paused != time.Minute {
				t.Errorf("%v; %+v", err, n)
			}
			if err := c.Resume(ctx); err != nil || n.paused != -1 {
				t.Error(err)
			}
			if err := c.Drain(ctx); err != nil || n.paused != -2 {
				t.Errorf("Drain: %v", err)
			}
			n.OpenJob(ctx, node.JobSpec{ID: protocol.JobID{0x12, 0xd3}})
			n.AddTasks(ctx, protocol.JobID{0x12, 0xd3}, 0, plain([]byte{1}))
			for subject, want := range map[string]string{
				"12d3": "job 12d30000", "@last": "job 12d30000", "12d3/0": "task 12d30000/0", "@last/0": "task 12d30000/0",
				"fake": "node 12D3fake", "12D3f": "node 12D3fake", "12D3": "bad_request", // a job and a peer
				"12d3/1": "no_task", "@last/x": "bad_request", "nobody": "no_job", "beef": "no_job", "beef/1": "no_job", "": "no_job", "/": "bad_request",
			} {
				w, err := c.Why(ctx, subject)
				got := w.Subject
				if e := (*node.Error)(nil); errors.As(err, &e) {
					if got = e.Code; e.Fix == "" {
						t.Errorf("Why(%q): %q says nothing about what to do", subject, e.Message)
					}
				}
				if got != want {
					t.Errorf("Why(%q): %q, %v; want %q", subject, got, err, want)
				}
			}
			if w, err := c.Why(ctx, "@last/0"); err != nil || len(w.Reasons) != 1 || w.Reasons[0] != (tasks.Reason{Code: "runs", Text: "x runs it", Fix: "nothing"}) {
				t.Errorf("Why: %+v, %v", w, err)
			}
			if err := c.SetSlots(ctx, -1); err == nil || n.slots != 7 {
				t.Errorf("SetSlots(-1): %v", err)
			}
			blob, err := c.PutProgram(ctx, strings.NewReader("program"))
			if err != nil || string(n.blobsHere[blob]) != "program" {
				t.Errorf("PutProgram: %v, %v", blob, err)
			}
			if err := c.Shutdown(ctx); err != nil {
				t.Error(err)
			}
			<-n.down
			stop()
			if _, err := c.Status(ctx); !errors.Is(err, ErrNoNode) {
				t.Errorf("Status without a node: %v", err)
			}
			if _, err := Dial(dir); !errors.Is(err, ErrNoNode) {
				t.Errorf("Dial without a node: %v", err)
			}
		})
	}
}

func TestGuard(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	serve(t, dir, TCP, newFakeNode())
	info, err := readInfo(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, token, host, origin string
		want                      int
	}{
		{"right", info.Token, info.Address, "", 200},
		{"no token", "", info.Address, "", 403},
		{"wrong token", info.Token + "x", info.Address, "", 403},
		{"rebound name", info.Token, "evil.example", "", 403},
		{"web page", info.Token, info.Address, "http://evil.example", 403},
	} {
		for _, path := range []string{"GET /v1/status", "POST /v1/stream"} {
			method, path, _ := strings.Cut(path, " ")
			req, _ := http.NewRequestWithContext(testContext(t), method, "http://"+info.Address+path, nil)
			req.Host = tt.host
			req.Header.Set("Authorization", "Bearer "+tt.token)
			if tt.origin != "" {
				req.Header.Set("Origin", tt.origin)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			want := tt.want
			if want == 200 && method == "POST" {
				want = http.StatusUpgradeRequired
			}
			if resp.StatusCode != want {
				t.Errorf("%s: %s %s: %s", tt.name, method, path, resp.Status)
			}
		}
	}
}

func TestDataDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	stop := serve(t, dir, "", newFakeNode())
	if runtime.GOOS != "windows" {
		for path, want := range map[string]os.FileMode{"": 0o700, infoFile: 0o600, socketFile: 0o600} {
			if st, err := os.Stat(filepath.Join(dir, path)); err != nil || st.Mode().Perm() != want {
				t.Errorf("%q: mode %v, %v; want %v", path, st.Mode(), err, want)
			}
		}
	}
	_, err := Listen(dir, "")
	if e := (*RunningError)(nil); !errors.As(err, &e) || e.PID != os.Getpid() || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second Listen: %v", err)
	}
	if held, err := Held(dir); !held || err != nil {
		t.Errorf("Held: %v, %v", held, err)
	}
	stop()
	if held, err := Held(dir); held || err != nil {
		t.Errorf("Held after the end: %v, %v", held, err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 1 || filepath.Base(left[0]) != lockFile {
		t.Errorf("left behind: %v", left)
	}
}

func TestLongSocketPath(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 20))
	stop := serve(t, dir, Unix, newFakeNode())
	info, err := readInfo(dir)
	if err != nil || len(info.Socket) > maxSocketPath {
		t.Fatalf("socket %q, %v", info.Socket, err)
	}
	if _, err := dial(t, dir).Status(testContext(t)); err != nil {
		t.Error(err)
	}
	stop()
	if _, err := os.Stat(filepath.Dir(info.Socket)); !os.IsNotExist(err) {
		t.Errorf("left behind: %s", filepath.Dir(info.Socket))
	}
}

func TestSubmit(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	n, dir := newFakeNode(), t.TempDir()
	n.lose = 3
	serve(t, dir, "", n)
	c := dial(t, dir)
	spec := node.JobSpec{ID: protocol.NewJobID(), Name: "j", Runtime: "wasm", Code: protocol.BlobID{1}, Args: []string{"a", "{}"}, ClockReal: true,
		Group: protocol.JobID{7}, Local: &protocol.Local{Interpreter: "/usr/bin/python3", Version: "3.11", Path: []string{"/a", ""}, Dir: "/b"},
		Timeout: 1500 * time.Millisecond, Memory: 1 << 20, MaxParallel: 3, Retries: 4, Priority: -5, Spare: protocol.Spare_SPARE_OFF,
		HaltFailed: 6, HaltNow: true, Runs: []uint32{1, 2, 3}, Placement: node.Placement{On: "os=linux", Not: []protocol.NodeID{"a", "b"}, LocalOnly: true, RemoteOnly: true}}
	const tasks = 100_000
	seen := make([]bool, tasks)
	j, err := c.Submit(ctx, spec, count(tasks), func(rs []Result) error {
		for _, r := range rs {
			if seen[r.Index] || string(r.Output) != fmt.Sprintf("input %010d", r.Index) || !bytes.Equal(r.Input, r.Output) {
				t.Errorf("result %+v", r)
			}
			if seen[r.Index] = true; r.Name != "fake" || r.Worker != "12D3fake" || r.Attempts != 1 || r.Queued != time.Millisecond || r.Run != 2*time.Millisecond {
				t.Errorf("result %+v", r)
			}
		}
		return nil
	})
	if err != nil || j.State != "done" || j.Done != tasks || slices.Contains(seen, false) {
		t.Fatalf("job %+v, %v; all seen: %v", j, err, !slices.Contains(seen, false))
	}
	if got := n.jobs[spec.ID].spec; fmt.Sprint(got) != fmt.Sprint(spec) {
		t.Errorf("the node saw %+v, want %+v", got, spec)
	}

	// What ended can be read again, in parts, by short names.
	for _, name := range []string{spec.ID.String(), spec.ID.Short(), spec.ID.String()[:3], strings.ToUpper(spec.ID.Short()), "@last"} {
		if j, err := c.Job(ctx, name); err != nil || j.ID != spec.ID.String() {
			t.Errorf("Job(%q): %+v, %v", name, j, err)
		}
	}
	if j, err := c.Wait(ctx, "@last"); err != nil || j.Done != tasks {
		t.Errorf("Wait: %+v, %v", j, err)
	}
	got := 0
	_, err = c.Watch(ctx, spec.ID, Watching{Cursor: 99_000, Inputs: true}, func(rs []Result) error {
		got += len(rs)
		if rs[0].Index < 99_000 || !bytes.Equal(rs[0].Input, rs[0].Output) {
			t.Errorf("%+v", rs[0])
		}
		return nil
	})
	if err != nil || got != 1000 {
		t.Errorf("Watch from 99000: %d, %v", got, err)
	}
	if r, err := c.Result(ctx, "@last", 5); err != nil || string(r.Output) != "input 0000000005" || r.Run != 2*time.Millisecond {
		t.Errorf("Result: %+v, %v", r, err)
	}
	if in, err := c.Input(ctx, "@last", 5); err != nil || string(in) != "input 0000000005" {
		t.Errorf("Input: %q, %v", in, err)
	}
	for _, tt := range []struct {
		code string
		call func() error
	}{
		{"no_task", func() error { _, err := c.Result(ctx, "@last", tasks); return err }},
		{"no_task", func() error { i := uint32(tasks); _, err := c.Cancel(ctx, "@last", &i); return err }},
		{node.CodeNoJob, func() error { _, err := c.Job(ctx, "00112233445566778899aabbccddeeff"); return err }},
		{node.CodeBadRequest, func() error { _, err := c.Job(ctx, "../status"); return err }},
		{node.CodeBadRequest, func() error { _, err := c.Job(ctx, "xyz"); return err }},
	} {
		err := tt.call()
		if e := (*node.Error)(nil); !errors.As(err, &e) || e.Code != tt.code {
			t.Errorf("got %v, want code %s", err, tt.code)
		}
	}
}

func TestAmbiguousJob(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	n.OpenJob(ctx, node.JobSpec{ID: protocol.JobID{0xab, 1}})
	n.OpenJob(ctx, node.JobSpec{ID: protocol.JobID{0xab, 2}})
	c := dial(t, dir)
	if j, err := c.Job(ctx, "ab02"); err != nil || !strings.HasPrefix(j.ID, "ab02") {
		t.Errorf("%+v, %v", j, err)
	}
	_, err := c.Job(ctx, "ab")
	if err == nil || !strings.Contains(err.Error(), "ab010000") || !strings.Contains(err.Error(), "ab020000") {
		t.Errorf("%v names no candidates", err)
	}
}

func TestDetached(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	n, dir := newFakeNode(), t.TempDir()
	n.hold(true)
	serve(t, dir, "", n)
	c := dial(t, dir)
	// More than the window: tasks that the node has do not count as unanswered.
	j, err := c.Submit(ctx, node.JobSpec{Detached: true}, count(2*windowTasks), nil)
	if err != nil || j.Tasks != 2*windowTasks || j.State != "running" {
		t.Fatalf("%+v, %v", j, err)
	}
	id, _ := protocol.ParseJobID(j.ID)
	if now, err := c.Watch(ctx, id, Watching{Now: true}, func([]Result) error { t.Error("a result"); return nil }); err != nil || now.State != "running" {
		t.Errorf("Watch now: %+v, %v", now, err)
	}
	_, err = c.Result(ctx, j.ID, 0)
	if e := (*node.Error)(nil); !errors.As(err, &e) || e.Code != "not_ended" {
		t.Errorf("Result: %v", err)
	}
	n.mu.Lock()
	n.jobs[id].inputs = n.jobs[id].inputs[:5] // five end, and the rest never does
	n.jobs[id].closed = false
	n.mu.Unlock()
	n.hold(false)
	got := 0
	if now, err := c.Watch(ctx, id, Watching{Now: true, Cursor: 2}, func(rs []Result) error { got += len(rs); return nil }); err != nil || now.State != "running" || got != 3 {
		t.Errorf("Watch now: %+v, %v, %d results", now, err, got)
	}
	if j, err := c.Cancel(ctx, "@last", nil); err != nil || j.State != "cancelled" {
		t.Errorf("Cancel: %+v, %v", j, err)
	}
}

func TestRefusedJob(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	n.refuse = &node.Error{Code: node.CodeBadProgram, Message: "it is a component", Fix: "build for wasm32-wasip1"}
	serve(t, dir, "", n)
	_, err := dial(t, dir).Submit(testContext(t), node.JobSpec{}, count(10), func([]Result) error { return nil })
	if e := (*node.Error)(nil); !errors.As(err, &e) || *e != *n.refuse.(*node.Error) {
		t.Errorf("%v", err)
	}
}

func TestInputFails(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	broken := errors.New("disk on fire")
	id := protocol.NewJobID()
	_, err := dial(t, dir).Submit(testContext(t), node.JobSpec{ID: id}, func(yield func([]byte, error) bool) {
		_ = yield([]byte("1"), nil) && yield(nil, broken)
	}, func([]Result) error { return nil })
	if err != broken {
		t.Errorf("%v", err)
	}
	n.await(t, "the job to be cancelled", func() bool { return n.jobs[id] != nil && n.jobs[id].State == "cancelled" })
}

// A job that somebody cancels while its tasks are still coming ends as cancelled, not with an error of the
// tasks that came too late.
func TestCancelledWhileSubmitting(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	n.lateEnd = true
	serve(t, dir, "", n)
	c := dial(t, dir)
	id := protocol.NewJobID()
	j, err := c.Submit(testContext(t), node.JobSpec{ID: id}, func(yield func([]byte, error) bool) {
		for i := 0; yield([]byte{1}, nil); i++ {
			if i == 1000 {
				n.await(t, "the job", func() bool { return n.jobs[id] != nil })
				c.Cancel(context.Background(), id.String(), nil)
			}
		}
	}, func([]Result) error { return nil })
	if err != nil || j.State != "cancelled" {
		t.Errorf("%+v, %v", j, err)
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	n.hold(true)
	serve(t, dir, "", n)
	ctx, cancel := context.WithCancel(testContext(t))
	id := protocol.NewJobID()
	done := make(chan error, 1)
	go func() {
		_, err := dial(t, dir).Submit(ctx, node.JobSpec{ID: id}, count(100), func([]Result) error { return nil })
		done <- err
	}()
	n.await(t, "a watcher", func() bool { return n.watchers == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	n.await(t, "the watcher to leave", func() bool { return n.watchers == 0 })
}

// The node is killed in the middle, comes back without the tasks and results of its last moments and is
// given them again: each task is delivered once, with its own input.
func TestNodeRestarts(t *testing.T) {
	t.Parallel()
	for _, detached := range []bool{false, true} {
		t.Run(fmt.Sprintf("detached=%v", detached), func(t *testing.T) {
			t.Parallel()
			n, dir := newFakeNode(), t.TempDir()
			stop := serve(t, dir, "", n)
			c := dial(t, dir)
			var losses []bool
			c.Lost = func(err error) { losses = append(losses, err != nil) }
			const tasks = 50_000
			id := protocol.NewJobID()
			restarted := make(chan struct{})
			seen := make([]bool, tasks)
			next := 0
			inputs := func(yield func([]byte, error) bool) {
				for in := range count(tasks) {
					if !yield(in, nil) {
						return
					}
					if next++; next == tasks/2 {
						n.await(t, "half of the tasks", func() bool { j := n.jobs[id]; return j != nil && len(j.inputs) == tasks/2 })
						stop()
						n2 := newFakeNode()
						n2.jobs[id] = n.jobs[id]
						n2.order = n.order
						j := n2.jobs[id]
						j.inputs = j.inputs[:tasks/2-10_000]
						j.results = j.results[:tasks/2-20_000]
						j.Done = uint32(len(j.results))
						slices.Reverse(j.results) // another order than the client has seen
						for i := range j.results {
							j.results[i].Seq = uint32(i)
						}
						n = n2
						serve(t, dir, "", n2)
						n2.hold(false)
						close(restarted)
					}
				}
			}
			j, err := c.Submit(testContext(t), node.JobSpec{ID: id, Detached: detached}, inputs, func(rs []Result) error {
				for _, r := range rs {
					if want := fmt.Sprintf("input %010d", r.Index); seen[r.Index] || string(r.Input) != want || string(r.Output) != want {
						t.Errorf("result %d again or wrong: %q, %q", r.Index, r.Input, r.Output)
					}
					seen[r.Index] = true
				}
				return nil
			})
			<-restarted
			if err != nil || j.Tasks != tasks || !detached && slices.Contains(seen, false) {
				t.Fatalf("%+v, %v", j, err)
			}
			for i, in := range n.jobs[id].inputs {
				if string(in) != fmt.Sprintf("input %010d", i) {
					t.Fatalf("input %d at the node is %q", i, in)
				}
			}
			if fmt.Sprint(losses) != "[true false]" {
				t.Errorf("losses %v", losses)
			}
		})
	}
}

// Who follows a job, waits for it or reads of it does so through restarts of the node, and sees each result once.
func TestFollowThroughRestart(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	n, dir := newFakeNode(), t.TempDir()
	stop := serve(t, dir, "", n)
	c := dial(t, dir)
	id := protocol.NewJobID()
	n.OpenJob(ctx, node.JobSpec{ID: id})
	n.AddTasks(ctx, id, 0, plain([]byte("a"), []byte("b"), []byte("c")))
	n.hold(true)
	n.AddTasks(ctx, id, 3, plain([]byte("d")))
	var got []string
	followed, waited := make(chan error, 1), make(chan error, 1)
	go func() {
		j, err := c.Follow(ctx, id, Watching{}, func(rs []Result) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			for _, r := range rs {
				got = append(got, string(r.Output))
			}
			n.changed.Broadcast()
			return nil
		})
		if err == nil && j.State != "done" {
			err = fmt.Errorf("%+v", j)
		}
		followed <- err
	}()
	go func() {
		j, err := c.Wait(ctx, id.String())
		if err == nil && j.State != "done" {
			err = fmt.Errorf("%+v", j)
		}
		waited <- err
	}()
	n.await(t, "two watchers and three results", func() bool { return n.watchers == 2 && len(got) == 3 })
	stop()
	read := make(chan error, 1)
	go func() {
		r, err := c.Result(ctx, id.String(), 1)
		if err == nil && string(r.Output) != "b" {
			err = fmt.Errorf("%+v", r)
		}
		read <- err
	}()
	n2 := newFakeNode() // it lost its last result
	j := &fakeJob{Job: n.jobs[id].Job, inputs: n.jobs[id].inputs, results: n.jobs[id].results[:2:2], closed: true}
	j.Done = 2
	n2.jobs[id], n2.order = j, n.order
	n2.hold(false)
	serve(t, dir, "", n2)
	for _, ch := range []chan error{followed, waited, read} {
		if err := <-ch; err != nil {
			t.Error(err)
		}
	}
	if fmt.Sprint(got) != "[a b c d]" {
		t.Errorf("results %v", got)
	}
}

func TestNodeStaysAway(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	n.hold(true)
	stop := serve(t, dir, "", n)
	c := dial(t, dir)
	c.Patience = 300 * time.Millisecond
	done := make(chan error, 1)
	go func() {
		_, err := c.Submit(context.Background(), node.JobSpec{}, count(10), func([]Result) error { return nil })
		done <- err
	}()
	n.await(t, "a watcher", func() bool { return n.watchers == 1 })
	stop()
	select {
	case err := <-done:
		if !errors.Is(err, ErrNoNode) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Submit still waits")
	}
}

func TestLargeInputsAndOutputs(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	c := dial(t, dir)
	big := bytes.Repeat([]byte("0123456789abcdef"), MaxInput/16)
	sizes := []int{MaxInput, 0, 70_000, maxResultInput, 1, MaxInput, MaxInput, MaxInput, MaxInput} // more than windowBytes
	check := func(rs []Result) error {
		for _, r := range rs {
			if want := big[:sizes[r.Index]]; !bytes.Equal(r.Output, want) || !bytes.Equal(r.Input, want) {
				t.Errorf("task %d: input of %d, output of %d bytes", r.Index, len(r.Input), len(r.Output))
			}
		}
		return nil
	}
	submit := func(id protocol.JobID) {
		t.Helper()
		got := 0
		_, err := c.Submit(testContext(t), node.JobSpec{ID: id}, func(yield func([]byte, error) bool) {
			for _, s := range sizes {
				if !yield(big[:s], nil) {
					return
				}
			}
		}, func(rs []Result) error { got += len(rs); return check(rs) })
		if err != nil || got != len(sizes) {
			t.Fatalf("%d of %d results, %v", got, len(sizes), err)
		}
	}
	submit(protocol.NewJobID())
	sizes = sizes[:5]
	id := protocol.NewJobID()
	submit(id)
	if _, err := c.Watch(testContext(t), id, Watching{Inputs: true}, check); err != nil {
		t.Error(err)
	}
	_, err := c.Submit(testContext(t), node.JobSpec{}, func(yield func([]byte, error) bool) { yield(make([]byte, MaxInput+1), nil) }, check)
	if err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("an input over the limit: %v", err)
	}
}

// openRaw is a stream spoken by hand.
func openRaw(t *testing.T, dir string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, br, err := dial(t, dir).openStream(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn, br
}

func TestBrokenFrames(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	frame := protocol.AppendLocal
	id := protocol.NewJobID()
	for name, b := range map[string][]byte{
		"too long":            {0xff, 0xff, 0xff, 0xff, 0x20, 0, 0, 0, 0, 0, 0, 0, 0},
		"too short":           {1, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0},
		"unknown type":        frame(nil, 0x3f, 1),
		"a node's type":       frame(nil, protocol.ControlEnd, 1),
		"open without JSON":   frame(nil, protocol.ControlOpen, 1, []byte("{")),
		"open without job":    frame(nil, protocol.ControlOpen, 1, []byte("{}")),
		"add cut":             frame(nil, protocol.ControlAdd, 1, id[:], []byte{0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 'x', 9, 9, 9, 9}),
		"add of 4 G tasks":    frame(nil, protocol.ControlAdd, 1, id[:], []byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}),
		"add with a tail":     frame(nil, protocol.ControlAdd, 1, id[:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 1}),
		"close of 3 bytes":    frame(nil, protocol.ControlClose, 1, []byte{1, 2, 3}),
		"watch of 3 bytes":    frame(nil, protocol.ControlWatch, 1, []byte{1, 2, 3}),
		"watch from far away": frame(nil, protocol.ControlWatch, 1, id[:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0}),
		"group of 19 bytes":   frame(nil, protocol.ControlGroup, 1, make([]byte, 19)),
		"cancel of 3 bytes":   frame(nil, protocol.ControlCancel, 1, []byte{1, 2, 3}),
	} {
		t.Run(name, func(t *testing.T) {
			conn, br := openRaw(t, dir)
			if _, err := conn.Write(b); err != nil {
				t.Fatal(err)
			}
			typ, rid, body, err := protocol.ReadLocal(br, protocol.MaxLocal)
			if err != nil || typ != protocol.ControlError || rid != 0 || !json.Valid(body) {
				t.Fatalf("answer %#x, id %d, %q, %v", typ, rid, body, err)
			}
			if _, err := br.ReadByte(); err != io.EOF {
				t.Errorf("the connection is still open: %v", err)
			}
		})
	}
	if _, err := dial(t, dir).Status(testContext(t)); err != nil {
		t.Error(err)
	}
}

// Two jobs share a connection, and frames carry whose they are; a refused request ends nothing else.
func TestSeveralJobsOnOneConnection(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	conn, br := openRaw(t, dir)
	a, b := protocol.NewJobID(), protocol.NewJobID()
	var out []byte
	for i, id := range []protocol.JobID{a, b} {
		open, _ := encodeOpen(node.JobSpec{ID: id})
		out = protocol.AppendLocal(out, protocol.ControlOpen, uint64(10+i), open)
		out = protocol.AppendLocal(out, protocol.ControlWatch, uint64(20+i), encodeWatch(id, 0, 0))
		out = protocol.AppendLocal(out, protocol.ControlAdd, uint64(30+i), id[:], []byte{0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 'a' + byte(i)})
		out = protocol.AppendLocal(out, protocol.ControlClose, uint64(40+i), id[:], []byte{1, 0, 0, 0})
	}
	nobody := protocol.NewJobID()
	out = protocol.AppendLocal(out, protocol.ControlCancel, 50, nobody[:], []byte{0xff, 0xff, 0xff, 0xff})
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for range 6 + 2 + 2 + 1 {
		typ, id, body, err := protocol.ReadLocal(br, protocol.MaxLocal)
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("%#x %d", byte(typ), id)
		if typ == protocol.ControlResults {
			rs, err := decodeResults(nil, body)
			if err != nil || len(rs) != 1 {
				t.Fatalf("%v, %v", rs, err)
			}
			key += " " + string(rs[0].Output)
		}
		got[key]++
	}
	for _, want := range []string{"0xa0 10", "0xa0 11", "0xa0 30", "0xa0 31", "0xa0 40", "0xa0 41", "0xa2 20 a", "0xa2 21 b", "0xa3 20", "0xa3 21", "0xa1 50"} {
		if got[want] != 1 {
			t.Errorf("%q: %d times, of %v", want, got[want], got)
		}
	}
}

// Frames with an id from ControlQuiet on are answered only if they fail.
func TestQuiet(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	conn, br := openRaw(t, dir)
	id, nobody := protocol.NewJobID(), protocol.NewJobID()
	open, _ := encodeOpen(node.JobSpec{ID: id})
	out := protocol.AppendLocal(nil, protocol.ControlOpen, protocol.ControlQuiet, open)
	out = protocol.AppendLocal(out, protocol.ControlAdd, protocol.ControlQuiet+1, id[:], []byte{0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 'a'})
	out = protocol.AppendLocal(out, protocol.ControlCancel, protocol.ControlQuiet+2, nobody[:], []byte{0xff, 0xff, 0xff, 0xff})
	out = protocol.AppendLocal(out, protocol.ControlClose, protocol.ControlQuiet-1, id[:], []byte{1, 0, 0, 0})
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		t  protocol.LocalType
		id uint64
	}{{protocol.ControlError, protocol.ControlQuiet + 2}, {protocol.ControlOK, protocol.ControlQuiet - 1}} {
		if typ, id, body, err := protocol.ReadLocal(br, protocol.MaxLocal); err != nil || typ != want.t || id != want.id {
			t.Fatalf("answer %d: %#x, %d, %s, %v; want %v", i, byte(typ), id, body, err, want)
		}
	}
}

func TestGroup(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	conn, br := openRaw(t, dir)
	id := func(i byte) []byte { return append(make([]byte, 15), i) }
	var out []byte
	for i, limit := range [][]byte{{0, 0, 0, 0}, {2, 1, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0xfe, 0xff, 0xff, 0xff}} {
		out = protocol.AppendLocal(out, protocol.ControlGroup, uint64(i), id(byte(1+i)), limit)
	}
	out = protocol.AppendLocal(out, protocol.ControlGroup, 9, id(0), []byte{1, 0, 0, 0})
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint64{0, 1, 2, 3, 9} {
		typ, id, body, err := protocol.ReadLocal(br, protocol.MaxLocal)
		if err != nil || id != want || (typ == protocol.ControlOK) != (want < 9) || typ == protocol.ControlError && !bytes.Contains(body, []byte(node.CodeBadRequest)) {
			t.Fatalf("answer %#x to %d, want one to %d: %s, %v", byte(typ), id, want, body, err)
		}
	}
	for i, want := range []int{0, 258, -1, math.MaxInt32} {
		if got := n.groups[protocol.JobID(id(byte(1+i)))]; got != want {
			t.Errorf("group %d has the limit %d, want %d", 1+i, got, want)
		}
	}
}

// A node whose process is stopped takes connections and says nothing: each call says so after its time.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ln, err := Listen(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := ln.publish(); err != nil {
		t.Fatal(err)
	}
	c := dial(t, dir)
	c.AnswerTime, c.Patience = 50*time.Millisecond, time.Millisecond
	ctx := testContext(t)
	for name, call := range map[string]func() error{
		"status": func() error { _, err := c.Status(ctx); return err },
		"peers":  func() error { _, err := c.Peers(ctx); return err },
		"jobs":   func() error { _, err := c.Jobs(ctx); return err },
		"why":    func() error { _, err := c.Why(ctx, "@last"); return err },
		"wait":   func() error { _, err := c.Wait(ctx, "@last"); return err },
		"result": func() error { _, err := c.Result(ctx, "@last", 0); return err },
		"submit": func() error { _, err := c.Submit(ctx, node.JobSpec{}, count(1), nil); return err },
		"watch":  func() error { _, err := c.Watch(ctx, protocol.NewJobID(), Watching{}, nil); return err },
	} {
		if err := call(); !errors.Is(err, ErrNoAnswer) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
			t.Errorf("%s: %v", name, err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := c.Status(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller in a hurry: %v", err)
	}
}

func TestConnect(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	c := dial(t, dir)
	for addr, want := range map[string]string{
		"up":             "12D3up up",
		"12D3up":         "12D3up up",
		"127.0.0.1:5":    "12D3new new",
		"127.0.0.1:4001": node.CodeUnavailable + ": 127.0.0.1:4001: nothing listens there",
		"gone":           node.CodeUnavailable + ": gone: nothing listens there",
		"twin":           node.CodeRefused + `: 2 members are called "twin"`,
	} {
		a, err := c.Connect(testContext(t), addr)
		got := a.Peer + " " + a.Name
		if e := (*node.Error)(nil); errors.As(err, &e) {
			got = e.Code + ": " + e.Message
		} else if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestStopCutsStreams(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	n.hold(true)
	stop := serve(t, dir, "", n)
	conn, br := openRaw(t, dir)
	id := protocol.NewJobID()
	n.OpenJob(context.Background(), node.JobSpec{ID: id})
	conn.Write(protocol.AppendLocal(nil, protocol.ControlWatch, 1, encodeWatch(id, 0, 0)))
	n.await(t, "a watcher", func() bool { return n.watchers == 1 })
	start := time.Now()
	stop()
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("stopping took %v", d)
	}
	if _, err := br.ReadByte(); err == nil {
		t.Error("a stopping server told the watcher something: it has nothing to say that is true")
	}
}

func FuzzDecode(f *testing.F) {
	id := protocol.NewJobID()
	open, _ := encodeOpen(node.JobSpec{ID: id, Args: []string{"x"}})
	f.Add(open)
	f.Add(append(id[:], 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 'x'))
	f.Add(encodeWatch(id, 3, 1))
	f.Add(appendAddBlobs(nil, id, 7, []node.TaskInput{{Data: []byte("x"), Blobs: make([]protocol.BlobID, 2)}, {}})[13:])
	rs, _ := appendResults(nil, 1, []Result{{TaskResult: node.TaskResult{Worker: "w", Name: "n", Output: []byte("o"), Error: "e"}, Input: []byte("i")}, {}, {TaskResult: node.TaskResult{OutputBlob: &protocol.Blob{Id: make([]byte, 32), Size: 7}}}})
	f.Add(rs[13:])
	f.Fuzz(func(t *testing.T, b []byte) {
		decodeOpen(b)
		decodeClose(b)
		decodeWatch(b)
		decodeCancel(b)
		decodeGroup(b)
		for _, blobs := range []bool{false, true} {
			_, first, in, err := decodeAdd(b, blobs)
			if err == nil && int(first)+len(in) > protocol.MaxTasks {
				t.Errorf("%d tasks from %d", len(in), first)
			}
			for i := range in {
				if n := len(in[i].Blobs); n > protocol.MaxTaskBlobs || n > 0 && !blobs {
					t.Errorf("task %d reads %d blobs", i, n)
				}
			}
		}
		if rs, err := decodeResults(nil, b); err == nil && len(rs) > 0 {
			// What can be read can be written, and read again to the same.
			again, n := appendResults(nil, 1, rs)
			back, err := decodeResults(nil, again[13:])
			if err != nil || fmt.Sprint(back) != fmt.Sprint(rs[:n]) {
				t.Errorf("%v\n%v\n%v", rs, back, err)
			}
		}
	})
}

func BenchmarkSubmit(b *testing.B) {
	n, dir := newFakeNode(), b.TempDir()
	serve(b, dir, "", n)
	c := dial(b, dir)
	got := 0
	b.ReportAllocs()
	b.ResetTimer()
	j, err := c.Submit(context.Background(), node.JobSpec{}, count(b.N), func(rs []Result) error { got += len(rs); return nil })
	b.StopTimer()
	if err != nil || got != b.N {
		b.Fatalf("%+v, %v, %d of %d", j, err, got, b.N)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
}

// appendAddBlobs appends a ControlAddBlobs frame, with the id 0, to b.
func appendAddBlobs(b []byte, job protocol.JobID, first uint32, ins []node.TaskInput) []byte {
	le := binary.LittleEndian
	start := len(b)
	b = protocol.AppendLocal(b, protocol.ControlAddBlobs, 0)
	b = append(b, job[:]...)
	b = le.AppendUint32(b, first)
	b = le.AppendUint32(b, uint32(len(ins)))
	for _, in := range ins {
		b = le.AppendUint16(b, uint16(len(in.Blobs)))
		for _, id := range in.Blobs {
			b = append(b, id[:]...)
		}
		b = le.AppendUint32(b, uint32(len(in.Data)))
		b = append(b, in.Data...)
	}
	le.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

// What a frame of tasks with blobs says reaches the node, and what is no such frame ends the connection.
func TestAddBlobs(t *testing.T) {
	t.Parallel()
	job := protocol.NewJobID()
	ins := []node.TaskInput{{Data: []byte("a"), Blobs: []protocol.BlobID{{1}, {2}}}, {Data: []byte("bc"), Blobs: []protocol.BlobID{{1}, {2}}}, {}, {Blobs: []protocol.BlobID{{3}}}}
	body := appendAddBlobs(nil, job, 5, ins)[13:]
	id, first, got, err := decodeAdd(body, true)
	if err != nil || id != job || first != 5 || len(got) != len(ins) {
		t.Fatal(id, first, len(got), err)
	}
	for i, in := range got {
		if string(in.Data) != string(ins[i].Data) || !slices.Equal(in.Blobs, ins[i].Blobs) {
			t.Errorf("task %d is %v, want %v", i, in, ins[i])
		}
	}
	for n := range body {
		if _, _, _, err := decodeAdd(body[:n], true); !errors.Is(err, protocol.ErrProtocol) {
			t.Errorf("cut to %d of %d bytes: %v", n, len(body), err)
		}
	}
	many := appendAddBlobs(nil, job, 0, []node.TaskInput{{Blobs: make([]protocol.BlobID, protocol.MaxTaskBlobs+1)}})[13:]
	if _, _, _, err := decodeAdd(many, true); !errors.Is(err, protocol.ErrProtocol) {
		t.Errorf("%d blobs: %v", protocol.MaxTaskBlobs+1, err)
	}

	dir := t.TempDir()
	n := newFakeNode()
	serve(t, dir, "", n)
	c := dial(t, dir)
	conn, br, err := c.openStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n.OpenJob(t.Context(), node.JobSpec{ID: job})
	if _, err := conn.Write(appendAddBlobs(nil, job, 0, ins)); err != nil {
		t.Fatal(err)
	}
	if kind, _, body, err := protocol.ReadLocal(br, protocol.MaxLocal); err != nil || kind != protocol.ControlOK {
		t.Fatalf("%#x %s %v", kind, body, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if j := n.jobs[job]; len(j.blobs) != len(ins) || !slices.Equal(j.blobs[1], ins[1].Blobs) || len(j.blobs[2]) != 0 {
		t.Errorf("the node has %v", j.blobs)
	}
}

// A client puts, gets, lists and removes blobs; what is said of one goes without its bytes; a part of it goes alone.
func TestBlobs(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	c := dial(t, dir)
	ctx := testContext(t)
	b, err := c.PutBlob(ctx, strings.NewReader("0123456789"))
	if err != nil || b.Size != 10 {
		t.Fatal(b, err)
	}
	r, size, err := c.GetBlob(ctx, b.ID)
	if err != nil || size != 10 {
		t.Fatal(size, err)
	}
	got, err := io.ReadAll(r)
	if r.Close(); err != nil || string(got) != "0123456789" {
		t.Errorf("%q, %v", got, err)
	}
	for _, x := range []struct {
		method, name, bytes string
		status              int
		header, body        string
	}{
		{"HEAD", b.ID, "", 200, b.ID, ""},
		{"GET", b.ID, "bytes=3-5", 206, b.ID, "345"},
		{"HEAD", strings.Repeat("0", 64), "", 404, "", ""},
	} {
		req, err := c.newRequest(ctx, x.method, "/v1/blobs/"+x.name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if x.bytes != "" {
			req.Header.Set("Range", x.bytes)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != x.status || resp.Header.Get("Meshnode-Blob") != x.header || string(body) != x.body {
			t.Errorf("%s: %s, %q, %q", x.method, resp.Status, resp.Header.Get("Meshnode-Blob"), body)
		}
	}
	wantCode := func(err error, code string) {
		t.Helper()
		if e := (*node.Error)(nil); !errors.As(err, &e) || e.Code != code {
			t.Errorf("%v, want code %s", err, code)
		}
	}
	_, _, err = c.GetBlob(ctx, strings.Repeat("0", 64))
	wantCode(err, node.CodeNoBlob)
	wantCode(c.DeleteBlob(ctx, b.ID), node.CodeRefused)
	if st, err := c.Blobs(ctx); err != nil || st.Occupied != 10 || len(st.Blobs) != 1 || st.Blobs[0].ID != b.ID {
		t.Errorf("%+v, %v", st, err)
	}
	_, _, err = c.GCBlobs(ctx, -1)
	wantCode(err, node.CodeBadRequest)
	if freed, left, err := c.GCBlobs(ctx, 0); freed != 10 || left != 0 || err != nil {
		t.Errorf("%d freed, %d left, %v", freed, left, err)
	}
	req, _ := c.newRequest(ctx, "PUT", "/v1/blobs", strings.NewReader("x"))
	req.Header.Set("Meshnode-Sha256", "no hash")
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(readError(resp), node.CodeBadRequest)
	resp.Body.Close()
}

// An output that the node left out comes as the name of its blob, in frames and in JSON; a watch says from which size on.
func TestOutputsLeftOut(t *testing.T) {
	t.Parallel()
	n, dir := newFakeNode(), t.TempDir()
	serve(t, dir, "", n)
	c := dial(t, dir)
	id := protocol.NewJobID()
	n.OpenJob(t.Context(), node.JobSpec{ID: id})
	n.AddTasks(t.Context(), id, 0, plain([]byte("a"), []byte("b")))
	n.mu.Lock()
	n.jobs[id].results[1].OutputBlob = &protocol.Blob{Id: bytes.Repeat([]byte{9}, 32), Size: 1 << 30}
	n.mu.Unlock()
	n.CloseJob(t.Context(), id, 2)
	var got []Result
	if _, err := c.Watch(testContext(t), id, Watching{}, func(rs []Result) error { got = append(got, rs...); return nil }); err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	if got[0].OutputBlob != nil || string(got[0].Output) != "a" {
		t.Errorf("%+v", got[0])
	}
	one, err := c.Result(testContext(t), id.String(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []node.TaskResult{got[1].TaskResult, one} {
		if b := r.OutputBlob; b == nil || b.Size != 1<<30 || b.Id[31] != 9 {
			t.Errorf("%+v", r)
		}
	}
	conn, br := openRaw(t, dir)
	for flags, most := range map[byte]uint64{0: protocol.MaxOutput, protocol.WatchBlobs: protocol.MaxWatchOutput} {
		conn.Write(protocol.AppendLocal(nil, protocol.ControlWatch, 1, encodeWatch(id, 0, flags)))
		for {
			kind, _, _, err := protocol.ReadLocal(br, protocol.MaxLocal)
			if err != nil {
				t.Fatal(err)
			}
			if kind == protocol.ControlEnd {
				break
			}
		}
		if n.mu.Lock(); n.most != most {
			t.Errorf("flags %d: outputs up to %d, want %d", flags, n.most, most)
		}
		n.mu.Unlock()
	}
}
