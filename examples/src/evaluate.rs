//! `interlock eval`: scores the heads of a finished run.

use std::{path::Path, sync::Arc};

use interlock::{Error, Result};
use serde::Serialize;

use crate::{
    arguments::Eval,
    exit::Exit,
    program::{DataSection, Program},
    run_folder::RunFolder,
    table::{self, Measure},
    terminal::{note, print},
};

/// One head's scores, as JSON.
#[derive(Serialize)]
struct HeadScores {
    stage: usize,
    loss: f64,
    accuracy: Option<f64>,
    perplexity: f64,
    /// The number of targets that count: images, vectors, or tokens of text.
    targets: u64,
}

pub(crate) fn run<P: Program>(arguments: &Eval) -> Result<(), Exit> {
    let (folder, config, description) = RunFolder::open::<P>(&arguments.run)?;
    let weights = Arc::new(folder.weights(arguments.best)?);
    let data = match &arguments.data {
        Some(path) => config.data.open_labelled(&description, path)?,
        None => config.data.open_validation(&description).map_err(without_data)?,
    };
    if let Some(difference) = config.data.difference(&description, &*data)? {
        note(&difference);
    }
    let measure = Measure::of(&description.kind);
    let builder = config.of_finished_run(&description, &weights, &arguments.devices)?;
    let refuse = |error: Error| refused(&arguments.run, &error);
    if let Some(head) = arguments.head {
        // The predictor has the heads that the weights hold.
        check_head(head, &builder.predictor(Arc::clone(&weights)).map_err(refuse)?.heads())?;
    }
    let builder = builder.initial_values(weights).allow_missing_heads(arguments.head.is_some());
    let evaluation = builder.build().map_err(refuse)?.evaluate(data)?;
    if arguments.json {
        let wanted = evaluation.heads().iter().filter(|head| arguments.head.is_none_or(|k| k == head.stage));
        let heads: Vec<HeadScores> = wanted
            .map(|head| HeadScores {
                stage: head.stage,
                loss: head.score.mean_loss(),
                accuracy: head.score.accuracy(),
                perplexity: head.score.perplexity(),
                targets: head.score.count as u64,
            })
            .collect();
        print(&serde_json::to_string(&heads).map_err(Exit::failed)?)
    } else {
        print(&table::heads(&evaluation, measure, arguments.head).to_string())
    }
}

/// Names the option for other data where the run's own are not there.
fn without_data(error: Error) -> Error {
    match error {
        Error::File { path, cause } if !path.exists() => {
            Error::file(path, format!("{cause}; if the data have moved, name them with --data"))
        }
        other => other,
    }
}

/// Checks that stage `wanted`, the value of `--head`, is one of those with a head.
pub(crate) fn check_head(wanted: usize, heads: &[usize]) -> Result<()> {
    if heads.contains(&wanted) {
        return Ok(());
    }
    let heads = heads.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    Err(Error::invalid(
        "--head",
        format!("stage {wanted} has no head with weights"),
        format!("heads are at stages {heads}"),
    ))
}

/// Returns the error for a run folder whose weights do not fit its configuration.
pub(crate) fn refused(run: &Path, error: &Error) -> Exit {
    Exit::Refused(format!("{}: its weights do not fit the model of its config.toml: {error}", run.display()))
}
