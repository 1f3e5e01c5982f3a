package tasks

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
)

var update = flag.Bool("update", false, "rewrite testdata/*.txt with what happens now")

// TestScenarios plays the commands of testdata/*.txt to real Schedulers and compares all that comes out of them with the
// indented lines. testdata/README says what the commands are. A change of policy changes the traces: -update
// rewrites them, and the difference is read in review.
func TestScenarios(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := strings.ReplaceAll(string(b), "\r\n", "\n")
			got := play(t, file, want)
			if got == want {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
			i := 0
			for i < len(w) && i < len(g) && w[i] == g[i] {
				i++
			}
			from := max(0, i-8)
			t.Errorf("%s:%d: the trace differs (go test ./tasks -run Scenarios -update rewrites it)\nafter\n%s\nwant\n%s\ngot\n%s", file, i+1,
				strings.Join(w[from:min(i, len(w))], "\n"), strings.Join(w[i:min(i+6, len(w))], "\n"), strings.Join(g[i:min(i+6, len(g))], "\n"))
		})
	}
}

// play carries out the commands of a scenario and returns it with the trace that they gave.
func play(t *testing.T, file, text string) string {
	st := &stage{nodes: map[string]*actor{}, now: start}
	var out strings.Builder
	for i, line := range strings.SplitAfter(text, "\n") {
		if strings.HasPrefix(line, "  ") {
			continue // the trace of the last time
		}
		out.WriteString(line)
		if c := strings.TrimSpace(line); c == "" || c[0] == '#' {
			continue
		}
		st.shown = st.now
		err := st.command(strings.TrimSpace(line))
		for _, l := range st.out {
			fmt.Fprintf(&out, "  %s\n", l)
		}
		st.out = nil
		if err != nil {
			t.Fatalf("%s:%d: %s: %v\n%s", file, i+1, strings.TrimSpace(line), err, lastLines(out.String(), 30))
		}
	}
	return out.String()
}

func lastLines(s string, n int) string {
	ls := strings.Split(s, "\n")
	return strings.Join(ls[max(0, len(ls)-n):], "\n")
}

// stage is a mesh of a few nodes, in one virtual time.
type stage struct {
	now     int64
	nodes   map[string]*actor
	order   []*actor
	streams []*stream
	out     []string
	shown   int64 // the time that the trace has shown last
	broken  error
}

// start is when a stage opens: the clock of no machine shows 0.
const start = second

// actor is a node: a Scheduler and what the node around it would do.
type actor struct {
	st          *stage
	name        string
	facts       Facts
	s           *Scheduler // nil: its process is dead
	frozen      bool
	asleep      bool // and has said so
	slots       int
	window      int
	retain      Retention
	throwAway   bool
	runtimes    []string
	owner       string
	lives       uint64
	epoch       uint64
	incarnation uint64

	inbox  []Event
	wake   int64
	work   int64 // how long it takes for a task; 0: until finish says so
	busy   map[int]*running
	answer string // to Prepare
	reason string
	fetch  []Fetch

	disk   []Record
	synced int
	slow   bool // its disk syncs only when told to
	later  []func()
	backup int
}

type running struct {
	items []Item
	began int64
}

// stream is a stream between two nodes. Frames wait in it until they are delivered.
type stream struct {
	number  uint64
	ends    [2]*actor
	latency int64
	frames  [2][]frame // sent by the end of that index
	blocked [2]bool
	heard   [2]int64 // when that end last read a frame
	said    [2]string
	closed  [2]bool
}

type frame struct {
	at int64
	m  protocol.Message
}

// line is a command: its words, its key=value words, and the text behind a colon.
type line struct {
	words []string
	keys  map[string]string
	text  string
	used  map[string]bool
}

func parse(s string) *line {
	l := &line{keys: map[string]string{}, used: map[string]bool{}}
	head, text, _ := strings.Cut(s, ": ")
	l.text = text
	for _, w := range strings.Fields(head) {
		if k, v, ok := strings.Cut(w, "="); ok {
			l.keys[k] = v
		} else {
			l.words = append(l.words, w)
		}
	}
	return l
}

func (l *line) key(k, unset string) string {
	l.used[k] = true
	if v, ok := l.keys[k]; ok {
		return v
	}
	return unset
}

func (l *line) number(k string, unset int) int {
	n, err := strconv.Atoi(l.key(k, strconv.Itoa(unset)))
	if err != nil {
		return -1
	}
	return n
}

func (l *line) duration(k string) int64 {
	d, _ := time.ParseDuration(l.key(k, "0"))
	return int64(d)
}

func (l *line) flag(w string) bool { return slices.Contains(l.words, w) }

