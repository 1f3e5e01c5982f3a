package node

import (
	"bytes"
	"io"
	"sync/atomic"
	"testing"
	"time"
)

type slowWriter struct{ io.ReadWriter }

func (w slowWriter) Write(b []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return w.ReadWriter.Write(b)
}

// What is served is counted, and the time that the connection takes for it; not the time between.
func TestMetered(t *testing.T) {
	t.Parallel()
	var sent bytes.Buffer
	var all atomic.Uint64
	all.Store(5)
	m := &metered{ReadWriter: slowWriter{&sent}, all: &all}
	for range 3 {
		if n, err := m.Write(make([]byte, 1000)); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if m.bytes != 3000 || all.Load() != 3005 || m.took < 3*time.Millisecond || sent.Len() != 3000 {
		t.Errorf("%d bytes in %v", m.bytes, m.took)
	}
}
