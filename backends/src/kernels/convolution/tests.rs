//! Compares the kernels with plain loops, on odd sizes. All values are whole numbers, so that sums are exact in any order.

use interlock::Precision;

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{
    Batch, Geometry, GradientTarget,
    batch::{Method, MethodKind, forward, input_gradient, line_count},
    epilogue::Epilogue,
    patches,
    weights::WeightGradient,
};
use crate::kernels::{
    aligned_buffer::{self, Aligned},
    channel_lines::{Line, blocks},
    lanes::LANES,
    norm::Statistics,
    numbers::NumbersMut,
    padded::{Padded, Source},
};

fn geometry([inputs, outputs, kernel, stride, padding, height, width]: [usize; 7]) -> Geometry {
    let to = [height, width].map(|side| (side + 2 * padding - kernel) / stride + 1);
    Geometry { inputs, outputs, kernel, stride, padding, from: [height, width], to }
}

/// Inputs, outputs, kernel, stride, padding, height, width.
const SHAPES: [[usize; 7]; 25] = [
    [1, 1, 1, 1, 0, 1, 1],
    [3, 17, 3, 1, 1, 5, 7],
    [17, 3, 3, 2, 1, 5, 7],
    [16, 32, 3, 1, 1, 8, 8],
    [32, 16, 3, 1, 1, 5, 20],
    [32, 32, 3, 2, 1, 9, 10],
    [3, 16, 7, 2, 3, 11, 13],
    [16, 16, 1, 2, 0, 6, 5],
    [5, 4, 3, 3, 1, 7, 8],
    [4, 4, 2, 2, 0, 6, 7],
    [16, 64, 3, 1, 1, 2, 2],
    [64, 32, 3, 1, 1, 4, 4],
    [2, 2, 5, 1, 0, 7, 6],
    [2, 3, 1, 3, 0, 5, 5],
    [17, 32, 3, 1, 1, 5, 19],
    [32, 17, 3, 1, 0, 8, 12],
    [2, 3, 3, 1, 2, 3, 4],
    [33, 64, 3, 1, 1, 9, 9],
    [2, 3, 3, 1, 3, 4, 5],
    [9, 4, 5, 1, 2, 6, 7],
    [4, 5, 6, 1, 2, 7, 8],
    [4, 5, 6, 2, 2, 8, 9],
    [3, 5, 7, 1, 3, 8, 9],
    [2, 4, 7, 3, 2, 9, 10],
    [5, 2, 9, 1, 4, 3, 6],
];
const IMAGES: usize = 3;

/// Returns [`SHAPES`], and windows of 3×3 over images of all widths up to 20, which cover every division of a row into tiles.
fn shapes() -> impl Iterator<Item = [usize; 7]> {
    const CHANNELS: [usize; 5] = [1, 3, 17, 32, 33];
    let widths = (1..=20).flat_map(|width| {
        (0..=2).filter(move |padding| width + 2 * padding >= 3).map(move |padding| {
            let [inputs, outputs] = [width + padding, 2 * width + padding].map(|i| CHANNELS[i % CHANNELS.len()]);
            [inputs, outputs, 3, 1, padding, 3 + width % 2, width]
        })
    });
    SHAPES.into_iter().chain(widths)
}

fn whole(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 31 + i / 7 + seed * 11) % 9) as f32 - 4.0).collect()
}

fn count([height, width, channels]: [usize; 3]) -> usize {
    IMAGES * height * width * channels
}

/// Visits every product of the convolution: image, pixel and channel of the input, pixel and channel of the output, element of the weights.
fn products(g: &Geometry, mut visit: impl FnMut(usize, usize, usize)) {
    let Geometry { inputs, outputs, kernel, stride, padding, from, to } = *g;
    for (image, row, column) in
        (0..IMAGES).flat_map(|i| (0..to[0]).flat_map(move |r| (0..to[1]).map(move |c| (i, r, c))))
    {
        for (u, v) in (0..kernel).flat_map(|u| (0..kernel).map(move |v| (u, v))) {
            let (y, x) = ((row * stride + u).wrapping_sub(padding), (column * stride + v).wrapping_sub(padding));
            if y >= from[0] || x >= from[1] {
                continue;
            }
            for (i, o) in (0..inputs).flat_map(|i| (0..outputs).map(move |o| (i, o))) {
                let read = ((image * from[0] + y) * from[1] + x) * inputs + i;
                let write = ((image * to[0] + row) * to[1] + column) * outputs + o;
                visit(read, write, ((o * inputs + i) * kernel + u) * kernel + v);
            }
        }
    }
}

