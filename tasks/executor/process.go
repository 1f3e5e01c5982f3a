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
	// lastWords is how long what a process wrote before its end is read: it is in the pipe already.
	lastWords = 2 * time.Second
	// keptLog is how much of the end of a worker's standard error is kept, to explain its death.
	keptLog = 8 << 10
	// readBuffer is the pipe's usual capacity.
	readBuffer = 64 << 10
)

// process is a worker process. Its methods are for the one goroutine that owns it, except kill.
type process struct {
	key   processKey
	nice  bool      // at the lowest priority
	cmd   *exec.Cmd // nil: a fork server made it
	pid   int
	stdin *os.File
	tree  tree // for killing it as a whole
	log   tail
	// taskLog is its standard error, if it has its tasks' log there; log has nothing then.
	taskLog *os.File
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
	p.log.logger = e.cfg.Logger.With("runtime", key.runtime)
	if w.TaskLog {
		p.taskLog, err = newTaskLog()
	}
	var wait func(gone <-chan struct{}) string
	if err == nil && w.Fork && CanFork {
		wait, err = e.fork(p, w, inR, outW)
	} else if err == nil {
		wait, err = e.spawn(p, w, inR, outW)
	}
	inR.Close()
	outW.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		p.taskLog.Close() // nil will do
		return nil, fmt.Errorf("start %s worker: %w", key.runtime, err)
	}
	e.mu.Lock()
	e.pids[p.pid] = true
	e.mu.Unlock()
	gone := make(chan struct{})
	exited := make(chan string, 1)
	go func() {
		how := wait(gone)
		p.tree.kill()                                   // what it may have started
		outR.SetReadDeadline(time.Now().Add(lastWords)) // what it started elsewhere may hold the other end
		e.mu.Lock()
		delete(e.pids, p.pid)
		e.mu.Unlock()
		exited <- how
	}()
	go func() {
		spoke := readReplies(outR, p.replies)
		p.ended = time.Now()
		p.tree.kill()
		outR.Close()
		close(gone)
		p.explain(<-exited, spoke)
		p.tree.close()
		close(p.replies)
	}()
	return p, nil
}

// spawn starts the worker process p by itself. What it returns is as for fork.
func (e *Executor) spawn(p *process, w Worker, in, out *os.File) (wait func(gone <-chan struct{}) string, err error) {
	p.cmd = exec.Command(w.Argv[0], w.Argv[1:]...)
	p.cmd.Env = append(e.baseEnv(), w.Env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, out, &p.log
	if p.taskLog != nil {
		p.cmd.Stderr = p.taskLog
	}
	p.cmd.WaitDelay = time.Second // for a standard error that somebody inherited and holds open
	if err := e.starter.start(p); err != nil {
		return nil, err
	}
	p.pid = p.cmd.Process.Pid
	return func(<-chan struct{}) string {
		if err := p.cmd.Wait(); p.cmd.ProcessState == nil {
			return fmt.Sprintf("its end is not known: %v", err)
		}
		return ending(p.cmd.ProcessState)
	}, nil
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

// readReplies sends frames to out, all those together that came together, until r ends or breaks the protocol. It says whether there
// were any.
func readReplies(r *os.File, out chan<- []reply) (some bool) {
	br := bufio.NewReaderSize(r, readBuffer)
	for {
		// One frame at least, however large; then those that are here already, in one piece of memory.
		kind, id, body, err := protocol.ReadLocal(br, protocol.MaxLocal)
		if err != nil {
			if errors.Is(err, protocol.ErrProtocol) {
				out <- []reply{{err: err}}
			}
			return some
		}
		some = true
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
	p.taskLog.Close() // nil will do
	if p.scratch != "" {
		if err := os.RemoveAll(p.scratch); err != nil {
			p.log.logger.Warn("remove what a worker process left", "path", p.scratch, "err", err)
		}
	}
}

// explain says why the process ended: how, and what it wrote. spoke: it had answered something.
func (p *process) explain(how string, spoke bool) {
	p.dead = how
	text := p.log.end()
	if p.taskLog != nil {
		if !spoke { // else it is a task's
			text = string(p.readLog(keptLog))
		}
		if line := firstLine(text); line != "" {
			p.dead += ": " + line
		}
		return
	}
	// Go's words when the system refuses it memory. Nothing that a task writes gets into this text.
	if strings.Contains(text, "out of memory") || strings.Contains(text, "cannot allocate memory") {
		p.memory = true
		p.dead += ", out of memory"
	} else if line := firstLine(text); line != "" && how != exitedWell {
		p.dead += ": " + line
	}
}

// firstLine is the line of a crash report that says what happened: the first one, or the last of a traceback.
func firstLine(text string) string {
	found := ""
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			found = line[:min(len(line), 200)]
			if !strings.HasPrefix(strings.TrimSpace(text), "Traceback ") {
				break
			}
		}
	}
	return found
}

// readLog is what is in the log of the task that runs or ran, at most limit bytes of it.
func (p *process) readLog(limit uint64) []byte {
	if p.taskLog == nil {
		return nil
	}
	st, err := p.taskLog.Stat()
	if err != nil || st.Size() <= 0 {
		return nil
	}
	b := make([]byte, min(uint64(st.Size()), limit))
	n, _ := p.taskLog.ReadAt(b, 0)
	return b[:n]
}

// trimLog bounds the log of the task that runs: there is no end to what a process may write into a file. The worker still sees that
// there was more than the limit.
func (p *process) trimLog(limit uint64) {
	if st, err := p.taskLog.Stat(); err == nil && uint64(st.Size()) > limit+1 {
		if err := cutFile(p.taskLog, int64(limit)+1, st.Size()); err != nil {
			p.log.logger.Warn("bound the log of a task", "err", err)
		}
	}
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
