#!/usr/bin/env bash
# What a pull request does to the rows of leaderboards: all are checked, cells of those on one track that it adds or
# changes are run again, drawn with $SEED, and compared with all others. $BASE is the commit that it is made for;
# $TRUSTED says whether plugins that came with rows may run. The summary says what was done. Names are those of
# strangers: `check` comes first, and lets nothing pass that is no row.
set -euo pipefail

TRACKS=()                    # files of tracks that are none of the shipped ones
RERUN=pico-v1                # the track whose rows, those of attacks on it too, are small enough to be run again here
CELLS=2                      # of each row
HOST="the CI of DefenseKit"  # who runs them again; the site is built with this name as its --host
BASELINES=(nothing fine-tuning random-reset from-base)  # every track has these rows

ROWS=leaderboard/rows
failed=0
base=$(git merge-base "$BASE" HEAD)

leaderboard() { .venv/bin/defensekit leaderboard "$1" "${@:2}" "${TRACKS[@]/#/--track=}"; }
say() { printf '%s\n' "$@" >> "${GITHUB_STEP_SUMMARY:-/dev/stdout}"; }
code() { say '```text' "$(tr -d '`')" '```'; }  # no markup of strangers
wrong() { failed=1; say "**$1**"; printf '%s\n' "${@:2}" | code; }
changed() { git diff --name-only --no-renames --diff-filter="$1" "$base...HEAD" -- "$2"; }
rows() { cut -d/ -f1-4 | sort -u; }

leaderboard check "$ROWS" || { say "**A row is not right; nothing was run.**"; exit 1; }

mapfile -t removed < <(changed D "$ROWS/*/*/row.json" | rows)
mapfile -t added < <(changed A "$ROWS/*/*/row.json" | rows)
mapfile -t others < <(comm -23 <(changed AMD "$ROWS/*/*/*" | rows) \
  <(printf '%s\n' "${removed[@]}" "${added[@]}" | sort))
say "${#added[@]} rows are added, ${#others[@]} changed, ${#removed[@]} removed." ""
printf '%s\n' "${added[@]/#/added: }" "${others[@]/#/changed: }" "${removed[@]/#/removed: }" | sed '/^$/d' | code

[[ ${#removed[@]} == 0 ]] || wrong "A row of the board is not taken away by a pull request." "${removed[@]}"
mapfile -t lost < <(changed D "$ROWS/*/*/verifications/*")
[[ ${#lost[@]} == 0 ]] || wrong "A verification is not taken away by a pull request." "${lost[@]}"
for track in "$ROWS"/*/; do
  [[ ! -f ${track}attack.yaml ]] || continue
  for name in "${BASELINES[@]}"; do
    [[ -f $track$name/row.json ]] || wrong "A track lacks the row of a trivial baseline." "$track$name"
  done
done
mapfile -t signed < <(changed AM "$ROWS/*/*/verifications/*")
forged=$(python3 - "$HOST" "${signed[@]}" << 'PYTHON'
import json, sys

host, *files = sys.argv[1:]
person = lambda name: " ".join(name.split()).casefold()
print(*(file for file in files if person(json.load(open(file))["by"]) == person(host)), sep="\n")
PYTHON
)
[[ -z $forged ]] || wrong "Nobody signs as the host ($HOST) but the host." "$forged"

for row in "${added[@]}" "${others[@]}"; do
  [[ -f $row/row.json && $(basename "$(dirname "$row")") == *"$RERUN" ]] || continue
  say "" "### ${row#"$ROWS/"}" ""
  plugins=() trust=()
  for plugin in "$row"/*.py "$row"/../*.py; do
    [[ -f $plugin ]] && plugins+=("$(basename "$plugin")")
  done
  if [[ ${#plugins[@]} != 0 && $TRUSTED != true ]]; then
    wrong "Not run: it needs the label \`trusted\`, once somebody has read its code." "${plugins[@]}"
  else
    [[ ${#plugins[@]} == 0 ]] || trust=("${plugins[@]/#/--trust=}")
    options=(--by "$HOST" --cells "$CELLS" --seed "$SEED" --quiet "${trust[@]}")
    said=$(leaderboard verify "$row" "${options[@]}" 2>&1) || failed=1
    code <<< "$said"
  fi
  compared=$(leaderboard compare "$row" "$ROWS") && say "" "$compared" || failed=1
done
exit $failed
