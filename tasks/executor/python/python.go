// Package python is the runtime for Python functions. Runtime is what the node's executor is given; Find finds the
// interpreter. The worker process, in Python, is python/meshnode/worker in the root of this repository: its
// process.py speaks with the node, its load.py makes functions of bundles. The node itself runs no Python.
//
// A program is a bundle, made by a client: functions as source, or as byte code of one version of Python, which then is in the
// name of the program's runtime: "python3.12". Its tasks are packets of calls, or texts of a command line.
//
// Python has no sandbox here: what a function may do is what the user of the node may do. Nodes accept such programs only from
// members of the same owner. A worker process serves one submitter only.
package python

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"meshnode/protocol"
	"meshnode/tasks/executor"
)

// Name is the name of this runtime.
const Name = "python"

// Config says how a worker process is started.
type Config struct {
	// Interpreter runs the programs; the zero value: there is none on this machine, and only those programs run that bring their own.
	Interpreter Interpreter
	// Packages is the directory in which the packages are.
	Packages string
	// Spawn has each worker process started by itself, also where processes fork.
	Spawn bool
	// Env are variables for worker processes beside those that each gets.
	Env []string
}

// Runtime is the executor.Runtime for Python.
type Runtime struct{ cfg Config }

// New makes the runtime.
func New(cfg Config) *Runtime { return &Runtime{cfg} }

// Name is "python".
func (r *Runtime) Name() string { return Name }

// Version is the interpreter's.
func (r *Runtime) Version() (version string, here bool) {
	return r.cfg.Interpreter.Version, r.cfg.Interpreter.Path != ""
}

// Worker is a process of the node's interpreter, or of that which the submitting program runs on here. It serves one submitter, and
// one place where modules come from.
func (r *Runtime) Worker(runtime string, origin protocol.NodeID, local *protocol.Local) (executor.Worker, error) {
	path, version := r.cfg.Interpreter.Path, r.cfg.Interpreter.Version
	if local.GetInterpreter() != "" {
		path, version = local.Interpreter, local.Version
	}
	if path == "" {
		return executor.Worker{}, errors.New("this node has no Python")
	}
	if want := strings.TrimPrefix(runtime, Name); want != "" && want != version && !strings.HasPrefix(version, want+".") {
		return executor.Worker{}, fmt.Errorf("this node has Python %s, and the program needs %s", cmp.Or(version, "of unknown version"), want)
	}
	key := fmt.Sprintf("%q", append([]string{path, string(origin), local.GetDir()}, local.GetPath()...))
	return executor.Worker{
		Key:  key,
		Argv: []string{path, "-E", filepath.Join(r.cfg.Packages, "meshnode", "worker", "__main__.py")},
		Env:  append(environment(), r.cfg.Env...),
		Fork: executor.CanFork && !r.cfg.Spawn, TaskLog: true,
	}, nil
}

// environment is what worker processes see of ours beside what each sees. A slot is one processor: libraries that would start a
// thread for each of the machine's are told so.
func environment() []string {
	var env []string
	for _, name := range []string{"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
		"APPDATA", "PATHEXT", "COMSPEC", "SYSTEMDRIVE", "PROGRAMFILES", "PROGRAMDATA"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for _, name := range []string{"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} {
		env = append(env, name+"="+cmp.Or(os.Getenv(name), "1"))
	}
	return env
}

// Check looks at the bundle at path, without running anything of it. Its error is one line; an *fs.PathError if the file cannot
// be read.
func Check(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, len(magic))
	if n, err := io.ReadFull(f, head); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	} else if string(head[:n]) != magic {
		return errors.New("not a bundle of Python functions: the Python package meshnode makes those")
	}
	return nil
}

// magic is how a bundle begins. Its version follows; what this one can load, the worker process says.
const magic = "meshnode-python "

// Check is the function Check.
func (r *Runtime) Check(path string) error { return Check(path) }
