// Matrix products of a few rows with weights in tiles: 16 outputs by 4 bytes of input at a time.
//
//   tile t:  unit 0: [output 16t: 4 bytes][output 16t + 1: 4 bytes] ... , unit 1: ...
//
// A unit is one float32, two bfloat16 or four int8. Each output adds its units up in order, however many rows there are,
// so that a row's result depends on nothing but the row.
#pragma once
#include "vectors.h"

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

// `outputs` by `width`. Of int8: a scale for each output and -128 times the sum of its weights, since inputs are unsigned.
struct Matrix {
  int32_t kind;
  int32_t outputs;
  int32_t width;
  int32_t units;
  const uint8_t* tiles;
  const float* bias;
  const float* scales;
  const int32_t* shifts;
  int num_tiles() const { return (outputs + LANES - 1) / LANES; }
};

// Rows as a matrix wants them: `stride` bytes apart, `scales` of int8 alone.
struct Operand {
  uint8_t* bytes;
  size_t stride;
  float* scales;
};

struct InFloat32 {
  typedef Floats Sum;
  static Sum add(Sum sum, const uint8_t* a, Words b) { return sum + splat(load<float>(a)) * bits<Floats>(b); }
};
struct InBfloat16 {
  typedef Floats Sum;
  static Sum add(Sum sum, const uint8_t* a, Words b) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(load<int32_t>(a)), (__m512bh)b);
#else
    const uint32_t pair = load<uint32_t>(a);
    sum += splat(bits<float>(pair << 16)) * bits<Floats>(b << 16);
    return sum + splat(bits<float>(pair & 0xFFFF0000u)) * bits<Floats>(b & 0xFFFF0000u);
#endif
  }
};
struct InInt8 {
  typedef Ints Sum;
  static Sum add(Sum sum, const uint8_t* a, Words b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(load<int32_t>(a)), (__m512i)b);
#else
    const Ints weights = bits<Ints>(b);
    for (int i = 0; i < 4; i++) sum += (weights << (24 - 8 * i) >> 24) * int32_t(a[i]);
    return sum;
#endif
  }
};

// As many sums as registers hold beside a row of weights.
#if defined(__AVX512F__)
constexpr int MOST_ROWS = 6, MOST_TILES = 4;
#else
constexpr int MOST_ROWS = 2, MOST_TILES = 2;
#endif

// `ahead` are two tiles that will be wanted next: they come in while this multiplies.
typedef void (*Block)(const uint8_t* a, size_t stride, const uint8_t* const* tiles, int units, const uint8_t* ahead,
                      void* sums);

template <class In, int ROWS, int TILES>
void block(const uint8_t* a, size_t stride, const uint8_t* const* tiles, int units, const uint8_t* ahead, void* sums) {
  typename In::Sum sum[ROWS][TILES] = {};
  const uint8_t* at[TILES];
  for (int t = 0; t < TILES; t++) at[t] = tiles[t];
  for (size_t unit = 0; unit < size_t(units); unit++) {
    __builtin_prefetch(ahead + 128 * unit, 0, 2);
    __builtin_prefetch(ahead + 128 * unit + 64, 0, 2);
    Words weights[TILES];
#pragma GCC unroll 8
    for (int t = 0; t < TILES; t++) weights[t] = load<Words>(at[t] + 64 * unit);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int t = 0; t < TILES; t++) sum[r][t] = In::add(sum[r][t], a + r * stride + 4 * unit, weights[t]);
  }
  memcpy(sums, sum, sizeof sum);
}

template <class In, int ROWS> Block block_of(int tiles) {
#if defined(__AVX512F__)
  if (tiles == 4) return block<In, ROWS, 4>;
  if (tiles == 3) return block<In, ROWS, 3>;
#endif
  return tiles == 2 ? block<In, ROWS, 2> : block<In, ROWS, 1>;
}
template <class In> Block block_of(int rows, int tiles) {
  switch (rows) {
#if defined(__AVX512F__)
    case 6: return block_of<In, 6>(tiles);
    case 5: return block_of<In, 5>(tiles);
    case 4: return block_of<In, 4>(tiles);
    case 3: return block_of<In, 3>(tiles);
#endif
    case 2: return block_of<In, 2>(tiles);
    default: return block_of<In, 1>(tiles);
  }
}
inline Block block_of(int kind, int rows, int tiles) {
  if (kind == INT8) return block_of<InInt8>(rows, tiles);
  return kind == BFLOAT16 ? block_of<InBfloat16>(rows, tiles) : block_of<InFloat32>(rows, tiles);
}

