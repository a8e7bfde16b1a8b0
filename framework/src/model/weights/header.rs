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

#[cfg(test)]
mod tests {
    use crate::Weights;

    /// Reads a file of this header and this many bytes of data, and returns why it is refused.
    fn refused(header: &str, data: usize) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
        std::fs::write(file.path(), bytes).unwrap();
        Weights::load(file.path()).map(drop).unwrap_err().to_string()
    }

    fn entry(name: &str, count: u64, start: u64, end: u64) -> String {
        format!(r#""{name}":{{"dtype":"U8","shape":[{count}],"data_offsets":[{start},{end}]}}"#)
    }

    #[test]
    fn headers_that_are_wrong_are_refused_before_the_tensors_are_read() {
        let of = |entries: &[String]| format!("{{{}}}", entries.join(","));
        let (most, one) = (u64::MAX, entry("a", 4, 0, 4));
        for (header, words) in [
            (of(&[one.clone(), entry("a", 0, 4, 4)]), "a is there twice"),
            (of(&[entry("a", 5, 0, 5)]), "a is at bytes 0 to 5 of 4"),
            (of(&[entry("a", 4, 4, 0)]), "a is at bytes 4 to 0"),
            (of(&[entry("a", most / 8, 0, most / 8), entry("b", most, most / 8, most)]), "a is at bytes"),
            (of(&[entry("a", 3, 0, 3), entry("b", 2, 2, 4)]), "not a safetensors file"),
            (
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#.to_owned(),
                "not a safetensors",
            ),
            (format!("{}{one}", "{\"a\":".repeat(100_000)), "its header is wrong"),
            ("[]".to_owned(), "its header is wrong"),
        ] {
            let refused = refused(&header, 4);
            assert!(refused.contains(words), "{refused}");
        }
        let long = of(std::slice::from_ref(&one)) + &" ".repeat(16 << 20);
        assert!(refused(&long, 4).contains("at most 16777216 are read"), "{}", refused(&long, 4));
    }

    #[test]
    fn weights_that_do_not_fit_in_memory_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |name: &str| {
            let zeros = candle_core::Tensor::zeros(1000, candle_core::DType::F32, &candle_core::Device::Cpu);
            vec![(name.to_owned(), zeros.unwrap())]
        };
        Weights::of_stages([tensor("a"), tensor("b")]).save(folder.path()).unwrap();
        assert!(Weights::load_within(folder.path(), 6000).unwrap_err().to_string().contains("more than the memory"));
        assert_eq!(Weights::load_within(folder.path(), 9000).unwrap().len(), 2);
    }
}
