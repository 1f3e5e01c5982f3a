package main

import (
	"bufio"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"iter"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
)

// joblog is a list of the tasks that ended, in the format of GNU parallel: a line for each, written once the task's
// output was. Tasks that were cancelled are not in it.
type joblog struct {
	path    string
	f       *os.File
	size    int64 // of the lines read
	call    *invocation
	numbers protocol.Numbers // of the tasks of this job among all inputs
	buf     []byte

	// Of an earlier run, by number − 1: a hash of the command, 0 for those that are to run.
	ended []uint64
	seed  maphash.Seed
}

const joblogHead = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"

// readJoblog is what --resume knows of an earlier run; nothing without --resume, or if there is no file yet.
func (f *submitFlags) readJoblog(call *invocation) (*joblog, error) {
	l := &joblog{path: f.joblog, call: call, seed: maphash.MakeSeed()}
	if !f.resume {
		return l, nil
	}
	file, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := l.read(file, f.resumeFailed); err != nil {
		return nil, err
	}
	l.numbers, err = protocol.NewNumbers(l.runs())
	return l, err
}

// open begins the file anew, or after the last whole line that was read of it: what follows is half a line of a client
// that was killed.
func (l *joblog) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	err = f.Truncate(l.size)
	if err == nil {
		_, err = f.Seek(l.size, io.SeekStart)
	}
	if err == nil && l.size == 0 {
		_, err = f.WriteString(joblogHead)
	}
	if err != nil {
		f.Close()
		return err
	}
	l.f = f
	return nil
}

// read takes in the log of an earlier run; with failed, what failed is to run again.
func (l *joblog) read(file io.Reader, failed bool) error {
	bad := func(n int) error {
		return &node.Error{Code: codeUsage, Message: fmt.Sprintf("%s, line %d: no line of a job log", l.path, n), Fix: "give the file that --joblog wrote, or another one to begin anew"}
	}
	r := bufio.NewReaderSize(file, 256<<10)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) { // what was not written to its end is as if it had not been written
			if n == 1 && !strings.HasPrefix(joblogHead, string(line)) {
				return bad(n)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", l.path, err)
		}
		l.size += int64(len(line))
		if n == 1 {
			if string(line) != joblogHead {
				return bad(n)
			}
			continue
		}
		f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), "\t", 9)
		number, err := strconv.ParseUint(f[0], 10, 32)
		if err != nil || len(f) != 9 || number < 1 || number > protocol.MaxTasks {
			return bad(n)
		}
		for uint64(len(l.ended)) < number {
			l.ended = append(l.ended, make([]uint64, max(1024, len(l.ended)/4))...)
		}
		l.ended[number-1] = 0
		if ok := f[6] == "0" && f[7] == "0"; ok || !failed {
			l.ended[number-1] = l.hash(f[8])
		}
	}
}

func (l *joblog) hash(command string) uint64 { return maphash.String(l.seed, command) | 1 }

// runs says which inputs are left, as protocol.Job has it.
func (l *joblog) runs() []uint32 {
	return protocol.Runs(uint32(len(l.ended)), func(i uint32) bool { return l.ended[i] == 0 })
}

// left are the inputs that are to run. It ends with an error where one that ran was another.
func (l *joblog) left(inputs iter.Seq2[[]byte, error], total *progressTotal) iter.Seq2[[]byte, error] {
	if len(l.ended) == 0 {
		return inputs
	}
	return func(yield func([]byte, error) bool) {
		i := -1
		for in, err := range inputs {
			if i++; err == nil && i < len(l.ended) && l.ended[i] != 0 {
				if command := l.call.command(uint32(i), in); l.ended[i] != l.hash(command) {
					yield(nil, &node.Error{Code: codeUsage, Message: fmt.Sprintf("task %d is now %s; in %s it is another command", i+1, command, l.path),
						Fix: "resume with the program, words and inputs of the first run, or begin anew with another --joblog"})
					return
				}
				total.n.Add(-1)
				continue
			}
			if !yield(in, err) {
				return
			}
		}
	}
}

// add writes the line of a task that just ended.
func (l *joblog) add(r *control.Result) error {
	if r.Status == protocol.Status_CANCELLED {
		return nil
	}
	exit := 0
	if r.Status != protocol.Status_OK {
		var code exitCode
		errors.As(oneTask(r.TaskResult), &code)
		exit = int(code)
	}
	host := strings.ReplaceAll(oneLine(r.Name), "\t", " ")
	if host == "" {
		host = "-"
	}
	number := l.numbers.Of(r.Index)
	start := float64(time.Now().Add(-r.Run).UnixMicro()) / 1e6
	l.buf = fmt.Appendf(l.buf[:0], "%d\t%s\t%.3f\t%10.3f\t%d\t%d\t%d\t0\t%s\n", number+1, host, start, r.Run.Seconds(), len(r.Input), len(r.Output), exit, l.call.command(number, r.Input))
	_, err := l.f.Write(l.buf)
	return err
}

func (l *joblog) close() error {
	return l.f.Close()
}

// command is a task in words that a shell would understand: its number counts from 0.
func (v *invocation) command(number uint32, input []byte) string {
	out := []string{quote(v.program)}
	fill := strings.NewReplacer("{}", string(input), "{#}", strconv.FormatUint(uint64(number)+1, 10))
	for _, w := range v.words {
		out = append(out, quote(fill.Replace(w)))
	}
	switch {
	case len(v.words) > 0 || !v.given:
	case v.function != nil:
		out = append(out, quote(string(input)))
	default:
		out = append(out, "<<<", quote(string(input)))
	}
	return strings.Join(out, " ")
}

// plain are the characters that mean nothing to a shell.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-"

// quote makes s one word of a shell on one line.
func quote(s string) string {
	switch {
	case s != "" && strings.Trim(s, plain) == "":
		return s
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		var b strings.Builder
		b.WriteString("$'")
		for i := range len(s) {
			switch c := s[i]; {
			case c == '\'' || c == '\\':
				b.WriteByte('\\')
				b.WriteByte(c)
			case c == '\n':
				b.WriteString(`\n`)
			case c == '\t':
				b.WriteString(`\t`)
			case c < ' ' || c == 0x7f || c > 0x7f && !utf8.ValidString(s):
				fmt.Fprintf(&b, `\x%02x`, c)
			default:
				b.WriteByte(c)
			}
		}
		return b.String() + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
