//go:build wasip1

// Package main is sum_primes as a reactor: one instance serves many tasks.
package main

import (
	"strconv"
	"strings"
)

// task is given a number and returns the sum of the primes below it.
func task(input []byte) ([]byte, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(string(input)), 10, 32)
	if err != nil {
		return nil, err
	}
	return append(strconv.AppendUint(nil, sumPrimes(uint32(n)), 10), '\n'), nil
}

// sumPrimes is plain trial division: slow on purpose.
func sumPrimes(n uint32) uint64 {
	var sum uint64
	for i := uint32(2); i < n; i++ {
		if isPrime(i) {
			sum += uint64(i)
		}
	}
	return sum
}

func isPrime(n uint32) bool {
	for i := uint32(2); uint64(i)*uint64(i) <= uint64(n); i++ {
		if n%i == 0 {
			return false
		}
	}
	return n >= 2
}
