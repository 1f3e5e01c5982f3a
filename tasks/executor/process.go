package executor

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"meshnode/protocol"
)

const (
	// writeAtOnce is less than what the pipe to a worker process holds on any system, so that much is written
	// without waiting for the worker. For more, the worker has to read, and it may do so only when it can write.
	writeAtOnce = 16 << 10
	// keptLog is how much of the end of a worker's standard error is kept, to explain its death.
	keptLog = 8 << 10
	// readBuffer is the pipe's usual capacity.
	readBuffer = 64 << 10
)

// process is a worker process. Its methods are for the one goroutine that owns it, except kill.
type process struct {
	key   processKey
	nice  bool // at the lowest priority
	cmd   *exec.Cmd
	stdin *os.File
	tree  tree // for killing it as a whole
	log   tail
	// replies brings what the process answers, as it comes, and is closed when the process and all that it
	// started are gone; dead says then why.
	replies chan []reply
	dead    string // one line: "killed by signal 9 (killed)"
	memory  bool   // it ended because the system gave it no more memory
	ended   time.Time
	loaded  []uint64
	last    *program // of the item that it was sent last
	scratch string   // its folder for large outputs, or ""

	mu      sync.Mutex // guards what follows
	later   []byte     // frames for writeLater: the slot bounds them by what it sends ahead
	writing bool       // writeLater runs, or was broken off
}

// reply is a frame from a worker process. Slices in it are the receiver's.
type reply struct {
	kind    protocol.LocalType
	id      uint64
	body    []byte                 // but for WorkerDone and WorkerDoneFile
	outcome protocol.WorkerOutcome // these
	err     error                  // the process broke the protocol: the last reply
}

// start makes a worker process for the programs of a key.
func (e *Executor) start(key processKey, w Worker) (*process, error) {
	scratch := ""
	if e.cfg.Scratch != "" {
		var err error
		if scratch, err = os.MkdirTemp(e.cfg.Scratch, "*"); err != nil {
			return nil, fmt.Errorf("start %s worker: %w", key.runtime, err)
		}
	}
	p, err := e.startIn(scratch, key, w)
	if err != nil && scratch != "" {
		os.Remove(scratch)
	}
	return p, err
}

func (e *Executor) startIn(scratch string, key processKey, w Worker) (*process, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s worker: %w", key.runtime, err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		inW.Close()
		return nil, fmt.Errorf("start %s worker: %w", key.runtime, err)
	}
	p := &process{key: key, nice: !e.cfg.Private, stdin: inW, scratch: scratch, replies: make(chan []reply, 4)}
	p.cmd = exec.Command(w.Argv[0], w.Argv[1:]...)
	p.cmd.Env = append(e.baseEnv(), w.Env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = inR, outW, &p.log
	p.cmd.WaitDelay = time.Second // for a standard error that somebody inherited and holds open
	p.log.logger = e.cfg.Logger.With("runtime", key.runtime)
	err = e.starter.start(p)
	inR.Close()
	outW.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		return nil, fmt.Errorf("start %s worker: %w", key.runtime, err)
	}
	pid := p.cmd.Process.Pid
	e.mu.Lock()
	e.pids[pid] = true
	e.mu.Unlock()
	exited := make(chan struct{})
	go func() {
		err := p.cmd.Wait()
		p.tree.kill() // what it may have started
		e.mu.Lock()
		delete(e.pids, pid)
		e.mu.Unlock()
		p.explain(err)
		close(exited)
	}()
	go func() {
		readReplies(outR, p.replies)
		p.ended = time.Now()
		p.tree.kill()
		outR.Close()
		<-exited
		p.tree.close()
		close(p.replies)
	}()
	return p, nil
}

