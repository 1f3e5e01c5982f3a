package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"sort"
	"sync"

	"meshnode/node"
	"meshnode/protocol"
)

// What a submission holds in memory, at most.
const (
	// windowTasks is how many tasks may be submitted and not answered.
	windowTasks = 64 << 10
	// windowBytes is the same in bytes of their inputs; one larger input is let through alone.
	windowBytes = 64 << 20
	// keptBytes of answered tasks stay: a node that crashes forgets what it accepted, and answered, in the last
	// 100 ms. The fastest stream of tasks that we measured is 10 MB/s.
	keptBytes = 16 << 20
)

// ids of a submission's requests. One connection serves one submission.
const (
	idOpen = iota + 1
	idWatch
	idClose
	idAdd // of the first batch; the next one's is one more
)

// batch is one ControlAdd frame, kept until its tasks are answered.
type batch struct {
	number  int // of the submission's batches, from 0
	frame   []byte
	first   uint32
	offsets []uint32 // in frame, of the length before each input
	left    int      // tasks not answered
}

func (b *batch) input(index uint32) []byte {
	o := b.offsets[index-b.first]
	n := binary.LittleEndian.Uint32(b.frame[o:])
	return b.frame[o+4 : o+4+n : o+4+n]
}

// submission is a job on its way to the node. Three goroutines share it: one reads inputs into the open
// batch, one sends batches, one (the caller of Submit) reads answers.
type submission struct {
	c       *Client
	spec    node.JobSpec
	deliver func([]Result) error

	mu       sync.Mutex // guards the rest
	changed  sync.Cond  // something below changed
	batches  []*batch   // those that may have to be sent again, oldest first
	sealed   int        // batches made so far
	open     *batch     // being filled; nil: none
	tasks    uint32     // read so far
	waiting  int        // tasks not answered
	bytes    int        // of all batches, the open one too
	unended  int        // bytes of batches with tasks not answered, the open one too
	closed   bool       // no more inputs will come
	inputErr error
	stop     bool // the submission is over

	// Only the goroutine that reads answers uses these.
	seen bitmap
	rs   []Result
}

// Submit opens the job, adds a task for each input and closes it. A zero spec.ID is replaced by a new one;
// choose it to be able to cancel the job. The inputs are copied as they come.
//
// Of an attached job it calls deliver with results as they come, in batches and each task once, and returns
// the ended job. The slice is valid during the call only, what its results point to stays. A detached job
// is returned as soon as the node has all of it on disk; deliver is not called.
//
// If the node goes away, Submit waits for it (Client.Patience) and repeats what is not answered. When ctx
// is done or deliver fails it returns at once; the job then is not cancelled here, the node does it after
// its grace. An inputs function that blocks is left alone then, and told to end when it yields next. If
// inputs yields an error, the job is cancelled and the error returned.
func (c *Client) Submit(ctx context.Context, spec node.JobSpec, inputs iter.Seq2[[]byte, error], deliver func([]Result) error) (node.Job, error) {
	if spec.ID.IsZero() {
		spec.ID = protocol.NewJobID()
	}
	s := &submission{c: c, spec: spec, deliver: deliver}
	s.changed.L = &s.mu
	defer context.AfterFunc(ctx, s.end)()
	defer s.end()
	go s.read(inputs)
	var j node.Job
	err := c.persist(ctx, func(back func()) (answered bool, err error) {
		j, answered, err = s.connect(ctx, back)
		return answered, err
	})
	if in := (inputError{}); errors.As(err, &in) {
		err = in.err
	}
	return j, err
}

// inputError is an error that the inputs yielded.
type inputError struct{ err error }

func (e inputError) Error() string { return e.err.Error() }

func (s *submission) end() {
	s.mu.Lock()
	s.stop = true
	s.changed.Broadcast()
	s.mu.Unlock()
}

// read takes the inputs. It goes on through losses of the connection, as far as the window allows.
func (s *submission) read(inputs iter.Seq2[[]byte, error]) {
	var err error
	for in, e := range inputs {
		if e == nil && len(in) > MaxInput {
			e = fmt.Errorf("input %d is of %d bytes: at most %d", s.tasks, len(in), MaxInput)
		}
		if err = e; err != nil || !s.add(in) {
			break
		}
	}
	s.mu.Lock()
	if s.closed = true; err != nil {
		s.inputErr = err
	}
	s.changed.Broadcast()
	s.mu.Unlock()
}

