package testnet

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// python is an interpreter that is here.
type python struct {
	minor int // of version 3
	path  string
}

func (p python) String() string { return fmt.Sprintf("3.%d", p.minor) }

// pythons are the interpreters from 3.6 on that are found on PATH and below ~/.pyenv/versions, one of each version, oldest first.
var pythons = sync.OnceValue(func() (found []python) {
	candidates := []string{"python3"}
	for minor := 6; minor < 30; minor++ {
		candidates = append(candidates, fmt.Sprintf("python3.%d", minor))
	}
	if home, err := os.UserHomeDir(); err == nil {
		more, _ := filepath.Glob(filepath.Join(home, ".pyenv/versions/3.*/bin/python3"))
		candidates = append(candidates, more...)
	}
	for _, c := range candidates {
		path, err := exec.LookPath(c)
		if err != nil {
			continue
		}
		out, err := exec.Command(path, "-E", "-S", "-c", "import sys; print(sys.version_info[1], sys.executable)").Output()
		if err != nil {
			continue // a shim without that version
		}
		version, path, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
		minor, err := strconv.Atoi(version)
		if err != nil || minor < 6 || slices.ContainsFunc(found, func(p python) bool { return p.minor == minor }) {
			continue
		}
		found = append(found, python{minor, path})
	}
	slices.SortFunc(found, func(a, b python) int { return a.minor - b.minor })
	return found
})

// clients are those of pythons that the client side runs on.
func clients() []python {
	return slices.DeleteFunc(slices.Clone(pythons()), func(p python) bool { return p.minor < 8 })
}

// mixed gives node i one of the interpreters, another than its neighbours' if there are several.
func mixed(i int) []string {
	all := pythons()
	if len(all) == 0 {
		return nil
	}
	return []string{"--python", all[(len(all)-1)*(i-1)/max(1, chaosNodes-1)].path}
}

// program is a Python program that runs testdata/chaos.py until it is told to stop.
type program struct {
	python python
	node   int
	cmd    *exec.Cmd
	stdin  io.Closer
	errs   bytes.Buffer
	calls  int // that it has told of
	ended  chan struct{}
	err    error
}

// startProgram starts one at a node, whose processes are gone when the test is over.
func startProgram(t *testing.T, nd *Node, p python, seed uint64) *program {
	t.Helper()
	packages, err := filepath.Abs("../python")
	if err != nil {
		t.Fatal(err)
	}
	g := &program{python: p, node: nd.i, ended: make(chan struct{})}
	g.cmd = exec.Command(p.path, "testdata/chaos.py", packages, nd.Dir, strconv.FormatUint(seed>>1, 10))
	g.cmd.Env = nd.net.Environ("PYTHONDONTWRITEBYTECODE=1")
	g.cmd.Stderr = &g.errs
	if g.stdin, err = g.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.cmd.Process.Kill()
		<-g.ended
	})
	ready := make(chan struct{})
	go func() {
		defer close(g.ended)
		done := false
		for sc := bufio.NewScanner(out); sc.Scan(); {
			words := strings.Fields(sc.Text())
			if n, err := strconv.Atoi(words[len(words)-1]); err == nil {
				g.calls = n
			}
			if done = words[0] == "done"; words[0] == "ready" {
				close(ready)
			}
		}
		if g.err = g.cmd.Wait(); g.err == nil && !done {
			g.err = fmt.Errorf("it ended before it was done")
		}
	}()
	// A program that finds no node when it starts ends; one that has met its node waits for it.
	select {
	case <-ready:
	case <-g.ended:
	case <-time.After(startTimeout):
		t.Fatalf("Python %s at node %d had no result within %v", p, nd.i, startTimeout)
	}
	return g
}
