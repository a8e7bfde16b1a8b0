//! Vocabularies, which encode text as tokens and decode tokens.

use std::{collections::HashMap, fmt, path::Path, sync::Arc};

use interlock::{Error, Result, tools};
use serde::{Deserialize, Serialize};

use self::hugging_face::HuggingFace;
use super::{
    LineEnds,
    files::{self, Most},
    limits,
    text::utf8,
};

mod cuts;
mod expressions;
mod hugging_face;
mod stream;

#[cfg(test)]
pub(super) use cuts::WORDS as CUT_PATTERNS;
pub use stream::TextStream;

/// The least number of bytes of a piece of text for a Hugging Face tokenizer.
const PIECE: usize = 1 << 20;

/// The vocabulary of a text model: the text of each token. It is cheap to clone.
///
/// The serialised form is complete: it needs neither the text nor the tokenizer's file that the vocabulary was made from.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Vocabulary {
    kind: Arc<Kind>,
    line_ends: LineEnds,
}

enum Kind {
    Bytes,
    Chars { characters: Vec<char>, tokens: HashMap<char, u32> },
    Tokenizer(HuggingFace),
}

/// The serialised form.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Stored {
    Bytes {
        #[serde(default, skip_serializing_if = "LineEnds::are_kept")]
        line_ends: LineEnds,
    },
    Chars {
        /// Token 0 is the first character.
        characters: String,
        #[serde(default, skip_serializing_if = "LineEnds::are_kept")]
        line_ends: LineEnds,
    },
    Tokenizer {
        /// The text of a `tokenizer.json`.
        json: String,
        #[serde(default, skip_serializing_if = "LineEnds::are_kept")]
        line_ends: LineEnds,
    },
}

impl TryFrom<Stored> for Vocabulary {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        let (kind, line_ends) = match stored {
            Stored::Bytes { line_ends } => (Kind::Bytes, line_ends),
            Stored::Chars { characters, line_ends } => {
                let characters: Vec<char> = characters.chars().collect();
                let tokens: HashMap<_, _> = characters.iter().enumerate().map(|(i, &c)| (c, i as u32)).collect();
                if tokens.is_empty() || tokens.len() != characters.len() {
                    return Err("`characters` must have at least one character, and each once".to_owned());
                }
                (Kind::Chars { characters, tokens }, line_ends)
            }
            Stored::Tokenizer { json, line_ends } => (Kind::Tokenizer(HuggingFace::new(json)?), line_ends),
        };
        Ok(Self { kind: Arc::new(kind), line_ends })
    }
}

impl From<Vocabulary> for Stored {
    fn from(Vocabulary { kind, line_ends }: Vocabulary) -> Self {
        match &*kind {
            Kind::Bytes => Self::Bytes { line_ends },
            Kind::Chars { characters, .. } => Self::Chars { characters: characters.iter().collect(), line_ends },
            Kind::Tokenizer(tokenizer) => Self::Tokenizer { json: tokenizer.json.clone(), line_ends },
        }
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &*self.kind {
            Kind::Bytes => "bytes",
            Kind::Chars { .. } => "chars",
            Kind::Tokenizer(_) => "tokenizer",
        };
        write!(f, "Vocabulary({kind}, {} tokens)", self.len())
    }
}

impl Vocabulary {
    /// Returns the vocabulary of 256 tokens, one for each byte.
    pub fn bytes() -> Self {
        Self { kind: Arc::new(Kind::Bytes), line_ends: LineEnds::Keep }
    }

    /// Returns the vocabulary with a token for each different character of `text`, in the order of code points.
    ///
    /// # Errors
    /// If `text` is empty.
    pub fn of_characters(text: &str) -> Result<Self> {
        let mut seen: Vec<char> = text.chars().collect::<std::collections::HashSet<_>>().into_iter().collect();
        seen.sort_unstable();
        let stored = Stored::Chars { characters: seen.into_iter().collect(), line_ends: LineEnds::Keep };
        Self::try_from(stored).map_err(|_| Error::invalid("text", "empty", "give at least one character"))
    }

