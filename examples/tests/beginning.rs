//! Tests of what a newcomer uses first: `init`, explained keys, completions, the manual, defaults.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{fs, path::Path, process::Command};

use common::{done, err, interlock, refused};
use tempfile::TempDir;

#[test]
fn folder_to_begin_with_has_a_configuration_and_its_schema() {
    let folder = TempDir::new().unwrap();
    let shown = done(&interlock(folder.path(), &["init", "new"]));
    assert!(shown.contains("interlock train --config new/interlock.toml"), "{shown}");
    let text = fs::read_to_string(folder.path().join("new/interlock.toml")).unwrap();
    assert!(
        text.starts_with("#:schema ./interlock.schema.json\n# A ResNet") && text.contains("\n# group = 2"),
        "{text}"
    );
    let built_in = done(&interlock(folder.path(), &["config"]));
    assert_eq!(done(&interlock(folder.path(), &["config", "-c", "new/interlock.toml"])), built_in);
    let schema = fs::read_to_string(folder.path().join("new/interlock.schema.json")).unwrap();
    assert_eq!(schema, done(&interlock(folder.path(), &["config", "--schema"])));
    fs::write(folder.path().join("new/interlock.toml"), "mine").unwrap();
    refused(folder.path(), &["init", "new"], &["new/interlock.toml exists", "another folder"]);
    assert_eq!(fs::read_to_string(folder.path().join("new/interlock.toml")).unwrap(), "mine");
}

#[test]
fn crate_to_begin_with_depends_on_a_checkout() {
    let folder = TempDir::new().unwrap();
    done(&interlock(folder.path(), &["init", "my net", "--crate"]));
    let read = |name: &str| fs::read_to_string(folder.path().join("my net").join(name)).unwrap();
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    assert_eq!(manifest["package"]["name"].as_str(), Some("my-net"));
    for name in ["interlock", "interlock-cli", "interlock-models"] {
        let dependency = &manifest["dependencies"][name];
        let path = Path::new(dependency["path"].as_str().unwrap());
        let theirs: toml::Table = fs::read_to_string(path.join("Cargo.toml")).unwrap().parse().unwrap();
        let package = dependency.get("package").and_then(|package| package.as_str()).unwrap_or(name);
        assert_eq!(theirs["package"]["name"].as_str(), Some(package));
    }
    let lesson = Path::new(env!("CARGO_MANIFEST_DIR")).join("lessons/own_command.rs");
    assert_eq!(read("src/main.rs"), fs::read_to_string(lesson).unwrap());
    refused(folder.path(), &["init", "my net", "--crate"], &["Cargo.toml exists"]);
    refused(folder.path(), &["init", "other", "--crate", "--sources", "."], &["not in .", "--sources DIR"]);
    refused(folder.path(), &["init", "other", "--sources", "."], &["--crate"]);
}

#[test]
fn keys_are_explained() {
    let folder = TempDir::new().unwrap();
    let shown = done(&interlock(folder.path(), &["config", "optimizer.lr"]));
    assert!(shown.contains("\n  The learning rate before any schedule.\n  default: 0.1\n"), "{shown}");
    refused(folder.path(), &["config", "optimizer.rate"], &["optimizer has no such key", "keys are betas, eps"]);
    refused(folder.path(), &["config", "optimizer.lr", "--schema"], &["cannot be used with"]);
}

#[test]
fn shells_complete_the_command_and_the_manual_has_a_page_for_each() {
    let folder = TempDir::new().unwrap();
    for (shell, words) in [("bash", "_interlock()"), ("zsh", "#compdef interlock"), ("fish", "complete -c interlock")] {
        let script = done(&interlock(folder.path(), &["completions", shell]));
        assert!(script.contains(words), "{shell}");
        assert!(script.contains("micro-batches"), "{shell}");
    }
    assert!(done(&interlock(folder.path(), &["man"])).contains(".TH interlock 1"));
    done(&interlock(folder.path(), &["man", "--out", "pages"]));
    let pages = ["interlock", "interlock-train", "interlock-bench-runtime"].map(|name| format!("pages/{name}.1"));
    assert!(pages.iter().all(|page| folder.path().join(page).is_file()));
}

#[test]
fn misspelt_environment_variables_are_refused() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
    command.arg("devices").env("INTERLOCK_CPU_INSTRUCTION", "avx2").current_dir(folder.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = err(&output);
    assert!(message.contains("INTERLOCK_CPU_INSTRUCTION: there is no such variable"), "{message}");
    assert!(message.contains("the variables are INTERLOCK_CPU_INSTRUCTIONS"), "{message}");
}

#[test]
fn metrics_are_served_and_read_at_one_address_by_default() {
    let folder = TempDir::new().unwrap();
    let help = |command: &str| done(&interlock(folder.path(), &[command, "--help"]));
    assert!(help("train").contains("--metrics [<ADDRESS:PORT>]") && help("train").contains("127.0.0.1:9464"));
    assert!(help("top").contains("[default: 127.0.0.1:9464]"));
    refused(folder.path(), &["train", "--metrics", "--metrics-linger=x", "--out", "run"], &["--metrics-linger"]);
}
