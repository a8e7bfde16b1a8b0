//! The agreement of two gradients: the cosine of the angle between them.

use candle_core::{CpuStorage, Storage, Tensor};

use crate::{
    Result,
    tensor::{
        Numbers,
        elementwise::{CHUNK, each},
        sums,
    },
};

/// The products of two vectors that come in pieces: `a·b`, `a·a` and `b·b`, in `f64` and summed in an order that depends on shapes only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Products {
    ab: f64,
    aa: f64,
    bb: f64,
}

impl Products {
    /// Adds the products of one piece of each vector; the two have the same shape.
    pub(crate) fn add(&mut self, a: &Tensor, b: &Tensor) -> Result<()> {
        let (a, b) = (a.contiguous()?, b.contiguous()?);
        let parts = {
            let ((a, a_layout), (b, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
            match (&*a, &*b, a_layout.contiguous_offsets(), b_layout.contiguous_offsets()) {
                (
                    Storage::Cpu(CpuStorage::F32(a)),
                    Storage::Cpu(CpuStorage::F32(b)),
                    Some((a_from, a_to)),
                    Some((b_from, b_to)),
                ) => {
                    let (a, b) = (&a[a_from..a_to], &b[b_from..b_to]);
                    Some(each(a.len(), a.chunks(CHUNK).zip(b.chunks(CHUNK)), |(a, b)| chunk(a, b)))
                }
                _ => None,
            }
        };
        match parts {
            Some(parts) => parts.into_iter().for_each(|part| self.sum(part)),
            None => {
                self.sum(Self::from_slice(&Self::on_device(&a, &b)?.to_vec1()?));
            }
        }
        Ok(())
    }

    /// Returns what [`Self::add`] adds, as an `f64` tensor `(3)` on the device. The host does not wait.
    pub(crate) fn on_device(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(Tensor::cat(&[sums::product(a, b)?, sums::squares(a)?, sums::squares(b)?], 0)?)
    }

    /// Returns the products whose values [`Self::on_device`] computed and the host has read.
    pub(crate) fn from_slice(values: &[f64]) -> Self {
        match values {
            &[ab, aa, bb] => Self { ab, aa, bb },
            _ => Self::default(),
        }
    }

    fn sum(&mut self, part: Self) {
        self.ab += part.ab;
        self.aa += part.aa;
        self.bb += part.bb;
    }

    /// Returns `a·b / √(a·a b·b)`, from -1 to 1; none if a vector is zero.
    pub(crate) fn cosine(&self) -> Option<f64> {
        let norms = (self.aa * self.bb).sqrt();
        (norms > 0.0).then(|| (self.ab / norms).clamp(-1.0, 1.0))
    }
}

impl From<Products> for Numbers {
    fn from(Products { ab, aa, bb }: Products) -> Self {
        Self::Host(vec![ab, aa, bb])
    }
}

fn chunk(a: &[f32], b: &[f32]) -> Products {
    const LANES: usize = 8;
    let ((a_rows, a_rest), (b_rows, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [Products::default(); LANES];
    let of = |a: f32, b: f32| {
        let (a, b) = (f64::from(a), f64::from(b));
        Products { ab: a * b, aa: a * a, bb: b * b }
    };
    for (a, b) in a_rows.iter().zip(b_rows) {
        for (lane, (&a, &b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            lane.sum(of(a, b));
        }
    }
    let mut sum = Products::default();
    let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| of(a, b));
    lanes.into_iter().chain(rest).for_each(|part| sum.sum(part));
    sum
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn vector(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn cosine(pieces: &[(Tensor, Tensor)]) -> Option<f64> {
        let mut products = Products::default();
        pieces.iter().for_each(|(a, b)| products.add(a, b).unwrap());
        products.cosine()
    }

    #[test]
    fn cosines_by_hand() {
        let of = |a: &[f32], b: &[f32]| cosine(&[(vector(a), vector(b))]);
        assert_eq!(of(&[1.0, 0.0], &[3.0, 4.0]), Some(0.6));
        assert_eq!(of(&[1.0, 2.0], &[-2.0, 1.0]), Some(0.0));
        assert_eq!(of(&[0.1, -0.7, 1e30], &[0.1, -0.7, 1e30]), Some(1.0));
        assert_eq!(of(&[0.1, -0.7, 1e-30], &[-0.2, 1.4, -2e-30]), Some(-1.0));
        assert_eq!(of(&[0.0, 0.0], &[1.0, 2.0]), None);
        assert_eq!(cosine(&[]), None);
        // Pieces are parts of one vector: (1, 0) and (3, 4).
        assert_eq!(cosine(&[(vector(&[1.0]), vector(&[3.0])), (vector(&[0.0]), vector(&[4.0]))]), Some(0.6));
    }

    #[test]
    fn those_that_come_later_are_the_same() {
        let (a, b) = (vector(&[1.0, -2.0, 3.0]), vector(&[4.0, 5.0, -6.0]));
        let later = Products::on_device(&a, &b).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(later, [-24.0, 14.0, 77.0]);
        let mut products = Products::default();
        products.add(&a, &b).unwrap();
        assert_eq!(Products::from_slice(&later), products);
    }

    #[test]
    fn neither_threads_nor_layouts_nor_dtypes_matter() {
        let count = 3 * CHUNK + 13;
        let numbers = |step: usize| (0..count).map(|i| (i * step % 1013) as f32 * 1e-3 - 0.4).collect::<Vec<f32>>();
        let (a, b) = (vector(&numbers(7)), vector(&numbers(11)));
        let found = cosine(&[(a.clone(), b.clone())]).unwrap();
        let exact = {
            let sum = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
            let (a, b) = (numbers(7), numbers(11));
            sum(&a, &b) / (sum(&a, &a) * sum(&b, &b)).sqrt()
        };
        assert!((found - exact).abs() < 1e-12, "{found} {exact}");
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(|| cosine(&[(a.clone(), b.clone())])).unwrap();
            assert_eq!(again.to_bits(), found.to_bits());
        }
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        assert!((cosine(&[(wide(&a), wide(&b))]).unwrap() - found).abs() < 1e-12);
        let square = |t: &Tensor| t.narrow(0, 0, 36).unwrap().reshape((6, 6)).unwrap();
        let (a, b) = (square(&a), square(&b));
        let transposed = |t: &Tensor| t.t().unwrap().contiguous().unwrap().t().unwrap();
        assert_eq!(cosine(&[(a.clone(), transposed(&b))]), cosine(&[(a, b)]));
    }
}
