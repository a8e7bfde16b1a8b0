//! The gradients of convolutions by cuDNN.

use crate::common::{flat, seeded, values};
use candle_core::cuda::cudarc::cudnn::{ConvBackwardData, ConvBackwardFilter, Cudnn, sys};
use candle_core::cuda::cudarc::driver::CudaContext;
use candle_core::{DType, Device, Tensor, Var};

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_near(what: &str, there: &[f32], here: &Tensor) {
    let here = flat(here);
    assert_eq!(there.len(), here.len(), "{what}");
    for (i, (a, b)) in there.iter().zip(here).enumerate() {
        assert!((f64::from(*a) - b).abs() < 1e-4, "{what}: element {i} is {a} on the device and {b} on the CPU");
    }
}

#[test]
fn gradients_of_convolutions_equal_those_of_the_cpu() {
    for (padding, stride, groups) in [(0, 1, 1), (1, 1, 2), (1, 2, 1), (1, 4, 2)] {
        let x = Var::from_tensor(&values(&[2, 4, 9, 9], DType::F32, &Device::Cpu).unwrap()).unwrap();
        let w = Var::from_tensor(&seeded(1, &[6, 4 / groups, 3, 3], DType::F32, &Device::Cpu).unwrap()).unwrap();
        let y = x.conv2d(&w, padding, stride, 1, groups).unwrap();
        let dy = seeded(2, y.dims(), DType::F32, &Device::Cpu).unwrap();
        let expected = (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();

        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let dnn = Cudnn::new(stream.clone()).unwrap();
        let pair = |value: usize| [value as i32; 2];
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let mut conv = dnn.create_conv2d::<f32>(pair(padding), pair(stride), [1, 1], mode).unwrap();
        conv.set_group_count(groups as i32).unwrap();
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        let dims = |tensor: &Tensor| -> [i32; 4] { std::array::from_fn(|i| tensor.dims()[i] as i32) };
        let x_shape = dnn.create_4d_tensor::<f32>(format, dims(&x)).unwrap();
        let y_shape = dnn.create_4d_tensor::<f32>(format, dims(&dy)).unwrap();
        let w_shape = dnn.create_4d_filter::<f32>(format, dims(&w)).unwrap();
        let [x_there, w_there, dy_there] = [&x, &w, &dy].map(|tensor| stream.clone_htod(&floats(tensor)).unwrap());

        let data = ConvBackwardData { conv: &conv, dx: &x_shape, w: &w_shape, dy: &y_shape };
        let mut dx = stream.alloc_zeros::<f32>(x.elem_count()).unwrap();
        let filter = ConvBackwardFilter { conv: &conv, x: &x_shape, dw: &w_shape, dy: &y_shape };
        let mut dw = stream.clone_htod(&vec![1.0f32; w.elem_count()]).unwrap();
        // SAFETY: the descriptors describe this memory.
        unsafe {
            let algorithm = sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
            let bytes = data.get_workspace_size(algorithm).unwrap();
            let mut workspace = stream.alloc_zeros::<u8>(bytes).unwrap();
            data.launch(algorithm, Some(&mut workspace), (1.0, 0.0), &mut dx, &w_there, &dy_there).unwrap();
            let algorithm = filter.pick_algorithm().unwrap();
            let bytes = filter.get_workspace_size(algorithm).unwrap();
            let mut workspace = stream.alloc_zeros::<u8>(bytes).unwrap();
            // Adds the gradient to the ones in `dw`.
            filter.launch(algorithm, Some(&mut workspace), (1.0, 1.0), &x_there, &mut dw, &dy_there).unwrap();
        }
        assert_near("dx", &stream.clone_dtoh(&dx).unwrap(), expected.get(&x).unwrap());
        let dw: Vec<f32> = stream.clone_dtoh(&dw).unwrap().iter().map(|value| value - 1.0).collect();
        assert_near("dw", &dw, expected.get(&w).unwrap());
    }
}
