// The recurrence of gated.py: running averages in both directions, from products of the inputs to what leaves the layer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace earsight {

// Products are (window, chunks, batch, 5 width): values ahead and behind, gates ahead and behind, and how far the layer
// opens. `heard`, 1 or 0, is (window, chunks, batch). What leaves is (reach, chunks, batch, width).
struct GatesShape {
    size_t window, chunks, batch, width;
    size_t right;  // frames at the end of a window that belong to the next chunk
    bool more;     // whether those leave the layer too
    size_t threads;  // at most; each takes some units through all frames

    size_t frames() const { return window - right; }
    size_t reach() const { return more ? window : frames(); }
};

// bfloat16 in memory; sums are single precision.
struct Brief {
    uint16_t bits;
};

// `start` is (batch, width); the states `ahead` are (reach, chunks, batch, width), `behind` (window, ...).
template <typename Number>
void gated_scan(const GatesShape& shape, const Number* products, const float* heard, const float* start, float* ahead,
                float* behind, Number* opened);

// From `outer`, the gradient at what leaves, and `last`, at the state ahead after the last chunk: those at the products
// and at `start`.
template <typename Number>
void gated_scan_backward(const GatesShape& shape, const Number* outer, const float* last, const Number* products,
                         const float* heard, const float* start, const float* ahead, const float* behind,
                         Number* products_gradient, float* start_gradient);

}  // namespace earsight
