//! `--metrics`: the metrics of a run, served to Prometheus over HTTP.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use interlock::{
    Error, Result,
    tools::metrics::{self, table},
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

/// The time between two readings of the process's metrics from the operating system.
const PROCESS_EVERY: Duration = Duration::from_secs(1);

/// A server of this process's metrics, until the process ends. It has its own thread, so that it answers while stages are busy.
#[derive(Debug)]
pub(crate) struct Exporter;

/// Returns a suggestion with a port that is free at this address; nothing if the system gives none.
fn free_port(address: SocketAddr) -> String {
    let free = TcpListener::bind(SocketAddr::new(address.ip(), 0)).and_then(|listener| listener.local_addr());
    free.map_or_else(|_| String::new(), |free| format!(", such as --metrics {free}"))
}

impl Exporter {
    /// Starts to serve at `address`. Every series has the label `pipeline`. Call this before anything that records metrics is built.
    ///
    /// # Errors
    /// If the address is not available: another process uses it, or it does not belong to this machine.
    pub(crate) fn start(address: SocketAddr, pipeline: &str) -> Result<Self> {
        let refuse = |problem: String, right: String| Error::invalid(format!("--metrics {address}"), problem, right);
        // Tried here first, since the error of the exporter is a text.
        if let Err(error) = TcpListener::bind(address) {
            return Err(match error.kind() {
                io::ErrorKind::AddrInUse => refuse(
                    format!("another process uses port {}", address.port()),
                    format!("each process needs a port of its own{}", free_port(address)),
                ),
                _ => refuse(
                    error.to_string(),
                    format!("use an address of this machine{}", free_port(SocketAddr::from(([127, 0, 0, 1], 0)))),
                ),
            });
        }
        PrometheusBuilder::new()
            .with_http_listener(address)
            .add_global_label("pipeline", pipeline)
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &metrics::SECONDS_BUCKETS)
            .and_then(PrometheusBuilder::install)
            .map_err(|error| match error {
                BuildError::FailedToCreateHTTPListener(cause) => refuse(cause, "use another address".to_owned()),
                other => refuse(other.to_string(), "use another address".to_owned()),
            })?;
        metrics::describe();
        table::BUILD_INFO.gauge(&[env!("CARGO_PKG_VERSION"), env!("SOURCE_REVISION")]).set(1.0);
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

    /// Waits for this time, and serves meanwhile.
    pub(crate) fn linger(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
