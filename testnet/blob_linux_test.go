package testnet

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// bigArgument is 200 MB, put once, for a hundred calls. Each looks at a part of it.
const bigArgument = `
import pickle, random, time
import meshnode

def part(data, i):
    time.sleep(0.05)
    return bytes(data[i * 2000000 : i * 2000000 + 8])

data = random.Random(7).getrandbits(8 * 1000).to_bytes(1000, "little") * 200000
with meshnode.Client(private=False) as client:
    ref = client.put(pickle.PickleBuffer(data)) # as arrays are: workers map it and copy nothing
    again = client.put(pickle.PickleBuffer(data))
    assert again.id == ref.id
    calls = [client.submit(part, again if i % 2 else ref, i) for i in range(100)]
    for i, call in enumerate(calls):
        assert call.result(timeout=90) == data[i * 2000000 : i * 2000000 + 8], i
print("right")
`

// A 200 MB argument of 100 tasks on 3 nodes crosses the network twice, once to each node but its own, and no node needs 150 MB for it
// beyond what it has when idle: not while it is put, sent or received either.
func TestLargeArgumentCrossesOnceToEachNode(t *testing.T) {
	interpreters := clients()
	if len(interpreters) == 0 {
		t.Skip("no Python 3.8 or later")
	}
	interpreter := interpreters[len(interpreters)-1].path
	const size = 200_000_000
	n := Start(t, 3, Options{Slots: 1})
	idle, most := make([]int64, 3), make([]int64, 3)
	for i := range idle {
		idle[i] = resident(n.Node(i + 1).PID())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	sampling, stop := context.WithCancel(ctx)
	var samples sync.WaitGroup
	samples.Go(func() {
		for ; sampling.Err() == nil; time.Sleep(10 * time.Millisecond) {
			for i := range most {
				most[i] = max(most[i], resident(n.Node(i+1).PID()))
			}
		}
	})
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, interpreter, "-c", bigArgument)
	cmd.Env = append(n.Environ("MESHNODE_DATA_DIR="+n.Node(1).Dir), "PYTHONPATH="+filepath.Join(root, "python"))
	out, err := cmd.CombinedOutput()
	stop()
	samples.Wait()
	if err != nil || strings.TrimSpace(string(out)) != "right" {
		t.Fatalf("%v: %s", err, out)
	}
	workers := map[string]uint32{}
	jobs, err := n.Node(1).Client().Jobs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		for _, p := range j.Peers {
			workers[p.Name] += p.Tasks
		}
	}
	if len(workers) != 3 {
		t.Errorf("tasks ran on %v, want all three nodes", workers)
	}
	crossed := uint64(0)
	for i := range 3 {
		st, err := n.Node(i + 1).Client().Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		crossed += st.BlobsReceived
		t.Logf("node %d: sent %d, received %d bytes of blobs; %d MB resident when idle, at most %d MB more; %d packets", i+1, st.BlobsSent, st.BlobsReceived, idle[i]/1e6, (most[i]-idle[i])/1e6, workers[st.Name])
		if more := most[i] - idle[i]; more > 150e6 {
			t.Errorf("node %d needed %d MB more than when idle", i+1, more/1e6)
		}
		if i > 0 && st.BlobsReceived > size*101/100 {
			t.Errorf("node %d received %d bytes for an argument of %d", i+1, st.BlobsReceived, size)
		}
	}
	if crossed < 2*size || crossed > 2*size*101/100 {
		t.Errorf("%d bytes crossed the network, want two times %d", crossed, size)
	}
}
