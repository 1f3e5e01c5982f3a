package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
)

func (c *cli) rerunCommand() *cobra.Command {
	var f submitFlags
	var failed bool
	cmd := &cobra.Command{
		Use:   "rerun JOB [--failed]",
		Short: "Run the tasks of an ended job again",
		Long: `Makes a new job with the program, inputs and terms of one that has ended: of all its tasks, or with --failed of
those that did not end well, cancelled ones included. The old job and its results stay. It is attached, as submit is, or
detached if the old one was. Tasks count from 0 in the new job; programs see the numbers {#} that they had.`,
		Example:           "  meshnode rerun --failed @last",
		Args:              c.exactly(1, "one job"),
		ValidArgsFunction: c.completeJobs,
	}
	fs := cmd.Flags()
	fs.BoolVar(&failed, "failed", false, "only tasks that did not end well")
	fs.BoolVarP(&f.detach, "detach", "d", false, "print the new job's id and leave; the job goes on")
	f.addResultFlags(fs)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.rerun(cmd, &f, args[0], failed) }
	return cmd
}

func (c *cli) rerun(cmd *cobra.Command, f *submitFlags, name string, failed bool) error {
	ctx := cmd.Context()
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	old, err := client.Job(ctx, name)
	if err != nil {
		return err
	}
	if failed && old.State == "done" {
		fmt.Fprintf(c.stderr, "meshnode: all %d tasks of job %s ended well; there is nothing to run again\n", old.Tasks, old.ID[:8])
		return nil
	}
	if !cmd.Flags().Changed("detach") {
		f.detach = old.Detached
	}
	id := protocol.NewJobID()
	p := c.newPrinter(client, f, id)
	job, err := client.Rerun(ctx, old.ID, node.Rerun{ID: id, Failed: failed, Detached: f.detach})
	if err == nil {
		p.python = isPython(job)
		p.numbers, err = protocol.NewNumbers(job.Runs)
	}
	if err == nil && !f.detach {
		var total progressTotal
		total.n.Store(int64(job.Tasks))
		total.known.Store(true)
		p.bar = c.newBar(f, &total)
		stop := p.tellWaits(ctx)
		job, err = client.Follow(ctx, id, control.Watching{Inputs: true}, p.print)
		stop()
	}
	return c.ended(ctx, client, f, p, job, err)
}
