package node

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"meshnode/protocol"
	"meshnode/tasks"
	"meshnode/tasks/blob"
)

// OpenJob implements clientAPI.
func (n *Node) OpenJob(ctx context.Context, spec JobSpec) error {
	rt := n.runtimes[strings.TrimRight(spec.Runtime, "0123456789.")]
	if rt == nil {
		return &Error{Code: CodeBadProgram, Message: fmt.Sprintf("no runtime %q in this version", spec.Runtime), Fix: "this version runs wasm modules and Python functions"}
	}
	if spec.ID.IsZero() {
		return &Error{Code: CodeBadRequest, Message: "the job has no id"}
	}
	if len(spec.Name) > protocol.MaxName || !utf8.ValidString(spec.Name) {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("job name: want UTF-8 of at most %d bytes", protocol.MaxName)}
	}
	words := 0
	for _, a := range spec.Args {
		words += len(a) + 8
		if !utf8.ValidString(a) {
			return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("argument %q is not UTF-8", a)}
		}
	}
	if words > protocol.MaxControl/2 {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("the arguments have more than %d bytes", protocol.MaxControl/2), Fix: "give large data as inputs"}
	}
	if err := spec.check(); err != nil {
		return err
	}
	if err := n.blobs.Pin(spec.Code); err != nil {
		return &Error{Code: CodeBadProgram, Message: "the program is not on this node", Fix: "send it first"}
	}
	kept := false
	defer func() {
		if !kept {
			n.blobs.Unpin(spec.Code)
		}
	}()
	path, err := n.blobs.Path(spec.Code)
	if err == nil && spec.Detached {
		err = n.blobs.Sync(spec.Code)
	}
	if err != nil {
		return fmt.Errorf("program %s: %w", spec.Code, err)
	}
	if err := rt.Check(path); err != nil {
		return &Error{Code: CodeBadProgram, Message: err.Error()}
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("program %s: %w", spec.Code, err)
	}
	if info.Size() > maxProgram {
		return &Error{Code: CodeBadProgram, Message: fmt.Sprintf("the program has %d MiB: at most %d", info.Size()>>20, maxProgram>>20), Fix: "put large data as blobs"}
	}
	job := &protocol.Job{
		Job: spec.ID[:], Name: spec.Name, Detached: spec.Detached, MaxParallel: spec.MaxParallel,
		SubmittedUnixMs: time.Now().UnixMilli(),
		Program: &protocol.Program{
			Runtime: spec.Runtime, Code: &protocol.Blob{Id: spec.Code[:], Size: uint64(info.Size())},
			Args: spec.Args, ClockReal: spec.ClockReal,
		},
		Limits:  &protocol.Limits{TimeoutUs: uint64(spec.Timeout.Microseconds()), MemoryBytes: spec.Memory},
		Retries: spec.Retries, Priority: int32(spec.Priority), Placement: spec.Placement.message(), Spare: spec.Spare,
		Runs: spec.Runs,
	}
	job.Local = spec.Local
	if !spec.Group.IsZero() {
		job.Group = spec.Group[:]
	}
	if spec.HaltFailed > 0 {
		job.Halt = &protocol.Halt{Failed: spec.HaltFailed, Now: spec.HaltNow}
	}
	if !spec.RerunOf.IsZero() {
		job.RerunOf = spec.RerunOf[:]
	}
	var stepped error
	if err := n.room(); err != nil {
		return err
	}
	err = n.ask(func(s *tasks.Scheduler) {
		if st, ok := s.Job(spec.ID); ok {
			if !proto.Equal(st.Spec.Program, job.Program) {
				stepped = &Error{Code: CodeRefused, Message: fmt.Sprintf("there is a job %s with another program", spec.ID.Short()), Fix: "choose another id"}
			}
			return
		}
		if stepped = s.Step(n.loop.now(), tasks.Submit{Job: spec.ID, Spec: job}); stepped != nil {
			return
		}
		kept = true
		j := n.loop.job(spec.ID)
		j.pins.add(n.blobs, spec.Code)
		if !spec.Detached {
			j.abandon(&n.loop)
		}
	})
	return cmp.Or(err, jobError(stepped))
}

