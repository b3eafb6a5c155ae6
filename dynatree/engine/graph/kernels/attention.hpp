// Attention over token trees as one operation of an OpenVINO graph: it rotates queries and keys, writes keys and values
// where the rows' seats say, and has each row read the positions of its path (block_cache.py).
//
// What a row gets depends on its own path alone, to the bit: its sums are over the path's positions in their order, in
// segments that begin at fixed positions, whatever other rows, threads or tiles there are; segments are joined by their
// greatest scores (Milakov and Gimelshein 2018, 1805.02867; Flash-Decoding, Dao et al. 2023). Rows that read the same
// block read it together, a tile of queries at a time, so that a tree reads its text once, its leaves, too.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>

#include "common.hpp"

namespace dynatree {

// Queries that read a block together, and vectors of values at a time.
#ifdef __AVX512F__
constexpr int TILE = 6, WIDE = 4;
#else
constexpr int TILE = 3, WIDE = 2;
#endif
// Positions of a block, and of a segment.
constexpr int BLOCK = 32, SEGMENT = 128;
// The block of rows that are nobody's (block_cache.py), which is never written.
constexpr int64_t NOBODY = 0;
// Products of a query and a key that are worth a second thread.
constexpr int64_t SHARED_FROM = 256;
// Rows that are worth it where each has little to do.
constexpr int64_t MANY = 8;
// Rows at a time at most, and what they sum in so many floats: 16 MiB.
constexpr int64_t CHUNK = 64, MOST_SUMS = 1 << 22;
// Blocks that are asked for before they are read.
constexpr int64_t AHEAD_BLOCKS = 2;

struct Sizes {
    int64_t heads, groups, size, turned;
    float scale, eps;

