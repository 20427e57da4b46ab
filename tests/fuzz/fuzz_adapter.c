/* Adapters of any bytes beside a tiny model: refused with a sentence, or opened so that every row of every pair can be
 * read.
 *
 *   input: 'G' and a GGUF file (its first byte included), or
 *          adapter_config.json, NUL, the header of adapter_model.safetensors, NUL, its data
 *
 * The header's length is put before it here, so that most inputs get further. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "kernels/kernels.h"
#include "model/adapter.h"
#include "model/gguf_write.h"
#include "model/synth.h"

static volatile unsigned sink;
static char *dir;
static struct mu_model *model;

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void leave(void)
{
    mu_model_close(model);
    mu_run_dir_remove(dir);
    mu_free(dir);
}

static void enter(void)
{
    const struct mu_synth spec = {.n_layer = 2,
                                  .n_head = 2,
                                  .n_kv_head = 1,
                                  .d_head = 16,
                                  .d_model = 32,
                                  .d_ff = 32,
                                  .n_vocab = 258,
                                  .n_ctx = 64,
                                  .rope_freq_base = 10000.0f,
                                  .type = MU_Q8_0,
                                  .output_type = MU_Q8_0,
                                  .tied = 1};
    char path[4096];
    struct mu_err err = MU_ERR_INIT;
    if (dir) return;
    expect(mu_run_dir_create(&dir, &err) == MU_OK, err.text);
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    expect(mu_synth_write(&spec, path, NULL, NULL, &err) == MU_OK && mu_model_open(path, &model, &err) == MU_OK,
           err.text);
    atexit(leave);
}

/* The folder's files are links to files in memory, which are written anew for each input. */
static void write_file(const char *name, int *fd, const void *head, size_t head_len, const void *data, size_t len)
{
    char path[4096], target[64];
    if (*fd < 0) {
        *fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "%s/%s", dir, name);
        snprintf(target, sizeof target, "/proc/self/fd/%d", *fd);
        expect(*fd >= 0 && symlink(target, path) == 0, "the test's folder can be written");
    }
    expect(ftruncate(*fd, 0) == 0 && pwrite(*fd, head, head_len, 0) == (ssize_t)head_len &&
               pwrite(*fd, data, len, (off_t)head_len) == (ssize_t)len,
           "the test's files can be written");
}

static void read_pair(const struct mu_lora *l)
{
    if (l->rank == 0) return;
    expect(l->rank <= MU_MAX_LORA_RANK && l->scale - l->scale == 0, "rank and strength are checked");
    for (int i = 0; i < l->rank; i++) sink += mu_lora_a_row(l, i)[0] + mu_lora_a_row(l, i)[l->a_row_bytes - 1];
    for (int i = 0; i < l->n_row; i++) sink += mu_lora_b_row(l, i)[0] + mu_lora_b_row(l, i)[l->b_row_bytes - 1];
}

