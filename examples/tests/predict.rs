//! Tests of `interlock predict` on texts and idx files, and of `interlock eval --data`.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;
#[path = "common/finished.rs"]
mod finished;

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use common::{done, interlock, refused};
use finished::{folder_of_images, image, printed, train};
use serde_json::{Value, json};
use tempfile::TempDir;

const TEXT: &str = r#"
steps = 40
batch_size = 3
devices = ["cpu:threads=1"]
[data]
kind = "text"
path = "text.txt"
tokenizer = "chars"
context = 16
[model]
kind = "transformer"
width = 16
heads = 2
layers = 2
vocab = 40
[partition]
stages = 2
[strategy]
name = "pairwise"
[heads]
train = "all"
[optimizer]
lr = 0.02
"#;

const DIGITS: &str = r#"
steps = 20
batch_size = 2
devices = ["cpu:threads=1"]
[data]
kind = "idx"
path = "digits"
classes = 3
[model]
kind = "mlp"
hidden = [8]
[partition]
stages = 1
[optimizer]
lr = 0.1
"#;

fn run_on_text() -> TempDir {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("text.txt"), "to be or not to be, that is the question. ".repeat(30)).unwrap();
    fs::write(path.join("config.toml"), TEXT).unwrap();
    train(path);
    folder
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn assert_near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-5 * b.abs(), "{a} is not {b}");
}

#[test]
fn texts_have_perplexities_and_next_tokens() {
    let folder = run_on_text();
    let path = folder.path();
    fs::remove_file(path.join("text.txt")).unwrap();
    let text = "be that is not the question. ".repeat(5);
    // Windows of 16 tokens and the token after the last one: exactly those that an evaluation scores.
    fs::write(path.join("whole.txt"), &text[..6 * 16 + 1]).unwrap();
    for head in ["0", "1"] {
        let predicted = printed(path, &["predict", "run", "whole.txt", "--head", head, "--top", "40", "--json"]);
        let [text] = predicted.as_array().unwrap().as_slice() else { panic!("{predicted}") };
        let scored = printed(path, &["eval", "run", "--data", "whole.txt", "--head", head, "--json"]);
        assert_eq!((&text["file"], &text["tokens"]), (&"whole.txt".into(), &97.into()));
        assert_eq!(scored[0]["targets"], 96);
        assert_near(number(&text["loss"]), number(&scored[0]["loss"]));
        assert_near(number(&text["perplexity"]), number(&scored[0]["perplexity"]));
        // The model has 40 outputs; the text has 15 different characters.
        let next = text["next"].as_array().unwrap();
        let probabilities: Vec<f64> = next.iter().map(|token| number(&token["probability"])).collect();
        assert!(next.len() == 15 && probabilities.is_sorted_by(|a, b| a >= b), "{text}");
        assert!(probabilities.iter().sum::<f64>() <= 1.00001 && probabilities[0] > 1.0 / 15.0, "{text}");
    }

    // The loss of a text is the mean over its tokens, each after all tokens of its window before it.
    let of = |text: &str| printed(path, &["predict", "run", "--text", text, "--top", "40", "--json"])[0].clone();
    let text = "the quest";
    let mut loss = 0.0;
    for (at, character) in text.char_indices().skip(1) {
        let token = of(&text[..at]);
        let next = token["next"].as_array().unwrap().iter().find(|next| next["text"] == character.to_string());
        loss -= number(&next.unwrap()["probability"]).ln() / 8.0;
    }
    assert_near(number(&of(text)["loss"]), loss);
    assert_near(number(&of(text)["perplexity"]), loss.exp());
    assert_eq!(of("t")["perplexity"], Value::Null);

    // A batch has 3 windows; a text of many batches has the loss of its parts, since no window reaches into another.
    let long = "to be or not to be, that is the question. ".repeat(8);
    let tokens = long.len() - long.len() % 16;
    let windows = (0..tokens / 16).map(|window| &long[window * 16..][..16]);
    let sum: f64 = windows.map(|window| 15.0 * number(&of(window)["loss"])).sum();
    let whole = number(&of(&long[..tokens])["loss"]) * (tokens - 1) as f64;
    let between: f64 = (1..tokens / 16)
        .map(|window| {
            let after = of(&long[(window - 1) * 16..window * 16]);
            let token = &long[window * 16..][..1];
            let next = after["next"].as_array().unwrap().iter().find(|next| next["text"] == token).unwrap();
            -number(&next["probability"]).ln()
        })
        .sum();
    assert_near(whole, sum + between);
}

