#!/bin/sh
# Write the three locks: every version and hash that an installation may use, and no address to
# fetch them from, which is for whoever installs to say. Run as `make lock`, from the top.
#
# usage: lock.sh [--upgrade]

set -eu

command -v uv >/dev/null || {
    echo "error: uv was not found, and it writes the locks" >&2
    echo "hint: pip install uv" >&2
    exit 1
}

lock() {
    output=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
        --output-file "$output" "$@"
}

lock requirements-build.txt --group build "$@"
lock requirements.txt pyproject.toml --extra progress --extra cloud -c requirements-build.txt "$@"
lock requirements-dev.txt pyproject.toml --extra progress --extra cloud --group dev --group build \
    -c requirements-build.txt -c requirements.txt "$@"
