#!/bin/sh
# A mesh on this machine: each node a process with a data directory of its own, one mesh, over loopback, without mDNS.
#
#   testnet.sh up [N] [--slots K]   start N nodes (3) with K slots each (1); returns when each sees the others.
#                                   The first line of its output is the directory of this testnet
#   testnet.sh node I ARGS...       the command line of meshnode, for node I (1 to N)
#   testnet.sh kill I               end node I as a crash would (SIGKILL)
#   testnet.sh stop I | cont I      freeze node I as a closed lid would, and let it go on (SIGSTOP, SIGCONT)
#   testnet.sh restart I            end node I if it runs, and start it again
#   testnet.sh logs I [-f]          what node I logged
#   testnet.sh down                 end all nodes, and leave nothing behind
#
# MESHNODE_TESTNET is the testnet's directory; without it `up` makes one, and the others mean the newest that runs.
# MESHNODE_BIN is the binary; without it `up` builds one. Several testnets may run at a time.
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
tmp=${TMPDIR:-/tmp}
tmp=${tmp%/}

die() {
  echo "testnet.sh: $*" >&2
  exit 1
}

# Variables of the caller must not change the nodes.
for v in $(env | sed -n 's/^\(MESHNODE_[A-Z0-9_]*\)=.*/\1/p'); do
  case $v in
  MESHNODE_BIN | MESHNODE_TESTNET | MESHNODE_CACHE_DIR) ;;
  *) unset "$v" ;;
  esac
done

# lives P DIR: whether process P is a node in DIR. A number alone proves nothing: it may be another's by now.
lives() {
  if [ -d /proc/self ]; then
    words=$(tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline") || return 1 # a dead one that nobody waits for has none
  else
    words=$(ps -p "$1" -o command= 2>/dev/null) || return 1
  fi
  case "$words " in
  *"--data-dir $2 "*) ;;
  *) return 1 ;;
  esac
}

# pid DIR: the process of the node in DIR, if it lives.
pid() {
  [ -f "$1/control.json" ] || return 1
  p=$(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' "$1/control.json" 2>/dev/null) || return 1 # it has ended just now
  [ -n "$p" ] && lives "$p" "$1" && echo "$p"
}

# running DIR: whether a node of the testnet in DIR lives.
running() {
  for d in "$1"/[0-9]*; do
    ! pid "$d" >/dev/null || return 0
  done
  return 1
}

# find sets dir: the testnet that is meant.
find_testnet() {
  if [ -n "${MESHNODE_TESTNET-}" ]; then
    [ -f "$MESHNODE_TESTNET/testnet" ] || die "no testnet in $MESHNODE_TESTNET; start one: testnet.sh up"
    dir=$(cd "$MESHNODE_TESTNET" && pwd)
    return
  fi
  # shellcheck disable=SC2012 # the names are ours
  for dir in $(ls -td "$tmp"/meshnode-testnet.* 2>/dev/null); do
    if [ -f "$dir/testnet" ] && running "$dir"; then return; fi
  done
  die "no testnet is running; start one: testnet.sh up"
}

# settings of the testnet in dir.
load() {
  bin=$(cat "$dir/binary")
  slots=$(cat "$dir/slots")
}

# of I: sets node, the directory of node I.
of() {
  case ${1-} in
  '' | *[!0-9]*) die "which node? give its number" ;;
  esac
  node=$dir/$1
  [ -d "$node" ] || die "no node $1 in $dir"
}

# start I: starts node I, on the port that it had before, so that the others find it.
start() {
  listen=/ip4/127.0.0.1/tcp/0
  [ ! -f "$dir/$1.listen" ] || listen=$(cat "$dir/$1.listen")
  "$bin" up -d --data-dir "$dir/$1" --name "node$1" --slots "$slots" --no-mdns --listen "$listen" >"$dir/$1.ready" 2>"$dir/$1.err" ||
    { cat "$dir/$1.err" >&2; return 1; }
  sed -n 's,.*\(/ip4/127.0.0.1/tcp/[0-9]*\).*,\1,p' "$dir/$1.ready" >"$dir/$1.listen"
}

on() { # on I ARGS...: the command line for node I
  i=$1
  shift
  MESHNODE_DATA_DIR=$dir/$i "$bin" "$@"
}

# gone PID DIR SECONDS: waits until the process has ended.
gone() {
  t=$(($3 * 20))
  while lives "$1" "$2"; do # its control.json is gone before it is
    [ $t -gt 0 ] || return 1
    t=$((t - 1))
    sleep 0.05
  done
}

# finish DIR: ends a node, politely at first.
finish() {
  p=$(pid "$1") || return 0
  kill -CONT "$p" 2>/dev/null || :
  kill -TERM "$p" 2>/dev/null || :
  gone "$p" "$1" 7 || { kill -KILL "$p" 2>/dev/null || :; gone "$p" "$1" 5; }
}

