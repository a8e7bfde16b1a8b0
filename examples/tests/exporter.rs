//! Tests of the server of metrics with clients that mean no good, while a run trains.
//!
//! With INTERLOCK_SOAK_CLIENTS in the environment, more than a thousand clients and 37,000 bad requests.

#![cfg(target_os = "linux")] // looks at the process in /proc
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;
#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/running.rs"]
mod running;

use std::{
    fs,
    os::unix::process::CommandExt,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{SMALL, done, interlock, json};
use hostile::{SCRAPE, asks_and_never_reads, bad_request, get, idle, scrape, slow_bytes};
use running::{Running, endless};
use tempfile::TempDir;

/// Sets the most open files of a process, or of this one if `pid` is 0, as far as it may have so many.
fn limit_files(pid: u32, most: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls read and write `limit`; either pointer may be null.
    let results = unsafe {
        let pid = pid.cast_signed();
        let read = libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit);
        limit.rlim_cur = most.min(limit.rlim_max);
        [read, libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut())]
    };
    assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
}

/// Starts a command that may have this many open files.
fn start(folder: &TempDir, files: u64, arguments: &[&str]) -> Running {
    Running::start_changed(folder.path(), arguments, |command| {
        running::set_hangup(command, libc::SIG_DFL);
        let limit = move || {
            limit_files(0, files);
            Ok(())
        };
        // SAFETY: `prlimit` may be called between fork and exec.
        unsafe { command.pre_exec(limit) };
    })
}

/// Starts a run that trains until it is stopped, and returns its address too.
fn training(folder: &TempDir, files: u64) -> (Running, String) {
    let small: Vec<&str> = SMALL.iter().copied().filter(|set| !set.contains("epochs")).collect();
    let train = ["train", "--plain", "--out", "run", "--metrics", "127.0.0.1:0", "--set=steps=1000000"];
    let mut run = start(folder, files, &[&train[..], &small].concat());
    let address = address_of(&mut run);
    run.wait_for("out", "step ");
    (run, address)
}

fn address_of(run: &mut Running) -> String {
    run.wait_for("err", "/metrics\n");
    let text = run.text("err");
    let line = text.lines().find_map(|line| line.strip_prefix("serves metrics at http://")).unwrap();
    line.strip_suffix("/metrics").unwrap().to_owned()
}

fn sockets(run: &Running) -> usize {
    let entries = fs::read_dir(format!("/proc/{}/fd", run.child.id())).unwrap();
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// Stops the run, and checks that it is saved.
fn stop(mut run: Running, folder: &TempDir) {
    run.send("-TERM");
    assert_eq!(run.end().code(), Some(130), "{}", run.text("err"));
    assert_eq!(json(&folder.path().join("run/status.json"))["state"], "stopped");
    done(&interlock(folder.path(), &["eval", "run"]));
    // The address, and one line for each of two troubles.
    let log = fs::read_to_string(folder.path().join("run/run.log")).unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("metrics")).collect();
    assert!(lines.len() <= 3, "{}", lines.join("\n"));
}

/// Idle connections and scrapers at once, then bad requests, while a run trains.
#[allow(clippy::print_stdout)] // what was measured, with `--nocapture`
fn bear(idle_connections: usize, scrapers: usize, bad_requests: usize) {
    let folder = TempDir::new().unwrap();
    limit_files(0, 8192);
    let (mut run, address) = training(&folder, 256);
    let held = idle(&address, idle_connections);
    let silent_readers: Vec<_> = (0..10).filter_map(|_| asks_and_never_reads(&address).ok()).collect();
    let times: Vec<Duration> = thread::scope(|scope| {
        let threads: Vec<_> = (0..scrapers).map(|_| scope.spawn(|| scrape(&address))).collect();
        // With the one that listens, and two for signals.
        assert!(sockets(&run) <= 64 + 1 + 2, "{} sockets", sockets(&run));
        let scraped = threads.into_iter().map(|thread| thread.join().unwrap());
        scraped
            .map(|(text, time)| (text.contains("interlock_run_info{"), time))
            .map(|(whole, time)| {
                assert!(whole);
                time
            })
            .collect()
    });
    let slowest = times.iter().max().unwrap();
    println!("{idle_connections} idle connections, {scrapers} scrapers: the slowest took {slowest:?}");
    assert!(*slowest < SCRAPE, "{slowest:?}");
    drop((held, silent_readers));

    let begun = Instant::now();
    thread::scope(|scope| {
        for first in 0..8 {
            let address = &address;
            scope.spawn(move || (first..bad_requests).step_by(8).for_each(|n| bad_request(address, n)));
        }
        for _ in 0..4 {
            scope.spawn(|| assert!(slow_bytes(&address) < SCRAPE));
        }
    });
    println!("{bad_requests} bad requests took {:?}", begun.elapsed());
    let before: f64 = steps(&scrape(&address).0);
    thread::sleep(Duration::from_secs(1));
    assert!(steps(&scrape(&address).0) > before, "it trains");
    // The one that listens, and two for signals.
    run.wait("end of all connections", |run| (sockets(run) <= 3).then_some(()));
    stop(run, &folder);
}

