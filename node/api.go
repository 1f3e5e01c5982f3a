package node

import (
	"context"
	"errors"
	"io"
	"time"

	"meshnode/node/doctor"
	"meshnode/protocol"
	"meshnode/tasks"
)

// What the local interface asks of a Node and shows of it. node/control declares the interface that
// names the methods it uses; these are their types. All methods of Node may be called concurrently.

// Error is an error for a person: what was wrong, and what to do next. Code is for programs and stays.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Codes of Error.
const (
	CodeNoJob       = "no_job"      // no such job
	CodeNoTask      = "no_task"     // the job has no task with that index
	CodeNoPeer      = "no_peer"     // no such member
	CodeNoBlob      = "no_blob"     // no such blob on this node
	CodeBadRequest  = "bad_request" // the request cannot be understood or breaks a limit
	CodeBadProgram  = "bad_program" // no node could run the program
	CodeRefused     = "refused"     // understood, and not done: the message says why
	CodeStopping    = "stopping"    // the node is going down
	CodeUnavailable = "unavailable" // a needed thing (disk space, peer, port) is not there
)

// ErrWatchLost ends a Watch whose reader was too slow or whose node stops: watch again from the cursor.
var ErrWatchLost = errors.New("watch lost")

// Status is the node at a glance (`status --json`).
type Status struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Version string    `json:"version"`
	Mesh    string    `json:"mesh"`
	Addrs   []string  `json:"addrs"`
	Slots   int       `json:"slots"`
	Running int       `json:"running"`
	Queued  int       `json:"queued"`
	Peers   int       `json:"peers"` // connected, this node not counted
	Paused  *string   `json:"paused"`
	Results int       `json:"results"`           // of other nodes' tasks, kept until their origins have answered them
	Disk    string    `json:"disk,omitempty"`    // what is wrong with the room on the disk, if something is
	Network string    `json:"network,omitempty"` // what is wrong with this computer's own network, if something is
	Started time.Time `json:"started"`
	// Membership is what is wrong with this node's own membership or its clock, as sentences; empty: nothing.
	Membership string `json:"membership,omitempty"`
	UI         string `json:"ui"` // always "off" in this version
	DataDir    string `json:"data_dir"`
	PID        int    `json:"pid"`

	// Bytes of blobs that went to and came from other nodes, since the start.
	BlobsSent     uint64 `json:"blob_bytes_sent"`
	BlobsReceived uint64 `json:"blob_bytes_received"`
}

// Peer is a member of the mesh as this node sees it (`peers --json`); this node is one of them, "self".
type Peer struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	State    string   `json:"state"` // self, connected, suspect (nothing was heard of it for longer than it should take), gone, asleep (it said so before)
	Slots    int      `json:"slots"`
	Running  int      `json:"running"`
	Queued   int      `json:"queued"`
	RTT      float64  `json:"rtt_ms"`
	Heard    float64  `json:"heard_ms"`        // since the last message of it
	Path     string   `json:"path"`            // direct, or relay
	Relay    string   `json:"relay,omitempty"` // the ID of the member through which it is connected
	Runtimes []string `json:"runtimes"`
	Sandbox  string   `json:"sandbox"` // of what it runs for others: "wasm", or "wasm; python: none" where Python runs: it has none yet
	Version  string   `json:"version"`
	Protocol int      `json:"protocol"` // version of the protocol that is spoken with it; 0: not connected
	Reason   string   `json:"reason"`   // why it is not connected, and when the next try is
	// NextTry is when it is dialled again; LastSeen when it was connected last, now if it is. Nil: no try is planned, or one goes on;
	// it was never met.
	NextTry  *time.Time `json:"next_try"`
	LastSeen *time.Time `json:"last_seen"`
	// Via is where its first address was heard: itself, given, ticket, mDNS, member NAME, DHT; "" if none is known.
	Via   string   `json:"via"`
	Addrs []string `json:"addrs"`
	Owner string   `json:"owner"` // "mine" or a short form of the other owner's key
	// Runtimes that it may use here, and this node there, by certificates and what this machine's owner allowed or denied.
	MayUseHere  []string `json:"may_use_here"`
	MayUseThere []string `json:"may_use_there"`
	OS          string   `json:"os"`
	Arch        string   `json:"arch"`
	Labels      []string `json:"labels"` // "key=value" or "key", as its owner set them
	CPUs        uint32   `json:"cpus"`
	Memory      uint64   `json:"memory"` // bytes that tasks may have, all slots together; 0: not known

	fix string // what is to be done about Reason, if that is known
}

