//! Tests of output that cannot be written, or that nobody reads, for every subcommand.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use common::{SMALL, done, err, interlock, json};
use tempfile::TempDir;

const TEXT: &str = r#"
steps = 3
batch_size = 4
devices = ["cpu:threads=1"]
data = { kind = "shakespeare", context = 8, limit = 40 }
model = { kind = "transformer", width = 16, heads = 2, layers = 2 }
partition = { stages = 2 }
"#;

/// Makes a folder with finished runs on images and on text, and starts a server of metrics. Returns the folder and the server's address.
fn prepared() -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let config = interlock(folder.path(), &[&["config"], &SMALL[..]].concat());
    fs::write(folder.path().join("config.toml"), done(&config).replace("epochs = 1", "steps = 3")).unwrap();
    done(&interlock(folder.path(), &["train", "--quiet", "-c", "config.toml", "-o", "run"]));
    let mut image = vec![0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28];
    image.extend([0; 28 * 28]);
    fs::write(folder.path().join("image-ubyte"), image).unwrap();
    fs::write(folder.path().join("text.toml"), TEXT).unwrap();
    done(&interlock(folder.path(), &["train", "--quiet", "-c", "text.toml", "-o", "text"]));
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let body = "interlock_build_info{pipeline=\"a\"} 1\n";
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    (folder, address)
}

/// Every subcommand with arguments with which it prints something to stdout and ends well. Names that end with `-N` get the number of the call.
fn commands(address: &str) -> Vec<Vec<String>> {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/golden/mlp-k5-w1");
    let lines = format!(
        "--help
--version
train --help
train --plain -c config.toml -o trained-N
plan -c config.toml --json
plan -c config.toml
eval run
eval run --json
predict run image-ubyte
predict text --text First --json
top {address} --once --interval 0.1
generate text --prompt First --tokens 5
export text --format torch -o exported-N
compare -c config.toml --seeds 1 -s steps=2 -o compared-N
compare -c config.toml --seeds 1 -s steps=2 -o also-compared-N --json
lr-find -c config.toml --steps 20
report run --out report-N.html
replay {reference}
bench units -c config.toml
bench step --workload gpt --batch 1 --steps 1
bench runtime --steps 1
bench mailbox --messages 10
devices
config
config -c config.toml
config --schema
config optimizer.lr
init init-N
completions bash
man
man --out pages-N"
    );
    let built = |line: &&str| cfg!(feature = "top") || !line.starts_with("top ");
    lines.lines().filter(built).map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

fn run(folder: &Path, arguments: &[String], call: usize, stdout: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    command.args(arguments.iter().map(|argument| argument.replace("-N", &format!("-{call}"))));
    command.current_dir(folder).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn every_command_fails_if_its_output_cannot_be_written_and_ends_quietly_if_nobody_reads_it() {
    let (folder, address) = prepared();
    let mut wrong = Vec::new();
    for (call, arguments) in commands(&address).iter().enumerate() {
        let full =
            run(folder.path(), arguments, 2 * call, File::options().write(true).open("/dev/full").unwrap().into());
        let message = "error: the output cannot be written to stdout: No space left on device";
        if full.status.code() != Some(1) || err(&full).matches(message).count() != 1 {
            wrong.push(format!("{arguments:?} > /dev/full: {:?}: {}", full.status.code(), err(&full)));
        }
        // A pipe whose reader has gone.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let closed = run(folder.path(), arguments, 2 * call + 1, writer.into());
        if closed.status.code() != Some(0) || err(&closed).contains("error") || err(&closed).contains("panicked") {
            wrong.push(format!("{arguments:?} | head: {:?}: {}", closed.status.code(), err(&closed)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The run itself is whole.
    let trained = folder.path().join("trained-6");
    assert_eq!(json(&trained.join("status.json"))["state"], "finished");
    done(&interlock(folder.path(), &["eval", "trained-6"]));
}

#[test]
fn an_error_is_no_panic_if_stderr_cannot_be_written() {
    let folder = TempDir::new().unwrap();
    for (arguments, code) in [(vec!["eval", "nowhere"], 2), (vec!["train", "--nonsense"], 2)] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
        let status = command.args(&arguments).current_dir(folder.path()).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

/// Trains with `--report` and `--trace` at these places.
fn train_to(folder: &Path, name: &str, report: &str, trace: &str) -> Output {
    let arguments = ["train", "--plain", "--out", name, "--report", report, "--trace", trace];
    interlock(folder, &[&arguments[..], &SMALL].concat())
}

#[test]
fn results_are_written_through_links_and_to_devices_and_fifos() {
    use std::os::unix::fs::{FileTypeExt, symlink};

    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("inner")).unwrap();
    fs::write(path("inner/report.json"), "old").unwrap();
    symlink("inner/report.json", path("report.json")).unwrap();
    symlink("inner/trace.json", path("trace.json")).unwrap();
    done(&train_to(folder.path(), "run", "report.json", "trace.json"));
    assert!(path("report.json").is_symlink() && path("trace.json").is_symlink());
    assert_eq!(json(&path("inner/report.json"))["steps"], 3);
    assert!(json(&path("inner/trace.json"))["traceEvents"].is_array());

    // A FIFO and a device.
    assert!(Command::new("mkfifo").arg(path("fifo.json")).status().unwrap().success());
    let reader = std::thread::spawn({
        let fifo = path("fifo.json");
        move || fs::read_to_string(fifo).unwrap()
    });
    symlink("/dev/null", path("null.svg")).unwrap();
    done(&train_to(folder.path(), "second", "fifo.json", "null.svg"));
    assert!(reader.join().unwrap().contains("\"steps\": 3"));
    assert!(fs::symlink_metadata(path("fifo.json")).unwrap().file_type().is_fifo() && path("null.svg").is_symlink());
    done(&interlock(folder.path(), &["report", "run", "--out", "/dev/null"]));
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());

    // stdout, after what has been printed.
    let output = done(&train_to(folder.path(), "third", "/dev/stdout", "null.svg"));
    let (lines, report) = output.split_at(output.find("\n{\n").unwrap());
    assert!(lines.contains("the run is in third") && report.contains("\"steps\": 3"), "{output}");
}

#[test]
fn a_full_device_for_results_is_an_error_and_the_run_is_kept() {
    let folder = TempDir::new().unwrap();
    let output = train_to(folder.path(), "run", "/dev/full", "trace.json");
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("/dev/full") && err(&output).contains("No space left"), "{}", err(&output));
    assert_eq!(json(&folder.path().join("run/status.json"))["state"], "finished");
    let report = interlock(folder.path(), &["report", "run", "--out", "/dev/full"]);
    assert_eq!(report.status.code(), Some(1), "{}", err(&report));
}

#[test]
fn files_have_the_mode_that_the_umask_gives() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};

    let folder = TempDir::new().unwrap();
    for (mask, mode) in [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)] {
        let name = format!("run-{mask:o}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
        command.args(["train", "--quiet", "--tensorboard", "--out", &name]).args(SMALL).current_dir(folder.path());
        // SAFETY: `umask` may be called between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::umask(mask);
                Ok(())
            })
        };
        done(&command.output().unwrap());
        let mut folders = vec![folder.path().join(&name)];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    let found = entry.metadata().unwrap().permissions().mode() & 0o777;
                    assert_eq!(found, mode, "{}: {found:o}", entry.path().display());
                    files += 1;
                }
            }
        }
        assert!(files > 8, "{files}");
    }
}
