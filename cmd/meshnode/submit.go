package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor/wasm"
)

const submitHelp = `Runs PROGRAM once for each input, on this node and its peers. PROGRAM is a WebAssembly module, prog.wasm, or a
function of a Python file, file.py:function, which travels with what it uses.

Inputs are the words after ":::", the lines of FILE after "::::" (- is standard input), or, with "-" as
the last word, the lines of standard input. Without any of these it is one task with an empty input;
standard input is then not read.

Words between PROGRAM and ":::" are the program's arguments, in each of which {} becomes the input and
{#} its number from 1; standard input of the program is empty then. Without words, the program reads
the input from its standard input.

A Python function gets the input as its argument, or with words each of them as one: numbers, strings in quotes, lists,
tuples, dicts, sets, True, False and None as Python writes them, anything else as a str. A parameter that is annotated with
str gets the text as it is. Without inputs and words it is called without arguments. What it returns is printed: a str as it is,
bytes raw, None as nothing, else its str().

Flags come before PROGRAM.

With --joblog, what ended is on disk once its output is written. After a crash or Ctrl-C, the same line with
--resume goes on where it was: the inputs must be the same ones, in the same order.

EXPR of --on is conditions with a comma between them, which must all be true: os=linux, arch=arm64, cpus>=8,
memory>=4G, name=lab-*, and of labels (meshnode up --label) gpu, !slow, room=4|5, kind!=laptop.

`

// submitFlags are the flags of submit and run.
type submitFlags struct {
	detach, keepOrder, tag, stats bool
	bar, noBar                    bool
	maxParallel                   uint32
	name, memory, clock           string
	timeout                       duration
	retries                       uint32
	priority                      int
	on, spare                     string
	not                           []string
	localOnly, remoteOnly         bool
	halt                          halt
	joblog                        string
	resume, resumeFailed, dryRun  bool
	python                        string
	// passThrough: the task's output and log as they are, for run.
	passThrough bool
}

func (c *cli) submitCommand() *cobra.Command {
	var f submitFlags
	cmd := &cobra.Command{
		Use:   "submit [flags] PROGRAM [WORD...] [::: INPUT...] [:::: FILE]",
		Short: "Run a program once for each input",
		Long: submitHelp + `Each task's output is written as it ends, with a line feed if it lacks one. The first
Ctrl-C cancels the job, the second leaves at once.`,
		Example: `  meshnode submit prog.wasm ::: 1 2 3
  seq 1000 | meshnode submit -k prog.wasm -
  meshnode submit primes.py:sum_primes ::: 100000 100100
  meshnode submit --json --stats prog.wasm --depth {} :::: depths.txt`,
	}
	c.addSubmitFlags(cmd, &f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.submit(cmd, &f, args) }
	return cmd
}

func (c *cli) runCommand() *cobra.Command {
	f := submitFlags{passThrough: true}
	cmd := &cobra.Command{
		Use:   "run [flags] PROGRAM [WORD...] [::: INPUT...] [:::: FILE]",
		Short: "Run a program as if it ran here",
		Long: submitHelp + `The output of tasks is passed through as it is, and what they write to standard error, too.
Otherwise the same as submit.`,
		Example: "  meshnode run prog.wasm --verbose",
	}
	c.addSubmitFlags(cmd, &f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.submit(cmd, &f, args) }
	return cmd
}

