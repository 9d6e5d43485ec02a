// Attention over paged KV, one KV head at a time, in blocks of slots with a running softmax.
#pragma once
#include "product.h"

// All layers' slots, K heads before V heads in each; `scales` (one for each head of each slot) of int8 alone.
struct Cache {
  uint8_t* pages;
  float* scales;
  int64_t kind;
  int64_t slots;
  int64_t page_size;
};

constexpr int SLOTS = 64;
// Columns of one block of queries: tokens times the query heads that share a KV head.
constexpr int COLUMNS = 96;

// One KV head of one layer.
struct Head {
  const Cache& cache;
  int64_t layer;
  int kv_heads;
  int number;
  int width;

  size_t element() const { return cache.kind == FLOAT32 ? 4 : cache.kind == BFLOAT16 ? 2 : 1; }
  // Which vector, counted over all layers: `value` 0 is K, 1 is V.
  size_t index(int64_t slot, int value) const {
    return size_t((layer * cache.slots + slot) * 2 + value) * kv_heads + number;
  }
  void write(int64_t slot, int value, const float* x) const {
    const size_t at = index(slot, value);
    uint8_t* to = cache.pages + at * width * element();
    if (cache.kind == FLOAT32) {
      memcpy(to, x, width * sizeof(float));
    } else if (cache.kind == BFLOAT16) {
      for (int i = 0; i < width; i += LANES) store_bfloat16(to + 2 * i, load<Floats>(x + i));
    } else {
      Floats most = splat(0.0f);
      for (int i = 0; i < width; i += LANES) most = larger(most, magnitude(load<Floats>(x + i)));
      const float step = largest(most) / 127.0f;
      cache.scales[at] = step > 1e-10f ? step : 1e-10f;
      for (int i = 0; i < width; i += LANES)
        store_bytes(to + i, nearest(load<Floats>(x + i) / splat(cache.scales[at])));
    }
  }
  void read(int64_t slot, int value, float* x) const {
    const size_t at = index(slot, value);
    const uint8_t* from = cache.pages + at * width * element();
    if (cache.kind == FLOAT32) {
      memcpy(x, from, width * sizeof(float));
    } else if (cache.kind == BFLOAT16) {
      for (int i = 0; i < width; i += LANES) store(x + i, from_bfloat16(from + 2 * i));
    } else {
      for (int i = 0; i < width; i += LANES) store(x + i, from_int8(from + i) * cache.scales[at]);
    }
  }
};

// A thread's own room.
struct Room {
  float* keys;     // (SLOTS, width)
  float* values;   // (SLOTS, width)
  float* queries;  // (width, COLUMNS)
  float* scores;   // (SLOTS, COLUMNS)
  float* mixed;    // (width, COLUMNS)
};

inline int64_t slot_of(const int32_t* table, int64_t position, int64_t page_size) {
  return table[position / page_size] * page_size + position % page_size;
}

// Widens `count` slots into the room, and zeros behind them up to a whole block of `mix_all`'s rows. How many there are then.
inline int fetch(const Head& head, const int32_t* table, int64_t first, int count, const Room& room) {
  for (int i = 0; i < count; i++) {
    const int64_t slot = slot_of(table, first + i, head.cache.page_size);
    head.read(slot, 0, room.keys + i * head.width);
    head.read(slot, 1, room.values + i * head.width);
  }
  const int slots = (count + 7) / 8 * 8;
  memset(room.keys + count * head.width, 0, (slots - count) * head.width * sizeof(float));
  memset(room.values + count * head.width, 0, (slots - count) * head.width * sizeof(float));
  return slots;
}

// Where `count` slots' K and V are as floats: in the cache itself, or in the room, widened.
inline void find(const Head& head, const int32_t* table, int64_t first, int count, const Room& room, const float** keys,
                 const float** values) {
  for (int i = 0; i < count; i++) {
    const int64_t slot = slot_of(table, first + i, head.cache.page_size);
    if (head.cache.kind == FLOAT32) {
      keys[i] = reinterpret_cast<const float*>(head.cache.pages) + head.index(slot, 0) * head.width;
      values[i] = reinterpret_cast<const float*>(head.cache.pages) + head.index(slot, 1) * head.width;
      for (int d = 0; d < head.width; d += LANES) __builtin_prefetch(keys[i] + d), __builtin_prefetch(values[i] + d);
    } else {
      keys[i] = room.keys + i * head.width, values[i] = room.values + i * head.width;
      head.read(slot, 0, room.keys + i * head.width);
      head.read(slot, 1, room.values + i * head.width);
    }
  }
  // What is behind them is computed and thrown away.
  for (int i = count; i % LANES; i++) keys[i] = keys[0];
}

