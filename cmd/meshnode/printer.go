package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/executor"
)

// printer writes results as submit, run and results show them.
type printer struct {
	c       *cli
	client  *control.Client
	job     protocol.JobID
	out     *bufio.Writer
	bar     *bar
	log     *joblog          // written after the output of each task
	numbers protocol.Numbers // of the job's tasks, as their programs see them

	keepOrder, tag, passThrough bool
	python                      bool // its inputs are texts or calls
	failures                    int  // told so far
	last                        control.Result
	seen                        int
	came                        atomic.Int64 // results, for tellWaits

	// For keepOrder: what came before its turn. Beyond heldMost bytes only the fact is kept, and the result is
	// asked for again when its turn has come.
	next uint32
	end  uint32 // after the last that came
	held map[uint32]control.Result
	size int
	late []uint64 // a bit for each index: ten million may be late
}

// heldMost is how many bytes of results wait for their turn.
const heldMost = 64 << 20

// maxFailuresTold bounds the lines about failed tasks: the exit code and `job` say how many there were.
const maxFailuresTold = 20

func (c *cli) newPrinter(client *control.Client, f *submitFlags, job protocol.JobID) *printer {
	return &printer{
		c: c, client: client, job: job, out: bufio.NewWriterSize(c.stdout, 64<<10),
		keepOrder: f.keepOrder, tag: f.tag, passThrough: f.passThrough, held: make(map[uint32]control.Result),
	}
}

// print takes a batch of results. It keeps what they point to, not the slice.
func (p *printer) print(rs []control.Result) error {
	p.bar.add(rs)
	p.came.Add(int64(len(rs)))
	for i := range rs {
		r := &rs[i]
		p.seen++
		p.end = max(p.end, r.Index+1)
		if !p.keepOrder {
			if err := p.write(r); err != nil {
				return err
			}
			continue
		}
		if r.Index == p.next {
			if err := p.write(r); err != nil {
				return err
			}
			p.next++
			continue
		}
		if n := heldSize(r); p.size+n > heldMost {
			p.setLate(r.Index, true)
		} else {
			p.size += n
			p.held[r.Index] = *r
		}
	}
	if p.keepOrder {
		if err := p.turns(context.Background()); err != nil {
			return err
		}
	}
	return p.flush()
}

// waitsAfter is how long no result comes before the job is asked why: then somebody looks up and wonders.
const waitsAfter = 2 * time.Second

// tellWaits says on standard error that no node can run what is left of the job, once for each reason, until the function that it
// returns is called.
func (p *printer) tellWaits(ctx context.Context) (stop func()) {
	noNode := tasks.NoNode.String()
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticks := time.NewTicker(waitsAfter)
		defer ticks.Stop()
		seen, told := p.came.Load(), ""
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
			if n := p.came.Load(); n != seen {
				seen = n
				continue
			}
			j, err := p.client.Job(ctx, p.job.String())
			if err != nil || j.State != "waiting" || j.WaitsFor != noNode || j.Reason == told {
				continue // a lost node is told of elsewhere, and what waits for its turn needs nobody
			}
			told = j.Reason
			p.bar.clear()
			fmt.Fprintf(p.c.stderr, "meshnode: job %s waits: %s; meshnode why %[1]s\n", p.job.Short(), oneLine(told))
		}
	}()
	return func() { cancel(); <-ended }
}

// turns writes what is next in order, as far as it has come.
func (p *printer) turns(ctx context.Context) error {
	for {
		r, ok := p.held[p.next]
		switch {
		case ok:
			delete(p.held, p.next)
			p.size -= heldSize(&r)
		case p.isLate(p.next):
			p.setLate(p.next, false)
			var err error
			if r.TaskResult, err = p.client.Result(ctx, p.job.String(), p.next); err != nil {
				return fmt.Errorf("read result %d again: %w", p.next, err)
			}
			if r.Input, err = p.client.Input(ctx, p.job.String(), p.next); err != nil {
				return fmt.Errorf("read input %d again: %w", p.next, err)
			}
		default:
			return nil
		}
		if err := p.write(&r); err != nil {
			return err
		}
		p.next++
	}
}

