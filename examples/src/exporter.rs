//! `--metrics`: the metrics of a run, served to Prometheus over HTTP.

mod connections;
mod server;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use interlock::{
    Error, Result,
    tools::metrics::{self, table},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use crate::terminal::Terminal;
use server::Server;

/// A server of this process's metrics, until the process ends. It has its own thread, so that it answers while stages are busy.
#[derive(Debug)]
pub(crate) struct Exporter {
    /// The address that was asked for.
    asked: SocketAddr,
    /// The address at which it serves; its port is another one if port 0 was asked for.
    address: SocketAddr,
}

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
        let server = Server::bind(address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => refuse(
                format!("another process uses port {}", address.port()),
                format!("each process needs a port of its own{}", free_port(address)),
            ),
            _ => refuse(
                error.to_string(),
                format!("use an address of this machine{}", free_port(SocketAddr::from(([127, 0, 0, 1], 0)))),
            ),
        })?;
        let recorder = PrometheusBuilder::new()
            .add_global_label("pipeline", pipeline)
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &metrics::SECONDS_BUCKETS)
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| Error::other(format!("metrics cannot be recorded: {error}")))?;
        metrics::describe();
        table::BUILD_INFO.gauge(&[env!("CARGO_PKG_VERSION"), env!("SOURCE_REVISION")]).set(1.0);
        let process = metrics_process::Collector::default();
        process.describe();
        process.collect();
        let exporter = Self { asked: address, address: server.address() };
        server.start(recorder, process)?;
        Ok(exporter)
    }

    /// Tells where the metrics are, on the terminal and in the log, and who may read them if other machines may.
    pub(crate) fn announce(&self, terminal: &Terminal) {
        let mut lines = vec![format!("serves metrics at http://{}/metrics", self.address)];
        if !self.address.ip().to_canonical().is_loopback() {
            lines.push(format!(
                "--metrics {}: whoever reaches this address can read the metrics, without a password; let a firewall choose who, or use 127.0.0.1:{}",
                self.asked,
                self.asked.port()
            ));
        }
        for line in lines {
            terminal.notice(&line);
            tracing::info!("{line}");
        }
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
