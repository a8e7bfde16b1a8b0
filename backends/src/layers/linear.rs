//! Linear layer: `y = x Wᵀ + b`.
//!
//! Shapes: `x (…, inputs)`, `W (outputs, inputs)`, `b (outputs)`, `y (…, outputs)`, with any leading dimensions. For a cotangent `c` of `y`,
//! with all leading dimensions taken as rows: `∂x = c W`, `∂W = cᵀ x`, `∂b = Σ_rows c`.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use interlock::{Activation, Differentiable, Pass, Pulled, Result, Saved, Wants};
use rayon::prelude::*;

use super::{
    matrix::{Matrix, Target, Write, multiply},
    slices::{column_sums, cotangent, dense, label, read, rows_at_a_time, tensor, wrong_shape},
};

/// `y = x Wᵀ + b` over the last dimension.
#[derive(Clone, Debug)]
pub struct Linear {
    name: String,
    inputs: usize,
    outputs: usize,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Makes `weight (outputs, inputs)` and, with `bias`, `bias (outputs)`, both uniform in `±1/√inputs` (PyTorch's default).
    pub fn new(inputs: usize, outputs: usize, bias: bool, vb: VarBuilder) -> Result<Self> {
        let bound = 1.0 / (inputs.max(1) as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        Self::with_init(inputs, outputs, init, bias.then_some(init), vb)
    }

    /// Makes `weight (outputs, inputs)` and, where an initial law is given for it, `bias (outputs)`.
    pub fn with_init(inputs: usize, outputs: usize, weight: Init, bias: Option<Init>, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            name: label("linear", &vb),
            inputs,
            outputs,
            weight: vb.get_with_hints((outputs, inputs), "weight", weight)?,
            bias: bias.map(|init| vb.get_with_hints(outputs, "bias", init)).transpose()?,
        })
    }

    fn output_dims(&self, dims: &[usize]) -> Result<Vec<usize>> {
        match dims {
            [leading @ .., last] if *last == self.inputs => Ok([leading, &[self.outputs]].concat()),
            _ => Err(wrong_shape(&self.name, dims, format_args!("(…, {})", self.inputs))),
        }
    }

    fn apply(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let rows = x.len() / inputs;
        let at_a_time = rows_at_a_time(rows);
        let weight = read(&self.weight)?;
        let bias = self.bias.as_ref().map(read).transpose()?;
        let (weight, bias): (&[f32], Option<&[f32]>) = (&weight, bias.as_deref());
        let mut y = vec![0.0; rows * outputs];
        y.par_chunks_mut(at_a_time * outputs).zip(x.par_chunks(at_a_time * inputs)).for_each(|(y, x)| {
            let write = match bias {
                Some(bias) => {
                    y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
                    Write::Add
                }
                None => Write::Replace,
            };
            let x = Matrix::new(x, x.len() / inputs, inputs);
            multiply(1.0, x, Matrix::new(weight, outputs, inputs).t(), Target::new(y, outputs), write);
        });
        Ok(y)
    }

    fn input_gradient(&self, c: &[f32]) -> Result<Vec<f32>> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let rows = c.len() / outputs;
        let at_a_time = rows_at_a_time(rows);
        let weight = read(&self.weight)?;
        let weight: &[f32] = &weight;
        let mut dx = vec![0.0; rows * inputs];
        dx.par_chunks_mut(at_a_time * inputs).zip(c.par_chunks(at_a_time * outputs)).for_each(|(dx, c)| {
            let c = Matrix::new(c, c.len() / outputs, outputs);
            multiply(1.0, c, Matrix::new(weight, outputs, inputs), Target::new(dx, inputs), Write::Replace);
        });
        Ok(dx)
    }

    /// Cut by rows of the weight, so that there is nothing to add up afterwards.
    fn weight_gradient(&self, x: &[f32], c: &[f32]) -> Vec<f32> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let rows = x.len() / inputs;
        let at_a_time = rows_at_a_time(outputs);
        let (x, c) = (Matrix::new(x, rows, inputs), Matrix::new(c, rows, outputs).t());
        let mut dw = vec![0.0; outputs * inputs];
        dw.par_chunks_mut(at_a_time * inputs).enumerate().for_each(|(i, dw)| {
            let first = i * at_a_time;
            let c = c.rows(first..first + dw.len() / inputs);
            multiply(1.0, c, x, Target::new(dw, inputs), Write::Replace);
        });
        dw
    }
}

impl Differentiable for Linear {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        let dims = self.output_dims(x.dims())?;
        let x = dense(x, &self.name)?;
        let y = self.apply(&read(&x)?)?;
        let saved = if pass.is_train() { Saved::new(x) } else { Saved::nothing() };
        Ok((tensor(y, dims)?.into(), saved))
    }

    fn pull_back(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Pulled> {
        let x: &Tensor = saved.get()?;
        let c = cotangent(c, &self.output_dims(x.dims())?, &self.name)?;
        let c = read(&c)?;
        let mut pulled = Pulled::default();
        if wants.input {
            pulled.input = Some(tensor(self.input_gradient(&c)?, x.shape())?.into());
        }
        if wants.parameters {
            let dw = self.weight_gradient(&read(x)?, &c);
            pulled.parameters.push((self.weight.id(), tensor(dw, self.weight.shape())?));
            if let Some(bias) = &self.bias {
                pulled.parameters.push((bias.id(), tensor(column_sums(&c, self.outputs), bias.shape())?));
            }
        }
        Ok(pulled)
    }
}
