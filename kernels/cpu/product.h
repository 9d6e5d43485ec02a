// Matrix products of a few rows with weights in tiles: 16 outputs by 4 bytes of input at a time.
//
//   tile t:  unit 0: [output 16t: 4 bytes][output 16t + 1: 4 bytes] ... , unit 1: ...
//
// A unit is one float32, two bfloat16, four int8 or eight int4. Each output adds its units up in order, however many rows there are,
// so that a row's result depends on nothing but the row. Integer sums are exact: they are the same on every processor.
#pragma once
#include <type_traits>

#include "vectors.h"

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

// `outputs` by `width`. Of int8: a scale for each output, and `shifts`, which its integer sums start from (see InInt8::OFFSET).
// Of int4: in `scales` for each tile and each group of `group_units` units 16 scales and 16 shifts, nibble * scale + shift is
// the weight; column i stands for the input's column order[i], where there is an order.
struct Matrix {
  int32_t kind;
  int32_t outputs;
  int32_t width;
  int32_t units;
  const uint8_t* tiles;
  const float* bias;
  const float* scales;
  const int32_t* shifts;
  const int32_t* order;
  int64_t group_units;
  int num_tiles() const { return (outputs + LANES - 1) / LANES; }
  const float* groups(int tile) const { return kind == INT4 ? scales + tile * (units / group_units) * 2 * LANES : nullptr; }
};

// Rows as a matrix wants them: `stride` bytes apart, `scales` of int8 alone.
struct Operand {
  uint8_t* bytes;
  size_t stride;
  float* scales;
};

// Each kind of product has
//   UNIT      bytes of an operand's row that meet one unit of weights,
//   Weights   a register of weights as it is multiplied, made once for all rows of a block by `weights`,
//   AT_ONCE   how many of them are held at a time where registers are scarce,
//   add       sum + weights * the row's unit at `a`.
struct InFloat32 {
  static constexpr int UNIT = 4, AT_ONCE = PARTS;
  typedef Float Sum;
  typedef Float Weights;
  static INLINE Weights weights(const uint8_t* from) { return load<Float>(from); }
  static INLINE Sum add(Sum sum, const uint8_t* a, Weights w) { return fma(native(load<float>(a)), w, sum); }
};

#if defined(__AVX512BF16__)
struct InBfloat16 {
  static constexpr int UNIT = 4, AT_ONCE = PARTS;
  typedef Float Sum;
  typedef Int Weights;
  static INLINE Weights weights(const uint8_t* from) { return load<Int>(from); }
  static INLINE Sum add(Sum sum, const uint8_t* a, Weights w) {
    return (Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(load<int32_t>(a)), (__m512bh)w);
  }
};
#else
// Weights are widened on their way into float32 sums; rows stay float32.
struct InBfloat16 {
  static constexpr int UNIT = 8, AT_ONCE = PARTS;
  typedef Float Sum;
  struct Weights {
    Float first, second;
  };
  static INLINE Weights weights(const uint8_t* from) {
    const Word pair = load<Word>(from);
    return {bits<Float>(pair << 16), bits<Float>(pair & 0xFFFF0000u)};
  }
  static INLINE Sum add(Sum sum, const uint8_t* a, Weights w) {
    return fma(native(load<float>(a + 4)), w.second, fma(native(load<float>(a)), w.first, sum));
  }
};
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
// Unsigned times signed bytes: 128 is added to each input, and -128 times the sum of an output's weights to its sum.
struct InInt8 {
  static constexpr int UNIT = 4, AT_ONCE = PARTS, OFFSET = 128;
  typedef Int Sum;
  typedef Int Weights;
  static INLINE Weights weights(const uint8_t* from) { return load<Int>(from); }
  static INLINE Sum add(Sum sum, const uint8_t* a, Weights w) {
#if defined(__AVX512VNNI__)
    return (Int)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(load<int32_t>(a)), (__m512i)w);
#else
    return (Int)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(load<int32_t>(a)), (__m256i)w);
#endif
  }
};
#elif defined(__AVX2__)
// Without VNNI a product of bytes saturates in 16 bits. Bytes are widened instead, those at even and at odd places apart.
struct InInt8 {
  static constexpr int UNIT = 8, AT_ONCE = 1, OFFSET = 0;
  typedef Int Sum;
  struct Weights {
    __m256i even, odd;
  };
  static INLINE Weights weights(const uint8_t* from) {
    const __m256i bytes = load<__m256i>(from);
    return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
  }
  static INLINE Sum add(Sum sum, const uint8_t* a, Weights w) {
    sum += (Int)_mm256_madd_epi16(w.even, _mm256_set1_epi32(load<int32_t>(a)));
    return sum + (Int)_mm256_madd_epi16(w.odd, _mm256_set1_epi32(load<int32_t>(a + 4)));
  }
};
#else
struct InInt8 {
  static constexpr int UNIT = 4, AT_ONCE = PARTS, OFFSET = 0;
  typedef Int Sum;
  typedef Int Weights;
  static INLINE Weights weights(const uint8_t* from) { return load<Int>(from); }
  static INLINE Sum add(Sum sum, const uint8_t* a, Weights w) {
#if defined(__ARM_FEATURE_DOTPROD)
    return (Int)vdotq_s32((int32x4_t)sum, (int8x16_t)w, vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t*)a)));
