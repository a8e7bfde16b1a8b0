//! Passes of a convolution over a batch of images, cut into pieces of some images each.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Geometry,
    sweep::Sweep,
    tail::End,
    weights::{WeightGradient, sums_are_large},
    winograd::{self, Winograd},
};
use crate::kernels::{
    lanes::LANES,
    norm::Norm,
    padded::{Padded, Source, blocks},
    pieces::{images_at_a_time, pieces},
    room::{Blank, Filled, Room},
};

/// Bytes of padded images that are in work at a time, at least one image: they should stay in the cache of a core.
const IN_WORK: usize = 128 << 10;

/// A convolution of a batch.
pub(crate) struct Batch<'a> {
    pub(crate) geometry: Geometry,
    pub(crate) weight: &'a [f32],
    pub(crate) images: usize,
}

/// What becomes of the gradient of the input, for the whole batch.
pub(crate) enum Into<'a> {
    /// It is written.
    Write,
    /// It is added to these numbers.
    Add(Filled),
    /// The cotangent is added to it, where the gate is open.
    Skip { g: &'a [f32], gate: &'a [u16] },
    /// It passes the ReLU behind `norm(y)`; `sums` are those that [`Norm::gradient`] takes.
    Gate { y: &'a [f32], norm: &'a Norm, sums: &'a mut [f32] },
}

/// What a pull-back gives.
pub(crate) struct Gradients {
    pub(crate) input: Option<Filled>,
    pub(crate) weight: Option<Vec<f32>>,
}

fn count([height, width, channels]: [usize; 3]) -> usize {
    height * width * channels
}

/// Bits of one image's gate, in blocks of sixteen channels.
fn gate_count([height, width, channels]: [usize; 3]) -> usize {
    height * width * blocks(channels)
}

/// Numbers for each channel and image, in blocks of sixteen channels.
pub(crate) fn line_count(channels: usize) -> usize {
    blocks(channels) * LANES
}

/// How sums are computed.
pub(super) enum Method {
    Direct(Sweep),
    Winograd(Winograd),
}

impl Method {
    pub(super) fn run(&self, x: &Padded, images: usize, y: &mut Blank, end: End<'_>) {
        match self {
            Self::Direct(sweep) => sweep.run(x, images, y, end),
            Self::Winograd(winograd) => winograd.run(x, images, y, end),
        }
    }
}

/// The method for the forward pass.
pub(super) fn forward(winograd: bool, geometry: &Geometry, weight: &[f32]) -> Method {
    match winograd {
        true => Method::Winograd(Winograd::forward(geometry, weight)),
        false => Method::Direct(Sweep::forward(geometry, weight)),
    }
}

/// Which together write the gradient of the input.
pub(super) fn input_gradient(winograd: bool, geometry: &Geometry, weight: &[f32]) -> Vec<Method> {
    match winograd {
        true => vec![Method::Winograd(Winograd::input_gradient(geometry, weight))],
        false => Sweep::input_gradient(geometry, weight).into_iter().map(Method::Direct).collect(),
    }
}

