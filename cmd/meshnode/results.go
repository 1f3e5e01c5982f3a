package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
)

func (c *cli) resultsCommand() *cobra.Command {
	var f submitFlags
	var to string
	var wait bool
	cmd := &cobra.Command{
		Use:   "results JOB [-k] [--to DIR]",
		Short: "The results of a job, as submit shows them",
		Long: `Writes the results that a job has now, in the order in which its tasks ended. It does not wait for the
others: see -w and meshnode wait. With --to, each task's output becomes a file named by its index from 0,
and what it wrote to standard error one that ends in .log. The exit code is that of submit.`,
		Args:              c.exactly(1, "one job"),
		ValidArgsFunction: c.completeJobs,
	}
	cmd.Flags().BoolVarP(&f.keepOrder, "keep-order", "k", false, "in the order of the inputs")
	cmd.Flags().BoolVar(&f.tag, "tag", false, "each line of output with its input in front")
	cmd.Flags().StringVar(&to, "to", "", "write files in `DIR`, which is made if it is not there")
	cmd.Flags().BoolVarP(&wait, "watch", "w", false, "go on until the job has ended")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("to") && to == "" {
			return usage(cmd, "results: --to names no directory")
		}
		ctx := cmd.Context()
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		job, err := client.Job(ctx, args[0])
		if err != nil {
			return err
		}
		id, err := protocol.ParseJobID(job.ID)
		if err != nil {
			return err
		}
		p := c.newPrinter(client, &f, id)
		if p.numbers, err = protocol.NewNumbers(job.Runs); err != nil {
			return err
		}
		p.python = isPython(job)
		deliver := p.print
		if to != "" {
			if err := os.MkdirAll(to, 0o777); err != nil {
				return err
			}
			dir, err := os.OpenRoot(to)
			if err != nil {
				return err
			}
			defer dir.Close()
			deliver = func(rs []control.Result) error { return p.save(dir, rs) }
		}
		job, err = client.Follow(ctx, id, control.Watching{Inputs: to == "", Now: !wait}, deliver)
		if err == nil {
			err = p.finish(ctx)
		}
		if e := p.out.Flush(); err == nil {
			err = e
		}
		if err != nil {
			return err
		}
		if !hasEnded(job) {
			fmt.Fprintf(c.stderr, "meshnode: job %s goes on, %d of its %d tasks have ended; wait for it: meshnode wait %s\n", id.Short(), job.Done+job.Failed, job.Tasks, id.Short())
		}
		c.tellCancelled(job)
		return p.exit(job)
	}
	return cmd
}

// saveOutput writes one output as a file.
func (p *printer) saveOutput(dir *os.Root, name string, r *control.Result) error {
	if r.OutputBlob == nil {
		return dir.WriteFile(name, r.Output, 0o666)
	}
	f, err := dir.Create(name)
	if err != nil {
		return err
	}
	err = p.copyOutput(f, r.OutputBlob)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// save writes results as files. Names are numbers: nothing that a task or peer says decides where they go.
func (p *printer) save(dir *os.Root, rs []control.Result) error {
	for i := range rs {
		r := &rs[i]
		p.seen++
		p.last = *r
		name := strconv.Itoa(int(r.Index))
		if err := p.saveOutput(dir, name, r); err != nil {
			return err
		}
		if len(r.Log) > 0 {
			if err := dir.WriteFile(name+".log", r.Log, 0o666); err != nil {
				return err
			}
		}
		if p.c.json() {
			b, err := encodeJSON(p.jsonLine(r))
			if err != nil {
				return err
			}
			if _, err := p.out.Write(b); err != nil {
				return err
			}
		} else if r.Status != protocol.Status_OK && r.Status != protocol.Status_CANCELLED {
			p.tellFailure(r)
		}
	}
	return nil
}

// splitTask splits JOB/TASK. Index is nil if there is no task.
func splitTask(s string) (job string, index *uint32, err error) {
	job, task, ok := strings.Cut(s, "/")
	if !ok {
		return s, nil, nil
	}
	n, err := strconv.ParseUint(task, 10, 32)
	if err != nil || n >= protocol.MaxTasks || job == "" {
		return "", nil, &node.Error{Code: codeUsage, Message: fmt.Sprintf("%q names no task", s), Fix: "want JOB/TASK, with tasks counted from 0"}
	}
	i := uint32(n)
	return job, &i, nil
}

func (c *cli) logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs JOB[/TASK] [-f]",
		Short: "What tasks wrote to standard error, and why they failed",
		Long: `Writes the log of a task, or of all tasks of a job that ended, each line with the index of its task
in front. The log of a task comes when it ends.`,
		Args:              c.exactly(1, "one job or task"),
		ValidArgsFunction: c.completeJobs,
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job has ended")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		name, index, err := splitTask(args[0])
		if err != nil {
			return err
		}
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		job, err := client.Job(ctx, name)
		if err != nil {
			return err
		}
		id, err := protocol.ParseJobID(job.ID)
		if err != nil {
			return err
		}
		if index != nil && !follow {
			r, err := client.Result(ctx, job.ID, *index)
			if err != nil {
				return err
			}
			return c.writeLog(job.ID, &control.Result{TaskResult: r}, false)
		}
		_, err = client.Follow(ctx, id, control.Watching{Now: !follow}, func(rs []control.Result) error {
			for i := range rs {
				if index != nil && rs[i].Index != *index {
					continue
				}
				if err := c.writeLog(job.ID, &rs[i], index == nil); err != nil {
					return err
				}
				if index != nil {
					return errFound
				}
			}
			return nil
		})
		if errors.Is(err, errFound) {
			return nil
		}
		return err
	}
	return cmd
}

