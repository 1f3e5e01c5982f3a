package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"meshnode/protocol"
	"meshnode/tasks/blob"
	"meshnode/tasks/executor"
)

// reader is a runtime whose tasks read blobs: its worker process is readerMain.
type reader struct{}

func (reader) Name() string            { return "python" }
func (reader) Version() (string, bool) { return "3.0", true }
func (reader) Check(string) error      { return nil }
func (reader) Worker(string, protocol.NodeID, *protocol.Local) (executor.Worker, error) {
	self, err := os.Executable()
	return executor.Worker{Argv: []string{self, "reader"}}, err
}

// readerMain answers each task with the sizes of what it reads and the SHA-256 of the first and last MiB, and leaves "file N" as an
// output of N bytes.
func readerMain() int {
	in, out, scratch := bufio.NewReader(os.Stdin), os.Stdout, ""
	for {
		kind, id, body, err := protocol.ReadLocal(in, protocol.MaxLocal)
		if err != nil {
			return 0
		}
		o, done := protocol.WorkerOutcome{Status: protocol.Status_OK, RunUs: 1000}, protocol.WorkerDone
		switch kind {
		case protocol.WorkerLoad:
			var p protocol.WorkerProgram
			json.Unmarshal(body, &p)
			scratch = p.Scratch
			out.Write(protocol.AppendLocal(nil, protocol.WorkerLoaded, id, []byte("{}")))
			continue
		case protocol.WorkerRun:
			if size, ok := strings.CutPrefix(string(body[12:]), "file "); ok {
				n, _ := strconv.Atoi(size)
				name := fmt.Sprint("out", id)
				os.WriteFile(filepath.Join(scratch, name), bytes.Repeat([]byte("z"), n), 0o600)
				o.Output, done = []byte(name), protocol.WorkerDoneFile
			}
		case protocol.WorkerRunFiles:
			f, err := protocol.ParseWorkerRunFiles(body)
			if err != nil {
				return 9
			}
			for _, p := range f.Paths {
				o.Output = fmt.Appendf(o.Output, "%s ", ends(p))
			}
			o.Output = append(o.Output, f.Input...)
			time.Sleep(time.Millisecond)
		default:
			continue
		}
		out.Write(protocol.AppendLocal(nil, done, id, protocol.AppendWorkerDone(nil, id, &o)[13:]))
	}
}

// ends is the size of a file and the hash of its ends.
func ends(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, _ := f.Stat()
	const part = 1 << 20
	h := sha256.New()
	io.Copy(h, io.NewSectionReader(f, 0, part))
	io.Copy(h, io.NewSectionReader(f, max(0, info.Size()-part), part))
	return fmt.Sprintf("%d:%x", info.Size(), h.Sum(nil)[:8])
}

// bytesOf are n bytes that differ with seed, in a file.
func bytesOf(t testing.TB, n int64, seed byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{seed}), n); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func putFile(t testing.TB, n *Node, path string) protocol.BlobID {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return put(t, n, f)
}

// startReader is start for a node that runs the runtime reader.
func startReader(t testing.TB, name string, slots int) *Node {
	t.Helper()
	n, stop := startIn(t, t.TempDir(), name, slots, func(c *Config) { c.Runtimes = []executor.Runtime{reader{}} })
	t.Cleanup(stop)
	return n
}

// read runs a job of the runtime reader, and returns its results by index.
func read(t testing.TB, n *Node, spec JobSpec, ins []TaskInput) []TaskResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
	defer cancel()
	spec.ID, spec.Runtime, spec.Code = protocol.NewJobID(), "python", put(t, n, strings.NewReader("program"))
	if err := n.OpenJob(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if err := n.AddTasks(ctx, spec.ID, 0, ins); err != nil {
		t.Fatal(err)
	}
	if err := n.CloseJob(ctx, spec.ID, uint32(len(ins))); err != nil {
		t.Fatal(err)
	}
	out := make([]TaskResult, len(ins))
	j, err := n.Watch(ctx, spec.ID, 0, protocol.MaxWatchOutput, func(rs []TaskResult) error {
		for _, r := range rs {
			out[r.Index] = r
		}
		return nil
	})
	if err != nil || j.State != "done" {
		t.Fatalf("%+v, %v; task 0: %+v", j, err, out[0])
	}
	return out
}