// check refuses what no job may ask for.
func (s *JobSpec) check() error {
	bad := func(format string, args ...any) error {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf(format, args...)}
	}
	p := &s.Placement
	switch {
	case s.Retries > MaxRetries:
		return bad("%d retries: at most %d", s.Retries, MaxRetries)
	case s.Priority < MinPriority || s.Priority > MaxPriority:
		return bad("priority %d: want %d to %d", s.Priority, MinPriority, MaxPriority)
	case p.LocalOnly && p.RemoteOnly:
		return bad("a job that may run only here and only elsewhere can run nowhere")
	case len(p.Not) > MaxNot:
		return bad("%d peers that may not run the job: at most %d", len(p.Not), MaxNot)
	case len(p.On) > protocol.MaxName || !utf8.ValidString(p.On):
		return bad("the expression of --on: want UTF-8 of at most %d bytes", protocol.MaxName)
	case s.HaltNow && s.HaltFailed == 0:
		return bad("halt now, after no failure")
	}
	if len(s.Runs) > MaxRuns {
		return bad("the tasks are too scattered a part of a longer list: %d runs, at most %d", len(s.Runs), MaxRuns)
	}
	if _, err := protocol.NewNumbers(s.Runs); err != nil {
		return bad("the tasks are a part of %v", err)
	}
	if _, err := tasks.ParseOn(p.On); err != nil {
		return bad("--on %s: %v", p.On, err)
	}
	for _, id := range p.Not {
		if _, err := peer.Decode(string(id)); err != nil {
			return bad("%.60q is no peer ID", string(id))
		}
	}
	if l := s.Local; l != nil {
		for _, t := range append([]string{l.Interpreter, l.Version, l.Dir}, l.Path...) {
			if len(t) > maxPath || !utf8.ValidString(t) {
				return bad("how it runs here: %.60q: want UTF-8 of at most %d bytes", t, maxPath)
			}
		}
		if len(l.Path) > maxPathEntries {
			return bad("how it runs here: %d places of modules, at most %d", len(l.Path), maxPathEntries)
		}
		if len(l.Version) > 16 || strings.Trim(l.Version, "0123456789.") != "" {
			return bad("how it runs here: version %.60q: want one like 3.12", l.Version)
		}
	}
	if protocol.Spare_name[int32(s.Spare)] == "" {
		return bad("spare %d: not known", s.Spare)
	}
	return nil
}

// message is what the scheduler gets; nil if nothing is asked for.
func (p *Placement) message() *protocol.Placement {
	if p.On == "" && len(p.Not) == 0 && !p.LocalOnly && !p.RemoteOnly {
		return nil
	}
	m := &protocol.Placement{On: p.On, LocalOnly: p.LocalOnly, RemoteOnly: p.RemoteOnly}
	for _, id := range p.Not {
		m.Not = append(m.Not, string(id))
	}
	return m
}

// AddTasks implements clientAPI.
func (n *Node) AddTasks(ctx context.Context, job protocol.JobID, first uint32, ins []TaskInput) error {
	if err := n.roomLately(); err != nil {
		return err
	}
	var pins pins
	add, err := n.taskInputs(ctx, job, ins, &pins)
	if err != nil {
		pins.release(n.blobs)
		return err
	}
	return n.addInputs(job, first, add, pins)
}

// taskInputs are inputs as the scheduler has them, with their blobs here and pinned, and on the disk if the job is detached: the client of
// an attached one puts them again should the machine stop.
func (n *Node) taskInputs(ctx context.Context, job protocol.JobID, ins []TaskInput, pins *pins) ([]tasks.Input, error) {
	out := make([]tasks.Input, len(ins))
	sync := true
	if slices.ContainsFunc(ins, func(in TaskInput) bool { return len(in.Blobs) > 0 || len(in.Data) > protocol.MaxInline }) {
		err := n.ask(func(s *tasks.Scheduler) {
			st, ok := s.Job(job)
			sync = !ok || st.Spec.Detached
		})
		if err != nil {
			return nil, err
		}
	}
	put := n.blobs.PutLoose
	if sync {
		put = n.blobs.Put
	}
	known := map[protocol.BlobID]*protocol.Blob{}
	for i, in := range ins {
		if len(in.Blobs) > protocol.MaxTaskBlobs {
			return nil, &Error{Code: CodeBadRequest, Message: fmt.Sprintf("task reads %d blobs: at most %d", len(in.Blobs), protocol.MaxTaskBlobs), Fix: "put several objects into one"}
		}
		if i > 0 && len(in.Blobs) > 0 && slices.Equal(in.Blobs, ins[i-1].Blobs) {
			out[i].Blobs = out[i-1].Blobs
		} else if len(in.Blobs) > 0 {
			out[i].Blobs = make([]*protocol.Blob, len(in.Blobs))
			for k, id := range in.Blobs {
				b := known[id]
				if b == nil {
					size, err := n.blobs.PinSize(id)
					if err != nil {
						return nil, noBlob(id.String())
					}
					pins.add(n.blobs, id)
					n.leases.renew(n.blobs, id)
					if sync {
						if err := n.blobs.Sync(id); err != nil {
							return nil, n.putError(err)
						}
					}
					b = &protocol.Blob{Id: bytes.Clone(id[:]), Size: uint64(size)}
					known[id] = b
				}
				out[i].Blobs[k] = b
			}
		}
		if len(in.Data) <= protocol.MaxInline {
			out[i].Data = in.Data
			continue
		}
		b, err := put(ctx, bytes.NewReader(in.Data))
		if err != nil {
			return nil, n.putError(err)
		}
		pins.add(n.blobs, protocol.BlobID(b.Id))
		out[i].Blob = b
	}
	return out, nil
}

