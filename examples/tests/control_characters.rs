//! Tests that names from files, and bytes in errors, cannot give the terminal orders.

#![cfg(unix)] // names of files may have any bytes
#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use common::{SMALL, err, interlock, out};
use tempfile::TempDir;

/// A name that would clear the screen, set the title, colour what follows, and turn its direction.
const NAME: &str = "a\x1b[2J\x1b]0;b\x07\x1b[31m\u{9b}1m\r\u{7f}\u{202e}";
/// What is shown instead.
const SHOWN: &str = "a\\u001b[2J\\u001b]0;b\\u0007\\u001b[31m\\u009b1m\\u000d\\u007f\\u202e";

/// Asserts that the output has nothing but text, and returns it.
fn harmless(arguments: &[&str], output: &Output) -> String {
    let text = out(output) + &err(output);
    let acts = |c: &char| c.is_control() && !"\n\t".contains(*c) || ('\u{202a}'..='\u{202e}').contains(c);
    assert_eq!(text.chars().find(acts), None, "{arguments:?}: {text:?}");
    text
}

/// Asserts that the name is shown, and that nothing of it acts.
fn shows(folder: &Path, arguments: &[&str], code: i32) {
    let output = interlock(folder, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", out(&output), err(&output));
    let text = harmless(arguments, &output);
    assert!(text.contains(SHOWN), "{arguments:?}: {text}");
}

/// Trains a small run in the folder `name`.
fn train(folder: &Path, name: &str, more: &[&str]) -> Output {
    interlock(folder, &[&["train", "--plain", "-o", name], &SMALL[..], more].concat())
}

#[test]
fn names_are_shown_with_escapes_by_every_command() {
    let folder = TempDir::new().unwrap();
    let run = format!("run{NAME}");
    let output = train(folder.path(), &run, &[&format!("--set=name={}", toml::Value::from(NAME))]);
    let text = harmless(&["train"], &output);
    // The name and the path.
    assert!(text.matches(SHOWN).count() >= 2, "{text}");
    let log = fs::read_to_string(folder.path().join(&run).join("run.log")).unwrap();
    assert!(!log.contains(['\x1b', '\r', '\u{9b}']), "{log:?}");

    // Classes and files: an image of the data set's size, in the idx format.
    let data = folder.path().join(&run).join("data.json");
    let renamed = fs::read_to_string(&data).unwrap().replace("Trouser", "other");
    let mut description: serde_json::Value = serde_json::from_str(&renamed).unwrap();
    let names = description.pointer_mut("/kind/images/class_names").unwrap().as_array_mut().unwrap();
    names.iter_mut().enumerate().for_each(|(n, name)| *name = format!("{n}{NAME}").into());
    fs::write(&data, description.to_string()).unwrap();
    let mut image = vec![0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28];
    image.extend([0; 28 * 28]);
    let file = format!("{NAME}-ubyte");
    fs::write(folder.path().join(&file), image).unwrap();
    let predicted = interlock(folder.path(), &["predict", &run, &file, "--top", "3"]);
    assert_eq!(harmless(&["predict"], &predicted).matches(SHOWN).count(), 4, "{}{}", out(&predicted), err(&predicted));
    harmless(&["--json"], &interlock(folder.path(), &["predict", &run, &file, "--json"]));

    shows(folder.path(), &["report", &run], 0);
    shows(folder.path(), &["init", &format!("init{NAME}")], 0);
    shows(folder.path(), &["man", "--out", &format!("man{NAME}")], 0);
    shows(folder.path(), &["eval", &format!("none{NAME}")], 2);
    shows(folder.path(), &["train", "-o", &run], 2);
    shows(folder.path(), &["train", "-c", &format!("none{NAME}")], 2);
    shows(folder.path(), &["train", "-s", &format!("{NAME}=1")], 2);
    // With escapes of their own, or without the name.
    harmless(&["option"], &interlock(folder.path(), &["train", &format!("--{NAME}")]));
    harmless(&["device"], &interlock(folder.path(), &["train", "--devices", NAME]));
}

#[test]
fn bytes_of_files_are_shown_with_escapes_in_errors() {
    let folder = TempDir::new().unwrap();
    common::done(&train(folder.path(), "run", &[]));
    let path = |name: &str| folder.path().join("run").join(name);
    let spoil = |name: &str, text: &str, arguments: &[&str]| {
        let before = fs::read(path(name)).unwrap();
        fs::write(path(name), text).unwrap();
        let output = interlock(folder.path(), arguments);
        harmless(arguments, &output);
        fs::write(path(name), before).unwrap();
        output
    };
    let spoil = |name: &str, text: &str, arguments: &[&str], code: i32| {
        let output = spoil(name, text, arguments);
        assert_eq!(output.status.code(), Some(code), "{name}: {}{}", out(&output), err(&output));
    };
    spoil("config.toml", &format!("{NAME} = 1"), &["eval", "run"], 2);
    spoil("config.toml", "name = \"a\x1b[2J\"", &["eval", "run"], 2);
    spoil(
        "status.json",
        &format!("{{\"state\":\"{}\"}}", NAME.replace(|c: char| c < ' ', "\u{9b}")),
        &["eval", "run"],
        2,
    );
    spoil("events.jsonl", "{\"time\":1,\"event\":\"\u{9b}2J\"}\n{}\n", &["report", "run"], 2);
    let status = format!("{{\"state\":\"failed\",\"cause\":{}}}", serde_json::to_string(NAME).unwrap());
    // Its weights are used all the same.
    spoil("status.json", &status, &["eval", "run"], 0);
    // Names of tensors.
    let header = format!(
        "{{{}:{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}}}",
        serde_json::to_string(NAME).unwrap()
    );
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header.as_bytes());
    weights.extend([0; 4]);
    fs::write(folder.path().join("other.safetensors"), weights).unwrap();
    for more in
        [&["-s", "init_from=other.safetensors"][..], &["-s", "init_from=other.safetensors", "-s", "init_partial=true"]]
    {
        // An error, then a warning.
        let text = harmless(more, &train(folder.path(), "other", more));
        assert!(text.contains(SHOWN), "{text}");
    }
}

