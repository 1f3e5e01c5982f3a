package tasks

import (
	"slices"

	"meshnode/protocol"
)

// The inputs of a job's tasks are on the origin's disk, in its TasksRecords. In memory are only those of the tasks that
// are granted next, a window, and those of leased tasks, in case they come back or a second copy is wanted. The window is
// read ahead (Ready.Load), so that a job of ten million tasks needs no more memory for its inputs than one of ten thousand.
//
// A pending task can be granted when its input is in memory:
//
//	next ≤ i < ahead's end   in ahead
//	i < next, it came back   in back, and named by returned
//	i < next, and absent     not in memory: to be read again, then in back
//	i ≥ ahead's end          not in memory: not reached yet
type inputs struct {
	ahead  []Input // of the tasks from next on
	back   map[uint32]Input
	absent []uint32 // may name tasks that are not pending any more

	bytes  int               // of ahead and back
	leased int               // bytes of those that leases keep
	loads  map[uint32]uint32 // Loads under way: how many inputs were asked for from which task on
}

const (
	// inputWindow is how many bytes of inputs all jobs together keep in memory, unless Config says otherwise: a tenth of a
	// second of the fastest stream of tasks of 1 KiB, read again in less than that.
	inputWindow = 16 << 20
	// leastInputs is what a job may have of it among many jobs: two of the largest, or hundreds of small ones.
	leastInputs = 2 * protocol.MaxInline
	// inputOverhead is what an input takes besides its bytes.
	inputOverhead = 64
	// maxLoad inputs are read at once, and maxLoads pieces of what is absent.
	maxLoad  = 8192
	maxLoads = 64
)

// inputRoom is how many bytes of inputs one job may have in memory.
func (s *Scheduler) inputRoom() int {
	w := s.cfg.InputWindow
	return max(min(w, leastInputs), w/max(1, len(s.active)))
}

// aheadEnd is the first task behind ahead.
func (j *job) aheadEnd() uint32 { return j.next + uint32(len(j.inputs.ahead)) }

// append puts an input at the end of ahead.
func (in *inputs) append(x Input) {
	in.ahead = append(in.ahead, x)
	in.bytes += x.size()
}

// has says whether the input of a pending task is in memory.
func (j *job) has(i uint32) bool {
	if i >= j.next {
		return i < j.aheadEnd()
	}
	_, ok := j.inputs.back[i]
	return ok
}

// addTasks makes tasks of new inputs. They stay in memory as far as nothing before them waits on disk and there is room.
func (s *Scheduler) addTasks(j *job, ins []Input) {
	room := s.inputRoom()
	for _, in := range ins {
		if j.aheadEnd() == j.tasks.n && (j.inputs.bytes == 0 || j.inputs.bytes+in.size() <= room) {
			j.inputs.append(in)
			j.ready++
		}
		j.tasks.add()
		j.countBlobs(&in)
		j.bytes += int64(len(in.Data))
	}
	if j.pending += len(ins); j.pending > 0 {
		s.activate(j)
	}
}

// pass moves next on, over the first input of ahead, which it returns.
func (j *job) pass() Input {
	x := &j.inputs
	in := x.ahead[0]
	x.ahead[0] = Input{}
	x.ahead = x.ahead[1:]
	x.bytes -= in.size()
	j.next++
	return in
}

// takeBack takes an input out of back.
func (j *job) takeBack(i uint32) (Input, bool) {
	in, ok := j.inputs.back[i]
	if ok {
		delete(j.inputs.back, i)
		j.inputs.bytes -= in.size()
	}
	return in, ok
}

// keep has a lease keep its task's input, if there is room.
func (s *Scheduler) keep(l *lease, in Input) {
	if x := &l.job.inputs; !l.kept && x.leased+in.size() <= s.inputRoom()/2 {
		l.input, l.kept = in, true
		x.leased += in.size()
	}
}

// unready notes that a pending task is not to be granted any more: it ended, or is adopted by l, which may keep its input.
func (s *Scheduler) unready(j *job, i uint32, l *lease) {
	if !j.has(i) {
		return
	}
	j.ready--
	if i >= j.next {
		return // next will pass it
	}
	if in, _ := j.takeBack(i); l != nil {
		s.keep(l, in)
	}
}

// cameBack notes that a task is pending again. Its last lease may have kept its input.
func (j *job) cameBack(i uint32, in Input, kept bool) {
	switch {
	case i >= j.next: // next will come to it
		if i < j.aheadEnd() {
			j.ready++
		}
	case kept:
		j.putBack(i, in)
	default:
		j.inputs.absent = append(j.inputs.absent, i)
	}
}

