//! A block of convolutions in kernels.
//!
//! The block saves only the outputs of its convolutions, and a bit for each element of the last ReLU. A convolution applies the previous norm and
//! ReLU while it reads its input, and their gradients while it reads its output gradient.

use std::sync::Arc;

use candle_core::Tensor;
use interlock::{
    Activation, Differentiable, Error, Gradients, ParameterGradients, Pass, Pending, Precision, Result, Saved,
    SavedMemory, Wants,
};

use super::{NAME, Shortcut, no_link};
use crate::{
    kernels::{
        aligned_buffer::Filled,
        channel_lines::NormGradient,
        convolution::{Batch, GradientTarget, line_count},
        norm::{self, Addend, Norm},
        padded::Source,
    },
    layers::{
        BatchNorm2d, Conv2d,
        images::{channels_last, images, output_gradient_last},
        saved_tensor::SavedTensor,
        slices::{read, wrong_shape},
    },
};

/// `ReLU(norm_n(conv_n(… ReLU(norm_1(conv_1(x))) …)) + shortcut(x))`.
pub(super) struct FusedBlock {
    links: Vec<(Conv2d, BatchNorm2d)>,
    shortcut: Shortcut,
}

/// The output of a convolution, `(B, H, W, C)`, and its norm.
struct Link {
    /// Computed in `bf16`, it is rounded at once, and the forward pass goes on with what the backward pass will find.
    y: SavedTensor,
    norm: Norm,
}

/// A forward pass.
struct SavedBlock {
    /// `(B, H, W, C)`.
    x: SavedTensor,
    links: Vec<Link>,
    projection: Option<Link>,
    /// A bit for each element, set if the last ReLU's input is above 0; channels are in blocks of sixteen.
    gate: Arc<[u16]>,
}

impl SavedBlock {
    /// Saves it as `pass` says.
    fn saved(self, pass: &Pass) -> Result<Saved> {
        let save = |link: Link| Ok::<_, Error>(Link { y: link.y.save(pass)?, norm: link.norm });
        let block = Self {
            x: self.x.save(pass)?,
            links: self.links.into_iter().map(save).collect::<Result<_>>()?,
            projection: self.projection.map(save).transpose()?,
            gate: self.gate,
        };
        let links = block.links.iter().chain(&block.projection).map(|link| link.y.memory());
        let memory: Vec<SavedMemory> = links.chain([block.x.memory(), SavedMemory::of_slice(&block.gate)]).collect();
        Ok(Saved::new(block).with_memory(memory))
    }
}

/// The gradient of a norm's output, with the norm's own gradients.
struct NormOutputGradient {
    /// `(B, H, W, C)`. For the last norm and the projection's norm, this is the gradient before the gate is applied.
    g: Tensor,
    gradient: NormGradient,
}

struct PendingBlock {
    /// From the first link to the last.
    links: Vec<NormOutputGradient>,
    projection: Option<NormOutputGradient>,
}

/// Returns the dimensions `(B, C, H, W)` of a channels-last `(B, H, W, C)`.
fn dims(x: &SavedTensor) -> Result<[usize; 4]> {
    match *x.dims() {
        [batch, height, width, channels] => Ok([batch, channels, height, width]),
        ref other => Err(wrong_shape(NAME, other, "(B, H, W, C)")),
    }
}

impl FusedBlock {
    pub(super) fn new(links: Vec<(Conv2d, BatchNorm2d)>, shortcut: Shortcut) -> Self {
        Self { links, shortcut }
    }

    /// Computes a convolution and the norm of its output.
    fn link(
        &self,
        (conv, norm): (&Conv2d, &BatchNorm2d),
        x: &Source<'_>,
        from: [usize; 4],
        pass: &Pass,
    ) -> Result<Link> {
        let geometry = conv.geometry(&from)?;
        let (weight, precision) = (read(&conv.weight)?, pass.precision);
        let batch = Batch { geometry, weight: &weight, images: from[0], precision };
        let mut moments = vec![0.0; if pass.is_train() { from[0] * 3 * line_count(geometry.outputs) } else { 0 }];
        let [height, width, channels] = geometry.output();
        let (shape, moments_of) = ((from[0], height, width, channels), pass.is_train().then_some(&mut moments[..]));
        let y = match precision {
            Precision::F32 => SavedTensor::whole(batch.forward(x, moments_of).into_tensor(shape)?, pass),
            Precision::Bf16 => SavedTensor::half(batch.forward_half(x, moments_of), shape, pass),
        };
        let bias = conv.bias.as_ref().map(read::<f32>).transpose()?;
        let norm = match pass.is_train() {
            true => norm.of_batch(&moments, [from[0], channels, height, width], pass, bias.as_deref())?,
            false => norm.of_running(bias.as_deref())?,
        };
        Ok(Link { y, norm })
    }