    int64_t each() const {
        return heads / groups;
    }
    // Of what a query has summed over a segment: values, then the greatest score, then the sum of weights.
    int64_t summed() const {
        return (size + LANES - 1) / LANES * LANES + LANES;
    }
};

// A query in a segment, of which it sees so many positions: its vector, its scores [SEGMENT], which turn into weights,
// and what it has summed. Where the last of these positions is in none of its blocks, the key and the value there, and
// their weight.
struct Query {
    const float* vector;
    float* scores;
    int64_t sees;
    float* sums;
    const float *key = nullptr, *value = nullptr;
    float weight = 0.0f;
};

// A block of a segment, whose positions begin at `from` in it and at `at` among the pool's floats, and which so many
// queries read, from the `first` on.
struct Visit {
    int64_t from, at, first, count;
};

// Has the processor fetch so many floats.
inline void ask(const float* from, int64_t count) {
    for (int64_t at = 0; at < count; at += LINE)
        __builtin_prefetch(from + at);
}

// N queries of `from` are compared with a block's keys [size, BLOCK]; scores from `begin` on. What is from `next`
// on, if anything, is asked for meanwhile.
template <int N>
void compare(const Sizes& of, const Query* from, int64_t begin, const float* keys, const float* next) {
    for (int pair = 0; pair < BLOCK / LANES; pair += 2) {
        // Two sums each, of even and of odd places: one by itself would wait for its own products.
        Vec scores[2][N][2] = {};
        int64_t at = 0;
        const auto add = [&](int64_t place, int half) {
            const float* row = keys + place * BLOCK + pair * LANES;
            if (next)
                ask(next + (row - keys), 2 * LANES);
            const Vec low = load(row), high = load(row + LANES);
            for (int n = 0; n < N; ++n) {
                const Vec q = all(from[n].vector[place]);
                scores[half][n][0] = fma(q, low, scores[half][n][0]);
                scores[half][n][1] = fma(q, high, scores[half][n][1]);
            }
        };
        for (; at + 1 < of.size; at += 2) {
            add(at, 0);
            add(at + 1, 1);
        }
        if (at < of.size)
            add(at, 0);
        for (int n = 0; n < N; ++n)
            for (int part = 0; part < 2; ++part)
                store(from[n].scores + begin + (pair + part) * LANES, scores[0][n][part] + scores[1][n][part]);
    }
}

// The scores of a query turn into weights, of which the greatest is 1; up to the block's end the others are 0.
void weigh(const Sizes& of, const Query& query) {
    const int64_t full = query.sees / LANES * LANES, end = (query.sees + BLOCK - 1) / BLOCK * BLOCK;
    for (int64_t at = query.sees; at < end; ++at)
        query.scores[at] = -INFINITY;
    Vec most = load(query.scores), sum = {};
    for (int64_t at = LANES; at < end; at += LANES) {
        const Vec x = load(query.scores + at);
        most = most > x ? most : x;
    }
    const float greatest = joined(most, [](float x, float y) { return std::max(x, y); });
    int64_t at = 0;
    for (; at < full; at += LANES) {
        const Vec weight = exponential(load(query.scores + at) - greatest);
        store(query.scores + at, weight);
        sum += weight;
    }
    for (; at < end; at += LANES) {
        const Vec x = load(query.scores + at);
        const Vec weight = x > all(-INFINITY) ? exponential(x - greatest) : Vec{};
        store(query.scores + at, weight);
        sum += weight;
    }
    float* told = query.sums + of.summed() - LANES;
    told[0] = greatest;
    told[1] = joined(sum, [](float x, float y) { return x + y; });
}

// N queries of `from` add up a block's values [BLOCK, size], of its first `seen` positions, by their weights; `next`
// as above.
template <int N>
void add_up(const Sizes& of, const Query* from, int64_t begin, const float* values, int64_t seen, const float* next) {
    int64_t at = 0;
    const auto add = [&](auto count) {
        constexpr int V = decltype(count)::value;
        for (; at + V * LANES <= of.size; at += V * LANES) {
            Vec sums[N][V];
            for (int n = 0; n < N; ++n)
                for (int v = 0; v < V; ++v)
                    sums[n][v] = load(from[n].sums + at + v * LANES);
            for (int64_t position = 0; position < seen; ++position) {
                Vec value[V];
                if (next)
                    ask(next + position * of.size + at, V * LANES);
                for (int v = 0; v < V; ++v)
                    value[v] = load(values + position * of.size + at + v * LANES);
                for (int n = 0; n < N; ++n) {
                    const Vec weight = all(from[n].scores[begin + position]);
                    for (int v = 0; v < V; ++v)
                        sums[n][v] = fma(weight, value[v], sums[n][v]);
                }
            }
            for (int n = 0; n < N; ++n)
                for (int v = 0; v < V; ++v)
                    store(from[n].sums + at + v * LANES, sums[n][v]);
        }
    };
    add(std::integral_constant<int, WIDE>());
    add(std::integral_constant<int, 1>());
    for (; at < of.size; ++at)
        for (int n = 0; n < N; ++n)
            for (int64_t position = 0; position < seen; ++position) {
                float& sum = from[n].sums[at];
                sum = fma(from[n].scores[begin + position], values[position * of.size + at], sum);
            }
}

// A query is compared with the key of its own row, its sums in the order of `compare`.
void compare_alone(const Sizes& of, const Query& query) {
    float sums[2] = {};
    for (int64_t at = 0; at < of.size; ++at)
        sums[at % 2] = fma(query.vector[at], query.key[at], sums[at % 2]);
    query.scores[query.sees - 1] = sums[0] + sums[1];
}

// What is done by `count` queries, in tiles.
template <typename Work>
void tiled(const Query* queries, int64_t count, const Work& work) {
    for (; count >= TILE; queries += TILE, count -= TILE)
        work(queries, std::integral_constant<int, TILE>());
    [&]<int... N>(std::integer_sequence<int, N...>) {
        ((count == N + 1 ? work(queries, std::integral_constant<int, N + 1>()) : void()), ...);
    }(std::make_integer_sequence<int, TILE - 1>());
}

// A head [size] as it is compared: of root mean square 1 with `norm` (or none), its first `turned` values rotated.
void turn(const Sizes& of, const float* __restrict head, const float* __restrict norm, const float* __restrict cos,
          const float* __restrict sin, float* __restrict out) {
    float factor = 1.0f;
    if (norm) {
        float squares = 0.0f;
        for (int64_t at = 0; at < of.size; ++at)
            squares = std::fma(head[at], head[at], squares);
        factor = 1.0f / std::sqrt(squares / static_cast<float>(of.size) + of.eps);
    }
    const auto normed = [&](int64_t at) { return norm ? head[at] * factor * norm[at] : head[at]; };
    const int64_t half = of.turned / 2;
    for (int64_t at = 0; at < half; ++at) {
        const float low = normed(at), high = normed(at + half);
        out[at] = low * cos[at] - high * sin[at];
        out[at + half] = high * cos[at + half] + low * sin[at + half];
    }
    for (int64_t at = of.turned; at < of.size; ++at)
        out[at] = normed(at);
}

struct Inputs {
    const float *z, *cos, *sin;
    const int32_t* spread;
    const int32_t *past, *blocks, *begins;
    float *keys, *values;
    const float *query_norm, *key_norm;
    int64_t rows, places;

