package protocol

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Local frames run between processes of one machine and one user: a node and its worker processes
// (pipes), a client and its node (the control socket, after the upgrade). Each is, little-endian,
//
//	u32 length of what follows · u8 type · u64 id · header and raw bytes of that type
//
// docs/protocol.md has the table of types with their headers; Go and Python test the same vectors.

// LocalType is the type of a local frame.
type LocalType byte

// Node → worker process: 0x01–0x1f; worker process → node: 0x81–0x9f.
const (
	// WorkerLoad loads a program; id is its handle. Body: JSON.
	WorkerLoad LocalType = 0x01
	// WorkerRun runs an item; id is the item. Body: u64 handle, u32 index, raw input.
	WorkerRun LocalType = 0x02
	// WorkerUnload forgets a program; id is its handle. No body.
	WorkerUnload LocalType = 0x03

	// WorkerLoaded says that program id is ready. Body: JSON.
	WorkerLoaded LocalType = 0x81
	// WorkerLoadFailed says why it is not. Body: JSON.
	WorkerLoadFailed LocalType = 0x82
	// WorkerDone brings the outcome of item id. Body: u8 status, i32 exit code, u64 run time in µs,
	// u32 length of output, u32 length of log, u32 length of error, then these three.
	WorkerDone LocalType = 0x83
)

// ControlQuiet is where the ids of those frames begin that are only answered if they fail: a client that has its answer in a
// result need not be woken up twice.
const ControlQuiet = 1 << 63

// Client → node: 0x20–0x3f; node → client: 0xa0–0xbf. They follow `POST /v1/stream` with `Upgrade:
// meshnode/1` on the control socket. The client chooses the ids; each frame of it but ControlWatch is
// answered by one ControlOK or ControlError with its id, in the order of the frames, and a client need
// not wait for an answer before it sends more. A frame that breaks its layout closes the connection.
const (
	// ControlOpen opens a job; id is the request. Opening a job again changes nothing. Body: JSON
	// {"job": 32 hex digits, "name", "runtime", "code": 64 hex digits (a blob put before), "args": [words],
	// "clock_real": bool, "timeout_us", "memory": bytes, "max_parallel", "detached": bool}.
	ControlOpen LocalType = 0x20
	// ControlAdd adds tasks to a job; those that the job has already are passed over, so it may be repeated.
	// Body: 16 bytes job, u32 first index, u32 count, then for each task u32 length and its input.
	ControlAdd LocalType = 0x21
	// ControlClose says how many tasks the job has; answered when all are accepted (of a detached job:
	// and synced). Body: 16 bytes job, u32 count.
	ControlClose LocalType = 0x22
	// ControlWatch asks for results from a cursor on, and those to come: ControlResults with the watch's id,
	// then one ControlEnd or ControlError. Body: 16 bytes job, u64 cursor, u8 flags (WatchInputs, WatchNow, WatchBlobs).
	ControlWatch LocalType = 0x23
	// ControlCancel cancels a job or a task. Body: 16 bytes job, u32 index or 0xffffffff.
	ControlCancel LocalType = 0x24
	// ControlAddBlobs is ControlAdd for tasks that read blobs besides their input, which were put before. Body: 16 bytes
	// job, u32 first index, u32 count, then for each task u16 number of blobs (at most MaxTaskBlobs), 32 bytes id of each, u32
	// length and its input.
	ControlAddBlobs LocalType = 0x25
	// ControlGroup sets how many tasks of a group's jobs run at the node itself at once, from now on. Body: 16 bytes
	// group, u32 limit (0: none run here; 0xffffffff: no limit).
	ControlGroup LocalType = 0x26

	// ControlOK answers request id. No body.
	ControlOK LocalType = 0xa0
	// ControlError answers request id; 0: the client broke the protocol and is disconnected. Body: JSON
	// {"code","message","fix"}.
	ControlError LocalType = 0xa1
	// ControlResults brings results for watch id, in the order in which the tasks ended. Body: u32 count,
	// u16 number of workers, for each worker u16 length and its id, u16 length and its name; then for
	// each result
	//
	//	u32 seq · u32 index · u8 status (of job.proto) · u8 flags (bit 0: the input is left out, it is over
	//	64 KiB; bit 1: the output is left out, in its place are 32 bytes blob id and u64 size) · u16 worker (position in the list above, 0xffff: none) · i32 exit code · u32 attempts ·
	//	u64 queued µs · u64 run µs · u32 lengths of error, output, log, input · these four
	//
	// Watch again from seq + 1 of the last one read. Inputs are empty without WatchInputs.
	ControlResults LocalType = 0xa2
	// ControlEnd ends watch id: the job has ended and all its results were sent. Body: JSON, the job as
	// GET /v1/jobs/{id} has it.
	ControlEnd LocalType = 0xa3
)

// Flags of ControlWatch.
const (
	WatchInputs = 1 << 0 // each result with the input of its task
	WatchNow    = 1 << 1 // end after the results that are there now, though the job goes on
	WatchBlobs  = 1 << 2 // outputs over MaxWatchOutput are left out, for the client to get them as blobs
)

// MaxWatchOutput is the largest output that comes with its result if WatchBlobs was asked for. Those over MaxOutput never do.
const MaxWatchOutput = 1 << 20

// MaxTaskBlobs is how many blobs a task may read besides its input.
const MaxTaskBlobs = 64

// MaxLocal is the largest local frame: a task's whole output (16 MiB) and log (1 MiB) and some room.
const MaxLocal = 18 << 20

const localHeader = 1 + 8

// AppendLocal appends a frame to b. The body is given in parts, so that callers need not join them.
func AppendLocal(b []byte, t LocalType, id uint64, parts ...[]byte) []byte {
	n := localHeader
	for _, p := range parts {
		n += len(p)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = append(b, byte(t))
	b = binary.LittleEndian.AppendUint64(b, id)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// ReadLocal reads one frame of at most max bytes (as the length field counts them). The body is the
// caller's to keep. io.EOF means an end between frames; errors of the bytes themselves wrap ErrProtocol.
func ReadLocal(r io.Reader, max int) (t LocalType, id uint64, body []byte, err error) {
	var h [4 + localHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, 0, nil, err // io.EOF or ErrUnexpectedEOF
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n < localHeader || uint64(n) > uint64(max) {
		return 0, 0, nil, fmt.Errorf("%w: local frame of %d bytes, want %d to %d", ErrProtocol, n, localHeader, max)
	}
	body = make([]byte, n-localHeader)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, 0, nil, err
	}
	return LocalType(h[4]), binary.LittleEndian.Uint64(h[5:]), body, nil
}
