#!/bin/sh
# Builds the C modules of the examples and of the tests. The .wasm files are committed, so that nobody needs a C
# compiler to try the examples or to run the tests.
#
#   build.sh           rebuild them all
#   build.sh --check   rebuild them elsewhere and compare: with the compiler that made the committed ones they are the
#                      same byte for byte; with another one it is enough that each builds, and exports what it should
#   build.sh --go DIR  build the Go examples into DIR
#
# Needs clang, lld, a WASI C library and compiler-rt for wasm32. Debian: clang lld wasi-libc libclang-rt-dev-wasm32.
# With a wasi-sdk: CC=/opt/wasi-sdk/bin/clang.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
tests=$here/../../tasks/executor/wasm/testdata
bench=$here/../../testnet/bench/testdata
cc=${CC:-clang}
flags='--target=wasm32-wasi -O2 -s -ffile-prefix-map=/= -Wall -Wextra -Wno-unused-result -Wl,--strip-all'

# build SOURCE OUTPUT
build() {
  case $1 in
  *reactor.c) $cc $flags -mexec-model=reactor -o "$2" "$1" ;;
  *) $cc $flags -o "$2" "$1" ;;
  esac
}

sources="$here/sum_primes.c $here/sum_primes_reactor.c $tests/echo.c $tests/args.c $tests/misbehave.c $tests/reactor.c $bench/sleep.c"
version=$($cc --version 2>/dev/null | head -n 1) || { echo "build.sh: no $cc; see the top of this file for what is needed" >&2; exit 1; }

case ${1-} in
'')
  for c in $sources; do build "$c" "${c%.c}.wasm"; done
  echo "$version" >"$here/compiler.txt"
  ;;
--check)
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  if ! echo 'int main(void){return 0;}' | $cc $flags -x c -o "$dir/try.wasm" - 2>"$dir/why"; then
    echo "C modules: not checked: this $cc does not build for WASI: $(head -n 1 "$dir/why")" >&2
    exit 0
  fi
  same=no
  [ "$version" = "$(cat "$here/compiler.txt")" ] && same=yes
  for c in $sources; do
    w=${c%.c}.wasm
    build "$c" "$dir/new.wasm"
    if cmp -s "$dir/new.wasm" "$w"; then continue; fi
    if [ $same = yes ]; then
      echo "build.sh: $w is not what its source makes; run examples/wasm/build.sh" >&2
      exit 1
    fi
    entry=_start
    case $c in *reactor.c) entry=mesh_run ;; esac
    for f in "$dir/new.wasm" "$w"; do
      grep -q "$entry" "$f" || { echo "build.sh: $f does not export $entry" >&2; exit 1; }
    done
  done
  echo "C modules: checked with $version (made by the same compiler: $same)"
  ;;
--go)
  dir=${2:?a directory for the modules}
  cd "$here/go"
  GOOS=wasip1 GOARCH=wasm go build -o "$dir/sum_primes_go.wasm" ./sum_primes
  GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o "$dir/sum_primes_reactor_go.wasm" ./sum_primes_reactor
  ;;
*)
  echo "usage: build.sh [--check | --go DIR]" >&2
  exit 2
  ;;
esac
