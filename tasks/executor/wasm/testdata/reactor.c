/* Reactor: the input is its result, except for these words.
 *
 *   count     how many tasks this instance has had
 *   fail      −1, with a message
 *   trap      traps
 *   exit      calls exit(3)
 *   loop      for ever
 *   big       17 MiB of result
 *   fill      keeps 40 MiB for itself
 *   spin N    computes for N rounds of a million */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../../examples/wasm/mesh.h"

static unsigned tasks;
static volatile unsigned sink;

int mesh_task(const char *input, size_t length, struct mesh_result *result) {
  tasks++;
  result->length = length;
  if (!strcmp(input, "fail")) {
    fputs("it was told to fail\n", stderr);
    return 1;
  } else if (!strcmp(input, "trap")) {
    __builtin_trap();
  } else if (!strcmp(input, "exit")) {
    exit(3);
  } else if (!strcmp(input, "loop")) {
    for (;;) sink++;
  } else if (!strcmp(input, "big")) {
    result->length = 17 << 20;
    result->data = calloc(1, result->length);
    return !result->data;
  } else if (!strcmp(input, "fill")) {
    char *p = malloc(40 << 20);
    if (!p) return 1;
    sink += (unsigned)(size_t)p;
    result->length = 0;
    return 0;
  } else if (!strncmp(input, "spin ", 5)) {
    for (unsigned i = 0, n = (unsigned)atoi(input + 5) * 1000000; i < n; i++) sink++;
    result->length = 0;
    return 0;
  } else if (!strcmp(input, "count")) {
    result->data = malloc(16);
    if (!result->data) return 1;
    result->length = (size_t)sprintf(result->data, "%u", tasks);
    return 0;
  }
  if (length == 0) return 0;
  result->data = malloc(length);
  if (!result->data) return 1;
  memcpy(result->data, input, length);
  return 0;
}
