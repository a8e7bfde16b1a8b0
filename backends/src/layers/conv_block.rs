//! Convolutions with batch norms, ReLUs between them and a shortcut around them:
//! `y = ReLU(norm_n(conv_n(… ReLU(norm_1(conv_1(x))) …)) + shortcut(x))`.
//!
//! The same values as [`Conv2d`], [`BatchNorm2d`], [`Relu`](super::Relu) and [`Residual`](super::Residual) one after another, in about half of
//! the time and a third of the memory: only what the convolutions give is kept, and a bit for each element of the last ReLU. Norms and ReLUs are
//! applied where a convolution reads its input; their gradients, where it reads its output_gradient.
//!
//! Elsewhere than on the CPU the layers are computed one after another, and each keeps its own.
//!
//! A bias of a convolution is taken away again by the norm behind it: it moves the running mean, and its gradient is zero.

mod parts;

use std::sync::Arc;

use candle_core::Tensor;
use interlock::{
    Activation, Differentiable, Error, Gradients, ParameterGradients, Pass, Result, Saved, Wants,
    differentiation::{Held, Pending},
};

use super::{
    BatchNorm2d, Conv2d, composed,
    images::{channels_last, images, output_gradient_last},
    kept::Kept,
    slices::read,
};
use crate::kernels::{
    convolution::{Batch, Into, line_count},
    norm::{self, Addend, Norm, NormGradient},
    padded::Source,
    room::Filled,
};

/// What is added to the last norm.
pub enum Shortcut {
    /// Nothing.
    None,
    /// The input; it must have the output's shape.
    Identity,
    /// The input's convolution, normed.
    Projection(Conv2d, BatchNorm2d),
}

/// `ReLU(norm_n(conv_n(… ReLU(norm_1(conv_1(x))) …)) + shortcut(x))`.
pub struct ConvBlock {
    links: Vec<(Conv2d, BatchNorm2d)>,
    shortcut: Shortcut,
}

/// What a convolution gave, `(B, H, W, C)`, and the norm of that.
struct Link {
    y: Tensor,
    norm: Norm,
}

/// A forward pass.
struct Computed {
    /// `(B, H, W, C)`.
    x: Tensor,
    links: Vec<Link>,
    projection: Option<Link>,
    /// Where the last ReLU is open: a bit for each element, channels in blocks of sixteen.
    gate: Arc<[u16]>,
}

/// What is kept of it.
struct SavedBlock {
    x: Kept,
    links: Vec<(Kept, Norm)>,
    projection: Option<(Kept, Norm)>,
    gate: Arc<[u16]>,
}

impl SavedBlock {
    fn new(computed: Computed, pass: &Pass) -> Result<Self> {
        let keep = |link: Link| Ok::<_, Error>((Kept::new(link.y, pass)?, link.norm));
        Ok(Self {
            x: Kept::new(computed.x, pass)?,
            links: computed.links.into_iter().map(keep).collect::<Result<_>>()?,
            projection: computed.projection.map(keep).transpose()?,
            gate: computed.gate,
        })
    }

    fn saved(self) -> Saved {
        let links = self.links.iter().chain(&self.projection).map(|(y, _)| y.held());
        let held: Vec<Held> = links.chain([self.x.held(), Held::slice(&self.gate)]).collect();
        Saved::new(self).holding(held)
    }

    /// The forward pass, from what was kept.
    fn computed(&self) -> Result<Computed> {
        let link = |(y, norm): &(Kept, Norm)| Ok::<_, Error>(Link { y: y.tensor()?, norm: norm.clone() });
        Ok(Computed {
            x: self.x.tensor()?,
            links: self.links.iter().map(link).collect::<Result<_>>()?,
            projection: self.projection.as_ref().map(link).transpose()?,
            gate: Arc::clone(&self.gate),
        })
    }
}

/// A output_gradient of a norm's output, with the norm's pull-back.
struct Cotangent {
    /// `(B, H, W, C)`; of the last norm and of the projection's before the gate.
    g: Tensor,
    gradient: NormGradient,
}

struct PendingBlock {
    /// From the first link to the last.
    links: Vec<Cotangent>,
    projection: Option<Cotangent>,
}

fn dims(x: &Tensor) -> Result<[usize; 4]> {
    let (batch, height, width, channels) = x.dims4()?;
    Ok([batch, channels, height, width])
}

