//! Causal self-attention with several heads: `y = dropout((dropout(softmax(Q Kᵀ/√h + M)) V) Wᵖᵀ + bᵖ)`, `[Q K V] = x Wᵃᵀ + bᵃ`.
//!
//! Shapes: `x`, `y (B, T, D)`; `Wᵃ (3D, D)`, `Wᵖ (D, D)`; each of `n` heads has `h = D/n` columns of `Q`, `K` and `V`; `M` is 0 up to a position's
//! own column and `-∞` after it. With `P` the softmax, `R` its kept and scaled part (dropout) and `c` the output gradient of `R V`: `∂V = Rᵀ c`,
//! `∂P = c Vᵀ` where kept, `∂S = P (∂P - rowsum(∂P P))/√h`, `∂Q = ∂S K`, `∂K = ∂Sᵀ Q`.
//!
//! Vaswani et al., *Attention Is All You Need*, 2017, section 3.2; parameters as in Karpathy's nanoGPT.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use interlock::{
    Activation, Differentiable, Error, Gradients, ParameterGradients, Pass, Pending, Result, Saved, SavedMemory, Wants,
};

use super::{
    Dropout, FusedLinear, LayerNorm, Linear, candle_operations, dropout,
    form::Form,
    saved_tensor::SavedTensor,
    slices::{label, output_gradient, read, wrong_shape},
};
use crate::kernels::{attention::AttentionHeads, panels::ProductForm};

/// Causal self-attention with several heads and an output projection.
#[derive(Debug)]
pub struct CausalSelfAttention {
    name: String,
    width: usize,
    heads: usize,
    probability: f64,
    dropout_name: String,
    c_attn: Projection,
    c_proj: Linear,
    output_dropout: Dropout,
    /// The form of the heads.
    form: Form,
}

/// The layer that computes queries, keys and values: from the input, or from its layer norm.
#[derive(Debug)]
enum Projection {
    Plain(Linear),
    Normed(FusedLinear),
}

impl std::ops::Deref for Projection {
    type Target = dyn Differentiable;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Plain(linear) => linear,
            Self::Normed(linear) => linear,
        }
    }
}

struct SavedAttention {
    heads: AttentionHeads,
    c_attn: Saved,
    mixing: Mixing,
    /// The saved values of the output projection, whose input is the heads' output.
    c_proj: Saved,
    output: Saved,
}

/// The tensors that the heads save.
enum Mixing {
    Kernels {
        /// Queries, keys and values, `(B, T, 3D)`.
        qkv: SavedTensor,
        /// A logarithm for each position of each head, from which the backward pass computes `P` again.
        logs: Vec<f32>,
        keep: Option<Vec<bool>>,
    },
    CandleOperations(candle_operations::SavedHeads),
}

impl Mixing {
    fn memory(&self) -> Vec<SavedMemory> {
        match self {
            Self::Kernels { qkv, logs, keep } => [qkv.memory(), SavedMemory::of_slice(logs)]
                .into_iter()
                .chain(keep.as_deref().map(SavedMemory::of_slice))
                .collect(),
            Self::CandleOperations(saved) => saved.memory(),
        }
    }
}

/// The output gradients at the outputs of the two linear layers.
struct OutputGradients {
    projection: Activation,
    qkv: Activation,
}

struct PendingAttention {
    projection: Activation,
    c_attn: Pending,
}

