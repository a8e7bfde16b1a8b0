//! Replays every golden case with the stage engine, on several devices. Actors must compute the same bits, with any number of micro-batches in
//! flight and any number of threads.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Tensor};
use interlock::{Batch, Dataset, Key, Precision, Result, StageDevice};
use interlock_backends::Backends;
use interlock_models::golden::GoldenCase;

fn cases() -> Vec<GoldenCase> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders.iter().map(|f| GoldenCase::read(f).unwrap()).collect()
}

fn devices(names: &[&str]) -> Vec<Arc<dyn StageDevice>> {
    names.iter().map(|name| Backends::default().open(name).unwrap()).collect()
}

#[test]
fn engine_agrees_with_every_case() {
    let cases = cases();
    assert_eq!(cases.len(), 21);
    // The variable and its default are those of the conformance suite of `interlock-backends`.
    let names = std::env::var("INTERLOCK_TEST_DEVICES");
    let names = names.as_deref().unwrap_or("cpu:threads=1,cpu:threads=1,layers=composed");
    let devices = Backends::default().open_all(names).unwrap();
    for case in cases {
        for device in devices.iter().filter(|device| device.precision() == Precision::F32) {
            let computed = case.replay(vec![Arc::clone(device)]).unwrap();
            let comparisons = case.compare(&computed);
            assert!(!comparisons.is_empty());
            for comparison in comparisons {
                assert!(comparison.passes(), "{} on {}: {comparison}", case.name, device.name());
            }
        }
    }
}

/// A data set that returns the batches of a case in their order, one for each epoch.
struct Batches {
    batches: Vec<Batch>,
}

impl Dataset for Batches {
    fn len(&self) -> usize {
        self.batches[0].len().unwrap()
    }

    fn batch(&self, _: &[usize], augment: Option<Key>) -> Result<Batch> {
        // Finds the epoch by its key.
        let epoch = (0..self.batches.len()).find(|&epoch| {
            let key = Key::new(0).named("augment").with(epoch as u64);
            augment.is_some_and(|augment| format!("{augment:?}") == format!("{key:?}"))
        });
        Ok(self.batches[epoch.unwrap()].clone())
    }
}

fn bits(tensors: &HashMap<String, Tensor>) -> BTreeMap<String, Vec<u32>> {
    let bits = |t: &Tensor| {
        let values = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().map(|v| v.to_bits()).collect()
    };
    tensors.iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect()
}

#[test]
fn actors_agree_with_plain_calls_to_the_bit() {
    for case in cases() {
        let plain = |name| bits(&case.replay(devices(&[name])).unwrap().finals);
        let (kernels, composed) = (plain("cpu:threads=1"), plain("cpu:threads=1,layers=composed"));
        for (in_flight, names, expected) in [
            (1, &["cpu:threads=2"][..], &kernels),
            (2, &["cpu:threads=1", "cpu:threads=3"], &kernels),
            (8, &["cpu:threads=1"], &kernels),
            (2, &["cpu:threads=1,layers=composed", "cpu:threads=2,layers=composed"], &composed),
        ] {
            let builder = case.trainer(devices(names)).unwrap();
            let data = Batches { batches: case.batches.clone() };
            let builder = builder.in_flight(in_flight).batch_size(data.len()).epochs(case.steps as u64);
            let mut trainer = builder.build().unwrap();
            trainer.fit(data).unwrap();
            let found = bits(&trainer.snapshot().unwrap().into_iter().collect());
            assert!(found == *expected, "{}: in flight {in_flight}, devices {names:?}", case.name);
        }
    }
}
