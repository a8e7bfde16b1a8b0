//! The names of emulated devices.

use std::{str::FromStr, time::Duration};

use interlock::{Error, Result, tools::device::Link};

/// The times that work takes on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Costs {
    /// A forward pass.
    pub(super) forward: Duration,
    /// A head's forward pass and all its gradients.
    pub(super) head: Duration,
    /// A backward pass to the input.
    pub(super) input_gradient: Duration,
    /// The parameter gradients after that.
    pub(super) parameter_gradient: Duration,
    /// An update.
    pub(super) update: Duration,
    /// The link to each neighbour, which delays messages.
    pub(super) link: Link,
}

const TIME_KEYS: [&str; 6] =
    ["forward-ms", "head-ms", "input-gradient-ms", "parameter-gradient-ms", "update-ms", "transfer-ms"];

const GRAMMAR: &str = "write emulated or emulated:KEY=NUMBER,… with the keys forward-ms, head-ms, input-gradient-ms, \
                       parameter-gradient-ms, update-ms, transfer-ms and gbps";

/// The longest time, in milliseconds: an hour. Longer ones are taken for mistakes.
const MAX_MS: f64 = 3.6e6;

impl FromStr for Costs {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong = |problem: String| Error::invalid(format!("device {name}"), problem, GRAMMAR);
        let settings = match name.strip_prefix("emulated") {
            Some("") => None,
            Some(rest) if rest.starts_with(':') => Some(&rest[1..]),
            _ => return Err(wrong("this is not the name of an emulated device".to_owned())),
        };
        let mut times = [None; TIME_KEYS.len()];
        let mut gbps = None;
        for setting in settings.into_iter().flat_map(|settings| settings.split(',')) {
            let (key, value) =
                setting.split_once('=').ok_or_else(|| wrong(format!("expected key=value, got {setting:?}")))?;
            let number = value.parse::<f64>().ok();
            let is_repeated = if key == "gbps" {
                let bad = || wrong(format!("gbps: {value:?} is not a number of gigabits a second above 0"));
                let number = number.filter(|gbps| *gbps > 0.0 && gbps.is_finite()).ok_or_else(bad)?;
                gbps.replace(number).is_some()
            } else {
                let at = TIME_KEYS.iter().position(|time| *time == key);
                let at = at.ok_or_else(|| wrong(format!("unknown setting {key:?}")))?;
                let bad = || wrong(format!("{key}: {value:?} is not a time from 0 to {MAX_MS} ms"));
                let number = number.filter(|ms| (0.0..=MAX_MS).contains(ms)).ok_or_else(bad)?;
                times[at].replace(number / 1e3).is_some()
            };
            if is_repeated {
                return Err(wrong(format!("{key:?} is set twice")));
            }
        }
        let [forward, head, input_gradient, parameter_gradient, update, transfer] =
            times.map(Option::unwrap_or_default);
        Ok(Self {
            forward: Duration::from_secs_f64(forward),
            head: Duration::from_secs_f64(head),
            input_gradient: Duration::from_secs_f64(input_gradient),
            parameter_gradient: Duration::from_secs_f64(parameter_gradient),
            update: Duration::from_secs_f64(update),
            link: Link { latency: transfer, bandwidth: gbps.map_or(f64::INFINITY, |gbps| gbps * 1e9 / 8.0) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let read = |name: &str| name.parse::<Costs>().expect(name);
        let nothing = Costs {
            forward: Duration::ZERO,
            head: Duration::ZERO,
            input_gradient: Duration::ZERO,
            parameter_gradient: Duration::ZERO,
            update: Duration::ZERO,
            link: Link::IMMEDIATE,
        };
        assert_eq!(read("emulated"), nothing);
        assert_eq!(read("emulated:head-ms=2.5"), Costs { head: Duration::from_micros(2500), ..nothing });
        let all = "emulated:gbps=10,transfer-ms=1,update-ms=6,parameter-gradient-ms=5,input-gradient-ms=4,head-ms=3,forward-ms=2";
        let expected = Costs {
            forward: Duration::from_millis(2),
            head: Duration::from_millis(3),
            input_gradient: Duration::from_millis(4),
            parameter_gradient: Duration::from_millis(5),
            update: Duration::from_millis(6),
            link: Link { latency: 1e-3, bandwidth: 1.25e9 },
        };
        assert_eq!(read(all), expected);
    }

    #[test]
    fn bad_names_say_which_part_is_bad() {
        for (name, part) in [
            ("emulator", "not the name of an emulated device"),
            ("emulated2", "not the name of an emulated device"),
            ("emulated:", "expected key=value, got \"\""),
            ("emulated:5", "expected key=value, got \"5\""),
            ("emulated:head-ms=1,", "expected key=value, got \"\""),
            ("emulated:forward=5", "unknown setting \"forward\""),
            ("emulated:head-ms=1,head-ms=1", "\"head-ms\" is set twice"),
            ("emulated:gbps=1,gbps=2", "\"gbps\" is set twice"),
            ("emulated:forward-ms=-1", "forward-ms: \"-1\" is not a time from 0 to 3600000 ms"),
            ("emulated:forward-ms=NaN", "forward-ms: \"NaN\" is not a time"),
            ("emulated:update-ms=inf", "update-ms: \"inf\" is not a time"),
            ("emulated:transfer-ms=1e9", "transfer-ms: \"1e9\" is not a time"),
            ("emulated:transfer-ms=", "transfer-ms: \"\" is not a time"),
            ("emulated:gbps=0", "gbps: \"0\" is not a number of gigabits a second above 0"),
            ("emulated:gbps=inf", "gbps: \"inf\" is not a number"),
            ("emulated:gbps=-3", "gbps: \"-3\" is not a number"),
        ] {
            let error = name.parse::<Costs>().expect_err(name).to_string();
            assert!(error.contains(part) && error.starts_with(&format!("device {name}: ")), "{error}");
            assert!(error.ends_with(GRAMMAR), "{error}");
        }
    }
}
