//! Layer normalization: `y = γ (x - μ)/√(σ² + ε) + β` for each row.
//!
//! Shapes: `x`, `y (…, D)`; `γ`, `β (D)`; `μ` and the biased variance `σ²` are over the last dimension, `ε = 1e-5`. With
//! `x̂ = (x - μ)/√(σ² + ε)` and an output gradient `c`: `∂β = Σ_rows c`, `∂γ = Σ_rows c x̂`, and with `g = γ c`, for each row,
//! `∂x = (g - mean(g) - x̂ mean(g x̂))/√(σ² + ε)`.
//!
//! Ba, Kiros and Hinton, *Layer Normalization*, 2016.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use interlock::{
    Activation, Differentiable, Gradients, ParameterGradients, Pass, Pending, Result, Saved, SavedMemory, Wants,
};

use super::{
    candle_operations,
    form::Form,
    saved_tensor::SavedTensor,
    slices::{dense, label, output_gradient, read, tensor, wrong_shape},
};
use crate::kernels::layer_norm::{self, Statistics};

/// Layer normalization over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    pub(super) name: String,
    pub(super) width: usize,
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    /// Chosen when the layer is built.
    form: Form,
}

struct SavedLayerNorm {
    x: SavedTensor,
    /// A mean and `1/√(σ² + ε)` for each row.
    statistics: Vec<Statistics>,
}

impl LayerNorm {
    /// Makes `weight (width)` of ones and `bias (width)` of zeros.
    pub fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            name: label("layer norm", &vb),
            form: Form::on(vb.device()),
            width,
            weight: vb.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: vb.get_with_hints(width, "bias", Init::Const(0.0))?,
        })
    }

    /// Returns the output of the forward pass that saved `saved`, with the same bits.
    pub(super) fn output(&self, saved: &Saved) -> Result<Tensor> {
        let SavedLayerNorm { x, statistics } = saved.get()?;
        self.normalize(&x.tensor()?, statistics)
    }

    fn normalize(&self, x: &Tensor, statistics: &[Statistics]) -> Result<Tensor> {
        layer_norm::normalize(&read(x)?, statistics, &read(&self.weight)?, &read(&self.bias)?).into_tensor(x.shape())
    }
}

impl Differentiable for LayerNorm {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        if x.dims().last() != Some(&self.width) {
            return Err(wrong_shape(&self.name, x.dims(), format_args!("(…, {})", self.width)));
        }
        if self.form == Form::CandleOperations {
            return candle_operations::forward(self, x, pass);
        }
        let x = dense(x, &self.name)?;
        let statistics = layer_norm::statistics(&read(&x)?, self.width);
        let y = self.normalize(&x, &statistics)?;
        let saved = match pass.is_train() {
            true => {
                let x = SavedTensor::new(x, pass)?;
                let memory = [x.memory(), SavedMemory::of_slice(&statistics)];
                Saved::new(SavedLayerNorm { x, statistics }).with_memory(memory)
            }
            false => Saved::nothing(),
        };
        Ok((y.into(), saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        if let Some(gradients) = candle_operations::backward(self, saved, c, wants) {
            return gradients;
        }
        let SavedLayerNorm { x, statistics } = saved.get()?;
        let c = output_gradient(c, x.dims(), &self.name)?;
        let x = x.tensor()?;
        let (values, weight, c) = (read(&x)?, read(&self.weight)?, read(&c)?);
        let (dx, dw) = match (wants.input, wants.parameters) {
            (true, true) => {
                let (dx, dw) = layer_norm::gradients(&values, statistics, &weight, &c);
                (Some(dx), Some(dw))
            }
            (true, false) => (Some(layer_norm::input_gradient(&values, statistics, &weight, &c)), None),
            (false, true) => (None, Some(layer_norm::parameter_gradients(&values, statistics, &c))),
            (false, false) => (None, None),
        };
        let mut gradients = Gradients::default();
        if let Some(dx) = dx {
            gradients.input = Some(dx.into_tensor(x.shape())?.into());
        }
        if let Some(mut dw) = dw {
            let db = dw.split_off(self.width);
            gradients.parameters =
                vec![(self.weight.id(), tensor(dw, self.width)?), (self.bias.id(), tensor(db, self.width)?)];
        }
        Ok(gradients)
    }

    /// Computes both gradients at once: those of the parameters take two rows, while the output gradient, which would be kept to compute them later,
    /// takes all rows.
    fn backward_input(&self, saved: &Saved, c: &Activation) -> Result<(Activation, Pending)> {
        self.backward(saved, c, Wants::BOTH)?.into_backward_input()
    }

    fn backward_parameters(&self, _: &Saved, pending: Pending) -> Result<ParameterGradients> {
        pending.take()
    }
}
