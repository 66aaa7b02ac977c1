#!/bin/bash
# What delivery costs those who ask: the gate at 2,000 requests/s with three sinks
# (Splunk, Elasticsearch, Datadog, all taking everything) and without any, one after
# the other in every round, in turns first. Prints both sides, and the ratio of the
# p99 by round with its median; fails if a sink lacks a record.
#   delivery.sh [-n rounds] [-d seconds] [-l level]      -n 7  -d 5  -l W1
# env: BIN, RUN, RATE, GATEBOOK as for run.sh
set -eu
PEERS=$(cd "$(dirname "$0")" && pwd)
export RUN=${RUN:-${TMPDIR:-/tmp}/gatebook-bench-delivery} TOKALG=${TOKALG:-ES256} PEERS
export BIN=${BIN:-$RUN/bin} GOFLAGS=${GOFLAGS:--buildvcs=false}
N=7 D=5 LEVEL=W1 RATE=${RATE:-2000} AT=127.0.0.1:9950
while getopts n:d:l: o; do case $o in n) N=$OPTARG;; d) D=$OPTARG;; l) LEVEL=$OPTARG;; *) exit 2;; esac; done
"$PEERS/setup.sh" "$BIN"
mkdir -p "$RUN/tmp"; cd "$RUN"
"$BIN/loadgen" keys "$RUN" http://127.0.0.1:9901 "$TOKALG" 1
tokens=tokens.${TOKALG,,}
. "$PEERS/conf/gatebook.sh"
sed "s|@BODY@|$(head -c 1024 /dev/zero | tr '\0' x)|" "$PEERS/conf/upstream.conf" > upstream.conf
trap 'kill $NGINX $SINKD 2>/dev/null || true' EXIT
taskset -c 1 nginx -p "$RUN/" -c upstream.conf >> upstream.out 2>&1 & NGINX=$!
taskset -c 1 "$BIN/sinkd" -listen "$AT" >> sinkd.out 2>&1 & SINKD=$!
ready() { for _ in $(seq 1 300); do (exec 3<>/dev/tcp/127.0.0.1/"$1") 2>/dev/null && return 0; sleep 0.1; done; echo "nobody listens on $1" >&2; return 1; }
ready 9901; ready "${AT##*:}"
scheme=http; [[ $LEVEL == W4* ]] && scheme=https
round() { # none|sinks: prints p50 and p99 in microseconds
  SINKS=""; [ "$1" = sinks ] && SINKS=$AT
  gatebook_start "$LEVEL"; trap 'kill $PID 2>/dev/null || true' EXIT; ready 9920
  local load=(taskset -c 1 "$BIN/loadgen" -url "$scheme://127.0.0.1:9920" -c 32 -tokens "$tokens" -rate "$RATE")
  "${load[@]}" -d 2 > warm.json
  "${load[@]}" -d "$D" -pids "$PID" > last.json
  grep -q '"non2xx":0,"errors":0' last.json || { echo "bad answers: $(cat last.json)" >&2; exit 1; }
  if [ "$1" = sinks ]; then
    for _ in $(seq 1 100); do
      "$BIN/gatebook" sink status --json -c gatebook.d/gatebook.yaml > status.json
      [ "$(grep -o '"lag_records": *[0-9]*' status.json | grep -c ': *0$')" = 3 ] && break
      sleep 0.2
    done
    [ "$(grep -o '"lag_records": *[0-9]*' status.json | grep -c ': *0$')" = 3 ] || { echo "not delivered: $(cat status.json)" >&2; exit 1; }
  fi
  kill "$PID"; wait "$PID" || { echo "the gate ended badly: $(tail -3 gatebook.out)" >&2; exit 1; }
  gatebook_after > after.out || { cat after.out >&2; exit 1; }
  echo "$(grep -o '"p50_us":[0-9]*' last.json | cut -d: -f2) $(grep -o '"p99_us":[0-9]*' last.json | cut -d: -f2) $(grep -o '"proxy_cpu_us_per_req":[0-9.]*' last.json | cut -d: -f2)"
}
echo "round  none: p50 p99 cpu  sinks: p50 p99 cpu (us)  p99 ratio"
for r in $(seq 1 "$N"); do
  if [ $((r % 2)) = 1 ]; then none=$(round none); sinks=$(round sinks); else sinks=$(round sinks); none=$(round none); fi
  echo "$r  $none  $sinks  $(awk -v a="$none" -v b="$sinks" 'BEGIN { split(a, x, " "); split(b, y, " "); printf "%.2f", y[2] / x[2] }')"
done | tee rounds.txt
awk '{ print $NF }' rounds.txt | sort -n | awk '{ v[NR] = $1 } END { printf "p99 with three sinks against none: %.2f [%.2f-%.2f]\n", (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2), v[1], v[NR] }'
cat <<< "$(curl -s "http://$AT/counts")"
