package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"meshnode/tasks"
)

func (c *cli) whyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "why JOB|JOB/TASK|PEER [-w]",
		Short: "Why something waits, runs, or gets no work, and what to do about it",
		Long: `Says why a job is not further, where a task is and what became of its attempts, or why a node gets no work of this
one. JOB is an id, the first digits of it, or @last for the newest; PEER a name or an id. What matters most comes first;
an arrow goes before what can be done about it. Each line has a code that scripts can rely on.`,
		Args:              c.exactly(1, "a job, a task or a peer"),
		ValidArgsFunction: c.completeSubjects,
	}
	watch := addWatch(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		return c.show(cmd.Context(), *watch, func(w io.Writer) error {
			why, err := client.Why(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if why.Reasons == nil {
				why.Reasons = []tasks.Reason{}
			}
			if c.json() {
				b, err := encodeJSON(why)
				if err == nil {
					_, err = w.Write(b)
				}
				return err
			}
			fmt.Fprintf(w, "%s: %s\n", oneLine(why.Subject), oneLine(why.Summary))
			width := 0
			for _, r := range why.Reasons {
				width = max(width, len(r.Code))
			}
			for _, r := range why.Reasons {
				fmt.Fprintf(w, "  %-*s  %s\n", width, r.Code, oneLine(r.Text))
				if !strings.HasPrefix(r.Fix, "nothing:") || c.format == "wide" {
					fmt.Fprintf(w, "  %-*s  → %s\n", width, "", oneLine(r.Fix))
				}
			}
			return nil
		})
	}
	return cmd
}

// completeSubjects offers jobs and peers to the shell.
func (c *cli) completeSubjects(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	jobs, _ := c.completeJobs(cmd, args, word)
	peers, directive := c.completePeers(cmd, args, word)
	return append(jobs, peers...), directive
}
