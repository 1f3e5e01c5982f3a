#!/usr/bin/env bash
# tools/test.sh [STAGE...]: the stages of `make test`, all or those named. A stage runs though an earlier one
# failed; each ends as one line of the summary, and any failure makes the exit code 1. A stage that cannot
# run here says why and counts as skipped.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
export CGO_ENABLED=0

everything="packages format vet staticcheck generated imports unit large simulation processes python mypy pip wasm cross"

# skip WHY: ends the stage that calls it. Stages run in subshells.
skip() {
  echo "skipped: $*"
  exit 77
}

stage_packages() { # what the other stages can use and a Go toolchain does not bring
  # for the stage wasm, for tests with networks of their own, and for one with a message bus of its own
  local want="clang lld wasi-libc libclang-rt-dev-wasm32 iproute2 nftables dbus-daemon" missing="" p
  command -v apt-get >/dev/null || skip "no apt-get here; install clang with wasi-libc, iproute2, nftables and dbus-daemon"
  for p in $want; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
  done
  [ -z "$missing" ] && return
  [ "$(id -u)" = 0 ] || skip "not root; for the stage wasm, for networks in tests as root, and for a message bus in tests, run: sudo apt-get install$missing"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086 # words
  apt-get install -y -q --no-install-recommends $missing ||
    { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; }
}

stage_format() {
  local bad
  bad=$(gofmt -l .) || return
  [ -z "$bad" ] || { echo "gofmt would change:" $bad; return 1; }
  bad=$(git ls-files -z 2>/dev/null | xargs -0 -r -I{} find {} -maxdepth 0 -size +1M) # a binary that was added by accident stays in all clones for ever
  [ -z "$bad" ] || { echo "larger than 1 MiB:" $bad; return 1; }
}

stage_vet() { go vet ./... && go -C tools vet ./...; }

stage_staticcheck() { go tool -modfile=tools/go.mod staticcheck ./...; }

stage_generated() { # make proto would change nothing
  dir=$(mktemp -d) || return # not local: the trap of the stage's subshell reads it
  trap 'rm -rf "$dir"' EXIT
  cp protocol/*.proto "$dir" && go -C tools run ./protogen "$dir" || return
  for f in "$dir"/*.pb.go protocol/*.pb.go; do
    f=$(basename "$f")
    diff -u "protocol/$f" "$dir/$f" || { echo "protocol/$f is not what its .proto makes: run make proto"; return 1; }
  done
}

stage_imports() { go test -count=1 -run '^TestArchitecture' ./testnet; }

# Packages below testnet start meshes; they have stages of their own.
units() { go list ./... | grep -v '^meshnode/testnet'; }

stage_unit() {
  # shellcheck disable=SC2046 # words
  if command -v "$(go env CC)" >/dev/null; then
    CGO_ENABLED=1 go test -race -timeout 15m $(units)
  else
    echo "no C compiler: without the race detector"
    go test -timeout 15m $(units)
  fi
}

stage_large() { # jobs that are too large for the race detector
  go test -count=1 -timeout 5m -run 'TestFullDisk|TestCancelOfAMillion|TestResultsStream|TestForgottenJobsLeaveRoom' ./cmd/meshnode ./node
}

stage_quick() { # shellcheck disable=SC2046
  go test -short -timeout 5m $(units)
}

stage_simulation() {
  [ -d testnet/sim ] || skip "there is no testnet/sim"
  go test -timeout 10m ./testnet/sim/...
}

# Nodes as processes of their own; -count=1 because the test cache does not see the binary that they start.
stage_processes() { go test -count=1 -timeout 15m ./testnet ./testnet/lab ./testnet/bench; }

# pythons MINOR prints "VERSION PATH" of each Python 3 from 3.MINOR on that is found here, oldest first, one for each version.
pythons() {
  local p
  for p in $(compgen -c python3 | grep -Ex 'python3(\.[0-9]+)?' | sort -u) "$HOME"/.pyenv/versions/3.*/bin/python3; do
    # Asked, for it may be a shim or broken; a name for a version that the shim does not have says so on standard error.
    timeout 20 "$p" -c 'import sys; print("%d.%d %s" % (sys.version_info[:2] + (sys.executable,)))' 2>/dev/null </dev/null
  done | sort -t. -k2,2n -u | awk -v least="$1" '{ split($1, v, "."); if (v[2] >= least && !seen[$1]++) print }'
}

# meshnode_bin sets MESHNODE_BIN for what starts nodes, and is called in a stage's subshell that has set dir.
meshnode_bin() {
  [ -n "${MESHNODE_BIN:-}" ] || { go build -o "$dir/bin/meshnode" ./cmd/meshnode && export MESHNODE_BIN="$dir/bin/meshnode"; }
}

