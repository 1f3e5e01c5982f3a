package control

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"meshnode/node"
	"meshnode/node/doctor"
	"meshnode/protocol"
	"meshnode/tasks"
)

// fakeNode is a node without a mesh: a task ends when it is added, with its input as the output, or, while
// the node is held, when it is let go.
type fakeNode struct {
	mu        sync.Mutex
	changed   sync.Cond
	held      bool
	jobs      map[protocol.JobID]*fakeJob
	order     []protocol.JobID
	blobsHere map[protocol.BlobID][]byte
	invited   node.InviteOptions
	paused    time.Duration
	slots     int
	groups    map[protocol.JobID]int
	said      string // the last word about a peer
	joined    string
	down      chan struct{}
	watchers  int
	refuse    error  // of OpenJob
	lateEnd   bool   // Watch of an ended job ends only after two refused AddTasks: the first answer then is out
	refusals  int    // of AddTasks
	most      uint64 // of the last Watch
	lose      int    // Watch calls that end with ErrWatchLost after one batch
}

type fakeJob struct {
	node.Job
	spec    node.JobSpec
	inputs  [][]byte
	blobs   [][]protocol.BlobID // that the tasks read
	results []node.TaskResult
	closed  bool
}

func newFakeNode() *fakeNode {
	n := &fakeNode{jobs: map[protocol.JobID]*fakeJob{}, blobsHere: map[protocol.BlobID][]byte{}, groups: map[protocol.JobID]int{}, down: make(chan struct{})}
	n.changed.L = &n.mu
	return n
}

func (n *fakeNode) hold(held bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = held
	for _, j := range n.jobs {
		n.run(j)
	}
}

// run ends the tasks of j that wait. n.mu is held.
func (n *fakeNode) run(j *fakeJob) {
	for !n.held && len(j.results) < len(j.inputs) && j.State == "running" {
		i := uint32(len(j.results))
		j.results = append(j.results, node.TaskResult{Seq: i, Index: i, Status: protocol.Status_OK, Output: j.inputs[i], Worker: "12D3fake", Name: "fake",
			Attempts: 1, Queued: time.Millisecond, Run: 2 * time.Millisecond})
		j.Done++
	}
	if j.closed && j.State == "running" && len(j.results) == len(j.inputs) {
		j.State = "done"
	}
	n.changed.Broadcast()
}

func (n *fakeNode) job(id protocol.JobID) (*fakeJob, error) {
	if j := n.jobs[id]; j != nil {
		return j, nil
	}
	return nil, &node.Error{Code: node.CodeNoJob, Message: "no job " + id.Short()}
}

func (n *fakeNode) Status(context.Context) (node.Status, error) {
	return node.Status{ID: "12D3fake", Name: "fake", Addrs: []string{}, Slots: n.slots}, nil
}
func (n *fakeNode) Peers(context.Context) ([]node.Peer, error) {
	return []node.Peer{{ID: "12D3fake", Name: "fake", State: "self"}, {ID: "12D3up", Name: "up", State: "connected"}, {ID: "12D3gone", Name: "gone", State: "gone"},
		{ID: "12D3one", Name: "twin", State: "connected"}, {ID: "12D3two", Name: "twin", State: "connected"}}, nil
}

func (n *fakeNode) OpenJob(_ context.Context, s node.JobSpec) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		return n.refuse
	}
	if n.jobs[s.ID] == nil {
		n.jobs[s.ID] = &fakeJob{Job: node.Job{ID: s.ID.String(), Name: s.Name, State: "running", Detached: s.Detached}, spec: s}
		n.order = append(n.order, s.ID)
	}
	return nil
}

// plain are inputs of tasks that read nothing else.
func plain(in ...[]byte) []node.TaskInput {
	out := make([]node.TaskInput, len(in))
	for i, b := range in {
		out[i].Data = b
	}
	return out
}