impl ConvBlock {
    /// # Errors
    /// If there is no link, or if a norm has not the channels of its convolution.
    pub fn new(links: Vec<(Conv2d, BatchNorm2d)>, shortcut: Shortcut) -> Result<Self> {
        if links.is_empty() {
            return Err(Error::invalid("convolution block", "no convolution", "give one or more"));
        }
        let projection = match &shortcut {
            Shortcut::Projection(conv, norm) => Some((conv, norm)),
            _ => None,
        };
        for (conv, norm) in links.iter().map(|(conv, norm)| (conv, norm)).chain(projection) {
            if conv.config.outputs != norm.channels {
                return Err(Error::invalid(
                    "convolution block",
                    format!(
                        "a norm of {} channels behind a convolution that gives {}",
                        norm.channels, conv.config.outputs
                    ),
                    "give both the same",
                ));
            }
        }
        Ok(Self { links, shortcut })
    }

    /// Convolves and norms.
    fn link(
        &self,
        (conv, norm): (&Conv2d, &BatchNorm2d),
        x: &Source<'_>,
        from: [usize; 4],
        pass: &Pass,
    ) -> Result<Link> {
        let geometry = conv.geometry(&from)?;
        let batch = Batch { geometry, weight: &read(&conv.weight)?, images: from[0] };
        let mut moments = vec![0.0; if pass.is_train() { from[0] * 3 * line_count(geometry.outputs) } else { 0 }];
        let y = batch.forward(x, pass.is_train().then_some(&mut moments));
        let [height, width, channels] = geometry.output();
        let bias = conv.bias.as_ref().map(read::<f32>).transpose()?;
        let norm = match pass.is_train() {
            true => norm.of_batch(&moments, [from[0], channels, height, width], pass, bias.as_deref())?,
            false => norm.of_running(bias.as_deref())?,
        };
        Ok(Link { y: y.into_tensor((from[0], height, width, channels))?, norm })
    }

    /// The last norm with what is added to it, and the last ReLU with its gate.
    fn join(&self, x: &Tensor, last: &Link, projection: Option<&Link>) -> Result<(Filled, Vec<u16>)> {
        let [_, channels, height, width] = dims(&last.y)?;
        let (y, x) = (read::<f32>(&last.y)?, read::<f32>(x)?);
        let projected = projection.map(|link| read::<f32>(&link.y)).transpose()?;
        let addend = match (&self.shortcut, &projected, projection) {
            (Shortcut::None, ..) => Addend::Nothing,
            (_, Some(projected), Some(link)) => Addend::Normed(projected, &link.norm.line),
            _ => Addend::Plain(&x),
        };
        Ok(norm::join(&y, &last.norm.line, addend, [height * width, channels], true))
    }

    /// The sums that the pull-back of a norm needs, for a output_gradient behind the gate.
    fn sums(&self, g: &[f32], gate: &[u16], link: &Link) -> Result<Vec<f32>> {
        let [_, channels, height, width] = dims(&link.y)?;
        Ok(norm::gradient_sums(g, Some(gate), &read::<f32>(&link.y)?, &link.norm, [height * width, channels]))
    }

