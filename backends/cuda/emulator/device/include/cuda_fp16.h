// __half.
#pragma once
#include "../narrow.h"

using __half = emulator::Half;
using half = __half;

inline float __half2float(__half a) { return a; }
inline __half __float2half(float a) { return a; }
inline __half __float2half_rn(float a) { return a; }
inline unsigned short __half_as_ushort(__half a) { return a.__x; }
inline __half __ushort_as_half(unsigned short bits) { return __half::of_bits(bits); }

// Functions that are the same for __half and __nv_bfloat16.
#define EMULATED_NARROW(T)                                                                          \
  inline bool __hisnan(T a) { return std::isnan(float(a)); }                                        \
  inline T __hmax(T a, T b) { return std::fmax(float(a), float(b)); }                               \
  inline T __hmin(T a, T b) { return std::fmin(float(a), float(b)); }                               \
  inline T __hmax_nan(T a, T b) { return __hisnan(a) || __hisnan(b) ? T(NAN) : __hmax(a, b); }      \
  inline T __hmin_nan(T a, T b) { return __hisnan(a) || __hisnan(b) ? T(NAN) : __hmin(a, b); }      \
  inline T __hadd(T a, T b) { return a + b; }                                                       \
  inline T __hsub(T a, T b) { return a - b; }                                                       \
  inline T __hmul(T a, T b) { return a * b; }                                                       \
  inline T __hdiv(T a, T b) { return a / b; }                                                       \
  inline T __hfma(T a, T b, T c) { return std::fma(float(a), float(b), float(c)); }                 \
  inline T __habs(T a) { return std::fabs(float(a)); }                                              \
  inline T __hneg(T a) { return -a; }                                                               \
  inline T hsqrt(T a) { return std::sqrt(float(a)); }                                               \
  inline T hrsqrt(T a) { return 1.0f / std::sqrt(float(a)); }                                       \
  inline T hrcp(T a) { return 1.0f / float(a); }                                                    \
  inline T hexp(T a) { return std::exp(float(a)); }                                                 \
  inline T hlog(T a) { return std::log(float(a)); }                                                 \
  inline T hcos(T a) { return std::cos(float(a)); }                                                 \
  inline T hsin(T a) { return std::sin(float(a)); }                                                 \
  inline T hceil(T a) { return std::ceil(float(a)); }                                               \
  inline T hfloor(T a) { return std::floor(float(a)); }
#define EMULATED_PAIR(T, PAIR)                                                         \
  struct PAIR {                                                                        \
    T x, y;                                                                            \
  };                                                                                   \
  inline PAIR __hadd2(PAIR a, PAIR b) { return {a.x + b.x, a.y + b.y}; }               \
  inline PAIR __hsub2(PAIR a, PAIR b) { return {a.x - b.x, a.y - b.y}; }               \
  inline PAIR __hmul2(PAIR a, PAIR b) { return {a.x * b.x, a.y * b.y}; }               \
  inline PAIR __h2div(PAIR a, PAIR b) { return {a.x / b.x, a.y / b.y}; }               \
  inline PAIR __hmax2(PAIR a, PAIR b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; } \
  inline PAIR __hmin2(PAIR a, PAIR b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }

EMULATED_NARROW(__half)
EMULATED_PAIR(__half, __half2)
