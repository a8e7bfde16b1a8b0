//! Training steps through all units, in which each pass of each unit is measured separately.

use std::{collections::HashMap, mem, time::Instant};

use candle_core::Tensor;

use super::{
    parts::{ProfiledUnits, guarded},
    reader::{MemoryReader, MemoryUse},
};
use crate::{
    Activation, ActivationDtype, NonFinite, Pass, Phase, Result, Saved, StageDevice, Wants,
    loss::Targets,
    stage::{Payload, StageSettings},
    tensor::weighted_sum::weighted_sum,
};

/// A piece of a step, measured separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Piece {
    Forward,
    Input,
    Parameters,
    Both,
    ParametersOnly,
    Relay,
    Update,
    Loss,
    Send,
    Receive,
    /// The weighted sum of two gradients of the unit's output.
    SumOfTwo,
    /// The head with this number after the unit, as one that a stage follows.
    HeadNeeded(usize),
    /// The same head as one that no stage follows.
    HeadProbe(usize),
    HeadUpdate(usize),
    /// No work: the moment between input passes and parameter passes.
    Between,
    /// Work that the other pieces need, and whose costs are not used.
    Aside,
}

impl Piece {
    fn phase(self) -> Phase {
        match self {
            Self::Forward | Self::Between | Self::Aside => Phase::Forward,
            Self::Input | Self::Parameters | Self::Both | Self::ParametersOnly | Self::Relay | Self::SumOfTwo => {
                Phase::Backward
            }
            Self::Update | Self::HeadUpdate(_) => Phase::Update,
            Self::Loss | Self::HeadNeeded(_) | Self::HeadProbe(_) => Phase::Head,
            Self::Send | Self::Receive => Phase::Transfer,
        }
    }
}

/// The time and memory of one run of a piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct PieceRun {
    pub(super) seconds: f64,
    pub(super) used: Option<MemoryUse>,
}

/// The units of a model on a device, and a micro-batch.
pub(super) struct Chain<'a> {
    pub(super) parts: ProfiledUnits,
    pub(super) device: &'a dyn StageDevice,
    /// Reads the memory in use; none while only times are measured.
    pub(super) reader: Option<MemoryReader<'a>>,
    /// In order of events.
    pub(super) seen: HashMap<(usize, Piece), Vec<PieceRun>>,
    /// Bytes of each unit's output as it crosses a boundary.
    pub(super) outputs: Vec<usize>,
    /// Bytes of each unit's output gradient.
    pub(super) output_gradients: Vec<usize>,
    settings: &'a StageSettings,
    /// The dtype in which the device's stages send and save.
    pub(super) dtype: ActivationDtype,
    payload: Payload,
}

impl<'a> Chain<'a> {
    pub(super) fn new(
        parts: ProfiledUnits,
        device: &'a dyn StageDevice,
        settings: &'a StageSettings,
        payload: Payload,
    ) -> Result<Self> {
        let none = vec![0; parts.units.len()];
        let (outputs, output_gradients) = (none.clone(), none);
        let dtype = device.precision().dtype(settings.dtype, device.name())?;
        Ok(Self {
            parts,
            device,
            reader: None,
            seen: HashMap::new(),
            outputs,
            output_gradients,
            settings,
            dtype,
            payload,
        })
    }

    /// Does `work`, a piece of unit `i`, and records its time and memory.
    fn see<R>(&mut self, i: usize, figure: Piece, work: impl FnOnce(&mut ProfiledUnits) -> Result<R>) -> Result<R> {
        let name = self.parts.units[i].name.clone();
        let before = self.reader.map(|reader| reader.begin());
        let start = Instant::now();
        let result = guarded(i, &name, figure.phase(), || {
            let result = work(&mut self.parts)?;
            self.device.synchronize()?;
            Ok(result)
        })?;
        self.parts.monitor.forget();
        let seconds = start.elapsed().as_secs_f64();
        let used = self.reader.zip(before).map(|(reader, before)| MemoryUse {
            before,
            after: reader.in_use(),
            peak: reader.peak(),
        });
        self.seen.entry((i, figure)).or_default().push(PieceRun { seconds, used });
        Ok(result)
    }

