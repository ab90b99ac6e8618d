// Small matrix products with packed weights, rows of pixels times a matrix of a few dozen columns, and sums over lanes.

#pragma once

#include "simd.h"

namespace iconet {

constexpr int kPanel = 3;                          // vectors of columns in a panel
constexpr int kTileRows = kLanes == 16 ? 8 : 4;    // with a panel they fill the registers

// Weights (columns, depth), as a linear layer has them -> panels of kPanel vectors of columns, [panel][depth][vector].
// Columns past the last are zero.
ICONET_INLINE int64_t packed_vectors(int64_t columns, int64_t depth) { return (columns + kLanes - 1) / kLanes * depth; }

inline void pack(const float* weight, int64_t columns, int64_t depth, vf* out) {
    const int64_t vectors = (columns + kLanes - 1) / kLanes;
    float* to = reinterpret_cast<float*>(out);
    for (int64_t first = 0; first < vectors; first += kPanel) {
        const int64_t width = (vectors - first < kPanel ? vectors - first : kPanel) * kLanes;
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t j = 0; j < width; ++j) {
                const int64_t column = first * kLanes + j;
                *to++ = column < columns ? weight[column * depth + k] : 0.0f;
            }
    }
}

template <int kRows, int kVectors, class Store>
ICONET_INLINE void product_tile(const float* a, int64_t a_stride, const vf* b, int64_t depth, int64_t row,
                                int64_t vector, Store& put) {
    vf sum[kRows][kVectors];
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kVectors; ++j) sum[i][j] = splat(0.0f);
    for (int64_t k = 0; k < depth; ++k)
        for (int i = 0; i < kRows; ++i) {
            const vf s = splat(a[i * a_stride + k]);
            for (int j = 0; j < kVectors; ++j) sum[i][j] += s * b[k * kVectors + j];
        }
    for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kVectors; ++j) put(row + i, vector + j, sum[i][j]);
}

template <int kVectors, class Store>
ICONET_INLINE void product_panel(const float* a, int64_t a_stride, int64_t rows, const vf* b, int64_t depth,
                                 int64_t vector, Store& put) {
    int64_t i = 0;
    for (; i + kTileRows <= rows; i += kTileRows)
        product_tile<kTileRows, kVectors>(a + i * a_stride, a_stride, b, depth, i, vector, put);
    for (; i < rows; ++i) product_tile<1, kVectors>(a + i * a_stride, a_stride, b, depth, i, vector, put);
}

// a (rows, depth) times packed weights; `put(row, vector, value)` receives every vector of the result once. Each value
// is one sum in the order of `depth`, whatever the tile it falls in.
template <class Store>
ICONET_INLINE void product(const float* a, int64_t a_stride, int64_t rows, const vf* packed, int64_t columns,
                           int64_t depth, Store put) {
    const int64_t vectors = (columns + kLanes - 1) / kLanes;
    for (int64_t v = 0; v < vectors; v += kPanel, packed += kPanel * depth) {
        if (vectors - v >= 3)
            product_panel<3>(a, a_stride, rows, packed, depth, v, put);
        else if (vectors - v == 2)
            product_panel<2>(a, a_stride, rows, packed, depth, v, put);
        else
            product_panel<1>(a, a_stride, rows, packed, depth, v, put);
    }
}

// Sums over the lanes of kLanes vectors: out[i] = sum(rows[i]).
ICONET_INLINE void lane_sums(const vf* rows, float* out) {
#if defined(__AVX2__)
    for (int first = 0; first < kLanes; first += 8) {
        __m256 r[8];
        for (int i = 0; i < 8; ++i) {
#if defined(__AVX512F__)
            const __m512 whole = (__m512)rows[first + i];
            r[i] = _mm256_add_ps(_mm512_castps512_ps256(whole), _mm512_extractf32x8_ps(whole, 1));
#else
            r[i] = (__m256)rows[first + i];
#endif
        }
        const __m256 ab = _mm256_hadd_ps(_mm256_hadd_ps(r[0], r[1]), _mm256_hadd_ps(r[2], r[3]));
        const __m256 cd = _mm256_hadd_ps(_mm256_hadd_ps(r[4], r[5]), _mm256_hadd_ps(r[6], r[7]));
        const __m256 lo = _mm256_permute2f128_ps(ab, cd, 0x20), hi = _mm256_permute2f128_ps(ab, cd, 0x31);
        _mm256_storeu_ps(out + first, _mm256_add_ps(lo, hi));
    }
#else
    for (int i = 0; i < kLanes; ++i) {
        const vf r = rows[i];
        out[i] = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    }
#endif
}

}  // namespace iconet
