package tasks

import "meshnode/protocol"

// Ready is what the scheduler wants done, since the last Ready. The order is the order of the fields:
//
//  1. Records are written, as one atomic batch. A failed write ends the node: nothing below is done then.
//  2. What is not marked Durable is carried out; the write need not be synced.
//  3. What is marked Durable is carried out after the write was synced. Sync says that there is some; without
//     it the write is synced with a later one, within 100 ms.
//
// The slices are the caller's.
type Ready struct {
	Records  []Record
	Sync     bool
	Messages []Outgoing
	Stop     []Stop
	Prepare  []Prepare
	Start    []Start
	Fetch    []Fetch
	Obtain   []Obtain
	Load     []Load
	Unpin    []protocol.BlobID // blobs at this node, each named once per Outcome, job or Obtain that held it
	Notices  []Notice
	Happened []Happening // for logs only, and only with Config.Tell, but for Trespass
	// Wake is when the next Tick is due, in the time of Step; 0: not before another event.
	Wake int64
}

// Empty reports that there is nothing to do but wait.
func (r *Ready) Empty() bool {
	return len(r.Records) == 0 && !r.Sync && len(r.Messages) == 0 && len(r.Stop) == 0 && len(r.Prepare) == 0 &&
		len(r.Start) == 0 && len(r.Fetch) == 0 && len(r.Obtain) == 0 && len(r.Load) == 0 && len(r.Unpin) == 0 && len(r.Notices) == 0
}

// Outgoing is a message for the stream Session of a peer; if that stream is gone, the message is dropped.
type Outgoing struct {
	Peer    protocol.NodeID
	Session uint64
	Message protocol.Message
	Durable bool
	// Again, of a Beat: after so many ns without a newer one it is sent once more, with fresh ages, and so on: a
	// loop that waits for its disk does not make the node look dead.
	Again int64
}

// Start runs Items in Slot, one after the other, behind those that it has, if any: all of one job.
type Start struct {
	Slot   int
	Origin protocol.NodeID // who submitted the job; may be this node
	Job    protocol.JobID
	Items  []Item
}

// Item is one attempt to run.
type Item struct {
	Attempt protocol.Attempt
	Input   Input
	Number  uint32 // from 1, what the program sees as the task's number; 0: the attempt's index + 1
}

// Seen is the index that the program sees.
func (it *Item) Seen() uint32 {
	if it.Number > 0 {
		return it.Number - 1
	}
	return it.Attempt.Index
}

// Stop ends the named attempts of a slot: one that runs is killed, one that waits in it is left out. The
// slot answers with Finished, Returned or an outcome that was already there.
type Stop struct {
	Slot     int
	Attempts []protocol.Attempt
}

// Prepare fetches and compiles a program, as soon as its job is announced, if there are slots, and before its tasks start.
// Drop instead ends the node's use of it.
type Prepare struct {
	Origin protocol.NodeID
	Info   *protocol.JobInfo
	Local  *protocol.Local // how it runs here, of a job of this very node that says so; else nil
	Drop   bool
}

// Fetch brings the blobs of an outcome to this disk, verified, and pins them: the task is not done before.
type Fetch struct {
	Attempt protocol.Attempt
	Peer    protocol.NodeID
	Blobs   []*protocol.Blob
	Most    uint64 // bytes that one of them may have
}

// Obtain brings a blob that tasks of Origin read to this disk, from Origin or whoever has it, and pins it; Obtained answers.
type Obtain struct {
	Origin protocol.NodeID
	Blob   *protocol.Blob
}

// Load reads inputs of accepted tasks again, from their TasksRecords: up to Count from First on, but no more after Bytes of
// them. Loaded answers. The records need not be synced to be read.
type Load struct {
	Job   protocol.JobID
	First uint32
	Count uint32 // ≥ 1
	Bytes int
}

// Notice tells the watchers of a job what happened.
type Notice struct {
	Kind    NoticeKind
	Job     protocol.JobID
	Count   uint32   // Accepted: tasks the job has now
	Closed  bool     // Accepted: this answers a Submit that closes the job
	Done    *Done    // TaskDone
	State   JobState // JobEnded
	Reason  string   // JobEnded, if there is something to say
	Durable bool     // only after the sync
}

// NoticeKind says which fields of a Notice count.
type NoticeKind byte

// The kinds of notices.
const (
	Accepted NoticeKind = iota + 1
	TaskDone
	JobEnded
)

