// Package protocol is what meshnode's processes say to each other: IDs, messages, frames and their
// limits. It holds no policy, and knows neither libp2p nor files. Three conversations use it:
//
//   - node to node: the messages of peer.proto, in frames of kind + varint length + protobuf (this file);
//   - node to its worker processes, and clients to their node: local frames (local.go);
//   - admission to a mesh and its certificates: members.proto.
//
// All durations in messages are durations, in the unit that the field's name ends with.
package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// PeerProtocol is the libp2p protocol ID of the stream that carries this file's frames, in the newest version: see Versions.
const PeerProtocol = "/meshnode/peer/2"

// Limits of what one node takes from another. A frame over its limit closes the stream.
const (
	// MaxControl is enough for any message but those that carry tasks, outcomes or lists of attempts.
	MaxControl = 64 << 10
	// MaxBatch bounds messages with tasks, outcomes or attempts: 16 inline payloads of the largest size,
	// or about 80,000 attempts.
	MaxBatch = 1 << 20
	// MaxInline is the largest payload carried inside a message; larger ones are blobs, because a message
	// that takes longer than a beat to send would hold the beats back.
	MaxInline = 64 << 10
	// MaxName bounds names of jobs, nodes, runtimes.
	MaxName = 256
	// MaxEpoch is more starts than there will be. A peer may say that it saw an epoch of ours, and we start
	// above it: beyond this it lies.
	MaxEpoch = 1 << 48
	// MaxTasks bounds a job.
	MaxTasks = 10_000_000
	// MaxLabels of a node.
	MaxLabels = 64
	// MaxPriority of a job, and the negative of the least.
	MaxPriority = 100
)

// maxParts bounds the messages and words nested in one frame. Batches full of the smallest attempts or outcomes hold
// about 40,000; but an empty one is two bytes on the wire and some 200 in memory, so that without this bound
// a frame of 1 MiB would take more than 100 MiB when decoded.
const (
	maxParts = 1 << 16
	minPart  = 2 // bytes of a part: its tag and its length
)

// Message is one of the pointer types of peer.proto that kindOf lists.
type Message interface{ proto.Message }

// Kind is the first byte of a frame between nodes.
type Kind byte

// The kinds. Numbers are for ever; a retired one is not used again.
const (
	KindHello Kind = iota + 1
	KindBeat
	KindLoad
	KindJobInfo
	KindStealRequest
	KindGrant
	KindRecall
	KindGiveBack
	KindResult
	KindResultAnswer
	KindRevoke
	KindCancel
	KindBye
	KindMove // from version 2 on
)

// maxBody is the largest body of each kind; 0 is no such kind.
var maxBody = [...]int{
	KindHello: MaxBatch, KindBeat: MaxBatch, KindLoad: 64, KindJobInfo: MaxControl, KindStealRequest: 64,
	KindGrant: MaxBatch, KindRecall: 64, KindGiveBack: MaxBatch, KindResult: MaxBatch,
	KindResultAnswer: MaxBatch, KindRevoke: MaxBatch, KindCancel: 64, KindBye: 4 << 10,
	KindMove: 64,
}

func kindOf(m Message) Kind {
	switch m.(type) {
	case *Hello:
		return KindHello
	case *Beat:
		return KindBeat
	case *Load:
		return KindLoad
	case *JobInfo:
		return KindJobInfo
	case *StealRequest:
		return KindStealRequest
	case *Grant:
		return KindGrant
	case *Recall:
		return KindRecall
	case *GiveBack:
		return KindGiveBack
	case *Result:
		return KindResult
	case *ResultAnswer:
		return KindResultAnswer
	case *Revoke:
		return KindRevoke
	case *Cancel:
		return KindCancel
	case *Bye:
		return KindBye
	case *Move:
		return KindMove
	}
	return 0
}

func newMessage(k Kind) Message {
	switch k {
	case KindHello:
		return &Hello{}
	case KindBeat:
		return &Beat{}
	case KindLoad:
		return &Load{}
	case KindJobInfo:
		return &JobInfo{}
	case KindStealRequest:
		return &StealRequest{}
	case KindGrant:
		return &Grant{}
	case KindRecall:
		return &Recall{}
	case KindGiveBack:
		return &GiveBack{}
	case KindResult:
		return &Result{}
	case KindResultAnswer:
		return &ResultAnswer{}
	case KindRevoke:
		return &Revoke{}
	case KindCancel:
		return &Cancel{}
	case KindBye:
		return &Bye{}
	case KindMove:
		return &Move{}
	}
	return nil
}

