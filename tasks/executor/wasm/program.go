package wasm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"meshnode/protocol"
)

const (
	// exitTrap is the exit code of a task that trapped: 128 + SIGABRT, as a shell says of a native program.
	exitTrap = 134
	// exitLimit is that of a task that ran into a limit.
	exitLimit = 1
	// maxArgs bounds the bytes of all arguments of a task.
	maxArgs = 1 << 20
)

// features are those that today's compilers use by default, and those that they use when asked.
const features = api.CoreFeaturesV2 | experimental.CoreFeaturesTailCall | experimental.CoreFeaturesExtendedConst |
	experimental.CoreFeaturesExceptionHandling

// engine compiles modules. Code is kept on disk by module hash and processor, for the user and not the node: wazero's file
// cache writes to a temporary file and renames it, so processes may share the directory.
type engine struct {
	cached wazero.Runtime // nil: there is no such directory
	plain  wazero.Runtime // nil until it is needed
	stderr io.Writer
}

func newEngine(stderr io.Writer) *engine {
	e := &engine{stderr: stderr}
	dir, err := cacheDir()
	if err == nil {
		var cache wazero.CompilationCache
		if cache, err = wazero.NewCompilationCacheWithDir(dir); err == nil {
			e.cached = newRuntime(cache)
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "no compile cache:", err)
	}
	return e
}

// cacheDir is where compiled code is kept: MESHNODE_CACHE_DIR, or meshnode in the user's cache directory.
func cacheDir() (string, error) {
	dir := os.Getenv("MESHNODE_CACHE_DIR")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(user, "meshnode")
	}
	return filepath.Join(dir, "wasm"), nil
}

func newRuntime(cache wazero.CompilationCache) wazero.Runtime {
	// allocator holds memory to its limit. The limit is not set here: then nobody would tell that it was reached.
	cfg := wazero.NewRuntimeConfig().WithCoreFeatures(features).WithMemoryCapacityFromMax(true)
	if cache != nil {
		cfg = cfg.WithCompilationCache(cache)
	}
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, cfg)
	wasi_snapshot_preview1.MustInstantiate(ctx, rt) // fails only for a module of that name that is there already
	return rt
}

// load makes the program of spec, or says why not.
func (e *engine) load(spec protocol.WorkerProgram) (*program, protocol.WorkerFailure) {
	f, err := os.Open(spec.Path)
	if err != nil {
		return nil, protocol.WorkerFailure{Unable: err.Error()}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, protocol.WorkerFailure{Unable: err.Error()}
	}
	o, err := readOutline(f, st.Size())
	if err != nil {
		return nil, protocol.WorkerFailure{Invalid: err.Error()}
	}
	module, err := io.ReadAll(io.NewSectionReader(f, 0, st.Size()))
	if err != nil {
		return nil, protocol.WorkerFailure{Unable: err.Error()}
	}
	p := &program{spec: spec, outline: o, alloc: allocator{limit: spec.MemoryBytes / pageSize * pageSize}}
	p.ctx = experimental.WithMemoryAllocator(context.Background(), &p.alloc)
	ctx := experimental.WithCompilationWorkers(context.Background(), runtime.GOMAXPROCS(0))
	if e.cached != nil {
		p.runtime = e.cached
		p.code, err = e.cached.CompileModule(ctx, module)
	}
	if p.code == nil {
		// Without the cache once more: a full disk or a damaged file is not the module's fault.
		cause := err
		if e.plain == nil {
			e.plain = newRuntime(nil)
		}
		p.runtime = e.plain
		if p.code, err = e.plain.CompileModule(ctx, module); err != nil {
			return nil, protocol.WorkerFailure{Invalid: "not a valid module: " + line(err.Error())}
		}
		if cause != nil {
			fmt.Fprintln(e.stderr, "compile cache:", cause)
		}
	}
	if err := p.check(); err != nil {
		p.code.Close(p.ctx)
		return nil, protocol.WorkerFailure{Invalid: err.Error()}
	}
	return p, protocol.WorkerFailure{}
}