    /// Runs the forward passes, each followed by `after` on its output. Returns the last output and the saved activations.
    fn forward(
        &mut self,
        figure: Piece,
        mut after: impl FnMut(&mut Self, usize, &Activation) -> Result<()>,
    ) -> Result<(Activation, Vec<Saved>)> {
        let precision = self.device.precision();
        let pass = Pass { dtype: self.dtype, precision, ..Pass::train(self.settings.seed, 0, 0) };
        let mut x = precision.enter(&self.payload.inputs)?;
        let mut all = Vec::with_capacity(self.parts.units.len());
        for i in 0..self.parts.units.len() {
            let (y, saved) = self.see(i, figure, |parts| parts.units[i].module.forward(&x, &pass))?;
            x = y.detach();
            drop(y);
            all.push(saved);
            after(self, i, &x)?;
        }
        if let Some(last) = self.outputs.last_mut() {
            *last = x.bytes();
        }
        Ok((x, all))
    }

    /// Runs the forward passes and the loss. Returns the gradient of the loss and the saved activations.
    fn begin(&mut self, figure: Piece) -> Result<(Activation, Vec<Saved>)> {
        let (output, saved) = self.forward(figure, |_, _, _| Ok(()))?;
        Ok((self.loss(output)?, saved))
    }

    fn loss(&mut self, output: Activation) -> Result<Activation> {
        let Payload { targets, total, .. } = self.payload.clone();
        let (loss, device) = (self.settings.loss.clone(), self.device);
        let gradient = self.see(self.parts.units.len() - 1, Piece::Loss, |_| {
            Ok(loss.differentiate(output.single()?, &Targets::on(device, &targets)?, total)?.1)
        })?;
        Ok(gradient.into())
    }

    /// Runs the last backward pass of unit `i`, to its parameters and, if wanted, to its input.
    fn backward(
        &mut self,
        i: usize,
        saved: Saved,
        output_gradient: Activation,
        wants: Wants,
    ) -> Result<Option<Activation>> {
        self.output_gradients[i] = output_gradient.bytes();
        let figure = if wants.input { Piece::Both } else { Piece::ParametersOnly };
        self.see(i, figure, |parts| {
            let mut gradients = parts.units[i].module.last_backward(saved, output_gradient, wants)?;
            parts.accumulate(i, mem::take(&mut gradients.parameters))?;
            if wants.input { gradients.into_input().map(Some) } else { Ok(None) }
        })
    }

    fn update(&mut self) -> Result<()> {
        for i in 0..self.parts.units.len() {
            self.see(i, Piece::Update, |parts| parts.units[i].update(&mut parts.monitor))?;
        }
        Ok(())
    }

    fn update_heads(&mut self) -> Result<()> {
        for i in 0..self.parts.heads.len() {
            for n in 0..self.parts.heads[i].len() {
                self.see(i, Piece::HeadUpdate(n), |parts| parts.heads[i][n].1.update(&mut parts.monitor))?;
            }
        }
        Ok(())
    }

    /// Runs each head after unit `i`: forward, loss and backward.
    fn heads(&mut self, i: usize, output: &Activation, needed: bool) -> Result<()> {
        (0..self.parts.heads[i].len()).try_for_each(|n| self.head(i, n, output, needed))
    }

    fn head(&mut self, i: usize, n: usize, output: &Activation, needed: bool) -> Result<()> {
        let precision = self.device.precision();
        let pass = Pass { dtype: self.dtype, precision, ..Pass::train(self.settings.seed, 0, 0) };
        let Payload { targets, total, .. } = self.payload.clone();
        let (loss, device) = (self.settings.loss.clone(), self.device);
        self.see(i, if needed { Piece::HeadNeeded(n) } else { Piece::HeadProbe(n) }, |parts| {
            let head = &mut parts.heads[i][n].1;
            let (logits, saved) = head.module.forward(output, &pass)?;
            let (_, gradient) = loss.differentiate(logits.single()?, &Targets::on(device, &targets)?, total)?;
            let wants = Wants { input: needed, parameters: true };
            let mut gradients = head.module.last_backward(saved, gradient.into(), wants)?;
            if let Some(parameters) = &mut head.parameters {
                parameters.accumulate(mem::take(&mut gradients.parameters), &mut parts.monitor)?;
            }
            if !needed {
                return Ok(None);
            }
            let gradient = gradients.into_input()?;
            let what = || "the gradient that the head gives".to_owned();
            parts.monitor.check_activation(&gradient, NonFinite::Gradient, what)?;
            Ok(Some(gradient))
        })?;
        Ok(())
    }

