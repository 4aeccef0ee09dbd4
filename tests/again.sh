#!/usr/bin/env bash
# Runs the tests again and again, and tells how often they passed:
#
#   tests/again.sh [--busy] [RUNS]
#
# There are 20 runs unless RUNS says otherwise. With --busy, each processor has a busy loop as well.
# What a failed run printed stays in the file that its line names. The exit code is 1 if any failed.

cd "$(dirname "$0")/.." || exit 1
runs=20
loops=0
for argument in "$@"; do
  case $argument in
    --busy) loops=$(getconf _NPROCESSORS_ONLN) ;;
    '' | *[!0-9]*)
      echo "Usage: tests/again.sh [--busy] [RUNS]" >&2
      exit 2
      ;;
    *) runs=$argument ;;
  esac
done

# A loop ends with this script, however that ends.
for ((loop = 0; loop < loops; loop++)); do
  while kill -0 $$ 2> /dev/null; do :; done &
done
outputs=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null; rmdir "$outputs" 2> /dev/null' EXIT
trap 'rm -f "$output"; exit 130' INT TERM

failed=0
for ((run = 1; run <= runs; run++)); do
  output=$outputs/$run.txt
  SECONDS=0
  # While it waits for a job, bash hears a signal at once.
  NO_COLOR=1 FORCE_COLOR= deno task test > "$output" 2>&1 &
  if wait $!; then
    echo "Run $run: passed in $SECONDS s"
    rm "$output"
  else
    echo "Run $run: failed in $SECONDS s, see $output"
    failed=$((failed + 1))
  fi
done
echo "$((runs - failed)) of $runs runs passed."
[ "$failed" -eq 0 ]
