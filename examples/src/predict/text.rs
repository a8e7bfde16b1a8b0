//! Predictions for texts: how well the model predicts each, and the tokens that may follow.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use candle_core::{D, Device, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use interlock::{Error, Predictor, Result};
use interlock_models::data::{Description, Vocabulary};
use serde::Serialize;

use crate::{
    arguments::Predict,
    predict::likeliest,
    table::{dash, table},
};

/// A text to predict from.
pub(super) struct Text {
    /// Its file, `-`, or `--text`.
    name: String,
    /// At least one.
    tokens: Vec<u32>,
}

/// One text, as JSON.
#[derive(Serialize)]
pub(super) struct TextPrediction {
    file: String,
    /// The number of the text's tokens.
    tokens: usize,
    /// The mean negative log-likelihood, in nats, of each token but the first; null if there is no other.
    loss: Option<f64>,
    /// `exp` of the loss.
    perplexity: Option<f64>,
    /// The likeliest tokens after the text, the likeliest first.
    next: Vec<NextToken>,
}

#[derive(Serialize)]
struct NextToken {
    /// Its number.
    token: u32,
    /// The text that it adds; a byte that is no character alone is `U+FFFD`.
    text: String,
    /// From 0 to 1; those of all tokens add up to 1.
    probability: f32,
}

/// Reads the texts that are named, at most `limit` of them.
pub(super) fn read(arguments: &Predict, description: &Description, limit: usize) -> Result<Vec<Text>> {
    if let Some(text) = &arguments.text {
        let name = "--text".to_owned();
        let tokens = description.encode(Path::new(&name), text.as_bytes())?;
        return Ok(vec![Text { name, tokens }]);
    }
    let read = |file: &PathBuf| -> Result<Text> {
        let tokens = if file == Path::new("-") {
            let (mut text, stdin) = (Vec::new(), Path::new("stdin"));
            io::stdin().read_to_end(&mut text).map_err(|e| Error::file(stdin, e))?;
            description.encode(stdin, &text)?
        } else {
            description.read_text(file)?
        };
        Ok(Text { name: file.display().to_string(), tokens })
    };
    arguments.inputs.iter().take(limit).map(read).collect()
}

/// A window of a text: the model sees its tokens, and predicts after each of them the next one.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    start: usize,
    /// The number of its first predictions that an earlier window has made with more tokens before them.
    made: usize,
}

/// Cuts a text into windows of `length` tokens one after another. The last one ends with the text, so it may overlap the one before it.
fn windows(tokens: usize, length: usize) -> Vec<Window> {
    let window = |number: usize| {
        let start = (number * length).min(tokens - length);
        Window { start, made: number * length - start }
    };
    (0..tokens.div_ceil(length)).map(window).collect()
}

/// A language model at one of its heads.
pub(super) struct Model<'a> {
    pub(super) predictor: &'a mut Predictor,
    pub(super) head: usize,
    pub(super) vocabulary: &'a Vocabulary,
    /// The most tokens of a window.
    pub(super) context: usize,
}

impl Model<'_> {
    /// Predicts for each text, with batches of at most `batch_size` windows, and returns the `top` likeliest next tokens.
    pub(super) fn predict(mut self, texts: Vec<Text>, batch_size: usize, top: usize) -> Result<Vec<TextPrediction>> {
        texts.into_iter().map(|text| self.predict_text(text, batch_size.max(1), top)).collect()
    }

    fn predict_text(&mut self, text: Text, batch_size: usize, top: usize) -> Result<TextPrediction> {
        let Text { name: file, tokens } = text;
        let length = self.context.min(tokens.len());
        let (mut loss, mut last) = (0.0, None);
        for windows in windows(tokens.len(), length).chunks(batch_size) {
            let shape = (windows.len(), length);
            let inputs: Vec<u32> = windows.iter().flat_map(|w| &tokens[w.start..w.start + length]).copied().collect();
            // There is no token after the last one: any number stands for it, and its loss is not added.
            let token = |at: usize| tokens.get(at).copied().unwrap_or_default();
            let targets: Vec<u32> = windows.iter().flat_map(|w| (w.start + 1..=w.start + length).map(token)).collect();
            let logits = self.predictor.predict_at(self.head, Tensor::from_vec(inputs, shape, &Device::Cpu)?)?;
            let targets = Tensor::from_vec(targets, shape, &Device::Cpu)?.unsqueeze(D::Minus1)?;
            let likelihoods: Vec<Vec<f32>> =
                log_softmax(&logits, D::Minus1)?.gather(&targets, D::Minus1)?.squeeze(D::Minus1)?.to_vec2()?;
            for (window, likelihoods) in windows.iter().zip(likelihoods) {
                let predicted = (tokens.len() - 1 - window.start).min(length);
                loss -= likelihoods[window.made..predicted].iter().map(|&l| f64::from(l)).sum::<f64>();
            }
            last = Some(logits.get(windows.len() - 1)?.get(length - 1)?);
        }
        let predicted = tokens.len() - 1;
        let loss = (predicted > 0).then(|| loss / predicted as f64);
        let mut after = last.map_or(Ok(Vec::new()), |logits| softmax(&logits, 0)?.to_vec1::<f32>())?;
        // A model may have outputs for more tokens than the vocabulary.
        after.truncate(self.vocabulary.len());
        let next = likeliest(&after, top).map(|(token, probability)| {
            let token = token as u32;
            Ok(NextToken { token, text: text_after(self.vocabulary, tokens[predicted], token)?, probability })
        });
        let next = next.collect::<Result<_>>()?;
        Ok(TextPrediction { file, tokens: tokens.len(), loss, perplexity: loss.map(f64::exp), next })
    }
}

/// Returns the text that a token adds behind another one, with a space before it if the tokenizer puts one there.
fn text_after(vocabulary: &Vocabulary, last: u32, token: u32) -> Result<String> {
    let (before, both) = (vocabulary.decode(&[last])?, vocabulary.decode(&[last, token])?);
    both.strip_prefix(before.as_str()).map_or_else(|| vocabulary.decode(&[token]), |text| Ok(text.to_owned()))
}

pub(super) fn table_of(predictions: &[TextPrediction]) -> String {
    let mut rows = table(&["file", "tokens", "perplexity", "next", "probability"]);
    for TextPrediction { file, tokens, perplexity, next, .. } in predictions {
        let perplexity = perplexity.map_or_else(dash, |p| format!("{p:.3}"));
        let mut first = [file.clone(), tokens.to_string(), perplexity];
        for NextToken { text, probability, .. } in next {
            let [file, tokens, perplexity] = std::mem::take(&mut first);
            rows.add_row([file, tokens, perplexity, format!("{text:?}"), format!("{probability:.4}")]);
        }
    }
    rows.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_every_token_but_the_first_once() {
        for (tokens, context) in [(1, 4), (2, 4), (4, 4), (5, 4), (8, 4), (9, 4), (11, 4), (7, 1)] {
            let length = context.min(tokens);
            let windows = windows(tokens, length);
            let last = windows.last().unwrap();
            assert_eq!(last.start + length, tokens, "{tokens}");
            let predicted: Vec<usize> = windows.iter().flat_map(|w| w.start + w.made + 1..=w.start + length).collect();
            assert_eq!(predicted, (1..=tokens).collect::<Vec<_>>(), "{tokens} in windows of {context}");
        }
        assert_eq!(windows(9, 4)[2], Window { start: 5, made: 3 });
    }
}
