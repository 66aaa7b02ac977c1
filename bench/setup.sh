#!/bin/bash
# Builds what the benchmark needs into BIN: the load generator, the Go baselines,
# the micro-benchmarks and, unless GATEBOOK names one, the gate itself. nginx,
# HAProxy and the tools come from Debian and are installed where they are missing
# (as root).
set -euo pipefail
BIN=$(realpath -m "${1:?usage: setup.sh BIN}"); cd "$(dirname "$0")"; mkdir -p "$BIN"
need=""
command -v nginx > /dev/null && [ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] && [ -e /usr/share/lua/5.1/cjson/util.lua ] || need="nginx-light libnginx-mod-http-lua lua-cjson"
command -v haproxy > /dev/null || need="$need haproxy"
command -v curl > /dev/null || need="$need curl"
if [ -n "$need" ]; then
  echo "installing $need"
  apt-get update -qq
  # shellcheck disable=SC2086 # a list of packages
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need > /dev/null
fi
go build -o "$BIN/loadgen" ./loadgen
go build -o "$BIN/gobase" ./gobase
go build -o "$BIN/sinkd" ./sinkd
go build -o "$BIN/report" ./report
go test -c -o "$BIN/micro.test" ./micro
if [ -n "${GATEBOOK:-}" ]; then
  cp "$GATEBOOK" "$BIN/gatebook"
else
  (cd .. && CGO_ENABLED=0 go build -trimpath -ldflags="$(cat packaging/ldflags)" -o "$BIN/gatebook" ./cmd/gatebook)
fi
