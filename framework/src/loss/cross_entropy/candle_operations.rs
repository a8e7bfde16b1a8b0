//! Cross-entropy with candle operations. The host reads nothing, and an invalid target is never used as an index.

use candle_core::{D, DType, Device, Tensor};

use super::CrossEntropy;
use crate::Result;

/// Rows of logits against classes.
pub(super) struct Rows {
    /// The class of each row, `u32`, `(rows, 1)`; 0 for a row that does not count.
    classes: Tensor,
    /// Whether each row counts, `u8`, `(rows, 1)`; none if all do.
    counts: Option<Tensor>,
    /// `z - max z`, `(rows, classes)`.
    shifted: Tensor,
    /// The exponentials of `shifted`, and their sums, `(rows, 1)`.
    exponentials: Tensor,
    sums: Tensor,
}

impl Rows {
    /// Returns the rows of the logits in `output`, with one class in `targets` for each. Classes that count are below the number of classes.
    pub(super) fn of(loss: &CrossEntropy, output: &Tensor, targets: &Tensor) -> Result<Self> {
        let z = output.detach().to_dtype(DType::F32)?.reshape(((), output.dim(D::Minus1)?))?;
        let classes = targets.to_dtype(DType::U32)?.reshape(((), 1))?;
        let (classes, counts) = match loss.ignore_index {
            None => (classes, None),
            Some(ignored) => {
                let counts = classes.ne(&Tensor::full(ignored, classes.shape(), classes.device())?)?;
                (counts.where_cond(&classes, &classes.zeros_like()?)?, Some(counts))
            }
        };
        let shifted = z.broadcast_sub(&z.max_keepdim(1)?)?;
        let exponentials = shifted.exp()?;
        let sums = exponentials.sum_keepdim(1)?;
        Ok(Self { classes, counts, shifted, exponentials, sums })
    }

    /// Returns `values`, `(rows, n)`, with zeros in the rows that do not count.
    fn counting(&self, values: Tensor) -> Result<Tensor> {
        Ok(match &self.counts {
            None => values,
            Some(counts) => counts.broadcast_as(values.shape())?.where_cond(&values, &values.zeros_like()?)?,
        })
    }

    /// Returns the sum of the losses and the number of right predictions, an `f64` tensor `(2)`.
    pub(super) fn score(&self, loss: &CrossEntropy) -> Result<Tensor> {
        let at_class = self.shifted.gather(&self.classes, 1)?;
        let mut losses = (self.sums.log()? - &at_class)?;
        if loss.label_smoothing > 0.0 {
            losses = (losses + ((at_class - self.shifted.mean_keepdim(1)?)? * loss.label_smoothing)?)?;
        }
        let of_all = |values: Tensor| -> Result<Tensor> {
            Ok(self.counting(values)?.to_dtype(DType::F64)?.sum_all()?.reshape(1)?)
        };
        let right = self.first_largest()?.eq(&self.classes.to_dtype(DType::F32)?)?;
        Ok(Tensor::cat(&[of_all(losses)?, of_all(right.to_dtype(DType::F32)?)?], 0)?)
    }

    /// Returns the index of the first of each row's largest logits, `(rows, 1)` in `f32`. candle's `argmax` returns any of them on some devices.
    fn first_largest(&self) -> Result<Tensor> {
        let (_, count) = self.shifted.dims2()?;
        let numbers = numbers(count, self.shifted.device())?.reshape((1, count))?.broadcast_as(self.shifted.shape())?;
        let beyond = Tensor::full(count as f32, self.shifted.shape(), self.shifted.device())?;
        let largest = self.shifted.eq(&self.shifted.zeros_like()?)?;
        Ok(largest.where_cond(&numbers, &beyond)?.min_keepdim(1)?)
    }

    /// Returns the gradient of the losses times `scale`, `(rows, classes)` in `f32`.
    pub(super) fn gradient(&self, loss: &CrossEntropy, scale: f64) -> Result<Tensor> {
        let (rows, count) = self.shifted.dims2()?;
        let even = loss.label_smoothing / count as f64;
        let gradient = self.exponentials.broadcast_div(&self.sums)?.affine(scale, -even * scale)?;
        let at_class = Tensor::full(((loss.label_smoothing - 1.0) * scale) as f32, (rows, 1), gradient.device())?;
        gradient.scatter_add_set(&self.classes, &at_class, 1)?;
        self.counting(gradient)
    }
}

