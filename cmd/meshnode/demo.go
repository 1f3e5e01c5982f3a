package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"meshnode/examples"
	"meshnode/node"
	"meshnode/node/control"
	"meshnode/protocol"
	"meshnode/tasks/executor/python"
	"meshnode/tasks/executor/wasm"
)

const (
	// demoNodes bounds -n: each is a process with its worker.
	demoNodes = 16
	// demoTimeout ends a demo in which something hangs.
	demoTimeout = 2 * time.Minute
)

// demoInputs are those of Parallel Python's example.
var demoInputs = []int{1000000, 1000100, 1000200, 1000300, 1000400, 1000500, 1000600, 1000700}

func (c *cli) demoCommand() *cobra.Command {
	var nodes int
	cmd := &cobra.Command{
		Use:   "demo [-n NODES]",
		Short: "A mesh on this machine: sum_primes on 1 to n of its nodes, and the speed-up",
		Long: `Starts nodes on this machine, each a process with a data directory of its own and one slot, and lets 1 to n
of them add up the primes below 8 numbers. Shows who did what, and the speed-up beside what is possible:
the smaller of the number of nodes and of this machine's cores. It uses only loopback and leaves nothing behind.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().IntVarP(&nodes, "nodes", "n", 3, "`how many` nodes")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if nodes < 1 || nodes > demoNodes {
			return usage(cmd, "demo: -n %d: want 1 to %d", nodes, demoNodes)
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), demoTimeout, fmt.Errorf("the demo did not end within %v", demoTimeout))
		defer cancel()
		d := &demo{cli: c, nodes: nodes}
		err := d.run(ctx)
		if e := d.end(); err == nil {
			err = e
		}
		if err != nil && ctx.Err() != nil && cmd.Context().Err() == nil {
			err = context.Cause(ctx)
		}
		return err
	}
	return cmd
}

type demo struct {
	*cli
	nodes int
	dir   string

	mu       sync.Mutex // guards children, which hasten ends while start makes them
	children []*child
}

// child is a node of the demo.
type child struct {
	name, dir string
	cmd       *exec.Cmd
	stdin     io.Closer // closing it ends the node; so does our death
	log       *os.File
	client    *control.Client
	done      chan error
}

// demoRun is one measurement.
type demoRun struct {
	Nodes     int             `json:"nodes"`
	ElapsedMS float64         `json:"elapsed_ms"`
	SpeedUp   float64         `json:"speedup"`
	Possible  int             `json:"possible"`
	Results   []string        `json:"results"`
	Peers     []node.JobShare `json:"peers"`
}

func (d *demo) run(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "meshnode-demo-"); err != nil {
		return err
	}
	d.hurry.set(d.hasten)
	if !d.json() {
		fmt.Fprintf(d.stderr, "starting %d nodes on this machine\n", d.nodes)
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	first := d.children[0].client
	code, err := first.PutProgram(ctx, bytes.NewReader(examples.SumPrimes))
	if err != nil {
		return err
	}
	ticket := ""
	if d.nodes > 1 {
		if ticket, err = first.Invite(ctx, node.InviteOptions{Mine: true, Expires: demoTimeout, Uses: d.nodes - 1}); err != nil {
			return fmt.Errorf("invite: %w", err)
		}
	}
	cores := processors
	var runs []demoRun
	for k := 1; k <= d.nodes; k++ {
		if k > 1 {
			if err := d.join(ctx, ticket, k); err != nil {
				return err
			}
		}
		r, err := d.measure(ctx, code, k)
		if err != nil {
			return fmt.Errorf("sum_primes on %d nodes: %w", k, err)
		}
		r.Possible = min(k, cores)
		r.SpeedUp = 1
		if k > 1 {
			for i, s := range r.Results {
				if s != runs[0].Results[i] {
					return fmt.Errorf("the sum of primes below %d is %s on 1 node and %s on %d", demoInputs[i], runs[0].Results[i], s, k)
				}
			}
			r.SpeedUp = math.Round(100*runs[0].ElapsedMS/r.ElapsedMS) / 100
		}
		runs = append(runs, r)
		if !d.json() {
			d.printRun(r)
		}
	}
	if d.json() {
		b, err := encodeJSON(map[string]any{"inputs": demoInputs, "cores": cores, "runs": runs})
		if err == nil {
			_, err = d.stdout.Write(b)
		}
		return err
	}
	fmt.Fprintf(d.stdout, "Each time the same %d results. Speed-up, beside min(nodes, cores), with %d cores:\n", len(demoInputs), cores)
	for _, r := range runs {
		fmt.Fprintf(d.stdout, " %2d %-6s %7.3f s   %5.2f of %d\n", r.Nodes, plural(r.Nodes, "node"), r.ElapsedMS/1000, r.SpeedUp, r.Possible)
	}
	return nil
}

func plural(n int, word string) string {
	if n != 1 {
		word += "s"
	}
	return word
}

// start starts the nodes, each alone in a mesh of its own, and waits until they are ready.
func (d *demo) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for i := range d.nodes {
		c := &child{name: "node-" + strconv.Itoa(i+1), done: make(chan error, 1)}
		c.dir = filepath.Join(d.dir, c.name)
		c.cmd = exec.Command(self, "up", "--data-dir", c.dir, "--name", c.name, "--slots", "1", "--no-mdns", "--dht", "off", "--python", python.None,
			"--listen", "/ip4/127.0.0.1/tcp/0", "--with-parent")
		c.cmd.SysProcAttr = detachedAttr() // Ctrl-C is for us; we end them
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "MESHNODE_") || strings.HasPrefix(v, "MESHNODE_CACHE_DIR=") {
				c.cmd.Env = append(c.cmd.Env, v)
			}
		}
		if c.log, err = os.Create(filepath.Join(d.dir, c.name+".log")); err != nil {
			return err
		}
		c.cmd.Stderr = c.log
		in, err := c.cmd.StdinPipe()
		if err != nil {
			return err
		}
		c.stdin = in
		out, err := c.cmd.StdoutPipe()
		if err != nil {
			return err
		}
		d.mu.Lock()
		if err = ctx.Err(); err == nil {
			err = c.cmd.Start()
		}
		if err != nil {
			d.mu.Unlock()
			c.log.Close()
			return fmt.Errorf("start %s: %w", c.name, err)
		}
		d.children = append(d.children, c)
		d.mu.Unlock()
		go func() {
			line, _ := bufio.NewReader(out).ReadString('\n')
			if !strings.HasPrefix(line, "ready: ") {
				c.done <- fmt.Errorf("%s ended before it was ready", c.name)
				return
			}
			c.done <- nil
		}()
	}
	for _, c := range d.children {
		select {
		case err = <-c.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err == nil {
			c.client, err = control.Dial(c.dir)
		}
		if err != nil {
			if ctx.Err() == nil {
				if b, e := os.ReadFile(c.log.Name()); e == nil && len(bytes.TrimSpace(b)) > 0 {
					lines := strings.Split(strings.TrimSpace(string(b)), "\n")
					err = fmt.Errorf("%w: %s", err, lines[len(lines)-1])
				}
			}
			return err
		}
	}
	return nil
}

// join makes the k-th node a member, and waits until the first sees k-1 peers and can give them work.
func (d *demo) join(ctx context.Context, ticket string, k int) error {
	c := d.children[k-1]
	if _, err := c.client.Join(ctx, ticket); err != nil {
		return fmt.Errorf("%s joins: %w", c.name, err)
	}
	for {
		st, err := d.children[0].client.Status(ctx)
		if err != nil {
			return err
		}
		if st.Peers >= k-1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// measure runs the tasks on the k nodes that are in the mesh.
func (d *demo) measure(ctx context.Context, code protocol.BlobID, k int) (demoRun, error) {
	r := demoRun{Nodes: k, Results: make([]string, len(demoInputs))}
	start := time.Now()
	job, err := d.children[0].client.Submit(ctx, node.JobSpec{Name: "sum_primes", Runtime: wasm.Name, Code: code},
		func(yield func([]byte, error) bool) {
			for _, n := range demoInputs {
				if !yield([]byte(strconv.Itoa(n)), nil) {
					return
				}
			}
		},
		func(rs []control.Result) error {
			for i := range rs {
				if rs[i].Status != protocol.Status_OK {
					return fmt.Errorf("the task for %s: %s", rs[i].Input, failure(&rs[i]))
				}
				r.Results[rs[i].Index] = strings.TrimSpace(string(rs[i].Output))
			}
			return nil
		})
	r.ElapsedMS = milliseconds(time.Since(start))
	r.Peers = job.Peers
	return r, err
}

// printRun is pp's Server.print_stats, to the character.
func (d *demo) printRun(r demoRun) {
	w := d.stdout
	fmt.Fprintf(w, "sum_primes on %d %s\n", r.Nodes, plural(r.Nodes, "node"))
	fmt.Fprint(w, "Job execution statistics:\n job count | % of all jobs | job time sum | time per job | job server\n")
	tasks := uint32(0)
	for _, p := range r.Peers {
		tasks += p.Tasks
	}
	for _, p := range r.Peers {
		if p.Tasks == 0 {
			continue
		}
		name := p.Name
		if name == d.children[0].name {
			name = "local"
		}
		sum := p.BusyMS / 1000
		fmt.Fprintf(w, "    %6d |        %6.2f |     %8.4f |  %11.6f | %s\n", p.Tasks, 100*float64(p.Tasks)/float64(tasks), sum, sum/float64(p.Tasks), clean(name))
	}
	fmt.Fprintf(w, "Time elapsed since server creation %s\n0 active tasks, %d cores\n\n", strconv.FormatFloat(math.Round(r.ElapsedMS*1000)/1e6, 'f', -1, 64), r.Nodes)
}

// hasten is end for somebody who does not wait: the nodes are killed.
func (d *demo) hasten() {
	d.mu.Lock() // and never unlocked: no node is to be started any more
	for _, c := range d.children {
		c.cmd.Process.Kill()
	}
	for range 20 { // a process that is not quite dead may still make a file
		if os.RemoveAll(d.dir) == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// end stops all nodes and removes what they left. It may be called at any moment after run.
func (d *demo) end() error {
	var wait sync.WaitGroup
	for _, c := range d.children {
		wait.Go(func() {
			if c.client != nil {
				c.client.Close()
			}
			c.stdin.Close()
			kill := time.AfterFunc(stopTimeout+time.Second, func() { c.cmd.Process.Kill() })
			c.cmd.Wait()
			kill.Stop()
			c.log.Close()
		})
	}
	wait.Wait()
	if d.dir == "" {
		return nil
	}
	if err := os.RemoveAll(d.dir); err != nil {
		return errors.Join(fmt.Errorf("remove %s: %w", d.dir, err))
	}
	return nil
}
