#!/usr/bin/env bash
# Finds a Jaeger v1 all-in-one binary, or builds one from its Go module, and prints its path.
#
#   JAEGER_BINARY=/path/to/it    use this one
#
# Looks there, in .cache/jaeger, and on the PATH (jaeger-all-in-one, jaeger). Building needs Go, takes some minutes
# and 2 GB of Go's own caches, and happens once. The binary has Jaeger's collector and query API, but its web page is
# a placeholder: the module does not carry the assets. For the page, use deploy/compose.
set -euo pipefail

readonly MODULE=github.com/jaegertracing/jaeger
readonly VERSION=v1.76.0 # the last release of v1; deploy/compose pins the same
readonly MINIMUM=1.24.6  # the Go version that its go.mod asks for
CACHE="$(cd "$(dirname "$0")/../.." && pwd)/.cache/jaeger"
readonly CACHE
readonly BUILT="$CACHE/jaeger-all-in-one-$VERSION"

say() { echo "jaeger: $*" >&2; }
fail() { say "$@"; exit 1; }

# A v1 all-in-one is known by the flag that places its OTLP receiver; v2 is configured otherwise.
usable() { [[ -x $1 && $("$1" help 2>/dev/null) == *--collector.otlp.grpc.host-port* ]]; }

found() { printf '%s\n' "$1"; exit 0; }

if [[ -n ${JAEGER_BINARY:-} ]]; then
  usable "$JAEGER_BINARY" || fail "JAEGER_BINARY=$JAEGER_BINARY is not a Jaeger v1 all-in-one binary"
  found "$JAEGER_BINARY"
fi
if usable "$BUILT"; then found "$BUILT"; fi
for name in jaeger-all-in-one jaeger; do
  if path=$(command -v "$name") && usable "$path"; then found "$path"; fi
done

command -v go >/dev/null ||
  fail "no Jaeger binary found, and no Go to build one: install Go $MINIMUM or newer, or set JAEGER_BINARY"

say "building $MODULE $VERSION with $(go env GOVERSION); this takes some minutes"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" # outside of any Go module
GOWORK=off go mod download "$MODULE@$VERSION" || fail "Go could not download $MODULE@$VERSION"
source=$(GOWORK=off go list -m -f '{{.Dir}}' "$MODULE@$VERSION")
# `go install` refuses a module whose go.mod replaces a dependency. So it is built as the main module: in a copy,
# because Go's module cache is read-only. Its own go.sum says what every dependency must be.
cp -R "$source" "$work/source"
chmod -R u+w "$work/source"
cd "$work/source"
GOWORK=off go build -trimpath -ldflags '-s -w' -o "$work/jaeger" ./cmd/all-in-one ||
  fail "the build failed; it needs Go $MINIMUM or newer, and this is $(go env GOVERSION)"
usable "$work/jaeger" || fail "what was built does not run"
mkdir -p "$CACHE"
# Into place in one step: an interrupted run leaves nothing that looks finished.
cp "$work/jaeger" "$BUILT.$$"
mv "$BUILT.$$" "$BUILT"
found "$BUILT"
