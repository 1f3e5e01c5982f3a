package discovery

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
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

// newsTimeout bounds the sending and the reading of one MemberNews.
const newsTimeout = 10 * time.Second

// records are what this node can tell to of other members: certificates, and where they were last met.
func (d *Discovery) records(to peer.ID) []*protocol.MemberRecord {
	var out []*protocol.MemberRecord
	for _, p := range d.order() {
		if p != to {
			out = append(out, d.record(p, to))
		}
	}
	return out
}

func (d *Discovery) record(p, to peer.ID) *protocol.MemberRecord {
	r := &protocol.MemberRecord{Chain: d.peers[p].cert.Chain()}
	addrs := d.book.addrs(p)
	if conns := d.host.Network().ConnsToPeer(to); len(conns) > 0 {
		addrs = reachable(addrs, conns[0].RemoteMultiaddr())
	}
	for _, a := range addrs {
		r.Addresses = append(r.Addresses, a.Bytes())
	}
	return r
}

// How long the announcement of a member waits for others to go along: announceWait, and announceEach for every member that is to be
// told, so that it costs this node a fraction of its time whatever comes.
const (
	announceWait = 20 * time.Millisecond
	announceEach = 2 * time.Millisecond
)

// announceSoon has everybody who is connected told of a member that was met here first: one that has just joined
// through this node, or that came with a certificate nobody had told of, or of whom nobody could say where it is. The others meet it
// themselves or hear it from here, so nothing is passed on a second time.
func (d *Discovery) announceSoon(p peer.ID) {
	d.peers[p].public = true
	d.announcing[p] = true
	if d.announceAt.IsZero() {
		d.announceAt = time.Now().Add(announceWait + announceEach*time.Duration(len(d.peers)))
	}
}

// announceDue announces what is due and returns how long there is nothing to announce.
func (d *Discovery) announceDue() time.Duration {
	if d.announceAt.IsZero() {
		return time.Hour
	}
	if left := time.Until(d.announceAt); left > 0 {
		return left
	}
	d.announceAt = time.Time{}
	for _, to := range d.order() {
		if !d.peers[to].up {
			continue
		}
		var records []*protocol.MemberRecord
		for _, p := range d.order() {
			if d.announcing[p] && p != to {
				records = append(records, d.record(p, to))
			}
		}
		if len(records) > 0 {
			d.tell(to, records)
		}
	}
	clear(d.announcing)
	return time.Hour
}

// tell sends news to a connected member, with its own certificate renewed if that is due and this node can.
func (d *Discovery) tell(to peer.ID, records []*protocol.MemberRecord) {
	news := &protocol.MemberNews{Members: records, Renewed: d.members.Renew(d.peers[to].cert)}
	if len(news.Members) == 0 && news.Renewed == nil {
		return
	}
	ctx := d.ctx
	d.spawn(func() {
		ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "news for the connected"), newsTimeout)
		defer cancel()
		if err := send(ctx, d.host, to, news, d.members.Speaks()); err != nil {
			d.log.Debug("tell a member of others", "peer", to.String(), "protocol", protocol.MembersProtocol, "err", err)
		}
	})
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
	if _, err := s.Write(append(binary.AppendUvarint(nil, uint64(len(body))), body...)); err != nil {
		s.Reset()
		return err
	}
	return s.Close()
}

// hear reads what a member tells of others. It runs in a goroutine of libp2p's.
func (d *Discovery) hear(s network.Stream) {
	from := s.Conn().RemotePeer()
	news, err := readNews(s)
	if err != nil {
		s.Reset()
		d.log.Warn("protocol violated", "peer", from.String(), "addr", s.Conn().RemoteMultiaddr().String(), "protocol", protocol.MembersProtocol, "err", err)
		return
	}
	s.Close()
	if news.Renewed != nil {
		if err := d.members.TakeRenewal(news.Renewed); err != nil {
			d.log.Warn("a renewed certificate is no good", "peer", from.String(), "err", err)
		}
	}
	chains := make([]*protocol.Chain, len(news.Members))
	for i, r := range news.Members {
		chains[i] = r.GetChain()
	}
	fresh, err := d.members.Add(chains...)
	if err != nil {
		d.log.Debug("certificates told by a member", "peer", from.String(), "err", err)
	}
	remote := s.Conn().RemoteMultiaddr()
	d.do(d.ctx, func() {
		if len(fresh) > 0 {
			d.sync()
		}
		for _, c := range fresh {
			if k := d.peers[c.Peer]; k != nil {
				k.public = true
			}
		}
		source := "member " + from.String()
		if k := d.peers[from]; k != nil {
			source = "member " + k.cert.Name
		}
		for _, r := range news.Members {
			p, err := members.Subject(r.GetChain())
			if err != nil || d.peers[p] == nil {
				continue
			}
			d.hint(p, source, reachable(addrsOf(r), remote)...)
		}
	})
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
	if err := proto.Unmarshal(body, news); err != nil {
		return nil, fmt.Errorf("%w: %v", protocol.ErrProtocol, err)
	}
	if len(news.Members) > maxRecords {
		return nil, fmt.Errorf("%w: news of %d members, at most %d", protocol.ErrProtocol, len(news.Members), maxRecords)
	}
	return news, nil
}

// maxRecords in one MemberNews: each costs up to three signatures to check (0.1 ms).
const maxRecords = 2 * MaxMembers

func addrsOf(r *protocol.MemberRecord) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, b := range r.Addresses {
		if a, err := ma.NewMultiaddrBytes(b); err == nil && dialable(a) && len(out) < protocol.MaxMemberAddresses {
			out = append(out, a)
		}
	}
	return out
}
