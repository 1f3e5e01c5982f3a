package blob

import (
	"context"
	"io"

	"meshnode/protocol"
)

// Serve answers requests for blobs on a stream until it ends, which is no error. allow is asked for each; what it
// refuses is answered as if it were not here; nil allows all. Deadlines are the caller's, who also closes the stream.
// An error is the stream's, or wraps ErrProtocol.
func Serve(rw io.ReadWriter, s *Store, allow func(id protocol.BlobID) bool) error { return nil }

// Fetch brings a blob here from the node at the other end of rw, verified slice by slice, and returns when it is synced
// to disk; it is pinned once for the caller (see Put). A blob that is here already is only pinned. Fetches on one stream
// may follow each other as long as none fails otherwise than with ErrNotFound.
// When ctx ends, rw is reset (or closed), if it can be; deadlines on the stream are the caller's.
// ErrNotFound: the other side has none. ErrCorrupt: it sent wrong bytes; ask another one. ErrFull, ErrTooLarge:
// refused before it is asked. What was verified before a stream broke is kept, and a later Fetch in this process goes on there.
func Fetch(ctx context.Context, rw io.ReadWriter, b *protocol.Blob, s *Store) error {
	return ErrNotFound
}
