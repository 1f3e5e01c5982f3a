package tasks

import "meshnode/protocol"

// Event is something that happened to the node: the input of Scheduler.Step. The scheduler keeps
// what an event points to; the caller must not change it afterwards.
type Event interface{ event() }

// Submit opens a job, adds tasks to it, or closes it; one Submit may do all three. It may be repeated:
// what the job has already is passed over. Errors: ErrNoJob, ErrForgotten, ErrGap, ErrTooMany, ErrClosed,
// ErrPlacement.
type Submit struct {
	Job    protocol.JobID
	Spec   *protocol.Job // opens the job; nil: it is open
	First  uint32        // index of Inputs[0]; at most the number of tasks the job has
	Inputs []Input
	Close  bool   // the job has Count tasks, and no more will come
	Count  uint32 // if Close
	Client bool   // somebody watches: an attached job may be cancelled once its client is gone
}

// Input is what one task gets: up to protocol.MaxInline bytes, or a blob that is on the origin's disk; and at most
// protocol.MaxTaskBlobs blobs there that it reads besides, as files.
type Input struct {
	Data  []byte
	Blob  *protocol.Blob
	Blobs []*protocol.Blob
}

// Cancel ends a job, or one task of it if Task is not nil. Unknown ones: ErrNoJob, ErrNoTask. What has ended stays.
type Cancel struct {
	Job    protocol.JobID
	Task   *uint32
	Reason string
}

// Forget drops an ended job and its results before its time (Retention). ErrNoJob, ErrRunning.
type Forget struct{ Job protocol.JobID }

// Watching says how many clients read the results of a job now: it is not forgotten meanwhile.
type Watching struct {
	Job   protocol.JobID
	Count int
}

// PeerUp says that a stream to a peer is open and its Hello was read. A stream that replaces another of
// the same peer may come up before the PeerDown of the old one; that PeerDown is then ignored.
type PeerUp struct {
	Peer    protocol.NodeID
	Session uint64 // of the stream: unique in this process, rising
	Hello   *protocol.Hello
	// The runtimes (without versions: "wasm", "python") that the peer may use here and that we
	// may use there, by certificates and the owners' policies.
	MayUseHere, MayUseThere []string
}

// PeerDown says that a stream is gone. Clean: a Bye was read. Asleep: it said that the peer's machine goes to sleep.
type PeerDown struct {
	Peer    protocol.NodeID
	Session uint64
	Clean   bool
	Asleep  bool
	Reason  string
}

// Expelled says that the peer is no member of the mesh any more: it was revoked, or has left.
type Expelled struct {
	Peer   protocol.NodeID
	Reason string
}

// SetPolicy says anew what a peer is called, and which runtimes it may use here, and we there, as PeerUp has them; for what is under
// way, too.
type SetPolicy struct {
	Peer                    protocol.NodeID
	Name                    string // "": as before
	MayUseHere, MayUseThere []string
}

// Receive is a message from a peer's stream, in order within the stream.
type Receive struct {
	Peer    protocol.NodeID
	Session uint64
	Message protocol.Message
	// RoundTrip to the peer, smoothed, ns; 0: not measured. It comes with Beats.
	RoundTrip int64
}

// Prepared answers a Prepare: the program is here, compiled, and its tasks can start; or not.
type Prepared struct {
	Origin protocol.NodeID
	Job    protocol.JobID
	// Invalid: no node can run the program; its tasks fail with this sentence.
	Invalid string
	// Unable: this node cannot, now; its tasks go back with this sentence.
	Unable string
}

// Finished is what a slot says of the items of its Starts, once or in parts: each item is named once.
type Finished struct {
	Slot     int
	Outcomes []*protocol.Outcome
	// Returned were not run, or stopped by a Stop, and have no outcome.
	Returned []protocol.Attempt
	// Idle: the slot has nothing any more. There is one after each Start, but one that comes while Starts are
	// under way says nothing of their items: they are answered, and then there is another.
	Idle bool
}

// Fetched answers a Fetch: the Blobs are on this disk, verified and pinned, or cannot be had from that peer (Err;
// nothing is pinned then).
type Fetched struct {
	Attempt protocol.Attempt
	Peer    protocol.NodeID
	Blobs   []protocol.BlobID
	Err     string
}

// Obtained answers an Obtain: the blob is on this disk, verified and pinned once, or is not to be had (Err).
type Obtained struct {
	Origin protocol.NodeID
	Blob   protocol.BlobID
	Err    string
}

// Loaded answers a Load: inputs of the tasks from First on, as many as were asked for or fitted, and one at least. An input
// that cannot be read ends the node instead: its task could neither run nor fail.
type Loaded struct {
	Job    protocol.JobID
	First  uint32
	Inputs []Input
}

// Transferred says that Bytes of blobs went between this node and a peer, either way, and how long they took, ns.
type Transferred struct {
	Peer  protocol.NodeID
	Bytes uint64
	Took  int64
}

// SetSlots changes how many tasks run here at once, from now on. What runs in a slot that is taken away ends first.
type SetSlots struct{ Slots int }

// SetGroup says how many tasks of a group's jobs run here at once, from now on; below 0: as many as there are slots.
type SetGroup struct {
	Group protocol.JobID
	Limit int
}

// SetPaused stops taking and starting work ("" goes on). Running tasks end; queued ones go back.
type SetPaused struct{ Reason string }

// Sleep says that the machine is about to sleep: what has not started goes back, and nothing is granted or started before
// Woke. What runs stays, here and at others. The node sends the Ready that follows, then Bye.
type Sleep struct{ Reason string }

// Woke says that the machine has slept, with or without a Sleep before, or that it was to sleep and does not. It comes before
// every other event after the sleep. Pauses of the process alone show in the times of the Steps.
type Woke struct{}

// Shutdown is the first half of a clean stop: queued and running attempts of others go back to their
// origins, nothing is granted or started any more. The node sends the Ready that follows, then Bye.
type Shutdown struct{ Reason string }

// Tick says that time has passed. The node sends it when Ready.Wake has come and all waiting events were
// handed in: an expiring lease must not overtake the heartbeat that renews it.
type Tick struct{}

func (Submit) event()      {}
func (Cancel) event()      {}
func (Forget) event()      {}
func (Watching) event()    {}
func (PeerUp) event()      {}
func (PeerDown) event()    {}
func (Expelled) event()    {}
func (SetPolicy) event()   {}
func (Receive) event()     {}
func (Prepared) event()    {}
func (Finished) event()    {}
func (Fetched) event()     {}
func (Obtained) event()    {}
func (Transferred) event() {}
func (Loaded) event()      {}
func (SetSlots) event()    {}
func (SetGroup) event()    {}
func (SetPaused) event()   {}
func (Sleep) event()       {}
func (Woke) event()        {}
func (Shutdown) event()    {}
func (Tick) event()        {}
