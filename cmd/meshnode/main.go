// Command meshnode is the whole product in one binary: a node, the command line that talks to it, and the
// worker processes that the node starts. Commands hold no logic of the mesh; they ask the node through
// control.Client. There is one file per command.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/tasks/executor/wasm"
	"meshnode/tasks/journal"
)

// Exit codes. 1 to 100 count failed tasks; a job of one task ends with the task's own.
const (
	exitManyFailed  = 101
	exitTimedOut    = 124
	exitFailure     = 125 // meshnode's own
	exitInterrupted = 130
)

func main() {
	// Before all else: a worker process starts on the way to somebody's result.
	if len(os.Args) == 3 && os.Args[1] == "worker" && os.Args[2] == wasm.Name {
		os.Exit(wasm.WorkerMain(os.Stdin, os.Stdout, os.Stderr))
	}
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	e := system()
	go func() {
		<-signals
		cancel()
		<-signals
		e.hurry.now()
		os.Exit(exitInterrupted)
	}()
	os.Exit(run(ctx, e, os.Args[1:]))
}

// hurry is what is done even if a second signal leaves no time for a proper end. A nil one does nothing.
type hurry struct {
	mu sync.Mutex // guards do
	do func()
}

func (h *hurry) set(do func()) {
	if h != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.do = do
	}
}

func (h *hurry) now() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.do != nil {
		h.do()
	}
}

// env is what a command sees of the process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	inTTY, outTTY  bool
	errTTY         bool
	getenv         func(string) (string, bool)
	hurry          *hurry
	journal        journal.Config // zero; tests have a disk that fails
}

// shared is a writer for several goroutines: results, the loss of the node and what a job waits for are told as they come.
type shared struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (s *shared) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

func system() env {
	return env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		inTTY: term.IsTerminal(int(os.Stdin.Fd())), outTTY: term.IsTerminal(int(os.Stdout.Fd())), errTTY: term.IsTerminal(int(os.Stderr.Fd())),
		getenv: os.LookupEnv,
		hurry:  &hurry{},
	}
}

// cli is one call of the command line.
type cli struct {
	env
	dataDir string
	format  string // table, wide, json
	asJSON  bool   // --json
}

// exitCode is an error that was told already, or needs no words.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// codeUsage is the code of errors in what was typed.
const codeUsage = "usage"

func usage(cmd *cobra.Command, format string, args ...any) error {
	return &node.Error{Code: codeUsage, Message: fmt.Sprintf(format, args...), Fix: "see " + cmd.Root().Name() + " help" + strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name())}
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, e env, args []string) int {
	e.stderr = &shared{w: e.stderr}
	c := &cli{env: e}
	root := c.root()
	if bare(root, args) {
		args = append([]string{"up"}, args...)
	}
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if code := exitCode(0); errors.As(err, &code) {
		return int(code)
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	c.tell(cmd, args, err)
	return exitFailure
}

// bare reports whether args name no command: that is `up`.
func bare(root *cobra.Command, args []string) bool {
	for _, a := range args {
		if slices.Contains([]string{"-h", "--help", "--version"}, a) {
			return false
		}
	}
	if len(args) > 0 && strings.HasPrefix(args[0], "__") { // completion asks
		return false
	}
	cmd, rest, err := root.Find(args)
	return err == nil && cmd == root && (len(rest) == 0 || strings.HasPrefix(rest[0], "-"))
}

// tell says why a command failed: one line for people, and an object for programs that asked for one.
func (c *cli) tell(cmd *cobra.Command, args []string, err error) {
	e := explain(cmd, err)
	line := e.Message
	if e.Fix != "" {
		line += "; " + e.Fix
	}
	fmt.Fprintln(c.stderr, "meshnode: "+oneLine(line))
	if c.json() || wantsJSON(args) {
		b, _ := json.Marshal(struct {
			Error *node.Error `json:"error"`
		}{e})
		fmt.Fprintf(c.stdout, "%s\n", b)
	}
}

// explain makes an error for people of any error.
func explain(cmd *cobra.Command, err error) *node.Error {
	if e := (*node.Error)(nil); errors.As(err, &e) {
		return e
	}
	if errors.Is(err, control.ErrNoNode) {
		return &node.Error{Code: "no_node", Message: err.Error(), Fix: "start one: meshnode up -d"}
	}
	if errors.Is(err, control.ErrNoAnswer) {
		return &node.Error{Code: "no_answer", Message: err.Error(), Fix: "its process is stopped or stuck: let it go on, or end it and start it again with meshnode up -d; its jobs go on then"}
	}
	if e := (*control.RunningError)(nil); errors.As(err, &e) {
		return &node.Error{Code: node.CodeRefused, Message: err.Error(), Fix: "stop it with meshnode down, or choose another directory with --data-dir"}
	}
	if errors.Is(err, syscall.ENOSPC) {
		return &node.Error{Code: node.CodeUnavailable, Message: err.Error(), Fix: "free some space there"}
	}
	if strings.HasPrefix(err.Error(), "listen on ") && strings.Contains(err.Error(), "bind: ") { // libp2p wraps nothing
		return &node.Error{Code: node.CodeUnavailable, Message: err.Error(), Fix: "choose another address or port with --listen; port 0 is any that is free"}
	}
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return &node.Error{Code: node.CodeUnavailable, Message: err.Error(), Fix: "check the path and its permissions"}
	}
	if strings.HasPrefix(err.Error(), "unknown command") {
		return unknownCommand(cmd, err)
	}
	return &node.Error{Code: "failed", Message: err.Error()}
}

