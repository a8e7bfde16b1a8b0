//! Reads one kind of file, which has the name of the target. All targets share this file and the table of readers.

#![no_main]

use std::{cell::OnceCell, path::PathBuf};

use interlock_cli::readers::Reader;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static FOLDER: OnceCell<PathBuf> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    let name = env!("CARGO_BIN_NAME");
    let reader = Reader::named(name).expect("a reader of this name");
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            let folder = std::env::temp_dir().join(format!("interlock-fuzz-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("a folder");
            folder
        });
        // A refusal is right; a panic, a hang or memory without end is found by libFuzzer.
        let _ = reader.read(folder, bytes);
    });
});