// out = out * faded + the weighted sum of `count` vectors of VECTORS * 16 floats, in two sums that do not wait for each other.
template <int VECTORS> void gather(const float* weights, const float* const* values, int from, int count, float faded, float* out) {
  Floats even[VECTORS], odd[VECTORS];
#pragma GCC unroll 8
  for (int d = 0; d < VECTORS; d++) even[d] = load<Floats>(out + d * LANES) * faded, odd[d] = splat(0.0f);
  int j = 0;
  for (; j + 1 < count; j += 2)
#pragma GCC unroll 8
    for (int d = 0; d < VECTORS; d++) {
      even[d] = fma(splat(weights[j]), load<Floats>(values[j] + from + d * LANES), even[d]);
      odd[d] = fma(splat(weights[j + 1]), load<Floats>(values[j + 1] + from + d * LANES), odd[d]);
    }
#pragma GCC unroll 8
  for (int d = 0; d < VECTORS; d++) {
    if (j < count) even[d] = fma(splat(weights[j]), load<Floats>(values[j] + from + d * LANES), even[d]);
    store(out + d * LANES, even[d] + odd[d]);
  }
}

// `shared` query heads of one token, (shared, width) and already scaled, that sees positions `low` to `high`.
template <int VECTORS>
void attend_one(const Head& head, const int32_t* table, const float* q, int shared, int64_t low, int64_t high, const Room& room,
                float* out) {
  const int width = head.width, vectors = VECTORS ? VECTORS : width / LANES;
  const float *keys[SLOTS], *values[SLOTS];
  float best[COLUMNS], total[COLUMNS];
  for (int g = 0; g < shared; g++) best[g] = -1e30f, total[g] = 0;
  memset(out, 0, shared * width * sizeof(float));
  for (int64_t first = low; first < high; first += SLOTS) {
    const int count = high - first < SLOTS ? int(high - first) : SLOTS, groups = (count + LANES - 1) / LANES;
    find(head, table, first, count, room, keys, values);
    for (int g = 0; g < shared; g++) {
      Floats score[SLOTS / LANES], most = splat(best[g]), all = splat(0.0f);
      for (int s = 0; s < groups; s++) {
        Floats dots[LANES];
        for (int j = 0; j < LANES; j++) {
          const float* k = keys[s * LANES + j];
          Floats dot = load<Floats>(q + g * width) * load<Floats>(k);
#pragma GCC unroll 8
          for (int d = 1; d < vectors; d++) dot = fma(load<Floats>(q + g * width + d * LANES), load<Floats>(k + d * LANES), dot);
          dots[j] = dot;
        }
        score[s] = select(counted() < splat(count - s * LANES), sums(dots), splat(-1e30f));
        most = larger(most, score[s]);
      }
      const float top = largest(most), faded = lane(exponential(splat(best[g] - top)), 0);
      best[g] = top;
      for (int s = 0; s < groups; s++) {
        score[s] = select(counted() < splat(count - s * LANES), exponential(score[s] - splat(top)), splat(0.0f));
        all = all + score[s];
      }
      total[g] = total[g] * faded + sum(all);
      const float* weights = reinterpret_cast<const float*>(score);
      if (VECTORS) gather<VECTORS ? VECTORS : 1>(weights, values, 0, count, faded, out + g * width);
      else
        for (int d = 0; d < width; d += LANES) gather<1>(weights, values, d, count, faded, out + g * width + d);
    }
  }
  for (int i = 0; i < shared * width; i += LANES) store(out + i, load<Floats>(out + i) * (1.0f / total[i / width]));
}

inline void attend_one(const Head& head, const int32_t* table, const float* q, int shared, int64_t low, int64_t high,
                       const Room& room, float* out) {
  const int vectors = head.width / LANES;
  const auto attend = vectors == 2 ? attend_one<2> : vectors == 4 ? attend_one<4> : vectors == 8 ? attend_one<8> : attend_one<0>;
  attend(head, table, q, shared, low, high, room, out);
}

// c (rows, TILES * 16) of rows of COLUMNS, from a[r * by_row + k * by_step] and b (steps, ...) of rows of COLUMNS; `keep` adds.
template <int ROWS, int TILES>
inline void mix(const float* a, size_t by_row, size_t by_step, const float* b, int steps, float* c, bool keep) {
  Floats sum[ROWS][TILES];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int t = 0; t < TILES; t++) sum[r][t] = keep ? load<Floats>(c + r * COLUMNS + t * LANES) : splat(0.0f);
  for (int k = 0; k < steps; k++) {
    Floats column[TILES];
#pragma GCC unroll 8
    for (int t = 0; t < TILES; t++) column[t] = load<Floats>(b + k * COLUMNS + t * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int t = 0; t < TILES; t++) sum[r][t] = fma(splat(a[r * by_row + k * by_step]), column[t], sum[r][t]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int t = 0; t < TILES; t++) store(c + r * COLUMNS + t * LANES, sum[r][t]);
}

