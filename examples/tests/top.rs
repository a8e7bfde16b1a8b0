//! Tests of `interlock top` with a run that serves its metrics.

#![cfg(all(unix, feature = "top"))]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;
#[path = "common/running.rs"]
mod running;

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

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

/// Serves at the returned address: calls `answer` for each connection, after the request.
fn server(answer: impl Fn(&mut TcpStream) -> io::Result<()> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            // `top` may have gone.
            let _ = answer(&mut stream);
        }
    });
    address
}

/// Serves this text.
fn serving(text: String) -> String {
    server(move |stream| write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()))
}

/// Asserts that `top --once` refuses the server with one of these messages, in bounded time.
fn refuses(address: &str, messages: &[&str]) {
    let folder = TempDir::new().unwrap();
    let begun = Instant::now();
    let output = interlock(folder.path(), &["top", address, "--once", "--interval", "0.1"]);
    let (text, took) = (err(&output), begun.elapsed());
    assert_eq!(output.status.code(), Some(2), "{}{text}", out(&output));
    assert!(messages.iter().any(|message| text.contains(message)), "{messages:?}: {text}");
    assert!(text.len() < 2000 && !text.contains('\x1b'), "{text}");
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn servers_of_something_else_are_refused() {
    refuses(&serving("up 1\n".to_owned()), &["not serve the metrics of interlock"]);
    refuses(&serving("<html>".to_owned()), &["not a line of metrics"]);
    refuses(&serving("\x1b[2J\x1b]0;title\x07".repeat(100_000)), &["not a line of metrics"]);
    refuses(
        &server(|stream| stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")),
        &["status: 404"],
    );
    refuses(&server(|stream| stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nup 1\n\xff\xfe 1\n")), &["UTF-8"]);
    refuses(&server(|stream| stream.write_all(b"\x1b[2J\n\n")), &[""]);
}

#[test]
fn redirects_are_not_followed() {
    let (sender, asked) = mpsc::channel();
    let other = server(move |_| {
        sender.send(()).unwrap();
        Ok(())
    });
    let redirect = format!("HTTP/1.1 302 Found\r\nlocation: http://{other}/metrics\r\ncontent-length: 0\r\n\r\n");
    refuses(
        &server(move |stream| stream.write_all(redirect.as_bytes())),
        &["302", "a redirect, which is not followed"],
    );
    assert!(asked.try_recv().is_err(), "the other server was asked");
}

#[test]
fn servers_that_do_not_end_are_given_up() {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
    let too_late = "no whole answer came within 5 seconds";
    let endless = |line: &'static [u8], pause: u64| {
        server(move |stream| {
            stream.write_all(HEAD)?;
            loop {
                stream.write_all(line)?;
                thread::sleep(Duration::from_millis(pause));
            }
        })
    };
    // A busy machine may read it so slowly that the time is over first.
    let fast = server(|stream| {
        stream.write_all(HEAD)?;
        let lines = b"interlock_step 1\n".repeat(10_000);
        loop {
            stream.write_all(&lines)?;
        }
    });
    thread::scope(|scope| {
        scope.spawn(|| refuses(&fast, &["longer than 32 MiB", too_late]));
        scope.spawn(|| refuses(&endless(b"a 1\n", 50), &[too_late]));
        scope.spawn(|| {
            refuses(
                &server(|_| {
                    loop {
                        thread::sleep(Duration::from_secs(60))
                    }
                }),
                &[too_late],
            );
        });
        scope.spawn(|| {
            let headers = server(|stream| {
                stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
                loop {
                    stream.write_all(b"a: b\r\n")?;
                }
            });
            refuses(&headers, &["header", too_late]);
        });
    });
}

/// The metrics of a run with this many boundaries.
fn boundaries(count: usize) -> String {
    let head = "interlock_build_info{pipeline=\"a\"} 1\n".to_owned();
    (0..count).fold(head, |text, k| {
        text + &format!("interlock_boundary_messages_total{{src=\"{k}\",dst=\"{}\",kind=\"activation\"}} 1\n", k + 1)
    })
}

#[test]
#[allow(clippy::zombie_processes)] // `wait4` waits for it
fn a_hundred_thousand_boundaries_take_seconds_and_little_memory() {
    let address = serving(boundaries(100_000));
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    command.args(["top", &address, "--once", "--interval", "0.1"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    // SAFETY: `wait4` writes the status and the use of resources of a child that nobody else waits for; zeros are valid for both.
    let (status, used) = unsafe {
        let (mut status, mut used) = (0, std::mem::zeroed::<libc::rusage>());
        libc::wait4(child.id().cast_signed(), &mut status, 0, &mut used);
        (status, used)
    };
    // CPU time, since other programs may take the machine.
    let (seconds, mebibytes) = (used.ru_utime.tv_sec + used.ru_stime.tv_sec, used.ru_maxrss >> 10);
    println!("100,000 boundaries took {seconds} s of CPU time and {mebibytes} MiB");
    assert_eq!(status, 0);
    assert!(text.lines().any(|line| line.starts_with("99999 to 100000 ")));
    assert!(seconds < 15 && mebibytes < 512, "{seconds} s, {mebibytes} MiB");
    refuses(&serving("interlock_step 1\n".repeat(200_001)), &["more than 200000 series"]);
}