// Done is a terminal task: its result in the order in which the job's tasks ended.
type Done struct {
	Seq      uint32 // counts the job's terminal tasks from 0: the cursor of its results
	Outcome  *protocol.Outcome
	Worker   protocol.NodeID // empty if cancelled before it was granted
	Attempts uint32          // that were granted, this one included
}

// JobState is what a job is doing.
type JobState byte

// The states of a job. In: Submit, Restore. Out: Done, Failed and Cancelled are for ever; a crash of the
// origin leaves the others Waiting or Running.
const (
	JobWaiting   JobState = iota + 1 // no task of it runs
	JobRunning                       // an attempt is granted
	JobDone                          // closed, and all tasks ended well
	JobFailed                        // closed, all tasks ended, one or more badly; or halted by such
	JobCancelled                     // cancelled
)

func (s JobState) String() string {
	return [...]string{"", "waiting", "running", "done", "failed", "cancelled"}[s]
}

// Record is something that must survive a crash. The journal writes them in order and hands them back to
// Restore in any order in which those of one job stay in theirs.
type Record interface{ record() }

// EpochRecord is the origin's epoch from now on. It is synced before anything is sent in that epoch.
type EpochRecord struct{ Epoch uint64 }

// JobRecord is an opened job.
type JobRecord struct{ Spec *protocol.Job }

// TasksRecord are accepted tasks.
type TasksRecord struct {
	Job    protocol.JobID
	First  uint32
	Inputs []Input
}

// ClosedRecord says that a job has Count tasks.
type ClosedRecord struct {
	Job   protocol.JobID
	Count uint32
}

// GrantedRecord says that Worker may hold attempts of Job: written once for the pair. After a restart
// they are granted again only when Worker says that it does not hold them, or after a time.
type GrantedRecord struct {
	Job    protocol.JobID
	Worker protocol.NodeID
}

// DoneRecord is a terminal task.
type DoneRecord struct {
	Job  protocol.JobID
	Done *Done
}

// CancelRecord says that a job was cancelled: each of its tasks that has no DoneRecord is cancelled. Halted: its own
// failures did it (protocol.Halt), and it counts as failed.
type CancelRecord struct {
	Job    protocol.JobID
	Reason string
	Halted bool
}

// TroubleRecord is what a task that has not ended has been through; a later one of the same task takes its place.
type TroubleRecord struct {
	Job      protocol.JobID
	Index    uint32
	Attempts uint32           // that were granted
	Last     protocol.Attempt // the one that failed last, or whose worker process died: it counts once
	Failed   uint32           // attempts that failed, and were tried again
	Deaths   uint32           // of worker processes
	Losses   uint32           // of nodes that ran it
}

// EndedRecord says at which awake time a job ended. It comes with the record that ended it.
type EndedRecord struct {
	Job protocol.JobID
	At  int64
}

// ForgetRecord deletes a job, its tasks and results. Its id is refused until that awake time; then comes ReusableRecord.
type ForgetRecord struct {
	Job   protocol.JobID
	Until int64
}

// ReusableRecord deletes what is left of a forgotten job: that its id is refused.
type ReusableRecord struct{ Job protocol.JobID }

// AwakeRecord is how long, in ns, the node has been awake in all its lives, to ten minutes.
type AwakeRecord struct{ Awake int64 }

// AwayRecord says since which awake time an origin is away that has not answered outcomes here; Since < 0: it is back.
type AwayRecord struct {
	Origin protocol.NodeID
	Since  int64
}

// HeldRecord is an outcome that this node, as a worker, keeps for Origin until it is answered.
type HeldRecord struct {
	Origin  protocol.NodeID
	Outcome *protocol.Outcome
}

// AnsweredRecord deletes a HeldRecord.
type AnsweredRecord struct {
	Origin  protocol.NodeID
	Attempt protocol.Attempt
}

func (EpochRecord) record()    {}
func (JobRecord) record()      {}
func (TasksRecord) record()    {}
func (ClosedRecord) record()   {}
func (GrantedRecord) record()  {}
func (DoneRecord) record()     {}
func (CancelRecord) record()   {}
func (TroubleRecord) record()  {}
func (EndedRecord) record()    {}
func (ForgetRecord) record()   {}
func (ReusableRecord) record() {}
func (AwakeRecord) record()    {}
func (AwayRecord) record()     {}
func (HeldRecord) record()     {}
func (AnsweredRecord) record() {}
