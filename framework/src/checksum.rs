//! CRC-32C checksums of files, and of texts that hold their own checksum.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use crate::{Error, Result};

/// Where a text's own checksum goes.
pub(crate) const PLACE: &str = "________";

/// Returns the checksum of `bytes`, as eight hexadecimal digits.
pub(crate) fn of(bytes: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(bytes))
}

/// Returns the checksum and the size of the file at `path`.
///
/// # Errors
/// If it cannot be read, or is no file.
pub(crate) fn of_file(path: &Path) -> Result<(String, u64)> {
    let read = || -> io::Result<(u32, u64)> {
        let mut file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("is not a file"));
        }
        let (mut buffer, mut sum, mut size) = (vec![0; 1 << 18], 0, 0);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok((sum, size)),
                read => (sum, size) = (crc32c::crc32c_append(sum, &buffer[..read]), size + read as u64),
            }
        }
    };
    let (sum, size) = read().map_err(|e| Error::file(path, e))?;
    Ok((format!("{sum:08x}"), size))
}

/// Words the cause of an error about a file that is not as it was written.
pub(crate) fn damaged(how: impl std::fmt::Display) -> String {
    format!("the file is damaged: {how}")
}

/// Puts the checksum of `text` into it, at its one [`PLACE`].
pub(crate) fn seal(text: &str) -> String {
    text.replacen(&quoted(PLACE), &quoted(&of(text.as_bytes())), 1)
}

/// Returns whether `text` is as [`seal`] returned it with this checksum.
pub(crate) fn is_sealed(text: &str, checksum: &str) -> bool {
    let before = text.replacen(&quoted(checksum), &quoted(PLACE), 1);
    of(before.as_bytes()) == checksum
}

fn quoted(checksum: &str) -> String {
    format!("\"{checksum}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the check value of the catalogue of CRCs.
        assert_eq!([of(&[0; 32]), of(b"123456789")], ["8a9136aa", "e3069283"]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(of_file(&path).unwrap(), (of(&bytes), 600_000));
        assert!(of_file(folder.path()).unwrap_err().to_string().contains("is not a file"));
        assert!(of_file(&folder.path().join("none")).is_err());
    }

    #[test]
    fn a_sealed_text_with_any_other_byte_is_not_sealed() {
        let text = seal("{\"files\": {\"a\": \"8a9136aa\"},\n \"checksum\": \"________\"}");
        let checksum = text[text.len() - 10..text.len() - 2].to_owned();
        assert!(is_sealed(&text, &checksum), "{text}");
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let other = String::from_utf8(bytes).unwrap();
            let checksum = &other[other.len() - 10..other.len() - 2];
            assert!(!is_sealed(&other, checksum), "byte {at}");
        }
    }
}