impl Batch<'_> {
    fn input_gradient(&self) -> Vec<Method> {
        input_gradient(winograd::suits(&self.geometry, self.images), &self.geometry, self.weight)
    }

    fn padded(&self, size: [usize; 3], border: usize) -> Padded {
        let bytes = (size[0] + 2 * border) * (size[1] + 2 * border) * blocks(size[2]) * LANES * size_of::<f32>();
        let piece = images_at_a_time(self.images, self.geometry.to[0] * self.geometry.to[1]);
        Padded::taken((IN_WORK / bytes).clamp(1, piece), size, border)
    }

    fn pixels(&self) -> usize {
        self.geometry.to[0] * self.geometry.to[1]
    }

    /// The output, `[B][H'][W'][O]`, and with `moments` each image's moments.
    pub(crate) fn forward(&self, x: &Source<'_>, moments: Option<&mut [f32]>) -> Filled {
        let geometry = &self.geometry;
        let sweep = forward(winograd::suits(geometry, self.images), geometry, self.weight);
        let (input, output) = (geometry.input(), geometry.output());
        let each = 3 * line_count(geometry.outputs);
        let mut y = Room::new(self.images * count(output));
        let piece = images_at_a_time(self.images, self.pixels());
        let moments: Vec<Option<&mut [f32]>> = match moments {
            Some(moments) => moments.chunks_mut(piece * each).map(Some).collect(),
            None => pieces(self.images, self.pixels()).map(|_| None).collect(),
        };
        let work: Vec<_> = (pieces(self.images, self.pixels()).zip(y.blank().chunks_mut(piece * count(output))))
            .zip(moments)
            .collect();
        work.into_par_iter().for_each(|((images, y), mut moments)| {
            let mut padded = self.padded(input, geometry.border());
            for (first, y) in images.clone().step_by(padded.images()).zip(y.chunks_mut(padded.images() * count(output)))
            {
                let some = y.len() / count(output);
                padded.fill(&x.images(first..first + some, input));
                let end = match &mut moments {
                    Some(moments) => End::Moments(&mut moments[(first - images.start) * each..][..some * each]),
                    None => End::Write,
                };
                sweep.run(&padded, some, y, end);
            }
            padded.keep();
        });
        // SAFETY: the pieces cover all images, and a sweep writes every number of its images.
        unsafe { y.filled() }
    }

    /// With `input`, the gradient of the input; with `x`, the gradient of the weights, `(O, I, k, k)`. `g` is the cotangent.
    pub(crate) fn pull_back(&self, g: &Source<'_>, x: Option<&Source<'_>>, input: Option<Into<'_>>) -> Gradients {
        let geometry = &self.geometry;
        let len = self.images * count(geometry.input());
        match input {
            None => Gradients { input: None, weight: self.pull(g, x, &[], None) },
            Some(Into::Add(mut before)) => {
                assert_eq!(before.len(), len, "a sum of other images");
                let sweeps = self.input_gradient();
                let weight = self.pull(g, x, &sweeps, Some((before.blank(), Into::Add(Filled::default()))));
                Gradients { input: Some(before), weight }
            }
            Some(into) => {
                let sweeps = self.input_gradient();
                let mut dx = Room::new(len);
                let weight = self.pull(g, x, &sweeps, Some((dx.blank(), into)));
                // SAFETY: the pieces cover all images, and the sweeps together write every number of their images.
                Gradients { input: Some(unsafe { dx.filled() }), weight }
            }
        }
    }

    fn pull(
        &self,
        g: &Source<'_>,
        x: Option<&Source<'_>>,
        sweeps: &[Method],
        input: Option<(&mut Blank, Into<'_>)>,
    ) -> Option<Vec<f32>> {
        let geometry = &self.geometry;
        let output = blocks(geometry.outputs);
        // Where sums are large each piece keeps its padded images, and the sums are cut by output channels afterwards.
        let apart = sums_are_large(geometry);
        let piece = |work| {
            let mut kept = Vec::new();
            let mut sums =
                WeightGradient::zeros(geometry, self.images, if x.is_some() && !apart { 0..output } else { 0..0 });
            self.piece(work, g, x, sweeps, |padded, some| {
                if apart {
                    kept.push((padded, some));
                    return None;
                }
                sums.add(&padded[0], &padded[1], some);
                Some(padded)
            });
            (sums, kept)
        };
        let done: Vec<_> = self.work(input).into_par_iter().map(piece).collect();
        x?;
        let one = LANES * geometry.inputs * geometry.kernel * geometry.kernel;
        let mut gradient = vec![0.0; one / LANES * geometry.outputs];
        if apart {
            gradient.par_chunks_mut(one).enumerate().for_each(|(block, gradient)| {
                let mut sums = WeightGradient::zeros(geometry, self.images, block..block + 1);
                for ([x, g], some) in done.iter().flat_map(|(_, kept)| kept) {
                    sums.add(x, g, *some);
                }
                sums.write(gradient);
            });
        } else {
            let mut parts = done.into_iter().map(|(sums, _)| sums);
            if let Some(mut sums) = parts.next() {
                parts.for_each(|part| sums.add_sums(&part));
                sums.write(&mut gradient);
            }
        }
        Some(gradient)
    }

    /// What each piece is to do, with its part of the results.
    fn work<'a>(&self, input: Option<(&'a mut Blank, Into<'a>)>) -> Vec<Work<'a>> {
        let size = self.geometry.input();
        let ranges = pieces(self.images, self.pixels());
        let Some((dx, into)) = input else {
            return ranges.map(|images| Work { images, dx: None }).collect();
        };
        let piece = images_at_a_time(self.images, self.pixels());
        let whole = dx.chunks_mut(piece * count(size));
        let parts: Vec<Into<'a>> = match into {
            Into::Write => ranges.map(|_| Into::Write).collect(),
            Into::Add(_) => ranges.map(|_| Into::Add(Filled::default())).collect(),
            Into::Skip { g, gate } => {
                let parts = g.chunks(piece * count(size)).zip(gate.chunks(piece * gate_count(size)));
                parts.map(|(g, gate)| Into::Skip { g, gate }).collect()
            }
            Into::Gate { y, norm, sums } => {
                let parts = y.chunks(piece * count(size)).zip(sums.chunks_mut(piece * 2 * line_count(size[2])));
                parts.map(|(y, sums)| Into::Gate { y, norm, sums }).collect()
            }
        };
        let ranges = pieces(self.images, self.pixels());
        ranges.zip(whole.zip(parts)).map(|(images, dx)| Work { images, dx: Some(dx) }).collect()
    }

    /// Goes through the images of a piece; `weigh` gets `x` and `g`, padded, and gives the memory back or keeps it.
    fn piece(
        &self,
        work: Work<'_>,
        g: &Source<'_>,
        x: Option<&Source<'_>>,
        sweeps: &[Method],
        mut weigh: impl FnMut([Padded; 2], usize) -> Option<[Padded; 2]>,
    ) {
        let geometry = &self.geometry;
        let (input, output) = (geometry.input(), geometry.output());
        let room = || [self.padded(input, geometry.border()), self.padded(output, geometry.gradient_border())];
        let mut memory = None;
        let mut dx = work.dx;
        let mut first = work.images.start;
        while first < work.images.end {
            let [mut padded_x, mut padded_g] = memory.take().unwrap_or_else(room);
            let some = padded_x.images().min(padded_g.images()).min(work.images.end - first);
            padded_g.fill(&g.images(first..first + some, output));
            if let Some((dx, into)) = &mut dx {
                let (at, size) = (first - work.images.start, count(input));
                let dx = &mut dx[at * size..][..some * size];
                for sweep in sweeps {
                    let end = match into {
                        Into::Write => End::Write,
                        Into::Add(_) => End::Add,
                        Into::Skip { g, gate } => {
                            let gate = &gate[at * gate_count(input)..][..some * gate_count(input)];
                            End::Skip { g: &g[at * size..][..some * size], gate: Some(gate) }
                        }
                        Into::Gate { y, norm, sums } => {
                            let each = 2 * line_count(input[2]);
                            End::Gate {
                                y: &y[at * size..][..some * size],
                                line: &norm.line,
                                sums: &mut sums[at * each..][..some * each],
                            }
                        }
                    };
                    sweep.run(&padded_g, some, dx, end);
                }
            }
            memory = match x {
                Some(x) => {
                    padded_x.fill(&x.images(first..first + some, input));
                    weigh([padded_x, padded_g], some)
                }
                None => Some([padded_x, padded_g]),
            };
            first += some;
        }
        memory.into_iter().flatten().for_each(Padded::keep);
    }
}

/// A piece of a pull-back.
struct Work<'a> {
    images: Range<usize>,
    /// Its part of the input's gradient, and what becomes of it.
    dx: Option<(&'a mut Blank, Into<'a>)>,
}
