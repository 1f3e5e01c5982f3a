package sim

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
	"meshnode/tasks"
)

// disk is a node's journal: batches of records, of which a crash keeps those that were synced and some
// of the later ones, never a part of one and none behind a lost one.
type disk struct {
	batches [][]tasks.Record
	synced  int // of batches
	book    *book
}

// append writes a batch, as the bytes that it is now: what the scheduler does to its values later is not on the disk.
func (d *disk) append(rs []tasks.Record) {
	kept := make([]tasks.Record, len(rs))
	for i, r := range rs {
		switch r := r.(type) {
		case tasks.JobRecord:
			r.Spec = proto.Clone(r.Spec).(*protocol.Job)
			kept[i] = r
		case tasks.TasksRecord:
			r.Inputs = slices.Clone(r.Inputs)
			kept[i] = r
		case tasks.DoneRecord:
			done := *r.Done
			done.Outcome = proto.Clone(r.Done.Outcome).(*protocol.Outcome)
			r.Done = &done
			kept[i] = r
		case tasks.HeldRecord:
			r.Outcome = proto.Clone(r.Outcome).(*protocol.Outcome)
			kept[i] = r
		default:
			kept[i] = r
		}
	}
	d.batches = append(d.batches, kept)
}

// cut keeps the first n batches.
func (d *disk) cut(n int) {
	d.batches = d.batches[:n]
	d.synced = min(d.synced, n)
	d.book = newBook()
	for i, b := range d.batches {
		for _, r := range b {
			d.book.add(i, r)
		}
	}
}

// book is what is written on a disk, ready to be asked.
type book struct {
	epoch   []epochAt
	jobs    map[protocol.JobID]*jobBook
	gone    map[protocol.JobID]*jobBook // forgotten
	away    map[protocol.NodeID]int64   // origins that owe answers, since that awake time
	held    map[heldKey]*protocol.Outcome
	written map[heldKey]bool
}

type epochAt struct {
	epoch uint64
	batch int
}

type heldKey struct {
	origin  protocol.NodeID
	attempt protocol.Attempt
}

// jobBook is one job on the disk of its origin. Numbers of batches say when it was written.
type jobBook struct {
	tasks     uint32
	tasksAt   []taskAt
	closed    bool
	closedAt  int
	count     uint32
	cancelled bool
	cancelAt  int
	done      map[uint32]doneAt
	seq       uint32
	aged      bool              // its end has its time
	free      bool              // it is forgotten, and its id may be used again
	blobs     []protocol.BlobID // of results
	runs      [2]uint64         // least and greatest run time of those that ended well, µs
}

type taskAt struct {
	tasks uint32
	batch int
}

type doneAt struct {
	status  protocol.Status
	attempt protocol.Attempt
	batch   int
}

func newBook() *book {
	return &book{jobs: map[protocol.JobID]*jobBook{}, gone: map[protocol.JobID]*jobBook{}, away: map[protocol.NodeID]int64{}, held: map[heldKey]*protocol.Outcome{}, written: map[heldKey]bool{}}
}

// job is a job that was ever written.
func (k *book) job(id protocol.JobID) *jobBook {
	if b := k.jobs[id]; b != nil {
		return b
	}
	return k.gone[id]
}

// ended says that each task of the job, as it is written, has its end.
func (b *jobBook) ended() bool {
	return b.cancelled || b.closed && uint32(len(b.done)) == b.count
}

