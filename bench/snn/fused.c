/* All steps of a LIF or IF layer in one pass over memory: float32, contiguous [steps, n].
 *
 * Every operation is one IEEE operation of the Python code in fast_lif.py (or of SpikingJelly's node), in
 * its order, and nothing is contracted (-ffp-contract=off), so the results are the same in every bit.
 * A call works on the neurons [from, to) alone: threads may share a layer.
 */
#include <stdint.h>

#define BLOCK 1024 /* neurons whose potentials stay in the first cache for the length of a sequence */

#ifdef CLONES /* wide registers where the processor has them; the same bits */
#define EXPORT __attribute__((target_clones("avx2", "default")))
#else
#define EXPORT
#endif

typedef struct {
    float tau;       /* 0: the layer does not leak (IF), or by a share (PLIF) */
    float share;     /* of the potential that leaks in a step; 0: 1 / tau of it does */
    float rest;      /* where it leaks to, and what a hard reset sets */
    float threshold;
    int32_t decays;  /* whether the current decays too */
    int32_t soft;    /* whether a spike subtracts the threshold */
    int32_t detached; /* whether the gradient is cut at the reset */
    int32_t own;     /* whether what flows back through a hard reset is summed in the order of the node's graph */
    float inner, outer; /* slopes outer / (1 + (inner u)^2), where none are given */
} Layer;

/* v [n]: potential before the first step, overwritten by that after the last. h [steps, n]: the charged
 * potentials, or null. s may be x. */
EXPORT void lif_forward(const Layer *layer, int64_t steps, int64_t n, int64_t from, int64_t to,
                        const float *x, float *v, float *h, float *s)
{
    const float tau = layer->tau, share = layer->share, rest = layer->rest, threshold = layer->threshold;
    const int soft = layer->soft, decays = layer->decays;
    float charged[BLOCK], potential[BLOCK];
    for (int64_t start = from; start < to; start += BLOCK) {
        const int64_t size = to - start < BLOCK ? to - start : BLOCK;
        for (int64_t i = 0; i < size; i++) potential[i] = v[start + i];
        for (int64_t t = 0; t < steps; t++) {
            const int64_t at = t * n + start;
            const float *current = x + at;
            float *spikes = s + at;
            if (share != 0 && decays)
                for (int64_t i = 0; i < size; i++)
                    charged[i] = potential[i] + (current[i] - (potential[i] - rest)) * share;
            else if (share != 0)
                for (int64_t i = 0; i < size; i++)
                    charged[i] = potential[i] - (potential[i] - rest) * share + current[i];
            else if (tau == 0)
                for (int64_t i = 0; i < size; i++) charged[i] = potential[i] + current[i];
            else if (decays)
                for (int64_t i = 0; i < size; i++)
                    charged[i] = potential[i] + (current[i] - (potential[i] - rest)) / tau;
            else
                for (int64_t i = 0; i < size; i++)
                    charged[i] = potential[i] - (potential[i] - rest) / tau + current[i];
            if (h)
                for (int64_t i = 0; i < size; i++) h[at + i] = charged[i];
            for (int64_t i = 0; i < size; i++) {
                const float fires = charged[i] >= threshold ? 1.0f : 0.0f;
                spikes[i] = fires;
                potential[i] = soft ? charged[i] - fires * threshold
                                           : fires * rest + (1.0f - fires) * charged[i];
            }
        }
        for (int64_t i = 0; i < size; i++) v[start + i] = potential[i];
    }
}

/* grad [steps, n]: gradient of the spikes. slopes [steps, n], or null. carry [n]: gradient of the potential
 * after the last step, or null where nothing hangs on it. out [steps, n]: gradient of the currents. */
EXPORT void lif_backward(const Layer *layer, int64_t steps, int64_t n, int64_t from, int64_t to,
                         const float *grad, const float *h, const float *slopes, const float *carry,
                         float *out)
{
    const float tau = layer->tau, share = layer->share, rest = layer->rest, threshold = layer->threshold;
    const float inner = layer->inner, outer = layer->outer;
    const int soft = layer->soft, decays = layer->decays, detached = layer->detached;
    const int own = layer->own;
    float carried[BLOCK], slope[BLOCK];
    for (int64_t start = from; start < to; start += BLOCK) {
        const int64_t size = to - start < BLOCK ? to - start : BLOCK;
        for (int64_t i = 0; i < size; i++) carried[i] = carry ? carry[start + i] : 0.0f;
        for (int64_t t = steps - 1; t >= 0; t--) {
            const int64_t at = t * n + start;
            const float *g = grad + at, *charged = h + at;
            float *d = out + at;
            if (slopes)
                for (int64_t i = 0; i < size; i++) slope[i] = slopes[at + i];
            else
                for (int64_t i = 0; i < size; i++) {
                    const float z = (charged[i] - threshold) * inner;
                    slope[i] = 1.0f / (1.0f + z * z) * outer;
                }
            if (t == steps - 1 && !carry) {
                for (int64_t i = 0; i < size; i++) d[i] = g[i] * slope[i];
            } else {
                for (int64_t i = 0; i < size; i++) {
                    const float fires = charged[i] >= threshold ? 1.0f : 0.0f;
                    float back = g[i];
                    if (!detached && soft) back = g[i] + carried[i] * -threshold;
                    if (!detached && !soft && own) back = g[i] - carried[i] * charged[i] + carried[i] * rest;
                    if (!detached && !soft && !own) back = g[i] + carried[i] * (rest - charged[i]);
                    d[i] = back * slope[i] + (soft ? carried[i] : carried[i] + -carried[i] * fires);
                }
            }
            if (share != 0)
                for (int64_t i = 0; i < size; i++) {
                    const float leaked = d[i] * share;
                    carried[i] = d[i] - leaked;
                    d[i] = decays ? leaked : d[i];
                }
            else if (tau == 0)
                for (int64_t i = 0; i < size; i++) carried[i] = d[i];
            else
                for (int64_t i = 0; i < size; i++) {
                    const float leaked = d[i] / tau;
                    carried[i] = d[i] - leaked;
                    d[i] = decays ? leaked : d[i];
                }
        }
    }
}