// ErrProtocol is wrapped by every error that a peer's bytes, not the connection, cause.
var ErrProtocol = errors.New("protocol violated")

// AppendMessage appends the frame of m to b. It fails if m is no message between nodes, over its limit (the
// sender has to split it), or has a string that is not UTF-8; it then returns b as it was.
func AppendMessage(b []byte, m Message) ([]byte, error) {
	k := kindOf(m)
	if k == 0 {
		return b, fmt.Errorf("%T is no message between nodes", m)
	}
	opts := proto.MarshalOptions{UseCachedSize: true}
	n := proto.Size(m)
	if n > maxBody[k] {
		return b, fmt.Errorf("%T of %d bytes: at most %d", m, n, maxBody[k])
	}
	framed := append(b, byte(k))
	framed = binary.AppendUvarint(framed, uint64(n))
	framed, err := opts.MarshalAppend(framed, m)
	if err != nil {
		return b, fmt.Errorf("%T: %w", m, err)
	}
	return framed, nil
}

// Reader is what ReadMessage needs of a stream; *bufio.Reader is one.
type Reader interface {
	io.Reader
	io.ByteReader
}

// ReadMessage reads one frame. It reads no body over the limit of the frame's kind, and takes at most
// 32 MiB while it decodes a batch, 4 MiB for other kinds. What the message holds is the caller's; fields
// that this version does not know are dropped. Errors that the peer's bytes cause wrap ErrProtocol;
// io.EOF means a stream that ended between frames.
func ReadMessage(r Reader) (Message, error) {
	kb, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	if int(kb) >= len(maxBody) || maxBody[kb] == 0 {
		return nil, fmt.Errorf("%w: unknown kind %d", ErrProtocol, kb)
	}
	n, err := readLength(r, maxBody[kb])
	if err != nil {
		return nil, fmt.Errorf("length of a frame of kind %d: %w", kb, err)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("body of a frame of kind %d: %w", kb, err)
	}
	return decodeBody(Kind(kb), body)
}

// readLength reads a varint of at most limit. Unlike binary.ReadUvarint it stops at the first byte that goes
// over it, and tells a length that is wrong from a stream that broke.
func readLength(r io.ByteReader, limit int) (int, error) {
	n := 0
	for shift := 0; ; shift += 7 {
		c, err := r.ReadByte()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		n |= int(c&0x7f) << shift
		if n > limit || shift == 28 {
			return 0, fmt.Errorf("%w: more than %d", ErrProtocol, limit)
		}
		if c < 0x80 {
			return n, nil
		}
	}
}

func decodeBody(k Kind, body []byte) (Message, error) {
	m := newMessage(k)
	if err := CheckParts(body, m); err != nil {
		return nil, fmt.Errorf("kind %d: %w", k, err)
	}
	// Unknown fields are dropped so that nobody can have us keep a megabyte of them in each outcome.
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("%w: kind %d: %v", ErrProtocol, k, err)
	}
	if err := check(m); err != nil {
		return nil, fmt.Errorf("%w: %T: %v", ErrProtocol, m, err)
	}
	return m, nil
}

// CheckParts refuses a body that is to be read into m and would take many times its size then: one of more parts than a frame may have.
func CheckParts(body []byte, m proto.Message) error {
	if len(body) <= minPart*maxParts { // it cannot have more
		return nil
	}
	n, err := countParts(body, m.ProtoReflect().Descriptor(), maxParts)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrProtocol, err)
	}
	if n > maxParts {
		return fmt.Errorf("%w: more than %d parts", ErrProtocol, maxParts)
	}
	return nil
}

