package blob

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"lukechampine.com/blake3"
	"lukechampine.com/blake3/bao"

	"meshnode/protocol"
)

// Protocol is the libp2p protocol ID of the streams that Serve and Fetch speak on. On streams of ProtocolAlone, of earlier versions,
// Serve is not to say that it is busy.
const (
	Protocol      = "/meshnode/blob/2"
	ProtocolAlone = "/meshnode/blob/1"
)

const (
	// group is bao's: chunks of 1 KiB that are hashed as one, as a power of two.
	group = 6
	// slice is what is verified at once and the largest single write: small enough that a message of the scheduler
	// that shares the connection does not wait long, and the tree is only 0.1 % of the bytes.
	slice = 1024 << group
	// maxTrees bounds the trees in memory: one of the largest blob, or of many ordinary ones.
	maxTrees = 32 << 20

	requestSize = 32 + 8
)

// What an answer begins with.
const (
	answerBlob        = 1
	answerNotFound    = 2
	answerBadRequest  = 3
	answerUnavailable = 4
	answerBusy        = 5
)

// MaxHolders is how many others a busy source names at most.
const MaxHolders = 16

// BusyError says that the other side gives the blob to others now: it is to be asked for at Holders, who have it, or later.
type BusyError struct {
	Holders []string // names that both sides know nodes by, at most MaxHolders of up to 255 bytes
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("the other side is busy; %d others have it", len(e.Holders))
}

// Turn is how Serve is to answer a request. The zero Turn sends the blob, if it is here.
type Turn struct {
	Refuse  bool     // as if it were not here
	Busy    bool     // not now; Holders have it
	Holders []string // as BusyError has them
	// End, if set, is called when the answer is over. Whole: all that was asked for was sent.
	End func(whole bool)
}

func appendRequest(b []byte, id protocol.BlobID, offset uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(b, id[:]...), offset)
}

func parseRequest(b [requestSize]byte) (id protocol.BlobID, offset uint64) {
	return protocol.BlobID(b[:32]), binary.LittleEndian.Uint64(b[32:])
}