#[test]
fn generated_text_is_exact_where_no_terminal_shows_it() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("text.txt"), "\x1b[1mab\u{9b}\n".repeat(200)).unwrap();
    let config = "steps = 2\nbatch_size = 4\ndevices = [\"cpu:threads=1\"]\ndata = { kind = \"text\", path = \"text.txt\", context = 4 }\n\
        model = { kind = \"transformer\", width = 8, heads = 1, layers = 1 }\n";
    fs::write(folder.path().join("config.toml"), config).unwrap();
    let train = ["train", "--plain", "-c", "config.toml", "-o", "run"];
    harmless(&train, &interlock(folder.path(), &train));
    let generated = interlock(folder.path(), &["generate", "run", "--prompt", "\x1b[1ma", "--tokens", "3"]);
    assert!(out(&generated).starts_with("\x1b[1ma"), "{}{}", out(&generated), err(&generated));
    let predict = ["predict", "run", "--text", "\x1b[1ma"];
    harmless(&predict, &interlock(folder.path(), &predict));
    let json = ["predict", "run", "--text", "\x1b[1ma", "--json"];
    harmless(&json, &interlock(folder.path(), &json));
}

/// The source files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn nothing_is_printed_elsewhere() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for path in sources(&source) {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| line.contains("io::stdout()") || line.contains("io::stderr()"));
        seen += lines.clone().count();
        // Questions about the terminal are no output.
        let writes: Vec<&str> =
            lines.filter(|line| !line.contains("is_terminal") && !line.contains("colours(")).collect();
        let name = path.strip_prefix(&source).unwrap();
        assert!(
            name.starts_with("terminal") || name == Path::new("terminal.rs") || writes.is_empty(),
            "{name:?}: {writes:?}"
        );
    }
    assert!(seen > 5, "{seen}");
}
