// __nv_fp8_e4m3.
#pragma once
#include "cuda_fp16.h"

using __nv_fp8_e4m3 = emulator::Float8;
using __nv_fp8_storage_t = uint8_t;
enum __nv_fp8_interpretation_t { __NV_E4M3 };

inline __half __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t bits, __nv_fp8_interpretation_t) {
  return float(__nv_fp8_e4m3::of_bits(bits));
}
