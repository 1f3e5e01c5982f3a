package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
)

// pingEvery is how often a member is pinged; maxPings in one call are an hour.
const (
	pingEvery = time.Second
	maxPings  = 3600
)

// pingEnd is the last line of `peers ping --json`.
type pingEnd struct {
	Sent     int     `json:"sent"`
	Answered int     `json:"answered"`
	Min      float64 `json:"min_ms"`
	Avg      float64 `json:"avg_ms"`
	Max      float64 `json:"max_ms"`
}

func (c *cli) pingCommand() *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:   "ping PEER [-c N]",
		Short: "How long a member takes to answer, or what each of its addresses says",
		Long: `Asks a member for a sign of life over the connection that there is, once in a second, and says how long it took, and whether directly
or through a relay. A member that is not connected is dialled now, at each address that is known of it, and what each one said is
shown. PEER is a name or an id. With --json there is one object for each ping, and a last one with sent, answered, min_ms, avg_ms and max_ms.
The exit code is the number of pings that were not answered (101: more than 100).`,
		Args:              c.exactly(1, "a peer"),
		ValidArgsFunction: c.completePeers,
	}
	cmd.Flags().IntVarP(&count, "count", "c", 4, "how often: `N`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if count < 1 || count > maxPings {
			return usage(cmd, "-c %d: want a number from 1 to %d", count, maxPings)
		}
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		ctx := cmd.Context()
		var end pingEnd
		for i := range count {
			if i > 0 {
				select {
				case <-time.After(pingEvery):
				case <-ctx.Done():
				}
			}
			if ctx.Err() != nil {
				break
			}
			p, err := client.Ping(ctx, args[0])
			if errors.Is(err, context.Canceled) {
				break
			}
			if err != nil {
				return err
			}
			end.add(p)
			if err := c.tellPing(p); err != nil {
				return err
			}
		}
		if end.Answered > 0 {
			end.Avg /= float64(end.Answered)
		}
		if c.json() {
			b, err := encodeJSON(end)
			if err == nil {
				_, err = c.stdout.Write(b)
			}
			if err != nil {
				return err
			}
		} else if end.Answered > 0 {
			fmt.Fprintf(c.stdout, "%d sent, %d answered; min/avg/max %.2f/%.2f/%.2f ms\n", end.Sent, end.Answered, end.Min, end.Avg, end.Max)
		} else {
			fmt.Fprintf(c.stdout, "%d sent, none answered\n", end.Sent)
		}
		if lost := end.Sent - end.Answered; lost > 0 {
			return exitCode(min(lost, exitManyFailed))
		}
		return nil
	}
	return cmd
}

// add counts a ping; until the end Avg is the sum.
func (e *pingEnd) add(p node.Ping) {
	e.Sent++
	if !p.Answered {
		return
	}
	if e.Answered == 0 || p.RTT < e.Min {
		e.Min = p.RTT
	}
	e.Answered++
	e.Max = max(e.Max, p.RTT)
	e.Avg += p.RTT
}

func (c *cli) tellPing(p node.Ping) error {
	if c.json() {
		b, err := encodeJSON(p)
		if err == nil {
			_, err = c.stdout.Write(b)
		}
		return err
	}
	line := fmt.Sprintf("%s: %.2f ms", p.Name, p.RTT)
	if p.Path != "" {
		line += ", " + p.Path + ", " + p.Addr
	}
	if !p.Answered {
		line = p.Name + ": not connected"
		if p.Path != "" {
			line = p.Name
		}
	}
	if p.Reason != "" {
		line += ": " + p.Reason
	}
	if _, err := fmt.Fprintln(c.stdout, oneLine(line)); err != nil {
		return err
	}
	for _, a := range p.Addresses {
		fmt.Fprintln(c.stdout, oneLine(fmt.Sprintf("  %s: %s", a.Addr, a.Text)))
	}
	if p.Fix != "" {
		fmt.Fprintln(c.stdout, oneLine("  → "+p.Fix))
	}
	return nil
}
