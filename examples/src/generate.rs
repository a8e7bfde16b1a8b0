//! `interlock generate`: continues a text with a finished run.

use std::path::Path;

use candle_core::{Device, Tensor};
use interlock::{Error, Key};
use interlock_models::data::DataKind;
use rand::RngExt;

use crate::{
    arguments::Generate,
    evaluate::refused,
    exit::Exit,
    program::{Program, program},
    run_folder::RunFolder,
    terminal::print_data,
};

pub(crate) fn run<P: Program>(arguments: &Generate) -> Result<(), Exit> {
    let (folder, config, description) = RunFolder::open::<P>(&arguments.run)?;
    let DataKind::Text { vocab, context } = &description.kind else {
        return Err(Exit::Refused(format!(
            "{}: the run is on {}; use `{} predict` to classify them",
            arguments.run.display(),
            description.kind.name(),
            program()
        )));
    };
    if !(arguments.temperature >= 0.0 && arguments.temperature.is_finite()) {
        return Err(
            Error::invalid("--temperature", arguments.temperature.to_string(), "use 0 or a positive number").into()
        );
    }
    if arguments.top_k == Some(0) {
        return Err(Error::invalid("--top-k", "0", "use 1 or more").into());
    }
    let mut tokens = description.encode(Path::new("--prompt"), arguments.prompt.as_bytes())?;
    let weights = folder.weights(false)?;
    let builder = config.of_finished_run(&description, &weights, &arguments.devices)?;
    let mut predictor = builder.predictor(weights).map_err(|error| refused(&arguments.run, &error))?;
    let mut draws = Key::new(arguments.seed).named("generate").stream();
    let mut stream = vocab.stream();
    let mut next = stream.push(&tokens)?;
    for _ in 0..arguments.tokens {
        if !print_data(&next)? {
            return Ok(());
        }
        let window = &tokens[tokens.len().saturating_sub(*context)..];
        let inputs = Tensor::from_slice(window, (1, window.len()), &Device::Cpu).map_err(Exit::failed)?;
        let logits = predictor.predict(inputs)?;
        let last = logits.narrow(1, window.len() - 1, 1).and_then(|l| l.flatten_all()?.to_vec1::<f32>());
        let mut last = last.map_err(Exit::failed)?;
        // A model may have outputs for more tokens than the vocabulary.
        last.truncate(vocab.len());
        let token = choose(&last, arguments, draws.random::<f64>());
        tokens.push(token);
        next = stream.push(&[token])?;
    }
    print_data(&(next + &stream.finish()? + "\n")).map(drop)
}

/// Chooses a token by the draw `u` from 0 to 1.
fn choose(logits: &[f32], arguments: &Generate, u: f64) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    if arguments.temperature == 0.0 {
        return order[0];
    }
    order.truncate(arguments.top_k.unwrap_or(order.len()));
    let best = f64::from(logits[order[0] as usize]);
    let weight = |&token: &u32| ((f64::from(logits[token as usize]) - best) / arguments.temperature).exp();
    let mut left = u * order.iter().map(weight).sum::<f64>();
    for token in &order {
        left -= weight(token);
        if left < 0.0 {
            return *token;
        }
    }
    order[order.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_temperature_and_top_k() {
        let arguments = |temperature, top_k| Generate {
            run: "run".into(),
            devices: Vec::new(),
            prompt: String::new(),
            temperature,
            top_k,
            seed: 0,
            tokens: 1,
        };
        // Probabilities 1/8, 5/8, 2/8.
        let logits = [1.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln()];
        let draw = |arguments: &Generate, u| choose(&logits, arguments, u);
        assert_eq!([0.0, 0.62, 0.63, 0.87, 0.88].map(|u| draw(&arguments(1.0, None), u)), [1, 1, 2, 2, 0]);
        assert_eq!(draw(&arguments(0.0, None), 0.99), 1);
        assert_eq!(draw(&arguments(1.0, Some(1)), 0.99), 1);
        assert_eq!([0.71, 0.72].map(|u| draw(&arguments(1.0, Some(2)), u)), [1, 2]);
        assert_eq!(draw(&arguments(1e-3, None), 0.999), 1);
    }
}
