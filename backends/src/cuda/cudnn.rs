//! Convolutions by cuDNN, and their gradients.
//!
//! Gradients use those of cuDNN's algorithms that give the same bits every time. In `f32`, products are computed in full `f32` and not in the
//! shorter format of tensor cores (TF32); `bf16` uses tensor cores.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp2, DType, Layout, Shape, Tensor, WithDType,
    cuda::{
        CudaDType, CudaStorageSlice, DeviceId,
        cudarc::{
            cudnn::{
                ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, CudnnDataType,
                FilterDescriptor, TensorDescriptor, sys,
            },
            driver::{CudaSlice, CudaView, DeviceRepr},
        },
    },
};
use interlock::Result;

/// A convolution of `x (B, I, H, W)` with `w (O, I, k, l)`, which gives `y (B, O, H', W')`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Convolution {
    wanted: Wanted,
    x: [usize; 4],
    w: [usize; 4],
    y: [usize; 4],
    padding: usize,
    stride: usize,
}

/// The tensor, of the three, that is computed from the two others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    /// `y`, from `x` and `w`.
    Output,
    /// `∂x`, from the output gradient (of `y`) and `w`.
    Input,
    /// `∂w`, from `x` and the output gradient (of `y`).
    Weight,
}

fn dims(tensor: &Tensor) -> Result<[usize; 4]> {
    let (a, b, c, d) = tensor.dims4()?;
    Ok([a, b, c, d])
}

/// Returns `y`, for a window `w` that moves by `stride` over `x` with `padding` zeros on each side.
pub(crate) fn convolve(x: &Tensor, w: &Tensor, padding: usize, stride: usize) -> Result<Tensor> {
    let (input, window) = (dims(x)?, dims(w)?);
    let positions = |axis: usize| (input[axis] + 2 * padding - window[axis]) / stride + 1;
    let y = [input[0], window[0], positions(2), positions(3)];
    Convolution { wanted: Wanted::Output, x: input, w: window, y, padding, stride }.apply(x, w)
}

/// Returns `∂x`, shaped as `x`, for an output gradient `c` of `y`.
pub(crate) fn input_gradient(c: &Tensor, w: &Tensor, x: [usize; 4], padding: usize, stride: usize) -> Result<Tensor> {
    Convolution { wanted: Wanted::Input, x, w: dims(w)?, y: dims(c)?, padding, stride }.apply(c, w)
}

/// Returns `∂w`, shaped as `w`, for an output gradient `c` of `y`.
pub(crate) fn weight_gradient(x: &Tensor, c: &Tensor, w: [usize; 4], padding: usize, stride: usize) -> Result<Tensor> {
    Convolution { wanted: Wanted::Weight, x: dims(x)?, w, y: dims(c)?, padding, stride }.apply(x, c)
}

/// One thread's cuDNN handle for one device. Handles must stay on their thread.
struct ThreadHandle {
    cudnn: Arc<Cudnn>,
    /// The forward algorithms that cuDNN's heuristics chose.
    forward_algorithms: HashMap<(Convolution, DType), sys::cudnnConvolutionFwdAlgo_t>,
}

thread_local! {
    static HANDLES: RefCell<HashMap<DeviceId, ThreadHandle>> = RefCell::default();
}

fn to_i32(dims: [usize; 4]) -> candle_core::Result<[i32; 4]> {
    let mut numbers = [0; 4];
    for (number, dim) in numbers.iter_mut().zip(dims) {
        *number = i32::try_from(dim).map_err(candle_core::Error::wrap)?;
    }
    Ok(numbers)
}

impl Convolution {
    fn apply(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(a.contiguous()?.apply_op2_no_bwd(&b.contiguous()?, &self)?)
    }

    fn result_dims(&self) -> [usize; 4] {
        match self.wanted {
            Wanted::Output => self.y,
            Wanted::Input => self.x,
            Wanted::Weight => self.w,
        }
    }

