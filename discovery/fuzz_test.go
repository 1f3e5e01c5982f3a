package discovery

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/miekg/dns"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"google.golang.org/protobuf/proto"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

// TestNewsOfNothing: a certificate of half a million parts, of two bytes each, is refused before they are made.
func TestNewsOfNothing(t *testing.T) {
	t.Parallel()
	part, err := proto.Marshal(&protocol.Chain{Certificates: []*protocol.Certificate{{}}})
	if err != nil {
		t.Fatal(err)
	}
	chain := bytes.Repeat(part, protocol.MaxMemberNews/len(part)-8)
	head, err := proto.Marshal(&protocol.MemberNews{Renewed: &protocol.Chain{}})
	if err != nil {
		t.Fatal(err)
	}
	body := append(binary.AppendUvarint(head[:1], uint64(len(chain))), chain...)
	msg := append(binary.AppendUvarint(nil, uint64(len(body))), body...)
	if _, err := decodeNews(bytes.NewReader(msg), func(int) (func(), error) { return func() {}, nil }); !errors.Is(err, protocol.ErrProtocol) {
		t.Errorf("%d parts are taken: %v", len(chain)/len(part), err)
	}
}

// FuzzNews: a member's bytes reserve what they take, and addresses and subjects in them are read or left out.
func FuzzNews(f *testing.F) {
	m := member(f, f.TempDir(), "m")
	for _, n := range []*protocol.MemberNews{
		{}, {Members: []*protocol.MemberRecord{{}, {Chain: m.Own().Chain(), Addresses: [][]byte{{4, 127, 0, 0, 1, 6, 0, 1}, {1}, nil}}}, Renewed: m.Own().Chain()},
	} {
		body, err := proto.Marshal(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		reserved := 0
		news, err := decodeNews(bytes.NewReader(b), func(n int) (func(), error) { reserved = n; return func() {}, nil })
		if reserved > protocol.MaxMemberNews {
			t.Errorf("%d bytes reserved", reserved)
		}
		if err != nil {
			return
		}
		for _, r := range news.Members {
			members.Subject(r.GetChain())
			if as := addrsOf(r.Addresses); len(as) > protocol.MaxMemberAddresses {
				t.Errorf("%d addresses", len(as))
			}
		}
	})
}

// FuzzGiven: any text is an address or one line of error.
func FuzzGiven(f *testing.F) {
	for _, s := range []string{"laptop:1", "[::1%lo]:2", "/ip4/1.2.3.4/tcp/5", "/dns6/x/tcp/1/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo", "/ip6zone/lo/ip6/::1/tcp/2", "::", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, err := ParseGiven(s)
		if err != nil && (strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 1000) {
			t.Errorf("%q: %q", s, err)
		}
		if err == nil && (g.Host == "" || !strings.HasPrefix(g.Network, "tcp")) {
			t.Errorf("%q: %+v", s, g)
		}
		if a, err := ParseAnnounce(s); err == nil && (!members.Dialable(a) || manet.IsIPUnspecified(a)) {
			t.Errorf("%q is announced as %s", s, a)
		}
	})
}

// FuzzLAN: what anybody on the local network can send. It is read without a panic, and what comes of it is bounded.
func FuzzLAN(f *testing.F) {
	l := newLAN("_mn-fuzz._udp", slog.New(slog.DiscardHandler))
	l.name = "me." + l.service
	for _, m := range []*dns.Msg{
		{Question: []dns.Question{{Name: l.service, Qtype: dns.TypePTR, Qclass: dns.ClassINET}}},
		{MsgHdr: dns.MsgHdr{Response: true}, Answer: []dns.RR{
			&dns.PTR{Hdr: dns.RR_Header{Name: l.service, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: 1}, Ptr: "other." + l.service},
			&dns.TXT{Hdr: dns.RR_Header{Name: "other." + l.service, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 1},
				Txt: []string{dnsaddr + "/ip4/10.0.0.1/tcp/1/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo", dnsaddr + "/", "x"}},
		}},
	} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l.faces = map[int]*lanFace{1: {}}
		l.heard = func(text []string) {
			if p, addrs := peerIn(text); len(addrs) > protocol.MaxMemberAddresses || (p == "" && len(addrs) > 0) {
				t.Errorf("%q: %v", p, addrs)
			}
		}
		l.take(heardPacket{1, b})
		l.take(heardPacket{0, b})
		if len(l.names) > 4*MaxMembers || len(l.faces[1].answers) > maxAnswers {
			t.Errorf("%d names, %d answers", len(l.names), len(l.faces[1].answers))
		}
	})
}