// program is a compiled module, for the tasks of one job.
type program struct {
	spec    protocol.WorkerProgram
	outline outline
	alloc   allocator
	ctx     context.Context // has alloc
	runtime wazero.Runtime
	code    wazero.CompiledModule
	reactor *reactor // nil: the next task makes one

	stdout, log capture
}

// check finds what would make every task fail.
func (p *program) check() error {
	host := p.runtime.Module(wasi).ExportedFunctionDefinitions()
	for _, f := range p.code.ImportedFunctions() {
		module, name, _ := f.Import()
		if h, ok := host[name]; module != wasi || !ok || !sameTypes(h.ParamTypes(), f.ParamTypes()) || !sameTypes(h.ResultTypes(), f.ResultTypes()) {
			return fmt.Errorf("imports function %s from %s, which no node has: only WASI preview 1 is there; build for wasm32-wasip1", quote(name), quote(module))
		}
	}
	if p.outline.reactor && len(p.code.ExportedMemories()) == 0 {
		return errors.New("exports mesh_run but no memory")
	}
	i32, i64 := api.ValueTypeI32, api.ValueTypeI64
	for _, want := range []struct {
		name            string
		params, results []api.ValueType
		used            bool
	}{
		{"_start", nil, nil, !p.outline.reactor},
		{"mesh_alloc", []api.ValueType{i32}, []api.ValueType{i32}, p.outline.reactor},
		{"mesh_run", []api.ValueType{i32, i32}, []api.ValueType{i64}, p.outline.reactor},
		{"mesh_free", []api.ValueType{i32}, nil, p.outline.reactor && p.outline.free},
		{"_initialize", nil, nil, p.outline.reactor && p.outline.start},
	} {
		f := p.code.ExportedFunctions()[want.name]
		if want.used && (f == nil || !sameTypes(f.ParamTypes(), want.params) || !sameTypes(f.ResultTypes(), want.results)) {
			return fmt.Errorf("exports %s with other types than %s", want.name, signature(want.params, want.results))
		}
	}
	return nil
}

func sameTypes(a, b []api.ValueType) bool { return bytes.Equal(a, b) }

func signature(params, results []api.ValueType) string {
	names := func(ts []api.ValueType) string {
		var s []string
		for _, t := range ts {
			s = append(s, api.ValueTypeName(t))
		}
		return "(" + strings.Join(s, ", ") + ")"
	}
	return names(params) + " → " + names(results)
}

// rest gives up what costs memory while another program runs.
func (p *program) rest() {
	p.reactor.close()
	p.reactor = nil
	p.alloc.close()
	p.stdout, p.log = capture{}, capture{}
}

// close forgets the program.
func (p *program) close() {
	p.rest()
	p.code.Close(p.ctx)
}

// run runs one task. What o points to is good until the next run.
func (p *program) run(o *protocol.WorkerOutcome, index uint32, input []byte) {
	p.alloc.refused = false
	p.stdout.reset(p.spec.OutputBytes, true)
	p.log.reset(p.spec.LogBytes, false)
	if least := p.outline.minPages * pageSize; least > p.alloc.limit {
		o.Status, o.ExitCode = protocol.Status_MEMORY_LIMIT, exitLimit
		o.Error = fmt.Appendf(nil, "the module begins with %s of memory and the limit is %s; raise it with --memory", mib(least), mib(p.alloc.limit))
		return
	}
	words, err := p.words(index, input)
	if err != nil {
		o.Status, o.ExitCode, o.Error = protocol.Status_FAILED, exitLimit, []byte(err.Error())
		return
	}
	if p.outline.reactor {
		if words != nil {
			input = []byte(strings.Join(words, " "))
		}
		p.call(o, input)
	} else {
		p.command(o, words, input)
	}
	o.Log = p.log.buf
	if p.alloc.refused && o.Status == protocol.Status_FAILED {
		o.Status = protocol.Status_MEMORY_LIMIT
		o.Error = fmt.Appendf(nil, "memory limit of %s reached: %s", mib(p.alloc.limit), o.Error)
	}
}

