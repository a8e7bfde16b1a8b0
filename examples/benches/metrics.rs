//! What one call costs that tells a metric, with a handle made before, under the recorder that `--metrics` installs; and the clock that times are taken
//! with.
//!
//! `cargo bench -p interlock-cli --bench metrics`

#![allow(clippy::unwrap_used)] // a bench that cannot be set up has nothing to measure

use std::time::Instant;

use divan::Bencher;
use interlock::tools::metrics::{SECONDS_BUCKETS, table};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

fn main() {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
        .unwrap()
        .install_recorder()
        .unwrap();
    divan::main();
}

#[divan::bench]
fn counter(bencher: Bencher<'_, '_>) {
    let counter = table::STAGE_MICROBATCHES.counter(&["0"]);
    bencher.bench_local(|| counter.increment(1));
}

#[divan::bench]
fn gauge(bencher: Bencher<'_, '_>) {
    let gauge = table::STAGE_LAST_PROGRESS.gauge(&["0"]);
    bencher.bench_local(|| gauge.set(divan::black_box(1.0)));
}

#[divan::bench]
fn gauge_up_and_down(bencher: Bencher<'_, '_>) {
    let gauge = table::STAGE_MAILBOX_MESSAGES.gauge(&["0"]);
    bencher.bench_local(|| {
        gauge.increment(1.0);
        gauge.decrement(1.0);
    });
}

#[divan::bench]
fn histogram(bencher: Bencher<'_, '_>) {
    let histogram = table::STAGE_PHASE_DURATION.histogram(&["0", "forward"]);
    bencher.bench_local(|| histogram.record(divan::black_box(1e-3)));
}

/// Were handles not made before.
#[divan::bench]
fn counter_by_name() {
    table::STAGE_MICROBATCHES.counter(&["0"]).increment(1);
}

#[divan::bench]
fn clock() -> Instant {
    Instant::now()
}
