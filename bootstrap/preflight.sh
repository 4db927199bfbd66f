#!/bin/sh
# Say, before anything is downloaded, whether this computer can build what is built at install:
# fastecdsa, which libp2p needs, comes as C source and wants a compiler, gmp and Python's headers.
#
# usage: preflight.sh PYTHON

set -u
python=$1

fail() {
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit 1
}

if [ "$(uname -s)" = Darwin ]; then
    packages="brew install gmp"
    newer_python="brew install python@3.13"
else
    packages="apt-get install -y gcc libgmp-dev python3-dev"
    newer_python="install Python 3.11 or newer, then run make PYTHON=/path/to/it"
fi

"$python" -c 'import sys' 2>/dev/null ||
    fail "no python called $python was found" "$newer_python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version 2>&1) is too old, 3.11 or newer is needed" "$newer_python"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot create environments" "apt-get install -y python3-venv"

compiler=${CC:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC") or "cc")')}
# The compiler Python was built with may not be the one that is here: then any `cc` will do.
command -v "${compiler%% *}" >/dev/null 2>&1 || compiler=${CC:-cc}
command -v "${compiler%% *}" >/dev/null 2>&1 ||
    fail "no C compiler was found, and fastecdsa is compiled at install" "$packages"

scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')

# $1 is a line of C; $2 what to link. CC, CFLAGS and LDFLAGS are lists of words: not quoted.
compiles() {
    printf '%s\nint main(void) { return 0; }\n' "$1" >"$scratch/it.c"
    # shellcheck disable=SC2086
    $compiler ${CFLAGS:-} "-I$include" "$scratch/it.c" -o "$scratch/it" ${LDFLAGS:-} $2 \
        >/dev/null 2>&1
}

compiles '' '' || fail "the C compiler $compiler does not work" "$packages"
compiles '#include <gmp.h>' -lgmp ||
    fail "the headers of gmp were not found, and fastecdsa is compiled at install" "$packages"
compiles '#include <Python.h>' '' ||
    fail "the headers of $python were not found, and fastecdsa is compiled at install" "$packages"
