/* One rank of an MPI job (mpirun starts four; the argument is their split): the logits must be the bytes that one rank alone
 * computes. The prompt goes in halves. Every rank ends with 0 only if its part went well; the leader compares. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "model/synth.h"
#include "transport/comm.h"
#include "worker/shard_comm.h"
#include "worker/solo.h"

enum { N_PROMPT = 200, N_DECODE = 12, N_VOCAB = 400 };

static const struct mu_serving SERVING = {.n_ctx = 256, .n_slot = 1, .n_page = 8, .step_tokens = 256};

static int die(const char *what, const struct mu_err *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    return 1;
}

/* Step k: all pages and the prompt, then one token at a time with its logits. */
static void step_fill(struct mu_step *s, uint32_t k)
{
    s->number = k + 1;
    s->n_page = s->n_free = 0;
    s->n_seq = 1;
    s->n_tok = k == 0 ? N_PROMPT : 1;
    s->seq[0] = (struct mu_step_seq){
        .pos0 = k == 0 ? 0 : N_PROMPT + k - 1, .n_tok = s->n_tok, .out = k == 0 ? MU_OUT_ALL : MU_OUT_LOGITS};
    for (uint32_t p = 0; k == 0 && p < SERVING.n_page; p++) s->page[s->n_page++] = (struct mu_step_page){0, p};
    for (uint32_t i = 0; i < s->n_tok; i++) s->ids[i] = (int32_t)((s->seq[0].pos0 + i) * 17 % N_VOCAB);
}

static int compare(struct mu_solo *alone, const struct mu_step *step, const struct mu_step_result *got)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_step_result want;
    if (mu_solo_step(alone, step, &want, &err) != MU_OK) return die("alone", &err);
    size_t bytes = (size_t)want.n_logit_row * N_VOCAB * sizeof(float);
    if (got->n_logit_row == want.n_logit_row && memcmp(got->logits, want.logits, bytes) == 0) return 0;
    fprintf(stderr, "step %d: the logits differ\n", (int)step->number);
    return 1;
}

static int run(struct mu_comm *comm, const char *path, const char *split_text)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *model = NULL;
    struct mu_plan plan;
    struct mu_pool *pool = NULL;
    struct mu_shard_link *link = NULL;
    struct mu_shard *shard = NULL;
    struct mu_solo *alone = NULL;
    struct mu_step *step = NULL;
    struct mu_solo_options solo = {.n_thread = 1, .serving = SERVING};
    struct mu_pool_options threads = {.n_threads = 1 + comm->rank % 2};
    struct mu_split split;
    if (mu_kernels_init(NULL, &err) != MU_OK || mu_model_open(path, &model, &err) != MU_OK) return die("model", &err);
    if (mu_split_parse(split_text, &split, &err) != MU_OK || mu_plan_build(model, &split, &plan, &err) != MU_OK)
        return die("plan", &err);
    struct mu_shard_options opt = {
        .model = model, .plan = &plan, .rank = comm->rank, .serving = SERVING, .slow_links = true};
    if (mu_pool_create(&threads, &pool, &err) != MU_OK ||
        mu_shard_link_create(comm, &plan, &link, &opt.comm, &err) != MU_OK)
        return die("pool", &err);
    opt.pool = pool;
    solo.model = model;
    mu_split_parse("1", &solo.split, &err);
    if (mu_shard_create(&opt, &shard, &err) != MU_OK || mu_step_create(&SERVING, N_VOCAB, &step, &err) != MU_OK)
        return die("shard", &err);
    if (comm->rank == plan.leader && mu_solo_open(&solo, &alone, &err) != MU_OK) return die("alone", &err);
    int failed = 0;
    for (uint32_t k = 0; k <= N_DECODE && !failed; k++) {
        struct mu_step_result result;
        step_fill(step, k);
        if (mu_shard_step(shard, step, &result, &err) != MU_OK) return die("step", &err);
        if (alone) failed = compare(alone, step, &result);
    }
    int idle;
    while ((idle = mu_shard_idle(shard, &err)) == 0) {}
    if (idle < 0) return die("idle", &err);
    mu_solo_close(alone);
    mu_free(step);
    mu_shard_destroy(shard);
    mu_shard_link_destroy(link);
    mu_pool_destroy(pool);
    mu_model_close(model);
    return failed;
}

int main(int argc, char **argv)
{
    struct mu_comm *comm = NULL;
    struct mu_err err = MU_ERR_INIT;
    char path[300] = "";
    if (mu_comm_mpi_open(&comm, &err) != MU_OK) return die("MPI", &err);
    if (comm->rank == 0) {
        const struct mu_synth spec = {.arch = "llama",
                                      .n_layer = 3,
                                      .n_head = 6,
                                      .n_kv_head = 3,
                                      .d_head = 64,
                                      .d_model = 384,
                                      .d_ff = 512,
                                      .n_vocab = N_VOCAB,
                                      .n_ctx = 256,
                                      .rope_freq_base = 10000,
                                      .type = MU_Q4_0,
                                      .output_type = MU_Q8_0,
                                      .seed = 3};
        const char *tmp = getenv("TMPDIR");
        snprintf(path, sizeof path, "%s/muster-mpi-%d.gguf", tmp ? tmp : "/tmp", (int)getpid());
        if (mu_synth_write(&spec, path, NULL, NULL, &err) != MU_OK) return die("model", &err);
    }
    if (mu_comm_broadcast(comm, 0, path, sizeof path, &err) != MU_OK) return die("broadcast", &err);
    int failed = run(comm, path, argc > 1 ? argv[1] : "1:1:1:1");
    if (!failed && mu_comm_barrier(comm, &err) != MU_OK) failed = die("barrier", &err);
    if (comm->rank == 0) unlink(path);
    mu_comm_close(comm);
    return failed;
}