// add enters a record and returns what is wrong with it.
func (k *book) add(batch int, rec tasks.Record) string {
	switch r := rec.(type) {
	case tasks.EpochRecord:
		if n := len(k.epoch); n > 0 && k.epoch[n-1].epoch >= r.Epoch {
			return "I4: an epoch that does not rise"
		}
		k.epoch = append(k.epoch, epochAt{r.Epoch, batch})
		return ""
	case tasks.HeldRecord:
		key := heldKey{r.Origin, r.Outcome.AttemptOf()}
		k.held[key] = r.Outcome
		k.written[key] = true
		return ""
	case tasks.AnsweredRecord:
		delete(k.held, heldKey{r.Origin, r.Attempt})
		return ""
	case tasks.AwakeRecord:
		return ""
	case tasks.AwayRecord:
		if delete(k.away, r.Origin); r.Since >= 0 {
			k.away[r.Origin] = r.Since
		}
		return ""
	case tasks.ReusableRecord:
		if k.gone[r.Job] == nil {
			return "the id of a job is free that was not forgotten"
		}
		k.gone[r.Job].free = true
		return ""
	case tasks.JobRecord:
		id, err := protocol.JobIDFrom(r.Spec.GetJob())
		if err != nil {
			return "a job record without an id"
		}
		if k.jobs[id] != nil || k.gone[id] != nil {
			return "I1: a job is opened twice"
		}
		k.jobs[id] = &jobBook{done: map[uint32]doneAt{}}
		return ""
	}
	var id protocol.JobID
	switch r := rec.(type) {
	case tasks.TasksRecord:
		id = r.Job
	case tasks.ClosedRecord:
		id = r.Job
	case tasks.GrantedRecord:
		id = r.Job
	case tasks.DoneRecord:
		id = r.Job
	case tasks.CancelRecord:
		id = r.Job
	case tasks.TroubleRecord:
		id = r.Job
	case tasks.EndedRecord:
		id = r.Job
	case tasks.ForgetRecord:
		id = r.Job
	}
	b := k.jobs[id]
	if b == nil {
		return "a record of a job that was never opened"
	}
	switch r := rec.(type) {
	case tasks.TasksRecord:
		if r.First != b.tasks {
			return "I7: accepted tasks with a gap or twice"
		}
		b.tasks += uint32(len(r.Inputs))
		b.tasksAt = append(b.tasksAt, taskAt{b.tasks, batch})
	case tasks.ClosedRecord:
		if b.closed {
			return "a job is closed twice"
		}
		b.closed, b.closedAt, b.count = true, batch, r.Count
	case tasks.DoneRecord:
		o := r.Done.Outcome
		if _, twice := b.done[o.Index]; twice {
			return "I1: a second terminal record of a task"
		}
		if b.cancelled && o.Status != protocol.Status_CANCELLED {
			return "I3: a result after a recorded cancel"
		}
		if o.Index >= b.tasks {
			return "I7: a terminal record of a task that was not accepted"
		}
		if r.Done.Seq != b.seq {
			return "a result whose number in its job is not the next"
		}
		b.seq++
		if o.Status == protocol.Status_OK {
			if run := max(1, o.RunUs); b.runs[0] == 0 || run < b.runs[0] {
				b.runs[0] = run
			}
			b.runs[1] = max(b.runs[1], o.RunUs)
		}
		b.done[o.Index] = doneAt{o.Status, o.AttemptOf(), batch}
		b.blobs = append(b.blobs, blobsOf(o)...)
	case tasks.CancelRecord:
		if b.cancelled {
			return "I1: a job is cancelled twice"
		}
		b.cancelled, b.cancelAt = true, batch
	case tasks.EndedRecord:
		if !b.ended() || b.aged {
			return "a job ends that has not ended, or did so before"
		}
		b.aged = true
	case tasks.ForgetRecord:
		if !b.ended() {
			return "a job is forgotten that has not ended"
		}
		k.gone[id] = b
		delete(k.jobs, id)
	}
	return ""
}