    fn batch<'a>(&self, conv: &Conv2d, x: &Tensor, weight: &'a [f32]) -> Result<Batch<'a>> {
        let from = dims(x)?;
        Ok(Batch { geometry: conv.geometry(&from)?, weight, images: from[0] })
    }

    /// The gradients of a convolution's own parameters.
    fn own(&self, conv: &Conv2d, weight: Option<Filled>) -> Result<ParameterGradients> {
        let mut gradients = Vec::new();
        if let Some(weight) = weight {
            gradients.push((conv.weight.id(), weight.into_tensor(conv.weight.shape())?));
            if let Some(bias) = &conv.bias {
                gradients.push((bias.id(), bias.zeros_like()?));
            }
        }
        Ok(gradients)
    }

    /// Pulls `c` back through everything; leaves the output_gradients of the norms where `keep` says so.
    fn pull(
        &self,
        saved: &Computed,
        c: &Activation,
        wants: Wants,
        keep: bool,
    ) -> Result<(Gradients, Option<PendingBlock>)> {
        let Some(last) = saved.links.last() else { return Err(no_link()) };
        let [batch, channels, height, width] = dims(&last.y)?;
        let c = output_gradient_last(c, &[batch, channels, height, width], "convolution block")?;
        let gated = read::<f32>(&c)?;
        let mut parameters = Vec::new();
        let mut kept = Vec::new();
        let mut sums = self.sums(&gated, &saved.gate, last)?;
        let mut inner: Option<Tensor> = None;
        let mut dx = None;
        for (i, (link, (conv, norm))) in saved.links.iter().zip(&self.links).enumerate().rev() {
            let gradient = link.norm.gradient(&sums);
            if wants.parameters {
                parameters.extend(norm.gradients(&gradient)?);
            }
            let before = i.checked_sub(1).map(|before| &saved.links[before]);
            if before.is_some() || wants.input || wants.parameters {
                let weight = read(&conv.weight)?;
                let y = read::<f32>(&link.y)?;
                let own = inner.as_ref().map(read::<f32>).transpose()?;
                let g = Source::Gradient {
                    g: own.as_deref().unwrap_or(&gated),
                    gate: own.is_none().then_some(&saved.gate[..]),
                    y: &y,
                    lines: &gradient,
                };
                let x = read::<f32>(before.map_or(&saved.x, |before| &before.y))?;
                let source = match before {
                    Some(before) => Source::Rectified(&x, &before.norm.line),
                    None => Source::Plain(&x),
                };
                let batch = self.batch(conv, before.map_or(&saved.x, |before| &before.y), &weight)?;
                let mut next = vec![0.0; before.map_or(0, |_| batch.images * 2 * line_count(batch.geometry.inputs))];
                let into = match (before, &self.shortcut) {
                    (Some(before), _) => Some(Into::Gate { y: &x, norm: &before.norm, sums: &mut next }),
                    (None, Shortcut::Identity) if wants.input => Some(Into::Skip { g: &gated, gate: &saved.gate }),
                    (None, _) => wants.input.then_some(Into::Write),
                };
                let gradients = batch.backward(&g, wants.parameters.then_some(&source), into);
                parameters.extend(self.own(conv, gradients.weight)?);
                drop(own);
                if keep {
                    kept.push(Cotangent { g: inner.take().unwrap_or_else(|| c.clone()), gradient });
                }
                match (before, gradients.input) {
                    (Some(before), Some(g)) => inner = Some(g.into_tensor(before.y.shape())?),
                    (_, input) => dx = input,
                }
                sums = next;
            }
        }
        let mut projection = None;
        if let (Shortcut::Projection(conv, norm), Some(link)) = (&self.shortcut, &saved.projection) {
            let gradient = link.norm.gradient(&self.sums(&gated, &saved.gate, link)?);
            if wants.parameters {
                parameters.extend(norm.gradients(&gradient)?);
            }
            let (weight, x, y) = (read(&conv.weight)?, read(&saved.x)?, read(&link.y)?);
            let g = Source::Gradient { g: &gated, gate: Some(&saved.gate), y: &y, lines: &gradient };
            let gradients = self.batch(conv, &saved.x, &weight)?.backward(
                &g,
                wants.parameters.then_some(&Source::Plain(&x)),
                dx.take().map(Into::Add),
            );
            parameters.extend(self.own(conv, gradients.weight)?);
            dx = gradients.input;
            projection = keep.then(|| Cotangent { g: c.clone(), gradient });
        }
        kept.reverse();
        let [batch, inputs, height, width] = dims(&saved.x)?;
        let input = dx.map(|dx| images(dx, batch, [height, width, inputs])).transpose()?.map(Activation::from);
        Ok((Gradients { input, parameters }, keep.then_some(PendingBlock { links: kept, projection })))
    }
}

fn no_link() -> Error {
    Error::invalid("convolution block", "no convolution", "give one or more")
}