func (st *stage) command(s string) error {
	l := parse(s)
	arg := func(i int) string {
		if i < len(l.words) {
			return l.words[i]
		}
		return ""
	}
	verb := arg(0)
	if verb == "tick" || verb == "run" {
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return err
		}
		st.pass(int64(d), verb == "run")
		return st.broken
	}
	if verb == "node" {
		n := &actor{st: st, name: arg(1), slots: l.number("slots", 1), window: l.number("window", 0),
			retain: Retention{Detached: l.duration("retain"), Outcomes: l.duration("keep")}, work: l.duration("work")}
		n.throwAway, n.owner = l.flag("throwaway"), l.key("owner", "")
		n.runtimes = strings.Split(l.key("runtimes", "wasm"), ",")
		if n.facts = (Facts{OS: l.key("os", ""), Memory: uint64(l.number("memory", 0)) << 20}); l.key("labels", "") != "" {
			n.facts.Labels = strings.Split(l.key("labels", ""), ",")
		}
		st.nodes[n.name] = n
		st.order = append(st.order, n)
		return cmp.Or(n.start(), st.unused(l))
	}
	n := st.nodes[arg(1)]
	if n == nil {
		return fmt.Errorf("no node %q", arg(1))
	}
	m := st.nodes[arg(2)]
	if (verb == "connect" || verb == "deliver" || verb == "cut" || verb == "block" || verb == "unblock" || verb == "forge" || verb == "expel" || verb == "policy") && m == nil {
		return fmt.Errorf("no node %q", arg(2))
	}
	var err error
	switch verb {
	case "submit":
		err = n.submit(l)
	case "cancel":
		ev := Cancel{Job: protocol.JobID{byte(l.number("job", 0))}, Reason: l.text}
		if i := l.number("task", -1); i >= 0 {
			u := uint32(i)
			ev.Task = &u
		}
		err = n.client(ev)
	case "forget":
		err = n.client(Forget{protocol.JobID{byte(l.number("job", 0))}})
	case "connect":
		st.connect(n, m, l.duration("latency"))
	case "cut":
		err = st.cut(n, m, l)
	case "deliver":
		err = st.deliver(n, m, l)
	case "block", "unblock":
		x := st.stream(n, m, 0)
		if x == nil {
			return errors.New("no stream")
		}
		x.blocked[x.side(n)] = verb == "block"
	case "forge":
		err = st.forge(n, m, l)
	case "finish":
		err = n.finish(l)
	case "fetched":
		err = n.fetched(l)
	case "work":
		n.work = l.duration("each")
	case "program":
		n.answer, n.reason = arg(2), l.text
	case "slots":
		n.slots = l.number("n", 0)
		n.do(SetSlots{n.slots})
	case "group":
		err = n.client(SetGroup{protocol.JobID{15: byte(l.number("id", 0))}, l.number("limit", -1)})
	case "pause":
		n.do(SetPaused{l.text})
	case "goon":
		n.do(SetPaused{})
	case "shutdown":
		n.do(Shutdown{l.text})
	case "expel":
		n.do(Expelled{Peer: protocol.NodeID(m.name), Reason: l.text})
	case "policy":
		list := func(key string) []string {
			return strings.FieldsFunc(l.key(key, ""), func(r rune) bool { return r == ',' })
		}
		n.do(SetPolicy{Peer: protocol.NodeID(m.name), MayUseHere: list("here"), MayUseThere: list("there")})
	case "sleep":
		n.sleep(l.text)
	case "wake":
		n.asleep = false
		n.do(Woke{})
	case "bye":
		n.bye()
	case "kill":
		n.kill(l.flag("silent"))
	case "restart":
		if l.flag("backup") {
			n.disk = n.disk[:n.backup]
		}
		err = n.start()
	case "backup":
		n.backup = len(n.disk)
	case "freeze":
		n.frozen = true
	case "thaw":
		n.thaw()
	case "disk":
		n.slow = arg(2) == "slow"
	case "sync":
		n.sync()
	case "status":
		n.status()
	case "why":
		err = n.why(l, m)
	default:
		return errors.New("no such command")
	}
	return cmp.Or(err, st.broken, st.unused(l))
}

// unused finds a misspelt key.
func (st *stage) unused(l *line) error {
	for k := range l.keys {
		if !l.used[k] {
			return fmt.Errorf("%s= says nothing here", k)
		}
	}
	return nil
}

func (st *stage) say(format string, args ...any) {
	if st.shown != st.now {
		st.shown = st.now
		st.out = append(st.out, fmt.Sprintf("%v:", time.Duration(st.now-start)))
	}
	st.out = append(st.out, fmt.Sprintf(format, args...))
}

