package python

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Interpreter is a Python on this machine.
type Interpreter struct {
	Path     string // of the interpreter itself: not of a shim, which would cost its time at each start
	Version  string // "3.11"
	CacheTag string // of its byte code: "cpython-311"
}

// None is the name of no interpreter at all.
const None = "none"

// findTimeout is how long all candidates together may take to answer. A shim takes 0.3 s.
const findTimeout = 5 * time.Second

// oldest is the first version of Python 3 that worker processes run on.
const oldest = 6

// question is what a candidate is asked.
const question = `import sys
print("%d.%d" % sys.version_info[:2], sys.implementation.cache_tag, sys.executable)`

// Find finds the interpreter: the one that is named, by its path or by a name on PATH, or else python3 or python on PATH. Its error is
// one line that says what was tried. What interpreters said is kept in the folder cache, if there is one: asking takes 20 ms to 0.1 s.
func Find(ctx context.Context, named, cache string) (Interpreter, error) {
	if named == None {
		return Interpreter{}, nil
	}
	candidates := []string{"python3", "python"}
	if named != "" {
		candidates = []string{named}
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	var tried []string
	for _, c := range candidates {
		path, err := exec.LookPath(c)
		if err != nil {
			if named != "" {
				return Interpreter{}, fmt.Errorf("no Python interpreter %s: %w", named, err)
			}
			continue
		}
		known := remembered(cache, path)
		if i, ok := known.read(); ok {
			return i, nil
		}
		i, err := ask(ctx, path)
		if err == nil {
			known.write(i)
			return i, nil
		}
		tried = append(tried, fmt.Sprintf("%s: %v", path, err))
	}
	if len(tried) == 0 {
		return Interpreter{}, fmt.Errorf("no %s on PATH", strings.Join(candidates, " or "))
	}
	return Interpreter{}, errors.New(strings.Join(tried, "; "))
}

// ask has a candidate say what it is.
func ask(ctx context.Context, path string) (Interpreter, error) {
	cmd := exec.CommandContext(ctx, path, "-E", "-S", "-c", question)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 100 * time.Millisecond // a shim may leave processes that hold its output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return Interpreter{}, fmt.Errorf("no answer within %v", findTimeout)
		}
		if line, _, _ := strings.Cut(strings.TrimSpace(errs.String()), "\n"); line != "" {
			return Interpreter{}, fmt.Errorf("%w: %s", err, line)
		}
		return Interpreter{}, err
	}
	words := strings.SplitN(strings.TrimSpace(out.String()), " ", 3)
	if len(words) < 3 || !filepath.IsAbs(words[2]) {
		return Interpreter{}, fmt.Errorf("it does not say where it is")
	}
	major, minor, _ := strings.Cut(words[0], ".")
	if n, err := strconv.Atoi(minor); major != "3" || err != nil || n < oldest {
		return Interpreter{}, fmt.Errorf("it is Python %s: want 3.%d or later", words[0], oldest)
	}
	if st, err := os.Stat(words[2]); err != nil || st.IsDir() {
		return Interpreter{}, fmt.Errorf("it says that it is %s, where nothing is", words[2])
	}
	return Interpreter{Path: words[2], Version: words[0], CacheTag: words[1]}, nil
}

// memory is the file that has what an interpreter said; "": none is kept.
type memory string

// remembered is where that of the interpreter at path is. Its name says which program that is, to its last change. A script may be
// another interpreter each time, and is always asked.
func remembered(cache, path string) memory {
	if cache == "" || !filepath.IsAbs(path) {
		return ""
	}
	program, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	f, err := os.Open(program)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 2)
	st, err := f.Stat()
	if _, e := io.ReadFull(f, head); err != nil || e != nil || string(head) == "#!" {
		return ""
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%q %q %d %d", path, program, st.Size(), st.ModTime().UnixNano()))
	return memory(filepath.Join(cache, hex.EncodeToString(key[:12])+".json"))
}

func (m memory) read() (i Interpreter, ok bool) {
	if m == "" {
		return i, false
	}
	b, err := os.ReadFile(string(m))
	return i, err == nil && json.Unmarshal(b, &i) == nil && filepath.IsAbs(i.Path) && i.Version != ""
}

// write keeps what was said. If that does not work it is asked again.
func (m memory) write(i Interpreter) {
	if m == "" || os.MkdirAll(filepath.Dir(string(m)), 0o700) != nil {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(string(m)), "*.new")
	if err != nil {
		return
	}
	err = json.NewEncoder(f).Encode(i)
	if e := f.Close(); err != nil || e != nil || os.Rename(f.Name(), string(m)) != nil {
		os.Remove(f.Name())
	}
}