    /// Applies the last norm, adds the shortcut, and applies the last ReLU. Returns the output and the ReLU's gate.
    fn join(&self, x: &SavedTensor, last: &Link, projection: Option<&Link>) -> Result<(Filled, Vec<u16>)> {
        let [_, channels, height, width] = dims(&last.y)?;
        let (y, x) = (last.y.numbers()?, x.numbers()?);
        let projected = projection.map(|link| link.y.numbers()).transpose()?;
        let addend = match (&self.shortcut, &projected, projection) {
            (Shortcut::None, ..) => Addend::Nothing,
            (_, Some(projected), Some(link)) => Addend::Normed(projected.get(), &link.norm.line),
            _ => Addend::Plain(x.get()),
        };
        Ok(norm::join(y.get(), &last.norm.line, addend, [height * width, channels], true))
    }

    /// Returns the sums that the backward pass of a norm needs, for the output gradient `g` where the gate is open.
    fn sums(&self, g: &[f32], gate: &[u16], link: &Link) -> Result<Vec<f32>> {
        let [_, channels, height, width] = dims(&link.y)?;
        Ok(norm::gradient_sums(g, Some(gate), link.y.numbers()?.get(), &link.norm, [height * width, channels]))
    }

    fn batch<'a>(&self, conv: &Conv2d, x: &SavedTensor, weight: &'a [f32]) -> Result<Batch<'a>> {
        let from = dims(x)?;
        Ok(Batch { geometry: conv.geometry(&from)?, weight, images: from[0], precision: x.precision() })
    }

    /// Returns the gradients of a convolution's parameters.
    fn conv_gradients(&self, conv: &Conv2d, weight: Option<Filled>) -> Result<ParameterGradients> {
        let mut gradients = Vec::new();
        if let Some(weight) = weight {
            gradients.push((conv.weight.id(), weight.into_tensor(conv.weight.shape())?));
            if let Some(bias) = &conv.bias {
                gradients.push((bias.id(), bias.zeros_like()?));
            }
        }
        Ok(gradients)
    }

    /// Runs the backward pass of the block for the output gradient `c`. Returns the gradients of the norms' outputs too if `keep`.
    fn run_backward(
        &self,
        saved: &SavedBlock,
        c: &Activation,
        wants: Wants,
        keep: bool,
    ) -> Result<(Gradients, Option<PendingBlock>)> {
        let Some(last) = saved.links.last() else { return Err(no_link()) };
        let [batch, channels, height, width] = dims(&last.y)?;
        let c = output_gradient_last(c, &[batch, channels, height, width], NAME)?;
        let mut sums = self.sums(&read::<f32>(&c)?, &saved.gate, last)?;
        let mut pass = BackwardPass { block: self, saved, c, wants, parameters: Vec::new(), input: None };
        let (mut kept, mut g) = (Vec::new(), None);
        for i in (0..saved.links.len()).rev() {
            let gradient = saved.links[i].norm.gradient(&sums);
            let (previous_g, previous_sums) = pass.link(i, g.as_ref(), &gradient)?;
            if keep {
                kept.push(NormOutputGradient { g: g.unwrap_or_else(|| pass.c.clone()), gradient });
            }
            (g, sums) = (previous_g, previous_sums);
        }
        kept.reverse();
        let projection = pass.projection()?;
        let [batch, inputs, height, width] = dims(&saved.x)?;
        let input = pass.input.map(|dx| images(dx, batch, [height, width, inputs])).transpose()?.map(Activation::from);
        let pending = keep.then_some(PendingBlock { links: kept, projection });
        Ok((Gradients { input, parameters: pass.parameters }, pending))
    }
}

