/* Command: sleeps as many milliseconds as the number on standard input says, without computing. It needs the system's
 * clock and sleep (submit --clock real): with the deterministic ones it returns at once. */
#include <stdio.h>
#include <time.h>

int main(void) {
  int ms = 0;
  if (scanf("%d", &ms) != 1) {
    fputs("want milliseconds\n", stderr);
    return 2;
  }
  struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
  if (nanosleep(&t, NULL)) {
    perror("nanosleep");
    return 1;
  }
  puts("slept");
  return 0;
}