// start begins a life of the node with what is on its disk.
func (n *actor) start() error {
	if n.s != nil {
		return errors.New("it is alive")
	}
	n.lives++
	n.incarnation = n.lives * 1000
	n.epoch = 1
	for _, r := range n.disk {
		if e, ok := r.(EpochRecord); ok {
			n.epoch = max(n.epoch, e.Epoch+1)
		}
	}
	n.disk = append(n.disk, EpochRecord{n.epoch})
	n.synced = len(n.disk)
	s, err := New(Config{
		Self: protocol.NodeID(n.name), Epoch: n.epoch, Incarnation: n.incarnation, Key: [32]byte{n.name[0]}, Slots: n.slots,
		Runtimes: n.runtimes, Facts: n.facts, InputWindow: n.window, Retention: n.retain, ThrowAway: n.throwAway, Rand: rand.New(rand.NewPCG(uint64(n.name[0]), n.lives)),
	})
	if err != nil {
		return err
	}
	for _, r := range n.disk {
		if err := s.Restore(n.st.now, r); err != nil {
			return err
		}
	}
	s.Restored(n.st.now)
	n.s, n.busy, n.inbox, n.fetch, n.later, n.wake = s, map[int]*running{}, nil, nil, nil, 0
	if n.lives > 1 {
		n.st.say("%s starts in epoch %d", n.name, n.epoch)
	}
	n.turn()
	return nil
}

// do hands an event to the node, at once or when it is awake.
func (n *actor) do(ev Event) {
	if n.s == nil {
		return
	}
	n.inbox = append(n.inbox, ev)
	n.turn()
}

// client is do of what may be refused.
func (n *actor) client(ev Event) error {
	if n.s == nil || n.frozen {
		return errors.New("the node does not answer")
	}
	if err := n.s.Step(n.st.now, ev); err != nil {
		n.st.say("%s refuses: %v", n.name, err)
	}
	n.turn()
	return nil
}

// turn is the event loop: everything that waits, then a Ready and what it asks for, until all is quiet.
func (n *actor) turn() {
	for n.s != nil && !n.frozen && n.st.broken == nil {
		evs := n.inbox
		n.inbox = nil
		for _, ev := range evs {
			if err := n.s.Step(n.st.now, ev); err != nil {
				n.st.say("%s refuses: %v", n.name, err)
			}
		}
		r := n.s.Ready()
		n.wake = r.Wake
		if err := n.s.Check(); err != nil {
			n.st.broken = fmt.Errorf("%s: %w", n.name, err)
		}
		n.carryOut(r)
		if len(n.inbox) == 0 {
			return
		}
	}
}

func (n *actor) carryOut(r Ready) {
	st := n.st
	if len(r.Records) > 0 {
		n.disk = append(n.disk, r.Records...)
		var ws []string
		for _, x := range r.Records {
			switch x.(type) {
			case EndedRecord, AwakeRecord: // how late it is
			default:
				ws = append(ws, recordText(x))
			}
		}
		if len(ws) > 0 {
			st.say("%s writes %s", n.name, strings.Join(ws, "; "))
		}
	}
	when := func(durable bool, f func()) {
		if durable && n.slow && n.synced < len(n.disk) {
			n.later = append(n.later, f)
		} else {
			f()
		}
	}
	if !n.slow {
		n.synced = len(n.disk)
	}
	for _, x := range r.Messages {
		when(x.Durable, func() { n.send(x) })
	}
	for _, x := range r.Stop {
		st.say("%s stops slot %d: %s", n.name, x.Slot, attemptsText(x.Attempts))
		run := n.busy[x.Slot]
		if run == nil {
			st.broken = fmt.Errorf("%s stops slot %d, which is idle", n.name, x.Slot)
			return
		}
		run.items = slices.DeleteFunc(run.items, func(it Item) bool { return slices.Contains(x.Attempts, it.Attempt) })
		run.began = st.now
		n.inbox = append(n.inbox, Finished{Slot: x.Slot, Returned: x.Attempts, Idle: len(run.items) == 0})
		if len(run.items) == 0 {
			delete(n.busy, x.Slot)
		}
	}
	for _, x := range r.Prepare {
		id := protocol.JobID(x.Info.Job)
		if x.Drop {
			st.say("%s drops the program of %d of %s", n.name, id[0], x.Origin)
			continue
		}
		st.say("%s prepares %d of %s%s", n.name, id[0], x.Origin, localText(x.Local))
		ev := Prepared{Origin: x.Origin, Job: id}
		switch n.answer {
		case "invalid":
			ev.Invalid = n.reason
		case "unable":
			ev.Unable = n.reason
		}
		n.inbox = append(n.inbox, ev)
	}
	for _, x := range r.Start {
		var as []protocol.Attempt
		for _, it := range x.Items {
			as = append(as, it.Attempt)
		}
		st.say("%s starts slot %d: %s", n.name, x.Slot, attemptsText(as))
		if r := n.busy[x.Slot]; r == nil {
			n.busy[x.Slot] = &running{x.Items, st.now}
		} else if r.items = append(r.items, x.Items...); r.items[0].Attempt.Job != x.Job {
			st.broken = fmt.Errorf("%s starts slot %d, which is busy with another job", n.name, x.Slot)
		}
	}
	for _, x := range r.Fetch {
		st.say("%s fetches %d blobs of %v from %s", n.name, len(x.Blobs), attemptsText([]protocol.Attempt{x.Attempt}), x.Peer)
		n.fetch = append(n.fetch, x)
	}
	for _, x := range r.Load {
		ev := Loaded{Job: x.Job, First: x.First, Inputs: readInputs(n.disk, x)}
		st.say("%s reads the inputs of %d/%d..%d", n.name, x.Job[0], x.First, int(x.First)+len(ev.Inputs)-1)
		n.inbox = append(n.inbox, ev)
	}
	for _, b := range r.Unpin {
		st.say("%s unpins %x", n.name, b[:2])
	}
	for _, x := range r.Notices {
		when(x.Durable, func() { st.say("%s tells %s", n.name, noticeText(x)) })
	}
}

