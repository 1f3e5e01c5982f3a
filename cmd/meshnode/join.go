package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
)

// maxTicket is far above what a ticket has: about 300 characters.
const maxTicket = 16 << 10

// joinTimeout bounds a join: the inviter's addresses are tried, and it is looked for in the local network.
const joinTimeout = 60 * time.Second

func (c *cli) joinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "join TICKET|CODE|-",
		Short: "Enter a mesh with a ticket or a code from meshnode invite",
		Long: `Makes this machine a member of the ticket's mesh, before the node is started or while it runs. "-" reads
the ticket from standard input. A node that is in a mesh with others has to leave it first.

A code, as in 7-kitchen-sunset, comes from "meshnode invite --code". The machine that shows it is looked for in the local network;
elsewhere --peer says where it listens. Capitals, blanks in place of hyphens and a slip of typing in a word do no harm.`,
		Args: func(cmd *cobra.Command, args []string) error { // a code may be several words
			if len(args) == 0 {
				return usage(cmd, "join: give a ticket, a code, or -")
			}
			return noneEmpty(cmd, args)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return node.CompleteCode(typed), cobra.ShellCompDirectiveNoFileComp
		},
	}
	var at string
	cmd.Flags().StringVar(&at, "peer", "", "with a code: where the machine that shows it listens, `HOST:PORT` or a multiaddr")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		arg := args[0]
		if node.IsCode(arg) {
			arg = strings.Join(args, " ") // 7 kitchen sunset
		} else if len(args) > 1 {
			return usage(cmd, "join: want one ticket, one code, or -")
		}
		ticket, err := c.argOrInput(arg, "ticket")
		if err != nil {
			return err
		}
		if ticket == "" || len(ticket) >= maxTicket {
			return &node.Error{Code: codeUsage, Message: "that is no ticket", Fix: "get one on a member's machine: meshnode invite"}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), joinTimeout)
		defer cancel()
		code := node.IsCode(ticket)
		if code {
			if err := node.CheckCode(ticket); err != nil {
				return err
			}
		} else if at != "" {
			return usage(cmd, "join: --peer goes with a code; a ticket names its machine")
		} else if err := node.CheckTicket(ticket); err != nil {
			return err
		}
		var joined node.Joined
		err = c.withNode(cmd, ctx, func(n membership) (err error) {
			if code {
				joined, err = n.JoinCode(ctx, ticket, at)
			} else {
				joined.Mesh, err = n.Join(ctx, ticket)
			}
			return err
		})
		if errors.Is(err, context.DeadlineExceeded) {
			err = &node.Error{Code: node.CodeUnavailable, Message: fmt.Sprintf("the mesh was not reached within %v", joinTimeout), Fix: "is the inviting node up, and in the same network?"}
		}
		if err != nil {
			return err
		}
		if c.json() {
			b, err := encodeJSON(joined)
			if err == nil {
				_, err = c.stdout.Write(b)
			}
			return err
		}
		if joined.Name != "" {
			as := ""
			if joined.Mine {
				as = ", as a machine of the same owner: they run each other's Python"
			}
			fmt.Fprintf(c.stderr, "joined %s, in mesh %s%s\n", oneLine(joined.Name), oneLine(joined.Mesh), as)
			return nil
		}
		fmt.Fprintf(c.stderr, "joined mesh %s\n", oneLine(joined.Mesh))
		return nil
	}
	return cmd
}

