package protocol

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// seq returns n bytes that count up from first, so that a reader of a vector sees where a field begins.
func seq(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

type sample struct {
	name string
	m    Message
}

// samples has each kind of message with every field set, and those forms that mean something of their own.
func samples() []sample {
	job, other := seq(0x10, 16), seq(0x80, 16)
	blob := &Blob{Id: seq(0x20, 32), Size: 1 << 20}
	held := []*Attempts{
		{Job: job, Epoch: 7, Index: []uint32{0, 1, MaxTasks - 1}, N: []uint32{1, 2, 1}},
		{Job: other, Epoch: 8, Index: []uint32{5}, N: []uint32{300}},
	}
	return []sample{
		{"hello", &Hello{
			Version: Version, Epoch: 7, Incarnation: 0x0123456789abcdef, SeenEpoch: 3, SeenIncarnation: 0xfedcba9876543210, Held: held[:1], Unanswered: held[1:], Slots: 4,
			Runtimes: []string{"wasm", "python3.11"}, Name: "münchen", NodeVersion: "v0.1.0", Os: "linux", Arch: "arm64",
			Labels: []string{"gpu=no", "room=4"}, Cpus: 8, MemoryBytes: 8 << 30, ThrowAway: true,
		}},
		{"hello-empty", &Hello{}},
		{"beat", &Beat{
			Epoch: 7, GrantsRead: 12, Held: held, HeardAgeMs: 450, StepAgeMs: 3, Slots: 4, Running: 3, Queued: 9,
			Paused: "on battery", Ping: 41, Pong: 40, PongDelayUs: 120, RunningOfYours: held[:1], Challenge: 6, Answer: 5, Unanswered: held[1:],
		}},
		{"beat-same", &Beat{Epoch: 7, GrantsRead: 12, SameHeld: true, Ping: 42}},
		{"load", &Load{Epoch: 7, Pending: 1_000_000}},
		{"job-info", &JobInfo{
			Job: job, Epoch: 7, Name: "primes", RunUs: 1500, Tasks: 8, Priority: -5,
			Program: &Program{Runtime: "wasm", Code: blob, Args: []string{"-n", "{}", "{#}"}, ClockReal: true},
			Limits:  &Limits{TimeoutUs: 1_000_000, MemoryBytes: 64 << 20, OutputBytes: 16 << 20, LogBytes: 1 << 20},
		}},
		{"steal-request", &StealRequest{Epoch: 7, Id: 99, Want: 4, Free: 2, WaitUs: 800, TimeUs: 6000}},
		{"grant", &Grant{Epoch: 7, Number: 13, Request: 99, Left: 992, Jobs: []*JobGrant{{
			Job: job, RunUs: 1500,
			Tasks: []*Assignment{
				{Index: 0, N: 1, Input: []byte("1000000"), Mac: seq(0x40, 16)},
				{Index: 1, N: 2, InputBlob: blob, Mac: seq(0x50, 16), Spare: true, Alone: true, Number: 9, Blobs: []*Blob{blob}},
			},
		}}}},
		{"grant-refusal", &Grant{Epoch: 7, Number: 14, Request: 100}},
		{"recall", &Recall{Epoch: 7, Id: 3, Count: 5}},
		{"recall-job", &Recall{Epoch: 7, Id: 4, Count: 5, Job: job}},
		{"give-back", &GiveBack{Epoch: 7, Recall: 3, Attempts: held}},
		{"give-back-unasked", &GiveBack{Epoch: 7, Attempts: held[:1], Reason: "the program cannot be fetched", Why: Refusal_CANNOT_RUN}},
		{"result", &Result{Outcomes: []*Outcome{
			{Job: job, Index: 0, Epoch: 7, N: 1, Mac: seq(0x40, 16), Status: Status_OK, Output: []byte("454396537\n"), QueuedUs: 20, RunUs: 1500},
			{Job: job, Index: 1, Epoch: 7, N: 2, Mac: seq(0x50, 16), Status: Status_FAILED, ExitCode: -1, Error: "exit code -1", OutputBlob: blob, LogBlob: blob},
			{Job: job, Index: 2, Epoch: 7, N: 1, Mac: seq(0x60, 16), Status: Status_TIMED_OUT, Error: "ran longer than 1s", Log: []byte("still here\n")},
		}, Ask: &StealRequest{Epoch: 7, Id: 100, Want: 1, Free: 1, WaitUs: 810}}},
		{"result-answer", &ResultAnswer{Accepted: held[:1], Superseded: held[1:], Unknown: held[1:]}},
		{"revoke", &Revoke{Epoch: 7, Attempts: held}},
		{"cancel", &Cancel{Epoch: 7, Job: job}},
		{"bye", &Bye{Reason: "going to sleep"}},
		{"bye-asleep", &Bye{Reason: "goes to sleep", Asleep: true}},
		{"move", &Move{Id: 0x0123456789abcdef}},
	}
}

func frame(t testing.TB, m Message) []byte {
	t.Helper()
	b, err := AppendMessage(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEveryKindHasASample(t *testing.T) {
	t.Parallel()
	seen := map[Kind]bool{}
	for _, s := range samples() {
		seen[kindOf(s.m)] = true
	}
	for k := range maxBody {
		known := maxBody[k] > 0
		if known != (newMessage(Kind(k)) != nil) {
			t.Errorf("kind %d: in only one of maxBody and newMessage", k)
		}
		if known && kindOf(newMessage(Kind(k))) != Kind(k) {
			t.Errorf("kind %d: newMessage makes a %T, of kind %d", k, newMessage(Kind(k)), kindOf(newMessage(Kind(k))))
		}
		if known && !seen[Kind(k)] {
			t.Errorf("kind %d has no sample, so no wire vector", k)
		}
	}
}

// Some sample sets each field, at any depth; so every field is in a wire vector.
func TestEveryFieldHasASample(t *testing.T) {
	t.Parallel()
	set := map[protoreflect.FullName]bool{}
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			set[f.FullName()] = true
			if f.Message() == nil {
			} else if f.IsList() {
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			} else {
				walk(v.Message())
			}
			return true
		})
	}
	for _, s := range samples() {
		walk(s.m.ProtoReflect())
	}
	var missing func(d protoreflect.MessageDescriptor)
	missing = func(d protoreflect.MessageDescriptor) {
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			if !set[f.FullName()] {
				t.Errorf("no sample sets %s", f.FullName())
			}
			if f.Message() != nil {
				missing(f.Message())
			}
		}
	}
	for k, limit := range maxBody {
		if limit > 0 {
			missing(newMessage(Kind(k)).ProtoReflect().Descriptor())
		}
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	var stream []byte
	for _, s := range samples() {
		stream = append(stream, frame(t, s.m)...)
	}
	r := bufio.NewReader(bytes.NewReader(stream))
	for _, s := range samples() {
		got, err := ReadMessage(r)
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if !proto.Equal(got, s.m) {
			t.Errorf("%s: read %v, want %v", s.name, got, s.m)
		}
	}
	if _, err := ReadMessage(r); err != io.EOF {
		t.Errorf("after the last frame: %v, want io.EOF", err)
	}
}

