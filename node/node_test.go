package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"meshnode/protocol"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/wasm"
)

// The test binary is also the worker process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		os.Exit(wasm.WorkerMain(os.Stdin, os.Stdout, os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == "reader" {
		os.Exit(readerMain())
	}
	if len(os.Args) == 5 && os.Args[1] == "node" {
		os.Exit(nodeMain(os.Args[2], os.Args[3], os.Args[4]))
	}
	code := m.Run()
	os.RemoveAll(cacheDir)
	os.Exit(code)
}

type testLog struct {
	t    testing.TB
	mu   sync.Mutex
	text strings.Builder
}

func (l *testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", strings.TrimSpace(string(b)))
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

var logs sync.Map // *testLog of each *Node

// logged says that a node of start has logged a line with this text.
func logged(n *Node, text string) bool {
	v, _ := logs.Load(n)
	l := v.(*testLog)
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// start runs a node until the test ends.
func start(t testing.TB, name string, slots int) *Node {
	t.Helper()
	n, stop := startIn(t, t.TempDir(), name, slots)
	t.Cleanup(stop)
	return n
}

func startIn(t testing.TB, dir, name string, slots int, more ...func(*Config)) (*Node, func()) {
	t.Helper()
	n := open(t, dir, name, slots, more...)
	return n, run(t, n)
}

// open makes a node that does not run yet.
func open(t testing.TB, dir, name string, slots int, more ...func(*Config)) *Node {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := &testLog{t: t}
	cfg := Config{
		DataDir: dir, Name: name, Slots: slots, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Version: "test",
		Runtimes: []executor.Runtime{wasm.New(wasm.Config{Command: []string{self, "worker"}, Env: []string{"MESHNODE_CACHE_DIR=" + cacheDir}})},
		Logger:   slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	for _, f := range more {
		f(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	logs.Store(n, log)
	return n
}

// run runs a node until the function that it returns is called.
func run(t testing.TB, n *Node) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stopped := false
	return func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("node %s: %v", n.Name(), err)
			}
		case <-time.After(8 * time.Second):
			t.Errorf("node %s does not stop", n.Name())
		}
	}
}

var cacheDir = func() string {
	d, err := os.MkdirTemp("", "mn")
	if err != nil {
		panic(err)
	}
	return d
}()

// join makes b a member of a's mesh, and waits until each sees the other.
func join(t testing.TB, a *Node, bs ...*Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, b := range bs {
		ticket, err := a.Invite(ctx, InviteOptions{Mine: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Join(ctx, ticket); err != nil {
			t.Fatal(err)
		}
	}
	all := append([]*Node{a}, bs...)
	for _, n := range all {
		for {
			st, err := n.Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if st.Peers == len(all)-1 {
				break
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				ps, _ := n.Peers(context.Background())
				t.Fatalf("%s sees %d of %d peers: %+v", n.Name(), st.Peers, len(all)-1, ps)
			}
		}
	}
}

// submit runs a job of a module in examples/wasm and returns its results by index.
func submit(t testing.TB, n *Node, module string, inputs [][]byte, more ...func(*JobSpec)) ([]TaskResult, Job) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	f, err := os.Open("../examples/wasm/" + module)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code := put(t, n, f)
	id := protocol.NewJobID()
	spec := JobSpec{ID: id, Name: t.Name(), Runtime: "wasm", Code: code}
	for _, f := range more {
		f(&spec)
	}
	if err := n.OpenJob(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if err := n.AddTasks(ctx, id, 0, plain(inputs)); err != nil {
		t.Fatal(err)
	}
	if err := n.CloseJob(ctx, id, uint32(len(inputs))); err != nil {
		t.Fatal(err)
	}
	out := make([]TaskResult, len(inputs))
	seen := map[uint32]bool{}
	j, err := n.Watch(ctx, id, 0, protocol.MaxOutput, func(rs []TaskResult) error {
		for _, r := range rs {
			if seen[r.Index] {
				t.Errorf("task %d delivered twice", r.Index)
			}
			seen[r.Index] = true
			out[r.Index] = r
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) != len(inputs) {
		t.Fatalf("%d of %d results", len(seen), len(inputs))
	}
	return out, j
}

func numbers(n int) [][]byte {
	var in [][]byte
	for i := range n {
		in = append(in, fmt.Append(nil, 1000+i))
	}
	return in
}

// put puts a blob.
func put(t testing.TB, n *Node, r io.Reader) protocol.BlobID {
	t.Helper()
	b, err := n.PutBlob(context.Background(), r, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := protocol.ParseBlobID(b.ID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// plain are inputs of tasks that read nothing else.
func plain(in [][]byte) []TaskInput {
	out := make([]TaskInput, len(in))
	for i, b := range in {
		out[i].Data = b
	}
	return out
}

func TestOneNode(t *testing.T) {
	t.Parallel()
	n := start(t, "a", 2)
	rs, j := submit(t, n, "sum_primes.wasm", [][]byte{[]byte("100000"), []byte("10")})
	if got := strings.TrimSpace(string(rs[0].Output)); got != "454396537" {
		t.Fatalf("sum of primes below 100000: %q, %+v", got, rs[0])
	}
	if j.State != "done" || j.Done != 2 {
		t.Fatalf("%+v", j)
	}
}

func TestThreeNodesShare(t *testing.T) {
	t.Parallel()
	a, b, c := start(t, "a", 1), start(t, "b", 1), start(t, "c", 1)
	join(t, a, b, c)
	rs, j := submit(t, a, "sum_primes.wasm", numbers(300))
	for i, r := range rs {
		if r.Status != protocol.Status_OK {
			t.Fatalf("task %d: %+v", i, r)
		}
	}
	if len(j.Peers) < 2 {
		t.Errorf("only %+v worked", j.Peers)
	}
	t.Logf("%+v", j)
}