struct Case {
    geometry: Geometry,
    x: Vec<f32>,
    weight: Vec<f32>,
    /// An output gradient of the output.
    g: Vec<f32>,
}

impl Case {
    fn new(shape: [usize; 7]) -> Self {
        let geometry = geometry(shape);
        let weights = geometry.outputs * geometry.inputs * geometry.kernel * geometry.kernel;
        Self {
            geometry,
            x: whole(count(geometry.input()), 1),
            weight: whole(weights, 2),
            g: whole(count(geometry.output()), 3),
        }
    }

    /// Returns `x` and `g`, padded, with memory for one image more.
    fn padded(&self) -> [Padded; 2] {
        let pad = |numbers: &[f32], size: [usize; 3], border: usize| {
            let mut padded = Padded::zeros(IMAGES + 1, size, border);
            padded.fill(&Source::Plain(numbers.into()));
            padded
        };
        [
            pad(&self.x, self.geometry.input(), self.geometry.border()),
            pad(&self.g, self.geometry.output(), self.geometry.gradient_border()),
        ]
    }

    fn input_gradient(&self) -> Vec<f32> {
        let mut gradient = vec![0.0; self.x.len()];
        products(&self.geometry, |read, write, weight| gradient[read] += self.g[write] * self.weight[weight]);
        gradient
    }
}

/// Returns the methods for the sums of a shape.
fn methods(g: &Geometry) -> Vec<MethodKind> {
    let mut methods = vec![MethodKind::Direct];
    if g.kernel == 3 && g.stride == 1 && g.padding <= 2 {
        methods.push(MethodKind::Winograd);
    }
    #[cfg(target_arch = "x86_64")]
    if crate::kernels::tiles::are_available() {
        methods.push(MethodKind::Tiles);
        return methods;
    }
    eprintln!("skipped on tiles: this processor has none, or the system does not allow them");
    methods
}

/// Returns the methods for the gradient of its weights.
fn methods_for_weights(g: &Geometry) -> Vec<MethodKind> {
    let mut methods = methods(g);
    #[cfg(target_arch = "x86_64")]
    methods.retain(|method| *method != MethodKind::Tiles || tiles::can_add_weights(g));
    methods
}

fn run(sweeps: &[Method], x: &Padded, before: &[f32], mut end: impl FnMut() -> Epilogue<'static>) -> Vec<f32> {
    let mut y = before.to_vec();
    for sweep in sweeps {
        sweep.run(x, IMAGES, blank(&mut y), end());
    }
    y
}

fn blank(y: &mut [f32]) -> NumbersMut<'_> {
    NumbersMut::F32(aligned_buffer::blank(y))
}

#[test]
fn forward_passes_and_moments() {
    for shape in shapes() {
        let case = Case::new(shape);
        let (g, [x, _]) = (case.geometry, case.padded());
        let mut expected = vec![0.0; case.g.len()];
        products(&g, |read, write, weight| expected[write] += case.x[read] * case.weight[weight]);
        let padded = blocks(g.outputs) * LANES;
        let mut moments = vec![f32::NAN; IMAGES * 3 * padded];
        for method in methods(&g) {
            let sweep = forward(method, &g, &case.weight);
            let nan = vec![f32::NAN; expected.len()];
            assert_eq!(
                run(std::slice::from_ref(&sweep), &x, &nan, || Epilogue::Write),
                expected,
                "{shape:?} {method:?}"
            );
            let before = std::mem::replace(&mut moments, vec![f32::NAN; IMAGES * 3 * padded]);
            let mut y = nan;
            sweep.run(&x, IMAGES, blank(&mut y), Epilogue::Moments(&mut moments));
            assert_eq!(y, expected, "{shape:?} {method:?}");
            assert!(method == MethodKind::Direct || moments == before, "{shape:?}: moments by {method:?}");
        }
        let image = g.to[0] * g.to[1] * g.outputs;
        for (i, channel) in (0..IMAGES).flat_map(|i| (0..g.outputs).map(move |c| (i, c))) {
            let values: Vec<f32> =
                expected[i * image..][..image].iter().copied().skip(channel).step_by(g.outputs).collect();
            let shift = values[0];
            let sum: f32 = values.iter().map(|v| v - shift).sum();
            let squares: f32 = values.iter().map(|v| (v - shift) * (v - shift)).sum();
            let found = [0, 1, 2].map(|k| moments[(i * 3 + k) * padded + channel]);
            assert_eq!(found, [shift, sum, squares], "{shape:?}: image {i}, channel {channel}");
        }
    }
}

