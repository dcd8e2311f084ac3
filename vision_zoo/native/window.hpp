// Sums over windows of an image: the depthwise convolution, its gradients, and average pooling as one with taps of 1.
//
// One vector of channels of one image is widened to float and copied into a block (height, width, lanes) with a border
// of zeros: it stays in the first-level cache, and no loop tests for edges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "vectors.hpp"

struct Shape {
  int64_t height, width, channels;     // of the input
  int64_t kernel, stride;
  int64_t out_height, out_width;
  int64_t top, left;                   // 'SAME' padding before the image

  Shape(int64_t height, int64_t width, int64_t channels, int64_t kernel, int64_t stride)
      : height(height), width(width), channels(channels), kernel(kernel), stride(stride),
        out_height((height + stride - 1) / stride), out_width((width + stride - 1) / stride),
        top(std::max<int64_t>((out_height - 1) * stride + kernel - height, 0) / 2),
        left(std::max<int64_t>((out_width - 1) * stride + kernel - width, 0) / 2) {}

  int64_t size() const { return height * width * channels; }
  int64_t out_size() const { return out_height * out_width * channels; }
  int64_t padded_height() const { return std::max((out_height - 1) * stride + kernel, top + height); }
  int64_t padded_width() const { return std::max((out_width - 1) * stride + kernel, left + width); }
  // The input's gradient at row r is a sum over rows of the output's gradient, r + top - i = stride * row: with one
  // of `stride` phases of taps i each. The output's gradient stands in its block behind so many rows of zeros:
  int64_t border() const { return (kernel + stride - 1) / stride - 1; }
  int64_t spread_height() const { return std::max((height - 1 + top) / stride + 1, out_height) + border(); }
  int64_t spread_width() const { return std::max((width - 1 + left) / stride + 1, out_width) + border(); }
};

// (height, width, lanes) floats on a cache line; zero, and zero remains what no copy writes.
class Block {
 public:
  Block(int64_t height, int64_t width, int64_t lanes)
      : width_(width), lanes_(lanes), storage_(height * width * lanes + 16, 0.f) {
    void* start = storage_.data();
    size_t space = storage_.size() * sizeof(float);
    data_ = static_cast<float*>(std::align(64, height * width * lanes * sizeof(float), start, space));
  }
  float* at(int64_t row, int64_t column) { return data_ + (row * width_ + column) * lanes_; }
  const float* at(int64_t row, int64_t column) const { return data_ + (row * width_ + column) * lanes_; }
  int64_t row() const { return width_ * lanes_; }

 private:
  int64_t width_, lanes_;
  std::vector<float> storage_;
  float* data_;
};

// Pixel (h, w) of an image, its pixels `channels` apart -> block at (top + h, left + w), through `change(v, h, w)`.
template <int N, typename T, typename Change>
void fill(Block& block, const T* image, int64_t height, int64_t width, int64_t channels, int64_t top, int64_t left,
          Change change) {
  for (int64_t h = 0; h < height; h++) {
    const T* from = image + h * width * channels;
    float* to = block.at(top + h, left);
    for (int64_t w = 0; w < width; w++) store<N>(to + w * N, change(load<N>(from + w * channels), h, w));
  }
}

// The block's pixels -> an image, through `change(v, h, w)`.
template <int N, typename T, typename Change>
void drain(const Block& block, T* image, int64_t height, int64_t width, int64_t channels, Change change) {
  for (int64_t h = 0; h < height; h++) {
    const float* from = block.at(h, 0);
    T* to = image + h * width * channels;
    for (int64_t w = 0; w < width; w++) store<N>(to + w * channels, change(load<N>(from + w * N), h, w));
  }
}

// Where the sums of a phase go: from `start` on, pixels and rows so many floats apart.
struct Target {
  float* start;
  int64_t row, pixel;
};

// ROWS x COLUMNS neighbouring sums over windows of KH x KW taps; they stay in registers.
template <int N, int KH, int KW, int STRIDE, int ROWS, int COLUMNS>
inline void sum_tile(const float* window, int64_t row, const float* taps, float* to, const Target& target) {
  Floats<N> sums[ROWS][COLUMNS] = {};
  for (int i = 0; i < KH; i++)
#pragma GCC unroll 8
    for (int j = 0; j < KW; j++) {
      const Floats<N> tap = load<N>(taps + (i * KW + j) * N);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int t = 0; t < COLUMNS; t++)
          sums[r][t] += load<N>(window + (r * STRIDE + i) * row + (t * STRIDE + j) * N) * tap;
    }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int t = 0; t < COLUMNS; t++) store<N>(to + r * target.row + t * target.pixel, sums[r][t]);
}