// A frame that breaks off is the connection's fault, never io.EOF and no violation.
func TestCutFrame(t *testing.T) {
	t.Parallel()
	for _, s := range samples() {
		b := frame(t, s.m)
		for n := 1; n < len(b); n++ {
			if _, err := ReadMessage(bytes.NewReader(b[:n])); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrProtocol) {
				t.Fatalf("%s cut to %d of %d bytes: %v", s.name, n, len(b), err)
			}
		}
	}
}

// counter counts what is taken from it, and has no end.
type counter struct {
	head []byte
	n    int
}

func (c *counter) ReadByte() (byte, error) {
	c.n++
	if c.n <= len(c.head) {
		return c.head[c.n-1], nil
	}
	return 0, nil
}

func (c *counter) Read(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}

// What is over its limit is refused from its header alone.
func TestLimitsBeforeBody(t *testing.T) {
	t.Parallel()
	for k, limit := range maxBody {
		for _, n := range []uint64{uint64(limit) + 1, 1 << 31, 1 << 62, 1<<64 - 1} {
			c := &counter{head: binary.AppendUvarint([]byte{byte(k)}, n)}
			if _, err := ReadMessage(c); !errors.Is(err, ErrProtocol) {
				t.Errorf("kind %d of %d bytes: %v, want ErrProtocol", k, n, err)
			}
			if c.n > 1+5 {
				t.Errorf("kind %d of %d bytes: %d bytes were read, want only the header", k, n, c.n)
			}
		}
	}
	for _, k := range []byte{0, byte(len(maxBody)), 0xff} {
		c := &counter{head: []byte{k}}
		if _, err := ReadMessage(c); !errors.Is(err, ErrProtocol) || c.n != 1 {
			t.Errorf("kind %d: %v after %d bytes, want ErrProtocol after 1", k, err, c.n)
		}
	}
	endless := &counter{head: append([]byte{byte(KindHello)}, bytes.Repeat([]byte{0x80}, 64)...)}
	if _, err := ReadMessage(endless); !errors.Is(err, ErrProtocol) || endless.n > 1+5 {
		t.Errorf("endless length: %v after %d bytes", err, endless.n)
	}
}

