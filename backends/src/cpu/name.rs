//! The names of CPU devices.

use std::{ops::RangeInclusive, str::FromStr};

use interlock::{Error, Precision, Result};

/// The settings in a device name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CpuName {
    /// The number of threads. Default: one for each core.
    pub(super) threads: Option<usize>,
    /// The cores to pin the threads to. Default: not pinned.
    pub(super) cores: Option<RangeInclusive<usize>>,
    /// The implementation of layers; by default with kernels.
    pub(super) layers: Option<Layers>,
    /// The precision in which layers compute; by default `f32`.
    pub(super) precision: Option<Precision>,
}

/// The implementation of layers on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layers {
    /// With kernels.
    Kernels,
    /// With candle's operations, as on other devices.
    CandleOperations,
}

const GRAMMAR: &str = "write cpu, cpu:threads=N, cpu:cores=A, cpu:cores=A-B or cpu:threads=N,cores=A-B; precision=bf16 or \
                       layers=candle may follow";

/// The largest number of threads, and the highest number of a core: larger ones are taken for mistakes.
const MAX_NUMBER: usize = 4096;

fn number(text: &str) -> Option<usize> {
    let digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&n| digits_only && n <= MAX_NUMBER)
}

impl FromStr for CpuName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = |problem: String| Error::invalid(format!("device {name}"), problem, GRAMMAR);
        let mut this = Self { threads: None, cores: None, layers: None, precision: None };
        let settings = match name.strip_prefix("cpu") {
            Some("") => return Ok(this),
            Some(rest) => rest.strip_prefix(':'),
            None => None,
        };
        let settings = settings.ok_or_else(|| wrong("this is not the name of a CPU device".to_owned()))?;
        for setting in settings.split(',') {
            let (key, value) =
                setting.split_once('=').ok_or_else(|| wrong(format!("expected key=value, got {setting:?}")))?;
            let is_repeated = match key {
                "threads" => {
                    let threads = number(value).filter(|&threads| threads > 0);
                    let bad = || wrong(format!("{value:?} is not a number of threads from 1 to {MAX_NUMBER}"));
                    this.threads.replace(threads.ok_or_else(bad)?).is_some()
                }
                "cores" => {
                    let (first, last) = value.split_once('-').unwrap_or((value, value));
                    let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
                    let bad = || wrong(format!("{value:?} is not a core, nor a range from a lower to a higher one"));
                    let (first, last) = range.ok_or_else(bad)?;
                    this.cores.replace(first..=last).is_some()
                }
                "layers" => {
                    let layers = match value {
                        "kernels" => Layers::Kernels,
                        // `composed` is the former name.
                        "candle" | "composed" => Layers::CandleOperations,
                        _ => return Err(wrong(format!("layers are kernels or candle, not {value:?}"))),
                    };
                    this.layers.replace(layers).is_some()
                }
                "precision" => {
                    let precision = [Precision::F32, Precision::Bf16].into_iter().find(|known| known.name() == value);
                    let bad = || wrong(format!("unknown precision {value:?}"));
                    this.precision.replace(precision.ok_or_else(bad)?).is_some()
                }
                _ => return Err(wrong(format!("unknown setting {key:?}"))),
            };
            if is_repeated {
                return Err(wrong(format!("{key:?} is set twice")));
            }
        }
        if this.precision == Some(Precision::Bf16) && this.layers == Some(Layers::CandleOperations) {
            return Err(wrong("candle's operations compute in f32 on the CPU".to_owned()));
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: CpuName = CpuName { threads: None, cores: None, layers: None, precision: None };

    #[test]
    fn names_are_read() {
        let read = |name: &str| name.parse::<CpuName>().expect(name);
        assert_eq!(read("cpu"), NONE);
        assert_eq!(read("cpu:threads=3"), CpuName { threads: Some(3), ..NONE });
        assert_eq!(read("cpu:cores=2"), CpuName { cores: Some(2..=2), ..NONE });
        assert_eq!(read("cpu:cores=0-7,threads=2"), CpuName { threads: Some(2), cores: Some(0..=7), ..NONE });
        assert_eq!(read("cpu:layers=kernels"), CpuName { layers: Some(Layers::Kernels), ..NONE });
        assert_eq!(read("cpu:precision=bf16"), CpuName { precision: Some(Precision::Bf16), ..NONE });
        let half = CpuName { threads: Some(2), precision: Some(Precision::F32), ..NONE };
        assert_eq!(read("cpu:threads=2,precision=f32"), half);
        let candle = CpuName { threads: Some(2), layers: Some(Layers::CandleOperations), ..NONE };
        assert_eq!(read("cpu:threads=2,layers=candle"), candle);
        assert_eq!(read("cpu:threads=2,layers=composed"), candle);
    }

    #[test]
    fn bad_names_say_which_part_is_bad() {
        for (name, part) in [
            ("gpu", "not the name of a CPU device"),
            ("cpu2", "not the name of a CPU device"),
            ("cpu:", "expected key=value, got \"\""),
            ("cpu:0", "expected key=value, got \"0\""),
            ("cpu:threads=0", "\"0\" is not a number of threads"),
            ("cpu:threads=+2", "\"+2\" is not a number"),
            ("cpu:threads=99999", "\"99999\" is not a number"),
            ("cpu:thread=2", "unknown setting \"thread\""),
            ("cpu:cores=3-1", "\"3-1\" is not a core"),
            ("cpu:cores=-1", "\"-1\" is not a core"),
            ("cpu:cores=a", "\"a\" is not a core"),
            ("cpu:threads=1,threads=2", "\"threads\" is set twice"),
            ("cpu:layers=candle,layers=kernels", "\"layers\" is set twice"),
            ("cpu:layers=fast", "layers are kernels or candle, not \"fast\""),
            ("cpu:precision=f16", "unknown precision \"f16\""),
            ("cpu:precision=f32,precision=bf16", "\"precision\" is set twice"),
            ("cpu:precision=bf16,layers=candle", "candle's operations compute in f32"),
            ("cpu:threads=1,", "expected key=value, got \"\""),
        ] {
            let error = name.parse::<CpuName>().expect_err(name).to_string();
            assert!(error.contains(part) && error.starts_with(&format!("device {name}: ")), "{error}");
            assert!(error.ends_with(GRAMMAR), "{error}");
        }
    }
}