func localText(l *protocol.Local) string {
	if l.GetInterpreter() == "" {
		return ""
	}
	return " with " + l.Interpreter
}

// readInputs is what a node does for a Load.
func readInputs(disk []Record, x Load) []Input {
	var all, out []Input
	for _, r := range disk {
		switch r := r.(type) {
		case TasksRecord:
			if r.Job == x.Job {
				all = append(all, r.Inputs...)
			}
		case ForgetRecord:
			if r.Job == x.Job {
				all = nil
			}
		}
	}
	size := 0
	for _, in := range all[x.First : x.First+x.Count] {
		out = append(out, in)
		if size += len(in.Data); size >= x.Bytes {
			break
		}
	}
	return out
}

// send puts a message on its stream. A beat that says nothing new is sent, but not shown.
func (n *actor) send(x Outgoing) {
	st := n.st
	i := slices.IndexFunc(st.streams, func(y *stream) bool { return y.number == x.Session })
	if i < 0 || st.streams[i].closed[st.streams[i].side(n)] {
		return // the stream is gone
	}
	y := st.streams[i]
	side := y.side(n)
	if y.ends[1-side].name != string(x.Peer) {
		st.broken = fmt.Errorf("%s sends to %s on stream %d, which is another's", n.name, x.Peer, x.Session)
		return
	}
	text := messageText(x.Message)
	if b, ok := x.Message.(*protocol.Beat); ok {
		b.HeardAgeMs = uint32((st.now - y.heard[side]) / millisecond)
		text = beatText(b)
		if b.SameHeld && text == y.said[side] {
			text = ""
		} else {
			y.said[side] = text
		}
	}
	if text != "" {
		st.say("%s → %s %s", n.name, x.Peer, text)
	}
	y.frames[side] = append(y.frames[side], frame{st.now + y.latency, x.Message})
}

func (y *stream) side(n *actor) int {
	if y.ends[0] == n {
		return 0
	}
	return 1
}

// stream is the newest one between two nodes, or the one with that number.
func (st *stage) stream(n, m *actor, number uint64) *stream {
	for _, y := range slices.Backward(st.streams) {
		if (y.ends == [2]*actor{n, m} || y.ends == [2]*actor{m, n}) && (number == 0 && y.closed != [2]bool{true, true} || y.number == number) {
			return y
		}
	}
	return nil
}

// connect opens a stream: each side reads the other's Hello. An old stream stays until it is cut.
func (st *stage) connect(n, m *actor, latency int64) {
	y := &stream{number: uint64(len(st.streams) + 1), ends: [2]*actor{n, m}, latency: latency, heard: [2]int64{st.now, st.now}}
	st.streams = append(st.streams, y)
	var hellos [2]*protocol.Hello
	for i, a := range y.ends {
		if a.s == nil || a.frozen {
			y.closed[i] = true
			continue
		}
		hellos[i] = a.s.Hello(protocol.NodeID(y.ends[1-i].name))
	}
	for i, a := range y.ends {
		if h := hellos[1-i]; h != nil && hellos[i] != nil {
			st.say("%s reads %s", a.name, helloText(y.ends[1-i].name, h))
			a.do(PeerUp{Peer: protocol.NodeID(y.ends[1-i].name), Session: y.number, Hello: h, MayUseHere: mayUse(y), MayUseThere: mayUse(y)})
		}
	}
}

// mayUse is what nodes run for each other: of different owners, wasm alone.
func mayUse(y *stream) []string {
	if y.ends[0].owner != y.ends[1].owner {
		return []string{"wasm"}
	}
	return []string{"wasm", "python", "command"}
}

// cut breaks a stream: what was on its way is lost. Only one of the ends may notice.
func (st *stage) cut(n, m *actor, l *line) error {
	y := st.stream(n, m, uint64(l.number("stream", 0)))
	if y == nil {
		return errors.New("no stream")
	}
	only := l.key("at", "")
	y.frames = [2][]frame{}
	for i, a := range y.ends {
		if only == "" || only == a.name {
			st.close(y, i, false)
		}
	}
	return nil
}

// close tells one end that its stream is gone.
func (st *stage) close(y *stream, side int, clean bool) {
	if y.closed[side] {
		return
	}
	y.closed[side] = true
	y.ends[side].do(PeerDown{Peer: protocol.NodeID(y.ends[1-side].name), Session: y.number, Clean: clean, Asleep: clean && y.ends[1-side].asleep})
}

