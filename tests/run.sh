#!/bin/sh
# Run the tests as two halves at once, one for each of two cores: the first mostly waits for the
# nodes that it starts, the second computes. What the first says is shown when both have ended.
#
#     sh tests/run.sh PYTHON [options for pytest]
set -u
python=$1
shift

waiting="tests/processes tests/network"
computing=
for directory in tests/*/; do
    directory=${directory%/}
    case " $waiting tests/benchmarks tests/vectors tests/__pycache__ " in
    *" $directory "*) ;;
    *) computing="$computing $directory" ;;
    esac
done

said=$(mktemp)
trap 'rm -f "$said"' EXIT
trap 'kill "$first" 2>/dev/null; exit 130' INT TERM
# A shell lets what it starts in the background ignore SIGINT, as this may have been itself, and so
# would every node and client that tests interrupt: undone before pytest takes the process over.
heeding_sigint='import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])'
# shellcheck disable=SC2086 # lists of directories
"$python" -c "$heeding_sigint" -p no:cacheprovider "$@" $waiting >"$said" 2>&1 &
first=$!
# shellcheck disable=SC2086
"$python" -c "$heeding_sigint" "$@" $computing
computed=$?
wait "$first"
waited=$?
cat "$said"

# 5: nothing was selected by the options, which may be true of one half.
[ "$computed" -eq 5 ] && [ "$waited" -eq 5 ] && exit 5
for code in "$computed" "$waited"; do
    [ "$code" -eq 0 ] || [ "$code" -eq 5 ] || exit "$code"
done
