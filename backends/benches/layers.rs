//! What the layers cost on one thread: times, and floating-point operations a second (`item/s`) beside those of a plain matrix product.
//!
//! `cargo bench -p interlock-backends`, with a part of a name to run some. Sums of products count two operations each, as in the plain
//! sum: a convolution by fewer products shows more than the processor can do.

#![allow(clippy::unwrap_used)] // a bench that cannot be set up has nothing to measure

use candle_core::{Device, Tensor, Var};
use divan::{Bencher, counter::ItemsCount};
use interlock::{
    Activation, CrossEntropy, Differentiable, Loss, OptimizerConfig, OptimizerKind, ParameterStore, ParameterUpdate,
    Pass, Result, Saved, Wants, tools::optimizer,
};
use interlock_backends::layers::{
    BatchNorm2d, CausalSelfAttention, Conv2d, Conv2dConfig, ConvBlock, Gelu, GlobalAvgPool, LayerNorm, Linear,
    MaxPool2d, Shortcut,
};

#[global_allocator]
static ALLOCATOR: interlock_backends::Allocator = interlock_backends::Allocator::new();

fn main() {
    interlock_backends::candle_single_threaded();
    rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global().unwrap();
    divan::main();
}

fn random(dims: &[usize]) -> Activation {
    laid_out(Tensor::randn(0.0_f32, 1.0, dims, &Device::Cpu).unwrap()).into()
}

/// Images with their channels last in memory, as layers pass them on; anything else as it is.
fn laid_out(x: Tensor) -> Tensor {
    match x.rank() {
        4 => x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap(),
        _ => x,
    }
}

/// A layer with an input, what its forward pass saved, and an output gradient.
struct Setup {
    layer: Box<dyn Differentiable>,
    x: Activation,
    saved: Saved,
    c: Activation,
    /// Operations of one pass.
    operations: usize,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
enum Part {
    Forward,
    Input,
    Parameters,
}

const PARTS: [Part; 3] = [Part::Forward, Part::Input, Part::Parameters];

impl Setup {
    fn new<D: Differentiable + 'static>(
        dims: &[usize],
        operations: usize,
        build: impl FnOnce(candle_nn::VarBuilder<'static>) -> Result<D>,
    ) -> Self {
        let layer = build(ParameterStore::new(1, Default::default()).builder(&Device::Cpu)).unwrap();
        let x = random(dims);
        let (y, saved) = layer.forward(&x, &Pass::train(1, 0, 0)).unwrap();
        // Gradients come in the layout of what the layer gave.
        let y = y.single().unwrap();
        let c = laid_out(y.randn_like(0.0, 1.0).unwrap()).into();
        Self { layer: Box::new(layer), x, saved, c, operations }
    }

    fn measure(&self, part: Part, bencher: Bencher<'_, '_>) {
        let bencher = bencher.counter(ItemsCount::new(self.operations));
        let pass = Pass { track: false, ..Pass::train(1, 0, 0) };
        match part {
            Part::Forward => bencher.bench_local(|| self.layer.forward(&self.x, &pass).map(drop)),
            Part::Input => bencher.bench_local(|| self.layer.backward(&self.saved, &self.c, Wants::INPUT).map(drop)),
            Part::Parameters => {
                bencher.bench_local(|| self.layer.backward(&self.saved, &self.c, Wants::PARAMETERS).map(drop));
            }
        }
    }
}

/// Batch, input channels, output channels, side of the window, stride, side of the image.
type Convolution = [usize; 6];

const CONVOLUTIONS: [Convolution; 11] = [
    [128, 3, 16, 3, 1, 32],
    [128, 16, 16, 3, 1, 32],
    [128, 16, 32, 3, 2, 32],
    [128, 16, 32, 1, 2, 32],
    [128, 32, 32, 3, 1, 16],
    [128, 64, 64, 3, 1, 8],
    [32, 3, 64, 7, 2, 64],
    [32, 64, 64, 3, 1, 16],
    [32, 128, 128, 3, 1, 8],
    [32, 256, 256, 3, 1, 4],
    [32, 512, 512, 3, 1, 2],
];

fn convolution([batch, inputs, outputs, kernel, stride, side]: Convolution) -> Setup {
    let config = Conv2dConfig { inputs, outputs, kernel, stride, padding: (kernel - 1) / 2, bias: false };
    let operations = 2 * batch * inputs * outputs * (kernel * side.div_ceil(stride)).pow(2);
    Setup::new(&[batch, inputs, side, side], operations, |vb| Conv2d::new(config, vb))
}

#[divan::bench(args = CONVOLUTIONS.iter().flat_map(|c| PARTS.map(|part| (*c, part))).map(Shown).collect::<Vec<_>>())]
fn convolutions(bencher: Bencher<'_, '_>, Shown((case, part)): &Shown<(Convolution, Part)>) {
    convolution(*case).measure(*part, bencher);
}

/// Rows, inputs, outputs.
const LINEAR: [[usize; 3]; 4] = [[2048, 256, 768], [2048, 256, 1024], [2048, 1024, 256], [2048, 256, 256]];

#[divan::bench(args = LINEAR.iter().flat_map(|c| PARTS.map(|part| (*c, part))).map(Shown).collect::<Vec<_>>())]
fn linear(bencher: Bencher<'_, '_>, Shown(([rows, inputs, outputs], part)): &Shown<([usize; 3], Part)>) {
    let build = |vb| Linear::new(*inputs, *outputs, true, vb);
    Setup::new(&[*rows, *inputs], 2 * rows * inputs * outputs, build).measure(*part, bencher);
}

/// Heads of 32 columns, without the linear layers' operations beside the attention's own being told apart.
#[divan::bench(args = PARTS)]
fn attention(bencher: Bencher<'_, '_>, part: Part) {
    let [batch, length, width, heads] = [16, 128, 256, 8];
    let operations = 2 * batch * length * width * (4 * width + length);
    let build = |vb| CausalSelfAttention::new(width, heads, 0.0, 0.02, 0.02, vb);
    Setup::new(&[batch, length, width], operations, build).measure(part, bencher);
}

/// Two convolutions of 3×3 with norms, ReLUs and the identity around them.
#[divan::bench(args = [(16, 32), (32, 16), (64, 8)].into_iter().flat_map(|c| PARTS.map(|part| (c, part))).map(Shown).collect::<Vec<_>>())]
fn block(bencher: Bencher<'_, '_>, Shown(((channels, side), part)): &Shown<((usize, usize), Part)>) {
    let (channels, side) = (*channels, *side);
    let config = Conv2dConfig { inputs: channels, outputs: channels, kernel: 3, stride: 1, padding: 1, bias: false };
    let operations = 2 * 2 * 128 * (3 * channels * side).pow(2);
    let build = |vb: candle_nn::VarBuilder<'static>| {
        let link = |at: usize| -> Result<_> {
            Ok((
                Conv2d::new(config, vb.pp(format!("conv{at}")))?,
                BatchNorm2d::new(channels, vb.pp(format!("bn{at}")))?,
            ))
        };
        ConvBlock::new(vec![link(1)?, link(2)?], Shortcut::Identity)
    };
    Setup::new(&[128, channels, side, side], operations, build).measure(*part, bencher);
}

