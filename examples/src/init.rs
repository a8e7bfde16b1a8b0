//! `interlock init`: a folder to begin with: a configuration and its schema, or a crate with an own model.

use std::path::{Path, PathBuf};

use interlock::{Error, Result, tools::files};
use toml::Value;

use crate::{
    arguments::Init,
    exit::Exit,
    program::{Program, program},
    schema,
    terminal::say,
};

/// The main file of a new crate: the lesson with the whole command for an own model.
const OWN_MODEL: &str = include_str!("../lessons/own_command.rs");

/// The folder of the sources that this program was built from.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

pub(crate) fn run<P: Program>(arguments: &Init) -> Result<(), Exit> {
    let folder = &arguments.folder;
    let contents = match arguments.own_crate {
        true => crate_files(folder, arguments.sources.as_deref().unwrap_or(Path::new(SOURCES)))?,
        false => configuration_files::<P>()?,
    };
    let paths: Vec<PathBuf> = contents.iter().map(|(name, _)| folder.join(name)).collect();
    if let Some(path) = paths.iter().find(|path| path.exists()) {
        return Err(Error::invalid(
            format!("init {}", folder.display()),
            format!("{} exists", path.display()),
            "name another folder, or remove the file",
        )
        .into());
    }
    for (path, (_, text)) in paths.iter().zip(&contents) {
        let parent = path.parent().unwrap_or(folder);
        files::create_folder(parent).map_err(Exit::failed)?;
        files::write(path, text).map_err(Exit::failed)?;
        say(&format!("wrote {}", path.display()));
    }
    say(&match arguments.own_crate {
        true => format!("now, in {}: cargo run --release", folder.display()),
        false => format!("now: {} train --config {}", program(), paths[0].display()),
    });
    Ok(())
}

/// Returns the files of a folder with a configuration.
fn configuration_files<P: Program>() -> Result<Vec<(PathBuf, String)>> {
    let name = program();
    let schema = serde_json::to_string_pretty(&schema::schema::<P>())
        .map_err(|error| Error::invalid("schema", error.to_string(), "this is a defect; please report it"))?;
    let lines = P::CONFIG.lines().filter(|line| !line.starts_with("#:schema"));
    let config = lines.fold(format!("#:schema ./{name}.schema.json\n"), |text, line| text + line + "\n");
    Ok(vec![(format!("{name}.toml").into(), config), (format!("{name}.schema.json").into(), schema + "\n")])
}

/// Returns the files of a crate in `folder` that depends on the crates in `sources`.
///
/// # Errors
/// If they are not there.
fn crate_files(folder: &Path, sources: &Path) -> Result<Vec<(PathBuf, String)>> {
    let sources =
        sources.canonicalize().ok().filter(|sources| sources.join("framework/Cargo.toml").exists()).ok_or_else(
            || {
                let problem = format!("the sources of this program are not in {}", sources.display());
                Error::invalid("init --crate", problem, "name the folder of a checkout with --sources DIR")
            },
        )?;
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let name = if name.starts_with(|c: char| c.is_ascii_alphabetic()) { name } else { format!("my-{name}") };
    let path = |part: &str| Value::from(sources.join(part).display().to_string()).to_string();
    let manifest = format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"

[dependencies]
candle-nn = {{ version = "0.11.1", default-features = false }}
interlock = {{ package = "interlock-train", path = {framework} }}
interlock-backends = {{ path = {backends} }} # devices, and fast layers with hand-written gradients
interlock-cli = {{ path = {cli} }}
interlock-models = {{ path = {models} }}
schemars = "1"
serde = {{ version = "1", features = ["derive"] }}

# Candle is slow without optimization.
[profile.dev]
opt-level = 1

[profile.dev.package."*"]
opt-level = 3
debug = false
"#,
        framework = path("framework"),
        backends = path("backends"),
        cli = path("examples"),
        models = path("models"),
    );
    let mut contents = vec![
        ("Cargo.toml".into(), manifest),
        ("src/main.rs".into(), OWN_MODEL.to_owned()),
        (".gitignore".into(), "/target\n/runs\n".to_owned()),
    ];
    // The versions that these sources were tested with; cargo leaves out what the crate does not need.
    if let Ok(lock) = std::fs::read_to_string(sources.join("Cargo.lock")) {
        contents.push(("Cargo.lock".into(), lock));
    }
    Ok(contents)
}
