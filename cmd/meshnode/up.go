package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/adrg/xdg"
	"github.com/shirou/gopsutil/v4/mem"
	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
	pythonfiles "meshnode/python"
	"meshnode/tasks"
	"meshnode/tasks/executor"
	"meshnode/tasks/executor/python"
	"meshnode/tasks/executor/wasm"
)

const (
	// stopTimeout is what a clean stop may take; a node that takes longer is left as if it had crashed.
	stopTimeout = 5 * time.Second
	// startTimeout is how long `up -d` waits for the node: a large journal opens within seconds.
	startTimeout = 60 * time.Second
)

// defaultDataDir is "" where the system's usual place is not known: without a home it would be below the root.
func defaultDataDir() string {
	if _, err := os.UserHomeDir(); err != nil && os.Getenv("XDG_DATA_HOME") == "" {
		return ""
	}
	return filepath.Join(xdg.DataHome, "meshnode")
}

type upFlags struct {
	retain                                      duration
	name, slots, memory, dht, control, logLevel string
	python, secretFile                          string
	listen, peers, labels, announce             []string
	noMDNS, noWork, detach, private, noPortMap  bool
	detached, withParent                        bool // hidden
}

func (c *cli) upCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up [flags]",
		Short: "Start a node",
		Long: `Starts the node of this data directory and serves until interrupted (or, with -d, in the background until
"meshnode down"). The first start makes an identity and a mesh of its own; "meshnode join" enters another.
When it is ready it prints one line: ready: NAME ID ADDRESSES ui off
On SIGTERM or Ctrl-C it takes no more work, hands back what it has, and stops within 5 s.

With --private it is a throw-away node for the program that starts it: in a temporary directory of its own, open to no
other node, and ended, with all that it runs, when its standard input ends. With --secret-file it works with the nodes that
--peer names, if they know the secret, and with --peer "*" with those in the local network; "--secret-file -" is the first line of
its standard input. --data-dir, --listen, --label, --retain, --no-mdns and --no-work do not count then. When it is ready it prints one line of JSON: data_dir, socket, address and
token as in control.json there, pid, id, name, version and slots; or, if it cannot start, error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.up(cmd, &f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.name, "name", "", "what people call this node; kept until another is given (default: the computer's name)")
	fs.StringVar(&f.slots, "slots", "auto", "how many tasks run at once: `K`, or auto for one per core")
	fs.StringArrayVar(&f.listen, "listen", nil, "`MULTIADDR` to listen on; may be repeated (default: all interfaces, on a port that is kept)")
	fs.StringArrayVar(&f.peers, "peer", nil, "`ADDRESS` of a member, HOST:PORT or a multiaddr; may be repeated")
	fs.StringVar(&f.secretFile, "secret-file", "", "`FILE` whose first line admits nodes that have the same: they run each other's WebAssembly and Python; -: standard input")
	fs.StringArrayVar(&f.announce, "announce", nil, "`ADDRESS` at which others reach this node, as a port that a router forwards to it: a multiaddr or HOST:PORT; may be repeated")
	fs.BoolVar(&f.noPortMap, "no-port-map", false, "do not ask the router (UPnP, NAT-PMP) to forward a port to this node")
	fs.BoolVar(&f.noMDNS, "no-mdns", false, "do not look for members in the local network")
	fs.StringVar(&f.dht, "dht", "off", "look for members that moved by the mesh's own DHT, too: `private` or off")
	fs.BoolVar(&f.noWork, "no-work", false, "submit only, run nothing")
	fs.StringVar(&f.memory, "memory", "50%", "what tasks may have, in all, of this computer's memory: `50%`, 4G")
	fs.StringVar(&f.python, "python", "", "the `interpreter` that runs Python functions, a path or a name on PATH; none: they do not run here (default: python3)")
	fs.StringArrayVar(&f.labels, "label", nil, "`K=V` that jobs can ask for with --on; may be repeated")
	f.retain = duration(7 * 24 * time.Hour)
	fs.Var(&f.retain, "retain", "how long ended jobs and their results are kept, in time awake: `7d`, 36h; of attached jobs at most a day")
	fs.BoolVarP(&f.detach, "detach", "d", false, "return when the node is ready; it goes on in the background")
	fs.BoolVar(&f.private, "private", false, "a throw-away node for the program that starts it; it ends when its standard input does")
	fs.StringVar(&f.control, "control", "", "network of the local interface: unix or tcp")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.BoolVar(&f.detached, "detached", false, "this is the background process of up -d")
	fs.BoolVar(&f.withParent, "with-parent", false, "stop when standard input ends")
	for _, hidden := range []string{"control", "log-level", "detached", "with-parent"} {
		fs.MarkHidden(hidden)
	}
	return cmd
}

// nodeConfig makes the node's configuration of flags.
func (f *upFlags) nodeConfig(cmd *cobra.Command, dataDir string, log *slog.Logger) (node.Config, error) {
	cfg := node.Config{DataDir: dataDir, Name: f.name, Listen: f.listen, Peers: f.peers, MDNS: !f.noMDNS, Announce: f.announce, MapPort: !f.noPortMap, Version: version, Logger: log}
	if f.name != "" && (len(f.name) > 64 || strings.IndexFunc(f.name, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) >= 0) {
		return cfg, usage(cmd, "--name %q: want up to 64 printable characters without blanks", f.name)
	}
	switch f.dht {
	case "private":
		cfg.DHT = true
	case "off":
	default:
		return cfg, usage(cmd, "--dht %s: want private or off", f.dht)
	}
	var err error
	if cfg.Slots, err = parseSlots(f.slots); err != nil || cfg.Slots == 0 {
		return cfg, usage(cmd, "--slots %s: want a number from 1 to %d, or auto; for none there is --no-work", f.slots, control.MaxSlots)
	}
	memory, err := parseMemory(f.memory)
	if err != nil {
		return cfg, usage(cmd, "--memory %s: %v", f.memory, err)
	}
	cfg.Memory = memory
	for _, l := range f.labels { // several in a variable have commas between them
		cfg.Labels = append(cfg.Labels, strings.Split(l, ",")...)
	}
	if err := tasks.CheckLabels(cfg.Labels); err != nil {
		return cfg, usage(cmd, "--label: %v", err)
	}
	if cfg.Retain = time.Duration(f.retain); cfg.Retain < time.Minute && cmd.Flags().Lookup("retain") != nil {
		return cfg, usage(cmd, "--retain %v: want a minute or more", cfg.Retain)
	}
	if f.noWork {
		cfg.Slots = 0
	}
	if cfg.Secret, err = f.readSecret(cmd, log); err != nil {
		return cfg, err
	}
	self, err := os.Executable()
	if err != nil {
		return cfg, fmt.Errorf("find the path of this program: %w", err)
	}
	cfg.Runtimes = []executor.Runtime{wasm.New(wasm.Config{Command: []string{self, "worker", wasm.Name}})}
	return cfg, nil
}

// readSecret reads the file of --secret-file.
func (f *upFlags) readSecret(cmd *cobra.Command, log *slog.Logger) (string, error) {
	var r io.Reader
	switch f.secretFile {
	case "":
		return "", nil
	case "-":
		if f.detach {
			return "", usage(cmd, "--secret-file - and --detach: the background process has no standard input; name a file")
		}
		r = oneByOne{cmd.InOrStdin()}
	default:
		file, err := os.Open(f.secretFile)
		if err != nil {
			return "", &node.Error{Code: codeUsage, Message: fmt.Sprintf("--secret-file: %v", err), Fix: "name a file whose first line is the secret"}
		}
		defer file.Close()
		if i, err := file.Stat(); err == nil && i.Mode().IsRegular() && i.Mode()&0o077 != 0 && runtime.GOOS != "windows" && log != nil {
			log.Warn("others on this computer can read the file with the secret", "file", f.secretFile, "fix", "chmod 600 "+f.secretFile)
		}
		r = file
	}
	line, err := bufio.NewReaderSize(io.LimitReader(r, maxSecretLine), 16).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the secret: %w", err)
	}
	secret := strings.TrimRight(line, "\r\n")
	if strings.TrimSpace(secret) == "" {
		return "", &node.Error{Code: codeUsage, Message: "--secret-file " + f.secretFile + ": the first line is empty", Fix: "write a secret there, of 16 characters or more"}
	}
	return secret, nil
}

// maxSecretLine is above what a secret may have, so that a longer one is seen to be.
const maxSecretLine = 4 << 10

// oneByOne reads no more than is asked for by somebody who asks for single bytes: what follows the line is not taken away.
type oneByOne struct{ io.Reader }

func (r oneByOne) Read(b []byte) (int, error) { return r.Reader.Read(b[:min(1, len(b))]) }

// pythonRuntime finds the interpreter that runs Python functions here. A node without one runs none, and says so in its log.
func pythonRuntime(ctx context.Context, named string, log *slog.Logger) (executor.Runtime, error) {
	packages, err := pythonfiles.Unpack()
	if err != nil {
		return nil, err
	}
	found, err := python.Find(ctx, named, filepath.Join(packages, "interpreters"))
	if ctx.Err() != nil { // it was interrupted: that says nothing of interpreters
		return nil, ctx.Err()
	}
	if err != nil {
		log.Warn("this node runs no Python functions", "err", err, "fix", "install Python 3.6 or later, or name an interpreter with --python, and start the node again")
	} else if found.Path != "" {
		log.Info("Python functions run here", "interpreter", found.Path, "version", found.Version)
	}
	return python.New(python.Config{Interpreter: found, Packages: packages}), nil
}

// processors is what Go may use at once as the program starts: affinity and cgroups count.
var processors = runtime.GOMAXPROCS(0)

// nodeProcessors is how many of them a node uses itself, unless GOMAXPROCS says another number: it runs no user code, and each
// call goes through several of its goroutines. Where they wake each other on other processors, which its worker processes and
// clients need at the same time, a call takes half as long again (measured on two: 0.33 ms with both, 0.21 with one, p99
// 2.4 and 0.5), and tasks per second are fewer, too.
func nodeProcessors() int {
	if os.Getenv("GOMAXPROCS") != "" {
		return processors
	}
	return max(1, processors/2)
}

// parseSlots reads K or auto. Auto is what Go may use at once: affinity and cgroups count.
func parseSlots(s string) (int, error) {
	if s == "auto" {
		return processors, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > control.MaxSlots {
		return 0, fmt.Errorf("%q: want a number up to %d, or auto", s, control.MaxSlots)
	}
	return n, nil
}

// parseMemory reads a size, or a share of this computer's memory.
func parseMemory(s string) (uint64, error) {
	percent, ok := strings.CutSuffix(s, "%")
	if !ok {
		return parseBytes(s)
	}
	p, err := strconv.ParseFloat(percent, 64)
	if err != nil || !(p > 0) || p > 100 {
		return 0, errors.New("want a share up to 100%")
	}
	v, err := mem.VirtualMemory()
	if err != nil {
		return 0, fmt.Errorf("read this computer's memory: %w", err)
	}
	return uint64(p / 100 * float64(v.Total)), nil
}

func (c *cli) up(cmd *cobra.Command, f *upFlags) error {
	if f.private {
		return c.upPrivate(cmd, f)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return usage(cmd, "--log-level %s: want debug, info, warn or error", f.logLevel)
	}
	if f.detach && !f.detached {
		// What was typed wrong is said here, by the process that the person sees.
		if _, err := f.nodeConfig(cmd, c.dataDir, nil); err != nil {
			return err
		}
		return c.upDetached(cmd)
	}
	logs := c.stderr
	if f.detached {
		w, err := openLog(filepath.Join(c.dataDir, logFile))
		if err != nil {
			return c.reportDetached(cmd, fmt.Errorf("open the log: %w", err))
		}
		defer w.Close()
		logs = w
	}
	log := slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: level}))
	err := c.serve(cmd, f, log)
	if f.detached && err != nil {
		log.Error("node ended", "err", err)
		return c.reportDetached(cmd, err)
	}
	return err
}

// serve runs the node until ctx is done or it is told to shut down.
func (c *cli) serve(cmd *cobra.Command, f *upFlags, log *slog.Logger) error {
	cfg, err := f.nodeConfig(cmd, c.dataDir, log)
	if err != nil {
		return err
	}
	ln, err := control.Listen(c.dataDir, f.control)
	if err != nil {
		return err
	}
	defer ln.Close()
	rt, err := pythonRuntime(cmd.Context(), f.python, log)
	if err != nil {
		return err
	}
	cfg.Runtimes = append(cfg.Runtimes, rt)
	runtime.GOMAXPROCS(nodeProcessors())
	cfg.Journal = c.journal
	n, err := node.New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	go giveBackMemory(ctx)
	if f.withParent {
		go func() {
			io.Copy(io.Discard, c.stdin)
			cancel()
		}()
	}
	// A start that ended before it came so far, or a join that failed, has left it to be told.
	if code := n.RecoveryCode(); code != "" {
		if f.detached {
			fmt.Fprintln(c.stdout, recoveryPrefix+code)
		} else {
			c.tellRecovery(code)
		}
		if err := n.RecoveryTold(); err != nil {
			log.Warn("the recovery code will be shown again by the next start", "err", err)
		}
	}
	return runNode(ctx, n, ln, log, func() error {
		st, err := n.Status(ctx)
		if err != nil {
			return err
		}
		addrs := strings.Join(n.Addrs(), ",")
		if addrs == "" {
			addrs = "-"
		}
		_, err = fmt.Fprintf(c.stdout, "ready: %s %s %s ui off\n", st.Name, st.ID, addrs)
		return err
	})
}

// recoveryPrefix begins the line in which a background process says its mesh's recovery code.
const recoveryPrefix = "recovery: "

// tellRecovery shows the code of a mesh that was just made. It is shown only once.
func (c *cli) tellRecovery(code string) {
	fmt.Fprintf(c.stderr, "meshnode: a new mesh; its recovery code, to be kept apart from this computer: %s\n", code)
}

// runNode runs a node and its local interface until ctx is done or the node stops. It calls ready once both serve.
// When it returns, all of it has ended, unless the node took longer than stopTimeout.
func runNode(ctx context.Context, n *node.Node, ln *control.Listener, log *slog.Logger, ready func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	nodeDone := make(chan error, 1)
	go func() { nodeDone <- n.Run(ctx) }()
	// Clients are served until the node has ended: they see its last results.
	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	served := make(chan error, 1)
	stopped := func(err error) error {
		cancel()
		if nodeDone != nil {
			select {
			case e := <-nodeDone:
				err = errors.Join(err, notCanceled(e))
			case <-time.After(stopTimeout):
				err = errors.Join(err, fmt.Errorf("the node did not stop within %v", stopTimeout))
			}
		}
		stopServing()
		if served != nil {
			err = errors.Join(err, <-served)
		}
		return err
	}
	select {
	case err := <-nodeDone:
		nodeDone, served = nil, nil
		return notCanceled(err)
	case <-ctx.Done():
		served = nil
		return stopped(nil)
	case <-n.Ready():
	}
	server := control.New(n, ln, log)
	go func() { served <- server.Run(serveCtx) }()
	select {
	case err := <-served:
		served = nil
		return stopped(err)
	case <-server.Ready():
	}
	if err := ready(); err != nil && ctx.Err() == nil {
		return stopped(err)
	}
	select {
	case err := <-nodeDone:
		nodeDone = nil
		return stopped(notCanceled(err))
	case err := <-served:
		served = nil
		return stopped(err)
	case <-ctx.Done():
		return stopped(nil)
	}
}

func notCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// upDetached starts this program again in the background and waits until it is ready or says why not.
func (c *cli) upDetached(cmd *cobra.Command) error {
	if held, err := control.Held(c.dataDir); err == nil && held {
		ln, err := control.Listen(c.dataDir, "") // for its error, which names the process
		if err == nil {
			ln.Close() // it ended just now
		} else {
			return err
		}
	}
	if err := os.MkdirAll(c.dataDir, 0o700); err != nil {
		return err
	}
	p, err := startDetached(append(os.Args[1:len(os.Args):len(os.Args)], "--detached"))
	if err != nil {
		return fmt.Errorf("start the background process: %w", err)
	}
	line := make(chan string, 1)
	go func() {
		r := bufio.NewReader(io.LimitReader(p.stdout, 64<<10))
		s, _ := r.ReadString('\n')
		if code, ok := strings.CutPrefix(s, recoveryPrefix); ok {
			c.tellRecovery(strings.TrimSpace(code))
			s, _ = r.ReadString('\n')
		}
		line <- strings.TrimSpace(s)
	}()
	fix := "see " + filepath.Join(c.dataDir, logFile)
	select {
	case s := <-line:
		p.release()
		if strings.HasPrefix(s, "ready:") {
			_, err := fmt.Fprintln(c.stdout, s)
			return err
		}
		var e struct{ Error *node.Error }
		if json.Unmarshal([]byte(s), &e) == nil && e.Error != nil {
			return e.Error
		}
		return &node.Error{Code: "failed", Message: "the node ended before it was ready", Fix: fix}
	case <-cmd.Context().Done():
		p.kill()
		return exitCode(exitInterrupted)
	case <-time.After(startTimeout):
		p.kill()
		return &node.Error{Code: "failed", Message: fmt.Sprintf("the node was not ready within %v", startTimeout), Fix: fix}
	}
}

// reportDetached tells the process that started this one what went wrong; it may be gone already.
func (c *cli) reportDetached(cmd *cobra.Command, err error) error {
	b, _ := json.Marshal(struct {
		Error *node.Error `json:"error"`
	}{explain(cmd, err)})
	c.stdout.Write(append(b, '\n'))
	return exitCode(exitFailure)
}
