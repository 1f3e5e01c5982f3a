package wasm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"meshnode/protocol"
)

const (
	// holdBack is how long an answer waits for others to come with it; that to an item that took so long does not wait.
	holdBack = time.Millisecond
	// maxHeld is how many bytes of answers wait.
	maxHeld = 64 << 10
	// garbage is how much is allocated between two collections, which run between tasks only: a collection has to stop all
	// of Go, and a guest in a loop does not stop.
	garbage = 16 << 20
	// headroom is what Go's heap may grow by within a task before a collection is forced all the same. Guests allocate from it only
	// in calls to the host, so they can be stopped then.
	headroom = 256 << 20
	// besides is what the process may need beside the guest's memory: Go, compiled code, input, output.
	besides = 700 << 20
)

// WorkerMain is a worker process: it serves the frames that come on stdin and answers on stdout. When stdin ends it
// ends the process, whatever is running: the node is gone. It returns, with the exit code for the process, only if
// the frames are not what they should be, and has written why to stderr. It sets the whole process up for
// running guests, so it is called once, from main, with the process's own stdin and stdout.
func WorkerMain(stdin io.Reader, stdout, stderr io.Writer) int {
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))) // one runs the guest, another reads stdin and sees its end
	setUp()
	w := &worker{
		out:      &answers{w: stdout, now: make(chan struct{}, 1)},
		engine:   newEngine(stderr),
		programs: make(map[uint64]*program),
		withdraw: make(map[uint64]bool),
	}
	w.out.timer = time.AfterFunc(time.Hour, w.out.flush)
	w.out.timer.Stop()
	go w.out.serve()
	frames := make(chan []frame, 1)
	var broken error
	go func() {
		defer close(frames)
		broken = w.read(stdin, frames)
	}()
	for batch := range frames {
		for _, f := range batch {
			if err := w.handle(f); err != nil {
				fmt.Fprintln(stderr, err)
				return 1
			}
		}
		if len(frames) == 0 {
			w.out.flush()
			w.collect()
		}
	}
	fmt.Fprintln(stderr, broken)
	return 1
}

// worker belongs to the goroutine of WorkerMain, but for withdraw and out.
type worker struct {
	out      *answers
	engine   *engine
	programs map[uint64]*program
	current  *program // the only one that may hold an instance
	outcome  protocol.WorkerOutcome
	sampled  uint64 // bytes allocated, ever, at the last collection

	mu       sync.Mutex // guards withdraw
	withdraw map[uint64]bool
}

// frame is a frame from the node. The body is the receiver's.
type frame struct {
	kind protocol.LocalType
	id   uint64
	body []byte
}

// read sends frames to out, all those together that came together. It ends the process at the end of r.
func (w *worker) read(r io.Reader, out chan<- []frame) error {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		kind, id, body, err := protocol.ReadLocal(br, protocol.MaxLocal)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			os.Exit(0)
		}
		if err != nil {
			return fmt.Errorf("standard input: %w (a worker process is started by its node, not by hand)", err)
		}
		batch := w.sort(nil, frame{kind, id, body})
		if here, _ := br.Peek(br.Buffered()); len(here) > 0 {
			n := 0
			for len(here)-n >= 13 {
				size := uint64(binary.LittleEndian.Uint32(here[n:]))
				if size < 9 || size > uint64(len(here)-n-4) {
					break
				}
				n += 4 + int(size)
			}
			whole := bytes.Clone(here[:n])
			br.Discard(n)
			for len(whole) > 0 {
				size := 4 + int(binary.LittleEndian.Uint32(whole))
				batch = w.sort(batch, frame{protocol.LocalType(whole[4]), binary.LittleEndian.Uint64(whole[5:]), whole[13:size:size]})
				whole = whole[size:]
			}
		}
		if len(batch) > 0 {
			out <- batch
		}
	}
}

// sort adds f to batch, unless it overtakes what is there.
func (w *worker) sort(batch []frame, f frame) []frame {
	if f.kind != protocol.WorkerSkip {
		return append(batch, f)
	}
	w.mu.Lock()
	w.withdraw[f.id] = true
	w.mu.Unlock()
	return batch
}

// withdrawn reports whether the node wants item id no more. Items come in the order of their ids.
func (w *worker) withdrawn(id uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.withdraw) == 0 {
		return false
	}
	yes := w.withdraw[id]
	for i := range w.withdraw {
		if i <= id {
			delete(w.withdraw, i)
		}
	}
	return yes
}

func (w *worker) handle(f frame) error {
	switch f.kind {
	case protocol.WorkerLoad:
		var spec protocol.WorkerProgram
		if err := json.Unmarshal(f.body, &spec); err != nil {
			return fmt.Errorf("program %d: %w", f.id, err)
		}
		w.load(f.id, spec)
	case protocol.WorkerRest:
		if p := w.programs[f.id]; p != nil {
			p.rest()
		}
	case protocol.WorkerUnload:
		if p := w.programs[f.id]; p != nil {
			p.close()
			delete(w.programs, f.id)
		}
	case protocol.WorkerRun, protocol.WorkerRunFile:
		return w.run(f)
	case protocol.WorkerRunFiles:
		w.out.add(func(b []byte) []byte {
			return protocol.AppendWorkerDone(b, f.id, &protocol.WorkerOutcome{Status: protocol.Status_FAILED, ExitCode: 125,
				Error: []byte("a wasm module cannot read blobs: give it the bytes as its input, up to 16 MiB")})
		})
	default:
		return fmt.Errorf("frame of type %#x from the node", byte(f.kind))
	}
	return nil
}