// add appends a task to the open batch. It waits for room, and reports whether the submission goes on.
func (s *submission) add(in []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.stop && (s.waiting >= windowTasks || s.waiting > 0 && s.unended+len(in) > windowBytes ||
		s.open != nil && (len(s.open.offsets) >= batchTasks || len(s.open.frame)+len(in) > batchBytes)) {
		s.changed.Wait()
	}
	if s.stop {
		return false
	}
	if s.tasks == protocol.MaxTasks {
		s.inputErr = fmt.Errorf("more than %d inputs: split them over several jobs", protocol.MaxTasks)
		return false
	}
	b := s.open
	if b == nil {
		b = &batch{first: s.tasks, frame: make([]byte, addHeader, addHeader+4+max(len(in), 512))}
		s.open = b
		s.unended += addHeader
		s.bytes += addHeader
		defer s.changed.Broadcast() // the sender may wait for it
	}
	b.offsets = append(b.offsets, uint32(len(b.frame)))
	b.frame = binary.LittleEndian.AppendUint32(b.frame, uint32(len(in)))
	b.frame = append(b.frame, in...)
	b.left++
	s.tasks++
	s.waiting++
	s.unended += 4 + len(in)
	s.bytes += 4 + len(in)
	return true
}

// seal ends the open batch and puts it among the others. s.mu is held.
func (s *submission) seal() {
	b := s.open
	s.open = nil
	b.number = s.sealed
	s.sealed++
	le := binary.LittleEndian
	le.PutUint32(b.frame, uint32(len(b.frame)-4))
	b.frame[4] = byte(protocol.ControlAdd)
	le.PutUint64(b.frame[5:], idAdd+uint64(b.number))
	copy(b.frame[13:], s.spec.ID[:])
	le.PutUint32(b.frame[29:], b.first)
	le.PutUint32(b.frame[33:], uint32(len(b.offsets)))
	s.batches = append(s.batches, b)
	s.changed.Broadcast()
}

// connect serves the submission over one connection. Answered says that the node said something on it.
func (s *submission) connect(ctx context.Context, onOpen func()) (j node.Job, answered bool, err error) {
	conn, br, err := s.c.openStream(ctx)
	if err != nil {
		return j, false, err
	}
	onOpen()
	sent := make(chan error, 1)
	cut := make(chan struct{}) // closed when this connection is over
	go func() {
		err := s.send(conn, cut)
		sent <- err // the reader ends by itself, with what the node had to say
	}()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	j, err = s.receive(ctx, func() (protocol.LocalType, uint64, []byte, error) {
		t, id, body, err := protocol.ReadLocal(br, protocol.MaxLocal)
		answered = answered || err == nil
		return t, id, body, err
	})
	stop()
	conn.Close()
	close(cut)
	s.mu.Lock()
	s.changed.Broadcast()
	s.mu.Unlock()
	if sendErr := <-sent; errors.As(sendErr, new(inputError)) {
		err = sendErr
	}
	return j, answered, err
}

// errCut ends a sender whose connection is over.
var errCut = errors.New("connection over")

// send writes the whole conversation of the client's side: open, watch, the tasks kept and those to come,
// close. It returns nil after the close.
func (s *submission) send(conn net.Conn, cut <-chan struct{}) error {
	open, err := encodeOpen(s.spec)
	if err != nil {
		return err
	}
	b := protocol.AppendLocal(nil, protocol.ControlOpen, idOpen, open)
	if !s.spec.Detached {
		// From the first result on, also on a second connection: after a crash of the node the same places in
		// its list may hold other tasks, those that it had not yet written.
		b = protocol.AppendLocal(b, protocol.ControlWatch, idWatch, encodeWatch(s.spec.ID, 0, 0))
	}
	if _, err := conn.Write(b); err != nil {
		return fmt.Errorf("%w: %w", ErrNoNode, err)
	}
	for next := 0; ; {
		frame, err := s.nextFrame(&next, cut)
		if errors.As(err, new(inputError)) {
			// On this connection, not by a request, lest it overtakes the open. The job's end wakes the reader.
			conn.Write(protocol.AppendLocal(b[:0], protocol.ControlCancel, idClose, s.spec.ID[:], binary.LittleEndian.AppendUint32(nil, wholeJob)))
		}
		if err != nil {
			return err
		}
		if frame == nil {
			break
		}
		if _, err := conn.Write(frame); err != nil {
			return fmt.Errorf("%w: %w", ErrNoNode, err)
		}
	}
	s.mu.Lock()
	count := s.tasks
	s.mu.Unlock()
	b = protocol.AppendLocal(b[:0], protocol.ControlClose, idClose, s.spec.ID[:], binary.LittleEndian.AppendUint32(nil, count))
	if _, err := conn.Write(b); err != nil {
		return fmt.Errorf("%w: %w", ErrNoNode, err)
	}
	return nil
}

