package protocol

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
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
	u16 := func(v uint16) []byte { return le.AppendUint16(nil, v) }
	job := seq(0x10, 16)
	object := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // these types always marshal
		}
		return b
	}
	return []localSample{
		{"worker-load", WorkerLoad, 1, object(WorkerProgram{
			Path: "/tmp/p", Name: "primes", Args: []string{"-n", "{}"}, ClockReal: true, MemoryBytes: 64 << 20, OutputBytes: MaxOutput, LogBytes: MaxLog,
		})},
		{"worker-run", WorkerRun, 2, join(u64(1), u32(41), []byte("1000000"))},
		{"worker-run-empty", WorkerRun, 3, join(u64(1), u32(42))},
		{"worker-unload", WorkerUnload, 1, nil},
		{"worker-run-file", WorkerRunFile, 4, join(u64(1), u32(43), []byte("/tmp/münchen"))},
		{"worker-run-files", WorkerRunFiles, 5, join(u64(1), u32(44), []byte{0}, u16(2), u16(6), []byte("/tmp/a"), u16(9), []byte("/tmp/ünb"), []byte("C\x01"))},
		{"worker-run-files-input", WorkerRunFiles, 6, join(u64(1), u32(45), []byte{1}, u16(2), u16(6), []byte("/tmp/a"), u16(6), []byte("/tmp/i"))},
		{"worker-skip", WorkerSkip, 4, nil},
		{"worker-rest", WorkerRest, 7, nil},
		{"worker-loaded", WorkerLoaded, 1, []byte(`{}`)},
		{"worker-load-failed", WorkerLoadFailed, 1, object(WorkerFailure{Invalid: "no module"})},
		{"worker-load-unable", WorkerLoadFailed, 1, object(WorkerFailure{Unable: "no memory"})},
		{"worker-skipped", WorkerSkipped, 4, nil},
		{"worker-done", WorkerDone, 2, join([]byte{byte(Status_OK)}, u32(0), u64(1500), u32(10), u32(4), u32(0), []byte("454396537\n"), []byte("log\n"))},
		{"worker-done-file", WorkerDoneFile, 6, join([]byte{byte(Status_OK)}, u32(0), u64(1500), u32(5), u32(4), u32(0), []byte("out-1"), []byte("log\n"))},
		{"worker-done-failed", WorkerDone, 3, join([]byte{byte(Status_FAILED)}, u32(1<<32-1), u64(20), u32(0), u32(0), u32(12), []byte("exit code -1"))},
		{"control-open", ControlOpen, 7, []byte(
			`{"job":"101112131415161718191a1b1c1d1e1f","name":"primes","runtime":"wasm",` +
				`"code":"202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f","args":["{}"],"clock_real":false,` +
				`"timeout_us":1000000,"memory":0,"max_parallel":0,"detached":true}`)},
		{"control-add", ControlAdd, 8, join(job, u32(0), u32(3), u32(7), []byte("1000000"), u32(0), u32(1), []byte("x"))},
		{"control-add-blobs", ControlAddBlobs, 8, join(job, u32(3), u32(2), u16(2), seq(0x20, 32), seq(0x40, 32), u32(2), []byte("C\x01"), u16(0), u32(1), []byte("x"))},
		{"control-close", ControlClose, 9, join(job, u32(3))},
		{"control-watch", ControlWatch, 10, join(job, u64(2), []byte{0})},
		{"control-watch-flags", ControlWatch, 12, join(job, u64(0), []byte{WatchInputs | WatchNow | WatchBlobs})},
		{"control-cancel", ControlCancel, 11, join(job, u32(2))},
		{"control-cancel-job", ControlCancel, 1<<64 - 1, join(job, u32(1<<32-1))},
		{"control-ok", ControlOK, 7, nil},
		{"control-error", ControlError, 8, []byte(`{"code":"no_job","message":"no such job","fix":"meshnode jobs"}`)},
		{"control-results", ControlResults, 10, join(u32(2), u16(1), u16(9), []byte("12D3KooWx"), u16(3), []byte("lab"),
			u32(2), u32(5), []byte{byte(Status_OK), 0}, u16(0), u32(0), u32(1), u64(20), u64(1500), u32(0), u32(10), u32(4), u32(7), []byte("454396537\n"), []byte("log\n"), []byte("1000000"),
			u32(3), u32(6), []byte{byte(Status_CANCELLED), 1}, u16(1<<16-1), u32(0), u32(0), u64(0), u64(0), u32(9), u32(0), u32(0), u32(0), []byte("cancelled"),
		)},
		{"control-results-blob", ControlResults, 10, join(u32(1), u16(0),
			u32(4), u32(7), []byte{byte(Status_OK), 2}, u16(1<<16-1), u32(0), u32(1), u64(20), u64(1500), u32(0), u32(40), u32(4), u32(0), seq(0x20, 32), u64(5<<20), []byte("log\n"),
		)},
		{"control-end", ControlEnd, 10, []byte(`{"state":"done"}`)},
	}
}

