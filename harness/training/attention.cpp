// Causal attention with the ALiBi bias for short heads on a CPU, forward and backward, in float32.
//
// Rows of q, k and v lie in the fused projection (batch, length, 3, heads, WIDTH). Sixteen keys, or
// the sixteen numbers of a head, fill one vector; four queries share what is loaded.
//
// Of a query only the keys within its reach are read: a key further away has at most e^-REST of the
// weight of the query's own key, by the Cauchy-Schwarz bound on its score.
#include <cmath>
#include <cstring>
#include <vector>

typedef float Lanes __attribute__((vector_size(64)));
typedef int IntLanes __attribute__((vector_size(64)));

constexpr int WIDTH = 16, QUERIES = 4;
constexpr float REST = 30.0f, HIDDEN = -1e30f;

static inline Lanes all(float x) { return Lanes{} + x; }

static inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

// e^x for x <= 0, relative error below 1e-6; e^-87 below that.
static inline Lanes exponential(Lanes x) {
    const Lanes t = larger(x, all(-87.0f)) * 1.44269504f;
    const Lanes rounder = all(12582912.0f);
    const Lanes whole = (t + rounder) - rounder;
    const Lanes f = (t - whole) * 0.69314718f;
    Lanes p = all(1.0f / 720);
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    const IntLanes power = (__builtin_convertvector(whole, IntLanes) + 127) << 23;
    return p * (Lanes)power;
}

static inline float sum(Lanes x) {
    float total = 0;
    for (int i = 0; i < WIDTH; i++) total += x[i];
    return total;
}

static inline float highest(Lanes x) {
    float top = x[0];
    for (int i = 1; i < WIDTH; i++) top = x[i] > top ? x[i] : top;
    return top;
}

static inline Lanes load(const float *at) {
    Lanes x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

static inline void store(float *at, Lanes x) { std::memcpy(at, &x, sizeof x); }

// The rows of one head, padded to whole vectors, and the first key of each group of queries.
struct Head {
    int length, padded;
    std::vector<Lanes> q, k, v, k_across, v_across;  // across: [WIDTH][padded / 16]
    std::vector<int> first;

    Head(int length) : length(length), padded((length + 15) / 16 * 16) {
        for (auto rows : {&q, &k, &v, &k_across, &v_across}) rows->assign(padded, Lanes{});
        first.assign(padded / QUERIES, 0);
    }

    void read(const float *qkv, int heads, float scale, float slope) {
        const size_t step = 3 * heads * WIDTH, part = heads * WIDTH;
        float longest = 0;
        for (int i = 0; i < length; i++) {
            const float *row = qkv + i * step;
            q[i] = load(row) * scale;
            k[i] = load(row + part);
            v[i] = load(row + 2 * part);
            const float square = sum(k[i] * k[i]);
            longest = square > longest ? square : longest;
            for (int d = 0; d < WIDTH; d++) {
                ((float *)k_across.data())[d * padded + i] = k[i][d];
                ((float *)v_across.data())[d * padded + i] = v[i][d];
            }
        }
        longest = std::sqrt(longest);
        for (int group = 0; group * QUERIES < length; group++) {
            int start = group * QUERIES;
            for (int i = group * QUERIES; i < length && i < (group + 1) * QUERIES; i++) {
                const float bound = std::sqrt(sum(q[i] * q[i])) * longest;
                const float reach = (REST + bound - sum(q[i] * k[i])) / slope;
                if (reach < i) start = start < i - (int)reach ? start : i - (int)reach;
                else start = 0;
            }
            first[group] = (start > 0 ? start : 0) / WIDTH;
        }
    }

    // Scores of four queries from `query` on and 16 keys, with the bias; hidden keys are HIDDEN.
    inline void scores(int query, int block, float slope, Lanes out[QUERIES]) const {
        const IntLanes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int a = 0; a < QUERIES; a++) {
            const IntLanes distance = (query + a) - (block * WIDTH + lane);
            out[a] = __builtin_convertvector(distance, Lanes) * -slope;
        }
        for (int d = 0; d < WIDTH; d++) {
            const Lanes keys = k_across[d * (padded / WIDTH) + block];
            for (int a = 0; a < QUERIES; a++) out[a] += keys * q[query + a][d];
        }
        if (block * WIDTH + WIDTH > query)
            for (int a = 0; a < QUERIES; a++) {
                const IntLanes distance = (query + a) - (block * WIDTH + lane);
                out[a] = distance < 0 ? all(HIDDEN) : out[a];
            }
    }
};