// Serve answers requests for blobs on a stream until it ends, which is no error. turn is asked how, for each; nil: all are
// answered. Deadlines are the caller's, who also closes the stream. An error is the stream's or the disk's, or wraps ErrProtocol.
func Serve(rw io.ReadWriter, s *Store, turn func(id protocol.BlobID) Turn) error {
	w := bufio.NewWriterSize(pacer{rw, s.pace}, slice)
	for {
		var req [requestSize]byte
		if _, err := io.ReadFull(rw, req[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read blob request: %w", err)
		}
		id, offset := parseRequest(req)
		var t Turn
		if turn != nil {
			t = turn(id)
		}
		sent, err := s.answer(w, id, offset, &t)
		if err == nil {
			err = w.Flush()
		}
		if t.End != nil {
			t.End(sent && err == nil)
		}
		if err != nil {
			return fmt.Errorf("serve blob %s: %w", id, err)
		}
	}
}

// answer answers a request; sent: with all that was asked for.
func (s *Store) answer(w *bufio.Writer, id protocol.BlobID, offset uint64, t *Turn) (sent bool, err error) {
	if t.Refuse {
		return false, w.WriteByte(answerNotFound)
	}
	if t.Busy {
		w.WriteByte(answerBusy) // its error, if any, comes back from the next write
		w.WriteByte(byte(len(t.Holders)))
		for _, h := range t.Holders {
			w.WriteByte(byte(len(h)))
			w.WriteString(h)
		}
		return false, nil
	}
	f, size, err := s.Open(id)
	if errors.Is(err, ErrNotFound) {
		return false, w.WriteByte(answerNotFound)
	}
	if err != nil {
		s.log.Warn("blob: cannot be served", "blob", id, "err", err)
		return false, w.WriteByte(answerUnavailable)
	}
	defer f.Close()
	if offset%slice != 0 || offset >= max(1, uint64(size)) {
		w.WriteByte(answerBadRequest)
		w.Flush()
		return false, fmt.Errorf("%w: offset %d of %d", ErrProtocol, offset, size)
	}
	tree, err := s.trees.of(id, f, size)
	if errors.Is(err, ErrCorrupt) {
		s.drop(id)
		return false, w.WriteByte(answerNotFound)
	}
	if err != nil {
		s.log.Warn("blob: cannot be served", "blob", id, "err", err)
		return false, w.WriteByte(answerUnavailable)
	}
	if _, err := f.Seek(int64(offset), io.SeekStart); err != nil {
		return false, err
	}
	w.WriteByte(answerBlob)
	return true, bao.ExtractSlice(w, f, bytes.NewReader(tree), group, offset, uint64(size)-offset)
}

// pacer asks pace before each write. The buffer before it passes on at most a slice at once.
type pacer struct {
	w    io.Writer
	pace func(n int)
}

func (p pacer) Write(b []byte) (int, error) {
	if p.pace != nil {
		p.pace(len(b))
	}
	return p.w.Write(b)
}

// trees holds the hash trees of blobs that were served lately, so that one that goes to fifty nodes is hashed once.
type trees struct {
	mu   sync.Mutex // guards list and size
	list []*tree    // least recently used first
	size int
	max  int // bytes of all, but one may be larger
}

type tree struct {
	id    protocol.BlobID
	size  int
	once  sync.Once
	bytes []byte
	err   error
}

// of returns the tree of the blob in f, computing it if need be. ErrCorrupt: f has other bytes than its name says.
func (ts *trees) of(id protocol.BlobID, f *os.File, size int64) ([]byte, error) {
	ts.mu.Lock()
	i := slices.IndexFunc(ts.list, func(t *tree) bool { return t.id == id })
	var t *tree
	if i >= 0 {
		t = ts.list[i]
		ts.list = append(slices.Delete(ts.list, i, i+1), t)
	} else {
		t = &tree{id: id, size: bao.EncodedSize(int(size), group, true)}
		ts.list = append(ts.list, t)
		ts.size += t.size
		for ts.size > ts.max && len(ts.list) > 1 {
			ts.size -= ts.list[0].size
			ts.list = slices.Delete(ts.list, 0, 1)
		}
	}
	ts.mu.Unlock()
	t.once.Do(func() {
		buf := make(writerAt, t.size)
		root, err := bao.Encode(buf, f, size, group, true)
		switch {
		case err != nil:
			t.err = fmt.Errorf("hash blob: %w", err)
		case root != id:
			t.err = ErrCorrupt
		default:
			t.bytes = buf
		}
	})
	if t.err != nil {
		ts.mu.Lock() // the next one tries anew
		if i := slices.Index(ts.list, t); i >= 0 {
			ts.list = slices.Delete(ts.list, i, i+1)
			ts.size -= t.size
		}
		ts.mu.Unlock()
	}
	return t.bytes, t.err
}

type writerAt []byte

func (w writerAt) WriteAt(p []byte, off int64) (int, error) { return copy(w[off:], p), nil }

// Fetch brings a blob here from the node at the other end of rw, verified slice by slice, and returns when it is synced
// to disk; it is pinned once for the caller (see Put). A blob that is here already is only pinned. Fetches on one stream
// may follow each other as long as none fails otherwise than with ErrNotFound or a *BusyError.
// When ctx ends, rw is reset (or closed), if it can be; deadlines on the stream are the caller's.
// ErrNotFound: the other side has none. ErrCorrupt: it sent wrong bytes, or b names a size that its bytes do not have; ask
// another one. ErrFull, ErrTooLarge: refused before anything is asked or allocated. What was verified before a stream broke is kept,
// and a later Fetch goes on there, from any source, also in a later process.
func Fetch(ctx context.Context, rw io.ReadWriter, b *protocol.Blob, s *Store) error {
	return fetch(ctx, rw, b, s, true)
}

// FetchLoose is Fetch that does not wait for the disk; see PutLoose.
func FetchLoose(ctx context.Context, rw io.ReadWriter, b *protocol.Blob, s *Store) error {
	return fetch(ctx, rw, b, s, false)
}

func fetch(ctx context.Context, rw io.ReadWriter, b *protocol.Blob, s *Store, sync bool) error {
	id, err := protocol.BlobIDFrom(b.GetId())
	if err != nil {
		return err
	}
	if err := s.fetch(ctx, rw, id, b.GetSize(), sync); err != nil {
		if cerr := ctx.Err(); cerr != nil {
			err = cerr // what the closed stream said does not matter
		}
		return fmt.Errorf("fetch blob %s: %w", id, full(err))
	}
	return nil
}

func (s *Store) fetch(ctx context.Context, rw io.ReadWriter, id protocol.BlobID, usize uint64, sync bool) error {
	if usize > MaxSize {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, usize, int64(MaxSize))
	}
	size := int64(usize)
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.have(id) {
		if sync {
			return s.Sync(id)
		}
		return nil
	}
	if size == 0 { // there is nothing to send, and in bao nothing to verify
		if id != blake3.Sum256(nil) {
			return fmt.Errorf("%w: it cannot be empty", ErrCorrupt)
		}
		_, err := s.Put(ctx, bytes.NewReader(nil))
		return err
	}

	for {
		f, have, old, err := s.begin(id, size)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { reset(rw) })
		dst := &counter{w: f, n: have}
		err = receive(rw, id, size, have, dst)
		stop()
		if err == nil && old { // of an earlier process, which may have died with its machine before all of it was on disk
			if root, herr := hash(ctx, f, size); herr != nil || root != id {
				s.log.Warn("blob: what an earlier process had fetched of it is damaged, begun anew", "blob", id, "err", herr)
				f.Close()
				os.Remove(f.Name())
				s.release(size)
				if herr != nil {
					return herr
				}
				continue // the stream is good
			}
		}
		if err == nil {
			return s.install(f, id, size, sync)
		}
		// Whole slices are verified and worth keeping, unless it is the source or the disk that failed.
		if cerr := f.Close(); cerr == nil && dst.err == nil && dst.n > 0 && dst.n < size && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrProtocol) {
			s.release(size - dst.n)
			s.keepPartial(&partial{id: id, size: size, file: f.Name(), have: dst.n, old: old})
			return err
		}
		os.Remove(f.Name())
		s.release(size)
		return err
	}
}