    /// Returns the same vocabulary with these line ends in the texts that it encodes. By default they are kept.
    #[must_use]
    pub fn with_line_ends(self, line_ends: LineEnds) -> Self {
        Self { line_ends, ..self }
    }

    /// Reads a Hugging Face `tokenizer.json`, or a vocabulary that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// If there is no such file, or it is neither of the two.
    pub fn load(path: &Path) -> Result<Self> {
        let remedy = "expected a Hugging Face tokenizer.json or a vocabulary saved by a run";
        let bytes = files::read(path, Most::Bytes(limits::JSON), remedy)?;
        let json = utf8(path, &bytes, remedy)?;
        let refused = |cause: &dyn fmt::Display| Error::file(path, format!("{cause}; {remedy}"));
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| refused(&e))?;
        if value.get("kind").is_some() {
            serde_json::from_value(value).map_err(|e| refused(&e))
        } else {
            Self::try_from(Stored::Tokenizer { json: json.to_owned(), line_ends: LineEnds::Keep })
                .map_err(|e| refused(&format_args!("not a tokenizer: {e}")))
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
        match &*self.kind {
            Kind::Tokenizer(tokenizer) => Some(&tokenizer.json),
            Kind::Bytes | Kind::Chars { .. } => None,
        }
    }

    /// Returns the line ends of the texts that it encodes.
    pub(crate) fn line_ends(&self) -> LineEnds {
        self.line_ends
    }

    /// Returns the characters by token, if tokens are characters.
    pub(crate) fn characters(&self) -> Option<&[char]> {
        match &*self.kind {
            Kind::Chars { characters, .. } => Some(characters),
            Kind::Bytes | Kind::Tokenizer(_) => None,
        }
    }

    /// Returns the tokens of a text that need not be UTF-8; none if tokens are not bytes.
    pub(super) fn encode_bytes(&self, text: &[u8]) -> Option<Vec<u32>> {
        matches!(&*self.kind, Kind::Bytes).then(|| self.line_ends.of_bytes(text).map(u32::from).collect())
    }

    /// Returns the number of tokens; every token is below it.
    pub fn len(&self) -> usize {
        match &*self.kind {
            Kind::Bytes => 256,
            Kind::Chars { characters, .. } => characters.len(),
            Kind::Tokenizer(tokenizer) => tokenizer.len,
        }
    }

    /// Returns false, since a vocabulary has at least one token.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the tokens of a text, without special tokens around them.
    ///
    /// A Hugging Face tokenizer gets a text of more than 1 MiB in pieces, which takes less memory, if it is known that this changes no token: see
    /// `vocabulary/cuts.rs`. Otherwise it gets the whole text.
    ///
    /// # Errors
    /// If the text has a character that is not in the vocabulary; the message has its position. If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_in_pieces(text, PIECE)
    }

    /// [`Self::encode`] with pieces of at least `least` bytes, for a tokenizer for which that changes no token.
    pub(super) fn encode_in_pieces(&self, text: &str, least: usize) -> Result<Vec<u32>> {
        let plain = self.line_ends.of(text);
        match &*self.kind {
            Kind::Bytes => Ok(plain.bytes().map(u32::from).collect()),
            Kind::Chars { tokens, .. } => {
                let token = |(at, character): (usize, char)| {
                    tokens.get(&character).copied().ok_or_else(|| {
                        let at = self.line_ends.origin(text, at);
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
                plain.char_indices().map(token).collect()
            }
            Kind::Tokenizer(tokenizer) => tokenizer.encode(&plain, least),
        }
    }

    /// Returns whether long texts are encoded in pieces.
    #[cfg(test)]
    pub(super) fn cuts_texts(&self) -> bool {
        matches!(&*self.kind, Kind::Tokenizer(tokenizer) if tokenizer.cuts)
    }

    /// Returns the text of tokens that come one after another.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone())
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
        match &*self.kind {
            Kind::Bytes => {
                let bytes: Vec<u8> = tokens.iter().map(|&t| t as u8).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Kind::Chars { characters, .. } => Ok(tokens.iter().map(|&t| characters[t as usize]).collect()),
            Kind::Tokenizer(tokenizer) => tokenizer.decode(tokens),
        }
    }
}