func TestWorkerDone(t *testing.T) {
	t.Parallel()
	found := 0
	for _, s := range localSamples() {
		if s.t != WorkerDone && s.t != WorkerDoneFile {
			continue
		}
		found++
		again := AppendWorkerDone
		if s.t == WorkerDoneFile {
			again = AppendWorkerDoneFile
		}
		o, err := ParseWorkerDone(s.body)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if got, want := again(nil, s.id, &o), AppendLocal(nil, s.t, s.id, s.body); !bytes.Equal(got, want) {
			t.Errorf("%s: %x became %x", s.name, want, got)
		}
		for n := range s.body {
			if _, err := ParseWorkerDone(s.body[:n]); !errors.Is(err, ErrProtocol) {
				t.Errorf("%s cut to %d bytes: %v, want ErrProtocol", s.name, n, err)
			}
		}
		if _, err := ParseWorkerDone(append(bytes.Clone(s.body), 0)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s and a byte more: %v, want ErrProtocol", s.name, err)
		}
		for _, status := range []Status{Status_UNKNOWN, Status_TIMED_OUT, Status_WORKER_LOST, Status_CANCELLED, Status_INVALID + 1, 255} {
			b := bytes.Clone(s.body)
			b[0] = byte(status)
			if _, err := ParseWorkerDone(b); !errors.Is(err, ErrProtocol) {
				t.Errorf("%s with status %d: %v, want ErrProtocol", s.name, status, err)
			}
		}
	}
	if found != 3 {
		t.Fatalf("%d samples of WorkerDone and WorkerDoneFile", found)
	}
	first := localSamples()[0]
	var p WorkerProgram
	if err := json.Unmarshal(first.body, &p); err != nil || p.Path != "/tmp/p" || len(p.Args) != 2 || !p.ClockReal || p.OutputBytes != MaxOutput {
		t.Errorf("%s reads as %+v, %v", first.name, p, err)
	}
}

func TestWorkerRunFiles(t *testing.T) {
	t.Parallel()
	found := 0
	for _, s := range localSamples() {
		if s.t != WorkerRunFiles {
			continue
		}
		found++
		f, err := ParseWorkerRunFiles(s.body)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if got, want := AppendWorkerRunFiles(nil, s.id, &f), AppendLocal(nil, s.t, s.id, s.body); !bytes.Equal(got, want) {
			t.Errorf("%s: %x became %x", s.name, want, got)
		}
		for n := range len(s.body) - len(f.Input) {
			if _, err := ParseWorkerRunFiles(s.body[:n]); !errors.Is(err, ErrProtocol) {
				t.Errorf("%s cut to %d bytes: %v, want ErrProtocol", s.name, n, err)
			}
		}
		for at, to := range map[int]byte{12: 2, 13: 66, 14: 1} { // flags, number of paths
			b := bytes.Clone(s.body)
			b[at] = to
			if _, err := ParseWorkerRunFiles(b); !errors.Is(err, ErrProtocol) {
				t.Errorf("%s with %d at %d: %v, want ErrProtocol", s.name, to, at, err)
			}
		}
		if f.InputPath == "/tmp/i" {
			if _, err := ParseWorkerRunFiles(append(bytes.Clone(s.body), 0)); !errors.Is(err, ErrProtocol) {
				t.Errorf("%s and a byte of input more: %v, want ErrProtocol", s.name, err)
			}
		}
	}
	if found != 2 {
		t.Fatalf("%d samples of WorkerRunFiles", found)
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
