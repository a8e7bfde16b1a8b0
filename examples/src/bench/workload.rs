//! Workloads for measurements of training steps: models, cuts, heads and optimizers that other systems can run too.

use candle_core::{Device, Tensor};
use clap::ValueEnum;
use interlock::{
    Batch, Dataset, Error, HeadsConfig, HeadsTrained, Interlock, Key, OptimizerConfig, OptimizerKind, Result, Trainer,
    TrainerBuilder,
};
use interlock_models::{resnet::ResNet, transformer::Transformer};
use rand::RngExt;

/// A workload on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WorkloadName {
    /// ResNet-32 for CIFAR (16, 32 and 64 planes), 128 images of 3×32×32, SGD with momentum
    Resnet32,
    /// ResNet-18 for ImageNet, 32 images of 3×64×64, 100 classes, SGD with momentum
    Resnet18,
    /// GPT of 6 layers, width 256, 8 heads, 16 texts of 128 of 256 tokens, `AdamW`
    Gpt,
}

/// A workload.
#[derive(Clone)]
pub(crate) struct Workload {
    pub(super) name: &'static str,
    /// The number of examples a step.
    pub(crate) batch: usize,
    /// The shape of an example.
    shape: &'static [usize],
    /// The number of classes, or of tokens in the vocabulary.
    classes: usize,
    head: &'static str,
    /// The cuts into 1, 2 and 4 stages: the number of units of each stage.
    cuts: [&'static [usize]; 3],
}

impl Workload {
    pub(crate) fn named(name: WorkloadName) -> &'static Self {
        static RESNET32: Workload = Workload {
            name: "resnet32",
            batch: 128,
            shape: &[3, 32, 32],
            classes: 10,
            head: "conv16_bn_gbpl_fc",
            cuts: [&[17], &[8, 9], &[4, 4, 5, 4]],
        };
        static RESNET18: Workload = Workload {
            name: "resnet18",
            batch: 32,
            shape: &[3, 64, 64],
            classes: 100,
            head: "gbpl_fc",
            cuts: [&[10], &[5, 5], &[3, 2, 2, 3]],
        };
        static GPT: Workload = Workload {
            name: "gpt",
            batch: 16,
            shape: &[128],
            classes: 256,
            head: "ln_fc",
            cuts: [&[8], &[4, 4], &[2, 2, 2, 2]],
        };
        match name {
            WorkloadName::Resnet32 => &RESNET32,
            WorkloadName::Resnet18 => &RESNET18,
            WorkloadName::Gpt => &GPT,
        }
    }

    /// Returns the workload with `examples` examples a step, if a number is given.
    pub(super) fn of_batch(&self, examples: Option<u32>) -> Self {
        Self { batch: examples.map_or(self.batch, |examples| examples as usize), ..self.clone() }
    }

    /// Returns batch number `number` of random values.
    pub(crate) fn random_batch(&self, number: u64) -> Result<Batch> {
        random_batch(self, Key::new(8).with(number))
    }

    fn is_text(&self) -> bool {
        self.shape.len() == 1
    }

    /// Returns the number of units of each of `stages` stages.
    pub(super) fn cut(&self, stages: usize) -> Result<Vec<usize>> {
        let cut = self.cuts.iter().find(|cut| cut.len() == stages).ok_or_else(|| {
            let known: Vec<String> = self.cuts.iter().map(|cut| cut.len().to_string()).collect();
            Error::invalid(
                "--stages",
                format!("there is no cut of {} into {stages}", self.name),
                format!("use {}", known.join(", ")),
            )
        })?;
        Ok(cut.to_vec())
    }