// putBack makes a pending task that next has passed one that can be taken.
func (j *job) putBack(i uint32, in Input) {
	if j.inputs.back == nil {
		j.inputs.back = map[uint32]Input{}
	}
	j.inputs.back[i] = in
	j.inputs.bytes += in.size()
	j.wait(i)
	j.ready++
}

// loadInputs asks for inputs that are needed soon and not in memory.
func (s *Scheduler) loadInputs() {
	if s.stopping != "" {
		return
	}
	for _, j := range s.active {
		x := &j.inputs
		if len(x.absent) == 0 && j.aheadEnd() == j.tasks.n {
			continue
		}
		for j.ready == 0 && len(x.ahead) > 0 {
			j.pass() // adopted, or cancelled one by one: they are in nobody's way
		}
		room := s.inputRoom()
		if x.bytes > room/2 {
			continue
		}
		if len(x.absent) > 0 {
			s.loadAbsent(j, room)
		}
		if first := j.aheadEnd(); first < j.tasks.n && x.loads[first] == 0 {
			s.loadFrom(j, first, min(j.tasks.n-first, maxLoad), room-x.bytes)
		}
	}
}

// loadAbsent asks for inputs of tasks that came back without, in pieces of neighbours.
func (s *Scheduler) loadAbsent(j *job, room int) {
	x := &j.inputs
	under := len(x.loads)
	if under >= maxLoads {
		return
	}
	slices.Sort(x.absent)
	x.absent = slices.DeleteFunc(slices.Compact(x.absent), func(i uint32) bool {
		return i >= j.next || j.tasks.at(i).state != pending || j.has(i)
	})
	for len(x.absent) > 0 && under < maxLoads {
		n := 1
		for n < len(x.absent) && n < maxLoad && x.absent[n] == x.absent[0]+uint32(n) {
			n++
		}
		if x.loads[x.absent[0]] != 0 {
			return // this one is on its way; those behind it wait
		}
		s.loadFrom(j, x.absent[0], uint32(n), room/maxLoads)
		x.absent = x.absent[n:]
		under++
	}
}

func (s *Scheduler) loadFrom(j *job, first, count uint32, bytes int) {
	if j.inputs.loads == nil {
		j.inputs.loads = map[uint32]uint32{}
	}
	j.inputs.loads[first] = count
	s.out.Load = append(s.out.Load, Load{Job: j.id, First: first, Count: count, Bytes: bytes})
}

// loaded takes inputs that were read.
func (s *Scheduler) loaded(ev Loaded) {
	j := s.jobs[ev.Job]
	if j == nil || j.inputs.loads[ev.First] == 0 {
		return // ended meanwhile
	}
	x := &j.inputs
	count := x.loads[ev.First]
	delete(x.loads, ev.First)
	ins := ev.Inputs[:min(len(ev.Inputs), int(count))]
	if ev.First == j.aheadEnd() {
		for _, in := range ins {
			if j.tasks.at(j.aheadEnd()).state == pending {
				j.ready++
			}
			x.append(in)
		}
		return
	}
	for k := range count {
		i := ev.First + k
		switch {
		case j.tasks.at(i).state != pending || j.has(i):
		case int(k) < len(ins):
			j.putBack(i, ins[k])
		default:
			x.absent = append(x.absent, i)
		}
	}
}

// freeInputs lets go of all inputs of a job that has ended.
func (j *job) freeInputs() {
	j.inputs, j.returned, j.ready = inputs{}, nil, 0
}

// taskList is the tasks of a job, in pieces: it grows without being copied, and a small job has a small one.
type taskList struct {
	pieces [][]task
	n      uint32
}

const piece = 4096

// at is task i, until the next add.
func (t *taskList) at(i uint32) *task { return &t.pieces[i/piece][i%piece] }

func (t *taskList) add() {
	if t.n%piece == 0 {
		t.pieces = append(t.pieces, nil)
	}
	p := &t.pieces[t.n/piece]
	*p = append(*p, task{})
	t.n++
}

// unended is the place of a task without a result among those of its job.
const unended = ^uint32(0)

// seqs are the places of the tasks' results among those of their job: all that is asked of one that has ended.
func (t *taskList) seqs() []uint32 {
	out := make([]uint32, 0, t.n)
	for _, p := range t.pieces {
		for i := range p {
			if p[i].state == terminal {
				out = append(out, p[i].seq)
			} else {
				out = append(out, unended)
			}
		}
	}
	return out
}