// deliver hands the frames from n to m, all or the first few, and those that this makes m send stay on their way.
func (st *stage) deliver(n, m *actor, l *line) error {
	y := st.stream(n, m, uint64(l.number("stream", 0)))
	if y == nil {
		return errors.New("no stream")
	}
	side := y.side(n)
	for range min(l.number("n", len(y.frames[side])), len(y.frames[side])) {
		st.read(y, side)
	}
	return nil
}

// read has the other end of side read one frame.
func (st *stage) read(y *stream, side int) {
	f := y.frames[side][0]
	y.frames[side] = y.frames[side][1:]
	m := y.ends[1-side]
	if m.s == nil || y.closed[1-side] {
		return
	}
	y.heard[1-side] = st.now
	m.do(Receive{Peer: protocol.NodeID(y.ends[side].name), Session: y.number, Message: proto.Clone(f.m)})
}

// pass lets time pass: slots end and Ticks come when they are due, and frames arrive if deliver says so.
func (st *stage) pass(d int64, deliver bool) {
	until := st.now + d
	for range 100000 {
		next := until
		for deliver {
			var due *stream
			side := 0
			for _, y := range st.streams {
				for i := range y.frames {
					if len(y.frames[i]) == 0 || y.blocked[i] || y.ends[1-i].frozen {
						continue
					}
					if at := y.frames[i][0].at; at > st.now {
						next = min(next, at)
					} else if due == nil {
						due, side = y, i
					}
				}
			}
			if due == nil {
				break
			}
			st.read(due, side)
			next = until
		}
		moved := false
		for _, n := range st.order {
			if n.s == nil || n.frozen || n.work == 0 {
				continue
			}
			for _, i := range sortedKeys(n.busy) {
				if r := n.busy[i]; st.now >= r.began+n.work {
					n.end(i, 1, &protocol.Outcome{Status: protocol.Status_OK, RunUs: uint64(n.work / microsecond)})
					moved = true
				} else {
					next = min(next, r.began+n.work)
				}
			}
		}
		if moved {
			continue
		}
		for _, n := range st.order {
			if n.s == nil || n.frozen || n.wake == 0 {
				continue
			}
			if n.wake <= st.now {
				n.wake = 0
				n.do(Tick{})
				moved = true
			} else {
				next = min(next, n.wake)
			}
		}
		if st.broken != nil || !moved && st.now == until {
			return
		}
		if !moved {
			st.now = next
		}
	}
	st.broken = errors.New("time does not pass: something is always due")
}

func (n *actor) submit(l *line) error {
	id := protocol.JobID{byte(l.number("job", 0))}
	ev := Submit{Job: id, First: uint32(l.number("first", 0)), Client: true}
	if ev.First == 0 {
		ev.Spec = spec(id)
		ev.Spec.Detached = l.flag("detached")
		ev.Spec.MaxParallel = uint32(l.number("parallel", 0))
		ev.Spec.Priority = int32(l.number("priority", 0))
		ev.Spec.Retries = uint32(l.number("retries", 0))
		ev.Spec.Program.Runtime = l.key("runtime", "wasm")
		if v := l.key("interpreter", ""); v != "" {
			ev.Spec.Local = &protocol.Local{Interpreter: "/bin/python" + v, Version: v}
		}
		if g := l.number("group", 0); g > 0 {
			ev.Spec.Group = append(make([]byte, 15), byte(g))
		}
		ev.Spec.Limits = &protocol.Limits{MemoryBytes: uint64(l.number("memory", 0)) << 20}
		if at := (protocol.Placement{On: l.key("on", ""), LocalOnly: l.flag("local"), RemoteOnly: l.flag("remote")}); l.key("not", "") != "" || at.On != "" || at.LocalOnly || at.RemoteOnly {
			ev.Spec.Placement = &protocol.Placement{On: at.On, LocalOnly: at.LocalOnly, RemoteOnly: at.RemoteOnly, Not: strings.Fields(strings.ReplaceAll(l.key("not", ""), ",", " "))}
		}
		if n := l.number("halt", 0); n > 0 {
			ev.Spec.Halt = &protocol.Halt{Failed: uint32(n), Now: l.flag("now")}
		}
	}
	for i := range l.number("tasks", 0) {
		ev.Inputs = append(ev.Inputs, Input{Data: []byte{byte(i)}})
	}
	if !l.flag("open") {
		ev.Close, ev.Count = true, ev.First+uint32(len(ev.Inputs))
	}
	return n.client(ev)
}

