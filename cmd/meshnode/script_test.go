package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"meshnode/node/control"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata/script")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshnode": main, "private-program": program, "meshnode-bad-disk": badDisk})
}

// The scripts run the real binary (this test under another name) against real nodes. They have some commands
// of their own:
//
//	code N meshnode ARGS…    the exit code is N
//	node NAME [FLAGS…]       starts a node in the background in the directory NAME, which becomes MESHNODE_DATA_DIR;
//	                         it is stopped with the script
//	until REGEXP meshnode ARGS…   runs it until its output has the expression, for 20 s at most
//	named NAME meshnode ARGS…     sets a variable to what it prints
//	tidy FILE                the output of the last command, without what differs from run to run
//	keys K…                  the output is JSON, one object a line or an array of them, each with these fields
func TestScripts(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.MkdirTemp("", "meshnode-cache-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(cache) })
	python := interpreter()
	testscript.Run(t, testscript.Params{
		Condition: func(what string) (bool, error) {
			if what != "python" {
				return false, fmt.Errorf("unknown condition %q", what)
			}
			return python != "", nil
		},
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(e *testscript.Env) error {
			for _, v := range e.Vars {
				if strings.HasPrefix(v, "MESHNODE_") {
					return fmt.Errorf("%s would change the results", v)
				}
			}
			if python != "" { // not a shim, which wants a home
				e.Setenv("PYTHON", python)
				e.Setenv("PATH", filepath.Dir(python)+string(filepath.ListSeparator)+e.Getenv("PATH"))
			}
			component := []byte("\x00asm\x0d\x00\x01\x00")
			if err := os.WriteFile(filepath.Join(e.WorkDir, "component.wasm"), component, 0o666); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(e.WorkDir, "cut.wasm"), append([]byte("\x00asm\x01\x00\x00\x00"), 1, 100, 5), 0o666); err != nil {
				return err
			}
			e.Setenv("MESHNODE_DATA_DIR", filepath.Join(e.WorkDir, "none"))
			e.Setenv("MESHNODE_CACHE_DIR", cache)
			e.Setenv("SUM", filepath.Join(root, "examples/wasm/sum_primes.wasm"))
			e.Setenv("EXAMPLES", filepath.Join(root, "examples"))
			e.Setenv("ECHO", filepath.Join(root, "tasks/executor/wasm/testdata/echo.wasm"))
			e.Setenv("ARGS", filepath.Join(root, "tasks/executor/wasm/testdata/args.wasm"))
			e.Setenv("BAD", filepath.Join(root, "tasks/executor/wasm/testdata/misbehave.wasm"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": cmdCode, "node": cmdNode, "until": cmdUntil, "named": cmdNamed, "tidy": cmdTidy, "keys": cmdKeys},
	})
}

// interpreter is the real one behind python3 or python on PATH; "" if there is none that the packages run on.
func interpreter() string {
	for _, name := range []string{"python3", "python"} {
		out, err := exec.Command(name, "-c", "import sys; print(sys.executable if sys.version_info >= (3, 8) else '')").Output()
		if path := strings.TrimSpace(string(out)); err == nil && path != "" {
			return path
		}
	}
	return ""
}

func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if (got == want) == neg {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func cmdNode(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Setenv("MESHNODE_DATA_DIR", dir)
	ts.Defer(func() { endNode(ts, dir) })
	ts.Check(ts.Exec("meshnode", append([]string{"up", "-d", "--name", args[0], "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0"}, args[1:]...)...))
}

func cmdUntil(ts *testscript.TestScript, _ bool, args []string) {
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("no %q within 20 s: %v", args[0], err)
		}
	}
}

func cmdNamed(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec(args[1], args[2:]...))
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

func endNode(ts *testscript.TestScript, dir string) {
	c, err := control.Dial(dir)
	if err != nil {
		return // the script stopped it
	}
	defer c.Close()
	p, err := os.FindProcess(c.Info().PID)
	ts.Check(err)
	if p.Signal(os.Interrupt) != nil { // Windows
		p.Kill()
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if held, err := control.Held(dir); err == nil && !held {
			return
		}
		if time.Now().After(end) {
			p.Kill()
			ts.Fatalf("the node in %s does not end", dir)
		}
	}
}

var volatile = []struct{ old, new string }{
	{`12D3Koo[0-9A-Za-z]+`, "PEER"},
	{`"(elapsed_ms|queued_ms|run_ms|busy_ms|pid|rtt_ms|attempts)":[0-9.e+-]+`, `"$1":0`},
	{`"(started|submitted)":"[^"]*"`, `"$1":"TIME"`},
	{`\b[0-9a-f]{32}\b`, "JOB"},
	{`\b[0-9a-f]{8}\b`, "JOB8"},
	{`\b[0-9.]+(ms|s)\b`, "TIME"},
	{`\b[0-9-]{10} [0-9:]{8}\b`, "TIME"},
	{`/tcp/[0-9]+`, "/tcp/PORT"},
	{`\b([0-9a-z]{5}-){5,}[0-9a-z]+`, "CODE"},
	{`"(mesh|version)":"[^"]*"`, `"$1":"NAME"`},
}

func cmdTidy(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.ReadFile("stdout") + ts.ReadFile("stderr")
	s = strings.ReplaceAll(s, ts.Getenv("WORK"), "$WORK")
	for _, v := range volatile {
		s = regexp.MustCompile(v.old).ReplaceAllString(s, v.new)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(s), 0o666))
}

func cmdKeys(ts *testscript.TestScript, _ bool, args []string) {
	out := strings.TrimSpace(ts.ReadFile("stdout"))
	if out == "" {
		ts.Fatalf("no output")
	}
	for line := range strings.Lines(out) {
		objects := make([]map[string]json.RawMessage, 1)
		err := json.Unmarshal([]byte(line), &objects[0])
		if err != nil {
			err = json.Unmarshal([]byte(line), &objects)
		}
		if err != nil || len(objects) == 0 {
			ts.Fatalf("%v in %s", err, line)
		}
		for _, o := range objects {
			for _, k := range args {
				if _, ok := o[k]; !ok {
					ts.Fatalf("no %q in %s", k, line)
				}
			}
		}
	}
}

// start runs the binary in a process that signals can be sent to.
func start(t *testing.T, dataDir string, args ...string) (*exec.Cmd, *strings.Builder, *strings.Builder) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no interrupt for another process")
	}
	bin, err := exec.LookPath("meshnode") // testscript put it into PATH
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = append(os.Environ(), "MESHNODE_DATA_DIR="+dataDir)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, &out, &errs
}

