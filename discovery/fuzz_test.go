package discovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/miekg/dns"
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
