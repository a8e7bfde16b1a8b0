//! Starts runs that go wrong, and waits until the alerts fire.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    process::{SMALL, free_address, run, wait_for, when},
    prometheus::{Prometheus, now},
};

/// Shortens the times of a rule: alerts fire after a second, and a stage counts as stalled after 5 s instead of 120.
fn shorten(rule: &mut Value) {
    if rule.get("for").is_some() {
        rule["for"] = json!("1s");
    }
    if rule["alert"] == "InterlockStageStalled" {
        let slow = rule["expr"].as_str().unwrap().to_owned();
        let quick = slow.replace("> 120", "> 5");
        assert_ne!(slow, quick, "the rule has another threshold");
        rule["expr"] = json!(quick);
    }
}

#[test]
#[ignore = "needs prometheus"]
fn runs_that_go_wrong_raise_alerts_and_others_do_not() {
    let folder = TempDir::new().unwrap();
    let names = ["well", "done", "hangs", "diverges", "killed", "uneven"];
    let addresses = names.map(|_| free_address());
    let targets: Vec<&str> = addresses.iter().map(|address| &**address).collect();
    let Prometheus { process: mut server, api } = Prometheus::start(folder.path(), &targets, shorten);
    let start = |k: usize, sets: &[&str], linger: &str| {
        let sets = [&SMALL[..], sets].concat();
        run(names[k], &addresses[k], folder.path(), &sets, &["--metrics-linger", linger])
    };
    let (forever, sleepy) = (&["steps=10000000", "eval_every=10000000"][..], "devices=['emulated:forward-ms=5']");
    let mut well = start(0, &[forever, &[sleepy]].concat(), "0");
    let mut done = start(1, &["steps=100", sleepy], "12");
    // A stage computes for five minutes, and the exporter answers meanwhile.
    let mut hangs =
        start(2, &[forever, &["devices=['emulated:forward-ms=300000', 'emulated:forward-ms=1']"]].concat(), "0");
    let mut diverges = start(3, &[forever, &["optimizer.lr=1e9"]].concat(), "300");
    let mut killed = start(4, &[forever, &[sleepy]].concat(), "0");
    // The first of four stages takes ten times as long as each of the others, and 3.1 times the mean.
    let fast = "'emulated:forward-ms=2'";
    let mut uneven =
        start(5, &[forever, &[&format!("devices=['emulated:forward-ms=20', {fast}, {fast}, {fast}]")]].concat(), "0");

    let limit = Duration::from_secs(60);
    wait_for("the run that will be killed trains", limit, &mut [&mut killed], || {
        let steps = api.at("interlock_current_step{pipeline='killed'} > 10", now())?;
        when(!steps.is_empty(), "no steps yet")
    });
    killed.kill();
    let since = Instant::now();
    let (alert, pipeline, instance) = ("alertname", "pipeline", "instance");
    for (name, label, of) in [
        ("InterlockLossNotFinite", pipeline, "diverges"),
        ("InterlockStageStalled", pipeline, "hangs"),
        ("InterlockPipelineImbalanced", pipeline, "uneven"),
        ("InterlockTargetDown", instance, &*addresses[4]),
    ] {
        let processes = &mut [&mut hangs, &mut diverges, &mut uneven, &mut server];
        let summary = wait_for(name, limit, processes, || {
            let firing = api.firing()?;
            let mut found =
                firing.iter().filter(|labels| labels[alert] == name && labels.get(label).is_some_and(|l| l == of));
            found.next().map(|labels| labels["summary"].clone()).ok_or_else(|| format!("firing: {firing:?}"))
        });
        println!("{name}, seen {:.0} s after the kill: {summary}", since.elapsed().as_secs_f64());
    }

    // The run that finished makes no progress, and then is gone, for longer than the time after which alerts fire. The other one still runs.
    wait_for("the run that ends has been gone for 5 s", limit, &mut [&mut done], || {
        let mut firing = api.firing()?;
        firing.retain(|labels| addresses[..2].iter().any(|address| labels.get(instance) == Some(address)));
        assert!(firing.is_empty(), "alerts of runs with which all is well: {firing:?}");
        let up = api.at(&format!("max_over_time(up{{instance='{}'}}[5s]) == 0", addresses[1]), now())?;
        when(!up.is_empty(), "it is up, or was just now")
    });
    assert!(!done.runs() && well.runs(), "{}\n{}", done.describe(), well.describe());
}
