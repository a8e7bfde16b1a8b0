//! XML elements, with escaping.

use std::fmt;

use crate::timeline::escape;

/// An element with attributes, and either text or other elements in it.
pub(super) struct Element {
    name: &'static str,
    /// Escaped text.
    attributes: String,
    content: String,
}

impl Element {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, attributes: String::new(), content: String::new() }
    }

    /// Adds an attribute that is text.
    pub(super) fn text(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.attributes += &format!(" {name}=\"{}\"", escape_line(value.as_ref()));
        self
    }

    /// Adds an attribute that is a number.
    pub(super) fn number(self, name: &str, value: f64) -> Self {
        self.text(name, number(value))
    }

    /// Sets the text in the element.
    pub(super) fn content(mut self, text: &str) -> Self {
        self.content += &escape_line(text);
        self
    }

    /// Adds another element in it.
    pub(super) fn push(&mut self, child: Element) {
        self.content += &format!("\n{child}");
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, attributes, content } = self;
        match content.is_empty() {
            true => write!(f, "<{name}{attributes}/>"),
            false => write!(f, "<{name}{attributes}>{content}</{name}>"),
        }
    }
}

/// Formats a number of pixels, to a hundredth.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Escapes `text` as [`escape`] does, on one line.
fn escape_line(text: &str) -> String {
    escape(&text.replace(['\t', '\n', '\r'], " "))
}