    /// Sends the output of unit `i` and receives it, as if a boundary followed the unit; and adds up gradients of it.
    fn boundary(&mut self, i: usize, output: &Activation) -> Result<()> {
        if i + 1 == self.parts.units.len() {
            return self.add_up(i, output);
        }
        let (dtype, precision) = (self.dtype, self.device.precision());
        let sent = self.see(i, Piece::Send, |parts| {
            let sent = dtype.pack(output)?;
            parts.monitor.check_activation(&sent, NonFinite::Activation, || "the output".to_owned())?;
            Ok(sent)
        })?;
        self.outputs[i] = sent.bytes();
        self.see(i, Piece::Receive, |_| precision.enter(&sent))?;
        self.add_up(i, &sent)
    }

    /// Adds up two gradients of `output`, the output of unit `i`.
    fn add_up(&mut self, i: usize, output: &Activation) -> Result<()> {
        let gradient = || -> Result<Activation> {
            let tensors = output.tensors().iter().filter(|tensor| tensor.dtype().is_float());
            Ok(Activation::new(tensors.map(Tensor::copy).collect::<candle_core::Result<_>>()?))
        };
        let gradients = self.see(i, Piece::Aside, |_| Ok([(gradient()?, 0.5), (gradient()?, 0.5)]))?;
        self.see(i, Piece::SumOfTwo, |_| weighted_sum(&gradients))?;
        Ok(())
    }

    /// Runs a step whose backward passes give input and parameter gradients at once.
    pub(super) fn whole(&mut self) -> Result<()> {
        let (mut output_gradient, saved) = self.begin(Piece::Forward)?;
        for (i, saved) in saved.into_iter().enumerate().rev() {
            match self.backward(i, saved, output_gradient, if i > 0 { Wants::BOTH } else { Wants::PARAMETERS })? {
                Some(input) => output_gradient = input,
                None => break,
            }
        }
        self.update()
    }

    /// Runs a step whose input passes reach the first unit before the parameter passes begin.
    pub(super) fn split(&mut self) -> Result<()> {
        let (mut output_gradient, mut saved) = self.begin(Piece::Forward)?;
        let rest = saved.split_off(1);
        let mut left = Vec::with_capacity(rest.len());
        for (i, saved) in rest.iter().enumerate().map(|(i, saved)| (i + 1, saved)).rev() {
            let (input, pending) =
                self.see(i, Piece::Input, |parts| parts.units[i].module.backward_input(saved, &output_gradient))?;
            output_gradient = input;
            left.push(pending);
        }
        self.see(0, Piece::Between, |_| Ok(()))?;
        for first in saved {
            self.backward(0, first, output_gradient.clone(), Wants::PARAMETERS)?;
        }
        drop(output_gradient);
        for ((i, saved), pending) in rest.into_iter().enumerate().rev().zip(left) {
            let i = i + 1;
            self.see(i, Piece::Parameters, |parts| {
                let gradients = parts.units[i].module.last_backward_parameters(saved, pending)?;
                parts.accumulate(i, gradients)
            })?;
        }
        self.update()
    }

    /// Runs a step with all heads as needed ones, and with each unit as if it were the first of a stage.
    pub(super) fn needed(&mut self) -> Result<()> {
        let (output, saved) = self.forward(Piece::Aside, |chain, i, y| chain.heads(i, y, true))?;
        let mut output_gradient = self.loss(output)?;
        for (i, saved) in saved.into_iter().enumerate().rev() {
            let input = match i {
                0 => None,
                _ => Some(self.see(i, Piece::Aside, |parts| {
                    parts.units[i].module.backward(&saved, &output_gradient, Wants::INPUT)?.into_input()
                })?),
            };
            self.backward(i, saved, output_gradient, Wants::PARAMETERS)?;
            match input {
                Some(input) => output_gradient = input,
                None => break,
            }
        }
        self.update()?;
        self.update_heads()
    }

    /// Runs forward passes with all heads as probes, and a boundary after every unit.
    pub(super) fn probe(&mut self) -> Result<()> {
        self.forward(Piece::Aside, |chain, i, y| {
            chain.boundary(i, y)?;
            chain.heads(i, y, false)
        })?;
        self.update_heads()
    }

    /// Runs a step whose backward passes give input gradients only.
    pub(super) fn relay(&mut self) -> Result<()> {
        let (mut output_gradient, saved) = self.begin(Piece::Forward)?;
        for (i, saved) in saved.into_iter().enumerate().rev() {
            self.output_gradients[i] = output_gradient.bytes();
            if i == 0 {
                return self.see(i, Piece::Relay, |_| {
                    drop((saved, output_gradient));
                    Ok(())
                });
            }
            output_gradient = self.see(i, Piece::Relay, |parts| {
                parts.units[i].module.last_backward(saved, output_gradient, Wants::INPUT)?.into_input()
            })?;
        }
        Ok(())
    }
}
