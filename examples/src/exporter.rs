//! `--metrics`: what a run tells, for Prometheus to fetch over HTTP.

use std::{net::SocketAddr, time::Duration};

use interlock::{
    Error, Result,
    metrics::{self, table},
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

/// How often what the operating system knows of the process is asked for.
const PROCESS_EVERY: Duration = Duration::from_secs(1);

/// Serves the metrics of this process at an address, until the process ends. It has a thread of its own, so that it answers however busy the
/// stages are.
#[derive(Debug)]
pub(crate) struct Exporter;

impl Exporter {
    /// Begins to serve at `address`; every series has the label `pipeline`. Everything that tells metrics must be built later.
    ///
    /// # Errors
    /// If the address cannot be had: another process has it, or it is none of this machine.
    pub(crate) fn start(address: SocketAddr, pipeline: &str) -> Result<Self> {
        let refuse = |problem: String| {
            let right = "name a free one of this machine, such as 127.0.0.1:9464; each process needs a port of its own";
            Error::invalid(format!("--metrics {address}"), problem, right)
        };
        PrometheusBuilder::new()
            .with_http_listener(address)
            .add_global_label("pipeline", pipeline)
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &metrics::SECONDS_BUCKETS)
            .and_then(PrometheusBuilder::install)
            .map_err(|error| match error {
                BuildError::FailedToCreateHTTPListener(cause) => refuse(cause),
                other => refuse(other.to_string()),
            })?;
        metrics::describe();
        table::BUILD_INFO.gauge(&[env!("CARGO_PKG_VERSION"), env!("INTERLOCK_REVISION")]).set(1.0);
        let process = metrics_process::Collector::default();
        process.describe();
        process.collect();
        std::thread::Builder::new()
            .name("process metrics".to_owned())
            .spawn(move || {
                loop {
                    std::thread::sleep(PROCESS_EVERY);
                    process.collect();
                }
            })
            .map_err(|cause| Error::Thread { name: "process-metrics", cause })?;
        Ok(Self)
    }

    /// Names the run, its model and its strategy.
    pub(crate) fn name_run(&self, run: &str, model: &str, strategy: &str) {
        table::RUN_INFO.gauge(&[run, model, strategy]).set(1.0);
    }

    /// Goes on serving for so long.
    pub(crate) fn linger(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
