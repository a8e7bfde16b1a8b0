//! The backends of this build, by the scheme of their devices' names.

use std::sync::Arc;

use interlock::{Backend, Error, Precision, Result, StageDevice};

/// A list of backends, each for one scheme of device names.
pub struct Backends {
    list: Vec<Box<dyn Backend>>,
    precision: Precision,
}

/// The schemes of optional backends, and the feature that enables each.
const OPTIONAL: [(&str, &str); 2] = [("cpu", "cpu"), ("cuda", "cuda")];

impl Default for Backends {
    /// Returns the backends that this build was compiled with.
    fn default() -> Self {
        Self {
            list: vec![
                #[cfg(feature = "cpu")]
                Box::new(crate::CpuBackend),
                #[cfg(feature = "cuda")]
                Box::new(crate::CudaBackend),
                Box::new(crate::EmulatedBackend),
            ],
            precision: Precision::F32,
        }
    }
}

impl Backends {
    /// Returns a list without backends; see [`Self::with`].
    pub fn none() -> Self {
        Self { list: Vec::new(), precision: Precision::F32 }
    }

    /// Adds `backend`. It replaces a backend with the same scheme.
    #[must_use]
    pub fn with(mut self, backend: impl Backend + 'static) -> Self {
        self.list.retain(|known| known.scheme() != backend.scheme());
        self.list.push(Box::new(backend));
        self
    }

    /// Makes devices compute in `precision` whose names do not say in which, such as `cpu:threads=2`. Default: `f32`.
    #[must_use]
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Opens the device called `name`, such as `cpu` or `cpu:threads=2`.
    ///
    /// # Errors
    /// If no backend has its scheme (the message names the known ones, or the missing feature), or if the backend has no such device, or none of the
    /// precision that is set.
    pub fn open(&self, name: &str) -> Result<Arc<dyn StageDevice>> {
        let scheme = name.split(':').next().unwrap_or(name).trim();
        if let Some(backend) = self.list.iter().find(|backend| backend.scheme() == scheme) {
            return backend.open(&backend.with_precision(name, self.precision)?);
        }
        let known: Vec<&str> = self.list.iter().map(|backend| backend.scheme()).collect();
        let available = match known.as_slice() {
            [] => "no device at all".to_owned(),
            several => several.join(" and ") + " only",
        };
        Err(match OPTIONAL.iter().find(|(optional, _)| *optional == scheme) {
            Some((_, feature)) => Error::invalid(
                "device",
                format!("{name} requested, but this build has {available}"),
                format!("rebuild with --features {feature}"),
            ),
            None => Error::invalid(
                "device",
                format!("{name:?}: unknown device kind"),
                format!("this build knows {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") }),
            ),
        })
    }

    /// Opens the devices of a list that is separated by commas ([`device_names`]).
    ///
    /// # Errors
    /// As [`Self::open`], for the first that does not open.
    pub fn open_all(&self, list: &str) -> Result<Vec<Arc<dyn StageDevice>>> {
        device_names(list).iter().map(|name| self.open(name)).collect()
    }

    /// Lists the devices that can be opened: the name of each, and a description.
    pub fn list(&self) -> Vec<(String, String)> {
        self.list.iter().flat_map(|backend| backend.list()).collect()
    }

    /// Returns, for each backend without a device on this machine, the reason.
    pub fn absences(&self) -> Vec<String> {
        self.list.iter().filter_map(|backend| backend.absence()).collect()
    }

    /// Returns the names of the devices of `scheme` that could be opened.
    pub(crate) fn names(&self, scheme: &str) -> Vec<String> {
        let of_scheme = self.list.iter().filter(|backend| backend.scheme() == scheme);
        of_scheme.flat_map(|backend| backend.list()).map(|(name, _)| name).collect()
    }
}

