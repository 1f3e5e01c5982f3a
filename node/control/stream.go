package control

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"meshnode/node"
	"meshnode/protocol"
)

// stream is one upgraded connection. Its frames are handled one after the other, in the goroutine that
// reads them, so that a node that takes its time holds the client back through the socket. Watches
// have a goroutine each.
type stream struct {
	server  *Server
	ctx     context.Context
	out     *frameWriter
	watches sync.WaitGroup

	mu    sync.Mutex // guards count
	count int        // of watches
}

func (st *stream) serve(r io.Reader) error {
	n := st.server.node
	for {
		t, id, body, err := protocol.ReadLocal(r, protocol.MaxLocal)
		if err != nil {
			return err
		}
		switch t {
		case protocol.ControlOpen:
			spec, derr := decodeOpen(body)
			if derr != nil {
				return derr
			}
			err = n.OpenJob(st.ctx, spec)
		case protocol.ControlAdd, protocol.ControlAddBlobs:
			job, first, ins, derr := decodeAdd(body, t == protocol.ControlAddBlobs)
			if derr != nil {
				return derr
			}
			err = n.AddTasks(st.ctx, job, first, ins)
		case protocol.ControlClose:
			job, count, derr := decodeClose(body)
			if derr != nil {
				return derr
			}
			err = n.CloseJob(st.ctx, job, count)
		case protocol.ControlCancel:
			job, index, derr := decodeCancel(body)
			if derr != nil {
				return derr
			}
			err = n.Cancel(st.ctx, job, index)
		case protocol.ControlGroup:
			group, limit, derr := decodeGroup(body)
			if derr != nil {
				return derr
			}
			err = n.SetGroup(st.ctx, group, limit)
		case protocol.ControlWatch:
			job, cursor, flags, derr := decodeWatch(body)
			if derr != nil {
				return derr
			}
			if err := st.startWatch(id, job, cursor, flags); err != nil {
				return err
			}
			continue
		default:
			return fmt.Errorf("%w: frame of type %#x from a client", protocol.ErrProtocol, byte(t))
		}
		if err := st.answer(id, err); err != nil {
			return err
		}
	}
}

func (st *stream) answer(id uint64, err error) error {
	if err == nil {
		if id >= protocol.ControlQuiet {
			return nil
		}
		return st.out.send(protocol.ControlOK, id)
	}
	if st.ctx.Err() != nil {
		return st.ctx.Err() // the client repeats on its next connection; an answer would end its job
	}
	b, jerr := json.Marshal(asError(err))
	if jerr != nil {
		return jerr
	}
	return st.out.send(protocol.ControlError, id, b)
}

func (st *stream) startWatch(id uint64, job protocol.JobID, cursor uint32, flags byte) error {
	st.mu.Lock()
	st.count++
	n := st.count
	st.mu.Unlock()
	if n > maxWatches {
		return fmt.Errorf("%w: more than %d watches", protocol.ErrProtocol, maxWatches)
	}
	st.watches.Go(func() {
		j, err := st.watch(id, job, cursor, flags)
		st.mu.Lock()
		st.count--
		st.mu.Unlock()
		if err != nil {
			st.answer(id, err) // fails only if the connection is gone, which serve sees too
			return
		}
		b, err := json.Marshal(j)
		if err != nil {
			st.server.log.Error("encode a job", "job", j.ID, "err", err)
			return
		}
		st.out.send(protocol.ControlEnd, id, b)
	})
	return nil
}

// errEnough ends a watch that wants no more than was there.
var errEnough = errors.New("enough results")

