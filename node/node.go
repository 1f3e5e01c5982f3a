// Package node is the running whole of one node: a libp2p host, one goroutine that owns the scheduler, and the
// wiring between it, the disk, the worker processes, the peers and the local clients. It decides nothing about
// tasks: package tasks does, and this package carries out what it says.
//
// The goroutines, each ended before Run returns:
//
//   - the loop (loop.go) owns the scheduler; everything else reaches it through the inbox;
//   - per peer one reader and one writer of the stream (session.go); the writer also repeats beats while the loop is busy;
//   - the journal's writer; the executor's slots; fetches of blobs (blob.go); discovery.
//
// Clients' calls (submit.go, jobs.go, peers.go and others; listed in api.go) come from package node/control.
package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery"
	"meshnode/discovery/members"
	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/blob"
	"meshnode/tasks/executor"
	"meshnode/tasks/journal"
)

// Config is what a node needs. DataDir and Runtimes are required; the caller holds the data directory's lock.
type Config struct {
	DataDir string
	Name    string   // kept in DataDir until another is given; default: the one that is kept, else the host's name
	Slots   int      // tasks at once; 0: it only submits
	Listen  []string // multiaddresses; default: TCP on all interfaces, at a port that is chosen once and kept
	Peers   []string // members to connect to: multiaddresses or HOST:PORT
	// Announce are addresses at which others reach this node from outside, as a forwarded port: multiaddresses, or HOST:PORT. See
	// discovery.HostConfig.
	Announce []string
	MapPort  bool // ask the router for a port that leads here
	MDNS     bool
	DHT      bool     // look for members that moved by the mesh's private DHT, and serve it
	Memory   uint64   // bytes that tasks may use, all slots together; 0: the executor's default for each
	Labels   []string // "key=value" or "key", for jobs to ask for; see tasks.CheckLabels
	// Retain is how long ended detached jobs and their results are kept, in time that the computer is awake; attached ones
	// at most a day of it. 0: 7 days.
	Retain  time.Duration
	MinFree uint64 // bytes on the disk below which nothing new is submitted; 0: 256 MiB
	// Private says that the node belongs to the one program that started it, and ends with it: it is open to no peers, its
	// data directory is of no use after it, and its tasks are that program's.
	Private bool
	// Secret admits nodes that know it, and has this one admitted by them: tasks of WebAssembly and Python, and nothing else. At least
	// 16 characters, if anybody but this machine can try it; "": none.
	Secret   string
	Version  string
	Runtimes []executor.Runtime
	Logger   *slog.Logger     // default: none
	Journal  journal.Config   // its FS only, for tests
	Now      func() time.Time // the wall clock, for tests; default: time.Now
	// Speak are the protocol versions that the node speaks, the preferred one first. Default: protocol.Spoken. Others are for tests.
	Speak protocol.Versions

	sleptSoFar func() time.Duration // for tests: nil is the system's
}

// processors is what tasks may use: the node itself may be told to use fewer.
var processors = uint32(runtime.GOMAXPROCS(0))

// Node is a running node. Make it with New, then call Run once; the other methods are for clients.
type Node struct {
	cfg     Config
	log     *slog.Logger
	started time.Time // also the zero of the scheduler's time

	members  *members.Membership
	host     host.Host
	finder   *discovery.Discovery
	journal  *journal.Journal
	blobs    *blob.Store
	executor *executor.Executor
	programs programs
	fetching fetching
	leases   leases
	meter    meter
	gifts    gifts
	flights  flights
	sums     sums
	names    sync.Map // string: the label that each NodeID said last that it has
	pause    pauseEnd
	checks   checks
	runtimes map[string]executor.Runtime
	self     protocol.NodeID

	inbox chan input
	loop  loop

	ready    chan struct{}
	stop     chan struct{} // closed by Shutdown
	stopOnce sync.Once
	done     chan struct{}   // closed when the loop has ended: nobody reads the inbox any more
	tasks    sync.WaitGroup  // goroutines that serve the node for as long as it runs
	ctx      context.Context // ends with Run
	cancel   context.CancelFunc

	seldom      *members.OnceIn // for lines of the log that peers cause
	sessions    sessions
	presence    presence
	bed         bed
	sleptSoFar  func() time.Duration
	incarnation uint64
	steppedAt   atomic.Int64 // scheduler time of the last Step
	wokeAt      atomic.Int64 // when a sleep was noticed last, Unix seconds; 0: none was
	slept       atomic.Int64 // how much the machine has slept, as it was last read, ns
	roomAt      atomic.Int64 // when the disk had room, as loop.now; 0: not asked yet
}