#[test]
fn input_gradients_written_added_and_skipped() {
    for shape in shapes() {
        let case = Case::new(shape);
        let (geometry, [_, g]) = (case.geometry, case.padded());
        let expected = case.input_gradient();
        for method in methods(&geometry) {
            let sweeps = input_gradient(method, &geometry, &case.weight);
            let nan = vec![f32::NAN; expected.len()];
            assert_eq!(run(&sweeps, &g, &nan, || Epilogue::Write), expected, "{shape:?}");

            let before = whole(expected.len(), 4);
            let sum = |gate: &dyn Fn(usize) -> bool| -> Vec<f32> {
                let before = before.iter().enumerate().map(|(i, &b)| if gate(i) { b } else { 0.0 });
                before.zip(&expected).map(|(b, e)| b + e).collect()
            };
            assert_eq!(run(&sweeps, &g, &before, || Epilogue::Add), sum(&|_| true), "{shape:?}");

            let (channels, blocks) = (geometry.inputs, blocks(geometry.inputs));
            let gate: Vec<u16> = (0..expected.len() / channels * blocks).map(|i| (i * 2_654_435) as u16).collect();
            let open = |i: usize| {
                let (pixel, channel) = (i / channels, i % channels);
                gate[pixel * blocks + channel / 16] >> (channel % 16) & 1 == 1
            };
            for (gate, expected) in [(None, sum(&|_| true)), (Some(&gate[..]), sum(&open))] {
                let mut y = nan.clone();
                for sweep in &sweeps {
                    sweep.run(&g, IMAGES, blank(&mut y), Epilogue::Skip { g: &before, gate });
                }
                assert_eq!(y, expected, "{shape:?} {method:?}");
            }
        }
    }
}

#[test]
fn input_gradients_through_a_gate_and_their_sums() {
    for shape in shapes() {
        let case = Case::new(shape);
        let (geometry, [_, g]) = (case.geometry, case.padded());
        let (channels, padded) = (geometry.inputs, blocks(geometry.inputs) * LANES);
        let numbers = |seed: usize| {
            let mut numbers = Aligned::zeros(padded);
            numbers[..channels].copy_from_slice(&whole(channels, seed));
            numbers
        };
        let y = whole(case.x.len(), 5);
        let line = Line { mean: numbers(6), scale: numbers(7), shift: numbers(8) };
        let value = |i: usize, y: f32| {
            let channel = i % channels;
            line.scale[channel] * (y - line.mean[channel]) + line.shift[channel]
        };
        let expected: Vec<f32> = (case.input_gradient().into_iter().zip(&y).enumerate())
            .map(|(i, (e, y))| if value(i, *y) > 0.0 { e } else { 0.0 })
            .collect();
        for method in methods(&geometry) {
            let (mut found, mut sums) = (vec![f32::NAN; y.len()], vec![0.0; IMAGES * 2 * padded]);
            for sweep in &input_gradient(method, &geometry, &case.weight) {
                let end = Epilogue::Gate { y: y[..].into(), line: &line, sums: &mut sums };
                sweep.run(&g, IMAGES, blank(&mut found), end);
            }
            assert_eq!(found, expected, "{shape:?}");
            let image = y.len() / IMAGES;
            for (i, channel) in (0..IMAGES).flat_map(|i| (0..channels).map(move |c| (i, c))) {
                let here = || (i * image..(i + 1) * image).filter(|at| at % channels == channel);
                let sum: f32 = here().map(|at| expected[at]).sum();
                let product: f32 = here().map(|at| expected[at] * (y[at] - line.mean[channel])).sum();
                let found = [0, 1].map(|k| sums[(i * 2 + k) * padded + channel]);
                assert_eq!(found, [sum, product], "{shape:?} {method:?}: image {i}, channel {channel}");
            }
        }
    }
}

