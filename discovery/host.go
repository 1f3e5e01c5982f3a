package discovery

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
)

const (
	// MaxMembers that one node keeps connections to. The limits below follow from it.
	MaxMembers = 300
	// maxConns: two per pair for the moment in which both sides dial, and those that are not admitted yet, in both directions.
	maxConns = 2*MaxMembers + members.MaxPending + maxDialling
	// maxDialling connections being dialled: maxDials peers at a few addresses each.
	maxDialling = 256
	// maxStreams: a stream of the scheduler's in each direction, blobs in flight, and identify with everybody at once.
	maxStreams = 40 * MaxMembers
	// maxStreamsPerPeer: a member that can be met through this node only has a circuit here for each other one.
	maxStreamsPerPeer = 256 + MaxMembers
	// peerMemory bounds the windows of one peer's streams, which is what it can make this node hold unread: 256 KiB each at
	// least, and up to 16 MiB of one that carries much, as do the four fetches of blobs at once.
	peerMemory = maxStreamsPerPeer<<18 + 64<<20
	// allMemory of all windows: reserved, not used; a peer's stream holds what was sent and not read. 300 peers with two streams each take 150 MiB.
	allMemory = 1 << 30
	// wantedFiles: a descriptor for each of these connections, and as many as a journal, blobs and worker processes take.
	wantedFiles = maxConns + 600
	portFile    = "port"
)

// HostConfig of NewHost. Members is required.
type HostConfig struct {
	Members *members.Membership
	// Listen are the addresses to listen on. None: all interfaces, IPv4 and IPv6, on one port that is chosen on
	// the first start and kept in Dir/port.
	Listen []ma.Multiaddr
	Deaf   bool // listen on none at all
	// Announce are addresses at which others can reach this node beside those that it sees itself: of a forwarded port, of a proxy.
	// Each stands for all addresses of its kind (loopback, private or public) that the node would tell. With any, it
	// counts as reachable.
	Announce []ma.Multiaddr
	MapPort  bool   // ask the router (UPnP, NAT-PMP, PCP) for a port that leads here
	Dir      string // the membership folder; needed if Listen is empty
	Agent    string // what the node tells of itself, as in "meshnode/0.1.0"
	Logger   *slog.Logger
}

// NewHost makes the node's libp2p host: members only, TCP only (and circuits over it), with limits for MaxMembers, each logged
// when it is hit. The caller closes it.
func NewHost(c HostConfig) (host.Host, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Agent == "" {
		c.Agent = "meshnode"
	}
	if len(c.Listen) == 0 && !c.Deaf {
		if c.Dir == "" {
			return nil, errors.New("neither an address to listen on nor a folder to keep the port in")
		}
		port, err := keptPort(c.Dir, c.Logger)
		if err != nil {
			return nil, err
		}
		for _, f := range []string{"/ip4/0.0.0.0/tcp/%d", "/ip6/::/tcp/%d"} {
			a, err := ma.NewMultiaddr(fmt.Sprintf(f, port))
			if err != nil {
				return nil, err
			}
			c.Listen = append(c.Listen, a)
		}
	}
	for _, a := range c.Listen {
		if !members.Dialable(a) {
			return nil, fmt.Errorf("listen on %s: want an IP address and a TCP port, as in /ip4/0.0.0.0/tcp/4001", a)
		}
	}
	for _, a := range c.Announce {
		if !members.Dialable(a) || manet.IsIPUnspecified(a) {
			return nil, fmt.Errorf("announce %s: want an IP address or DNS name and a TCP port at which others reach this node, as in /ip4/203.0.113.5/tcp/4001", a)
		}
	}
	if n := openFiles(); n < wantedFiles {
		c.Logger.Warn("this process may open few files", "limit", n, "wanted", wantedFiles,
			"means", "with many members, or strangers that flood this node, connections and jobs may fail: raise the limit (ulimit -n, LimitNOFILE)")
	}
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: maxConns, ConnsInbound: maxConns, ConnsOutbound: maxConns, FD: maxConns,
			Streams: maxStreams, StreamsInbound: maxStreams, StreamsOutbound: maxStreams, Memory: allMemory,
		},
		// Connections that are not admitted yet; those that came in are bounded by package members first.
		Transient: rcmgr.ResourceLimits{
			Conns: members.MaxPending + maxDialling, ConnsInbound: members.MaxPending, ConnsOutbound: maxDialling, FD: members.MaxPending + maxDialling,
			Streams: maxStreams, StreamsInbound: maxStreams, StreamsOutbound: maxStreams, Memory: allMemory / 2,
		},
		ProtocolDefault: rcmgr.ResourceLimits{Streams: maxStreams, StreamsInbound: maxStreams, StreamsOutbound: maxStreams},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: 8, ConnsInbound: 8, ConnsOutbound: 8, FD: 8,
			Streams: maxStreamsPerPeer, StreamsInbound: maxStreamsPerPeer, StreamsOutbound: maxStreamsPerPeer, Memory: peerMemory,
		},
		ServiceDefault: rcmgr.ResourceLimits{Streams: maxStreams, StreamsInbound: maxStreams, StreamsOutbound: maxStreams},
		Service:        map[string]rcmgr.ResourceLimits{relay.ServiceName: {Streams: maxStreams, StreamsInbound: maxStreams, StreamsOutbound: maxStreams, Memory: relayMemory}},
		ServicePeer:    map[string]rcmgr.ResourceLimits{relay.ServiceName: {Streams: maxStreamsPerPeer, StreamsInbound: maxStreamsPerPeer, StreamsOutbound: maxStreamsPerPeer, Memory: relayMemory}},
	}.Build(rcmgr.DefaultLimits.AutoScale())
	resources, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		// Many members may be behind one router; strangers do not get as far as counting here.
		rcmgr.WithLimitPerSubnet([]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: maxConns}}, []rcmgr.ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: maxConns}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{}),
		rcmgr.WithMetricsDisabled(), // nobody reads them, and they took a twentieth of what becoming a mesh costs
		rcmgr.WithMetrics(&limitLog{log: c.Logger}))
	if err != nil {
		return nil, err
	}
	listen := libp2p.ListenAddrs(c.Listen...)
	if c.Deaf {
		listen = libp2p.NoListenAddrs
	}
	told := &told{announce: c.Announce}
	options := []libp2p.Option{
		libp2p.Identity(c.Members.Key()),
		listen,
		members.TransportOptions(c.Members),
		libp2p.ResourceManager(resources),
		// Every connection is a member's: a connection manager could only cut members off.
		libp2p.ConnectionManager(connmgr.NullConnMgr{}),
		libp2p.AddrsFactory(told.addrs),
		libp2p.SwarmOpts(swarm.WithDialRanker(directFirst)),
		libp2p.DisableMetrics(),
		libp2p.Ping(false), // beats do that
		libp2p.UserAgent(c.Agent),
	}
	router := &router{log: c.Logger}
	if c.Deaf {
		options = append(options, libp2p.DisableRelay(), libp2p.DisableIdentifyAddressDiscovery())
	} else {
		options = append(options, libp2p.EnableRelay())
		if c.MapPort && !slices.ContainsFunc(c.Listen, manet.IsIPLoopback) {
			options = append(options, libp2p.NATManager(router.serve))
		}
	}
	inner, err := libp2p.New(options...)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", joinAddrs(c.Listen), err)
	}
	h := &meshHost{Host: inner, told: told, router: router}
	if !c.Deaf {
		if err := h.mayPunch(c.Logger); err != nil {
			h.Close()
			return nil, err
		}
	}
	if !c.Deaf && !slices.ContainsFunc(h.Network().ListenAddresses(), members.Dialable) {
		h.Close()
		return nil, fmt.Errorf("listen on %s: no address could be taken", joinAddrs(c.Listen))
	}
	return h, nil
}

