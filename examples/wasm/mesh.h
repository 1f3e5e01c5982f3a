/* mesh.h: what a reactor module exports, in C. Include it in one file and write the function mesh_task.
 *
 *   int mesh_task(const char *input, size_t length, struct mesh_result *result);
 *
 * input is the task's and ends with a zero byte that length does not count. The result is memory from malloc, which
 * is freed for you, or nothing. Return 0, or anything else if the task failed; standard error says why. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

struct mesh_result { void *data; size_t length; };
int mesh_task(const char *input, size_t length, struct mesh_result *result);

__attribute__((export_name("mesh_alloc"))) void *mesh_alloc(size_t n) { return malloc(n + 1); }
__attribute__((export_name("mesh_free"))) void mesh_free(void *p) { free(p); }
__attribute__((export_name("mesh_run"))) uint64_t mesh_run(char *input, size_t length) {
  struct mesh_result r = {0, 0};
  input[length] = 0;
  int failed = mesh_task(input, length, &r);
  free(input);
  return failed ? (uint64_t)-1 : (uint64_t)(uintptr_t)r.data << 32 | r.length;
}