/// The state of a backward pass, which goes from the output to the input.
struct BackwardPass<'a> {
    block: &'a FusedBlock,
    saved: &'a SavedBlock,
    /// The gradient of the output, `(B, H, W, C)`, before the gate is applied.
    c: Tensor,
    wants: Wants,
    parameters: ParameterGradients,
    /// The gradient of the block's input, as far as it has been computed.
    input: Option<Filled>,
}

impl BackwardPass<'_> {
    /// Runs the backward pass of link `i`. `g` is the gradient of its norm's output, or none for the last link, whose gradient is `c` where the gate
    /// is open. Returns the gradient of the previous norm's output, or none for the first link, and the sums that the previous norm needs.
    fn link(&mut self, i: usize, g: Option<&Tensor>, gradient: &NormGradient) -> Result<(Option<Tensor>, Vec<f32>)> {
        let Self { block, saved, wants, .. } = *self;
        let (conv, norm) = &block.links[i];
        if wants.parameters {
            self.parameters.extend(norm.gradients(gradient)?);
        }
        let previous = i.checked_sub(1).map(|previous| &saved.links[previous]);
        let from = previous.map_or(&saved.x, |previous| &previous.y);
        let (weight, x, y) = (read(&conv.weight)?, from.numbers()?, saved.links[i].y.numbers()?);
        let output = read::<f32>(&self.c)?;
        let inner = g.map(read::<f32>).transpose()?;
        let g = Source::Gradient {
            g: inner.as_deref().unwrap_or(&output),
            gate: inner.is_none().then_some(&saved.gate[..]),
            y: y.get(),
            lines: gradient,
        };
        let source = match previous {
            Some(previous) => Source::Rectified(x.get(), &previous.norm.line),
            None => Source::Plain(x.get()),
        };
        let batch = block.batch(conv, from, &weight)?;
        let mut sums = vec![0.0; previous.map_or(0, |_| batch.images * 2 * line_count(batch.geometry.inputs))];
        let into = match (previous, &block.shortcut) {
            (Some(previous), _) => Some(GradientTarget::Gate { y: x.get(), norm: &previous.norm, sums: &mut sums }),
            (None, Shortcut::Identity) if wants.input => Some(GradientTarget::Skip { g: &output, gate: &saved.gate }),
            (None, _) => wants.input.then_some(GradientTarget::Write),
        };
        let gradients = batch.backward(&g, wants.parameters.then_some(&source), into);
        self.parameters.extend(block.conv_gradients(conv, gradients.weight)?);
        match (previous, gradients.input) {
            (Some(previous), Some(g)) => Ok((Some(g.into_tensor(previous.y.dims())?), sums)),
            (_, input) => {
                self.input = input;
                Ok((None, sums))
            }
        }
    }

    /// Runs the backward pass of the projection, if there is one, and adds its input gradient to the block's. Returns the gradient of its norm's
    /// output.
    fn projection(&mut self) -> Result<Option<NormOutputGradient>> {
        let Self { block, saved, wants, .. } = *self;
        let (Shortcut::Projection(conv, norm), Some(link)) = (&block.shortcut, &saved.projection) else {
            return Ok(None);
        };
        let output = read::<f32>(&self.c)?;
        let gradient = link.norm.gradient(&block.sums(&output, &saved.gate, link)?);
        if wants.parameters {
            self.parameters.extend(norm.gradients(&gradient)?);
        }
        let (weight, x, y) = (read(&conv.weight)?, saved.x.numbers()?, link.y.numbers()?);
        let g = Source::Gradient { g: &output, gate: Some(&saved.gate), y: y.get(), lines: &gradient };
        let gradients = block.batch(conv, &saved.x, &weight)?.backward(
            &g,
            wants.parameters.then_some(&Source::Plain(x.get())),
            self.input.take().map(GradientTarget::Add),
        );
        self.parameters.extend(block.conv_gradients(conv, gradients.weight)?);
        self.input = gradients.input;
        Ok(Some(NormOutputGradient { g: self.c.clone(), gradient }))
    }
}

