package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pproto "github.com/libp2p/go-libp2p/core/protocol"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/blob"
)

const (
	// maxRead bounds what is read of a blob into memory: outputs and inputs are at most 16 MiB.
	maxRead = 32 << 20
	// maxProgram bounds what is fetched as a program.
	maxProgram = 256 << 20
	// fetches from one peer run at once; more wait.
	fetches = 4
	// blobStall is how long a blob's stream may stand still.
	blobStall = 15 * time.Second
	// blobServes streams of blobs are served at once.
	blobServes = 64
)

// programs knows which programs are here for which jobs.
type programs struct {
	mu  sync.Mutex
	all map[programKey]*program
}

type programKey struct {
	origin protocol.NodeID
	job    protocol.JobID
}

type program struct {
	id      protocol.BlobID
	dropped bool
	pinned  bool
}

// fetching bounds the fetches from each peer: one that sends slowly holds up its own only.
type fetching struct {
	mu  sync.Mutex // guards all
	all map[protocol.NodeID]chan struct{}
}

func (f *fetching) of(p protocol.NodeID) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = map[protocol.NodeID]chan struct{}{}
	}
	if f.all[p] == nil {
		f.all[p] = make(chan struct{}, fetches)
	}
	return f.all[p]
}

// serveBlobs answers members that ask for blobs. Whoever knows the hash of a blob may have it: hashes travel only
// with the jobs that use them.
func (n *Node) serveBlobs() {
	slots := make(chan struct{}, blobServes)
	serve := func(s network.Stream) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			if n.seldom.OK("blob streams") {
				n.log.Warn("limit hit: blob streams", "limit", blobServes, "peer", s.Conn().RemotePeer(), "means", "some are told to come back later")
			}
			s.Reset()
			return
		}
		defer s.Close()
		var turn func(protocol.BlobID) blob.Turn
		if s.Protocol() != blob.ProtocolAlone {
			turn = func(id protocol.BlobID) blob.Turn {
				return n.gifts.turn(s.Conn().RemotePeer(), id, n.blobs.Size(id), func(p peer.ID) bool { return n.host.Network().Connectedness(p) == network.Connected })
			}
		}
		m := &metered{ReadWriter: stalling{s}, all: &n.meter.sent}
		err := blob.Serve(m, n.blobs, turn)
		n.transferred(protocol.NodeID(s.Conn().RemotePeer().String()), m.bytes, m.took)
		if err != nil {
			s.Reset()
			n.misbehaved(s, err)
		}
	}
	for _, id := range n.blobProtocols() {
		n.host.SetStreamHandler(id, serve)
	}
}

// blobProtocols are the IDs of the streams of blobs in the versions that this node speaks, the preferred one first.
func (n *Node) blobProtocols() []libp2pproto.ID {
	return libp2pproto.ConvertFromStrings(n.members.Speaks().IDs(protocol.NameBlob))
}

// stalling is a stream that may be slow, but not stand still.
type stalling struct{ network.Stream }

func (s stalling) Read(b []byte) (int, error) {
	s.SetReadDeadline(time.Now().Add(blobStall))
	return s.Stream.Read(b)
}

func (s stalling) Write(b []byte) (int, error) {
	s.SetWriteDeadline(time.Now().Add(blobStall))
	return s.Stream.Write(b)
}

// metered counts what is written, and how long that takes: a stream takes no more than the connection carries.
type metered struct {
	io.ReadWriter
	bytes uint64
	took  time.Duration
	all   *atomic.Uint64 // of all streams
}

func (m *metered) Write(b []byte) (int, error) {
	began := time.Now()
	n, err := m.ReadWriter.Write(b)
	m.bytes += uint64(n)
	m.all.Add(uint64(n))
	m.took += time.Since(began)
	return n, err
}

// meter counts the bytes of blobs between this node and others, since it was started.
type meter struct{ sent, received atomic.Uint64 }

// counted counts what is read.
type counted struct {
	stalling
	n  uint64
	to *atomic.Uint64 // counts those of all streams
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.stalling.Read(b)
	c.n += uint64(n)
	c.to.Add(uint64(n))
	return n, err
}

// transferred tells the scheduler how fast blobs go between this node and a peer.
func (n *Node) transferred(p protocol.NodeID, bytes uint64, took time.Duration) {
	if bytes > 0 {
		n.post(input{event: tasks.Transferred{Peer: p, Bytes: bytes, Took: took.Nanoseconds()}})
	}
}