func TestAppendRefuses(t *testing.T) {
	t.Parallel()
	before := []byte("before")
	for name, m := range map[string]Message{
		"no message between nodes": &Blob{Id: seq(0, 32)},
		"at most 4096":             &Bye{Reason: strings.Repeat("x", 4<<10)},
		"UTF-8":                    &Bye{Reason: "\xff"},
	} {
		got, err := AppendMessage(bytes.Clone(before), m)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: want an error with %q", err, name)
		}
		if !bytes.Equal(got, before) {
			t.Errorf("%s: the buffer became %q", name, got)
		}
	}
}

// The small limits hold the largest values of their messages.
func TestSmallLimitsSuffice(t *testing.T) {
	t.Parallel()
	const u64, u32 = 1<<64 - 1, 1<<32 - 1
	for _, m := range []Message{
		&Load{Epoch: u64, Pending: u64},
		&StealRequest{Epoch: u64, Id: u64, Want: u32, Free: u32, WaitUs: u64},
		&Recall{Epoch: u64, Id: u64, Count: u32, Job: seq(0, 16)},
		&Cancel{Epoch: u64, Job: seq(0, 16)},
	} {
		frame(t, m)
	}
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	job, long := seq(1, 16), strings.Repeat("x", MaxName+1)
	attempts := func(f func(*Attempts)) []*Attempts {
		a := &Attempts{Job: seq(1, 16), Epoch: 1, Index: []uint32{0}, N: []uint32{1}}
		f(a)
		return []*Attempts{a}
	}
	short := attempts(func(a *Attempts) { a.Job = a.Job[:15] })
	uneven := attempts(func(a *Attempts) { a.N = nil })
	beyond := attempts(func(a *Attempts) { a.Index[0] = MaxTasks })
	info := func(f func(*JobInfo)) *JobInfo {
		i := &JobInfo{Job: job, Program: &Program{Runtime: "wasm", Code: &Blob{Id: seq(1, 32)}}}
		f(i)
		return i
	}
	task := func(f func(*Assignment)) *Grant {
		a := &Assignment{N: 1}
		f(a)
		return &Grant{Jobs: []*JobGrant{{Job: job, Tasks: []*Assignment{a}}}}
	}
	outcome := func(f func(*Outcome)) *Result {
		o := &Outcome{Job: job, N: 1, Status: Status_OK}
		f(o)
		return &Result{Outcomes: []*Outcome{o}}
	}
	for name, m := range map[string]Message{
		"hello name":           &Hello{Name: long},
		"hello version":        &Hello{NodeVersion: long},
		"hello os":             &Hello{Os: long},
		"hello arch":           &Hello{Arch: long},
		"hello runtime":        &Hello{Runtimes: []string{long}},
		"hello runtimes":       &Hello{Runtimes: make([]string, 65)},
		"hello held":           &Hello{Held: short},
		"beat held":            &Beat{Held: uneven},
		"beat running":         &Beat{RunningOfYours: beyond},
		"beat paused":          &Beat{Paused: long},
		"info job":             info(func(i *JobInfo) { i.Job = nil }),
		"info name":            info(func(i *JobInfo) { i.Name = long }),
		"info no program":      info(func(i *JobInfo) { i.Program = nil }),
		"info no code":         info(func(i *JobInfo) { i.Program.Code = nil }),
		"info code":            info(func(i *JobInfo) { i.Program.Code.Id = seq(1, 31) }),
		"info runtime":         info(func(i *JobInfo) { i.Program.Runtime = long }),
		"grant job":            &Grant{Jobs: []*JobGrant{{}}},
		"grant input":          task(func(a *Assignment) { a.Input = make([]byte, MaxInline+1) }),
		"grant blob":           task(func(a *Assignment) { a.InputBlob = &Blob{} }),
		"grant mac":            task(func(a *Assignment) { a.Mac = make([]byte, 33) }),
		"grant index":          task(func(a *Assignment) { a.Index = MaxTasks }),
		"grant number":         task(func(a *Assignment) { a.Number = MaxTasks + 1 }),
		"give-back attempts":   &GiveBack{Attempts: uneven},
		"give-back reason":     &GiveBack{Reason: strings.Repeat("x", 1025)},
		"give-back why":        &GiveBack{Why: Refusal_NO_SLOT + 1},
		"give-back why < 0":    &GiveBack{Why: -1},
		"result job":           outcome(func(o *Outcome) { o.Job = seq(1, 17) }),
		"result output":        outcome(func(o *Outcome) { o.Output = make([]byte, MaxInline+1) }),
		"result log":           outcome(func(o *Outcome) { o.Log = make([]byte, MaxInline+1) }),
		"result error":         outcome(func(o *Outcome) { o.Error = strings.Repeat("x", MaxInline+1) }),
		"result mac":           outcome(func(o *Outcome) { o.Mac = make([]byte, 33) }),
		"result index":         outcome(func(o *Outcome) { o.Index = MaxTasks }),
		"result output blob":   outcome(func(o *Outcome) { o.OutputBlob = &Blob{Id: seq(0, 16)} }),
		"result log blob":      outcome(func(o *Outcome) { o.LogBlob = &Blob{} }),
		"result no status":     outcome(func(o *Outcome) { o.Status = Status_UNKNOWN }),
		"result cancelled":     outcome(func(o *Outcome) { o.Status = Status_CANCELLED }),
		"result status beyond": outcome(func(o *Outcome) { o.Status = Status_INVALID + 1 }),
		"result status < 0":    outcome(func(o *Outcome) { o.Status = -1 }),
		"answer accepted":      &ResultAnswer{Accepted: short},
		"answer superseded":    &ResultAnswer{Superseded: uneven},
		"answer unknown":       &ResultAnswer{Unknown: beyond},
		"revoke":               &Revoke{Attempts: short},
		"cancel":               &Cancel{Job: seq(1, 15)},
	} {
		b, err := AppendMessage(nil, m) // a faulty sender is allowed: receivers do the checking
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := ReadMessage(bytes.NewReader(b)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: read %v, %v; want ErrProtocol", name, got, err)
		}
	}
	for name, f := range map[string]func() Message{
		"info": func() Message { return info(func(*JobInfo) {}) }, "grant": func() Message { return task(func(*Assignment) {}) },
		"result": func() Message { return outcome(func(*Outcome) {}) },
		"revoke": func() Message { return &Revoke{Attempts: attempts(func(*Attempts) {})} },
	} {
		if _, err := ReadMessage(bytes.NewReader(frame(t, f()))); err != nil {
			t.Errorf("%s without a fault: %v", name, err)
		}
	}
}

