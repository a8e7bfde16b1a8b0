//! Your own data: tensors in memory, or anything else that makes a batch.
//!
//! - [`InMemory`] is a data set of two tensors, one row an example. It can be split at random.
//! - A [`Dataset`] of your own makes the batch of some example numbers, on the loading thread. `augment` is the key of random changes, in
//!   training only: the same key gives the same changes, so that a run can be repeated.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use candle_core::{Device, Tensor};
use interlock::{Batch, Dataset, InMemory, Key, OptimizerConfig, Pairwise, Result, Trainer};
use interlock_models::Mlp;
use rand::RngExt;

/// Points of the unit square, and whether they lie above the diagonal.
fn points() -> Result<(Tensor, Tensor)> {
    let points: Vec<[f32; 2]> = (0..400).map(|n| [(n % 20) as f32 / 20.0, (n / 20) as f32 / 20.0]).collect();
    let above: Vec<u32> = points.iter().map(|[x, y]| u32::from(y > x)).collect();
    Ok((Tensor::new(points.concat(), &Device::Cpu)?.reshape(((), 2))?, Tensor::new(above, &Device::Cpu)?))
}

/// Another data set with a little noise on its inputs in training.
struct Noisy(InMemory);

impl Dataset for Noisy {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        let Batch { inputs, targets } = self.0.batch(numbers, augment)?;
        let Some(key) = augment else { return Ok(Batch { inputs, targets }) };
        let noise = |&n: &usize| key.with(n as u64).stream().random::<f32>() * 0.02;
        let noise = Tensor::from_iter(numbers.iter().map(noise), &Device::Cpu)?.unsqueeze(1)?;
        Ok(Batch { inputs: inputs.single()?.broadcast_add(&noise)?.into(), targets })
    }
}

fn main() -> anyhow::Result<()> {
    let (inputs, targets) = points()?;
    let (train, validation) = InMemory::new(inputs, targets)?.split(0.2, 7)?;
    assert_eq!((train.len(), validation.len()), (320, 80));
    let train = Noisy(train);
    let mut trainer = Trainer::builder(Mlp { dims: vec![2, 16, 16, 2], flatten: false })
        .strategy(Pairwise)
        .stages(3)
        .optimizer(OptimizerConfig { lr: 0.1, ..Default::default() })
        .epochs(30)
        .build()?;
    let report = trainer.fit((train, validation))?;
    println!("accuracy {:.3}", report.final_scores.accuracy.unwrap_or_default());
    assert!(report.final_scores.accuracy > Some(0.9), "half would be chance");
    Ok(())
}
