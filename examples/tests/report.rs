//! Tests of the files of a run, and of the reports made from them.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{SMALL, done, err, interlock, json, refused, train};
use serde_json::Value;
use tempfile::TempDir;

fn events(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn run_writes_events_timeline_and_environment() {
    let folder = TempDir::new().unwrap();
    let schedule = "--set=strategy.width_schedule=[{from_step=0, width=1}, {from_step=2, width=2}]";
    done(&train(folder.path(), &[&SMALL[..], &[schedule, "--tensorboard", "--quiet"]].concat()));
    let run = folder.path().join("run");
    let events = events(&run);
    let expected = ["started", "step", "step", "plan_changed", "step", "evaluated", "checkpoint_saved", "finished"];
    assert_eq!(names(&events), expected);
    assert!(events.windows(2).all(|pair| pair[0]["time"].as_f64() <= pair[1]["time"].as_f64()));
    let started = &events[0];
    assert_eq!((&started["run"], &started["steps"]), (&"fashion-mnist".into(), &3.into()));
    assert!(started["stages"][1]["parameters"].as_u64().unwrap() > 0);
    assert_eq!(started["plans"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&events[3]["from_step"], &events[3]["follows"]),
        (&2.into(), &serde_json::json!([[[1, 1.0]], [[1, 1.0]]]))
    );
    assert_eq!((&started["format"], &events[1]["format"]), (&2.into(), &Value::Null));
    let step = &events[4];
    assert_eq!((&step["step"], &step["examples"], step["epoch"].as_u64()), (&2.into(), &32.into(), Some(0)));
    for stage in step["stages"].as_array().unwrap() {
        assert!(stage["loss"].as_f64().unwrap() > 0.0 && stage["gradient_norm"].as_f64().unwrap() > 0.0);
        let (busy, seconds) = (stage["busy_seconds"].as_f64().unwrap(), step["seconds"].as_f64().unwrap());
        assert!(busy > 0.0 && busy < seconds, "{step}");
        assert!(stage["alignment"].is_null());
    }
    let report = json(&run.join("report.json"));
    let last = events[5]["heads"].as_array().unwrap().last().unwrap();
    assert_eq!(last["accuracy"], report["final"]["accuracy"]);
    assert_eq!(events[7]["report"], report);

    let timeline = json(&run.join("timeline.json"));
    assert_eq!((&timeline["format"], &timeline["stages"]), (&2.into(), &2.into()));
    assert!(fs::read_to_string(run.join("timeline.json")).unwrap().starts_with("{\"format\":2,"));
    assert!(timeline["spans"].as_array().unwrap().iter().any(|span| span["action"]["update"] == 2));
    let environment = json(&run.join("environment.json"));
    assert_eq!(environment["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(environment["command"][1], "train");
    let started = environment["started"].as_str().unwrap();
    assert!(started.ends_with('Z') && environment["cores"].as_u64().unwrap() > 0);
    let boards: Vec<_> = fs::read_dir(run.join("tensorboard")).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(boards.len(), 1);
    let bytes = fs::read(boards[0].path()).unwrap();
    let contains = |tag: &str| bytes.windows(tag.len()).any(|window| window == tag.as_bytes());
    for tag in ["brain.Event:2", "loss/train/stage0", "accuracy/validation/stage1", "learning_rate", "idle/stage0"] {
        assert!(contains(tag), "{tag}");
    }
}

#[test]
fn failure_is_the_last_event() {
    let folder = TempDir::new().unwrap();
    let output = train(folder.path(), &[&SMALL[..], &["--quiet", "--set=optimizer.lr=1e30"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let run = folder.path().join("run");
    let events = events(&run);
    let failed = events.last().unwrap();
    assert_eq!(failed["event"], "failed");
    assert!(failed["stage"].is_u64() && failed["phase"].is_string() && failed["cause"].is_string(), "{failed}");
    assert!(!run.join("tensorboard").exists());
    assert!(run.join("timeline.json").exists());
}

/// Reads a page, and asserts that a browser fetches and runs nothing for it, and that all elements are closed.
fn page(path: &Path) -> String {
    let page = fs::read_to_string(path).unwrap();
    let lower = page.to_lowercase().replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for wrong in ["http://", "https://", "<script", "<link", "<img", "<iframe", "@import", "url(", " src="] {
        assert!(!lower.contains(wrong), "{wrong} in {}", path.display());
    }
    let mut open: Vec<String> = Vec::new();
    let body = &page[page.find("<main>").unwrap()..page.find("</body>").unwrap()];
    for tag in body.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap();
        let name: String = tag.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        match (tag.starts_with('/'), tag.ends_with('/') || name == "col") {
            (true, _) => assert_eq!(open.pop(), Some(name), "{tag}"),
            (false, false) => open.push(name),
            (false, true) => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
    page
}

#[test]
fn page_and_pictures_are_made_from_a_run() {
    let folder = TempDir::new().unwrap();
    let schedule = "--set=strategy.width_schedule=[{from_step=0, width=1}, {from_step=2, width=2}]";
    let name = "--set=name='<b>&amp;\"x'";
    done(&train(folder.path(), &[&SMALL[..], &[schedule, name, "--quiet"]].concat()));
    let plots = if cfg!(feature = "png") { &["--plots", "plots", "--png"][..] } else { &["--plots", "plots"] };
    let shown = done(&interlock(folder.path(), &[&["report", "run"], plots].concat()));
    assert!(shown.contains("the report is in run/report.html") && shown.contains("pictures are in plots"), "{shown}");
    let page = page(&folder.path().join("run/report.html"));
    assert!(page.contains("<title>&lt;b&gt;&amp;amp;&quot;x</title>") && !page.contains("<b>&amp;\"x"));
    let accuracy = json(&folder.path().join("run/report.json"))["final"]["accuracy"].as_f64().unwrap();
    assert!(page.contains(&format!("{:.1} %", 100.0 * accuracy)));
    for words in [
        "Training loss of each head",
        "Validation accuracy of each head",
        "Throughput",
        "Idle share of each stage",
        "Gradient norm",
        "Learning rate",
        "Interlock width of each stage",
        "What each stage did when",
        "U update",
        "width 1 from step 0; width 2 from step 2",
        "batch_size = 32",
        "vector instructions",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(words), "{words}");
    }
    assert!(!page.contains("The run failed") && !page.contains("has not finished"));
    let plots = folder.path().join("plots");
    for name in ["training_loss", "validation_accuracy", "throughput", "width", "timeline"] {
        if cfg!(feature = "png") {
            let png = fs::read(plots.join(format!("{name}.png"))).unwrap();
            assert!(png.starts_with(b"\x89PNG") && png.len() > 2000, "{name}");
        }
        assert!(fs::read_to_string(plots.join(format!("{name}.svg"))).unwrap().starts_with("<svg"), "{name}");
    }
    // A second report replaces the plots, and has another path.
    done(&interlock(folder.path(), &["report", "run", "--out", "a.html", "--plots", "plots"]));
    assert_eq!(page, fs::read_to_string(folder.path().join("a.html")).unwrap());
}

#[test]
fn failed_and_running_runs_are_reported_up_to_the_last_event() {
    let folder = TempDir::new().unwrap();
    let report = || {
        done(&interlock(folder.path(), &["report", "run"]));
        page(&folder.path().join("run/report.html"))
    };
    train(folder.path(), &[&SMALL[..], &["--quiet", "--set=optimizer.lr=1e30"]].concat());
    let failed = report();
    assert!(failed.contains("The run failed") && failed.contains("stage ") && failed.contains("Configuration"));

    fs::remove_dir_all(folder.path().join("run")).unwrap();
    done(&train(folder.path(), &[&SMALL[..], &["--quiet"]].concat()));
    let run = folder.path().join("run");
    let events = fs::read_to_string(run.join("events.jsonl")).unwrap();
    let whole = report();
    fs::write(run.join("status.json"), r#"{"state":"running"}"#).unwrap();
    fs::remove_file(run.join("timeline.json")).unwrap();
    // The events end in the middle of the third line, after one step.
    let ends: Vec<usize> = events.match_indices('\n').map(|(at, _)| at).collect();
    fs::write(run.join("events.jsonl"), &events[..ends[1] + 20]).unwrap();
    let cut = report();
    assert!(cut.contains("has not finished") && cut.contains("<b>1</b><span>steps</span>"), "{cut}");
    assert!(cut.contains("Training loss") && !cut.contains("Validation loss") && whole.contains("Validation loss"));
    fs::write(run.join("events.jsonl"), "").unwrap();
    assert!(report().contains("No step has been finished"));
}

/// Returns the folder of a run of an earlier version, whose files name no format.
fn recorded_in_format_1() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format_1")
}

#[test]
fn run_of_format_1_is_reported_with_curves_stages_and_timeline() {
    let folder = TempDir::new().unwrap();
    let recorded = recorded_in_format_1();
    let arguments = ["report", recorded.to_str().unwrap(), "--out", "page.html", "--plots", "plots"];
    done(&interlock(folder.path(), &arguments));
    let page = page(&folder.path().join("page.html"));
    for words in ["stage 1", "Interlock width of each stage", "What each stage did when", "input gradient of loss 1"] {
        assert!(page.contains(words), "{words}");
    }
    assert!(folder.path().join("plots/width.svg").exists() && folder.path().join("plots/timeline.svg").exists());
}

#[test]
fn unknown_formats_are_refused() {
    let folder = TempDir::new().unwrap();
    for file in ["config.toml", "data.json", "status.json", "events.jsonl", "timeline.json"] {
        fs::copy(recorded_in_format_1().join(file), folder.path().join(file)).unwrap();
    }
    for file in ["events.jsonl", "timeline.json"] {
        let path = folder.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen('{', "{\"format\":3,", 1)).unwrap();
        refused(folder.path(), &["report", "."], &[file, "format 3", "1 to 2"]);
        fs::write(&path, text).unwrap();
    }
}

#[test]
fn runs_are_compared_on_one_page() {
    let folder = TempDir::new().unwrap();
    for (name, more) in [("a", "--set=seed=1"), ("b", "--set=seed=2"), ("c", "--set=strategy.width=1")] {
        done(&interlock(folder.path(), &[&["train", "--quiet", "--out", name, more], &SMALL[..]].concat()));
    }
    done(&interlock(folder.path(), &["report", "a", "b", "c", "--out", "all.html", "--plots", "plots"]));
    let html = page(&folder.path().join("all.html"));
    for words in ["3 runs compared", "strategy.width", "<th>seed</th>", "over time", "mean of all stages"] {
        assert!(html.contains(words), "{words}");
    }
    assert!(!html.contains("<th>batch_size</th>"), "equal keys are listed");
    assert!(folder.path().join("plots/validation_accuracy_by_time.svg").exists());
    // The same folder twice: nothing differs, and the labels are paths.
    done(&interlock(folder.path(), &["report", "a", "a", "--out", "twice.html"]));
    assert!(page(&folder.path().join("twice.html")).contains("Nothing: they are the same."));
}

/// Returns the texts of the cells of the page's first table, by rows.
fn cells(page: &str) -> Vec<Vec<String>> {
    let table = &page[page.find("<table>").unwrap()..page.find("</table>").unwrap()];
    let text = |cell: &str| cell.split('<').filter_map(|tag| tag.split_once('>')).map(|(_, text)| text).collect();
    let row = |row: &str| -> Vec<String> { row.split("<t").skip(1).map(|cell| text(&format!("<{cell}"))).collect() };
    table.split("<tr>").skip(1).map(row).collect()
}

#[test]
fn scores_of_training_batches_are_not_mixed_with_those_of_evaluations() {
    let folder = TempDir::new().unwrap();
    done(&train(folder.path(), &[&SMALL[..], &["--quiet"]].concat()));
    let events = fs::read_to_string(folder.path().join("run/events.jsonl")).unwrap();
    let lines: Vec<&str> = events.lines().collect();
    assert!(lines[4].contains("evaluated") && lines[6].contains("finished"), "{events}");
    // Runs that were killed: one before its first evaluation, one between evaluations.
    let early = lines[4].replace("\"steps\":3", "\"steps\":1");
    for (name, lines) in
        [("killed", vec![lines[0], lines[1], lines[2]]), ("early", vec![lines[0], lines[1], &early, lines[2]])]
    {
        let run = folder.path().join(name);
        fs::create_dir(&run).unwrap();
        for file in ["config.toml", "data.json", "environment.json"] {
            fs::copy(folder.path().join("run").join(file), run.join(file)).unwrap();
        }
        fs::write(run.join("status.json"), r#"{"state":"running"}"#).unwrap();
        fs::write(run.join("events.jsonl"), lines.join("\n") + "\n").unwrap();
    }
    // A run that was stopped reports the scores of its last batch.
    let stopped = folder.path().join("stopped");
    fs::create_dir(&stopped).unwrap();
    for file in ["config.toml", "data.json", "environment.json"] {
        fs::copy(folder.path().join("run").join(file), stopped.join(file)).unwrap();
    }
    fs::write(stopped.join("status.json"), r#"{"state":"stopped","steps":2}"#).unwrap();
    let finished = lines[6].replace("\"evaluated\":true", "\"evaluated\":false").replace("\"steps\":3", "\"steps\":2");
    fs::write(stopped.join("events.jsonl"), [lines[0], lines[1], lines[2], &finished].join("\n") + "\n").unwrap();

    let compared = |runs: &[&str]| {
        done(&interlock(folder.path(), &[&["report"], runs, &["--out", "all.html"]].concat()));
        cells(&page(&folder.path().join("all.html")))
    };
    let score = |line: &str| -> String {
        let event: Value = serde_json::from_str(line).unwrap();
        let heads = event["heads"].as_array().or(event["stages"].as_array()).unwrap();
        format!("{:.1} %", 100.0 * heads.last().unwrap()["accuracy"].as_f64().unwrap())
    };
    let table = compared(&["run", "killed", "stopped", "early"]);
    let column = |table: &[Vec<String>], name: &str| -> Vec<String> {
        let at = table[0].iter().position(|heading| heading == name).unwrap_or_else(|| panic!("{name}: {table:?}"));
        table[1..].iter().map(|row| row[at].clone()).collect()
    };
    let (evaluated, trained) = (score(lines[4]), score(lines[2]));
    let validation = [evaluated.as_str(), "not evaluated", "not evaluated", &evaluated];
    assert_eq!(column(&table, "validation accuracy"), validation);
    assert_eq!(
        column(&table, "accuracy, last training batch"),
        [score(lines[3]).as_str(), &trained, &trained, &trained]
    );
    assert_eq!(column(&table, "evaluated after step"), ["3", "–", "–", "1"]);
    // Columns that say nothing are left out.
    let table = compared(&["run", "run"]);
    assert!(table[0].iter().all(|heading| !heading.contains("batch") && !heading.contains("after")), "{table:?}");
    let table = compared(&["killed", "stopped"]);
    assert!(table[0].iter().all(|heading| !heading.contains("validation")), "{table:?}");

    let alone = |run: &str| {
        done(&interlock(folder.path(), &["report", run]));
        page(&folder.path().join(run).join("report.html"))
    };
    for run in ["killed", "stopped"] {
        let page = alone(run);
        assert!(page.contains(&format!("<b>{trained}</b><span>accuracy, last training batch</span>")), "{page}");
        assert!(page.contains("the run was not evaluated") && !page.contains("<span>validation"), "{page}");
    }
    let early = alone("early");
    assert!(early.contains(&format!("<b>{evaluated}</b><span>validation accuracy</span>")), "{early}");
    assert!(early.contains("at the last evaluation, after step 1."), "{early}");
}

#[test]
fn bad_folders_and_files_are_refused_and_nothing_is_written() {
    let folder = TempDir::new().unwrap();
    done(&train(folder.path(), &[&SMALL[..], &["--quiet"]].concat()));
    fs::create_dir(folder.path().join("empty")).unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let refused = |arguments: &[&str], words: &[&str]| {
        refused(folder.path(), &[&["report"], arguments].concat(), words);
        assert!(!folder.path().join("run/report.html").exists());
    };
    refused(&["nowhere"], &["nowhere/config.toml", "is not the folder of a run", "interlock train"]);
    refused(&["empty"], &["empty/config.toml", "is not the folder of a run"]);
    refused(&["run", "empty", "--out", "a.html"], &["empty/config.toml"]);
    refused(&["run", "run"], &["--out FILE.html"]);
    refused(&[], &["<RUN>"]);
    refused(&["run", "--out", "nowhere/a.html"], &["--out nowhere/a.html", "no folder nowhere"]);
    refused(&["run", "--out", "empty"], &["--out empty", "it is a folder"]);
    if !cfg!(feature = "png") {
        refused(&["run", "--plots", "plots", "--png"], &["--png", "rebuild with --features png"]);
        assert!(!folder.path().join("plots").exists());
    }
    refused(&["run", "--png"], &["--plots"]);
    refused(&["run", "--plots", "file"], &["--plots file", "name a folder"]);
    refused(&["run", "--plots", "nowhere/plots"], &["--plots nowhere/plots", "no folder nowhere"]);

    let run = folder.path().join("run");
    for (name, text, words) in [
        ("timeline.json", "{", ["run/timeline.json", "EOF"]),
        ("environment.json", "{}", ["run/environment.json", "missing field"]),
        ("status.json", "{\"state\":\"asleep\"}", ["run/status.json", "asleep"]),
        ("events.jsonl", "{}\n", ["run/events.jsonl", "line 1 is not an event"]),
    ] {
        let kept = fs::read_to_string(run.join(name)).unwrap();
        fs::write(run.join(name), text).unwrap();
        refused(&["run"], &words);
        fs::write(run.join(name), kept).unwrap();
    }
    fs::remove_file(run.join("events.jsonl")).unwrap();
    refused(&["run"], &["run/events.jsonl", "interlock train"]);
}

#[test]
fn long_run_makes_a_page_of_reasonable_size() {
    let folder = TempDir::new().unwrap();
    done(&train(folder.path(), &[&SMALL[..], &["--quiet"]].concat()));
    let file = folder.path().join("run/events.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (started, step, evaluated) = (lines[0], lines[1], lines[4]);
    let mut long = started.to_owned() + "\n";
    for n in 0..20_000 {
        long += &step.replace("\"step\":0", &format!("\"step\":{n}"));
        long += "\n";
        if n % 10 == 9 {
            long += &evaluated.replace("\"steps\":3", &format!("\"steps\":{}", n + 1));
            long += "\n";
        }
    }
    fs::write(&file, long).unwrap();
    done(&interlock(folder.path(), &["report", "run"]));
    let page = page(&folder.path().join("run/report.html"));
    assert!(page.contains("<b>20,000</b><span>steps</span>"));
    assert!(page.len() < 400_000, "{} bytes", page.len());
}
