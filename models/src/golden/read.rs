//! Reads a case from its folder.

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{DType, Tensor};
use interlock::{Batch, ClipConfig, Error, Interlock, OptimizerConfig, Result, Strategy, Weights};
use serde::Deserialize;

use super::{Computed, GoldenCase};
use crate::{
    config::{InputShape, ModelConfig},
    data::files::{self, Most},
};

/// The most bytes of `case.json`.
const CASE: u64 = 1 << 20;

/// The contents of `case.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    model: ModelConfig,
    units_per_stage: Vec<usize>,
    width: usize,
    #[serde(default)]
    widths: Option<Vec<usize>>,
    /// Weights by distance, the same for every stage, instead of the width.
    #[serde(default)]
    follow: Option<Vec<f64>>,
    /// Weights by distance for each stage, instead of the width.
    #[serde(default)]
    follows: Option<Vec<Vec<f64>>>,
    heads: bool,
    head: String,
    optimizer: OptimizerConfig,
    steps: usize,
    batch: usize,
    /// The seed of the reference. It is not used, since values and batches are in the file.
    #[serde(rename = "seed")]
    _seed: u64,
    /// The height and width of the images.
    #[serde(default)]
    size: Option<usize>,
    /// The number of tokens of an example.
    #[serde(default)]
    context: Option<usize>,
    #[serde(default = "one")]
    micro_batches: usize,
    #[serde(default)]
    clip: Option<ClipConfig>,
}

fn one() -> usize {
    1
}

pub(super) fn read(folder: &Path) -> Result<GoldenCase> {
    let path = folder.join("case.json");
    let remedy = "name the folder of a reference run, with case.json and tensors.safetensors";
    let text = files::read(&path, Most::Bytes(CASE), remedy)?;
    let case: Case = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))?;
    let shape = case.check().map_err(|e| Error::file(&path, e))?;

    let path = folder.join("tensors.safetensors");
    let weights = Weights::load(&path)?;
    if let Some((name, dtype)) = weights.unreadable().next() {
        return Err(Error::file(&path, format!("{name} is {dtype}, which no reference run has")));
    }
    let stored = weights.iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
    let mut tensors = Tensors { path: &path, stored };
    let batches = (0..case.steps).map(|step| tensors.batch(&case, shape, step)).collect::<Result<Vec<_>>>()?;
    let losses = (0..case.steps).map(|step| tensors.losses(&case, step)).collect::<Result<Vec<_>>>()?;
    let logits = tensors.take("eval/logits")?;
    let init = tensors.take_all("init/");
    let gradients = tensors.take_all("grad/");
    let finals = tensors.take_all("final/");
    tensors.check_names_and_shapes("final/", &finals, "init/", &init)?;
    tensors.check_names_and_shapes("init/", &init, "final/", &finals)?;
    tensors.check_names_and_shapes("grad/", &gradients, "init/", &init)?;
    tensors.finish()?;

    Ok(GoldenCase {
        name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        strategy: case.strategy(),
        model: case.model,
        shape,
        units_per_stage: case.units_per_stage,
        heads: case.heads,
        head: case.head,
        optimizer: case.optimizer,
        steps: case.steps,
        micro_batches: case.micro_batches,
        clip: case.clip,
        init: Arc::new(init.into_iter().collect()),
        batches,
        expected: Computed { losses, gradients, finals, logits },
    })
}

impl Case {
    /// Checks that the values fit each other. Returns the shape of the data.
    fn check(&self) -> Result<InputShape> {
        let shape = self.shape()?;
        let model = self.model.build(shape)?;
        let (units, stages) = (model.units()?.len(), self.units_per_stage.len());
        let covered = self.units_per_stage.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n));
        if self.units_per_stage.contains(&0) || covered != Some(units) {
            return Err(Error::invalid(
                "units_per_stage",
                format!("{:?} does not cut the model's {units} units", self.units_per_stage),
                format!("give every stage at least one unit, {units} together"),
            ));
        }
        let widths = self.widths.as_deref().unwrap_or_default();
        if self.width == 0 || widths.contains(&0) || self.widths.as_ref().is_some_and(|w| w.len() != stages) {
            return Err(Error::invalid(
                "width, widths",
                format!("{} and {widths:?} are not interlock widths for {stages} stages", self.width),
                "give one number from 1, or one a stage",
            ));
        }
        if self.follow.is_some() && self.follows.is_some() {
            return Err(Error::invalid("follow", "follows is given too", "give one of them"));
        }
        self.strategy().plan(stages)?;
        for (key, value) in [("steps", self.steps), ("batch", self.batch), ("micro_batches", self.micro_batches)] {
            if value == 0 {
                return Err(Error::invalid(key, "it is 0", "give a number from 1"));
            }
        }
        if self.heads {
            let last_units = self.units_per_stage.iter().scan(0, |sum, n| {
                *sum += n;
                Some(*sum - 1)
            });
            for unit in last_units.take(stages - 1) {
                model.head(unit, &self.head)?;
            }
        }
        Ok(shape)
    }

    fn strategy(&self) -> Interlock {
        match (&self.follow, &self.follows, &self.widths) {
            (Some(weights), ..) => Interlock::weights(weights.clone()),
            (_, Some(weights), _) => Interlock::weights_of_stages(weights.clone()),
            (_, _, Some(widths)) => Interlock::widths(widths.clone()),
            _ => Interlock::width(self.width),
        }
    }

    fn shape(&self) -> Result<InputShape> {
        let needs = |key: &str| Error::invalid(key, "it is not given", "this kind of model needs it");
        match &self.model {
            ModelConfig::Mlp(mlp) => match mlp.dims.as_deref() {
                Some(&[width, .., outputs]) => Ok(InputShape::Vectors { width, outputs }),
                _ => Err(needs("model.dims")),
            },
            ModelConfig::Resnet(resnet) => {
                let size = self.size.ok_or_else(|| needs("size"))?;
                let classes = resnet.classes.ok_or_else(|| needs("model.classes"))?;
                Ok(InputShape::Images { channels: resnet.channels.unwrap_or(3), height: size, width: size, classes })
            }
            ModelConfig::Transformer(gpt) => Ok(InputShape::Text {
                vocab: gpt.vocab.ok_or_else(|| needs("model.vocab"))?,
                context: self.context.ok_or_else(|| needs("context"))?,
            }),
        }
    }
}

