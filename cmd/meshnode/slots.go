package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
)

func (c *cli) slotsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "slots K|auto",
		Short: "Change how many tasks run here at once",
		Long: `Sets the number of tasks that this node runs at once, until it ends; the next start takes what up says.
Tasks that run in a slot that is taken away end first. auto is one per core.`,
		Args: c.exactly(1, "a number or auto"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := parseSlots(args[0])
			if err != nil {
				return usage(cmd, "slots %v", err)
			}
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			return client.SetSlots(cmd.Context(), n)
		},
	}
}

func (c *cli) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause [TIME]",
		Short: "Take and start no more work here",
		Long: `Takes and starts no more work on this node, for a time (10m, 2h) or until "meshnode resume" or the node's next
start. Tasks that run end; those that wait go back.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d duration
			if len(args) == 1 {
				if err := d.Set(args[0]); err != nil {
					return usage(cmd, "pause: %v", err)
				}
				if time.Duration(d) < time.Millisecond {
					return usage(cmd, "pause: want a time of at least 1ms")
				}
			}
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			return client.Pause(cmd.Context(), time.Duration(d))
		},
	}
}

func (c *cli) drainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain [-d]",
		Short: "Take and start no more work here, and wait until nothing runs",
		Long: `Takes and starts no more work on this node: what waits goes back, and what runs may end. Returns when nothing runs
any more; with -d at once. Jobs that were submitted here go on at other nodes. Interrupted, it leaves the node draining;
"meshnode resume" ends it, and so does the node's next start.`,
		Args: cobra.NoArgs,
	}
	detach := cmd.Flags().BoolP("detach", "d", false, "do not wait until nothing runs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		if err := client.Drain(cmd.Context()); err != nil || *detach {
			return err
		}
		return c.waitDrained(cmd.Context(), client)
	}
	return cmd
}

// waitDrained waits until the node runs nothing, and says how much is left whenever that changes.
func (c *cli) waitDrained(ctx context.Context, client *control.Client) error {
	var empty time.Time
	for last := -1; ; {
		s, err := client.Status(ctx)
		switch {
		case ctx.Err() != nil:
			fmt.Fprintln(c.stderr, "meshnode: interrupted; the node goes on draining, until meshnode resume")
			return exitCode(exitInterrupted)
		case err != nil:
			return err
		case s.Paused == nil:
			return &node.Error{Code: node.CodeRefused, Message: "somebody resumed the node while it drained", Fix: "meshnode drain begins again"}
		}
		if n := s.Running + s.Queued; n != last {
			if last = n; n == 0 {
				empty = time.Now()
				fmt.Fprintln(c.stderr, "meshnode: drained: nothing runs here any more")
			} else {
				fmt.Fprintf(c.stderr, "meshnode: draining: %d running, %d to go back\n", s.Running, s.Queued)
			}
		}
		if last == 0 && (s.Results == 0 || time.Since(empty) > deliverTime) {
			if s.Results > 0 {
				fmt.Fprintf(c.stderr, "meshnode: results that wait for nodes that are away: %d; they are kept on disk, and sent when both run\n", s.Results)
			}
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(drainInterval):
		}
	}
}

const (
	// drainInterval is how often drain looks at the node.
	drainInterval = 200 * time.Millisecond
	// deliverTime is how long drain waits for answers to the last results.
	deliverTime = 3 * time.Second
)

func (c *cli) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "End a pause or a drain",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			return client.Resume(cmd.Context())
		},
	}
}
