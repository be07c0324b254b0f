#!/bin/sh
# The whole pipeline on synthetic faces, in ./demo. Run it again and it goes on from what is there.
set -eu
WORK="${1:-demo}"
mkdir -p "$WORK"
cd "$WORK"

say() { printf '\n$ %s\n' "$*"; "$@"; }

say ft synth raw --identities 150 --images 20
say ft -C . align raw aligned --size 96
say ft -C . prune --min 10
say ft -C . split 0.2
say ft -C . cache
RUN="demo-$(date +%Y%m%d-%H%M%S)"
say ft -C . train --name "$RUN" --epochs 8
say ft -C . evaluate "$RUN"
say ft -C . plot-loss "$RUN"
say ft -C . status

printf '\nThe figures: %s/.ft/runs/%s/loss.png and %s/.ft/runs/%s/evaluation/validation.png\n' "$WORK" "$RUN" "$WORK" "$RUN"
printf 'The numbers: %s/.ft/runs/%s/evaluation/validation.json\n' "$WORK" "$RUN"
