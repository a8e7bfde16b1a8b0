//! The arguments of `interlock top`.

use std::time::Duration;

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct Top {
    /// The addresses at which runs serve their metrics (see `train --metrics`)
    #[arg(default_value = super::METRICS_ADDRESS, value_name = "HOST:PORT", value_parser = address)]
    pub(crate) addresses: Vec<String>,
    /// Seconds between two reads of the metrics
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Read the metrics twice, an interval apart, print plain text, and end
    #[arg(long)]
    pub(crate) once: bool,
}

fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok() => {
            Ok(text.to_owned())
        }
        _ => Err(format!("{text:?} is not a host and port; use one such as 127.0.0.1:9464")),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{text:?} is not a time; use seconds from 0.1 to 3600")),
    }
}