// unknownCommand makes one line of what cobra says of a word that is no command, or of an argument where none belongs.
func unknownCommand(cmd *cobra.Command, err error) *node.Error {
	word := ""
	fmt.Sscanf(err.Error(), "unknown command %q", &word)
	e := &node.Error{Code: codeUsage, Message: firstLine(err.Error()), Fix: "see " + cmd.Root().Name() + " help" + strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name())}
	if !cmd.HasAvailableSubCommands() {
		e.Message = fmt.Sprintf("%s takes no argument like %q", cmd.CommandPath(), word)
		return e
	}
	cmd.SuggestionsMinimumDistance = max(1, min(2, len(word)/2)) // "fly" is not "why"
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		e.Message += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return e
}

// withoutGo is the text of an error in a flag without the names of Go functions.
func withoutGo(err error) string {
	var num *strconv.NumError
	if !errors.As(err, &num) {
		return err.Error()
	}
	want := "want a whole number"
	switch {
	case num.Func == "ParseBool":
		want = "want true or false"
	case num.Func == "ParseUint":
		want = "want a whole number from 0"
	case errors.Is(num, strconv.ErrRange):
		want = "the number is too large"
	}
	return strings.Replace(err.Error(), num.Error(), want, 1)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// oneLine makes any text one line that a terminal shows as it is.
func oneLine(s string) string {
	return clean(strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " "))
}

// wantsJSON looks for --json in arguments that could not be parsed.
func wantsJSON(args []string) bool {
	for i, a := range args {
		switch {
		case a == "--" || a == ":::" || a == "::::":
			return false
		case a == "--json" || a == "-ojson" || a == "-o=json" || a == "--output=json":
			return true
		case (a == "-o" || a == "--output") && i+1 < len(args) && args[i+1] == "json":
			return true
		}
	}
	return false
}

func (c *cli) json() bool { return c.format == "json" }

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "meshnode",
		Short: "Your laptops, one computer",
		Long: `meshnode makes the computers of a house, a lab or a class one: run it on each, submit
work on any of them, and the idle ones come and take it.

  meshnode up -d                                 start a node in the background
  meshnode invite --mine                         print a ticket for another machine
  meshnode join TICKET                           use it there
  meshnode submit prog.py:work ::: 1 2 3         run a Python function once for each input
  meshnode submit prog.wasm ::: 1 2 3            the same with a WebAssembly module
  meshnode python prog.py                        run a Python program that uses pp or concurrent.futures

Results go to standard output, everything else to standard error. Exit codes: 0 done; 1 to 100
the number of failed tasks, 101 for more; a job of one task ends with the task's own code, 124 if
it timed out; 125 meshnode's own failure; 130 interrupted.

Every flag has a variable: MESHNODE_ and its long name (MESHNODE_DATA_DIR for --data-dir), or with
the command's name in between, which comes first (MESHNODE_SUBMIT_TIMEOUT). Where "up" has a flag of
the same name (--name, --memory), other commands read only the longer variable, but for MESHNODE_PYTHON,
which is for all. A flag wins over a variable. Without a command, meshnode does what "up" does.`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: c.prepare,
		CompletionOptions: cobra.CompletionOptions{DisableDescriptions: false},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return usage(cmd, "%s", withoutGo(err))
	})
	p := root.PersistentFlags()
	p.StringVar(&c.dataDir, "data-dir", defaultDataDir(), "the node's `directory`: all of its state is below it")
	p.StringVarP(&c.format, "output", "o", "table", "`format`: table, wide or json")
	p.BoolVar(&c.asJSON, "json", false, "the same as -o json")
	root.AddCommand(
		c.upCommand(), c.downCommand(), c.statusCommand(),
		c.inviteCommand(), c.joinCommand(), c.leaveCommand(), c.recoverCommand(), c.peersCommand(), c.allowCommand(), c.denyCommand(),
		c.submitCommand(), c.runCommand(), c.jobsCommand(), c.jobCommand(), c.waitCommand(), c.resultsCommand(), c.cancelCommand(), c.rerunCommand(), c.logsCommand(),
		c.slotsCommand(), c.pauseCommand(), c.resumeCommand(), c.drainCommand(), c.whyCommand(), c.doctorCommand(), c.bugreportCommand(), c.blobCommand(), c.pythonCommand(), c.demoCommand(), c.versionCommand(), workerCommand(),
	)
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Args = cobra.ArbitraryArgs
		completion.RunE = func(cmd *cobra.Command, args []string) error {
			return usage(cmd, "completion: name a shell: bash, zsh, fish or powershell")
		}
	}
	return root
}

