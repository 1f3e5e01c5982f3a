//go:build !unix

package main

import (
	"errors"
	"os"
)

// The tests that use these end before, where there are no signals.
func freeze(*os.Process) error      { return errors.ErrUnsupported }
func thaw(*os.Process) error        { return errors.ErrUnsupported }
func terminate(p *os.Process) error { return p.Kill() }
func alive(int) bool                { return false }
