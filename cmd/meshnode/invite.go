package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mdp/qrterminal/v3"
	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
)

func (c *cli) inviteCommand() *cobra.Command {
	var mine, guest, qr, code, wait bool
	var uses int
	var runtimes []string
	expires := duration(24 * time.Hour)
	cmd := &cobra.Command{
		Use:   "invite [--mine|--guest] [--code] [--expires 24h] [--uses 1]",
		Short: "Print a ticket, or a code to be spoken, that lets another machine in",
		Long: `Prints a ticket, alone on standard output. On the other machine: meshnode join TICKET. Whoever has the
ticket can use it, so send it as you would a password.

Without --mine or --guest it is for a machine of somebody else: it may submit WebAssembly programs, and runs
those of others. --guest is for a visitor, who may submit and runs nothing for others. --mine is for another
machine of yours: it may do what this one may, and invite others as far as certificates reach.

With --code it is a short code in place of the ticket, to be said across a room: on the other machine, in the same network,
meshnode join 7-kitchen-sunset. It is good for ten minutes unless --expires says other (24h at most), and ends with five wrong
tries, whoever makes them: then make a new one. On a terminal, or with --wait, the command goes on and says who joined; Ctrl-C
ends the code.`,
		Args: cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.BoolVar(&mine, "mine", false, "a machine of the same owner")
	fs.BoolVar(&guest, "guest", false, "a visitor: it submits, and does no work for others")
	fs.Var(&expires, "expires", "how long the ticket is good; a code: 10m")
	fs.BoolVar(&code, "code", false, "a short code in place of a ticket")
	fs.BoolVar(&wait, "wait", false, "with --code: go on until it is used up or has ended, and say who joined (default on a terminal)")
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
		if !code && wait {
			return usage(cmd, "invite: --wait goes with --code")
		}
		if code && qr {
			return usage(cmd, "invite: --qr draws tickets, and --code is to be spoken: one of them")
		}
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		if code {
			o := node.InviteOptions{Mine: mine, Guest: guest, Uses: uses, Runtimes: runtimes}
			if fs.Changed("expires") || time.Duration(expires) != 24*time.Hour {
				o.Expires = time.Duration(expires)
			}
			return c.inviteCode(cmd, client, o, wait || c.errTTY && !fs.Changed("wait"))
		}
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

// codePoll is how often invite --code looks who has joined.
const codePoll = 300 * time.Millisecond

// inviteCode prints a code, and if wait is set who joins by it.
func (c *cli) inviteCode(cmd *cobra.Command, client *control.Client, o node.InviteOptions, wait bool) error {
	ctx := cmd.Context()
	code, err := client.InviteCode(ctx, o)
	if err != nil {
		return err
	}
	say := func(v any, text string, out io.Writer) error {
		if c.json() {
			b, err := json.Marshal(v)
			if err == nil {
				_, err = fmt.Fprintf(c.stdout, "%s\n", b)
			}
			return err
		}
		_, err := fmt.Fprintln(out, text)
		return err
	}
	if err := say(map[string]string{"code": code}, code, c.stdout); err != nil || !wait {
		return err
	}
	if !c.json() {
		fmt.Fprintf(c.stderr, "on the other machine: meshnode join %s\n", code)
	}
	tick := time.NewTicker(codePoll)
	defer tick.Stop()
	for told := 0; ; {
		state, err := client.Code(ctx, code, false)
		if ctx.Err() != nil {
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			client.Code(late, code, true)
			return exitCode(exitInterrupted)
		}
		if err != nil {
			return err
		}
		for ; told < len(state.Joined); told++ {
			j := state.Joined[told]
			if err := say(map[string]node.Joiner{"joined": j}, fmt.Sprintf("joined: %s (%s)", oneLine(j.Name), j.Peer), c.stderr); err != nil {
				return err
			}
		}
		switch state.State {
		case "used":
			return nil
		case "expired":
			return &node.Error{Code: node.CodeUnavailable, Message: fmt.Sprintf("the code has expired; %d of %d machines joined by it", told, state.Uses), Fix: "make a new one: meshnode invite --code"}
		case "ended":
			return &node.Error{Code: node.CodeRefused, Message: fmt.Sprintf("the code has ended: it was tried wrongly %d times, by mistake or by somebody who guesses", state.Wrong), Fix: "make a new one: meshnode invite --code"}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}
