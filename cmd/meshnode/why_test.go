package main

import (
	"bufio"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/tasks"
)

// TestFixesNameWhatThereIs: what a reason tells people to type is a command of this binary, with a flag that it has.
func TestFixesNameWhatThereIs(t *testing.T) {
	t.Parallel()
	c := &cli{env: env{getenv: func(string) (string, bool) { return "", false }}}
	root := c.root()
	command, flag := regexp.MustCompile(`meshnode ([a-z]+)`), regexp.MustCompile(`--[a-z-]+`)
	var flags []string
	some := 0
	for _, r := range tasks.Reasons() {
		for _, m := range command.FindAllStringSubmatch(r.Fix, -1) {
			cmd, _, err := root.Find([]string{m[1]})
			if err != nil || cmd == root {
				t.Errorf("%s: %q: there is no meshnode %s", r.Code, r.Fix, m[1])
			}
			some++
		}
		flags = append(flags, flag.FindAllString(r.Text+" "+r.Fix, -1)...)
	}
	for _, f := range flags {
		if !slices.ContainsFunc(root.Commands(), func(cmd *cobra.Command) bool { return cmd.Flags().Lookup(f[2:]) != nil }) {
			t.Errorf("no command has the flag %s", f)
		}
		some++
	}
	if some < 20 {
		t.Errorf("only %d commands and flags found in the words", some)
	}
}

// Drain waits for what runs; interrupted, it leaves the node draining; resumed by somebody, it says so. Slots that come are
// used at once, and those that go kill nothing.
func TestDrain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, c := startNode(t, dir, "--slots", "2")
	until := func(what string, ok func(node.Status) bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if s, err := c.Status(t.Context()); err == nil && ok(s) {
				return
			} else if time.Now().After(end) {
				t.Fatalf("%s: %+v, %v", what, s, err)
			}
		}
	}
	submit, _, _ := start(t, dir, "submit", loop, ":::", "loop", "loop", "loop", "loop")
	until("two run", func(s node.Status) bool { return s.Running == 2 })
	if err := c.SetSlots(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	until("a third one runs", func(s node.Status) bool { return s.Running == 3 })
	if err := c.SetSlots(t.Context(), 1); err != nil {
		t.Fatal(err)
	}

	drain := func() (*exec.Cmd, func(string) string) { return follow(t, dir, "drain") }
	cmd, read := drain()
	if got := read("draining: 3 running"); !strings.Contains(got, "draining: 3 running, 0 to go back") && !strings.Contains(got, "draining: 3 running, 1 to go back") {
		t.Errorf("no progress: %q", got)
	}
	until("drained", func(s node.Status) bool {
		return s.Paused != nil && *s.Paused == "drained by its owner" && s.Running == 3 && s.Slots == 1
	})
	cmd.Process.Signal(os.Interrupt)
	got := read("")
	if code := wait(t, cmd, 10*time.Second); code != exitInterrupted || !strings.HasSuffix(got, "interrupted; the node goes on draining, until meshnode resume\n") {
		t.Errorf("interrupted: exit code %d, %q", code, got)
	}
	if s, err := c.Status(t.Context()); err != nil || s.Paused == nil || s.Running != 3 {
		t.Errorf("after the interrupt: %+v, %v", s, err)
	}

	cmd, read = drain()
	read("draining: 3 running")
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	got = read("")
	if code := wait(t, cmd, 10*time.Second); code != exitFailure || !strings.Contains(got, "somebody resumed the node") {
		t.Errorf("resumed: exit code %d, %q", code, got)
	}

	cmd, read = drain()
	read("draining: 3 running")
	if _, err := c.Cancel(t.Context(), "@last", nil); err != nil {
		t.Fatal(err)
	}
	got = read("")
	if code := wait(t, cmd, 20*time.Second); code != 0 || !strings.HasSuffix(got, "meshnode: drained: nothing runs here any more\n") {
		t.Errorf("ended: exit code %d, %q", code, got)
	}
	wait(t, submit, 10*time.Second)
}

// TestWaitsAreTold: who watches a job that no node can run is told so.
func TestWaitsAreTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	startNode(t, dir, "--slots", "1")
	cmd, read := follow(t, dir, "submit", "--on", "gpu", loop, ":::", "loop")
	got := read("waits")
	if !regexp.MustCompile(`^meshnode: job [0-9a-f]{8} waits: no node can run it now: .*gpu.*; meshnode why [0-9a-f]{8}\n$`).MatchString(got) {
		t.Errorf("told %q", got)
	}
	cmd.Process.Signal(os.Interrupt)
	got = read("")
	if code := wait(t, cmd, 10*time.Second); code != exitInterrupted || strings.Contains(got, "waits") {
		t.Errorf("interrupted: exit code %d, %q", code, got)
	}
}

// follow starts a command. A line of its standard error at a time, as it is written, read returns what comes up to one that
// has the text, or up to the end.
func follow(t *testing.T, dir string, args ...string) (cmd *exec.Cmd, read func(text string) string) {
	t.Helper()
	bin, err := exec.LookPath("meshnode")
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), bin, append([]string{args[0], "--data-dir", dir}, args[1:]...)...)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(pipe)
	return cmd, func(text string) (all string) {
		for lines.Scan() {
			all += lines.Text() + "\n"
			if text != "" && strings.Contains(all, text) {
				break
			}
		}
		return all
	}
}