// begin opens a file for the blob, with what an earlier fetch left (of an earlier process: old), and reserves the room for all of it.
func (s *Store) begin(id protocol.BlobID, size int64) (f *os.File, have int64, old bool, err error) {
	if p := s.takePartial(id, size); p != nil {
		f, err = os.OpenFile(p.file, os.O_RDWR, 0)
		if err == nil {
			_, err = f.Seek(p.have, io.SeekStart)
		}
		if err == nil {
			err = s.reserve(size - p.have)
		}
		if err == nil {
			return f, p.have, p.old, nil
		}
		if f != nil {
			f.Close()
		}
		os.Remove(p.file)
		s.release(p.have)
		return nil, 0, false, err
	}
	if err := s.reserve(size); err != nil {
		return nil, 0, false, err
	}
	if f, err = os.CreateTemp(filepath.Join(s.dir, "tmp"), partialName(id, size)); err != nil {
		s.release(size)
		return nil, 0, false, err
	}
	return f, 0, false, nil
}

// receive asks for the bytes from have on and writes those that are verified, slice by slice.
func receive(rw io.ReadWriter, id protocol.BlobID, size, have int64, dst *counter) error {
	if _, err := rw.Write(appendRequest(nil, id, uint64(have))); err != nil {
		return err
	}
	var head [1 + 8]byte
	if err := readFull(rw, head[:1]); err != nil {
		return err
	}
	switch head[0] {
	case answerBlob:
	case answerNotFound:
		return ErrNotFound
	case answerBusy:
		return readBusy(rw)
	case answerBadRequest, answerUnavailable:
		return fmt.Errorf("the other side cannot: answer %d", head[0])
	default:
		return fmt.Errorf("%w: answer %d", ErrProtocol, head[0])
	}
	if err := readFull(rw, head[1:]); err != nil {
		return err
	}
	if n := binary.LittleEndian.Uint64(head[1:]); n != uint64(size) {
		return fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, n, size)
	}
	ok, err := bao.DecodeSlice(dst, io.MultiReader(bytes.NewReader(head[1:]), rw), group, uint64(have), uint64(size-have), id)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && !ok {
		err = fmt.Errorf("%w: after %d bytes", ErrCorrupt, dst.n)
	}
	return err
}

// readBusy reads what follows an answerBusy.
func readBusy(r io.Reader) error {
	var n [1]byte
	if err := readFull(r, n[:]); err != nil {
		return err
	}
	if n[0] > MaxHolders {
		return fmt.Errorf("%w: %d holders", ErrProtocol, n[0])
	}
	busy := &BusyError{Holders: make([]string, n[0])}
	for i := range busy.Holders {
		if err := readFull(r, n[:]); err != nil {
			return err
		}
		name := make([]byte, n[0])
		if err := readFull(r, name); err != nil {
			return err
		}
		busy.Holders[i] = string(name)
	}
	return busy
}

func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// counter counts what was written.
type counter struct {
	w   io.Writer
	n   int64
	err error
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.err = err
	return n, err
}

// reset ends a stream in both directions: Close of a libp2p stream would end only one.
func reset(rw io.ReadWriter) {
	switch rw := rw.(type) {
	case interface{ Reset() error }:
		rw.Reset()
	case io.Closer:
		rw.Close()
	}
}