impl Differentiable for FusedBlock {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        let x = channels_last(x.single()?, NAME)?;
        let x = SavedTensor::whole(x, pass);
        let from = dims(&x)?;
        let mut saved = SavedBlock { x, links: Vec::new(), projection: None, gate: Arc::default() };
        for (conv, norm) in &self.links {
            let link = match saved.links.last() {
                None => self.link((conv, norm), &Source::Plain(saved.x.numbers()?.get()), from, pass)?,
                Some(previous) => {
                    let y = previous.y.numbers()?;
                    let source = Source::Rectified(y.get(), &previous.norm.line);
                    self.link((conv, norm), &source, dims(&previous.y)?, pass)?
                }
            };
            saved.links.push(link);
        }
        let Some(last) = saved.links.pop() else { return Err(no_link()) };
        let to = dims(&last.y)?;
        let short = match &self.shortcut {
            Shortcut::None => to,
            Shortcut::Identity => from,
            Shortcut::Projection(conv, norm) => {
                let link = self.link((conv, norm), &Source::Plain(saved.x.numbers()?.get()), from, pass)?;
                let to = dims(&link.y)?;
                saved.projection = Some(link);
                to
            }
        };
        if short != to {
            return Err(Error::invalid(
                NAME,
                format!("branches of shapes {to:?} and {short:?}"),
                "give a shortcut that changes the shape as the convolutions do",
            ));
        }
        let (out, gate) = self.join(&saved.x, &last, saved.projection.as_ref())?;
        saved.gate = gate.into();
        let [batch, channels, height, width] = to;
        let out = images(out, batch, [height, width, channels])?;
        saved.links.push(last);
        Ok((out.into(), if pass.is_train() { saved.saved(pass)? } else { Saved::nothing() }))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        if wants == (Wants { input: false, parameters: false }) {
            return Ok(Gradients::default());
        }
        Ok(self.run_backward(saved.get::<SavedBlock>()?, output_gradient, wants, false)?.0)
    }

    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        let (gradients, pending) =
            self.run_backward(saved.get::<SavedBlock>()?, output_gradient, Wants::INPUT, true)?;
        Ok((gradients.into_input()?, Pending::new(pending.ok_or_else(no_link)?)))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        let saved = saved.get::<SavedBlock>()?;
        let PendingBlock { links, projection } = pending.take()?;
        let mut parameters = Vec::new();
        let mut add_gradients = |conv: &Conv2d,
                                 norm: &BatchNorm2d,
                                 link: &Link,
                                 output_gradient: &NormOutputGradient,
                                 gated: bool,
                                 x: &Source<'_>,
                                 from: &SavedTensor| {
            parameters.extend(norm.gradients(&output_gradient.gradient)?);
            let (weight, y, g) = (read(&conv.weight)?, link.y.numbers()?, read(&output_gradient.g)?);
            let gate = gated.then_some(&saved.gate[..]);
            let g = Source::Gradient { g: &g, gate, y: y.get(), lines: &output_gradient.gradient };
            let gradients = self.batch(conv, from, &weight)?.backward(&g, Some(x), None);
            parameters.extend(self.conv_gradients(conv, gradients.weight)?);
            Ok::<_, Error>(())
        };
        for (i, (((conv, norm), link), output_gradient)) in
            self.links.iter().zip(&saved.links).zip(&links).enumerate().rev()
        {
            let gated = i + 1 == saved.links.len();
            match i.checked_sub(1).map(|previous| &saved.links[previous]) {
                Some(previous) => {
                    let source = previous.y.numbers()?;
                    add_gradients(
                        conv,
                        norm,
                        link,
                        output_gradient,
                        gated,
                        &Source::Rectified(source.get(), &previous.norm.line),
                        &previous.y,
                    )?;
                }
                None => add_gradients(
                    conv,
                    norm,
                    link,
                    output_gradient,
                    gated,
                    &Source::Plain(saved.x.numbers()?.get()),
                    &saved.x,
                )?,
            }
        }
        if let ((Shortcut::Projection(conv, norm), Some(link)), Some(output_gradient)) =
            ((&self.shortcut, &saved.projection), &projection)
        {
            add_gradients(conv, norm, link, output_gradient, true, &Source::Plain(saved.x.numbers()?.get()), &saved.x)?;
        }
        Ok(parameters)
    }
}
