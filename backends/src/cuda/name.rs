//! The names of CUDA devices.

use std::{fmt, str::FromStr};

use interlock::{Error, Precision, Result};

/// The settings in a device name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CudaName {
    /// The number of the GPU, as `nvidia-smi` and `CUDA_VISIBLE_DEVICES` count.
    pub(super) ordinal: usize,
    /// The precision in which layers compute.
    pub(super) precision: Precision,
}

const GRAMMAR: &str = "write cuda:N or cuda:N,precision=bf16, where N is the number of the GPU";

impl FromStr for CudaName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = |problem: String| Error::invalid(format!("device {name}"), problem, GRAMMAR);
        let settings =
            name.strip_prefix("cuda:").ok_or_else(|| wrong("this is not the name of a CUDA device".to_owned()))?;
        let mut settings = settings.split(',');
        let number = settings.next().unwrap_or_default();
        let digits_only = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let ordinal =
            number.parse().ok().filter(|_| digits_only).ok_or_else(|| wrong(format!("{number:?} is not a number")))?;
        let mut precision = None;
        for setting in settings {
            let (key, value) =
                setting.split_once('=').ok_or_else(|| wrong(format!("expected key=value, got {setting:?}")))?;
            let value = match (key, value) {
                ("precision", "f32") => Precision::F32,
                ("precision", "bf16") => Precision::Bf16,
                ("precision", _) => return Err(wrong(format!("unknown precision {value:?}"))),
                _ => return Err(wrong(format!("unknown setting {key:?}"))),
            };
            if precision.replace(value).is_some() {
                return Err(wrong(format!("{key:?} is set twice")));
            }
        }
        Ok(Self { ordinal, precision: precision.unwrap_or_default() })
    }
}

impl fmt::Display for CudaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.ordinal)?;
        match self.precision {
            Precision::F32 => Ok(()),
            Precision::Bf16 => f.write_str(",precision=bf16"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let read = |name: &str| name.parse::<CudaName>().expect(name);
        assert_eq!(read("cuda:0"), CudaName { ordinal: 0, precision: Precision::F32 });
        assert_eq!(read("cuda:12,precision=bf16"), CudaName { ordinal: 12, precision: Precision::Bf16 });
        assert_eq!(read("cuda:3,precision=f32").to_string(), "cuda:3");
        assert_eq!(read("cuda:3,precision=bf16").to_string(), "cuda:3,precision=bf16");
    }

    #[test]
    fn bad_names_say_which_part_is_bad() {
        for (name, part) in [
            ("cuda", "this is not the name of a CUDA device"),
            ("cuda:", "\"\" is not a number"),
            ("cuda:-1", "\"-1\" is not a number"),
            ("cuda:+1", "\"+1\" is not a number"),
            ("cuda:99999999999999999999", "is not a number"),
            ("cuda:0,bf16", "expected key=value, got \"bf16\""),
            ("cuda:0,precision=f16", "unknown precision \"f16\""),
            ("cuda:0,threads=2", "unknown setting \"threads\""),
            ("cuda:0,precision=f32,precision=bf16", "\"precision\" is set twice"),
        ] {
            let error = name.parse::<CudaName>().expect_err(name).to_string();
            assert!(error.starts_with(&format!("device {name}: ")) && error.contains(part), "{error}");
            assert!(error.ends_with(GRAMMAR), "{error}");
        }
    }
}