    // Keys and values are those of a layer, of each of which there are two addresses.
    void point(const int32_t* addresses, int64_t layer) {
        const auto [first, second] = addressed<std::array<float*, 2>>(addresses, layer);
        keys = first, values = second;
    }

    const float* row(const Sizes& of, int64_t place) const {
        return z + spread[place] * (of.heads + 2 * of.groups) * of.size;
    }

    const float* value(const Sizes& of, int64_t place, int64_t group) const {
        return row(of, place) + (of.heads + of.groups + group) * of.size;
    }

    // Whether it has a block of its own, behind those that it reads.
    bool alone(int64_t place) const {
        return begins[place + 1] - begins[place] > past[place] / BLOCK + 1;
    }

    int64_t written(int64_t place) const {
        return blocks[alone(place) ? begins[place + 1] - 1 : begins[place] + past[place] / BLOCK];
    }
};

// The key of a place, of one group, as it is compared.
void turn_key(const Sizes& of, const Inputs& in, int64_t place, int64_t group, float* key) {
    const float* z = in.row(of, place) + (of.heads + group) * of.size;
    turn(of, z, in.key_norm, in.cos + place * of.turned, in.sin + place * of.turned, key);
}

// Writes the key and the value of a place, of one group; `key` [size] is used up.
void write(const Sizes& of, const Inputs& in, int64_t place, int64_t group, float* key) {
    const int64_t past = in.past[place], block = in.written(place);
    if (block == NOBODY)
        return;
    const int64_t begin = (block * of.groups + group) * BLOCK * of.size;
    turn_key(of, in, place, group, key);
    // Nobody reads a leaf's block here. Its key is a few lines of it, where across it would be as many as it has values, and
    // the same lines whatever its position: those of the last forward's leaves are in the caches.
    const bool alone = in.alone(place);
    const int64_t at = alone ? 0 : past % BLOCK;
    if (alone)
        std::memcpy(in.keys + begin, key, of.size * sizeof(float));
    else
        for (int64_t row = 0; row < of.size; ++row)
            in.keys[begin + row * BLOCK + at] = key[row];
    std::memcpy(in.values + begin + at * of.size, in.value(of, place, group), of.size * sizeof(float));
}

// Some of the rows, and what they sum: of each, head and segment, `Sizes::summed` values.
struct Chunk {
    int64_t first, last, segments;
    float* sums;

