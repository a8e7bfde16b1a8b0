//! Cross-entropy of logits against classes.
//!
//! For logits `z` and class `t` of `C`: `l = log Σ exp(z) - z_t`, and `∂l/∂z = softmax(z) - onehot(t)`. With label smoothing `s` the
//! target is `(1-s)·onehot(t) + s/C`, as PyTorch defines it.
//!
//! Rows are computed in pieces of a fixed size on all threads of the device, and the losses of the pieces are added in order. `candle_operations.rs`
//! computes the same with candle operations, for asynchronous devices.

mod candle_operations;

use candle_core::{CpuStorage, D, DType, Storage, Tensor};

use super::{
    Loss, PendingScore, Score, Targets,
    exponentials::{exponentials, largest},
};
use crate::{
    Error, Result,
    tensor::elementwise::{CHUNK, each},
};

/// Cross-entropy, with one class for each example or, as in language models, for each position.
///
/// # Shapes
/// Output `(B, C)` with targets `(B)`, or `(B, S, C)` with `(B, S)`; targets are `u32`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// The part of the target that is spread evenly over all classes, from 0 to below 1.
    pub label_smoothing: f64,
    /// A target that does not count.
    pub ignore_index: Option<u32>,
}

impl CrossEntropy {
    /// Returns the targets as a flat list.
    ///
    /// # Errors
    /// If one is not a whole number from 0 to `u32::MAX`.
    fn classes(&self, targets: &Tensor) -> Result<Vec<u32>> {
        let flat = targets.flatten_all()?;
        let refused = |at: usize, value: String| {
            Error::invalid(
                "cross-entropy",
                format!("target {value} at position {at} of the batch"),
                "targets are the numbers of classes: whole numbers from 0",
            )
        };
        match targets.dtype() {
            DType::U8 | DType::U32 => Ok(flat.to_dtype(DType::U32)?.to_vec1()?),
            dtype if dtype.is_int() => {
                let numbers = flat.to_dtype(DType::I64)?.to_vec1::<i64>()?;
                let class = |(at, &n): (usize, &i64)| u32::try_from(n).map_err(|_| refused(at, n.to_string()));
                numbers.iter().enumerate().map(class).collect()
            }
            _ => {
                let numbers = flat.to_dtype(DType::F64)?.to_vec1::<f64>()?;
                let class = |(at, &n): (usize, &f64)| match n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&n)
                {
                    true => Ok(n as u32),
                    false => Err(refused(at, n.to_string())),
                };
                numbers.iter().enumerate().map(class).collect()
            }
        }
    }

    /// Checks the smoothing, and the shape of `output` against the targets. Returns the number of classes.
    fn shape(&self, output: &Tensor, classes: &[u32]) -> Result<usize> {
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let value = self.label_smoothing.to_string();
            return Err(Error::invalid("label_smoothing", value, "use a number from 0 to below 1"));
        }
        let (count, rows) = (output.dim(D::Minus1)?, output.elem_count() / output.dim(D::Minus1)?.max(1));
        if rows != classes.len() {
            return Err(Error::invalid(
                "cross-entropy",
                format!("an output of shape {:?} against {} targets", output.dims(), classes.len()),
                "give one row of logits for each target",
            ));
        }
        let wrong = classes.iter().position(|&t| t as usize >= count && Some(t) != self.ignore_index);
        if let Some(at) = wrong {
            return Err(Error::invalid(
                "cross-entropy",
                format!("target {} at position {at} of the batch", classes[at]),
                format!("classes are 0 to {}", count - 1),
            ));
        }
        Ok(count)
    }

    /// Scores a piece of the rows. Writes the gradient of the losses times `scale` to `gradient`, which begins as zeros, if it is given.
    fn piece(
        &self,
        (logits, classes): (&[f32], &[u32]),
        count: usize,
        mut gradient: Option<&mut [f32]>,
        scale: f32,
    ) -> Score {
        let mut score = Score::default();
        let mut correct = 0.0;
        let differentiates = gradient.is_some();
        let mut room = vec![0.0_f32; if differentiates { 0 } else { count }];
        for (row, (z, &target)) in logits.chunks_exact(count).zip(classes).enumerate() {
            if Some(target) == self.ignore_index {
                continue;
            }
            let target = target as usize;
            let max = largest(z);
            let best = z.iter().position(|&value| value == max).unwrap_or(0);
            let to = match &mut gradient {
                Some(gradient) => &mut gradient[row * count..][..count],
                None => &mut room,
            };
            let sum = exponentials(z, max, to);
            let mut loss = f64::from(max) + sum.ln() - f64::from(z[target]);
            if self.label_smoothing > 0.0 {
                let mean = z.iter().map(|&v| f64::from(v)).sum::<f64>() / count as f64;
                loss += self.label_smoothing * (f64::from(z[target]) - mean);
            }
            score.loss += loss;
            score.count += 1.0;
            correct += f64::from(u8::from(best == target));
            if differentiates {
                let even = (self.label_smoothing / count as f64) as f32;
                let part = (1.0 / sum) as f32;
                for g in to.iter_mut() {
                    *g = (*g * part - even) * scale;
                }
                to[target] -= (1.0 - self.label_smoothing) as f32 * scale;
            }
        }
        Score { correct: Some(correct), ..score }
    }
}

