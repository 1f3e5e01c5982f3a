package journal

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

const crashDir = "MESHNODE_TEST_JOURNAL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		appendForEver(dir)
	}
	os.Exit(m.Run())
}

// appendForEver is the process that is killed: it appends batches and prints how many are reported as synced.
func appendForEver(dir string) {
	j, err := Open(dir, Config{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	had, err := j.Results(job(1), 0, 1<<30, 1<<40)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go j.Run(context.Background())
	go func() {
		for n := range j.Synced() {
			fmt.Println(len(had) + int(n))
		}
	}()
	for i := len(had); ; i++ {
		if _, err := j.Append(pair(i), i%97 == 0); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if i%50 == 0 {
			time.Sleep(time.Millisecond) // some fsyncs between
		}
	}
}

// kill -9 of the process while it appends, some with sync and most without, three times over the same journal.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	had := 0
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		limit := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		synced, lines := 0, 0
		for s := bufio.NewScanner(out); s.Scan(); {
			var n int
			if _, err := fmt.Sscan(s.Text(), &n); err != nil {
				t.Fatalf("the process says: %s", s.Text())
			}
			if n <= synced {
				t.Fatalf("synced %d after %d", n, synced)
			}
			synced = n
			if lines++; lines == 10+5*round {
				cmd.Process.Kill() // and read on: what it printed until then counts
			}
		}
		limit.Stop()
		cmd.Wait()
		if lines < 10+5*round || synced <= had {
			t.Fatalf("round %d: %d lines, %d synced, %d before", round, lines, synced, had)
		}
		j, stop := start(t, dir, Config{})
		had = checkPrefix(t, j, synced)
		t.Logf("round %d: %d reported, %d found", round, synced, had)
		stop()
	}
}
