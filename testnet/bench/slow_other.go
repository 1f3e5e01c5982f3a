//go:build !unix

package main

import "errors"

var errUnsupported = errors.New("only where processes can be stopped by a signal")

func (b *bench) slow(int, int) (end func()) { b.Fatal(errUnsupported); return nil }
