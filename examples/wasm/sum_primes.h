/* The sum of the primes below n, as Parallel Python's example computes it: trial division by every number up to the
 * root. It is slow on purpose, so that there is something to share out. */
#include <math.h>
#include <stdint.h>

static int is_prime(uint64_t n) {
  if (n < 2) return 0;
  if (n == 2) return 1;
  uint64_t root = (uint64_t)ceil(sqrt((double)n));
  for (uint64_t i = 2; i <= root; i++)
    if (n % i == 0) return 0;
  return 1;
}

static uint64_t sum_primes(uint64_t n) {
  uint64_t sum = 0;
  for (uint64_t i = 2; i < n; i++)
    if (is_prime(i)) sum += i;
  return sum;
}
