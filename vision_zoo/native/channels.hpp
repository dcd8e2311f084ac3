// Passes over (P, C), a row a pixel: sums per channel, affine maps, and batch norm made of them.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <vector>

#include "vectors.hpp"

// Adds to first and second (C), in double, the sums of a and of a * b over each channel's rows; a, b (P, C), a's rows
// `pitch` apart.
template <typename T>
void add_channel_sums(const T* a, int64_t pitch, const T* b, int64_t rows, int64_t channels, double* first,
                      double* second) {
  std::mutex adding;
  at::parallel_for(0, rows, 1024, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(2 * channels, 0.);
    for (int64_t r = begin; r < end; r += 64) {  // short float sums, over rows that stay in the cache
      const int64_t last = std::min(end, r + 64);
      for_vectors(channels, [&](auto lanes, int64_t c) {
        constexpr int N = lanes;
        Floats<N> total[2] = {}, products[2] = {};  // two of each hide the latency of the addition
        auto add = [&](int64_t q, int which) {
          const Floats<N> value = load<N>(a + q * pitch + c);
          total[which] += value;
          products[which] += value * load<N>(b + q * channels + c);
        };
        int64_t q = r;
        for (; q + 2 <= last; q += 2) {
          add(q, 0);
          add(q + 1, 1);
        }
        if (q < last) add(q, 0);
        total[0] += total[1];
        products[0] += products[1];
        for (int n = 0; n < N; n++) {
          sums[c + n] += total[0][n];
          sums[channels + c + n] += products[0][n];
        }
      });
    }
    const std::lock_guard<std::mutex> lock(adding);
    for (int64_t c = 0; c < channels; c++) {
      first[c] += sums[c];
      second[c] += sums[channels + c];
    }
  });
}

// out = a * alpha + b * beta + gamma per channel; a, b, out (P, C), a's rows `pitch` apart; b only where beta is not
// null.
template <typename T>
void channel_affine(const T* a, int64_t pitch, const T* b, const float* alpha, const float* beta, const float* gamma,
                    T* out, int64_t rows, int64_t channels) {
  at::parallel_for(0, rows, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r += 64)
      for_vectors(channels, [&](auto lanes, int64_t c) {
        constexpr int N = lanes;
        const Floats<N> factor = load<N>(alpha + c), constant = load<N>(gamma + c);
        const Floats<N> other = beta ? load<N>(beta + c) : Floats<N>{};
        for (int64_t q = r; q < std::min(end, r + 64); q++) {
          Floats<N> value = load<N>(a + q * pitch + c) * factor + constant;
          if (beta) value += load<N>(b + q * channels + c) * other;
          store<N>(out + q * channels + c, value);
        }
      });
  });
}

// Batch norm: gamma, beta, the running statistics, and what the backward pass needs of the forward one; (C) each.
struct Norm {
  const float *gamma, *beta;
  float *mean, *inverse;  // of the batch, 1 / sqrt(variance + eps)
  float *running_mean, *running_variance;
  double momentum, eps;
};

// y = (z - mean) * inverse * gamma + beta, by the sums of z and of its squares. The running statistics move.
template <typename T>
void normalise(const T* z, const std::vector<double>& sums, const std::vector<double>& squares, const Norm& norm, T* y,
               int64_t rows, int64_t channels) {
  std::vector<float> scale(channels), shift(channels);
  for (int64_t c = 0; c < channels; c++) {
    const double average = sums[c] / rows, variance = std::max(squares[c] / rows - average * average, 0.);
    norm.mean[c] = average;
    norm.inverse[c] = 1 / std::sqrt(variance + norm.eps);
    scale[c] = norm.gamma[c] * norm.inverse[c];
    shift[c] = norm.beta[c] - norm.mean[c] * scale[c];
    norm.running_mean[c] += norm.momentum * (average - norm.running_mean[c]);
    norm.running_variance[c] += norm.momentum * (variance * rows / (rows - 1) - norm.running_variance[c]);
  }
  channel_affine<T>(z, channels, nullptr, scale.data(), nullptr, shift.data(), y, rows, channels);
}

// dz = gamma * inverse * (g - mean(g) - z_hat mean(g z_hat)), written as one affine map of g and z.
struct NormGradient {
  std::vector<float> scale, slope, shift;

  // grad_gamma, grad_beta (C) are its results. grad's rows are `pitch` apart.
  template <typename T>
  NormGradient(const T* grad, int64_t pitch, const T* z, const float* gamma, const float* mean, const float* inverse,
               float* grad_gamma, float* grad_beta, int64_t rows, int64_t channels)
      : scale(channels), slope(channels), shift(channels) {
    std::vector<double> sums(channels), products(channels);
    add_channel_sums(grad, pitch, z, rows, channels, sums.data(), products.data());
    for (int64_t c = 0; c < channels; c++) {
      grad_beta[c] = sums[c];
      grad_gamma[c] = (products[c] - mean[c] * sums[c]) * inverse[c];
      scale[c] = gamma[c] * inverse[c];
      slope[c] = -scale[c] * inverse[c] * grad_gamma[c] / rows;
      shift[c] = -scale[c] * grad_beta[c] / rows - slope[c] * mean[c];
    }
  }

  template <typename T>
  void apply(const T* grad, int64_t pitch, const T* z, T* grad_z, int64_t rows) const {
    channel_affine(grad, pitch, z, scale.data(), slope.data(), shift.data(), grad_z, rows, scale.size());
  }
};
