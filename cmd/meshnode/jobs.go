package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
)

// recent is how long an ended job is listed without -a.
const recent = 24 * time.Hour

func (c *cli) jobsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "jobs [-a] [-w]",
		Short: "The jobs that were submitted here",
		Long:  "Lists the jobs of this node, newest first: those that go on, and those that ended within a day; all with -a.",
		Args:  cobra.NoArgs,
	}
	all := cmd.Flags().BoolP("all", "a", false, "also jobs that ended long ago")
	watch, quiet := addWatch(cmd), addQuiet(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		return c.show(cmd.Context(), *watch, func(w io.Writer) error {
			listed, err := client.Jobs(cmd.Context())
			if err != nil {
				return err
			}
			jobs := []node.Job{}
			for _, j := range listed {
				end := j.Submitted.Add(time.Duration(j.ElapsedMS * float64(time.Millisecond)))
				if *all || !hasEnded(j) || time.Since(end) < recent {
					jobs = append(jobs, j)
				}
			}
			if c.json() {
				b, err := encodeJSON(jobs)
				if err == nil {
					_, err = w.Write(b)
				}
				return err
			}
			if *quiet {
				for _, j := range jobs {
					fmt.Fprintln(w, j.ID)
				}
				return nil
			}
			head := []string{"ID", "NAME", "STATE", "TASKS", "DONE", "FAILED", "RUNNING", "PENDING", "TIME", "REASON"}
			if c.format == "wide" {
				head = append(head, "SUBMITTED", "ATTEMPTS", "STOLEN", "REISSUED", "SPARES")
			}
			rows := [][]string{head}
			for _, j := range jobs {
				id := j.ID
				if c.format != "wide" {
					id = id[:min(8, len(id))]
				}
				row := []string{id, j.Name, j.State, number(j.Tasks), number(j.Done), number(j.Failed), number(j.Running), number(j.Pending),
					short(time.Duration(j.ElapsedMS * float64(time.Millisecond))), j.Reason}
				if c.format == "wide" {
					row = append(row, j.Submitted.Local().Format(time.DateTime), number(j.Attempts), number(j.Stolen), number(j.Reissued), number(j.Spares))
				}
				rows = append(rows, row)
			}
			return table(w, c.outTTY, rows)
		})
	}
	return cmd
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func hasEnded(j node.Job) bool {
	return j.State == "done" || j.State == "failed" || j.State == "cancelled"
}

func (c *cli) jobCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "job JOB [-w]",
		Short: "One job: how far it is, and who did what",
		Long: `Shows a job. JOB is its id, the first digits of it, or @last for the newest.
Stolen counts tasks that other nodes took, reissued those that were granted again because a node was lost or
gave them back.`,
		Args:              c.exactly(1, "one job"),
		ValidArgsFunction: c.completeJobs,
	}
	watch, quiet := addWatch(cmd), addQuiet(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		return c.show(cmd.Context(), *watch, func(w io.Writer) error {
			j, err := client.Job(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.writeJob(w, j, *quiet)
		})
	}
	return cmd
}

func (c *cli) writeJob(w io.Writer, j node.Job, quiet bool) error {
	if j.Peers == nil {
		j.Peers = []node.JobShare{}
	}
	if c.json() {
		b, err := encodeJSON(j)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	}
	if quiet {
		_, err := fmt.Fprintln(w, j.ID)
		return err
	}
	rows := [][]string{
		{"id", j.ID}, {"name", j.Name}, {"state", j.State}, {"reason", j.Reason},
		{"tasks", fmt.Sprintf("%d: %d done, %d failed, %d running, %d pending", j.Tasks, j.Done, j.Failed, j.Running, j.Pending)},
		{"submitted", j.Submitted.Local().Format(time.DateTime)},
		{"time", short(time.Duration(j.ElapsedMS * float64(time.Millisecond)))},
		{"attempts", fmt.Sprintf("%d: %d stolen, %d reissued, %d spare", j.Attempts, j.Stolen, j.Reissued, j.Spares)},
	}
	if j.Priority != 0 {
		rows = append(rows, []string{"priority", strconv.Itoa(j.Priority)})
	}
	if j.RerunOf != "" {
		rows = append(rows, []string{"rerun of", j.RerunOf})
	}
	if err := table(w, c.outTTY, rows); err != nil || len(j.Peers) == 0 {
		return err
	}
	fmt.Fprintln(w)
	return table(w, c.outTTY, shareRows(j.Peers))
}

// shareRows is the table of who did what.
func shareRows(shares []node.JobShare) [][]string {
	rows := [][]string{{"NODE", "TASKS", "BUSY", "ID"}}
	for _, p := range shares {
		rows = append(rows, []string{p.Name, number(p.Tasks), short(time.Duration(p.BusyMS * float64(time.Millisecond))), p.Peer})
	}
	return rows
}

// exactly is cobra.ExactArgs with words.
func (c *cli) exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usage(cmd, "%s: give %s, not %d", cmd.Name(), what, len(args))
		}
		return noneEmpty(cmd, args)
	}
}

// atLeastOne is cobra.MinimumNArgs(1) with words.
func (c *cli) atLeastOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(cmd, "%s: give at least one %s", cmd.Name(), what)
		}
		return noneEmpty(cmd, args)
	}
}

// noneEmpty refuses empty arguments: a variable of a script that is not set.
func noneEmpty(cmd *cobra.Command, args []string) error {
	if slices.Contains(args, "") {
		return usage(cmd, "%s: an argument is empty", cmd.Name())
	}
	return nil
}

// completeJobs offers the ids of the node's jobs to the shell.
func (c *cli) completeJobs(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := c.dialToComplete(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	jobs, err := client.Jobs(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ids := []string{"@last"}
	for _, j := range jobs {
		ids = append(ids, oneLine(fmt.Sprintf("%s\t%s %s, %d tasks", j.ID[:min(8, len(j.ID))], j.Name, j.State, j.Tasks)))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// dialToComplete is dial for completion, which does not prepare commands.
func (c *cli) dialToComplete(cmd *cobra.Command) (*control.Client, error) {
	if err := c.readVariables(cmd); err != nil {
		return nil, err
	}
	return c.dial()
}
