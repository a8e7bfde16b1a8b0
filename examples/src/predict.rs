//! `interlock predict`: classifies examples, or predicts how texts go on, with a finished run.

mod text;

use candle_core::D;
use interlock::{Error, Predictor};
use interlock_models::data::{DataKind, Inputs, Vocabulary};
use serde::Serialize;

use crate::{
    arguments::Predict,
    evaluate::{check_head, refused},
    exit::Exit,
    program::{DataSection, Program},
    run_folder::RunFolder,
    table::table,
    terminal::print,
};

/// One example and its likeliest classes, as JSON.
#[derive(Serialize)]
struct Prediction {
    /// The example's file; for one of several examples of a file, with its number.
    file: String,
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

/// What to predict from.
enum Subject<'a> {
    Examples(Inputs),
    Texts { texts: Vec<text::Text>, vocabulary: &'a Vocabulary, context: usize },
}

pub(crate) fn run<P: Program>(arguments: &Predict) -> Result<(), Exit> {
    let (folder, config, description) = RunFolder::open::<P>(&arguments.run)?;
    for (name, value) in [("--top", arguments.top), ("--limit", arguments.limit)] {
        if value == Some(0) {
            return Err(Error::invalid(name, "0", "use 1 or more").into());
        }
    }
    let limit = arguments.limit.unwrap_or(usize::MAX);
    let subject = match (&description.kind, &arguments.text) {
        (DataKind::Text { vocab: vocabulary, context }, _) => {
            let texts = text::read(arguments, &description, limit)?;
            Subject::Texts { texts, vocabulary, context: *context }
        }
        (kind, Some(_)) => {
            let problem = format!("the run is on {}", kind.name());
            return Err(Error::invalid("--text", problem, format!("name files of {}", kind.name())).into());
        }
        (_, None) => {
            let mut inputs = config.data.read_inputs(&description, &arguments.inputs)?;
            inputs.truncate(limit);
            Subject::Examples(inputs)
        }
    };
    let weights = folder.weights(arguments.best)?;
    let builder = config.of_finished_run(&description, &weights, &arguments.devices)?;
    let mut predictor = builder.predictor(weights).map_err(|error| refused(&arguments.run, &error))?;
    let heads = predictor.heads();
    let head = arguments.head.or(heads.last().copied()).unwrap_or_default();
    check_head(head, &heads)?;
    match subject {
        Subject::Texts { texts, vocabulary, context } => {
            let model = text::Model { predictor: &mut predictor, head, vocabulary, context };
            let predictions = model.predict(texts, config.batch_size, arguments.top.unwrap_or(5))?;
            show(arguments.json, &predictions, text::table_of)
        }
        Subject::Examples(inputs) => {
            let (top, names) = (arguments.top.unwrap_or(1), description.kind.class_names());
            let predictions = classify(&mut predictor, head, &inputs, config.batch_size, top, names)?;
            show(arguments.json, &predictions, table_of)
        }
    }
}

/// Prints predictions as JSON or as the table.
fn show<T: Serialize>(json: bool, predictions: &[T], table_of: impl Fn(&[T]) -> String) -> Result<(), Exit> {
    print(&if json { serde_json::to_string(predictions).map_err(Exit::failed)? } else { table_of(predictions) })
}

/// Returns the `top` likeliest classes of each example.
fn classify(
    predictor: &mut Predictor,
    head: usize,
    inputs: &Inputs,
    batch_size: usize,
    top: usize,
    names: &[String],
) -> Result<Vec<Prediction>, Exit> {
    let mut predictions = Vec::with_capacity(inputs.len());
    for batch in inputs.batches(batch_size) {
        let (files, inputs) = batch?;
        let logits = predictor.predict_at(head, inputs)?;
        let probabilities: Vec<Vec<f32>> =
            candle_nn::ops::softmax(&logits, D::Minus1).and_then(|all| all.to_vec2()).map_err(Exit::failed)?;
        let class = |(index, probability)| Class { index, class: names.get(index).cloned(), probability };
        predictions.extend(files.iter().zip(probabilities).map(|(file, probabilities)| Prediction {
            file: file.clone(),
            classes: likeliest(&probabilities, top).map(class).collect(),
        }));
    }
    Ok(predictions)
}

/// Returns the numbers and probabilities of the `count` likeliest outputs, the likeliest first; of equal ones, those with lower numbers first.
fn likeliest(probabilities: &[f32], count: usize) -> impl Iterator<Item = (usize, f32)> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
    order.truncate(count);
    order.into_iter().map(|index| (index, probabilities[index]))
}

fn table_of(predictions: &[Prediction]) -> String {
    let mut rows = table(&["file", "class", "probability"]);
    for Prediction { file, classes } in predictions {
        for (at, class) in classes.iter().enumerate() {
            let file = if at == 0 { file.as_str() } else { "" };
            let name = class.class.clone().unwrap_or_else(|| class.index.to_string());
            rows.add_row([file.to_owned(), name, format!("{:.4}", class.probability)]);
        }
    }
    rows.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeliest_outputs_come_first_and_equal_ones_by_number() {
        let best = |count| likeliest(&[0.2, 0.3, 0.2, 0.3], count).collect::<Vec<_>>();
        assert_eq!(best(3), [(1, 0.3), (3, 0.3), (0, 0.2)]);
        assert_eq!(best(9).len(), 4);
    }
}