#else
    for (int i = 0; i < 4; i++) sum += (w << (24 - 8 * i) >> 24) * int32_t(int8_t(a[i]));
    return sum;
#endif
  }
};
#endif

inline int unit_bytes(int kind) {
  if (kind == INT4) return 32;  // eight float32
  return kind == INT8 ? InInt8::UNIT : kind == BFLOAT16 ? InBfloat16::UNIT : InFloat32::UNIT;
}

// AVX2 has 16 registers, which hold the sums of a block and AT_ONCE of its weights. The others have 32, for all its weights.
constexpr bool SCARCE = NATIVE == 8;
// Rows by tiles of a block: as many sums as registers hold beside the weights.
#if defined(__AVX512F__)
constexpr int MOST_ROWS = 6, MOST_TILES = 4;
constexpr int tiles_of(int) { return 4; }
#elif defined(__AVX2__)
constexpr int MOST_ROWS = 5, MOST_TILES = 4;
constexpr int tiles_of(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
constexpr int MOST_ROWS = 6, MOST_TILES = 2;
constexpr int tiles_of(int rows) { return rows <= 3 ? 2 : 1; }
#endif

// Neighbouring tiles that a block brings in while it multiplies: `ahead` is the first of them.
constexpr int ahead_of(int tiles) { return tiles > 2 ? 2 : 1; }
struct Tiles {
  const uint8_t* bytes[MOST_TILES];
  const float* groups[MOST_TILES];  // of int4
  int units, group_units;
};
// `sums` are (rows, tiles, 16).
typedef void (*Block)(const uint8_t* a, size_t stride, const Tiles& tiles, const uint8_t* ahead, uint8_t* sums);

template <class In, int ROWS, int TILES>
void block(const uint8_t* a, size_t stride, const Tiles& tiles, const uint8_t* ahead, uint8_t* sums) {
  constexpr int REGISTERS = TILES * PARTS;
  constexpr int AT_ONCE = SCARCE ? In::AT_ONCE : REGISTERS;
  typename In::Sum sum[ROWS][REGISTERS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
    for (int t = 0; t < REGISTERS; t++) sum[r][t] = typename In::Sum{};
  const uint8_t* at[TILES];
  for (int t = 0; t < TILES; t++) at[t] = tiles.bytes[t];
  for (size_t unit = 0; unit < size_t(tiles.units); unit++) {
    for (int i = 0; ahead && i < ahead_of(TILES); i++) __builtin_prefetch(ahead + 64 * (ahead_of(TILES) * unit + i), 0, 2);
#pragma GCC unroll 16
    for (int t = 0; t < REGISTERS; t += AT_ONCE) {
      if (AT_ONCE < REGISTERS) asm("" : "+r"(a));  // inputs are loaded again rather than kept
      typename In::Weights w[AT_ONCE];
#pragma GCC unroll 16
      for (int i = 0; i < AT_ONCE; i++) w[i] = In::weights(at[(t + i) / PARTS] + 64 * unit + (t + i) % PARTS * sizeof(Float));
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int i = 0; i < AT_ONCE; i++) sum[r][t + i] = In::add(sum[r][t + i], a + r * stride + In::UNIT * unit, w[i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
    for (int t = 0; t < REGISTERS; t++) store(sums + (r * REGISTERS + t) * sizeof(Float), sum[r][t]);
}

// Nibbles become float32 weights on their way into the sums.
struct InInt4 {};
template <int ROWS, int TILES>
void block_int4(const uint8_t* a, size_t stride, const Tiles& tiles, const uint8_t* ahead, uint8_t* sums) {
  constexpr int REGISTERS = TILES * PARTS;
  Float sum[ROWS][REGISTERS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
    for (int t = 0; t < REGISTERS; t++) sum[r][t] = Float{};
  for (int group = 0; group * tiles.group_units < tiles.units; group++) {
    Float scale[REGISTERS], shift[REGISTERS];
#pragma GCC unroll 16
    for (int t = 0; t < REGISTERS; t++) {
      const float* of = tiles.groups[t / PARTS] + group * 2 * LANES + t % PARTS * NATIVE;
      scale[t] = load<Float>(of), shift[t] = load<Float>(of + LANES);
    }
    for (size_t unit = size_t(group) * tiles.group_units; unit < size_t(group + 1) * tiles.group_units; unit++) {
      for (int i = 0; ahead && i < ahead_of(TILES); i++) __builtin_prefetch(ahead + 64 * (ahead_of(TILES) * unit + i), 0, 2);
      Word nibbles[REGISTERS];
#pragma GCC unroll 16
      for (int t = 0; t < REGISTERS; t++) nibbles[t] = load<Word>(tiles.bytes[t / PARTS] + 64 * unit + t % PARTS * sizeof(Float));
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++)
#pragma GCC unroll 16
        for (int t = 0; t < REGISTERS; t++) {
          const Float weight = fma(to_float((Int)(nibbles[t] >> 4 * j & 15u)), scale[t], shift[t]);
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; r++)
            sum[r][t] = fma(native(load<float>(a + r * stride + 32 * unit + 4 * j)), weight, sum[r][t]);
        }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
    for (int t = 0; t < REGISTERS; t++) store(sums + (r * REGISTERS + t) * sizeof(Float), sum[r][t]);
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
// Two rows by two outputs of eight inputs in one instruction.
template <int ROWS, int TILES>
void block_pairs(const uint8_t* a, size_t stride, const Tiles& tiles, const uint8_t*, uint8_t* sums) {
  constexpr int PAIRS = (ROWS + 1) / 2, REGISTERS = TILES * PARTS;
  int32x4_t sum[PAIRS][REGISTERS][2] = {};
  for (size_t unit = 0; unit < size_t(tiles.units); unit += 2) {
    int8x16_t rows[PAIRS];
    for (int r = 0; r < PAIRS; r++) {
      const int8_t* first = (const int8_t*)a + 2 * r * stride + 4 * unit;
      rows[r] = vcombine_s8(vld1_s8(first), vld1_s8(2 * r + 1 < ROWS ? first + stride : first));
    }
#pragma GCC unroll 16
    for (int t = 0; t < REGISTERS; t++) {
      const uint8_t* at = tiles.bytes[t / PARTS] + 64 * unit + t % PARTS * sizeof(Int);
      const int32x4_t w = (int32x4_t)load<Int>(at), next = (int32x4_t)load<Int>(at + 64);
      const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(w, next)), high = vreinterpretq_s8_s32(vzip2q_s32(w, next));
#pragma GCC unroll 4
      for (int r = 0; r < PAIRS; r++) {
        sum[r][t][0] = vmmlaq_s32(sum[r][t][0], rows[r], low);
        sum[r][t][1] = vmmlaq_s32(sum[r][t][1], rows[r], high);
      }
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int t = 0; t < REGISTERS; t++) {
      const int32x4_t *of = sum[r / 2][t], low = of[0], high = of[1];
      const int32x4_t row = r % 2 ? vcombine_s32(vget_high_s32(low), vget_high_s32(high))
                                  : vcombine_s32(vget_low_s32(low), vget_low_s32(high));
      store(sums + (r * REGISTERS + t) * sizeof(Int), (Int)row);
    }
}
#endif

template <class In, int ROWS, int TILES> constexpr Block block_for() {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if constexpr (std::is_same_v<In, InInt8> && ROWS > 1) return block_pairs<ROWS, TILES>;
#endif
  if constexpr (std::is_same_v<In, InInt4>) return block_int4<ROWS, TILES>;
  else return block<In, ROWS, TILES>;
}
template <class In, int ROWS> Block block_of(int tiles) {
  if constexpr (tiles_of(ROWS) >= 4) {
    if (tiles == 4) return block_for<In, ROWS, 4>();
    if (tiles == 3) return block_for<In, ROWS, 3>();
  }
  if constexpr (tiles_of(ROWS) >= 2) {
    if (tiles == 2) return block_for<In, ROWS, 2>();
  }
  return block_for<In, ROWS, 1>();
}
template <class In> Block block_of(int rows, int tiles) {
  switch (rows) {
    case 6: return block_of<In, 6>(tiles);
    case 5: return block_of<In, 5>(tiles);
    case 4: return block_of<In, 4>(tiles);
    case 3: return block_of<In, 3>(tiles);
    case 2: return block_of<In, 2>(tiles);
    default: return block_of<In, 1>(tiles);
  }
}
inline Block block_of(int kind, int rows, int tiles) {
  if (kind == INT8) return block_of<InInt8>(rows, tiles);
  if (kind == INT4) return block_of<InInt4>(rows, tiles);
  return kind == BFLOAT16 ? block_of<InBfloat16>(rows, tiles) : block_of<InFloat32>(rows, tiles);
}

// 16 finished outputs of a row from their sums.
INLINE Floats finish(const Matrix& m, const uint8_t* sums, int tile, float scale) {
  const int at = tile * LANES;
  Floats y;
  if (m.kind == INT8) y = to_float(load<Ints>(sums) + load<Ints>(m.shifts + at)) * splat(scale) * load<Floats>(m.scales + at);
  else y = load<Floats>(sums);
  return m.bias ? y + load<Floats>(m.bias + at) : y;
}

// Tiles `first` to `last` of `rows` rows; `done(row, tile, y, count)` gets `count` tiles of finished outputs.
// With `halves`, tiles of the first half of the outputs and of the second take turns: 0, h, 1, h + 1, ...; `count` is even then.
template <class Done>
void product(const Matrix& m, const Operand& a, int rows, int first, int last, bool halves, Done&& done) {
  alignas(64) uint8_t sums[MOST_ROWS * MOST_TILES * 64];
  const size_t tile_bytes = size_t(m.units) * 64;
  const int half = m.num_tiles() / 2;
  // Rows in blocks of about one size: seven are four and three, not six and one.
  const int blocks = (rows + MOST_ROWS - 1) / MOST_ROWS, most_tiles = tiles_of((rows + blocks - 1) / blocks);
  const int step = halves && most_tiles == 1 ? 2 : most_tiles;
  const auto place = [&](int tile) { return halves ? tile / 2 + tile % 2 * half : tile; };
  for (int tile = first; tile < last; tile += step) {
    const int count = last - tile < step ? last - tile : step;
    for (int i = 0, row = 0; i < blocks; i++) {
      const int some = (rows - row) / (blocks - i);
      Floats y[MOST_ROWS][MOST_TILES];
      for (int t = 0; t < count; t += most_tiles) {
        Tiles tiles;
        tiles.units = m.units, tiles.group_units = int(m.group_units);
        const int together = count - t < most_tiles ? count - t : most_tiles;
        for (int j = 0; j < together; j++) {
          tiles.bytes[j] = m.tiles + place(tile + t + j) * tile_bytes;
          tiles.groups[j] = m.groups(place(tile + t + j));
        }
        // Each of the first blocks of rows brings in a part of the next tiles.
        const int by = ahead_of(together), next = tile + step + t + (halves && by == 2 ? i : i * by);
        const uint8_t* ahead = i * by < together && next < last ? m.tiles + place(next) * tile_bytes : nullptr;
        block_of(m.kind, some, together)(a.bytes + row * a.stride, a.stride, tiles, ahead, sums);
        for (int r = 0; r < some; r++)
          for (int j = 0; j < together; j++)
            y[r][t + j] = finish(m, sums + (r * together + j) * 64, place(tile + t + j), m.kind == INT8 ? a.scales[row + r] : 0);
      }
      for (int r = 0; r < some; r++, row++) done(row, tile, y[r], count);
    }
  }
}

// A row of floats as `m` wants it. Its width is a multiple of 16.
inline void give(const Matrix& m, const float* x, const Operand& to, int row) {
  uint8_t* out = to.bytes + row * to.stride;
  if (m.order) {
    for (int i = 0; i < m.width; i++) store(out + 4 * i, x[m.order[i]]);
  } else if (m.kind == FLOAT32 || m.kind == INT4 || (m.kind == BFLOAT16 && InBfloat16::UNIT == 8)) {
    memcpy(out, x, m.width * sizeof(float));
  } else if (m.kind == BFLOAT16) {
    for (int i = 0; i < m.width; i += LANES) store_bfloat16(out + 2 * i, load<Floats>(x + i));
  } else {
    Floats most = splat(0.0f);
    for (int i = 0; i < m.width; i += LANES) most = larger(most, magnitude(load<Floats>(x + i)));
    const float step = largest(most) * (1.0f / 127.0f);
    to.scales[row] = step > 1e-10f ? step : 1e-10f;
    const float inverse = 1.0f / to.scales[row];
    for (int i = 0; i < m.width; i += LANES) {
      const Ints values = nearest(load<Floats>(x + i) * inverse);
      if (InInt8::UNIT == 4) {
        store_bytes(out + i, values + splat(InInt8::OFFSET));
        continue;
      }
#if defined(__AVX2__)
      store_halves(out + 2 * i, EACH((Word)values.part[i]));
      const __m256i halves = load<__m256i>(out + 2 * i);
      store(out + 2 * i, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(halves, 0xD8), 0xD8));
#endif
    }
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
