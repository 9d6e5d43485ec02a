// Sixteen numbers at a time, as one AVX-512, two AVX2 or four NEON registers.
//
// Every operation rounds alike and in the same order on every processor: products are fused only where `fma` says so
// (the build passes -ffp-contract=off), and sums over lanes add lane i to lane i + 8, then + 4, + 2, + 1.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

constexpr int LANES = 16;
#if defined(__AVX512F__)
constexpr int NATIVE = 16;
#elif defined(__AVX2__)
constexpr int NATIVE = 8;
#else
constexpr int NATIVE = 4;
#endif
constexpr int PARTS = LANES / NATIVE;

#define INLINE inline __attribute__((always_inline))

// One register.
typedef float Float __attribute__((vector_size(NATIVE * 4)));
typedef int32_t Int __attribute__((vector_size(NATIVE * 4)));
typedef uint32_t Word __attribute__((vector_size(NATIVE * 4)));

// Sixteen lanes.
template <class Native> struct Vector {
  Native part[PARTS];
};
typedef Vector<Float> Floats;
typedef Vector<Int> Ints;

template <class To, class From> INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class V> struct Access {
  static INLINE V load(const uint8_t* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
  }
  static INLINE void store(uint8_t* to, V v) { memcpy(to, &v, sizeof v); }
};

// The vector whose part i is f(i).
template <class F> INLINE auto each(F f) -> Vector<decltype(f(0))> {
  if constexpr (PARTS == 1) return {{f(0)}};
  else if constexpr (PARTS == 2) return {{f(0), f(1)}};
  else return {{f(0), f(1), f(2), f(3)}};
}
#define EACH(expression) each([&](int i) INLINE_LAMBDA { return expression; })
#define INLINE_LAMBDA __attribute__((always_inline))

// A register at a time: a copy of the whole goes through memory.
template <class N> struct Access<Vector<N>> {
  static INLINE Vector<N> load(const uint8_t* from) { return EACH(Access<N>::load(from + i * sizeof(N))); }
  static INLINE void store(uint8_t* to, Vector<N> v) {
    Access<N>::store(to, v.part[0]);
    if constexpr (PARTS > 1) Access<N>::store(to + sizeof(N), v.part[1]);
    if constexpr (PARTS > 2) Access<N>::store(to + 2 * sizeof(N), v.part[2]), Access<N>::store(to + 3 * sizeof(N), v.part[3]);
  }
};
template <class V> INLINE V load(const void* from) { return Access<V>::load((const uint8_t*)from); }
template <class V> INLINE void store(void* to, V v) { Access<V>::store((uint8_t*)to, v); }

INLINE Float native(float s) { return s - Float{}; }
INLINE Int native(int32_t s) { return s - Int{}; }
INLINE Floats splat(float s) { return EACH(native(s)); }
INLINE Ints splat(int32_t s) { return EACH(native(s)); }

template <class N> INLINE Vector<N> operator+(Vector<N> a, Vector<N> b) { return EACH(a.part[i] + b.part[i]); }
template <class N> INLINE Vector<N> operator-(Vector<N> a, Vector<N> b) { return EACH(a.part[i] - b.part[i]); }
INLINE Floats operator*(Floats a, Floats b) { return EACH(a.part[i] * b.part[i]); }
INLINE Floats operator/(Floats a, Floats b) { return EACH(a.part[i] / b.part[i]); }
INLINE Floats operator*(Floats a, float b) { return a * splat(b); }
INLINE Floats operator-(Floats a) { return EACH(-a.part[i]); }
INLINE Ints operator<(Floats a, Floats b) { return EACH(a.part[i] < b.part[i]); }
INLINE Ints operator>(Floats a, Floats b) { return EACH(a.part[i] > b.part[i]); }
INLINE Ints operator<(Ints a, Ints b) { return EACH(a.part[i] < b.part[i]); }
INLINE Ints operator>(Ints a, Ints b) { return EACH(a.part[i] > b.part[i]); }
INLINE Ints operator&(Ints a, Ints b) { return EACH(a.part[i] & b.part[i]); }
INLINE Ints operator<<(Ints a, int count) { return EACH(a.part[i] << count); }
// a where the mask is set, else b.
template <class N> INLINE Vector<N> select(Ints mask, Vector<N> a, Vector<N> b) {
  return EACH(mask.part[i] ? a.part[i] : b.part[i]);
}

