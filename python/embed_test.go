package python

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// All of the packages are in the binary, and nothing that is not theirs.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	embedded := map[string]bool{}
	each(func(name string, content []byte) error {
		embedded[name] = true
		disk, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil || string(disk) != string(content) {
			t.Errorf("%s: %v, or it is another file", name, err)
		}
		return nil
	})
	for _, packages := range []string{"meshnode", "pp", "ppft"} {
		filepath.WalkDir(packages, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil // no such package yet
			}
			if name := filepath.ToSlash(path); !embedded[name] && (strings.HasSuffix(name, ".py") || strings.HasSuffix(name, "py.typed")) {
				t.Errorf("%s is not in the binary: add its folder to go:embed", name)
			}
			return nil
		})
	}
}

// Several processes unpack at once, and what is missing or cut short is written again.
func TestUnpack(t *testing.T) {
	t.Setenv("MESHNODE_CACHE_DIR", t.TempDir())
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if _, err := Unpack(); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	dir, err := Unpack()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	each(func(name string, _ []byte) error { names = append(names, name); return nil })
	if err := os.Truncate(filepath.Join(dir, names[0]), 1); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, names[len(names)-1])); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(); err != nil {
		t.Fatal(err)
	}
	each(func(name string, content []byte) error {
		got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil || string(got) != string(content) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(content))
		}
		return nil
	})
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*.new")); left != nil {
		t.Errorf("left behind: %v", left)
	}
}
