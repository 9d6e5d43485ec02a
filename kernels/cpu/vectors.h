// Sixteen floats at a time, in the compiler's own vector types, so that any processor will do.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t UnsignedBytes __attribute__((vector_size(16)));
constexpr int LANES = 16;

template <class V> inline V load(const void* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}
template <class V> inline void store(void* to, V v) { memcpy(to, &v, sizeof v); }
template <class To, class From> inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

inline Floats splat(float s) { return Floats{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s}; }
inline Ints splat(int32_t s) { return Ints{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s}; }
constexpr Ints COUNTED = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats magnitude(Floats v) { return bits<Floats>(bits<Words>(v) & 0x7FFFFFFFu); }

inline Floats from_bfloat16(const void* from) {
  return bits<Floats>(__builtin_convertvector(load<Halves>(from), Words) << 16);
}
// To the nearest, ties to even.
inline Halves to_bfloat16(Floats v) {
  const Words word = bits<Words>(v);
  return __builtin_convertvector((word + 0x7FFFu + ((word >> 16) & 1u)) >> 16, Halves);
}
inline Floats from_int8(const void* from) {
  return __builtin_convertvector(__builtin_convertvector(load<Bytes>(from), Ints), Floats);
}
// To the nearest, ties to even; |v| below 2^22.
inline Ints nearest(Floats v) { return bits<Ints>(v + 12582912.0f) - 0x4B400000; }

// Halves over one another until one lane is left.
template <class Join> inline float folded(Floats v, Join join) {
  v = join(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = join(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = join(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = join(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return v[0];
}
inline float sum(Floats v) {
  return folded(v, [](Floats a, Floats b) { return a + b; });
}
inline float largest(Floats v) {
  return folded(v, [](Floats a, Floats b) { return larger(a, b); });
}

// Lane i of the result is the sum of row i.
inline Floats sums(const Floats* row) {
  Floats a[8], b[4];
  for (int i = 0; i < 8; i++) {
    const Floats x = row[2 * i], y = row[2 * i + 1];
    a[i] = __builtin_shufflevector(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  for (int i = 0; i < 4; i++) {
    const Floats x = a[2 * i], y = a[2 * i + 1];
    b[i] = __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  for (int i = 0; i < 2; i++) {
    const Floats x = b[2 * i], y = b[2 * i + 1];
    a[i] = __builtin_shufflevector(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           __builtin_shufflevector(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  return __builtin_shufflevector(a[0], a[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(a[0], a[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

// Rows become columns.
inline void transpose(Floats* v) {
  Floats a[LANES];
  for (int i = 0; i < LANES; i += 2) {
    a[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    a[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  for (int i = 0; i < LANES; i++) {
    if (i & 2) continue;
    v[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    v[i + 2] = __builtin_shufflevector(a[i], a[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  for (int i = 0; i < LANES; i++) {
    if (i & 4) continue;
    a[i] = __builtin_shufflevector(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    a[i + 4] = __builtin_shufflevector(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  for (int i = 0; i < 8; i++) {
    v[i] = __builtin_shufflevector(a[i], a[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    v[i + 8] = __builtin_shufflevector(a[i], a[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
}

// e^v with a relative error below 2e-7; 0 below -87. Range reduction and polynomial as in Cephes' expf.
inline Floats exponential(Floats v) {
  const Floats low = splat(-87.0f), high = splat(88.0f);
  Floats x = v < low ? low : v;
  x = x > high ? high : x;
  const Floats shifted = x * 1.44269504f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints scaled = bits<Ints>(p) + ((bits<Ints>(shifted) - 0x4B400000) << 23);
  return v < low ? splat(0.0f) : bits<Floats>(scaled);
}
inline Floats silu(Floats v) { return v / (1.0f + exponential(-v)); }
