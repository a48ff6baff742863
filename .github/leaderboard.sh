#!/usr/bin/env bash
# Run two cells of every row on pico-v1 that was changed since $BASE again, drawn with $SEED, and compare the row with
# all others. $TRUSTED says whether plugins that came with rows may run. Names are those of strangers: `check` has been
# here before, and let nothing pass that is no row.
set -euo pipefail

failed=0
mapfile -t rows < <(git diff --name-only "$BASE...HEAD" -- leaderboard/rows | cut -d/ -f1-4 | sort -u)
for row in "${rows[@]}"; do
  [[ -f $row/row.json && $(basename "$(dirname "$row")") == *pico-v1 ]] || continue
  trust=()
  if [[ $TRUSTED == true ]]; then
    for plugin in "$row"/*.py "$row"/../*.py; do
      [[ -f $plugin ]] && trust+=(--trust "$(basename "$plugin")")
    done
  fi
  .venv/bin/defensekit leaderboard verify "$row" --by CI --cells 2 --seed "$SEED" --quiet "${trust[@]}" || failed=1
  .venv/bin/defensekit leaderboard compare "$row" leaderboard/rows >> "${GITHUB_STEP_SUMMARY:-/dev/stdout}" || failed=1
done
exit $failed
