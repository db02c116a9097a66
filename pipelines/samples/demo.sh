#!/usr/bin/env bash
# The main job on the shipped sample: backfill, sleep, search, show. `make demo` runs it.
set -uo pipefail
lightmem="$BIN/lightmem"
samples="$(dirname "$0")"
run() { echo; echo "\$ lightmem $*"; "$lightmem" "$@" --store "$STORE"; }

rm -rf "$STORE"
run backfill "$samples/chats.jsonl" "$samples/messy.jsonl"
code=$? # 4: done, and the bad rows of messy.jsonl are quarantined, as they should be
[ "$code" -eq 4 ] || exit "$((code ? code : 1))"
set -e
run sleep
run search ada "Where does she live?" --limit 3
run search "José Núñez" "¿Dónde vive su hermano Luis?" --limit 3
run search farid "Which medicine must he not have?" --limit 3
id=$("$lightmem" search ada "She moved to Porto" --limit 1 --json --store "$STORE" | grep -o '"id": "[0-9a-f]*' | cut -d'"' -f4)
run show "$id"
echo
echo "The memories are in $STORE; serve them with:"
echo "  $BIN/serve run lightmem_serve.app:build_app store=$STORE"
