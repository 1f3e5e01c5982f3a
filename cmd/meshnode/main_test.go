package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
)

// call runs the command line in this process.
func call(ctx context.Context, e env, args ...string) (code int, stdout, stderr string) {
	var out, errs strings.Builder
	e.stdout, e.stderr = &out, &errs
	if e.stdin == nil {
		e.stdin = strings.NewReader("")
	}
	if e.getenv == nil {
		e.getenv = func(string) (string, bool) { return "", false }
	}
	code = run(ctx, e, args)
	return code, out.String(), errs.String()
}

func TestClean(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain\ttext\n":            "plain\ttext\n",
		"grün 日本 👩‍💻"[:13]:         "grün 日本 ",
		"\x1b]0;title\x07\x1b[2J":  `\x1b]0;title\x07\x1b[2J`,
		"a\rb\bc":                  `a\x0db\x08c`,
		"\u009b2J":                 `\u009b2J`,
		"abc\u202etxt.exe":         `abc\u202etxt.exe`,
		"\xff\xfe":                 `\xff\xfe`,
		"no\u00a0break":            "no\u00a0break",
		"replacement \ufffd stays": "replacement \ufffd stays",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestParseBytes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]uint64{"1000": 1000, "64K": 64 << 10, "64M": 64 << 20, "64MiB": 64 << 20, "64mb": 64 << 20, "1.5G": 3 << 29, "7B": 7} {
		if got, err := parseBytes(in); got != want || err != nil {
			t.Errorf("parseBytes(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "M", "-1", "0", "1X", "1MM", "9999999T", "NaN", "Inf", "1e400"} {
		if got, err := parseBytes(in); err == nil {
			t.Errorf("parseBytes(%q) = %d", in, got)
		}
	}
	if got, err := parseMemory("50%"); err != nil || got < 16<<20 {
		t.Errorf("parseMemory(50%%) = %d, %v", got, err)
	}
	for _, in := range []string{"0%", "101%", "x%", "%"} {
		if got, err := parseMemory(in); err == nil {
			t.Errorf("parseMemory(%q) = %d", in, got)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{"10": 10 * time.Second, "0.5": time.Second / 2, "300ms": 300 * time.Millisecond, "1h": time.Hour} {
		var d duration
		if err := d.Set(in); err != nil || time.Duration(d) != want {
			t.Errorf("%q: %v, %v, want %v", in, time.Duration(d), err, want)
		}
	}
	for _, in := range []string{"", "-1s", "-1", "soon", "1e300", "NaN"} {
		var d duration
		if err := d.Set(in); err == nil {
			t.Errorf("%q: %v", in, time.Duration(d))
		}
	}
}

func TestInvocation(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "lines")
	if err := os.WriteFile(file, []byte("x\r\n\ny"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		words  string
		inputs string
	}{
		{"p", "", "<>"},
		{"p a b", "a b", "<>"},
		{"p ::: 1 2", "", "<1><2>"},
		{"p a {} ::: 1 2", "a {}", "<1><2>"},
		{"p -", "", "<in><put>"},
		{"p a -", "a", "<in><put>"},
		{"p - ::: 1", "-", "<1>"},
		{"p :::", "", ""},
		{"p :::: FILE", "", "<x><><y>"},
		{"p :::: -", "", "<in><put>"},
		{"p ::: 1 :::: FILE -", "", "<1><x><><y><in><put>"},
		{"p --json -k", "--json -k", "<>"},
	} {
		c := &cli{}
		v, err := parseInvocation(c.submitCommand(), strings.Fields(strings.ReplaceAll(tt.args, "FILE", file)))
		if err != nil {
			t.Errorf("%s: %v", tt.args, err)
			continue
		}
		var total progressTotal
		inputs, done, err := v.read(t.Context(), strings.NewReader("in\nput\n"), &total)
		if err != nil {
			t.Errorf("%s: %v", tt.args, err)
			continue
		}
		got, n := "", 0
		for in, err := range inputs {
			if err != nil {
				t.Error(err)
			}
			got += "<" + string(in) + ">"
			n++
		}
		done()
		if got != tt.inputs || strings.Join(v.words, " ") != tt.words || !total.known.Load() || int(total.n.Load()) != n {
			t.Errorf("%s: words %q, inputs %s, total %d", tt.args, v.words, got, total.n.Load())
		}
	}
}

// Each flag of each command is read from its variable; a flag of `up` keeps the short name of its variable for itself.
func TestVariables(t *testing.T) {
	t.Parallel()
	vars := map[string]string{"MESHNODE_NAME": "n1", "MESHNODE_SLOTS": "3", "MESHNODE_TIMEOUT": "2s", "MESHNODE_SUBMIT_NAME": "j1", "MESHNODE_RUN_TIMEOUT": "9s",
		"MESHNODE_JSON": "true", "MESHNODE_KEEP_ORDER": "1"}
	c := &cli{env: env{getenv: func(k string) (string, bool) { v, ok := vars[k]; return v, ok }}}
	for _, tt := range []struct{ args, flag, want string }{
		{"up", "name", "n1"}, {"up", "slots", "3"}, {"up --slots 5", "slots", "5"}, {"up", "json", "true"},
		{"submit", "name", "j1"}, {"submit", "timeout", "2s"}, {"submit", "keep-order", "true"}, {"submit", "memory", ""},
		{"run", "timeout", "9s"}, {"run", "name", ""},
	} {
		root := c.root()
		cmd, rest, err := root.Find(strings.Fields(tt.args))
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = c.readVariables(cmd)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := cmd.Flags().Lookup(tt.flag).Value.String(); got != tt.want {
			t.Errorf("%s: --%s is %q, want %q", tt.args, tt.flag, got, tt.want)
		}
	}
}

func TestBare(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]bool{"": true, "--slots 2": true, "--data-dir x": true, "--json": true, "status": false, "--data-dir x status": false, "fly": false, "--help": false, "__complete st": false} {
		if got := bare((&cli{}).root(), strings.Fields(args)); got != want {
			t.Errorf("bare(%q) = %v", args, got)
		}
	}
}

func result(i uint32, output string) control.Result {
	return control.Result{TaskResult: node.TaskResult{Index: i, Seq: i, Status: protocol.Status_OK, Output: []byte(output), Name: "n\x1b[31m"}, Input: fmt.Append(nil, i)}
}

// What tasks and peers say cannot do anything to a terminal; into a file or pipe it goes as it is.
func TestTerminal(t *testing.T) {
	t.Parallel()
	for _, tty := range []bool{false, true} {
		var out, errs strings.Builder
		c := &cli{env: env{stdout: &out, stderr: &errs, outTTY: tty, errTTY: tty}}
		p := c.newPrinter(nil, &submitFlags{tag: true}, protocol.JobID{1})
		failed := result(2, "")
		failed.Status, failed.Error, failed.Input = protocol.Status_FAILED, "bad\x1b[0m\nworse", []byte("\x07")
		if err := p.print([]control.Result{result(1, "a\x1b[2Jb\nc"), failed}); err != nil {
			t.Fatal(err)
		}
		want := "1\ta\x1b[2Jb\n1\tc\n"
		if tty {
			want = "1\ta\\x1b[2Jb\n1\tc\n"
		}
		if out.String() != want {
			t.Errorf("terminal %v: %q", tty, &out)
		}
		if s := errs.String(); strings.ContainsAny(s, "\x1b\x07") || strings.Count(s, "\n") != 1 {
			t.Errorf("terminal %v: standard error %q", tty, s)
		}
	}
}

func TestJSONBytes(t *testing.T) {
	t.Parallel()
	r := result(0, "\xff\x00")
	r.Input = []byte("\xfe")
	b, err := encodeJSON((&printer{}).jsonLine(&r))
	if err != nil || !bytes.Contains(b, []byte(`"output_b64":"/wA="`)) || !bytes.Contains(b, []byte(`"input_b64":"/g=="`)) || bytes.Contains(b, []byte(`"output":`)) {
		t.Errorf("%s, %v", b, err)
	}
	r = result(0, "<&>")
	if b, err = encodeJSON((&printer{}).jsonLine(&r)); err != nil || !bytes.Contains(b, []byte(`"output":"<&>"`)) {
		t.Errorf("%s, %v", b, err)
	}
}

// Results that come in any order are written in the order of their tasks; those that were never to come leave
// no gap.
func TestKeepOrder(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	c := &cli{env: env{stdout: &out, stderr: io.Discard}}
	p := c.newPrinter(nil, &submitFlags{keepOrder: true}, protocol.JobID{})
	for _, i := range []uint32{3, 1, 0, 7, 2, 5} {
		if err := p.print([]control.Result{result(i, fmt.Sprint(i))}); err != nil {
			t.Fatal(err)
		}
	}
	if out.String() != "0\n1\n2\n3\n" {
		t.Errorf("%q", &out)
	}
	if err := p.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.out.Flush()
	if out.String() != "0\n1\n2\n3\n5\n7\n" {
		t.Errorf("%q", &out)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	code := func(err error) int {
		if err == nil {
			return 0
		}
		return int(err.(exitCode))
	}
	for _, tt := range []struct {
		status protocol.Status
		exit   int32
		want   int
	}{
		{protocol.Status_OK, 0, 0}, {protocol.Status_FAILED, 3, 3}, {protocol.Status_FAILED, 0, 1}, {protocol.Status_FAILED, 256, 1}, {protocol.Status_FAILED, -1, 255},
		{protocol.Status_TIMED_OUT, 137, 124}, {protocol.Status_OUTPUT_LIMIT, 0, 1}, {protocol.Status_CANCELLED, 0, 1},
	} {
		if got := code(oneTask(node.TaskResult{Status: tt.status, ExitCode: tt.exit})); got != tt.want {
			t.Errorf("%v, %d: %d, want %d", tt.status, tt.exit, got, tt.want)
		}
	}
	for failed, want := range map[int]int{0: 0, 1: 1, 100: 100, 101: 101, 5000: 101} {
		if got := code(manyTasks(failed)); got != want {
			t.Errorf("%d failed: %d, want %d", failed, got, want)
		}
	}
}

func TestBar(t *testing.T) {
	t.Parallel()
	var w strings.Builder
	total := &progressTotal{}
	b := (&cli{env: env{stderr: &w, errTTY: true}}).newBar(&submitFlags{}, total)
	total.n.Store(10)
	b.start = time.Now().Add(-time.Second)
	// Drawn at most every barInterval, so add until it shows.
	shows := func(texts ...string) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; {
			s, all := w.String(), true
			for _, text := range texts {
				all = all && strings.Contains(s, text)
			}
			if all {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%q, want %q", s, texts)
			}
			time.Sleep(barInterval / 4)
			b.add(nil)
		}
	}
	b.add([]control.Result{{TaskResult: node.TaskResult{Worker: "a"}}, {TaskResult: node.TaskResult{Worker: "b"}}})
	shows("2 nodes", "2/-")
	total.known.Store(true)
	b.add([]control.Result{{TaskResult: node.TaskResult{Worker: "b"}}})
	shows("30%", "3/10")
	before := w.Len()
	b.clear()
	if w.Len() == before {
		t.Error("clear writes nothing")
	}
	for _, e := range []env{{}, {errTTY: true, outTTY: true}} {
		if (&cli{env: e}).newBar(&submitFlags{}, total) != nil {
			t.Errorf("a bar with %+v", e)
		}
	}
	if (&cli{env: env{errTTY: true, outTTY: true}}).newBar(&submitFlags{bar: true}, total) == nil {
		t.Error("no bar with --bar")
	}
}

// -w shows again when something changes: in place on a terminal, else as one block after the other.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		tty  bool
		want string
	}{{false, "one\n\ntwo\n"}, {true, "\x1b[H\x1b[2Jone\n\x1b[H\x1b[2Jtwo\n"}} {
		var out bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		shows := slices.Values([]string{"one\n", "one\n", "two\n"})
		next, stop := iter.Pull(shows)
		defer stop()
		err := (&cli{env: env{stdout: &out, outTTY: tt.tty}}).show(ctx, true, func(w io.Writer) error {
			s, ok := next()
			if !ok {
				cancel()
				s = "two\n"
			}
			_, err := io.WriteString(w, s)
			return err
		})
		if err != context.Canceled || out.String() != tt.want {
			t.Errorf("%q, %v", &out, err)
		}
	}
}