func (c *cli) addSubmitFlags(cmd *cobra.Command, f *submitFlags) {
	cmd.Flags().SetInterspersed(false) // what follows PROGRAM is the program's
	var groups flagGroups
	fs := groups.add("Results")
	f.addResultFlags(fs)
	fs.StringVar(&f.joblog, "joblog", "", "a line for each task in `FILE` once its output is written, as of GNU parallel")
	fs.BoolVar(&f.resume, "resume", false, "leave out what is in the file of --joblog, and add to it")
	fs.BoolVar(&f.resumeFailed, "resume-failed", false, "the same, and run again what failed")
	fs = groups.add("The job")
	if !f.passThrough {
		fs.BoolVarP(&f.detach, "detach", "d", false, "print the job's id and leave; the job goes on")
	}
	fs.StringVarP(&f.name, "name", "n", "", "the job's `name` (default: the program's)")
	fs.Uint32VarP(&f.maxParallel, "jobs", "j", 0, "at most `MAX` tasks at once (default: no limit)")
	fs.IntVar(&f.priority, "priority", 0, "among your jobs, those with a higher `P` go first: -100 to 100")
	fs.Var(&f.halt, "halt", "`WHEN` tasks fail: soon,fail=N ends the job after N, but lets running ones end; now,fail=N stops those, too")
	fs.BoolVar(&f.dryRun, "dry-run", false, "print what would run, and submit nothing")
	fs = groups.add("Each task")
	fs.Var(&f.timeout, "timeout", "end a task after this `time` from its start: 500ms, 10s, 1h (default: never)")
	fs.Uint32Var(&f.retries, "retries", 0, "run a task that fails up to `N` times again before it has failed")
	fs.StringVar(&f.memory, "memory", "", "`limit` of a task's memory: 64M, 1G (default: the node's)")
	fs.StringVar(&f.clock, "clock", "", "`real`: the system's clock and randomness (default: deterministic ones)")
	fs.StringVar(&f.python, "python", "", "the `interpreter` that loads file.py, a path or a name on PATH (default: python3)")
	fs.StringVar(&f.spare, "spare", "auto", "`auto` or off: a second copy of a straggler near the end of the job")
	fs = groups.add("Where tasks may run")
	fs.StringVar(&f.on, "on", "", "only on nodes of which `EXPR` is true: os=linux,cpus>=8,gpu")
	fs.StringArrayVar(&f.not, "not", nil, "not on `PEER`, a name or an id or the beginning of one; may be repeated")
	fs.BoolVar(&f.localOnly, "local-only", false, "only on this node")
	fs.BoolVar(&f.remoteOnly, "remote-only", false, "only on other nodes")
	groups.end(cmd)
	for name, values := range map[string][]string{"spare": {"auto", "off"}, "clock": {"real"}, "halt": {"soon,fail=1", "now,fail=1", "never"}} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // no such flag
		}
	}
	cmd.ValidArgsFunction = completeProgram
	if err := cmd.RegisterFlagCompletionFunc("not", c.completePeers); err != nil {
		panic(err) // no such flag
	}
}

// addResultFlags are the flags of all commands that show results.
func (f *submitFlags) addResultFlags(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.keepOrder, "keep-order", "k", false, "results in the order of the inputs (default: as tasks end)")
	fs.BoolVar(&f.tag, "tag", false, "each line of output with its input in front")
	fs.BoolVar(&f.stats, "stats", false, "at the end, who did what")
	fs.BoolVar(&f.bar, "bar", false, "show progress, also when results go to the same terminal")
	fs.BoolVar(&f.noBar, "no-bar", false, "do not show progress")
}

// flagGroups are the flags of a command as its help shows them.
type flagGroups struct{ sets []*pflag.FlagSet }

// add begins a group.
func (g *flagGroups) add(title string) *pflag.FlagSet {
	fs := pflag.NewFlagSet(title, pflag.ContinueOnError)
	fs.SortFlags = false
	g.sets = append(g.sets, fs)
	return fs
}

// end gives the flags to cmd.
func (g *flagGroups) end(cmd *cobra.Command) {
	for _, fs := range g.sets {
		cmd.Flags().AddFlagSet(fs)
	}
	cmd.SetUsageFunc(func(cmd *cobra.Command) error {
		w := cmd.OutOrStderr()
		fmt.Fprintf(w, "Usage:\n  %s\n\nExamples:\n%s\n", cmd.UseLine(), cmd.Example)
		for _, fs := range g.sets {
			fmt.Fprintf(w, "\n%s:\n%s", fs.Name(), fs.FlagUsages())
		}
		_, err := fmt.Fprintf(w, "\nGlobal Flags:\n%s", cmd.InheritedFlags().FlagUsages())
		return err
	})
}

// halt is the flag that ends a job after failures, in the words of GNU parallel.
type halt struct {
	failed uint32 // 0: never
	now    bool
}

func (h *halt) Type() string { return "halt" }

func (h *halt) String() string {
	switch {
	case h.failed == 0:
		return ""
	case h.now:
		return fmt.Sprintf("now,fail=%d", h.failed)
	}
	return fmt.Sprintf("soon,fail=%d", h.failed)
}

func (h *halt) Set(s string) error {
	switch s {
	case "never", "0":
		*h = halt{}
		return nil
	case "1": // the older words for these
		s = "soon,fail=1"
	case "2":
		s = "now,fail=1"
	}
	when, why, ok := strings.Cut(s, ",")
	if !ok {
		why = "fail=1"
	}
	count, ok := strings.CutPrefix(why, "fail=")
	n, err := strconv.ParseUint(count, 10, 32)
	if when != "soon" && when != "now" || !ok || err != nil || n == 0 {
		return errors.New("want soon,fail=N or now,fail=N, N a number of failed tasks from 1")
	}
	*h = halt{uint32(n), when == "now"}
	return nil
}

