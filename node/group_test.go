package node

import (
	"context"
	"os"
	"testing"
	"time"

	"meshnode/protocol"
)

// A group that is to have none of its node's slots waits, and says why; other nodes and a raised limit run it.
func TestGroup(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	a := start(t, "a", 2)
	group := protocol.NewJobID()
	if err := a.SetGroup(ctx, group, 0); err != nil {
		t.Fatal(err)
	}
	module, err := os.Open("../examples/wasm/sum_primes.wasm")
	if err != nil {
		t.Fatal(err)
	}
	defer module.Close()
	code := put(t, a, module)
	submit := func(n int) protocol.JobID {
		id := protocol.NewJobID()
		if err := a.OpenJob(ctx, JobSpec{ID: id, Runtime: "wasm", Code: code, Group: group}); err != nil {
			t.Fatal(err)
		}
		if err := a.AddTasks(ctx, id, 0, plain(numbers(n))); err != nil {
			t.Fatal(err)
		}
		if err := a.CloseJob(ctx, id, uint32(n)); err != nil {
			t.Fatal(err)
		}
		return id
	}
	end := func(id protocol.JobID) Job {
		j, err := a.Watch(ctx, id, 0, protocol.MaxOutput, func([]TaskResult) error { return nil })
		if err != nil || j.State != "done" {
			t.Fatalf("%+v, %v", j, err)
		}
		return j
	}
	id := submit(4)
	if j, err := a.Job(ctx, id); err != nil || j.State != "waiting" || j.WaitsFor != "no_node" || j.Attempts != 0 {
		t.Errorf("%+v, %v", j, err)
	}
	if err := a.SetGroup(ctx, group, 1); err != nil {
		t.Fatal(err)
	}
	end(id)
	b := start(t, "b", 1)
	join(t, a, b)
	if err := a.SetGroup(ctx, group, 0); err != nil {
		t.Fatal(err)
	}
	if j := end(submit(4)); len(j.Peers) != 1 || j.Peers[0].Name != "b" {
		t.Errorf("%+v", j.Peers)
	}
	if err := a.SetGroup(ctx, protocol.JobID{}, 1); err == nil {
		t.Error("a group without an id has a limit")
	}
}