remove() {
  for d in "$dir"/[0-9]*; do
    [ ! -d "$d" ] || finish "$d" &
  done
  wait
  for d in "$dir"/[0-9]*; do
    [ ! -d "$d" ] || ! pid "$d" >/dev/null || die "a node in $d does not end"
  done
  rm -rf "$dir"/[0-9]* "$dir/bin"
  rm -f "$dir/binary" "$dir/slots" "$dir/testnet"
  rmdir "$dir" 2>/dev/null || : # not ours if there is more in it
}

up() {
  n=3 slots=1
  while [ $# -gt 0 ]; do
    case $1 in
    --slots)
      [ $# -gt 1 ] || die "--slots needs a number"
      slots=$2
      shift
      ;;
    --slots=*) slots=${1#--slots=} ;;
    *[!0-9]* | '') die "up: $1? usage: testnet.sh up [N] [--slots K]" ;;
    *) n=$1 ;;
    esac
    shift
  done
  [ "$n" -ge 1 ] || die "up: at least one node"
  if [ -n "${MESHNODE_TESTNET-}" ]; then
    dir=$MESHNODE_TESTNET
    mkdir -p "$dir"
  else
    dir=$(mktemp -d "$tmp/meshnode-testnet.XXXXXX")
  fi
  dir=$(cd "$dir" && pwd)
  [ ! -f "$dir/testnet" ] || die "there is a testnet in $dir already; end it: testnet.sh down"
  echo "$dir"
  : >"$dir/testnet"
  trap 'code=$?; [ $code = 0 ] || remove; exit $code' EXIT
  trap 'exit 130' INT TERM
  if [ -n "${MESHNODE_BIN-}" ]; then
    bin=$MESHNODE_BIN
    [ -x "$bin" ] || die "no program at MESHNODE_BIN=$bin"
    case $bin in /*) ;; *) bin=$(pwd)/$bin ;; esac
  else
    bin=$dir/bin/meshnode
    (cd "$here/.." && CGO_ENABLED=0 go build -o "$bin" ./cmd/meshnode) || die "the build failed"
  fi
  echo "$bin" >"$dir/binary"
  echo "$slots" >"$dir/slots"

  i=1 starting=
  while [ $i -le "$n" ]; do
    mkdir "$dir/$i"
    start $i &
    starting="$starting $!"
    i=$((i + 1))
  done
  for p in $starting; do
    wait "$p" || die "a node did not start"
  done
  if [ "$n" -gt 1 ]; then
    ticket=$(on 1 invite --mine --uses $((n - 1)) --expires 1h) || die "no ticket"
    i=2
    while [ $i -le "$n" ]; do
      on $i join "$ticket" 2>"$dir/$i.err" || { cat "$dir/$i.err" >&2; die "node $i did not join"; }
      i=$((i + 1))
    done
    i=1 t=600
    while [ $i -le "$n" ]; do
      if [ "$(on $i status --json | sed -n 's/.*"peers":\([0-9]*\).*/\1/p')" = $((n - 1)) ]; then
        i=$((i + 1))
        continue
      fi
      [ $t -gt 0 ] || die "node $i does not see its $((n - 1)) peers after 30 s"
      t=$((t - 1))
      sleep 0.05
    done
  fi
  i=1
  while [ $i -le "$n" ]; do
    cat "$dir/$i.ready"
    rm -f "$dir/$i.ready" "$dir/$i.err"
    i=$((i + 1))
  done
}

command=${1-}
[ $# -eq 0 ] || shift
case $command in
up) up "$@" ;;
down)
  find_testnet
  remove
  ;;
node)
  find_testnet
  load
  of "${1-}"
  shift
  MESHNODE_DATA_DIR=$node exec "$bin" "$@"
  ;;
kill)
  find_testnet
  of "${1-}"
  p=$(pid "$node") || die "node $1 does not run"
  kill -KILL "$p"
  gone "$p" "$node" 5 || die "node $1 does not end"
  ;;
stop | cont)
  find_testnet
  of "${1-}"
  p=$(pid "$node") || die "node $1 does not run"
  if [ "$command" = stop ]; then kill -STOP "$p"; else kill -CONT "$p"; fi
  ;;
restart)
  find_testnet
  load
  of "${1-}"
  finish "$node" || die "node $1 does not end"
  start "$1" || die "node $1 did not start"
  cat "$dir/$1.ready"
  rm -f "$dir/$1.ready" "$dir/$1.err"
  ;;
logs)
  find_testnet
  of "${1-}"
  if [ "${2-}" = -f ]; then exec tail -n +1 -f "$node/node.log"; fi
  cat "$node/node.log"
  ;;
help | -h | --help) sed -n '2,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0" ;;
*) die "${command:-no command}? try: testnet.sh help" ;;
esac
