package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"meshnode/node"
)

func (c *cli) peersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peers [-w]",
		Short: "The members of the mesh, as this node sees them",
		Long: `Lists this node first, then the other members. State: self; connected; suspect, when it was
not heard for a while; gone, with the reason and what is tried.`,
		Args: cobra.NoArgs,
	}
	watch, quiet := addWatch(cmd), addQuiet(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		return c.show(cmd.Context(), *watch, func(w io.Writer) error {
			peers, err := client.Peers(cmd.Context())
			if err != nil {
				return err
			}
			if peers == nil {
				peers = []node.Peer{}
			}
			if c.json() {
				b, err := encodeJSON(peers)
				if err == nil {
					_, err = w.Write(b)
				}
				return err
			}
			if *quiet {
				for _, p := range peers {
					fmt.Fprintln(w, p.ID)
				}
				return nil
			}
			wide := c.format == "wide"
			head := []string{"NAME", "STATE", "SLOTS", "RUNNING", "QUEUED", "RTT", "ID", "REASON"}
			if wide {
				head = append(head, "PATH", "RUNTIMES", "SANDBOX", "VERSION", "OWNER", "ADDRESSES")
			}
			rows := [][]string{head}
			for _, p := range peers {
				id, rtt := p.ID, ""
				if !wide && len(id) > 8 {
					id = id[len(id)-8:]
				}
				if p.RTT > 0 {
					rtt = strconv.FormatFloat(p.RTT, 'f', 1, 64) + " ms"
				}
				row := []string{p.Name, p.State, strconv.Itoa(p.Slots), strconv.Itoa(p.Running), strconv.Itoa(p.Queued), rtt, id, p.Reason}
				if wide {
					row = append(row, p.Path, strings.Join(p.Runtimes, ","), p.Sandbox, p.Version, p.Owner, strings.Join(p.Addrs, " "))
				}
				rows = append(rows, row)
			}
			return table(w, c.outTTY, rows)
		})
	}
	return cmd
}