#[test]
fn texts_come_from_files_stdin_and_the_command_line() {
    let folder = run_on_text();
    let path = folder.path();
    fs::write(path.join("one.txt"), "to be or").unwrap();
    fs::write(path.join("two.txt"), "\u{feff}to be or").unwrap();
    let predicted = printed(path, &["predict", "run", "one.txt", "two.txt", "--json"]);
    let by_name = |value: &Value, name: &str| {
        let mut named = value.clone();
        named["file"] = name.into();
        named
    };
    assert_eq!(predicted.as_array().unwrap().len(), 2);
    assert_eq!(predicted[0]["next"].as_array().unwrap().len(), 5);
    assert_eq!(predicted[1], by_name(&predicted[0], "two.txt"));
    let text = printed(path, &["predict", "run", "--text", "to be or", "--json"]);
    assert_eq!(text, json!([by_name(&predicted[0], "--text")]));
    assert_eq!(
        printed(path, &["predict", "run", "one.txt", "two.txt", "--limit", "1", "--json"]),
        json!([predicted[0]])
    );

    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"))
        .args(["predict", "run", "-", "--json"])
        .current_dir(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    command.stdin.take().unwrap().write_all(b"to be or").unwrap();
    let printed: Value = serde_json::from_str(&done(&command.wait_with_output().unwrap())).unwrap();
    assert_eq!(printed, json!([by_name(&predicted[0], "-")]));

    let shown = done(&interlock(path, &["predict", "run", "one.txt", "--top", "1"]));
    let likeliest = format!("{}", predicted[0]["next"][0]["text"]);
    for word in ["one.txt", "perplexity", &likeliest, &format!("{:.3}", number(&predicted[0]["perplexity"]))] {
        assert!(shown.contains(word), "{word} is not in {shown}");
    }
    assert_eq!(shown.lines().count(), 5, "{shown}");
}

#[test]
fn texts_that_cannot_be_read_are_refused() {
    let folder = run_on_text();
    let path = folder.path();
    fs::write(path.join("empty.txt"), "").unwrap();
    fs::write(path.join("latin.txt"), b"to be\xe9").unwrap();
    fs::write(path.join("zebra.txt"), "to zebra").unwrap();
    fs::write(path.join("short.txt"), "to be").unwrap();
    for command in [&["predict", "run"][..], &["eval", "run", "--data"]] {
        let file = |name, words: &[&str]| refused(path, &[command, &[name]].concat(), &[&[name], words].concat());
        file("latin.txt", &["is not UTF-8 at byte 5", "convert it to UTF-8"]);
        file("zebra.txt", &["the character 'z' at byte 3 is not in the vocabulary", "use only the 15 characters"]);
        file("nothing.txt", &["no such file or folder", "expected a text file"]);
        file("run", &["is a folder, not a file", "expected a text file"]);
    }
    refused(path, &["predict", "run", "empty.txt"], &["empty.txt: is empty; give a text"]);
    refused(
        path,
        &["eval", "run", "--data", "short.txt"],
        &["5 tokens are too few for a window of 16", "a longer text"],
    );
    refused(path, &["predict", "run", "--text", ""], &["--text: is empty"]);
    refused(path, &["predict", "run", "--text", "Z"], &["--text: the character 'Z'"]);
    refused(path, &["generate", "run", "--prompt", "Z"], &["--prompt: the character 'Z'"]);
    refused(path, &["generate", "run", "--prompt", ""], &["--prompt: is empty"]);
    refused(path, &["predict", "run", "short.txt", "--text", "to"], &["cannot be used with"]);
    refused(path, &["predict", "run"], &["<INPUT>"]);
    refused(path, &["predict", "run", "short.txt", "--head", "2"], &["--head: stage 2 has no head", "0, 1"]);
    refused(path, &["predict", "run", "short.txt", "--top", "0"], &["--top: 0; use 1 or more"]);
    refused(path, &["predict", "run", "short.txt", "--limit", "0"], &["--limit: 0; use 1 or more"]);
    if Path::new("/dev/full").exists() {
        for command in
            [&["predict", "run", "--text", "to"][..], &["eval", "run"], &["generate", "run", "--prompt", "t"]]
        {
            let mut full = Command::new(env!("CARGO_BIN_EXE_interlock"));
            let full = full.args(command).current_dir(path).stdout(fs::File::create("/dev/full").unwrap());
            let output = full.output().unwrap();
            let message = common::err(&output);
            assert!(output.status.code() == Some(1) && message.contains("cannot be written to stdout"), "{message}");
        }
    }
}

/// Trains on `text.txt` with these settings.
fn train_with(path: &Path, sets: &[&str]) {
    fs::write(path.join("config.toml"), TEXT.replace("steps = 40", "steps = 5")).unwrap();
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["-s", set]).collect();
    let command = [&["train", "--quiet", "--config", "config.toml", "--out", "run"], &sets[..]].concat();
    done(&interlock(path, &command));
}

