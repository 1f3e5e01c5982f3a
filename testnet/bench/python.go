package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"meshnode/testnet"
)

// driver is a user's program that measures itself: see there.
//
//go:embed testdata/driver.py
var driver []byte

// pythonGroups are the rows of Python programs. Goals are those of the project, for two cores.
var pythonGroups = []group{
	{"python.throughput", []row{
		{"python.throughput.futures", "tasks/s", goal{"≥", 40_000}, "no-op calls with a future each, meshnode.Executor; 2 slots of the submitting node"},
		{"python.throughput.processpool", "tasks/s", goal{}, "the same with concurrent.futures.ProcessPoolExecutor(2)"},
		{"python.throughput.ppft", "tasks/s", goal{}, "the same with ppft.Server(2)"},
		{"python.throughput.ratio", "×", goal{}, "futures over those of ProcessPoolExecutor, in each round"},
		{"python.throughput.map", "tasks/s", goal{"≥", 200_000}, "no-op calls with Executor.map, each with a result of its own; 2 slots of the submitting node"},
		{"python.throughput.imap", "tasks/s", goal{}, "the same with multiprocessing.Pool(2).imap"},
		{"python.throughput.joblib", "tasks/s", goal{}, "the same with joblib.Parallel(2), which makes batches"},
		{"python.throughput.mapratio", "×", goal{}, "map over Pool.imap, in each round"},
		{"python.throughput.other", "tasks/s", goal{"≥", 60_000}, "Executor.map to 2 slots of another node"},
		{"python.throughput.otherfutures", "tasks/s", goal{}, "a future each, 2 slots of another node"},
	}, 8 * time.Minute, pythonThroughput},
	{"python.cpu", []row{
		{"python.cpu.map", "µs", goal{"≤", 35}, "processor time for each no-op call of Executor.map: program, node and workers together; 2 local slots"},
		{"python.cpu.futures", "µs", goal{"≤", 35}, "the same with a future each"},
		{"python.cpu.program", "µs", goal{}, "what of that the program itself takes"},
		{"python.cpu.node", "µs", goal{}, "… the node"},
		{"python.cpu.workers", "µs", goal{}, "… its worker processes"},
		{"python.cpu.processpool", "µs", goal{}, "a future each with ProcessPoolExecutor(2)"},
		{"python.cpu.imap", "µs", goal{}, "Pool(2).imap"},
	}, 5 * time.Minute, pythonCPU},
	{"python.call", []row{
		{"python.call.local.p50", "ms", goal{"≤", 0.2}, "one no-op call after the other, submit(f, x).result(); 1 slot"},
		{"python.call.local.p99", "ms", goal{"≤", 1}, ""},
		{"python.call.other.p50", "ms", goal{"≤", 0.4}, "on another node"},
		{"python.call.other.p99", "ms", goal{"≤", 2}, ""},
		{"python.call.processpool.p50", "ms", goal{}, "ProcessPoolExecutor(2)"},
		{"python.call.processpool.p99", "ms", goal{}, ""},
		{"python.call.ppft.p50", "ms", goal{}, "ppft.Server(2)"},
		{"python.call.ppft.p99", "ms", goal{}, ""},
	}, 5 * time.Minute, pythonCall},
	{"python.efficiency", []row{
		{"python.efficiency", "ratio", goal{"≥", 0.98}, "calls that compute for 10 ms, 2 local slots: the time that two bare processes take for as many, over ours; 5 turns of 120 in each round; all at the lowest priority"},
		{"python.efficiency.processpool", "ratio", goal{}, "the same for ProcessPoolExecutor(2)"},
	}, 5 * time.Minute, pythonEfficiency},
	{"python.primes", []row{
		{"python.primes", "× goal", goal{"≤", 1}, "sum_primes of 8 inputs from 100000 on 2 nodes of 1 slot, over 0.5 × the time in the program itself + 0.1 s"},
		{"python.primes.speedup", "×", goal{}, "the time in the program itself over that on 2 nodes"},
		{"python.primes.cores", "×", goal{}, "what the machine can do: how much two threads compute in the time in which one does 1, measured in the same rounds"},
	}, 4 * time.Minute, pythonPrimes},
	{"python.start", []row{
		{"python.start.mesh", "s", goal{"≤", 0.5}, "nothing runs: two nodes start on empty folders and become one mesh, then a program starts; until its first result"},
		{"python.start.private", "s", goal{"≤", 2}, "meshnode python of a program that uses pp where no node runs: from its start to its first result"},
		{"python.start.running", "s", goal{}, "the same where a node runs"},
		{"python.start.interpreter", "s", goal{}, "python -c pass"},
	}, 3 * time.Minute, pythonStart},
	{"python.memory", []row{
		{"python.memory", "MB", goal{"≤", 15}, "what a worker process takes that has run a call, the node's fork server included: proportional set size, in which a page that several processes share counts once, in parts; of 2 workers, Linux only"},
		{"python.memory.own", "MB", goal{}, "what one shares with nobody"},
		{"python.memory.resident", "MB", goal{}, "resident set size of one: shared pages counted for each"},
	}, 3 * time.Minute, pythonMemory},
}

