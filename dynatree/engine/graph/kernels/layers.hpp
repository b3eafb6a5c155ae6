// The layers of a model as Llama is one (llama.py) as one operation of an OpenVINO graph, with weights of 8 or 4 bits: norms,
// products, attention over trees, gated products, and what is added up. Between the products there is little to do: by
// operations of their own it took a third of a forward over one token, with one thread of two.

#pragma once

#include "attention.hpp"
#include "product.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

namespace dynatree {

// x / (1 + exp(-x))
inline Vec swish(Vec x) {
    const Vec power = exponential(x < Vec{} ? x : -x);
    return x * (x < Vec{} ? power : all(1.0f)) / (power + 1.0f);
}

// Rows by gates and by what they are to gate, z [n, 2 * inner], and these gated, as they are multiplied. Who has multiplied
// some of it gates it: what another thread has takes longer to read than to compute. `next` as of `multiply`.
template <typename Next>
void gate(Team& team, const Weights& by, const Rows& rows, float* z, const Rows& to, const Next& next) {
    const int64_t inner = to.groups * GROUP, half = inner / OUTPUTS, each = GROUP / OUTPUTS;
    const int64_t parts = std::min(team.size(), to.groups);
    team.share(parts, 2 * half * rows.groups * rows.count >= WORTH_TWO, [&](int64_t part) {
        const Share share{part, parts};
        const int64_t begin = share.first(to.groups), end = share.last(to.groups);
        const int64_t first = begin * each, last = end * each;
        multiply(by, rows, first, last, by.packed + (half + first) * by.tile(rows.groups), z);
        multiply(by, rows, half + first, half + last, next(share), z);
        for (int64_t row = 0; row < to.count; ++row) {
            const float* gates = z + row * 2 * inner;
            quantise(row, begin, end, to, [&](int64_t at) { return swish(load(gates + at)) * load(gates + inner + at); });
        }
    });
}

// Where the weights of a layer are. In float32: [width] of the norm before attention, and of that behind it. Packed
// (packing.py): queries, keys and values side by side; the output; gates and what they gate side by side, [2 * inner]
// outputs; the way back. In float32, or nowhere: what is added to queries, keys and values [(heads + 2 groups) * size]; [size]
// of norms of queries and of keys.
struct LayerWeights {
    const float *before, *behind;
    const uint8_t *fused, *out, *gated, *back;
    const float *bias, *query_norm, *key_norm;
};

// Inputs: those of `tree`, of which the rows are y [n, width]; where keys and values of all layers are, as TreeAttention has
// it; and where their weights are: a LayerWeights of each. As inputs of their own, ten a layer, OpenVINO took a tenth of a
// forward over one token for them. Outputs: y [n, width] behind the last layer, and behind those of `reads`, side by side. By
// `threads` as a product.
class Layers : public ov::op::Op {
public:
    OPENVINO_OP("Layers", "dynatree");

    Layers() = default;
    explicit Layers(const ov::OutputVector& inputs) : Op(inputs) {}

    void validate_and_infer_types() override {
        const auto shape = get_input_partial_shape(0);
        set_output_size(m_reads.empty() ? 1 : 2);
        set_output_type(0, ov::element::f32, shape);
        if (!m_reads.empty())
            set_output_type(1, ov::element::f32, {shape[0], shape[1] * ov::Dimension(m_reads.size())});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        const auto made = std::make_shared<Layers>(inputs);
        made->m_heads = m_heads, made->m_groups = m_groups, made->m_size = m_size, made->m_inner = m_inner;
        made->m_layers = m_layers, made->m_bits = m_bits, made->m_eps = m_eps, made->m_reads = m_reads;
        made->m_threads = m_threads;
        made->validate_and_infer_types();
        return made;
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("layers", m_layers);
        visitor.on_attribute("heads", m_heads);
        visitor.on_attribute("groups", m_groups);
        visitor.on_attribute("size", m_size);
        visitor.on_attribute("inner", m_inner);
        visitor.on_attribute("bits", m_bits);
        visitor.on_attribute("eps", m_eps);
        visitor.on_attribute("reads", m_reads);
        visitor.on_attribute("threads", m_threads);
        return true;
    }

