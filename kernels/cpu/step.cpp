// A whole step of a Llama in one call: from token ids to logits, KV written on the way.
//
// Few rows: threads share each matrix by outputs and meet after each. Many rows: each thread takes blocks of rows through
// all that lies between two attentions, and they meet once a layer, when everybody's KV is written.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <omp.h>
#include <sched.h>
#include <vector>
#if defined(__linux__)
#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "attention.h"

struct Layer {
  const float* attention_norm;
  const float* qk_norm;
  const float* mlp_norm;
  Matrix qkv, out, gate_up, down;
  int64_t window;
};

// `embedding` (vocabulary, hidden) in float32 or bfloat16, null where it is the head itself; `turns` (positions, width): cosine and sine of each pair.
struct Model {
  int64_t hidden, inner, heads, kv_heads, width, num_layers, vocabulary;
  const Layer* layers;
  const float* norm;
  Matrix head;
  const uint8_t* embedding;
  int64_t embedding_kind;
  const float* turns;
  float eps;
};

// `tokens` rows, cut into sequences that begin at `starts` and have `lengths` rows; pages of sequence s from pages[tables[s]].
// Logits (sampled, vocabulary) of the rows in `last`, and in `best` the first of the largest of each. Once `stop` is not zero,
// another thread wants no more of it: it ends with the layer it is in, and logits mean nothing.
struct Step {
  int64_t tokens, sequences, sampled;
  const int32_t* ids;
  const int32_t* starts;
  const int32_t* lengths;
  const int32_t* tables;
  const int32_t* pages;
  const int32_t* last;
  float* logits;
  int32_t* best;
  const std::atomic<int32_t>* stop;
};

namespace {

// Rows of a thread's share of a long step: its operands fit into the second level of cache.
constexpr int64_t BLOCK_ROWS = 64;
alignas(64) constexpr float SIGN[LANES] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
// Up to this many rows for each thread, weights are what a step waits for, and they are read once.
constexpr int64_t FEW_ROWS = 16;

// Part `number` of `threads` of `total` tiles, in whole blocks of them.
int part(int number, int threads, int total) {
  const int blocks = (total + MOST_TILES - 1) / MOST_TILES;
  return std::min(total, blocks * number / threads * MOST_TILES);
}

struct Free {
  void operator()(void* pointer) const { free(pointer); }
};
// Grows, keeps nothing, never shrinks.
class Buffer {
 public:
  template <class T> T* get(size_t count) {
    const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
    if (bytes > size_) {
      data_.reset(static_cast<uint8_t*>(aligned_alloc(64, bytes)));
      size_ = bytes;
    }
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  std::unique_ptr<uint8_t, Free> data_;
  size_t size_ = 0;
};

// Where threads wait for each other: awake for about as long as a small matrix takes, then asleep, so that one which lost its
// processor to another program gets the one of those that wait for it.
class Meeting {
 public:
  void open(int threads) { threads_ = threads, here_ = 0, round_ = 0; }
  void wait() {
    if (threads_ == 1) return;
    const int round = round_.load(std::memory_order_acquire);
    if (here_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      here_.store(0, std::memory_order_relaxed);
      round_.store(round + 1);
      if (asleep_.load()) wake();
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
      if (spins > SPINS) sleep(round);
#if defined(__x86_64__) || defined(__i386__)
      else __builtin_ia32_pause();
#endif
    }
  }

