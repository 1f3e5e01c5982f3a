package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/mdp/qrterminal/v3"
	"github.com/spf13/cobra"

	"meshnode/node"
)

func (c *cli) inviteCommand() *cobra.Command {
	var mine, guest, qr bool
	var uses int
	var runtimes []string
	expires := duration(24 * time.Hour)
	cmd := &cobra.Command{
		Use:   "invite [--mine|--guest] [--expires 24h] [--uses 1]",
		Short: "Print a ticket that lets another machine in",
		Long: `Prints a ticket, alone on standard output. On the other machine: meshnode join TICKET. Whoever has the
ticket can use it, so send it as you would a password.

Without --mine or --guest it is for a machine of somebody else: it may submit WebAssembly programs, and runs
those of others. --guest is for a visitor, who may submit and runs nothing for others. --mine is for another
machine of yours: it may do what this one may, and invite others as far as certificates reach.`,
		Args: cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.BoolVar(&mine, "mine", false, "a machine of the same owner")
	fs.BoolVar(&guest, "guest", false, "a visitor: it submits, and does no work for others")
	fs.Var(&expires, "expires", "how long the ticket is good")
	fs.IntVar(&uses, "uses", 1, "how many machines may use it")
	fs.StringSliceVar(&runtimes, "runtime", nil, "what the machine may run on others: `wasm` (default: by kind of ticket)")
	fs.BoolVar(&qr, "qr", false, "also draw it as a QR code, on standard error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if mine && guest {
			return usage(cmd, "invite: --mine or --guest, not both")
		}
		if uses < 1 {
			return usage(cmd, "invite: --uses %d: want at least 1", uses)
		}
		if expires <= 0 {
			return usage(cmd, "invite: --expires must be more than nothing")
		}
		for _, r := range runtimes {
			if !slices.Contains([]string{"wasm", "python", "command"}, r) {
				return usage(cmd, "invite: --runtime %q: want wasm, python or command", r)
			}
		}
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		ticket, err := client.Invite(cmd.Context(), node.InviteOptions{Mine: mine, Guest: guest, Expires: time.Duration(expires), Uses: uses, Runtimes: runtimes})
		if err != nil {
			return err
		}
		if qr {
			qrterminal.GenerateHalfBlock(ticket, qrterminal.L, c.stderr)
		}
		if c.json() {
			b, err := encodeJSON(map[string]string{"ticket": ticket})
			if err == nil {
				_, err = c.stdout.Write(b)
			}
			return err
		}
		_, err = fmt.Fprintln(c.stdout, ticket)
		return err
	}
	return cmd
}