// a * b + c, rounded once.
INLINE Float fma(Float a, Float b, Float c) {
#if defined(__AVX512F__)
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  for (int i = 0; i < NATIVE; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}
INLINE Floats fma(Floats a, Floats b, Floats c) { return EACH(fma(a.part[i], b.part[i], c.part[i])); }

INLINE Ints counted() { return EACH(load<Int>((const int32_t[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + i * NATIVE)); }
INLINE float lane(Floats v, int i) { return v.part[i / NATIVE][i % NATIVE]; }
INLINE int32_t lane(Ints v, int i) { return v.part[i / NATIVE][i % NATIVE]; }

INLINE Floats larger(Floats a, Floats b) { return select(a > b, a, b); }
INLINE Floats magnitude(Floats v) { return EACH(bits<Float>(bits<Word>(v.part[i]) & 0x7FFFFFFFu)); }

// bfloat16, int8 and int32 to float32: exact.
INLINE Float bfloat16_part(const uint8_t* from) {
#if defined(__AVX512F__)
  return (Float)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
  return (Float)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#elif defined(__aarch64__)
  return (Float)vshll_n_u16(vld1_u16((const uint16_t*)from), 16);
#else
  Word word;
  for (int i = 0; i < NATIVE; i++) word[i] = uint32_t(load<uint16_t>(from + 2 * i)) << 16;
  return bits<Float>(word);
#endif
}
INLINE Floats from_bfloat16(const uint8_t* from) { return EACH(bfloat16_part(from + 2 * NATIVE * i)); }

INLINE Int int8_part(const uint8_t* from) {
#if defined(__AVX512F__)
  return (Int)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
  return (Int)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
  Int v;
  for (int i = 0; i < NATIVE; i++) v[i] = int8_t(from[i]);
  return v;
#endif
}
INLINE Float to_float(Int v) { return __builtin_convertvector(v, Float); }
INLINE Floats to_float(Ints v) { return EACH(to_float(v.part[i])); }
INLINE Floats from_int8(const uint8_t* from) { return EACH(to_float(int8_part(from + NATIVE * i))); }

// To the nearest, ties to even; |v| below 2^22.
INLINE Ints nearest(Floats v) { return EACH(bits<Int>(v.part[i] + 12582912.0f) - 0x4B400000); }

// To the nearest bfloat16, ties to even.
INLINE Vector<Word> rounded_bfloat16(Floats v) {
  return EACH((bits<Word>(v.part[i]) + 0x7FFFu + ((bits<Word>(v.part[i]) >> 16) & 1u)) >> 16);
}
// The low half of each lane.
INLINE void store_halves(uint8_t* to, Vector<Word> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)v.part[0]));
#elif defined(__AVX2__)
  const __m256i both = _mm256_packus_epi32((__m256i)(v.part[0] & 0xFFFFu), (__m256i)(v.part[1] & 0xFFFFu));
  _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(both, 0xD8));
#else
  for (int i = 0; i < LANES; i++) store(to + 2 * i, uint16_t(v.part[i / NATIVE][i % NATIVE]));
#endif
}
INLINE void store_bfloat16(uint8_t* to, Floats v) { store_halves(to, rounded_bfloat16(v)); }
// The low byte of each lane.
INLINE void store_bytes(uint8_t* to, Ints v) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v.part[0]));
#elif defined(__AVX2__)
  const __m256i both = _mm256_packus_epi32((__m256i)(v.part[0] & 0xFF), (__m256i)(v.part[1] & 0xFF));
  const __m256i words = _mm256_permute4x64_epi64(both, 0xD8);
  _mm_storeu_si128((__m128i*)to, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
  for (int i = 0; i < LANES; i++) to[i] = uint8_t(v.part[i / NATIVE][i % NATIVE]);
#endif
}

typedef float Quarter __attribute__((vector_size(16)));
INLINE Quarter quarter(Floats v, int i) {
#if defined(__AVX512F__)
  return (Quarter)(i == 0   ? _mm512_castps512_ps128((__m512)v.part[0])
                   : i == 1 ? _mm512_extractf32x4_ps((__m512)v.part[0], 1)
                   : i == 2 ? _mm512_extractf32x4_ps((__m512)v.part[0], 2)
                            : _mm512_extractf32x4_ps((__m512)v.part[0], 3));
#elif defined(__AVX2__)
  const __m256 half = (__m256)v.part[i / 2];
  return (Quarter)(i % 2 ? _mm256_extractf128_ps(half, 1) : _mm256_castps256_ps128(half));
#else
  return (Quarter)v.part[i];
#endif
}
// join(lane i, lane i + 8), then + 4, + 2, + 1.
template <class Join> INLINE float folded(Floats v, Join join) {
  Quarter all = join(join(quarter(v, 0), quarter(v, 2)), join(quarter(v, 1), quarter(v, 3)));
  all = join(all, __builtin_shufflevector(all, all, 2, 3, 0, 1));
  return join(all, __builtin_shufflevector(all, all, 1, 0, 3, 2))[0];
}
INLINE float sum(Floats v) {
  return folded(v, [](Quarter a, Quarter b) { return a + b; });
}
INLINE float largest(Floats v) {
  return folded(v, [](Quarter a, Quarter b) { return a > b ? a : b; });
}

// Of two registers, in each of their quarters: lanes 0 and 1 of a and b, or 2 and 3; the even ones, or the odd ones.
#if defined(__AVX512F__)
#define SHUFFLED(a, b, which) (Float) _mm512_shuffle_ps((__m512)(a), (__m512)(b), which)
#elif defined(__AVX2__)
#define SHUFFLED(a, b, which) (Float) _mm256_shuffle_ps((__m256)(a), (__m256)(b), which)
#else
template <int WHICH> INLINE Float shuffled(Float a, Float b) {
  return __builtin_shufflevector(a, b, WHICH & 3, WHICH >> 2 & 3, 4 + (WHICH >> 4 & 3), 4 + (WHICH >> 6 & 3));
}
#define SHUFFLED(a, b, which) shuffled<which>(a, b)
#endif
constexpr int FRONT = 0x44, BACK = 0xEE, EVEN = 0x88, ODD = 0xDD;