// still is a host that is connected to nobody, and whose streams bring answer.
type still struct {
	host.Host
	id     peer.ID
	answer []byte
}

func (s still) ID() peer.ID              { return s.id }
func (s still) Network() network.Network { return silence{} }
func (s still) NewStream(context.Context, peer.ID, ...libp2pproto.ID) (network.Stream, error) {
	return &answering{Reader: bytes.NewReader(s.answer)}, nil
}

type silence struct{ network.Network }

func (silence) Connectedness(peer.ID) network.Connectedness { return network.NotConnected }
func (silence) ConnsToPeer(peer.ID) []network.Conn          { return nil }

type answering struct {
	network.Stream
	*bytes.Reader
}

func (s *answering) Read(b []byte) (int, error) { return s.Reader.Read(b) }
func (*answering) Write(b []byte) (int, error)  { return len(b), nil }
func (*answering) SetDeadline(time.Time) error  { return nil }
func (*answering) Close() error                 { return nil }
func (*answering) Reset() error                 { return nil }

// spoken is a connection on which a member talks.
type spoken struct{ network.Conn }

func (spoken) IsClosed() bool                { return false }
func (spoken) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast("/ip4/10.0.0.9/tcp/4001") }
func (spoken) Stat() network.ConnStats       { return network.ConnStats{} }

// odd are addresses of which one can be dialled: TCP, UDP, TCP at no address, and what is none.
var odd = [][]byte{{4, 10, 0, 0, 1, 6, 15, 161}, {4, 10, 0, 0, 1, 145, 2, 15, 161}, {4, 0, 0, 0, 0, 6, 15, 161}, {1}, nil}

