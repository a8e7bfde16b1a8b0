//! Tests of weights: values to start from, and exports.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{fs, path::Path};

use common::{SMALL, done, err, interlock, refused, train};
use tempfile::TempDir;

#[test]
fn initial_weights_must_be_those_of_the_model() {
    let folder = TempDir::new().unwrap();
    done(&train(folder.path(), &[&SMALL[..], &["--quiet"]].concat()));
    let again = |name: &'static str, more: &[&'static str]| {
        [&["train", "--plain", "--out", name, "--set=init_from=run"], &SMALL[..], more].concat()
    };
    let started = done(&interlock(folder.path(), &again("same", &[])));
    assert!(started.contains("starts from run: they fit 32 of the model's 32 tensors"), "{started}");

    // At least half of the names must be there.
    let longer = "--set=model.blocks=[1, 3]";
    refused(
        folder.path(),
        &again("longest", &["--set=model.blocks=[4, 4]"]),
        &["init_from = run", "fit 32 of the model's 92 tensors", "missing", "set init_partial = true"],
    );
    done(&interlock(folder.path(), &again("longest", &["--set=model.blocks=[4, 4]", "--set=init_partial=true"])));
    let output = interlock(folder.path(), &again("longer", &[longer]));
    done(&output);
    assert!(err(&output).contains("layer2.1.bn1.bias") && err(&output).contains("and 15 more"), "{}", err(&output));

    // Heads do not count as missing or unknown.
    let output = interlock(folder.path(), &again("cut", &["--set=partition={units_per_stage=[2, 2]}"]));
    done(&output);
    for row in
        ["heads without values         1  aux.0 after unit 1", "heads that are not used      1  aux.0 after unit 0"]
    {
        assert!(err(&output).contains(row), "{}", err(&output));
    }

    // Weights with names that the model does not know are listed and not used.
    let output = interlock(folder.path(), &again("shorter", &["--set=init_from=longer"]));
    done(&output);
    assert!(err(&output).contains("not in the model"), "{}", err(&output));

    // Other shapes are refused, unless they are left out.
    let wider = ["--set=model.planes=[4, 16]", "--set=init_partial=true"];
    refused(
        folder.path(),
        &again("wider", &wider),
        &["of another shape", "fc.weight (is [10, 8], must be [10, 16])", "init_skip"],
    );
    let skipped = [&wider[..], &["--set=init_skip=[\"layer2.*\", \"fc.*\"]"]].concat();
    let output = interlock(folder.path(), &again("skipped", &skipped));
    done(&output);
    assert!(err(&output).contains("from the seed as asked"), "{}", err(&output));
    let misspelt = ["--set=init_skip=[\"layr2.*\"]"];
    refused(folder.path(), &again("misspelt", &misspelt), &["init_skip: no name matches", "layer2."]);
    for key in ["init_partial=true", "init_skip=[\"fc.*\"]"] {
        let alone = format!("--set={key}");
        let alone = [&["train", "--out", "alone", &alone], &SMALL[..]].concat();
        refused(folder.path(), &alone, &["init_from", "given without it"]);
    }
}

#[test]
fn a_run_is_exported_for_other_programs() {
    let folder = TempDir::new().unwrap();
    done(&train(folder.path(), &[&SMALL[..], &["--quiet"]].concat()));
    let told = done(&interlock(folder.path(), &["export", "run", "--format", "torch"]));
    assert!(told.contains("run/torch; load.py loads them in Python"), "{told}");
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&folder.path().join("run/torch")), ["load.py", "model.safetensors"]);
    let heads = ["export", "run", "--format", "torch", "--heads", "--out", "with-heads"];
    done(&interlock(folder.path(), &heads));
    assert_eq!(names(&folder.path().join("with-heads")), ["heads.safetensors", "load.py", "model.safetensors"]);

    // It comes back as values to start from; the program's own heads are fresh.
    let again = [&["train", "--plain", "--out", "again", "--set=init_from=with-heads"], &SMALL[..]].concat();
    let output = interlock(folder.path(), &again);
    assert!(done(&output).contains("they fit 32 of the model's 32 tensors"), "{}", err(&output));
    refused(folder.path(), &heads, &["--out with-heads", "it exists"]);
    refused(folder.path(), &["export", "run", "--format", "hf"], &["timm has no residual network of this shape"]);
    refused(folder.path(), &["export", "nowhere", "--format", "hf"], &["nowhere"]);
    assert!(!folder.path().join("run/hf").exists());
}

#[test]
fn initial_weights_that_are_none_are_refused() {
    let folder = TempDir::new().unwrap();
    let train = |from: &'static str| [&["train", "--out", "run", from], &SMALL[..]].concat();
    fs::write(folder.path().join("config.toml"), "seed = 1\n").unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    let right = "name a safetensors file, its index, or the folder of a finished run";
    for (from, problem) in [
        ("--set=init_from=nowhere", "init_from = nowhere: no such file or folder"),
        ("--set=init_from=config.toml", "init_from = config.toml: not a safetensors file"),
        ("--set=init_from=empty", "init_from = empty: there are no weights in it: no model.safetensors.index.json"),
    ] {
        refused(folder.path(), &train(from), &[problem, right]);
    }
}
