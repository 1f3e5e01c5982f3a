// Package testnet runs meshes of real processes on this machine, for tests: each node is a meshnode of its own with a
// data directory of its own, joined to one mesh over loopback, without mDNS, or on the hosts of a lab (testnet/lab).
// testnet.sh does the first for people.
//
// The table of who imports whom is here too, because it looks at all packages and belongs to none.
package testnet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/testnet/lab"
)

const (
	// startTimeout is for a node on a machine that is busy with other tests.
	startTimeout = 60 * time.Second
	// stopTimeout is above the 5 s that a node may take to stop.
	stopTimeout = 10 * time.Second
	// askTimeout is for a node that is asked for its state.
	askTimeout = 10 * time.Second
	// cliTimeout ends a command that hangs.
	cliTimeout = 2 * time.Minute
)

// Options of a mesh; the zero value is one slot for each node.
type Options struct {
	Slots  int                  // of each node; 0: 1
	Apart  bool                 // do not join the nodes to one mesh
	Args   []string             // more flags of up, for each node
	Env    []string             // more variables
	ArgsOf func(i int) []string // and for node i, from 1
	// Hosts puts node i, from 1, and the commands that talk to it, on Hosts[i-1] and not on loopback. Unless Args or
	// ArgsOf say otherwise, it listens as nodes do: on all interfaces, at a port that it keeps.
	Hosts []*lab.Host
	// Under is a command that starts each node, with the node's command line as its last arguments.
	Under []string
	MDNS  bool // nodes look for each other in the local network, too
}

// Net is a running mesh. It belongs to the test that started it, which ends it.
type Net struct {
	t     testing.TB
	o     Options
	dir   string
	nodes []*Node
}

// Node is one of a Net. Its methods are for the test's goroutine, CLI and Client excepted; they fail the test
// where something goes wrong that is not what the test is about.
type Node struct {
	net    *Net
	i      int
	Dir    string // the data directory
	listen string // on loopback

	cmd       *exec.Cmd
	stdin     io.Closer // the node ends with it, and so with this process
	exited    chan struct{}
	ending    *atomic.Bool // the test ends this process, or knows that it ends
	client    *control.Client
	frozen    bool
	readyLine chan string
	Ready     string // the line that the node printed when it was ready
}

// Start starts n nodes and returns when each sees the n-1 others. All processes are gone when the test is over;
// the test fails if one of them panicked.
func Start(t testing.TB, n int, o Options) *Net {
	t.Helper()
	if o.Slots == 0 {
		o.Slots = 1
	}
	net := &Net{t: t, o: o}
	bin := Binary(t)
	// t.TempDir would put the test's name into the path: too long for a socket.
	dir, err := os.MkdirTemp("", "mn-")
	if err != nil {
		t.Fatal(err)
	}
	net.dir = dir
	t.Cleanup(net.end)
	for i := range n {
		nd := &Node{net: net, i: i + 1, Dir: filepath.Join(dir, strconv.Itoa(i+1)), listen: "/ip4/127.0.0.1/tcp/0"}
		net.nodes = append(net.nodes, nd)
		nd.begin(bin)
	}
	for _, nd := range net.nodes {
		nd.awaitReady()
	}
	if n > 1 && !o.Apart {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		ticket, err := net.Node(1).Client().Invite(ctx, node.InviteOptions{Mine: true, Expires: time.Hour, Uses: n - 1})
		if err != nil {
			t.Fatalf("invite: %v", err)
		}
		for _, nd := range net.nodes[1:] {
			if _, err := nd.Client().Join(ctx, ticket); err != nil {
				t.Fatalf("node %d joins: %v", nd.i, err)
			}
		}
		for _, nd := range net.nodes {
			nd.AwaitPeers(n - 1)
		}
	}
	return net
}

// Node is the i-th node, from 1.
func (n *Net) Node(i int) *Node { return n.nodes[i-1] }

// Environ is the environment of nodes and commands: ours, without what would change them.
func (n *Net) Environ(more ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MESHNODE_") || strings.HasPrefix(v, "MESHNODE_CACHE_DIR=") {
			env = append(env, v)
		}
	}
	env = append(env, "MESHNODE_PYTHON="+interpreter())
	return append(append(env, n.o.Env...), more...)
}