inline void mix_all(const float* a, size_t by_row, size_t by_step, int rows, const float* b, int steps, float* c, int tiles,
                    bool keep) {
#if defined(__AVX512F__)
  constexpr int ROWS = 8, TILES = 3;
#else
  constexpr int ROWS = 4, TILES = 1;
#endif
  for (int t = 0; t < tiles;) {
    const int count = tiles - t < TILES ? tiles - t : TILES;
    for (int r = 0; r < rows; r += ROWS) {
      const float* from = a + r * by_row;
      float* to = c + r * COLUMNS + t * LANES;
      if (count == 3) mix<ROWS, TILES>(from, by_row, by_step, b + t * LANES, steps, to, keep);
      else if (count == 2) mix<ROWS, (TILES > 2 ? 2 : 1)>(from, by_row, by_step, b + t * LANES, steps, to, keep);
      else mix<ROWS, 1>(from, by_row, by_step, b + t * LANES, steps, to, keep);
    }
    t += count;
  }
}

// A stretch of `tokens` at `position` and on; row t of q and out is `stride` floats behind the one before, q already scaled.
// tokens * shared <= COLUMNS. Scores stand upright, a column for each query, so that softmax never crosses lanes.
inline void attend_block(const Head& head, const int32_t* table, const float* q, int tokens, int shared, int64_t position,
                         int64_t window, size_t q_stride, const Room& room, float* out, size_t out_stride) {
  const int width = head.width, columns = tokens * shared, tiles = (columns + LANES - 1) / LANES;
  const float lowest = -1e30f;
  alignas(64) int32_t seen[COLUMNS];
  for (int c = 0; c < tiles * LANES; c++) seen[c] = int32_t(position + (c < columns ? c / shared : 0));
  Floats square[LANES];
  for (int c = 0; c < tiles * LANES; c += LANES)
    for (int d = 0; d < width; d += LANES) {
      for (int i = 0; i < LANES; i++)
        square[i] = c + i < columns ? load<Floats>(q + (c + i) / shared * q_stride + (c + i) % shared * width + d) : splat(0.0f);
      transpose(square);
      for (int i = 0; i < LANES; i++) store(room.queries + (d + i) * COLUMNS + c, square[i]);
    }
  Floats best[COLUMNS / LANES], total[COLUMNS / LANES];
  for (int t = 0; t < tiles; t++) best[t] = splat(lowest), total[t] = splat(0.0f);
  const int64_t high = position + tokens, low = window && position - window + 1 > 0 ? position - window + 1 : 0;
  for (int64_t first = low; first < high; first += SLOTS) {
    const int count = high - first < SLOTS ? int(high - first) : SLOTS;
    const int slots = fetch(head, table, first, count, room);
    mix_all(room.keys, width, 1, slots, room.queries, width, room.scores, tiles, false);
    const bool edge = first + SLOTS > position + 1 || (window && first < high - window);
    for (int t = 0; t < tiles; t++) {
      float* score = room.scores + t * LANES;
      const Ints until = load<Ints>(seen + t * LANES), since = window ? until - splat(int32_t(window)) : splat(int32_t(-1));
      Floats most = best[t];
      for (int s = 0; s < slots; s++) {
        Floats x = load<Floats>(score + s * COLUMNS);
        if (edge) {
          const Ints at = splat(int32_t(first + s));
          x = select(at < until + splat(int32_t(1)), select(at > since, x, splat(lowest)), splat(lowest));
          store(score + s * COLUMNS, x);
        }
        most = larger(most, x);
      }
      const Floats faded = exponential(best[t] - most);
      best[t] = most;
      Floats all = total[t] * faded;
      for (int s = 0; s < slots; s++) {
        const Floats x = load<Floats>(score + s * COLUMNS);
        Floats weight = exponential(x - most);
        if (edge) weight = select(x > splat(lowest), weight, splat(0.0f));
        all = all + weight;
        store(score + s * COLUMNS, weight);
      }
      total[t] = all;
      if (first > low)
        for (int d = 0; d < width; d++) {
          float* at = room.mixed + d * COLUMNS + t * LANES;
          store(at, load<Floats>(at) * faded);
        }
    }
    mix_all(room.values, 1, width, width, room.scores, slots, room.mixed, tiles, first > low);
  }
  for (int t = 0; t < tiles; t++) total[t] = splat(1.0f) / total[t];
  for (int c = 0; c < columns; c += LANES)
    for (int d = 0; d < width; d += LANES) {
      for (int i = 0; i < LANES; i++) square[i] = load<Floats>(room.mixed + (d + i) * COLUMNS + c) * total[c / LANES];
      transpose(square);
      for (int i = 0; i < LANES && c + i < columns; i++)
        store(out + (c + i) / shared * out_stride + (c + i) % shared * width + d, square[i]);
    }
}
