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

	"google.golang.org/protobuf/proto"
)

// PeerProtocol is the libp2p protocol ID of the stream that carries this file's frames. An
// incompatible change gets a new one.
const PeerProtocol = "/meshnode/peer/1"

// Version is the minor version that Hello carries.
const Version = 1

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
	// MaxTasks bounds a job.
	MaxTasks = 10_000_000
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
)

// maxBody is the largest body of each kind; 0 is no such kind.
var maxBody = [...]int{
	KindHello: MaxBatch, KindBeat: MaxBatch, KindLoad: 64, KindJobInfo: MaxControl, KindStealRequest: 64,
	KindGrant: MaxBatch, KindRecall: 64, KindGiveBack: MaxBatch, KindResult: MaxBatch,
	KindResultAnswer: MaxBatch, KindRevoke: MaxBatch, KindCancel: 64, KindBye: 4 << 10,
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
	}
	return nil
}

// ErrProtocol is wrapped by every error that a peer's bytes, not the connection, cause.
var ErrProtocol = errors.New("protocol violated")

// AppendMessage appends the frame of m to b. It fails if m is no message between nodes or over its limit;
// the sender has to split it.
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
	b = append(b, byte(k))
	b = binary.AppendUvarint(b, uint64(n))
	return opts.MarshalAppend(b, m)
}

// Reader is what ReadMessage needs of a stream; *bufio.Reader is one.
type Reader interface {
	io.Reader
	io.ByteReader
}

// ReadMessage reads one frame. It allocates no more than the limit of the frame's kind, and only after
// the header was read. Errors that the peer's bytes cause wrap ErrProtocol; io.EOF means a stream that
// ended between frames.
func ReadMessage(r Reader) (Message, error) {
	kb, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("length of a frame of kind %d: %w", kb, err)
	}
	if int(kb) >= len(maxBody) || maxBody[kb] == 0 {
		return nil, fmt.Errorf("%w: unknown kind %d", ErrProtocol, kb)
	}
	if n > uint64(maxBody[kb]) {
		return nil, fmt.Errorf("%w: kind %d of %d bytes, at most %d", ErrProtocol, kb, n, maxBody[kb])
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

func decodeBody(k Kind, body []byte) (Message, error) {
	m := newMessage(k)
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("%w: kind %d: %v", ErrProtocol, k, err)
	}
	if err := check(m); err != nil {
		return nil, fmt.Errorf("%w: %T: %v", ErrProtocol, m, err)
	}
	return m, nil
}

// check refuses what the types cannot: after it, IDs have their lengths, parallel lists match, payloads
// are within their limits. Whoever handles a message relies on this.
func check(m Message) error {
	switch m := m.(type) {
	case *Hello:
		if len(m.Name) > MaxName || len(m.NodeVersion) > MaxName || len(m.Os) > MaxName || len(m.Arch) > MaxName || len(m.Runtimes) > 64 {
			return errors.New("too long a name or list")
		}
		for _, r := range m.Runtimes {
			if len(r) > MaxName {
				return errors.New("too long a runtime name")
			}
		}
		return checkAttempts(m.Held)
	case *Beat:
		if len(m.Paused) > MaxName {
			return errors.New("too long a reason")
		}
		return errors.Join(checkAttempts(m.Held), checkAttempts(m.RunningOfYours))
	case *JobInfo:
		if err := checkJob(m.Job); err != nil {
			return err
		}
		if len(m.Name) > MaxName || m.Program == nil || m.Program.Code == nil {
			return errors.New("no program, or too long a name")
		}
		_, err := BlobIDFrom(m.Program.Code.Id)
		return err
	case *Grant:
		for _, j := range m.Jobs {
			if err := checkJob(j.Job); err != nil {
				return err
			}
			for _, t := range j.Tasks {
				if len(t.Input) > MaxInline || len(t.Mac) > 32 || t.Index >= MaxTasks {
					return errors.New("input, MAC or index over its limit")
				}
				if err := checkBlob(t.InputBlob); err != nil {
					return err
				}
			}
		}
	case *GiveBack:
		if len(m.Reason) > 1024 {
			return errors.New("too long a reason")
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
			if o.Status == Status_UNKNOWN || o.Status == Status_CANCELLED {
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