// Job is a job of this node (`jobs --json`).
type Job struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Runtime   string    `json:"runtime"` // of its program: wasm, python, python3.12
	State     string    `json:"state"`   // running, done, failed, cancelled, waiting
	Tasks     uint32    `json:"tasks"`
	Done      uint32    `json:"done"`    // ended well
	Failed    uint32    `json:"failed"`  // ended badly, cancelled ones included
	Running   uint32    `json:"running"` // granted and not ended, wherever they are
	Pending   uint32    `json:"pending"`
	Submitted time.Time `json:"submitted"`
	Reason    string    `json:"reason"`              // why it waits or how it ended, if there is something to say
	WaitsFor  string    `json:"waits_for,omitempty"` // code of the reason why it waits, as of why
	Detached  bool      `json:"detached"`
	ElapsedMS float64   `json:"elapsed_ms"` // from acceptance to the end, or to now

	Attempts uint32     `json:"attempts"` // granted in all
	Stolen   uint32     `json:"stolen"`   // tasks granted to other nodes
	Reissued uint32     `json:"reissued"` // grants after a first one that was lost or given back
	Spares   uint32     `json:"spares"`   // second copies of stragglers
	Peers    []JobShare `json:"peers"`    // who did what, the busiest first

	Halted   bool   `json:"halted"` // failed tasks ended it early; those without a result are in Failed
	Retries  uint32 `json:"retries"`
	Priority int    `json:"priority"`
	RerunOf  string `json:"rerun_of,omitempty"` // the job whose tasks these are again

	Runs []uint32 `json:"runs,omitempty"` // of JobSpec; of a single job, left out in lists
}

// Why is why a job, a task or a peer is where it is (`why --json`): what matters most comes first.
type Why struct {
	Subject string         `json:"subject"` // "job 1a2b3c4d", "task 1a2b3c4d/7", "node kitchen"
	Summary string         `json:"summary"`
	Reasons []tasks.Reason `json:"reasons"`
}

// JobShare is what one node did for a job.
type JobShare struct {
	Peer   string  `json:"peer"`
	Name   string  `json:"name"`
	Tasks  uint32  `json:"tasks"`
	BusyMS float64 `json:"busy_ms"`
}

// TaskResult is a terminal task. Output and Log are whole: large ones were read back from the blob store. Or the output is left out,
// which then is the blob OutputBlob, as long as the job is kept.
type TaskResult struct {
	Seq      uint32 // of the job's results, in the order in which the tasks ended: the cursor
	Index    uint32
	Status   protocol.Status
	ExitCode int32
	Error    string
	Output   []byte
	Log      []byte
	Worker   protocol.NodeID
	Name     string // of the worker
	Attempts uint32
	Queued   time.Duration // at the worker
	Run      time.Duration

	OutputBlob *protocol.Blob // nil: Output is whole
}

// TaskInput is what one task gets.
type TaskInput struct {
	Data  []byte
	Blobs []protocol.BlobID // what it reads besides: at most protocol.MaxTaskBlobs, put before
}

// JobSpec is a submission.
type JobSpec struct {
	ID          protocol.JobID
	Name        string
	Runtime     string          // "wasm", "python", "python3.12"
	Code        protocol.BlobID // put before with PutBlob
	Args        []string
	ClockReal   bool
	Timeout     time.Duration // per task, 0: none
	Memory      uint64        // bytes per task, 0: the node's default
	MaxParallel uint32
	Detached    bool

	Retries    uint32         // failed attempts of a task that are tried again
	Priority   int            // MinPriority to MaxPriority, 0 is usual
	Placement  Placement      // which nodes may run it; zero: all
	Spare      protocol.Spare // whether stragglers get a second copy
	HaltFailed uint32         // so many failed tasks end the job, 0: none do
	HaltNow    bool           // then running tasks are stopped, too; else they may end
	RerunOf    protocol.JobID // the job whose tasks these are again; zero: none
	Runs       []uint32       // as protocol.Job has them, if the tasks are some of a longer list

	Group protocol.JobID  // of the jobs that share a limit on what runs at this node; zero: none
	Local *protocol.Local // how its tasks run at this node itself; nil: as everywhere
}

// Bounds of JobSpec.
const (
	MinPriority, MaxPriority = -100, 100
	// MaxRetries: a task that failed so often will fail again.
	MaxRetries = 1000
	// MaxNot is how many peers a job may shun: a mesh has hundreds of members at most.
	MaxNot = 256
	// MaxRuns bounds what a job remembers of the list that its tasks are some of: it is in memory with the job.
	MaxRuns = 2_000_000
	// maxPathEntries of a program's places of modules, and maxPath bytes of each: they are in memory and in the journal with each of its jobs.
	maxPathEntries, maxPath = 1000, 4096
)