// keptPort is the port of Dir/port, or a fresh one that is written there. One that another program has taken is given
// up, and said so: addresses that others remember become hints that fail.
func keptPort(dir string, log *slog.Logger) (int, error) {
	path := filepath.Join(dir, portFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read the kept port: %w", err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 && n < 65536 {
		if _, err := freePort(n); err == nil {
			return n, nil
		}
		log.Warn("the port that this node had is taken; it listens on another one", "port", n)
	}
	n, err := freePort(0)
	if err != nil {
		return 0, fmt.Errorf("find a port to listen on: %w", err)
	}
	return n, replaceFile(path, []byte(strconv.Itoa(n)+"\n"))
}

func freePort(n int) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(n)))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func joinAddrs(as []ma.Multiaddr) string {
	s := make([]string, len(as))
	for i, a := range as {
		s[i] = a.String()
	}
	return strings.Join(s, ", ")
}

// limitLog logs each limit of the resource manager that is hit, at most once in ten seconds each: by then one line says
// it, and whoever hits it may do so thousands of times.
type limitLog struct {
	log  *slog.Logger
	mu   sync.Mutex // guards last
	last map[string]time.Time
}

func (l *limitLog) hit(limit string, p peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last[limit]) < 10*time.Second {
		return
	}
	if l.last == nil {
		l.last = map[string]time.Time{}
	}
	l.last[limit] = now
	l.log.Warn("a limit of the network was hit", "limit", limit, "peer", p.String())
}

func (*limitLog) AllowConn(network.Direction, bool)            {}
func (*limitLog) AllowStream(peer.ID, network.Direction)       {}
func (*limitLog) AllowPeer(peer.ID)                            {}
func (*limitLog) AllowProtocol(libp2pproto.ID)                 {}
func (*limitLog) AllowService(string)                          {}
func (*limitLog) AllowMemory(int)                              {}
func (l *limitLog) BlockConn(d network.Direction, _ bool)      { l.hit("connections "+d.String(), "") }
func (l *limitLog) BlockStream(p peer.ID, d network.Direction) { l.hit("streams "+d.String(), p) }
func (l *limitLog) BlockPeer(p peer.ID)                        { l.hit("connections of one peer", p) }
func (l *limitLog) BlockProtocol(id libp2pproto.ID)            { l.hit("streams of "+string(id), "") }
func (l *limitLog) BlockService(s string)                      { l.hit("streams of "+s, "") }
func (l *limitLog) BlockMemory(int)                            { l.hit("memory", "") }
func (l *limitLog) BlockProtocolPeer(id libp2pproto.ID, p peer.ID) {
	l.hit("streams of "+string(id)+" of one peer", p)
}
func (l *limitLog) BlockServicePeer(s string, p peer.ID) { l.hit("streams of "+s+" of one peer", p) }
