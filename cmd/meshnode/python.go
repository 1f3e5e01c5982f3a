package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"meshnode/python"
)

func (c *cli) pythonCommand() *cobra.Command {
	var interpreter string
	var rest []string
	var help bool
	cmd := &cobra.Command{
		Use:   "python [--python PATH] [SCRIPT|-c CODE|-m MODULE|-] [ARG...]",
		Short: "Run a Python program that uses the mesh",
		Long: `Runs Python with the modules pp, ppft and meshnode at hand, without anything to install: programs written for
Parallel Python run unchanged, and concurrent.futures programs with meshnode.Executor. The program works
with the node that runs here; without one it has a private one of its own, which ends with it.

What follows is Python's own command line: a script and its arguments, -c, -m, -, other options of Python,
or nothing for a prompt. Its exit code is that of the program. Python is python3 on PATH, or --python.`,
		Example: `  meshnode python sum_primes.py 4
  meshnode python -c 'import pp; print(pp.Server().get_ncpus())'
  MESHNODE_PYTHON=python3.12 meshnode python`,
		DisableFlagsInUseLine: true,
		DisableFlagParsing:    true, // Python has -c, -m and others of its own
	}
	cmd.Flags().StringVar(&interpreter, "python", "", "the `interpreter`, a path or a name on PATH (default: python3)")
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveDefault
	}
	cmd.PersistentPreRunE = func(cmd *cobra.Command, args []string) (err error) {
		if rest, help, err = c.ownFlags(cmd, args); err != nil || help {
			return err
		}
		return c.prepare(cmd, nil)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if help {
			return cmd.Help()
		}
		path, err := findInterpreter(interpreter)
		if err != nil {
			return err
		}
		env, err := c.pythonEnv()
		if err != nil {
			return err
		}
		return c.become(cmd.Context(), path, rest, env)
	}
	return cmd
}

// ownFlags reads our flags, up to the first word that is not one, and leaves the rest to Python.
func (c *cli) ownFlags(cmd *cobra.Command, args []string) (rest []string, help bool, err error) {
	set := func(name, value string) error {
		if err := cmd.Flags().Set(name, value); err != nil {
			return usage(cmd, "--%s %s: %s", name, value, withoutGo(err))
		}
		return nil
	}
	for len(args) > 0 {
		name, value, joined := strings.Cut(args[0], "=")
		switch {
		case args[0] == "--help" || args[0] == "-h":
			return nil, true, nil
		case args[0] == "--":
			return args[1:], false, nil
		case name != "--python" && name != "--data-dir":
			return args, false, nil
		case !joined && len(args) < 2:
			return nil, false, usage(cmd, "%s needs a value", name)
		case !joined:
			value, args = args[1], args[1:]
		}
		if err := set(strings.TrimPrefix(name, "--"), value); err != nil {
			return nil, false, err
		}
		args = args[1:]
	}
	return nil, false, nil
}

// pythonEnv is our environment with what makes a Python program find the packages, this binary and its node.
func (c *cli) pythonEnv() ([]string, error) {
	dir, err := python.Unpack()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the path of this program: %w", err)
	}
	if old, ok := c.getenv("PYTHONPATH"); ok && old != "" {
		dir += string(filepath.ListSeparator) + old
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "PYTHONPATH" || name == "MESHNODE_BIN" || name == "MESHNODE_DATA_DIR"
	})
	return append(env, "PYTHONPATH="+dir, "MESHNODE_BIN="+self, "MESHNODE_DATA_DIR="+c.dataDir), nil
}