// A blob that many tasks read goes once to each node that runs some of them; what is not there, or not for that runtime, is refused.
func TestTasksReadBlobs(t *testing.T) {
	t.Parallel()
	a, b, c := startReader(t, "a", 1), startReader(t, "b", 1), startReader(t, "c", 1)
	join(t, a, b, c)
	large, small := bytesOf(t, 20<<20+12345, 1), bytesOf(t, 100, 2)
	ids := []protocol.BlobID{putFile(t, a, large), putFile(t, a, small)}
	var ins []TaskInput
	for i := range 100 {
		ins = append(ins, TaskInput{Data: fmt.Append(nil, i), Blobs: ids})
	}
	workers := map[string]int{}
	for i, r := range read(t, a, JobSpec{}, ins) {
		if want := fmt.Sprintf("%s %s %d", ends(large), ends(small), i); string(r.Output) != want {
			t.Errorf("task %d: %q, want %q", i, r.Output, want)
		}
		workers[r.Name]++
	}
	if len(workers) != 3 {
		t.Errorf("tasks ran on %v", workers)
	}
	for _, n := range []*Node{b, c} {
		if got := n.meter.received.Load(); got < 20<<20 || got > 20<<20+200<<10 {
			t.Errorf("%s received %d bytes", n.Name(), got)
		}
	}
	if st, err := a.Status(t.Context()); err != nil || st.BlobsSent < 40<<20 || st.BlobsSent > 40<<20+400<<10 || st.BlobsReceived != 0 {
		t.Errorf("%+v, %v", st, err)
	}

	// A second job moves nothing.
	sent := a.meter.sent.Load()
	read(t, a, JobSpec{Placement: Placement{RemoteOnly: true}}, ins[:10])
	if again := a.meter.sent.Load() - sent; again > 1000 {
		t.Errorf("the second use moved %d bytes", again)
	}

	// Nothing stays pinned but by leases, once the jobs have ended.
	for _, n := range []*Node{a, b, c} {
		want := 0
		if n == a {
			want = 1
		}
		await(t, n.Name()+" needs nothing any more", func() bool {
			for _, i := range n.blobs.List() {
				if i.Pins > want {
					return false
				}
			}
			return true
		})
	}
	ctx := t.Context()
	id := protocol.NewJobID()
	if err := a.OpenJob(ctx, JobSpec{ID: id, Runtime: "python", Code: ids[1]}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, a.AddTasks(ctx, id, 0, []TaskInput{{Blobs: []protocol.BlobID{ids[0], {9}}}}), CodeNoBlob)
	wantCode(t, a.AddTasks(ctx, id, 0, []TaskInput{{Blobs: make([]protocol.BlobID, protocol.MaxTaskBlobs+1)}}), CodeBadRequest)
	wantCode(t, a.DeleteBlob(ctx, ids[1].String()), CodeRefused)
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if e := (*Error)(nil); !errors.As(err, &e) || e.Code != code {
		t.Errorf("%v, want code %s", err, code)
	}
}

// await waits for a condition.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