// Whatever field of whatever message lists attempts: a malformed list is refused.
func TestMalformedAttempts(t *testing.T) {
	t.Parallel()
	bad := []*Attempts{
		{Job: seq(1, 15), Index: []uint32{0}, N: []uint32{1}},
		{Job: seq(1, 16), Index: []uint32{0, 1}, N: []uint32{1}},
		{Job: seq(1, 16), Index: []uint32{MaxTasks}, N: []uint32{1}},
	}
	fields := 0
	for k, limit := range maxBody {
		if limit == 0 {
			continue
		}
		all := newMessage(Kind(k)).ProtoReflect().Descriptor().Fields()
		for i := range all.Len() {
			f := all.Get(i)
			if f.Message() == nil || f.Message().Name() != "Attempts" {
				continue
			}
			fields++
			for _, a := range bad {
				m := newMessage(Kind(k)).ProtoReflect()
				m.Mutable(f).List().Append(protoreflect.ValueOfMessage(a.ProtoReflect()))
				if _, err := ReadMessage(bytes.NewReader(frame(t, m.Interface()))); !errors.Is(err, ErrProtocol) {
					t.Errorf("%s with %v: %v, want ErrProtocol", f.FullName(), a, err)
				}
			}
		}
	}
	if fields < 8 {
		t.Errorf("only %d fields with attempts were found", fields)
	}
}

func TestUnknownFieldsAreDropped(t *testing.T) {
	t.Parallel()
	body := protowire.AppendTag(nil, 1000, protowire.BytesType)
	body = protowire.AppendBytes(body, make([]byte, 3000))
	b := binary.AppendUvarint([]byte{byte(KindBye)}, uint64(len(body)))
	m, err := ReadMessage(bytes.NewReader(append(b, body...)))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(m.ProtoReflect().GetUnknown()); n != 0 {
		t.Errorf("%d bytes of unknown fields were kept", n)
	}
}

