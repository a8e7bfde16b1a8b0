//! Small models with gradients that can be worked out by hand, shared by the tests of this crate.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{sync::Arc, thread, time::Duration};

use candle_core::{Device, Tensor};
use candle_nn::{Init, VarBuilder};
use interlock::{
    Activation, Batch, Dataset, Differentiable, Error, Gradients, Key, Loss, ModelSpec, ParameterGradients, Pass,
    PendingScore, Result, Saved, Score, Targets, Unit, Wants, Weights,
};
use rand::RngExt;

/// `y = w·x` with one scalar parameter `w`.
pub struct Scale {
    weight: Tensor,
}

impl Scale {
    pub fn new(vb: &VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get_with_hints(1, "weight", Init::Uniform { lo: 0.5, up: 1.5 })? })
    }

    fn value(&self) -> Result<f64> {
        Ok(f64::from(self.weight.to_vec1::<f32>()?[0]))
    }
}

impl Differentiable for Scale {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?;
        Ok(((x * self.value()?)?.into(), Saved::new(x.clone())))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let (x, output_gradient): (&Tensor, _) = (saved.get()?, output_gradient.single()?);
        let parameters: ParameterGradients = if wants.parameters {
            vec![(self.weight.id(), (x * output_gradient)?.sum_all()?.reshape(1)?.detach())]
        } else {
            Vec::new()
        };
        let input = if wants.input { Some((output_gradient * self.value()?)?.into()) } else { None };
        Ok(Gradients { input, parameters })
    }
}

/// A chain of [`Scale`]s named `s0`, `s1` …, each with a `Scale` as head.
#[derive(Clone)]
pub struct Chain {
    pub length: usize,
}

impl ModelSpec for Chain {
    fn units(&self) -> Result<Vec<Unit>> {
        Ok((0..self.length).map(|i| Unit::new(format!("s{i}"), [1], |vb| Scale::new(&vb)).with_flops(1.0)).collect())
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(Unit::new("", [1], |vb| Scale::new(&vb)).with_flops(0.1))
    }
}

/// A loss with a known slope: `slope · output`, whatever the targets.
pub struct Slope(pub f64);

impl Loss for Slope {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        Ok(targets.elem_count() as f64)
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        let sum = f64::from(output.flatten_all()?.sum_all()?.to_scalar::<f32>()?);
        Ok(Score { loss: self.0 * sum, count: self.count(targets)?, correct: None }.into())
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        let gradient = (output.ones_like()? * (self.0 / total))?;
        Ok((self.score(output, targets)?, gradient))
    }
}

/// A loss whose slope is the target: `Σ target · output`.
pub struct ByTarget;

impl Loss for ByTarget {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        Ok(targets.elem_count() as f64)
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        let products = (output.flatten_all()? * targets.to_dtype(candle_core::DType::F32)?)?;
        Ok(Score {
            loss: f64::from(products.sum_all()?.to_scalar::<f32>()?),
            count: self.count(targets)?,
            correct: None,
        }
        .into())
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        let gradient = (targets.to_dtype(candle_core::DType::F32)?.reshape(output.dims())? / total)?;
        Ok((self.score(output, targets)?, gradient))
    }
}

/// A batch of scalars `(B, 1)`.
pub fn scalars(values: &[f32]) -> Batch {
    let inputs = Tensor::from_slice(values, (values.len(), 1), &Device::Cpu).unwrap();
    let targets = Tensor::zeros(values.len(), candle_core::DType::U32, &Device::Cpu).unwrap();
    Batch { inputs: inputs.into(), targets }
}

/// Initial values: one scalar a name.
pub fn given(values: &[(&str, f32)]) -> Arc<Weights> {
    let tensor = |v: f32| Tensor::from_slice(&[v], 1, &Device::Cpu).unwrap();
    Arc::new(values.iter().map(|&(name, v)| (name.to_owned(), tensor(v))).collect())
}

/// Points in the plane with the class of the spiral arm that they lie on.
#[derive(Clone, Copy)]
pub struct Spiral {
    pub examples: usize,
}

impl Dataset for Spiral {
    fn len(&self) -> usize {
        self.examples
    }

    fn batch(&self, numbers: &[usize], augment: Option<Key>) -> Result<Batch> {
        let (mut points, mut classes) = (Vec::new(), Vec::new());
        for &number in numbers {
            let class = number % 3;
            let t = (number / 3) as f32 / (self.examples / 3).max(1) as f32;
            let noise = augment.map_or(0.0, |key| key.with(number as u64).stream().random::<f32>() * 0.1);
            let angle = t * 4.0 + class as f32 * 2.1 + noise;
            points.extend([t * angle.cos(), t * angle.sin()]);
            classes.push(class as u32);
        }
        Ok(Batch {
            inputs: Tensor::from_vec(points, (numbers.len(), 2), &Device::Cpu)?.into(),
            targets: Tensor::from_vec(classes, numbers.len(), &Device::Cpu)?,
        })
    }
}

/// `y = tanh(x·W)`, written out by hand; the last one of a model without the `tanh`.
pub struct Dense {
    weight: Tensor,
    tanh: bool,
}

impl Dense {
    pub fn new(vb: &VarBuilder, inputs: usize, outputs: usize, tanh: bool) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((inputs, outputs), "weight", Init::Randn { mean: 0.0, stdev: 0.7 })?,
            tanh,
        })
    }
}