// interpreter is the real interpreter behind python3 on PATH, and the first there from now on: a shim, such as of pyenv, costs
// each start some tenths of a second.
func (b *bench) interpreter() string {
	for _, name := range []string{"python3", "python"} {
		out, err := exec.CommandContext(b.ctx, name, "-c", "import sys; print(sys.executable if sys.version_info >= (3, 8) else '')").Output()
		if path := strings.TrimSpace(string(out)); err == nil && path != "" {
			if dir := filepath.Dir(path) + string(filepath.ListSeparator); !strings.HasPrefix(os.Getenv("PATH"), dir) {
				os.Setenv("PATH", dir+os.Getenv("PATH"))
			}
			return path
		}
	}
	b.Fatal("no Python 3.8 or later on PATH")
	return ""
}

// environ is our environment without variables that make Python another one than users have, and with some more.
func environ(more ...string) []string {
	return append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PYTHON") }), more...)
}

// program is a running driver.
type program struct {
	b     *bench
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	errs  strings.Builder
	ended sync.Once
}

// drive starts a program that uses nd, if there is one, and opens what it measures.
func (b *bench) drive(kind, interpreter string, nd *testnet.Node) *program {
	root, err := os.Getwd()
	if err != nil {
		b.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "mn-driver-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "driver.py")
	if err := os.WriteFile(path, driver, 0o600); err != nil {
		b.Fatal(err)
	}
	p := &program{b: b, cmd: exec.CommandContext(b.ctx, interpreter, path)}
	p.cmd.Env, p.cmd.Stderr = environ("PYTHONPYCACHEPREFIX="+dir), &p.errs
	if nd != nil {
		p.cmd.Env = append(p.cmd.Env, "PYTHONPATH="+filepath.Join(root, "python"), "MESHNODE_DATA_DIR="+nd.Dir)
	}
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		p.in, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		b.Fatal("start ", interpreter, ": ", err)
	}
	p.out = bufio.NewReader(out)
	b.Cleanup(p.close)
	p.ask(nil, "open", kind)
	return p
}

// close ends the program as a user's would: it comes to its end.
func (p *program) close() {
	p.ended.Do(func() {
		p.in.Close()
		timer := time.AfterFunc(10*time.Second, func() { p.cmd.Process.Kill() })
		defer timer.Stop()
		p.cmd.Wait()
	})
}

