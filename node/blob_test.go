package node

import (
	"bytes"
	"io"
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
	m := &metered{ReadWriter: slowWriter{&sent}}
	for range 3 {
		if n, err := m.Write(make([]byte, 1000)); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if m.bytes != 3000 || m.took < 3*time.Millisecond || sent.Len() != 3000 {
		t.Errorf("%d bytes in %v", m.bytes, m.took)
	}
}
