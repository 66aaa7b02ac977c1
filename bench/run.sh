#!/bin/bash
# Compares peers at the same work in one run and writes results.jsonl, RESULTS.md
# and results.svg. The proxy that is measured has core 0; the upstream and the load
# generator share core 1; everything is on 127.0.0.1. At each level all peers are
# started, and in every round each of them is measured once, in another order each
# time, so that what the machine does meanwhile meets them all.
#   run.sh [-n rounds] [-d seconds] [-p "peer ..."] [-l "level ..."] [-o folder] [-m]
#   -n 7  -d 5  -p "gatebook gonet gofast nginx haproxy"  -l "W0 W1 W2 W3 W4 W4c"
#   -o    where the results go (default: this folder)   -m  no micro-benchmarks
# env: BIN (built by setup.sh), RUN (scratch folder, emptied), TOKALG (ES256 or
# RS256), CONNS (32), RATE (2000), GATEBOOK (a binary to measure instead of a build).
# CHECK=1 measures nothing: it fails unless every peer answers a good token, refuses a
# missing, an altered and a wrongly signed one where its level checks tokens, and
# limits a caller where its level has a limit. A measuring run does that first.
set -u
ulimit -n 65536 2> /dev/null || ulimit -n "$(ulimit -Hn)"
PEERS=$(cd "$(dirname "$0")" && pwd)
export RUN=${RUN:-${TMPDIR:-/tmp}/gatebook-bench} TOKALG=${TOKALG:-ES256} CONNS=${CONNS:-32} PEERS
export BIN=${BIN:-$RUN/bin} GOFLAGS=${GOFLAGS:--buildvcs=false}
N=7 D=5 WANT="gatebook gonet gofast nginx haproxy" LEVELS="W0 W1 W2 W3 W4 W4c" OUT=$PEERS MICRO=1 RATE=${RATE:-2000} FRESH=${FRESH:-140000}
ARGS=$*
while getopts n:d:p:l:o:m o; do case $o in n) N=$OPTARG;; d) D=$OPTARG;; p) WANT=$OPTARG;; l) LEVELS=$OPTARG;; o) mkdir -p "$OPTARG"; OUT=$(cd "$OPTARG" && pwd);; m) MICRO="";; *) exit 2;; esac; done
[ "$(nproc)" -ge 2 ] || { echo "needs two cores" >&2; exit 1; }
LOAD=$(cut -d' ' -f1 /proc/loadavg)
"$PEERS/setup.sh" "$BIN" || exit 1
mkdir -p "$RUN/tmp" "$RUN/other.d"; cd "$RUN" || exit 1
fail() { echo "$*" >&2; exit 1; }
"$BIN/loadgen" keys "$RUN" http://127.0.0.1:9901 "$TOKALG" "$FRESH" || fail "no keys"
"$BIN/loadgen" keys "$RUN/other.d" http://127.0.0.1:9901 "$TOKALG" 1 || fail "no keys"
tokens=tokens.${TOKALG,,} fresh=fresh.${TOKALG,,}
head -1 "other.d/$tokens" > other.token
for f in "$PEERS"/conf/*.sh; do . "$f"; done

body=$(printf '{"id":42,"items":['; for i in $(seq 1 15); do printf '{"id":%d,"name":"item number %d","state":"active","total":%d.5},' "$i" "$i" "$i"; done; printf '{"id":16}],"pad":"')
body=$body$(head -c $((1022 - ${#body})) /dev/zero | tr '\0' x)'"}'
sed "s|@BODY@|$body|" "$PEERS/conf/upstream.conf" > upstream.conf
declare -A PIDS=() PORTS=() LOGS=() NEXT=()
kids() { local p=$1; echo "$p"; for c in $(cat /proc/"$p"/task/*/children 2>/dev/null); do kids "$c"; done; }
stop() { # peer: ends what was started for it and waits
  local pid=${PIDS[$1]:-}; [ -n "$pid" ] || return 0
  kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; PIDS[$1]=""
}
stop_all() { local p; for p in "${!PIDS[@]}"; do stop "$p"; done; }
trap stop_all EXIT
trap 'exit 1' INT TERM
ready() { for _ in $(seq 1 300); do (exec 3<>/dev/tcp/127.0.0.1/"$1") 2>/dev/null && return 0; sleep 0.1; done; return 1; }
(exec 3<>/dev/tcp/127.0.0.1/9901) 2>/dev/null && fail "port 9901 is taken: is another run going on?"
taskset -c 1 nginx -p "$RUN/" -c upstream.conf >> upstream.out 2>&1 & PIDS[direct]=$!
ready 9901 || fail "no upstream: $(tail -1 upstream.err)"
PORTS[direct]=9901 LOGS[direct]=/dev/null

