package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
	"meshnode/tasks/executor"
)

// peersOf finds the peers that names name, for a flag: by name, by id, or by the first or last characters of one.
func (c *cli) peersOf(ctx context.Context, client *control.Client, flag string, names []string) ([]protocol.NodeID, error) {
	if len(names) == 0 {
		return nil, nil
	}
	peers, err := client.Peers(ctx)
	if err != nil {
		return nil, err
	}
	var ids []protocol.NodeID
	for _, name := range names {
		found := control.FindPeers(peers, name)
		switch len(found) {
		case 0:
			return nil, &node.Error{Code: codeUsage, Message: fmt.Sprintf("%s %q: no such peer", flag, name), Fix: "meshnode peers lists them"}
		case 1:
			ids = append(ids, protocol.NodeID(found[0].ID))
		default:
			return nil, &node.Error{Code: codeUsage, Message: fmt.Sprintf("%s %q: %d peers are called so", flag, name, len(found)), Fix: "give more of the id: meshnode peers -o wide"}
		}
	}
	return ids, nil
}

// completePeers offers the other members to the shell, by their names.
func (c *cli) completePeers(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := c.dialToComplete(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	peers, err := client.Peers(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range peers {
		names = append(names, oneLine(fmt.Sprintf("%s\t%s %s", p.Name, p.State, p.ID)))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// relayOf is the name of the member through which p is connected, "" if it is connected directly or not at all.
func relayOf(peers []node.Peer, p node.Peer) string {
	for _, r := range peers {
		if r.ID == p.Relay {
			return r.Name
		}
	}
	return p.Relay
}

func (c *cli) peersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peers [-w]",
		Short: "The members of the mesh, as this node sees them",
		Long: `Lists this node first, then the other members. State: self; connected; suspect, when it was
not heard for a while; asleep, when it said before that it goes to sleep; gone, with the reason and
what is tried.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(c.pingCommand(), c.revokeCommand(), c.renameCommand(), c.forgetCommand())
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
			head := []string{"NAME", "STATE", "SLOTS", "RUNNING", "QUEUED", "RTT", "PATH", "ID", "REASON"}
			if wide {
				head = append(head, "OS", "ARCH", "CPUS", "MEMORY", "LABELS", "RELAY", "RUNTIMES", "SANDBOX", "VERSION", "OWNER", "MAY HERE", "MAY THERE", "LAST SEEN", "VIA", "ADDRESSES")
			}
			rows := [][]string{head}
			lastSeen := func(p node.Peer) string {
				if p.LastSeen == nil || p.State == "connected" {
					return ""
				}
				return p.LastSeen.Local().Format(time.DateTime)
			}
			for _, p := range peers {
				id, rtt := p.ID, ""
				if !wide && len(id) > 8 && !strings.Contains(id, ":") { // not an address that was given
					id = id[len(id)-8:]
				}
				path := ""
				if p.State == "connected" || p.State == "suspect" {
					path = p.Path
				}
				if p.RTT > 0 {
					rtt = strconv.FormatFloat(p.RTT, 'f', 1, 64) + " ms"
				}
				row := []string{p.Name, p.State, strconv.Itoa(p.Slots), strconv.Itoa(p.Running), strconv.Itoa(p.Queued), rtt, path, id, p.Reason}
				if wide {
					row = append(row, p.OS, p.Arch, strconv.Itoa(int(p.CPUs)), executor.Size(p.Memory), strings.Join(p.Labels, ","), relayOf(peers, p), strings.Join(p.Runtimes, ","), p.Sandbox, p.Version, p.Owner, strings.Join(p.MayUseHere, ","), strings.Join(p.MayUseThere, ","), lastSeen(p), p.Via, strings.Join(p.Addrs, " "))
				}
				rows = append(rows, row)
			}
			return table(w, c.outTTY, rows)
		})
	}
	return cmd
}
