package discovery

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"meshnode/discovery/members"
	"meshnode/protocol"
)

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
