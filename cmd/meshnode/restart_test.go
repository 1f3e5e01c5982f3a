package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const sumPrimes = "../../examples/wasm/sum_primes.wasm"

// primes are inputs of sum_primes, one a line in a file, and what each gives.
func primes(t *testing.T, n int) (file string, want map[string]string) {
	t.Helper()
	const from = 20_000
	var sums []int // of the primes below each number
	sum, composite := 0, make([]bool, from+n)
	for i := range composite {
		sums = append(sums, sum)
		if i < 2 || composite[i] {
			continue
		}
		sum += i
		for k := i * i; k < len(composite); k += i {
			composite[k] = true
		}
	}
	want = map[string]string{}
	var lines strings.Builder
	for i := range n {
		in := strconv.Itoa(from + i)
		want[in] = strconv.Itoa(sums[from+i])
		fmt.Fprintln(&lines, in)
	}
	file = filepath.Join(t.TempDir(), "inputs")
	if err := os.WriteFile(file, []byte(lines.String()), 0o666); err != nil {
		t.Fatal(err)
	}
	return file, want
}

// grown waits until a file has n lines.
func grown(t *testing.T, file string, n int, errs fmt.Stringer) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil && strings.Count(string(b), "\n") >= n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s has not %d lines after 60 s\n%s", file, n, errs)
		}
	}
}

// logged are the numbers in a job log, and how often each is there.
func logged(t *testing.T, file string) map[string]int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for i, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		f := strings.Split(line, "\t")
		if len(f) != 9 {
			t.Fatalf("line %d of the log is %q", i+1, line)
		}
		if i > 0 {
			seen[f[0]]++
		}
	}
	return seen
}

// An attached client outlives kill -9 of its node: started again, the node goes on, and each result comes once.
func TestOriginKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	node, _ := startNode(t, dir, "--slots", "2")
	const tasks = 2000
	file, want := primes(t, tasks)
	log := filepath.Join(dir, "log")
	cmd, out, errs := start(t, dir, "submit", "--json", "--joblog", log, sumPrimes, "::::", file)
	for _, at := range []int{tasks / 4, tasks / 2} {
		grown(t, log, at, errs)
		node.Process.Kill()
		node.Wait()
		node, _ = startNode(t, dir, "--slots", "2")
	}
	if code := wait(t, cmd, 60*time.Second); code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	if s := errs.String(); strings.Count(s, "meshnode: the node is gone; waiting for it to come back: meshnode up -d\n") != 2 || strings.Count(s, "meshnode: the node is back\n") != 2 {
		t.Errorf("standard error:\n%s", s)
	}
	for sc := bufio.NewScanner(strings.NewReader(out.String())); sc.Scan(); {
		var r resultLine
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			t.Fatalf("%v in %s", err, sc.Bytes())
		}
		if strings.TrimSpace(*r.Output) != want[*r.Input] || want[*r.Input] == "" || r.Status != "ok" {
			t.Fatalf("%s: want %q, once", sc.Bytes(), want[*r.Input])
		}
		delete(want, *r.Input)
	}
	if len(want) > 0 {
		t.Errorf("%d results did not come", len(want))
	}
	if seen := logged(t, log); len(seen) != tasks {
		t.Errorf("%d tasks in the log", len(seen))
	}
}

// Ctrl-C ends a client that waits for its node.
func TestInterruptWithoutNode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	node, c := startNode(t, dir, "--slots", "1")
	var errs tail
	cmd := exec.Command(must(exec.LookPath("meshnode")), "submit", loop, ":::", "loop")
	cmd.Env = append(os.Environ(), "MESHNODE_DATA_DIR="+dir)
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if j, err := c.Job(t.Context(), "@last"); err == nil && j.Running == 1 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("job %+v, %v", j, err)
		}
	}
	node.Process.Kill()
	node.Wait()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(errs.String(), "is gone"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the client does not say that the node is gone: %q", errs.String())
		}
	}
	cmd.Process.Signal(os.Interrupt)
	at := time.Now()
	if code := wait(t, cmd, 10*time.Second); code != exitInterrupted || time.Since(at) > 2*time.Second {
		t.Errorf("exit code %d after %v", code, time.Since(at))
	}
	if !strings.Contains(errs.String(), "meshnode: interrupted; the node is gone, and cancels job ") {
		t.Errorf("standard error %q", errs.String())
	}
}

// tail is what a process wrote so far.
type tail struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func must(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}

// A client that is killed leaves a log from which another goes on: all outputs are there, all tasks once in the log.
func TestResumeAfterKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	startNode(t, dir, "--slots", "2")
	const tasks = 1500
	file, want := primes(t, tasks)
	log, all := filepath.Join(dir, "log"), ""
	args := []string{"submit", "--tag", "--joblog", log, "--resume", sumPrimes, "::::", file}
	for _, at := range []int{tasks / 3, tasks * 2 / 3} {
		cmd, out, errs := start(t, dir, args...)
		grown(t, log, at, errs)
		cmd.Process.Kill()
		cmd.Wait()
		all += out.String()
	}
	cmd, out, errs := start(t, dir, args...)
	if code := wait(t, cmd, 60*time.Second); code != 0 || errs.String() != "" {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	all += out.String()
	seen, twice := logged(t, log), 0
	got := map[string]int{}
	for _, line := range strings.Split(strings.TrimSuffix(all, "\n"), "\n") {
		in, sum, _ := strings.Cut(line, "\t")
		if want[in] != sum {
			t.Fatalf("%q, want %q", line, want[in])
		}
		if got[in]++; got[in] > 1 {
			twice++ // written, and the client killed before it was logged
		}
	}
	if len(got) != tasks || len(seen) != tasks || twice > 2 {
		t.Errorf("%d outputs, %d of them twice, %d tasks in the log, want %d", len(got), twice, len(seen), tasks)
	}
	for number, n := range seen {
		if n != 1 {
			t.Errorf("task %s is %d times in the log", number, n)
		}
	}
}

// A join that is interrupted before its node is ready has joined nothing, and does not say otherwise.
func TestInterruptedJoin(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, out, errs := call(ctx, env{}, "--data-dir", t.TempDir(), "join", "meshnode-ticket-x")
	if code != exitInterrupted || out != "" || strings.Contains(errs, "joined") {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
}
