package testnet

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"meshnode/testnet/lab"
)

// behind is a network of homes with one machine each behind a router of its own, and machines with public addresses: nodes 1 to
// open are those.
func behind(l *lab.Lab, open int, nats ...lab.NAT) []*lab.Host {
	hosts, _ := routed(l, open, nats...)
	return hosts
}

// routed is behind, with the routers.
func routed(l *lab.Lab, open int, nats ...lab.NAT) (hosts, routers []*lab.Host) {
	internet := l.Switch()
	for i := range open {
		h := l.Host(fmt.Sprint("public", i+1))
		h.Plug(internet, fmt.Sprintf("8.8.%d.1/16", 100+i))
		hosts = append(hosts, h)
	}
	for i, nat := range nats {
		lan := l.Switch()
		routers = append(routers, l.Router(fmt.Sprint("router", i+1), lan, "192.168.1.1/24", internet, fmt.Sprintf("8.8.%d.1/16", i+1), nat))
		h := l.Host(fmt.Sprint("home", i+1))
		h.Plug(lan, fmt.Sprintf("192.168.1.%d/24", i+2))
		h.Gateway("192.168.1.1")
		hosts = append(hosts, h)
	}
	return hosts, routers
}

// pathTo is how nd is connected to other, "" if it is not, and through which relay.
func (nd *Node) pathTo(t *testing.T, other *Node) (path, relay string) {
	t.Helper()
	st, err := other.Client().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	peers, err := nd.Client().Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if p.ID == st.ID && (p.State == "connected" || p.State == "suspect") {
			return p.Path, p.Relay
		}
	}
	return "", ""
}

// Two nodes behind two routers, which keep ports, meet through a public member's relay, and then directly.
func TestHolePunch(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	n := Start(t, 3, Options{Apart: true, Hosts: behind(l, 1, lab.PortPreserving, lab.PortPreserving), Args: []string{"--log-level", "debug", "--no-port-map"}})
	a, b := n.Node(2), n.Node(3)
	ticket := n.Node(1).CLI("invite", "--mine", "--uses", "2").Stdout
	if out := a.CLI("join", ticket); out.Code != 0 {
		t.Fatal(out)
	}
	a.AwaitPeers(1)
	if out := b.CLI("join", ticket); out.Code != 0 {
		t.Fatal(out)
	}
	n.within(2*time.Second, "connected through the relay", func() bool { p, _ := a.pathTo(t, b); return p != "" })
	n.within(5*time.Second, "connected directly", func() bool { p, _ := a.pathTo(t, b); return p == "direct" })
}

// digest has another node read 64 MiB, which it fetches from the node of this program.
const digest = `
import hashlib, os, pickle, time
import meshnode

def digest(data):
    import hashlib
    return hashlib.sha256(data).hexdigest()

data = os.urandom(64 << 20)
with meshnode.Client(private=False) as client:
    ref = client.put(pickle.PickleBuffer(data))
    began = time.time()
    assert client.submit(digest, ref).result(timeout=90) == hashlib.sha256(data).hexdigest()
    print("%.2f" % (time.time() - began))
`