func (c *cli) leaveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "leave [--force]",
		Short: "Leave the mesh",
		Long: `Takes this node out of its mesh; it then has one of its own again. The members that can be reached hear it at once and drop it
from their lists, the others when they meet one who knows. To come back it needs a new ticket. Works whether or not the node runs.

The machine that holds the mesh's root key, the one that made it, leaves only with --force: without that key nobody can revoke the
machines that it admitted, and the mesh ends with its last certificate, within 90 days. The recovery code that was shown when the mesh was
made gives the key to another machine (there: meshnode recover CODE), before or after.

A node that was revoked gets a new identity: it stops, and has that with its next start. Its jobs stay with the old one.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&force, "force", false, "leave with the root key of the mesh, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var left node.Left
		err := c.withNode(cmd, cmd.Context(), func(n membership) (err error) {
			left, err = n.Leave(cmd.Context(), force)
			return err
		})
		if err != nil {
			return err
		}
		if c.json() {
			return c.printJSON(left)
		}
		switch {
		case left.Restart:
			fmt.Fprintln(c.stderr, "left the mesh that had revoked this node; it has a new identity with its next start: meshnode up -d")
			return nil
		case left.Known == 0:
			fmt.Fprintln(c.stderr, "left the mesh; this node has one of its own now")
		case left.Told == 0:
			fmt.Fprintln(c.stderr, "left the mesh; this node has one of its own now. No member could be reached to be told: they list this node as gone until one revokes it or its certificate ends")
		default:
			fmt.Fprintf(c.stderr, "left the mesh; this node has one of its own now. Told: %d of %d members, who tell the others\n", left.Told, left.Known)
		}
		if left.RecoveryCode != "" {
			c.tellRecovery(left.RecoveryCode)
		}
		return nil
	}
	return cmd
}

func (c *cli) recoverCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "recover CODE|-",
		Short: "Make this machine hold the root key of a mesh, with its recovery code",
		Long: `For when the machine that made the mesh is lost: with the recovery code that was shown when the mesh was made, this one can do what
that one could: invite, renew every certificate, revoke any member. Every member accepts it at once. "-" reads the code from standard
input, so that it stays out of the shell's history. Works whether or not the node runs. A node that is in another mesh with others has to
leave that one first. Whether the lost machine is still a member is another matter: meshnode peers revoke takes it out, though
one who has it still has the root key that was on it.`,
		Args: c.exactly(1, "the recovery code, or -"),
		RunE: func(cmd *cobra.Command, args []string) error {
			code, err := c.argOrInput(args[0], "recovery code")
			if err != nil {
				return err
			}
			if code == "" {
				return &node.Error{Code: codeUsage, Message: "that is no recovery code", Fix: "it was shown when the mesh was made: 56 letters and digits in groups of five"}
			}
			var mesh string
			err = c.withNode(cmd, cmd.Context(), func(n membership) (err error) {
				mesh, err = n.Recover(cmd.Context(), code)
				return err
			})
			if err != nil {
				return err
			}
			if c.json() {
				return c.printJSON(map[string]string{"mesh": mesh})
			}
			fmt.Fprintf(c.stderr, "this machine holds the root key of mesh %s now\n", oneLine(mesh))
			return nil
		},
	}
}

// argOrInput is an argument, or with "-" the first line of standard input.
func (c *cli) argOrInput(arg, what string) (string, error) {
	if arg == "-" {
		line, err := bufio.NewReader(io.LimitReader(c.stdin, maxTicket)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the %s: %w", what, err)
		}
		arg = line
	}
	return strings.TrimSpace(arg), nil
}

// printJSON writes v on standard output.
func (c *cli) printJSON(v any) error {
	b, err := encodeJSON(v)
	if err == nil {
		_, err = c.stdout.Write(b)
	}
	return err
}

// membership is what join, leave and recover ask of a node, through its client or in this process.
type membership interface {
	Join(ctx context.Context, ticket string) (mesh string, err error)
	Leave(ctx context.Context, force bool) (node.Left, error)
	Recover(ctx context.Context, code string) (mesh string, err error)
	JoinCode(ctx context.Context, code, at string) (node.Joined, error)
}

// withNode calls do with the node that runs here, or, if none does, with one that is started for it in this
// process and runs nothing.
func (c *cli) withNode(cmd *cobra.Command, ctx context.Context, do func(membership) error) error {
	client, err := c.dial()
	if err == nil {
		defer client.Close()
		return do(client)
	}
	if !errors.Is(err, control.ErrNoNode) {
		return err
	}
	ln, err := control.Listen(c.dataDir, "")
	if err != nil {
		return err
	}
	defer ln.Close()
	f := upFlags{slots: "1", memory: "50%", dht: "off", noWork: true}
	log := slog.New(slog.NewTextHandler(c.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	cfg, err := f.nodeConfig(cmd, c.dataDir, log)
	if err != nil {
		return err
	}
	n, err := node.New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asked := false
	var result error
	err = runNode(ctx, n, ln, log, func() error {
		asked = true
		result = do(n)
		cancel()
		return nil
	})
	if err == nil && !asked {
		return ctx.Err() // it was interrupted before the node was ready
	}
	return errors.Join(result, err)
}
