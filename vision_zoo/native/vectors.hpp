// Vectors of floats in registers, and their loads and stores from float or bfloat16 in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int WIDEST = 16, REGISTERS = 32;
#else
constexpr int WIDEST = 8, REGISTERS = 16;
#endif

struct bfloat16 {
  uint16_t bits;
};

template <typename Element, int N>
struct VectorOf {
  typedef Element type __attribute__((vector_size(N * sizeof(Element)), aligned(alignof(Element)), may_alias));
};
template <int N>
using Floats = typename VectorOf<float, N>::type;

template <int N>
inline Floats<N> load(const float* p) {
  return *reinterpret_cast<const Floats<N>*>(p);
}

template <int N>
inline Floats<N> load(const bfloat16* p) {
  const auto bits = *reinterpret_cast<const typename VectorOf<uint16_t, N>::type*>(p);
  const auto wide = __builtin_convertvector(bits, typename VectorOf<uint32_t, N>::type) << 16;
  return reinterpret_cast<const Floats<N>&>(wide);
}

template <int N>
inline void store(float* p, Floats<N> v) {
  *reinterpret_cast<Floats<N>*>(p) = v;
}

// Rounds to the nearest, halves to even.
template <int N>
inline void store(bfloat16* p, Floats<N> v) {
#ifdef __AVX512BF16__
  if constexpr (N == 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<const __m512&>(v));
    std::memcpy(p, &rounded, sizeof rounded);
    return;
  } else if constexpr (N == 8) {
    const __m128bh rounded = _mm256_cvtneps_pbh(reinterpret_cast<const __m256&>(v));
    std::memcpy(p, &rounded, sizeof rounded);
    return;
  }
#endif
  using Words = typename VectorOf<uint32_t, N>::type;
  const Words bits = reinterpret_cast<const Words&>(v);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words quiet = (bits >> 16) | 0x40;  // rounding could carry out of a NaN
  const Words chosen = (bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded;
  *reinterpret_cast<typename VectorOf<uint16_t, N>::type*>(p) =
      __builtin_convertvector(chosen, typename VectorOf<uint16_t, N>::type);
}

// body(lanes, channel) for every vector of channels from c on: the widest, and for what is left over one of each
// narrower power of two that it asks for.
template <int N = WIDEST, typename Body>
void for_vectors(int64_t channels, Body body, int64_t c = 0) {
  for (; c + N <= channels; c += N) body(std::integral_constant<int, N>(), c);
  if constexpr (N > 1)
    if (c < channels) for_vectors<N / 2>(channels, body, c);
}

// body(a T*), T the type that the tensors have.
template <typename Body>
void with_type(int64_t half, Body body) {
  if (half)
    body(static_cast<bfloat16*>(nullptr));
  else
    body(static_cast<float*>(nullptr));
}