// duration is a flag that also takes a bare number of seconds, as other tools do.
type duration time.Duration

func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}
func (d *duration) Type() string { return "duration" }

func (d *duration) Set(s string) error {
	v, err := time.ParseDuration(s)
	if d, ok := strings.CutSuffix(s, "d"); ok {
		if n, e := strconv.ParseFloat(d, 64); e == nil {
			v, err = time.Duration(n*24*float64(time.Hour)), nil
		}
	}
	if n, e := strconv.ParseFloat(s, 64); e == nil && err != nil {
		v, err = time.Duration(n*float64(time.Second)), nil
	}
	if err != nil || v < 0 || v > 100*365*24*time.Hour {
		return fmt.Errorf("%q is no duration: want 500ms, 10s, 2h, 7d", s)
	}
	*d = duration(v)
	return nil
}

// parseBytes reads a number of bytes: 1000, 64K, 64M, 1.5G, also with B or iB; K is 1024.
func parseBytes(s string) (uint64, error) {
	digits := strings.TrimRight(strings.ToUpper(s), "KMGTIB")
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s)[len(digits):], "B"), "I")
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	v, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || !(v > 0) || v*float64(uint64(1)<<shift) > 1<<50 {
		return 0, fmt.Errorf("%q is no size: want 64M, 1.5G", s)
	}
	return uint64(v * float64(uint64(1)<<shift)), nil
}

// invocation is what follows submit's flags.
type invocation struct {
	program string
	words   []string
	inputs  []string // after :::
	files   []string // after ::::; "-" is standard input
	given   bool     // there was a :::, :::: or -

	function *function // nil: a module
}

func parseInvocation(cmd *cobra.Command, args []string) (invocation, error) {
	var v invocation
	if cmd.ArgsLenAtDash() == 0 {
		return v, &node.Error{Code: codeUsage, Message: "a command after -- cannot be run by this version", Fix: "give a WebAssembly module or a Python function: meshnode " + cmd.Name() + " file.py:function ::: INPUT"}
	}
	if len(args) == 0 || strings.HasPrefix(args[0], ":::") {
		return v, usage(cmd, "%s: no PROGRAM", cmd.Name())
	}
	v.program = args[0]
	group, groups := "", 0
	for _, a := range args[1:] {
		switch {
		case a == ":::" || a == "::::":
			if group, v.given = a, true; a == ":::" {
				groups++
			}
		case group == "":
			v.words = append(v.words, a)
		case group == ":::":
			v.inputs = append(v.inputs, a)
		default:
			v.files = append(v.files, a)
		}
	}
	if groups > 1 {
		return v, usage(cmd, "%s: more than one :::; inputs are not combined", cmd.Name())
	}
	if group == "::::" && len(v.files) == 0 {
		return v, usage(cmd, "%s: no FILE after ::::", cmd.Name())
	}
	if n := len(v.words); !v.given && n > 0 && v.words[n-1] == "-" {
		v.words, v.files, v.given = v.words[:n-1], []string{"-"}, true
	}
	return v, nil
}

// read opens the files and returns the inputs. Total counts them as they come.
func (v *invocation) read(ctx context.Context, stdin io.Reader, total *progressTotal) (iter.Seq2[[]byte, error], func(), error) {
	var open []io.Reader
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, name := range v.files {
		if name == "-" {
			open = append(open, stdin)
			continue
		}
		f, err := openInput(ctx, name)
		if ctx.Err() != nil {
			closeAll()
			return nil, nil, ctx.Err()
		}
		if err == nil {
			files = append(files, f)
			var st os.FileInfo
			if st, err = f.Stat(); err == nil && st.IsDir() {
				err = fmt.Errorf("%s is a directory", name)
			}
		}
		if err != nil {
			closeAll()
			return nil, nil, &node.Error{Code: codeUsage, Message: "read inputs: " + err.Error(), Fix: "give a file with one input a line after ::::"}
		}
		open = append(open, f)
	}
	words := v.inputs
	if !v.given {
		words = []string{""}
	}
	return func(yield func([]byte, error) bool) {
		defer total.known.Store(true)
		for _, w := range words {
			total.n.Add(1)
			if !yield([]byte(w), nil) {
				return
			}
		}
		for i, r := range open {
			lines := bufio.NewScanner(r)
			lines.Buffer(make([]byte, 64<<10), control.MaxInput+2)
			for lines.Scan() { // without the line's end, \r\n too
				total.n.Add(1)
				if !yield(lines.Bytes(), nil) {
					return
				}
			}
			if err := lines.Err(); err != nil {
				if errors.Is(err, bufio.ErrTooLong) {
					err = &node.Error{Code: codeUsage, Message: fmt.Sprintf("read inputs from %s: a line is longer than %d MiB", v.files[i], control.MaxInput>>20), Fix: "give the names of large things as inputs, or parts of them"}
				}
				yield(nil, err)
				return
			}
		}
	}, closeAll, nil
}

