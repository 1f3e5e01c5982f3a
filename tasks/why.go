package tasks

import (
	"cmp"
	"slices"
	"strings"
)

// Reason is why something waits, or was refused: for people, and by its code for programs.
type Reason struct {
	Code string `json:"code"` // of the table below; it stays
	Text string `json:"text"` // one sentence
	Fix  string `json:"fix"`  // what to do about it, or that nothing needs to be done
}

// Code is a Reason without its words: cheap enough to be asked for each task and peer.
type Code uint8

// The codes. To add one: a constant here, and its row in the table below.
const (
	// None: nothing is in the way.
	None Code = iota

	// Why a node gets no work of a job, whatever else it does.
	NoRuntime  // {what} is the runtime, and those that it has
	NotAllowed // {what} is the runtime
	NoMatch    // {what} is what it has instead
	Excluded   // by name
	OnlyHere
	OnlyElsewhere
	NoMemory  // {what} is what it gives to a task
	Refused   // {what} is what the node said when it gave the job back
	Unfetched // {what} is what went wrong
	InDoubt
	GroupNone
	GroupUnknown

	// Why a node gets no work at all.
	NotConnected
	Asleep // {what} is for how long
	Silent // {what} is for how long
	Deaf
	Paused // {what} is the pause's own reason
	NoSlots

	// Why tasks of a job wait.
	Open // {what} is ", and there is nothing to do now", or nothing
	Limbo
	NoNode     // {what} is why, by node
	NoSlotFree // {what} is the nodes
	GroupLimit // {what} is how many
	Halting    // {what} is why
	Disk       // {what} is what is wrong with it
	Network    // {what} is what is wrong with it
	Relayed    // {what} is the relay's name

	Elsewhere // {what} is how long yet
	TooFar    // {what} is how long the bytes take
	Alone     // {what} is how often

	// Where a task or a job's tasks are. {what} is how many, or "it", or for how long.
	RunsOn
	SleepsOn
	Overdue // {what} is its usual time there
	QueuedOn
	Fetching
	Told    // {what} is how many tasks of how many jobs
	Next    // {what} is how many
	Loading // {what} is how many
	MaxParallel
	Priority // {what} is how many jobs
	Sharing  // {what} is how many jobs
	Idle
	Busy // {what} is how many slots
	Stopping
	Unanswered  // {what} is how much
	Unconfirmed // {what} is how many
	EndedJob    // {what} is how
	AlreadyEnded

	// What happened to an attempt or a peer, for its story.
	Granted
	SpareGranted
	Adopted
	Moved
	NoRoom   // {what} is the node's sentence
	GaveBack // {what} is the node's sentence
	NodeRestarted
	NodeLeft
	NodeExpelled
	NodeLost
	NodeGone
	NodeAsleep
	NotHeld
	Unproved
	ProcessDied // {what} is how
	NotCounted  // {what} is the failure
	TriedAgain  // {what} is the failure
	Doubted     // {what} is the failure
	NotFetched  // {what} is what went wrong
	Ended
	EndedBadly    // {what} is the failure
	CancelledTask // {what} is why
	Recalled      // {what} is how many tasks
	Connected
	Disconnected // {what} is why
	Trespass     // {what} is the runtime

	codes // their number
)

