package members

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	mss "github.com/multiformats/go-multistream"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

// What follows is version 1 of the admission as its programs speak it, message by message, with no field that came later: it must not
// change when the program does.

const oldAdmission = "/meshnode/tls/1"

// oldMessage is a message with one field, number 1: a chain. Admission, AdmissionReply and AdmissionDone begin so, and need no more.
func oldMessage(chain *protocol.Chain) []byte {
	var body []byte
	if chain != nil {
		b, err := proto.Marshal(chain)
		if err != nil {
			panic(err)
		}
		body = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b)
	}
	return append(protowire.AppendVarint(nil, uint64(len(body))), body...)
}

// oldRead reads one message and returns its fields by number.
func oldRead(r io.Reader) (map[protowire.Number][]byte, error) {
	br := byteReader{r}
	n, err := binaryUvarint(br)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	fields := map[protowire.Number][]byte{}
	for len(b) > 0 {
		num, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return nil, protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(num, typ, b[tag:])
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		fields[num] = b[tag : tag+size]
		b = b[tag+size:]
	}
	return fields, nil
}

func binaryUvarint(r io.ByteReader) (n uint64, err error) {
	for shift := 0; shift < 63; shift += 7 {
		c, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		if n |= uint64(c&0x7f) << shift; c < 0x80 {
			return n, nil
		}
	}
	return 0, errors.New("too long")
}

// twoMembers are members of one mesh; the second is the older one.
func twoMembers(t *testing.T) (now, old *Membership) {
	now = open(t, "", Options{Name: "now"})
	h := listen(t, now)
	old = open(t, "", Options{Name: "old"})
	join(t, old, invite(t, now, h, InviteOptions{Mine: true, Uses: 1}))
	// Somebody is revoked, of which the older one does not know, and cannot be told.
	gone := open(t, "", Options{Name: "gone"})
	join(t, gone, invite(t, now, h, InviteOptions{Mine: true, Uses: 1}))
	eventually(t, 5*time.Second, "the inviter knows who joined", func() bool { _, ok := now.Certificate(gone.Self()); return ok })
	if _, err := now.Revoke(gone.Self(), RevokeOptions{}); err != nil {
		t.Fatal(err)
	}
	return now, old
}

// An older program that dials is admitted, and nothing comes that it does not expect: the next words are libp2p's.
func TestOlderProgramDials(t *testing.T) {
	t.Parallel()
	now, old := twoMembers(t)
	h := listen(t, now)
	c, err := net.Dial("tcp", tcpAddr(t, h))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := mss.SelectProtoOrFail(oldAdmission, c); err != nil {
		t.Fatal(err)
	}
	tls, err := libp2ptls.New(oldAdmission, old.Key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	sc, err := tls.SecureOutbound(t.Context(), c, now.Self())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sc.Write(oldMessage(old.Own().Chain())); err != nil {
		t.Fatal(err)
	}
	reply, err := oldRead(sc)
	if err != nil || reply[1] == nil || reply[2] != nil { // its chain, and no denial
		t.Fatalf("reply: %v, %v", reply, err)
	}
	if _, err := sc.Write(oldMessage(nil)); err != nil {
		t.Fatal(err)
	}
	if err := mss.SelectProtoOrFail("/yamux/1.0.0", sc); err != nil {
		t.Fatalf("after the exchange: %v", err)
	}
	eventually(t, 5*time.Second, "it is a connection", func() bool {
		conns := h.Network().ConnsToPeer(old.Self())
		return len(conns) == 1 && ConnVersion(conns[0]) == 1
	})
}

// An older program that is dialled is taken, too, and gets what it expects.
func TestOlderProgramIsDialled(t *testing.T) {
	t.Parallel()
	now, old := twoMembers(t)
	h := listen(t, now)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			m := mss.NewMultistreamMuxer[string]()
			m.AddHandler(oldAdmission, nil)
			if _, _, err := m.Negotiate(c); err != nil {
				return err
			}
			tls, err := libp2ptls.New(oldAdmission, old.Key(), nil)
			if err != nil {
				return err
			}
			var sc sec.SecureConn
			if sc, err = tls.SecureInbound(t.Context(), c, ""); err != nil {
				return err
			}
			if first, err := oldRead(sc); err != nil || first[1] == nil {
				return errors.Join(err, errors.New("the first message has no chain"))
			}
			if _, err := sc.Write(oldMessage(old.Own().Chain())); err != nil {
				return err
			}
			if done, err := oldRead(sc); err != nil || done[1] != nil {
				return errors.Join(err, errors.New("it refuses"))
			}
			line, err := bufio.NewReader(sc).ReadString('\n')
			if err != nil || !strings.HasSuffix(line, "/multistream/1.0.0\n") {
				return errors.Join(err, errors.New("after the exchange came "+line))
			}
			return nil
		}()
	}()
	a, err := ma.NewMultiaddr("/ip4/127.0.0.1/tcp/" + l.Addr().String()[len("127.0.0.1:"):])
	if err != nil {
		t.Fatal(err)
	}
	dctx, cancel := context.WithTimeout(ctx(t), 10*time.Second)
	defer cancel()
	h.Connect(dctx, peer.AddrInfo{ID: old.Self(), Addrs: []ma.Multiaddr{a}}) // breaks off: no muxer is served here
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// What answers and is no meshnode is told apart from one of another version.
func TestVersionAt(t *testing.T) {
	t.Parallel()
	now := open(t, "", Options{Name: "now"})
	ahead := open(t, "", Options{Name: "ahead", Speak: protocol.Versions{7, 6}})
	var other *protocol.Incompatible
	if err := now.VersionAt(t.Context(), "tcp", tcpAddr(t, listen(t, ahead))); !errors.As(err, &other) || other.Theirs[0] != 7 || !other.Newer() {
		t.Errorf("ahead: %v", err)
	}
	if err := ahead.VersionAt(t.Context(), "tcp", tcpAddr(t, listen(t, now))); !errors.As(err, &other) || other.Theirs[0] != 2 || other.Newer() {
		t.Errorf("behind: %v", err)
	}
	if err := now.VersionAt(t.Context(), "tcp", tcpAddr(t, listen(t, open(t, "", Options{})))); err != nil {
		t.Errorf("the same: %v", err)
	}
	far := open(t, "", Options{Speak: protocol.Versions{30}})
	if err := now.VersionAt(t.Context(), "tcp", tcpAddr(t, listen(t, far))); !errors.Is(err, errNoVersion) {
		t.Errorf("far ahead: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	if err := now.VersionAt(t.Context(), "tcp", l.Addr().String()); err == nil || errors.As(err, new(*protocol.Incompatible)) {
		t.Errorf("a web server: %v", err)
	}
}