// words are the argument words for a task, nil if the job has none.
func (p *program) words(index uint32, input []byte) ([]string, error) {
	if len(p.spec.Args) == 0 {
		return nil, nil
	}
	size := 0
	fill := strings.NewReplacer("{}", string(input), "{#}", strconv.FormatUint(uint64(index)+1, 10))
	words := make([]string, len(p.spec.Args))
	for i, a := range p.spec.Args {
		if size += len(a) + strings.Count(a, "{}")*len(input); size > maxArgs {
			return nil, fmt.Errorf("arguments of more than %s; leave the words out, and the input is on standard input", mib(maxArgs))
		}
		words[i] = fill.Replace(a)
		if !p.outline.reactor && strings.IndexByte(words[i], 0) >= 0 {
			return nil, errors.New("the input has a zero byte and cannot be an argument; leave the words out, and it is on standard input")
		}
	}
	return words, nil
}

// command runs a task in an instance of its own.
func (p *program) command(o *protocol.WorkerOutcome, words []string, input []byte) {
	if words != nil {
		input = nil
	}
	name := p.spec.Name
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		name = "program"
	}
	cfg := p.config().WithStdin(bytes.NewReader(input)).WithStdout(&p.stdout).
		WithStartFunctions().WithArgs(append([]string{name}, words...)...)
	m, err := p.runtime.InstantiateModule(p.ctx, p.code, cfg)
	if err == nil {
		_, err = m.ExportedFunction("_start").Call(p.ctx)
		m.Close(p.ctx)
	}
	if exit := (*sys.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 0 {
		err = nil
	}
	if err != nil {
		p.failed(o, err)
		if o.Status == protocol.Status_OUTPUT_LIMIT {
			return
		}
	} else {
		o.Status = protocol.Status_OK
	}
	o.Output = p.stdout.buf
}

// config is what commands and reactors have in common.
func (p *program) config() wazero.ModuleConfig {
	cfg := wazero.NewModuleConfig().WithName("").WithStderr(&p.log)
	if p.spec.ClockReal {
		cfg = cfg.WithSysWalltime().WithSysNanotime().WithSysNanosleep().WithRandSource(rand.Reader)
	}
	return cfg
}

// failed makes an outcome of the error that a call into a module returned.
func (p *program) failed(o *protocol.WorkerOutcome, err error) {
	var exit *sys.ExitError
	switch {
	case errors.Is(err, errOutput):
		o.Status, o.ExitCode = protocol.Status_OUTPUT_LIMIT, exitLimit
		o.Error = fmt.Appendf(nil, "output_limit: wrote more than %s of output", mib(p.spec.OutputBytes))
	case errors.As(err, &exit):
		o.Status, o.ExitCode = protocol.Status_FAILED, int32(exit.ExitCode())
		o.Error = fmt.Appendf(nil, "exit code %d", o.ExitCode)
	default:
		o.Status, o.ExitCode = protocol.Status_FAILED, exitTrap
		text := err.Error()
		o.Error = []byte("trap: " + strings.TrimPrefix(line(text), "wasm error: "))
		fmt.Fprintln(&p.log, text) // with the stack
	}
}

// line is the first line of text.
func line(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	return text
}

// reactor is an instance that serves task after task.
type reactor struct {
	module           api.Module
	alloc, run, free api.Function
	stack            [2]uint64
}

func (r *reactor) close() {
	if r != nil {
		r.module.Close(context.Background())
	}
}

