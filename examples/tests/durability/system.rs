//! What the system does to a run: no room for files, few descriptors, signals.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    IMAGES, TEXT,
    common::{done, err, interlock, json, out, refused},
    finished, pseudo_random, results, seed, start, tries,
};

/// Starts the command under limits that a process inherits, and returns how it ended.
fn limited(folder: &Path, arguments: &[&str], limit: libc::__rlimit_resource_t, value: u64) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    command.args(arguments).current_dir(folder);
    let set = move || {
        let limits = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: both may be called between fork and exec. A write beyond the limit is an error then, not a signal.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(limit, &raw const limits);
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, set) };
    command.output().unwrap()
}

#[test]
fn without_room_for_files_a_run_trains_on_and_ends_with_the_cause_and_the_last_whole_checkpoint() {
    // Weights are larger than the limit, all other files are smaller.
    let config = IMAGES.replace("planes = [4, 8]", "planes = [32, 64]");
    let folder = finished(&config);
    let resume = ["train", "--plain", "--resume", "run", "--set=steps=16"];
    let ended = limited(folder.path(), &resume, libc::RLIMIT_FSIZE, 50_000);
    let message = err(&ended);
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert!(message.contains("could not be written") && message.contains("File too large"), "{message}");
    let checked = out(&interlock(folder.path(), &["check", "run"]));
    assert!(checked.contains("continues from: checkpoints/step-8"), "{checked}");
    // With room again it goes on, and ends as if nothing had been.
    done(&interlock(folder.path(), &resume));
    let whole = TempDir::new().unwrap();
    fs::write(whole.path().join("c.toml"), config).unwrap();
    done(&interlock(whole.path(), &["train", "--quiet", "--config", "c.toml", "--set=steps=8", "--out", "run"]));
    done(&interlock(whole.path(), &resume));
    assert!(results(&folder.path().join("run"), 16) == results(&whole.path().join("run"), 16));
}

#[test]
fn without_descriptors_or_a_place_to_write_a_run_ends_with_the_cause() {
    let folder = finished(TEXT);
    for descriptors in [4, 6, 8, 10, 12, 16] {
        let ended = limited(
            folder.path(),
            &["train", "--plain", "--config", "c.toml", "--out", "few"],
            libc::RLIMIT_NOFILE,
            descriptors,
        );
        let code = ended.status.code();
        assert!(matches!(code, Some(0..=2)), "{descriptors}: {code:?} {}", err(&ended));
        assert!(code == Some(0) || err(&ended).contains("Too many open files"), "{descriptors}: {}", err(&ended));
        let _ = fs::remove_dir_all(folder.path().join("few"));
    }
    refused(folder.path(), &["train", "--quiet", "--config", "c.toml", "--out", "/proc/run"], &["/proc/run"]);
    refused(folder.path(), &["train", "--quiet", "--config", "c.toml", "--out", "c.toml/run"], &["c.toml"]);
}

#[test]
fn on_a_full_disk_a_run_trains_on_and_ends_with_the_cause_and_the_last_whole_checkpoint() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), IMAGES.replace("planes = [4, 8]", "planes = [16, 32]")).unwrap();
    fs::create_dir(folder.path().join("disk")).unwrap();
    let script = r#"mount -t tmpfs -o size=$1k none disk || exit 99
        $0 train --plain --config c.toml --set=steps=24 --out disk/run; code=$?
        $0 check disk/run; exit $code"#;
    let (mut full, mut continued) = (0, 0);
    let mut state = seed(4);
    for round in 0..tries("INTERLOCK_SOAK_DISKS", 4) {
        let size = (40 << (round % 6)) + pseudo_random(&mut state) % 40;
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_interlock")]);
        let Ok(ended) = command.arg(size.to_string()).current_dir(folder.path()).output() else {
            println!("not tried: there is no unshare");
            return;
        };
        let (code, message, checked) = (ended.status.code(), err(&ended), out(&ended));
        if code == Some(99) || message.contains("unshare: ") {
            println!("not tried: {message}");
            return;
        }
        assert!(matches!(code, Some(0 | 1)), "{size} KiB: {code:?} {message}");
        assert!(!message.contains("panicked"), "{message}");
        if code == Some(1) {
            full += 1;
            assert!(message.contains("No space left on device"), "{size} KiB: {message}");
        }
        continued += usize::from(checked.contains("continues from: checkpoints/step-"));
        println!("{size} KiB: {code:?}, {}", checked.lines().last().unwrap_or_default());
    }
    assert!(full > 0 && continued > 0, "{full} of the disks were full, {continued} had a checkpoint");
}

