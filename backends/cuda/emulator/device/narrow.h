// Floating point numbers of 16 and 8 bits: values are computed in float and rounded to the nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace emulator {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// `EXPONENT` and `MANTISSA` bits after a sign. FINITE: no infinity, and what is too large becomes the largest number.
template <class Storage, int EXPONENT, int MANTISSA, bool FINITE>
struct Format {
  using Bits = Storage;
  static constexpr int BIAS = (1 << (EXPONENT - 1)) - 1;
  static constexpr uint32_t SIGN = 1u << (EXPONENT + MANTISSA);
  static constexpr uint32_t INFINITE = ((1u << EXPONENT) - 1) << MANTISSA;
  static constexpr uint32_t NOT_A_NUMBER = FINITE ? SIGN - 1 : INFINITE | 1u << (MANTISSA - 1);
  static constexpr uint32_t LARGEST = FINITE ? SIGN - 2 : INFINITE;

  static float decode(Storage stored) {
    if constexpr (EXPONENT == 8) return float_of(static_cast<uint32_t>(stored) << (23 - MANTISSA));
    uint32_t magnitude = stored & (SIGN - 1);
    float sign = (stored & SIGN) != 0 ? -1.0f : 1.0f;
    if (FINITE ? magnitude == NOT_A_NUMBER : magnitude > INFINITE) return NAN;
    if (!FINITE && magnitude == INFINITE) return sign * INFINITY;
    int exponent = static_cast<int>(magnitude >> MANTISSA);
    auto fraction = static_cast<float>(magnitude & ((1u << MANTISSA) - 1));
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - BIAS - MANTISSA);
    return sign * std::ldexp(fraction + (1u << MANTISSA), exponent - BIAS - MANTISSA);
  }

  static Storage encode(float value) {
    if constexpr (EXPONENT == 8) {
      constexpr int CUT = 23 - MANTISSA;
      uint32_t bits = bits_of(value);
      if (std::isnan(value)) return static_cast<Storage>(SIGN - 1);
      return static_cast<Storage>((bits + ((1u << (CUT - 1)) - 1) + (bits >> CUT & 1)) >> CUT);
    }
    uint32_t sign = std::signbit(value) ? SIGN : 0;
    if (std::isnan(value)) return static_cast<Storage>(sign | NOT_A_NUMBER);
    float magnitude = std::fabs(value);
    if (magnitude == 0) return static_cast<Storage>(sign);
    int exponent;
    std::frexp(magnitude, &exponent);  // magnitude = f * 2^exponent, f in [0.5, 1)
    int step = (exponent - 1 < 1 - BIAS ? 1 - BIAS : exponent - 1) - MANTISSA;
    if (exponent > BIAS + 2) return static_cast<Storage>(sign | LARGEST);
    auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -step)));
    uint32_t bits = steps + (static_cast<uint32_t>(step + MANTISSA + BIAS - 1) << MANTISSA);
    return static_cast<Storage>(sign | (bits > LARGEST ? LARGEST : bits));
  }
};

template <class F>
struct Narrow {
  typename F::Bits __x;

  Narrow() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  Narrow(T value) : __x(F::encode(static_cast<float>(value))) {}
  operator float() const { return F::decode(__x); }

  static Narrow of_bits(typename F::Bits bits) {
    Narrow made;
    made.__x = bits;
    return made;
  }

  friend Narrow operator+(Narrow a, Narrow b) { return float(a) + float(b); }
  friend Narrow operator-(Narrow a, Narrow b) { return float(a) - float(b); }
  friend Narrow operator*(Narrow a, Narrow b) { return float(a) * float(b); }
  friend Narrow operator/(Narrow a, Narrow b) { return float(a) / float(b); }
  friend Narrow operator-(Narrow a) { return -float(a); }
  Narrow &operator+=(Narrow b) { return *this = *this + b; }
  Narrow &operator-=(Narrow b) { return *this = *this - b; }
  Narrow &operator*=(Narrow b) { return *this = *this * b; }
  Narrow &operator/=(Narrow b) { return *this = *this / b; }
  friend bool operator==(Narrow a, Narrow b) { return float(a) == float(b); }
  friend bool operator!=(Narrow a, Narrow b) { return float(a) != float(b); }
  friend bool operator<(Narrow a, Narrow b) { return float(a) < float(b); }
  friend bool operator>(Narrow a, Narrow b) { return float(a) > float(b); }
  friend bool operator<=(Narrow a, Narrow b) { return float(a) <= float(b); }
  friend bool operator>=(Narrow a, Narrow b) { return float(a) >= float(b); }
};

using Half = Narrow<Format<uint16_t, 5, 10, false>>;
using BFloat16 = Narrow<Format<uint16_t, 8, 7, false>>;
using Float8 = Narrow<Format<uint8_t, 4, 3, true>>;

}  // namespace emulator
