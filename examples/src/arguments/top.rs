//! The arguments of `interlock top`.

use std::time::Duration;

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct Top {
    /// Where runs serve their metrics, as `train --metrics` says
    #[arg(required = true, value_name = "HOST:PORT", value_parser = address)]
    pub(crate) addresses: Vec<String>,
    /// Seconds between two looks
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Look twice, an interval apart, print what there is as plain text, and end
    #[arg(long)]
    pub(crate) once: bool,
}

fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok() => {
            Ok(text.to_owned())
        }
        _ => Err(format!("{text:?} is no host and port; use one such as 127.0.0.1:9464")),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{text:?} is no time; use seconds from 0.1 to 3600")),
    }
}