func (st *stream) watch(id uint64, job protocol.JobID, cursor uint32, flags byte) (node.Job, error) {
	n := st.server.node
	want := int64(-1) // results still wanted; negative: all
	var now node.Job
	if flags&protocol.WatchNow != 0 {
		var err error
		if now, err = n.Job(st.ctx, job); err != nil {
			return now, err
		}
		if !ended(now) {
			want = int64(now.Done) + int64(now.Failed) - int64(cursor)
			if want <= 0 {
				return now, nil
			}
		}
	}
	most := uint64(protocol.MaxOutput)
	if flags&protocol.WatchBlobs != 0 {
		most = protocol.MaxWatchOutput
	}
	var rs []Result
	j, err := st.server.watch(st.ctx, job, cursor, most, func(batch []node.TaskResult) error {
		if want >= 0 && int64(len(batch)) > want {
			batch = batch[:want]
		}
		rs = rs[:0]
		for _, r := range batch {
			rs = append(rs, Result{TaskResult: r})
		}
		if flags&protocol.WatchInputs != 0 {
			if err := addInputs(st.ctx, n, job, rs); err != nil {
				return err
			}
		}
		if err := st.out.sendResults(id, rs); err != nil {
			return err
		}
		if want >= 0 {
			if want -= int64(len(batch)); want == 0 {
				return errEnough
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return now, nil
	}
	return j, err
}

// addInputs reads the inputs of results. Those of neighbours are read together, for the node has them in portions.
func addInputs(ctx context.Context, n Node, job protocol.JobID, rs []Result) error {
	order := make([]*Result, len(rs))
	for i := range rs {
		order[i] = &rs[i]
	}
	slices.SortFunc(order, func(a, b *Result) int { return cmp.Compare(a.Index, b.Index) })
	for len(order) > 0 {
		run := 1
		for run < len(order) && order[run].Index == order[0].Index+uint32(run) {
			run++
		}
		ins, err := n.Inputs(ctx, job, order[0].Index, run)
		if err != nil {
			return fmt.Errorf("read the input of task %d: %w", order[0].Index, err)
		}
		for i, in := range ins {
			if order[i].Input = in; len(in) > maxResultInput {
				order[i].Input, order[i].InputLeftOut = nil, true
			}
		}
		order = order[max(1, len(ins)):]
	}
	return nil
}

func ended(j node.Job) bool {
	return j.State == "done" || j.State == "failed" || j.State == "cancelled"
}

// watch is Node.Watch, taken up again where it was lost because the client was slow.
func (s *Server) watch(ctx context.Context, job protocol.JobID, cursor uint32, most uint64, deliver func([]node.TaskResult) error) (node.Job, error) {
	for {
		before := cursor
		j, err := s.node.Watch(ctx, job, cursor, most, func(rs []node.TaskResult) error {
			if err := deliver(rs); err != nil {
				return err
			}
			if len(rs) > 0 {
				cursor = rs[len(rs)-1].Seq + 1
			}
			return nil
		})
		if !errors.Is(err, node.ErrWatchLost) || ctx.Err() != nil {
			return j, err
		}
		if cursor == before { // lost without progress, as a stopping node does: do not spin
			select {
			case <-ctx.Done():
				return j, ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// frameWriter lets several goroutines write frames to one connection. What they send while a write is under
// way goes out together with the next: many small frames cost few calls, and a single one waits for nobody.
type frameWriter struct {
	w io.Writer

	mu      sync.Mutex // guards the rest
	drained sync.Cond
	buf     []byte
	spare   []byte
	writing bool
	err     error
}

// maxUnwritten is where senders begin to wait for the connection.
const maxUnwritten = 1 << 20

func newFrameWriter(w io.Writer) *frameWriter {
	f := &frameWriter{w: w}
	f.drained.L = &f.mu
	return f
}

func (f *frameWriter) send(t protocol.LocalType, id uint64, parts ...[]byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.room(); err != nil {
		return err
	}
	f.buf = protocol.AppendLocal(f.buf, t, id, parts...)
	return f.flush()
}

func (f *frameWriter) sendResults(id uint64, rs []Result) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(rs) > 0 {
		if err := f.room(); err != nil {
			return err
		}
		var n int
		f.buf, n = appendResults(f.buf, id, rs)
		rs = rs[n:]
		if err := f.flush(); err != nil {
			return err
		}
	}
	return nil
}

// room waits until the buffer may grow. f.mu is held.
func (f *frameWriter) room() error {
	for f.err == nil && len(f.buf) > maxUnwritten {
		f.drained.Wait()
	}
	return f.err
}

// flush writes what is in the buffer, unless another goroutine is at it and will. f.mu is held.
func (f *frameWriter) flush() error {
	if f.writing {
		return f.err
	}
	f.writing = true
	for len(f.buf) > 0 && f.err == nil {
		out := f.buf
		f.buf = f.spare
		f.mu.Unlock()
		_, err := f.w.Write(out)
		f.mu.Lock()
		if err != nil && f.err == nil {
			f.err = fmt.Errorf("write to the client: %w", err)
		}
		if f.spare = out[:0]; cap(out) > 2*maxUnwritten {
			f.spare = nil // one large result; do not keep its memory
		}
		f.drained.Broadcast()
	}
	f.writing = false
	return f.err
}

func constantTimeEqual(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
