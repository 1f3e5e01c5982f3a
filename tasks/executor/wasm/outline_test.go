package wasm

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOutline(t *testing.T) {
	for path, want := range map[string]outline{
		"testdata/echo.wasm":    {minPages: 3},
		"testdata/reactor.wasm": {reactor: true, minPages: 2, free: true, start: true},
	} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		o, err := readOutline(bytes.NewReader(b), int64(len(b)))
		if err != nil || o != want {
			t.Errorf("%s: %+v, %v, want %+v", path, o, err, want)
		}
		// Cut anywhere, it is refused: what it exports comes late.
		for n := range bytes.Index(b, []byte("mesh_run")) {
			if _, err := readOutline(bytes.NewReader(b[:n]), int64(n)); err == nil {
				t.Errorf("%s: the first %d bytes are taken for a module", path, n)
			}
		}
	}
	if _, err := readOutline(strings.NewReader("\x00asm\x01\x00\x00\x00"), MaxModule+1); err == nil || !strings.Contains(err.Error(), "at most 256 MiB") {
		t.Errorf("a module over the limit: %v", err)
	}
	if err := Check(filepath.Join(t.TempDir(), "missing.wasm")); !os.IsNotExist(err) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// FuzzOutline has whatever file there is end in an error of one line or an outline, in little time and memory.
func FuzzOutline(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.wasm")
	if err != nil || len(paths) == 0 {
		f.Fatal(paths, err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:min(len(b), 2000)])
	}
	head := "\x00asm\x01\x00\x00\x00"
	f.Add([]byte(head + "\x07\x0a\x01\x06_start\x00\x00"))
	f.Add([]byte(head + "\x02\x0b\x01\x03env\x03foo\x00\x00"))
	f.Add([]byte(head + "\x02\xff\xff\xff\xff\x0f"))
	f.Add([]byte(head + "\x05\x03\x01\x00\x02\x07\x01\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := readOutline(bytes.NewReader(b), int64(len(b)))
		if err != nil && (strings.ContainsAny(err.Error(), "\n\r\x1b") || o != outline{}) {
			t.Errorf("%+v, error %q", o, err)
		}
	})
}