// table has the words of each code. {node} is a node's name or "this node", {what} what the constant says.
var table = [codes]Reason{
	NoRuntime:     {"no_runtime", "{node} does not run {what}", "use a node that does: meshnode peers says who runs what; what Python {node} has, meshnode up --python says there"},
	NotAllowed:    {"not_allowed", "{node} is not to run {what} of this node", "Python runs only between machines of one owner: let {node} join with a ticket of meshnode invite --mine"},
	NoMatch:       {"no_match", "{node} {what}", "use a node that has it, start one with meshnode up --label K=V, or submit with another --on"},
	Excluded:      {"excluded", "{node} is excluded by --not", "submit without --not {node} if it may run there"},
	OnlyHere:      {"only_here", "{node} gets none of it: the job runs only where it was submitted", "submit without --local-only"},
	OnlyElsewhere: {"only_elsewhere", "{node} gets none of it: the job runs only on other nodes", "submit without --remote-only, or connect another node"},
	NoMemory:      {"no_memory", "{node} has {what}", "submit with less --memory; or on {node}: fewer slots (meshnode slots K), or meshnode up --memory with more"},
	Refused:       {"refused", "{node} gave it back: {what}", "see the log of {node}; it is asked again within a minute"},
	Unfetched:     {"unfetched", "{node} has results that could not be fetched: {what}", "see whether the disks of both nodes have room; it is asked again within a minute"},
	InDoubt:       {"in_doubt", "{node} failed task after task of this job, and others do not: it gets one at a time, with pauses, and its failures count only if the task fails elsewhere too", "look at {node}; meshnode logs JOB has what its tasks said"},

	GroupNone:    {"group_none", "{node} is to run none of it: the program that submitted it wants so", "let the program run some on its own node (pp: ncpus of Server, or set_ncpus), or connect another node"},
	GroupUnknown: {"group_unknown", "{node} was started anew, and waits to hear from the program how many of its tasks may run there", "nothing: it takes 10 s at most"},

	NotConnected: {"not_connected", "{node} is not connected", "start it there: meshnode up -d; meshnode peers says what is tried"},
	Asleep:       {"asleep", "{node} is asleep, for {what} now: it said so before", "wake it, or do nothing: what it runs goes on when it wakes, and is granted elsewhere once it slept for as long as it had run"},
	Silent:       {"silent", "{node} was not heard from for {what}", "it counts as lost after 3 s and its tasks run elsewhere; wake it, or look at its network"},
	Deaf:         {"deaf", "{node} is connected, and does not hear this node", "look at the network between the two: one direction is broken, or the other computer is overloaded"},
	Paused:       {"paused", "{node} takes no work: {what}", "on {node}: meshnode resume"},
	NoSlots:      {"no_slots", "{node} has no slots", "on {node}: meshnode slots K"},

	Open:         {"open", "its client keeps it open: more tasks may come{what}", "nothing: the client closes the job when it has sent all"},
	Limbo:        {"limbo", "this node was started anew: workers that may still hold its tasks are asked first", "nothing: it takes 10 s at most"},
	NoNode:       {"no_node", "no node can run it now: {what}", "change what is in the way, or submit it without that requirement"},
	NoSlotFree:   {"no_slot_free", "it waits for a free slot on {what}", "nothing: it starts when a task there ends; more nodes or slots make it sooner"},
	GroupLimit:   {"group_limit", "this node is to run {what} of its program at once, and does: the program wants so", "nothing, they end; the program can raise it (pp: ncpus of Server, or set_ncpus); other nodes are not limited by it"},
	RunsOn:       {"runs", "{node} runs {what}", "nothing: it ends by itself, or when meshnode cancel ends it"},
	SleepsOn:     {"sleeps", "{node} fell asleep while it ran {what}", "wake it, or do nothing: it is granted elsewhere once {node} slept for as long as it had run, 10 min at most"},
	Overdue:      {"overdue", "it runs longer than the {what} that tasks of its job take there", "see meshnode logs JOB/TASK; a --timeout bounds it, meshnode cancel JOB/TASK ends it"},
	QueuedOn:     {"queued", "{node} holds {what}, not started yet", "nothing: it starts when a slot there is free, or moves to a node that is idle"},
	Fetching:     {"fetching", "{node} has finished {what}, and the bytes of the result are on their way", "nothing: it ends when they are here"},
	Told:         {"told", "{node} has free slots and was told of {what}, and has not asked yet", "nothing: it asks within a round trip; if this stays, look at its log"},
	Next:         {"next", "{what} are granted as soon as a node asks for them", "nothing: this is the usual way"},
	Loading:      {"loading", "inputs of {what} are being read from the disk", "nothing: it takes milliseconds; if this stays, look at the disk"},
	MaxParallel:  {"max_parallel", "as many of its tasks run as its -j {what} allows", "submit with a larger -j, or without"},
	Priority:     {"priority", "{what} of higher priority go first", "wait for them, or submit with a higher --priority"},
	Sharing:      {"sharing", "{what} share the slots with it", "nothing: each gets the same time; --priority puts one first"},
	Idle:         {"nothing_to_do", "no job of this node has a task for {node} now", "nothing: submit more; jobs that other nodes submitted are known there"},
	Busy:         {"busy", "all slots of {node} are taken ({what})", "nothing: it gets more as soon as one is free; meshnode slots K there gives it more"},
	Stopping:     {"stopping", "this node is stopping, and grants nothing any more", "start it again: meshnode up -d"},
	Unanswered:   {"unanswered", "this node keeps {what} of results that {node} has not answered, and takes no more of its tasks", "look at the disk and the network of {node}: it answers once it has written them"},
	Unconfirmed:  {"unconfirmed", "this node does not start {what} of {node} before it was heard again", "nothing, if it comes back: else {node} gives them to others"},
	EndedJob:     {"job_ended", "the job has ended: {what}", "meshnode results JOB has its results; meshnode rerun JOB --failed tries again what failed"},
	AlreadyEnded: {"task_ended", "the task has ended", "meshnode results JOB has its result"},
	Disk:         {"disk", "this node's disk: {what}", "make room on the disk of its data directory (meshnode status names it); results wait for it, and all goes on by itself"},
	Network:      {"network", "this node's network: {what}", "look at this computer's network (cable, Wi-Fi, flight mode); members are found again by themselves"},
	Relayed:      {"relayed", "{node} is connected through {what}, which relays: what goes between the two takes as long as both ways and shares that node's bandwidth", "nothing: a direct connection is tried again now and then; to have one, forward a port to one of the two in its router and start it with --announce"},
	Halting:      {"halting", "nothing more of it starts: {what}", "nothing: it ends with what runs; submit with another --halt, or without"},

	TooFar:    {"too_far", "{node} is too far away: the bytes of a task need {what} to get there, and by then the others have done it", "nothing, or a faster network between the two: tasks whose bytes are there already go there"},
	Alone:     {"alone", "its node was lost {what} while it ran there: it may be what kills nodes, and runs alone on one", "nothing, if the nodes went for reasons of their own; else meshnode cancel JOB/TASK ends it"},
	Elsewhere: {"elsewhere", "it failed on {node}, and waits up to {what} for another node", "nothing: then {node} may try it again"},

	Granted:       {"granted", "granted to {node}", "nothing: this is the usual way"},
	SpareGranted:  {"spare_granted", "a spare copy was granted to {node}: the other one takes long", "nothing: the first result counts; --spare off does without"},
	Adopted:       {"adopted", "found again at {node}, from before the connection or this node was lost", "nothing: it goes on where it was"},
	Moved:         {"moved", "{node} gave it back unstarted, for a node that was idle", "nothing: it is granted again; it moves twice at most"},
	NoRoom:        {"no_room", "{node} had no room for it: {what}", "nothing: it is granted again, to whoever has a free slot"},
	GaveBack:      {"gave_back", "{node} gave it back: {what}", "nothing: it is granted again; this is no failed attempt"},
	NodeRestarted: {"node_restarted", "{node} was started anew, and what it held was lost", "nothing: it is granted again; see the log of {node} if nobody restarted it"},
	NodeExpelled:  {"node_expelled", "{node} is no member of the mesh any more", "nothing: it is granted again"},
	NodeLeft:      {"node_left", "{node} was stopped, and gave up what it held", "nothing: it is granted again"},
	NodeLost:      {"node_lost", "{node} was silent for 3 s and counts as lost", "nothing: it is granted again; was {node} asleep, or its network away?"},
	NodeGone:      {"node_gone", "the connection to {node} broke", "nothing: it is granted again; was {node} switched off, or its network away?"},
	NodeAsleep:    {"node_asleep", "{node} went to sleep while it ran it, and was not back in time", "nothing: it is granted again"},
	NotHeld:       {"not_held", "{node} does not have it: the grant never arrived", "nothing: it is granted again; if it happens often, look at the network between the two"},
	Unproved:      {"unproved", "{node} sent a result without the proof that it was granted", "see the log; the result was not used, and the task is granted again"},
	ProcessDied:   {"process_died", "the worker process on {node} died: {what}", "see the task's log; after four deaths the task has failed, as it is what kills them"},
	NotCounted:    {"not_counted", "it failed on {node} ({what}), and that does not count: another attempt lives", "nothing: the other attempt decides"},
	TriedAgain:    {"tried_again", "failed on {node} ({what}), and is tried again", "nothing: --retries of the job says how often"},
	Doubted:       {"doubted", "failed on {node} ({what}), which fails what others can do: that does not count", "nothing: it is tried elsewhere; if {node} fails everything, look at it"},
	NotFetched:    {"not_fetched", "its result at {node} could not be fetched: {what}", "nothing: it runs again; see whether the disks of both nodes have room"},
	Ended:         {"ended", "done by {node}", "nothing: meshnode results has its output"},
	EndedBadly:    {"ended_badly", "failed on {node}: {what}", "see meshnode logs JOB/TASK; meshnode rerun JOB --failed tries again"},
	CancelledTask: {"cancelled", "cancelled: {what}", "submit it again if it is wanted after all"},
	Recalled:      {"recalled", "{node} was asked to give back {what}, for a node that was idle", "nothing: so the last tasks of a job end sooner"},
	Connected:     {"connected", "{node} connected", "nothing: it gets work from now on"},
	Trespass:      {"trespass", "{node} wants this node to run {what}, and may not: it is not of the same owner", "nothing: what it grants goes back; if it is yours, let it join with a ticket of meshnode invite --mine"},
	Disconnected:  {"disconnected", "the connection to {node} ended: {what}", "nothing: it is tried again; meshnode peers says when"},
}

