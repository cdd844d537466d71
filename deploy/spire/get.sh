#!/usr/bin/env bash
# Finds the binaries spire-server and spire-agent, or builds them from their Go module, and prints their folder.
#
#   SPIRE_BINARIES=/path/to/folder    use the ones in it
#
# Looks there, in .cache/spire, and on the PATH. Building needs Go and a C compiler (the server's SQLite is C), takes
# 5 to 10 minutes on two cores and 4 GB of Go's own caches, and happens once. The two binaries take 230 MB.
set -euo pipefail

readonly MODULE=github.com/spiffe/spire
readonly VERSION=v1.13.3
readonly MINIMUM=1.25.3 # the Go version that its go.mod asks for
CACHE="$(cd "$(dirname "$0")/../.." && pwd)/.cache/spire"
readonly CACHE
readonly BUILT="$CACHE/$VERSION"

say() { echo "spire: $*" >&2; }
fail() { say "$@"; exit 1; }

# Both, of version 1, which they print to standard error.
usable() {
  local name
  for name in spire-server spire-agent; do
    [[ -x $1/$name && $("$1/$name" --version 2>&1) == 1.* ]] || return 1
  done
}

found() { printf '%s\n' "$1"; exit 0; }

if [[ -n ${SPIRE_BINARIES:-} ]]; then
  usable "$SPIRE_BINARIES" || fail "SPIRE_BINARIES=$SPIRE_BINARIES has no spire-server and spire-agent of version 1"
  found "$SPIRE_BINARIES"
fi
if usable "$BUILT"; then found "$BUILT"; fi
if path=$(command -v spire-server) && usable "$(dirname "$path")"; then found "$(dirname "$path")"; fi

command -v go >/dev/null ||
  fail "no SPIRE binaries found, and no Go to build them: install Go $MINIMUM or newer, or set SPIRE_BINARIES"

say "building $MODULE $VERSION with $(go env GOVERSION); this takes 5 to 10 minutes"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" # outside of any Go module
GOWORK=off go mod download "$MODULE@$VERSION" || fail "Go could not download $MODULE@$VERSION"
source=$(GOWORK=off go list -m -f '{{.Dir}}' "$MODULE@$VERSION")
# Built as the main module, so that its own go.sum says what every dependency must be: in a copy, because Go's module
# cache is read-only.
cp -R "$source" "$work/source"
chmod -R u+w "$work/source"
mkdir "$work/built"
cd "$work/source"
GOWORK=off CGO_ENABLED=1 go build -trimpath -ldflags "-s -w -X $MODULE/pkg/common/version.gittag=${VERSION#v}" \
  -o "$work/built/" ./cmd/spire-server ./cmd/spire-agent ||
  fail "the build failed; it needs a C compiler and Go $MINIMUM or newer, and this is $(go env GOVERSION)"
usable "$work/built" || fail "what was built does not run"
mkdir -p "$CACHE"
# Into place in one step: an interrupted run leaves nothing that looks finished.
cp -R "$work/built" "$BUILT.$$"
rm -rf "$BUILT"
mv "$BUILT.$$" "$BUILT"
found "$BUILT"
