package main

import (
	"os"
	"runtime/debug"
	"sync"
)

const (
	logFile = "node.log"
	// maxLog bounds node.log; one older file of that size, node.log.1, is kept beside it.
	maxLog = 8 << 20
)

// rotatingLog is a file that begins anew when it is full. A crash of the process is written there too.
type rotatingLog struct {
	path string
	mu   sync.Mutex // guards f and size
	f    *os.File
	size int64
}

func openLog(path string) (*rotatingLog, error) {
	l := &rotatingLog{path: path}
	return l, l.open()
}

func (l *rotatingLog) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, st.Size()
	return debug.SetCrashOutput(f, debug.CrashOptions{})
}

func (l *rotatingLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > maxLog {
		// Windows renames no open file. If the rename fails, the file goes on growing until it succeeds.
		l.f.Close()
		os.Rename(l.path, l.path+".1")
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *rotatingLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