// Rows first, first + 4, ... of as many as a register has quarters: lanes i, i + 8, i + 4 and i + 12 of each are added up.
INLINE Float quartered(const Floats* row) {
#if defined(__AVX512F__)
  const __m512 r0 = (__m512)row[0].part[0], r1 = (__m512)row[4].part[0], r2 = (__m512)row[8].part[0], r3 = (__m512)row[12].part[0];
  const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(r0, r1, FRONT), _mm512_shuffle_f32x4(r0, r1, BACK));
  const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(r2, r3, FRONT), _mm512_shuffle_f32x4(r2, r3, BACK));
  return (Float)_mm512_add_ps(_mm512_shuffle_f32x4(a, b, EVEN), _mm512_shuffle_f32x4(a, b, ODD));
#elif defined(__AVX2__)
  const __m256 a = (__m256)(row[0].part[0] + row[0].part[1]), b = (__m256)(row[4].part[0] + row[4].part[1]);
  return (Float)_mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
#else
  return (row[0].part[0] + row[0].part[2]) + (row[0].part[1] + row[0].part[3]);
#endif
}
// Lane i of the result is sum(row[i]).
INLINE Floats sums(const Floats* row) {
  return each([&](int i) INLINE_LAMBDA {
    Float by[4];
    for (int j = 0; j < 4; j++) by[j] = quartered(row + i * NATIVE + j);
    const Float a = SHUFFLED(by[0], by[1], FRONT) + SHUFFLED(by[0], by[1], BACK);
    const Float b = SHUFFLED(by[2], by[3], FRONT) + SHUFFLED(by[2], by[3], BACK);
    return SHUFFLED(a, b, EVEN) + SHUFFLED(a, b, ODD);
  });
}

// NATIVE registers: rows become columns.
INLINE void transpose(Float* v) {
  Float a[NATIVE];
#if defined(__AVX512F__)
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
#else
  for (int i = 0; i < NATIVE; i += 4) {
    const Float x = SHUFFLED(v[i], v[i + 1], FRONT), y = SHUFFLED(v[i], v[i + 1], BACK);
    const Float z = SHUFFLED(v[i + 2], v[i + 3], FRONT), w = SHUFFLED(v[i + 2], v[i + 3], BACK);
    a[i] = SHUFFLED(x, z, EVEN), a[i + 1] = SHUFFLED(x, z, ODD);
    a[i + 2] = SHUFFLED(y, w, EVEN), a[i + 3] = SHUFFLED(y, w, ODD);
  }
#if defined(__AVX2__)
  for (int i = 0; i < 4; i++) {
    v[i] = (Float)_mm256_permute2f128_ps((__m256)a[i], (__m256)a[i + 4], 0x20);
    v[i + 4] = (Float)_mm256_permute2f128_ps((__m256)a[i], (__m256)a[i + 4], 0x31);
  }
#else
  for (int i = 0; i < NATIVE; i++) v[i] = a[i];
#endif
#endif
}
// Sixteen rows become columns.
INLINE void transpose(Floats* v) {
  Float block[PARTS][PARTS][NATIVE];
  for (int i = 0; i < PARTS; i++)
    for (int j = 0; j < PARTS; j++) {
      for (int r = 0; r < NATIVE; r++) block[i][j][r] = v[i * NATIVE + r].part[j];
      transpose(block[i][j]);
    }
  for (int i = 0; i < PARTS; i++)
    for (int j = 0; j < PARTS; j++)
      for (int r = 0; r < NATIVE; r++) v[j * NATIVE + r].part[i] = block[i][j][r];
}

// e^v with a relative error below 2e-7; 0 below -87. Range reduction and polynomial as in Cephes' expf.
INLINE Float exponential(Float v) {
  const Float low = native(-87.0f), high = native(88.0f);
  Float x = v < low ? low : v;
  x = x > high ? high : x;
  const Float shifted = fma(x, native(1.44269504f), native(12582912.0f));
  const Float n = shifted - 12582912.0f;
  const Float r = fma(n, native(2.12194440e-4f), fma(n, native(-0.693359375f), x));
  Float p = native(1.9875691500e-4f);
  p = fma(p, r, native(1.3981999507e-3f));
  p = fma(p, r, native(8.3334519073e-3f));
  p = fma(p, r, native(4.1665795894e-2f));
  p = fma(p, r, native(1.6666665459e-1f));
  p = fma(p, r, native(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const Int scaled = bits<Int>(p) + ((bits<Int>(shifted) - 0x4B400000) << 23);
  return v < low ? native(0.0f) : bits<Float>(scaled);
}
INLINE Floats exponential(Floats v) { return EACH(exponential(v.part[i])); }
INLINE Floats silu(Floats v) { return v / (splat(1.0f) + exponential(-v)); }
