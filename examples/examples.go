// Package examples holds the example program that is part of the binary, so that the demo needs nothing else.
package examples

import _ "embed"

// SumPrimes is wasm/sum_primes.wasm: a command that prints the sum of the primes below its input.
//
//go:embed wasm/sum_primes.wasm
var SumPrimes []byte