/// The tensors of `tensors.safetensors` that have not been taken yet.
struct Tensors<'a> {
    path: &'a Path,
    stored: HashMap<String, Tensor>,
}

impl Tensors<'_> {
    fn take(&mut self, name: &str) -> Result<Tensor> {
        self.stored.remove(name).ok_or_else(|| Error::file(self.path, format!("there is no tensor {name}")))
    }

    fn take_as(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.take(name)?;
        if tensor.dtype() == dtype && tensor.dims() == shape {
            return Ok(tensor);
        }
        let (is, dims) = (tensor.dtype().as_str(), tensor.dims());
        let wanted = dtype.as_str();
        Err(Error::file(self.path, format!("{name} is {is} {dims:?}; the reference run needs {wanted} {shape:?}")))
    }

    fn batch(&mut self, case: &Case, shape: InputShape, step: usize) -> Result<Batch> {
        let (dtype, example, target) = match shape {
            InputShape::Images { channels, height, width, .. } => (DType::F32, vec![channels, height, width], vec![]),
            InputShape::Text { context, .. } => (DType::U32, vec![context], vec![context]),
            InputShape::Vectors { width, .. } => (DType::F32, vec![width], vec![]),
        };
        let batched = |example: &[usize]| [&[case.batch], example].concat();
        Ok(Batch {
            inputs: self.take_as(&format!("batch/{step}/inputs"), dtype, &batched(&example))?.into(),
            targets: self.take_as(&format!("batch/{step}/targets"), DType::U32, &batched(&target))?,
        })
    }

    fn losses(&mut self, case: &Case, step: usize) -> Result<Vec<Option<f64>>> {
        let last = case.units_per_stage.len() - 1;
        let mut loss = |name: &str| {
            let value = self.take_as(name, DType::F32, &[])?.to_scalar::<f32>()?;
            Ok(Some(f64::from(value)))
        };
        (0..=last)
            .map(|stage| match stage {
                _ if stage == last => loss(&format!("loss/{step}")),
                _ if case.heads => loss(&format!("local_loss/{step}/{stage}")),
                _ => Ok(None),
            })
            .collect()
    }

    /// Takes the tensors below `prefix`. Returns them by the rest of their names.
    fn take_all(&mut self, prefix: &str) -> HashMap<String, Tensor> {
        let (taken, left) = std::mem::take(&mut self.stored).into_iter().partition(|(n, _)| n.starts_with(prefix));
        self.stored = left;
        let taken: HashMap<String, Tensor> = taken;
        taken.into_iter().map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor)).collect()
    }

    /// Checks that every tensor of `some` is `f32`, and that `all` has one of this name and shape.
    fn check_names_and_shapes(
        &self,
        prefix: &str,
        some: &HashMap<String, Tensor>,
        other: &str,
        all: &HashMap<String, Tensor>,
    ) -> Result<()> {
        for (name, tensor) in some {
            let problem = match all.get(name) {
                None => format!("there is {prefix}{name}, but no {other}{name}"),
                Some(_) if tensor.dtype() != DType::F32 => format!("{prefix}{name} is not f32"),
                Some(t) if t.dims() != tensor.dims() => {
                    format!("{prefix}{name} has shape {:?}, {other}{name} {:?}", tensor.dims(), t.dims())
                }
                Some(_) => continue,
            };
            return Err(Error::file(self.path, problem));
        }
        Ok(())
    }

    /// Checks that no tensor is left.
    fn finish(self) -> Result<()> {
        match self.stored.keys().min() {
            None => Ok(()),
            Some(name) => Err(Error::file(self.path, format!("the reference run does not ask for the tensor {name}"))),
        }
    }
}