// prepare runs before each command: variables, then what all commands share.
func (c *cli) prepare(cmd *cobra.Command, _ []string) error {
	if err := c.readVariables(cmd); err != nil {
		return err
	}
	if c.asJSON {
		c.format = "json"
	}
	if c.dataDir != "" {
		dir, err := filepath.Abs(c.dataDir) // what is shown of it means the same elsewhere
		if err != nil {
			return fmt.Errorf("find the data directory %s: %w", c.dataDir, err)
		}
		c.dataDir = dir
	} else if !slices.Contains([]string{"demo", "version", "help", "completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd}, firstOf(cmd)) {
		return &node.Error{Code: codeUsage, Message: "no data directory: it is empty, or HOME is not set", Fix: "give one with --data-dir or MESHNODE_DATA_DIR"}
	}
	if !slices.Contains([]string{"table", "wide", "json"}, c.format) {
		bad := c.format
		c.format = "table"
		return usage(cmd, "output format %q: want table, wide or json", bad)
	}
	return nil
}

// firstOf is the name of the command below the root that cmd is or belongs to.
func firstOf(cmd *cobra.Command) string {
	for cmd.HasParent() && cmd.Parent().HasParent() {
		cmd = cmd.Parent()
	}
	return cmd.Name()
}

// readVariables sets the flags that were not given from the environment.
func (c *cli) readVariables(cmd *cobra.Command) error {
	if cmd.Hidden || strings.HasPrefix(cmd.Name(), "__") {
		return nil
	}
	var err error
	up, _, _ := cmd.Root().Find([]string{"up"})
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || err != nil || f.Name == "help" || f.Name == "version" {
			return
		}
		name := strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		names := []string{"MESHNODE_" + strings.ToUpper(cmd.Name()) + "_" + name}
		if cmd == up || cmd.InheritedFlags().Lookup(f.Name) != nil || up.LocalNonPersistentFlags().Lookup(f.Name) == nil || f.Name == "python" {
			names = append(names, "MESHNODE_"+name)
		}
		for _, n := range names {
			v, ok := c.getenv(n)
			if !ok || v == "" {
				continue
			}
			if e := cmd.Flags().Set(f.Name, v); e != nil {
				if inner := errors.Unwrap(e); inner != nil {
					e = inner // without the name of the flag, which nobody typed
				}
				err = &node.Error{Code: codeUsage, Message: fmt.Sprintf("%s=%s: %s", n, v, withoutGo(e)), Fix: "correct or unset the variable"}
			}
			return
		}
	})
	return err
}

// dial finds the node of --data-dir.
func (c *cli) dial() (*control.Client, error) {
	client, err := control.Dial(c.dataDir)
	if err != nil {
		return nil, err
	}
	client.Lost = func(err error) {
		if err == nil {
			fmt.Fprintln(c.stderr, "meshnode: the node is back")
		} else {
			fmt.Fprintln(c.stderr, "meshnode: the node is gone; waiting for it to come back: meshnode up -d")
		}
	}
	return client, nil
}

func workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "worker RUNTIME",
		Short:  "A worker process; the node starts it",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return &node.Error{Code: codeUsage, Message: fmt.Sprintf("no runtime %q", args[0]), Fix: "worker processes are started by their node"}
		},
	}
}
