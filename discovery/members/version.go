package members

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"
	mss "github.com/multiformats/go-multistream"

	"meshnode/protocol"
)

// Two nodes meet on the version that both speak, by the ID of the security protocol, before anything else is said. Where they
// have none in common, the one that dialled asks for the versions that it does not speak itself, so as to be able to say what
// the other side speaks; the one that listens reads it in what was asked for.

// newest is how many versions beyond its own a node asks for: more releases than anybody skips.
const newest = 8

// errNoVersion says that something answers which does not speak any version of the admission protocol that this node knows of.
var errNoVersion = errors.New("what answers there is no meshnode, or one of a version that this node does not know of")

// ConnVersion is the version that a connection speaks; 0 if it is not known.
func ConnVersion(c network.Conn) int {
	return protocol.VersionOf(protocol.NameAdmission, string(c.ConnState().Security))
}

// NoCommonVersion reports whether a dial failed because the other side does not take any security protocol of this node.
func NoCommonVersion(err error) bool {
	return errors.Is(err, mss.ErrNotSupported[libp2pproto.ID]{}) || errors.Is(err, mss.ErrNotSupported[string]{})
}

// VersionAt asks who listens at an address (as Probe has it) what it speaks. It returns nil if that has a version in common with
// this node; else a *protocol.Incompatible, or what went wrong.
func (m *Membership) VersionAt(ctx context.Context, network, hostPort string) error {
	ctx, cancel := context.WithTimeout(ctx, admissionTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, hostPort)
	if err != nil {
		return err
	}
	defer c.Close()
	limitTime(ctx, c)
	_, err = mss.SelectOneOf(m.speak.IDs(protocol.NameAdmission), io.ReadWriteCloser(c))
	if errors.Is(err, mss.ErrNotSupported[string]{}) {
		return m.otherVersion(c)
	}
	return err
}

// otherVersion goes on where the other side took none of this node's versions: with the others, newest first. All are asked for at
// once, since what follows the answer is not read: the connection is of no more use.
func (m *Membership) otherVersion(c io.ReadWriter) error {
	var ask protocol.Versions
	for v := slices.Max(m.speak) + newest; v > 0; v-- {
		if !slices.Contains(m.speak, v) {
			ask = append(ask, v)
		}
	}
	var b []byte
	ids := ask.IDs(protocol.NameAdmission)
	for _, id := range ids {
		b = append(binary.AppendUvarint(b, uint64(len(id)+1)), id+"\n"...)
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	for range ids {
		token, err := mss.ReadNextToken[string](c)
		if err != nil {
			return fmt.Errorf("%w (%v)", errNoVersion, err)
		}
		if e := protocol.Incompatibility(protocol.NameAdmission, []string{token}, m.speak); e != nil {
			return e
		}
	}
	return errNoVersion
}

// asked keeps what a connection said before its security protocol was agreed on, for the case that it is not.
type asked struct {
	b []byte
}

// maxAsked bytes of it: some ten protocols.
const maxAsked = 512

func (a *asked) add(b []byte) { a.b = append(a.b, b[:min(len(b), maxAsked-len(a.b))]...) }

// incompatible says what the other side wanted to speak, if it is a meshnode without a version in common with ours.
func (a *asked) incompatible(ours protocol.Versions) *protocol.Incompatible {
	ids := strings.FieldsFunc(string(a.b), func(r rune) bool { return r == '\n' })
	for i, id := range ids { // before each is its length, in one byte
		if at := strings.Index(id, "/meshnode/"); at >= 0 {
			ids[i] = id[at:]
		}
	}
	return protocol.Incompatibility(protocol.NameAdmission, ids, ours)
}

// Visitor is a node of another version that came to this one. Who it is was not proven.
type Visitor struct {
	IP      netip.Addr
	At      time.Time
	Version *protocol.Incompatible
}

// maxVisitors that are remembered: for a person to read.
const maxVisitors = 16

// visitors are the last nodes of other versions that came here. The zero value works; it may be used concurrently.
type visitors struct {
	mu  sync.Mutex // guards all
	all []Visitor  // one for each address, the last at the end
}

func (v *visitors) add(x Visitor) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all = append(slices.DeleteFunc(v.all, func(o Visitor) bool { return o.IP == x.IP }), x)
	if len(v.all) > maxVisitors {
		v.all = slices.Delete(v.all, 0, 1)
	}
}

// Visitors are the last nodes of other versions that came to this one, up to 16, the last at the end.
func (m *Membership) Visitors() []Visitor {
	m.gate.visitors.mu.Lock()
	defer m.gate.visitors.mu.Unlock()
	return slices.Clone(m.gate.visitors.all)
}