// load compiles a program, or finds it in the cache.
func (w *worker) load(id uint64, spec protocol.WorkerProgram) {
	w.out.flush() // this may take long
	if w.current != nil {
		w.current.rest()
		w.current = nil
	}
	limitMemory(spec.MemoryBytes + besides)
	debug.SetGCPercent(100) // no guest runs now
	p, failure := w.engine.load(spec)
	debug.SetGCPercent(-1)
	w.collectNow()
	kind, answer := protocol.WorkerLoaded, any(struct{}{})
	if p == nil {
		kind, answer = protocol.WorkerLoadFailed, failure
	} else {
		if old := w.programs[id]; old != nil {
			old.close()
		}
		w.programs[id] = p
	}
	body, err := json.Marshal(answer)
	if err != nil {
		panic(err) // strings
	}
	w.out.add(func(b []byte) []byte { return protocol.AppendLocal(b, kind, id, body) })
}

// run runs an item.
func (w *worker) run(f frame) error {
	if w.withdrawn(f.id) {
		w.out.add(func(b []byte) []byte { return protocol.AppendLocal(b, protocol.WorkerSkipped, f.id) })
		return nil
	}
	if len(f.body) < 12 {
		return fmt.Errorf("item of %d bytes", len(f.body))
	}
	handle, index, input := binary.LittleEndian.Uint64(f.body), binary.LittleEndian.Uint32(f.body[8:]), f.body[12:]
	p := w.programs[handle]
	if p == nil {
		return fmt.Errorf("item %d of program %d, which is not loaded", f.id, handle)
	}
	if p != w.current {
		if w.current != nil {
			w.current.rest()
		}
		w.current = p
		limitMemory(p.spec.MemoryBytes + besides)
	}
	w.outcome = protocol.WorkerOutcome{}
	began := time.Now()
	if f.kind == protocol.WorkerRunFile {
		var err error
		if input, err = os.ReadFile(string(input)); err != nil {
			return fmt.Errorf("input of item %d: %w", f.id, err)
		}
	}
	p.run(&w.outcome, index, input)
	ran := time.Since(began)
	w.outcome.RunUs = uint64(ran.Microseconds())
	done := protocol.AppendWorkerDone
	if len(w.outcome.Output) > inFile && p.spec.Scratch != "" {
		if name, err := leave(p.spec.Scratch, f.id, w.outcome.Output); err == nil { // else it goes through the pipe
			w.outcome.Output, done = []byte(name), protocol.AppendWorkerDoneFile
		}
	}
	w.out.add(func(b []byte) []byte { return done(b, f.id, &w.outcome) })
	if ran >= holdBack {
		w.out.soon() // while the next item, if there is one, begins
	}
	if ran > 50*time.Microsecond { // short ones are looked after when there is nothing to do
		w.collect()
	}
	return nil
}

// inFile is the largest output that goes through the pipe, if it can be left in a file: that is ten times as fast.
const inFile = 256 << 10

// leave leaves the output of item id in a file, whose name it returns.
func leave(dir string, id uint64, output []byte) (name string, err error) {
	name = fmt.Sprint("output-", id)
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, output, 0o600); err != nil {
		os.Remove(path)
		return "", err
	}
	return name, nil
}

// collect collects garbage if there is much.
func (w *worker) collect() {
	if allocated() > w.sampled+garbage {
		w.collectNow()
	}
}

// collectNow collects garbage, and sets the heap's limit for what may come.
func (w *worker) collectNow() {
	runtime.GC()
	w.sampled = allocated()
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	debug.SetMemoryLimit(int64(s[0].Value.Uint64()) + headroom)
}

// allocated is how many bytes the process has allocated from Go's heap, ever.
func allocated() uint64 {
	s := [1]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s[:])
	return s[0].Value.Uint64()
}

// answers collects frames to the node, so that many go out at once.
type answers struct {
	mu    sync.Mutex // guards the rest
	w     io.Writer
	buf   []byte
	timer *time.Timer // calls flush when the first frame in buf has waited for holdBack: an item may be running on and on
	now   chan struct{}
}

// serve writes when soon asks for it, for as long as the process lives: a write wakes the node, which may take the
// processor from us, and the next item need not wait for that.
func (a *answers) serve() {
	for range a.now {
		a.flush()
	}
}

// soon has what there is written by another goroutine.
func (a *answers) soon() {
	select {
	case a.now <- struct{}{}:
	default:
	}
}

func (a *answers) add(frame func([]byte) []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.buf) == 0 {
		a.timer.Reset(holdBack)
	}
	a.buf = frame(a.buf)
	if len(a.buf) > maxHeld {
		a.write()
	}
}

func (a *answers) flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.buf) > 0 {
		a.write()
	}
}

// write is called with mu held.
func (a *answers) write() {
	a.timer.Stop()
	if _, err := a.w.Write(a.buf); err != nil {
		os.Exit(0) // the node is gone
	}
	if a.buf = a.buf[:0]; cap(a.buf) > 1<<20 {
		a.buf = nil
	}
}
