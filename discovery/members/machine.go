package members

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/shirou/gopsutil/v4/host"
)

// machineID is what the operating system calls this machine, "" if it does not say. On Linux it is read here:
// gopsutil prefers the board's number, which only root can read, and falls back to the boot's, which changes.
func machineID() string {
	if runtime.GOOS == "linux" {
		for _, f := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
			if b, err := os.ReadFile(f); err == nil && len(strings.TrimSpace(string(b))) == 32 {
				return strings.TrimSpace(string(b))
			}
		}
		return ""
	}
	id, err := host.HostID()
	if err != nil {
		return ""
	}
	return id
}

// bindMachine notes which machine the data directory is on; if it was on another one before, the identity in it is put
// aside. Only a hash is kept: the id itself is nobody else's business. A machine without an id is not bound.
func (m *Membership) bindMachine(id string) error {
	if id == "" {
		return nil
	}
	sum := sha256.Sum256([]byte("meshnode machine 1\x00" + id))
	here := hex.EncodeToString(sum[:])
	path := m.path(machineFile)
	was, err := os.ReadFile(path)
	switch {
	case err == nil && strings.TrimSpace(string(was)) == here:
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the machine binding: %w", err)
	case err == nil:
		aside, err := m.putAside()
		if err != nil {
			return fmt.Errorf("put the copied identity aside: %w", err)
		}
		// Two nodes of one name would be mixed up.
		if err := os.Rename(filepath.Join(m.dir, nameFile), filepath.Join(aside, nameFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put the copied name aside: %w", err)
		}
		m.opened.Copied = true
		m.opened.Notices = append(m.opened.Notices, fmt.Sprintf(
			"this data directory comes from another machine: two nodes must not have one identity, so this one has a new one and is in a mesh of its own; the old one is in %s",
			aside))
	}
	return m.writeFile(path, []byte(here+"\n"))
}

// castOff gives the node a new identity if it was revoked under the old one and has left since: see Leave.
func (m *Membership) castOff() error {
	if _, err := os.Stat(m.path(outcastFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	aside, err := m.putAside()
	if err != nil {
		return fmt.Errorf("put the revoked identity aside: %w", err)
	}
	m.opened.Copied = true
	m.opened.Notices = append(m.opened.Notices, "this node was revoked and has left: it has a new identity, and can join with a new ticket; the old one is in "+aside)
	return os.Remove(m.path(outcastFile))
}

// putAside moves the key and the membership to a fresh folder, without the machine binding: moved back, they take
// the new machine for theirs. A crash in between leaves the binding, or the word that a new identity is due, in place, so that the next
// start goes on.
func (m *Membership) putAside() (string, error) {
	var aside string
	for n := 1; ; n++ {
		aside = filepath.Join(m.dir, fmt.Sprintf("old-identity-%d", n))
		err := os.Mkdir(aside, 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) || n > 1000 {
			return "", err
		}
	}
	if err := os.Mkdir(filepath.Join(aside, folder), 0o700); err != nil {
		return "", err
	}
	move := func(name string) error {
		err := os.Rename(filepath.Join(m.dir, name), filepath.Join(aside, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	// The key last: without it the rest is of no use here, and with it a crash would start the old identity.
	files, err := os.ReadDir(filepath.Join(m.dir, folder))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if f.Name() == machineFile || f.Name() == outcastFile {
			continue
		}
		if err := move(filepath.Join(folder, f.Name())); err != nil {
			return "", err
		}
	}
	return aside, move(keyFile)
}
