package members

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	mss "github.com/multiformats/go-multistream"
	protobuf "google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	const relay, other = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo", "12D3KooWLbTBv97L6jvaLkdSRpqhCX3w7PyPDWU7kwJsKJyztAUN"
	for text, want := range map[string]string{
		"/ip4/1.2.3.4/tcp/1":                                           "direct",
		"/ip6/2001:db8::1/tcp/1":                                       "direct",
		"/dns/example.org/tcp/1":                                       "direct",
		"/p2p/" + relay + "/p2p-circuit":                               "circuit",
		"/ip4/1.2.3.4/tcp/1/p2p/" + relay + "/p2p-circuit":             "circuit",
		"/ip4/1.2.3.4/udp/1/quic-v1/p2p/" + relay + "/p2p-circuit":     "",
		"/ip4/1.2.3.4/tcp/1/ws/p2p/" + relay + "/p2p-circuit":          "",
		"/p2p/" + relay + "/p2p-circuit/p2p/" + other:                  "",
		"/p2p/" + relay + "/p2p-circuit/p2p/" + other + "/p2p-circuit": "",
		"/p2p/" + relay + "/p2p-circuit/ip4/1.2.3.4/tcp/1":             "",
		"/p2p-circuit":                    "",
		"/p2p/" + relay:                   "",
		"/ip4/1.2.3.4/tcp/1/p2p-circuit":  "",
		"/ip4/1.2.3.4/tcp/1/p2p/" + relay: "",
		"/ip4/1.2.3.4/udp/1/quic-v1":      "",
		"/unix/x":                         "",
	} {
		a := ma.StringCast(text)
		got := ""
		if Dialable(a) {
			got = "direct"
		}
		if r, ok := Circuit(a); ok {
			got += "circuit"
			if r.String() != relay || !strings.HasSuffix(text, strings.TrimPrefix(CircuitThrough(r).String(), "")) {
				t.Errorf("%s: the relay is %s", text, r)
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	if Dialable(nil) {
		t.Error("no address at all is dialable")
	}
	if _, ok := Circuit(nil); ok {
		t.Error("no address at all is a circuit")
	}
}

// streamConn is a stream as what TLS speaks over.
type streamConn struct{ network.Stream }

func (streamConn) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (streamConn) RemoteAddr() net.Addr { return &net.TCPAddr{} }

// A member that relays may pass on a stranger. It meets the same exchange as on the direct way, and less: a ticket is no good there.
func TestStrangerThroughRelay(t *testing.T) {
	t.Parallel()
	root, logs := open(t, "", Options{}), &logged{}
	inner := open(t, "", Options{Logger: logs.logger()})
	listenHere := func(m *Membership) host.Host {
		h, err := libp2p.New(libp2p.Identity(m.Key()), TransportOptions(m), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
			libp2p.EnableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		return h
	}
	relay := listenHere(root)
	ticket, err := root.Invite(InviteOptions{Mine: true, Expires: time.Hour, Uses: 1, Addrs: relay.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	join(t, inner, ticket)
	victim := listenHere(inner)
	if err := relay.Connect(ctx(t), info(victim)); err != nil {
		t.Fatal(err)
	}
	heard := events(victim)
	before := heard()
	stranger := open(t, "", Options{})
	for what, a := range map[string]*protocol.Admission{
		"a stranger's certificate": {Chain: stranger.Own().chain},
		"a ticket":                 {Join: &protocol.JoinRequest{}},
		"a code":                   {Pair: &protocol.PairStart{}},
	} {
		s, err := relay.NewStream(ctx(t), victim.ID(), proto.ProtoIDv2Stop)
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(10 * time.Second))
		m := &pb.StopMessage{Type: pb.StopMessage_CONNECT.Enum(), Peer: &pb.Peer{Id: []byte(stranger.Self())}}
		b, err := protobuf.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(append(binary.AppendUvarint(nil, uint64(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
		answer := &pb.StopMessage{}
		if err := readMsg(s, answer, 4096); err != nil || answer.GetStatus() != pb.Status_OK {
			t.Fatalf("%v, %v", answer, err)
		}
		id := libp2pproto.ID(stranger.speak.IDs(protocol.NameAdmission)[0])
		if err := mss.SelectProtoOrFail(id, s); err != nil {
			t.Fatal(err)
		}
		tls, err := libp2ptls.New(id, stranger.Key(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.SecureOutbound(ctx(t), streamConn{s}, victim.ID())
		if err != nil {
			t.Fatal(err)
		}
		if err := writeMsg(c, a); err != nil {
			t.Fatal(err)
		}
		reply, err := readReply(c)
		if err != nil || reply.Denial == protocol.Denial_ADMITTED || (a.Chain == nil && !strings.Contains(reply.Reason, "through a relay")) {
			t.Errorf("%s: %v, %v", what, reply, err)
		}
		c.Close()
	}
	if heard() != before {
		t.Error("the victim's host heard of a connection")
	}
	eventually(t, 5*time.Second, "the refusals are logged, with the relay", func() bool {
		return strings.Contains(logs.String(), "came through a relay") && strings.Contains(logs.String(), "/p2p-circuit")
	})
}