    /// Computes the wanted tensor from the two others.
    fn run<T>(&self, a: &CudaView<'_, T>, b: &CudaView<'_, T>, device: &CudaDevice) -> candle_core::Result<CudaSlice<T>>
    where
        T: DeviceRepr + WithDType + CudnnDataType,
    {
        HANDLES.with_borrow_mut(|handles| {
            let handle = match handles.entry(device.id()) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let stream = device.cuda_stream();
                    // `Cudnn::new` expects that the context can be bound.
                    stream.context().bind_to_thread()?;
                    let cudnn = Cudnn::new(stream)?;
                    entry.insert(ThreadHandle { cudnn, forward_algorithms: HashMap::new() })
                }
            };
            self.run_with(handle, a, b, device)
        })
    }

    fn run_with<T>(
        &self,
        handle: &mut ThreadHandle,
        a: &CudaView<'_, T>,
        b: &CudaView<'_, T>,
        device: &CudaDevice,
    ) -> candle_core::Result<CudaSlice<T>>
    where
        T: DeviceRepr + WithDType + CudnnDataType,
    {
        let ThreadHandle { cudnn, forward_algorithms } = handle;
        let Descriptors { conv, x, w, y } = &self.describe::<T>(cudnn)?;
        let stream = device.cuda_stream();
        let workspace = |bytes: usize| match bytes {
            0 => Ok(None),
            // SAFETY: cuDNN writes these bytes before it reads them.
            bytes => unsafe { stream.alloc::<u8>(bytes) }.map(Some),
        };
        // SAFETY: cuDNN writes every element below.
        let mut result = unsafe { stream.alloc::<T>(self.result_dims().iter().product()) }?;
        let factors = (T::from_f64(1.0), T::from_f64(0.0));
        match self.wanted {
            Wanted::Output => {
                let op = ConvForward { conv, x, w, y };
                let key = (*self, T::DTYPE);
                let algorithm = match forward_algorithms.get(&key) {
                    Some(&algorithm) => algorithm,
                    None => *forward_algorithms.entry(key).or_insert(op.pick_algorithm()?),
                };
                let mut workspace = workspace(op.get_workspace_size(algorithm)?)?;
                // SAFETY: the descriptors have the shapes and the type of these contiguous tensors.
                unsafe { op.launch(algorithm, workspace.as_mut(), factors, a, b, &mut result) }?;
            }
            Wanted::Input => {
                let op = ConvBackwardData { conv, dx: x, w, dy: y };
                let algorithm = sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
                let mut workspace = workspace(op.get_workspace_size(algorithm)?)?;
                // SAFETY: as above.
                unsafe { op.launch(algorithm, workspace.as_mut(), factors, &mut result, b, a) }?;
            }
            Wanted::Weight => {
                let op = ConvBackwardFilter { conv, x, dw: w, dy: y };
                let algorithm = sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;
                let mut workspace = workspace(op.get_workspace_size(algorithm)?)?;
                // SAFETY: as above.
                unsafe { op.launch(algorithm, workspace.as_mut(), factors, a, &mut result, b) }?;
            }
        }
        Ok(result)
    }

    fn describe<T: CudnnDataType + WithDType>(&self, cudnn: &Arc<Cudnn>) -> candle_core::Result<Descriptors<T>> {
        let nchw = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        let [padding, stride, ..] = to_i32([self.padding, self.stride, 0, 0])?;
        let cross = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let mut conv = cudnn.create_conv2d::<f32>([padding; 2], [stride; 2], [1; 2], cross)?;
        conv.set_math_type(match T::DTYPE {
            DType::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            _ => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        })?;
        Ok(Descriptors {
            conv,
            x: cudnn.create_4d_tensor::<T>(nchw, to_i32(self.x)?)?,
            w: cudnn.create_4d_filter::<T>(nchw, to_i32(self.w)?)?,
            y: cudnn.create_4d_tensor::<T>(nchw, to_i32(self.y)?)?,
        })
    }
}

/// cuDNN's descriptions of a convolution and its tensors.
struct Descriptors<T: CudnnDataType> {
    conv: ConvDescriptor<f32>,
    x: TensorDescriptor<T>,
    w: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
}

/// Returns the elements of a contiguous tensor.
fn view<'a, T: CudaDType + DeviceRepr>(
    slice: &'a CudaSlice<T>,
    layout: &Layout,
) -> candle_core::Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(slice.slice(start..end)),
        None => candle_core::bail!("cuDNN convolutions need contiguous tensors"),
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "cudnn-convolution"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        candle_core::bail!("cuDNN does not compute on the CPU")
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        a_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let device = a.device.clone();
        let storage = match (&a.slice, &b.slice) {
            (CudaStorageSlice::F32(a), CudaStorageSlice::F32(b)) => {
                CudaStorage::wrap_cuda_slice(self.run(&view(a, a_layout)?, &view(b, b_layout)?, &device)?, device)
            }
            (CudaStorageSlice::BF16(a), CudaStorageSlice::BF16(b)) => {
                CudaStorage::wrap_cuda_slice(self.run(&view(a, a_layout)?, &view(b, b_layout)?, &device)?, device)
            }
            _ => candle_core::bail!("cuDNN convolutions need two tensors of f32 or two of bf16"),
        };
        Ok((storage, Shape::from_dims(&self.result_dims())))
    }
}