// Placement says which nodes may run a job; all that is set must hold.
type Placement struct {
	On         string            // an expression over what nodes say of themselves, as of "submit --on"
	Not        []protocol.NodeID // these may not
	LocalOnly  bool              // the node of submission alone
	RemoteOnly bool              // any but the node of submission
}

// Connected is a member that Connect found.
type Connected struct {
	Peer string `json:"peer"`
	Name string `json:"name"`
}

// InviteOptions are what a ticket gives.
type InviteOptions struct {
	Mine     bool          // a machine of the same owner
	Guest    bool          // submits, and does no work for others
	Expires  time.Duration // 0: 24 h, of a code 10 min
	Uses     int           // 0: 1
	Runtimes []string      // nil: by kind of ticket
}

// Code says what became of a short code.
type Code struct {
	State   string    `json:"state"` // open, used, expired (or withdrawn), ended (by wrong tries)
	Uses    int       `json:"uses"`  // how many machines may use it
	Joined  []Joiner  `json:"joined"`
	Wrong   int       `json:"wrong"` // wrong tries
	Expires time.Time `json:"expires"`
}

// Joiner is a machine that a code let in.
type Joiner struct {
	Peer string `json:"peer"`
	Name string `json:"name"`
}

// Joined is what came of a join.
type Joined struct {
	Mesh string `json:"mesh"`
	Peer string `json:"peer,omitempty"` // whom this node joined
	Name string `json:"name,omitempty"`
	Mine bool   `json:"mine,omitempty"` // as a machine of the same owner, which runs all that the others do
}

var _ clientAPI = (*Node)(nil)

