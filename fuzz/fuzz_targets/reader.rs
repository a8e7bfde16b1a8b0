//! Reads files of the kind that `INTERLOCK_READER` names. Begins with the small files of that kind that are right, which it writes into
//! `fuzz/corpus/KIND/`.

#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use interlock_cli::readers::{READERS, Reader};
use libfuzzer_sys::fuzz_target;

static READER: OnceLock<(&Reader, PathBuf)> = OnceLock::new();

fn start() {
    // Panics of other crates are no defects where the program catches them; where not, libFuzzer sees them. The program's own panics are always defects.
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let elsewhere = |file: &str| file.contains("/registry/src/") || file.starts_with("/rustc/");
        if !panic.location().is_some_and(|location| elsewhere(location.file())) {
            end(panic);
        }
    }));
    let name = std::env::var("INTERLOCK_READER").unwrap_or_default();
    let Some(reader) = Reader::named(&name) else {
        let names: Vec<_> = READERS.iter().map(|reader| reader.name).collect();
        eprintln!("INTERLOCK_READER is {name:?}; set it to one of: {}", names.join(", "));
        std::process::exit(2);
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    fs::create_dir_all(&corpus).expect("a folder for the corpus");
    for (number, seed) in (reader.seeds)().into_iter().enumerate() {
        fs::write(corpus.join(format!("right-{number}")), seed).expect("a file of the corpus");
    }
    let folder = std::env::temp_dir().join(format!("interlock-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    assert!(READER.set((reader, folder)).is_ok(), "started twice");
}

fuzz_target!(init: start(), |bytes: &[u8]| {
    let (reader, folder) = READER.get().expect("started");
    // A refusal is right; a panic, a hang or memory without end is found by libFuzzer.
    let _ = reader.read(folder, bytes);
});
