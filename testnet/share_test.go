package testnet

import (
	"bufio"
	"context"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestShortJobBehindALongOne: ten tasks behind a job of many, of the same origin, begin within a second; all nodes have
// their queues full of the long job then. MESHNODE_LONG_TASKS says how many tasks that has.
func TestShortJobBehindALongOne(t *testing.T) {
	t.Parallel()
	tasks := 50_000
	if s := os.Getenv("MESHNODE_LONG_TASKS"); s != "" {
		tasks, _ = strconv.Atoi(s)
	}
	n := Start(t, 3, Options{})
	nd := n.Node(1)
	// Another program than the short job's would have it wait for its compilation too.
	if out := nd.CLI("submit", sumPrimes, ":::", "10"); out.Code != 0 {
		t.Fatalf("%+v", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), cliTimeout)
	defer cancel()
	began := time.Now()
	long := nd.Command(ctx, "submit", sumPrimes, "-")
	long.Stdin = strings.NewReader(strings.Repeat("100000\n", tasks))
	results, err := long.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := long.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(results)
	count := 0
	for count < 300 && lines.Scan() { // by then each node has its queue
		count++
	}
	if count < 300 {
		t.Fatalf("%d results of the long job", count)
	}
	t.Logf("300 results of the long job after %v", time.Since(began))
	more := make(chan int)
	go func() {
		n := 0
		for lines.Scan() {
			n++
		}
		more <- n
	}()
	worst := time.Duration(0)
	for range 5 {
		began := time.Now()
		short := nd.Command(ctx, "submit", sumPrimes, ":::", "11", "11", "11", "11", "11", "11", "11", "11", "11", "11")
		out, err := short.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := short.Start(); err != nil {
			t.Fatal(err)
		}
		first := time.Duration(0)
		got := 0
		for s := bufio.NewScanner(out); s.Scan(); got++ {
			if got == 0 {
				first = time.Since(began)
			}
		}
		if err := short.Wait(); err != nil || got != 10 {
			t.Errorf("the short job: %v, %d results", err, got)
		}
		t.Logf("the short job: first result after %v, all after %v", first, time.Since(began))
		worst = max(worst, first)
	}
	if worst > time.Second {
		t.Errorf("the first of ten tasks behind %d ended after %v", tasks, worst)
	}
	long.Process.Kill()
	if n := <-more; count+n >= tasks {
		t.Errorf("the long job ended before the short ones were through: %d results", count+n)
	}
	long.Wait()
}
