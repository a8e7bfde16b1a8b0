//! The whole command for your own model: `train`, `eval`, `plan`, `compare`, `report`, metrics and the rest, with your own `[model]` section.
//!
//! In a crate made by `interlock init --crate`: `cargo run --release -- train --set model.hidden=[96,64,48] --set strategy.width=3`.
//! As a lesson: the same with `cargo run --release --example own_command -- train …`.

use std::{process::ExitCode, sync::Arc};

use candle_nn::{Module, linear};
use interlock::prelude::*;
use interlock_cli::{ModelSection, Program};
use interlock_models::{InputShape, data::DataConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The section `[model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Perceptron {
    /// The outputs of each layer but the last.
    hidden: Vec<usize>,
}

impl ModelSection for Perceptron {
    fn kind(&self) -> &str {
        "perceptron"
    }

    fn build(&self, shape: InputShape) -> Result<Arc<dyn ModelSpec>> {
        let InputShape::Images { channels, height, width, classes } = shape else {
            return Err(Error::invalid("data.kind", "not images", "use images, such as kind = \"fashion-mnist-mini\""));
        };
        Ok(Arc::new(Net { widths: [&[channels * height * width], &self.hidden[..], &[classes]].concat() }))
    }
}

/// Layers of these widths, from input to output.
struct Net {
    widths: Vec<usize>,
}

/// `tanh(W·x + b)`, over all dimensions but the batch.
struct Layer(candle_nn::Linear);

impl StageModule for Layer {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<Activation> {
        Ok(self.0.forward(&x.single()?.flatten_from(1)?)?.tanh()?.into())
    }
}

fn layer(name: &str, inputs: usize, outputs: usize) -> Unit {
    Unit::new(name, [outputs], move |vb| Autograd::build(vb, |vb| Ok(Layer(linear(inputs, outputs, vb)?))))
}

impl ModelSpec for Net {
    fn units(&self) -> Result<Vec<Unit>> {
        Ok(self.widths.windows(2).enumerate().map(|(k, w)| layer(&format!("layer{k}"), w[0], w[1])).collect())
    }

    fn head(&self, unit: usize, _arch: &str) -> Result<Unit> {
        Ok(layer("", self.widths[unit + 1], self.widths[self.widths.len() - 1]))
    }
}

struct Own;

impl Program for Own {
    type Model = Perceptron;
    type Data = DataConfig;
    const CONFIG: &'static str = r#"
        name = "perceptron"
        epochs = 2
        data = { kind = "fashion-mnist-mini" }
        model = { hidden = [64, 64, 64] }
        partition = { stages = 4 }
        optimizer = { lr = 0.05, momentum = 0.9 }
    "#;
}

fn main() -> ExitCode {
    interlock_cli::run::<Own>()
}
