//! Data sets of text, in windows of tokens.

use std::path::Path;

use candle_core::{Device, Tensor};
use interlock::{Batch, Dataset, Error, Key, Result};
use rand::RngExt;

use super::{LineEnds, Vocabulary, images::out_of_range};

mod encoding;

pub(super) use encoding::utf8;

/// What to do with a text of another encoding.
const NOT_UTF8: &str = "convert it to UTF-8, or train with tokenizer = \"bytes\"";

/// Tokens, in two bytes each if all fit.
#[derive(Clone, Debug)]
enum Tokens {
    Short(Vec<u16>),
    Long(Vec<u32>),
}

impl Tokens {
    fn new(tokens: Vec<u32>) -> Self {
        match tokens.iter().map(|&t| u16::try_from(t)).collect() {
            Ok(short) => Self::Short(short),
            Err(_) => Self::Long(tokens),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Short(tokens) => tokens.len(),
            Self::Long(tokens) => tokens.len(),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Short(tokens) => tokens.truncate(len),
            Self::Long(tokens) => tokens.truncate(len),
        }
    }

    fn append(&self, at: usize, count: usize, out: &mut Vec<u32>) {
        match self {
            Self::Short(tokens) => out.extend(tokens[at..at + count].iter().map(|&t| u32::from(t))),
            Self::Long(tokens) => out.extend_from_slice(&tokens[at..at + count]),
        }
    }
}

/// A data set of a text's windows of `context` tokens, with the next token of each as the target.
///
/// Inputs and targets are `(B, context)` of `u32`; `targets[b, s]` is the token after `inputs[b, s]`. Window `i` begins at token `i · context`:
/// windows do not overlap, and the rest at the end is not used. In an augmented batch, if the set shifts, window `i` begins up to `context - 1`
/// tokens later, but not so late that it would leave the text. So over the epochs tokens occur at all positions of a window.
#[derive(Clone, Debug)]
pub struct TextSet {
    tokens: Tokens,
    context: usize,
    shift: bool,
}

impl TextSet {
    /// Makes a set of the windows of `tokens`; with `shift`, windows of an augmented batch begin at random later.
    ///
    /// # Errors
    /// If `context` is 0, or there are too few tokens for one window and the token after it.
    pub fn new(tokens: Vec<u32>, context: usize, shift: bool) -> Result<Self> {
        if context == 0 {
            return Err(Error::invalid("data.context", "0", "give the number of tokens of a window, at least 1"));
        }
        if tokens.len() <= context {
            return Err(Error::invalid(
                "data.context",
                format!("{} tokens are too few for a window of {context} and the token after it", tokens.len()),
                "give a longer text or a smaller context",
            ));
        }
        Ok(Self { tokens: Tokens::new(tokens), context, shift })
    }

    /// Keeps at most the first `count` windows, and at least one.
    pub fn truncate(&mut self, count: usize) {
        self.tokens.truncate(count.max(1).saturating_mul(self.context).saturating_add(1));
    }

    /// Returns the number of tokens of a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns the number of tokens of the whole text.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }
}

impl Dataset for TextSet {
    fn len(&self) -> usize {
        (self.tokens.len() - 1) / self.context
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        let context = self.context;
        let last = self.tokens.len() - 1 - context;
        let capacity = numbers.len() * context;
        let (mut inputs, mut targets) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        for &number in numbers {
            if number >= self.len() {
                return Err(out_of_range(number, self.len()));
            }
            let shift = match augment.filter(|_| self.shift) {
                Some(key) => key.with(number as u64).stream().random_range(0..context as u64) as usize,
                None => 0,
            };
            let at = (number * context + shift).min(last);
            self.tokens.append(at, context, &mut inputs);
            self.tokens.append(at + 1, context, &mut targets);
        }
        let shape = (numbers.len(), context);
        Ok(Batch {
            inputs: Tensor::from_vec(inputs, shape, &Device::Cpu)?.into(),
            targets: Tensor::from_vec(targets, shape, &Device::Cpu)?,
        })
    }
}

/// The vocabulary that makes tokens of a text.
pub(super) enum Tokenization<'a> {
    Bytes,
    Characters,
    File(&'a Path),
}

/// Returns the vocabulary of texts, and the tokens of each; errors name the texts' paths.
pub(super) fn tokenize(
    texts: &[(&Path, &[u8])],
    tokenization: &Tokenization<'_>,
    line_ends: LineEnds,
) -> Result<(Vocabulary, Vec<Vec<u32>>)> {
    for (path, text) in texts {
        if encoding::without_mark(path, text)?.is_empty() {
            return Err(Error::file(*path, "is empty; give a text of at least one window of tokens and one more"));
        }
    }
    let vocabulary = match tokenization {
        Tokenization::Bytes => Vocabulary::bytes(),
        Tokenization::Characters => {
            let text = texts.iter().map(|(path, text)| utf8(path, text, NOT_UTF8)).collect::<Result<String>>()?;
            Vocabulary::of_characters(&line_ends.of(&text))?
        }
        Tokenization::File(path) => Vocabulary::load(path)?,
    };
    // A saved vocabulary may have line ends of its own.
    let vocabulary = if line_ends.are_kept() { vocabulary } else { vocabulary.with_line_ends(line_ends) };
    let tokens = texts.iter().map(|&text| encode(&vocabulary, text)).collect::<Result<_>>()?;
    Ok((vocabulary, tokens))
}

/// Returns the tokens of a text; errors name its path.
pub(super) fn encode(vocabulary: &Vocabulary, (path, text): (&Path, &[u8])) -> Result<Vec<u32>> {
    if let Some(tokens) = vocabulary.encode_bytes(encoding::without_mark(path, text)?) {
        return Ok(tokens);
    }
    vocabulary.encode(utf8(path, text, NOT_UTF8)?).map_err(|error| match error {
        Error::Invalid { problem, remedy, .. } => Error::file(path, format!("{problem}; {remedy}")),
        error => error,
    })
}
