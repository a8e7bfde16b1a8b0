//! Text that is decoded while its tokens come.

use interlock::Result;

use super::{Kind, Vocabulary};

/// The text of tokens that come one after another. Its parts together are what [`Vocabulary::decode`] makes of all tokens.
///
/// A character whose bytes are divided among several tokens is part of the text once they are all there.
///
/// ```
/// # use interlock_models::data::Vocabulary;
/// let mut stream = Vocabulary::bytes().stream();
/// assert_eq!(stream.push(&[0x61, 0xc3])?, "a");
/// assert_eq!(stream.push(&[0xa9])?, "é");
/// assert_eq!(stream.finish()?, "");
/// # Ok::<(), interlock::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TextStream {
    vocabulary: Vocabulary,
    /// The tokens whose text may depend on those that come.
    tokens: Vec<u32>,
    /// The text of these tokens that has been returned.
    returned: String,
}

impl TextStream {
    pub(super) fn new(vocabulary: Vocabulary) -> Self {
        Self { vocabulary, tokens: Vec::new(), returned: String::new() }
    }

    /// Adds tokens, and returns the text that is certain with them.
    ///
    /// # Errors
    /// As [`Vocabulary::decode`].
    pub fn push(&mut self, tokens: &[u32]) -> Result<String> {
        self.tokens.extend_from_slice(tokens);
        let tokenizer = match &*self.vocabulary.kind {
            Kind::Tokenizer(tokenizer) => Some(tokenizer),
            Kind::Bytes | Kind::Chars { .. } => None,
        };
        // Whether a run of single bytes is text is known at its end.
        let open = |token: &&u32| tokenizer.is_some_and(|tokenizer| tokenizer.is_byte(**token));
        let settled = self.tokens.len() - self.tokens.iter().rev().take_while(open).count();
        let text = self.vocabulary.decode(&self.tokens[..settled])?;
        // The last bytes may be the first of a character.
        let certain = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let new = certain.strip_prefix(self.returned.as_str()).unwrap_or_default().to_owned();
        self.returned.push_str(&new);
        if tokenizer.is_none() && certain.len() == text.len() {
            // The text of a byte or a character does not depend on earlier ones.
            self.tokens.clear();
            self.returned.clear();
        }
        Ok(new)
    }

    /// Returns the rest of the text.
    ///
    /// # Errors
    /// As [`Vocabulary::decode`].
    pub fn finish(self) -> Result<String> {
        let text = self.vocabulary.decode(&self.tokens)?;
        Ok(text.strip_prefix(self.returned.as_str()).unwrap_or_default().to_owned())
    }
}
