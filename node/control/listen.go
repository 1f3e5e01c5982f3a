package control

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
)

// Networks of Listen.
const (
	Unix = "unix"
	TCP  = "tcp" // loopback, with a token
)

// Names of files in the data directory.
const (
	infoFile   = "control.json"
	socketFile = "control.sock"
	lockFile   = "lock"
)

// maxSocketPath is below what the systems allow for the path of a Unix socket: 104 bytes on macOS with the
// final zero, 108 on Linux and Windows.
const maxSocketPath = 100

// Info is control.json: where the node that serves a data directory listens, and who it is.
type Info struct {
	Socket  string `json:"socket"`  // path of the Unix socket; empty: use Address
	Address string `json:"address"` // host:port on loopback
	Token   string `json:"token"`   // for Address: `Authorization: Bearer <token>`
	PID     int    `json:"pid"`
}

// RunningError says that another process holds the data directory.
type RunningError struct {
	DataDir string
	PID     int // 0: not known
}

func (e *RunningError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("a node runs already in %s", e.DataDir)
	}
	return fmt.Sprintf("a node runs already in %s, as process %d", e.DataDir, e.PID)
}

// Listener holds a data directory for one node and the socket of its control interface. Clients that
// connect before Server.Run wait.
type Listener struct {
	net.Listener
	dataDir string
	info    Info
	lock    *flock.Flock
	tempDir string // of a socket whose path in the data directory would be too long
}

// Listen locks the data directory, which is made if it is not there, and opens the socket. Network is
// Unix, TCP, or empty: Unix if the system has it. A second one for the same directory gets a
// *RunningError. Close ends both.
func Listen(dataDir, network string) (*Listener, error) {
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	// The directory holds the node's key and its socket; some systems do not heed a socket's own mode.
	if err := os.Chmod(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory private: %w", err)
	}
	l := &Listener{dataDir: dataDir, info: Info{PID: os.Getpid()}, lock: flock.New(filepath.Join(dataDir, lockFile), flock.SetPermissions(0o600))}
	ok, err := l.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if !ok {
		info, _ := readInfo(dataDir)
		return nil, &RunningError{DataDir: dataDir, PID: info.PID}
	}
	l.removeLeftovers()
	switch network {
	case Unix:
		err = l.listenUnix()
	case TCP:
		err = l.listenTCP()
	case "":
		if err = l.listenUnix(); err != nil {
			if tcpErr := l.listenTCP(); tcpErr != nil {
				err = errors.Join(err, tcpErr)
			} else {
				err = nil
			}
		}
	default:
		err = fmt.Errorf("control network %q: want %s or %s", network, Unix, TCP)
	}
	if err != nil {
		l.lock.Unlock()
		return nil, err
	}
	return l, nil
}

// removeLeftovers removes what a node that was killed left: we hold the lock, so it is nobody's.
func (l *Listener) removeLeftovers() {
	if old, err := readInfo(l.dataDir); err == nil && filepath.Base(old.Socket) == socketFile {
		os.Remove(old.Socket)
		if d := filepath.Dir(old.Socket); d != l.dataDir {
			os.Remove(d) // only if it is empty
		}
	}
	os.Remove(filepath.Join(l.dataDir, infoFile))
	os.Remove(filepath.Join(l.dataDir, socketFile))
}

func (l *Listener) listenUnix() error {
	path := filepath.Join(l.dataDir, socketFile)
	if len(path) > maxSocketPath {
		dir, err := os.MkdirTemp("", "meshnode-") // 0700
		if err != nil {
			return fmt.Errorf("make a directory for the control socket: %w", err)
		}
		l.tempDir = dir
		path = filepath.Join(dir, socketFile)
	}
	ln, err := net.Listen("unix", path)
	if err == nil {
		if err = os.Chmod(path, 0o600); err != nil {
			ln.Close()
		}
	}
	if err != nil {
		if l.tempDir != "" {
			os.Remove(l.tempDir)
			l.tempDir = ""
		}
		return fmt.Errorf("open the control socket: %w", err)
	}
	l.Listener, l.info.Socket = ln, path
	return nil
}

func (l *Listener) listenTCP() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("open the control port: %w", err)
	}
	l.Listener, l.info.Address, l.info.Token = ln, ln.Addr().String(), rand.Text()
	return nil
}

// Info is what control.json says once the server runs.
func (l *Listener) Info() Info { return l.info }

// publish writes control.json: from now on clients find the node.
func (l *Listener) publish() error {
	b, err := json.Marshal(l.info)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(l.dataDir, infoFile+".*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", infoFile, err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(l.dataDir, infoFile))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", infoFile, err)
	}
	return nil
}

// Close closes the socket, removes its traces and gives the data directory free. It may be called twice.
func (l *Listener) Close() error {
	if l.lock == nil {
		return nil
	}
	l.Listener.Close()
	l.removeLeftovers()
	if l.tempDir != "" {
		os.Remove(filepath.Join(l.tempDir, socketFile))
		os.Remove(l.tempDir)
	}
	err := l.lock.Unlock()
	l.lock = nil
	return err
}

func readInfo(dataDir string) (Info, error) {
	var info Info
	b, err := os.ReadFile(filepath.Join(dataDir, infoFile))
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("read %s: %w", infoFile, err)
	}
	return info, nil
}

// Held reports whether a node, or a command that works on its files, holds the data directory.
func Held(dataDir string) (bool, error) {
	path := filepath.Join(dataDir, lockFile)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	l := flock.New(path, flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if ok {
		l.Unlock()
	}
	return !ok, err
}