impl Differentiable for ConvBlock {
    fn forward(&self, x: &Activation, pass: &Pass) -> Result<(Activation, Saved)> {
        if composed::serves(x.single()?) {
            return self.parts().forward(x, pass);
        }
        let x = channels_last(x.single()?, "convolution block")?;
        let from = dims(&x)?;
        let mut saved = Computed { x, links: Vec::new(), projection: None, gate: Arc::default() };
        for (conv, norm) in &self.links {
            let link = match saved.links.last() {
                None => self.link((conv, norm), &Source::Plain(&read(&saved.x)?), from, pass)?,
                Some(before) => {
                    let y = read::<f32>(&before.y)?;
                    self.link((conv, norm), &Source::Rectified(&y, &before.norm.line), dims(&before.y)?, pass)?
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
                let link = self.link((conv, norm), &Source::Plain(&read(&saved.x)?), from, pass)?;
                let to = dims(&link.y)?;
                saved.projection = Some(link);
                to
            }
        };
        if short != to {
            return Err(Error::invalid(
                "convolution block",
                format!("branches of shapes {to:?} and {short:?}"),
                "give a shortcut that changes the shape as the convolutions do",
            ));
        }
        let (out, gate) = self.join(&saved.x, &last, saved.projection.as_ref())?;
        saved.gate = gate.into();
        let [batch, channels, height, width] = to;
        let out = images(out, batch, [height, width, channels])?;
        saved.links.push(last);
        Ok((out.into(), if pass.is_train() { SavedBlock::new(saved, pass)?.saved() } else { Saved::nothing() }))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        if wants == (Wants { input: false, parameters: false }) {
            return Ok(Gradients::default());
        }
        if composed::is_of_parts(saved) {
            return self.exactly(self.parts().backward(saved, output_gradient, wants)?);
        }
        Ok(self.pull(&saved.get::<SavedBlock>()?.computed()?, output_gradient, wants, false)?.0)
    }

    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        if composed::is_of_parts(saved) {
            return self.parts().backward_input(saved, output_gradient);
        }
        let (pulled, pending) =
            self.pull(&saved.get::<SavedBlock>()?.computed()?, output_gradient, Wants::INPUT, true)?;
        Ok((interlock::differentiation::input_of(pulled)?, Pending::new(pending.ok_or_else(no_link)?)))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<ParameterGradients> {
        if composed::is_of_parts(saved) {
            return self.exact(self.parts().backward_parameters(saved, pending)?);
        }
        let saved = saved.get::<SavedBlock>()?.computed()?;
        let PendingBlock { links, projection } = pending.take()?;
        let mut parameters = Vec::new();
        let mut weigh = |conv: &Conv2d,
                         norm: &BatchNorm2d,
                         link: &Link,
                         output_gradient: &Cotangent,
                         gated: bool,
                         x: &Source<'_>,
                         from: &Tensor| {
            parameters.extend(norm.gradients(&output_gradient.gradient)?);
            let (weight, y, g) = (read(&conv.weight)?, read(&link.y)?, read(&output_gradient.g)?);
            let gate = gated.then_some(&saved.gate[..]);
            let g = Source::Gradient { g: &g, gate, y: &y, lines: &output_gradient.gradient };
            let gradients = self.batch(conv, from, &weight)?.backward(&g, Some(x), None);
            parameters.extend(self.own(conv, gradients.weight)?);
            Ok::<_, Error>(())
        };
        for (i, (((conv, norm), link), output_gradient)) in
            self.links.iter().zip(&saved.links).zip(&links).enumerate().rev()
        {
            let gated = i + 1 == saved.links.len();
            match i.checked_sub(1).map(|before| &saved.links[before]) {
                Some(before) => {
                    let source = read(&before.y)?;
                    weigh(
                        conv,
                        norm,
                        link,
                        output_gradient,
                        gated,
                        &Source::Rectified(&source, &before.norm.line),
                        &before.y,
                    )?;
                }
                None => weigh(conv, norm, link, output_gradient, gated, &Source::Plain(&read(&saved.x)?), &saved.x)?,
            }
        }
        if let ((Shortcut::Projection(conv, norm), Some(link)), Some(output_gradient)) =
            ((&self.shortcut, &saved.projection), &projection)
        {
            weigh(conv, norm, link, output_gradient, true, &Source::Plain(&read(&saved.x)?), &saved.x)?;
        }
        Ok(parameters)
    }

    fn last_backward(&self, saved: Saved, c: Activation, wants: Wants) -> Result<Gradients> {
        match composed::is_of_parts(&saved) && (wants.input || wants.parameters) {
            true => self.exactly(self.parts().last_backward(saved, c, wants)?),
            false => self.backward(&saved, &c, wants),
        }
    }

    fn last_backward_parameters(&self, saved: Saved, pending: Pending) -> Result<ParameterGradients> {
        match composed::is_of_parts(&saved) {
            true => self.exact(self.parts().last_backward_parameters(saved, pending)?),
            false => self.backward_parameters(&saved, pending),
        }
    }
}