func (n *fakeNode) AddTasks(_ context.Context, id protocol.JobID, first uint32, ins []node.TaskInput) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	j, err := n.job(id)
	if err != nil {
		return err
	}
	if j.State != "running" && first >= j.Tasks {
		n.refusals++
		n.changed.Broadcast()
		return &node.Error{Code: node.CodeRefused, Message: "ended"}
	}
	have := uint32(len(j.inputs))
	if first > have {
		return &node.Error{Code: node.CodeBadRequest, Message: "gap"}
	}
	if have-first >= uint32(len(ins)) {
		return nil
	}
	if j.closed {
		return &node.Error{Code: node.CodeRefused, Message: "closed"}
	}
	for _, in := range ins[have-first:] {
		j.inputs, j.blobs = append(j.inputs, in.Data), append(j.blobs, in.Blobs)
	}
	j.Tasks = uint32(len(j.inputs))
	n.run(j)
	return nil
}

func (n *fakeNode) CloseJob(_ context.Context, id protocol.JobID, count uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	j, err := n.job(id)
	if err != nil {
		return err
	}
	if count != uint32(len(j.inputs)) {
		return &node.Error{Code: node.CodeBadRequest, Message: "count"}
	}
	j.closed = true
	n.run(j)
	return nil
}

func (n *fakeNode) Watch(ctx context.Context, id protocol.JobID, cursor uint32, most uint64, deliver func([]node.TaskResult) error) (node.Job, error) {
	defer context.AfterFunc(ctx, func() { n.mu.Lock(); n.changed.Broadcast(); n.mu.Unlock() })()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watchers++
	n.most = most
	n.most = most
	defer func() { n.watchers--; n.changed.Broadcast() }()
	n.changed.Broadcast()
	j, err := n.job(id)
	if err != nil {
		return node.Job{}, err
	}
	for {
		if ctx.Err() != nil {
			return j.Job, ctx.Err()
		}
		if int(cursor) < len(j.results) {
			rs := slices.Clone(j.results[cursor:min(len(j.results), int(cursor)+1024)])
			n.mu.Unlock()
			err := deliver(rs)
			n.mu.Lock()
			if err != nil {
				return j.Job, err
			}
			cursor += uint32(len(rs))
			if n.lose > 0 {
				n.lose--
				return j.Job, node.ErrWatchLost
			}
			continue
		}
		if ended(j.Job) && (!n.lateEnd || n.refusals >= 2) {
			return j.Job, nil
		}
		n.changed.Wait()
	}
}

func (n *fakeNode) Jobs(context.Context) ([]node.Job, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var js []node.Job
	for _, id := range slices.Backward(n.order) {
		js = append(js, n.jobs[id].Job)
	}
	return js, nil
}

func (n *fakeNode) Job(_ context.Context, id protocol.JobID) (node.Job, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	j, err := n.job(id)
	if err != nil {
		return node.Job{}, err
	}
	return j.Job, nil
}

func (n *fakeNode) Inputs(_ context.Context, id protocol.JobID, first uint32, count int) ([][]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	j, err := n.job(id)
	if err != nil {
		return nil, err
	}
	lo := min(int(first), len(j.inputs))
	return j.inputs[lo:min(lo+count, len(j.inputs))], nil
}

func (n *fakeNode) Result(_ context.Context, id protocol.JobID, i uint32) (node.TaskResult, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	j, err := n.job(id)
	if err != nil || int(i) >= len(j.results) {
		return node.TaskResult{}, false, err
	}
	return j.results[i], true, nil
}

func (n *fakeNode) Rerun(ctx context.Context, of protocol.JobID, r node.Rerun) (node.Job, error) {
	n.mu.Lock()
	j, err := n.job(of)
	n.mu.Unlock()
	if err != nil {
		return node.Job{}, err
	}
	n.OpenJob(ctx, node.JobSpec{ID: r.ID, Detached: r.Detached, RerunOf: of})
	if !r.Failed {
		n.AddTasks(ctx, r.ID, 0, plain(j.inputs...))
	}
	n.CloseJob(ctx, r.ID, uint32(len(j.inputs)))
	return n.Job(ctx, r.ID)
}