#[divan::bench(args = PARTS)]
fn batch_norm(bencher: Bencher<'_, '_>, part: Part) {
    let dims = [128, 16, 32, 32];
    Setup::new(&dims, dims.iter().product(), |vb| BatchNorm2d::new(16, vb)).measure(part, bencher);
}

#[divan::bench(args = PARTS)]
fn layer_norm(bencher: Bencher<'_, '_>, part: Part) {
    Setup::new(&[2048, 256], 2048 * 256, |vb| LayerNorm::new(256, vb)).measure(part, bencher);
}

#[divan::bench(args = [Part::Forward, Part::Input])]
fn gelu(bencher: Bencher<'_, '_>, part: Part) {
    Setup::new(&[2048, 1024], 2048 * 1024, |_| Ok(Gelu)).measure(part, bencher);
}

/// A plain product of two matrices of this side: what the processor can do.
#[divan::bench(args = [256, 1024])]
fn matrix_product(bencher: Bencher<'_, '_>, side: usize) {
    let (a, b) = (random(&[side, side]), random(&[side, side]));
    let product = || a.single().unwrap().matmul(b.single().unwrap()).map(drop);
    bencher.counter(ItemsCount::new(2 * side.pow(3))).bench_local(product);
}

/// An argument by its debug form.
#[derive(Clone, Copy)]
struct Shown<T>(T);

impl<T: std::fmt::Debug> std::fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[divan::bench(args = [Part::Forward, Part::Input])]
fn max_pool(bencher: Bencher<'_, '_>, part: Part) {
    let dims = [32, 64, 32, 32];
    Setup::new(&dims, dims.iter().product(), |_| Ok(MaxPool2d::new(3, 2, 1))).measure(part, bencher);
}

#[divan::bench(args = [Part::Forward, Part::Input])]
fn global_average_pool(bencher: Bencher<'_, '_>, part: Part) {
    let dims = [128, 64, 8, 8];
    Setup::new(&dims, dims.iter().product(), |_| Ok(GlobalAvgPool)).measure(part, bencher);
}

#[divan::bench]
fn cross_entropy(bencher: Bencher<'_, '_>) {
    let (rows, classes) = (2048, 256);
    let logits = Tensor::randn(0.0_f32, 1.0, (rows, classes), &Device::Cpu).unwrap();
    let targets = Tensor::arange(0_u32, rows as u32, &Device::Cpu).unwrap();
    let targets = (targets.to_dtype(candle_core::DType::F32).unwrap() * 0.1).unwrap();
    let targets = targets.to_dtype(candle_core::DType::U32).unwrap();
    let loss = CrossEntropy::default();
    let bencher = bencher.counter(ItemsCount::new(rows * classes));
    bencher.bench_local(|| loss.differentiate(&logits, &(&targets).into(), rows as f64).map(drop));
}

#[divan::bench(args = [OptimizerKind::Sgd, OptimizerKind::Adamw])]
fn update(bencher: Bencher<'_, '_>, kind: OptimizerKind) {
    const COUNT: usize = 1 << 20;
    let var = Var::from_tensor(&Tensor::randn(0.0_f32, 1.0, COUNT, &Device::Cpu).unwrap()).unwrap();
    let gradient = Tensor::randn(0.0_f32, 1.0, COUNT, &Device::Cpu).unwrap();
    let mut rule = optimizer::built_in(&OptimizerConfig { kind, ..OptimizerConfig::default() }).unwrap();
    let bencher = bencher.counter(ItemsCount::new(COUNT));
    bencher.bench_local(|| {
        let parameter = ParameterUpdate {
            name: "w",
            var: &var,
            unclipped: &gradient,
            clip: optimizer::ClipFactor::NONE,
            asynchronous: false,
            lr_scale: 1.0,
            weight_decay: 1e-4,
        };
        rule.update(1e-3, &[parameter])
    });
}
