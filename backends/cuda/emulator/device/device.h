// CUDA C++ for the host, as far as kernels here use it: built-in variables, memory spaces, barriers, shuffles, atomics
// and mathematics. Included before a kernel's own source.
#pragma once

#include <cassert>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define __CUDACC__ 1
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __CUDA_ARCH__ 800
#define __host__
#define __device__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#ifndef __global__
#define __global__
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {
void barrier();
const void *shuffle(uint32_t mask, const void *value, size_t bytes, int from);
uint32_t ballot(uint32_t mask, bool vote);
void *dynamic_shared();

inline int lane() { return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32); }

template <class T>
T shuffled(uint32_t mask, T value, int from) {
  static_assert(sizeof(T) <= 16);
  T result;
  memcpy(&result, shuffle(mask, &value, sizeof value, from), sizeof result);
  return result;
}

// The lane itself where the wanted one is in another group of `width` lanes.
inline int within(int from, int width) { return from / width == lane() / width ? from : lane(); }
}  // namespace emulator

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFF) { emulator::ballot(mask, false); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned __ballot_sync(unsigned mask, int vote) { return emulator::ballot(mask, vote != 0); }
inline int __any_sync(unsigned mask, int vote) { return emulator::ballot(mask, vote != 0) != 0; }
inline int __all_sync(unsigned mask, int vote) { return emulator::ballot(mask, vote == 0) == 0; }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32) {
  return emulator::shuffled(mask, value, emulator::within(emulator::lane() ^ other, width));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return emulator::shuffled(mask, value, emulator::within(emulator::lane() + static_cast<int>(by), width));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  int from = emulator::lane() - static_cast<int>(by);
  return emulator::shuffled(mask, value, from < 0 ? emulator::lane() : emulator::within(from, width));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return emulator::shuffled(mask, value, emulator::lane() / width * width + (from % width + width) % width);
}

// One thread runs at a time, so what it does at once is atomic.
template <class T, class Change>
T atomic_change(T *place, Change change) {
  T before = *place;
  *place = change(before);
  return before;
}
template <class T>
using Same = std::common_type_t<T>;  // not deduced
template <class T>
T atomicAdd(T *place, Same<T> value) {
  return atomic_change(place, [=](T was) { return static_cast<T>(was + value); });
}
template <class T>
T atomicMax(T *place, Same<T> value) {
  return atomic_change(place, [=](T was) { return was < value ? value : was; });
}
template <class T>
T atomicMin(T *place, Same<T> value) {
  return atomic_change(place, [=](T was) { return value < was ? value : was; });
}
template <class T>
T atomicExch(T *place, Same<T> value) {
  return atomic_change(place, [=](T) { return value; });
}
template <class T>
T atomicCAS(T *place, Same<T> expected, Same<T> value) {
  return atomic_change(place, [=](T was) { return was == expected ? value : was; });
}

template <class A, class B>
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

using std::isinf;
using std::isnan;
using std::signbit;

template <class To, class From>
To reinterpreted(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float value) { return reinterpreted<int>(value); }
inline unsigned __float_as_uint(float value) { return reinterpreted<unsigned>(value); }
inline float __int_as_float(int bits) { return reinterpreted<float>(bits); }
inline float __uint_as_float(unsigned bits) { return reinterpreted<float>(bits); }
inline long long __double_as_longlong(double value) { return reinterpreted<long long>(value); }
inline double __longlong_as_double(long long bits) { return reinterpreted<double>(bits); }

inline double normcdf(double x) { return 0.5 * std::erfc(-x * M_SQRT1_2); }
inline float normcdff(float x) { return static_cast<float>(normcdf(x)); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
template <class T>
T __ldg(const T *place) {
  return *place;
}