// Tiles `first` to `last` of `rows` rows; `done(row, tile, y, count)` gets `count` tiles of finished outputs.
// With `halves`, tiles of the first half of the outputs and of the second take turns: 0, h, 1, h + 1, ...
template <class Done>
void product(const Matrix& m, const Operand& a, int rows, int first, int last, bool halves, Done&& done) {
  alignas(64) uint8_t sums[MOST_ROWS * MOST_TILES * 64];
  const size_t tile_bytes = size_t(m.units) * 64;
  const int half = m.num_tiles() / 2;
  const uint8_t* tiles[MOST_TILES];
  int number[MOST_TILES];
  for (int tile = first; tile < last; tile += MOST_TILES) {
    const int count = last - tile < MOST_TILES ? last - tile : MOST_TILES;
    const auto place = [&](int t) { return halves ? (tile + t) / 2 + ((tile + t) % 2) * half : tile + t; };
    for (int t = 0; t < count; t++) tiles[t] = m.tiles + (number[t] = place(t)) * tile_bytes;
    const bool full = tile + 2 * MOST_TILES <= last;
    const uint8_t* ahead[2] = {m.tiles + place(full ? MOST_TILES : 0) * tile_bytes,
                               m.tiles + place((full ? MOST_TILES : 0) + (halves ? 1 : MOST_TILES / 2)) * tile_bytes};
    // Rows in blocks of about one size: seven are four and three, not six and one.
    const int blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int i = 0, row = 0; i < blocks; i++) {
      const int some = (rows - row) / (blocks - i);
      block_of(m.kind, some, count)(a.bytes + row * a.stride, a.stride, tiles, m.units, i < 2 ? ahead[i] : tiles[0], sums);
      for (int r = 0; r < some; r++, row++) {
        Floats y[MOST_TILES];
        for (int t = 0; t < count; t++) {
          const uint8_t* raw = sums + (r * count + t) * 64;
          const int at = number[t] * LANES;
          if (m.kind == INT8)
            y[t] = __builtin_convertvector(load<Ints>(raw) + load<Ints>(m.shifts + at), Floats) * a.scales[row] *
                   load<Floats>(m.scales + at);
          else
            y[t] = load<Floats>(raw);
          if (m.bias) y[t] += load<Floats>(m.bias + at);
        }
        done(row, tile, y, count);
      }
    }
  }
}

// A row of floats as `m` wants it. Its width is a multiple of 16.
inline void give(const Matrix& m, const float* x, const Operand& to, int row) {
  uint8_t* out = to.bytes + row * to.stride;
  if (m.kind == FLOAT32) {
    memcpy(out, x, m.width * sizeof(float));
  } else if (m.kind == BFLOAT16) {
    for (int i = 0; i < m.width; i += LANES) store(out + 2 * i, to_bfloat16(load<Floats>(x + i)));
  } else {
    Floats most = splat(0.0f);
    for (int i = 0; i < m.width; i += LANES) most = larger(most, magnitude(load<Floats>(x + i)));
    const float step = largest(most) * (1.0f / 127.0f);
    to.scales[row] = step > 1e-10f ? step : 1e-10f;
    const float inverse = 1.0f / to.scales[row];
    for (int i = 0; i < m.width; i += LANES)
      store(out + i, __builtin_convertvector(nearest(load<Floats>(x + i) * inverse) + 128, UnsignedBytes));
  }
}

// Row `output` of a float32 or bfloat16 matrix, as floats.
inline void row_of(const Matrix& m, int output, float* x) {
  const uint8_t* from = m.tiles + size_t(output / LANES) * m.units * 64 + output % LANES * 4;
  for (int unit = 0; unit < m.units; unit++) {
    const uint32_t word = load<uint32_t>(from + 64 * unit);
    if (m.kind == FLOAT32) x[unit] = bits<float>(word);
    else x[2 * unit] = bits<float>(word << 16), x[2 * unit + 1] = bits<float>(word & 0xFFFF0000u);
  }
}
