// Package blob keeps bytes on disk under the name of their BLAKE3 hash, and moves them between nodes so that no
// unverified byte is ever stored.
package blob

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"meshnode/protocol"
)

// Protocol is the libp2p protocol ID of the streams that Serve and Fetch speak on.
const Protocol = "/meshnode/blob/1"

// MaxSize is the largest blob, in bytes.
const MaxSize = 16 << 30

// Errors of this package; test with errors.Is.
var (
	// ErrNotFound: no such blob here, or at the other side.
	ErrNotFound = errors.New("blob not found")
	// ErrCorrupt: the other side sent bytes that are not the blob's; the source is at fault.
	ErrCorrupt = errors.New("blob is corrupt")
	// ErrFull: the quota, or the disk, has no room, even after all unpinned blobs are gone.
	ErrFull = errors.New("no room for the blob")
	// ErrTooLarge: larger than MaxSize.
	ErrTooLarge = errors.New("blob is too large")
	// ErrProtocol: the other side does not speak Protocol.
	ErrProtocol = errors.New("blob protocol violated")
)

// Config of a store. The zero value works.
type Config struct {
	// Quota is the most that the store occupies, in bytes, pinned blobs and unfinished ones included.
	// Default: 20 % of the disk's free space at Open plus what the store has, at most 10 GiB.
	Quota int64
	// Logger gets evictions and damaged files. Default: discards.
	Logger *slog.Logger
	// Pace, if set, is called by Serve before each chunk of n ≤ 64 KiB bytes: it may wait, to leave the connection to others.
	Pace func(n int)
}

// Info describes a stored blob.
type Info struct {
	ID   protocol.BlobID
	Size int64
	Used time.Time // last Put, Fetch, Open or Pin, to the minute
	Pins int
}

// Store is a folder of blobs. Its methods may be called concurrently.
type Store struct{}

// Open opens the store in dir, or creates it, and removes what a crash left unfinished. One process at a
// time: the data directory's lock sees to that.
func Open(dir string, c Config) (*Store, error) { return nil, ErrFull }

// Put stores what r has, and returns when it is synced to disk. The blob is pinned once for the caller, who
// calls Unpin when it is not needed any more. Storing what is there already is cheap in space. ctx is asked between reads.
// Errors: r's, ErrFull, ErrTooLarge, the disk's.
func (s *Store) Put(ctx context.Context, r io.Reader) (*protocol.Blob, error) { return nil, ErrFull }

// PutFile is Put of a file's bytes. The file is copied, for its owner may change it.
func (s *Store) PutFile(ctx context.Context, name string) (*protocol.Blob, error) {
	return nil, ErrFull
}

// Open opens a blob for reading; the caller closes it. size is in bytes. ErrNotFound if it is not here.
func (s *Store) Open(id protocol.BlobID) (f *os.File, size int64, err error) {
	return nil, 0, ErrNotFound
}

// Path is where a blob's file is, for a process that reads it; it must not write. Pin it for as long. ErrNotFound if it is not here.
func (s *Store) Path(id protocol.BlobID) (string, error) { return "", ErrNotFound }

// Has reports whether the blob is here.
func (s *Store) Has(id protocol.BlobID) bool { return false }

// Pin keeps a blob from being evicted until as many Unpins were called. Pins are this process's: after a
// start the node pins again what it needs. ErrNotFound if it is not here.
func (s *Store) Pin(id protocol.BlobID) error { return ErrNotFound }

// Unpin takes one pin back; the blob stays until its room is needed. Too many are ignored.
func (s *Store) Unpin(id protocol.BlobID) {}

// List lists the blobs in the order in which they would be evicted, pins disregarded.
func (s *Store) List() []Info { return nil }

// GC evicts unpinned blobs, least recently used first, until the store occupies no more than size bytes
// (negative: the quota), and returns the bytes freed.
func (s *Store) GC(size int64) int64 { return 0 }