    bool has_evaluate() const override {
        return true;
    }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const int64_t count = inputs[0].get_shape()[0], width = inputs[0].get_shape()[1];
        const int64_t read = m_heads * m_size, fused = read + 2 * m_groups * m_size;
        const int64_t most = std::max(fused, 2 * m_inner);
        outputs[0].set_shape(inputs[0].get_shape());
        if (!m_reads.empty())
            outputs[1].set_shape({inputs[0].get_shape()[0], width * m_reads.size()});
        Kept<float, 3> memory(count * (most + read + width));
        float *z = memory.data(), *mixed = z + count * most, *behind = mixed + count * read;
        // One after the other in the same place, but for what is gated while its rows are read.
        const int64_t widest = std::max(width, read);
        Quantised quantised(count, widest + m_inner);
        const Rows narrow = quantised.rows(width), attended = quantised.rows(read), wide = quantised.rows(m_inner, widest);
        Placed placed = tree(inputs, m_heads, m_groups, m_size, m_eps);
        placed.in.z = z;
        const size_t numbers = inputs[TREE_INPUTS + 1].get_size() * sizeof(int32_t);
        OPENVINO_ASSERT(numbers == m_layers * sizeof(LayerWeights), "layers: addresses of other weights");
        Team::gather(m_threads, true, [&](Team& team) {
            const float* y = floats(inputs[0]);
            float* out = floats(outputs[0]);
            for (int64_t layer = 0; layer < m_layers; ++layer, y = out) {
                const auto weights = [&](int64_t of) {
                    return addressed<LayerWeights>(static_cast<const int32_t*>(inputs[TREE_INPUTS + 1].data()), of);
                };
                const LayerWeights of = weights(layer);
                placed.in.point(static_cast<const int32_t*>(inputs[TREE_INPUTS].data()), layer);
                placed.in.query_norm = of.query_norm, placed.in.key_norm = of.key_norm;
                const Weights first{of.fused, fused, m_bits, of.bias}, out_of{of.out, width, m_bits, y, width};
                const Weights gated{of.gated, 2 * m_inner, m_bits}, back{of.back, width, m_bits, behind, width};
                // Where a share of them begins, if there are any, of which so many `tiles` at a time are shared.
                const auto begin = [](const Weights& by, int64_t groups, int64_t shared, int64_t tiles) {
                    return [=](const Share& share) {
                        return by.packed ? by.packed + share.first(shared) * tiles * by.tile(groups) : nullptr;
                    };
                };
                quantise_rows(team, y, of.before, m_eps, narrow);
                multiply(team, first, narrow, z);
                attend(team, placed.of, placed.in, mixed);
                quantise_rows(team, mixed, nullptr, m_eps, attended);
                multiply(team, out_of, attended, behind, begin(gated, narrow.groups, wide.groups, GROUP / OUTPUTS));
                quantise_rows(team, behind, of.behind, m_eps, narrow);
                gate(team, gated, narrow, z, wide, begin(back, wide.groups, back.tiles(), 1));
                const uint8_t* further = layer + 1 < m_layers ? weights(layer + 1).fused : nullptr;
                multiply(team, back, wide, out, begin({further, fused, m_bits}, narrow.groups, first.tiles(), 1));
                for (size_t at = 0; at < m_reads.size(); ++at)
                    for (int64_t row = 0; m_reads[at] == layer + 1 && row < count; ++row)
                        std::copy_n(out + row * width, width, floats(outputs[1]) + (row * m_reads.size() + at) * width);
            }
        });
        return true;
    }

private:
    int64_t m_layers = 1, m_heads = 1, m_groups = 1, m_size = 1, m_inner = 1, m_bits = 8, m_threads = 0;
    float m_eps = 0.0f;
    std::vector<int64_t> m_reads;
};

}  // namespace dynatree

#endif
