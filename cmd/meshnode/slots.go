package main

import (
	"time"

	"github.com/spf13/cobra"
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

func (c *cli) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "End a pause",
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