#[test]
fn generated_text_comes_in_whole_characters_while_it_is_generated() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("text.txt"), "né 한👍 ".repeat(60)).unwrap();
    train_with(path, &["data.tokenizer=bytes", "model.vocab=256"]);
    let generate = ["generate", "run", "--prompt", "é", "--top-k", "9", "--tokens"];
    let whole = interlock(path, &[&generate[..], &["60"]].concat());
    let text = String::from_utf8(whole.stdout.clone()).expect("whole characters");
    assert!(done(&whole).starts_with('é') && text.ends_with('\n'), "{text}");
    // A text without end: what comes can be read before, and the command ends when nobody reads.
    let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"))
        .args([&generate[..], &["1000000000"]].concat())
        .current_dir(path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 20];
    command.stdout.take().unwrap().read_exact(&mut start).unwrap();
    assert_eq!(start, whole.stdout[..20]);
    assert_eq!(command.wait().unwrap().code(), Some(0));
}

#[test]
fn a_run_uses_the_tokenizer_that_it_was_trained_with() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let file =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/src/data/tests/tokenizers").join(name);
    let text = "to be or not to be, that is the quéstion.\n".repeat(30);
    fs::write(path.join("text.txt"), format!("\u{feff}{text}")).unwrap();
    fs::write(path.join("tokenizer.json"), [b"\xef\xbb\xbf", &fs::read(file("llama2.json")).unwrap()[..]].concat())
        .unwrap();
    train_with(path, &["data.tokenizer=tokenizer.json", "model.vocab=700"]);
    let commands: [&[&str]; 3] = [
        &["eval", "run", "--json"],
        &["predict", "run", "--text", "not to bé", "--json"],
        &["generate", "run", "--prompt", " not to bé", "--tokens", "9"],
    ];
    let before = commands.map(|command| done(&interlock(path, command)));
    // The decoder of this tokenizer takes one space from the beginning, but not from a token behind others.
    assert!(before[2].starts_with(" not to bé"), "{}", before[2]);
    let predicted = printed(path, &["predict", "run", "--text", "not", "--top", "700", "--json"]);
    let next: Vec<&str> = predicted[0]["next"].as_array().unwrap().iter().filter_map(|n| n["text"].as_str()).collect();
    assert!(next.len() == 700 && next.contains(&" to") && next.contains(&"s"), "{next:?}");
    fs::write(path.join("tokenizer.json"), fs::read(file("gpt2.json")).unwrap()).unwrap();
    assert_eq!(commands.map(|command| done(&interlock(path, command))), before);
    fs::remove_file(path.join("tokenizer.json")).unwrap();
    assert_eq!(commands.map(|command| done(&interlock(path, command))), before);
    // Generation needs no text either; an evaluation needs that of validation.
    fs::remove_file(path.join("text.txt")).unwrap();
    assert_eq!(done(&interlock(path, commands[2])), before[2]);
    refused(path, commands[0], &["text.txt: no such file"]);
    refused(
        path,
        &["train", "--config", "config.toml", "-s", "data.tokenizer=tokenizer.json"],
        &["text.txt: no such file"],
    );
    fs::write(path.join("text.txt"), &text).unwrap();
    refused(
        path,
        &["train", "--config", "config.toml", "-s", "data.tokenizer=tokenizer.json"],
        &["tokenizer.json: no such file", "expected a Hugging Face tokenizer.json"],
    );
}

