package testnet

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// A node that may open no more files accepts nothing for a while; it says so, once, does not spin, and goes on when files are free.
func TestNoMoreFiles(t *testing.T) {
	t.Parallel()
	n := Start(t, 1, Options{Under: []string{"sh", "-c", `ulimit -n 100; exec "$@"`, "sh"}})
	nd := n.Node(1)
	if !strings.Contains(nd.Log(), "may open few files") {
		t.Errorf("nothing is said of the limit:\n%s", nd.Log())
	}
	addr := strings.Replace(strings.TrimPrefix(listenAddr.FindString(nd.Ready), "/ip4/"), "/tcp/", ":", 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for !strings.Contains(nd.Log(), "limit hit: open files") {
		if ctx.Err() != nil {
			t.Fatalf("the limit was not hit by %d connections:\n%s", len(held), nd.Log())
		}
		for range 20 {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				held = append(held, c)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	used, at := processorTime(t, nd.PID()), time.Now()
	time.Sleep(time.Second)
	if share := (processorTime(t, nd.PID()) - used) / time.Since(at).Seconds(); share > 0.5 {
		t.Errorf("it spins: %.2f of a core", share)
	}
	for _, c := range held {
		c.Close()
	}
	held = nil
	n.Await(startTimeout, "it answers again", func() bool {
		_, err := nd.peers()
		return err == nil
	})
	if c := strings.Count(nd.Log(), "limit hit: open files"); c > 2 {
		t.Errorf("logged %d times", c)
	}
}
