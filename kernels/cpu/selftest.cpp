// Prints a hash of the logits of a small made-up model, one line for each kind of matrix: the same on every processor.
//
// Numbers come from integers by operations that IEEE 754 rounds alike everywhere. Steps cover prompts, decodes, KV of all
// kinds, a sliding window, norms of q and k, biases, several threads and a vocabulary that ends within a tile.
// bfloat16 differs where the processor multiplies it in an instruction of its own.
#include "step.cpp"

#include <cstdio>
#include <cstring>

namespace {

constexpr int HIDDEN = 64, INNER = 96, HEADS = 4, KV_HEADS = 2, WIDTH = 32, LAYERS = 2, VOCABULARY = 333, PAGE = 16, PAGES = 24, GROUP = 32;

struct Numbers {
  uint32_t state = 12345;
  uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }
  // Multiples of 2^-12 in [-1, 1).
  float unit() { return (float(next() & 8191) - 4096.0f) / 4096.0f; }
};

struct Made {
  std::vector<uint8_t> rows, tiles;
  std::vector<float> bias, scales;
  std::vector<int32_t> shifts, order;

  Matrix matrix(Numbers& numbers, int kind, int outputs, int width, bool with_bias) {
    const int element = kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1, units = kind == INT4 ? width / 8 : width * element / 4;
    const int whole = (outputs + LANES - 1) / LANES * LANES;
    rows.resize(size_t(outputs) * width * element + 64);
    for (int i = 0; i < outputs * width; i++) {
      const float value = numbers.unit() / 8;
      if (kind == FLOAT32) store(&rows[i * 4], value);
      else if (kind == BFLOAT16) store(&rows[i * 2], uint16_t(bits<uint32_t>(value) >> 16));
      else if (kind == INT8) rows[i] = uint8_t(int8_t(int(numbers.next() % 255) - 127));
      else rows[i] = uint8_t(int8_t(int(numbers.next() % 16) - 8));
    }
    tiles.assign(size_t(whole) * units * 4, 0);
    scales.assign(kind == INT4 ? 2 * whole * width / GROUP : whole, 1.0f / 1024), bias.assign(whole, 0), shifts.assign(whole, 0);
    for (float& b : bias) b = numbers.unit() / 4;
    if (kind == INT4)
      for (float& scale : scales) scale = numbers.unit() / 64;
    order.resize(width);
    for (int i = 0; i < width; i++) order[i] = (i * 5 + 3) % width;
    headway_pack(kind, outputs, width, units, rows.data(), tiles.data(), shifts.data());
    return {kind, outputs, width, units, tiles.data(), with_bias ? bias.data() : nullptr, scales.data(), shifts.data(),
            kind == INT4 && with_bias && width % 5 ? order.data() : nullptr, GROUP / 8};
  }
};

uint64_t hash_of(int kind, int cache_kind, int threads) {
  Numbers numbers;
  std::vector<std::vector<float>> kept;
  const auto vector = [&](int count, float from) {
    kept.emplace_back(count);
    for (float& value : kept.back()) value = from + numbers.unit() / 4;
    return kept.back().data();
  };
  std::vector<Made> made(4 * LAYERS + 1);
  Layer layers[LAYERS];
  for (int i = 0; i < LAYERS; i++) {
    Made* own = &made[4 * i];
    layers[i].attention_norm = vector(HIDDEN, 1), layers[i].mlp_norm = vector(HIDDEN, 1);
    layers[i].qk_norm = i ? vector((HEADS + KV_HEADS) * WIDTH, 1) : nullptr;
    layers[i].qkv = own[0].matrix(numbers, kind, (HEADS + 2 * KV_HEADS) * WIDTH, HIDDEN, true);
    layers[i].out = own[1].matrix(numbers, kind, HIDDEN, HEADS * WIDTH, false);
    layers[i].gate_up = own[2].matrix(numbers, kind, 2 * INNER, HIDDEN, false);
    layers[i].down = own[3].matrix(numbers, kind, HIDDEN, INNER, false);
    layers[i].window = i ? 40 : 0;
  }
  std::vector<float> embedding(VOCABULARY * HIDDEN), turns(PAGE * PAGES * WIDTH);
  for (float& value : embedding) value = numbers.unit();
  for (size_t i = 0; i < turns.size(); i += 2) {
    const float t = numbers.unit(), r = 1.0f + t * t;
    turns[i] = (1.0f - t * t) / r, turns[i + 1] = 2.0f * t / r;
  }
  const Model model = {HIDDEN, INNER, HEADS, KV_HEADS, WIDTH, LAYERS, VOCABULARY, layers, vector(HIDDEN, 1),
                       made.back().matrix(numbers, kind, VOCABULARY, HIDDEN, false), (const uint8_t*)embedding.data(), FLOAT32,
                       turns.data(), 1e-5f};
  const size_t vectors = size_t(LAYERS) * PAGES * PAGE * 2 * KV_HEADS;
  std::vector<uint8_t> pages(vectors * WIDTH * 4);
  std::vector<float> scales(vectors);
  const Cache cache = {pages.data(), scales.data(), cache_kind, PAGES * PAGE, PAGE};
  int32_t table[PAGES];
  for (int i = 0; i < PAGES; i++) table[i] = (i * 7 + 3) % PAGES;

  void* runner = headway_runner_open();
  uint64_t hash = 14695981039346656037u;
  const std::atomic<int32_t> stop{0};
  // Sequences of 8 pages each: prompts of 100, 1 and 37 tokens, then single tokens, then stretches of a few.
  const int lengths[3][3] = {{100, 1, 37}, {1, 1, 1}, {3, 2, 5}};
  int32_t starts[3] = {0, 0, 0}, tables[3] = {0, 8, 16};
  for (const auto& of : lengths) {
    std::vector<int32_t> ids, last, counts(of, of + 3);
    for (int s = 0; s < 3; s++)
      for (int i = 0; i < of[s]; i++) ids.push_back(int32_t(numbers.next() % VOCABULARY));
    for (int i = int(ids.size()) - 5; i < int(ids.size()); i++)
      if (i >= 0) last.push_back(i);
    std::vector<float> logits(last.size() * VOCABULARY);
    std::vector<int32_t> best(last.size());
    const Step step = {int64_t(ids.size()), 3, int64_t(last.size()), ids.data(), starts, counts.data(), tables, table,
                       last.data(), logits.data(), best.data(), &stop};
    headway_step(runner, &model, &cache, &step, threads);
    const auto add = [&](const void* from, size_t bytes) {
      for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t*)from)[i]) * 1099511628211u;
    };
    for (float value : logits)
      if (!(std::fabs(value) < 1e6f)) return 0;
    add(logits.data(), logits.size() * sizeof(float));
    add(best.data(), best.size() * sizeof(int32_t));
    for (int s = 0; s < 3; s++) starts[s] += of[s];
  }
  headway_runner_close(runner);
  return hash;
}

}  // namespace

int main() {
  const char* names[] = {"float32", "bfloat16", "int8", "int4"};
  for (int kind = 0; kind < 4; kind++) {
    printf("%s", names[kind]);
    for (int cache_kind = 0; cache_kind < 3; cache_kind++) {
      const uint64_t one = hash_of(kind, cache_kind, 1), two = hash_of(kind, cache_kind, 2);
      if (!one || one != two) return printf(one ? " differs with two threads\n" : " is not finite\n"), 1;
      printf(" %016llx", (unsigned long long)one);
    }
    printf("\n");
  }
}