impl Differentiable for Dense {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        let x = x.single()?.detach();
        let y = x.matmul(&self.weight.detach())?;
        let y = if self.tanh { y.tanh()? } else { y };
        Ok((y.clone().into(), Saved::new((x, y))))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let (x, y): &(Tensor, Tensor) = saved.get()?;
        let output_gradient = output_gradient.single()?;
        let c = if self.tanh { (output_gradient * (y.sqr()?.neg()? + 1.0)?)? } else { output_gradient.clone() };
        let parameters = if wants.parameters { vec![(self.weight.id(), x.t()?.matmul(&c)?)] } else { Vec::new() };
        let input = if wants.input { Some(c.matmul(&self.weight.detach().t()?.contiguous()?)?.into()) } else { None };
        Ok(Gradients { input, parameters })
    }
}

/// Linear layers `s0`, `s1` … between spaces of these dimensions, each with a linear head of one output: gradients are products of matrices.
#[derive(Clone)]
pub struct Matrices {
    pub dims: Vec<usize>,
}

impl ModelSpec for Matrices {
    fn units(&self) -> Result<Vec<Unit>> {
        let unit = |(i, dims): (usize, &[usize])| {
            let (inputs, outputs) = (dims[0], dims[1]);
            Unit::new(format!("s{i}"), [outputs], move |vb| Dense::new(&vb, inputs, outputs, false)).with_flops(1.0)
        };
        Ok(self.dims.windows(2).enumerate().map(unit).collect())
    }

    fn head(&self, unit: usize, _: &str) -> Result<Unit> {
        let inputs = self.dims[unit + 1];
        Ok(Unit::new("", [1], move |vb| Dense::new(&vb, inputs, 1, false)).with_flops(0.1))
    }
}

/// A layer that takes its time in each pass.
pub struct Paced(pub Dense, pub Duration);

impl Differentiable for Paced {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        thread::sleep(self.1);
        self.0.forward(x, pass)
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        thread::sleep(self.1);
        self.0.backward(saved, output_gradient, wants)
    }
}

/// A small multilayer perceptron for [`Spiral`]: `2 → 8 → … → 3`.
#[derive(Clone)]
pub struct Perceptron {
    pub layers: usize,
    pub fault: Option<Fault>,
}

impl ModelSpec for Perceptron {
    fn units(&self) -> Result<Vec<Unit>> {
        let last = self.layers - 1;
        Ok((0..self.layers)
            .map(|i| {
                let (inputs, outputs) = (if i == 0 { 2 } else { 8 }, if i == last { 3 } else { 8 });
                let fault = self.fault.clone().filter(|fault| fault.unit == i && !fault.head);
                Unit::new(format!("layers.{i}"), [outputs], move |vb| {
                    Ok(Faulty { inner: Dense::new(&vb, inputs, outputs, i < last)?, fault: fault.clone() })
                })
                .with_flops((inputs * outputs) as f64)
            })
            .collect())
    }

    fn head(&self, unit: usize, _: &str) -> Result<Unit> {
        let fault = self.fault.clone().filter(|fault| fault.unit == unit && fault.head);
        Ok(Unit::new("0", [3], move |vb| Ok(Faulty { inner: Dense::new(&vb, 8, 3, false)?, fault: fault.clone() }))
            .with_flops(24.0))
    }
}

/// What goes wrong, in which unit (or in the head behind it), when.
#[derive(Clone, Debug)]
pub struct Fault {
    pub unit: usize,
    pub head: bool,
    pub when: When,
    pub how: How,
    pub step: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Forward,
    BackwardInput,
    BackwardParameters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Panic,
    Error,
    NotANumber,
}

/// A layer that fails on demand.
pub struct Faulty<D> {
    inner: D,
    fault: Option<Fault>,
}

impl<D> Faulty<D> {
    /// Whether to spoil the values; panics or errs here if that is the fault.
    fn strikes(&self, when: When, step: u64) -> Result<bool> {
        match &self.fault {
            Some(fault) if fault.when == when && fault.step == step => match fault.how {
                How::Panic => panic!("the fault that was asked for"),
                How::Error => Err(Error::Data("the fault that was asked for".to_owned())),
                How::NotANumber => Ok(true),
            },
            _ => Ok(false),
        }
    }
}

fn spoil(tensor: &Tensor) -> Result<Tensor> {
    Ok((tensor * f64::NAN)?)
}

impl<D: Differentiable> Differentiable for Faulty<D> {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let strikes = pass.is_train() && self.strikes(When::Forward, pass.step)?;
        let (y, saved) = self.inner.forward(x, pass)?;
        let y = if strikes { y.try_map(spoil)? } else { y };
        Ok((y, Saved::new((saved, pass.step))))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        let (saved, step): &(Saved, u64) = saved.get()?;
        let mut pulled = self.inner.backward(saved, output_gradient, wants)?;
        if wants.input && self.strikes(When::BackwardInput, *step)? {
            pulled.input = pulled.input.map(|input| input.try_map(spoil)).transpose()?;
        }
        if wants.parameters && self.strikes(When::BackwardParameters, *step)? {
            for (_, gradient) in &mut pulled.parameters {
                *gradient = spoil(gradient)?;
            }
        }
        Ok(pulled)
    }
}
