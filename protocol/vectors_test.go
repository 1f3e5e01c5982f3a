package protocol

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "rewrite testdata/*.txt from the samples; read the difference: old nodes read the old bytes")

// The wire vectors: bytes that stay what they are as long as the protocol ID does. Each file is a table, one
// frame a line, its columns parted by blanks and named in the first line; every byte string is hexadecimal,
// and an empty one is "-". Lines with # are for people.

func TestPeerVectors(t *testing.T) {
	t.Parallel()
	table := "# Frames between nodes: kind, length, protobuf (peer.proto).\n# name frame\n"
	for _, s := range samples() {
		table += fmt.Sprintf("%s %x\n", s.name, frame(t, s.m))
	}
	rows := vectors(t, "peer.txt", table)
	for _, s := range samples() {
		row := rows[s.name]
		if len(row) != 1 {
			t.Errorf("%s: %d columns", s.name, len(row))
			continue
		}
		m, err := ReadMessage(bytes.NewReader(unhex(t, row[0])))
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
		} else if !proto.Equal(m, s.m) {
			t.Errorf("%s: read %v, want %v", s.name, m, s.m)
		}
	}
}

func TestLocalVectors(t *testing.T) {
	t.Parallel()
	table := "# Local frames: little-endian u32 length of what follows, u8 type, u64 id, body (local.go).\n# name type id body frame\n"
	for _, s := range localSamples() {
		body := fmt.Sprintf("%x", s.body)
		if body == "" {
			body = "-"
		}
		table += fmt.Sprintf("%s %02x %d %s %x\n", s.name, byte(s.t), s.id, body, AppendLocal(nil, s.t, s.id, s.body))
	}
	rows := vectors(t, "local.txt", table)
	for _, s := range localSamples() {
		row := rows[s.name]
		if len(row) != 4 {
			t.Errorf("%s: %d columns", s.name, len(row))
			continue
		}
		typ, id, body, err := ReadLocal(bytes.NewReader(unhex(t, row[3])), MaxLocal)
		if err != nil || typ != s.t || id != s.id || !bytes.Equal(body, s.body) {
			t.Errorf("%s: read %#x %d %x, %v", s.name, typ, id, body, err)
		}
	}
}

// vectors compares the table with the file, or writes it there, and returns the file's rows by name.
func vectors(t *testing.T, name, table string) map[string][]string {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(table), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, got := strings.Split(string(file), "\n"), strings.Split(table, "\n")
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			t.Errorf("%s:%d:\n has  %s\n want %s\n(after a change that old nodes can read: go test ./protocol -update)", path, i+1, w, g)
		}
	}
	rows := map[string][]string{}
	for _, line := range want {
		if f := strings.Fields(line); len(f) > 1 && f[0] != "#" {
			rows[f[0]] = f[1:]
		}
	}
	return rows
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
