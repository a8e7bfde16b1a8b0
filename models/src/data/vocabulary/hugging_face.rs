//! Hugging Face tokenizers.

use interlock::{Error, Result};
use tokenizers::{ModelWrapper, Tokenizer};

use super::{super::caught::caught, cuts, expressions};

/// The longest run of white space in a text for a tokenizer with regular expressions: they hold a step for each of its characters, and stop at a
/// million without an error, so that the rest of the text would be one word.
const WHITE_SPACE: usize = 500_000;

/// The largest number of tokens.
const TOKENS: usize = 1 << 24;

/// The most bytes of all regular expressions together; those of known tokenizers have a few hundred.
const EXPRESSIONS: usize = 64 << 10;

/// The most bytes of a token of a Unigram model; those of known tokenizers have at most a few hundred. The crate `tokenizers` keeps such tokens in a tree with a
/// level for each byte, which is freed by recursion.
const TOKEN: usize = 2048;

/// A tokenizer from a `tokenizer.json`.
pub(super) struct HuggingFace {
    /// The text of the file.
    pub(super) json: String,
    /// Every token is below it.
    pub(super) len: usize,
    tokenizer: Box<Tokenizer>,
    /// Whether long texts may be cut.
    pub(super) cuts: bool,
    /// Whether it has regular expressions.
    expressions: bool,
}

impl HuggingFace {
    /// Reads the text of a `tokenizer.json`. Truncation and padding are switched off, and so is dropout, which draws the tokens of a text.
    pub(super) fn new(json: String) -> Result<Self, String> {
        let read = || -> Result<_, String> {
            let mut value: serde_json::Value = serde_json::from_str(&json).map_err(|e| e.to_string())?;
            refuse_long_tokens(&value)?;
            let read = match expressions::translate(&mut value, &mut { EXPRESSIONS })? {
                true => Tokenizer::from_bytes(value.to_string()),
                false => Tokenizer::from_bytes(&json),
            };
            drop(value);
            let mut tokenizer = read.map_err(|e| e.to_string())?;
            tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
            tokenizer.with_padding(None);
            if let ModelWrapper::BPE(model) = tokenizer.get_model()
                && model.dropout.is_some()
            {
                let mut model = model.clone();
                model.dropout = None;
                tokenizer.with_model(model);
            }
            let parts = (tokenizer.get_normalizer(), tokenizer.get_pre_tokenizer());
            let parts = serde_json::to_string(&parts).map_err(|e| e.to_string())?;
            let expressions = parts.contains(r#""Regex":"#) || parts.contains(r#""use_regex":true"#);
            Ok((number_of_tokens(&tokenizer)?, cuts::are_safe(&tokenizer), expressions, tokenizer))
        };
        let (len, cuts, expressions, tokenizer) = caught(read).unwrap_or_else(Err)?;
        Ok(Self { json, len, tokenizer: Box::new(tokenizer), cuts, expressions })
    }

    /// Returns the tokens of a text, which is encoded in pieces of at least `least` bytes if that changes no token.
    pub(super) fn encode(&self, text: &str, least: usize) -> Result<Vec<u32>> {
        if let Some(at) = self.expressions.then(|| long_white_space(text)).flatten() {
            return Err(Error::invalid(
                "text",
                format!("more than {WHITE_SPACE} characters of white space in a row, from byte {at} on"),
                "remove them: the regular expressions of the tokenizer cannot take so many",
            ));
        }
        let (mut tokens, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let encode = || -> Result<_, String> {
                let cut = self.cuts.then(|| cuts::next(&self.tokenizer, rest, least)).flatten();
                let (piece, after) = rest.split_at(cut.unwrap_or(rest.len()));
                let encoding = self.tokenizer.encode_fast(piece, false).map_err(|e| e.to_string())?;
                tokens.extend_from_slice(encoding.get_ids());
                Ok(after)
            };
            rest = caught(encode).unwrap_or_else(Err).map_err(|e| {
                Error::invalid("text", format!("the tokenizer failed: {e}"), "use a tokenizer that takes any text")
            })?;
        }
        Ok(tokens)
    }

    /// Returns the text of tokens.
    pub(super) fn decode(&self, tokens: &[u32]) -> Result<String> {
        if tokens.is_empty() {
            // Some decoders panic at none.
            return Ok(String::new());
        }
        let decode = || self.tokenizer.decode(tokens, false).map_err(|e| e.to_string());
        caught(decode)
            .unwrap_or_else(Err)
            .map_err(|e| Error::invalid("tokens", format!("the tokenizer failed: {e}"), "use its own tokens"))
    }

    /// Returns whether a token is a single byte, which makes a character only together with those beside it.
    pub(super) fn is_byte(&self, token: u32) -> bool {
        let text = caught(|| self.tokenizer.id_to_token(token)).ok().flatten().unwrap_or_default();
        let digits = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
        digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
    }
}

/// Refuses tokens of a Unigram model that are too long.
fn refuse_long_tokens(value: &serde_json::Value) -> Result<(), String> {
    let entries = value.pointer("/model/vocab").and_then(serde_json::Value::as_array).into_iter().flatten();
    let longest = entries.filter_map(|entry| entry.get(0)?.as_str().map(str::len)).max().unwrap_or(0);
    if longest > TOKEN {
        return Err(format!("a token has {longest} bytes; the tokens of a Unigram model may have {TOKEN}"));
    }
    Ok(())
}

/// Returns the number that every token is below.
fn number_of_tokens(tokenizer: &Tokenizer) -> Result<usize, String> {
    let vocabulary = tokenizer.get_vocab(true);
    let Some((text, &last)) = vocabulary.iter().max_by_key(|(_, id)| **id) else {
        return Err("the tokenizer has no tokens".to_owned());
    };
    let (len, used) = (last as usize + 1, vocabulary.len());
    if len > TOKENS {
        return Err(format!("the token {text:?} has the number {last}; the numbers of tokens must be below {TOKENS}"));
    }
    if len > 1 << 16 && used < len / 4 {
        return Err(format!(
            "the token {text:?} has the number {last}, but there are {used} tokens; number them without such gaps"
        ));
    }
    Ok(len)
}

/// Returns where white space begins that is longer than any tokenizer can take.
fn long_white_space(text: &str) -> Option<usize> {
    let (mut begin, mut count) = (0, 0);
    for (at, character) in text.char_indices() {
        if !character.is_whitespace() {
            (begin, count) = (at + character.len_utf8(), 0);
            continue;
        }
        count += 1;
        if count > WHITE_SPACE {
            return Some(begin);
        }
    }
    None
}