// New opens the data directory and the network, and reads the journal. Errors are one line for a person.
func New(cfg Config) (_ *Node, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MinFree == 0 {
		cfg.MinFree = minFree
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := tasks.CheckLabels(cfg.Labels); err != nil {
		return nil, &Error{Code: CodeBadRequest, Message: err.Error()}
	}
	where, err := cfg.addresses()
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, log: cfg.Logger, started: time.Now(), runtimes: map[string]executor.Runtime{},
		inbox: make(chan input, inboxSize), programs: programs{all: map[programKey]*program{}},
		seldom: members.NewOnceIn(10 * time.Second),
		ready:  make(chan struct{}), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if n.sleptSoFar = cfg.sleptSoFar; n.sleptSoFar == nil {
		n.sleptSoFar = sleptSoFar
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if err := checkFormat(cfg.DataDir); err != nil {
		return nil, err
	}
	if n.members, err = members.Open(cfg.DataDir, members.Options{Name: cfg.Name, Volatile: cfg.Private, Speak: cfg.Speak, Now: cfg.Now, Logger: n.log}); err != nil {
		return nil, err
	}
	n.cfg.Name = n.members.Name()
	opened := n.members.Opened()
	for _, s := range opened.Notices {
		n.log.Warn("membership", "notice", s)
	}
	n.self = protocol.NodeID(n.members.Self().String())
	if opened.Copied {
		if err := setAside(filepath.Join(cfg.DataDir, "journal")); err != nil {
			return nil, err
		}
	}
	if n.blobs, err = blob.Open(filepath.Join(cfg.DataDir, "blobs"), blob.Config{Volatile: cfg.Private, Logger: n.log}); err != nil {
		return nil, err
	}
	store := journal.Config{FS: cfg.Journal.FS, Logger: n.log, Ballast: min(ballast, int64(cfg.MinFree)/4), MinFree: int64(cfg.MinFree)}
	if cfg.Private {
		store.Ballast, store.Volatile = 0, true
	}
	if n.journal, err = journal.Open(filepath.Join(cfg.DataDir, "journal"), store); err != nil {
		return nil, err
	}
	for _, r := range cfg.Runtimes {
		n.runtimes[r.Name()] = r
	}
	scratch, err := n.blobs.Scratch()
	if err != nil {
		return nil, err
	}
	n.executor, err = executor.New(executor.Config{
		Scratch:  scratch,
		Runtimes: cfg.Runtimes, Emit: n.emit, Blobs: taskBlobs{n}, Logger: n.log, Memory: cfg.Memory / uint64(max(1, cfg.Slots)),
		Private: cfg.Private,
	})
	if err != nil {
		return nil, err
	}
	if err := n.loop.open(n); err != nil {
		return nil, err
	}
	if err := n.listen(where); err != nil {
		return nil, err
	}
	return n, nil
}

// setAside renames what belongs to another identity of a copied data directory: its jobs are that node's.
func setAside(path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for i := 1; ; i++ {
		aside := fmt.Sprintf("%s-of-old-identity-%d", path, i)
		if _, err := os.Stat(aside); errors.Is(err, os.ErrNotExist) {
			return os.Rename(path, aside)
		}
	}
}

// addresses are those of a Config, read.
type addresses struct {
	listen, announce []ma.Multiaddr
	given            []discovery.Given
}

// addresses reads what people type, before anything is made or opened: a slip of typing must not cost a first start its mesh.
func (c *Config) addresses() (at addresses, err error) {
	bad := func(flag string, err error) (addresses, error) {
		return addresses{}, &Error{Code: CodeBadRequest, Message: flag + ": " + err.Error(), Fix: "see meshnode help up"}
	}
	for _, t := range c.Listen {
		a, err := ma.NewMultiaddr(t)
		if err != nil {
			return bad("--listen", fmt.Errorf("address %.80q: want a multiaddr, as /ip4/0.0.0.0/tcp/4001", t))
		}
		at.listen = append(at.listen, a)
	}
	for _, t := range c.Announce {
		a, err := discovery.ParseAnnounce(t)
		if err != nil {
			return bad("--announce", err)
		}
		at.announce = append(at.announce, a)
	}
	for _, t := range c.Peers {
		g, err := discovery.ParseGiven(t)
		if err != nil {
			return bad("--peer", err)
		}
		at.given = append(at.given, g)
	}
	if c.Secret != "" {
		local := len(at.listen) > 0 && !slices.ContainsFunc(at.listen, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) })
		if err := checkSecret(c.Secret, c.Private || local); err != nil {
			return addresses{}, err
		}
	}
	return at, nil
}

