//! Regular expressions of tokenizers, which are written for Oniguruma, the library that Hugging Face uses.
//!
//! The crate `fancy-regex` reads some of them in another way. [`translate`] replaces what differs:
//! - `\w` does not have the joiners U+200C and U+200D, and outside of brackets it has the superscripts and fractions of Latin-1; `\b` and `\B` are
//!   between such characters;
//! - classes such as `[:punct:]` have characters of all scripts;
//! - `^` and `$` are the beginning and the end of any line.
//!
//! Three that no known tokenizer needs are not translated: `(?m)`, `\Z` and a possessive `{1,3}+`. `\R` and `\X` are refused.

use std::{iter::Peekable, str::Chars};

use serde_json::Value;

const WORD: &str = r"[[\w²³¹¼½¾]--[\x{200c}\x{200d}]]";
const NOT_WORD: &str = r"[^[\w²³¹¼½¾]--[\x{200c}\x{200d}]]";

/// A word's characters in brackets.
const WORD_IN_CLASS: &str = r"[\w--[\x{200c}\x{200d}]]";
const NOT_WORD_IN_CLASS: &str = r"[^\w--[\x{200c}\x{200d}]]";

/// Classes that are ASCII only in `fancy-regex`.
const CLASSES: [(&str, &str); 9] = [
    ("alnum", r"\p{Alphabetic}\p{Nd}"),
    ("alpha", r"\p{Alphabetic}"),
    ("cntrl", r"\p{Cc}"),
    ("digit", r"\p{Nd}"),
    ("lower", r"\p{Lowercase}"),
    ("punct", r"\p{P}\p{S}"),
    ("space", r"\s"),
    ("upper", r"\p{Uppercase}"),
    ("word", WORD_IN_CLASS),
];

/// Translates all regular expressions of a `tokenizer.json`. Returns whether one has changed.
///
/// # Errors
/// If they have more bytes than `left`, from which theirs are taken: the translation of a letter may be a hundred times as long.
pub(super) fn translate(json: &mut Value, left: &mut usize) -> Result<bool, String> {
    let mut changed = false;
    match json {
        Value::Object(parts) => {
            for (key, part) in parts {
                // The vocabulary has no expressions, and may be large.
                changed |= match part {
                    Value::String(expression) if key == "Regex" => {
                        let enough = left.checked_sub(expression.len());
                        *left = enough.ok_or("its regular expressions are too long; use shorter ones")?;
                        let translated = translated(expression);
                        std::mem::replace(expression, translated) != *expression
                    }
                    part => key != "model" && translate(part, left)?,
                };
            }
        }
        Value::Array(parts) => {
            for part in parts {
                changed |= translate(part, left)?;
            }
        }
        _ => {}
    }
    Ok(changed)
}

fn translated(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len());
    let mut rest = expression.chars().peekable();
    // How many classes are open.
    let mut depth = 0_usize;
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some('w') => out.push_str(if depth == 0 { WORD } else { WORD_IN_CLASS }),
                Some('W') => out.push_str(if depth == 0 { NOT_WORD } else { NOT_WORD_IN_CLASS }),
                Some('b') if depth == 0 => out.push_str(&format!("(?:(?<={WORD})(?!{WORD})|(?<!{WORD})(?={WORD}))")),
                Some('B') if depth == 0 => out.push_str(&format!("(?:(?<={WORD})(?={WORD})|(?<!{WORD})(?!{WORD}))")),
                next => out.extend(['\\'].into_iter().chain(next)),
            },
            '[' => match class(&mut rest).filter(|_| depth > 0) {
                Some(class) => out.push_str(class),
                None => {
                    depth += 1;
                    out.push('[');
                    out.extend(rest.next_if_eq(&'^'));
                }
            },
            ']' => {
                depth = depth.saturating_sub(1);
                out.push(']');
            }
            '^' if depth == 0 => out.push_str(r"(?:\A|(?m:^)(?!\z))"),
            '$' if depth == 0 => out.push_str("(?m:$)"),
            c => out.push(c),
        }
    }
    out
}

/// Reads a named class behind its `[`, if it is one of [`CLASSES`]. Otherwise reads nothing.
fn class(rest: &mut Peekable<Chars<'_>>) -> Option<&'static str> {
    let ahead: String = rest.clone().take(8).collect();
    let (name, class) = CLASSES.iter().find(|(name, _)| ahead.starts_with(&format!(":{name}:]")))?;
    rest.by_ref().take(name.len() + 3).for_each(drop);
    Some(class)
}