// countParts counts the messages and listed strings nested in body, a message of type d, and stops above limit.
func countParts(body []byte, d protoreflect.MessageDescriptor, limit int) (int, error) {
	n := 0
	for len(body) > 0 && n <= limit {
		num, typ, tag := protowire.ConsumeTag(body)
		if tag < 0 {
			return n, protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(num, typ, body[tag:])
		if size < 0 {
			return n, protowire.ParseError(size)
		}
		if f := d.Fields().ByNumber(num); typ != protowire.BytesType || f == nil {
			// a number, or unknown and dropped
		} else if f.Message() != nil {
			part, _ := protowire.ConsumeBytes(body[tag:])
			inner, err := countParts(part, f.Message(), limit-n-1)
			if err != nil {
				return n, err
			}
			n += 1 + inner
		} else if f.Kind() == protoreflect.StringKind && f.IsList() {
			n++
		}
		body = body[tag+size:]
	}
	return n, nil
}

// check refuses what the types cannot: after it, IDs have their lengths, parallel lists match, payloads
// are within their limits. Whoever handles a message relies on this.
func check(m Message) error {
	switch m := m.(type) {
	case *Hello:
		if len(m.Name) > MaxName || len(m.NodeVersion) > MaxName || len(m.Os) > MaxName || len(m.Arch) > MaxName || len(m.Runtimes) > 64 {
			return errors.New("too long a name or list")
		}
		if m.Epoch > MaxEpoch || m.SeenEpoch > MaxEpoch {
			return fmt.Errorf("epoch %d, seen epoch %d: at most %d", m.Epoch, m.SeenEpoch, uint64(MaxEpoch))
		}
		for _, r := range m.Runtimes {
			if len(r) > MaxName {
				return errors.New("too long a runtime name")
			}
		}
		if len(m.Labels) > MaxLabels {
			return errors.New("too many labels")
		}
		for _, l := range m.Labels {
			if len(l) > MaxName {
				return errors.New("too long a label")
			}
		}
		return errors.Join(checkAttempts(m.Held), checkAttempts(m.Unanswered))
	case *Beat:
		if len(m.Paused) > MaxName {
			return errors.New("too long a reason")
		}
		return errors.Join(checkAttempts(m.Held), checkAttempts(m.Unanswered), checkAttempts(m.RunningOfYours))
	case *JobInfo:
		if err := checkJob(m.Job); err != nil {
			return err
		}
		if m.Program == nil || m.Program.Code == nil {
			return errors.New("no program")
		}
		if len(m.Name) > MaxName || len(m.Program.Runtime) > MaxName {
			return errors.New("too long a name")
		}
		if m.Priority < -MaxPriority || m.Priority > MaxPriority {
			return fmt.Errorf("priority %d", m.Priority)
		}
		_, err := BlobIDFrom(m.Program.Code.Id)
		return err
	case *Grant:
		for _, j := range m.Jobs {
			if err := checkJob(j.Job); err != nil {
				return err
			}
			for _, t := range j.Tasks {
				if len(t.Input) > MaxInline || len(t.Mac) > 32 || t.Index >= MaxTasks || t.Number > MaxTasks {
					return errors.New("input, MAC, index or number over its limit")
				}
				if err := checkBlob(t.InputBlob); err != nil {
					return err
				}
				if len(t.Blobs) > MaxTaskBlobs {
					return fmt.Errorf("%d blobs for a task", len(t.Blobs))
				}
				for _, b := range t.Blobs {
					if err := checkBlob(b); err != nil {
						return err
					}
				}
			}
		}
	case *GiveBack:
		if len(m.Reason) > 1024 {
			return errors.New("too long a reason")
		}
		if m.Why < Refusal_NONE || m.Why > Refusal_NO_SLOT {
			return fmt.Errorf("refusal %v", m.Why)
		}
		return checkAttempts(m.Attempts)
	case *Result:
		for _, o := range m.Outcomes {
			if err := checkJob(o.Job); err != nil {
				return err
			}
			if len(o.Output) > MaxInline || len(o.Log) > MaxInline || len(o.Error) > MaxInline || len(o.Mac) > 32 || o.Index >= MaxTasks {
				return errors.New("output, log, error, MAC or index over its limit")
			}
			if o.Status < Status_OK || o.Status > Status_INVALID || o.Status == Status_CANCELLED {
				return fmt.Errorf("status %v", o.Status)
			}
			if err := errors.Join(checkBlob(o.OutputBlob), checkBlob(o.LogBlob)); err != nil {
				return err
			}
		}
	case *ResultAnswer:
		return errors.Join(checkAttempts(m.Accepted), checkAttempts(m.Superseded), checkAttempts(m.Unknown))
	case *Revoke:
		return checkAttempts(m.Attempts)
	case *Cancel:
		return checkJob(m.Job)
	}
	return nil
}

func checkJob(b []byte) error {
	_, err := JobIDFrom(b)
	return err
}

func checkBlob(b *Blob) error {
	if b == nil {
		return nil
	}
	_, err := BlobIDFrom(b.Id)
	return err
}

func checkAttempts(gs []*Attempts) error {
	for _, g := range gs {
		if err := checkJob(g.Job); err != nil {
			return err
		}
		if len(g.Index) != len(g.N) {
			return fmt.Errorf("%d indices for %d attempt numbers", len(g.Index), len(g.N))
		}
		for _, i := range g.Index {
			if i >= MaxTasks {
				return fmt.Errorf("index %d", i)
			}
		}
	}
	return nil
}
