//! `interlock export`: a finished run's model as a folder for other programs.

use interlock::{Error, Result, Weights, tools::files};
use interlock_models::export::{Export, ExportFormat};

use crate::{
    arguments::{self, Format},
    exit::Exit,
    program::{ModelSection, Program},
    run_folder::{self, RunFolder},
    terminal::print,
};

pub(crate) fn run<P: Program>(arguments: &arguments::Export) -> Result<(), Exit> {
    let (folder, config, description) = RunFolder::open::<P>(&arguments.run)?;
    let (format, name) = match arguments.format {
        Format::Hf => (ExportFormat::Hf, "hf"),
        Format::Torch => (ExportFormat::Torch, "torch"),
    };
    let out = arguments.out.clone().unwrap_or_else(|| arguments.run.join(name));
    run_folder::refuse_existing(&out)?;
    let weights = folder.weights(arguments.best)?;
    let heads = arguments.heads.then(|| heads_of(&weights)).transpose()?;
    // Weights that do not fit the configuration are refused as in `eval`.
    let builder = config.of_finished_run(&description, &weights, &["cpu".to_owned()])?;
    builder.predictor(weights.clone()).map_err(|error| crate::evaluate::refused(&arguments.run, &error))?;
    let Export { weights, files: texts } = config.model.export(format, &description, &weights)?;

    files::create_folder(&out)?;
    weights.save_file(out.join("model.safetensors")).map_err(Exit::failed)?;
    if let Some(heads) = heads {
        heads.save_file(out.join("heads.safetensors")).map_err(Exit::failed)?;
    }
    for (name, text) in &texts {
        files::write(&out.join(name), text).map_err(Exit::failed)?;
    }
    print(&format!("{} tensors are in {}; load.py loads them in Python", weights.len(), out.display()))
}

/// Returns the weights of the auxiliary heads, under their names.
fn heads_of(weights: &Weights) -> Result<Weights> {
    let heads = weights.clone().renamed(|name| name.starts_with("aux.").then(|| name.to_owned()))?;
    match heads.is_empty() {
        true => Err(Error::invalid("--heads", "the run has no auxiliary heads", "leave it out")),
        false => Ok(heads),
    }
}
