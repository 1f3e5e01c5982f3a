//go:build unix

package executor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CanFork says whether there are fork servers on this system.
const CanFork = true

const (
	// maxFork is how long a fork server may take for a worker process, its own start included.
	maxFork = 20 * time.Second
	// lastWord is how long a worker process that is gone may go without its fork server's word about it.
	lastWord = 5 * time.Second
)

// forker is a fork server: a process that has loaded an interpreter, but nothing of any submitter, and makes worker processes of itself.
// A request on its socket is u64 id, with four descriptors: standard input, output, error, and the end of a pipe that nobody
// writes to, whose other end the node has. Each reply is u64 id, i32 kind (0 started, 1 not started, 2 ended), i32 process ID, error
// number or wait status; a started process leads a process group. When the socket ends, it kills all of them and ends.
type forker struct {
	p    *process
	conn *net.UnixConn
	gone chan struct{} // closed when it and all that came of it are
	exit chan struct{} // closed when its own process has ended

	idleEnd time.Duration

	mu       sync.Mutex // guards what follows
	last     uint64
	children map[uint64]*child
	dead     string // why it is gone; no children come any more
	idle     *time.Timer
}

// child is a worker process that a forker made, or is to make.
type child struct {
	pid     int
	started chan error  // one value
	ended   chan string // one value: how
}

// fork has a fork server make the worker process p. The function that it returns waits for the end of p and says how that was; gone is
// closed when nobody has p's standard output any more.
func (e *Executor) fork(p *process, w Worker, in, out *os.File) (wait func(gone <-chan struct{}) string, err error) {
	for { // one that was there may just have ended, for want of work
		f, fresh, e := e.forker(p.key.runtime, w)
		if e != nil {
			return nil, e
		}
		if wait, err = f.fork(p, in, out); err == nil || fresh || !f.ended() {
			return wait, err
		}
		<-f.gone
	}
}

// ended says that it makes no processes any more.
func (f *forker) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead != ""
}

func (f *forker) fork(p *process, in, out *os.File) (wait func(gone <-chan struct{}) string, err error) {
	life, mine, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer life.Close()
	c := &child{started: make(chan error, 1), ended: make(chan string, 1)}
	f.mu.Lock()
	if f.dead != "" {
		f.mu.Unlock()
		mine.Close()
		return nil, errors.New("its fork server ended: " + f.dead)
	}
	f.idle.Stop()
	f.last++
	id := f.last
	f.children[id] = c
	// Under the lock: requests and their descriptors stay together.
	_, _, err = f.conn.WriteMsgUnix(binary.LittleEndian.AppendUint64(nil, id),
		unix.UnixRights(int(in.Fd()), int(out.Fd()), int(p.taskLog.Fd()), int(life.Fd())), nil)
	f.mu.Unlock()
	late := time.AfterFunc(maxFork, f.p.kill)
	if err != nil {
		f.p.kill() // all its children know then
	}
	err = <-c.started
	late.Stop()
	if err != nil {
		mine.Close()
		return nil, err
	}
	p.pid = c.pid
	p.tree.group.Store(int64(c.pid))
	return func(gone <-chan struct{}) string {
		defer mine.Close()
		select {
		case how := <-c.ended:
			return how
		case <-gone:
		}
		select {
		case how := <-c.ended:
			return how
		case <-time.After(lastWord):
			return "its end is not known"
		}
	}, nil
}

// startForker starts a fork server that nobody needs yet.
func (e *Executor) startForker(runtime string, w Worker) error {
	_, _, err := e.forker(runtime, w)
	return err
}

// forker finds or starts the fork server for a kind of worker processes.
func (e *Executor) forker(runtime string, w Worker) (f *forker, fresh bool, err error) {
	key := strings.Join(append(slices.Clone(w.Argv), w.Env...), "\x00")
	e.forking.Lock()
	defer e.forking.Unlock()
	if f := e.forkers[key]; f != nil {
		select {
		case <-f.gone:
		default:
			return f, false, nil
		}
	}
	syscall.ForkLock.RLock() // else a process that is started just now would have them
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(pair[0])
		unix.CloseOnExec(pair[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, false, fmt.Errorf("fork server: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fork server"), os.NewFile(uintptr(pair[1]), "fork server")
	defer ours.Close() // FileConn makes its own
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, false, fmt.Errorf("fork server: %w", err)
	}
	f = &forker{
		p:        &process{key: processKey{runtime: runtime}, nice: !e.cfg.Private},
		conn:     conn.(*net.UnixConn),
		gone:     make(chan struct{}),
		exit:     make(chan struct{}),
		idleEnd:  e.cfg.IdleEnd,
		children: make(map[uint64]*child),
	}
	f.p.log.logger = e.cfg.Logger.With("runtime", runtime)
	f.p.cmd = exec.Command(w.Argv[0], append(w.Argv[1:len(w.Argv):len(w.Argv)], "fork")...)
	f.p.cmd.Env = append(e.baseEnv(), w.Env...)
	f.p.cmd.Stderr = &f.p.log
	f.p.cmd.WaitDelay = time.Second
	f.p.cmd.ExtraFiles = []*os.File{theirs} // its descriptor 3
	if err := e.starter.start(f.p); err != nil {
		conn.Close()
		return nil, false, fmt.Errorf("fork server: %w", err)
	}
	f.idle = time.AfterFunc(e.cfg.IdleEnd, f.p.kill)
	e.forkers[key] = f
	go func() {
		f.p.cmd.Wait()
		close(f.exit)
		// Somebody else may have its end of the socket. What it said is here already.
		f.conn.SetReadDeadline(time.Now().Add(lastWords))
	}()
	e.serving.Go(f.serve)
	return f, true, nil
}

// serve reads what the fork server says until it is gone.
func (f *forker) serve() {
	defer close(f.gone)
	var b [16]byte
	for {
		if _, err := io.ReadFull(f.conn, b[:]); err != nil {
			break
		}
		f.said(binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint32(b[8:]), int32(binary.LittleEndian.Uint32(b[12:])))
	}
	f.idle.Stop()
	f.conn.Close()
	f.p.kill()
	<-f.exit
	f.p.tree.close()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = ending(f.p.cmd.ProcessState)
	if line := firstLine(f.p.log.end()); line != "" {
		f.dead += ": " + line
	}
	for _, c := range f.children {
		if c.pid == 0 {
			c.started <- errors.New("its fork server ended: " + f.dead)
			continue
		}
		unix.Kill(-c.pid, unix.SIGKILL)
		c.ended <- "its fork server ended: " + f.dead
	}
	clear(f.children)
}

// said takes one reply.
func (f *forker) said(id uint64, kind uint32, v int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.children[id]
	if c == nil {
		return
	}
	switch kind {
	case 0:
		if c.pid == 0 && v > 0 {
			c.pid = int(v)
			c.started <- nil
		}
		return
	case 1:
		c.started <- fmt.Errorf("fork: %w", syscall.Errno(v))
	default:
		if c.pid != 0 {
			c.ended <- endingOf(syscall.WaitStatus(v))
		}
	}
	delete(f.children, id)
	if len(f.children) == 0 {
		f.idle.Reset(f.idleEnd)
	}
}

// endForkers ends all fork servers; no process of theirs is left, and none is asked for any more.
func (e *Executor) endForkers() {
	e.forking.Lock()
	defer e.forking.Unlock()
	for _, f := range e.forkers {
		f.p.kill()
	}
}
