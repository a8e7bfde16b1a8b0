//! Text as a terminal may show it.
//!
//! Names of files, classes and devices, tokens, metrics of other programs and bytes in errors come from others. A control character in them could move
//! the cursor, hide what is printed, or give the terminal orders.

use std::{borrow::Cow, fmt::Write};

/// Returns whether a character does something else than show itself: a control character, a separator of lines other than `\n`, or one that turns the
/// direction of the text after it.
fn acts(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns `text` with escapes such as `\u001b`, as in JSON, for characters that act. Line ends and tabs stay.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| acts(c) && !matches!(c, '\n' | '\t'))
}

/// Returns `text` in one line: as [`printable`], with escapes for line ends and tabs too.
pub(crate) fn in_one_line(text: &str) -> Cow<'_, str> {
    escaped(text, acts)
}

/// As [`printable`], but colours and other styles stay: `ESC [`, numbers, `m`.
pub(crate) fn printable_styled(text: &str) -> Cow<'_, str> {
    let mut parts = text.split('\x1b');
    let mut styled = printable(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        let end = part.strip_prefix('[').and_then(|codes| codes.find(|c: char| !c.is_ascii_digit() && c != ';'));
        let is_style = end.is_some_and(|end| part[1 + end..].starts_with('m'));
        styled += if is_style { "\x1b" } else { "\\u001b" };
        styled += &printable(part);
    }
    Cow::Owned(styled)
}

fn escaped(text: &str, escape: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&escape) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .fold(String::with_capacity(text.len() + 16), |mut escaped, character| {
            if escape(character) {
                // A `String` takes everything.
                let _ = write!(escaped, "\\u{:04x}", u32::from(character));
            } else {
                escaped.push(character);
            }
            escaped
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_act_become_escapes_and_all_others_stay() {
        let plain = "é ü 漢字 🦀 ⇄ \u{200d} \u{feff} │ ▆ \\ \"";
        assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain));
        assert_eq!(printable("a\n\tb"), "a\n\tb");
        assert_eq!(in_one_line("a\n\tb"), "a\\u000a\\u0009b");
        assert_eq!(printable("\x1b]0;title\x07\x1b[2J"), "\\u001b]0;title\\u0007\\u001b[2J");
        assert_eq!(printable("\r\x08\x7f\u{9b}31m\0"), "\\u000d\\u0008\\u007f\\u009b31m\\u0000");
        assert_eq!(printable("\u{202e}gpj.exe\u{2066}\u{2028}"), "\\u202egpj.exe\\u2066\\u2028");
    }

    #[test]
    fn json_stays_json_with_the_same_values() {
        let value = serde_json::json!({ "name": "\u{9b}2J\u{7f}\u{202e}\x1b[1m\n" });
        for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            let shown = printable(&text);
            assert!(!shown.chars().any(|c| c != '\n' && acts(c)), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }

    #[test]
    fn styles_of_the_program_stay_and_other_orders_do_not() {
        let line = "\x1b[2m12:00\x1b[0m \x1b[38;5;1mred\x1b[39m";
        assert_eq!(printable_styled(line), line);
        assert_eq!(printable_styled("\x1b[2Ja\x1b"), "\\u001b[2Ja\\u001b");
        assert_eq!(printable_styled("\x1b[1;"), "\\u001b[1;");
        assert_eq!(printable_styled("\x1b]8;;http://a\x1b\\b\x1bc"), "\\u001b]8;;http://a\\u001b\\b\\u001bc");
        assert_eq!(printable_styled("\u{9b}1m"), "\\u009b1m");
    }
}
