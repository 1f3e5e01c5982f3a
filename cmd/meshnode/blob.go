package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/tasks/executor"
)

func (c *cli) blobCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "blob put|get|ls|gc",
		Short: "Large bytes that this node keeps: what tasks read, results, programs",
		Long: `Blobs are named by the hash of their bytes, so the same bytes are kept once. What a job needs stays; what was put
stays for ten minutes more, each time that somebody uses it; the rest goes when its room is needed, what was used least
recently first. The room is a fifth of the disk's free space, at most 10 GiB.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(cmd, "blob: want put, get, ls or gc")
			}
			return usage(cmd, "blob: no command %q: want put, get, ls or gc", args[0])
		},
	}
	cmd.AddCommand(c.blobPutCommand(), c.blobGetCommand(), c.blobListCommand(), c.blobGCCommand())
	return cmd
}

func (c *cli) blobPutCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "put FILE|-",
		Short:   "Store a file, and print its id",
		Long:    `Stores the bytes of a file, or of standard input, and prints their id alone on standard output.`,
		Example: "  meshnode blob put data.bin",
		Args:    c.exactly(1, "one file, or -"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := c.stdin
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err == nil {
					defer f.Close()
					if info, serr := f.Stat(); serr == nil && info.IsDir() {
						err = &fs.PathError{Op: "read", Path: args[0], Err: errors.New("is a folder")}
					}
				}
				if err != nil {
					return &node.Error{Code: codeUsage, Message: "put a blob: " + withoutGo(err), Fix: "name a file, or - for standard input"}
				}
				in = f
			}
			client, err := c.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			b, err := client.PutBlob(cmd.Context(), in)
			if err != nil {
				return err
			}
			if c.json() {
				line, err := encodeJSON(map[string]any{"id": b.ID, "size": b.Size})
				if err == nil {
					_, err = c.stdout.Write(line)
				}
				return err
			}
			_, err = fmt.Fprintln(c.stdout, b.ID)
			return err
		},
	}
}

func (c *cli) blobGetCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:               "get ID [--to FILE]",
		Short:             "Write a blob's bytes to standard output or a file",
		Long:              `Writes the bytes of a blob to standard output, or to a file, which appears when it is whole.`,
		Example:           "  meshnode blob get 3f2a9c --to data.bin",
		Args:              c.exactly(1, "one blob"),
		ValidArgsFunction: c.completeBlobs,
	}
	cmd.Flags().StringVar(&to, "to", "", "the `file` to write; one that is there is replaced")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if to == "" && c.outTTY {
			return usage(cmd, "blob get: bytes are not written to a terminal: name a file with --to")
		}
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		id, err := findBlob(cmd, client, args[0])
		if err != nil {
			return err
		}
		in, size, err := client.GetBlob(cmd.Context(), id)
		if err != nil {
			return err
		}
		defer in.Close()
		if to == "" {
			return copyBlob(c.stdout, in, id, size)
		}
		return writeWhole(to, func(w io.Writer) error { return copyBlob(w, in, id, size) })
	}
	return cmd
}

// copyBlob copies all of a blob; a part of it is an error.
func copyBlob(w io.Writer, in io.Reader, id string, size int64) error {
	n, err := io.Copy(w, in)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &node.Error{Code: node.CodeUnavailable, Message: fmt.Sprintf("blob %.8s: %d of %d bytes came", id, n, size), Fix: "the node went away: get it again"}
	}
	return err
}

// writeWhole writes a file under another name beside its place, and moves it there when it is whole.
func writeWhole(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	err = write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// leastID is how many digits of an id name a blob, at least.
const leastID = 4

// findBlob is the id that a name stands for: all of it, or the first digits.
func findBlob(cmd *cobra.Command, client *control.Client, name string) (string, error) {
	if len(name) >= 64 || strings.HasPrefix(name, "sha256:") {
		return name, nil
	}
	if len(name) < leastID || strings.Trim(strings.ToLower(name), "0123456789abcdef") != "" {
		return "", usage(cmd, "%q is no id of a blob: want %d to 64 hexadecimal digits", name, leastID)
	}
	st, err := client.Blobs(cmd.Context())
	if err != nil {
		return "", err
	}
	found := ""
	for _, b := range st.Blobs {
		if strings.HasPrefix(b.ID, strings.ToLower(name)) {
			if found != "" {
				return "", &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("blob %s is ambiguous: %.12s, %.12s", name, found, b.ID), Fix: "give more digits"}
			}
			found = b.ID
		}
	}
	if found == "" {
		return "", &node.Error{Code: node.CodeNoBlob, Message: "no blob " + name + " on this node", Fix: "see meshnode blob ls"}
	}
	return found, nil
}

func (c *cli) blobListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the blobs of this node",
		Long: `Lists the blobs of this node, the least recently used first: id, size, when it was used last, and how many jobs, results
and recent uses keep it. On standard error is how much room they take.`,
		Args: cobra.NoArgs,
	}
	quiet := addQuiet(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		st, err := client.Blobs(cmd.Context())
		if err != nil {
			return err
		}
		if c.json() {
			b, err := encodeJSON(st)
			if err == nil {
				_, err = c.stdout.Write(b)
			}
			return err
		}
		if *quiet {
			for _, b := range st.Blobs {
				if _, err := fmt.Fprintln(c.stdout, b.ID); err != nil {
					return err
				}
			}
			return nil
		}
		rows := [][]string{{"ID", "SIZE", "USED", "NEEDED"}}
		for _, b := range st.Blobs {
			id, size := b.ID[:min(16, len(b.ID))], executor.Size(uint64(b.Size))
			if c.format == "wide" {
				id, size = b.ID, strconv.FormatInt(b.Size, 10)
			}
			rows = append(rows, []string{id, size, b.Used.Local().Format(time.DateTime), strconv.Itoa(b.Pins)})
		}
		if err := table(c.stdout, c.outTTY, rows); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stderr, "%s of %s\n", executor.Size(uint64(st.Occupied)), executor.Size(uint64(st.Quota)))
		return err
	}
	return cmd
}

func (c *cli) blobGCCommand() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "gc [--keep SIZE]",
		Short: "Remove blobs that nothing needs",
		Long:  `Removes blobs that nothing needs, the least recently used first, until no more than SIZE is taken; without it, all of them.`,
		Args:  cobra.NoArgs,
	}
	cmd.Flags().StringVar(&keep, "keep", "0", "how much may stay: `2G`, 500M")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		to := uint64(0)
		if keep != "0" {
			var err error
			if to, err = parseBytes(keep); err != nil || to > 1<<60 {
				return usage(cmd, "blob gc: --keep %q: want a size, as 500M or 2G", keep)
			}
		}
		client, err := c.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		freed, occupied, err := client.GCBlobs(cmd.Context(), int64(to))
		if err != nil {
			return err
		}
		if c.json() {
			b, err := encodeJSON(map[string]int64{"freed": freed, "occupied": occupied})
			if err == nil {
				_, err = c.stdout.Write(b)
			}
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "freed %s; %s are taken\n", executor.Size(uint64(freed)), executor.Size(uint64(occupied)))
		return err
	}
	return cmd
}

// completeBlobs offers the ids of the node's blobs to the shell.
func (c *cli) completeBlobs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := c.dialToComplete(cmd)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	st, err := client.Blobs(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, b := range st.Blobs {
		ids = append(ids, fmt.Sprintf("%s\t%s", b.ID[:min(16, len(b.ID))], executor.Size(uint64(b.Size))))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