#[test]
fn line_ends_and_encodings_are_those_of_the_run() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let text = "to be,\nor not to be:\nthat is the question.\n".repeat(20);
    fs::write(path.join("text.txt"), text.replace('\n', "\r\n")).unwrap();
    train_with(path, &["data.line_ends=lf"]);
    let own = printed(path, &["eval", "run", "--json"]);
    fs::write(path.join("lf.txt"), &text).unwrap();
    fs::write(path.join("cr.txt"), text.replace('\n', "\r")).unwrap();
    let scored = ["text.txt", "lf.txt", "cr.txt"].map(|file| printed(path, &["eval", "run", "--data", file, "--json"]));
    assert!(scored[0] == scored[1] && scored[1] == scored[2], "{scored:?}");
    let predicted = ["be,\nor", "be,\r\nor"].map(|text| printed(path, &["predict", "run", "--text", text, "--json"]));
    assert_eq!(predicted[0], predicted[1]);
    let generated = ["be,\nor", "be,\r\nor"].map(|text| done(&interlock(path, &["generate", "run", "--prompt", text])));
    assert_eq!(generated[0], generated[1]);
    // The setting is part of the run.
    fs::write(path.join("text.txt"), &text).unwrap();
    assert_eq!(printed(path, &["eval", "run", "--json"]), own);

    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(path.join("text.txt"), utf16).unwrap();
    let words = ["text.txt: is UTF-16, little-endian", "iconv -f UTF-16LE -t UTF-8"];
    refused(path, &["train", "--config", "config.toml"], &words);
    refused(path, &["train", "--config", "config.toml", "-s", "data.tokenizer=bytes"], &words);
    refused(path, &["eval", "run"], &words);
    refused(path, &["eval", "run", "--data", "text.txt"], &words);
    refused(path, &["predict", "run", "text.txt"], &words);
    // A configuration may begin with a byte order mark.
    fs::write(path.join("text.txt"), &text).unwrap();
    fs::write(path.join("config.toml"), format!("\u{feff}{TEXT}")).unwrap();
    let command = ["train", "--quiet", "--config", "config.toml", "--out", "marked", "-s", "steps=1"];
    done(&interlock(path, &command));
}

/// Writes images of 2 × 2 pixels of one brightness, and their classes, in the idx format.
fn idx(folder: &Path, part: &str, images: &[(u8, u8)]) {
    let count = (images.len() as u32).to_be_bytes();
    let pixels: Vec<u8> = images.iter().flat_map(|&(brightness, _)| [brightness; 4]).collect();
    let labels: Vec<u8> = images.iter().map(|&(_, label)| label).collect();
    let images = [&[0, 0, 8, 3], &count[..], &[0, 0, 0, 2, 0, 0, 0, 2], &pixels].concat();
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(format!("{part}-images-idx3-ubyte")), images).unwrap();
    fs::write(folder.join(format!("{part}-labels-idx1-ubyte")), [&[0, 0, 8, 1], &count[..], &labels].concat()).unwrap();
}

