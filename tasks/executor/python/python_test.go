package python_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"meshnode/tasks/executor"
	"meshnode/tasks/executor/python"
	"meshnode/tasks/executor/runtimetest"
)

// packages is the directory of the packages in this checkout.
func packages(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../../../python")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// interpreter is the one that a node would find.
func interpreter(t testing.TB) python.Interpreter {
	t.Helper()
	i, err := found()
	if err != nil {
		t.Skip(err)
	}
	return i
}

var found = sync.OnceValues(func() (python.Interpreter, error) { return python.Find(context.Background(), "", "") })

func newRuntime(t testing.TB, spawn bool) executor.Runtime {
	t.Helper()
	return python.New(python.Config{Interpreter: interpreter(t), Packages: packages(t), Spawn: spawn})
}

// both runs a test with processes that a fork server makes, where there is one, and with such as are started by themselves.
func both(t *testing.T, test func(t *testing.T, spawn bool)) {
	t.Run("spawn", func(t *testing.T) { test(t, true) })
	if executor.CanFork {
		t.Run("fork", func(t *testing.T) { test(t, false) })
	}
}

// bundle writes a bundle of the function main, whose source this is; its argument is text, whatever it looks like.
func bundle(t testing.TB, source string) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"name": "main", "python": "", "root": 0, "sources": map[string]any{}, "texts": map[string]any{"at": []int{0}},
		"spaces": []any{map[string]any{"name": "__main__", "bind": map[string]any{}}},
		"objects": []any{map[string]any{
			"k": "function", "name": "main", "module": "__main__", "space": 0, "uses": []any{}, "cells": []any{}, "free": []any{},
			"file": "program.py", "line": 1, "source": source,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return file(t, "meshnode-python 1\n"+string(b))
}

func file(t testing.TB, data string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const misbehave = `def main(word):
    import sys
    what, _, n = word.partition(" ")
    if what == "exit":
        sys.stderr.write("leaving with %s\n" % n)
        sys.exit(int(n))
    if what == "loop":
        while True:
            pass
    if what == "trap":
        raise ValueError("no such word")
    if what == "memory":
        held = []
        while True:
            held.append(bytearray(1 << 20))
    if what == "output":
        return "x" * (20 << 20)
    if what == "write":
        return "x" * (int(n) << 20)
    if what == "errors":
        for _ in range(int(n)):
            sys.stderr.write("e" * (1 << 20))
        return "done\n"
`

func TestRuntime(t *testing.T) { both(t, testRuntime) }

func testRuntime(t *testing.T, spawn bool) {
	runtimetest.Run(t, func(t testing.TB) runtimetest.Kit {
		return runtimetest.Kit{
			Runtime: newRuntime(t, spawn),
			Echo:    bundle(t, "def main(s):\n    return s.encode('utf-8', 'surrogateescape')\n"),
			Args: bundle(t, `def main(*words):
    if len(words) == 1:
        return "%d\n" % len(words[0])
    return "".join("[%s]\n" % w for w in words) + "0\n"
`),
			Misbehave: bundle(t, misbehave),
			Trap:      "ValueError: no such word",
			Text:      true,
			Invalid: map[string]string{
				file(t, ""):                        "not a bundle of Python functions",
				file(t, "#!/bin/sh\necho hello\n"): "not a bundle of Python functions",
				file(t, "[1, 2]"):                  "not a bundle of Python functions",
				file(t, "meshnode-python 1\n{"):    "the bundle is damaged",
			},
		}
	})
}
