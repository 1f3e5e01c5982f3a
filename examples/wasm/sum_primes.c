/* A command: reads a number from its argument, or from standard input if it has none, and prints the sum of the
 * primes below it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "sum_primes.h"

int main(int argc, char **argv) {
  char line[32], *end;
  const char *text = line;
  if (argc > 1) {
    text = argv[1];
  } else if (!fgets(line, sizeof line, stdin)) {
    fputs("no number on standard input\n", stderr);
    return 2;
  }
  errno = 0;
  unsigned long long n = strtoull(text, &end, 10);
  if (end == text || (*end && *end != '\n') || errno || n > 100000000) {
    fprintf(stderr, "not a number from 0 to 100000000: %s\n", text);
    return 2;
  }
  printf("%llu\n", (unsigned long long)sum_primes(n));
  return 0;
}
