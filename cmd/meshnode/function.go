package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/protocol"
	"meshnode/python"
)

// function is a Python function that was made into a bundle, the program of a job.
type function struct {
	Runtime     string   `json:"runtime"` // python, or with the version that it needs
	Name        string   `json:"name"`
	Size        int      `json:"size"`
	Path        []string `json:"path"`
	Dir         string   `json:"dir"`
	Interpreter string   `json:"interpreter"`
	Version     string   `json:"version"`
	Contents    []string `json:"contents"` // what travels, a line each
	Error       *struct {
		Message string `json:"message"`
		Fix     string `json:"fix"`
	} `json:"error"`

	bundle []byte
}

// cutFunction splits file.py:function. Of a file alone the function is empty.
func cutFunction(program string) (file, name string, ok bool) {
	if i := strings.LastIndex(program, ".py:"); i >= 0 {
		return program[:i+3], program[i+4:], true
	}
	return program, "", strings.HasSuffix(program, ".py")
}

// findInterpreter is the Python that a person gets: the one that was named, or python3 or python on PATH. "none" names none: a
// variable that says so is for nodes.
func findInterpreter(named string) (string, error) {
	names := []string{"python3", "python"}
	if named == "none" {
		named = ""
	}
	if named != "" {
		names = []string{named}
	} else if runtime.GOOS == "windows" {
		names = []string{"python", "python3", "py"}
	}
	for _, n := range names {
		if path, err := exec.LookPath(n); err == nil || errors.Is(err, exec.ErrDot) {
			return filepath.Abs(path)
		}
	}
	if named != "" {
		return "", &node.Error{Code: codeUsage, Message: fmt.Sprintf("--python %s: no such program", named), Fix: "give the path of a Python interpreter, 3.8 or later"}
	}
	return "", &node.Error{Code: node.CodeUnavailable, Message: "there is no " + strings.Join(names, " or ") + " on PATH", Fix: "install Python 3.8 or later, or name an interpreter with --python"}
}

// readFunction runs the interpreter once, to make the bundle of a function. Nothing of the file's main code runs.
func readFunction(ctx context.Context, interpreter, file, name string, stderr io.Writer) (*function, error) {
	interpreter, err := findInterpreter(interpreter)
	if err != nil {
		return nil, err
	}
	dir, err := python.Unpack()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, interpreter, filepath.Join(dir, "meshnode", "_submit.py"), file, name)
	var errs lastLines
	cmd.Stderr = &errs
	out, err := cmd.Output()
	head, bundle, whole := bytes.Cut(out, []byte("\n"))
	var f function
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if e := json.Unmarshal(head, &f); !whole || e != nil || f.Error == nil && (err != nil || len(bundle) != f.Size) {
		why := errs.last()
		if why == "" && err != nil {
			why = err.Error()
		}
		return nil, &node.Error{Code: node.CodeUnavailable, Message: fmt.Sprintf("%s could not load %s: %s", interpreter, file, why), Fix: "name a Python interpreter, 3.8 or later, with --python"}
	}
	if _, err := stderr.Write(errs.b); err != nil { // what the file printed as it was loaded
		return nil, err
	}
	if f.Error != nil {
		return nil, &node.Error{Code: node.CodeBadProgram, Message: f.Error.Message, Fix: f.Error.Fix}
	}
	f.bundle = bundle
	return &f, nil
}

// lastLines keeps the end of what is written to it.
type lastLines struct{ b []byte }

const lastLinesMost = 64 << 10

func (l *lastLines) Write(b []byte) (int, error) {
	l.b = append(l.b, b...)
	if n := len(l.b); n > 2*lastLinesMost {
		l.b = append(l.b[:0], l.b[n-lastLinesMost:]...)
	}
	return len(b), nil
}

func (l *lastLines) last() string {
	s := strings.TrimSpace(string(l.b))
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// local is how the function's tasks run on this machine: with the interpreter and the modules that it was found with.
func (f *function) local() *protocol.Local {
	return &protocol.Local{Interpreter: f.Interpreter, Version: f.Version, Path: f.Path, Dir: f.Dir}
}

// What the input of a Python task begins with.
const (
	callsInput = 'C' // calls of a Python program, pickled
	textInput  = 'T' // text from a command line
)

// callsOf is how many calls of a Python program a task's input has.
func callsOf(input []byte) (n uint32, ok bool) {
	if len(input) < 5 || input[0] != callsInput {
		return 0, false
	}
	return binary.LittleEndian.Uint32(input[1:]), true
}

// texts makes inputs of words and lines those of a Python function. Without inputs the function has none either.
func (v *invocation) texts(inputs iter.Seq2[[]byte, error]) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		number := 0
		for in, err := range inputs {
			if number++; err == nil && !utf8.Valid(in) {
				err = &node.Error{Code: codeUsage, Message: fmt.Sprintf("input %d is not UTF-8, and a Python function gets text", number), Fix: "give names of files, or text"}
			}
			if v.given || len(v.words) > 0 {
				in = append([]byte{textInput}, in...)
			}
			if !yield(in, err) {
				return
			}
		}
	}
}

// tellContents says what travels, for --dry-run.
func (f *function) tellContents(w io.Writer) error {
	runs := "any Python from 3.6 on"
	if v, ok := strings.CutPrefix(f.Runtime, "python"); ok && v != "" {
		runs = "Python " + v + " only, because part of it has no source"
	}
	if _, err := fmt.Fprintf(w, "%s travels as %d bytes, for %s:\n", oneLine(f.Name), f.Size, runs); err != nil {
		return err
	}
	for _, c := range f.Contents {
		if _, err := fmt.Fprintf(w, "  %s\n", oneLine(c)); err != nil {
			return err
		}
	}
	return nil
}

var defLine = regexp.MustCompile(`^(?:def|class)[ \t]+([\pL_][\pL\pN_]*)`)

// completeProgram offers the functions of a Python file after its colon, and else files.
func completeProgram(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	file, _, ok := cutFunction(word)
	if len(args) > 0 || !ok {
		return nil, cobra.ShellCompDirectiveDefault
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	defer f.Close()
	var names []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if m := defLine.FindStringSubmatch(lines.Text()); m != nil && !strings.HasPrefix(m[1], "_") {
			names = append(names, file+":"+m[1])
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

// isPython reports whether a job's tasks are of Python.
func isPython(j node.Job) bool { return strings.HasPrefix(j.Runtime, "python") }
