#!/bin/bash
# What delivery costs those who ask: gates at 2,000 requests/s, one with three sinks
# (Splunk, Elasticsearch, Datadog, all taking everything) and one without any. All
# gates live side by side on one core, and only one of them is asked at a time: short
# windows in rotation, each round in another order, so that both sides meet the same
# machine. Prints every window, and of the rounds the medians with the quartiles;
# fails if a sink lacks a record or a book does not verify.
# With -away there is one whose three sinks are away: at two nobody listens, one
# accepts and never answers.
#   delivery.sh [-away] [-n rounds] [-d seconds] [-l level] [VARIANT]...
#   -n 7  -d 5  -l W1; variants: none sinks, with -away none away; what the first
#   one is against, the others are measured with. none=FILE, sinks=FILE and
#   away=FILE are measured with another build.
# env: BIN, RUN, RATE, GATEBOOK as for run.sh; BUILT=1 takes what is in BIN as it is
set -eu
PEERS=$(cd "$(dirname "$0")" && pwd)
export RUN=${RUN:-${TMPDIR:-/tmp}/gatebook-bench-delivery} TOKALG=${TOKALG:-ES256} PEERS
export BIN=${BIN:-$RUN/bin} GOFLAGS=${GOFLAGS:--buildvcs=false}
N=7 D=5 LEVEL=W1 RATE=${RATE:-2000} AT=127.0.0.1:9950
SILENT=127.0.0.1:9951 NOBODY=127.0.0.1:9952 VARIANTS=(none sinks)
[ "${1:-}" = -away ] && { VARIANTS=(none away); shift; }
while getopts n:d:l: o; do case $o in n) N=$OPTARG;; d) D=$OPTARG;; l) LEVEL=$OPTARG;; *) exit 2;; esac; done
shift $((OPTIND - 1)); [ $# = 0 ] || VARIANTS=("$@")
[ -n "${BUILT:-}" ] || "$PEERS/setup.sh" "$BIN"
mkdir -p "$RUN/tmp"; cd "$RUN"
"$BIN/loadgen" keys "$RUN" http://127.0.0.1:9901 "$TOKALG" 1
tokens=tokens.${TOKALG,,}
. "$PEERS/conf/gatebook.sh"
sed "s|@BODY@|$(head -c 1024 /dev/zero | tr '\0' x)|" "$PEERS/conf/upstream.conf" > upstream.conf
started=()
trap 'kill "${started[@]}" 2>/dev/null || true' EXIT
taskset -c 1 nginx -p "$RUN/" -c upstream.conf >> upstream.out 2>&1 & started+=($!)
# The sinks would be elsewhere: ours takes only what the others leave of its core.
chrt --idle 0 taskset -c 1 "$BIN/sinkd" -listen "$AT" -silent "$SILENT" >> sinkd.out 2>&1 & started+=($!)
ready() { for _ in $(seq 1 300); do (exec 3<>/dev/tcp/127.0.0.1/"$1") 2>/dev/null && return 0; sleep 0.1; done; echo "nobody listens on $1" >&2; return 1; }
ready 9901; ready "${AT##*:}"; ready "${SILENT##*:}"
scheme=http; [[ $LEVEL == W4* ]] && scheme=https
pids=()
launch() { # number variant: a gate of its own folder and port
  local SINKS="" SINK_SILENT="" BIN=$BIN
  case ${2%%=*} in none) ;; sinks) SINKS=$AT SINK_SILENT=$AT;; away) SINKS=$NOBODY SINK_SILENT=$SILENT;; *) echo "no variant $2" >&2; exit 2;; esac
  gatebook_start "$LEVEL"; ready 9920; kill "$PID"; wait "$PID" || true # it has made the folder
  rm -rf "gate.$1" "gate.$1.bin"; mv gatebook.d "gate.$1"; mkdir "gate.$1.bin"
  sed -i "s|127.0.0.1:9920|127.0.0.1:$((9920 + $1))|" "gate.$1/gatebook.yaml"
  case $2 in *=*) cp "${2#*=}" "gate.$1.bin/gatebook";; *) cp "$BIN/gatebook" "gate.$1.bin/gatebook";; esac
  GOMAXPROCS=1 taskset -c 0 "gate.$1.bin/gatebook" serve -c "gate.$1/gatebook.yaml" > "gate.$1.out" 2>&1 &
  pids+=($!); started+=($!); ready $((9920 + $1))
}
lacking() { # number: how many of its sinks lack records
  "gate.$1.bin/gatebook" sink status --json -c "gate.$1/gatebook.yaml" > status.json
  grep -o '"lag_records": *[0-9]*' status.json | grep -vc ': *0$' || true
}
settled() { # number variant: what was asked has arrived, or cannot
  case ${2%%=*} in
  none) return 0;;
  away) [ "$(lacking "$1")" = 3 ] || { echo "not away: $(cat status.json)" >&2; return 1; };;
  sinks)
    for _ in $(seq 1 100); do [ "$(lacking "$1")" = 0 ] && return 0; sleep 0.2; done
    echo "not delivered: $(cat status.json)" >&2; return 1;;
  esac
}
window() { # number seconds: p50 and p99 (us), CPU for a request (us) and memory (KiB)
  taskset -c 1 "$BIN/loadgen" -url "$scheme://127.0.0.1:$((9920 + $1))" -c 32 -tokens "$tokens" -rate "$RATE" -pids "${pids[$1]}" -d "$2" > last.json
  grep -q '"non2xx":0,"errors":0' last.json || { echo "bad answers: $(cat last.json)" >&2; exit 1; }
  sed -E 's/.*"p50_us":([0-9]+).*"p99_us":([0-9]+).*"proxy_cpu_us_per_req":([0-9.]+).*"rss_kib":([0-9]+).*/\1 \2 \3 \4/' last.json
}
middle() { # name decimals: the median of the lines, and the quartiles
  sort -g | awk -v name="$1" -v f="%.$2f" 'function at(q, i) { i = 1 + q * (NR - 1); return v[int(i)] + (i - int(i)) * (v[int(i) + 1] - v[int(i)]) } { v[NR] = $1 } END { v[NR + 1] = v[NR]; printf "%s " f " [" f "-" f "]  ", name, at(0.5), at(0.25), at(0.75) }'
}
against() { # variant field operator: this variant and the first, of each round
  awk -v v="$1" -v f="$2" -v op="$3" '$2 == 0 { a[$1] = $f } $2 == v { b[$1] = $f } END { for (r in b) print op == "/" ? b[r] / a[r] : b[r] - a[r] }' rounds.txt
}
: > rounds.txt
for v in "${!VARIANTS[@]}"; do launch "$v" "${VARIANTS[$v]}"; window "$v" 2 > /dev/null; done
echo "round variant: p50 p99 cpu (us) rss (KiB)"
for r in $(seq 1 "$N"); do
  for v in $(shuf -i "0-$((${#VARIANTS[@]} - 1))"); do
    window "$v" 1 > /dev/null # so that what the one before has left to do is done
    echo "$r $v $(window "$v" "$D")" | tee -a rounds.txt | sed "s|^\([0-9]*\) $v|\1 ${VARIANTS[$v]}|"
    settled "$v" "${VARIANTS[$v]}" || exit 1
  done
done
for v in "${!VARIANTS[@]}"; do
  echo "${VARIANTS[$v]}: $(for f in 3:p50 4:p99 5:cpu 6:rss; do awk -v v="$v" -v f="${f%:*}" '$2 == v { print $f }' rounds.txt | middle "${f#*:}" 0; done)"
done
for v in "${!VARIANTS[@]}"; do
  [ "$v" = 0 ] || echo "${VARIANTS[$v]} against ${VARIANTS[0]}, round by round: $(for f in 3:p50 4:p99 5:cpu 6:rss; do against "$v" "${f%:*}" / | middle "${f#*:}" 2; done)p99 minus p99 $(against "$v" 4 - | middle us 0)"
done
for v in "${!VARIANTS[@]}"; do
  kill "${pids[$v]}"; wait "${pids[$v]}" || { echo "a gate ended badly: $(tail -3 "gate.$v.out")" >&2; exit 1; }
  "$BIN/gatebook" verify "gate.$v/data" --keys "gate.$v/keys" --key-file "gate.$v/log.vkey" > after.out || { cat after.out >&2; exit 1; }
done
curl -s "http://$AT/counts"
