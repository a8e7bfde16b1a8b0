//! Recognises how a file encodes its text.

use std::path::Path;

use interlock::{Error, Result};

/// The number of bytes by which a text is judged that has no byte order mark.
const SAMPLE: usize = 1 << 12;

/// Returns a text without the UTF-8 byte order mark with which some programs begin their files. Errors name `path`.
///
/// # Errors
/// If it is UTF-16 or UTF-32.
pub(in crate::data) fn without_mark<'a>(path: &Path, text: &'a [u8]) -> Result<&'a [u8]> {
    let (name, iconv) = match text {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => ("UTF-32", "UTF-32"),
        [0xff, 0xfe, ..] => ("UTF-16, little-endian", "UTF-16"),
        [0xfe, 0xff, ..] => ("UTF-16, big-endian", "UTF-16"),
        _ if is_utf16(text, u16::from_le_bytes) => ("UTF-16, little-endian", "UTF-16LE"),
        _ if is_utf16(text, u16::from_be_bytes) => ("UTF-16, big-endian", "UTF-16BE"),
        _ => return Ok(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)),
    };
    let remedy = format!("convert it to UTF-8, such as with `iconv -f {iconv} -t UTF-8`");
    Err(Error::file(path, format!("is {name}; {remedy}")))
}

/// Returns the text of a file that must be UTF-8, without a byte order mark. Errors name `path`.
///
/// # Errors
/// If it is something else.
pub(in crate::data) fn utf8<'a>(path: &Path, text: &'a [u8], remedy: &str) -> Result<&'a str> {
    let plain = without_mark(path, text)?;
    std::str::from_utf8(plain).map_err(|e| {
        let at = text.len() - plain.len() + e.valid_up_to();
        Error::file(path, format!("is not UTF-8 at byte {at}; {remedy}"))
    })
}

/// Returns whether bytes without a byte order mark are UTF-16: read as such they begin with text, of which a part is ASCII or nearly so, while the
/// bytes themselves have control characters as no text has.
fn is_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> bool {
    let control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\x0c');
    let mut sample = &bytes[..bytes.len().min(SAMPLE) / 2 * 2];
    let units = |sample: &[u8]| sample.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect::<Vec<_>>();
    // The sample may end inside of a character of two units.
    if units(sample).last().is_some_and(|last| (0xd800..0xdc00).contains(last)) {
        sample = &sample[..sample.len() - 2];
    }
    let count = |of: &dyn Fn(u8) -> bool| sample.iter().filter(|&&byte| of(byte)).count();
    let (zeros, controls) = (count(&|byte| byte == 0), count(&|byte| byte.is_ascii() && control(byte.into())));
    let utf8 = std::str::from_utf8(sample).map_or_else(|e| e.error_len().is_none(), |_| true);
    // Zeros may also separate the lines of a text.
    let strange = if utf8 && controls == zeros { zeros * 3 >= sample.len() } else { controls * 50 >= sample.len() };
    let units = units(sample);
    let narrow = units.iter().filter(|&&unit| unit < 0x100).count();
    let private = |c: char| matches!(c, '\u{e000}'..='\u{f8ff}');
    strange
        && narrow * 100 >= units.len().max(1)
        && char::decode_utf16(units).all(|c| c.is_ok_and(|c| !control(c) && !private(c)))
}