// errFound ends a search through results.
var errFound = errors.New("found")

// logLine is a log with --json.
type logLine struct {
	Job    string `json:"job"`
	Index  uint32 `json:"index"`
	Status string `json:"status"`
	Log    string `json:"log"`
	Error  string `json:"error"`
}

func (c *cli) writeLog(job string, r *control.Result, prefix bool) error {
	word, _ := status(r.Status)
	if c.json() {
		l := logLine{Job: job, Index: r.Index, Status: word, Log: strings.ToValidUTF8(string(r.Log), "\ufffd")}
		if word != "ok" {
			l.Error = failure(r)
		}
		b, err := encodeJSON(l)
		if err == nil {
			_, err = c.stdout.Write(b)
		}
		return err
	}
	log := r.Log
	if len(log) > 0 && log[len(log)-1] != '\n' {
		log = append(log[:len(log):len(log)], '\n')
	}
	if prefix {
		log = tagged([]byte(strconv.Itoa(int(r.Index))), log)
	}
	if _, err := c.stdout.Write(toTerminal(log, c.outTTY)); err != nil {
		return err
	}
	if word != "ok" {
		fmt.Fprintf(c.stderr, "meshnode: task %d: %s\n", r.Index, oneLine(failure(r)))
	}
	return nil
}

func (c *cli) waitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait JOB...",
		Short: "Wait until jobs have ended",
		Long: `Returns when all the jobs have ended. The exit code is that of submit: the number of failed tasks, or the
task's own if it is one job of one task. Interrupting it does not cancel the jobs.`,
		Args:              c.atLeastOne("job"),
		ValidArgsFunction: c.completeJobs,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		var jobs []node.Job // all names are looked up before the first is waited for
		for _, name := range args {
			j, err := client.Job(ctx, name)
			if err != nil {
				return err
			}
			jobs = append(jobs, j)
		}
		failed := 0
		for i := range jobs {
			if jobs[i], err = client.Wait(ctx, jobs[i].ID); err != nil {
				return err
			}
			failed += int(jobs[i].Failed)
			c.tellCancelled(jobs[i])
			if c.json() {
				if err := c.writeJob(c.stdout, jobs[i], false); err != nil {
					return err
				}
			}
		}
		if len(jobs) == 1 && jobs[0].Tasks == 1 {
			r, err := client.Result(ctx, jobs[0].ID, 0)
			if e := (*node.Error)(nil); errors.As(err, &e) {
				return manyTasks(failed)
			}
			if err != nil {
				return err
			}
			return oneTask(r)
		}
		return manyTasks(failed)
	}
	return cmd
}

func (c *cli) cancelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "cancel JOB[/TASK]...",
		Short:             "End jobs, or single tasks of them",
		Long:              "Cancels jobs or tasks. What has ended stays; results of tasks that are done can still be read.",
		Args:              c.atLeastOne("job or task"),
		ValidArgsFunction: c.completeJobs,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		type target struct {
			job   string
			index *uint32
		}
		var targets []target // all names are looked up before the first is cancelled: @last stays what it was
		for _, a := range args {
			name, index, err := splitTask(a)
			if err != nil {
				return err
			}
			j, err := client.Job(cmd.Context(), name)
			if err != nil {
				return err
			}
			targets = append(targets, target{j.ID, index})
		}
		for _, t := range targets {
			j, err := client.Cancel(cmd.Context(), t.job, t.index)
			if err != nil {
				return err
			}
			if c.json() {
				if err := c.writeJob(c.stdout, j, false); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return cmd
}
