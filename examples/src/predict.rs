//! `interlock predict`: classifies images with a finished run.

use std::path::{Path, PathBuf};

use candle_core::D;
use interlock::Error;
use interlock_models::data::{DataKind, image_files};
use serde::Serialize;

use crate::{
    arguments::Predict,
    evaluate::refused,
    exit::Exit,
    program::{Program, program},
    progress::say,
    run_folder::RunFolder,
    table::table,
};

/// One image and its likeliest classes, as JSON.
#[derive(Serialize)]
struct Prediction {
    file: PathBuf,
    /// The likeliest first.
    classes: Vec<Class>,
}

#[derive(Serialize)]
struct Class {
    /// Its number.
    index: usize,
    /// Its name; null if the data set has no names.
    class: Option<String>,
    /// From 0 to 1; those of all classes add up to 1.
    probability: f32,
}

pub(crate) fn run<P: Program>(arguments: &Predict) -> Result<(), Exit> {
    let (folder, config, description) = RunFolder::open::<P>(&arguments.run)?;
    let DataKind::Images { class_names, .. } = &description.kind else {
        return Err(Exit::Refused(format!(
            "{}: the run is on text; use `{} generate` to continue a text",
            arguments.run.display(),
            program()
        )));
    };
    if arguments.top == 0 {
        return Err(Error::invalid("--top", "0", "use 1 or more").into());
    }
    let files = files(&arguments.inputs)?;
    let weights = folder.weights(arguments.best)?;
    let builder = config.of_finished_run(&description, &weights, &arguments.devices)?;
    let mut predictor = builder.predictor(weights).map_err(|error| refused(&arguments.run, &error))?;
    let heads = predictor.heads();
    let head = match arguments.head {
        None => heads.last().copied().unwrap_or_default(),
        Some(head) if heads.contains(&head) => head,
        Some(head) => {
            let known = heads.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            let problem = format!("stage {head} has no head");
            return Err(Error::invalid("--head", problem, format!("heads are at stages {known}")).into());
        }
    };
    let mut predictions = Vec::new();
    for files in files.chunks(config.batch_size) {
        let logits = predictor.predict_at(head, description.read_images(files)?)?;
        let probabilities: Vec<Vec<f32>> =
            candle_nn::ops::softmax(&logits, D::Minus1).and_then(|all| all.to_vec2()).map_err(Exit::failed)?;
        let predicted = files.iter().zip(probabilities);
        predictions.extend(predicted.map(|(file, probabilities)| Prediction {
            file: file.clone(),
            classes: likeliest(&probabilities, arguments.top, class_names),
        }));
    }
    if arguments.json {
        say(&serde_json::to_string(&predictions).map_err(Exit::failed)?);
    } else {
        say(&table_of(&predictions));
    }
    Ok(())
}

/// Returns the named files, and the images of the named folders.
fn files(inputs: &[PathBuf]) -> interlock::Result<Vec<PathBuf>> {
    let list = |input: &PathBuf| if input.is_dir() { image_files(input) } else { Ok(vec![input.clone()]) };
    Ok(inputs.iter().map(list).collect::<interlock::Result<Vec<_>>>()?.concat())
}

/// Returns the `count` likeliest classes, the likeliest first; of equal ones, those with lower numbers first.
fn likeliest(probabilities: &[f32], count: usize, names: &[String]) -> Vec<Class> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
    order.truncate(count);
    let class = |index: usize| Class { index, class: names.get(index).cloned(), probability: probabilities[index] };
    order.into_iter().map(class).collect()
}

fn table_of(predictions: &[Prediction]) -> String {
    let mut rows = table(&["file", "class", "probability"]);
    for Prediction { file, classes } in predictions {
        for (at, class) in classes.iter().enumerate() {
            let file = if at == 0 { file.as_path() } else { Path::new("") };
            let name = class.class.clone().unwrap_or_else(|| class.index.to_string());
            rows.add_row([file.display().to_string(), name, format!("{:.4}", class.probability)]);
        }
    }
    rows.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeliest_classes_come_first_and_equal_ones_by_number() {
        let names = ["a".to_owned(), "b".to_owned()];
        let best = |count| -> Vec<(usize, Option<String>)> {
            likeliest(&[0.2, 0.3, 0.2, 0.3], count, &names).into_iter().map(|c| (c.index, c.class)).collect()
        };
        assert_eq!(best(3), [(1, Some("b".to_owned())), (3, None), (0, Some("a".to_owned()))]);
        assert_eq!(best(9).len(), 4);
    }
}
