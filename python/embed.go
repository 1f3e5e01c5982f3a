// Package python is what meshnode brings for Python: the packages meshnode, pp and ppft, and what runs inside worker
// processes. They are plain files here, for pip and for a checkout; the binary has a copy of them, so that it needs
// neither. It is used by what starts interpreters.
package python

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

//go:embed meshnode/*.py meshnode/py.typed meshnode/worker/*.py pp/*.py ppft/*.py
var files embed.FS

// hash names the files' content: another build has other files beside these.
var hash = sync.OnceValue(func() string {
	h := sha256.New()
	each(func(name string, content []byte) error {
		fmt.Fprintf(h, "%s %d\n", name, len(content))
		h.Write(content)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)[:8])
})

// each calls f with every file, in the order of their names.
func each(f func(name string, content []byte) error) error {
	return fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		return f(name, content)
	})
}

// Unpack returns a directory in which the packages are: put into sys.path, it makes them importable. It is below the
// user's cache directory, or MESHNODE_CACHE_DIR, and made where it is not there. Several processes may do that at once.
func Unpack() (string, error) {
	cache := os.Getenv("MESHNODE_CACHE_DIR")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("unpack the Python packages: %w", err)
		}
		cache = filepath.Join(user, "meshnode")
	}
	dir := filepath.Join(cache, "python", hash())
	if err := unpack(dir); err != nil {
		return "", fmt.Errorf("unpack the Python packages: %w", err)
	}
	return dir, nil
}

func unpack(dir string) error {
	return each(func(name string, content []byte) error {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Size() == int64(len(content)) {
			return nil // the directory's name says the rest
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.CreateTemp(filepath.Dir(path), "*.new")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		_, err = f.Write(content)
		if e := f.Close(); err == nil {
			err = e
		}
		if err != nil {
			return err
		}
		if err := os.Rename(f.Name(), path); err != nil {
			if st, e := os.Stat(path); e == nil && st.Size() == int64(len(content)) {
				return nil // another process was first, and Windows does not replace a file that is read
			}
			return err
		}
		return nil
	})
}
