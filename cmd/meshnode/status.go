package main

import (
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (c *cli) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [-w]",
		Short: "This node at a glance",
		Long:  "Shows the node of this data directory: who it is, what it does, how many others it sees.",
		Args:  cobra.NoArgs,
	}
	watch, quiet := addWatch(cmd), addQuiet(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		return c.show(cmd.Context(), *watch, func(w io.Writer) error {
			s, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if c.json() {
				b, err := encodeJSON(s)
				if err == nil {
					_, err = w.Write(b)
				}
				return err
			}
			if *quiet {
				_, err := io.WriteString(w, s.ID+"\n")
				return err
			}
			paused := "no"
			if s.Paused != nil {
				paused = *s.Paused
			}
			rows := [][]string{
				{"name", s.Name}, {"id", s.ID}, {"mesh", s.Mesh}, {"peers", strconv.Itoa(s.Peers)},
				{"slots", strconv.Itoa(s.Slots)}, {"running", strconv.Itoa(s.Running)}, {"queued", strconv.Itoa(s.Queued)}, {"paused", paused},
				{"addresses", strings.Join(s.Addrs, " ")}, {"started", s.Started.Local().Format(time.DateTime)},
			}
			if s.Membership != "" {
				rows = append(rows, []string{"membership", s.Membership})
			}
			if s.Network != "" {
				rows = append(rows, []string{"network", s.Network})
			}
			if s.Disk != "" {
				rows = append(rows, []string{"disk", s.Disk})
			}
			if c.format == "wide" {
				rows = append(rows, [][]string{{"version", s.Version}, {"ui", s.UI}, {"process", strconv.Itoa(s.PID)}, {"data", s.DataDir}}...)
			}
			return table(w, c.outTTY, rows)
		})
	}
	return cmd
}