/// Returns 0, 1 … `count - 1` in `f32`, made on the device from a few numbers that the host sends.
fn numbers(count: usize, device: &Device) -> Result<Tensor> {
    const ROW: usize = 256;
    let first = |n: usize| Tensor::arange(0.0, n as f32, device);
    if count <= ROW {
        return Ok(first(count)?);
    }
    let rows = (first(count.div_ceil(ROW))? * ROW as f64)?.unsqueeze(1)?;
    Ok(rows.broadcast_add(&first(ROW)?.unsqueeze(0)?)?.flatten_all()?.narrow(0, 0, count)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        loss::{Loss, PendingScore, Score, Targets},
        tensor::Numbers,
    };

    /// The same targets on an asynchronous device.
    fn later(targets: &Tensor) -> Targets {
        Targets { asynchronous: true, ..targets.into() }
    }

    /// Returns the score, which must have been left on the device.
    fn unread(scored: &PendingScore) -> Score {
        assert!(matches!(scored.numbers, Numbers::Device(_)));
        scored.read().unwrap()
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 2e-6 * (1.0 + a.abs().max(b.abs()))
    }

    /// Whether both ways agree.
    fn agree(loss: &CrossEntropy, output: &Tensor, targets: &Tensor, total: f64) {
        let (expected, gradient) = loss.differentiate(output, &targets.into(), total).unwrap();
        let (scored, found_gradient) = loss.differentiate(output, &later(targets), total).unwrap();
        let (found, expected) = (unread(&scored), expected.read().unwrap());
        assert!(near(found.loss, expected.loss), "{found:?} {expected:?}");
        assert_eq!((found.count, found.correct), (expected.count, expected.correct));
        assert_eq!((found_gradient.dims(), found_gradient.dtype()), (output.dims(), output.dtype()));
        let numbers = |t: Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (a, b) = (numbers(found_gradient), numbers(gradient));
        let allowed = if output.dtype() == DType::BF16 { 1e-2 } else { 1e-6 };
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= allowed * (1.0 + b.abs())), "{a:?} {b:?}");
        assert_eq!(unread(&loss.score(output, &later(targets)).unwrap()), found);
    }

    #[test]
    fn by_hand() {
        // Logits ln 1, ln 2, ln 5 have softmax 1/8, 2/8, 5/8; of equal ones the first is the prediction. The last row does not count.
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 5.0_f32.ln(), 7.0, 7.0, 7.0, f32::NAN, 0.0, 0.0];
        let output = Tensor::from_slice(&logits, (3, 3), &Device::Cpu).unwrap();
        let targets = Tensor::new(&[1_u32, 0, 77], &Device::Cpu).unwrap();
        let loss = CrossEntropy { ignore_index: Some(77), ..CrossEntropy::default() };
        let (scored, gradient) = loss.differentiate(&output, &later(&targets), 4.0).unwrap();
        let found = unread(&scored);
        assert!(near(found.loss, 4.0_f64.ln() + 3.0_f64.ln()), "{found:?}");
        assert_eq!((found.count, found.correct), (2.0, Some(1.0)));
        let expected = [0.125, -0.75, 0.625, -2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0, 0.0, 0.0].map(|g: f32| g / 4.0);
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(gradient.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7), "{gradient:?}");
    }

    #[test]
    fn a_nan_or_infinite_logit_makes_the_loss_nan() {
        for bad in [f32::NAN, f32::INFINITY] {
            for at in 0..3 {
                let mut logits = [0.0, 1.0, 2.0];
                logits[at] = bad;
                let output = Tensor::from_slice(&logits, (1, 3), &Device::Cpu).unwrap();
                let targets = Tensor::new(&[0_u32], &Device::Cpu).unwrap();
                let loss = CrossEntropy::default();
                assert!(unread(&loss.score(&output, &later(&targets)).unwrap()).loss.is_nan(), "{bad}");
            }
        }
    }

    #[test]
    fn targets_that_are_no_class_are_refused_in_the_same_words() {
        let output = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let loss = CrossEntropy::default();
        for targets in [vec![1_u32, 3], vec![1]] {
            let targets = Tensor::new(targets, &Device::Cpu).unwrap();
            let error = loss.score(&output, &later(&targets)).unwrap_err().to_string();
            assert_eq!(error, loss.score(&output, &(&targets).into()).unwrap_err().to_string());
        }
    }

    #[test]
    fn numbers_are_in_order() {
        for count in [1, 255, 256, 257, 1000] {
            let found = numbers(count, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(found, (0..count).map(|n| n as f32).collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn both_ways_agree(
            classes in 1_usize..300,
            rows in 1_usize..12,
            sequence in 1_usize..4,
            smoothing in prop_oneof![Just(0.0), 0.0..0.9],
            ignores in proptest::bool::ANY,
            beyond in proptest::bool::ANY,
            coarse in proptest::bool::ANY,
            half in proptest::bool::ANY,
            seed in 0_u64..1000,
        ) {
            let ignored = if beyond { u32::MAX } else { 0 };
            let loss = CrossEntropy { label_smoothing: smoothing, ignore_index: ignores.then_some(ignored) };
            let number = |i: usize| ((i as u64 + 1).wrapping_mul(6_364_136_223_846_793_005 ^ seed) >> 33) as usize;
            let count = rows * sequence;
            // Coarse logits tie often.
            let logit = |i| if coarse { (number(i) % 3) as f32 } else { (number(i) % 100_000) as f32 / 5e3 - 10.0 };
            let logits: Vec<f32> = (0..count * classes).map(logit).collect();
            let class = |i| if ignores && number(i) % 4 == 0 { ignored } else { (number(i + 7) % classes) as u32 };
            let targets: Vec<u32> = (0..count).map(class).collect();
            let (output, targets) = match sequence {
                1 => (Tensor::from_vec(logits, (rows, classes), &Device::Cpu), Tensor::from_vec(targets, rows, &Device::Cpu)),
                _ => (
                    Tensor::from_vec(logits, (rows, sequence, classes), &Device::Cpu),
                    Tensor::from_vec(targets, (rows, sequence), &Device::Cpu),
                ),
            };
            let output = if half { output.unwrap().to_dtype(DType::BF16).unwrap() } else { output.unwrap() };
            agree(&loss, &output, &targets.unwrap(), 0.5 + count as f64);
        }
    }
}