// pins are blobs that are pinned once each for the same purpose.
type pins map[protocol.BlobID]struct{}

// add takes over a pin; one more of the same blob is given back.
func (p *pins) add(s *blob.Store, id protocol.BlobID) {
	if *p == nil {
		*p = pins{}
	}
	if _, ok := (*p)[id]; ok {
		s.Unpin(id)
	}
	(*p)[id] = struct{}{}
}

func (p *pins) release(s *blob.Store) {
	for id := range *p {
		s.Unpin(id)
	}
	*p = nil
}

// addInputs adds tasks whose blobs are pinned: from now on by their job.
func (n *Node) addInputs(job protocol.JobID, first uint32, ins []tasks.Input, pins pins) error {
	var stepped error
	err := n.ask(func(s *tasks.Scheduler) {
		j := n.loop.job(job)
		for id := range pins {
			j.pins.add(n.blobs, id)
		}
		if spec, _ := s.Spec(job); spec != nil && !readsBlobs(spec.Program.GetRuntime()) && slices.ContainsFunc(ins, func(in tasks.Input) bool { return len(in.Blobs) > 0 }) {
			stepped = &Error{Code: CodeBadRequest, Message: "a task of runtime " + spec.Program.GetRuntime() + " cannot read blobs", Fix: "give it the bytes as its input, up to 16 MiB"}
		} else {
			stepped = s.Step(n.loop.now(), tasks.Submit{Job: job, First: first, Inputs: ins})
		}
		if j.gone != nil {
			j.abandon(&n.loop) // its client lives
		}
		n.loop.tidy(job)
	})
	if err != nil {
		pins.release(n.blobs)
	}
	return cmp.Or(err, jobError(stepped))
}

// readsBlobs says whether programs of a runtime can read files that are given to them.
func readsBlobs(runtime string) bool { return runtime != "wasm" }

// CloseJob implements clientAPI.
func (n *Node) CloseJob(ctx context.Context, job protocol.JobID, count uint32) error {
	accepted := make(chan struct{})
	var stepped error
	err := n.ask(func(s *tasks.Scheduler) {
		if stepped = s.Step(n.loop.now(), tasks.Submit{Job: job, First: count, Close: true, Count: count}); stepped == nil {
			j := n.loop.job(job)
			j.accepted = append(j.accepted, accepted)
		}
	})
	if err = cmp.Or(err, jobError(stepped)); err != nil {
		return err
	}
	select {
	case <-accepted:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.done:
		return errStopping
	}
}

// SetGroup implements clientAPI.
func (n *Node) SetGroup(ctx context.Context, group protocol.JobID, limit int) error {
	if group.IsZero() {
		return &Error{Code: CodeBadRequest, Message: "the group has no id"}
	}
	return n.step(tasks.SetGroup{Group: group, Limit: limit})
}

// Cancel implements clientAPI.
func (n *Node) Cancel(ctx context.Context, job protocol.JobID, index *uint32) error {
	return jobError(n.step(tasks.Cancel{Job: job, Task: index, Reason: "cancelled by its owner"}))
}

// jobError makes a person's error of what the scheduler refused.
func jobError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tasks.ErrNoJob):
		return &Error{Code: CodeNoJob, Message: err.Error(), Fix: "meshnode jobs -a lists the jobs of this node"}
	case errors.Is(err, tasks.ErrNoTask):
		return &Error{Code: CodeNoTask, Message: err.Error(), Fix: "tasks count from 0"}
	case errors.Is(err, tasks.ErrForgotten):
		return &Error{Code: CodeRefused, Message: err.Error(), Fix: "submit it as a new job; ended jobs are kept as long as meshnode up --retain says"}
	case errors.Is(err, tasks.ErrStopped):
		return errStopping
	case errors.Is(err, tasks.ErrGap), errors.Is(err, tasks.ErrTooMany), errors.Is(err, tasks.ErrClosed), errors.Is(err, tasks.ErrPlacement), errors.Is(err, tasks.ErrRunning):
		return &Error{Code: CodeBadRequest, Message: err.Error()}
	}
	return err
}