extern "C" {

// Write outputs (batch, length, heads, WIDTH) and log-sum-exps (batch, heads, length).
void forward(const float *qkv, const float *slopes, int batch, int length, int heads, float scale, float *output,
             float *lse) {
    Head head(length);
    std::vector<Lanes> kept(QUERIES * head.padded / WIDTH);
    for (int b = 0; b < batch; b++)
        for (int h = 0; h < heads; h++) {
            head.read(qkv + ((size_t)b * length * 3 * heads + h) * WIDTH, heads, scale, slopes[h]);
            for (int query = 0; query < length; query += QUERIES) {
                const int first = head.first[query / QUERIES], last = (query + QUERIES - 1) / WIDTH;
                Lanes top[QUERIES], total[QUERIES] = {}, out[QUERIES] = {};
                for (auto &x : top) x = all(HIDDEN);
                for (int block = first; block <= last; block++) {
                    Lanes *row = &kept[(block - first) * QUERIES];
                    head.scores(query, block, slopes[h], row);
                    for (int a = 0; a < QUERIES; a++) top[a] = larger(top[a], row[a]);
                }
                for (auto &x : top) x = all(highest(x));
                for (int block = first; block <= last; block++) {
                    const Lanes *row = &kept[(block - first) * QUERIES];
                    Lanes p[QUERIES];
                    for (int a = 0; a < QUERIES; a++) total[a] += p[a] = exponential(row[a] - top[a]);
                    for (int j = 0; j < WIDTH; j++)
                        for (int a = 0; a < QUERIES; a++) out[a] += head.v[block * WIDTH + j] * p[a][j];
                }
                for (int a = 0; a < QUERIES && query + a < length; a++) {
                    const float mass = sum(total[a]);
                    store(output + (((size_t)b * length + query + a) * heads + h) * WIDTH, out[a] / mass);
                    lse[((size_t)b * heads + h) * length + query + a] = top[a][0] + std::log(mass);
                }
            }
        }
}

// Write the gradient of qkv, of its shape, from that of the outputs.
void backward(const float *qkv, const float *slopes, const float *output, const float *lse, const float *gradient,
              int batch, int length, int heads, float scale, float *result) {
    Head head(length);
    std::vector<Lanes> dq(head.padded), dk(head.padded), dv(head.padded), dout(head.padded);
    for (int b = 0; b < batch; b++)
        for (int h = 0; h < heads; h++) {
            const size_t at = ((size_t)b * length * 3 * heads + h) * WIDTH;
            head.read(qkv + at, heads, scale, slopes[h]);
            for (auto rows : {&dq, &dk, &dv, &dout}) rows->assign(head.padded, Lanes{});
            for (int query = 0; query < length; query += QUERIES) {
                float shift[QUERIES], dot[QUERIES];
                for (int a = 0; a < QUERIES; a++) {
                    shift[a] = 1e30f;
                    dot[a] = 0;
                    if (query + a >= length) continue;
                    const size_t row = (((size_t)b * length + query + a) * heads + h) * WIDTH;
                    dout[query + a] = load(gradient + row);
                    dot[a] = sum(load(output + row) * dout[query + a]);
                    shift[a] = lse[((size_t)b * heads + h) * length + query + a];
                }
                const int first = head.first[query / QUERIES], last = (query + QUERIES - 1) / WIDTH;
                for (int block = first; block <= last; block++) {
                    Lanes p[QUERIES], dp[QUERIES] = {};
                    head.scores(query, block, slopes[h], p);
                    for (int d = 0; d < WIDTH; d++) {
                        const Lanes values = head.v_across[d * (head.padded / WIDTH) + block];
                        for (int a = 0; a < QUERIES; a++) dp[a] += values * dout[query + a][d];
                    }
                    for (int a = 0; a < QUERIES; a++) {
                        p[a] = exponential(p[a] - shift[a]);
                        dp[a] = p[a] * (dp[a] - dot[a]);
                    }
                    for (int j = 0; j < WIDTH; j++) {
                        const int key = block * WIDTH + j;
                        Lanes keys = dk[key], values = dv[key];
                        for (int a = 0; a < QUERIES; a++) {
                            dq[query + a] += head.k[key] * dp[a][j];
                            keys += head.q[query + a] * dp[a][j];
                            values += dout[query + a] * p[a][j];
                        }
                        dk[key] = keys;
                        dv[key] = values;
                    }
                }
            }
            for (int i = 0; i < length; i++) {
                float *row = result + at + (size_t)i * 3 * heads * WIDTH;
                store(row, dq[i] * scale);
                store(row + heads * WIDTH, dk[i]);
                store(row + 2 * heads * WIDTH, dv[i]);
            }
        }
}
}