#[test]
fn idx_files_have_a_prediction_for_each_image_and_are_scored_with_their_labels() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let images = [(0, 0), (120, 1), (250, 2), (10, 0), (130, 1), (240, 2)];
    for part in ["train", "t10k"] {
        idx(&path.join("digits"), part, &images);
    }
    fs::write(path.join("config.toml"), DIGITS.replace("steps = 20", "steps = 200")).unwrap();
    train(path);
    fs::remove_dir_all(path.join("digits")).unwrap();
    idx(&path.join("new"), "more", &[(245, 2), (5, 0), (125, 0)]);
    let file = "new/more-images-idx3-ubyte";
    let predicted = printed(path, &["predict", "run", file, "--json"]);
    let found: Vec<_> = predicted.as_array().unwrap().iter().map(|p| (&p["file"], &p["classes"][0]["index"])).collect();
    let name = |i: usize| Value::from(format!("{file}[{i}]"));
    assert_eq!(found, [(&name(0), &2.into()), (&name(1), &0.into()), (&name(2), &1.into())]);
    assert_eq!(predicted[0]["classes"][0]["class"], Value::Null);
    let two = printed(path, &["predict", "run", file, "--limit", "2", "--json"]);
    assert_eq!(two.as_array().unwrap().as_slice(), &predicted.as_array().unwrap()[..2]);

    let scored = printed(path, &["eval", "run", "--data", file, "--json"]);
    assert_eq!((&scored[0]["targets"], number(&scored[0]["accuracy"])), (&3.into(), 2.0 / 3.0));
    // The same images in class folders, whose names are the classes' numbers.
    for (class, brightness, i) in [(2, 245, 0), (0, 5, 1), (0, 125, 2)] {
        image(&path.join(format!("folders/{class}/{i}.bmp")), 4, [brightness; 3]);
    }
    if cfg!(feature = "images") {
        let of_folders = printed(path, &["eval", "run", "--data", "folders", "--json"]);
        assert_near(number(&of_folders[0]["loss"]), number(&scored[0]["loss"]));
    } else {
        for command in [&["eval", "run", "--data", "folders"][..], &["predict", "run", "folders"]] {
            refused(path, command, &["image files", "rebuild with --features images"]);
        }
    }

    refused(path, &["eval", "run"], &["digits", "no such folder"]);
    refused(path, &["eval", "run", "--data", "new"], &["new", "holds no class folders"]);
    fs::rename(path.join("new/more-labels-idx1-ubyte"), path.join("new/classes")).unwrap();
    refused(path, &["eval", "run", "--data", file], &["more-labels-idx1-ubyte: no such file", "`labels` for `images`"]);
    fs::write(path.join("page-idx3-ubyte.gz"), "<!DOCTYPE html><title>404</title>").unwrap();
    refused(path, &["predict", "run", "page-idx3-ubyte.gz"], &["an HTML or XML page", "fetch the file again"]);
    refused(path, &["predict", "run", "--text", "a"], &["--text: the run is on images; name files of images"]);
    refused(path, &["predict", "run", "-"], &["-: no such file or folder; name image files"]);
}

#[test]
#[cfg_attr(not(feature = "images"), ignore = "needs --features images")]
fn other_images_are_scored_with_the_classes_and_statistics_of_the_run() {
    let folder = folder_of_images();
    let path = folder.path();
    train(path);
    let own = printed(path, &["eval", "run", "--json"]);
    fs::rename(path.join("images"), path.join("moved")).unwrap();
    refused(path, &["eval", "run"], &["images: no such file or folder"]);
    // A folder with val/, and the class folders alone.
    assert_eq!(printed(path, &["eval", "run", "--data", "moved", "--json"]), own);
    assert_eq!(printed(path, &["eval", "run", "--data", "moved/val", "--json"]), own);
    // One class is enough; here its images are of the other one.
    for i in 0..3 {
        image(&path.join(format!("wrong/blue/{i}.bmp")), 9, [190, 5, 20]);
    }
    let wrong = printed(path, &["eval", "run", "--data", "wrong", "--json"]);
    assert_eq!((&wrong[1]["accuracy"], &wrong[1]["targets"]), (&0.0.into(), &3.into()));
    image(&path.join("wrong/green/1.bmp"), 9, [5, 190, 20]);
    refused(path, &["eval", "run", "--data", "wrong"], &["wrong/green", "its classes are blue, red"]);
    refused(
        path,
        &["eval", "run", "--data", "moved/val/red/0.bmp"],
        &["0.bmp: has no labels", "a folder of images for each class"],
    );
    refused(path, &["eval", "run", "--data", "nothing"], &["nothing: no such file or folder"]);
    idx(&path.join("digits"), "t10k", &[(5, 0)]);
    refused(path, &["eval", "run", "--data", "digits"], &["digits: images of shape [1, 2, 2]", "trained on [3, 8, 8]"]);
    fs::create_dir(path.join("cifar")).unwrap();
    fs::write(path.join("cifar/test_batch.bin"), [0; 3073]).unwrap();
    refused(path, &["eval", "run", "--data", "cifar"], &["airplane, automobile", "those of the model are blue, red"]);
}
