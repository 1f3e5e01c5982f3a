package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
)

const (
	// privatePrefix begins the names of the temporary directories.
	privatePrefix = "meshnode-private-"
	// anybody stands, as a --peer of a private node, for those in the local network who know its secret.
	anybody = "*"
	// privateAge is how old a directory without a process is when it is taken for a dead node's: a living one has
	// locked its own long before.
	privateAge = time.Minute
	// privateMinFree is what has to be free where the directory is. A temporary directory may be a small part of the memory, and what
	// a private node leaves undone for want of room is its own program's.
	privateMinFree = 16 << 20
	// parentEvery is how often a private node looks whether the program that started it is still there: its standard input
	// may be held open by a process that the program forked.
	parentEvery = 500 * time.Millisecond
)

// privateReady is the line that says that a private node serves.
type privateReady struct {
	DataDir string `json:"data_dir"`
	control.Info
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Slots   int    `json:"slots"`
}

// upPrivate runs a node for the program that started this process, until standard input ends.
func (c *cli) upPrivate(cmd *cobra.Command, f *upFlags) (err error) {
	c.format = "json" // of errors: a program reads them
	if f.detach {
		return usage(cmd, "--private and --detach: a private node ends with the program that starts it")
	}
	level := slog.LevelError // standard error is often the program's own
	if cmd.Flags().Lookup("log-level").Changed {
		if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
			return usage(cmd, "--log-level %s: want debug, info, warn or error", f.logLevel)
		}
	}
	// Ctrl-C in a terminal is meant for the program, which may have something to finish. Not Ignore alone: children
	// would inherit that.
	undelivered := make(chan os.Signal, 1)
	signal.Ignore(os.Interrupt, syscall.SIGHUP)
	signal.Notify(undelivered, os.Interrupt, syscall.SIGHUP)
	defer signal.Stop(undelivered)

	f.listen, f.labels, f.retain = nil, nil, duration(time.Hour)
	lan := slices.Contains(f.peers, anybody)
	f.peers = slices.DeleteFunc(f.peers, func(p string) bool { return p == anybody })
	if f.secretFile == "" { // it is a member of no mesh, and nothing admits it; MESHNODE_PEER may be there for other nodes
		f.peers, lan = nil, false
	}
	dir, err := os.MkdirTemp(privateRoot(), privatePrefix) // 0700
	if err != nil {
		return fmt.Errorf("make a temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cfg, err := f.nodeConfig(cmd, dir, slog.New(slog.NewTextHandler(c.stderr, &slog.HandlerOptions{Level: level})))
	if err != nil {
		return err
	}
	rt, err := pythonRuntime(cmd.Context(), f.python, cfg.Logger)
	if err != nil {
		return err
	}
	cfg.Runtimes = append(cfg.Runtimes, rt)
	runtime.GOMAXPROCS(nodeProcessors())
	cfg.Private, cfg.MDNS, cfg.DHT, cfg.MinFree = true, lan, false, privateMinFree
	if f.control == "" && runtime.GOOS == "windows" {
		f.control = control.TCP // Python there knows no Unix sockets
	}
	ln, err := control.Listen(dir, f.control)
	if err != nil {
		return err
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	go func() {
		io.Copy(io.Discard, c.stdin)
		cancel()
	}()
	go func() {
		parent := os.Getppid()
		for os.Getppid() == parent {
			select {
			case <-time.After(parentEvery):
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	n, err := node.New(cfg)
	if err != nil {
		return err
	}
	return runNode(ctx, n, ln, cfg.Logger, func() error {
		go removeDeadPrivate(privateRoot(), privateAge)
		b, err := json.Marshal(privateReady{dir, ln.Info(), string(n.ID()), n.Name(), version, cfg.Slots})
		if err == nil {
			_, err = c.stdout.Write(append(b, '\n'))
		}
		return err
	})
}

// privateRoot is where private nodes have their directories: the temporary directory, or, where its path leaves no room for
// that of a Unix socket, the system's.
func privateRoot() string {
	if dir := os.TempDir(); len(dir) <= 60 || runtime.GOOS == "windows" {
		return dir
	}
	return "/tmp"
}

// removeDeadPrivate removes the directories of private nodes that were killed.
func removeDeadPrivate(root string, age time.Duration) {
	all, _ := os.ReadDir(root)
	for _, e := range all {
		if !strings.HasPrefix(e.Name(), privatePrefix) || !e.IsDir() {
			continue
		}
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < age || !mine(info) {
			continue
		}
		dir := filepath.Join(root, e.Name())
		if held, err := control.Held(dir); err == nil && !held {
			os.RemoveAll(dir)
		}
	}
}
