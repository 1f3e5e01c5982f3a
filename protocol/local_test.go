package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

type localSample struct {
	name string
	t    LocalType
	id   uint64
	body []byte
}

// localSamples has each type of local frame, with its body as the comments in local.go lay it out.
func localSamples() []localSample {
	le := binary.LittleEndian
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	u32 := func(v uint32) []byte { return le.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return le.AppendUint64(nil, v) }
	job := seq(0x10, 16)
	return []localSample{
		{"worker-load", WorkerLoad, 1, []byte(`{"runtime":"wasm"}`)},
		{"worker-run", WorkerRun, 2, join(u64(1), u32(41), []byte("1000000"))},
		{"worker-run-empty", WorkerRun, 3, join(u64(1), u32(42))},
		{"worker-unload", WorkerUnload, 1, nil},
		{"worker-loaded", WorkerLoaded, 1, []byte(`{}`)},
		{"worker-load-failed", WorkerLoadFailed, 1, []byte(`{"error":"no module"}`)},
		{"worker-done", WorkerDone, 2, join([]byte{byte(Status_OK)}, u32(0), u64(1500), u32(10), u32(4), u32(0), []byte("454396537\n"), []byte("log\n"))},
		{"worker-done-failed", WorkerDone, 3, join([]byte{byte(Status_FAILED)}, u32(1<<32-1), u64(20), u32(0), u32(0), u32(12), []byte("exit code -1"))},
		{"control-open", ControlOpen, 7, []byte(`{"name":"primes"}`)},
		{"control-add", ControlAdd, 8, join(job, u32(0), u32(3), u32(7), []byte("1000000"), u32(0), u32(1), []byte("x"))},
		{"control-close", ControlClose, 9, join(job, u32(3))},
		{"control-watch", ControlWatch, 10, join(job, u64(2))},
		{"control-cancel", ControlCancel, 11, join(job, u32(2))},
		{"control-cancel-job", ControlCancel, 1<<64 - 1, join(job, u32(1<<32-1))},
		{"control-ok", ControlOK, 7, nil},
		{"control-error", ControlError, 8, []byte(`{"code":"no_job","message":"no such job","fix":"meshnode jobs"}`)},
		{"control-end", ControlEnd, 10, []byte(`{"state":"done"}`)},
	}
}

func TestLocalRoundTrip(t *testing.T) {
	t.Parallel()
	var stream []byte
	for _, s := range localSamples() {
		half := len(s.body) / 2
		stream = AppendLocal(stream, s.t, s.id, s.body[:half], nil, s.body[half:])
	}
	r := bytes.NewReader(stream)
	for _, s := range localSamples() {
		typ, id, body, err := ReadLocal(r, MaxLocal)
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if typ != s.t || id != s.id || !bytes.Equal(body, s.body) {
			t.Errorf("%s: read %#x %d %q", s.name, typ, id, body)
		}
	}
	if _, _, _, err := ReadLocal(r, MaxLocal); err != io.EOF {
		t.Errorf("after the last frame: %v, want io.EOF", err)
	}
}

func TestLocalCut(t *testing.T) {
	t.Parallel()
	b := AppendLocal(nil, WorkerRun, 1, []byte("body"))
	for n := 1; n < len(b); n++ {
		if _, _, _, err := ReadLocal(bytes.NewReader(b[:n]), MaxLocal); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrProtocol) {
			t.Errorf("cut to %d of %d bytes: %v", n, len(b), err)
		}
	}
}

func TestLocalLimits(t *testing.T) {
	t.Parallel()
	const limit = 100
	for _, n := range []uint32{0, localHeader - 1, limit + 1, 1 << 31, 1<<32 - 1} {
		c := &counter{head: nil}
		h := binary.LittleEndian.AppendUint32(nil, n)
		r := io.MultiReader(bytes.NewReader(append(h, make([]byte, localHeader)...)), c)
		if _, _, _, err := ReadLocal(r, limit); !errors.Is(err, ErrProtocol) {
			t.Errorf("length %d: %v, want ErrProtocol", n, err)
		}
		if c.n > 0 {
			t.Errorf("length %d: %d bytes of the body were read", n, c.n)
		}
	}
	full := AppendLocal(nil, WorkerRun, 1, make([]byte, limit-localHeader))
	if _, _, body, err := ReadLocal(bytes.NewReader(full), limit); err != nil || len(body) != limit-localHeader {
		t.Errorf("a frame at the limit: %d bytes, %v", len(body), err)
	}
}
