//! Builds auxiliary heads from their descriptions.
//!
//! A description is a list of parts joined by `_`, applied from left to right:
//!
//! | part | layers | input | output |
//! |---|---|---|---|
//! | `convN` | 3×3 convolution to `N` channels, padding 1, with bias, and ReLU | `(C, H, W)` | `(N, H, W)` |
//! | `bn` | batch norm between the previous convolution and its ReLU | `(C, H, W)` | `(C, H, W)` |
//! | `basicN` | a ResNet's basic block of `N` channels | `(C, H, W)` | `(N, H, W)` |
//! | `basicNsS` | the same, with stride `S` in its first convolution | `(C, H, W)` | `(N, ⌈H/S⌉, ⌈W/S⌉)` |
//! | `gbpl` | global average pool, flattened | `(C, H, W)` | `(C)` |
//! | `block` | a block of the model, which must be a Transformer | `(S, D)` | the same |
//! | `ln` | layer norm over the last dimension | `(D)`, `(S, D)` | the same |
//! | `fc` | linear layer to the model's outputs, without bias if there is an `ln` | `(D)`, `(S, D)` | `(outputs)`, `(S, outputs)` |
//!
//! `fc` occurs once, at the end. Examples: `conv64_bn_gbpl_fc` and `gbpl_fc` after a residual block, `ln_fc` after a Transformer's block, `fc` after
//! a linear layer. `basic64s2_gbpl_fc` and `block_ln_fc` continue as the network does: their blocks have the layers and the initial values of its
//! blocks, and a `block` also its width, attention heads and dropout.
//!
//! Parameters are named by the position of their module in the sequence, in which ReLU, pool, flatten and a whole block count as modules: those of
//! `conv8_bn_gbpl_fc` are `0.weight`, `0.bias`, `1.weight`, …, `5.weight`, `5.bias`, below `aux.{stage}`, and those of `block_ln_fc` are
//! `0.ln_1.weight`, …, `0.mlp.c_proj.bias`, `1.weight`, `1.bias`, `2.weight`.

use candle_nn::{Init, VarBuilder};
use interlock::{Error, Result, Sequential, Unit};
use interlock_backends::layers::{
    BatchNorm2d, Conv2d, Conv2dConfig, ConvBlock, Flatten, GlobalAvgPool, LayerNorm, Linear, Relu, Shortcut,
};

use crate::{checks, flops, resnet};

/// The parts of descriptions, for help texts.
pub const PARTS: [&str; 7] = [
    "convN (3×3 convolution to N channels, and ReLU)",
    "bn (batch norm of the convolution before it)",
    "basicN or basicNsS (a ResNet's basic block of N channels, with stride S)",
    "gbpl (global average pool)",
    "block (a Transformer's block)",
    "ln (layer norm)",
    "fc (linear layer to the model's outputs, always the last part)",
];

/// The settings of a model's heads, which do not depend on their descriptions.
#[derive(Clone, Debug)]
pub struct HeadSettings {
    /// The number of outputs of `fc`.
    pub outputs: usize,
    /// Initializes the weight of `fc`; by default as PyTorch does.
    pub fc_weight: Option<Init>,
    /// The unit, with an empty name, that the part `block` adds; its input has the shape of its output. By default there is no such part.
    pub block: Option<Unit>,
}

impl HeadSettings {
    /// Returns the settings for heads of `outputs` outputs, with the defaults.
    pub fn new(outputs: usize) -> Self {
        Self { outputs, fc_weight: None, block: None }
    }
}

/// A module of a head. Its position in the list is its name.
#[derive(Clone, Debug)]
enum Module {
    Convolution { inputs: usize, outputs: usize },
    BatchNorm { channels: usize },
    Relu,
    Block(Unit),
    Pool,
    Flatten,
    LayerNorm { width: usize },
    Linear { inputs: usize, outputs: usize, bias: bool },
}

/// Returns the head `arch` that follows unit number `unit` of `units`.
///
/// # Errors
/// If there is no such unit, or the description is wrong or does not fit the unit's output; the message names the part.
pub fn after(units: &[Unit], unit: usize, arch: &str, settings: &HeadSettings) -> Result<Unit> {
    of_output(units.get(unit).map(|unit| &*unit.output), (unit, units.len()), arch, settings)
}

