package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"meshnode/node/control"
)

// program is a program with a private node: it passes the node's first line on and waits to be killed. With the word
// "forked", another process of its own holds the node's standard input open, too.
func program() {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	if os.Args[1] == "hold" { // that other process: its standard output is the pipe's end
		time.Sleep(time.Minute)
		return
	}
	node := exec.Command("meshnode", "up", "--private", "--slots", "1")
	node.Stdin, node.Stdout, node.Stderr = r, os.Stdout, os.Stderr
	if err := node.Start(); err != nil {
		panic(err)
	}
	r.Close()
	if os.Args[1] == "forked" {
		holder := exec.Command("private-program", "hold")
		holder.Stdout = w
		if err := holder.Start(); err != nil {
			panic(err)
		}
		fmt.Fprintln(os.Stderr, "holder", holder.Process.Pid)
	}
	time.Sleep(time.Minute)
	w.Close()
}

// startPrivate starts a command whose standard output begins with a private node's line.
func startPrivate(t *testing.T, tmp, name string, args ...string) (cmd *exec.Cmd, stdin io.Closer, ready privateReady, errs *tail) {
	t.Helper()
	errs = &tail{}
	cmd = exec.Command(must(exec.LookPath(name)), args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "TMP="+tmp, "TEMP="+tmp, "MESHNODE_DATA_DIR="+filepath.Join(tmp, "other"))
	cmd.Stderr = errs
	cmd.WaitDelay = time.Second // for a process that holds its standard error
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || json.Unmarshal([]byte(line), &ready) != nil {
		t.Fatalf("first line %q, %v, %s", line, err, errs)
	}
	return cmd, in, ready, errs
}

// busy has a private node compute for ever, and returns the worker processes.
func busy(t *testing.T, ready privateReady) []int {
	t.Helper()
	c, err := control.Dial(ready.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if st, err := c.Status(t.Context()); err != nil || st.ID != ready.ID || st.PID != ready.PID || st.Slots != 1 || len(st.Addrs) != 0 || st.DataDir != ready.DataDir {
		t.Errorf("status %+v, %v; the line says %+v", st, err, ready)
	}
	submit := exec.Command(must(exec.LookPath("meshnode")), "submit", "--data-dir", ready.DataDir, "-d", loop, ":::", "loop")
	if b, err := submit.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	await(t, "a task that runs", func() bool {
		j, err := c.Job(t.Context(), "@last")
		return err == nil && j.Running == 1
	})
	if runtime.GOOS != "linux" {
		return nil
	}
	var pids []int
	await(t, "a worker process", func() bool { // it is started after the task is said to run
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", ready.PID))
		for _, l := range lists {
			b, _ := os.ReadFile(l)
			for _, f := range strings.Fields(string(b)) {
				pid, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
		}
		return len(pids) > 0
	})
	return pids
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// gone waits until nothing is left of a private node.
func gone(t *testing.T, ready privateReady, workers []int) {
	t.Helper()
	for _, pid := range append(workers, ready.PID) {
		await(t, fmt.Sprintf("the end of process %d", pid), func() bool { return !alive(pid) })
	}
	await(t, "the end of "+ready.DataDir, func() bool {
		_, err := os.Stat(ready.DataDir)
		return os.IsNotExist(err)
	})
}

// shortTemp is a temporary directory whose path leaves room for that of a socket.
func shortTemp(t *testing.T) string {
	dir, err := os.MkdirTemp("", "mn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestPrivate(t *testing.T) {
	t.Parallel()
	tmp := shortTemp(t)
	cmd, stdin, ready, errs := startPrivate(t, tmp, "meshnode", "up", "--private", "--slots", "1")
	if filepath.Dir(ready.DataDir) != tmp || ready.PID != cmd.Process.Pid || ready.Version != version || ready.Slots != 1 {
		t.Errorf("%+v", ready)
	}
	info, err := os.Stat(ready.DataDir)
	if err != nil || runtime.GOOS != "windows" && (info.Mode().Perm() != 0o700 || ready.Socket == "") {
		t.Errorf("%v, %v, socket %q", info, err, ready.Socket)
	}
	workers := busy(t, ready)
	if cmd.Process.Signal(os.Interrupt) == nil { // it is meant for the program
		time.Sleep(50 * time.Millisecond)
		if c, err := control.Dial(ready.DataDir); err != nil {
			t.Error(err)
		} else if _, err := c.Status(t.Context()); err != nil {
			t.Error(err)
		}
	}
	stdin.Close()
	if code := wait(t, cmd, 10*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	gone(t, ready, workers)
	if left, _ := os.ReadDir(tmp); len(left) > 0 || errs.String() != "" {
		t.Errorf("left: %v, standard error: %q", left, errs)
	}
}

// A program that is killed leaves nothing, even if a process that it forked holds its node's standard input.
func TestPrivateProgramKilled(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"alone", "forked"} {
		if kind == "forked" && runtime.GOOS == "windows" {
			continue // there is no fork there
		}
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cmd, _, ready, errs := startPrivate(t, shortTemp(t), "private-program", kind)
			workers := busy(t, ready)
			if kind == "forked" {
				pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(errs.String(), "holder ")))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if p, err := os.FindProcess(pid); err == nil {
						p.Kill()
					}
				})
			}
			cmd.Process.Kill()
			cmd.Wait()
			gone(t, ready, workers)
		})
	}
}

// A node that is killed leaves its directory; the next one removes it, and those of living nodes it does not.
func TestPrivateNodeKilled(t *testing.T) {
	t.Parallel()
	tmp := shortTemp(t)
	cmd, _, dead, _ := startPrivate(t, tmp, "meshnode", "up", "--private", "--slots", "1")
	_, _, living, _ := startPrivate(t, tmp, "meshnode", "up", "--private", "--slots", "1")
	other := filepath.Join(tmp, privatePrefix+"file")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	removeDeadPrivate(tmp, time.Minute)
	if _, err := os.Stat(dead.DataDir); err != nil {
		t.Error("a directory that was made just now is removed:", err)
	}
	hourAgo := time.Now().Add(-time.Hour)
	for _, dir := range []string{dead.DataDir, living.DataDir} {
		if err := os.Chtimes(dir, hourAgo, hourAgo); err != nil {
			t.Fatal(err)
		}
	}
	_, _, next, _ := startPrivate(t, tmp, "meshnode", "up", "--private", "--slots", "1")
	await(t, "the end of "+dead.DataDir, func() bool {
		_, err := os.Stat(dead.DataDir)
		return os.IsNotExist(err)
	})
	for _, path := range []string{living.DataDir, next.DataDir, other} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestPrivateRefused(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-d"}, {"--slots", "many"}, {"--log-level", "loud"}} {
		code, out, errs := call(t.Context(), env{}, append([]string{"up", "--private"}, args...)...)
		var e struct {
			Error struct{ Code, Message, Fix string }
		}
		if err := json.Unmarshal([]byte(out), &e); err != nil || code != exitFailure || e.Error.Code != codeUsage || !strings.Contains(e.Error.Message, args[0]) && args[0] != "-d" || strings.Count(errs, "\n") != 1 {
			t.Errorf("%v: exit code %d, %q, %q", args, code, out, errs)
		}
	}
}