has() { local lv=${1}_levels; [ "$1" = direct ] || [[ " ${!lv} " == *" $2 "* ]]; }
url() { # peer level
  local scheme=http; [ "$1" != direct ] && [[ $2 == W4* ]] && scheme=https; echo "$scheme://127.0.0.1:${PORTS[$1]}"
}
begin() { # peer level
  PID="" PORT="" LOG=/dev/null; rm -f ./"$1".*access.json
  "${1}_start" "$2"
  PIDS[$1]=$PID PORTS[$1]=$PORT LOGS[$1]=$LOG
  ready "$PORT" || fail "$1 $2 did not start"
}
gen() { # peer level more...: one line of results; at W2 and W4 no token is one seen lately
  local peer=$1 level=$2; shift 2
  local list=(-tokens "$tokens"); case $level in W2|W4) list=(-tokens "$fresh" -fresh -first "${NEXT[$peer]:-0}");; esac
  taskset -c 1 "$BIN/loadgen" -url "$(url "$peer" "$level")" -c "$CONNS" "${list[@]}" -pids "$(kids "${PIDS[$peer]}" | paste -sd,)" -peer "$peer" -level "$level" "$@" > last.json || fail "$peer $level: the load generator failed"
  NEXT[$peer]=$(grep -o '"next":[0-9]*' last.json | cut -d: -f2)
  grep -q '"non2xx":0,"errors":0' last.json || fail "$peer $level: bad answers: $(cat last.json)"
  [ -f "${LOGS[$peer]}" ] && : > "${LOGS[$peer]}"
  return 0
}

code() { curl -sk -o /dev/null -w '%{http_code}' --max-time 10 "$@"; }
want() { # what peer level got expected
  [ "$3" = "$4" ] || { echo "$1 at $2: $5 got $3, not $4" >&2; BAD=1; }
}
check() { # peer level
  local at good bad; at=$(url "$1" "$2")/api/v1/users/1; good=$(head -1 "$tokens"); bad=${good%????????}AAAAAAAA
  local out; out=$(code -H "Authorization: Bearer $good" "$at"); want "$1" "$2" "$out" 200 "a good token"
  case $2 in W2*|W4*)
    want "$1" "$2" "$(code "$at")" 401 "no token"
    want "$1" "$2" "$(code -H "Authorization: Bearer $bad" "$at")" 401 "an altered token"
    want "$1" "$2" "$(code -H "Authorization: Bearer $(cat other.token)" "$at")" 401 "a token signed by somebody else";; esac
  case $2 in W3|W4*)
    echo "$good" > one.token
    taskset -c 1 "$BIN/loadgen" -url "$(url "$1" "$2")" -c "$CONNS" -d 2 -tokens one.token > last.json
    grep -q '"non2xx":0,' last.json && { echo "$1 at $2: one caller as fast as it can was never limited: $(cat last.json)" >&2; BAD=1; };; esac
}
after() { # peer: what it has to say for itself when it stopped
  declare -F "${1}_after" > /dev/null || return 0
  "${1}_after" > after.out 2>&1 || { echo "$1 after the run: $(cat after.out)" >&2; BAD=1; }
}
checks() {
  local peer level; BAD=""
  for level in $LEVELS; do for peer in $WANT; do
    has "$peer" "$level" || continue
    begin "$peer" "$level"; check "$peer" "$level"; stop "$peer"; after "$peer"
  done; done
  [ -z "$BAD" ] || fail "peers are not doing the same work: nothing measured"
  echo "checked: $WANT at $LEVELS"
}
CHECKING=${CHECK:-}; CHECK=1; checks; CHECK=""
[ -n "$CHECKING" ] && exit 0