// openInput is os.Open that gives up when ctx is done: a pipe opens only when somebody writes to it.
func openInput(ctx context.Context, name string) (*os.File, error) {
	type opened struct {
		f   *os.File
		err error
	}
	ch := make(chan opened, 1)
	go func() {
		f, err := os.Open(name)
		ch <- opened{f, err}
	}()
	select {
	case o := <-ch:
		return o.f, o.err
	case <-ctx.Done():
		return nil, ctx.Err() // the process ends, and with it the open
	}
}

// openProgram opens a module and says what is wrong with it before anything is submitted.
func openProgram(path string) (*os.File, error) {
	bad := func(code, message, fix string) (*os.File, error) {
		return nil, &node.Error{Code: code, Message: path + ": " + message, Fix: fix}
	}
	st, err := os.Stat(path) // first: to open a pipe is to wait for who writes to it
	if err != nil {
		if e := (*os.PathError)(nil); errors.As(err, &e) {
			err = e.Err
		}
		return bad(codeUsage, err.Error(), "give the path of a WebAssembly module, or file.py:function")
	}
	if !st.Mode().IsRegular() {
		return bad(codeUsage, "not a file", "give the path of a WebAssembly module, or file.py:function")
	}
	if err := wasm.Check(path); err != nil {
		message, fix, ok := strings.Cut(err.Error(), "; ")
		if !ok {
			fix = "build it again for wasm32-wasip1, and copy all of it"
		}
		return bad(node.CodeBadProgram, message, fix)
	}
	return os.Open(path)
}

func (c *cli) submit(cmd *cobra.Command, f *submitFlags, args []string) error {
	ctx := cmd.Context()
	v, err := parseInvocation(cmd, args)
	if err != nil {
		return err
	}
	spec := node.JobSpec{
		ID: protocol.NewJobID(), Name: f.name, Runtime: wasm.Name, Args: v.words, Timeout: time.Duration(f.timeout),
		MaxParallel: f.maxParallel, Detached: f.detach,
	}
	if spec.Name == "" {
		spec.Name = programName(v.program)
	}
	if len(spec.Name) > protocol.MaxName {
		return usage(cmd, "the job's name is longer than %d bytes", protocol.MaxName)
	}
	if f.memory != "" {
		if spec.Memory, err = parseBytes(f.memory); err != nil {
			return usage(cmd, "--memory: %v", err)
		}
	}
	switch f.clock {
	case "":
	case "real":
		spec.ClockReal = true
	default:
		return usage(cmd, "--clock %q: want real", f.clock)
	}
	if err := f.place(cmd, &spec); err != nil {
		return err
	}
	var program io.Reader
	if file, name, ok := cutFunction(v.program); ok {
		if spec.ClockReal {
			return usage(cmd, "--clock is for WebAssembly; Python has the system's clock anyway")
		}
		if v.function, err = readFunction(ctx, f.python, file, name, c.stderr); err != nil {
			return err
		}
		spec.Runtime, spec.Local, program = v.function.Runtime, v.function.local(), bytes.NewReader(v.function.bundle)
	} else {
		// The variable is for all commands, and says nothing about this program.
		if variable, _ := c.getenv("MESHNODE_PYTHON"); f.python != variable && cmd.Flags().Changed("python") {
			return usage(cmd, "--python is for Python functions: file.py:function")
		}
		module, err := openProgram(v.program)
		if err != nil {
			return err
		}
		defer module.Close()
		program = module
	}
	var total progressTotal
	inputs, closeInputs, err := v.read(ctx, c.stdin, &total)
	if err != nil {
		return err
	}
	defer closeInputs()
	if f.dryRun {
		return c.dryRun(f, &v, inputs, &total)
	}
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	if spec.Placement.Not, err = c.peersOf(ctx, client, "--not", f.not); err != nil {
		return err
	}
	if spec.Code, err = client.PutProgram(ctx, program); err != nil {
		return err
	}
	var log *joblog
	if f.joblog != "" {
		if log, err = f.readJoblog(&v); err != nil {
			return err
		}
		if err := log.open(); err != nil {
			return err
		}
		defer log.close()
		inputs, spec.Runs = log.left(inputs, &total), log.runs()
	}
	if words := strings.Join(v.words, " "); v.given && len(v.words) > 0 && !strings.Contains(words, "{}") && !strings.Contains(words, "{#}") {
		fmt.Fprintf(c.stderr, "meshnode: no {} in the arguments of %s: each task gets the same\n", oneLine(v.program))
	}
	p := c.newPrinter(client, f, spec.ID)
	if v.function != nil {
		p.python, inputs = true, v.texts(inputs)
	}
	if p.log = log; log != nil {
		p.numbers = log.numbers
	}
	p.bar = c.newBar(f, &total)
	stop := p.tellWaits(ctx)
	job, err := client.Submit(ctx, spec, inputs, p.print)
	stop()
	return c.ended(ctx, client, f, p, job, err)
}

