# Recipes for daily work; `just` lists them. `.ci/run` is what must pass before a change lands.

_default:
    @just --list --unsorted

# Types and lints, the quickest look at a change
check:
    cargo clippy --workspace --all-targets --locked

# Every test of every crate
test:
    cargo test --workspace --locked

# Format, then lint as strictly as CI does
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Documentation, with broken links as errors
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Every lesson, or the ones that are named: `just lessons text early_exit`
lessons *NAMES:
    #!/usr/bin/env bash
    set -euo pipefail
    names="{{ NAMES }}"
    for lesson in ${names:-$(basename -s .rs examples/lessons/*.rs)}; do
        printf '\n== %s\n' "$lesson"
        cargo run --quiet --locked --package interlock-cli --example "$lesson"
    done

# What the layers cost on one thread: `just bench linear`
bench *NAMES:
    cargo bench --package interlock-backends --locked -- {{ NAMES }}

# Build with CUDA, test on the machine's GPUs, measure beside PyTorch, and write a report of it: `just gpu --quick`; `just gpu --help` tells the options
gpu *OPTIONS:
    examples/gpu/run.sh {{ OPTIONS }}

# The dashboards and alerts of grafana/ before real runs; needs prometheus and promtool
metrics-check:
    cargo test --workspace --features full,mpi --test dashboards --locked -- --include-ignored --nocapture --test-threads=1

# Hold the dashboards against Grafana's types and draw their panels from what a Prometheus holds: `just dash --minutes 5`; needs Node and Chromium
dash *OPTIONS:
    npm ci --prefix grafana/draw --ignore-scripts --no-audit --no-fund
    npm run --prefix grafana/draw types
    node grafana/draw/draw.mjs {{ OPTIONS }}

# Licences, advisories and sources of all dependencies; needs cargo-deny
deny:
    cargo deny --locked check

# All that must hold before a change lands
ci:
    .ci/run

# Kill, damage, disturb and exhaust runs, far more often than the tests do. It takes hours; what is interrupted can be begun again
soak:
    examples/tests/soak.sh

# Train on several ranks, and kill and stop some of them, far more often than the tests do; needs an MPI
cluster:
    INTERLOCK_CLUSTER_KILLS=30 INTERLOCK_CLUSTER_STOPS=9 cargo test --release --locked --package interlock-cli --features mpi --test ranks -- --nocapture --test-threads=1