export RESULTS=$OUT/results.jsonl
"$BIN/report" machine -rounds "$N" -secs "$D" -conns "$CONNS" -rate "$RATE" -alg "$TOKALG" -load "$LOAD" -command "bench/run.sh${ARGS:+ $ARGS}" -gatebook "$BIN/gatebook" > "$RESULTS" || exit 1
order() { # round peers...: begins with another one each round, and every second round goes backwards
  local r=$1 out=() i; shift; local n=$#
  for ((i = 0; i < n; i++)); do local k=$(((i + r) % n + 1)); out+=("${!k}"); done
  [ $((r % 2)) = 1 ] && printf '%s\n' "${out[@]}" | tac || printf '%s\n' "${out[@]}"
}
for level in $LEVELS; do
  here=""; for peer in $WANT; do has "$peer" "$level" && here="$here $peer"; done
  for peer in $here; do begin "$peer" "$level"; gen "$peer" "$level" -d 2 -settle; done
  for r in $(seq 1 "$N"); do for peer in $(order "$r" $here); do
    gen "$peer" "$level" -d "$D" -label "round$r" -settle; cat last.json >> "$RESULTS"
  done; done
  case $level in W0|W1|W4c)
    for r in $(seq 1 "$N"); do for peer in $(order "$r" direct $here); do
      gen "$peer" "$level" -d "$D" -rate "$RATE" -label "round$r" -settle; cat last.json >> "$RESULTS"
    done; done;; esac
  BAD=""
  for peer in $here; do
    stop "$peer"; after "$peer"
    [ "$peer" = gatebook ] && "$BIN/report" stored -level "$level" -data "$RUN/gatebook.d/data" -verified after.out >> "$RESULTS"
  done
  rm -rf gatebook.d
  [ -z "$BAD" ] || exit 1
  for peer in $here; do
    echo "$(date +%T) $level $peer $(grep "\"peer\":\"$peer\",\"level\":\"$level\",\"mode\":\"closed\"" "$RESULTS" | grep -o '"rps":[0-9.]*' | cut -d: -f2 | paste -sd' ')"
  done
done
stop direct
if [ -n "$MICRO" ]; then
  for r in $(seq 1 "$N"); do
    (cd "$PEERS/micro" && TMPDIR=$RUN/tmp taskset -c 0 "$BIN/micro.test" -test.run '^$' -test.bench . -test.benchtime 1s -test.cpu 1 -test.benchmem) > micro.out || fail "micro-benchmarks: $(tail -3 micro.out)"
    "$BIN/report" micro -round "$r" < micro.out >> "$RESULTS" || exit 1
    for pkg in $("$BIN/report" packages); do
      name=${pkg//\//_}
      [ -x "$BIN/$name.test" ] || (cd "$PEERS/.." && go test -c -o "$BIN/$name.test" "./$pkg") || fail "$pkg does not build"
      (cd "$PEERS/../$pkg" && TMPDIR=$RUN/tmp taskset -c 0 "$BIN/$name.test" -test.run '^$' -test.bench "$("$BIN/report" pattern "$pkg")" -test.benchtime 0.3s -test.cpu 1 -test.benchmem) > micro.out || fail "$pkg: $(tail -3 micro.out)"
      "$BIN/report" micro -round "$r" < micro.out >> "$RESULTS" || exit 1
    done
  done
fi
"$BIN/report" write -in "$RESULTS" -md "$OUT/RESULTS.md" -svg "$OUT/results.svg"