// ended shows the end of a job that was submitted here: of a detached one, that it was.
func (c *cli) ended(ctx context.Context, client *control.Client, f *submitFlags, p *printer, job node.Job, err error) error {
	if err == nil {
		err = p.finish(ctx)
	}
	p.bar.clear()
	if ctx.Err() != nil {
		p.out.Flush()
		return c.interrupted(client, p.job, f.detach)
	}
	if err != nil {
		p.out.Flush()
		return fmt.Errorf("job %s: %w", p.job.Short(), err)
	}
	if f.detach {
		if c.json() {
			return c.writeJob(c.stdout, job, false)
		}
		_, err := fmt.Fprintln(c.stdout, job.ID)
		return err
	}
	if f.stats {
		if err := c.writeStats(p.out, job); err != nil {
			return err
		}
	}
	if err := p.out.Flush(); err != nil {
		return err
	}
	c.tellCancelled(job)
	return p.exit(job)
}

// tellCancelled says why a job has an exit code and tasks without results.
func (c *cli) tellCancelled(j node.Job) {
	switch {
	case j.State == "cancelled":
		fmt.Fprintf(c.stderr, "meshnode: job %s was cancelled%s\n", j.ID[:min(8, len(j.ID))], colon(oneLine(j.Reason)))
	case j.Halted:
		fmt.Fprintf(c.stderr, "meshnode: job %s ended early%s; run the rest: meshnode rerun --failed %[1]s\n", j.ID[:min(8, len(j.ID))], colon(oneLine(j.Reason)))
	}
}

// place checks the flags that say how and where a job is run, and fills them in.
func (f *submitFlags) place(cmd *cobra.Command, spec *node.JobSpec) error {
	switch {
	case f.retries > node.MaxRetries:
		return usage(cmd, "--retries %d: want 0 to %d", f.retries, node.MaxRetries)
	case f.priority < node.MinPriority || f.priority > node.MaxPriority:
		return usage(cmd, "--priority %d: want %d to %d", f.priority, node.MinPriority, node.MaxPriority)
	case f.localOnly && f.remoteOnly:
		return usage(cmd, "--local-only and --remote-only leave no node")
	case f.spare != "auto" && f.spare != "off":
		return usage(cmd, "--spare %q: want auto or off", f.spare)
	case cmd.Flags().Changed("joblog") && f.joblog == "":
		return usage(cmd, "--joblog names no file")
	case cmd.Flags().Changed("on") && f.on == "":
		return usage(cmd, "--on: the expression is empty")
	case (f.resume || f.resumeFailed) && f.joblog == "":
		return usage(cmd, "--resume needs --joblog FILE, which says what ran")
	case f.joblog != "" && f.detach:
		return usage(cmd, "--joblog is written by the client as tasks end, and -d leaves before")
	}
	if _, err := tasks.ParseOn(f.on); err != nil {
		return usage(cmd, "--on %s: %v", f.on, err)
	}
	f.resume = f.resume || f.resumeFailed
	spec.Retries, spec.Priority = f.retries, f.priority
	spec.HaltFailed, spec.HaltNow = f.halt.failed, f.halt.now
	spec.Placement.On, spec.Placement.LocalOnly, spec.Placement.RemoteOnly = f.on, f.localOnly, f.remoteOnly
	if f.spare == "off" {
		spec.Spare = protocol.Spare_SPARE_OFF
	}
	return nil
}

