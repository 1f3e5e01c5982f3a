package discovery

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// Members tell members where others are. Two that meet say whose certificates they hold and whom they miss, and each
// answers with what it has; whoever misses a member from then on asks some of the others, and is told when they meet it. What is to be told waits a
// moment, so that many changes are one message: sixty nodes that start at once ask each other for what sixty others say, too.
const (
	// newsTimeout bounds the sending and the reading of one MemberNews.
	newsTimeout = 10 * time.Second
	// News wait newsDelay for more, and newsEach for every member, so that they cost this node a fraction of its time whatever
	// comes: each letter is a stream of its own, of 0.3 ms. While they go to more than newsMany, newsLoad is between them.
	newsDelay = 20 * time.Millisecond
	newsEach  = 2 * time.Millisecond
	newsLoad  = 500 * time.Millisecond
	newsMany  = 20
	// maxTells of one letter: its connection may close under it, and another be there.
	maxTells = 3
	// tellers of a member, of all that are connected: they are asked where it is, and tell those who asked. The same for
	// everybody, nearly: a member that is back is told of five times and not by all of the mesh.
	tellers = 5
	// missGap is how often a node asks some members where those are that it misses.
	missGap = 20 * time.Second
)

// shortID is a member's name in news: the end of its key.
func shortID(p peer.ID) uint64 {
	if len(p) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64([]byte(p[len(p)-8:]))
}

// greet tells a member that was just met what this node holds and misses, and everybody of a member that they may not know.
func (d *Discovery) greet(p peer.ID, k *known) {
	k.greeted = time.Now()
	d.outbox.to(p).greeting = true
	d.outbox.soon()
	if k.public || k.cert.Brief { // a throw-away node goes soon, and connects to whom it wants
		return
	}
	// It has just joined through this node, or came with a certificate nobody had told of. The others meet it themselves
	// or hear it from here, so that nothing is passed on a second time.
	k.public = true
	for to, o := range d.peers {
		if to != p && o.up {
			d.outbox.to(to).records[p] = true
		}
	}
}

// tellOf tells those who asked of a member that was met, or has other addresses.
func (d *Discovery) tellOf(p peer.ID) {
	if !d.teller(p) {
		return
	}
	for to, wants := range d.outbox.wants {
		if wants[p] && to != p {
			delete(wants, p)
			d.outbox.to(to).records[p] = d.outbox.to(to).records[p]
			d.outbox.soon()
		}
	}
}

// teller reports whether this node is one of those who tell of p: by rendezvous hashing, so that all choose nearly the same.
func (d *Discovery) teller(p peer.ID) bool {
	mine := rendezvous(d.host.ID(), p)
	before := 0
	for q, k := range d.peers {
		if k.up && q != p && rendezvous(q, p) < mine {
			before++
		}
	}
	return before < tellers
}

func rendezvous(teller, of peer.ID) uint64 {
	h := fnv.New64a()
	h.Write([]byte(teller))
	h.Write([]byte(of))
	return h.Sum64()
}

// missed asks the tellers of a member that was lost to say when it is back, and where.
func (d *Discovery) missed(p peer.ID) {
	var up []peer.ID
	for q, k := range d.peers {
		if k.up {
			up = append(up, q)
		}
	}
	slices.SortFunc(up, func(a, b peer.ID) int { return cmp.Compare(rendezvous(a, p), rendezvous(b, p)) })
	for _, q := range up[:min(len(up), tellers)] {
		d.outbox.to(q).missing[p] = true
		d.outbox.soon()
	}
}

// sayOwn tells everybody who is connected this node's addresses: libp2p does so up to a minute late.
func (d *Discovery) sayOwn() {
	for p, k := range d.peers {
		if k.up && k.met {
			d.outbox.to(p).own = true
			d.outbox.soon()
		}
	}
}