// interpreter is what nodes run Python functions with: the one behind python3 on PATH, which may be a script that takes
// long. "none": there is none.
var interpreter = sync.OnceValue(func() string {
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if path := strings.TrimSpace(string(out)); err == nil && path != "" {
		return path
	}
	return "none"
})

func (nd *Node) begin(bin string) {
	t := nd.net.t
	t.Helper()
	args := append([]string{"up", "--data-dir", nd.Dir, "--name", nd.name(), "--slots", strconv.Itoa(nd.net.o.Slots), "--with-parent"}, nd.net.o.Args...)
	if nd.net.o.Hosts == nil {
		args = append(args, "--listen", nd.listen)
	}
	if !nd.net.o.MDNS {
		args = append(args, "--no-mdns")
	}
	if nd.net.o.ArgsOf != nil {
		args = append(args, nd.net.o.ArgsOf(nd.i)...)
	}
	nd.cmd = nd.place(context.Background(), slices.Concat(nd.net.o.Under, []string{bin}, args)...)
	nd.cmd.Env = nd.net.Environ()
	log, err := os.OpenFile(nd.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	nd.cmd.Stderr = log
	stdin, err := nd.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	nd.stdin = stdin
	stdout, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	nd.cmd.Stdout = w
	if err := nd.cmd.Start(); err != nil {
		stdout.Close()
		t.Fatalf("start node %d: %v", nd.i, err)
	}
	ready, exited, ending, cmd := make(chan string, 1), make(chan struct{}), new(atomic.Bool), nd.cmd
	nd.exited, nd.ending = exited, ending
	go func() {
		cmd.Wait()
		if !ending.Load() {
			t.Errorf("%s ended by itself (%v)", nd.name(), cmd.ProcessState)
		}
		close(exited)
	}()
	go func() {
		defer stdout.Close()
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		ready <- strings.TrimSpace(line)
	}()
	nd.Ready = ""
	nd.readyLine = ready
}

// place makes a command that runs where the node does.
func (nd *Node) place(ctx context.Context, args ...string) *exec.Cmd {
	if nd.net.o.Hosts != nil {
		return nd.net.o.Hosts[nd.i-1].Command(ctx, args...)
	}
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

var listenAddr = regexp.MustCompile(`/ip4/127\.0\.0\.1/tcp/\d+`)

func (nd *Node) awaitReady() {
	t := nd.net.t
	t.Helper()
	select {
	case nd.Ready = <-nd.readyLine:
	case <-time.After(startTimeout):
		t.Fatalf("node %d is not ready after %v", nd.i, startTimeout)
	}
	if !strings.HasPrefix(nd.Ready, "ready: ") {
		t.Fatalf("node %d ended before it was ready", nd.i)
	}
	// On another port its peers would have to find it anew after a restart.
	if a := listenAddr.FindString(nd.Ready); a != "" {
		nd.listen = a
	}
	c, err := control.Dial(nd.Dir)
	if err != nil {
		t.Fatalf("node %d: %v", nd.i, err)
	}
	nd.client = c
}

func (nd *Node) logPath() string { return nd.Dir + ".log" }

// Log is what the node has logged so far, over its restarts.
func (nd *Node) Log() string {
	b, err := os.ReadFile(nd.logPath())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Client talks to the node. It may be used concurrently, and goes on after a restart.
func (nd *Node) Client() *control.Client { return nd.client }

func (nd *Node) name() string { return fmt.Sprint("node", nd.i) }

// PID is the node's process.
func (nd *Node) PID() int { return nd.cmd.Process.Pid }

// Output is what a command did.
type Output struct {
	Stdout, Stderr string
	Code           int
}

// Command is a call of the command line for this node, not yet started.
func (nd *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := nd.place(ctx, append([]string{Binary(nd.net.t)}, args...)...)
	cmd.Env = nd.net.Environ("MESHNODE_DATA_DIR=" + nd.Dir)
	return cmd
}

// CLI calls the command line for this node and waits for its end. It may be called concurrently.
func (nd *Node) CLI(args ...string) Output {
	nd.net.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), cliTimeout)
	defer cancel()
	cmd := nd.Command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		nd.net.t.Errorf("meshnode %q: %v", args, err)
	}
	if ctx.Err() != nil {
		nd.net.t.Errorf("meshnode %q did not end within %v\n%s", args, cliTimeout, errs.String())
	}
	return Output{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// willEnd says that the node's process is about to end by what the test does, as leave ends it: else that fails the test.
func (nd *Node) willEnd() { nd.ending.Store(true) }

func (nd *Node) ended() bool {
	select {
	case <-nd.exited:
		return true
	default:
		return false
	}
}

// Kill ends the node as a crash would, and returns when the process is gone.
func (nd *Node) Kill() {
	nd.net.t.Helper()
	nd.willEnd()
	nd.cmd.Process.Kill()
	nd.awaitExit("SIGKILL")
}

// Stop freezes the node's process, as a closed lid would.
func (nd *Node) Stop() {
	nd.net.t.Helper()
	if err := freeze(nd.cmd.Process); err != nil {
		nd.net.t.Fatalf("freeze node %d: %v", nd.i, err)
	}
	nd.frozen = true
}

// Cont lets a stopped node go on.
func (nd *Node) Cont() {
	nd.net.t.Helper()
	if err := thaw(nd.cmd.Process); err != nil {
		nd.net.t.Fatalf("thaw node %d: %v", nd.i, err)
	}
	nd.frozen = false
}

// Down stops the node cleanly, and returns when the process is gone.
func (nd *Node) Down() {
	nd.net.t.Helper()
	nd.willEnd()
	nd.stdin.Close()
	nd.awaitExit("the end of its standard input")
}

// Restart ends the node, cleanly if it still runs, and starts it again on its data directory and port.
func (nd *Node) Restart() {
	nd.net.t.Helper()
	if !nd.ended() {
		if nd.frozen {
			nd.Cont()
		}
		nd.Down()
	}
	nd.net.Up(nd)
}

// Up starts nodes that ended again, all at once, each on its data directory and port, and returns when they are ready.
func (n *Net) Up(nodes ...*Node) {
	n.t.Helper()
	for _, nd := range nodes {
		nd.client.Close()
		nd.begin(Binary(n.t))
	}
	for _, nd := range nodes {
		nd.awaitReady()
	}
}

func (nd *Node) awaitExit(after string) {
	nd.net.t.Helper()
	select {
	case <-nd.exited:
		nd.frozen = false
	case <-time.After(stopTimeout):
		nd.cmd.Process.Kill()
		nd.net.t.Fatalf("node %d still runs %v after %s\n%s", nd.i, stopTimeout, after, nd.Log())
	}
}

// broken is what no log may hold.
var broken = regexp.MustCompile(`(?m)^(panic:|fatal error:|WARNING: DATA RACE)`)

func (n *Net) end() {
	var wait sync.WaitGroup
	for _, nd := range n.nodes {
		if nd.cmd == nil || nd.exited == nil {
			continue
		}
		wait.Go(func() {
			if nd.frozen {
				thaw(nd.cmd.Process)
			}
			nd.willEnd()
			nd.stdin.Close()
			select {
			case <-nd.exited:
			case <-time.After(stopTimeout):
				nd.cmd.Process.Kill()
				<-nd.exited
				n.t.Errorf("node %d did not stop within %v", nd.i, stopTimeout)
			}
			if nd.client != nil {
				nd.client.Close()
			}
		})
	}
	wait.Wait()
	for _, nd := range n.nodes {
		log := nd.Log()
		if broken.MatchString(log) {
			n.t.Errorf("node %d crashed", nd.i)
		}
		if n.t.Failed() {
			n.t.Logf("log of node %d:\n%s", nd.i, log[max(0, len(log)-8<<10):])
		}
	}
	if err := os.RemoveAll(n.dir); err != nil {
		n.t.Error(err)
	}
}

var build struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// Binary is the program under test: MESHNODE_BIN, or one that is built once for this process. Main removes it.
func Binary(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		if build.path = os.Getenv("MESHNODE_BIN"); build.path != "" {
			build.path, build.err = filepath.Abs(build.path)
			return
		}
		if build.dir, build.err = os.MkdirTemp("", "mn-bin-"); build.err != nil {
			return
		}
		build.path = filepath.Join(build.dir, "meshnode")
		if runtime.GOOS == "windows" {
			build.path += ".exe"
		}
		cmd := exec.Command("go", "build", "-o", build.path, "meshnode/cmd/meshnode")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("go build meshnode/cmd/meshnode: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.path
}

// Main runs the tests of a package that uses Binary, and removes what was built: func TestMain(m *testing.M) {
// os.Exit(testnet.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	if build.dir != "" {
		os.RemoveAll(build.dir)
	}
	return code
}