// dryTask is a task of --dry-run with --json.
type dryTask struct {
	Index   uint32 `json:"index"`
	Input   string `json:"input"`
	Command string `json:"command"`
}

// dryRun prints the command of each task that would run.
func (c *cli) dryRun(f *submitFlags, v *invocation, inputs iter.Seq2[[]byte, error], total *progressTotal) error {
	log, err := f.readJoblog(v)
	if err != nil {
		return err
	}
	if v.function != nil {
		if err := v.function.tellContents(c.stderr); err != nil {
			return err
		}
	}
	out := bufio.NewWriterSize(c.stdout, 64<<10)
	index := uint32(0)
	for in, err := range log.left(inputs, total) {
		if err != nil {
			out.Flush()
			return err
		}
		command := v.command(log.numbers.Of(index), in)
		b := append(toTerminal([]byte(command), c.outTTY), '\n')
		if c.json() {
			if b, err = encodeJSON(dryTask{index, strings.ToValidUTF8(string(in), "\ufffd"), command}); err != nil {
				return err
			}
		}
		if _, err := out.Write(b); err != nil {
			return err
		}
		index++
	}
	return out.Flush()
}

func colon(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func programName(path string) string {
	path = path[strings.LastIndexAny(path, `/\`)+1:]
	if file, name, ok := cutFunction(path); ok {
		return cmp.Or(name, file)
	}
	return strings.TrimSuffix(path, ".wasm")
}

// interrupted cancels the job after the first Ctrl-C.
func (c *cli) interrupted(client *control.Client, id protocol.JobID, detached bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	job, err := client.Cancel(ctx, id.String(), nil)
	if e := (*node.Error)(nil); errors.As(err, &e) && e.Code == node.CodeNoJob {
		fmt.Fprintln(c.stderr, "meshnode: interrupted; nothing was submitted")
		return exitCode(exitInterrupted)
	}
	if errors.Is(err, control.ErrNoNode) && !detached {
		fmt.Fprintf(c.stderr, "meshnode: interrupted; the node is gone, and cancels job %s by itself when it is back\n", id.Short())
		return exitCode(exitInterrupted)
	}
	if err != nil {
		fmt.Fprintf(c.stderr, "meshnode: interrupted; job %s could not be cancelled: %s; meshnode cancel %s\n", id.Short(), oneLine(err.Error()), id.Short())
		return exitCode(exitInterrupted)
	}
	fmt.Fprintf(c.stderr, "meshnode: interrupted; job %s is cancelled, %d of its %d tasks are done: meshnode results %s\n", id.Short(), job.Done, job.Tasks, id.Short())
	return exitCode(exitInterrupted)
}

// statsLine is the last line of --json --stats.
type statsLine struct {
	Job       string          `json:"job"`
	Done      uint32          `json:"done"`
	Failed    uint32          `json:"failed"`
	ElapsedMS float64         `json:"elapsed_ms"`
	Peers     []node.JobShare `json:"peers"`
	Stolen    uint32          `json:"stolen"`
	Reissued  uint32          `json:"reissued"`
	Spares    uint32          `json:"spares"`
}

func (c *cli) writeStats(out io.Writer, j node.Job) error {
	if j.Peers == nil {
		j.Peers = []node.JobShare{}
	}
	if c.json() {
		b, err := encodeJSON(statsLine{j.ID, j.Done, j.Failed, j.ElapsedMS, j.Peers, j.Stolen, j.Reissued, j.Spares})
		if err == nil {
			_, err = out.Write(b)
		}
		return err
	}
	fmt.Fprintf(c.stderr, "job %s: %d done, %d failed in %s; %d stolen, %d reissued, %d spare\n", j.ID[:8], j.Done, j.Failed,
		short(time.Duration(j.ElapsedMS*float64(time.Millisecond))), j.Stolen, j.Reissued, j.Spares)
	return table(c.stderr, c.errTTY, shareRows(j.Peers))
}

// tagged puts the input in front of each line of b.
func tagged(input, b []byte) []byte {
	input = bytes.ReplaceAll(input, []byte("\n"), []byte(" "))
	var out []byte
	for len(b) > 0 {
		line := b
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			line = b[:i+1]
		}
		b = b[len(line):]
		out = append(append(append(out, input...), '\t'), line...)
	}
	return out
}

// progressTotal counts the inputs as they are read.
type progressTotal struct {
	n     atomic.Int64
	known atomic.Bool // there are no more
}
