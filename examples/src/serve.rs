//! `interlock train` on a rank other than 0: trains the stages that rank 0 gives it. It reads no configuration, and data only if it begins a replica.

use std::{net::SocketAddr, time::Duration};

use interlock::{
    Error, Result, Split,
    ranks::{Host, Ranks},
};
use interlock_backends::Instructions;
use interlock_models::data::Description;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    arguments::Train,
    config::{ConfigOf, ConfigText},
    exit::Exit,
    exporter::Exporter,
    interrupt::{self, Next},
    log,
    program::{DataSection, Program},
    ranks::ranks,
    resume::difference,
    terminal::{Terminal, Verbosity},
};

/// What rank 0 tells the others.
#[derive(Serialize, Deserialize)]
pub(crate) struct Shared {
    /// Of the program.
    version: String,
    /// The configuration in TOML and the description of the data; none if there is nothing to do.
    run: Option<(String, Description)>,
}

impl Shared {
    /// There is nothing to do.
    pub(crate) fn nothing() -> Self {
        Self { version: version(), run: None }
    }

    /// There is a run of this configuration, in TOML, on data of this description.
    pub(crate) fn run(config: String, description: &Description) -> Self {
        Self { run: Some((config, description.clone())), ..Self::nothing() }
    }

    /// Tells the other ranks, if there are any.
    pub(crate) fn send(&self) -> Result<(), Exit> {
        let bytes = serde_json::to_vec(self).map_err(Exit::failed)?;
        ranks().map_or(Ok(()), |ranks| Ok(ranks.share(&bytes)?))
    }

    /// Reads what rank 0 has told.
    fn read(bytes: &[u8]) -> Result<Self, Exit> {
        let value: Value = serde_json::from_slice(bytes).map_err(Exit::failed)?;
        // First of all: another version may say everything else in another way.
        let other = value["version"].as_str().unwrap_or("unknown").to_owned();
        if other != version() {
            return Err(Exit::Refused(format!(
                "this rank has the version {}, rank 0 has {other}; start the same program on all ranks",
                version()
            )));
        }
        serde_json::from_value(value).map_err(Exit::failed)
    }
}

/// Returns what tells builds of this program apart.
fn version() -> String {
    format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("SOURCE_REVISION"))
}

/// Returns what ranks must agree in so that they compute the same bits as one process.
pub(crate) fn agreement() -> String {
    format!("vector instructions {:?}", Instructions::in_use())
}

/// Trains the stages of a rank other than 0, which rank 0 drives.
pub(crate) fn serve<P: Program>(arguments: &Train, ranks: &Ranks) -> Result<(), Exit> {
    // Rank 0 stops the run and then the others.
    interrupt::on_signal(|_| Next::GoOn);
    let verbosity = if arguments.quiet { Verbosity::Quiet } else { Verbosity::Lines };
    let _log = log::start(arguments.log_format.unwrap_or_default(), &Terminal::new(verbosity));
    let named = |message: String| match message.starts_with("rank ") {
        true => message,
        false => format!("rank {}: {message}", ranks.rank()),
    };
    serve_run::<P>(arguments, ranks).map_err(|exit| match exit {
        Exit::Refused(message) => Exit::Refused(named(message)),
        Exit::Failed(message) => Exit::Failed(named(message)),
        Exit::Stopped => Exit::Stopped,
    })
}

fn serve_run<P: Program>(arguments: &Train, ranks: &Ranks) -> Result<(), Exit> {
    let Some((config, description)) = Shared::read(&ranks.shared()?)?.run else { return Ok(()) };
    let config: ConfigOf<P> = ConfigText::of::<P>(config).with(&[])?;
    let address = arguments.metrics.map(|address| exporter_of_rank(address, ranks.rank())).transpose()?;
    let exporter = address.map(|address| Exporter::start(address, &config.name)).transpose()?;
    let builder = config.on_devices(config.untrained(&description)?)?;
    let served = builder.serve_with(move || data_like(&config.data, &description));
    if let Some(exporter) = &exporter {
        exporter.linger(Duration::from_secs(arguments.metrics_linger));
    }
    Ok(served?)
}

/// Opens the data that rank 0 has described.
///
/// # Errors
/// If this rank does not have them. The error is a refusal.
fn data_like(config: &impl DataSection, of_first: &Description) -> Result<Split> {
    let refuse = |what: String| {
        Error::invalid("data", what, "give this rank the same data, or let rank 0 read all (data_from = \"first\")")
    };
    let data = config.open().map_err(|error| refuse(error.to_string()))?;
    match difference(of_first, &data.description) {
        None => Ok(data.split()),
        Some(what) => Err(refuse(format!("they are not those of rank 0: {what}"))),
    }
}

/// Returns the addresses at which ranks on these hosts serve their metrics, as Prometheus reads them (`file_sd_configs`); none if the system chooses the ports.
/// All have the first one's address as the label `instance`, so that dashboards and alerts see one run; the label `process` is
/// the rank, and `address` its own address.
///
/// # Errors
/// If there are too few ports.
pub(crate) fn targets(hosts: &[Host], address: SocketAddr) -> Result<Option<Value>, Exit> {
    if address.port() == 0 {
        return Ok(None);
    }
    let target = |(rank, host): (usize, &Host)| {
        let of_rank = exporter_of_rank(address, rank)?;
        Ok(match of_rank.ip().is_unspecified() {
            true => format!("{}:{}", host.name, of_rank.port()),
            false => of_rank.to_string(),
        })
    };
    let targets = hosts.iter().enumerate().map(target).collect::<Result<Vec<_>, Exit>>()?;
    let group = |(rank, address): (usize, &String)| {
        let labels = json!({ "instance": targets[0], "process": rank.to_string(), "address": address });
        json!({ "targets": [address], "labels": labels })
    };
    Ok(Some(targets.iter().enumerate().map(group).collect()))
}

/// Returns the address at which a rank serves its metrics: the port of rank 0 plus the rank. Port 0 stays, which is any free one.
fn exporter_of_rank(mut address: SocketAddr, rank: usize) -> Result<SocketAddr, Exit> {
    if address.port() != 0 {
        let port = usize::from(address.port()) + rank;
        let port = u16::try_from(port).map_err(|_| {
            Exit::Refused(format!("--metrics {address}: rank {rank} would have port {port}; use a lower one"))
        })?;
        address.set_port(port);
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_that_prometheus_can_reach() {
        let hosts = ["a", "a", "b"].map(|name| Host { name: name.to_owned(), cores: 1 });
        let targets = |address: &str| targets(&hosts, address.parse().unwrap());
        let found = |address: &str| -> Vec<Value> {
            let groups = targets(address).unwrap().unwrap();
            groups.as_array().unwrap().iter().map(|group| group["targets"][0].clone()).collect()
        };
        assert_eq!(found("0.0.0.0:9464"), ["a:9464", "a:9465", "b:9466"]);
        assert_eq!(found("[::]:9464"), ["a:9464", "a:9465", "b:9466"]);
        assert_eq!(found("10.0.0.1:1"), ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"]);
        assert_eq!(found("[::1]:1"), ["[::1]:1", "[::1]:2", "[::1]:3"]);
        let last = &targets("0.0.0.0:9464").unwrap().unwrap()[2];
        assert_eq!(last["labels"], json!({ "instance": "a:9464", "process": "2", "address": "b:9466" }));
        assert!(targets("0.0.0.0:0").unwrap().is_none());
        let refused = targets("0.0.0.0:65534").unwrap_err();
        assert!(matches!(refused, Exit::Refused(message) if message.contains("rank 2 would have port 65536")));
    }
}
