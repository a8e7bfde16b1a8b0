// cuDNN: convolutions and their two gradients, by plain loops over packed copies.
//
// An algorithm differs from another by its number, its workspace and whether it is deterministic; all compute the same.
#include <algorithm>
#include <cstring>

#include "../device/narrow.h"
#include "descriptors.h"

namespace emulator {

enum Kind { FORWARD, BACKWARD_DATA, BACKWARD_FILTER };
static const char *const NAMES[] = {"convolution", "convolution backward data", "convolution backward filter"};

constexpr size_t WORKSPACE = 1024;  // of every algorithm but 0, which has none

// cuDNN's description of an algorithm.
struct Performance {
  int algorithm, status;
  float time;
  size_t memory;
  int deterministic, math, reserved[3];
};

// Sizes in three dimensions of space; unused dimensions have size 1.
struct Sizes {
  int images, groups, in_channels, out_channels;  // channels of one group
  int in[3], out[3], kernel[3], padding[3], stride[3], dilation[3];
  bool flipped;
};

static int sizes(const Tensor &x, const Tensor &w, const Convolution &c, const Tensor &y, Sizes *sizes) {
  size_t space = x.dims.size() - 2;
  if (w.dims.size() != space + 2 || y.dims.size() != space + 2 || c.padding.size() != space) return SHAPE_MISMATCH;
  *sizes = Sizes{x.dims[0], c.groups,  w.dims[1],  w.dims[0] / c.groups, {1, 1, 1}, {1, 1, 1},
                 {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, {1, 1, 1},            c.flipped};
  if (x.dims[1] != w.dims[1] * c.groups || y.dims[1] != w.dims[0] || y.dims[0] != x.dims[0]) return SHAPE_MISMATCH;
  if (w.dims[0] % c.groups != 0) return SHAPE_MISMATCH;
  for (size_t i = 0; i < space; ++i) {
    sizes->in[i] = x.dims[i + 2];
    sizes->out[i] = y.dims[i + 2];
    sizes->kernel[i] = w.dims[i + 2];
    sizes->padding[i] = c.padding[i];
    sizes->stride[i] = c.stride[i];
    sizes->dilation[i] = c.dilation[i];
    int reach = c.dilation[i] * (w.dims[i + 2] - 1) + 1, slack = x.dims[i + 2] + 2 * c.padding[i] - reach;
    if (slack < 0 || slack / c.stride[i] + 1 != y.dims[i + 2]) return SHAPE_MISMATCH;
  }
  return 0;
}

static size_t volume(const int *size) { return static_cast<size_t>(size[0]) * size[1] * size[2]; }

// Calls `each` with the offsets in packed memory (see `Packing`) of an image's position of output, a position of input
// and a weight that belong together; the channels of a group follow each of them.
template <class Each>
static void every(const Sizes &s, Each each) {
  auto at = [&](int axis, int out, int kernel) {
    int tap = s.flipped ? s.kernel[axis] - 1 - kernel : kernel;
    int in = out * s.stride[axis] - s.padding[axis] + tap * s.dilation[axis];
    return in < s.in[axis] ? in : -1;
  };
  size_t position = 0;
  for (int o0 = 0; o0 < s.out[0]; ++o0)
    for (int o1 = 0; o1 < s.out[1]; ++o1)
      for (int o2 = 0; o2 < s.out[2]; ++o2, ++position) {
        size_t weight = 0;
        for (int k0 = 0; k0 < s.kernel[0]; ++k0)
          for (int k1 = 0; k1 < s.kernel[1]; ++k1)
            for (int k2 = 0; k2 < s.kernel[2]; ++k2, ++weight) {
              int i0 = at(0, o0, k0), i1 = at(1, o1, k1), i2 = at(2, o2, k2);
              if (i0 < 0 || i1 < 0 || i2 < 0) continue;
              size_t from = (static_cast<size_t>(i0) * s.in[1] + i1) * s.in[2] + i2;
              for (int n = 0; n < s.images; ++n)
                for (int g = 0; g < s.groups; ++g)
                  each(((n * volume(s.out) + position) * s.groups + g) * s.out_channels,
                       ((n * volume(s.in) + from) * s.groups + g) * s.in_channels,
                       (weight * s.groups + g) * s.in_channels * s.out_channels);
            }
      }
}

// How a tensor is packed for the loops: the step of each of its dimensions. Channels come last, so that a loop over
// them runs through memory; of a filter its input channels before its output channels.
using Packing = std::vector<size_t>;

static Packing packing(const Tensor &tensor, const Sizes *of_filter) {
  size_t dims = tensor.dims.size(), step = static_cast<size_t>(tensor.dims[1]);
  Packing steps(dims, 1);
  if (of_filter != nullptr) step *= static_cast<size_t>(tensor.dims[0]);
  for (size_t i = dims; i-- > 2;) {
    steps[i] = step;
    step *= static_cast<size_t>(tensor.dims[i]);
  }
  if (of_filter == nullptr) steps[0] = step;
  if (of_filter != nullptr) steps[1] = static_cast<size_t>(of_filter->out_channels);
  return steps;
}

// Calls `each(packed, offset)` for each element: where it is packed, and where it is in the tensor.
template <class Each>
static void over(const Tensor &tensor, const Sizes *of_filter, Each each) {
  Packing steps = packing(tensor, of_filter);
  std::vector<int> at(tensor.dims.size(), 0);
  for (;;) {
    int64_t offset = 0;
    size_t packed = 0;
    for (size_t i = 0; i < at.size(); ++i) {
      offset += int64_t{at[i]} * tensor.strides[i];
      packed += static_cast<size_t>(at[i]) * steps[i];
    }
    if (of_filter != nullptr) {  // output channels count from the first of their group
      size_t group = static_cast<size_t>(at[0] / of_filter->out_channels);
      packed += group * (static_cast<size_t>(of_filter->in_channels) - 1) * static_cast<size_t>(of_filter->out_channels);
    }
    each(packed, offset);
    size_t axis = at.size();
    while (axis > 0 && ++at[axis - 1] == tensor.dims[axis - 1]) at[--axis] = 0;
    if (axis == 0) return;
  }
}

template <class With>
static void typed(int type, Address at, With with) {
  switch (type) {
    case DOUBLE: return with(reinterpret_cast<double *>(at));
    case FLOAT: return with(reinterpret_cast<float *>(at));
    case HALF: return with(reinterpret_cast<Half *>(at));
    default: return with(reinterpret_cast<BFloat16 *>(at));
  }
}

static size_t elements(const Tensor &tensor) {
  size_t number = 1;
  for (int dim : tensor.dims) number *= static_cast<size_t>(dim);
  return number;
}

template <class Sum>
static std::vector<Sum> packed(const Tensor &tensor, const Sizes *of_filter, Address at) {
  std::vector<Sum> out(elements(tensor));
  typed(tensor.type, at, [&](auto *from) {
    over(tensor, of_filter, [&](size_t packed, int64_t offset) { out[packed] = static_cast<Sum>(from[offset]); });
  });
  return out;
}

struct Piece {
  Tensor tensor;
  Address at;
};

// Computes `result` from `first` and `second`; the kind tells which of x, w and y each of them is.
template <class Sum>
static void compute(Kind kind, const Sizes &s, const Piece &first, const Piece &second, const Piece &result,
                    double alpha, double beta) {
  const Sizes *of_first = kind == BACKWARD_DATA ? &s : nullptr, *of_second = kind == FORWARD ? &s : nullptr,
              *of_result = kind == BACKWARD_FILTER ? &s : nullptr;
  std::vector<Sum> a = packed<Sum>(first.tensor, of_first, first.at);
  std::vector<Sum> b = packed<Sum>(second.tensor, of_second, second.at);
  std::vector<Sum> sums(elements(result.tensor), Sum(0));
  int in = s.in_channels, out = s.out_channels;
  if (kind == FORWARD) {
    every(s, [&](size_t y, size_t x, size_t w) {
      for (int c = 0; c < in; ++c)
        for (int k = 0; k < out; ++k) sums[y + k] += a[x + c] * b[w + c * out + k];
    });
  } else if (kind == BACKWARD_DATA) {
    every(s, [&](size_t y, size_t x, size_t w) {
      for (int c = 0; c < in; ++c)
        for (int k = 0; k < out; ++k) sums[x + c] += a[w + c * out + k] * b[y + k];
    });
  } else {
    every(s, [&](size_t y, size_t x, size_t w) {
      for (int c = 0; c < in; ++c)
        for (int k = 0; k < out; ++k) sums[w + c * out + k] += a[x + c] * b[y + k];
    });
  }
  typed(result.tensor.type, result.at, [&](auto *to) {
    over(result.tensor, of_result, [&](size_t packed, int64_t offset) {
      Sum value = static_cast<Sum>(alpha) * sums[packed];
      if (beta != 0) value += static_cast<Sum>(beta) * static_cast<Sum>(to[offset]);
      to[offset] = value;
    });
  });
}

static size_t workspace_of(int algorithm) { return algorithm == 0 ? 0 : WORKSPACE; }

static int enqueue_convolution(Kind kind, Dnn *dnn, const void *alpha, const Piece &first, const Piece &second,
                               const Convolution &convolution, int algorithm, void *workspace, size_t workspace_bytes,
                               const void *beta, const Piece &result) {
  const Tensor &x = kind == BACKWARD_DATA ? result.tensor : first.tensor;
  const Tensor &w = kind == FORWARD ? second.tensor : kind == BACKWARD_DATA ? first.tensor : result.tensor;
  const Tensor &y = kind == FORWARD ? result.tensor : second.tensor;
  Sizes s;
  int status = sizes(x, w, convolution, y, &s);
  if (status != 0) return status;
  if (x.type != w.type || x.type != y.type) return UNSUPPORTED;
  if ((x.type == DOUBLE) != (convolution.type == DOUBLE)) return UNSUPPORTED;
  if (workspace_bytes < workspace_of(algorithm)) return WORKSPACE_TOO_SMALL;
  bool wide = x.type == DOUBLE;
  auto scalar = [&](const void *at) {
    return wide ? *static_cast<const double *>(at) : static_cast<double>(*static_cast<const float *>(at));
  };
  double by = scalar(alpha), keep = scalar(beta);
  Operation operation = {};
  operation.what = std::string(NAMES[kind]) + ", algorithm " + std::to_string(algorithm);
  operation.reaches = true;
  for (const Piece *piece : {&first, &second, &result}) operation.touches.push_back({piece->at, extent(piece->tensor)});
  size_t used = workspace_of(algorithm);
  if (used != 0) operation.touches.push_back({reinterpret_cast<Address>(workspace), used});
  operation.work = [=] {
    if (used != 0) memset(workspace, 0xFF, used);  // overwritten, as the real library may do
    wide ? compute<double>(kind, s, first, second, result, by, keep)
         : compute<float>(kind, s, first, second, result, by, keep);
    return true;
  };
  Guard lock = guard();
  return enqueue(lock, dnn->stream, std::move(operation)) == SUCCESS ? 0 : EXECUTION_FAILED;
}

static Piece piece(const Tensor *tensor, const void *at) { return {*tensor, reinterpret_cast<Address>(at)}; }

API int cudnnConvolutionForward(Dnn *dnn, const void *alpha, const Tensor *x, const void *x_at, const Tensor *w,
                                const void *w_at, const Convolution *convolution, int algorithm, void *workspace,
                                size_t bytes, const void *beta, const Tensor *y, void *y_at) {
  return enqueue_convolution(FORWARD, dnn, alpha, piece(x, x_at), piece(w, w_at), *convolution, algorithm, workspace,
                             bytes, beta, piece(y, y_at));
}

API int cudnnConvolutionBackwardData(Dnn *dnn, const void *alpha, const Tensor *w, const void *w_at, const Tensor *dy,
                                     const void *dy_at, const Convolution *convolution, int algorithm, void *workspace,
                                     size_t bytes, const void *beta, const Tensor *dx, void *dx_at) {
  return enqueue_convolution(BACKWARD_DATA, dnn, alpha, piece(w, w_at), piece(dy, dy_at), *convolution, algorithm,
                             workspace, bytes, beta, piece(dx, dx_at));
}

API int cudnnConvolutionBackwardFilter(Dnn *dnn, const void *alpha, const Tensor *x, const void *x_at, const Tensor *dy,
                                       const void *dy_at, const Convolution *convolution, int algorithm,
                                       void *workspace, size_t bytes, const void *beta, const Tensor *dw, void *dw_at) {
  return enqueue_convolution(BACKWARD_FILTER, dnn, alpha, piece(x, x_at), piece(dy, dy_at), *convolution, algorithm,
                             workspace, bytes, beta, piece(dw, dw_at));
}

// Algorithms 1 and 0 of the forward pass; of the gradients 0, which is not deterministic in cuDNN, before 1, which is.
static int choose(Kind kind, const Tensor &x, const Tensor &w, const Convolution &convolution, const Tensor &y,
                  int asked, int *given, Performance *results) {
  Sizes s;
  int status = sizes(x, w, convolution, y, &s);
  if (status != 0) return status;
  if (asked < 1) return BAD_PARAM;
  int order[] = {kind == FORWARD ? 1 : 0, kind == FORWARD ? 0 : 1};
  *given = std::min(asked, 2);
  for (int i = 0; i < *given; ++i) {
    results[i] = Performance{order[i], 0, static_cast<float>(i + 1), workspace_of(order[i]),
                             kind == FORWARD || order[i] == 1, 0, {0, 0, 0}};
  }
  return 0;
}

API int cudnnGetConvolutionForwardAlgorithm_v7(Dnn *, const Tensor *x, const Tensor *w, const Convolution *convolution,
                                               const Tensor *y, int asked, int *given, Performance *results) {
  return choose(FORWARD, *x, *w, *convolution, *y, asked, given, results);
}

API int cudnnGetConvolutionBackwardDataAlgorithm_v7(Dnn *, const Tensor *w, const Tensor *dy,
                                                    const Convolution *convolution, const Tensor *dx, int asked,
                                                    int *given, Performance *results) {
  return choose(BACKWARD_DATA, *dx, *w, *convolution, *dy, asked, given, results);
}

API int cudnnGetConvolutionBackwardFilterAlgorithm_v7(Dnn *, const Tensor *x, const Tensor *dy,
                                                      const Convolution *convolution, const Tensor *dw, int asked,
                                                      int *given, Performance *results) {
  return choose(BACKWARD_FILTER, *x, *dw, *convolution, *dy, asked, given, results);
}

static int store_workspace_size(int algorithm, size_t *bytes) {
  *bytes = workspace_of(algorithm);
  return 0;
}

API int cudnnGetConvolutionForwardWorkspaceSize(Dnn *, const Tensor *, const Tensor *, const Convolution *,
                                                const Tensor *, int algorithm, size_t *bytes) {
  return store_workspace_size(algorithm, bytes);
}
API int cudnnGetConvolutionBackwardDataWorkspaceSize(Dnn *, const Tensor *, const Tensor *, const Convolution *,
                                                     const Tensor *, int algorithm, size_t *bytes) {
  return store_workspace_size(algorithm, bytes);
}
API int cudnnGetConvolutionBackwardFilterWorkspaceSize(Dnn *, const Tensor *, const Tensor *, const Convolution *,
                                                       const Tensor *, int algorithm, size_t *bytes) {
  return store_workspace_size(algorithm, bytes);
}

}  // namespace emulator