// listening is a Discovery that does not run, with two members: one that is connected, and one that is not.
func listening(t testing.TB) (d *Discovery, here, away peer.ID) {
	a := member(t, t.TempDir(), "a")
	d, err := New(Config{Host: still{id: a.Self()}, Members: a, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	here, away = member(t, t.TempDir(), "here").Self(), member(t, t.TempDir(), "away").Self()
	for _, p := range []peer.ID{here, away} {
		d.peers[p] = &known{cert: a.Own(), backoff: newBackoff(), up: p == here, placed: p == here}
	}
	return d, here, away
}

// FuzzTakeNews: whatever a member tells, what is kept of it is bounded, and is of members.
func FuzzTakeNews(f *testing.F) {
	d, here, away := listening(f)
	for _, n := range []*protocol.MemberNews{
		{Addresses: odd},
		{Members: []*protocol.MemberRecord{{Member: shortID(away), Addresses: odd}, {Member: shortID(here)}, {Member: 7}, {}}},
		{Summary: &protocol.MemberSummary{Members: []uint64{shortID(away), 8, 0}, Serials: []uint64{1, 2, 3}}, Wants: &protocol.MemberWants{Addresses: []uint64{shortID(away), 9}, Certificates: []uint64{shortID(here), 9}}},
		{Summary: &protocol.MemberSummary{Members: []uint64{1, 2}, Serials: []uint64{1}}},
		{Wants: &protocol.MemberWants{Addresses: []uint64{shortID(here), shortID(away)}}},
	} {
		body, err := proto.Marshal(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		news, err := decodeNews(bytes.NewReader(b), func(int) (func(), error) { return func() {}, nil })
		if err != nil {
			return
		}
		d.takeNews(here, spoken{}, news)
		if len(d.peers) != 2 {
			t.Fatalf("%d members", len(d.peers))
		}
		for p, k := range d.peers {
			if len(k.addrs) > protocol.MaxMemberAddresses || len(d.book.addrs(p)) > protocol.MaxMemberAddresses {
				t.Errorf("%d addresses, %d in the book", len(k.addrs), len(d.book.addrs(p)))
			}
			for _, h := range k.addrs {
				if _, ok := plausible(h.addr); !ok {
					t.Errorf("%s is kept", h.addr)
				}
			}
		}
		for to, l := range d.outbox.all {
			if d.peers[to] == nil || len(l.certs) > maxSummary || len(l.records) > len(d.peers) {
				t.Errorf("a letter for %q: %d certificates, %d records", to, len(l.certs), len(l.records))
			}
		}
		for who, wants := range d.outbox.wants {
			if who != here || len(wants) > len(d.peers) {
				t.Errorf("%q wants %d", who, len(wants))
			}
		}
		d.outbox = newOutbox() // as often as it is sent
	})
}

// FuzzDHT: what a member answers to a lookup is a hint of members, and nothing else.
func FuzzDHT(f *testing.F) {
	d, here, away := listening(f)
	m := &dhtpb.Message{}
	for _, p := range []peer.ID{here, away, d.host.ID(), "x"} {
		m.CloserPeers = append(m.CloserPeers, &dhtpb.Message_Peer{Id: []byte(p), Addrs: odd})
	}
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &dhtpb.Message{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		d.takeAnswer(dhtpb.PBPeersToPeerInfos(m.GetCloserPeers()), func(f func()) { f() })
		if len(d.peers) != 2 {
			t.Fatalf("%d members", len(d.peers))
		}
		for _, k := range d.peers {
			if len(k.addrs) > maxHearsay {
				t.Errorf("%d addresses", len(k.addrs))
			}
			for _, h := range k.addrs {
				if _, ok := plausible(h.addr); !ok || manet.IsIPUnspecified(h.addr) {
					t.Errorf("%s is kept", h.addr)
				}
			}
		}
	})
}

// FuzzReserve: a relay's answer is a reservation only where it says so.
func FuzzReserve(f *testing.F) {
	expire := uint64(1)
	for _, m := range []*pb.HopMessage{
		{Type: pb.HopMessage_STATUS.Enum(), Status: pb.Status_OK.Enum(), Reservation: &pb.Reservation{Expire: &expire, Addrs: [][]byte{{1}}, Voucher: []byte{1, 2}}},
		{Type: pb.HopMessage_STATUS.Enum(), Status: pb.Status_RESERVATION_REFUSED.Enum()},
		{Type: pb.HopMessage_RESERVE.Enum()},
	} {
		body, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(binary.AppendUvarint(nil, uint64(len(body))), body...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if reserveAt(t.Context(), still{id: "me", answer: b}, "relay") != nil {
			return
		}
		n, used := binary.Uvarint(b)
		m := &pb.HopMessage{}
		if used <= 0 || n > uint64(len(b)-used) || proto.Unmarshal(b[used:used+int(n)], m) != nil || m.GetStatus() != pb.Status_OK || m.Reservation == nil {
			t.Errorf("%x is a reservation", b)
		}
	})
}

// FuzzBook: an address book of any bytes is read as far as it is one, and written as it was read.
func FuzzBook(f *testing.F) {
	f.Add([]byte(`{"12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo": {"addresses": ["/ip4/10.0.0.1/tcp/1", "", "/"], "last_seen": "2026-01-01T00:00:00Z", "relays": true}, "x": null}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo": null}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, bookFile), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := openBook(dir)
		if err != nil {
			return
		}
		b.dirty = true
		if err := b.save(func(peer.ID) bool { return true }); err != nil {
			t.Fatal(err)
		}
		again, err := openBook(dir)
		if err != nil || len(again.peers) != len(b.peers) {
			t.Fatalf("%d peers were %d: %v", len(again.peers), len(b.peers), err)
		}
		for p := range b.peers {
			if as := b.addrs(p); len(as) > protocol.MaxMemberAddresses || !slices.EqualFunc(as, again.addrs(p), ma.Multiaddr.Equal) {
				t.Errorf("%v were %v", again.addrs(p), as)
			}
		}
	})
}
