//! Checks that image files are whole. Decoders end when they have the pixels, or fill what is missing; these checks read to the end of the file's
//! own structure.

use std::ops::Range;

use super::jpeg;

/// The first bytes of the formats.
const JPEG: &[u8] = &[0xff, 0xd8];
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
const GIF: &[u8] = b"GIF8";
const RIFF: &[u8] = b"RIFF";

/// Checks that a file is whole; its pixels only if it is `thorough`. Returns bytes that decoders must not read, if there are any.
///
/// # Errors
/// If a part is missing; the error says which.
pub(super) fn check(bytes: &[u8], thorough: bool) -> Result<Option<Range<usize>>, String> {
    let end = match bytes {
        _ if bytes.starts_with(JPEG) => return jpeg::check(bytes, thorough),
        _ if bytes.starts_with(PNG) => png(bytes),
        _ if bytes.starts_with(GIF) => gif(bytes),
        _ if bytes.starts_with(RIFF) => webp(bytes),
        // The other formats have no end: their decoders read all that their headers name.
        _ => Some(0),
    };
    let cut = || format!("the file is cut short: its end is not within its {} bytes", bytes.len());
    end.map(|_| None).ok_or_else(cut)
}

/// Returns the end of a PNG file: that of its chunk `IEND`.
fn png(bytes: &[u8]) -> Option<usize> {
    png_chunk(bytes, b"IEND").map(|content| content.end)
}

/// Returns the content of the first chunk of this name in a PNG file; none if there is none, or the file is another one.
pub(super) fn png_chunk(bytes: &[u8], name: &[u8; 4]) -> Option<Range<usize>> {
    let mut at = PNG.len();
    while bytes.starts_with(PNG) {
        // Length, name, content, checksum.
        let header = bytes.get(at..at + 8)?;
        let content = at + 8..at + 8 + u32::from_be_bytes(header[..4].try_into().ok()?) as usize;
        at = content.end + 4;
        bytes.get(..at)?;
        if &header[4..] == name {
            return Some(content);
        }
    }
    None
}

/// Returns the content of the first chunk of this name in a WebP file; none if there is none, or it is not whole.
pub(super) fn webp_chunk(bytes: &[u8], name: &[u8; 4]) -> Option<Range<usize>> {
    // `RIFF`, the length, `WEBP`.
    let mut at = 12;
    loop {
        // Name, length, content, and a byte if the length is odd.
        let header = bytes.get(at..at + 8)?;
        let content = at + 8..at + 8 + u32::from_le_bytes(header[4..].try_into().ok()?) as usize;
        at = content.end.next_multiple_of(2);
        bytes.get(..content.end)?;
        if &header[..4] == name {
            return Some(content);
        }
    }
}

/// Returns the end of a GIF file: that of its trailer.
fn gif(bytes: &[u8]) -> Option<usize> {
    let table = |packed: u8| if packed & 0x80 == 0 { 0 } else { 3 << ((packed & 7) + 1) };
    let blocks = |mut at: usize| -> Option<usize> {
        while *bytes.get(at)? != 0 {
            at += 1 + usize::from(bytes[at]);
        }
        Some(at + 1)
    };
    let mut at = 13 + table(*bytes.get(10)?);
    loop {
        at = match *bytes.get(at)? {
            0x21 => blocks(at + 2)?,                               // an extension: its label, and blocks
            0x2c => blocks(at + 11 + table(*bytes.get(at + 9)?))?, // an image: its place, colours, the size of codes, and blocks
            0x3b => return Some(at + 1),
            _ => return Some(at), // no block: the decoder says what is wrong, if it comes here
        };
    }
}

/// Returns the end of a WebP file, which its header names.
fn webp(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    (bytes.len() >= 8 + length).then_some(8 + length)
}
