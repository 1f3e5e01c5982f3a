package sim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// mutant is a planted defect: a rule of the design broken in the scheduler's source. The simulator has to find it.
type mutant struct {
	name, rule, scenario string
	edits                []edit
}

type edit struct{ file, old, new string }

// mutantSeeds are tried before a mutant counts as not found.
const mutantSeeds = 1500

// TestMutants plants each defect of testdata/mutants.txt with go build -overlay and runs seeds until one breaks a promise. No
// defect found is a check that cannot fail. It builds the simulator once per defect, which takes minutes for all of them: without
// MESHNODE_MUTANTS=all (make mutants) every tenth is looked for, and the others only have to fit the source.
// With -v it ends with a table.
func TestMutants(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	mutants := readMutants(t)
	free := make(chan struct{}, runtime.GOMAXPROCS(0))
	rows := make([]string, len(mutants))
	begun := time.Now()
	t.Cleanup(func() {
		found := slices.DeleteFunc(rows, func(r string) bool { return r == "" })
		t.Logf("%d of %d planted defects found, in %.0f s\n| defect | the rule that it breaks | scenario | seed | what showed it |\n|---|---|---|---:|---|\n%s",
			len(found), len(mutants), time.Since(begun).Seconds(), strings.Join(found, "\n"))
	})
	for i, m := range mutants {
		overlay := plant(t, root, m)
		if os.Getenv("MESHNODE_MUTANTS") != "all" && (testing.Short() || i%10 != 0) {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			free <- struct{}{}
			defer func() { <-free }()
			bin := buildMutant(t, root, m, overlay)
			cmd := exec.CommandContext(t.Context(), bin, "-seeds", fmt.Sprint(mutantSeeds), "-scenario", m.scenario)
			cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
			cmd.Cancel = cmd.Process.Kill
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
			defer timer.Stop()
			err := cmd.Run()
			var exit *exec.ExitError
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || len(lines) < 3 || !strings.Contains(lines[len(lines)-1], "broke a promise") {
				t.Fatalf("%d seeds of %q do not find it (%v): %s\n%s", mutantSeeds, m.scenario, err, m.rule, lines[len(lines)-1])
			}
			seed, why := "?", ""
			for k, l := range lines {
				if strings.HasSuffix(l, "VIOLATION") && k+1 < len(lines) {
					seed, why = strings.Fields(l)[0], strings.TrimSpace(lines[k+1])
				}
			}
			rows[i] = fmt.Sprintf("| %s | %s | %s | %s | %.110s |", m.name, m.rule, m.scenario, seed, strings.ReplaceAll(why, "|", "/"))
		})
	}
}

// plant writes the sources with the defect in them, and returns the overlay file for go build.
func plant(t *testing.T, root string, m mutant) string {
	dir := t.TempDir()
	replace := map[string]string{}
	text := map[string]string{}
	for _, e := range m.edits {
		path := filepath.Join(root, filepath.FromSlash(e.file))
		if _, ok := text[path]; !ok {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text[path] = string(b)
		}
		if n := strings.Count(text[path], e.old); n != 1 {
			t.Fatalf("%s: %s: this text is there %d times, not once; the table has to follow the source:\n%s", m.name, e.file, n, e.old)
		}
		text[path] = strings.Replace(text[path], e.old, e.new, 1)
	}
	for path, s := range text {
		to := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(to, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = to
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// buildMutant builds the simulator with the defect in it and returns the program.
func buildMutant(t *testing.T, root string, m mutant, overlay string) string {
	bin := filepath.Join(t.TempDir(), "sim.exe")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "-ldflags=-s -w", "-o", bin, "./testnet/sim/cmd")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build with %s: %v\n%s", m.name, err, out)
	}
	return bin
}

// readMutants reads testdata/mutants.txt, whose head says how it is written.
func readMutants(t *testing.T) []mutant {
	f, err := os.Open("testdata/mutants.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var ms []mutant
	var into *string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		line := sc.Text()
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "===":
			ms = append(ms, mutant{name: value})
			into = nil
			continue
		case "---", "+++":
			m := &ms[len(ms)-1]
			if key == "---" {
				m.edits = append(m.edits, edit{file: value})
				into = &m.edits[len(m.edits)-1].old
			} else {
				into = &m.edits[len(m.edits)-1].new
			}
			continue
		}
		switch {
		case len(ms) == 0: // the head
		case into != nil:
			if *into != "" {
				*into += "\n"
			}
			*into += line
		case key == "rule:":
			ms[len(ms)-1].rule = value
		case key == "scenario:":
			ms[len(ms)-1].scenario = value
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if m.rule == "" || len(m.edits) == 0 || scenarios[m.scenario] == nil {
			t.Fatalf("mutant %q lacks a rule, an edit or a scenario that exists", m.name)
		}
	}
	return ms
}
