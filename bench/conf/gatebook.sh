# Gatebook. Its book cannot be turned off, so W0, W2 and W3, where the peers keep no
# log at all, run with the least that a route may ask for (record accepted in memory,
# no open mark); W1 and W4 are the defaults (open mark, record in the kernel before
# the answer ends). Verified tokens are always remembered: W2 and W4 are asked with
# tokens it has not seen lately (see run.sh), W4c with the same 200 as everybody.
# Where there is no token, callers are told apart by address and all of them have the
# same one, so the W3 limit is set out of reach instead of being 1,000/s.
gatebook_levels="W0 W1 W2 W3 W4 W4c"
gatebook_start() { # level
  local l=$1 dir=$RUN/gatebook.d audit="{commit: queued, intent: none}" who="public: true" limits="" listen="plaintext: behind_proxy, trusted: [\"127.0.0.0/8\"]" rate=1000000
  [ -n "${CHECK:-}" ] && rate=1000
  case $l in W1|W4*) audit="{commit: written, intent: all}";; esac
  case $l in W2|W4*) who="authn: [{jwt: main}]";; esac
  case $l in W3) limits="limits: [by_address]";; W4*) limits="limits: [by_subject]";; esac
  [[ $l == W4* ]] && listen="tls: {certificates: [{cert: \"$RUN/tls.crt\", key: \"$RUN/tls.key\"}]}"
  chmod 600 tls.key
  rm -rf "$dir"; mkdir -p "$dir"
  "$BIN/gatebook" init "$dir" --upstream http://127.0.0.1:9901 --issuer http://127.0.0.1:9901 --self-signed > gatebook.init
  rm -r "$dir/policies"; mkdir "$dir/policies"
  gatebook_policies "$who" > "$dir/policies/bench.cedar"
  {
    cat <<CONF
data: data
node: "gate-1"
origin: "localhost/gatebook"
keys: {wrapper: {file: keys}}
listen: [{name: public, address: "127.0.0.1:9920", $listen}]
issuers:
  - {name: main, preset: rfc9068, issuer: "http://127.0.0.1:9901", audiences: ["bench"], algorithms: [$TOKALG], max_lifetime: 1d, jwks: {url: "http://127.0.0.1:9901/jwks.json"}}
upstreams: {api: {targets: ["http://127.0.0.1:9901"]}}
policies: {dir: policies}
limits:
  by_address: {key: prefix, rate: $rate/s, burst: $rate}
  by_subject: {key: subject, rate: 1000/s, burst: 1000}
routes:
CONF
    gatebook_routes | while read -r name path; do
      printf '  - {name: %s, path: "%s", methods: [GET], upstream: api, %s, audit: %s%s}\n' "$name" "$path" "$who" "$audit" "${limits:+, $limits}"
    done
    [ -z "${SINKS:-}" ] || gatebook_sinks
  } > "$dir/gatebook.yaml"
  GOMAXPROCS=1 taskset -c 0 "$BIN/gatebook" serve -c "$dir/gatebook.yaml" >> gatebook.out 2>&1 &
  PID=$!; PORT=9920; LOG=gatebook.no-log
}
gatebook_routes() { # name and pattern
  cat <<'ROUTES'
users.read /api/v1/users/{id}
users.orders /api/v1/users/{id}/orders
orders.read /api/v1/orders/{id}
items.read /api/v1/projects/{project}/items/{id}
search.read /api/v1/search
reports.read /api/v1/reports/{year}/{month}/{report}
ROUTES
}
# Twenty policies, of which a request meets two: its permit and the forbid on all.
gatebook_policies() { # who
  local principal="principal in Role::\"staff\"" name
  [ "$1" = "public: true" ] && principal=principal
  gatebook_routes | while read -r name _; do
    printf '@id("%s")\npermit (%s, action in Action::"safe", resource == Route::"%s");\n' "$name" "$principal" "$name"
  done
  for name in $(seq 1 13); do
    printf '@id("team-%d")\npermit (principal in Role::"team-%d", action in Action::"safe", resource == Route::"reports.read") when { context.acr == "mfa" };\n' "$name" "$name"
  done
  printf '@id("suspended")\nforbid (principal in Role::"suspended", action, resource);\n'
}
# Three sinks (SINKS: the address of sinkd, SINK_SILENT: that of the second one, if it
# is another), for delivery.sh.
gatebook_sinks() {
  echo secret-for-the-benchmark > sink.token; chmod 600 sink.token
  cat <<CONF
sinks:
  - {name: splunk, type: splunk_hec, url: "http://$SINKS", token: {file: "$RUN/sink.token"}}
  - {name: elastic, type: elasticsearch, url: "http://${SINK_SILENT:-$SINKS}", token: {file: "$RUN/sink.token"}, data_stream: logs-gatebook.audit-bench}
  - {name: datadog, type: datadog, url: "http://$SINKS", token: {file: "$RUN/sink.token"}}
CONF
}
# Nothing was lost and nothing is out of place in the book of a run that was stopped.
gatebook_after() {
  "$BIN/gatebook" verify "$RUN/gatebook.d/data" --keys "$RUN/gatebook.d/keys" --key-file "$RUN/gatebook.d/log.vkey"
}