 private:
  static constexpr int SPINS = 2000;
  int threads_ = 1;
  std::atomic<int> here_{0}, round_{0}, asleep_{0};

#if defined(__linux__)
  // Returns at once where the round is over; else whoever ends it sees that somebody sleeps.
  void sleep(int round) {
    asleep_.fetch_add(1);
    syscall(SYS_futex, &round_, FUTEX_WAIT_PRIVATE, round, nullptr, nullptr, 0);
    asleep_.fetch_sub(1);
  }
  void wake() { syscall(SYS_futex, &round_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
#else
  void sleep(int) { sched_yield(); }
  void wake() {}
#endif
};

struct Best {
  Floats value;
  Ints at;
};

struct Thread {
  Buffer bytes, scales, row, hidden, mixed, keys, values, queries, scores, summed, best;
  Room room;
};

class Run {
 public:
  Run(const Model& model, const Cache& cache, const Step& step, int threads) : m(model), cache(cache), s(step) {
    shared_ = int(m.heads / m.kv_heads);
    heads_ = int(m.heads + 2 * m.kv_heads);
    scale_ = 1.0f / std::sqrt(float(m.width));
    few_ = s.tokens <= FEW_ROWS * threads;
    const int64_t parts = few_ ? 1 : threads * ((s.tokens + threads * BLOCK_ROWS - 1) / (threads * BLOCK_ROWS));
    rows_ = (s.tokens + parts - 1) / parts;
  }

  void prepare(Buffer& x, Buffer& qkv, Buffer& mixed, Buffer& hidden, Buffer& places, int threads) {
    x_ = x.get<float>(s.tokens * m.hidden);
    qkv_ = qkv.get<float>(s.tokens * heads_ * m.width);
    mixed_ = mixed.get<float>(few_ ? s.tokens * m.heads * m.width : 0);
    hidden_ = hidden.get<float>(few_ ? s.tokens * m.inner : 0);
    sequence_ = places.get<int32_t>(s.tokens * 2);
    position_ = sequence_ + s.tokens;
    for (int64_t i = 0, row = 0; i < s.sequences; i++)
      for (int t = 0; t < s.lengths[i]; t++, row++) sequence_[row] = int32_t(i), position_[row] = s.starts[i] + t;
    taken_ = std::vector<std::atomic<int>>(m.num_layers);
    found_.resize(size_t(threads) * s.sampled);
  }

  void open(int threads) { meeting_.open(threads); }

  // What each of `threads` threads does. False where it was stopped.
  bool work(int number, int threads, Thread& own) {
    widest_ = std::max({m.hidden, m.inner, m.heads * m.width});
    const int64_t rows = std::max(rows_, s.sampled);
    const Room room = {own.keys.get<float>(SLOTS * m.width), own.values.get<float>(SLOTS * m.width),
                       own.queries.get<float>(COLUMNS * m.width), own.scores.get<float>(COLUMNS * SLOTS),
                       own.summed.get<float>(COLUMNS * m.width)};
    own.room = room;
    // Lines of 64 bytes between rows, so that they do not all fall on the same places of the cache.
    const Operand operand = {own.bytes.get<uint8_t>(rows * (widest_ * 4 + 64)), 0, own.scales.get<float>(rows)};
    float* row = own.row.get<float>(widest_);
    if (few_) {
      for (int64_t i = number; i < s.tokens; i += threads) embed(i);
      meeting_.wait();
      for (int64_t i = 0; i < m.num_layers && !stopped_by(i - 1); i++) few(i, number, threads, operand, row, own);
    } else {
      own.hidden.get<float>(rows_ * m.inner);
      own.mixed.get<float>(rows_ * m.heads * m.width);
      for (int64_t first = number * rows_; first < s.tokens; first += threads * rows_)
        for (int64_t i = first; i < std::min(first + rows_, s.tokens); i++) embed(i);
      for (int64_t i = 0; i < m.num_layers && !stopped_by(i - 1); i++) many(i, number, threads, operand, row, own);
      meeting_.wait();
    }
    if (stopped_by(m.num_layers)) return false;
    if (s.sampled) speak(number, threads, operand, row, own);
    return true;
  }

 private:
  const Model& m;
  const Cache& cache;
  const Step& s;
  int shared_, heads_;
  float scale_;
  bool few_;
  int64_t rows_, widest_;
  float *x_, *qkv_, *mixed_, *hidden_;
  int32_t *sequence_, *position_;
  Meeting meeting_;
  std::vector<std::atomic<int>> taken_;
  std::atomic<int64_t> stopped_in_{INT64_MAX};
  std::vector<std::pair<float, int32_t>> found_;

  // One thread looks, in front of a meeting, and says in which layer: who comes late from there does not mistake it for the next.
  void look(int number, int64_t layer) {
    if (number == 0 && s.stop->load(std::memory_order_relaxed) && !stopped_by(layer)) stopped_in_.store(layer);
  }
  bool stopped_by(int64_t layer) const { return stopped_in_.load(std::memory_order_relaxed) <= layer; }

  void embed(int64_t row) {
    const size_t at = size_t(s.ids[row]) * m.hidden;
    float* x = x_ + row * m.hidden;
    if (!m.embedding) {
      row_of(m.head, s.ids[row], x);
    } else if (m.embedding_kind == FLOAT32) {
      memcpy(x, m.embedding + at * 4, m.hidden * 4);
    } else {
      for (int64_t i = 0; i < m.hidden; i += LANES) store(x + i, from_bfloat16(m.embedding + (at + i) * 2));
    }
  }

  void normalized(const float* x, const float* weight, const Matrix& next, float* row, const Operand& to, int at) {
    Floats squares = splat(0.0f);
    for (int64_t i = 0; i < m.hidden; i += LANES) squares = fma(load<Floats>(x + i), load<Floats>(x + i), squares);
    const float factor = 1.0f / std::sqrt(sum(squares) / float(m.hidden) + m.eps);
    for (int64_t i = 0; i < m.hidden; i += LANES) store(row + i, load<Floats>(x + i) * factor * load<Floats>(weight + i));
    give(next, row, to, at);
  }

  // Each of q and k by the norm of its head if there is one, then turned in pairs; q is scaled too.
  void turn(float* x, const float* norm, const float* turns, float scale) {
    float factor = scale;
    if (norm) {
      Floats squares = splat(0.0f);
      for (int64_t i = 0; i < m.width; i += LANES) squares = fma(load<Floats>(x + i), load<Floats>(x + i), squares);
      factor *= 1.0f / std::sqrt(sum(squares) / float(m.width) + m.eps);
    }
    const Floats sign = load<Floats>(SIGN);
    for (int64_t i = 0; i < m.width; i += LANES) {
      Floats v = load<Floats>(x + i) * factor;
      if (norm) v = v * load<Floats>(norm + i);
      const Floats t = load<Floats>(turns + i);
      const Floats cosine = EACH(SHUFFLED(t.part[i], t.part[i], 0xA0)), sine = EACH(SHUFFLED(t.part[i], t.part[i], 0xF5));
      const Floats other = EACH(SHUFFLED(v.part[i], v.part[i], 0xB1));
      store(x + i, fma(v, cosine, other * (sine * sign)));
    }
  }

  const int32_t* table(int64_t sequence) const { return s.pages + s.tables[sequence]; }

  // Turns the heads of KV head `k` in a row, and writes its K and V.
  void write(int64_t layer, int k, int64_t row) {
    const Layer& l = m.layers[layer];
    float* qkv = qkv_ + row * heads_ * m.width;
    const float* turns = m.turns + position_[row] * m.width;
    for (int g = 0; g < shared_; g++) {
      const int64_t q = k * shared_ + g;
      turn(qkv + q * m.width, l.qk_norm ? l.qk_norm + q * m.width : nullptr, turns, scale_);
    }
    const int64_t at = m.heads + k;
    turn(qkv + at * m.width, l.qk_norm ? l.qk_norm + at * m.width : nullptr, turns, 1.0f);
    const Head head = {cache, layer, int(m.kv_heads), k, int(m.width)};
    const int64_t slot = slot_of(table(sequence_[row]), position_[row], cache.page_size);
    head.write(slot, 0, qkv + at * m.width);
    head.write(slot, 1, qkv + (at + m.kv_heads) * m.width);
  }

  // Rows `first` to `last`, all of one sequence, for KV head `k`; `out` is where row `first` goes.
  void attend(int64_t layer, int k, int64_t first, int64_t last, const Room& room, float* out) {
    const Head head = {cache, layer, int(m.kv_heads), k, int(m.width)};
    const int32_t* pages = table(sequence_[first]);
    const int64_t window = m.layers[layer].window, stride = heads_ * m.width, out_stride = m.heads * m.width;
    const int64_t most = COLUMNS / shared_, parts = (last - first + most - 1) / most;
    const float* q = qkv_ + first * stride + k * shared_ * m.width;
    out += k * shared_ * m.width;
    for (int64_t i = 0, at = 0; i < parts; i++) {
      const int64_t tokens = (last - first - at) / (parts - i), position = position_[first + at];
      if (tokens == 1)
        attend_one(head, pages, q + at * stride, shared_, window ? std::max<int64_t>(0, position - window + 1) : 0, position + 1,
                   room, out + at * out_stride);
      else
        attend_block(head, pages, q + at * stride, int(tokens), shared_, position, window, stride, room, out + at * out_stride,
                     out_stride);
      at += tokens;
    }
  }

  template <class Done>
  void share(const Matrix& matrix, const Operand& a, int64_t rows, int number, int threads, bool halves, Done&& done) {
    const int tiles = matrix.num_tiles();
    product(matrix, fit(a, matrix), int(rows), part(number, threads, tiles), part(number + 1, threads, tiles), halves, done);
  }

  static Operand fit(const Operand& a, const Matrix& matrix) {
    return {a.bytes, size_t(matrix.units) * unit_bytes(matrix.kind) + 64, a.scales};
  }

  auto into(float* to, int64_t stride) {
    return [=](int row, int tile, const Floats* y, int count) {
      for (int t = 0; t < count; t++) store(to + row * stride + (tile + t) * LANES, y[t]);
    };
  }
  auto onto(float* to, int64_t stride) {
    return [=](int row, int tile, const Floats* y, int count) {
      for (int t = 0; t < count; t++) {
        float* at = to + row * stride + (tile + t) * LANES;
        store(at, load<Floats>(at) + y[t]);
      }
    };
  }
  auto gated(float* to, int64_t stride) {
    return [=](int row, int tile, const Floats* y, int count) {
      for (int t = 0; t < count; t += 2) store(to + row * stride + (tile + t) / 2 * LANES, silu(y[t]) * y[t + 1]);
    };
  }

  void few(int64_t layer, int number, int threads, const Operand& a, float* row, Thread& own) {
    const Layer& l = m.layers[layer];
    const int64_t width = m.heads * m.width;
    for (int64_t i = 0; i < s.tokens; i++) normalized(x_ + i * m.hidden, l.attention_norm, l.qkv, row, fit(a, l.qkv), int(i));
    share(l.qkv, a, s.tokens, number, threads, false, into(qkv_, heads_ * m.width));
    meeting_.wait();
    const int units = int(s.sequences * m.kv_heads);
    for (int unit; (unit = taken_[layer].fetch_add(1, std::memory_order_relaxed)) < units;) {
      const int k = unit % int(m.kv_heads);
      const int64_t sequence = unit / m.kv_heads, first = first_row(sequence), last = first + s.lengths[sequence];
      for (int64_t i = first; i < last; i++) write(layer, k, i);
      attend(layer, k, first, last, own.room, mixed_ + first * width);
    }
    meeting_.wait();
    for (int64_t i = 0; i < s.tokens; i++) give(l.out, mixed_ + i * width, fit(a, l.out), int(i));
    share(l.out, a, s.tokens, number, threads, false, onto(x_, m.hidden));
    meeting_.wait();
    for (int64_t i = 0; i < s.tokens; i++) normalized(x_ + i * m.hidden, l.mlp_norm, l.gate_up, row, fit(a, l.gate_up), int(i));
    share(l.gate_up, a, s.tokens, number, threads, true, gated(hidden_, m.inner));
    meeting_.wait();
    for (int64_t i = 0; i < s.tokens; i++) give(l.down, hidden_ + i * m.inner, fit(a, l.down), int(i));
    share(l.down, a, s.tokens, number, threads, false, onto(x_, m.hidden));
    look(number, layer);
    meeting_.wait();
  }

  int64_t first_row(int64_t sequence) const {
    int64_t row = 0;
    for (int64_t i = 0; i < sequence; i++) row += s.lengths[i];
    return row;
  }

  void many(int64_t layer, int number, int threads, const Operand& a, float* row, Thread& own) {
    const Layer& l = m.layers[layer];
    const int64_t width = m.heads * m.width;
    for (int64_t first = number * rows_; first < s.tokens; first += threads * rows_) {
      const int64_t rows = std::min(rows_, s.tokens - first);
      for (int64_t i = 0; i < rows; i++) normalized(x_ + (first + i) * m.hidden, l.attention_norm, l.qkv, row, fit(a, l.qkv), int(i));
      const int64_t stride = heads_ * m.width;
      product(l.qkv, fit(a, l.qkv), int(rows), 0, l.qkv.num_tiles(), false, into(qkv_ + first * stride, stride));
      for (int64_t i = 0; i < rows; i++)
        for (int k = 0; k < m.kv_heads; k++) write(layer, k, first + i);
    }
    look(number, layer);
    meeting_.wait();
    if (stopped_by(layer)) return;
    float *mixed = own.mixed.get<float>(rows_ * width), *hidden = own.hidden.get<float>(rows_ * m.inner);
    for (int64_t first = number * rows_; first < s.tokens; first += threads * rows_) {
      const int64_t rows = std::min(rows_, s.tokens - first);
      float* x = x_ + first * m.hidden;
      for (int64_t from = 0, to; from < rows; from = to) {
        for (to = from + 1; to < rows && sequence_[first + to] == sequence_[first + from];) to++;
        for (int k = 0; k < m.kv_heads; k++) attend(layer, k, first + from, first + to, own.room, mixed + from * width);
      }
      for (int64_t i = 0; i < rows; i++) give(l.out, mixed + i * width, fit(a, l.out), int(i));
      product(l.out, fit(a, l.out), int(rows), 0, l.out.num_tiles(), false, onto(x, m.hidden));
      for (int64_t i = 0; i < rows; i++) normalized(x + i * m.hidden, l.mlp_norm, l.gate_up, row, fit(a, l.gate_up), int(i));
      product(l.gate_up, fit(a, l.gate_up), int(rows), 0, l.gate_up.num_tiles(), true, gated(hidden, m.inner));
      for (int64_t i = 0; i < rows; i++) give(l.down, hidden + i * m.inner, fit(a, l.down), int(i));
      product(l.down, fit(a, l.down), int(rows), 0, l.down.num_tiles(), false, onto(x, m.hidden));
    }
  }

  // Logits, and the first of each row's largest.
  void speak(int number, int threads, const Operand& a, float* row, Thread& own) {
    for (int64_t i = 0; i < s.sampled; i++) normalized(x_ + s.last[i] * m.hidden, m.norm, m.head, row, fit(a, m.head), int(i));
    Best* best = own.best.get<Best>(s.sampled);
    for (int64_t i = 0; i < s.sampled; i++) best[i] = {splat(-INFINITY), splat(int32_t(0))};
    share(m.head, a, s.sampled, number, threads, false, [=](int i, int tile, const Floats* y, int count) {
      float* to = s.logits + i * m.vocabulary;
      for (int t = 0; t < count; t++) {
        const int64_t at = int64_t(tile + t) * LANES;
        const int left = int(std::min<int64_t>(LANES, m.vocabulary - at));
        const Ints ids = counted() + splat(int32_t(at));
        const Floats value = select(counted() < splat(left), y[t], splat(-INFINITY));
        if (left == LANES) store(to + at, y[t]);
        else memcpy(to + at, &y[t], left * sizeof(float));
        const Ints more = value > best[i].value;
        best[i].at = select(more, ids, best[i].at);
        best[i].value = select(more, value, best[i].value);
      }
    });
    for (int64_t i = 0; i < s.sampled; i++) {
      std::pair<float, int32_t> found = {lane(best[i].value, 0), lane(best[i].at, 0)};
      for (int t = 1; t < LANES; t++) {
        const float value = lane(best[i].value, t);
        const int32_t at = lane(best[i].at, t);
        if (value > found.first || (value == found.first && at < found.second)) found = {value, at};
      }
      found_[number * s.sampled + i] = found;
    }
    meeting_.wait();
    if (number) return;
    for (int64_t i = 0; i < s.sampled; i++) {
      std::pair<float, int32_t> found = found_[i];
      for (int t = 1; t < threads; t++)
        if (found_[t * s.sampled + i].first > found.first) found = found_[t * s.sampled + i];
      s.best[i] = found.second;
    }
  }
};

struct Runner {
  Buffer x, qkv, mixed, hidden, places;
  std::vector<Thread> threads;
};

}  // namespace

extern "C" {

void* headway_runner_open() { return new Runner; }
void headway_runner_close(void* runner) { delete static_cast<Runner*>(runner); }

// 0 where it was stopped.
int32_t headway_step(void* opened, const Model* model, const Cache* cache, const Step* step, int32_t threads) {
  Runner& runner = *static_cast<Runner*>(opened);
  if (runner.threads.size() < size_t(threads)) runner.threads = std::vector<Thread>(threads);
  Run run(*model, *cache, *step, threads);
  run.prepare(runner.x, runner.qkv, runner.mixed, runner.hidden, runner.places, threads);
  if (threads == 1) return run.work(0, 1, runner.threads[0]);
  bool done = true;
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    run.open(omp_get_num_threads());
    const bool mine = run.work(omp_get_thread_num(), omp_get_num_threads(), runner.threads[omp_get_thread_num()]);
#pragma omp single nowait
    done = mine;
  }
  return done;
}

// Plain rows (outputs, width) of float32, bfloat16 or int8 into tiles, and for int8 the shifts. Of int4 a row has int8 values
// from -8 to 7.
void headway_pack(int32_t kind, int64_t outputs, int64_t width, int64_t units, const uint8_t* rows, uint8_t* tiles,
                  int32_t* shifts) {
  const size_t element = kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1, row_bytes = width * element;
  for (int64_t n = 0; n < outputs; n++) {
    uint8_t* to = tiles + (n / LANES) * units * 64 + (n % LANES) * 4;
    const uint8_t* from = rows + n * row_bytes;
    if (kind == INT4) {
      for (int64_t k = 0; k < width; k++) to[k / 8 * 64 + k % 8 / 2] |= uint8_t((from[k] + 8 & 15) << k % 2 * 4);
      continue;
    }
    for (int64_t u = 0; u < units; u++) memcpy(to + u * 64, from + u * 4, std::min<size_t>(4, row_bytes - u * 4));
    if (kind == INT8) {
      int32_t total = 0;
      for (int64_t k = 0; k < width; k++) total += int8_t(from[k]);
      shifts[n] = -InInt8::OFFSET * total;
    }
  }
}

// y (rows, outputs) = x (rows, width) times the matrix; `room` holds the rows as the matrix wants them, then their scales.
void headway_product(const Matrix* matrix, const float* x, int64_t rows, float* y, uint8_t* room, int32_t threads) {
  const size_t stride = size_t(matrix->units) * unit_bytes(matrix->kind);
  const Operand a = {room, stride, reinterpret_cast<float*>(room + rows * matrix->width * 4)};
  const int tiles = matrix->num_tiles();
  for (int64_t i = 0; i < rows; i++) give(*matrix, x + i * matrix->width, a, int(i));
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int i = 0; i < threads; i++)
    product(*matrix, a, int(rows), part(i, threads, tiles), part(i + 1, threads, tiles), false,
            [=](int row, int tile, const Floats* out, int count) {
              for (int t = 0; t < count; t++) {
                const int64_t at = int64_t(tile + t) * LANES, left = std::min<int64_t>(LANES, matrix->outputs - at);
                memcpy(y + row * matrix->outputs + at, &out[t], left * sizeof(float));
              }
            });
}

}  // extern "C"
