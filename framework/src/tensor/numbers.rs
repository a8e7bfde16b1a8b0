//! A few numbers that a device computed, which the host may not have read yet.

use candle_core::Tensor;

use crate::Result;

/// Numbers that the host has, or that a device holds and the host has yet to read.
///
/// Every computation of numbers for the host returns one of these, so that no caller needs to know whether the device is asynchronous.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Numbers {
    /// Known to the host.
    Host(Vec<f64>),
    /// Not yet read by the host: an `f64` tensor `(n)` on the device.
    Device(Tensor),
}

impl Numbers {
    /// Returns how many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(tensor) => tensor.elem_count(),
        }
    }

    /// Concatenates `parts` in order. If some are not yet read, those that are read come first; on one device all parts are of one kind.
    ///
    /// # Errors
    /// If the tensors lie on different devices.
    pub(crate) fn concatenate<'a>(parts: impl Iterator<Item = &'a Self>) -> Result<Self> {
        let (mut read, mut unread) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                Self::Host(values) => read.extend_from_slice(values),
                Self::Device(tensor) => unread.push(tensor.clone()),
            }
        }
        if unread.is_empty() {
            return Ok(Self::Host(read));
        }
        if !read.is_empty() {
            unread.insert(0, Tensor::new(read, unread[0].device())?);
        }
        Ok(Self::Device(Tensor::cat(&unread, 0)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn parts_keep_their_order() {
        let host = |values: &[f64]| Numbers::Host(values.to_vec());
        let device = |values: &[f64]| Numbers::Device(Tensor::new(values, &Device::Cpu).unwrap());
        let whole = |parts: &[Numbers]| match Numbers::concatenate(parts.iter()).unwrap() {
            Numbers::Host(values) => (true, values),
            Numbers::Device(tensor) => (false, tensor.to_vec1().unwrap()),
        };
        assert_eq!(whole(&[]), (true, vec![]));
        assert_eq!(whole(&[host(&[1.0, 2.0]), host(&[3.0])]), (true, vec![1.0, 2.0, 3.0]));
        assert_eq!(whole(&[device(&[1.0, 2.0]), device(&[3.0])]), (false, vec![1.0, 2.0, 3.0]));
        assert_eq!(whole(&[host(&[1.0]), device(&[2.0])]), (false, vec![1.0, 2.0]));
    }
}