// The sums over the windows at (h, w), h < height, w < width. taps (KH, KW, N); window: the first one's corner.
template <int N, int KH, int KW, int STRIDE>
void sum_windows(const float* window, int64_t row, const float* taps, int64_t height, int64_t width, Target target) {
  int64_t w = 0;
  auto strip = [&](auto rows, auto columns) {
    constexpr int ROWS = decltype(rows)::value, COLUMNS = decltype(columns)::value;
    for (; w + COLUMNS <= width; w += COLUMNS) {
      const float* from = window + w * STRIDE * N;
      float* to = target.start + w * target.pixel;
      int64_t h = 0;
      for (; h + ROWS <= height; h += ROWS, from += ROWS * STRIDE * row, to += ROWS * target.row)
        sum_tile<N, KH, KW, STRIDE, ROWS, COLUMNS>(from, row, taps, to, target);
      for (; h < height; h++, from += STRIDE * row, to += target.row)
        sum_tile<N, KH, KW, STRIDE, 1, COLUMNS>(from, row, taps, to, target);
    }
  };
  using One = std::integral_constant<int, 1>;
  using Four = std::integral_constant<int, 4>;
  strip(One(), std::integral_constant<int, 8>());  // eight sums in flight hide the latency of the multiply-add
  strip(std::integral_constant<int, 2>(), Four());
  strip(Four(), One());
}

// The gradient of an input pixel is the sum over the taps that reached it. spread: the output's gradient, see Shape;
// flipped: for each phase of rows and columns its taps in reverse order, one phase after the other.
template <int N, int K, int STRIDE>
void sum_back(const Block& spread, const float* flipped, const Shape& s, Block& result) {
  auto phase = [&](auto row_phase, auto column_phase) {
    constexpr int P = decltype(row_phase)::value, Q = decltype(column_phase)::value;
    constexpr int KH = (K - P + STRIDE - 1) / STRIDE, KW = (K - Q + STRIDE - 1) / STRIDE;
    const int64_t h = ((P - s.top) % STRIDE + STRIDE) % STRIDE, w = ((Q - s.left) % STRIDE + STRIDE) % STRIDE;
    const int64_t row = (h + s.top) / STRIDE - (KH - 1) + s.border();
    const int64_t column = (w + s.left) / STRIDE - (KW - 1) + s.border();
    const Target target{result.at(h, w), STRIDE * result.row(), STRIDE * N};
    sum_windows<N, KH, KW, 1>(spread.at(row, column), spread.row(), flipped, (s.height - h + STRIDE - 1) / STRIDE,
                              (s.width - w + STRIDE - 1) / STRIDE, target);
    flipped += KH * KW * N;
  };
  using Zero = std::integral_constant<int, 0>;
  using One = std::integral_constant<int, 1>;
  phase(Zero(), Zero());
  if constexpr (STRIDE == 2) {
    phase(Zero(), One());
    phase(One(), Zero());
    phase(One(), One());
  }
}

// taps (K, K, N) in the order that sum_back reads.
template <int N, int K, int STRIDE>
void flip(const float* taps, float* flipped) {
  for (int p = 0; p < STRIDE; p++)
    for (int q = 0; q < STRIDE; q++)
      for (int i = K - 1 - (K - 1 - p) % STRIDE; i >= 0; i -= STRIDE)
        for (int j = K - 1 - (K - 1 - q) % STRIDE; j >= 0; j -= STRIDE, flipped += N)
          store<N>(flipped, load<N>(taps + (i * K + j) * N));
}

// gradient (K, K, N) += sum over positions of padded * spread, for ROWS rows of taps from FIRST on, all in registers.
template <int N, int K, int STRIDE, int FIRST = 0>
void add_tap_gradients(const Block& padded, const Block& spread, float* gradient, const Shape& s) {
  constexpr int ROWS = std::min(K - FIRST, std::max(1, (REGISTERS - 3) / K));
  Floats<N> sums[ROWS][K] = {};
  for (int64_t h = 0; h < s.out_height; h++) {
    const float* g = spread.at(h + s.border(), s.border());
    const float* x = padded.at(h * STRIDE + FIRST, 0);
    for (int64_t w = 0; w < s.out_width; w++, g += N, x += STRIDE * N) {
      const Floats<N> factor = load<N>(g);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < K; j++) sums[i][j] += load<N>(x + i * padded.row() + j * N) * factor;
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < K; j++) {
      float* to = gradient + ((FIRST + i) * K + j) * N;
      store<N>(to, load<N>(to) + sums[i][j]);
    }
  if constexpr (FIRST + ROWS < K) add_tap_gradients<N, K, STRIDE, FIRST + ROWS>(padded, spread, gradient, s);
}
