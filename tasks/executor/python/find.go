package python

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// findTimeout is how long all candidates together may take to answer. A shim takes 0.3 s.
const findTimeout = 5 * time.Second

// oldest is the first version of Python 3 that worker processes run on.
const oldest = 6

// question is what a candidate is asked.
const question = `import sys
print("%d.%d" % sys.version_info[:2], sys.implementation.cache_tag, sys.executable)`

// Find finds the interpreter: the one that is named, by its path or by a name on PATH, or else python3 or python on PATH. Its error is
// one line that says what was tried.
func Find(ctx context.Context, named string) (Interpreter, error) {
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
		i, err := ask(ctx, path)
		if err == nil {
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
		return Interpreter{}, fmt.Errorf("Python %s: want 3.%d or later", words[0], oldest)
	}
	if st, err := os.Stat(words[2]); err != nil || st.IsDir() {
		return Interpreter{}, fmt.Errorf("it says that it is %s, where nothing is", words[2])
	}
	return Interpreter{Path: words[2], Version: words[0], CacheTag: words[1]}, nil
}
