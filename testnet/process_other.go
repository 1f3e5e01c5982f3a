//go:build !unix

package testnet

import (
	"errors"
	"os"
)

var errNoSignals = errors.New("this system has no signal for it")

func freeze(*os.Process) error { return errNoSignals }
func thaw(*os.Process) error   { return errNoSignals }
