//! Tests of the metrics that a run serves, without a monitoring system.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use common::{SMALL, json, refused};
use interlock::{TrainEvent, Trainer};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use tempfile::TempDir;

/// A run in the background, which is killed when this is dropped.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended by itself
        let _ = self.0.wait();
    }
}

/// Returns the value of the series with this name and these labels, besides the label that all series have.
fn value(text: &str, name: &str, labels: &str) -> Option<f64> {
    let prefix = match labels {
        "" => format!("{name}{{pipeline=\"small\"}} "),
        labels => format!("{name}{{pipeline=\"small\",{labels}}} "),
    };
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map(|value| value.parse().unwrap())
}

/// Returns the metrics that a run with these settings serves after its end. It writes to `run` in the folder.
fn served_by_run(folder: &Path, sets: &[&str]) -> String {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    command.args(["train", "--quiet", "--out", "run", "--metrics", &address, "--metrics-linger", "300"]);
    command.arg("--set=name=small").args(sets).current_dir(folder).stdout(Stdio::null());
    let mut run = Run(command.spawn().unwrap());

    let (since, limit) = (Instant::now(), Duration::from_secs(120));
    let ask = || {
        let get = ureq::get(format!("http://{address}/metrics")).config().timeout_global(Some(limit)).build();
        get.call().ok().and_then(|mut answer| answer.body_mut().read_to_string().ok()).unwrap_or_default()
    };
    // The training has finished before the parameters are fetched and the report is written.
    let ended = || fs::read_to_string(folder.join("run/status.json")).is_ok_and(|s| s.contains("finished"));
    while !ended() {
        assert!(run.0.try_wait().unwrap().is_none() && since.elapsed() < limit, "{}", ask());
        std::thread::sleep(Duration::from_millis(50));
    }
    ask()
}

#[test]
fn run_serves_its_metrics_and_still_does_after_its_end() {
    let folder = TempDir::new().unwrap();
    let text = served_by_run(folder.path(), &[&SMALL[..], &["--set=micro_batches=2"]].concat());
    assert_eq!(value(&text, "interlock_run_state", "state=\"finished\""), Some(1.0), "{text}");
    let value =
        |name: &str, labels: &str| value(&text, name, labels).unwrap_or_else(|| panic!("{name} {labels}: {text}"));
    let report = json(&folder.path().join("run/report.json"));
    assert_eq!(value("interlock_run_state", "state=\"training\""), 0.0);
    assert_eq!((value("interlock_steps_total", ""), value("interlock_current_step", "")), (3.0, 3.0));
    assert_eq!((value("interlock_samples_total", ""), value("interlock_tokens_total", "")), (96.0, 0.0));
    for stage in ["0", "1"] {
        let of = |more: &str| format!("stage=\"{stage}\"{more}");
        assert_eq!(value("interlock_stage_microbatches_total", &of("")), 6.0);
        assert_eq!(value("interlock_stage_phase_duration_seconds_count", &of(",phase=\"optimizer\"")), 3.0);
        assert_eq!(value("interlock_stage_phase_duration_seconds_count", &of(",phase=\"parameter_gradient\"")), 6.0);
        // No micro-batch is in flight, and no message waits.
        assert_eq!(value("interlock_stage_inflight_microbatches", &of("")), 0.0);
        assert_eq!(value("interlock_stage_mailbox_messages", &of("")), 0.0);
        assert!(value("interlock_stage_mailbox_capacity", &of("")) > 0.0);
        // Gradients and momenta have the size of the trained parameters; the model also has running statistics; activations include at least the
        // images of a micro-batch.
        let memory = |kind: &str| value("interlock_stage_memory_bytes", &of(&format!(",kind=\"{kind}\"")));
        let stage = &report["stages"][stage.parse::<usize>().unwrap()];
        let trained = 4.0 * (stage["parameters"].as_f64().unwrap() + stage["head_parameters"].as_f64().unwrap());
        assert_eq!((memory("gradients"), memory("optimizer")), (trained, trained));
        assert!(memory("parameters") > trained && memory("activations") > 4.0 * 16.0 * 28.0 * 28.0);
        for kind in ["loss", "gradient", "activation", "parameter"] {
            assert_eq!(value("interlock_nonfinite_total", &of(&format!(",kind=\"{kind}\""))), 0.0);
        }
        assert!(value("interlock_loss", &of(",split=\"validation\"")) > 0.0);
        assert!(value("interlock_gradient_norm", &of("")) > 0.0);
    }
    assert_eq!(value("interlock_stage_interlock_width", "stage=\"0\""), 2.0);
    // Pairwise sends one gradient for each micro-batch; evaluations send activations too.
    let boundary = |name: &str, labels: &str| value(name, labels);
    assert_eq!(boundary("interlock_boundary_messages_total", "src=\"1\",dst=\"0\",kind=\"gradient\""), 6.0);
    assert!(boundary("interlock_boundary_messages_total", "src=\"0\",dst=\"1\",kind=\"activation\"") > 6.0);
    assert!(!text.contains("kind=\"readout\""), "series of a shared readout, which this run has not");
    assert!(value("process_resident_memory_bytes", "") > 0.0);
    // Bucket bounds: 14, each four times the previous one, and infinity.
    let bounds = text.lines().filter_map(|line| {
        let (_, bound) = line.strip_prefix("interlock_step_duration_seconds_bucket{")?.split_once("le=\"")?;
        bound.split('"').next()?.parse::<f64>().ok()
    });
    let bounds: Vec<f64> = bounds.collect();
    assert_eq!((bounds.len(), bounds[0], bounds[13].round(), bounds[14]), (15, 1e-4, 6711.0, f64::INFINITY));
    assert!(bounds[..14].windows(2).all(|pair| (pair[1] / pair[0] - 4.0).abs() < 1e-9), "{bounds:?}");
}