func wait(t *testing.T, cmd *exec.Cmd, most time.Duration) int {
	t.Helper()
	timer := time.AfterFunc(most, func() { cmd.Process.Kill() })
	cmd.Wait()
	if !timer.Stop() {
		t.Fatalf("%v did not end within %v", cmd.Args[1:], most)
	}
	return cmd.ProcessState.ExitCode()
}

// startNode starts a node that ends with the test, and returns its client.
func startNode(t *testing.T, dir string, flags ...string) (*exec.Cmd, *control.Client) {
	t.Helper()
	cmd, _, errs := start(t, dir, append([]string{"up", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0"}, flags...)...)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := control.Dial(dir); err == nil {
			t.Cleanup(func() {
				cmd.Process.Signal(os.Interrupt)
				wait(t, cmd, 10*time.Second)
				c.Close()
			})
			return cmd, c
		}
		if time.Now().After(end) {
			t.Fatal("no node after 20 s")
		}
		_ = errs
	}
}

const loop = "../../tasks/executor/wasm/testdata/misbehave.wasm"

// The first Ctrl-C cancels the job and says how to get what is done.
func TestInterruptSubmit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, c := startNode(t, dir, "--slots", "2")
	cmd, out, errs := start(t, dir, "submit", "-k", loop, ":::", "log", "exit 0", "loop")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if j, err := c.Job(t.Context(), "@last"); err == nil && j.Done == 1 && j.Running == 2 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("job %+v, %v\n%s", j, err, errs)
		}
	}
	cmd.Process.Signal(os.Interrupt)
	if code := wait(t, cmd, 10*time.Second); code != exitInterrupted {
		t.Errorf("exit code %d", code)
	}
	j, err := c.Wait(t.Context(), "@last")
	if err != nil || j.State != "cancelled" || j.Done != 1 {
		t.Errorf("job %+v, %v", j, err)
	}
	if want := "is cancelled, 1 of its 3 tasks are done: meshnode results " + j.ID[:8]; !strings.Contains(errs.String(), want) || strings.Count(errs.String(), "\n") != 1 {
		t.Errorf("standard error %q, want %q", errs, want)
	}
	if out.String() != "" { // task 0 never ended, so nothing has its turn
		t.Errorf("standard output %q", out)
	}
}

