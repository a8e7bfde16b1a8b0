#!/usr/bin/env bash
# The full counts of the tests that try faults: `just soak`. Each piece that passes is noted in target/soak, so that a soak that was interrupted continues.
set -euo pipefail
cd "$(dirname "$0")/../.."
ulimit -n "$(ulimit -H -n)"
log=target/soak/$(git rev-parse --short HEAD)-$(git diff HEAD | cksum | cut -d" " -f1).log
mkdir -p target/soak
touch "$log"
printf 'The pieces that have passed are in %s.\n' "$log"

# Runs a command, unless the piece of this name has passed: piece NAME ROUND COMMAND...
piece() {
    local name=$1 round=$2 start=$SECONDS
    shift 2
    if grep -q "^$name $round:" "$log"; then return; fi
    printf '== %s, round %s\n' "$name" "$round"
    INTERLOCK_SOAK_ROUND=$round "$@"
    printf '%s %s: passed in %s s\n' "$name" "$round" $((SECONDS - start)) >>"$log"
}

tests() {
    cargo test --release --locked --package "$@"
}

# Ten rounds, each with a tenth of what is asked for.
export INTERLOCK_SOAK_KILLS=10 INTERLOCK_SOAK_PAIRS=5 INTERLOCK_SOAK_FLIPS=200 INTERLOCK_SOAK_SIGNALS=5 INTERLOCK_SOAK_DISKS=6 INTERLOCK_SOAK_THREADS=24
for round in $(seq 10); do
    piece durability "$round" tests interlock-cli --test durability -- --nocapture --test-threads 1
done
export INTERLOCK_SOAK_TRAININGS=50 INTERLOCK_SOAK_SLOW_SECONDS=1800
piece flat 1 tests interlock-train --test flat --test slow_stage -- --nocapture
piece blocked 1 tests interlock-train --test stalls --test failures --test restarts -- --nocapture
INTERLOCK_SOAK_CLIENTS=1 piece clients 1 tests interlock-cli --test exporter idle -- --nocapture
for reader in $(sed -n 's/^.*name: "\([a-z0-9_]*\)",.*$/\1/p' examples/src/readers.rs); do
    INTERLOCK_MUTATIONS=10000 INTERLOCK_MUTATIONS_OF=$reader \
        piece "mutations-$reader" 1 tests interlock-cli --features more-images --lib mutations -- --nocapture
done
cat "$log"