// prepare fetches a job's program and has it compiled, or drops it.
func (n *Node) prepare(p tasks.Prepare) {
	key := programKey{p.Origin, protocol.JobID(p.Info.Job)}
	n.programs.mu.Lock()
	defer n.programs.mu.Unlock()
	if p.Drop {
		if pr := n.programs.all[key]; pr != nil {
			delete(n.programs.all, key)
			pr.dropped = true
			n.executor.Drop(key.origin, key.job)
			if pr.pinned {
				n.blobs.Unpin(pr.id)
			}
		}
		return
	}
	if n.programs.all[key] != nil {
		return
	}
	pr := &program{}
	n.programs.all[key] = pr
	n.tasks.Go(func() {
		code := p.Info.Program.Code
		err := n.fetch(n.ctx, p.Origin, code, maxProgram, false)
		var path string
		id, _ := protocol.BlobIDFrom(code.GetId())
		if err == nil {
			if path, err = n.blobs.Path(id); err != nil {
				n.blobs.Unpin(id)
			}
		}
		if n.fetched(key, pr, p, id, path, err) || err == nil {
			return
		}
		n.log.Warn("program not to be had", "job", key.job, "origin", key.origin, "err", err)
		n.post(input{event: tasks.Prepared{Origin: key.origin, Job: key.job, Unable: fmt.Sprintf("its program could not be fetched: %v", err)}})
	})
}

// fetched has a program compiled that is here and pinned now. True: it was dropped meanwhile, nobody waits for it.
// The lock ends with it: the loop takes it too, and must never wait for somebody who waits for the loop.
func (n *Node) fetched(key programKey, pr *program, p tasks.Prepare, id protocol.BlobID, path string, err error) (dropped bool) {
	n.programs.mu.Lock()
	defer n.programs.mu.Unlock()
	switch {
	case err != nil && !pr.dropped:
		delete(n.programs.all, key) // the next JobInfo tries again
	case err == nil && pr.dropped:
		n.blobs.Unpin(id)
	case err == nil:
		pr.id, pr.pinned = id, true
		n.executor.Prepare(key.origin, p.Info, p.Local, path)
	}
	return pr.dropped
}

// fetchResult brings the bytes of an outcome here, verified and synced.
func (n *Node) fetchResult(f tasks.Fetch) {
	n.tasks.Go(func() {
		ev := tasks.Fetched{Attempt: f.Attempt, Peer: f.Peer}
		for _, b := range f.Blobs {
			if err := n.fetch(n.ctx, f.Peer, b, f.Most, true); err != nil {
				for _, id := range ev.Blobs {
					n.blobs.Unpin(id)
				}
				ev.Blobs, ev.Err = nil, err.Error()
				break
			}
			ev.Blobs = append(ev.Blobs, protocol.BlobID(b.Id))
		}
		n.post(input{event: ev})
	})
}

// obtain brings here what tasks read.
func (n *Node) obtain(x tasks.Obtain) {
	n.tasks.Go(func() {
		ev := tasks.Obtained{Origin: x.Origin, Blob: protocol.BlobID(x.Blob.Id)}
		if err := n.fetch(n.ctx, x.Origin, x.Blob, blob.MaxSize, false); err != nil {
			n.log.Warn("what a task reads is not to be had", "blob", ev.Blob, "origin", x.Origin, "err", err)
			ev.Err = fmt.Sprintf("what it reads is not to be had: %v", err)
		}
		n.post(input{event: ev})
	})
}

// taskBlobs is how the executor sees the blob store.
type taskBlobs struct{ n *Node }

// PutBlob waits for the disk only if the result ends its task at once: one that its origin has not fetched yet is run again there.
func (t taskBlobs) PutBlob(ctx context.Context, origin protocol.NodeID, r io.Reader) (*protocol.Blob, error) {
	if origin == t.n.self {
		return t.n.blobs.Put(ctx, r)
	}
	return t.n.blobs.PutLoose(ctx, r)
}

func (t taskBlobs) TakeBlob(ctx context.Context, origin protocol.NodeID, name string) (*protocol.Blob, error) {
	return t.n.blobs.Take(ctx, name, origin == t.n.self)
}

func (t taskBlobs) OpenBlob(ctx context.Context, origin protocol.NodeID, b *protocol.Blob) (string, func(), error) {
	if err := t.n.fetch(ctx, origin, b, blob.MaxSize, false); err != nil {
		return "", nil, err
	}
	id := protocol.BlobID(b.Id)
	path, err := t.n.blobs.Path(id)
	if err != nil {
		t.n.blobs.Unpin(id)
		return "", nil, err
	}
	return path, func() { t.n.blobs.Unpin(id) }, nil
}

// readBlob reads a result's blob whole.
func (n *Node) readBlob(b *protocol.Blob) ([]byte, error) {
	id, err := protocol.BlobIDFrom(b.GetId())
	if err != nil {
		return nil, err
	}
	f, size, err := n.blobs.Open(id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxRead {
		return nil, errors.New("too large")
	}
	out := make([]byte, size)
	_, err = io.ReadFull(f, out)
	return out, err
}