    float* summed(const Sizes& of, int64_t row, int64_t head, int64_t segment) const {
        return sums + (((row - first) * of.heads + head) * segments + segment) * of.summed();
    }
};

// What the rows of a chunk sum over one segment, of one group. If `writes`, keys and values are written first: those
// that are read here, of this group at positions of this segment, are nobody else's to read.
void attend_segment(const Sizes& of, const Inputs& in, const Chunk& chunk, int64_t group, int64_t segment, bool writes) {
    const int64_t each = of.each(), begin = segment * SEGMENT, most = (chunk.last - chunk.first) * each;
    Kept<Query> held(most);
    Kept<Visit> listed(most / each * (SEGMENT / BLOCK));
    Kept<float> memory(most * (SEGMENT + of.size) + (most / each + 1) * of.size);
    Query* queries = held.data();
    Visit* visits = listed.data();
    float *scores = memory.data(), *vectors = scores + most * SEGMENT, *key = vectors + most * of.size;
    for (int64_t place = 0; writes && place < in.places; ++place)
        // Where a row is to stand once more, its position is the row's.
        if (in.past[in.spread[place]] / SEGMENT == segment)
            write(of, in, place, group, key);
    // Which blocks are read by which queries, neighbours that share them.
    int64_t count = 0, all = 0;
    const auto seeing = [&](int64_t row) { return std::min<int64_t>(SEGMENT, in.past[row] + 1 - begin); };
    const auto reading = [&](int64_t row) { return std::min<int64_t>(SEGMENT, in.past[row] + !in.alone(row) - begin); };
    for (int64_t from = 0; from < SEGMENT; from += BLOCK) {
        int64_t place = 0, before = -1;
        for (int64_t row = chunk.first; row < chunk.last; ++row) {
            if (in.past[row] < begin)
                continue;
            const int64_t reads = reading(row) - from;
            const int64_t block = reads <= 0 ? -1 : in.blocks[in.begins[row] + (begin + from) / BLOCK];
            if (block >= 0 && block != before)
                visits[all++] = {from, (block * of.groups + group) * BLOCK * of.size, place, 0};
            if (block >= 0)
                visits[all - 1].count += each;
            before = block;
            place += each;
        }
    }
    // What is read step by step: all keys, then all values.
    const auto read = [&](int64_t step) {
        return step < all ? in.keys + visits[step].at : in.values + visits[std::min(step - all, all - 1)].at;
    };
    // The first queries of a block ask.
    const auto next = [&](int64_t step, const Query* tile) {
        const bool asks = tile == queries + visits[step % all].first;
        return asks ? read(step + AHEAD_BLOCKS) : nullptr;
    };
    for (int64_t step = 0; all && step < AHEAD_BLOCKS; ++step)
        ask(read(step), BLOCK * of.size);
    for (int64_t row = chunk.first; row < chunk.last; ++row)
        if (in.past[row] >= begin) {
            const bool alone = reading(row) < seeing(row);
            if (alone)
                turn_key(of, in, row, group, key += of.size);
            for (int64_t head = group * each; head < (group + 1) * each; ++head, ++count) {
                float* vector = vectors + count * of.size;
                queries[count] = {vector, scores + count * SEGMENT, seeing(row), chunk.summed(of, row, head, segment)};
                if (alone)
                    queries[count].key = key, queries[count].value = in.value(of, row, group);
                turn(of, in.row(of, row) + head * of.size, in.query_norm, in.cos + row * of.turned,
                     in.sin + row * of.turned, vector);
                for (int64_t at = 0; at < of.size; ++at)
                    vector[at] *= of.scale;
                std::fill_n(queries[count].sums, of.size, 0.0f);
            }
        }
    for (int64_t step = 0; step < all; ++step)
        tiled(queries + visits[step].first, visits[step].count, [&](const Query* tile, auto n) {
            compare<decltype(n)::value>(of, tile, visits[step].from, read(step), next(step, tile));
        });
    for (int64_t place = 0; place < count; ++place) {
        Query& query = queries[place];
        if (query.key)
            compare_alone(of, query);
        weigh(of, query);
        if (query.key)
            // In its place a block has another node.
            query.weight = std::exchange(query.scores[query.sees - 1], 0.0f);
    }
    for (int64_t step = 0; step < all; ++step)
        tiled(queries + visits[step].first, visits[step].count, [&](const Query* tile, auto n) {
            int64_t seen = 0;
            for (int query = 0; query < n; ++query)
                seen = std::max(seen, tile[query].sees - visits[step].from);
            add_up<decltype(n)::value>(of, tile, visits[step].from, read(all + step), std::min<int64_t>(BLOCK, seen),
                                       next(all + step, tile));
        });
    for (int64_t place = 0; place < count; ++place)
        for (int64_t at = 0; queries[place].key && at < of.size; ++at)
            queries[place].sums[at] = fma(queries[place].weight, queries[place].value[at], queries[place].sums[at]);
}

// What a row has summed over its segments, together.
void join_segments(const Sizes& of, const Inputs& in, const Chunk& chunk, int64_t row, float* out) {
    const int64_t end = of.summed() - LANES, count = in.past[row] / SEGMENT + 1;
    for (int64_t head = 0; head < of.heads; ++head) {
        float most = -INFINITY, weight = 0.0f;
        for (int64_t segment = 0; segment < count; ++segment)
            most = std::max(most, chunk.summed(of, row, head, segment)[end]);
        float* to = out + (row * of.heads + head) * of.size;
        std::fill_n(to, of.size, 0.0f);
        for (int64_t segment = 0; segment < count; ++segment) {
            const float* from = chunk.summed(of, row, head, segment);
            const float fade = exponential(from[end] - most);
            weight += from[end + 1] * fade;
            for (int64_t at = 0; at < of.size; ++at)
                to[at] += from[at] * fade;
        }
        for (int64_t at = 0; at < of.size; ++at)
            to[at] /= weight;
    }
}

void attend(Team& team, const Sizes& of, const Inputs& in, float* out) {
    int64_t furthest = 0;
    for (int64_t row = 0; row < in.rows; ++row)
        furthest = std::max<int64_t>(furthest, in.past[row]);
    const int64_t a_row = of.heads * (furthest / SEGMENT + 1) * of.summed();
    const int64_t step = std::clamp<int64_t>(MOST_SUMS / a_row, 1, CHUNK);
    // Of a long text all is written first: later rows read what earlier ones have written.
    const bool at_once = in.rows <= step;
    if (!at_once)
        team.share(in.places * of.groups, true, [&](int64_t task) {
            Kept<float> key(of.size);
            write(of, in, task / of.groups, task % of.groups, key.data());
        });
    for (int64_t first = 0; first < in.rows; first += step) {
        const int64_t last = std::min(first + step, in.rows);
        int64_t longest = 0, products = 0;
        for (int64_t row = first; row < last; ++row) {
            longest = std::max<int64_t>(longest, in.past[row] + 1);
            products += in.past[row] + 1;
        }
        const int64_t segments = (longest + SEGMENT - 1) / SEGMENT;
        Kept<float, 1> sums((last - first) * of.heads * segments * of.summed());
        const Chunk chunk{first, last, segments, sums.data()};
        team.share(of.groups * segments, products * of.groups >= SHARED_FROM, [&](int64_t task) {
            attend_segment(of, in, chunk, task % of.groups, task / of.groups, at_once);
        });
        team.share(last - first, last - first >= MANY,
                   [&](int64_t place) { join_segments(of, in, chunk, first + place, out); });
    }
}

struct Placed {
    Sizes of;
    Inputs in;
};

// The first inputs of an operation that attends: rows [n, ...], cos and sin [m, turned], spread [m], past [m], blocks,
// begins [m + 1].
constexpr size_t TREE_INPUTS = 7;

// What these say; neither what is compared nor where keys and values are.
Placed tree(const ov::TensorVector& inputs, int64_t heads, int64_t groups, int64_t size, float eps) {
    for (size_t place = 0; place < TREE_INPUTS; ++place)
        OPENVINO_ASSERT(inputs[place].get_element_type() == (place > 2 ? ov::element::i32 : ov::element::f32),
                        "attention: input ", place, " is of another type");
    const auto numbers = [&](size_t place) { return static_cast<const int32_t*>(inputs[place].data()); };
    const int64_t rows = inputs[0].get_shape()[0], places = inputs[3].get_shape()[0];
    const int64_t turned = inputs[1].get_shape().back();
    return {Sizes{heads, groups, size, turned, 1.0f / std::sqrt(float(size)), eps},
            Inputs{nullptr, floats(inputs[1]), floats(inputs[2]), numbers(3), numbers(4), numbers(5), numbers(6), nullptr,
                   nullptr, nullptr, nullptr, rows, places}};
}

// Inputs: z [n, (heads + 2 groups) * size] and the others of `tree`; where the keys [blocks, groups, size, BLOCK] and values
// [blocks, groups, BLOCK, size] of all layers are, two addresses of each (`addressed`); weights [size] of norms of queries and
// of keys, if any. Output: [n, heads * size], of the first n of the m places.
class TreeAttention : public ov::op::Op {
public:
    OPENVINO_OP("TreeAttention", "dynatree");

