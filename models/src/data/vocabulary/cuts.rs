//! Where a long text can be cut so that a Hugging Face tokenizer makes the same tokens of the pieces as of the whole.
//!
//! A cut lies before a single space between two letters or digits. It changes no token if
//! 1. the normalizer changes what is before the cut and what is behind it independently of each other, and leaves the space there,
//! 2. the pre-tokenizer begins a word at the cut, or removes the space, whatever else the text has,
//! 3. no added token contains such a place, nor takes white space on its right.
//!
//! Models see one word at a time, so nothing else matters. [`are_safe`] knows which parts of a tokenizer are of this kind. All others get a text as a
//! whole, such as those that see a text as a single word (the structure of Llama 2 and Gemma).

use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    Tokenizer, pre_tokenizers::split::SplitPattern,
};

/// Regular expressions of pre-tokenizers whose matches neither cross a cut nor depend on what is behind it, and of which one begins at the cut.
pub(in crate::data) const WORDS: [&str; 7] = [
    // GPT-2
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    // GPT-4 and Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Qwen 2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // GPT-4o
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    // DeepSeek
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    // BLOOM
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
];

/// Regular expressions of which no match contains a space or depends on one.
const WITHOUT_SPACES: [&str; 3] = [r"\p{N}{1,3}", "[0-9][0-9][0-9]", "[一-龥\u{3040}-ゟ゠-ヿ]+"];

/// Returns whether texts may be cut for this tokenizer.
pub(super) fn are_safe(tokenizer: &Tokenizer) -> bool {
    let normalizers = normalizers(tokenizer);
    let pre_tokenizers = tokenizer.get_pre_tokenizer().map(flat).unwrap_or_default();
    let first = pre_tokenizers.iter().map(|part| at_cut(part)).find(|found| *found != AtCut::Nothing);
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    first == Some(AtCut::Word)
        && normalizers.iter().all(|part| is_local(part))
        && added.values().all(|token| is_apart(token, &normalizers))
}

/// Returns the first place at or after byte `least`, but not 0, where `text` may be cut, if [`are_safe`].
pub(super) fn next(tokenizer: &Tokenizer, text: &str, least: usize) -> Option<usize> {
    let normalizers = normalizers(tokenizer);
    let mut spaces = (least.max(1)..text.len()).filter(|&at| text.as_bytes()[at] == b' ');
    spaces.find(|&at| {
        let before = text[..at].chars().next_back().filter(|&c| is_plain(c));
        let behind = text[at + 1..].chars().next().filter(|&c| is_plain(c));
        before.zip(behind).is_some_and(|(before, behind)| stays(&normalizers, before, behind))
    })
}

/// Returns whether a character is a letter or digit that no combining mark or normalization joins with a space behind it.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || c.is_alphabetic()
            && matches!(c, '\u{c0}'..='\u{24f}' // Latin
                | '\u{386}'..='\u{481}' | '\u{48a}'..='\u{52f}' // Greek and Cyrillic
                | '\u{5d0}'..='\u{5ea}' | '\u{620}'..='\u{64a}' // Hebrew and Arabic
                | '\u{ac00}'..='\u{d7a3}') // Hangul
}

fn normalizers(tokenizer: &Tokenizer) -> Vec<&NormalizerWrapper> {
    fn flat(part: &NormalizerWrapper) -> Vec<&NormalizerWrapper> {
        match part {
            NormalizerWrapper::Sequence(parts) => parts.as_ref().iter().flat_map(flat).collect(),
            part => vec![part],
        }
    }
    tokenizer.get_normalizer().map(flat).unwrap_or_default()
}

