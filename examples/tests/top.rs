//! Tests of `interlock top` with a run that serves its metrics.

#![cfg(all(unix, feature = "top"))]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;
#[path = "common/running.rs"]
mod running;

use common::{done, err, interlock, out, refused};
use running::{endless, free_address};
use tempfile::TempDir;

#[test]
fn once_prints_the_state_of_a_run() {
    let folder = TempDir::new().unwrap();
    let address = free_address();
    let mut running = endless(folder.path(), &["--quiet", "--metrics", &address, "--set=micro_batches=2"]);
    running.wait_for("run/run.log", "evaluated");
    let once = ["top", &address, "--once", "--interval", "0.2"];
    // There are dashes if no step ends between the two scrapes, or while there are too few steps for a prediction.
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
    };
    let is_number = |cell: &String| cell.parse::<f64>().is_ok();
    let text = running.wait("rates and predictions", |_| {
        let text = done(&interlock(folder.path(), &once));
        let first = |start: &str| text.lines().find(|line| line.starts_with(start));
        // The cells of losses, accuracies, norm, and busy and simulated shares.
        let complete = |start| first(start).map(cells).is_some_and(|stage| stage[3..10].iter().all(is_number));
        let transferred = first("0 to 1 ").is_some_and(|boundary| !boundary.contains(" - "));
        (!text.contains("- a step") && complete("0  ") && complete("1  ") && transferred).then_some(text)
    });
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with(&format!("{address}  fashion-mnist  run run  resnet  pairwise  ")), "{text}");
    assert!(["training", "evaluating"].iter().any(|state| lines[0].ends_with(state)), "{text}");
    assert!(lines[1].contains("2 stages, 2 micro-batches") && !lines[1].contains("- examples/s"), "{text}");
    let row = |start: &str| lines.iter().filter(|line| line.starts_with(start)).copied().collect::<Vec<_>>();
    // Each stage has a row in the tables of stages and of phases; there is one boundary.
    for stage in ["0  ", "1  "] {
        let rows = row(stage);
        let cells = cells(rows[0]);
        assert!(cells[1].starts_with("cpu:threads=") && cells[2].starts_with("1 ("), "{text}");
        assert!(cells[3..10].iter().all(is_number), "{text}");
        assert!(cells[10].contains('/') && cells[12].ends_with('B') && cells[13].ends_with('s'), "{text}");
        assert!(rows[1].contains('%'), "{text}");
    }
    let boundary = row("0 to 1 ");
    assert!(boundary.len() == 1 && boundary[0].contains("B/s") && !boundary[0].contains(" - "), "{text}");
    // Without `--once`, the output must be a terminal.
    refused(folder.path(), &["top", &address], &["not a terminal", "--once"]);
}

#[test]
fn unusable_addresses_are_refused_with_a_remedy() {
    let folder = TempDir::new().unwrap();
    let address = free_address();
    let remedy = format!("interlock train --metrics {address}");
    refused(folder.path(), &["top", &address, "--once"], &[&address, "refused", &remedy]);
    refused(folder.path(), &["top", "9464"], &["not a host and port", "127.0.0.1:9464"]);
    refused(folder.path(), &["top", "http://a/metrics"], &["not a host and port"]);
    // The default address, for a terminal.
    refused(folder.path(), &["top"], &["not a terminal", "--once"]);
    refused(folder.path(), &["top", &address, "--interval", "0"], &["seconds from 0.1"]);
}

#[test]
fn servers_of_something_else_are_refused() {
    let folder = TempDir::new().unwrap();
    for (body, words) in [("up 1\n", "not serve the metrics of interlock"), ("<html>", "not a line of metrics")] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            std::io::Read::read(&mut stream, &mut request).unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        });
        let output = interlock(folder.path(), &["top", &address, "--once"]);
        assert_eq!(output.status.code(), Some(2), "{}", out(&output));
        assert!(err(&output).contains(words), "{}", err(&output));
    }
}
