package discovery

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// outbox is what is to be told, by member. It belongs to Run's goroutine.
type outbox struct {
	all     map[peer.ID]*letter
	wants   map[peer.ID]map[peer.ID]bool // who asked to be told of whom
	at      time.Time                    // of the next sending; zero: nothing waits
	sent    time.Time
	many    bool      // the last time it was much
	members int       // that are known
	asked   time.Time // for those that are missed
}

// letter is what one member is to be told.
type letter struct {
	greeting bool             // whose certificates are held, and whom this node misses
	renewal  bool             // its own certificate, renewed
	own      bool             // this node's addresses
	records  map[peer.ID]bool // members; true: with their certificates
	missing  map[peer.ID]bool // of whom this node wants to hear
	certs    map[uint64]bool  // of whom it wants certificates
	tries    int
}

func newOutbox() outbox {
	return outbox{all: map[peer.ID]*letter{}, wants: map[peer.ID]map[peer.ID]bool{}}
}

func (o *outbox) to(p peer.ID) *letter {
	l := o.all[p]
	if l == nil {
		l = &letter{records: map[peer.ID]bool{}, missing: map[peer.ID]bool{}, certs: map[uint64]bool{}}
		o.all[p] = l
	}
	return l
}

// soon has the letters sent.
func (o *outbox) soon() {
	if o.at.IsZero() {
		o.at = time.Now().Add(newsDelay + newsEach*time.Duration(o.members))
		if early := o.sent.Add(newsLoad); o.many && o.at.Before(early) {
			o.at = early
		}
	}
}

// again has a letter sent once more, if its receiver is still there then.
func (o *outbox) again(p peer.ID, l *letter) {
	n := o.to(p)
	n.greeting, n.renewal, n.own, n.tries = n.greeting || l.greeting, n.renewal || l.renewal, n.own || l.own, max(n.tries, l.tries)
	for q, whole := range l.records {
		n.records[q] = n.records[q] || whole
	}
	maps.Copy(n.missing, l.missing)
	maps.Copy(n.certs, l.certs)
	o.soon()
}

// drop forgets who is not connected any more.
func (o *outbox) drop(p peer.ID) {
	delete(o.all, p)
	delete(o.wants, p)
}

// newsDue sends what waits, if it is time, and returns how long it is not.
func (d *Discovery) newsDue() time.Duration {
	now := time.Now()
	o := &d.outbox
	o.members = len(d.peers)
	if now.Sub(o.asked) >= missGap {
		o.asked = now
		d.askForMissing()
	}
	wait := o.asked.Add(missGap).Sub(now)
	if o.at.IsZero() {
		return wait
	}
	if left := o.at.Sub(now); left > 0 {
		return min(left, wait)
	}
	letters := o.all
	o.all, o.at, o.sent, o.many = map[peer.ID]*letter{}, time.Time{}, now, len(o.all) > newsMany
	for to, l := range letters {
		if k := d.peers[to]; k != nil && k.up {
			d.post(to, k, l)
		}
	}
	if !o.at.IsZero() { // not all of it went into one letter
		wait = min(wait, o.at.Sub(now))
	}
	return wait
}