/// Returns whether a normalizer changes what is before a cut and what is behind it independently of each other.
fn is_local(part: &NormalizerWrapper) -> bool {
    match part {
        NormalizerWrapper::BertNormalizer(_)
        | NormalizerWrapper::StripAccents(_)
        | NormalizerWrapper::NFC(_)
        | NormalizerWrapper::NFD(_)
        | NormalizerWrapper::NFKC(_)
        | NormalizerWrapper::NFKD(_)
        | NormalizerWrapper::Lowercase(_)
        | NormalizerWrapper::Nmt(_)
        | NormalizerWrapper::Precompiled(_) => true,
        // There is no white space at the right end of a piece but the last.
        NormalizerWrapper::StripNormalizer(strip) => !strip.strip_left,
        NormalizerWrapper::Replace(replace) => {
            let pattern = serde_json::to_value(replace).map(|mut part| part["pattern"].take()).unwrap_or_default();
            let visible = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
            // Runs of spaces are longer than the space at a cut.
            pattern["Regex"] == " {2,}" || pattern["String"].as_str().is_some_and(visible) && visible(&replace.content)
        }
        NormalizerWrapper::Prepend(_) | NormalizerWrapper::ByteLevel(_) | NormalizerWrapper::Sequence(_) => false,
    }
}

/// Returns whether a space between these characters stays a space between visible characters in each normalizer.
fn stays(normalizers: &[&NormalizerWrapper], before: char, behind: char) -> bool {
    let mut text = NormalizedString::from(format!("{before} {behind}"));
    normalizers.iter().all(|part| {
        let visible = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
        part.normalize(&mut text).is_ok()
            && text
                .get()
                .split_once(' ')
                .is_some_and(|(before, behind)| visible(before.chars().next_back()) && visible(behind.chars().next()))
    })
}

/// What a pre-tokenizer does at a cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtCut {
    /// It begins a word there.
    Word,
    /// It takes no notice of it.
    Nothing,
    Unknown,
}

fn flat(part: &PreTokenizerWrapper) -> Vec<&PreTokenizerWrapper> {
    match part {
        PreTokenizerWrapper::Sequence(parts) => parts.as_ref().iter().flat_map(flat).collect(),
        part => vec![part],
    }
}

fn at_cut(part: &PreTokenizerWrapper) -> AtCut {
    let word = |is_word| if is_word { AtCut::Word } else { AtCut::Unknown };
    match part {
        PreTokenizerWrapper::BertPreTokenizer(_)
        | PreTokenizerWrapper::Whitespace(_)
        | PreTokenizerWrapper::WhitespaceSplit(_) => AtCut::Word,
        PreTokenizerWrapper::ByteLevel(part) => word(part.use_regex),
        PreTokenizerWrapper::Metaspace(part) => word(part.get_split()),
        PreTokenizerWrapper::Delimiter(part) => word(part.delimiter == ' '),
        PreTokenizerWrapper::Digits(_) | PreTokenizerWrapper::Punctuation(_) => AtCut::Nothing,
        PreTokenizerWrapper::Split(part) => {
            let isolated = part.behavior == SplitDelimiterBehavior::Isolated && !part.invert;
            let alone = isolated || part.behavior == SplitDelimiterBehavior::Removed && part.invert;
            match &part.pattern {
                SplitPattern::String(text) if text == " " && !part.invert => {
                    word(part.behavior != SplitDelimiterBehavior::MergedWithPrevious)
                }
                SplitPattern::Regex(text) if alone && WORDS.contains(&text.as_str()) => AtCut::Word,
                SplitPattern::Regex(text) if isolated && WITHOUT_SPACES.contains(&text.as_str()) => AtCut::Nothing,
                _ => AtCut::Unknown,
            }
        }
        PreTokenizerWrapper::UnicodeScripts(_)
        | PreTokenizerWrapper::FixedLength(_)
        | PreTokenizerWrapper::Sequence(_) => AtCut::Unknown,
    }
}

/// Returns whether an added token lies on one side of a cut, and is found there as in the whole text.
fn is_apart(token: &AddedToken, normalizers: &[&NormalizerWrapper]) -> bool {
    let mut normalized = NormalizedString::from(token.content.as_str());
    let normalized_too = normalizers.iter().all(|part| part.normalize(&mut normalized).is_ok());
    normalized_too
        && !token.rstrip
        && [token.content.as_str(), normalized.get()].iter().all(|text| {
            let spaces = text.match_indices(' ').map(|(at, _)| text[..at].chars().next_back());
            let spans = spaces.flatten().any(|before| !before.is_whitespace());
            !(spans || token.single_word && text.contains(char::is_whitespace))
        })
}
