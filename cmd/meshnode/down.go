package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
)

func (c *cli) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the node",
		Long: `Stops the node of this data directory and returns when it has ended: it takes no more work and hands back
what it has, within 5 s. Detached jobs that were submitted here go on when it starts again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			client, err := c.dial()
			if errors.Is(err, control.ErrNoNode) {
				return &node.Error{Code: "no_node", Message: err.Error(), Fix: "there is nothing to stop"}
			}
			if err != nil {
				return err
			}
			pid := client.Info().PID
			if err := client.Shutdown(ctx); err != nil {
				return err
			}
			client.Close()
			end := time.Now().Add(2 * stopTimeout)
			for {
				// The lock is the last thing that a node gives up. Whoever starts it again at once has another pid.
				if held, err := control.Held(c.dataDir); err != nil || !held {
					return err
				}
				if again, err := c.dial(); err == nil {
					other := again.Info().PID != pid
					again.Close()
					if other {
						return nil
					}
				}
				if time.Now().After(end) {
					return &node.Error{Code: "failed", Message: fmt.Sprintf("the node (process %d) has not ended after %v", pid, 2*stopTimeout), Fix: fmt.Sprintf("end the process: kill -9 %d", pid)}
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(20 * time.Millisecond):
				}
			}
		},
	}
}