// askForMissing asks three members at random where those are that were seen lately: what the tellers said may have led
// nowhere, or they have gone themselves. And those that were heard of lately and not met: they may not know that this node is a member.
func (d *Discovery) askForMissing() {
	now := time.Now()
	var up, missing []peer.ID
	for p, k := range d.peers {
		if k.up && k.met {
			up = append(up, p)
		} else if !k.up && !k.cert.Brief && (now.Sub(k.lastSeen) < seenLately || k.lastSeen.IsZero() && now.Sub(k.learnt) > missGap && now.Sub(k.learnt) < seenLately) {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return
	}
	rand.Shuffle(len(up), func(i, j int) { up[i], up[j] = up[j], up[i] })
	for _, p := range up[:min(len(up), 3)] {
		for _, m := range missing {
			d.outbox.to(p).missing[m] = true
		}
		d.outbox.soon()
	}
}

// hear reads what a member tells of others. It runs in a goroutine of libp2p's.
func (d *Discovery) hear(s network.Stream) {
	from := s.Conn().RemotePeer()
	news, err := readNews(s)
	if err != nil {
		s.Reset()
		if !d.seldom.OK(string(from)) {
			return
		}
		d.log.Warn("protocol violated", "peer", from.String(), "addr", s.Conn().RemoteMultiaddr().String(), "protocol", protocol.MembersProtocol, "err", err)
		return
	}
	s.Close()
	// First, so that no certificate is taken up that these void.
	if err := d.members.AddRevocations(news.Revocations...); err != nil && d.seldom.OK("revocations "+string(from)) {
		d.log.Warn("revocations told by a member", "peer", from.String(), "protocol", protocol.MembersProtocol, "err", err)
	}
	if news.Renewed != nil {
		if err := d.members.TakeRenewal(news.Renewed); err != nil && d.seldom.OK("renewal "+string(from)) {
			d.log.Warn("a renewed certificate is no good", "peer", from.String(), "err", err)
		}
	}
	var chains []*protocol.Chain
	for _, r := range news.Members {
		if r.Chain != nil {
			chains = append(chains, r.Chain)
		}
	}
	fresh, err := d.members.Add(chains...)
	if err != nil {
		d.log.Debug("certificates told by a member", "peer", from.String(), "err", err)
	}
	conn := s.Conn()
	d.do(d.ctx, func() {
		if len(fresh) > 0 {
			d.sync()
		}
		for _, c := range fresh {
			if k := d.peers[c.Peer]; k != nil {
				k.public = true
			}
		}
		d.takeNews(from, conn, news)
	})
}

// takeNews takes up what a member tells, apart from certificates.
func (d *Discovery) takeNews(from peer.ID, conn network.Conn, news *protocol.MemberNews) {
	k := d.peers[from]
	if k == nil || !k.up {
		return // lost in between, or of a mesh that was left
	}
	if len(news.Addresses) > 0 && !conn.IsClosed() {
		d.saysItself(from, k, conn, addrsOf(news.Addresses))
		k.placed = true
		d.tellOf(from)
	}
	byShort := make(map[uint64]peer.ID, len(d.peers))
	for p := range d.peers {
		byShort[shortID(p)] = p
	}
	for _, r := range news.Members {
		p := byShort[r.Member]
		if r.Chain != nil {
			p, _ = members.Subject(r.Chain)
		}
		if d.peers[p] != nil && p != from { // what it says of itself counts as that
			d.hint(p, hearsay, "member "+k.cert.Name, reachable(addrsOf(r.Addresses), conn.RemoteMultiaddr())...)
		}
	}
	if s := news.Summary; s != nil && len(s.Members) == len(s.Serials) {
		self := shortID(d.host.ID())
		l := d.outbox.to(from)
		for i, id := range s.Members {
			if p, ok := byShort[id]; id != self && len(l.certs) < maxSummary && (!ok || d.peers[p].cert.Serial != s.Serials[i]) {
				l.certs[id] = true
				d.outbox.soon()
			}
		}
	}
	if w := news.Wants; w != nil {
		for _, id := range w.Certificates {
			if p, ok := byShort[id]; ok {
				d.outbox.to(from).records[p] = true
				d.outbox.soon()
			}
		}
		for _, id := range w.Addresses {
			p, ok := byShort[id]
			if !ok || p == from {
				continue
			}
			o := d.peers[p]
			if o.up && news.Summary == nil { // it has missed p for a while: p may not know of it, and be the one of the two that can dial
				d.outbox.to(p).records[from] = true
				d.outbox.soon()
			}
			if o.up && o.placed {
				l := d.outbox.to(from)
				if _, ok := l.records[p]; !ok {
					l.records[p] = false // without its certificate
				}
				d.outbox.soon()
				continue
			}
			if d.outbox.wants[from] == nil {
				d.outbox.wants[from] = map[peer.ID]bool{}
			}
			d.outbox.wants[from][p] = true // of members only, so that it is bounded
		}
	}
}

// readNews reads one MemberNews with its limit, memory and time reserved first.
func readNews(s network.Stream) (*protocol.MemberNews, error) {
	if err := s.SetReadDeadline(time.Now().Add(newsTimeout)); err != nil {
		return nil, err
	}
	if err := s.Scope().SetService("meshnode.members"); err != nil {
		return nil, err
	}
	return decodeNews(bufio.NewReader(s), func(n int) (func(), error) {
		return func() { s.Scope().ReleaseMemory(n) }, s.Scope().ReserveMemory(n, network.ReservationPriorityMedium)
	})
}

// decodeNews allocates no more than the limit, after reserve has agreed.
func decodeNews(r interface {
	io.Reader
	io.ByteReader
}, reserve func(n int) (release func(), err error)) (*protocol.MemberNews, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > protocol.MaxMemberNews {
		return nil, fmt.Errorf("%w: news of %d bytes, at most %d", protocol.ErrProtocol, n, protocol.MaxMemberNews)
	}
	release, err := reserve(int(n))
	if err != nil {
		return nil, err
	}
	defer release()
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	news := &protocol.MemberNews{}
	if err := protocol.CheckParts(body, news); err != nil {
		return nil, err
	}
	if err := proto.Unmarshal(body, news); err != nil {
		return nil, fmt.Errorf("%w: %v", protocol.ErrProtocol, err)
	}
	if len(news.Revocations) > maxNewsRevocations {
		return nil, fmt.Errorf("%w: news of %d revocations, at most %d", protocol.ErrProtocol, len(news.Revocations), maxNewsRevocations)
	}
	if len(news.Members) > maxRecords {
		return nil, fmt.Errorf("%w: news of %d members, at most %d", protocol.ErrProtocol, len(news.Members), maxRecords)
	}
	if s := news.Summary; len(s.GetMembers()) > maxSummary || len(news.Wants.GetCertificates())+len(news.Wants.GetAddresses()) > maxSummary {
		return nil, fmt.Errorf("%w: news about more than %d members", protocol.ErrProtocol, maxSummary)
	}
	return news, nil
}

// maxSummary bounds what is said about members in 8 bytes each: as many as certificates can be held.
const maxSummary = 4096

// maxRecords in one MemberNews: each costs up to three signatures to check (0.1 ms).
const maxRecords = 2 * MaxMembers

func addrsOf(raw [][]byte) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, b := range raw[:min(len(raw), 4*protocol.MaxMemberAddresses)] {
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			out = append(out, a)
		}
	}
	return best(out)
}