// baseEnv is what a worker process sees of our environment: where its caches and temporary files are, and what
// the system's libraries cannot do without; or all of it.
func (e *Executor) baseEnv() []string {
	if e.cfg.Private {
		return os.Environ()
	}
	var env []string
	for _, name := range []string{"HOME", "XDG_CACHE_HOME", "TMPDIR", "MESHNODE_CACHE_DIR",
		"LOCALAPPDATA", "SYSTEMROOT", "TEMP", "TMP", "USERPROFILE"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// readReplies sends frames to out, all those together that came together, until r ends or breaks the protocol.
func readReplies(r *os.File, out chan<- []reply) {
	br := bufio.NewReaderSize(r, readBuffer)
	for {
		// One frame at least, however large; then those that are here already, in one piece of memory.
		kind, id, body, err := protocol.ReadLocal(br, protocol.MaxLocal)
		if err != nil {
			if errors.Is(err, protocol.ErrProtocol) {
				out <- []reply{{err: err}}
			}
			return
		}
		batch := append(make([]reply, 0, 1+br.Buffered()/64), parseReply(kind, id, body))
		if here, _ := br.Peek(br.Buffered()); len(here) > 0 {
			n := wholeFrames(here)
			frames := bytes.Clone(here[:n])
			br.Discard(n)
			for len(frames) > 0 {
				size := 4 + int(binary.LittleEndian.Uint32(frames))
				batch = append(batch, parseReply(protocol.LocalType(frames[4]), binary.LittleEndian.Uint64(frames[5:]), frames[13:size:size]))
				frames = frames[size:]
			}
		}
		out <- batch
	}
}

// wholeFrames is the length of the frames at the start of b that are complete. A frame that is malformed is not: it
// is left to ReadLocal.
func wholeFrames(b []byte) int {
	n := 0
	for len(b)-n >= 13 {
		size := uint64(binary.LittleEndian.Uint32(b[n:]))
		if size < 9 || uint64(n)+4+size > uint64(len(b)) {
			break
		}
		n += 4 + int(size)
	}
	return n
}

func parseReply(kind protocol.LocalType, id uint64, body []byte) reply {
	r := reply{kind: kind, id: id, body: body}
	switch kind {
	case protocol.WorkerDone, protocol.WorkerDoneFile:
		r.body = nil
		r.outcome, r.err = protocol.ParseWorkerDone(body)
	case protocol.WorkerSkipped, protocol.WorkerLoaded, protocol.WorkerLoadFailed:
	default:
		r.err = fmt.Errorf("%w: frame of type %#x from a worker process", protocol.ErrProtocol, byte(kind))
	}
	return r
}

// write sends frames, and does not wait for the worker: that may itself wait for us to take its answers. Unread is at least what it
// was sent and has not read, frames included. Whatever fails here is seen as the process's death.
func (p *process) write(frames []byte, unread int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.writing && unread <= writeAtOnce {
		if _, err := p.stdin.Write(frames); err != nil {
			p.kill()
		}
		return
	}
	p.later = append(p.later, frames...)
	if !p.writing {
		p.writing = true
		go p.writeLater()
	}
}

// writeLater writes until nothing is left, or the process is gone.
func (p *process) writeLater() {
	for {
		p.mu.Lock()
		frames := p.later
		p.later = nil
		p.writing = len(frames) > 0
		p.mu.Unlock()
		if len(frames) == 0 {
			return
		}
		if _, err := p.stdin.Write(frames); err != nil {
			p.kill()
			return
		}
	}
}

// kill ends the process and all that it started, at once. replies is closed when they are gone. It may be called
// from any goroutine, and again.
func (p *process) kill() { p.tree.kill() }

// end kills the process and waits for its end.
func (p *process) end() {
	p.kill()
	for range p.replies {
	}
	p.stdin.Close()
	if p.scratch != "" {
		if err := os.RemoveAll(p.scratch); err != nil {
			p.log.logger.Warn("remove what a worker process left", "path", p.scratch, "err", err)
		}
	}
}

// explain says why the process ended.
func (p *process) explain(err error) {
	text := p.log.end()
	state := p.cmd.ProcessState
	switch {
	case state == nil:
		p.dead = fmt.Sprintf("its end is not known: %v", err)
	default:
		p.dead = ending(state)
	}
	// Go's words when the system refuses it memory. Nothing that a task writes gets into this text.
	if strings.Contains(text, "out of memory") || strings.Contains(text, "cannot allocate memory") {
		p.memory = true
		p.dead += ", out of memory"
	} else if line := firstLine(text); line != "" && (state == nil || !state.Success()) {
		p.dead += ": " + line
	}
}

// firstLine is the line of a crash report that says what happened.
func firstLine(text string) string {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			return line[:min(len(line), 200)]
		}
	}
	return ""
}

// tail logs what a worker process writes to its standard error and keeps the end of it. It is written to by one
// goroutine and read after that has ended, but for the race that WaitDelay allows: hence the lock.
type tail struct {
	logger *slog.Logger
	mu     sync.Mutex
	kept   []byte
	logged int
}

// maxLogged bounds what one process puts into the node's log.
const maxLogged = 256 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.logged < maxLogged {
		t.logged += len(b)
		t.logger.Warn("worker process says", "text", string(b[:min(len(b), keptLog)]))
	}
	t.kept = append(t.kept, b...)
	if len(t.kept) > keptLog {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-keptLog:]...)
	}
	return len(b), nil
}

func (t *tail) end() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

// starter starts processes from one operating system thread, which lives until stop: on Linux a child's
// parent-death signal comes when the thread that started it ends, not the process.
type starter struct {
	requests chan startRequest
	done     chan struct{}
}

type startRequest struct {
	p   *process
	err chan error
}

// newStarter starts the goroutine that stop ends.
func newStarter() *starter {
	s := &starter{requests: make(chan startRequest), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		for r := range s.requests {
			r.err <- startTree(r.p)
		}
	}()
	return s
}

func (s *starter) start(p *process) error {
	r := startRequest{p, make(chan error, 1)}
	s.requests <- r
	return <-r.err
}

// stop is called once, when no process is left and none will be started.
func (s *starter) stop() {
	close(s.requests)
	<-s.done
}