func (n *fakeNode) Connect(_ context.Context, addr string) (node.Connected, error) {
	if addr == "127.0.0.1:4001" || addr == "12D3gone" {
		return node.Connected{}, &node.Error{Code: node.CodeUnavailable, Message: addr + ": nothing listens there"}
	}
	return node.Connected{Peer: "12D3new", Name: "new"}, nil
}

func (n *fakeNode) SetGroup(_ context.Context, group protocol.JobID, limit int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if group.IsZero() {
		return &node.Error{Code: node.CodeBadRequest, Message: "the group has no id"}
	}
	n.groups[group] = limit
	return nil
}

func (n *fakeNode) Cancel(_ context.Context, id protocol.JobID, index *uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	j, err := n.job(id)
	if err != nil {
		return err
	}
	if index == nil && j.State == "running" {
		j.State = "cancelled"
	}
	n.changed.Broadcast()
	return nil
}

func (n *fakeNode) PutBlob(_ context.Context, r io.Reader, sum []byte) (node.Blob, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return node.Blob{}, err
	}
	id := protocol.BlobID{0: byte(len(b)), 1: 7}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.blobsHere[id] = b
	return node.Blob{ID: id.String(), Size: int64(len(b))}, nil
}

func (n *fakeNode) OpenBlob(_ context.Context, name string) (io.ReadSeekCloser, node.Blob, error) {
	id, _ := protocol.ParseBlobID(name)
	n.mu.Lock()
	defer n.mu.Unlock()
	b, ok := n.blobsHere[id]
	if !ok {
		return nil, node.Blob{}, &node.Error{Code: node.CodeNoBlob, Message: "no blob " + name}
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{bytes.NewReader(b), io.NopCloser(nil)}, node.Blob{ID: name, Size: int64(len(b))}, nil
}

func (n *fakeNode) Blobs(context.Context) (node.BlobStore, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := node.BlobStore{Quota: 1000, Blobs: []node.Blob{}}
	for id, b := range n.blobsHere {
		st.Occupied += int64(len(b))
		st.Blobs = append(st.Blobs, node.Blob{ID: id.String(), Size: int64(len(b))})
	}
	return st, nil
}

func (n *fakeNode) GCBlobs(_ context.Context, to int64) (freed int64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, b := range n.blobsHere {
		freed += int64(len(b))
		delete(n.blobsHere, id)
	}
	return freed, nil
}

func (n *fakeNode) DeleteBlob(_ context.Context, name string) error {
	return &node.Error{Code: node.CodeRefused, Message: "blob " + name + " is needed"}
}

func (n *fakeNode) Invite(_ context.Context, o node.InviteOptions) (string, error) {
	n.invited = o
	return "mesh1ticket", nil
}
func (n *fakeNode) InviteCode(_ context.Context, o node.InviteOptions) (string, error) {
	n.invited = o
	return "7-kitchen-sunset", nil
}

func (n *fakeNode) Code(_ context.Context, code string, withdraw bool) (node.Code, error) {
	if code != "7-kitchen-sunset" {
		return node.Code{}, &node.Error{Code: node.CodeBadRequest, Message: "no such code"}
	}
	c := node.Code{State: "used", Uses: 1, Joined: []node.Joiner{{Peer: "12D3new", Name: "new"}}}
	if withdraw {
		c.State = "expired"
	}
	return c, nil
}

func (n *fakeNode) JoinCode(_ context.Context, code, at string) (node.Joined, error) {
	return node.Joined{Mesh: "mesh of " + code, Peer: "12D3new", Name: at}, nil
}

func (n *fakeNode) ConnectBySecret(_ context.Context, addr, secret string) (node.Connected, error) {
	return node.Connected{Peer: "12D3" + secret, Name: addr}, nil
}

func (n *fakeNode) Join(_ context.Context, t string) (string, error) {
	if t == "used" {
		return "", &node.Error{Code: node.CodeRefused, Message: "the ticket was used already", Fix: "ask for another: meshnode invite"}
	}
	n.joined = t
	return "home", nil
}
func (n *fakeNode) Leave(_ context.Context, force bool) (node.Left, error) {
	n.joined = ""
	return node.Left{Told: 2, Restart: force}, nil
}
func (n *fakeNode) Recover(_ context.Context, code string) (string, error) {
	return "mesh of " + code, nil
}
func (n *fakeNode) Revoke(_ context.Context, id, reason string, with bool) (node.Revoked, error) {
	return node.Revoked{Peer: id, Name: reason, Keeps: []string{fmt.Sprint(with)}}, nil
}
func (n *fakeNode) Rename(_ context.Context, id, name string) error {
	n.said = "rename " + id + " " + name
	return nil
}
func (n *fakeNode) Forget(_ context.Context, id string) error { n.said = "forget " + id; return nil }
func (n *fakeNode) Allow(_ context.Context, id string, o node.PeerPolicy) error {
	n.said = fmt.Sprintf("allow %s %v %v", id, o.Runtimes, o.Work)
	return nil
}
func (n *fakeNode) Deny(_ context.Context, id string, o node.PeerPolicy) error {
	n.said = fmt.Sprintf("deny %s %v %v", id, o.Runtimes, o.Work)
	return nil
}
func (n *fakeNode) SetSlots(_ context.Context, k int) error        { n.slots = k; return nil }
func (n *fakeNode) Pause(_ context.Context, d time.Duration) error { n.paused = d; return nil }
func (n *fakeNode) Drain(context.Context) error                    { n.paused = -2; return nil }
func (n *fakeNode) WhyJob(_ context.Context, id protocol.JobID) (node.Why, error) {
	return node.Why{Subject: "job " + id.Short()}, nil
}
func (n *fakeNode) WhyTask(_ context.Context, id protocol.JobID, index uint32) (node.Why, error) {
	return node.Why{Subject: fmt.Sprintf("task %s/%d", id.Short(), index), Reasons: []tasks.Reason{{Code: "runs", Text: "x runs it", Fix: "nothing"}}}, nil
}
func (n *fakeNode) WhyPeer(_ context.Context, id string) (node.Why, error) {
	if !strings.HasPrefix(id, "12D3") {
		return node.Why{}, &node.Error{Code: node.CodeNoPeer, Message: "no such peer"}
	}
	return node.Why{Subject: "node " + id}, nil
}
func (n *fakeNode) Ping(_ context.Context, id string) (node.Ping, error) {
	return node.Ping{ID: id, Answered: true, RTT: 1}, nil
}
func (n *fakeNode) Doctor(context.Context) (doctor.Report, error) {
	return doctor.NewReport(true, []doctor.Finding{{Check: doctor.CheckNode, State: doctor.OK, Text: "it runs"}}), nil
}
func (n *fakeNode) Resume(context.Context) error { n.paused = -1; return nil }
func (n *fakeNode) Shutdown()                    { close(n.down) }
func (n *fakeNode) await(t testing.TB, what string, cond func() bool) { // cond runs under n.mu
	t.Helper()
	timer := time.AfterFunc(10*time.Second, func() { n.mu.Lock(); n.changed.Broadcast(); n.mu.Unlock() })
	defer timer.Stop()
	end := time.Now().Add(10 * time.Second)
	n.mu.Lock()
	defer n.mu.Unlock()
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
		n.changed.Wait()
	}
}

// serve runs a server for n in dir until stop is called (or the test ends).
func serve(t testing.TB, dir, network string, n Node) (stop func()) {
	t.Helper()
	ln, err := Listen(dir, network)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := New(n, ln, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("the server did not stop in 10 s")
			}
			ln.Close()
		})
	}
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not ready in 10 s")
	}
	return stop
}

func dial(t testing.TB, dir string) *Client {
	t.Helper()
	c, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
