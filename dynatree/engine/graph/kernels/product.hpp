// Products of a few rows with weights of 8 or 4 bits as one operation of an OpenVINO graph, for processors that multiply
// bytes (AVX-512 VNNI).
//
// Weights are packed (packing.py) in tiles of 16 outputs, which are read once, in order, for up to 8 rows at a time:
// a product of that many takes as long as memory gives the weights. Activations become 8-bit integers in groups of 32,
// as those of llama.cpp and OpenVINO. Sums within a group are of integers, and groups are added in their order, so that a
// row's bits do not depend on what is beside it.

#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "common.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

namespace dynatree {

// Inputs of a group, outputs of a tile, and rows that read a tile together.
constexpr int GROUP = 32, OUTPUTS = 16, TOGETHER = 8;
// A group of a tile: codes, and in 4 bits scales and least values in float16; in 8 bits a tile ends with its scales.
constexpr int64_t FOUR_BITS = OUTPUTS * GROUP / 2 + 2 * OUTPUTS * 2, EIGHT_BITS = OUTPUTS * GROUP, SCALES = OUTPUTS * 4;
// Bytes that are asked for in advance: the processor by itself stops to, where many rows make a group long.
constexpr int64_t AHEAD = 5120;
// Parts of a product: more than threads, of which one may be slower. Groups of tiles and rows that are worth two.
constexpr int64_t PARTS = 4, WORTH_TWO = 128;

// Rows of activations in groups: bytes [n, inputs]; of each group its scale, the sum of its values, and -128 times the
// sum of its bytes, as weights of 8 bits are held with 128 added.
struct Rows {
    int64_t count, groups;
    int8_t* bytes;
    float *scales, *sums;
    int32_t* offsets;
};

void quantise_row(const float* x, int64_t row, const Rows& to) {
    for (int64_t group = 0; group < to.groups; ++group, x += GROUP) {
        const int64_t at = row * to.groups + group;
        const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + LANES);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        const __m512 factor = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
        const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor));
        const __m512i last = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
        __m128i* bytes = reinterpret_cast<__m128i*>(to.bytes + at * GROUP);
        _mm_storeu_si128(bytes, _mm512_cvtsepi32_epi8(first));
        _mm_storeu_si128(bytes + 1, _mm512_cvtsepi32_epi8(last));
        const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(first, last));
        to.scales[at] = most / 127.0f;
        to.sums[at] = to.scales[at] * static_cast<float>(sum);
        to.offsets[at] = -128 * sum;
    }
}

// The weights of a group, a byte each: of 16 outputs four inputs in each vector.
template <bool FOUR>
void unpack(const uint8_t* from, __m512i* codes) {
    for (int64_t line = 0; line < (FOUR ? FOUR_BITS : EIGHT_BITS); line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(from) + AHEAD + line, _MM_HINT_T0);
    if constexpr (FOUR) {
        const __m512i low = _mm512_set1_epi8(15);
        for (int place = 0; place < 4; ++place) {
            const __m512i both = _mm512_load_si512(from + 64 * place);
            codes[2 * place] = _mm512_and_si512(both, low);
            codes[2 * place + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
    } else {
        for (int place = 0; place < 8; ++place)
            codes[place] = _mm512_load_si512(from + 64 * place);
    }
}

__m512 halves(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
}

// N rows from `first` on by one tile.
template <bool FOUR, int N>
void multiply(const uint8_t* tile, const Rows& rows, int64_t first, float* out, int64_t outputs, __mmask16 kept) {
    __m512 sums[N];
    for (int n = 0; n < N; ++n)
        sums[n] = _mm512_setzero_ps();
    for (int64_t group = 0; group < rows.groups; ++group, tile += FOUR ? FOUR_BITS : EIGHT_BITS) {
        __m512i codes[8];
        unpack<FOUR>(tile, codes);
        __m512 scale, least;
        if constexpr (FOUR) {
            scale = halves(tile + OUTPUTS * GROUP / 2);
            least = halves(tile + OUTPUTS * GROUP / 2 + OUTPUTS * 2);
        }
        for (int n = 0; n < N; ++n) {
            const int64_t at = (first + n) * rows.groups + group;
            int32_t four[GROUP / 4];
            std::memcpy(four, rows.bytes + at * GROUP, GROUP);
            // Two sums: one by itself would wait for its own products.
            __m512i even = FOUR ? _mm512_setzero_si512() : _mm512_set1_epi32(rows.offsets[at]);
            __m512i odd = _mm512_setzero_si512();
            for (int place = 0; place < 8; place += 2) {
                even = _mm512_dpbusd_epi32(even, codes[place], _mm512_set1_epi32(four[place]));
                odd = _mm512_dpbusd_epi32(odd, codes[place + 1], _mm512_set1_epi32(four[place + 1]));
            }
            const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)), of = _mm512_set1_ps(rows.scales[at]);
            sums[n] = _mm512_fmadd_ps(product, FOUR ? _mm512_mul_ps(scale, of) : of, sums[n]);
            if constexpr (FOUR)
                sums[n] = _mm512_fmadd_ps(least, _mm512_set1_ps(rows.sums[at]), sums[n]);
        }
    }
    for (int n = 0; n < N; ++n) {
        if constexpr (!FOUR)
            sums[n] = _mm512_mul_ps(sums[n], _mm512_load_ps(tile));
        _mm512_mask_storeu_ps(out + (first + n) * outputs, kept, sums[n]);
    }
}