// The second leaves at once, whatever the node does.
func TestInterruptTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	node, c := startNode(t, dir, "--slots", "1")
	cmd, _, _ := start(t, dir, "submit", loop, ":::", "loop")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if j, err := c.Job(t.Context(), "@last"); err == nil && j.Running == 1 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("job %+v, %v", j, err)
		}
	}
	if err := freeze(node.Process); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { thaw(node.Process) })
	cmd.Process.Signal(os.Interrupt)
	time.Sleep(100 * time.Millisecond) // two signals at once are one
	cmd.Process.Signal(os.Interrupt)
	start := time.Now()
	if code := wait(t, cmd, 10*time.Second); code != exitInterrupted || time.Since(start) > 2*time.Second {
		t.Errorf("exit code %d after %v", code, time.Since(start))
	}
	if err := thaw(node.Process); err != nil {
		t.Fatal(err)
	}
}

// SIGTERM ends a node with a running task within 5 s, with exit code 0.
func TestTerminateNode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	node, c := startNode(t, dir, "--slots", "1")
	cmd, _, _ := start(t, dir, "submit", "-d", loop, ":::", "loop")
	if code := wait(t, cmd, 20*time.Second); code != 0 {
		t.Fatalf("submit -d: %d", code)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if j, err := c.Job(t.Context(), "@last"); err == nil && j.Running == 1 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("job %+v, %v", j, err)
		}
	}
	terminate(node.Process)
	if code := wait(t, node, stopTimeout+time.Second); code != 0 {
		t.Errorf("exit code %d\n%s", code, node.Stderr)
	}
	if held, err := control.Held(dir); held || err != nil {
		t.Errorf("the data directory is still held: %v", err)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	cmd, out, errs := start(t, filepath.Join(tmp, "d"), "demo", "-n", "2")
	_ = errs
	if code := wait(t, cmd, 60*time.Second); code != 0 {
		t.Fatalf("exit code %d\n%s%s", code, out, errs)
	}
	want := regexp.MustCompile(`^sum_primes on 1 node
Job execution statistics:
 job count \| % of all jobs \| job time sum \| time per job \| job server
         8 \|        100\.00 \| +\d+\.\d{4} \| +\d+\.\d{6} \| local
Time elapsed since server creation \d+\.\d+
0 active tasks, 1 cores

sum_primes on 2 nodes
Job execution statistics:
 job count \| % of all jobs \| job time sum \| time per job \| job server
(         \d \| {8}[ \d]\d\d\.\d\d \| +\d+\.\d{4} \| +\d+\.\d{6} \| (local|node-2)
)+Time elapsed since server creation \d+\.\d+
0 active tasks, 2 cores

Each time the same 8 results\. Speed-up, beside min\(nodes, cores\), with \d+ cores:
  1 node +\d+\.\d{3} s    1\.00 of 1
  2 nodes +\d+\.\d{3} s +\d+\.\d\d of \d
$`)
	if !want.MatchString(out.String()) {
		t.Errorf("%s", out)
	}
}

// A demo that is interrupted leaves neither processes nor files.
func TestInterruptDemo(t *testing.T) {
	t.Parallel()
	tmp, err := os.MkdirTemp("", "mn-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no interrupt for another process")
	}
	bin, err := exec.LookPath("meshnode")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	var infos []string
	for end := time.Now().Add(30 * time.Second); len(infos) < 3; time.Sleep(5 * time.Millisecond) {
		infos, _ = filepath.Glob(filepath.Join(tmp, "*/node-*/control.json"))
		if time.Now().After(end) {
			t.Fatal("no nodes after 30 s")
		}
	}
	var pids []int
	for _, f := range infos {
		var i control.Info
		b, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(b, &i)
		}
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, i.PID)
	}
	cmd.Process.Signal(os.Interrupt)
	if code := wait(t, cmd, 15*time.Second); code != exitInterrupted {
		t.Errorf("exit code %d", code)
	}
	if left, _ := os.ReadDir(tmp); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d still runs", pid)
		}
	}
}