// finish writes what has no turn: a job that did not end has gaps.
func (p *printer) finish(ctx context.Context) error {
	for ; p.next < p.end; p.next++ {
		if err := p.turns(ctx); err != nil {
			return err
		}
	}
	return nil
}

// heldSize is what a result that waits for its turn takes, about.
func heldSize(r *control.Result) int {
	return 256 + len(r.Output) + len(r.Log) + len(r.Input) + len(r.Error)
}

func (p *printer) isLate(i uint32) bool {
	return int(i/64) < len(p.late) && p.late[i/64]&(1<<(i%64)) != 0
}

func (p *printer) setLate(i uint32, late bool) {
	for int(i/64) >= len(p.late) {
		p.late = append(p.late, 0)
	}
	if p.late[i/64] &^= 1 << (i % 64); late {
		p.late[i/64] |= 1 << (i % 64)
	}
}

func (p *printer) flush() error {
	if p.c.outTTY {
		p.bar.clear()
	}
	return p.out.Flush()
}

// resultLine is a result with --json.
type resultLine struct {
	Job       string  `json:"job"`
	Index     uint32  `json:"index"`
	Number    uint32  `json:"number,omitempty"` // that the program saw, from 1, if it is not index + 1
	Input     *string `json:"input,omitempty"`
	InputB64  []byte  `json:"input_b64,omitempty"`
	Status    string  `json:"status"`
	Output    *string `json:"output,omitempty"`
	OutputB64 []byte  `json:"output_b64,omitempty"`
	OutputID  string  `json:"output_blob,omitempty"` // the blob that has it, if it is over 16 MiB
	ExitCode  int32   `json:"exit_code"`
	Error     string  `json:"error"`
	Reason    string  `json:"reason,omitempty"`
	Peer      string  `json:"peer"`
	PeerName  string  `json:"peer_name"`
	Attempts  uint32  `json:"attempts"`
	QueuedMS  float64 `json:"queued_ms"`
	RunMS     float64 `json:"run_ms"`
}

// status is the word for s in JSON; reason is a finer one for what is not ok.
func status(s protocol.Status) (status, reason string) {
	switch s {
	case protocol.Status_OK:
		return "ok", ""
	case protocol.Status_CANCELLED:
		return "cancelled", ""
	}
	return "failed", strings.ToLower(s.String())
}

func (p *printer) jsonLine(r *control.Result) resultLine {
	l := resultLine{
		Job: p.job.String(), Index: r.Index, ExitCode: r.ExitCode, Error: r.Error, Peer: string(r.Worker), PeerName: r.Name, Attempts: r.Attempts,
		QueuedMS: milliseconds(r.Queued), RunMS: milliseconds(r.Run),
	}
	l.Status, l.Reason = status(r.Status)
	if l.Status == "failed" && l.Error == "" {
		l.Error = failure(r)
	}
	if n := p.numbers.Of(r.Index); n != r.Index {
		l.Number = n + 1
	}
	if utf8.Valid(r.Input) {
		s := string(r.Input)
		l.Input = &s
	} else {
		l.InputB64 = r.Input
	}
	if b := r.OutputBlob; b != nil {
		l.OutputID = hex.EncodeToString(b.Id)
	} else if utf8.Valid(r.Output) {
		s := string(r.Output)
		l.Output = &s
	} else {
		l.OutputB64 = r.Output
	}
	return l
}

// failure says in words how a task failed.
func failure(r *control.Result) string {
	if r.Error != "" {
		return r.Error
	}
	switch r.Status {
	case protocol.Status_CANCELLED:
		return "cancelled"
	case protocol.Status_FAILED:
		return fmt.Sprintf("exit code %d", r.ExitCode)
	}
	return strings.ReplaceAll(strings.ToLower(r.Status.String()), "_", " ")
}

// read makes a Python task's input what was typed, and the values of calls something to look at: only Python, and a
// program that trusts the nodes they came from, can read them.
func (p *printer) read(r *control.Result) {
	if len(r.Input) > 0 && r.Input[0] == textInput {
		r.Input = r.Input[1:]
		return
	}
	calls, ok := callsOf(r.Input)
	if !ok {
		return
	}
	r.Input = fmt.Appendf(nil, "%d calls", calls)
	if !p.c.json() {
		r.Output = fmt.Appendf(nil, "%d bytes: the values of %d calls of a Python program", len(r.Output), calls)
	}
}

