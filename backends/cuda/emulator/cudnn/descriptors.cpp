// cuDNN: handles and descriptors.
#include "descriptors.h"

namespace emulator {

size_t size_of(int type) { return type == DOUBLE ? 8 : type == FLOAT ? 4 : 2; }

size_t extent(const Tensor &tensor) {
  size_t last = 0;
  for (size_t i = 0; i < tensor.dims.size(); ++i) {
    last += static_cast<size_t>(tensor.dims[i] - 1) * static_cast<size_t>(tensor.strides[i]);
  }
  return (last + 1) * size_of(tensor.type);
}

API size_t cudnnGetVersion() { return 92100; }
API size_t cudnnGetCudartVersion() { return 13000; }
API int cudnnAdvVersionCheck() { return 0; }
API int cudnnCnnVersionCheck() { return 0; }
API int cudnnOpsVersionCheck() { return 0; }

API const char *cudnnGetErrorString(int status) {
  switch (status) {
    case 0: return "CUDNN_STATUS_SUCCESS";
    case BAD_PARAM: return "CUDNN_STATUS_BAD_PARAM";
    case NULL_POINTER: return "CUDNN_STATUS_BAD_PARAM_NULL_POINTER";
    case WORKSPACE_TOO_SMALL: return "CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT";
    case SHAPE_MISMATCH: return "CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH";
    case UNSUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    case EXECUTION_FAILED: return "CUDNN_STATUS_EXECUTION_FAILED";
    default: return "CUDNN_UNKNOWN_STATUS";
  }
}

API int cudnnCreate(Dnn **dnn) {
  if (current() == nullptr) return 1001;
  *dnn = new Dnn{nullptr};
  return 0;
}

API int cudnnDestroy(Dnn *dnn) {
  delete dnn;
  return 0;
}

API int cudnnSetStream(Dnn *dnn, void *stream) {
  dnn->stream = stream;
  return 0;
}

API int cudnnGetStream(Dnn *dnn, void **stream) {
  *stream = dnn->stream;
  return 0;
}

#define DESCRIPTOR(NAME, T)                              \
  API int cudnnCreate##NAME##Descriptor(T **made) {      \
    *made = new T{};                                     \
    return 0;                                            \
  }                                                      \
  API int cudnnDestroy##NAME##Descriptor(T *descriptor) { \
    delete descriptor;                                   \
    return 0;                                            \
  }

DESCRIPTOR(Tensor, Tensor)
DESCRIPTOR(Filter, Tensor)
DESCRIPTOR(Convolution, Convolution)

static int set(Tensor *tensor, int type, std::vector<int> dims, std::vector<int> strides) {
  if (type != FLOAT && type != DOUBLE && type != HALF && type != BFLOAT16) return UNSUPPORTED;
  if (dims.size() < 3 || dims.size() > 5) return UNSUPPORTED;
  for (int dim : dims) {
    if (dim <= 0) return BAD_PARAM;
  }
  for (int stride : strides) {
    if (stride < 0) return BAD_PARAM;
  }
  *tensor = Tensor{type, std::move(dims), std::move(strides)};
  return 0;
}

// The strides of a packed tensor: channels first (format 0) or last (format 1).
static std::vector<int> packed(int format, const std::vector<int> &dims) {
  std::vector<int> strides(dims.size());
  int next = 1;
  if (format == 1) {
    strides[1] = next;
    next = dims[1];
  }
  for (size_t i = dims.size(); i-- > 0;) {
    if (format == 1 && i == 1) continue;
    strides[i] = next;
    next *= dims[i];
  }
  return strides;
}

static int set_packed(Tensor *tensor, int type, int format, std::vector<int> dims) {
  if (format != 0 && format != 1) return UNSUPPORTED;
  std::vector<int> strides = packed(format, dims);
  return set(tensor, type, std::move(dims), std::move(strides));
}

API int cudnnSetTensor4dDescriptor(Tensor *tensor, int format, int type, int n, int c, int h, int w) {
  return set_packed(tensor, type, format, {n, c, h, w});
}

API int cudnnSetTensor4dDescriptorEx(Tensor *tensor, int type, int n, int c, int h, int w, int n_stride, int c_stride,
                                     int h_stride, int w_stride) {
  return set(tensor, type, {n, c, h, w}, {n_stride, c_stride, h_stride, w_stride});
}

API int cudnnSetTensorNdDescriptor(Tensor *tensor, int type, int number, const int *dims, const int *strides) {
  return set(tensor, type, {dims, dims + number}, {strides, strides + number});
}

API int cudnnSetTensorNdDescriptorEx(Tensor *tensor, int format, int type, int number, const int *dims) {
  return set_packed(tensor, type, format, {dims, dims + number});
}

API int cudnnSetFilter4dDescriptor(Tensor *filter, int type, int format, int k, int c, int h, int w) {
  return set_packed(filter, type, format, {k, c, h, w});
}

API int cudnnSetFilterNdDescriptor(Tensor *filter, int type, int format, int number, const int *dims) {
  return set_packed(filter, type, format, {dims, dims + number});
}

API int cudnnSetConvolutionNdDescriptor(Convolution *convolution, int number, const int *padding, const int *stride,
                                        const int *dilation, int mode, int type) {
  if (number < 1 || number > 3) return UNSUPPORTED;
  for (int i = 0; i < number; ++i) {
    if (padding[i] < 0 || stride[i] <= 0 || dilation[i] <= 0) return BAD_PARAM;
  }
  *convolution = Convolution{{padding, padding + number}, {stride, stride + number}, {dilation, dilation + number},
                             mode == 0, type};
  return 0;
}

API int cudnnSetConvolution2dDescriptor(Convolution *convolution, int pad_h, int pad_w, int stride_h, int stride_w,
                                        int dilation_h, int dilation_w, int mode, int type) {
  int padding[] = {pad_h, pad_w}, stride[] = {stride_h, stride_w}, dilation[] = {dilation_h, dilation_w};
  return cudnnSetConvolutionNdDescriptor(convolution, 2, padding, stride, dilation, mode, type);
}

API int cudnnSetConvolutionMathType(Convolution *, int) { return 0; }

API int cudnnSetConvolutionGroupCount(Convolution *convolution, int groups) {
  if (groups < 1) return BAD_PARAM;
  convolution->groups = groups;
  return 0;
}

}  // namespace emulator
