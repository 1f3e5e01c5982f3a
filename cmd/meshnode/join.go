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
		Use:   "join TICKET|-",
		Short: "Enter a mesh with a ticket from meshnode invite",
		Long: `Makes this machine a member of the ticket's mesh, before the node is started or while it runs. "-" reads
the ticket from standard input. A node that is in a mesh with others has to leave it first.`,
		Args: c.exactly(1, "one ticket, or -"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ticket := args[0]
		if ticket == "-" {
			line, err := bufio.NewReader(io.LimitReader(c.stdin, maxTicket)).ReadString('\n')
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read the ticket: %w", err)
			}
			ticket = line
		}
		ticket = strings.TrimSpace(ticket)
		if ticket == "" || len(ticket) >= maxTicket {
			return &node.Error{Code: codeUsage, Message: "that is no ticket", Fix: "get one on a member's machine: meshnode invite"}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), joinTimeout)
		defer cancel()
		var mesh string
		err := c.withNode(cmd, ctx, func(n membership) (err error) {
			mesh, err = n.Join(ctx, ticket)
			return err
		})
		if errors.Is(err, context.DeadlineExceeded) {
			err = &node.Error{Code: node.CodeUnavailable, Message: fmt.Sprintf("the mesh was not reached within %v", joinTimeout), Fix: "is the inviting node up, and in the same network?"}
		}
		if err != nil {
			return err
		}
		if c.json() {
			b, err := encodeJSON(map[string]string{"mesh": mesh})
			if err == nil {
				_, err = c.stdout.Write(b)
			}
			return err
		}
		fmt.Fprintf(c.stderr, "joined mesh %s\n", oneLine(mesh))
		return nil
	}
	return cmd
}

func (c *cli) leaveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "leave",
		Short: "Leave the mesh",
		Long:  "Takes this node out of its mesh; it then has one of its own again. To come back it needs a new ticket.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := c.withNode(cmd, cmd.Context(), func(n membership) error { return n.Leave(cmd.Context()) })
			if err == nil && !c.json() {
				fmt.Fprintln(c.stderr, "left the mesh; this node has one of its own now")
			}
			return err
		},
	}
}

// membership is what join and leave ask of a node, through its client or in this process.
type membership interface {
	Join(ctx context.Context, ticket string) (mesh string, err error)
	Leave(ctx context.Context) error
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
	var result error
	err = runNode(ctx, n, ln, log, func() error {
		if result = do(n); result != nil && n.RecoveryCode() != "" {
			c.tellRecovery(n.RecoveryCode()) // the node was made, and stays in its own mesh
		}
		cancel()
		return nil
	})
	return errors.Join(result, err)
}