/// Returns the number of rows of a piece, for rows of `count` classes.
fn rows(count: usize) -> usize {
    CHUNK.div_ceil(count.max(1))
}

/// Adds the scores of pieces in order.
fn together(scores: Vec<Score>) -> Score {
    let nothing = Score { correct: Some(0.0), ..Score::default() };
    scores.into_iter().fold(nothing, |sum, score| sum + score)
}

/// Calls `read` with the elements of `tensor` as `f32` on the CPU. Copies them only if they are not already that.
fn with_values<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    {
        let (storage, layout) = tensor.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
            return Ok(read(&values[start..end]));
        }
    }
    Ok(read(&tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?))
}

impl Loss for CrossEntropy {
    fn count(&self, targets: &Tensor) -> Result<f64> {
        Ok(match self.ignore_index {
            None => targets.elem_count() as f64,
            Some(ignored) => self.classes(targets)?.iter().filter(|&&t| t != ignored).count() as f64,
        })
    }

    fn score(&self, output: &Tensor, targets: &Targets) -> Result<PendingScore> {
        let classes = self.classes(targets.given())?;
        let count = self.shape(output, &classes)?;
        if targets.is_asynchronous() {
            let counting = self.count(targets.given())?;
            return Ok(PendingScore::on_device(
                candle_operations::Rows::of(self, output, targets)?.score(self)?,
                counting,
            ));
        }
        let score = with_values(output, |logits| {
            let pieces = logits.chunks((rows(count) * count).max(1)).zip(classes.chunks(rows(count)));
            together(each(logits.len(), pieces, |piece| self.piece(piece, count, None, 0.0)))
        })?;
        Ok(score.into())
    }

