//! Vocabularies, which encode text as tokens and decode tokens.

use std::{collections::HashMap, fmt, path::Path, sync::Arc};

use interlock::{Error, Result, tools};
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::files;

/// The least number of bytes of a piece of text for a Hugging Face tokenizer.
const PIECE: usize = 1 << 20;

/// The vocabulary of a text model: the text of each token. It is cheap to clone.
///
/// The serialised form is complete: it needs neither the text nor the tokenizer's file that the vocabulary was made from.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Vocabulary(Arc<Kind>);

enum Kind {
    Bytes,
    Chars { characters: Vec<char>, tokens: HashMap<char, u32> },
    Tokenizer { json: String, tokenizer: Box<Tokenizer>, len: usize },
}

/// The serialised form.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Stored {
    Bytes {},
    Chars {
        /// Token 0 is the first character.
        characters: String,
    },
    Tokenizer {
        /// The text of a `tokenizer.json`.
        json: String,
    },
}

impl TryFrom<Stored> for Vocabulary {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        match stored {
            Stored::Bytes {} => Ok(Self::bytes()),
            Stored::Chars { characters } => {
                let characters: Vec<char> = characters.chars().collect();
                let tokens: HashMap<_, _> = characters.iter().enumerate().map(|(i, &c)| (c, i as u32)).collect();
                if tokens.is_empty() || tokens.len() != characters.len() {
                    return Err("`characters` must have at least one character, and each once".to_owned());
                }
                Ok(Self(Arc::new(Kind::Chars { characters, tokens })))
            }
            Stored::Tokenizer { json } => Self::from_tokenizer_json(json),
        }
    }
}

impl From<Vocabulary> for Stored {
    fn from(vocabulary: Vocabulary) -> Self {
        match &*vocabulary.0 {
            Kind::Bytes => Self::Bytes {},
            Kind::Chars { characters, .. } => Self::Chars { characters: characters.iter().collect() },
            Kind::Tokenizer { json, .. } => Self::Tokenizer { json: json.clone() },
        }
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &*self.0 {
            Kind::Bytes => "bytes",
            Kind::Chars { .. } => "chars",
            Kind::Tokenizer { .. } => "tokenizer",
        };
        write!(f, "Vocabulary({kind}, {} tokens)", self.len())
    }
}

impl Vocabulary {
    /// Returns the vocabulary of 256 tokens, one for each byte.
    pub fn bytes() -> Self {
        Self(Arc::new(Kind::Bytes))
    }

    /// Returns the vocabulary with a token for each different character of `text`, in the order of code points.
    ///
    /// # Errors
    /// If `text` is empty.
    pub fn of_characters(text: &str) -> Result<Self> {
        let mut seen: Vec<char> = text.chars().collect::<std::collections::HashSet<_>>().into_iter().collect();
        seen.sort_unstable();
        let stored = Stored::Chars { characters: seen.into_iter().collect() };
        Self::try_from(stored).map_err(|_| Error::invalid("text", "empty", "give at least one character"))
    }

