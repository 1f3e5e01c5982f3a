package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"meshnode/protocol"
	"meshnode/tasks/blob"
)

// What clients do with blobs. A client knows no BLAKE3 perhaps, and names what it put by SHA-256: to ask whether it is here
// before it sends it again.

const (
	// putGrace is how long a blob stays that a client put, or asked for, without a job that uses it.
	putGrace = 10 * time.Minute
	// maxSums hashes are remembered, of the blobs put last.
	maxSums = 16384
)

// Blob is a blob on this node.
type Blob struct {
	ID   string    `json:"id"`
	Size int64     `json:"size"`
	Used time.Time `json:"used"`
	Pins int       `json:"pins"` // jobs, results and leases that need it
}

// BlobStore is what this node has of blobs (`blob ls --json`).
type BlobStore struct {
	Quota    int64  `json:"quota"`    // bytes
	Occupied int64  `json:"occupied"` // bytes, unfinished ones included
	Blobs    []Blob `json:"blobs"`    // the least recently used first
}

// sums names blobs by the SHA-256 of their bytes, in memory only.
type sums struct {
	mu  sync.Mutex // guards what follows
	of  map[[32]byte]protocol.BlobID
	old [][32]byte // of all, in the order in which they came
}

func (s *sums) add(sum [32]byte, id protocol.BlobID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[[32]byte]protocol.BlobID{}
	}
	if _, ok := s.of[sum]; !ok {
		if len(s.old) == maxSums {
			delete(s.of, s.old[0])
			s.old = s.old[1:]
		}
		s.old = append(s.old, sum)
	}
	s.of[sum] = id
}

func (s *sums) find(sum [32]byte) (protocol.BlobID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.of[sum]
	return id, ok
}

// leases keep blobs that clients put, or asked for, for a while: nothing else may need them yet.
type leases struct {
	mu  sync.Mutex // guards all
	all map[protocol.BlobID]*time.Timer
}

// take begins a blob's lease with a pin that it takes over, or renews it, and gives the pin back.
func (l *leases) take(s *blob.Store, id protocol.BlobID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.all[id]; t != nil && t.Reset(putGrace) {
		s.Unpin(id)
		return
	}
	if l.all == nil {
		l.all = map[protocol.BlobID]*time.Timer{}
	}
	var mine *time.Timer
	mine = time.AfterFunc(putGrace, func() {
		l.mu.Lock()
		if l.all[id] == mine {
			delete(l.all, id)
		}
		l.mu.Unlock()
		s.Unpin(id)
	})
	l.all[id] = mine
}

// renew begins or renews a blob's lease, if it is here.
func (l *leases) renew(s *blob.Store, id protocol.BlobID) {
	if s.Pin(id) == nil {
		l.take(s, id)
	}
}

// end ends a blob's lease, if it has one.
func (l *leases) end(s *blob.Store, id protocol.BlobID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.all[id]; t != nil && t.Stop() {
		delete(l.all, id)
		s.Unpin(id)
	}
}

func noBlob(name string) error {
	return &Error{Code: CodeNoBlob, Message: fmt.Sprintf("blob %s is not on this node", name), Fix: "put it first; meshnode blob ls lists those that are here"}
}

// PutBlob implements clientAPI.
func (n *Node) PutBlob(ctx context.Context, r io.Reader, sum []byte) (Blob, error) {
	if err := n.room(); err != nil {
		return Blob{}, err
	}
	hash := sha256.New()
	if len(sum) > 0 {
		r = io.TeeReader(r, hash)
	}
	b, err := n.blobs.PutLoose(ctx, r) // a job that is to outlive this machine's stop has it synced
	if err != nil {
		return Blob{}, n.putError(err)
	}
	id := protocol.BlobID(b.Id)
	if len(sum) > 0 {
		if got := hash.Sum(nil); string(got) != string(sum) {
			n.blobs.Unpin(id)
			return Blob{}, &Error{Code: CodeBadRequest, Message: fmt.Sprintf("the bytes have the SHA-256 %x, not %x", got, sum), Fix: "send them again: they were changed meanwhile"}
		}
		n.sums.add([32]byte(sum), id)
	}
	n.leases.take(n.blobs, id)
	return Blob{ID: id.String(), Size: int64(b.Size), Used: time.Now(), Pins: 1}, nil
}

// putError is for a person: what has no room because the disk has none is told as any submission is.
func (n *Node) putError(err error) error {
	if errors.Is(err, blob.ErrFull) {
		if full := n.room(); full != nil {
			return full
		}
	}
	if errors.Is(err, blob.ErrFull) || errors.Is(err, blob.ErrTooLarge) {
		return &Error{Code: CodeUnavailable, Message: err.Error(), Fix: "free some disk space below the data directory, or remove blobs that nothing needs: meshnode blob gc"}
	}
	return err
}

// findBlob is the blob that a client names by its id, or as sha256:HASH.
func (n *Node) findBlob(name string) (protocol.BlobID, error) {
	if text, ok := strings.CutPrefix(name, "sha256:"); ok {
		sum, err := hex.DecodeString(text)
		if err != nil || len(sum) != 32 {
			return protocol.BlobID{}, &Error{Code: CodeBadRequest, Message: fmt.Sprintf("%.80q is no hash: want sha256: and 64 hexadecimal digits", name)}
		}
		id, ok := n.sums.find([32]byte(sum))
		if !ok {
			return id, noBlob(name)
		}
		return id, nil
	}
	id, err := protocol.ParseBlobID(name)
	if err != nil {
		return id, &Error{Code: CodeBadRequest, Message: err.Error()}
	}
	return id, nil
}

// OpenBlob implements clientAPI.
func (n *Node) OpenBlob(ctx context.Context, name string) (io.ReadSeekCloser, Blob, error) {
	id, err := n.findBlob(name)
	if err != nil {
		return nil, Blob{}, err
	}
	f, size, err := n.blobs.Open(id)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, Blob{}, noBlob(name)
	}
	if err != nil {
		return nil, Blob{}, err
	}
	n.leases.renew(n.blobs, id)
	return f, Blob{ID: id.String(), Size: size, Used: time.Now()}, nil
}

// Blobs implements clientAPI.
func (n *Node) Blobs(ctx context.Context) (BlobStore, error) {
	st := BlobStore{Quota: n.blobs.Quota(), Occupied: n.blobs.Occupied(), Blobs: []Blob{}}
	for _, i := range n.blobs.List() {
		st.Blobs = append(st.Blobs, Blob{ID: i.ID.String(), Size: i.Size, Used: i.Used, Pins: i.Pins})
	}
	return st, nil
}

// GCBlobs implements clientAPI.
func (n *Node) GCBlobs(ctx context.Context, to int64) (freed int64, err error) {
	return n.blobs.GC(max(0, to)), nil
}

// DeleteBlob implements clientAPI.
func (n *Node) DeleteBlob(ctx context.Context, name string) error {
	id, err := n.findBlob(name)
	if err != nil {
		return err
	}
	n.leases.end(n.blobs, id)
	switch err := n.blobs.Remove(id); {
	case errors.Is(err, blob.ErrNotFound):
		return noBlob(name)
	case errors.Is(err, blob.ErrPinned):
		return &Error{Code: CodeRefused, Message: fmt.Sprintf("blob %s is needed: %v", name, err), Fix: "it goes when the jobs that use it, or whose result it is, are done or forgotten"}
	default:
		return err
	}
}
