package node

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peerstore"
)

// All pairs of a mesh lose each other and dial from both sides at the same moment, while a job goes on: soon there is one connection for
// each pair, the same at both ends, with a session; from then on nothing changes any more; and the job ends right.
func TestAllDialAtOnce(t *testing.T) {
	t.Parallel()
	var nodes []*Node
	for i := range 5 {
		nodes = append(nodes, start(t, fmt.Sprint("n", i), 1))
	}
	join(t, nodes[0], nodes[1:]...)
	job := make(chan []TaskResult, 1)
	go func() {
		defer close(job)
		results, _ := submit(t, nodes[0], "sum_primes.wasm", numbers(2000))
		job <- results
	}()
	// whole says what there is of each pair: "" if that is not one connection with a session.
	whole := func() string {
		all := ""
		for _, a := range nodes {
			for _, b := range nodes {
				if a == b {
					continue
				}
				conns := a.host.Network().ConnsToPeer(b.host.ID())
				s := a.sessions.get(b.self)
				if len(conns) != 1 || len(b.host.Network().ConnsToPeer(a.host.ID())) != 1 || s == nil || s.conn().ID() != conns[0].ID() {
					return ""
				}
				all += fmt.Sprint(conns[0].ID(), " ", s.id, ", ")
			}
		}
		return all
	}
	twice := 0
	for range 5 {
		for _, a := range nodes {
			for _, b := range nodes {
				if a != b {
					a.host.Peerstore().AddAddrs(b.host.ID(), b.host.Addrs(), peerstore.TempAddrTTL)
				}
			}
		}
		for _, a := range nodes {
			for _, p := range a.host.Network().Peers() {
				a.host.Network().ClosePeer(p)
			}
		}
		at := make(chan struct{})
		var dials sync.WaitGroup
		for _, a := range nodes {
			for _, b := range nodes {
				if a != b {
					dials.Go(func() {
						<-at
						a.host.Network().DialPeer(network.WithForceDirectDial(t.Context(), "all at once"), b.host.ID())
					})
				}
			}
		}
		close(at)
		dials.Wait()
		for _, a := range nodes {
			for _, b := range nodes {
				if len(a.host.Network().ConnsToPeer(b.host.ID())) > 1 {
					twice++
				}
			}
		}
		began := time.Now()
		await(t, "one connection with a session for each pair", func() bool { return whole() != "" })
		took := time.Since(began)
		if took > 6*time.Second {
			t.Errorf("one connection for each pair after %v", took)
		}
		// A choice that both sides make anew for ever would show.
		time.Sleep(300 * time.Millisecond)
		before := whole()
		time.Sleep(500 * time.Millisecond)
		if after := whole(); before == "" || after != before {
			t.Errorf("connections or sessions changed after they had come up:\n%s\n%s", before, after)
		}
		t.Logf("one connection for each pair after %v", took.Round(time.Millisecond))
	}
	if twice == 0 {
		t.Error("no pair ever had two connections: this test shows nothing")
	}
	if results := <-job; len(results) != 2000 {
		t.Errorf("%d results of 2000", len(results))
	}
}