template <bool FOUR>
void multiply(const uint8_t* weights, int64_t outputs, const Rows& rows, float* out) {
    const int64_t tiles = (outputs + OUTPUTS - 1) / OUTPUTS;
    const int64_t bytes = rows.groups * (FOUR ? FOUR_BITS : EIGHT_BITS) + (FOUR ? 0 : SCALES);
    const int64_t parts = std::min(PARTS, tiles);
    const bool shared = tiles * rows.groups * rows.count >= WORTH_TWO;
    share(shared ? parts : 1, shared, [&](int64_t part) {
        const int64_t of = shared ? parts : 1;
        for (int64_t place = tiles * part / of; place < tiles * (part + 1) / of; ++place) {
            const uint8_t* tile = weights + place * bytes;
            float* to = out + place * OUTPUTS;
            const int64_t left = std::min<int64_t>(OUTPUTS, outputs - place * OUTPUTS);
            const __mmask16 kept = static_cast<__mmask16>((1u << left) - 1);
            int64_t row = 0;
            for (; rows.count - row >= TOGETHER; row += TOGETHER)
                multiply<FOUR, TOGETHER>(tile, rows, row, to, outputs, kept);
            [&]<int... N>(std::integer_sequence<int, N...>) {
                ((rows.count - row == N + 1 ? multiply<FOUR, N + 1>(tile, rows, row, to, outputs, kept) : void()), ...);
            }(std::make_integer_sequence<int, TOGETHER - 1>());
        }
    });
}

// Inputs: x [n, inputs], weights [bytes] as packing.py has them. Output: [n, outputs].
class Product : public ov::op::Op {
public:
    OPENVINO_OP("Product", "dynatree");

    Product() = default;
    Product(const ov::OutputVector& inputs, int64_t outputs, int64_t bits) : Op(inputs), m_outputs(outputs), m_bits(bits) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        set_output_type(0, ov::element::f32, ov::PartialShape{get_input_partial_shape(0)[0], m_outputs});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<Product>(inputs, m_outputs, m_bits);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("outputs", m_outputs);
        visitor.on_attribute("bits", m_bits);
        return true;
    }

    bool has_evaluate() const override {
        return true;
    }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const auto& shape = inputs[0].get_shape();
        const int64_t count = shape[0], size = shape[1], groups = size / GROUP;
        Kept<int8_t> bytes(count * size);
        Kept<float> told(2 * count * groups);
        Kept<int32_t> offsets(count * groups);
        const Rows rows{count, groups, bytes.data(), told.data(), told.data() + count * groups, offsets.data()};
        const float* x = static_cast<const float*>(inputs[0].data());
        share(count, count >= TOGETHER, [&](int64_t row) { quantise_row(x + row * size, row, rows); });
        outputs[0].set_shape({shape[0], static_cast<size_t>(m_outputs)});
        const uint8_t* weights = static_cast<const uint8_t*>(inputs[1].data());
        float* out = static_cast<float*>(outputs[0].data());
        if (m_bits == 4)
            multiply<true>(weights, m_outputs, rows, out);
        else
            multiply<false>(weights, m_outputs, rows, out);
        return true;
    }

private:
    int64_t m_outputs = 1, m_bits = 8;
};

}  // namespace dynatree

#endif
