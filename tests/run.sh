#!/bin/sh
# Run the tests as three lanes at once on two cores: two of them mostly wait for the nodes that
# they start, the third computes. What the first two say is shown when all have ended.
#
#     sh tests/run.sh PYTHON [options for pytest]
set -u
python=$1
shift

# About as long each: the processes from A to C with what is quick, the others, and the rest.
early="tests/processes/test_processes_[a-c]*.py tests/network tests/wire tests/channels
    tests/compat tests/content tests/simulation tests/node tests/log"
late="tests/processes/test_processes_[!a-c]*.py tests/bucket tests/house tests/identity"
rest=
for directory in tests/*/; do
    directory=${directory%/}
    case " $(echo $early $late) tests/processes tests/benchmarks tests/vectors tests/__pycache__ " in
    *" $directory "*) ;;
    *) rest="$rest $directory" ;;
    esac
done

said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT
trap 'kill $others 2>/dev/null; exit 130' INT TERM
# A shell lets what it starts in the background ignore SIGINT, as this may have been itself, and so
# would every node and client that tests interrupt: undone before pytest takes the process over.
heeding_sigint='import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])'
# shellcheck disable=SC2086 # lists of directories and files
{
    "$python" -c "$heeding_sigint" -p no:cacheprovider "$@" $early >"$said/early" 2>&1 &
    others=$!
    "$python" -c "$heeding_sigint" -p no:cacheprovider "$@" $late >"$said/late" 2>&1 &
    others="$others $!"
    "$python" -c "$heeding_sigint" "$@" $rest
    codes=$?
}
for other in $others; do
    wait "$other"
    codes="$codes $?"
done
cat "$said/early" "$said/late"

# 5: nothing was selected by the options, which may be true of some lanes.
selected=5
for code in $codes; do
    case $code in
    0) selected=0 ;;
    5) ;;
    *) exit "$code" ;;
    esac
done
exit "$selected"