// Reason puts the words of a code together, with the name of a node and what else the code's constant asks for.
func (c Code) Reason(node, what string) Reason {
	r := table[c]
	words := strings.NewReplacer("{node}", node, "{what}", what)
	r.Text, r.Fix = words.Replace(r.Text), words.Replace(r.Fix)
	return r
}

// Reasons are the words of all codes, in their order, for tests and documents.
func Reasons() []Reason { return slices.Clone(table[1:]) }

func (c Code) String() string { return table[c].Code }

// FullDisk is the Reason of a node whose disk has no room. The scheduler does not see the disk: the node adds it.
func FullDisk(what string) Reason { return Disk.Reason("", what) }

// NoNetwork is the Reason of a node whose own network is away. The node adds it.
func NoNetwork(what string) Reason { return Network.Reason("", what) }

// ThroughRelay is the Reason of a node that is connected through a relay, which the scheduler does not see either.
func ThroughRelay(node, relay string) Reason { return Relayed.Reason(node, relay) }

// called is a node's name in a sentence.
func (p *peer) called() string {
	if p.self {
		return "this node"
	}
	return cmp.Or(p.Name, p.id.Short())
}

// idle is why p gets no work at all, or None.
func (s *Scheduler) idle(p *peer) Code {
	switch {
	case p.self && s.unavailable() != "", !p.self && p.up && p.paused != "":
		return Paused
	case !p.up && p.asleep != 0:
		return Asleep
	case !p.up:
		return NotConnected
	case p.slotsHere(s) == 0:
		return NoSlots
	case p.lostAt != 0 && s.now <= p.heard+suspectAfter:
		return Deaf
	case s.suspect(p):
		return Silent
	}
	return None
}

