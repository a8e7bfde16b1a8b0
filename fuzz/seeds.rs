//! Writes small files that are right into `fuzz/corpus/<target>/`, from which `cargo fuzz` goes on.

use std::{fs, path::Path};

use interlock_cli::readers::READERS;

fn main() -> std::io::Result<()> {
    for reader in READERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(reader.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in (reader.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