#[test]
fn weight_gradients_of_all_outputs_and_of_blocks() {
    for shape in shapes() {
        let case = Case::new(shape);
        let (geometry, [x, g]) = (case.geometry, case.padded());
        let mut expected = vec![0.0; case.weight.len()];
        products(&geometry, |read, write, weight| expected[weight] += case.g[write] * case.x[read]);
        for method in methods_for_weights(&geometry) {
            let all = blocks(geometry.outputs);
            let one = LANES * geometry.inputs * geometry.kernel * geometry.kernel;
            let mut sums = WeightGradient::by(method, &geometry, 0..all);
            sums.add(&x, &g, 1);
            let once = sums.sums.to_vec();
            let mut rest = WeightGradient::by(method, &geometry, 0..all);
            rest.add(&x, &g, IMAGES);
            sums.add_sums(&rest);
            for (sum, once) in sums.sums.iter_mut().zip(once) {
                *sum -= once;
            }
            let mut found = vec![f32::NAN; expected.len()];
            sums.write(&mut found);
            assert_eq!(found, expected, "{shape:?}");
            for (block, found) in found.chunks_mut(one).enumerate() {
                let before = found.to_vec();
                let mut sums = WeightGradient::by(method, &geometry, block..block + 1);
                sums.add(&x, &g, IMAGES);
                sums.write(found);
                assert_eq!(found, before, "{shape:?} {method:?}: block {block}");
            }
        }
    }
}

/// Compares all passes of a batch by the method of its shape with those by products of patches.
#[test]
fn products_of_patches_equal_the_other_methods() {
    for shape in SHAPES {
        let case = Case::new(shape);
        let batch = Batch { geometry: case.geometry, weight: &case.weight, images: IMAGES, precision: Precision::F32 };
        assert!(!patches::suits(&case.geometry, IMAGES), "{shape:?} would be compared with itself");
        let (x, g) = (Source::Plain(case.x[..].into()), Source::Plain(case.g[..].into()));
        let moments = || vec![f32::NAN; IMAGES * 3 * line_count(case.geometry.outputs)];
        let (mut plain, mut found) = (moments(), moments());
        let y = batch.forward(&x, Some(&mut plain));
        assert_eq!(*patches::forward(&batch, &x, Some(&mut found)), *y, "{shape:?}");
        assert_eq!(found, plain, "{shape:?}");

        let channels = case.geometry.inputs;
        let (before, own) = (whole(case.x.len(), 4), whole(case.x.len(), 5));
        let gate: Vec<u16> = (0..case.x.len() / channels * blocks(channels)).map(|i| (i * 2_654_435) as u16).collect();
        let ones = vec![1.0; channels];
        let norm = Statistics::given(&whole(channels, 6), &ones).norm(&ones, &vec![0.5; channels], 0.0);
        let sums = || vec![0.0; IMAGES * 2 * line_count(channels)];
        let (mut plain, mut found) = (sums(), sums());
        let mut backward = |by_patches: bool, target: usize| {
            let sums = if by_patches { &mut found } else { &mut plain };
            let into = match target {
                0 => GradientTarget::Write,
                1 => GradientTarget::Add(before.clone().into()),
                2 => GradientTarget::Skip { g: &before, gate: &gate },
                _ => GradientTarget::Gate { y: own[..].into(), norm: &norm, sums },
            };
            let gradients = match by_patches {
                true => patches::backward(&batch, &g, Some(&x), Some(into)),
                false => batch.backward(&g, Some(&x), Some(into)),
            };
            [gradients.input, gradients.weight].map(|part| part.map(|part| part.to_vec()))
        };
        for target in 0..4 {
            assert_eq!(backward(true, target), backward(false, target), "{shape:?}, target {target}");
        }
        assert_eq!(found, plain, "{shape:?}");
        assert!(patches::backward(&batch, &g, None, None).weight.is_none());
    }
}
