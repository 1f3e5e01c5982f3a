package python_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// diesWithNode: the system kills a worker process when its node is gone.
const diesWithNode = true

func stop(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}
