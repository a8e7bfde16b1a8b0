//! The elements of tensors as MPI sends and receives them: bytes.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};
use interlock::{Error, Result};
use serde::{Deserialize, Serialize};

/// The dtype and the shape of a tensor that is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Form {
    /// As candle calls it.
    dtype: String,
    dims: Vec<usize>,
}

impl Form {
    pub(super) fn of(tensor: &Tensor) -> Self {
        Self { dtype: tensor.dtype().as_str().to_owned(), dims: tensor.dims().to_vec() }
    }
}

fn refuse<T>(dtype: impl std::fmt::Debug) -> Result<T> {
    let remedy = "use floating-point numbers of 16, 32 or 64 bits, or integers";
    Err(Error::invalid("message to another rank", format!("a tensor of dtype {dtype:?}"), remedy))
}

macro_rules! elements {
    ($($name:ident $type:ty),*) => {
        /// Returns where the elements of a contiguous tensor on the host lie, and their number of bytes. They stay there as long as a tensor that shares
        /// them.
        pub(super) fn place_of(tensor: &Tensor) -> Result<(*const u8, usize)> {
            let (storage, layout) = tensor.storage_and_layout();
            let Some((from, to)) = layout.contiguous_offsets() else {
                return Err(Error::Internal("a tensor that is sent is not contiguous".to_owned()));
            };
            match &*storage {
                $(Storage::Cpu(CpuStorage::$name(values)) => {
                    let values: &[$type] = &values[from..to];
                    Ok((values.as_ptr().cast(), size_of_val(values)))
                })*
                Storage::Cpu(_) => refuse(tensor.dtype()),
                _ => Err(Error::Internal("a tensor that is sent is not on the host".to_owned())),
            }
        }

        /// Elements that are being received.
        pub(super) enum Receiving {
            $($name(Vec<$type>, Vec<usize>),)*
        }

        impl Receiving {
            /// Returns memory for the elements of a tensor.
            ///
            /// # Errors
            /// If its dtype is unknown, or it has more elements than can be counted.
            pub(super) fn of(form: Form) -> Result<Self> {
                let elements = form.dims.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
                let elements = elements.filter(|&elements| elements <= isize::MAX as usize / 16);
                let Some(elements) = elements else {
                    return Err(Error::Internal(format!("a tensor of shape {:?} arrives", form.dims)));
                };
                match form.dtype.parse::<DType>() {
                    $(Ok(DType::$name) => Ok(Self::$name(vec![<$type>::default(); elements], form.dims)),)*
                    _ => refuse(form.dtype),
                }
            }

            /// Returns where the elements lie, and their number of bytes.
            pub(super) fn place(&mut self) -> (*mut u8, usize) {
                match self {
                    $(Self::$name(values, _) => (values.as_mut_ptr().cast(), size_of_val(&values[..])),)*
                }
            }

            /// Returns the tensor, without a copy.
            pub(super) fn into_tensor(self) -> Result<Tensor> {
                match self {
                    $(Self::$name(values, dims) => Ok(Tensor::from_vec(values, dims, &Device::Cpu)?),)*
                }
            }
        }
    };
}

elements!(U8 u8, U32 u32, I16 i16, I32 i32, I64 i64, BF16 bf16, F16 f16, F32 f32, F64 f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_arrive_as_they_were() {
        for dtype in [DType::U8, DType::U32, DType::I64, DType::BF16, DType::F16, DType::F32, DType::F64] {
            let whole = Tensor::arange(0_f32, 24.0, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let tensor = whole.narrow(0, 6, 12).unwrap().reshape((3, 4)).unwrap();
            let mut incoming = Receiving::of(Form::of(&tensor)).unwrap();
            let ((from, bytes), (to, place)) = (place_of(&tensor).unwrap(), incoming.place());
            assert_eq!((bytes, place), (12 * dtype.size_in_bytes(), bytes));
            // SAFETY: both are places of `bytes` bytes, and lie apart.
            unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
            let arrived = incoming.into_tensor().unwrap();
            let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
            assert_eq!((values(&arrived), arrived.dtype()), (values(&tensor), dtype));
        }
        let form = |dtype: &str, dims: Vec<usize>| Receiving::of(Form { dtype: dtype.to_owned(), dims }).is_err();
        assert!(form("f7", vec![1]) && form("f32", vec![usize::MAX, 2]) && form("f32", vec![1 << 62]));
        let columns = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap().t().unwrap();
        assert!(place_of(&columns).is_err());
    }
}
