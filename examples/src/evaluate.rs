//! `interlock eval`: scores the heads of a finished run.

use std::path::Path;

use interlock::Error;
use serde::Serialize;

use crate::{
    arguments::Eval,
    exit::Exit,
    program::{DataSection, Program},
    progress::say,
    run_folder::RunFolder,
    table::{self, Measure},
};

/// One head's scores, as JSON.
#[derive(Serialize)]
struct HeadScores {
    stage: usize,
    loss: f64,
    accuracy: Option<f64>,
    perplexity: f64,
}

pub(crate) fn run<P: Program>(arguments: &Eval) -> Result<(), Exit> {
    let (folder, config, description) = RunFolder::open::<P>(&arguments.run)?;
    let weights = folder.weights(arguments.best)?;
    let validation = config.data.open_validation(&description)?;
    let measure = Measure::of(&description.kind);
    let mut trainer = config
        .of_finished_run(&description, &weights, &arguments.devices)?
        .initial_values(weights)
        .allow_missing_heads(false)
        .build()
        .map_err(|error| refused(&arguments.run, &error))?;
    let evaluation = trainer.evaluate(&*validation)?;
    if let Some(k) = arguments.stage.filter(|&k| evaluation.head(k).is_none()) {
        let heads: Vec<String> = evaluation.heads().iter().map(|head| head.stage.to_string()).collect();
        let problem = format!("stage {k} has no head");
        return Err(Error::invalid("--stage", problem, format!("heads are at stages {}", heads.join(", "))).into());
    }
    if arguments.json {
        let wanted = evaluation.heads().iter().filter(|head| arguments.stage.is_none_or(|k| k == head.stage));
        let heads: Vec<HeadScores> = wanted
            .map(|head| HeadScores {
                stage: head.stage,
                loss: head.score.mean_loss(),
                accuracy: head.score.accuracy(),
                perplexity: head.score.perplexity(),
            })
            .collect();
        say(&serde_json::to_string(&heads).map_err(Exit::failed)?);
    } else {
        say(&table::heads(&evaluation, measure, arguments.stage).to_string());
    }
    Ok(())
}

/// Returns the error for a run folder whose weights do not fit its configuration.
pub(crate) fn refused(run: &Path, error: &Error) -> Exit {
    Exit::Refused(format!("{}: its weights do not fit the model of its config.toml: {error}", run.display()))
}
