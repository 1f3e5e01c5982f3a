// Package blob keeps bytes on disk under the name of their BLAKE3 hash (programs, inputs and results too large for a message) and
// moves them between nodes. The node puts and fetches, pins what unfinished jobs and unanswered results need,
// and unpins it; worker processes read the files. Which blob is fetched when and from whom is decided elsewhere, and
// libp2p is not known here: a stream is an io.ReadWriter.
//
// # On disk
//
//	<dir>/ab/cdef…    the bytes whose hash is abcdef… (64 hexadecimal digits), read-only
//	<dir>/tmp/        what is being written. What an unfinished fetch left, ID-SIZE-*, outlives the process
//	<dir>/scratch/    outputs of worker processes, to be taken (Take); emptied by the node
//
// A file is written in tmp, synced, renamed to its name, and the folder is synced: a name that is there has all its bytes, after a crash
// as well. So Put and Fetch return only with the bytes verified and on disk, which a result has to be before its task has ended.
// Always: the smallest blob is over 64 KiB, and one sync costs less than writing that.
//
// # Room
//
// The quota bounds all that the store occupies, what is being written included. When room is needed, unpinned blobs go, the least recently used
// first; pinned ones never; if nothing can go, ErrFull. The quota is a promise to the owner of the machine and not a wish: a job whose results do not
// fit waits and says so. Pins count, are in memory only, and hold from the Put or Fetch that brought the blob.
// Open evicts nothing: the node first pins again what it needs.
//
// # On the wire
//
// A request is 40 bytes: the 32 of the hash and a little-endian u64, the offset to begin at, a multiple of 64 KiB. The answer is one byte, 1: here it
// comes, 2: not here, 3: bad request, 4: cannot be read now, 5: busy, ask these or later (not on streams of ProtocolAlone). After a 5 follow a u8 count and for each other holder u8 length and its
// name. After a 1 follow the blob's size as a little-endian u64 and the slice from the offset to
// the end, in the encoding of bao with chunk groups of 64 KiB: the hashes of the tree in pre-order, between the bytes. Each group is
// checked against the hash of the blob before it is written anywhere, so a bad source is known within 64 KiB. Then the next request may come.
package blob