    fn differentiate(&self, output: &Tensor, targets: &Targets, total: f64) -> Result<(PendingScore, Tensor)> {
        let classes = self.classes(targets.given())?;
        let count = self.shape(output, &classes)?;
        let scale = if total > 0.0 { 1.0 / total } else { 0.0 };
        if targets.is_asynchronous() {
            let rows = candle_operations::Rows::of(self, output, targets)?;
            let gradient = rows.gradient(self, scale)?.reshape(output.shape())?.to_dtype(output.dtype())?;
            return Ok((PendingScore::on_device(rows.score(self)?, self.count(targets.given())?), gradient));
        }
        let mut gradient = vec![0.0_f32; output.elem_count()];
        let score = with_values(output, |logits| {
            let length = (rows(count) * count).max(1);
            let pieces = logits.chunks(length).zip(classes.chunks(rows(count))).zip(gradient.chunks_mut(length));
            let scale = scale as f32;
            together(each(logits.len(), pieces, |(piece, gradient)| self.piece(piece, count, Some(gradient), scale)))
        })?;
        let gradient = Tensor::from_vec(gradient, output.shape(), output.device())?.to_dtype(output.dtype())?;
        Ok((score.into(), gradient))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensors(logits: &[f32], count: usize, classes: &[u32]) -> (Tensor, Tensor) {
        let output = Tensor::from_slice(logits, (classes.len(), count), &Device::Cpu).unwrap();
        (output, Tensor::from_slice(classes, classes.len(), &Device::Cpu).unwrap())
    }

    #[test]
    fn by_hand() {
        // Logits ln 1, ln 2, ln 5 have softmax 1/8, 2/8, 5/8; equal logits have 1/3 each.
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 5.0_f32.ln(), 7.0, 7.0, 7.0];
        let (output, targets) = tensors(&logits, 3, &[1, 2]);
        let (scored, gradient) = CrossEntropy::default().differentiate(&output, &(&targets).into(), 4.0).unwrap();
        let score = scored.read().unwrap();
        assert!((score.loss - (4.0_f64.ln() + 3.0_f64.ln())).abs() < 1e-6);
        assert_eq!((score.count, score.correct), (2.0, Some(0.0)));
        // Divided by a total of 4, not by the two targets here.
        let expected = [0.125, -0.75, 0.625, 1.0 / 3.0, 1.0 / 3.0, -2.0 / 3.0].map(|g: f32| g / 4.0);
        let found = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7), "{found:?}");
        assert_eq!(CrossEntropy::default().score(&output, &(&targets).into()).unwrap().read().unwrap(), score);
    }

    #[test]
    fn label_smoothing_is_a_mixture_of_targets() {
        let (output, targets) = tensors(&[0.3, -1.2, 2.0, 0.1], 4, &[2]);
        let plain = |class: u32| {
            let (_, targets) = tensors(&[0.0; 4], 4, &[class]);
            CrossEntropy::default().score(&output, &(&targets).into()).unwrap().read().unwrap().loss
        };
        let smooth = CrossEntropy { label_smoothing: 0.2, ..Default::default() };
        let expected = 0.8 * plain(2) + 0.2 * (0..4).map(plain).sum::<f64>() / 4.0;
        assert!((smooth.score(&output, &(&targets).into()).unwrap().read().unwrap().loss - expected).abs() < 1e-6);
    }

    #[test]
    fn gradients_are_finite_differences() {
        let logits: Vec<f32> = (0..24).map(|i| ((i * 37) % 17) as f32 / 5.0 - 1.0).collect();
        let targets = Tensor::new(&[[0_u32, 3], [2, 1], [3, 9]], &Device::Cpu).unwrap();
        let loss = CrossEntropy { label_smoothing: 0.1, ignore_index: Some(9) };
        let at = |logits: &[f32]| Tensor::from_slice(logits, (3, 2, 4), &Device::Cpu).unwrap();
        let total = loss.count(&targets).unwrap();
        assert_eq!(total, 5.0);
        let (_, gradient) = loss.differentiate(&at(&logits), &(&targets).into(), total).unwrap();
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..logits.len() {
            let value = |step: f32| {
                let mut moved = logits.clone();
                moved[i] += step;
                loss.score(&at(&moved), &(&targets).into()).unwrap().read().unwrap().loss / total
            };
            let slope = (value(1e-2) - value(-1e-2)) / 2e-2;
            assert!((slope - f64::from(gradient[i])).abs() < 1e-4, "{i}: {slope} {}", gradient[i]);
        }
        assert!(gradient[20..].iter().all(|&g| g == 0.0), "an ignored position has no gradient");
    }

    #[test]
    fn threads_change_no_bit_and_rows_beyond_a_piece_count() {
        let (rows, count) = (1_001, 130);
        let logits: Vec<f32> = (0..rows * count).map(|i| ((i * 7919) % 1013) as f32 / 90.0 - 5.0).collect();
        let classes: Vec<u32> = (0..rows).map(|i| ((i * 31) % (count + 1)) as u32).collect();
        let loss = CrossEntropy { label_smoothing: 0.1, ignore_index: Some(count as u32) };
        let run = |rows: std::ops::Range<usize>| {
            let (output, targets) =
                tensors(&logits[rows.start * count..rows.end * count], count, &classes[rows.clone()]);
            let (scored, gradient) = loss.differentiate(&output, &(&targets).into(), 900.0).unwrap();
            let score = scored.read().unwrap();
            assert_eq!(loss.score(&output, &(&targets).into()).unwrap().read().unwrap(), score);
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (score.loss.to_bits(), score, gradient.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let alone = run(0..rows);
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| run(0..rows)) == alone, "{threads} threads");
        }
        // Row by row: no row is left out, and none depends on another.
        let each: Vec<_> = (0..rows).map(|row| run(row..row + 1)).collect();
        assert_eq!(each.iter().flat_map(|(.., gradient)| gradient.clone()).collect::<Vec<_>>(), alone.2);
        let sum = each.iter().fold(Score { correct: Some(0.0), ..Score::default() }, |sum, (_, score, _)| sum + *score);
        assert_eq!((sum.count, sum.correct), (alone.1.count, alone.1.correct));
        assert!((sum.loss - alone.1.loss).abs() < 1e-9 * sum.loss && sum.count < rows as f64);
    }

    #[test]
    fn refuses_targets_that_are_no_class() {
        let (output, targets) = tensors(&[0.0; 6], 3, &[1, 3]);
        let error = CrossEntropy::default().score(&output, &(&targets).into()).unwrap_err().to_string();
        assert!(error.contains("target 3 at position 1") && error.contains("0 to 2"), "{error}");
        let (_, few) = tensors(&[0.0; 3], 3, &[1]);
        assert!(CrossEntropy::default().score(&output, &(&few).into()).is_err());
    }

    #[test]
    fn a_smoothing_out_of_range_is_refused() {
        let (output, targets) = tensors(&[0.0; 6], 3, &[1, 2]);
        for label_smoothing in [-0.1, 1.0, f64::NAN] {
            let loss = CrossEntropy { label_smoothing, ..CrossEntropy::default() };
            let error = loss.score(&output, &(&targets).into()).unwrap_err().to_string();
            assert!(error.starts_with("label_smoothing: "), "{error}");
        }
    }

    #[test]
    fn targets_that_are_no_whole_numbers_in_range_are_refused() {
        let output = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let refused =
            |target: Tensor| CrossEntropy::default().score(&output, &(&target).into()).unwrap_err().to_string();
        for target in [0.75_f32, -0.75, f32::NAN, f32::INFINITY, -1.0] {
            let error = refused(Tensor::new(&[target], &Device::Cpu).unwrap());
            assert!(error.contains(&format!("target {target} at position 0")), "{error}");
        }
        for target in [1_i64 << 32, -1] {
            let error = refused(Tensor::new(&[target], &Device::Cpu).unwrap());
            assert!(error.contains(&format!("target {target} at position 0")), "{error}");
        }
        for target in [
            Tensor::new(&[2.0_f32], &Device::Cpu),
            Tensor::new(&[2_i64], &Device::Cpu),
            Tensor::new(&[2_u8], &Device::Cpu),
        ] {
            assert!(CrossEntropy::default().score(&output, &(&target.unwrap()).into()).is_ok());
        }
    }

    #[test]
    fn a_nan_logit_makes_the_loss_nan() {
        let (output, targets) = tensors(&[0.0, f32::NAN, 1.0], 3, &[0]);
        assert!(CrossEntropy::default().score(&output, &(&targets).into()).unwrap().read().unwrap().loss.is_nan());
    }
}
