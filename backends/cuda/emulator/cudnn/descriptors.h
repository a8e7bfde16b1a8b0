// Descriptors of cuDNN, and the statuses it answers with.
#pragma once

#include <vector>

#include "../emulator.h"

namespace emulator {

constexpr int BAD_PARAM = 2000, SHAPE_MISMATCH = 2008, WORKSPACE_TOO_SMALL = 2006, NULL_POINTER = 2002,
              UNSUPPORTED = 3000, EXECUTION_FAILED = 5000;
enum DataType { FLOAT = 0, DOUBLE = 1, HALF = 2, BFLOAT16 = 9 };

struct Dnn {
  void *stream;
};

// A tensor or a filter: images or output channels, channels, then the dimensions of space.
struct Tensor {
  int type;
  std::vector<int> dims, strides;
};

struct Convolution {
  std::vector<int> padding, stride, dilation;
  bool flipped;  // a convolution in the strict sense, not a cross-correlation
  int type;      // in which it is computed
  int groups = 1;
};

size_t size_of(int type);
// Bytes from the first to the last element.
size_t extent(const Tensor &tensor);

}  // namespace emulator