#[test]
fn without_threads_a_run_ends_with_the_cause() {
    // SAFETY: it has no precondition.
    if unsafe { libc::geteuid() } != 0 {
        println!("not tried: only root may become a user without other processes");
        return;
    }
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), TEXT).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // A program that this user may read.
    let program = folder.path().join("interlock");
    let original = env!("CARGO_BIN_EXE_interlock");
    fs::hard_link(original, &program).or_else(|_| fs::copy(original, &program).map(drop)).unwrap();
    for threads in 1..=tries("INTERLOCK_SOAK_THREADS", 16) as u64 {
        let mut command = Command::new(&program);
        command.args(["train", "--plain", "--config", "c.toml", "--out", "run"]).current_dir(folder.path());
        let limit = libc::rlimit { rlim_cur: threads, rlim_max: threads };
        let set = move || {
            // SAFETY: all may be called between fork and exec.
            unsafe {
                libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit);
                libc::setgid(61_234);
                libc::setuid(61_234);
            }
            Ok(())
        };
        // SAFETY: as above.
        unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, set) };
        let ended = command.output().unwrap();
        let (code, message) = (ended.status.code(), err(&ended));
        assert!(matches!(code, Some(0..=2)), "{threads}: {code:?} {message}");
        assert!(code == Some(0) || message.contains("thread"), "{threads}: {message}");
        assert!(!message.contains("panicked at"), "{threads}: {message}");
        let _ = fs::remove_dir_all(folder.path().join("run"));
    }
}

/// Starts a run that ends when something blocks for a second, with these ends of its streams.
fn watched(folder: &Path, arguments: &[&str], [stdout, stderr]: [Stdio; 2]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    let watched = ["train", "--config", "c.toml", "--set=failures.stall_timeout=1", "--out", "run"];
    command.args(watched).args(arguments).current_dir(folder).stdout(stdout).stderr(stderr).spawn().unwrap()
}

#[test]
fn time_in_which_the_program_is_stopped_is_not_taken_for_a_stall() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), TEXT).unwrap();
    let mut child = watched(folder.path(), &["--set=steps=1000000", "--quiet"], [Stdio::null(), Stdio::null()]);
    let signal = |signal| {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id().try_into().unwrap(), signal) };
    };
    let began = Instant::now();
    while !folder.path().join("run/checkpoints").exists() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..2 {
        signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_secs(2));
        signal(libc::SIGCONT);
        std::thread::sleep(Duration::from_millis(300));
    }
    signal(libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn output_that_nobody_reads_holds_no_run_up() {
    let folder = TempDir::new().unwrap();
    // More lines than a pipe holds.
    fs::write(folder.path().join("c.toml"), TEXT.replace("eval_every = 15", "eval_every = 1")).unwrap();
    let child = watched(
        folder.path(),
        &["--set=steps=1200", "--plain", "--set=checkpoint.keep=0"],
        [Stdio::piped(), Stdio::piped()],
    );
    let began = Instant::now();
    while !folder.path().join("run/report.json").exists() {
        assert!(began.elapsed() < Duration::from_secs(120), "the run does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Now somebody reads, and all is there.
    let ended = child.wait_with_output().unwrap();
    let text = out(&ended);
    assert_eq!(ended.status.code(), Some(0), "{}", err(&ended));
    assert!(text.len() > 65536 && text.contains("step 1200 ") && text.contains("the run is in run"), "{text}");
}

#[test]
fn a_signal_at_any_moment_ends_a_run_with_weights_or_before_it_has_any() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), TEXT).unwrap();
    let mut state = seed(3);
    let train = ["train", "--quiet", "--config", "c.toml", "--set=steps=1000000", "--out", "run"];
    for round in 0..tries("INTERLOCK_SOAK_SIGNALS", 6) {
        let mut child = start(folder.path(), &train);
        std::thread::sleep(Duration::from_millis(20 + pseudo_random(&mut state) % 1500));
        let signals = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
        for signal in [signals[round % 3], signals[(round / 3) % 3]] {
            // SAFETY: a signal to a child that has not been waited for.
            unsafe { libc::kill(child.id().try_into().unwrap(), signal) };
            std::thread::sleep(Duration::from_millis(pseudo_random(&mut state) % 40));
        }
        let status = child.wait().unwrap();
        // In its first moments the program has no handler yet.
        let is_early = !folder.path().join("run").exists();
        assert!(status.code() == Some(130) || (is_early && status.code().is_none()), "{status:?}");
        if !is_early {
            let status = json(&folder.path().join("run/status.json"));
            assert_eq!(status["state"], "stopped", "{status}");
            done(&interlock(folder.path(), &["eval", "run"]));
            done(&interlock(folder.path(), &["check", "run"]));
            fs::remove_dir_all(folder.path().join("run")).unwrap();
        }
    }
}