impl CausalSelfAttention {
    /// Makes `c_attn.{weight, bias}` and `c_proj.{weight, bias}`: weights from normal distributions of standard deviation `init_std` and `proj_std`,
    /// biases 0.
    ///
    /// `dropout` is the probability of dropping an attention weight or an element of the output.
    ///
    /// # Errors
    /// If `heads` does not divide `width`.
    pub fn new(width: usize, heads: usize, dropout: f64, init_std: f64, proj_std: f64, vb: VarBuilder) -> Result<Self> {
        let name = label("attention", &vb);
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(Error::invalid(
                name,
                format!("{heads} heads for width {width}"),
                "use a number that divides the width",
            ));
        }
        let linear = |outputs: usize, stdev: f64, part: &str| {
            let weight = Init::Randn { mean: 0.0, stdev };
            Linear::with_init(width, outputs, weight, Some(Init::Const(0.0)), vb.pp(part))
        };
        Ok(Self {
            width,
            heads,
            probability: dropout,
            dropout_name: format!("{name} weights"),
            c_attn: Projection::Plain(linear(3 * width, init_std, "c_attn")?),
            c_proj: linear(width, proj_std, "c_proj")?,
            form: Form::on(vb.device()),
            output_dropout: Dropout::new(dropout, format!("{name} output")),
            name,
        })
    }

    /// Makes this the attention of `norm(x)`. The values are those of a separate norm before attention, but the norm's output is not saved.
    #[must_use]
    pub fn of(self, norm: LayerNorm) -> Self {
        let c_attn = match self.c_attn {
            Projection::Plain(linear) => linear,
            Projection::Normed(linear) => linear.into_linear(),
        };
        Self { c_attn: Projection::Normed(FusedLinear::norm(norm, c_attn)), ..self }
    }

    /// Computes the output gradients of both linear layers from that of the whole layer.
    fn output_gradients(&self, saved: &SavedAttention, c: &Activation) -> Result<OutputGradients> {
        let projection = self.output_dropout.backward(&saved.output, c, Wants::INPUT)?.into_input()?;
        let mixed = self.c_proj.backward(&saved.c_proj, &projection, Wants::INPUT)?.into_input()?;
        let qkv = match &saved.mixing {
            Mixing::Kernels { qkv, logs, keep } => {
                let mixed = output_gradient(&mixed, &saved.heads.dims(1), &self.name)?;
                let keep = keep.as_deref().map(|keep| (keep, dropout::scale(self.probability)));
                let (qkv, output) = (qkv.tensor()?, saved.c_proj.get::<SavedTensor>()?.tensor()?);
                let qkv = saved.heads.backward(&read(&qkv)?, keep, &read(&output)?, logs, &read(&mixed)?);
                qkv.into_tensor(&saved.heads.dims(3))?
            }
            Mixing::CandleOperations(heads) => {
                candle_operations::backward_heads(&saved.heads, heads, &mixed, &self.name)?
            }
        };
        Ok(OutputGradients { projection, qkv: qkv.into() })
    }

    /// Returns the output of the heads, `(B, T, D)`, from queries, keys and values.
    fn mix(&self, heads: &AttentionHeads, qkv: Tensor, pass: &Pass) -> Result<(Tensor, Mixing)> {
        if self.form == Form::CandleOperations {
            let (mixed, saved) = candle_operations::mix(heads, &qkv, (self.probability, &self.dropout_name), pass)?;
            return Ok((mixed, Mixing::CandleOperations(saved)));
        }
        let keep = dropout::keep(self.probability, &self.dropout_name, pass, heads.weights())?;
        let kept = keep.as_deref().map(|keep| (keep, dropout::scale(self.probability)));
        let (mixed, logs) = heads.mix(&read(&qkv)?, kept);
        let qkv = match pass.is_train() {
            true => SavedTensor::new(qkv, pass)?,
            false => SavedTensor::whole(qkv, pass),
        };
        Ok((mixed.into_tensor(&heads.dims(1))?, Mixing::Kernels { qkv, logs, keep }))
    }

    fn projection_gradients(&self, saved: &SavedAttention, c: &Activation) -> Result<ParameterGradients> {
        Ok(self.c_proj.backward(&saved.c_proj, c, Wants::PARAMETERS)?.parameters)
    }
}

impl Differentiable for CausalSelfAttention {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let heads = match x.single()?.dims() {
            &[batch, length, width] if width == self.width => {
                let (count, width, form) = (self.heads, width / self.heads, ProductForm::of(pass.precision));
                AttentionHeads { batch, length, count, width, form }
            }
            dims => return Err(wrong_shape(&self.name, dims, format_args!("(B, T, {})", self.width))),
        };
        let (qkv, c_attn) = self.c_attn.forward(x, pass)?;
        let (mixed, mixing) = self.mix(&heads, qkv.single()?.clone(), pass)?;
        let (y, c_proj) = self.c_proj.forward(&mixed.into(), pass)?;
        let (y, output) = self.output_dropout.forward(&y, pass)?;
        let saved = if pass.is_train() {
            let mut memory = mixing.memory();
            memory.extend([&c_attn, &c_proj, &output].into_iter().flat_map(Saved::memory).copied());
            Saved::new(SavedAttention { heads, c_attn, mixing, c_proj, output }).with_memory(memory)
        } else {
            Saved::nothing()
        };
        Ok((y, saved))
    }

    fn backward(&self, saved: &Saved, c: &Activation, wants: Wants) -> Result<Gradients> {
        let saved: &SavedAttention = saved.get()?;
        if !wants.input && !wants.parameters {
            return Ok(Gradients::default());
        }
        let OutputGradients { projection, qkv } = self.output_gradients(saved, c)?;
        let mut gradients = self.c_attn.backward(&saved.c_attn, &qkv, wants)?;
        if wants.parameters {
            gradients.parameters.extend(self.projection_gradients(saved, &projection)?);
        }
        Ok(gradients)
    }

    fn backward_input(&self, saved: &Saved, c: &Activation) -> Result<(Activation, Pending)> {
        let saved: &SavedAttention = saved.get()?;
        let OutputGradients { projection, qkv } = self.output_gradients(saved, c)?;
        let (input, c_attn) = self.c_attn.backward_input(&saved.c_attn, &qkv)?;
        Ok((input, Pending::new(PendingAttention { projection, c_attn })))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        let saved: &SavedAttention = saved.get()?;
        let PendingAttention { projection, c_attn } = pending.take()?;
        let mut gradients = self.c_attn.backward_parameters(&saved.c_attn, c_attn)?;
        gradients.extend(self.projection_gradients(saved, &projection)?);
        Ok(gradients)
    }
}
