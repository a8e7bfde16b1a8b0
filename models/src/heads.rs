//! Builds auxiliary heads from their descriptions.
//!
//! A description is a list of parts joined by `_`, applied from left to right:
//!
//! | part | layers | input | output |
//! |---|---|---|---|
//! | `convN` | 3×3 convolution to `N` channels, padding 1, with bias, and ReLU | `(C, H, W)` | `(N, H, W)` |
//! | `bn` | batch norm between the previous convolution and its ReLU | `(C, H, W)` | `(C, H, W)` |
//! | `gbpl` | global average pool, flattened | `(C, H, W)` | `(C)` |
//! | `ln` | layer norm over the last dimension | `(D)`, `(S, D)` | the same |
//! | `fc` | linear layer to the model's outputs, without bias if there is an `ln` | `(D)`, `(S, D)` | `(outputs)`, `(S, outputs)` |
//!
//! `fc` occurs once, at the end. Examples: `conv64_bn_gbpl_fc` and `gbpl_fc` after a residual block, `ln_fc` after a Transformer's block, `fc` after
//! a linear layer.
//!
//! Parameters are named by the position of their module in the sequence, in which ReLU, pool and flatten count as modules: those of
//! `conv8_bn_gbpl_fc` are `0.weight`, `0.bias`, `1.weight`, …, `5.weight`, `5.bias`, below `aux.{stage}`.

use candle_nn::{Init, VarBuilder};
use interlock::{Error, Result, Sequential, Unit};
use interlock_backends::layers::{
    BatchNorm2d, Conv2d, Conv2dConfig, ConvBlock, Flatten, GlobalAvgPool, LayerNorm, Linear, Relu, Shortcut,
};

use crate::{checks, flops};

const PARTS: &str = "parts are convN (such as conv16), bn, gbpl, ln and fc, joined by _";

/// A module of a head. Its position in the list is its name.
#[derive(Clone, Debug, PartialEq)]
enum Module {
    Convolution { inputs: usize, outputs: usize },
    BatchNorm { channels: usize },
    Relu,
    Pool,
    Flatten,
    LayerNorm { width: usize },
    Linear { inputs: usize, outputs: usize, bias: bool },
}

/// Returns the head `arch` that follows unit number `unit` of `units`, with `outputs` outputs.
///
/// `fc_weight` initializes the last layer's weight; `None` is PyTorch's default.
///
/// # Errors
/// If there is no such unit, or the description is wrong or does not fit the unit's output; the message names the part.
pub fn after(units: &[Unit], unit: usize, arch: &str, outputs: usize, fc_weight: Option<Init>) -> Result<Unit> {
    let before = units.get(unit).ok_or_else(|| {
        Error::invalid(
            "heads",
            format!("there is no unit {unit} for a head to follow"),
            format!("this model has units 0 to {}", units.len().saturating_sub(1)),
        )
    })?;
    head(arch, &before.output, outputs, fc_weight)
}