// explain is the Reason of a code that whyNot or idle gave for p and j (which may be nil, for idle).
func (s *Scheduler) explain(c Code, p *peer, j *job) Reason {
	what := ""
	switch c {
	case NoRuntime:
		what = j.spec.Program.GetRuntime() + ", only " + cmp.Or(strings.Join(p.runtimes, ", "), "nothing")
	case NotAllowed:
		what = j.spec.Program.GetRuntime()
	case Refused, Unfetched:
		what = p.cannot[j.id].reason
	case NoMatch:
		_, what = j.on.Match(p.id, &p.Facts, p.runtimes)
	case TooFar:
		what = span(s.missing(p, j))
	case NoMemory:
		what = sizeText(s.memoryOf(p)) + " of memory for a task, and the job wants " + sizeText(j.spec.Limits.GetMemoryBytes())
	case Silent:
		what = span(s.now - p.heard)
	case Asleep:
		what = span(s.now - p.asleep)
	case Paused:
		if what = p.paused; p.self {
			what = s.unavailable()
		}
	}
	return c.Reason(p.called(), what)
}

// whyNot is why p could run no task of j, or None. See available for what keeps it from work of all jobs.
func (s *Scheduler) whyNot(p *peer, j *job) Code {
	r := j.spec.Program.GetRuntime()
	switch {
	case p.self && j.bringsInterpreter():
	case !runs(p.runtimes, r):
		return NoRuntime
	case !permits(p.mayUseThere, r):
		return NotAllowed
	}
	switch c, refused := p.cannot[j.id]; {
	case refused && s.now < c.from:
		return c.code
	case p.self && j.group.bounded() && j.group.unknown:
		return GroupUnknown
	case p.self && j.group.bounded() && j.group.limit == 0:
		return GroupNone
	case j.spec.Limits.GetMemoryBytes() > 0 && p.Memory > 0 && j.spec.Limits.MemoryBytes > s.memoryOf(p):
		return NoMemory
	case j.spec.Placement == nil:
		return None
	}
	c, known := p.fits[j.id]
	if !known {
		c = p.fit(j)
		p.fits[j.id] = c
	}
	return c
}

// memoryOf is what p gives to one task, in bytes.
func (s *Scheduler) memoryOf(p *peer) uint64 { return p.Memory / uint64(max(1, p.slotsHere(s))) }

// runs says whether a list of runtimes, with versions or without ("wasm", "python3.11"), has one that is asked for, with
// its version or without.
func runs(have []string, want string) bool {
	for _, r := range have {
		if r == want {
			return true
		}
		if rest, ok := strings.CutPrefix(r, want); ok && want != "" && (isDigit(want[len(want)-1]) && rest[0] == '.' || !isDigit(want[len(want)-1]) && isDigit(rest[0])) {
			return true
		}
	}
	return false
}

// permits says whether a list of runtimes without versions has the one that is asked for, with its version or without.
func permits(have []string, want string) bool {
	return runs(have, want) || slices.Contains(have, strings.TrimRight(want, versionDigits))
}

// versionDigits are what the version behind a runtime's name is made of.
const versionDigits = "0123456789."

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// canRun says whether p could run tasks of j.
func (s *Scheduler) canRun(p *peer, j *job) bool { return s.whyNot(p, j) == None }
