//! Residual connection: `y = main(x) + shortcut(x)`. Default for `shortcut`: the identity.
//!
//! Both branches take the same input and return outputs of one shape; `∂x` is the sum of the branches' input gradients.

use candle_core::{DType, Tensor};
use interlock::{
    Activation, Differentiable, Error, Gradients, ParameterGradients, Pass, Pending, Result, Saved, SavedMemory, Wants,
};

use super::{candle_operations, images::MemoryOrder, slices::read};
use crate::kernels::elementwise::zip;

/// The sum of two branches.
pub struct Residual {
    main: Box<dyn Differentiable>,
    shortcut: Option<Box<dyn Differentiable>>,
}

struct SavedResidual {
    main: Saved,
    shortcut: Option<Saved>,
    /// The dtype of the sum with candle's operations; none with kernels.
    dtype: Option<DType>,
}

struct PendingResidual {
    main: Pending,
    shortcut: Option<Pending>,
}

impl Residual {
    /// Makes `main(x) + shortcut(x)`, or `main(x) + x` without a shortcut.
    pub fn new(main: Box<dyn Differentiable>, shortcut: Option<Box<dyn Differentiable>>) -> Self {
        Self { main, shortcut }
    }

    /// Returns the shortcut and the tensors that its forward pass saved, or none if it is the identity.
    fn shortcut<'a>(&'a self, saved: &'a SavedResidual) -> Option<(&'a dyn Differentiable, &'a Saved)> {
        self.shortcut.as_deref().zip(saved.shortcut.as_ref())
    }
}

/// Returns the sum of two branches: in `dtype` with candle's operations, or with kernels.
fn add(a: &Activation, b: &Activation, dtype: Option<DType>) -> Result<Activation> {
    let (a, b): (&Tensor, &Tensor) = (a.single()?, b.single()?);
    if a.dims() != b.dims() {
        return Err(Error::invalid(
            "residual",
            format!("branches of shapes {:?} and {:?}", a.dims(), b.dims()),
            "give a shortcut that changes the shape as the main branch does",
        ));
    }
    if let Some(dtype) = dtype {
        return Ok((candle_operations::as_dtype(a, dtype)? + candle_operations::as_dtype(b, dtype)?)?.into());
    }
    let order = MemoryOrder::of(a);
    let (a, b) = (order.dense(a, "residual")?, order.dense(b, "residual")?);
    let sum = zip(&read(&a)?, &read::<f32>(&b)?, |a, b| a + b);
    Ok(order.tensor_of(&sum.into_tensor(a.shape())?)?.into())
}

/// Joins the gradients of both branches. The identity's input gradient is the output gradient.
fn join(
    mut main: Gradients,
    shortcut: Option<Gradients>,
    output_gradient: &Activation,
    wants: Wants,
    dtype: Option<DType>,
) -> Result<Gradients> {
    let mut parameters = std::mem::take(&mut main.parameters);
    let shortcut = match shortcut {
        Some(mut gradients) => {
            parameters.append(&mut gradients.parameters);
            wants.input.then(|| gradients.into_input()).transpose()?
        }
        None => wants.input.then(|| output_gradient.clone()),
    };
    let input = match shortcut {
        Some(shortcut) => Some(add(&main.into_input()?, &shortcut, dtype)?),
        None => None,
    };
    Ok(Gradients { input, parameters })
}

impl Differentiable for Residual {
    fn has_unchecked_gradients(&self) -> bool {
        [Some(&self.main), self.shortcut.as_ref()].into_iter().flatten().any(Differentiable::has_unchecked_gradients)
    }

    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let (y, main) = self.main.forward(x, pass)?;
        let (short, shortcut) = match &self.shortcut {
            Some(layer) => {
                let (short, saved) = layer.forward(x, pass)?;
                (short, Some(saved))
            }
            None => (x.clone(), None),
        };
        let dtype = match candle_operations::are_for(y.single()?) {
            true => Some(candle_operations::common_dtype([y.single()?, short.single()?], pass, "residual")?),
            false => None,
        };
        let y = add(&y, &short, dtype)?;
        let saved = match pass.is_train() {
            true => {
                let memory: Vec<SavedMemory> =
                    shortcut.iter().chain([&main]).flat_map(Saved::memory).copied().collect();
                Saved::new(SavedResidual { main, shortcut, dtype }).with_memory(memory)
            }
            false => Saved::nothing(),
        };
        Ok((y, saved))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let saved: &SavedResidual = saved.get()?;
        let main = self.main.backward(&saved.main, output_gradient, wants)?;
        let shortcut =
            self.shortcut(saved).map(|(layer, saved)| layer.backward(saved, output_gradient, wants)).transpose()?;
        join(main, shortcut, output_gradient, wants, saved.dtype)
    }

    fn last_backward(&self, saved: Saved, output_gradient: Activation, wants: Wants) -> Result<Gradients> {
        let saved: SavedResidual = saved.take()?;
        let main = self.main.last_backward(saved.main, output_gradient.clone(), wants)?;
        let shortcut = self.shortcut.as_ref().zip(saved.shortcut);
        let shortcut =
            shortcut.map(|(layer, saved)| layer.last_backward(saved, output_gradient.clone(), wants)).transpose()?;
        join(main, shortcut, &output_gradient, wants, saved.dtype)
    }

    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        let saved: &SavedResidual = saved.get()?;
        let (main_input, main) = self.main.backward_input(&saved.main, output_gradient)?;
        let (short_input, shortcut) = match self.shortcut(saved) {
            Some((layer, saved)) => {
                let (input, pending) = layer.backward_input(saved, output_gradient)?;
                (input, Some(pending))
            }
            None => (output_gradient.clone(), None),
        };
        let input = add(&main_input, &short_input, saved.dtype)?;
        Ok((input, Pending::new(PendingResidual { main, shortcut })))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        let saved: &SavedResidual = saved.get()?;
        let pending: PendingResidual = pending.take()?;
        let mut gradients = self.main.backward_parameters(&saved.main, pending.main)?;
        if let Some(((layer, saved), pending)) = self.shortcut(saved).zip(pending.shortcut) {
            gradients.extend(layer.backward_parameters(saved, pending)?);
        }
        Ok(gradients)
    }

    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        let saved: SavedResidual = saved.take()?;
        let pending: PendingResidual = pending.take()?;
        let mut gradients = self.main.last_backward_parameters(saved.main, pending.main)?;
        if let Some(((layer, saved), pending)) = self.shortcut.as_ref().zip(saved.shortcut).zip(pending.shortcut) {
            gradients.extend(layer.last_backward_parameters(saved, pending)?);
        }
        Ok(gradients)
    }

    fn has_parameters(&self) -> bool {
        self.main.has_parameters() || self.shortcut.as_ref().is_some_and(|layer| layer.has_parameters())
    }
}