// Behind routers that show another port to everybody no hole can be punched. The relay carries what there is, whole, and small messages beside it; when it
// dies the other one takes its place.
func TestRelay(t *testing.T) {
	t.Parallel()
	interpreters := clients()
	if len(interpreters) == 0 {
		t.Skip("no Python 3.8 or later")
	}
	l := lab.New(t)
	hosts := behind(l, 2, lab.Symmetric, lab.Symmetric)
	n := Start(t, 4, Options{Hosts: hosts, ArgsOf: func(i int) []string {
		if i < 4 {
			return []string{"--no-port-map", "--no-work"}
		}
		return []string{"--no-port-map"}
	}})
	a, b := n.Node(3), n.Node(4)
	n.within(2*time.Second, "connected through a relay", func() bool { p, _ := a.pathTo(t, b); return p == "relay" })
	_, relay := a.pathTo(t, b)
	var carries, spare *Node
	for _, nd := range []*Node{n.Node(1), n.Node(2)} {
		st, err := nd.Client().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.ID == relay {
			carries = nd
		} else {
			spare = nd
		}
	}
	if carries == nil || spare == nil {
		t.Fatalf("the relay is %s", relay)
	}
	why := a.CLI("why", "node4")
	if !strings.Contains(why.Stdout, "which relays") {
		t.Errorf("why: %+v", why)
	}

	idle := resident(carries.PID())
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := a.place(ctx, interpreters[len(interpreters)-1].path, "-c", digest)
	cmd.Env = append(n.Environ("MESHNODE_DATA_DIR="+a.Dir), "PYTHONPATH="+filepath.Join(root, "python"))
	done := make(chan struct{})
	var out []byte
	go func() { out, err = cmd.CombinedOutput(); close(done) }()
	var most int64
	var trips []time.Duration
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(10 * time.Millisecond):
			most = max(most, resident(carries.PID()))
			p, err := a.Client().Ping(ctx, "node4")
			if err != nil || p.RTT == 0 {
				t.Errorf("ping: %+v, %v", p, err)
			}
			trips = append(trips, time.Duration(p.RTT*float64(time.Millisecond)))
		}
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	slices.Sort(trips)
	took, _ := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	t.Logf("64 MiB through the relay in %.2f s, %.0f MB/s; the relay needed %d MB beside the %d that it has idle; %d pings meanwhile, median %v, 99 %% below %v",
		took, 67.1/took, (most-idle)/1e6, idle/1e6, len(trips), trips[len(trips)/2], trips[len(trips)*99/100])
	if p, _ := a.pathTo(t, b); p != "relay" {
		t.Errorf("connected %q through symmetric routers", p)
	}
	if most-idle > 150e6 {
		t.Errorf("the relay needed %d MB", (most-idle)/1e6)
	}
	carries.Kill()
	n.within(5*time.Second, "the other relay takes its place", func() bool {
		_, r := a.pathTo(t, b)
		st, err := spare.Client().Status(t.Context())
		return err == nil && r == st.ID
	})
}

// Where only the relay led to the other node, the direct way is tried again. When it opens, what was under way moves to it: the session goes on, no task
// is lost, and none runs twice.
func TestDirectLater(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	hosts, routers := routed(l, 1, lab.PortPreserving, lab.PortPreserving)
	l.Drop(routers[0], routers[1])
	n := Start(t, 3, Options{Hosts: hosts, Args: []string{"--no-port-map", "--log-level", "debug"}, ArgsOf: func(i int) []string {
		if i < 3 {
			return []string{"--no-work"}
		}
		return nil
	}})
	a, b := n.Node(2), n.Node(3)
	n.within(10*time.Second, "connected through the relay", func() bool { p, _ := a.pathTo(t, b); return p == "relay" })
	args := []string{"submit", "--json", "--stats", sumPrimes, ":::"}
	for i := range 200 {
		args = append(args, strconv.Itoa(20000+i))
	}
	// Two clients, so that there is work at every moment.
	var clients sync.WaitGroup
	var jobs atomic.Int64
	moved := make(chan struct{})
	for range 2 {
		clients.Go(func() {
			for more := true; more && !t.Failed(); jobs.Add(1) {
				select {
				case <-moved:
					more = false // one job more
				default:
				}
				out := a.CLI(args...)
				lines := strings.Split(strings.TrimSpace(out.Stdout), "\n")
				if out.Code != 0 || len(lines) != 201 || strings.Count(out.Stdout, `"attempts":1,`) != 200 || !strings.Contains(lines[len(lines)-1], `"reissued":0`) {
					t.Errorf("job %d: exit code %d, %d lines, %d tasks ran once: %.2000s\n%s", jobs.Load(), out.Code, len(lines), strings.Count(out.Stdout, `"attempts":1,`), lines[len(lines)-1], out.Stderr)
				}
			}
		})
	}
	stop := sync.OnceFunc(func() { close(moved); clients.Wait() })
	defer stop()
	n.within(30*time.Second, "jobs end", func() bool { return jobs.Load() > 0 })
	l.Pass(routers[0], routers[1])
	n.within(time.Minute, "connected directly", func() bool { p, _ := a.pathTo(t, b); return p == "direct" })
	stop()
	t.Logf("%d jobs of 200 tasks, while the way changed", jobs.Load())
	n.within(10*time.Second, "the relayed connection is closed", func() bool {
		return strings.Contains(a.Log()+b.Log(), "a direct connection took the relayed one's place")
	})
	if p, _ := a.pathTo(t, b); p != "direct" {
		t.Errorf("connected by %q", p)
	}
	for _, nd := range []*Node{a, b} {
		if log := nd.Log(); !strings.Contains(log, "stream moved to a direct connection") || strings.Contains(log, "peer disconnected") {
			t.Error("a session did not move, or ended")
		}
	}
}
