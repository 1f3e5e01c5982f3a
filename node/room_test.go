package node

import (
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshnode/protocol"
)

// raced says that the race detector is here, and all takes ten times as long.
var raced bool

// The room that a job took on the disk is free again soon after its time: that of its results in the journal, and that of the
// large ones is there for whoever needs it next.
func TestForgottenJobsLeaveRoom(t *testing.T) {
	t.Parallel()
	if raced {
		t.Skip("large: in the stage of that name, without the race detector")
	}
	dir := t.TempDir()
	n, stop := startIn(t, dir, "a", 2, func(c *Config) { c.Retain = 15 * time.Second })
	defer stop()
	// But for its logs, which are written again: three of them, each as large as what came together.
	size := func() (all int64) {
		filepath.WalkDir(filepath.Join(dir, "journal"), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.HasSuffix(d.Name(), ".sst") {
				if info, err := d.Info(); err == nil {
					all += info.Size()
				}
			}
			return nil
		})
		return all >> 20
	}
	noise := make([]byte, 2000+protocol.MaxInline)
	rnd := rand.NewChaCha8([32]byte{1})
	rnd.Read(noise)
	var inputs [][]byte
	for i := range 800 { // 40 MB in the journal, and as much again as results
		inputs = append(inputs, noise[i:i+50_000])
	}
	for i := range 100 { // and blobs
		inputs = append(inputs, noise[i:i+protocol.MaxInline+1])
	}
	submit(t, n, "../../tasks/executor/wasm/testdata/echo.wasm", inputs)
	most := size()
	if most < 30 {
		t.Fatalf("the journal's tables have %d MiB: too little to mean anything", most)
	}
	pinned := func() (count int) {
		for _, b := range n.blobs.List() {
			if b.Pins > 0 && b.Size == protocol.MaxInline+1 {
				count++
			}
		}
		return count
	}
	if pinned() != 100 {
		t.Fatalf("%d large results are pinned", pinned())
	}
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if size() < 10 && pinned() == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the journal's tables have %d MiB, %d MiB before its jobs were forgotten; %d large results are pinned", size(), most, pinned())
		}
	}
}