// call runs a task in the job's instance.
func (p *program) call(o *protocol.WorkerOutcome, input []byte) {
	err := p.tryCall(o, input)
	if err != nil {
		var exit *sys.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 0 {
			o.Status, o.ExitCode, o.Error = protocol.Status_FAILED, exitLimit, []byte("exit(0) in a reactor, without a result")
		} else {
			p.failed(o, err)
		}
	}
	// An instance that trapped may be in any state; one that is full would fail the tasks after this one.
	if p.reactor != nil && (err != nil || uint64(p.reactor.module.Memory().Size()) > p.alloc.limit/2) {
		p.reactor.close()
		p.reactor = nil
	}
}

func (p *program) tryCall(o *protocol.WorkerOutcome, input []byte) error {
	if p.reactor == nil {
		m, err := p.runtime.InstantiateModule(p.ctx, p.code, p.config().WithStdout(&p.log).WithStartFunctions("_initialize"))
		if err != nil {
			return err
		}
		p.reactor = &reactor{module: m, alloc: m.ExportedFunction("mesh_alloc"), run: m.ExportedFunction("mesh_run")}
		if p.outline.free {
			p.reactor.free = m.ExportedFunction("mesh_free")
		}
	}
	r := p.reactor
	memory := r.module.Memory()
	r.stack[0] = uint64(len(input))
	if err := r.alloc.CallWithStack(p.ctx, r.stack[:]); err != nil {
		return err
	}
	at := uint32(r.stack[0])
	if at == 0 && len(input) > 0 || !memory.Write(at, input) {
		return fmt.Errorf("mesh_alloc(%d) returned %#x: no room for the input", len(input), at)
	}
	r.stack[0], r.stack[1] = uint64(at), uint64(len(input))
	if err := r.run.CallWithStack(p.ctx, r.stack[:]); err != nil {
		return err
	}
	result := r.stack[0]
	if result == ^uint64(0) {
		o.Status, o.ExitCode = protocol.Status_FAILED, 1
		text := bytes.TrimSpace(p.log.buf)
		if o.Error = text[bytes.LastIndexByte(text, '\n')+1:]; len(o.Error) == 0 {
			o.Error = []byte("mesh_run returned -1")
		}
		return nil
	}
	at, length := uint32(result>>32), uint32(result)
	if uint64(length) > p.spec.OutputBytes {
		return errOutput
	}
	output, ok := memory.Read(at, length)
	if !ok {
		return fmt.Errorf("mesh_run returned %d bytes at %#x, which is outside of its memory", length, at)
	}
	p.stdout.buf = append(p.stdout.buf, output...)
	o.Status, o.Output = protocol.Status_OK, p.stdout.buf
	if r.free != nil {
		r.stack[0] = uint64(at)
		return r.free.CallWithStack(p.ctx, r.stack[:])
	}
	return nil
}

// errOutput ends a task that writes more than it may.
var errOutput = errors.New("output limit")

// capture is what a task writes. Over its limit it ends the task, or drops the rest and says so.
type capture struct {
	buf   []byte
	limit uint64
	ends  bool
	cut   bool
}

// reset forgets what was written; most of the time it keeps the memory.
func (c *capture) reset(limit uint64, ends bool) {
	if c.buf = c.buf[:0]; cap(c.buf) > 1<<20 {
		c.buf = nil
	}
	c.limit, c.ends, c.cut = limit, ends, false
}

func (c *capture) Write(b []byte) (int, error) {
	room := int(c.limit) - len(c.buf)
	if len(b) <= room {
		c.buf = append(c.buf, b...)
		return len(b), nil
	}
	if c.ends {
		panic(errOutput) // through the guest, to the call that runs it: an error it might ignore
	}
	if !c.cut {
		c.cut = true
		c.buf = fmt.Appendf(append(c.buf, b[:room]...), "\n[cut: the log is over %s]\n", mib(c.limit))
	}
	return len(b), nil
}

// mib writes a size for people.
func mib(n uint64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/(1<<20)), ".0") + " MiB"
}