/// Returns the head `arch` of a unit with this output; none if the model has fewer units. `unit` is its number and that of all units.
///
/// # Errors
/// As [`after`].
pub(crate) fn of_output(
    output: Option<&[usize]>,
    (unit, units): (usize, usize),
    arch: &str,
    settings: &HeadSettings,
) -> Result<Unit> {
    let output = output.ok_or_else(|| {
        Error::invalid(
            "heads",
            format!("there is no unit {unit} for a head to follow"),
            format!("this model has units 0 to {}", units.saturating_sub(1)),
        )
    })?;
    head(arch, output, settings)
}

/// The most parts of a description.
const MOST_PARTS: usize = 256;

/// Returns the head `arch` for activations of shape `input` (without the batch dimension). The [module's documentation](self) explains descriptions.
///
/// # Errors
/// If the description is wrong or does not fit `input`; the message names the part and its position.
pub fn head(arch: &str, input: &[usize], settings: &HeadSettings) -> Result<Unit> {
    let mut plan = Plan { modules: Vec::new(), shape: input.to_vec(), flops: 0.0, settings };
    let parts: Vec<&str> = arch.split('_').collect();
    if parts.len() > MOST_PARTS {
        let right = format!("use 1 to {MOST_PARTS}");
        return Err(Error::invalid("heads.arch", format!("a description of {} parts", parts.len()), right));
    }
    let bias = !parts.contains(&"ln");
    for (at, name) in parts.iter().enumerate() {
        let part = Part { arch, at, name };
        match *name {
            "bn" => plan.batch_norm(&part)?,
            "gbpl" => plan.pool(&part)?,
            "ln" => plan.layer_norm(&part)?,
            "block" => plan.model_block(&part)?,
            "fc" if at + 1 == parts.len() => plan.linear(&part, bias)?,
            "fc" => return Err(part.refuse("is followed by other parts", "end the description with its only fc")),
            _ => match (name.strip_prefix("conv"), name.strip_prefix("basic")) {
                (Some(channels), _) => plan.convolution(&part, channels)?,
                (_, Some(numbers)) => plan.basic_block(&part, numbers)?,
                _ => return Err(part.refuse("is not known", plan.fitting_parts())),
            },
        }
    }
    if parts.last() != Some(&"fc") {
        return Err(Error::invalid(
            "heads.arch",
            format!("{arch:?} does not end in fc"),
            "append _fc, the part that predicts",
        ));
    }
    let Plan { modules, shape, flops, .. } = plan;
    let fc_weight = settings.fc_weight;
    Ok(Unit::new("", shape, move |vb| build(&modules, fc_weight, &vb)).with_flops(flops))
}

fn build(modules: &[Module], fc_weight: Option<Init>, vb: &VarBuilder<'static>) -> Result<Sequential> {
    let mut layers = Sequential::default();
    let mut at = 0;
    while let [module, next @ ..] = &modules[at..] {
        let here = vb.pp(at);
        at += 1;
        match *module {
            Module::Block(ref unit) => layers.push(unit.build(&here)?),
            Module::Convolution { inputs, outputs } => {
                let config = Conv2dConfig { inputs, outputs, kernel: 3, stride: 1, padding: 1, bias: true };
                let convolution = Conv2d::new(config, here)?;
                match next {
                    // One layer computes all three modules.
                    [Module::BatchNorm { channels }, Module::Relu, ..] => {
                        let norm = BatchNorm2d::new(*channels, vb.pp(at))?;
                        layers.push(ConvBlock::new(vec![(convolution, norm)], Shortcut::None)?);
                        at += 2;
                    }
                    _ => layers.push(convolution),
                }
            }
            Module::BatchNorm { channels } => layers.push(BatchNorm2d::new(channels, here)?),
            Module::Relu => layers.push(Relu),
            Module::Pool => layers.push(GlobalAvgPool),
            Module::Flatten => layers.push(Flatten),
            Module::LayerNorm { width } => layers.push(LayerNorm::new(width, here)?),
            Module::Linear { inputs, outputs, bias } => layers.push(match fc_weight {
                Some(weight) => Linear::with_init(inputs, outputs, weight, bias.then_some(Init::Const(0.0)), here)?,
                None => Linear::new(inputs, outputs, bias, here)?,
            }),
        }
    }
    Ok(layers)
}

/// A part of a description, for error messages.
struct Part<'a> {
    arch: &'a str,
    at: usize,
    name: &'a str,
}