/// Returns the names of the devices in a list that is separated by commas.
///
/// A device's settings are separated by commas too: a part such as `cores=0` belongs to the previous device.
///
/// ```
/// let names = interlock_backends::device_names("cpu:threads=2,cuda:0,precision=bf16,cuda:1");
/// assert_eq!(names, ["cpu:threads=2", "cuda:0,precision=bf16", "cuda:1"]);
/// ```
pub fn device_names(list: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for part in list.split(',').map(str::trim) {
        let is_setting = part.split_once('=').is_some_and(|(key, _)| !key.contains(':'));
        match names.last_mut().filter(|_| is_setting) {
            Some(name) => *name += &format!(",{part}"),
            None => names.push(part.to_owned()),
        }
    }
    names
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;

    #[cfg(not(feature = "cuda"))]
    fn refusal(name: &str) -> String {
        match Backends::default().open(name) {
            Ok(device) => panic!("{name} opened {}", device.name()),
            Err(error) => error.to_string(),
        }
    }

    /// Only in builds without CUDA, where `cuda:0` cannot open.
    #[cfg(not(feature = "cuda"))]
    #[test]
    fn known_names_open_and_others_say_what_is_known() {
        let opened = Backends::default().open("cpu:threads=2").expect("a device of two threads");
        assert_eq!(opened.name(), "cpu:threads=2");
        assert_eq!(
            refusal("cuda:0"),
            "device: cuda:0 requested, but this build has cpu and emulated only; rebuild with --features cuda"
        );
        let known = "unknown device kind; this build knows cpu, emulated";
        assert_eq!(refusal("tpu:1"), format!("device: \"tpu:1\": {known}"));
        assert_eq!(refusal(""), format!("device: \"\": {known}"));
        assert!(refusal("emulated:forward-ms=x").contains("forward-ms: \"x\" is not a time"));
    }

    #[test]
    fn lists_are_split_between_devices_and_not_between_their_settings() {
        let cut = |list, names: &[&str]| assert_eq!(device_names(list), names, "{list}");
        cut("cpu", &["cpu"]);
        cut("cpu, cuda:0", &["cpu", "cuda:0"]);
        cut("cpu:threads=1, cores=0", &["cpu:threads=1,cores=0"]);
        cut(
            "cpu:threads=1,cores=0,cpu:cores=1,threads=1,cuda:1",
            &["cpu:threads=1,cores=0", "cpu:cores=1,threads=1", "cuda:1"],
        );
        cut("emulated:forward-ms=5,gbps=1", &["emulated:forward-ms=5,gbps=1"]);
        // The value of a setting may have a colon; a device has one before its first setting.
        cut("other:0,at=host:80,other:path=a:b", &["other:0,at=host:80", "other:path=a:b"]);
        // A part that is not a device stays, and opening it gives an error that names it.
        cut("cores=0,cpu", &["cores=0", "cpu"]);
        cut("cpu,", &["cpu", ""]);
    }

    #[test]
    fn lists_are_opened() {
        let names = |list: &str| -> Vec<String> {
            let opened = Backends::default().open_all(list).expect(list);
            opened.iter().map(|device| device.name().to_owned()).collect()
        };
        assert_eq!(names("cpu"), ["cpu"]);
        let three = ["cpu:threads=2,layers=candle", "emulated:forward-ms=1", "cpu:threads=1"];
        assert_eq!(names(" cpu:threads=2,layers=candle, emulated:forward-ms=1,cpu:threads=1"), three);
        assert!(Backends::default().open_all("cpu,").is_err() && Backends::default().open_all("threads=2").is_err());
    }

    #[test]
    fn a_precision_holds_for_names_that_say_none() {
        let opened = |name: &str, precision| {
            let device = Backends::default().precision(precision).open(name);
            device.map(|device| (device.name().to_owned(), device.precision())).map_err(|error| error.to_string())
        };
        let is = |name: &str, precision| Ok((name.to_owned(), precision));
        assert_eq!(opened("cpu", Precision::Bf16), is("cpu:precision=bf16", Precision::Bf16));
        assert_eq!(opened("cpu:threads=1", Precision::Bf16), is("cpu:threads=1,precision=bf16", Precision::Bf16));
        assert_eq!(opened("cpu:precision=f32", Precision::Bf16), is("cpu:precision=f32", Precision::F32));
        assert_eq!(opened("cpu:precision=bf16", Precision::F32), is("cpu:precision=bf16", Precision::Bf16));
        assert_eq!(opened("cpu", Precision::F32), is("cpu", Precision::F32));
        assert_eq!(
            opened("emulated", Precision::Bf16).unwrap_err(),
            "device emulated: devices of the kind emulated compute in f32 only; leave precision out"
        );
        assert!(opened("cpu:layers=candle", Precision::Bf16).unwrap_err().contains("candle's operations"));
    }

    #[test]
    fn every_listed_device_opens() {
        let backends = Backends::default();
        let listed = backends.list();
        assert!(!listed.is_empty());
        for (name, _) in listed {
            assert_eq!(backends.open(&name).expect("a listed device").name(), name);
        }
    }

    #[test]
    fn backend_replaces_one_with_the_same_scheme() {
        assert!(Backends::none().open("cpu").is_err());
        assert!(Backends::none().with(crate::CpuBackend).with(crate::CpuBackend).list.len() == 1);
    }
}