// A task whose blob is gone from its origin's disk waits, and why says so; nothing runs without what it reads.
func TestLostBlob(t *testing.T) {
	t.Parallel()
	a, b := startReader(t, "a", 0), startReader(t, "b", 1)
	join(t, a, b)
	ctx := t.Context()
	id := putFile(t, a, bytesOf(t, 1<<20, 3))
	path, err := a.blobs.Path(id)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	job := protocol.NewJobID()
	if err := a.OpenJob(ctx, JobSpec{ID: job, Runtime: "python", Code: put(t, a, strings.NewReader("program")), Detached: true}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, a.AddTasks(ctx, job, 0, []TaskInput{{Blobs: []protocol.BlobID{id}}}), CodeNoBlob)
	other := putFile(t, a, bytesOf(t, 1<<20, 4))
	if path, err = a.blobs.Path(other); err != nil {
		t.Fatal(err)
	}
	if err := a.Pause(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.Pause(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := a.AddTasks(ctx, job, 0, []TaskInput{{Blobs: []protocol.BlobID{other}}}); err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	if err := b.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, "why names the blob", func() bool {
		w, err := a.WhyJob(ctx, job)
		return err == nil && strings.Contains(fmt.Sprint(w), "what it reads is not to be had")
	})
	putFile(t, a, bytesOf(t, 1<<20, 4)) // it is back, and so is the task
	await(t, "it runs", func() bool {
		_, ok, err := a.Result(ctx, job, 0)
		return ok && err == nil
	})
}

// An output of many MiB comes from the worker's disk to the origin's, named in the result, and is read as a blob.
func TestOutputsAreBlobs(t *testing.T) {
	t.Parallel()
	a, b := startReader(t, "a", 1), startReader(t, "b", 1)
	join(t, a, b)
	for _, placement := range []Placement{{RemoteOnly: true}, {LocalOnly: true}} {
		r := read(t, a, JobSpec{Placement: placement}, []TaskInput{{Data: []byte("file 40000000")}, {Data: []byte("file 7")}, {Data: []byte("file 500000")}})
		if string(r[1].Output) != "zzzzzzz" || r[1].OutputBlob != nil || len(r[2].Output) != 500000 || r[2].OutputBlob != nil {
			t.Errorf("small outputs: %d and %d bytes", len(r[1].Output), len(r[2].Output))
		}
		if r[0].OutputBlob == nil || r[0].OutputBlob.Size != 40000000 || len(r[0].Output) != 0 {
			t.Fatalf("a large one: %+v", r[0])
		}
		f, info, err := a.OpenBlob(t.Context(), hex.EncodeToString(r[0].OutputBlob.Id))
		if err != nil || info.Size != 40000000 {
			t.Fatal(info, err)
		}
		got, err := io.ReadAll(f)
		if f.Close(); err != nil || len(got) != 40000000 || strings.Trim(string(got), "z") != "" {
			t.Errorf("%d bytes of it, %v", len(got), err)
		}
	}
}

// A client asks by SHA-256 before it sends again; a wrong one is refused; a lease ends with DELETE.
func TestBlobAPI(t *testing.T) {
	t.Parallel()
	n := start(t, "a", 0)
	ctx := t.Context()
	data := []byte(strings.Repeat("data", 1000))
	sum := sha256.Sum256(data)
	name := "sha256:" + hex.EncodeToString(sum[:])
	_, _, err := n.OpenBlob(ctx, name)
	wantCode(t, err, CodeNoBlob)
	_, err = n.PutBlob(ctx, bytes.NewReader(data[1:]), sum[:])
	wantCode(t, err, CodeBadRequest)
	b, err := n.PutBlob(ctx, bytes.NewReader(data), sum[:])
	if err != nil || b.Size != 4000 {
		t.Fatal(b, err)
	}
	if _, err := n.PutBlob(ctx, bytes.NewReader(data), nil); err != nil {
		t.Fatal(err)
	}
	f, found, err := n.OpenBlob(ctx, name)
	if err != nil || found.ID != b.ID {
		t.Fatal(found, err)
	}
	f.Close()
	st, err := n.Blobs(ctx)
	if err != nil || len(st.Blobs) != 2 { // one is what was put with a wrong sum
		t.Fatal(st, err)
	}
	for _, x := range st.Blobs {
		if pins := map[bool]int{true: 1}[x.ID == b.ID]; x.Pins != pins {
			t.Errorf("%+v, want %d pins", x, pins)
		}
	}
	if freed, err := n.GCBlobs(ctx, 0); freed != 3999 || err != nil {
		t.Error(freed, err)
	}
	if err := n.DeleteBlob(ctx, name); err != nil {
		t.Error(err)
	}
	wantCode(t, n.DeleteBlob(ctx, b.ID), CodeNoBlob)
	_, _, err = n.OpenBlob(ctx, name)
	wantCode(t, err, CodeNoBlob)
	for _, bad := range []string{"x", "sha256:12", ""} {
		_, _, err := n.OpenBlob(ctx, bad)
		wantCode(t, err, CodeBadRequest)
	}
	id, _ := protocol.ParseBlobID(b.ID)
	if n.leases.renew(n.blobs, id); len(n.leases.all) != 0 {
		t.Errorf("%d leases of blobs that are not here", len(n.leases.all))
	}
}

// A large blob goes to two nodes at once; others are told who has it. One that was given it gives it, too, and what a broken source had
// sent is not sent again.
func TestSources(t *testing.T) {
	t.Parallel()
	const size = 24 << 20
	a := startReader(t, "a", 0)
	var others []*Node
	for _, name := range []string{"b", "c", "d", "e"} {
		others = append(others, startReader(t, name, 0))
	}
	join(t, a, others...)
	path := bytesOf(t, size, 5)
	id := putFile(t, a, path)
	want := &protocol.Blob{Id: id[:], Size: size}
	fetchAll := func(ns []*Node) {
		t.Helper()
		var wg sync.WaitGroup
		for _, n := range ns {
			for range 3 { // one flight
				wg.Go(func() {
					if err := n.fetch(t.Context(), a.ID(), want, blob.MaxSize, false); err != nil {
						t.Errorf("%s: %v", n.Name(), err)
					}
				})
			}
		}
		wg.Wait()
	}
	fetchAll(others)
	const slack = 200 << 10
	for _, n := range others {
		if got := n.meter.received.Load(); got < size || got > size+slack {
			t.Errorf("%s received %d bytes", n.Name(), got)
		}
		if got := n.blobs.List(); len(got) != 1 || got[0].Pins != 3 {
			t.Errorf("%s has %+v", n.Name(), got)
		}
	}
	a.gifts.mu.Lock()
	g := a.gifts.all[id]
	if g.active != 0 || len(g.holders) < givesAtOnce {
		t.Errorf("%+v", g)
	}
	// Two are busy with it for ever.
	g.active = givesAtOnce
	a.gifts.mu.Unlock()
	late := startReader(t, "late", 0)
	join2(t, a, late, others)
	before := a.meter.sent.Load()
	fetchAll([]*Node{late})
	if sent := a.meter.sent.Load() - before; sent > slack {
		t.Errorf("a sent %d bytes, though it was busy", sent)
	}
	if got := late.meter.received.Load(); got > size+slack {
		t.Errorf("late received %d bytes", got)
	}
}

// join2 makes one more node a member and waits until it is connected to all.
func join2(t testing.TB, a, late *Node, others []*Node) {
	t.Helper()
	ticket, err := a.Invite(t.Context(), InviteOptions{Mine: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.Join(t.Context(), ticket); err != nil {
		t.Fatal(err)
	}
	await(t, "late is connected to all", func() bool {
		for _, n := range append([]*Node{a}, others...) {
			if !late.isConnected(n.ID()) {
				return false
			}
		}
		return true
	})
}

// A source of the earlier protocol gives, though it knows of no other holders.
func TestSourceOfEarlierProtocol(t *testing.T) {
	t.Parallel()
	a, b := startReader(t, "a", 0), startReader(t, "b", 0)
	join(t, a, b)
	a.host.RemoveStreamHandler(blob.Protocol)
	p, _ := peer.Decode(string(a.ID()))
	if err := b.host.Peerstore().RemoveProtocols(p, blob.Protocol); err != nil {
		t.Fatal(err)
	}
	id := putFile(t, a, bytesOf(t, 2<<20, 6))
	if err := b.fetch(t.Context(), a.ID(), &protocol.Blob{Id: id[:], Size: 2 << 20}, blob.MaxSize, true); err != nil {
		t.Fatal(err)
	}
	// And the other way round: what asks by the earlier one is never told that we are busy.
	c := startReader(t, "c", 0)
	join2(t, a, c, []*Node{b})
	b.gifts.mu.Lock()
	b.gifts.all = map[protocol.BlobID]*gift{id: {active: givesAtOnce}}
	b.gifts.mu.Unlock()
	q, _ := peer.Decode(string(b.ID()))
	s, err := c.host.NewStream(network.WithNoDial(t.Context(), "test"), q, blob.ProtocolAlone)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	if err := blob.Fetch(t.Context(), s, &protocol.Blob{Id: id[:], Size: 2 << 20}, c.blobs); err != nil {
		t.Error(err)
	}
}