// finish ends what a slot runs, as the executor would say it.
func (n *actor) finish(l *line) error {
	i := l.number("slot", 0)
	r := n.busy[i]
	if r == nil {
		return errors.New("the slot is idle")
	}
	o := &protocol.Outcome{Status: protocol.Status(protocol.Status_value[l.key("status", "OK")]), Error: l.text}
	run := l.duration("run")
	if run == 0 {
		run = n.st.now - r.began
	}
	o.RunUs = uint64(run / microsecond)
	if l.flag("blob") {
		o.OutputBlob = &protocol.Blob{Id: make([]byte, 32), Size: 100 << 10}
	}
	if o.Status != protocol.Status_OK {
		o.ExitCode = 3
	}
	n.end(i, l.number("n", len(r.items)), o)
	return nil
}

// end ends the first k items of a slot like o.
func (n *actor) end(i, k int, o *protocol.Outcome) {
	r := n.busy[i]
	ev := Finished{Slot: i}
	for _, it := range r.items[:k] {
		p := proto.Clone(o).(*protocol.Outcome)
		a := it.Attempt
		p.Job, p.Index, p.Epoch, p.N = a.Job[:], a.Index, a.Epoch, a.N
		if p.OutputBlob != nil {
			p.OutputBlob.Id[0], p.OutputBlob.Id[1] = n.name[0], byte(a.Index)
		}
		ev.Outcomes = append(ev.Outcomes, p)
	}
	r.items, r.began = r.items[k:], n.st.now
	if o.Status == protocol.Status_WORKER_LOST { // it takes those that waited in it along
		for _, it := range r.items {
			ev.Returned = append(ev.Returned, it.Attempt)
		}
		r.items = nil
	}
	if ev.Idle = len(r.items) == 0; ev.Idle {
		delete(n.busy, i)
	}
	n.do(ev)
}

// fetched answers the oldest Fetch.
func (n *actor) fetched(l *line) error {
	if len(n.fetch) == 0 {
		return errors.New("nothing is fetched")
	}
	f := n.fetch[0]
	n.fetch = n.fetch[1:]
	ev := Fetched{Attempt: f.Attempt, Peer: f.Peer, Err: l.text}
	for _, b := range f.Blobs {
		if ev.Err == "" {
			ev.Blobs = append(ev.Blobs, protocol.BlobID(b.Id))
		}
	}
	n.do(ev)
	return nil
}

// forge has n send m a result of an attempt that need not be its own.
func (st *stage) forge(n, m *actor, l *line) error {
	y := st.stream(n, m, 0)
	if y == nil {
		return errors.New("no stream")
	}
	o := &protocol.Outcome{
		Job: make([]byte, 16), Index: uint32(l.number("task", 0)), Epoch: uint64(l.number("epoch", 1)), N: uint32(l.number("n", 1)),
		Status: protocol.Status_OK, Output: []byte("forged"), Mac: make([]byte, macSize),
	}
	o.Job[0] = byte(l.number("job", 1))
	x := &protocol.Result{Outcomes: []*protocol.Outcome{o}}
	st.say("%s → %s %s, forged", n.name, m.name, messageText(x))
	y.frames[y.side(n)] = append(y.frames[y.side(n)], frame{st.now, x})
	return nil
}

// kill is kill -9: what was not synced is lost, and the other ends see a reset, or nothing.
func (n *actor) kill(silent bool) {
	n.s, n.frozen = nil, false
	n.disk = n.disk[:n.synced]
	n.hangUp(silent, false)
}

// bye ends a node that was shut down, after everything that it sent was read.
// sleep is what a node does that is told that its machine will sleep: its streams end with a Bye behind all that it says.
func (n *actor) sleep(reason string) {
	n.do(Sleep{reason})
	n.asleep = true
	for _, y := range n.st.streams {
		if i := slices.Index(y.ends[:], n); i >= 0 && !y.closed[i] {
			for len(y.frames[i]) > 0 {
				n.st.read(y, i)
			}
			y.frames = [2][]frame{}
			n.st.close(y, 1-i, true)
			n.st.close(y, i, false)
		}
	}
}

func (n *actor) bye() {
	for _, y := range n.st.streams {
		if i := slices.Index(y.ends[:], n); i >= 0 {
			for len(y.frames[i]) > 0 {
				n.st.read(y, i)
			}
		}
	}
	n.s = nil
	n.hangUp(false, true)
}

func (n *actor) hangUp(silent, clean bool) {
	for _, y := range n.st.streams {
		if i := slices.Index(y.ends[:], n); i >= 0 {
			y.closed[i] = true
			y.frames = [2][]frame{}
			if !silent {
				n.st.close(y, 1-i, clean)
			}
		}
	}
}

// thaw lets a frozen node go on: it reads what has come, then the Tick that is due.
func (n *actor) thaw() {
	n.frozen = false
	for _, y := range n.st.streams {
		if i := slices.Index(y.ends[:], n); i >= 0 && !y.closed[i] && !y.blocked[1-i] {
			for _, f := range y.frames[1-i] {
				n.inbox = append(n.inbox, Receive{Peer: protocol.NodeID(y.ends[1-i].name), Session: y.number, Message: proto.Clone(f.m)})
				y.heard[i] = n.st.now
			}
			y.frames[1-i] = nil
		}
	}
	n.inbox = append(n.inbox, Tick{})
	n.turn()
}

