/* The same as a reactor: one instance serves many tasks. */
#include <stdio.h>
#include <stdlib.h>

#include "mesh.h"
#include "sum_primes.h"

int mesh_task(const char *input, size_t length, struct mesh_result *result) {
  char *end;
  unsigned long long n = strtoull(input, &end, 10);
  if (length == 0 || end == input || (*end && *end != '\n') || n > 100000000) {
    fprintf(stderr, "not a number from 0 to 100000000: %s\n", input);
    return 1;
  }
  result->data = malloc(24);
  if (!result->data) return 1;
  result->length = (size_t)sprintf(result->data, "%llu\n", (unsigned long long)sum_primes(n));
  return 0;
}