    /// Returns a builder for `stages` stages, with everything but a cut, devices and a length. With a width below `stages` every head is trained;
    /// with `stages` (end-to-end), none.
    pub(crate) fn trainer(&self, width: usize, stages: usize) -> Result<TrainerBuilder> {
        let builder = match *self.shape {
            [channels, height, width] => {
                Trainer::builder(ResNet::preset(self.name, [channels, height, width], self.classes)?)
            }
            _ => Trainer::builder(Transformer {
                vocab: self.classes,
                context: self.shape[0],
                sequence: self.shape[0],
                width: 256,
                heads: 8,
                layers: 6,
                dropout: 0.0,
                tied: false,
            }),
        };
        let common = OptimizerConfig::default();
        let optimizer = if self.is_text() {
            OptimizerConfig { kind: OptimizerKind::Adamw, lr: 3e-4, betas: [0.9, 0.95], weight_decay: 0.1, ..common }
        } else {
            OptimizerConfig { kind: OptimizerKind::Sgd, lr: 0.1, momentum: 0.9, weight_decay: 2e-4, ..common }
        };
        let train = if width < stages { HeadsTrained::All } else { HeadsTrained::Needed };
        Ok(builder
            .strategy(Interlock::width(width))
            .heads(HeadsConfig { arch: Some(self.head.to_owned()), train, ..HeadsConfig::default() })
            .optimizer(optimizer)
            .batch_size(self.batch)
            .seed(7))
    }
}

/// A data set of batches of random values, made beforehand. A step takes the batch that its first example belongs to.
#[derive(Clone)]
pub(super) struct RandomBatches {
    batches: Vec<Batch>,
    /// The number of examples of each.
    examples: usize,
}

/// The number of batches; longer runs use them again.
const BATCHES: u64 = 4;

impl RandomBatches {
    pub(super) fn new(workload: &Workload) -> Result<Self> {
        let batches = (0..BATCHES).map(|number| workload.random_batch(number)).collect::<Result<_>>()?;
        Ok(Self { batches, examples: workload.batch })
    }
}

pub(super) fn random_batch(workload: &Workload, key: Key) -> Result<Batch> {
    let mut stream = key.stream();
    let dims = [&[workload.batch], workload.shape].concat();
    let count: usize = dims.iter().product();
    let mut classes = |count: usize, dims: &[usize]| {
        let values: Vec<u32> = (0..count).map(|_| stream.random_range(0..workload.classes as u32)).collect();
        Tensor::from_vec(values, dims, &Device::Cpu)
    };
    if workload.is_text() {
        return Ok(Batch { inputs: classes(count, &dims)?.into(), targets: classes(count, &dims)? });
    }
    let targets = classes(workload.batch, &[workload.batch])?;
    // Uniform with variance 1.
    let side = 3.0_f32.sqrt();
    let values: Vec<f32> = (0..count).map(|_| stream.random_range(-side..side)).collect();
    Ok(Batch { inputs: Tensor::from_vec(values, dims, &Device::Cpu)?.into(), targets })
}

impl Dataset for RandomBatches {
    fn len(&self) -> usize {
        self.batches.len() * self.examples
    }

    fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
        match numbers {
            [first, ..] if numbers.len() == self.examples => Ok(self.batches[first / self.examples].clone()),
            _ => Err(Error::Data(format!("batches have {} examples, not {}", self.examples, numbers.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_takes_a_whole_batch_divided_into_micro_batches() {
        for (name, batch, pieces) in [(WorkloadName::Resnet32, 128, 32), (WorkloadName::Gpt, 16, 4)] {
            let workload = Workload::named(name);
            let batches = RandomBatches::new(workload).unwrap();
            let numbers: Vec<usize> = (0..batch).collect();
            let one = batches.batch(&numbers, None).unwrap();
            assert_eq!((one.len().unwrap(), batches.len()), (batch, BATCHES as usize * batch));
            let sizes: Vec<usize> = one.split(4).unwrap().iter().map(|piece| piece.len().unwrap()).collect();
            assert_eq!(sizes, [pieces; 4]);
            assert!(batches.batch(&[0, 1], None).is_err());
        }
    }

    #[test]
    fn batch_has_the_requested_number_of_examples() {
        for (name, own) in [(WorkloadName::Resnet18, 32), (WorkloadName::Gpt, 16)] {
            let examples = |asked| Workload::named(name).of_batch(asked).random_batch(0).unwrap().len().unwrap();
            assert_eq!([examples(Some(3)), examples(None)], [3, own]);
        }
    }

    #[test]
    fn every_cut_covers_the_whole_model() {
        for name in [WorkloadName::Resnet32, WorkloadName::Resnet18, WorkloadName::Gpt] {
            for stages in [1, 2, 4] {
                let workload = Workload::named(name);
                let cut = workload.cut(stages).unwrap();
                let layout = workload.trainer(1, stages).unwrap().units_per_stage(cut).layout().unwrap();
                assert_eq!(layout.partition.stages(), stages);
            }
        }
    }
}