// sync ends the sync of a slow disk.
func (n *actor) sync() {
	n.synced = len(n.disk)
	fs := n.later
	n.later = nil
	for _, f := range fs {
		f()
	}
}

func (n *actor) status() {
	for _, j := range n.s.Jobs() {
		n.st.say("%d is %v: %d tasks, %d done, %d failed, %d running, %d pending, %d attempts. %s",
			j.ID[0], j.State, j.Tasks, j.Done, j.Failed, j.Running, j.Pending, j.Attempts, j.Reason)
	}
	for _, p := range n.s.Peers() {
		if !p.Self {
			state := "down"
			if p.Suspect {
				state = "suspect"
			} else if p.Up {
				state = "up"
			}
			n.st.say("%s is %s", p.ID, state)
		}
	}
	for _, p := range n.s.order {
		if queued, unanswered := n.s.peers[p].heldLists(); len(queued)+len(unanswered) > 0 {
			n.st.say("of %s: holds %s, unanswered %s", p, attemptsText(queued), attemptsText(unanswered))
		}
	}
}

// why shows the answer to a question about a job, a task or a peer.
func (n *actor) why(l *line, m *actor) error {
	var w Why
	ok := true
	id := protocol.JobID{byte(l.number("job", 0))}
	switch i := l.number("task", -1); {
	case i >= 0:
		w, ok = n.s.WhyTask(n.st.now, id, uint32(i))
	case m == nil:
		w, ok = n.s.WhyJob(n.st.now, id)
	default:
		w, ok = n.s.WhyPeer(n.st.now, protocol.NodeID(m.name))
	}
	if !ok {
		return errors.New("nothing of that name")
	}
	n.st.say("%s", w.Summary)
	for _, r := range w.Reasons {
		n.st.say("%s: %s", r.Code, r.Text)
	}
	return nil
}

// attemptsText is job/index#epoch.n of each, neighbours together.
func attemptsText(as []protocol.Attempt) string {
	var ws []string
	for i := 0; i < len(as); {
		a, k := as[i], i+1
		for k < len(as) && as[k] == (protocol.Attempt{Job: a.Job, Index: a.Index + uint32(k-i), N: a.N, Epoch: a.Epoch}) {
			k++
		}
		index := fmt.Sprint(a.Index)
		if k > i+1 {
			index = fmt.Sprintf("%d-%d", a.Index, as[k-1].Index)
		}
		ws = append(ws, fmt.Sprintf("%d/%s#%d.%d", a.Job[0], index, a.Epoch, a.N))
		i = k
	}
	if len(ws) == 0 {
		return "none"
	}
	return strings.Join(ws, " ")
}

func groupsText(gs []*protocol.Attempts) string { return attemptsText(protocol.UngroupAttempts(gs)) }

func outcomeText(o *protocol.Outcome) string {
	t := fmt.Sprintf("%s %v", attemptsText([]protocol.Attempt{o.AttemptOf()}), o.Status)
	if o.OutputBlob != nil {
		t += " with a blob"
	}
	if o.Error != "" {
		t += fmt.Sprintf(" (%s)", o.Error)
	}
	return t
}

func recordText(r Record) string {
	switch r := r.(type) {
	case EpochRecord:
		return fmt.Sprintf("epoch %d", r.Epoch)
	case JobRecord:
		return fmt.Sprintf("job %d", r.Spec.Job[0])
	case TasksRecord:
		return fmt.Sprintf("%d tasks of %d from %d", len(r.Inputs), r.Job[0], r.First)
	case ClosedRecord:
		return fmt.Sprintf("%d closed at %d", r.Job[0], r.Count)
	case GrantedRecord:
		return fmt.Sprintf("%d granted to %s", r.Job[0], r.Worker)
	case DoneRecord:
		return fmt.Sprintf("done %d: %s by %s after %d", r.Done.Seq, outcomeText(r.Done.Outcome), cmp.Or(string(r.Done.Worker), "nobody"), r.Done.Attempts)
	case CancelRecord:
		if r.Halted {
			return fmt.Sprintf("%d halted: %s", r.Job[0], r.Reason)
		}
		return fmt.Sprintf("%d cancelled", r.Job[0])
	case TroubleRecord:
		return fmt.Sprintf("trouble with %s after %d: %d failed, %d deaths, %d losses", attemptsText([]protocol.Attempt{r.Last}), r.Attempts, r.Failed, r.Deaths, r.Losses)
	case ForgetRecord:
		return fmt.Sprintf("%d forgotten", r.Job[0])
	case ReusableRecord:
		return fmt.Sprintf("the id of %d is free", r.Job[0])
	case AwayRecord:
		if r.Since < 0 {
			return fmt.Sprintf("%s is back", r.Origin)
		}
		return fmt.Sprintf("%s is away", r.Origin)
	case HeldRecord:
		return fmt.Sprintf("held for %s: %s", r.Origin, outcomeText(r.Outcome))
	case AnsweredRecord:
		return fmt.Sprintf("answered by %s: %s", r.Origin, attemptsText([]protocol.Attempt{r.Attempt}))
	}
	return fmt.Sprintf("%T", r)
}