// post sends a letter to a connected member.
func (d *Discovery) post(to peer.ID, k *known, l *letter) {
	news := &protocol.MemberNews{}
	version := 0
	if conns := d.host.Network().ConnsToPeer(to); len(conns) > 0 {
		version = members.ConnVersion(conns[0])
	}
	if l.greeting || l.renewal {
		news.Renewed = d.members.Renew(k.cert)
	}
	if version < 2 { // it takes certificates and addresses, and asks for nothing
		if l.greeting {
			for p := range d.peers {
				l.records[p] = true
			}
		}
		for p := range l.records {
			l.records[p] = true
		}
	} else {
		if l.greeting {
			news.Summary = &protocol.MemberSummary{}
			for p, o := range d.peers {
				if o.cert.Brief {
					continue
				}
				if p != to {
					news.Summary.Members = append(news.Summary.Members, shortID(p))
					news.Summary.Serials = append(news.Summary.Serials, o.cert.Serial)
				}
				if !o.up {
					l.missing[p] = true
				}
			}
		}
		if l.greeting || l.own {
			for _, a := range d.ownAddrs(to) {
				news.Addresses = append(news.Addresses, a.Bytes())
			}
		}
		delete(l.missing, to)
		if len(l.missing) > 0 || len(l.certs) > 0 {
			news.Wants = &protocol.MemberWants{Certificates: slices.Collect(maps.Keys(l.certs))}
			for p := range l.missing {
				news.Wants.Addresses = append(news.Wants.Addresses, shortID(p))
			}
		}
	}
	size, rest := 0, map[peer.ID]bool{}
	for p, whole := range l.records {
		o := d.peers[p]
		if p == to || o == nil || o.cert.Brief {
			continue
		}
		if len(news.Members) == maxRecords || size > protocol.MaxMemberNews/2 {
			rest[p] = whole
			delete(l.records, p)
			continue
		}
		r := d.record(p, to, whole)
		size += proto.Size(r)
		news.Members = append(news.Members, r)
	}
	if len(rest) > 0 {
		d.outbox.again(to, &letter{records: rest})
	}
	if proto.Size(news) == 0 {
		return
	}
	ctx := d.ctx
	d.spawn(func() {
		ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "news for the connected"), newsTimeout)
		defer cancel()
		if err := send(ctx, d.host, to, news, d.members.Speaks()); err != nil {
			d.log.Debug("tell a member of others", "peer", to.String(), "protocol", protocol.MembersProtocol, "err", err)
			if l.tries++; l.tries < maxTells {
				d.do(d.ctx, func() { d.outbox.again(to, l) })
			}
		}
	})
}

// record is what this node tells to of p: where it was last met, and who it is.
func (d *Discovery) record(p, to peer.ID, whole bool) *protocol.MemberRecord {
	r := &protocol.MemberRecord{Member: shortID(p)}
	if whole {
		r = &protocol.MemberRecord{Chain: d.peers[p].cert.Chain()}
	}
	addrs := d.book.addrs(p)
	if conns := d.host.Network().ConnsToPeer(to); len(conns) > 0 {
		addrs = reachable(addrs, conns[0].RemoteMultiaddr())
	}
	for _, a := range addrs {
		r.Addresses = append(r.Addresses, a.Bytes())
	}
	return r
}

// ownAddrs are the addresses at which to may reach this node: those of the interfaces as they are now, and what else libp2p says of
// this node, but for addresses that it has no more.
func (d *Discovery) ownAddrs(to peer.ID) []ma.Multiaddr {
	out := slices.Clone(d.self)
	if h, ok := d.host.(*meshHost); ok {
		out = h.told.addrs(out)
	}
	for _, a := range d.host.Addrs() {
		ip, ok := addrIP(a)
		stale := ok && ma.Contains(d.past, a) && !d.nets.has(ip)
		if !stale && !ma.Contains(out, a) {
			out = append(out, a)
		}
	}
	if conns := d.host.Network().ConnsToPeer(to); len(conns) > 0 {
		out = reachable(out, conns[0].RemoteMultiaddr())
	}
	return best(out)
}

func send(ctx context.Context, h host.Host, to peer.ID, news *protocol.MemberNews, speak protocol.Versions) error {
	body, err := proto.Marshal(news)
	if err != nil {
		return err
	}
	if len(body) > protocol.MaxMemberNews {
		return fmt.Errorf("news of %d bytes: at most %d", len(body), protocol.MaxMemberNews)
	}
	s, err := h.NewStream(ctx, to, libp2pproto.ConvertFromStrings(speak.IDs(protocol.NameMembers))...)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if _, err = s.Write(append(binary.AppendUvarint(nil, uint64(len(body))), body...)); err == nil {
		err = s.CloseWrite()
	}
	if err == nil {
		// The other side closes when it has read all: of two connections one is closed just when members meet.
		if _, err = s.Read(make([]byte, 1)); err == io.EOF {
			return s.Close()
		}
	}
	s.Reset()
	return cmp.Or(err, fmt.Errorf("%w: an answer to news", protocol.ErrProtocol))
}
