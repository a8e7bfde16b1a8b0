//! The dashboards and rules of `grafana/`.
//!
//! What can be told from the files alone is checked in every `cargo test`: that they are well made (`lint`), that they and the metrics of the
//! framework name the same things (`drift`), that every alert tells what to do and is tested (`rules`), that the files around them fit together
//! (`deployment`). What needs programs of Prometheus is ignored by default, and run by `.ci/run`: `live` starts runs and a Prometheus that
//! scrapes them, and evaluates what the dashboards ask; `alerts` has runs go wrong until it fires. By hand, `just metrics-check`.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test
#![allow(clippy::print_stdout)] // what was measured is for the reader

mod alerts;
mod deployment;
mod drift;
mod files;
mod lint;
mod live;
mod process;
mod prometheus;
mod promql;
mod rules;
mod scrape;
mod yaml;
