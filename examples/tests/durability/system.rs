//! What the system does to a run: no room for files, few descriptors, signals.

use std::{fs, path::Path, process::Command, time::Duration};

use tempfile::TempDir;

use crate::{
    IMAGES, TEXT,
    common::{done, err, interlock, json, out, refused},
    finished, pseudo_random, results, start, tries,
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
fn a_signal_at_any_moment_ends_a_run_with_weights_or_before_it_has_any() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("c.toml"), TEXT).unwrap();
    let mut state = 3;
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