// nextFrame waits for a batch with the number *next or a higher one. Nil means that there are no more.
func (s *submission) nextFrame(next *int, cut <-chan struct{}) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		select {
		case <-cut:
			return nil, errCut
		default:
		}
		switch {
		case s.stop:
			return nil, errCut
		case s.inputErr != nil:
			return nil, inputError{s.inputErr}
		}
		if *next == s.sealed && s.open != nil {
			s.seal()
		}
		// Batches are missing where they were answered long ago: the node has those on its disk.
		i := sort.Search(len(s.batches), func(i int) bool { return s.batches[i].number >= *next })
		if i < len(s.batches) {
			b := s.batches[i]
			*next = b.number + 1
			return b.frame, nil
		}
		*next = s.sealed
		if s.closed {
			return nil, nil
		}
		s.changed.Wait()
	}
}

// receive reads answers until the job has ended (of a detached job: is accepted).
func (s *submission) receive(ctx context.Context, read func() (protocol.LocalType, uint64, []byte, error)) (node.Job, error) {
	for {
		t, id, body, err := read()
		if err != nil {
			return node.Job{}, lost(ctx, err)
		}
		switch {
		case t == protocol.ControlOK && id == idClose && s.spec.Detached:
			return s.c.Job(ctx, s.spec.ID.String())
		case t == protocol.ControlOK:
			if id >= idAdd && s.spec.Detached {
				s.accepted(int(id - idAdd))
			}
		case t == protocol.ControlError:
			refusal := decodeError(body)
			if isLost(refusal) {
				return node.Job{}, refusal
			}
			if (id >= idAdd || id == idClose) && !s.spec.Detached {
				// A job that was cancelled meanwhile takes no more tasks; the watch tells the rest.
				if j, err := s.c.Job(ctx, s.spec.ID.String()); err == nil && ended(j) {
					continue
				}
			}
			return node.Job{}, refusal
		case t == protocol.ControlResults && id == idWatch:
			if s.rs, err = decodeResults(s.rs[:0], body); err != nil {
				return node.Job{}, err
			}
			fresh, err := s.answered(s.rs)
			if err != nil {
				return node.Job{}, err
			}
			if len(fresh) > 0 {
				if err := s.deliver(fresh); err != nil {
					return node.Job{}, err
				}
			}
		case t == protocol.ControlEnd && id == idWatch:
			var j node.Job
			return j, json.Unmarshal(body, &j)
		default:
			return node.Job{}, fmt.Errorf("%w: frame of type %#x, id %d from the node", protocol.ErrProtocol, byte(t), id)
		}
	}
}

// accepted counts a batch of a detached job as answered: the node has it, though not yet on its disk;
// keptBytes covers that.
func (s *submission) accepted(number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.batches), func(i int) bool { return s.batches[i].number >= number })
	if i == len(s.batches) || s.batches[i].number != number || s.batches[i].left == 0 {
		return
	}
	b := s.batches[i]
	s.waiting -= b.left
	s.unended -= len(b.frame)
	b.left = 0
	s.drop()
}

// answered keeps of rs those that are new, with their inputs, and frees what they held.
func (s *submission) answered(rs []Result) ([]Result, error) {
	fresh := rs[:0]
	s.mu.Lock()
	defer s.mu.Unlock()
	var b *batch
	for _, r := range rs {
		if !s.seen.set(r.Index) {
			continue
		}
		if b == nil || r.Index < b.first || r.Index >= b.first+uint32(len(b.offsets)) {
			i := sort.Search(len(s.batches), func(i int) bool { return s.batches[i].first > r.Index }) - 1
			if i < 0 || r.Index >= s.batches[i].first+uint32(len(s.batches[i].offsets)) {
				return nil, fmt.Errorf("%w: a result of task %d, which was not submitted", protocol.ErrProtocol, r.Index)
			}
			b = s.batches[i]
		}
		r.Input = b.input(r.Index)
		s.waiting--
		if b.left--; b.left == 0 {
			s.unended -= len(b.frame)
		}
		fresh = append(fresh, r)
	}
	s.drop()
	return fresh, nil
}

// drop forgets the oldest answered batches, if there are many. s.mu is held.
func (s *submission) drop() {
	s.changed.Broadcast()
	if s.bytes-s.unended <= keptBytes+keptBytes/4 { // the quarter, so that the list is not copied each time
		return
	}
	kept := s.batches[:0]
	for _, b := range s.batches {
		if b.left == 0 && s.bytes-s.unended > keptBytes {
			s.bytes -= len(b.frame)
			continue
		}
		kept = append(kept, b)
	}
	clear(s.batches[len(kept):])
	s.batches = kept
}

// bitmap is a set of task indices.
type bitmap []uint64

// set adds i and reports whether it was not there.
func (b *bitmap) set(i uint32) bool {
	w := int(i / 64)
	for w >= len(*b) {
		*b = append(*b, 0)
	}
	bit := uint64(1) << (i % 64)
	if (*b)[w]&bit != 0 {
		return false
	}
	(*b)[w] |= bit
	return true
}