// write shows a result, and then notes in the log that it was.
func (p *printer) write(r *control.Result) error {
	if p.python {
		p.read(r)
	}
	p.last = *r
	if err := p.writeOutput(r); err != nil || p.log == nil {
		return err
	}
	if err := p.flush(); err != nil {
		return err
	}
	return p.log.add(r)
}

// copyOutput writes an output that was left out of its result, and no line feed after it.
func (p *printer) copyOutput(w io.Writer, b *protocol.Blob) error {
	id := hex.EncodeToString(b.Id)
	in, size, err := p.client.GetBlob(context.Background(), id)
	if err != nil {
		return err
	}
	defer in.Close()
	return copyBlob(w, in, id, size)
}

func (p *printer) writeOutput(r *control.Result) error {
	if p.c.json() {
		b, err := encodeJSON(p.jsonLine(r))
		if err == nil {
			_, err = p.out.Write(b)
		}
		return err
	}
	out := r.Output
	if b := r.OutputBlob; b != nil {
		if !p.c.outTTY && !p.tag && !p.passThrough {
			return p.copyOutput(p.out, b)
		}
		out = fmt.Appendf(nil, "an output of %s: meshnode blob get %x --to FILE", executor.Size(b.Size), b.Id)
	}
	switch {
	case p.passThrough:
		if err := p.passLog(r); err != nil {
			return err
		}
	case r.Status == protocol.Status_OK || len(out) > 0:
		if !bytes.HasSuffix(out, []byte("\n")) {
			out = append(out[:len(out):len(out)], '\n')
		}
	}
	if p.tag {
		out = tagged(r.Input, out)
	}
	if _, err := p.out.Write(toTerminal(out, p.c.outTTY)); err != nil {
		return err
	}
	if r.Status != protocol.Status_OK && r.Status != protocol.Status_CANCELLED {
		p.tellFailure(r)
	}
	return nil
}

// passLog writes a task's standard error to ours.
func (p *printer) passLog(r *control.Result) error {
	if len(r.Log) == 0 {
		return nil
	}
	p.bar.clear()
	log := r.Log
	if p.tag {
		log = tagged(r.Input, log)
	}
	_, err := p.c.stderr.Write(toTerminal(log, p.c.errTTY))
	return err
}

func (p *printer) tellFailure(r *control.Result) {
	if p.failures++; p.failures > maxFailuresTold {
		return
	}
	p.bar.clear()
	where := ""
	if r.Name != "" {
		where = " on " + r.Name
	}
	input := string(r.Input[:min(len(r.Input), 40)])
	if len(input) < len(r.Input) {
		input += "…"
	}
	fmt.Fprintf(p.c.stderr, "meshnode: task %d (%s) failed%s: %s; its log: meshnode logs %s/%d\n", r.Index, oneLine(input), oneLine(where), oneLine(failure(r)), p.job.Short(), r.Index)
	if p.failures == maxFailuresTold {
		fmt.Fprintf(p.c.stderr, "meshnode: more failures are not shown: meshnode results --json %s\n", p.job.Short())
	}
}

// exit is the exit code for a job whose results were printed.
func (p *printer) exit(j node.Job) error {
	if j.Tasks == 1 && p.seen == 1 {
		return oneTask(p.last.TaskResult)
	}
	return manyTasks(int(j.Failed))
}

// oneTask is the exit code of a job of one task: the task's own.
func oneTask(r node.TaskResult) error {
	switch {
	case r.Status == protocol.Status_OK:
		return nil
	case r.Status == protocol.Status_TIMED_OUT:
		return exitCode(exitTimedOut)
	case r.ExitCode&0xff != 0:
		return exitCode(r.ExitCode & 0xff)
	}
	return exitCode(1)
}

func manyTasks(failed int) error {
	if failed == 0 {
		return nil
	}
	return exitCode(min(failed, exitManyFailed))
}