// The frames that cost most memory for their size: endless empty parts, at each place where one can nest.
func TestDecodedSize(t *testing.T) {
	const element = 2 // bytes of an empty nested message with a field number below 16
	for k, limit := range maxBody {
		if limit < MaxControl {
			continue
		}
		for num := protowire.Number(1); num < 16; num++ {
			if f := newMessage(Kind(k)).ProtoReflect().Descriptor().Fields().ByNumber(num); f == nil || !f.IsList() && f.Message() == nil {
				continue
			}
			body := bytes.Repeat(append(protowire.AppendTag(nil, num, protowire.BytesType), 0), limit/element)
			wrapped := protowire.AppendTag(nil, num, protowire.BytesType)
			wrapped = protowire.AppendBytes(wrapped, bytes.Repeat([]byte{3<<3 | 2, 0}, limit/element-8)) // JobGrant.tasks, Program.args
			for name, body := range map[string][]byte{"flat": body, "nested": wrapped} {
				b := append(binary.AppendUvarint([]byte{byte(k)}, uint64(len(body))), body...)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				ReadMessage(bytes.NewReader(b))
				runtime.ReadMemStats(&after)
				allow := uint64(4 << 20)
				if limit == MaxBatch {
					allow = 32 << 20
				}
				if got := after.TotalAlloc - before.TotalAlloc; got > allow {
					t.Errorf("kind %d, field %d, %s: a body of %d bytes took %d to decode, at most %d", k, num, name, len(body), got, allow)
				}
			}
		}
	}
}

// The fullest batches that a node makes itself are far from the bound on parts.
func TestFullBatches(t *testing.T) {
	t.Parallel()
	var answer ResultAnswer
	for i := 0; ; i++ {
		a := &Attempts{Job: seq(byte(i), 16), Epoch: 1, Index: []uint32{uint32(i)}, N: []uint32{1}}
		answer.Accepted = append(answer.Accepted, a)
		if i%1000 == 0 && proto.Size(&answer) > MaxBatch-1000*proto.Size(a)-8000 {
			break
		}
	}
	grant := &Grant{Jobs: []*JobGrant{{Job: seq(0, 16)}}}
	for i := uint32(0); i < 35_000; i++ {
		grant.Jobs[0].Tasks = append(grant.Jobs[0].Tasks, &Assignment{Index: i, N: 1, Mac: seq(byte(i), 16)})
	}
	for _, m := range []Message{&answer, grant} {
		b := frame(t, m)
		if len(b) < MaxBatch*8/10 {
			t.Fatalf("%T: only %d bytes: not a full batch", m, len(b))
		}
		got, err := ReadMessage(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		if !proto.Equal(got, m) {
			t.Errorf("%T changed on its way", m)
		}
	}
}

func BenchmarkMessage(b *testing.B) {
	small := samples()[3].m // the usual Beat
	grant := &Grant{Jobs: []*JobGrant{{Job: seq(0, 16)}}}
	result := &Result{}
	for i := uint32(0); i < 100; i++ {
		grant.Jobs[0].Tasks = append(grant.Jobs[0].Tasks, &Assignment{Index: i, N: 1, Mac: seq(0, 16), Input: []byte("1000000")})
		result.Outcomes = append(result.Outcomes, &Outcome{Job: seq(0, 16), Index: i, N: 1, Mac: seq(0, 16), Status: Status_OK, Output: []byte("454396537\n")})
	}
	for _, c := range []sample{{"beat", small}, {"grant-100", grant}, {"result-100", result}} {
		f := frame(b, c.m)
		b.Run("append/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 0, len(f))
			for b.Loop() {
				if _, err := AppendMessage(buf[:0], c.m); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("read/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			r := bytes.NewReader(f)
			for b.Loop() {
				r.Reset(f)
				if _, err := ReadMessage(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func ExampleReadMessage() {
	stream, _ := AppendMessage(nil, &Load{Epoch: 3, Pending: 1000})
	m, err := ReadMessage(bytes.NewReader(stream))
	if err != nil {
		fmt.Println(err)
		return
	}
	switch m := m.(type) {
	case *Load:
		fmt.Println("pending:", m.Pending)
	}
	// Output: pending: 1000
}
