// Command sum_primes reads a number from its argument, or from standard input if it has none, and prints the sum of
// the primes below it.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

func main() {
	var text string
	if len(os.Args) > 1 {
		text = os.Args[1]
	} else {
		b, err := io.ReadAll(os.Stdin)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		text = string(b)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	fmt.Println(sumPrimes(uint32(n)))
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
