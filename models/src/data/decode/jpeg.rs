//! Checks that a JPEG file is whole: decoders fill what is missing with grey.

use std::ops::Range;

use super::entropy::{Frame, Scan, Table};

/// What is wrong with a file that has no end.
fn cut(bytes: &[u8]) -> String {
    format!("the JPEG file is cut short: it has no end marker within its {} bytes", bytes.len())
}

/// Checks that a JPEG file has its end marker and, if it is `thorough`, all scans with all blocks of pixels. Returns an Adobe segment that must not
/// count.
///
/// In a file of three components with both a JFIF and an Adobe segment, the first says that the colours are YCbCr, and the second may say that
/// they are not. The first one counts, as in libjpeg.
///
/// # Errors
/// If a part is missing or damaged.
pub(super) fn check(bytes: &[u8], thorough: bool) -> Result<Option<Range<usize>>, String> {
    let (mut at, mut is_jfif, mut adobe) = (2, false, None);
    let (mut frame, mut tables, mut interval) = (None::<Frame>, [const { None::<Table> }; 8], 0);
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let marker = at + rest.windows(2).position(is_marker).ok_or_else(|| cut(bytes))?;
        let code = bytes[marker + 1];
        if code == 0xd9 {
            break;
        }
        let length = bytes.get(marker + 2..marker + 4).map_or(0, |l| usize::from(u16::from_be_bytes([l[0], l[1]])));
        at = marker + 2 + length.max(2);
        let content = bytes.get(marker + 4..at).ok_or_else(|| cut(bytes))?;
        match code {
            // Sequential and progressive, with Huffman codes.
            0xc0..=0xc2 => frame = Some(Frame::new(content, code == 0xc2).ok_or("a damaged JPEG header")?),
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err("a lossless, hierarchical or arithmetic JPEG cannot be read; convert it to png".to_owned());
            }
            0xc4 => Table::read_all(content, &mut tables).ok_or("a damaged table of the JPEG file")?,
            0xdd => interval = content.get(..2).map_or(0, |i| usize::from(u16::from_be_bytes([i[0], i[1]]))),
            0xda => {
                if let Some(frame) = frame.as_mut().filter(|_| thorough) {
                    let scan = Scan::new(content, frame).ok_or("a damaged scan header of the JPEG file")?;
                    let rest = &bytes[at..];
                    let has_end = || rest.windows(2).any(|pair| pair == [0xff, 0xd9]);
                    let read = frame.read(&scan, &tables, interval, rest);
                    at += read.map_err(|damage| if has_end() { damage } else { cut(bytes) })?;
                }
            }
            0xe0 => is_jfif |= content.starts_with(b"JFIF\0"),
            0xee if content.starts_with(b"Adobe") => adobe = Some(marker..at),
            _ => {}
        }
    }
    let Some(frame) = frame else { return Ok(None) };
    if thorough && !frame.is_complete() {
        return Err("scans of the JPEG file are missing".to_owned());
    }
    Ok(adobe.filter(|_| is_jfif && frame.component_count() == 3))
}

/// Returns whether two bytes are a marker. Codes 0 and 0xff are no markers, and those of restarts stand inside of the pixels' data.
fn is_marker(pair: &[u8]) -> bool {
    pair[0] == 0xff && !matches!(pair[1], 0 | 1 | 0xd0..=0xd8 | 0xff)
}
