#!/usr/bin/env bash
# The main job on the shipped sample: backfill, sleep, search, show. `make demo` runs it.
set -uo pipefail
lightmem="$BIN/lightmem"
samples="$(dirname "$0")"
run() {
  printf '\n$ lightmem'
  for word in "$@"; do case "$word" in *" "*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac; done
  echo
  "$lightmem" "$@" --store "$STORE"
}

rm -rf "$STORE"
run backfill "$samples/chats.jsonl" "$samples/messy.jsonl"
code=$? # 4: done, and the bad rows of messy.jsonl are quarantined, as they should be
[ "$code" -eq 4 ] || exit "$((code ? code : 1))"
set -e
run sleep
run search ada "Where did I move to?" --limit 3
run search "José Núñez" "¿Dónde vive su hermano Luis?" --limit 3
run search farid "Which medicine am I allergic to?" --limit 3
id=$("$lightmem" search ada "She moved to Porto" --limit 1 --json --store "$STORE" | grep -o '"id": "[0-9a-f]*' | cut -d'"' -f4)
run show "$id"
echo
echo "The memories are in $STORE. To look at them in a browser, make a key, start the server,"
echo "and sign in at http://127.0.0.1:8000/"
echo "  $BIN/lightmem keys create --scope admin --store $STORE"
echo "  $BIN/serve run lightmem_serve.app:build_app store=$STORE"