/// Returns the head `arch` for activations of shape `input` (without the batch dimension), with `outputs` outputs. The
/// [module's documentation](self) explains descriptions.
///
/// # Errors
/// If the description is wrong or does not fit `input`; the message names the part and its position.
pub fn head(arch: &str, input: &[usize], outputs: usize, fc_weight: Option<Init>) -> Result<Unit> {
    let mut plan = Plan { modules: Vec::new(), shape: input.to_vec(), flops: 0.0 };
    let parts: Vec<&str> = arch.split('_').collect();
    let bias = !parts.contains(&"ln");
    for (at, name) in parts.iter().enumerate() {
        let part = Part { arch, at, name };
        match *name {
            "bn" => plan.batch_norm(&part)?,
            "gbpl" => plan.pool(&part)?,
            "ln" => plan.layer_norm(&part)?,
            "fc" if at + 1 == parts.len() => plan.linear(&part, outputs, bias)?,
            "fc" => return Err(part.refuse("is followed by other parts", "end the description with its only fc")),
            _ => match name.strip_prefix("conv") {
                Some(channels) => plan.convolution(&part, channels)?,
                None => return Err(part.refuse("is not known", PARTS)),
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
    let Plan { modules, shape, flops } = plan;
    Ok(Unit::new("", shape, move |vb| build(&modules, fc_weight, &vb)).with_flops(flops))
}

fn build(modules: &[Module], fc_weight: Option<Init>, vb: &VarBuilder<'static>) -> Result<Sequential> {
    let mut layers = Sequential::default();
    let mut at = 0;
    while let [module, next @ ..] = &modules[at..] {
        let here = vb.pp(at);
        at += 1;
        match *module {
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
}

/// The modules so far and the shape of their output.
struct Plan {
    modules: Vec<Module>,
    shape: Vec<usize>,
    flops: f64,
}

impl Plan {
    fn image(&self, part: &Part<'_>) -> Result<[usize; 3]> {
        <[usize; 3]>::try_from(self.shape.as_slice()).map_err(|_| {
            part.refuse(
                format_args!("needs channels and an image, (C, H, W), but gets {:?}", self.shape),
                "use it after convolutional units and before gbpl; for vectors and sequences there are ln and fc",
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
        let bad = || part.refuse("does not give a number of channels", "write convN with N from 1, such as conv16");
        if !channels.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let outputs: usize = channels.parse().map_err(|_| bad())?;
        checks::extent(&format!("heads.arch: channels of part {} of {:?}", part.at + 1, part.arch), outputs)?;
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

    fn linear(&mut self, part: &Part<'_>, outputs: usize, bias: bool) -> Result<()> {
        let inputs = self.width(part)?;
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
    use super::*;

    fn shape(arch: &str, input: &[usize]) -> Vec<usize> {
        head(arch, input, 10, None).unwrap().output
    }

    fn refusal(arch: &str, input: &[usize]) -> String {
        head(arch, input, 10, None).unwrap_err().to_string()
    }

    #[test]
    fn heads_have_the_models_outputs() {
        assert_eq!(shape("conv8_bn_gbpl_fc", &[16, 8, 8]), [10]);
        assert_eq!(shape("conv8_conv4_bn_gbpl_ln_fc", &[16, 8, 8]), [10]);
        assert_eq!(shape("gbpl_fc", &[16, 8, 8]), [10]);
        assert_eq!(shape("ln_fc", &[32, 48]), [32, 10]);
        assert_eq!(shape("fc", &[48]), [10]);
    }

    #[test]
    fn flops_are_those_of_the_layers() {
        assert_eq!(head("fc", &[48], 10, None).unwrap().flops, 2.0 * 480.0);
        let conv = head("conv4_gbpl_fc", &[3, 8, 8], 10, None).unwrap().flops;
        assert_eq!(conv, 2.0 * 3.0 * 9.0 * 256.0 + 256.0 + 256.0 + 2.0 * 40.0);
    }

    #[test]
    fn errors_name_the_part_its_position_and_a_remedy() {
        let text = refusal("conv8_bm_gbpl_fc", &[16, 8, 8]);
        assert_eq!(
            text,
            "heads.arch: part 2 of \"conv8_bm_gbpl_fc\", \"bm\", is not known; \
             parts are convN (such as conv16), bn, gbpl, ln and fc, joined by _"
        );
        for (arch, input, says) in [
            ("", &[16][..], "\"\", is not known"),
            ("conv8__fc", &[16, 8, 8], "part 2"),
            ("fc", &[16, 8, 8], "put gbpl before it"),
            ("ln_fc", &[16, 8, 8], "part 1 of \"ln_fc\", \"ln\", needs a vector or a sequence"),
            ("conv8_gbpl_fc", &[32, 48], "part 1 of \"conv8_gbpl_fc\", \"conv8\", needs channels and an image"),
            ("gbpl_gbpl_fc", &[16, 8, 8], "part 2"),
            ("gbpl_conv8_fc", &[16, 8, 8], "but gets [16]"),
            ("bn_gbpl_fc", &[16, 8, 8], "right after a convolution"),
            ("conv8_bn_bn_gbpl_fc", &[16, 8, 8], "part 3"),
            ("fc_fc", &[16], "is followed by other parts"),
            ("ln", &[16], "does not end in fc"),
            ("conv_gbpl_fc", &[16, 8, 8], "does not give a number of channels"),
            ("conv0_gbpl_fc", &[16, 8, 8], "it is 0"),
            ("conv+8_gbpl_fc", &[16, 8, 8], "does not give a number of channels"),
            ("conv99999999999999999999_gbpl_fc", &[16, 8, 8], "does not give a number of channels"),
            ("fc", &[], "needs a vector or a sequence"),
        ] {
            let text = refusal(arch, input);
            assert!(text.contains(says), "{arch:?} on {input:?}: {text}");
        }
    }

    #[test]
    fn head_after_a_missing_unit_is_refused() {
        let text = after(&[], 3, "fc", 10, None).unwrap_err().to_string();
        assert!(text.contains("no unit 3"), "{text}");
    }
}
