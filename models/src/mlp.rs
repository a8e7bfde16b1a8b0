//! Multilayer perceptrons.

use interlock::{Error, ModelSpec, Result, Sequential, Unit};
use interlock_backends::layers::{Flatten, Linear, Relu};

use crate::{
    checks, flops,
    heads::{self, HeadSettings},
};

/// A multilayer perceptron: linear layers with a ReLU after each but the last. Each layer is a unit.
///
/// Inputs `(B, dims[0])`, outputs `(B, dims[last])`. Parameters: `layers.{i}.weight` `(out, in)` and `layers.{i}.bias`, with
/// PyTorch's default initial values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mlp {
    /// The widths from input to output; at least two.
    pub dims: Vec<usize>,
    /// Whether an input example has several dimensions (an image) and is flattened first.
    pub flatten: bool,
}

impl Mlp {
    /// Returns the perceptron with these widths, for inputs that are vectors.
    pub fn new(dims: impl Into<Vec<usize>>) -> Self {
        Self { dims: dims.into(), flatten: false }
    }

    fn check(&self) -> Result<()> {
        if self.dims.len() < 2 {
            return Err(Error::invalid(
                "model.dims",
                format!("{:?} makes no layer", self.dims),
                "give at least two widths, the input's and the output's",
            ));
        }
        checks::depth("model.dims", self.dims.len())?;
        checks::extents("model.dims", &self.dims)
    }
}

impl ModelSpec for Mlp {
    fn units(&self) -> Result<Vec<Unit>> {
        self.check()?;
        let layers = self.dims.len() - 1;
        let unit = |(at, widths): (usize, &[usize])| {
            let (inputs, outputs) = (widths[0], widths[1]);
            let (flatten, relu) = (self.flatten && at == 0, at + 1 < layers);
            let elementwise = if relu { flops::SIMPLE * outputs as f64 } else { 0.0 };
            Unit::new(format!("layers.{at}"), [outputs], move |vb| {
                let mut layers = Sequential::default();
                if flatten {
                    layers.push(Flatten);
                }
                layers.push(Linear::new(inputs, outputs, true, vb)?);
                if relu {
                    layers.push(Relu);
                }
                Ok(layers)
            })
            .with_flops(flops::linear(1, inputs, outputs) + elementwise)
        };
        Ok(self.dims.windows(2).enumerate().map(unit).collect())
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        self.check()?;
        let output = self.dims.get(unit.saturating_add(1)).map(std::slice::from_ref);
        let settings = HeadSettings::new(self.dims[self.dims.len() - 1]);
        heads::of_output(output, (unit, self.dims.len() - 1), arch, &settings)
    }

    fn default_head(&self) -> &str {
        "fc"
    }
}
