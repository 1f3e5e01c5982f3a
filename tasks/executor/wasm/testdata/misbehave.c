/* Command: does what the first word of standard input says, and misbehaves in most cases.
 *
 *   loop           for ever
 *   log            writes to standard error, then loops for ever
 *   exit N         exit code N, after a line on standard error
 *   trap           traps
 *   stack          calls itself until the stack is full
 *   memory         allocates and touches memory until it gets none, then aborts
 *   grow           the same, and exits with code 0 when it gets none
 *   output         writes without end
 *   write N        writes N MiB, all different pages
 *   errors N       writes N MiB to standard error, then exits with code 0
 *   sleep N        computes for about N ms of the host's clock (needs a real one)
 *   clock          prints clock and random bytes */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned sink;

static unsigned deeper(unsigned n) {
  volatile char room[1024];
  room[n % sizeof room] = (char)n;
  return n ? deeper(n + 1) + (unsigned)room[n % 7] : 0;
}

static void out(int fd, int mib) {
  static char b[65536];
  for (int i = 0; mib < 0 || i < mib * 16; i++) {
    memset(b, 'a' + i % 26, sizeof b);
    write(fd, b, sizeof b); /* errors do not stop it: the host must */
  }
}

int main(void) {
  char word[32] = "";
  int n = 0;
  scanf("%31s %d", word, &n);
  if (!strcmp(word, "loop")) {
    for (;;) sink++;
  } else if (!strcmp(word, "log")) {
    fputs("before the loop\n", stderr);
    for (;;) sink++;
  } else if (!strcmp(word, "exit")) {
    fprintf(stderr, "leaving with %d\n", n);
    printf("partial");
    fflush(stdout);
    exit(n);
  } else if (!strcmp(word, "trap")) {
    __builtin_trap();
  } else if (!strcmp(word, "stack")) {
    sink = deeper(1);
  } else if (!strcmp(word, "memory") || !strcmp(word, "grow")) {
    for (;;) {
      char *p = malloc(1 << 20);
      if (!p) {
        if (word[0] == 'g') return 0;
        abort();
      }
      memset(p, 1, 1 << 20);
      sink += (unsigned)p[4096];
    }
  } else if (!strcmp(word, "output")) {
    out(1, -1);
  } else if (!strcmp(word, "write")) {
    out(1, n);
  } else if (!strcmp(word, "errors")) {
    out(2, n);
    puts("done");
  } else if (!strcmp(word, "sleep")) {
    struct timespec t, now;
    clock_gettime(CLOCK_MONOTONIC, &t);
    do {
      clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - t.tv_sec) * 1000 + (now.tv_nsec - t.tv_nsec) / 1000000 < n);
    puts("slept");
  } else if (!strcmp(word, "clock")) {
    struct timespec t;
    unsigned char b[8];
    clock_gettime(CLOCK_REALTIME, &t);
    getentropy(b, sizeof b);
    printf("%lld ", (long long)t.tv_sec);
    for (unsigned i = 0; i < sizeof b; i++) printf("%02x", b[i]);
    puts("");
  } else {
    fprintf(stderr, "unknown word: %s\n", word);
    return 2;
  }
  return 0;
}
