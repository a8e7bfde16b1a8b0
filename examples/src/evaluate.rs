//! `interlock eval`.

use interlock::Error;
use serde::Serialize;

use crate::{
    arguments::Eval,
    exit::Exit,
    progress::say,
    run_folder::RunFolder,
    table::{self, Measure},
};

/// One head's scores, as JSON.
#[derive(Serialize)]
struct Head {
    stage: usize,
    loss: f64,
    accuracy: Option<f64>,
    perplexity: f64,
}

pub(crate) fn run(arguments: &Eval) -> Result<(), Exit> {
    let (folder, config, _) = RunFolder::open(&arguments.run)?;
    let given = folder.weights(arguments.best)?;
    let prepared = config.prepare()?;
    let measure = Measure::of(&prepared.data.description.kind);
    let builder = prepared.builder.initial_values(given).allow_missing(false).allow_unknown(false);
    let mut trainer = builder.build().map_err(refused)?;
    let evaluation = trainer.evaluate(&*prepared.data.validation)?;
    if let Some(k) = arguments.stage.filter(|&k| evaluation.head(k).is_none()) {
        let there: Vec<String> = evaluation.heads().iter().map(|head| head.stage.to_string()).collect();
        let problem = format!("stage {k} has no head");
        return Err(Error::invalid("--stage", problem, format!("heads are at stages {}", there.join(", "))).into());
    }
    say(&table::heads(&evaluation, measure, arguments.stage).to_string());
    if arguments.json {
        let wanted = evaluation.heads().iter().filter(|head| arguments.stage.is_none_or(|k| k == head.stage));
        let heads: Vec<Head> = wanted
            .map(|head| Head {
                stage: head.stage,
                loss: head.score.mean_loss(),
                accuracy: head.score.accuracy(),
                perplexity: head.score.perplexity(),
            })
            .collect();
        say(&serde_json::to_string(&heads).map_err(Exit::failed)?);
    }
    Ok(())
}

/// A stage that cannot be built from a run's weights is a run folder that does not fit.
pub(crate) fn refused(error: Error) -> Exit {
    Exit::Refused(error.to_string())
}