    /// Returns the vocabulary of a Hugging Face `tokenizer.json`, with truncation and padding switched off.
    fn from_tokenizer_json(json: String) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_bytes(&json).map_err(|e| e.to_string())?;
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        let len = tokenizer.get_vocab(true).values().max().map_or(0, |&last| last as usize + 1);
        if len == 0 {
            return Err("the tokenizer has no tokens".to_owned());
        }
        Ok(Self(Arc::new(Kind::Tokenizer { json, tokenizer: Box::new(tokenizer), len })))
    }

    /// Reads a Hugging Face `tokenizer.json`, or a vocabulary that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// If there is no such file, or it is neither of the two.
    pub fn load(path: &Path) -> Result<Self> {
        let remedy = "expected a Hugging Face tokenizer.json or a vocabulary saved by a run";
        let json = String::from_utf8(files::read(path, remedy)?).map_err(|e| {
            Error::file(path, format!("is not UTF-8 at byte {}; {remedy}", e.utf8_error().valid_up_to()))
        })?;
        let refused = |cause: &dyn fmt::Display| Error::file(path, format!("{cause}; {remedy}"));
        let value: serde_json::Value = serde_json::from_str(&json).map_err(|e| refused(&e))?;
        if value.get("kind").is_some() {
            serde_json::from_value(value).map_err(|e| refused(&e))
        } else {
            Self::from_tokenizer_json(json).map_err(|e| refused(&format_args!("not a tokenizer: {e}")))
        }
    }

    /// Writes this vocabulary as JSON. The file is written completely or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::file(path, e))?;
        tools::files::write(path, json)
    }

    /// Returns the text of the `tokenizer.json` that this vocabulary was read from, if it was.
    pub(crate) fn tokenizer_json(&self) -> Option<&str> {
        match &*self.0 {
            Kind::Tokenizer { json, .. } => Some(json),
            Kind::Bytes | Kind::Chars { .. } => None,
        }
    }

    /// Returns the characters by token, if tokens are characters.
    pub(crate) fn characters(&self) -> Option<&[char]> {
        match &*self.0 {
            Kind::Chars { characters, .. } => Some(characters),
            Kind::Bytes | Kind::Tokenizer { .. } => None,
        }
    }

    /// Returns whether tokens are bytes, so that a text need not be UTF-8.
    pub(super) fn is_of_bytes(&self) -> bool {
        matches!(&*self.0, Kind::Bytes)
    }

    /// Returns the number of tokens; every token is below it.
    pub fn len(&self) -> usize {
        match &*self.0 {
            Kind::Bytes => 256,
            Kind::Chars { characters, .. } => characters.len(),
            Kind::Tokenizer { len, .. } => *len,
        }
    }

    /// Returns false, since a vocabulary has at least one token.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the tokens of a text, without special tokens around them.
    ///
    /// To bound memory, a Hugging Face tokenizer gets a text of more than 1 MiB in pieces, which end where a line ends and the next one begins
    /// without white space.
    ///
    /// # Errors
    /// If the text has a character that is not in the vocabulary; the message has its position.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &*self.0 {
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::Chars { tokens, .. } => {
                let token = |(at, character): (usize, char)| {
                    tokens.get(&character).copied().ok_or_else(|| {
                        Error::invalid(
                            "text",
                            format!("the character {character:?} at byte {at} is not in the vocabulary"),
                            format!(
                                "use only the {} characters of the text that the vocabulary was made from",
                                self.len()
                            ),
                        )
                    })
                };
                text.char_indices().map(token).collect()
            }
            Kind::Tokenizer { tokenizer, .. } => {
                let mut tokens = Vec::new();
                for piece in pieces(text, PIECE) {
                    let encoding = tokenizer.encode_fast(piece, false);
                    let encoding = encoding.map_err(|e| {
                        Error::invalid(
                            "text",
                            format!("the tokenizer failed: {e}"),
                            "use a tokenizer that takes any text",
                        )
                    })?;
                    tokens.extend_from_slice(encoding.get_ids());
                }
                Ok(tokens)
            }
        }
    }

    /// Returns the text of `tokens`; bytes that are not UTF-8 become `U+FFFD`.
    ///
    /// # Errors
    /// If a token is not below [`len`](Self::len).
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let len = self.len();
        if let Some(at) = tokens.iter().position(|&t| t as usize >= len) {
            return Err(Error::invalid(
                "tokens",
                format!("token {} at index {at} is not in the vocabulary", tokens[at]),
                format!("give tokens below {len}"),
            ));
        }
        match &*self.0 {
            Kind::Bytes => {
                let bytes: Vec<u8> = tokens.iter().map(|&t| t as u8).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::Chars { characters, .. } => Ok(tokens.iter().map(|&t| characters[t as usize]).collect()),
            Kind::Tokenizer { tokenizer, .. } => tokenizer
                .decode(tokens, false)
                .map_err(|e| Error::invalid("tokens", format!("the tokenizer failed: {e}"), "use its own tokens")),
        }
    }
}

/// Divides `text` into pieces of at least `least` bytes, except for the last one. A piece ends after a line end between two visible characters.
pub(super) fn pieces(text: &str, least: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let visible = |byte: Option<&u8>| byte.is_some_and(|b| !b.is_ascii_whitespace());
        let bytes = rest.as_bytes();
        let end = (least.max(1)..bytes.len())
            .find(|&i| bytes[i - 1] == b'\n' && visible(bytes.get(i.wrapping_sub(2))) && visible(bytes.get(i)))
            .unwrap_or(bytes.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}