// The methods of Node that serve clients, as an interface here only to have one list of them with their
// contracts; *Node satisfies it.
type clientAPI interface {
	Status(ctx context.Context) (Status, error)
	// Peers lists this node first, then the others by name.
	Peers(ctx context.Context) ([]Peer, error)

	// OpenJob creates a job, or does nothing if there is one with that ID and the same program. The
	// program is checked first: a *Error with CodeBadProgram says what is wrong with it.
	OpenJob(ctx context.Context, spec JobSpec) error
	// AddTasks adds tasks from index first on; what the job has already is passed over. It waits while
	// the node has too much unwritten. Inputs over protocol.MaxInline become blobs. CodeNoBlob: one that a task reads is not here.
	AddTasks(ctx context.Context, job protocol.JobID, first uint32, ins []TaskInput) error
	// CloseJob says that the job has count tasks. When it returns nil the job is accepted: of a detached
	// job, everything is synced.
	CloseJob(ctx context.Context, job protocol.JobID, count uint32) error
	// Watch calls deliver with the results of a job from cursor on, but for outputs of more than most bytes, or protocol.MaxOutput, in order, each once, in batches, and
	// returns the ended job after the last; deliver may block (the client is slow), the node keeps no more than
	// 1 MiB for it meanwhile and reads on from its disk. deliver's slice is its own. An attached job whose
	// last watcher left is cancelled after 10 s.
	Watch(ctx context.Context, job protocol.JobID, cursor uint32, most uint64, deliver func([]TaskResult) error) (Job, error)
	// Jobs lists the jobs of this node, newest first.
	Jobs(ctx context.Context) ([]Job, error)
	Job(ctx context.Context, job protocol.JobID) (Job, error)
	// Inputs are up to n inputs of the job, from task first on; fewer, but one at least, if they are large.
	Inputs(ctx context.Context, job protocol.JobID, first uint32, n int) ([][]byte, error)
	Result(ctx context.Context, job protocol.JobID, index uint32) (TaskResult, bool, error)
	// Rerun makes a new job of the tasks of an ended one, with the same program and terms. It may be repeated with
	// the same ID. CodeRefused: the job goes on; CodeUnavailable: its program or an input is no more on this disk.
	Rerun(ctx context.Context, of protocol.JobID, r Rerun) (Job, error)
	// Cancel ends a job, or the task index of it.
	Cancel(ctx context.Context, job protocol.JobID, index *uint32) error
	// SetGroup says how many tasks of a group's jobs (JobSpec.Group) run at this node itself at once, from now on, while this
	// process lives; below 0: as many as it has slots. What runs above a lower limit ends; what waits here goes back.
	SetGroup(ctx context.Context, group protocol.JobID, limit int) error

	// PutBlob stores bytes of a program, or that tasks read; put twice they are stored once. sum is their SHA-256, which is checked
	// and remembered, or nil. The blob stays for 10 minutes, from then on or from the last OpenBlob, and as long as a job needs it.
	PutBlob(ctx context.Context, r io.Reader, sum []byte) (Blob, error)
	// OpenBlob opens a blob, named by its id or as sha256:HASH, and renews its lease. CodeNoBlob: it is not here. The caller closes it.
	OpenBlob(ctx context.Context, name string) (io.ReadSeekCloser, Blob, error)
	Blobs(ctx context.Context) (BlobStore, error)
	// GCBlobs removes blobs that nothing needs until no more than to bytes are occupied, and says how many that freed.
	GCBlobs(ctx context.Context, to int64) (freed int64, err error)
	// DeleteBlob removes one blob. CodeRefused: something needs it.
	DeleteBlob(ctx context.Context, name string) error

	Invite(ctx context.Context, o InviteOptions) (ticket string, err error)
	Join(ctx context.Context, ticket string) (mesh string, err error)
	// InviteCode is Invite with a short code in place of a ticket, which ends with five wrong tries. A day at most.
	InviteCode(ctx context.Context, o InviteOptions) (code string, err error)
	// Code says what became of a code; withdraw ends it first. CodeBadRequest: it is not known, or no more (an hour after its end).
	Code(ctx context.Context, code string, withdraw bool) (Code, error)
	// JoinCode is Join with a short code. at is where who gave it out listens; "": it is looked for in the local network.
	JoinCode(ctx context.Context, code, at string) (Joined, error)
	// Leave takes the node out of its mesh and makes one of its own; the members that can be reached hear it. Without force the machine
	// with the root key of a mesh that has others in it stays (CodeRefused).
	Leave(ctx context.Context, force bool) (Left, error)
	// Recover makes this node the holder of the root key of the mesh that the recovery code is of.
	Recover(ctx context.Context, code string) (mesh string, err error)
	// Revoke ends a member's membership for good, everywhere. CodeRefused: this node may not; CodeNoPeer.
	Revoke(ctx context.Context, id, reason string, withIssued bool) (Revoked, error)
	// Rename gives a member a name that only this node uses; "" takes it back.
	Rename(ctx context.Context, id, name string) error
	// Forget drops what is known of a member that is gone. CodeRefused: it is connected.
	Forget(ctx context.Context, id string) error
	// Allow and Deny set what this machine's owner lets a member do here, or this node do there, whatever certificates say.
	Allow(ctx context.Context, id string, o PeerPolicy) error
	Deny(ctx context.Context, id string, o PeerPolicy) error
	// ConnectBySecret is Connect with who is at an address, and may be no member yet: if it knows the same secret, the two become
	// members of one mesh, and from then on the address is tried whenever nobody is connected there.
	ConnectBySecret(ctx context.Context, addr, secret string) (Connected, error)
	// Connect connects a member, by its peer ID, or who is at an address (HOST:PORT or a multiaddr), within 3 s. CodeNoPeer: no such member;
	// CodeRefused: it is this node, or one of the two sides does not take the other for a member; CodeUnavailable: it cannot be reached.
	Connect(ctx context.Context, addr string) (Connected, error)
	SetSlots(ctx context.Context, n int) error
	// Pause stops taking and starting work, for d (0: until Resume).
	Pause(ctx context.Context, d time.Duration) error
	Resume(ctx context.Context) error
	// Drain stops taking and starting work until Resume, for good: it is a Pause whose reason says that the node is to become
	// empty. Its own jobs go on at other nodes. Status says when nothing runs any more.
	Drain(ctx context.Context) error

	// WhyJob, WhyTask and WhyPeer say why something is where it is. An unknown job or task is CodeNoJob, a peer
	// that this node knows nothing of CodeNoPeer.
	WhyJob(ctx context.Context, job protocol.JobID) (Why, error)
	WhyTask(ctx context.Context, job protocol.JobID, index uint32) (Why, error)
	WhyPeer(ctx context.Context, id string) (Why, error)
	// Ping asks a member for a sign of life and measures how long that takes; of one that is not connected it asks each address
	// that is known of it. CodeNoPeer: no such member; CodeRefused: it is this node.
	Ping(ctx context.Context, id string) (Ping, error)
	// Doctor looks for what keeps this node from finding others, from being found, and from working. It takes some seconds.
	Doctor(ctx context.Context) (doctor.Report, error)
	// Shutdown begins a clean stop and returns at once; Run then returns.
	Shutdown()
}
