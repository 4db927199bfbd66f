#!/bin/sh
# Install the Debian packages that the tests need and that are missing, where that can be done
# without asking anybody: as root, with apt. Elsewhere bootstrap/preflight.sh says what is missing.

set -eu

[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0

missing=
for package in gcc libgmp-dev; do # what compiling fastecdsa takes, see bootstrap/preflight.sh
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "installing$missing" >&2
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