// kept is what the journal hands back after a start: without what was deleted, the jobs in any order.
func (d *disk) kept(w *world) []tasks.Record {
	groups := map[protocol.JobID][]tasks.Record{}
	var ids []protocol.JobID
	var awake []tasks.Record
	add := func(id protocol.JobID, r tasks.Record) {
		if groups[id] == nil {
			ids = append(ids, id)
		}
		groups[id] = append(groups[id], r)
	}
	for _, b := range d.batches {
		for _, rec := range b {
			switch r := rec.(type) {
			case tasks.JobRecord:
				add(protocol.JobID(r.Spec.GetJob()), r)
			case tasks.TasksRecord:
				add(r.Job, r)
			case tasks.ClosedRecord:
				add(r.Job, r)
			case tasks.GrantedRecord:
				add(r.Job, r)
			case tasks.DoneRecord:
				add(r.Job, r)
			case tasks.CancelRecord:
				add(r.Job, r)
			case tasks.TroubleRecord:
				add(r.Job, r)
			case tasks.EndedRecord:
				add(r.Job, r)
			case tasks.ForgetRecord:
				groups[r.Job] = []tasks.Record{r}
			case tasks.ReusableRecord:
				delete(groups, r.Job)
				ids = slices.DeleteFunc(ids, func(id protocol.JobID) bool { return id == r.Job })
			case tasks.AwakeRecord:
				awake = []tasks.Record{r}
			case tasks.AwayRecord:
				if since, ok := d.book.away[r.Origin]; ok && since == r.Since {
					add(protocol.JobID{}, r)
				}
			case tasks.HeldRecord:
				if d.book.held[heldKey{r.Origin, r.Outcome.AttemptOf()}] != nil {
					add(protocol.JobID{}, r)
				}
			}
		}
	}
	w.rng.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	out := awake
	for _, id := range ids {
		out = append(out, groups[id]...)
	}
	return out
}

// load reads inputs again, from what is written, synced or not.
func (p *process) load(x tasks.Load) {
	n, w := p.n, p.n.w
	w.trace("%v reads %d inputs of %s from %d on", n, x.Count, x.Job.Short(), x.First)
	w.mixInt(int64(x.First)<<32 | int64(x.Count))
	ev := tasks.Loaded{Job: x.Job, First: x.First}
	size := 0
	for _, b := range n.disk.batches {
		for _, rec := range b {
			r, ok := rec.(tasks.TasksRecord)
			if !ok || r.Job != x.Job {
				continue
			}
			for k, in := range r.Inputs {
				if i := r.First + uint32(k); i >= x.First && i < x.First+x.Count && (size < x.Bytes || len(ev.Inputs) == 0) {
					ev.Inputs = append(ev.Inputs, in)
					size += len(in.Data)
				}
			}
		}
	}
	if len(ev.Inputs) == 0 {
		w.fail("%v reads %d inputs of %s from %d on: not written", n, x.Count, x.Job.Short(), x.First)
	}
	p.after(w.between(50*us, 5*ms), func() { p.post(ev) })
}

// blobs is a node's blob store. What is pinned stays.
type blobs struct {
	here map[protocol.BlobID]bool
	pins map[protocol.BlobID]int
}

func newBlobs() *blobs {
	return &blobs{here: map[protocol.BlobID]bool{}, pins: map[protocol.BlobID]int{}}
}

func (b *blobs) put(ids ...protocol.BlobID) {
	for _, id := range ids {
		b.here[id] = true
		b.pins[id]++
	}
}

func (b *blobs) unpin(id protocol.BlobID) {
	if b.pins[id]--; b.pins[id] <= 0 {
		delete(b.pins, id)
	}
}

// evict drops what is not pinned.
func (b *blobs) evict() {
	for id := range b.here {
		if b.pins[id] == 0 {
			delete(b.here, id)
		}
	}
}

// repin is what the node does at its start: the pins are those of the records that the disk kept.
func (b *blobs) repin(rs []tasks.Record) {
	clear(b.pins)
	for _, rec := range rs {
		switch r := rec.(type) {
		case tasks.HeldRecord:
			for _, id := range blobsOf(r.Outcome) {
				b.pins[id]++
			}
		case tasks.DoneRecord:
			for _, id := range blobsOf(r.Done.Outcome) {
				b.pins[id]++
			}
		case tasks.JobRecord:
			if c := r.Spec.GetProgram().GetCode(); c != nil {
				b.pins[protocol.BlobID(c.Id)]++
			}
		case tasks.TasksRecord:
			for _, in := range r.Inputs {
				for _, id := range readBy(&in) {
					b.pins[id]++
				}
			}
		}
	}
}

func blobsOf(o *protocol.Outcome) []protocol.BlobID {
	var ids []protocol.BlobID
	for _, b := range []*protocol.Blob{o.OutputBlob, o.LogBlob} {
		if b != nil {
			ids = append(ids, protocol.BlobID(b.Id))
		}
	}
	return ids
}
