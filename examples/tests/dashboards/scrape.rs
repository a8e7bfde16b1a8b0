//! Fetches the metrics of a run, and runs Prometheus's tool that checks them and the rules.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

/// Returns whether a request succeeded, and the answer.
pub(crate) fn get(url: &str, parameters: &[(&str, &str)]) -> Result<(bool, String), String> {
    let config =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).http_status_as_error(false);
    let agent: ureq::Agent = config.build().into();
    let request = parameters.iter().fold(agent.get(url), |request, &(key, value)| request.query(key, value));
    let mut answer = request.call().map_err(|e| format!("{url}: {e}"))?;
    let success = answer.status().is_success();
    Ok((success, answer.body_mut().read_to_string().map_err(|e| format!("{url}: {e}"))?))
}

/// Returns the metrics of the run at this address.
pub(crate) fn exposition(address: &str) -> Result<String, String> {
    match get(&format!("http://{address}/metrics"), &[])? {
        (true, text) => Ok(text),
        (false, text) => Err(format!("{address}: refused: {text}")),
    }
}

/// Returns the value of a label in a sample's line.
pub(crate) fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let labels = line.split_once('{')?.1;
    let named = labels.split(&format!("{name}=\"")).nth(1)?;
    named.split('"').next()
}

/// Runs `promtool`, and panics with its output if it fails.
pub(crate) fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("promtool, which comes with Prometheus: {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let result = child.wait_with_output().unwrap();
    let output = [result.stdout, result.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(result.status.success(), "promtool {}: {output}", arguments.join(" "));
    output
}
