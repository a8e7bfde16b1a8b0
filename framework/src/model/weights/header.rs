//! The header of a safetensors file, which is checked before the tensors are read.

use std::{collections::HashSet, fmt, io::Read};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor},
};

/// The most bytes of a header: enough for a hundred thousand tensors.
const MOST: u64 = 16 << 20;
/// The bytes of the header's length.
const LENGTH: u64 = 8;
/// The entry that is no tensor.
const METADATA: &str = "__metadata__";

/// Returns the start of a file of `size` bytes: the length of the header, and the header.
///
/// # Errors
/// If the header does not fit in the file or is too long, or names a tensor twice, or one that is not within the file. The error has what was read,
/// too.
pub(super) fn start(mut file: impl Read, size: u64) -> Result<Vec<u8>, (String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut read = |bytes: &mut Vec<u8>, count| file.by_ref().take(count).read_to_end(bytes).map_err(|e| e.to_string());
    let mut check = || -> Result<(), String> {
        read(&mut bytes, LENGTH)?;
        let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
        let length = length.ok_or_else(|| format!("it has {} bytes, fewer than a header", bytes.len()))?;
        let rest = size.saturating_sub(LENGTH);
        if length > rest || length > MOST {
            // So much shows what kind of file it is.
            read(&mut bytes, 1 << 10)?;
        }
        if length > rest {
            return Err(format!("its header should have {length} bytes, but the file has {size}"));
        }
        if length > MOST {
            return Err(format!("its header has {length} bytes; at most {MOST} are read"));
        }
        read(&mut bytes, length)?;
        let header = &bytes[LENGTH as usize..];
        let mut json = serde_json::Deserializer::from_slice(header);
        Tensors { data: rest - length }.deserialize(&mut json).map_err(|e| format!("its header is wrong: {e}"))
    };
    match check() {
        Ok(()) => Ok(bytes),
        Err(problem) => Err((problem, bytes)),
    }
}

/// The tensors of a file with this many bytes of data.
struct Tensors {
    data: u64,
}

/// What is checked of a tensor.
#[derive(Deserialize)]
struct Place {
    data_offsets: (u64, u64),
}

impl<'de> DeserializeSeed<'de> for Tensors {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tensors {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
            } else {
                let Place { data_offsets: (start, end) } = map.next_value()?;
                if start > end || end > self.data {
                    let data = self.data;
                    return Err(A::Error::custom(format!("{name} is at bytes {start} to {end} of {data}")));
                }
            }
            if let Some(twice) = names.replace(name) {
                return Err(A::Error::custom(format!("{twice} is there twice")));
            }
        }
        Ok(())
    }
}
