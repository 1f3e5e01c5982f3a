package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"meshnode/protocol"
	"meshnode/tasks"
)

// prepare compiles a program in a worker process and says how that went, unless ctx ends first. It reports whether it went well.
func (e *Executor) prepare(ctx context.Context, key programKey, p *program) bool {
	answer := tasks.Prepared{Origin: key.origin, Job: key.job}
	if p.runtime == nil {
		answer.Unable = sentence(p.unable)
	} else {
		select {
		case e.preparing <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		f := e.compile(ctx, p)
		<-e.preparing
		answer.Invalid, answer.Unable = sentence(f.Invalid), sentence(f.Unable)
	}
	if ctx.Err() != nil {
		return false
	}
	e.emit(answer)
	return answer.Invalid == "" && answer.Unable == ""
}

// compile loads p in a worker process, which then is the spare one: the next slot that needs a process gets it,
// the program included.
func (e *Executor) compile(ctx context.Context, p *program) protocol.WorkerFailure {
	if err := p.runtime.Check(p.load.Path); err != nil {
		if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
			return protocol.WorkerFailure{Unable: err.Error()}
		}
		return protocol.WorkerFailure{Invalid: err.Error()}
	}
	proc, err := e.obtain(p)
	if err != nil {
		return protocol.WorkerFailure{Unable: err.Error()}
	}
	load := proc.load(nil, p)
	proc.write(load, len(load))
	late := time.NewTimer(maxLoad)
	defer late.Stop()
	select {
	case batch, ok := <-proc.replies:
		switch {
		case !ok:
			proc.end()
			return protocol.WorkerFailure{Unable: "the worker process that compiled it died: " + proc.dead}
		case len(batch) == 1 && batch[0].kind == protocol.WorkerLoaded && batch[0].id == p.handle:
			proc.loaded = append(proc.loaded, p.handle)
			e.keep(proc, 1)
			return protocol.WorkerFailure{}
		case len(batch) == 1 && batch[0].kind == protocol.WorkerLoadFailed && batch[0].id == p.handle:
			e.keep(proc, 1)
			return parseFailure(batch[0].body)
		}
		proc.end()
		return protocol.WorkerFailure{Unable: "the worker process answered something else"}
	case <-late.C:
		proc.end()
		return protocol.WorkerFailure{Unable: fmt.Sprintf("not compiled after %v", maxLoad)}
	case <-ctx.Done():
		proc.end()
		return protocol.WorkerFailure{Unable: "dropped"}
	}
}

func encode(p protocol.WorkerProgram) []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers
	}
	return b
}

// has reports whether the process has loaded a program.
func (p *process) has(handle uint64) bool { return slices.Contains(p.loaded, handle) }

// load appends to b the frames that have the process load a program, and forget the one that it has had longest if there are
// too many. The answer adds it to loaded.
func (p *process) load(b []byte, prog *program) []byte {
	if len(p.loaded) >= maxLoaded {
		b = protocol.AppendLocal(b, protocol.WorkerUnload, p.loaded[0])
		p.loaded = slices.Delete(p.loaded, 0, 1)
	}
	load := prog.load
	load.Scratch = p.scratch
	return protocol.AppendLocal(b, protocol.WorkerLoad, prog.handle, encode(load))
}

// spare is a process that waits for a slot, or for its end after Config.IdleEnd: it has compiled a program, or its slot has turned to
// programs that it may not run.
type spare struct {
	p     *process
	timer *time.Timer
}

// obtain is a worker process for p: a spare one or a new one.
func (e *Executor) obtain(p *program) (*process, error) {
	key := p.key()
	e.mu.Lock()
	var sp *spare
	for i := len(e.spares) - 1; i >= 0 && sp == nil; i-- {
		if e.spares[i].p.key == key {
			sp = e.spares[i]
			e.spares = slices.Delete(e.spares, i, i+1)
		}
	}
	e.mu.Unlock()
	if sp != nil {
		sp.timer.Stop()
		select {
		case <-sp.p.replies: // it is dead, or says something unasked
			sp.p.end()
		default:
			return sp.p, nil
		}
	}
	return e.start(key, p.worker)
}

// maxSpares processes wait for a slot besides one for each. One more ends the one that has waited longest.
const maxSpares = 4

// keep makes p a spare process, unless so many wait already for programs like its own, and then ends it.
func (e *Executor) keep(p *process, most int) {
	e.mu.Lock()
	like := 0
	for _, sp := range e.spares {
		if sp.p.key == p.key {
			like++
		}
	}
	if e.closed || like >= most {
		e.mu.Unlock()
		p.end()
		return
	}
	var oldest *spare
	if len(e.spares) >= maxSpares+len(e.slots) {
		oldest, e.spares = e.spares[0], e.spares[1:]
	}
	sp := &spare{p: p}
	e.spares = append(e.spares, sp)
	sp.timer = time.AfterFunc(e.cfg.IdleEnd, func() {
		e.mu.Lock()
		i := slices.Index(e.spares, sp)
		if i >= 0 {
			e.spares = slices.Delete(e.spares, i, i+1)
			e.running.Add(1) // under the lock, so before Close waits
		}
		e.mu.Unlock()
		if i >= 0 {
			p.end()
			e.running.Done()
		}
	})
	e.mu.Unlock()
	if oldest != nil {
		oldest.end()
	}
}

// end kills a spare process; it was taken out of the list.
func (sp *spare) end() {
	sp.timer.Stop()
	sp.p.end()
}