// listen opens the libp2p host and what it serves.
func (n *Node) listen(at addresses) error {
	dir := filepath.Join(n.cfg.DataDir, "membership")
	var err error
	n.host, err = discovery.NewHost(discovery.HostConfig{
		Members: n.members, Listen: at.listen, Announce: at.announce, MapPort: n.cfg.MapPort, Deaf: n.cfg.Private, Dir: dir, Agent: "meshnode/" + n.cfg.Version, Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.sessions.open(n)
	n.presence.open(n)
	n.serveBlobs()
	n.serveChecks()
	n.finder, err = discovery.New(discovery.Config{
		Host: n.host, Members: n.members, Dir: dir, Given: at.given, MDNS: n.cfg.MDNS, DHT: n.cfg.DHT, Secret: n.cfg.Secret, Brief: n.cfg.Private, Logger: n.log,
	})
	return err
}

// Ready is closed when the node serves.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// ID is this node.
func (n *Node) ID() protocol.NodeID { return n.self }

// Name is this node's label.
func (n *Node) Name() string { return n.cfg.Name }

// RecoveryCode is the code of a mesh that was made here and that nobody was shown yet, "" otherwise. Who shows it calls RecoveryTold then.
func (n *Node) RecoveryCode() string { return n.members.Opened().RecoveryCode }

// RecoveryTold says that a person was shown RecoveryCode.
func (n *Node) RecoveryTold() error { return n.members.RecoveryTold() }

// Addrs are the addresses under which others can reach this node, with its ID.
func (n *Node) Addrs() []string {
	if len(n.host.Addrs()) == 0 {
		return []string{}
	}
	as, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: n.host.ID(), Addrs: n.host.Addrs()})
	if err != nil {
		return nil
	}
	out := make([]string, len(as))
	for i, a := range as {
		out[i] = a.String()
	}
	return out
}

// Run serves until ctx ends or Shutdown is called, then stops cleanly, within 5 s: leases go back, what was written is
// synced. It returns nil then, and an error if the node cannot go on (its disk failed).
func (n *Node) Run(ctx context.Context) error {
	defer n.close()
	jctx, jstop := context.WithCancel(context.Background())
	defer jstop()
	journalDone := make(chan error, 1)
	go func() { journalDone <- n.journal.Run(jctx) }()

	loopErr := make(chan error, 1)
	go func() {
		defer close(n.done)
		loopErr <- n.loop.run()
	}()
	n.goRun("discovery", n.finder.Run)
	n.goRun("membership", n.watchMembership)
	n.goRun("presence", n.presence.run)
	if !n.cfg.Private { // its peers hear of a sleep when it is over: a program of a second needs no bus
		n.goRun("sleep", n.watchSleep)
	}
	n.sessions.start()
	close(n.ready)

	var err error
	select {
	case <-ctx.Done():
	case <-n.stop:
	case err = <-loopErr:
		return err // the journal failed
	case <-n.journal.Failed():
		// Nothing may be carried out any more; what was synced is safe.
		n.loop.end()
		<-loopErr
		return fmt.Errorf("the journal below %s cannot be written: %w", n.cfg.DataDir, n.journal.Err())
	}
	// The order of shutting down: leases, attempts, streams, journal, host.
	n.Shutdown()
	n.sessions.bye(n.loop.shutdown())
	n.executor.Close()
	n.cancel()
	n.loop.end()
	err = <-loopErr
	jstop()
	return errors.Join(err, <-journalDone)
}

// goRun keeps a part of the node running until it stops. A part that ends with an error is logged: the others go on.
func (n *Node) goRun(part string, run func(context.Context) error) {
	n.tasks.Go(func() {
		if err := run(n.ctx); err != nil && n.ctx.Err() == nil {
			n.log.Error("part of the node ended", "part", part, "err", err)
		}
	})
}

// Shutdown begins a clean stop and returns at once.
func (n *Node) Shutdown() { n.stopOnce.Do(func() { close(n.stop) }) }

// close frees what New opened, and waits for all that Run started.
func (n *Node) close() {
	n.cancel()
	if n.executor != nil {
		n.executor.Close()
	}
	if n.host != nil {
		n.host.Close()
		n.sessions.wait()
	}
	n.tasks.Wait()
	if n.journal != nil {
		n.journal.Close()
	}
}

// wall is the wall clock.
func (n *Node) wall() time.Time { return n.cfg.Now() }

func randomUint64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func newRand() *mathrand.Rand {
	return mathrand.New(mathrand.NewPCG(randomUint64(), randomUint64()))
}

func (n *Node) newScheduler(epoch uint64) (*tasks.Scheduler, error) {
	n.incarnation = randomUint64()
	var names []string
	for _, r := range n.cfg.Runtimes {
		if v, here := r.Version(); here {
			names = append(names, r.Name()+v)
		}
	}
	return tasks.New(tasks.Config{
		Self: n.self, Epoch: epoch, Incarnation: n.incarnation, Key: n.journal.Key(), Rand: newRand(),
		// At most half of the room for blobs is for the results of ended jobs: the rest is for those that go on.
		Retention: tasks.Retention{Detached: int64(n.cfg.Retain), Bytes: n.blobs.Quota() / 2},
		ThrowAway: n.cfg.Private,
		Slots:     n.cfg.Slots, Runtimes: names, Tell: n.log.Enabled(context.Background(), slog.LevelDebug),
		Facts: tasks.Facts{
			Name: n.cfg.Name, OS: runtime.GOOS, Arch: runtime.GOARCH, Labels: n.cfg.Labels,
			CPUs: processors, Memory: n.cfg.Memory,
		},
	})
}
