package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"meshnode/node"
)

func (c *cli) revokeCommand() *cobra.Command {
	var reason string
	var withIssued bool
	cmd := &cobra.Command{
		Use:   "revoke PEER [--reason TEXT] [--with-issued]",
		Short: "Put a member out of the mesh, for good and everywhere",
		Long: `Ends a member's membership: its connections are cut, what it runs of others is given to others, and what of its own runs at others
stops, within seconds at every member that is connected, at the others as soon as they meet one. This cannot be undone: the machine can come back only
with a new identity and a new ticket. Where the root key of the mesh is, any member can be revoked; elsewhere those that this machine
admitted, and those that they did.

A member that had admitted others: those that this node knows stay members, and are listed, so that a stolen laptop does not take the whole
mesh with it. What it admits from now on, or has admitted unseen, is void. --with-issued voids all that it ever admitted.`,
		Args:              c.exactly(1, "a peer"),
		ValidArgsFunction: c.completePeers,
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the people of the mesh: one line of `TEXT`")
	cmd.Flags().BoolVar(&withIssued, "with-issued", false, "void the members that it had admitted, too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		r, err := client.Revoke(cmd.Context(), args[0], reason, withIssued)
		if err != nil {
			return err
		}
		if c.json() {
			return c.printJSON(r)
		}
		fmt.Fprintf(c.stderr, "revoked %s (%s)\n", oneLine(r.Name), r.Peer)
		if len(r.Keeps) > 0 {
			fmt.Fprintf(c.stderr, "it had admitted or renewed these, which stay members: %s. Revoke those that you do not know\n", oneLine(strings.Join(r.Keeps, ", ")))
		}
		if r.Secret {
			fmt.Fprintln(c.stderr, "it may know the shared secret of the mesh, and could come back by it as another: start the others with a new one (up --secret-file)")
		}
		return nil
	}
	return cmd
}

func (c *cli) renameCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rename PEER NAME",
		Short: "Call a member by another name, on this machine",
		Long: `Gives a member the name by which this machine shows it and finds it, everywhere: in lists, results, logs of jobs and --on. Only this
machine does; the name by which the others know it is what it was started with (meshnode up --name). An empty name ("") takes it back.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && args[1] == "" { // takes it back
				args = args[:1:1]
				args = append(args, "its own")
			}
			return c.exactly(2, "a peer and a name")(cmd, args)
		},
		ValidArgsFunction: c.completePeers,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		if err := client.Rename(cmd.Context(), args[0], args[1]); err != nil {
			return err
		}
		if c.json() {
			return c.printJSON(map[string]string{"peer": args[0], "name": args[1]})
		}
		if args[1] == "" {
			fmt.Fprintf(c.stderr, "%s has its own name again\n", oneLine(args[0]))
			return nil
		}
		fmt.Fprintf(c.stderr, "%s is called %s on this machine\n", oneLine(args[0]), oneLine(args[1]))
		return nil
	}
	return cmd
}

func (c *cli) forgetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget PEER",
		Short: "Drop a member that is gone from this machine's list",
		Long: `Drops what this machine knows of a member that is gone: it is not listed and not looked for any more, and what this machine's owner
allowed or denied it is dropped, too. It stays a member, and is listed again when it comes itself or its certificate is renewed; to put it
out of the mesh: meshnode peers revoke.`,
		Args:              c.exactly(1, "a peer"),
		ValidArgsFunction: c.completePeers,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		if err := client.Forget(cmd.Context(), args[0]); err != nil {
			return err
		}
		if c.json() {
			return c.printJSON(map[string]string{"peer": args[0]})
		}
		fmt.Fprintf(c.stderr, "forgot %s\n", oneLine(args[0]))
		return nil
	}
	return cmd
}

func (c *cli) allowCommand() *cobra.Command {
	return c.policyCommand("allow", "Let a member use more of this machine, or this machine use it", `Lets a member run tasks of these runtimes on this machine, whatever its certificate says: by default WebAssembly is for all members, Python
and commands are for machines of the same owner. A Python function can do here whatever the user of the node can do. With --work it is the other way:
tasks of this machine may go to that member, who sees their code and data.

It counts at once, for this machine alone, and lasts; a job of that member that was refused here before is offered again within a
minute. meshnode peers -o wide shows what each member may.`)
}

func (c *cli) denyCommand() *cobra.Command {
	return c.policyCommand("deny", "Forbid a member what certificates would allow it", `Keeps a member from running tasks of these runtimes on this machine, or of any without --runtime. What runs is given back. With --work it is
the other way: tasks of this machine do not go to that member, and those that are there are taken back.

It counts at once, for this machine alone, and lasts, until meshnode allow. meshnode peers -o wide shows what each member may.`)
}

func (c *cli) policyCommand(verb, short, long string) *cobra.Command {
	var o node.PeerPolicy
	use := verb + " PEER --runtime R,… [--work]"
	if verb == "deny" {
		use = verb + " PEER [--runtime R,…] [--work]"
	}
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: c.exactly(1, "a peer"), ValidArgsFunction: c.completePeers}
	cmd.Flags().StringSliceVar(&o.Runtimes, "runtime", nil, "`wasm`, python, command; several with commas")
	cmd.Flags().BoolVar(&o.Work, "work", false, "tasks of this machine at that member")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if verb == "allow" && len(o.Runtimes) == 0 && !o.Work {
			return usage(cmd, "allow %s what? Give --runtime wasm, python or command, or --work", oneLine(args[0]))
		}
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		set := client.Deny
		if verb == "allow" {
			set = client.Allow
		}
		p, err := set(cmd.Context(), args[0], o)
		if err != nil {
			return err
		}
		if c.json() {
			return c.printJSON(p)
		}
		list := func(rs []string) string {
			if len(rs) == 0 {
				return "nothing"
			}
			return strings.Join(rs, ", ")
		}
		fmt.Fprintf(c.stderr, "%s may run here: %s; this machine's tasks may run there: %s\n", oneLine(p.Name), list(p.MayUseHere), list(p.MayUseThere))
		return nil
	}
	return cmd
}