    TreeAttention() = default;
    TreeAttention(const ov::OutputVector& inputs, int64_t layer, int64_t heads, int64_t groups, int64_t size, float eps)
        : Op(inputs),
          m_layer(layer),
          m_heads(heads),
          m_groups(groups),
          m_size(size),
          m_eps(eps) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        const auto rows = get_input_partial_shape(0)[0];
        set_output_type(0, ov::element::f32, ov::PartialShape{rows, m_heads * m_size});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<TreeAttention>(inputs, m_layer, m_heads, m_groups, m_size, m_eps);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("layer", m_layer);
        visitor.on_attribute("heads", m_heads);
        visitor.on_attribute("groups", m_groups);
        visitor.on_attribute("size", m_size);
        visitor.on_attribute("eps", m_eps);
        return true;
    }

    bool has_evaluate() const override {
        return true;
    }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        Placed placed = tree(inputs, m_heads, m_groups, m_size, m_eps);
        placed.in.z = floats(inputs[0]);
        placed.in.point(static_cast<const int32_t*>(inputs[TREE_INPUTS].data()), m_layer);
        if (inputs.size() > TREE_INPUTS + 1)
            placed.in.query_norm = floats(inputs[TREE_INPUTS + 1]), placed.in.key_norm = floats(inputs[TREE_INPUTS + 2]);
        outputs[0].set_shape({inputs[0].get_shape()[0], static_cast<size_t>(m_heads * m_size)});
        Team::gather(0, true, [&](Team& team) { attend(team, placed.of, placed.in, floats(outputs[0])); });
        return true;
    }

private:
    int64_t m_layer = 0, m_heads = 1, m_groups = 1, m_size = 1;
    float m_eps = 0.0f;
};

}  // namespace dynatree
