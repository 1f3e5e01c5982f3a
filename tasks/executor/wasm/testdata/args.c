/* Command: each argument but the first on a line in brackets, then how many bytes standard input has. */
#include <stdio.h>
int main(int argc, char **argv) {
  int n = 0;
  for (int i = 1; i < argc; i++) printf("[%s]\n", argv[i]);
  while (getchar() != EOF) n++;
  printf("%d\n", n);
  return 0;
}
