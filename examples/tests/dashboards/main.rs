//! Tests of the dashboards and rules of `grafana/`.
//!
//! Tests that need only the files always run: of the dashboards' settings (`lint`), of the metrics and labels in queries (`drift`), of the advice
//! and the tests of alerts (`rules`), and of the files that start Prometheus and Grafana (`deployment`). Tests that need Prometheus's programs are
//! ignored by default, and run by `.ci/run` and `just metrics-check`: `live` starts runs and a Prometheus that scrapes them, and evaluates the
//! queries of the dashboards, with the feature `mpi` also for a run of several ranks; `alerts` starts runs that go wrong, and waits for the alerts.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test
#![allow(clippy::print_stdout)] // measurements are for the reader

mod alerts;
mod deployment;
mod drift;
mod files;
mod lint;
mod live;
#[cfg(feature = "mpi")]
#[path = "../common/mpirun.rs"]
mod mpirun;
mod process;
mod prometheus;
mod promql;
mod rules;
mod scrape;
mod yaml;