func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), logFile)
	l, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	line := bytes.Repeat([]byte("x"), 1<<20)
	for range 20 {
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{path, path + ".1"} {
		if st, err := os.Stat(f); err != nil || st.Size() > maxLog || st.Size() == 0 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	files, _ := os.ReadDir(filepath.Dir(path))
	if len(files) != 2 {
		t.Errorf("%v", files)
	}
}

// Help names every command, and a person without a node is told what to do.
func TestHelp(t *testing.T) {
	t.Parallel()
	code, out, _ := call(t.Context(), env{}, "help")
	for _, name := range strings.Fields("up down status invite join leave peers submit run jobs job wait results cancel rerun logs slots pause resume blob demo version completion") {
		if !strings.Contains(out, "\n  "+name+" ") {
			t.Errorf("help does not list %s", name)
		}
		if c, o, _ := call(t.Context(), env{}, "help", name); c != 0 || !strings.Contains(o, "Usage:") {
			t.Errorf("help %s: %d, %s", name, c, o)
		}
	}
	if code != 0 || strings.Contains(out, "worker ") {
		t.Errorf("%d, %s", code, out)
	}
	code, out, errs := call(t.Context(), env{}, "status", "--data-dir", t.TempDir())
	if code != exitFailure || out != "" || !strings.HasSuffix(errs, "start one: meshnode up -d\n") {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	sc := bufio.NewScanner(strings.NewReader(errs))
	for n := 0; sc.Scan(); n++ {
		if n > 0 {
			t.Errorf("more than one line: %q", errs)
		}
	}
}

func TestCalled(t *testing.T) {
	t.Parallel()
	peers := []node.Peer{{ID: "12D3KooWaaaaXXXX", Name: "one"}, {ID: "12D3KooWaaabYYYY", Name: "two"}, {ID: "12D3KooWcccc1one", Name: "two"}, {ID: "12D3KooWdddd4444", Name: "XXXX"}}
	for name, want := range map[string]string{
		"one": "one", "two": "two two", "three": "", "XXXX": "XXXX", "YYYY": "two", "12D3KooWaaaa": "one", "12D3KooWaaa": "one two",
		"12D3KooWaaabYYYY": "two", "YY": "", "": "", "12D3KooW": "one two two XXXX",
	} {
		var got []string
		for _, p := range control.FindPeers(peers, name) {
			got = append(got, p.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q calls %q, want %q", name, got, want)
		}
	}
}

// Without Python, or with a name that is none, there is one line that says what to do.
func TestNoInterpreter(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for named, want := range map[string]string{"": "on PATH; install Python 3.8 or later, or name an interpreter with --python", "snake": "--python snake: no such program; give the path"} {
		_, err := findInterpreter(named)
		e := (*node.Error)(nil)
		if !errors.As(err, &e) || !strings.Contains(e.Message+"; "+e.Fix, want) {
			t.Errorf("%q: %v", named, err)
		}
	}
}
