package executor

import (
	"errors"
	"os"
)

// CanFork says whether there are fork servers on this system.
const CanFork = false

type forker struct{}

func (e *Executor) fork(*process, Worker, *os.File, *os.File) (func(<-chan struct{}) string, error) {
	return nil, errors.New("no process forks on this system")
}

func (e *Executor) startForker(string, Worker) error { return nil }

func (e *Executor) endForkers() {}