fn steps(text: &str) -> f64 {
    text.lines().find_map(|line| line.strip_prefix("interlock_steps_total{")?.split_once("} ")?.1.parse().ok()).unwrap()
}

#[test]
fn idle_connections_and_bad_requests_neither_stop_scrapes_nor_the_run() {
    match std::env::var_os("INTERLOCK_SOAK_CLIENTS") {
        None => bear(300, 20, 450),
        Some(_) => bear(1133, 50, 37_000),
    }
}

#[test]
fn a_run_with_few_descriptors_can_still_save() {
    let folder = TempDir::new().unwrap();
    let (run, address) = training(&folder, 64);
    let held = idle(&address, 200);
    assert!(held.len() > 64);
    thread::sleep(Duration::from_millis(500));
    assert!(sockets(&run) <= 16 + 1 + 2, "{} sockets", sockets(&run));
    stop(run, &folder);
}

#[test]
fn without_free_descriptors_the_server_waits_and_then_answers_again() {
    let folder = TempDir::new().unwrap();
    let train = ["train", "--plain", "--out", "run", "--metrics", "127.0.0.1:0", "--metrics-linger", "600"];
    let mut run = start(&folder, 256, &[&train[..], &SMALL].concat());
    let address = address_of(&mut run);
    run.wait_for("out", "the run is in");
    scrape(&address);
    let pid = run.child.id();
    // Fewer than are open already: `accept` fails.
    limit_files(pid, 3);
    let waiting = thread::spawn({
        let address = address.clone();
        move || scrape(&address)
    });
    let before = processor_time(pid);
    thread::sleep(Duration::from_secs(3));
    let used = processor_time(pid) - before;
    limit_files(pid, 256);
    waiting.join().unwrap();
    assert!(used < 50, "{used} hundredths of a second of CPU time in 3 seconds");
    let log = fs::read_to_string(folder.path().join("run/run.log")).unwrap();
    assert_eq!(log.matches("cannot accept connections").count(), 1, "{log}");
}

/// Returns the CPU time of a process in clock ticks, hundredths of a second.
fn processor_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn each_path_and_method_has_its_answer() {
    let folder = TempDir::new().unwrap();
    let mut run = endless(folder.path(), &["--plain", "--metrics", "127.0.0.1:0"]);
    let address = address_of(&mut run);
    for path in ["/metrics", "/", "/metrics?x=1"] {
        let answer = get(&address, path).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("interlock_build_info{"), "{answer}");
        assert!(answer.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
    assert!(get(&address, "/health").unwrap().ends_with("\r\n\r\nOK"));
    assert!(get(&address, "/other").unwrap().starts_with("HTTP/1.1 404 "));
    let head = hostile::ask(&address, b"HEAD /metrics HTTP/1.1\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    let post = hostile::ask(&address, b"POST /metrics HTTP/1.1\r\ncontent-length: 0\r\n\r\n").unwrap();
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD"), "{post}");
    let two = hostile::ask(&address, &b"GET /health HTTP/1.1\r\n\r\n".repeat(2)).unwrap();
    assert_eq!(two.matches("HTTP/1.1").count(), 1, "{two}");
}

#[test]
fn an_address_for_other_machines_is_warned_about() {
    let folder = TempDir::new().unwrap();
    let mut run = endless(folder.path(), &["--plain", "--metrics", "0.0.0.0:0"]);
    let address = address_of(&mut run);
    assert!(!address.ends_with(":0"), "{address}");
    run.wait_for("err", "without a password");
    run.wait_for("run/run.log", "without a password");
    run.wait_for("run/run.log", &address);
    let mut local = Command::new(env!("CARGO_BIN_EXE_interlock"));
    local
        .args(["train", "--plain", "--out", "local", "--metrics", "127.0.0.1:0"])
        .args(SMALL)
        .current_dir(folder.path());
    let output = local.output().unwrap();
    assert!(!common::err(&output).contains("password"), "{}", common::err(&output));
}
