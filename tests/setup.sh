#!/bin/sh
# Install the Debian packages that the tests need and that are missing, where that can be done
# without asking anybody: as root, with apt. Elsewhere bootstrap/preflight.sh says what is missing,
# and tests that need a server that is not there say that they were skipped.

set -eu

[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0

missing=
# What compiling fastecdsa takes (bootstrap/preflight.sh), and a real S3 server for tests/bucket.
for package in gcc libgmp-dev radosgw ceph-mon ceph-osd ceph-mgr ceph-common curl; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "installing$missing" >&2
# apt's own user writes there, and /tmp is not everywhere everybody's.
TMPDIR=$(mktemp -d)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
chmod 1777 "$TMPDIR"
# shellcheck disable=SC2086
if ! { apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing \
        >/dev/null; }; then
    echo "could not install$missing: tests that need them say that they were skipped" >&2
fi
