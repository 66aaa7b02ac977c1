#!/bin/bash
# What delivery costs those who ask: the gate at 2,000 requests/s with three sinks
# (Splunk, Elasticsearch, Datadog, all taking everything) and without any, one after
# the other in every round, in turns first. Prints both sides, and the ratios of p50,
# p99 and memory with their medians; fails if a sink lacks a record.
# With -away all three are away: at two nobody listens, one accepts and never answers.
#   delivery.sh [-away] [-n rounds] [-d seconds] [-l level]      -n 7  -d 5  -l W1
# env: BIN, RUN, RATE, GATEBOOK as for run.sh
set -eu
PEERS=$(cd "$(dirname "$0")" && pwd)
export RUN=${RUN:-${TMPDIR:-/tmp}/gatebook-bench-delivery} TOKALG=${TOKALG:-ES256} PEERS
export BIN=${BIN:-$RUN/bin} GOFLAGS=${GOFLAGS:--buildvcs=false}
N=7 D=5 LEVEL=W1 RATE=${RATE:-2000} AT=127.0.0.1:9950
SILENT=127.0.0.1:9951 NOBODY=127.0.0.1:9952 WITH=sinks
[ "${1:-}" = -away ] && { WITH=away; shift; }
while getopts n:d:l: o; do case $o in n) N=$OPTARG;; d) D=$OPTARG;; l) LEVEL=$OPTARG;; *) exit 2;; esac; done
"$PEERS/setup.sh" "$BIN"
mkdir -p "$RUN/tmp"; cd "$RUN"
"$BIN/loadgen" keys "$RUN" http://127.0.0.1:9901 "$TOKALG" 1
tokens=tokens.${TOKALG,,}
. "$PEERS/conf/gatebook.sh"
sed "s|@BODY@|$(head -c 1024 /dev/zero | tr '\0' x)|" "$PEERS/conf/upstream.conf" > upstream.conf
trap 'kill $NGINX $SINKD 2>/dev/null || true' EXIT
taskset -c 1 nginx -p "$RUN/" -c upstream.conf >> upstream.out 2>&1 & NGINX=$!
taskset -c 1 "$BIN/sinkd" -listen "$AT" -silent "$SILENT" >> sinkd.out 2>&1 & SINKD=$!
ready() { for _ in $(seq 1 300); do (exec 3<>/dev/tcp/127.0.0.1/"$1") 2>/dev/null && return 0; sleep 0.1; done; echo "nobody listens on $1" >&2; return 1; }
ready 9901; ready "${AT##*:}"; ready "${SILENT##*:}"
lacking() { # how many sinks lack records
  "$BIN/gatebook" sink status --json -c gatebook.d/gatebook.yaml > status.json
  grep -o '"lag_records": *[0-9]*' status.json | grep -vc ': *0$' || true
}
scheme=http; [[ $LEVEL == W4* ]] && scheme=https
round() { # none|sinks|away: prints p50 and p99, CPU for a request (us) and memory (KiB)
  SINKS="" SINK_SILENT=""
  case $1 in sinks) SINKS=$AT SINK_SILENT=$AT;; away) SINKS=$NOBODY SINK_SILENT=$SILENT;; esac
  gatebook_start "$LEVEL"; trap 'kill $PID 2>/dev/null || true' EXIT; ready 9920
  local load=(taskset -c 1 "$BIN/loadgen" -url "$scheme://127.0.0.1:9920" -c 32 -tokens "$tokens" -rate "$RATE")
  "${load[@]}" -d 2 > warm.json
  "${load[@]}" -d "$D" -pids "$PID" > last.json
  grep -q '"non2xx":0,"errors":0' last.json || { echo "bad answers: $(cat last.json)" >&2; exit 1; }
  if [ "$1" = sinks ]; then
    for _ in $(seq 1 100); do
      [ "$(lacking)" = 0 ] && break
      sleep 0.2
    done
    [ "$(lacking)" = 0 ] || { echo "not delivered: $(cat status.json)" >&2; exit 1; }
  elif [ "$1" = away ]; then
    [ "$(lacking)" = 3 ] || { echo "not away: $(cat status.json)" >&2; exit 1; }
  fi
  kill "$PID"; wait "$PID" || { echo "the gate ended badly: $(tail -3 gatebook.out)" >&2; exit 1; }
  gatebook_after > after.out || { cat after.out >&2; exit 1; }
  sed -E 's/.*"p50_us":([0-9]+).*"p99_us":([0-9]+).*"proxy_cpu_us_per_req":([0-9.]+).*"rss_kib":([0-9]+).*/\1 \2 \3 \4/' last.json
}
echo "round  none: p50 p99 cpu (us) rss (KiB)  $WITH: p50 p99 cpu rss  ratios: p50 p99 rss"
for r in $(seq 1 "$N"); do
  if [ $((r % 2)) = 1 ]; then none=$(round none); with=$(round $WITH); else with=$(round $WITH); none=$(round none); fi
  echo "$r  $none  $with  $(awk -v a="$none" -v b="$with" 'BEGIN { split(a, x, " "); split(b, y, " "); printf "%.2f %.2f %.2f", y[1] / x[1], y[2] / x[2], y[4] / x[4] }')"
done | tee rounds.txt
for what in 10:p50 11:p99 12:rss; do
  awk -v f="${what%:*}" '{ print $f }' rounds.txt | sort -n | awk -v what="${what#*:}" -v with="$WITH" '{ v[NR] = $1 } END { printf "%s with three sinks (%s) against none: %.2f [%.2f-%.2f]\n", what, with, (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2), v[1], v[NR] }'
done
cat <<< "$(curl -s "http://$AT/counts")"