impl Part<'_> {
    fn refuse(&self, problem: impl std::fmt::Display, remedy: impl Into<String>) -> Error {
        let Self { arch, at, name } = self;
        Error::invalid("heads.arch", format!("part {} of {arch:?}, {name:?}, {problem}", at + 1), remedy)
    }

    /// Reads `digits`, a number from 1 within the part's name.
    fn number(&self, digits: &str, what: &str, form: &str) -> Result<usize> {
        let number = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        let number = number.ok_or_else(|| self.refuse(format_args!("does not give a {what}"), form))?;
        checks::extent(&format!("heads.arch: {what} of part {} of {:?}", self.at + 1, self.arch), number)?;
        Ok(number)
    }
}

/// The modules so far and the shape of their output.
struct Plan<'a> {
    modules: Vec<Module>,
    shape: Vec<usize>,
    flops: f64,
    settings: &'a HeadSettings,
}

impl Plan<'_> {
    /// Returns the parts that take the output so far, for error messages.
    fn fitting_parts(&self) -> &'static str {
        match (self.shape.len(), &self.settings.block) {
            (3, _) => {
                "use convN, basicN or basicNsS (such as conv16, basic64, basic64s2), bn after convN, or gbpl; then ln or fc"
            }
            (_, Some(_)) => "use block, ln or fc",
            (_, None) => "use ln or fc",
        }
    }

    fn image(&self, part: &Part<'_>) -> Result<[usize; 3]> {
        <[usize; 3]>::try_from(self.shape.as_slice()).map_err(|_| {
            part.refuse(
                format_args!("needs channels and an image, (C, H, W), but gets {:?}", self.shape),
                self.fitting_parts(),
            )
        })
    }

    fn width(&self, part: &Part<'_>) -> Result<usize> {
        match self.shape.as_slice() {
            [.., width] if self.shape.len() < 3 => Ok(*width),
            shape => Err(part.refuse(
                format_args!("needs a vector or a sequence, (D) or (S, D), but gets {shape:?}"),
                "put gbpl before it to average over the image",
            )),
        }
    }

    fn elements(&self) -> f64 {
        flops::elements(&self.shape)
    }

    fn convolution(&mut self, part: &Part<'_>, channels: &str) -> Result<()> {
        let [inputs, height, width] = self.image(part)?;
        let outputs = part.number(channels, "number of channels", "write convN with N from 1, such as conv16")?;
        self.shape = vec![outputs, height, width];
        self.flops += flops::convolution(inputs, 3, &self.shape) + flops::SIMPLE * self.elements();
        self.modules.extend([Module::Convolution { inputs, outputs }, Module::Relu]);
        Ok(())
    }

    fn batch_norm(&mut self, part: &Part<'_>) -> Result<()> {
        let [.., Module::Convolution { outputs, .. }, Module::Relu] = *self.modules.as_slice() else {
            return Err(
                part.refuse("does not come right after a convolution", "write it after convN, such as conv16_bn")
            );
        };
        let relu = self.modules.len() - 1;
        self.modules.insert(relu, Module::BatchNorm { channels: outputs });
        self.flops += flops::NORM * self.elements();
        Ok(())
    }

    fn basic_block(&mut self, part: &Part<'_>, numbers: &str) -> Result<()> {
        let [channels, height, width] = self.image(part)?;
        let form = "write basicN or basicNsS with N and S from 1, such as basic64 or basic64s2";
        let (planes, stride) = numbers.split_once('s').unwrap_or((numbers, "1"));
        let (planes, stride) = (part.number(planes, "number of channels", form)?, part.number(stride, "stride", form)?);
        let input = resnet::blocks::Shape { channels, height, width };
        self.push(resnet::blocks::basic(String::new(), input, planes, stride).0);
        Ok(())
    }

    fn model_block(&mut self, part: &Part<'_>) -> Result<()> {
        match &self.settings.block {
            None => Err(part.refuse("is only for heads of a Transformer", self.fitting_parts())),
            Some(block) if block.output != self.shape => Err(part.refuse(
                format_args!("needs a sequence of shape {:?}, but gets {:?}", block.output, self.shape),
                "use it after the embeddings or a block of the model",
            )),
            Some(block) => {
                self.push(block.clone());
                Ok(())
            }
        }
    }

    /// Adds a block as one module.
    fn push(&mut self, unit: Unit) {
        self.flops += unit.flops;
        self.shape.clone_from(&unit.output);
        self.modules.push(Module::Block(unit));
    }

    fn pool(&mut self, part: &Part<'_>) -> Result<()> {
        let [channels, ..] = self.image(part)?;
        self.flops += flops::SIMPLE * self.elements();
        self.shape = vec![channels];
        self.modules.extend([Module::Pool, Module::Flatten]);
        Ok(())
    }

    fn layer_norm(&mut self, part: &Part<'_>) -> Result<()> {
        let width = self.width(part)?;
        self.flops += flops::NORM * self.elements();
        self.modules.push(Module::LayerNorm { width });
        Ok(())
    }

    fn linear(&mut self, part: &Part<'_>, bias: bool) -> Result<()> {
        let (inputs, outputs) = (self.width(part)?, self.settings.outputs);
        self.flops += 2.0 * self.elements() * outputs as f64;
        if let Some(last) = self.shape.last_mut() {
            *last = outputs;
        }
        self.modules.push(Module::Linear { inputs, outputs, bias });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use interlock::ModelSpec;

    use super::*;
    use crate::Transformer;

    const GPT: Transformer =
        Transformer { vocab: 65, context: 20, sequence: 16, width: 32, heads: 4, layers: 2, dropout: 0.0, tied: false };

    fn plain(arch: &str, input: &[usize]) -> Result<Unit> {
        head(arch, input, &HeadSettings::new(10))
    }

    fn shape(arch: &str, input: &[usize]) -> Vec<usize> {
        plain(arch, input).unwrap().output
    }

    fn refusal(arch: &str, input: &[usize]) -> String {
        plain(arch, input).unwrap_err().to_string()
    }

    #[test]
    fn heads_have_the_models_outputs() {
        assert_eq!(shape("conv8_bn_gbpl_fc", &[16, 8, 8]), [10]);
        assert_eq!(shape("conv8_conv4_bn_gbpl_ln_fc", &[16, 8, 8]), [10]);
        assert_eq!(shape("gbpl_fc", &[16, 8, 8]), [10]);
        assert_eq!(shape("basic8s2_basic8_conv4_bn_gbpl_fc", &[16, 9, 8]), [10]);
        assert_eq!(shape("ln_fc", &[32, 48]), [32, 10]);
        assert_eq!(shape("fc", &[48]), [10]);
        for arch in ["block_fc", "block_ln_fc", "ln_block_block_ln_fc"] {
            assert_eq!(GPT.head(0, arch).unwrap().output, [16, 65], "{arch}");
        }
    }

    #[test]
    fn flops_are_those_of_the_layers() {
        assert_eq!(plain("fc", &[48]).unwrap().flops, 2.0 * 480.0);
        let conv = plain("conv4_gbpl_fc", &[3, 8, 8]).unwrap().flops;
        assert_eq!(conv, 2.0 * 3.0 * 9.0 * 256.0 + 256.0 + 256.0 + 2.0 * 40.0);

        // Two convolutions and a projection to 8 images of 4×4 = 128 elements: products, norms, two ReLUs and an addition.
        let products = 2.0 * 128.0 * (3.0 * 9.0 + 8.0 * 9.0 + 3.0);
        let block = products + 3.0 * 8.0 * 128.0 + 3.0 * 128.0;
        assert_eq!(plain("basic8s2_gbpl_fc", &[3, 8, 8]).unwrap().flops, block + 128.0 + 2.0 * 80.0);
        // The same shape in and out needs no projection.
        let same = 2.0 * 512.0 * 2.0 * 8.0 * 9.0 + 2.0 * 8.0 * 512.0 + 3.0 * 512.0;
        assert_eq!(plain("basic8_gbpl_fc", &[8, 8, 8]).unwrap().flops, same + 512.0 + 2.0 * 80.0);

        // For 16 tokens, the four matrices of a block; 16·17/2 attention weights for each head; 512 elements in norms and additions, 2048 in the GELU.
        let matrices = 2.0 * 16.0 * 32.0 * (96.0 + 32.0 + 128.0 + 128.0);
        let attention = 136.0 * (4.0 * 32.0 + 5.0 * 4.0);
        let block = matrices + attention + 2.0 * (8.0 + 1.0) * 512.0 + 12.0 * 2048.0;
        let readout = 8.0 * 512.0 + 2.0 * 512.0 * 65.0;
        assert_eq!(GPT.head(1, "block_ln_fc").unwrap().flops, block + readout);
        assert_eq!(GPT.head(1, "block_block_ln_fc").unwrap().flops, 2.0 * block + readout);
    }

    #[test]
    fn errors_name_the_part_its_position_and_a_remedy() {
        assert_eq!(
            refusal("conv8_bm_gbpl_fc", &[16, 8, 8]),
            "heads.arch: part 2 of \"conv8_bm_gbpl_fc\", \"bm\", is not known; \
             use convN, basicN or basicNsS (such as conv16, basic64, basic64s2), bn after convN, or gbpl; then ln or fc"
        );
        for (arch, input, says) in [
            ("", &[16][..], "\"\", is not known; use ln or fc"),
            ("conv8__fc", &[16, 8, 8], "part 2"),
            ("fc", &[16, 8, 8], "put gbpl before it"),
            ("ln_fc", &[16, 8, 8], "part 1 of \"ln_fc\", \"ln\", needs a vector or a sequence"),
            ("conv8_gbpl_fc", &[32, 48], "part 1 of \"conv8_gbpl_fc\", \"conv8\", needs channels and an image"),
            ("gbpl_gbpl_fc", &[16, 8, 8], "part 2"),
            ("gbpl_conv8_fc", &[16, 8, 8], "but gets [16]; use ln or fc"),
            ("bn_gbpl_fc", &[16, 8, 8], "right after a convolution"),
            ("conv8_bn_bn_gbpl_fc", &[16, 8, 8], "part 3"),
            ("basic8_bn_gbpl_fc", &[16, 8, 8], "part 2 of \"basic8_bn_gbpl_fc\", \"bn\", does not come right after"),
            ("fc_fc", &[16], "is followed by other parts"),
            ("ln", &[16], "does not end in fc"),
            ("conv_gbpl_fc", &[16, 8, 8], "does not give a number of channels"),
            ("conv0_gbpl_fc", &[16, 8, 8], "number of channels of part 1 of \"conv0_gbpl_fc\": it is 0"),
            ("conv+8_gbpl_fc", &[16, 8, 8], "does not give a number of channels"),
            ("conv99999999999999999999_gbpl_fc", &[16, 8, 8], "does not give a number of channels"),
            ("basic_gbpl_fc", &[16, 8, 8], "does not give a number of channels; write basicN or basicNsS"),
            ("basic0_gbpl_fc", &[16, 8, 8], "number of channels of part 1 of \"basic0_gbpl_fc\": it is 0"),
            ("basic8s0_gbpl_fc", &[16, 8, 8], "stride of part 1 of \"basic8s0_gbpl_fc\": it is 0"),
            ("basic8s_gbpl_fc", &[16, 8, 8], "does not give a stride; write basicN or basicNsS"),
            ("basic8s2s2_gbpl_fc", &[16, 8, 8], "does not give a stride"),
            ("basic8_fc", &[16], "\"basic8\", needs channels and an image, (C, H, W), but gets [16]; use ln or fc"),
            ("block_gbpl_fc", &[16, 8, 8], "\"block\", is only for heads of a Transformer; use convN"),
            ("block_fc", &[16], "\"block\", is only for heads of a Transformer; use ln or fc"),
            ("fc", &[], "needs a vector or a sequence"),
        ] {
            let text = refusal(arch, input);
            assert!(text.contains(says), "{arch:?} on {input:?}: {text}");
        }
        for (unit, arch, says) in [
            (1, "blocks_ln_fc", "\"blocks\", is not known; use block, ln or fc"),
            (1, "basic8_ln_fc", "but gets [16, 32]; use block, ln or fc"),
            (3, "block_ln_fc", "\"block\", needs a sequence of shape [16, 32], but gets [16, 65]"),
        ] {
            let text = GPT.head(unit, arch).unwrap_err().to_string();
            assert!(text.contains(says), "{arch:?} after unit {unit}: {text}");
        }
    }

    #[test]
    fn head_after_a_missing_unit_is_refused() {
        let text = after(&[], 3, "fc", &HeadSettings::new(10)).unwrap_err().to_string();
        assert!(text.contains("no unit 3"), "{text}");
    }
}