#[test]
fn versions_of_the_shared_readout_are_counted() {
    let folder = TempDir::new().unwrap();
    let sets = [
        "--set=data={kind=\"shakespeare\", context=8, limit=40}",
        "--set=model={kind=\"transformer\", width=16, heads=2, layers=3}",
        "--set=partition.stages=3",
        "--set=strategy.width=1",
        "--set=heads={arch=\"ln_fc\", readout=\"shared\", readout_refresh=4}",
        "--set=batch_size=4",
        "--set=in_flight=1",
        "--set=steps=9",
        "--set=devices=cpu:threads=1",
    ];
    let text = served_by_run(folder.path(), &sets);
    let vocabulary = json(&folder.path().join("run/data.json"))["kind"]["text"]["vocab"]["characters"]
        .as_str()
        .unwrap()
        .chars()
        .count();
    for [src, dst] in [["2", "1"], ["1", "0"]] {
        let of = |name: &str, kind: &str| {
            value(&text, name, &format!("src=\"{src}\",dst=\"{dst}\",kind=\"{kind}\""))
                .unwrap_or_else(|| panic!("{name}: {text}"))
        };
        // Versions of steps 4 and 8, of 16 numbers for each token of the vocabulary.
        assert_eq!(of("interlock_boundary_messages_total", "readout"), 2.0);
        assert_eq!(of("interlock_boundary_bytes_total", "readout"), (2 * 4 * 16 * vocabulary) as f64);
        assert_eq!(of("interlock_boundary_messages_total", "gradient"), 0.0);
    }
}

#[test]
fn used_address_is_refused_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let train = |address: &str| [&["train", "--out", "run", "--metrics", address][..], &SMALL].concat().join("\n");
    let refuse = |address: &str, words: &[&str]| {
        let arguments = train(address);
        refused(folder.path(), &arguments.split('\n').collect::<Vec<_>>(), words);
    };
    refuse(
        &address,
        &[
            &format!("--metrics {address}"),
            &format!("another process uses port {}", address.rsplit_once(':').unwrap().1),
            "such as --metrics 127.0.0.1:",
            "each process needs a port of its own",
        ],
    );
    refuse("127.0.0.1", &["--metrics", "127.0.0.1"]);
    refused(folder.path(), &["train", "--metrics-linger", "5"], &["--metrics [<ADDRESS:PORT>]"]);
}

#[test]
fn current_step_goes_on_in_a_run_that_continues_another() {
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    let (sender, at_start) = mpsc::channel();
    let served = recorder.clone();
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(64), ..Default::default() }).open().unwrap();
    let mut trainer = Trainer::builder(Mlp { dims: vec![784, 8, 10], flatten: true })
        .stages(2)
        .first_step(5)
        .steps(2)
        .callback(move |event: &TrainEvent<'_>| {
            if let TrainEvent::Started { .. } = event {
                sender.send(served.render()).unwrap();
            }
        })
        .build()
        .unwrap();
    trainer.fit(data.train).unwrap();
    let steps = |text: &str| {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        (value("interlock_current_step "), value("interlock_steps_total "))
    };
    assert_eq!(steps(&at_start.recv().unwrap()), (Some(5), Some(0)));
    assert_eq!(steps(&recorder.render()), (Some(7), Some(2)));
}