# The clients under the oldest and the newest Python that they support; each test finds the interpreters for its workers itself.
stage_python() {
  local clients failed=0 p
  clients=$(pythons 8)
  [ -n "$clients" ] || skip "no Python from 3.8 on"
  dir=$(mktemp -d) || return # short: there are sockets below it
  trap 'rm -rf "$dir"' EXIT
  meshnode_bin || return
  export PYTHONDONTWRITEBYTECODE=1 TMPDIR="$dir"
  echo "found: $(pythons 6 | cut -d' ' -f1 | xargs)"
  for p in $(printf '%s\n' "$clients" | sed -n '1p;$p' | cut -d' ' -f2 | uniq); do
    echo "client: $p"
    timeout 600 "$p" -W error::ResourceWarning -m unittest discover -s python/tests || failed=1
  done
  return $failed
}

stage_mypy() { # the client side; in an environment of its own, which is kept
  local newest venv
  newest=$(pythons 10 | tail -n 1 | cut -d' ' -f2)
  [ -n "$newest" ] || skip "no Python from 3.10 on, which mypy needs"
  venv=${XDG_CACHE_HOME:-$HOME/.cache}/meshnode-tools/mypy-$mypy-$("$newest" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if [ ! -x "$venv/bin/mypy" ]; then
    rm -rf "$venv"
    { "$newest" -m venv "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check --retries 1 --timeout 20 "mypy==$mypy"; } ||
      { rm -rf "$venv"; skip "mypy $mypy cannot be installed here: no access to a package index?"; }
  fi
  (cd python && MYPYPATH=. "$venv/bin/mypy" --cache-dir "$venv/cache" $(for p in meshnode pp ppft; do [ -d $p ] && echo -p $p; done))
}
mypy=2.4.1

stage_pip() { # pip install ./python, and what it installs starts
  local newest
  newest=$(pythons 8 | tail -n 1 | cut -d' ' -f2)
  [ -n "$newest" ] || skip "no Python from 3.8 on"
  "$newest" -c 'import ensurepip' 2>/dev/null || skip "$newest has no ensurepip"
  dir=$(mktemp -d) || return
  trap 'rm -rf "$dir"' EXIT
  meshnode_bin || return
  "$newest" -m venv "$dir/venv" || return
  cp -R python "$dir/source" || return # pip writes beside what it builds
  "$dir/venv/bin/pip" install -q --disable-pip-version-check --no-index "$dir/source" || return
  export TMPDIR="$dir"
  cd "$dir" || return
  unset MESHNODE_BIN
  export PATH=$dir/venv/bin:/usr/bin:/bin
  ppserver --help >/dev/null && meshnode-python -c 'import meshnode, pp, ppft' && meshnode version || return
  # No node runs here: a private one does it, with the binary that pip installed.
  MESHNODE_DATA_DIR=$dir/none timeout 60 python - <<'PROGRAM'
import meshnode
import pp

def twice(x):
    return 2 * x

with meshnode.Executor() as executor:
    assert list(executor.map(twice, range(100))) == list(range(0, 200, 2))
server = pp.Server(1)
assert server.submit(twice, (21,))() == 42
server.destroy()
print("installed:", meshnode.__file__)
PROGRAM
}

stage_wasm() { # the examples build, and the committed modules are what their sources make
  dir=$(mktemp -d) || return
  trap 'rm -rf "$dir"' EXIT
  examples/wasm/build.sh --go "$dir" || return
  command -v clang >/dev/null && command -v wasm-ld >/dev/null || skip "no clang with wasm-ld here: only the Go examples were built"
  examples/wasm/build.sh --check
}

stage_cross() { # the product, and on one target of each system whether the tests compile: five more of everything take ten minutes when cold
  local target failed=0
  for target in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64; do
    echo "$target"
    GOOS=${target%/*} GOARCH=${target#*/} go build -o /dev/null ./cmd/meshnode || failed=1
  done
  for target in darwin windows; do
    GOOS=$target GOARCH=amd64 go vet ./... || failed=1
  done
  return $failed
}

failed=0 summary="" begun=$SECONDS
stages=${*:-$everything}
for name in $stages; do
  if ! declare -F "stage_$name" >/dev/null; then
    echo "tools/test.sh: no stage $name; there are: $everything quick" >&2
    exit 2
  fi
done
for name in $stages; do
  printf '\n=== %s\n' "$name"
  start=$SECONDS
  ("stage_$name") </dev/null
  case $? in
    0) how=ok ;;
    77) how=skipped ;;
    *) how=FAILED failed=1 ;;
  esac
  summary+=$(printf '%-8s %5d s  %s' "$how" $((SECONDS - start)) "$name")$'\n'
done
printf '\n=== summary\n%s' "$summary"
if [ $failed = 0 ]; then
  echo "passed in $((SECONDS - begun)) s"
else
  echo "FAILED after $((SECONDS - begun)) s"
  exit 1
fi
