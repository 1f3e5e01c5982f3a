package node

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"meshnode/discovery/members"
	"meshnode/protocol"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/wasm"
)

// maxLateBeat is what a beat may be late while a task computes: the lease takes six beats, so this is far from an
// expiry, and what a busy machine's scheduler adds stays below it.
const maxLateBeat = 300 * time.Millisecond

// TestBeatsWhileATaskComputes watches the beats of a node in a process of its own, whose task computes for 5 s.
func TestBeatsWhileATaskComputes(t *testing.T) {
	t.Parallel()
	if late := lateBeat(t, "worker"); late > maxLateBeat {
		t.Errorf("a beat was %v late while a task computed in a worker process, at most %v", late, maxLateBeat)
	}
}

// TestBeatsWouldShowATaskInsideTheNode shows that the test above can fail: with the task inside the node's process,
// a garbage collection stops the whole node until the task ends.
func TestBeatsWouldShowATaskInsideTheNode(t *testing.T) {
	t.Parallel()
	if late := lateBeat(t, "inside"); late < 600*time.Millisecond {
		t.Errorf("a beat was only %v late while a task computed inside the node", late)
	}
}

// lateBeat is by how much the latest beat of 5 s of computing was late, with the task where it says.
func lateBeat(t *testing.T, where string) time.Duration {
	a := start(t, "a", 0)
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	in, _, s := startChild(t, ctx, a, where)

	f, err := os.ReadFile("../tasks/executor/wasm/testdata/misbehave.wasm")
	if err != nil {
		t.Fatal(err)
	}
	code := put(t, a, strings.NewReader(string(f)))
	job := protocol.NewJobID()
	if err := a.OpenJob(ctx, JobSpec{ID: job, Runtime: "wasm", Code: code, Detached: true}); err != nil {
		t.Fatal(err)
	}
	if err := a.AddTasks(ctx, job, 0, []TaskInput{{Data: []byte("loop")}}); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseJob(ctx, job, 1); err != nil {
		t.Fatal(err)
	}
	for {
		ps, err := a.Peers(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(ps) == 2 && ps[1].Running == 1 { // said its beat: the task computes, and beats come twice a second
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the task does not start: %+v", ps)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := io.WriteString(in, "compute\n"); err != nil {
		t.Fatal(err)
	}
	var longest time.Duration
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		longest = max(longest, time.Duration(a.loop.now()-s.readAt.Load()))
	}
	late := longest - 500*time.Millisecond
	t.Logf("task in the %s process: the latest beat came %v late", where, late.Round(time.Millisecond))
	return late
}

// startChild starts a node of a's mesh in a process of its own, and waits for it. The process ends with the test.
func startChild(t *testing.T, ctx context.Context, a *Node, where string, env ...string) (in io.Writer, p *os.Process, s *session) {
	t.Helper()
	ticket, err := a.Invite(ctx, InviteOptions{Mine: true})
	if err != nil {
		t.Fatal(err)
	}
	self, _ := os.Executable()
	c := exec.CommandContext(t.Context(), self, "node", where, t.TempDir(), ticket)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if in, err = c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	c.Stderr, c.Env = &testLog{t: t}, append(os.Environ(), env...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	id, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child := protocol.NodeID(strings.TrimSpace(id))
	for s = a.sessions.get(child); s == nil; s = a.sessions.get(child) {
		if ctx.Err() != nil {
			t.Fatal("the node in its own process does not connect")
		}
		time.Sleep(10 * time.Millisecond)
	}
	return in, c.Process, s
}

// nodeMain is a node in a process of its own.
func nodeMain(where, dir, ticket string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	fail := func(err error) int { log.Error("test node", "err", err); return 1 }
	m, err := members.Open(dir, members.Options{Name: "child", Logger: log})
	if err != nil {
		return fail(err)
	}
	if err := m.Join(context.Background(), ticket, members.JoinOptions{}); err != nil {
		return fail(err)
	}
	self, _ := os.Executable()
	n, err := New(Config{
		DataDir: dir, Name: "child", Slots: 1, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Version: "test", Logger: log,
		Runtimes: []executor.Runtime{wasm.New(wasm.Config{Command: []string{self, "worker"}, Env: []string{"MESHNODE_CACHE_DIR=" + dir}})},
	})
	if err != nil {
		return fail(err)
	}
	if where == "inside" {
		go func() {
			bufio.NewReader(os.Stdin).ReadString('\n')
			computeInside()
		}()
	}
	os.Stdout.WriteString(string(n.ID()) + "\n")
	if err := n.Run(context.Background()); err != nil {
		return fail(err)
	}
	return 0
}

// computeInside runs wasm in this process, as no node does, and collects garbage as any node does.
func computeInside() {
	ctx := context.Background()
	code, err := os.ReadFile("../examples/wasm/sum_primes.wasm")
	if err != nil {
		panic(err)
	}
	r := wazero.NewRuntime(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	m, err := r.CompileModule(ctx, code)
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			time.Sleep(100 * time.Millisecond)
			runtime.GC()
		}
	}()
	for { // some seconds each: then a beat falls due in the first half of each stop, wherever it begins
		r.InstantiateModule(ctx, m, wazero.NewModuleConfig().WithName("").WithStdin(strings.NewReader("6000000")).WithStdout(io.Discard))
	}
}