static void try_open(const char *path, unsigned hash)
{
    struct mu_adapter_spec spec = {.name = "it", .scale = 1};
    struct mu_adapters *a = NULL;
    struct mu_err err = MU_ERR_INIT;
    snprintf(spec.path, sizeof spec.path, "%s", path);
    if (hash % 8 == 0) mu_alloc_fail_at(1 + hash / 8 % 32); /* now and then memory runs out somewhere on the way */
    enum mu_status st = mu_adapters_open(model, &spec, 1, &a, &err);
    mu_alloc_fail_at(0);
    if (st == MU_OK) {
        expect(a->n == 1 && a->max_rank > 0, "an adapter adapts something");
        for (int l = 0; l < model->cfg.n_layer; l++)
            for (int id = 0; id < MU_T_MATRIX_COUNT; id++) read_pair(&a->at[0]->layer[l][id]);
        read_pair(&a->at[0]->out);
    } else {
        expect(err.code == st && err.text[0], "a failure says what it is");
        expect(!strpbrk(err.text, "\n\r\033"), "a message holds nothing that a terminal obeys");
    }
    mu_adapters_close(a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static int gguf = -1, config = -1, tensors = -1;
    char path[4096];
    unsigned hash = 0;
    enter();
    for (size_t i = 0; i < len; i++) hash = hash * 31 + data[i];
    if (len && data[0] == 'G') {
        write_file("adapter.gguf", &gguf, "", 0, data, len);
        snprintf(path, sizeof path, "%s/adapter.gguf", dir);
        try_open(path, hash);
        return 0;
    }
    const uint8_t *end = data + len, *nul = len ? memchr(data, 0, len) : NULL;
    const uint8_t *header = nul ? nul + 1 : end,
                  *second = header < end ? memchr(header, 0, (size_t)(end - header)) : NULL;
    const uint8_t *values = second ? second + 1 : end;
    uint64_t header_len = (uint64_t)((second ? second : end) - header);
    char head[1 << 16] = {0};
    if (header_len + 8 > sizeof head) return 0;
    memcpy(head, &header_len, 8);
    if (header_len) memcpy(head + 8, header, (size_t)header_len);
    write_file("adapter_config.json", &config, "", 0, data, (size_t)((nul ? nul : end) - data));
    write_file("adapter_model.safetensors", &tensors, head, (size_t)header_len + 8, values, (size_t)(end - values));
    try_open(dir, hash);
    return 0;
}

static bool copy_out(const void *data, size_t len, uint8_t **data_out, size_t *len_out)
{
    *data_out = malloc(len);
    if (*data_out) memcpy(*data_out, data, len);
    *len_out = len;
    return *data_out != NULL;
}

static bool seed_gguf(uint8_t **data_out, size_t *len_out)
{
    static const struct {
        const char *name;
        uint64_t ne[2];
        uint32_t type;
    } t[] = {{"blk.0.attn_q.weight.lora_a", {32, 3}, MU_F32},    {"blk.0.attn_q.weight.lora_b", {3, 32}, MU_F16},
             {"blk.1.ffn_down.weight.lora_a", {32, 1}, MU_Q8_0}, {"blk.1.ffn_down.weight.lora_b", {1, 32}, MU_BF16},
             {"output.weight.lora_a", {32, 1}, MU_F32},          {"output.weight.lora_b", {1, 258}, MU_F16}};
    struct mu_gguf_writer *w = NULL;
    struct mu_err err = MU_ERR_INIT;
    char path[4096], *file = NULL;
    size_t len = 0;
    const uint8_t zeros[1024] = {0};
    snprintf(path, sizeof path, "%s/seed.gguf", dir);
    if (mu_gguf_writer_open(path, &w, &err) != MU_OK) return false;
    mu_gguf_put_str(w, "general.architecture", "llama", 5);
    mu_gguf_put_str(w, "general.type", "adapter", 7);
    mu_gguf_put_str(w, "adapter.type", "lora", 4);
    mu_gguf_put_f32(w, "adapter.lora.alpha", 4);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) mu_gguf_put_tensor(w, t[i].name, t[i].type, 2, t[i].ne);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        size_t row = 0;
        bool fits = mu_type_row_bytes(t[i].type, t[i].ne[0], &row) && row * t[i].ne[1] <= sizeof zeros;
        if (!fits || mu_gguf_put_data(w, zeros, row * t[i].ne[1], &err) != MU_OK)
            fprintf(stderr, "seed: %s\n", err.text);
    }
    bool ok = mu_gguf_writer_close(w, 1, &err) == MU_OK && mu_file_read(path, 1 << 20, &file, &len, &err) == MU_OK &&
              copy_out(file, len, data_out, len_out);
    mu_free(file);
    return ok;
}

static bool seed_folder(uint8_t **data_out, size_t *len_out)
{
    static const char config[] =
        "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"use_rslora\":true,\"rank_pattern\":{\"mlp.up_proj\":1},"
        "\"alpha_pattern\":{},\"bias\":\"none\",\"use_dora\":false,\"modules_to_save\":null}";
    static const char header[] =
        "{\"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[2,32],"
        "\"data_offsets\":[0,256]},\"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight\":{\"dtype\":"
        "\"BF16\",\"shape\":[32,2],\"data_offsets\":[256,384]},"
        "\"base_model.model.model.layers.1.mlp.up_proj.lora_A.weight\":{\"dtype\":\"F16\",\"shape\":[1,32],"
        "\"data_offsets\":[384,448]},\"base_model.model.model.layers.1.mlp.up_proj.lora_B.weight\":{\"dtype\":\"F16\","
        "\"shape\":[32,1],\"data_offsets\":[448,512]}}";
    static uint8_t all[sizeof config + sizeof header + 512];
    memcpy(all, config, sizeof config);
    memcpy(all + sizeof config, header, sizeof header);
    return copy_out(all, sizeof all, data_out, len_out);
}

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    enter();
    if (n > 1) return false;
    return n ? seed_folder(data_out, len_out) : seed_gguf(data_out, len_out);
}
