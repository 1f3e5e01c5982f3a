package node

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// Which connections are alive, and whether this machine has slept. A connection whose packets are lost stays open for minutes,
// and its retransmissions come further and further apart: so one from which nothing comes is closed, and discovery dials again.

const (
	// watchEvery the connections are looked at.
	watchEvery = 500 * time.Millisecond
	// Under a lease a beat comes every 0.5 s: after three of them are missing the peer is asked for a sign of life, and
	// after the time of a lease the connection is closed. Without, beats come every 5 s and a tenth: asked after a
	// beat and a half, closed after two. Then a link that was cut for however long moves again within 5 s of its
	// healing: up to 6.7 s after the cut by a retransmission (they come 0.2 s, 0.6, 1.4, 3, 6.2, 12.6 after
	// what was lost), and from then on by a new connection.
	leasedAsk, leasedDead = 1500 * time.Millisecond, 3 * time.Second
	idleAsk, idleDead     = 7500 * time.Millisecond, 10 * time.Second
	// wakeDead is how long connections have after a sleep to give a sign of life: they are asked at once.
	wakeDead = 2 * time.Second
	// ownPause between two looks is one of this process: what came meanwhile was not read yet, so it makes nobody silent.
	ownPause = time.Second
	// sleepCounts: from so much sleep on others may have noticed it.
	sleepCounts = time.Second
	// allLostWithin: all members lost within this time are one loss, of this node's own network.
	allLostWithin = 15 * time.Second
)

// presence belongs to its goroutine, but for what is said otherwise.
type presence struct {
	n     *Node
	conns map[network.Conn]*watched
	last  time.Duration // awake time of the last look
	slept time.Duration // that was noticed
	wake  chan struct{} // has room for one: the system says that the machine is awake

	losses  []time.Duration // of peers by silence, since the last time that one was heard of
	network atomic.Pointer[string]
}

// watched is a connection.
type watched struct {
	traffic *members.Traffic
	heard   uint64
	quiet   time.Duration // since the last byte, without pauses of our own
	leased  time.Duration // since there are leases with the peer
	asked   bool          // since the last byte
	woke    time.Duration // left after a sleep; 0: no sleep, or heard since
}

func (p *presence) open(n *Node) {
	p.n, p.conns, p.wake = n, map[network.Conn]*watched{}, make(chan struct{}, 1)
	p.slept = n.sleptSoFar()
	n.slept.Store(int64(p.slept))
}

// run watches until ctx ends.
func (p *presence) run(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	p.last = p.n.awake()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.wake:
		}
		p.look()
	}
}

func (p *presence) look() {
	n := p.n
	now := n.awake()
	gap := now - p.last
	p.last = now
	if gap > ownPause {
		gap = 0
	}
	woke := false
	slept := n.sleptSoFar()
	n.slept.Store(int64(slept))
	if slept-p.slept > sleepCounts {
		n.log.Info("this computer has slept", "for", (slept - p.slept).Round(time.Second))
		p.slept, woke = slept, true
		n.wokeAt.Store(time.Now().Unix())
		n.post(input{}) // the loop looks at the clocks itself, before anything else
	}
	open := map[peer.ID]bool{}
	for _, c := range n.host.Network().Conns() {
		w := p.conns[c]
		if w == nil {
			w = &watched{}
			if !c.As(&w.traffic) || c.IsClosed() {
				continue
			}
			p.conns[c] = w
		}
		open[c.RemotePeer()] = true
		p.watch(c, w, gap, woke)
	}
	for c := range p.conns {
		if c.IsClosed() {
			delete(p.conns, c)
		}
	}
	p.lookAtNetwork(now, len(open))
	if woke {
		n.wakeUp() // who announced the sleep may not have said that it is over
		n.finder.Rediscover()
	}
}

// watch decides about one connection.
func (p *presence) watch(c network.Conn, w *watched, gap time.Duration, woke bool) {
	leased := false
	if s := p.n.sessions.get(protocol.NodeID(c.RemotePeer().String())); s != nil {
		leased = s.leased.Load()
	}
	heard := w.traffic.Heard()
	if heard != w.heard {
		p.losses = p.losses[:0]
	}
	switch w.look(heard, gap, leased, woke) {
	case ask:
		p.n.sessions.run(func() { w.traffic.Ping() })
	case dead:
		p.n.log.Info("connection closed: no sign of life", "peer", c.RemotePeer(), "addr", c.RemoteMultiaddr(), "for", w.quiet, "after_sleep", w.woke > 0)
		delete(p.conns, c)
		p.losses = append(p.losses, p.last)
		p.n.sessions.run(func() { c.Close() }) // it may wait for what it writes
	}
}

// verdict is what a look at a connection says.
type verdict int

const (
	fine verdict = iota
	ask
	dead
)

// look takes up how much was heard so far, gap after the last look; 0: nobody knows what may wait to be read.
func (w *watched) look(heard uint64, gap time.Duration, leased, woke bool) verdict {
	if heard != w.heard {
		w.heard, w.quiet, w.asked, w.woke = heard, 0, false, 0
	} else {
		w.quiet += gap
	}
	if w.leased += gap; !leased {
		w.leased = 0
	}
	if woke {
		w.woke, w.asked = wakeDead, false
	} else if w.woke > 0 {
		w.woke = max(w.woke-gap, 1)
	}
	under := min(w.quiet, w.leased) // what came before the leases was due less often
	switch {
	case w.quiet >= idleDead, under >= leasedDead, w.woke == 1:
		return dead
	case !w.asked && (w.quiet >= idleAsk || under >= leasedAsk || woke):
		w.asked = true
		return ask
	}
	return fine
}

// lookAtNetwork says it once, and not for each peer, if it is this node's own network that is away.
func (p *presence) lookAtNetwork(now time.Duration, open int) {
	what := ""
	recent := 0
	for _, at := range p.losses {
		if now-at < allLostWithin || len(p.losses) > 1 && at-p.losses[0] < allLostWithin {
			recent++
		}
	}
	switch {
	case open > 0:
	case !onNetwork() && !p.n.cfg.Private && p.n.beyondLoopback():
		what = "no network: no interface of this computer is up and has an address"
	case recent > 1:
		what = "all members fell silent at once: it may be this computer's own network"
	}
	if old := p.n.networkTrouble(); old != what {
		p.network.Store(&what)
		if what != "" {
			p.n.log.Warn("network", "state", what)
		} else {
			p.n.log.Info("network", "state", "there again")
		}
	}
}

// networkTrouble is what is wrong with this computer's own network, or "". It may be called concurrently.
func (n *Node) networkTrouble() string {
	if s := n.presence.network.Load(); s != nil {
		return *s
	}
	return ""
}

// beyondLoopback says that the node can be reached, or knows of members, at other addresses than this machine's own.
func (n *Node) beyondLoopback() bool {
	for _, a := range n.host.Network().ListenAddresses() {
		if !manet.IsIPLoopback(a) {
			return true
		}
	}
	return false
}

// onNetwork says whether an interface is up that leads out of this computer.
func onNetwork() bool {
	is, err := net.Interfaces()
	if err != nil {
		return true // not known
	}
	for _, i := range is {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagRunning == 0 {
			continue
		}
		as, err := i.Addrs()
		if err != nil {
			return true
		}
		for _, a := range as {
			if ip, ok := a.(*net.IPNet); ok && (ip.IP.IsGlobalUnicast() || ip.IP.IsLinkLocalUnicast() && ip.IP.To4() != nil) {
				return true
			}
		}
	}
	return false
}