func noticeText(x Notice) string {
	switch x.Kind {
	case Accepted:
		t := fmt.Sprintf("accepted %d: %d tasks", x.Job[0], x.Count)
		if x.Closed {
			t += ", closed"
		}
		return t
	case TaskDone:
		return fmt.Sprintf("done %d: %s", x.Done.Seq, outcomeText(x.Done.Outcome))
	case JobEnded:
		return strings.TrimSpace(fmt.Sprintf("%d %v %s", x.Job[0], x.State, x.Reason))
	}
	return fmt.Sprintf("%+v", x)
}

func helloText(from string, h *protocol.Hello) string {
	t := fmt.Sprintf("Hello of %s: epoch %d, %d slots", from, h.Epoch, h.Slots)
	if h.ThrowAway {
		t += ", of one program"
	}
	if h.SeenEpoch > 0 {
		t += fmt.Sprintf(", saw epoch %d", h.SeenEpoch)
	}
	if len(h.Held)+len(h.Unanswered) > 0 {
		t += fmt.Sprintf(", holds %s, unanswered %s", groupsText(h.Held), groupsText(h.Unanswered))
	}
	return t
}

// beatText is a beat without what changes all the time.
func beatText(b *protocol.Beat) string {
	t := fmt.Sprintf("Beat: read %d, %d slots, holds ", b.GrantsRead, b.Slots)
	if b.SameHeld {
		t += "the same"
	} else {
		t += fmt.Sprintf("%s, unanswered %s", groupsText(b.Held), groupsText(b.Unanswered))
	}
	if len(b.RunningOfYours) > 0 {
		t += ", runs " + groupsText(b.RunningOfYours)
	}
	if b.Paused != "" {
		t += ", paused: " + b.Paused
	}
	if b.Challenge+b.Answer > 0 {
		t += fmt.Sprintf(", challenge %d answer %d", b.Challenge, b.Answer)
	}
	if b.HeardAgeMs >= uint32(suspectAfter/millisecond) {
		t += ", hears nothing"
	}
	return t
}

func messageText(m protocol.Message) string {
	switch m := m.(type) {
	case *protocol.Load:
		return fmt.Sprintf("Load: %d pending", m.Pending)
	case *protocol.JobInfo:
		return fmt.Sprintf("JobInfo: %d", m.Job[0])
	case *protocol.StealRequest:
		return fmt.Sprintf("StealRequest %d: want %d, %d free, wait %v", m.Id, m.Want, m.Free, time.Duration(m.WaitUs)*time.Microsecond)
	case *protocol.Grant:
		var as []protocol.Attempt
		for _, g := range m.Jobs {
			for _, x := range g.Tasks {
				as = append(as, protocol.Attempt{Job: protocol.JobID(g.Job), Index: x.Index, N: x.N, Epoch: m.Epoch})
			}
		}
		why := "unasked"
		if m.Request != 0 {
			why = fmt.Sprintf("to request %d", m.Request)
		}
		return fmt.Sprintf("Grant %d %s: %s, %d left", m.Number, why, attemptsText(as), m.Left)
	case *protocol.Recall:
		if len(m.Job) > 0 {
			return fmt.Sprintf("Recall %d: %d of %d", m.Id, m.Count, m.Job[0])
		}
		return fmt.Sprintf("Recall %d: %d", m.Id, m.Count)
	case *protocol.GiveBack:
		t := "GiveBack: " + groupsText(m.Attempts)
		if m.Recall != 0 {
			t = fmt.Sprintf("GiveBack to recall %d: %s", m.Recall, groupsText(m.Attempts))
		}
		if m.Reason != "" {
			t += fmt.Sprintf(" (%v: %s)", m.Why, m.Reason)
		}
		return t
	case *protocol.Result:
		var ws []string
		for _, o := range m.Outcomes {
			ws = append(ws, outcomeText(o))
		}
		if m.Ask != nil {
			ws = append(ws, messageText(m.Ask))
		}
		return "Result: " + strings.Join(ws, ", ")
	case *protocol.ResultAnswer:
		t := "ResultAnswer:"
		for _, x := range []struct {
			name string
			gs   []*protocol.Attempts
		}{{"accepted", m.Accepted}, {"superseded", m.Superseded}, {"unknown", m.Unknown}} {
			if len(x.gs) > 0 {
				t += fmt.Sprintf(" %s %s", x.name, groupsText(x.gs))
			}
		}
		return t
	case *protocol.Revoke:
		return "Revoke: " + groupsText(m.Attempts)
	case *protocol.Cancel:
		return fmt.Sprintf("Cancel: %d", m.Job[0])
	}
	return fmt.Sprintf("%T", m)
}