// ask has the program do something and reads the answer into it.
func (p *program) ask(into any, do string, args ...any) {
	line, err := json.Marshal(map[string]any{"do": do, "args": append([]any{}, args...)})
	if err == nil {
		_, err = p.in.Write(append(line, '\n'))
	}
	if err == nil {
		line, err = p.out.ReadBytes('\n')
	}
	answer := struct {
		Answer any `json:"answer"`
	}{into}
	if err == nil {
		err = json.Unmarshal(line, &answer)
	}
	if err != nil {
		p.close()
		p.b.Fatalf("%s of the Python program: %v: %s", do, err, lastLine(p.errs.String()))
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func (p *program) seconds(do string, args ...any) float64 {
	var s float64
	p.ask(&s, do, args...)
	return s
}

// venv is an interpreter that has the packages of others which are compared with, or "" and why not.
func (b *bench) venv(packages ...string) (string, string) {
	dir, err := os.MkdirTemp("", "mn-venv-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	bin := filepath.Join(dir, "bin", "python")
	if runtime.GOOS == "windows" {
		bin = filepath.Join(dir, "Scripts", "python.exe")
	}
	for _, line := range [][]string{{b.interpreter(), "-m", "venv", dir}, append([]string{bin, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"}, packages...)} {
		if out, err := exec.CommandContext(b.ctx, line[0], line[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Sprintf("not compared: %s: %v: %s", strings.Join(line[1:], " "), err, lastLine(string(out)))
		}
	}
	return bin, ""
}

func pythonThroughput(b *bench) {
	const warm, futures, calls = 2000, 20_000, 200_000
	py := b.interpreter()
	local, other := b.drive("mesh", py, b.twoNodes(true, 2).Node(1)), b.drive("mesh", py, b.twoNodes(false, 2).Node(1))
	own, imap := b.drive("processpool", py, nil), b.drive("pool", py, nil)
	var ppft, joblib *program
	if venv, why := b.venv("ppft", "joblib"); venv != "" {
		ppft, joblib = b.drive("ppft", venv, nil), b.drive("joblib", venv, nil)
		ppft.seconds("futures", 100)
		joblib.seconds("map", warm)
	} else {
		b.note("python.throughput.ppft", "%s", why)
		b.note("python.throughput.joblib", "%s", why)
	}
	for _, p := range []*program{local, other, own} {
		p.seconds("futures", warm)
	}
	for _, p := range []*program{local, other, imap} {
		p.seconds("map", 10*warm)
	}
	for range b.rounds {
		ours, theirs := futures/local.seconds("futures", futures), futures/4/own.seconds("futures", futures/4)
		b.add("python.throughput.futures", ours)
		b.add("python.throughput.processpool", theirs)
		b.add("python.throughput.ratio", ours/theirs)
		ours, theirs = calls/local.seconds("map", calls), calls/8/imap.seconds("map", calls/8)
		b.add("python.throughput.map", ours)
		b.add("python.throughput.imap", theirs)
		b.add("python.throughput.mapratio", ours/theirs)
		b.add("python.throughput.other", calls/other.seconds("map", calls))
		b.add("python.throughput.otherfutures", futures/other.seconds("futures", futures))
		if ppft != nil {
			b.add("python.throughput.ppft", 2000/ppft.seconds("futures", 2000))
			b.add("python.throughput.joblib", calls/joblib.seconds("map", calls))
		}
	}
}

// spent is the processor time of a process and of all below it so far, in seconds.
func (b *bench) spent(pid int) float64 {
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		b.Fatal("processor time of process ", pid, ": ", err)
	}
	t, err := p.Times()
	if err != nil {
		b.Fatal("processor time of process ", pid, ": ", err)
	}
	sum := t.User + t.System
	children, _ := p.Children() // none is an error there
	for _, c := range children {
		sum += b.spent(int(c.Pid))
	}
	return sum
}

// own is the same without what is below it.
func (b *bench) own(pid int) float64 {
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		b.Fatal(err)
	}
	t, err := p.Times()
	if err != nil {
		b.Fatal(err)
	}
	return t.User + t.System
}

func pythonCPU(b *bench) {
	py := b.interpreter()
	nd := b.mesh(1, 2).Node(1)
	ours, own, imap := b.drive("mesh", py, nd), b.drive("processpool", py, nil), b.drive("pool", py, nil)
	// cost is µs for each call: of the program, of the node, of its workers. Times are counted in hundredths of seconds.
	cost := func(p *program, nd *testnet.Node, do string, n int) (program, node, workers float64) {
		read := func() (program, node, all float64) {
			if nd != nil {
				node, all = b.own(nd.PID()), b.spent(nd.PID())
				return b.own(p.cmd.Process.Pid), node, all
			}
			return b.own(p.cmd.Process.Pid), 0, b.spent(p.cmd.Process.Pid) - b.own(p.cmd.Process.Pid)
		}
		p1, n1, a1 := read()
		p.seconds(do, n)
		p2, n2, a2 := read()
		each := 1e6 / float64(n)
		return (p2 - p1) * each, (n2 - n1) * each, (a2 - a1 - n2 + n1) * each
	}
	for _, p := range []*program{ours, own} {
		p.seconds("futures", 2000)
	}
	ours.seconds("map", 20_000)
	imap.seconds("map", 2000)
	for range b.rounds {
		for row, c := range map[string]struct {
			p  *program
			nd *testnet.Node
			do string
			n  int
		}{
			"python.cpu.map": {ours, nd, "map", 200_000}, "python.cpu.futures": {ours, nd, "futures", 20_000},
			"python.cpu.processpool": {own, nil, "futures", 5000}, "python.cpu.imap": {imap, nil, "map", 20_000},
		} {
			program, node, workers := cost(c.p, c.nd, c.do, c.n)
			b.add(row, program+node+workers)
			if row == "python.cpu.futures" {
				b.add("python.cpu.program", program)
				b.add("python.cpu.node", node)
				b.add("python.cpu.workers", workers)
			}
		}
	}
}

func pythonCall(b *bench) {
	const calls = 1000
	py := b.interpreter()
	measured := map[string]*program{
		"local": b.drive("mesh", py, b.twoNodes(true, 1).Node(1)), "other": b.drive("mesh", py, b.twoNodes(false, 1).Node(1)),
		"processpool": b.drive("processpool", py, nil),
	}
	if venv, why := b.venv("ppft"); venv != "" {
		measured["ppft"] = b.drive("ppft", venv, nil)
	} else {
		b.note("python.call.ppft.p50", "%s", why)
	}
	for _, p := range measured {
		p.ask(nil, "calls", 100)
	}
	for range b.rounds {
		for name, p := range measured {
			var took []float64
			p.ask(&took, "calls", calls)
			b.add("python.call."+name+".p50", 1000*median(took))
			b.add("python.call."+name+".p99", 1000*quantile(took, 0.99))
		}
	}
}

func pythonEfficiency(b *bench) {
	const turns, tasks = 5, 120 // short turns: a busy machine changes from one second to the next
	py := b.interpreter()
	ours, own := b.drive("mesh", py, b.mesh(1, 2).Node(1)), b.drive("processpool", py, nil)
	loops := int(ours.seconds("loops", 0.01))
	for _, p := range []*program{ours, own} {
		p.seconds("burn", 40, loops)
	}
	for range b.rounds {
		var bare, mesh, pool float64
		for range turns {
			mesh += ours.seconds("burn", tasks, loops)
			bare += own.seconds("bare", tasks, loops)
			pool += own.seconds("burn", tasks, loops)
		}
		b.add("python.efficiency", bare/mesh)
		b.add("python.efficiency.processpool", bare/pool)
	}
}

func pythonPrimes(b *bench) {
	const first, inputs = 100_000, 8
	p := b.drive("mesh", b.interpreter(), b.mesh(2, 1).Node(1))
	p.seconds("primes", 1000, 40)
	for range b.rounds {
		serial, two := p.seconds("serial", first, inputs), p.seconds("primes", first, inputs)
		b.add("python.primes", two/(0.5*serial+0.1))
		b.add("python.primes.speedup", serial/two)
		b.add("python.primes.cores", compute(2)/compute(1))
	}
}

// one is a whole program of one call.
const one = `import meshnode
def f(x): return x
with meshnode.Executor() as executor:
    print(executor.submit(f, 7).result(), flush=True)
`

// oneOfPP is the same for Parallel Python.
const oneOfPP = `import pp
def f(x): return x
server = pp.Server()
print(server.submit(f, (7,))(), flush=True)
`

func pythonStart(b *bench) {
	root, err := os.Getwd()
	if err != nil {
		b.Fatal(err)
	}
	py := b.interpreter()
	empty, err := os.MkdirTemp("", "mn-empty-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(empty) })
	// until is the time from a moment until a program that is started now prints what it should.
	until := func(began time.Time, dir, want string, line ...string) float64 {
		cmd := exec.CommandContext(b.ctx, line[0], line[1:]...)
		var errs strings.Builder
		cmd.Env, cmd.Stderr = environ("PYTHONPATH="+filepath.Join(root, "python"), "PYTHONPYCACHEPREFIX="+empty, "MESHNODE_DATA_DIR="+dir), &errs
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			b.Fatal(err)
		}
		got, _ := bufio.NewReader(out).ReadString('\n')
		took := time.Since(began).Seconds()
		if err := cmd.Wait(); err != nil || got != want {
			b.Fatalf("the Python program printed %q: %v: %s", got, err, lastLine(errs.String()))
		}
		return took
	}
	running := b.mesh(1, 2).Node(1)
	until(time.Now(), running.Dir, "7\n", py, "-c", one) // Python keeps the byte code of modules
	for range b.rounds {
		began := time.Now()
		o := b.mesh(2, 1).Node(1)
		b.add("python.start.mesh", until(began, o.Dir, "7\n", py, "-c", one))
		self := testnet.Binary(b)
		b.add("python.start.private", until(time.Now(), filepath.Join(empty, "none"), "7\n", self, "python", "--python", py, "-c", oneOfPP))
		b.add("python.start.running", until(time.Now(), running.Dir, "7\n", self, "python", "--python", py, "-c", oneOfPP))
		b.add("python.start.interpreter", until(time.Now(), "", "\n", py, "-c", "print(flush=True)"))
	}
}

// rollup is the sum of what the system says of a process's memory under these names, in MB; 0: it is gone, or the system is not Linux.
func rollup(pid int32, names ...string) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	sum := 0.0
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && slices.Contains(names, strings.TrimSuffix(f[0], ":")) {
			kb, _ := strconv.ParseFloat(f[1], 64)
			sum += kb / 1e3
		}
	}
	return sum
}

func pythonMemory(b *bench) {
	const workers = 2
	py := b.interpreter()
	for range b.rounds {
		nd := b.mesh(1, workers).Node(1)
		p := b.drive("mesh", py, nd)
		p.seconds("futures", 1000)
		var all float64
		below, leaves := b.below(nd.PID())
		for _, w := range below {
			all += rollup(w.Pid, "Pss")
		}
		if all > 0 {
			b.add("python.memory", all/workers)
		}
		if len(leaves) != workers {
			b.Fatalf("the node has %d worker processes, want %d", len(leaves), workers)
		}
		for _, w := range leaves {
			m, err := w.MemoryInfo()
			if err != nil {
				b.Fatal("memory of a worker: ", err)
			}
			b.add("python.memory.resident", float64(m.RSS)/1e6)
			if own := rollup(w.Pid, "Private_Clean", "Private_Dirty"); own > 0 {
				b.add("python.memory.own", own)
			}
		}
		p.close()
		nd.Down()
	}
}

// below are the processes that a process started, and those that these did; and of them those that started none: the worker
// processes, and not the fork server that made them.
func (b *bench) below(pid int) (all, workers []*process.Process) {
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		return nil, nil // it has ended
	}
	children, _ := p.Children() // none is an error there
	for _, c := range children {
		more, leaves := b.below(int(c.Pid))
		if len(more) == 0 {
			leaves = []*process.Process{c}
		}
		all, workers = append(append(all, c), more...), append(workers, leaves...)
	}
	return all, workers
}
