/* A Hugging Face folder of any bytes: config.json and model.safetensors, or an index. Refused with a sentence, or opened
 * so that every row of every tensor can be read.
 *
 *   input: config.json, NUL, the index ("": none), NUL, the header of model.safetensors, NUL, its data
 *
 * The header's length is put before it here (test_safetensors lies about it), so that most inputs get further. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "base/log.h"
#include "model/model.h"

static volatile unsigned sink;
static char *dir;

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void leave(void)
{
    mu_run_dir_remove(dir);
    mu_free(dir);
}

/* The folder's files are links to files in memory, which are written anew for each input. */
struct file {
    const char *name;
    int fd;
    bool linked;
};
static struct file config_file = {"config.json", -1, false}, index_file = {"model.safetensors.index.json", -1, false},
                   tensors_file = {"model.safetensors", -1, false};

static void write_file(struct file *f, const void *data, size_t len)
{
    char path[4096], target[64];
    if (f->fd < 0) f->fd = memfd_create("fuzz", MFD_CLOEXEC);
    snprintf(path, sizeof path, "%s/%s", dir, f->name);
    snprintf(target, sizeof target, "/proc/self/fd/%d", f->fd);
    expect(f->fd >= 0 && ftruncate(f->fd, 0) == 0 && pwrite(f->fd, data, len, 0) == (ssize_t)len &&
               (f->linked || symlink(target, path) == 0),
           "the test's folder can be written");
    f->linked = true;
}

static void remove_file(struct file *f)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, f->name);
    if (f->linked) unlink(path);
    f->linked = false;
}

static void read_rows(const struct mu_gguf_tensor *t)
{
    if (t->source) t = t->source;
    uint8_t *buf = malloc(t->row_bytes + 1);
    expect(buf != NULL, "there is memory");
    for (uint64_t r = 0; r < t->n_row; r++) {
        const uint8_t *row = mu_gguf_rows(t, r, 1, buf);
        if (t->row_bytes) sink += row[0] + row[t->row_bytes - 1];
    }
    free(buf);
}

static void read_model(const struct mu_model *m)
{
    char text[400];
    mu_model_describe(m, text, sizeof text);
    for (int layer = 0; layer < m->cfg.n_layer; layer++)
        for (int id = 0; id < MU_T_LAYER_COUNT; id++)
            if (m->layer[layer][id]) read_rows(m->layer[layer][id]);
    read_rows(m->embed);
    read_rows(m->output);
    for (size_t i = 0; i < mu_gguf_n_tensor(m->gguf); i++) read_rows(mu_gguf_tensor_at(m->gguf, i));
}

/* The input up to its next NUL, or all that is left. */
static const uint8_t *take(const uint8_t **data, size_t *len, size_t *n_out)
{
    const uint8_t *from = *data, *end = *len ? memchr(from, 0, *len) : NULL;
    *n_out = end ? (size_t)(end - from) : *len;
    size_t skip = end ? *n_out + 1 : *n_out;
    *data = skip ? from + skip : from;
    *len -= skip;
    return from;
}

static void write_tensors(const uint8_t *header, size_t n_header, const uint8_t *data, size_t len)
{
    uint64_t n = n_header;
    uint8_t *file = malloc(8 + n_header + len);
    expect(file != NULL, "there is memory");
    memcpy(file, &n, 8);
    if (n_header) memcpy(file + 8, header, n_header);
    if (len) memcpy(file + 8 + n_header, data, len);
    write_file(&tensors_file, file, 8 + n_header + len);
    free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct mu_model *m = NULL;
    struct mu_err err = MU_ERR_INIT;
    size_t n_config, n_index, n_header;
    unsigned hash = 0;
    if (!dir) {
        setenv("MUSTER_LOG", "error", 0);
        mu_log_init("fuzz_hf");
        if (mu_run_dir_create(&dir, &err) != MU_OK) return 0;
        atexit(leave);
    }
    for (size_t i = 0; i < len; i++) hash = hash * 31 + data[i];
    const uint8_t *config = take(&data, &len, &n_config), *index = take(&data, &len, &n_index),
                  *header = take(&data, &len, &n_header);
    write_file(&config_file, config, n_config);
    write_tensors(header, n_header, data, len);
    if (n_index)
        write_file(&index_file, index, n_index);
    else
        remove_file(&index_file);
    if (hash % 8 == 0) mu_alloc_fail_at(1 + hash / 8 % 64);
    enum mu_status st = mu_model_open(dir, &m, &err);
    if (st == MU_OK && hash % 2) st = mu_model_quantize(m, hash % 4 == 1 ? "q8_0" : "f16", &err);
    mu_alloc_fail_at(0);
    if (st == MU_OK) {
        read_model(m);
    } else {
        expect(err.code == st && err.text[0], "a failure says what it is");
        expect(!strpbrk(err.text, "\n\r\033"), "a message holds nothing that a terminal obeys");
    }
    mu_model_close(m);
    return 0;
}

/* ---- seeds: tiny models ---- */

struct seed {
    const char *config, *index;
    const char *tensors; /* "NAME ROWS COLUMNS;…" of F16 (rows 0: a vector) */
    const char *stacks;  /* "NAME DTYPE SHAPE BYTES;…", or NULL */
};

#define SIZES                                                                                        \
    "\"hidden_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":1," \
    "\"intermediate_size\":8,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-5,\"vocab_size\":4,"
#define LAYER "model.layers.0."
#define ENDS  "model.embed_tokens.weight 4 8;model.norm.weight 0 8;"
#define ATTENTION                                                                          \
    LAYER "input_layernorm.weight 0 8;" LAYER "post_attention_layernorm.weight 0 8;" LAYER \
          "self_attn.q_proj.weight 8 8;" LAYER "self_attn.k_proj.weight 4 8;" LAYER        \
          "self_attn.v_proj.weight 4 8;" LAYER "self_attn.o_proj.weight 8 8;"

static const struct seed seeds[] = {
    {"{\"model_type\":\"llama\"," SIZES
     "\"tie_word_embeddings\":true,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
     "\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}",
     "",
     ENDS ATTENTION LAYER "mlp.gate_proj.weight 8 8;" LAYER "mlp.up_proj.weight 8 8;" LAYER "mlp.down_proj.weight 8 8;",
     NULL},
    {"{\"model_type\":\"mixtral\"," SIZES "\"num_local_experts\":2,\"num_experts_per_tok\":1}",
     "{\"weight_map\":{\"model.norm.weight\":\"model.safetensors\"}}",
     ENDS "lm_head.weight 4 8;" ATTENTION LAYER "block_sparse_moe.gate.weight 2 8;" LAYER
          "block_sparse_moe.experts.0.w1.weight 8 8;" LAYER "block_sparse_moe.experts.1.w1.weight 8 8;" LAYER
          "block_sparse_moe.experts.0.w2.weight 8 8;" LAYER "block_sparse_moe.experts.1.w2.weight 8 8;" LAYER
          "block_sparse_moe.experts.0.w3.weight 8 8;" LAYER "block_sparse_moe.experts.1.w3.weight 8 8;",
     NULL},
    {"{\"model_type\":\"falcon\",\"hidden_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":4,\"num_kv_heads\":"
     "2,"
     "\"new_decoder_architecture\":true}",
     "",
     "transformer.word_embeddings.weight 4 8;transformer.ln_f.weight 0 8;transformer.ln_f.bias 0 8;"
     "transformer.h.0.ln_attn.weight 0 8;transformer.h.0.ln_attn.bias 0 8;transformer.h.0.ln_mlp.weight 0 8;"
     "transformer.h.0.ln_mlp.bias 0 8;transformer.h.0.self_attention.query_key_value.weight 16 8;"
     "transformer.h.0.self_attention.dense.weight 8 8;transformer.h.0.mlp.dense_h_to_4h.weight 32 8;"
     "transformer.h.0.mlp.dense_4h_to_h.weight 8 32;",
     NULL},
    {"{\"model_type\":\"phi3\"," SIZES "\"tie_word_embeddings\":true,\"original_max_position_embeddings\":16,"
     "\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,1.5],\"long_factor\":[2,3.5]}}",
     "",
     ENDS LAYER "input_layernorm.weight 0 8;" LAYER "post_attention_layernorm.weight 0 8;" LAYER
                "self_attn.qkv_proj.weight 16 8;" LAYER "self_attn.o_proj.weight 8 8;" LAYER
                "mlp.gate_up_proj.weight 16 8;" LAYER "mlp.down_proj.weight 8 8;",
     NULL},
    {"{\"model_type\":\"ministral3\"," SIZES "\"tie_word_embeddings\":true,\"rope_parameters\":{\"rope_type\":\"yarn\","
     "\"factor\":4,\"mscale\":1,\"mscale_all_dim\":1,\"llama_4_scaling_beta\":0.1}}",
     "",
     ENDS ATTENTION LAYER "mlp.gate_proj.weight 8 8;" LAYER "mlp.up_proj.weight 8 8;" LAYER "mlp.down_proj.weight 8 8;",
     NULL},
    {"{\"model_type\":\"gemma3\",\"text_config\":{\"model_type\":\"gemma3_text\"," SIZES
     "\"head_dim\":4,\"layer_types\":[\"sliding_attention\"],\"rope_parameters\":{\"full_attention\":{\"rope_type\":"
     "\"linear\",\"factor\":8,\"rope_theta\":1e6},\"sliding_attention\":{\"rope_theta\":1e4}}}}",
     "",
     "language_model.model.embed_tokens.weight 4 8;language_model.model.norm.weight 0 8;vision_tower.x 2 2;"
     "language_model.model.layers.0.input_layernorm.weight 0 8;",
     NULL},
    {"{\"model_type\":\"granitemoe\"," SIZES
     "\"tie_word_embeddings\":true,\"num_local_experts\":2,\"num_experts_per_tok\":1}",
     "", ENDS ATTENTION LAYER "block_sparse_moe.router.layer.weight 2 8;",
     LAYER "block_sparse_moe.input_linear.weight F16 2,16,8 512;" LAYER
           "block_sparse_moe.output_linear.weight F16 2,8,8 256;"},
    {"{\"model_type\":\"gpt_oss\",\"hidden_size\":32,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"head_dim\":4,"
     "\"num_key_value_heads\":1,\"intermediate_size\":32,\"max_position_embeddings\":64,\"tie_word_embeddings\":true,"
     "\"num_local_experts\":2,\"num_experts_per_tok\":1,\"quantization_config\":{\"quant_method\":\"mxfp4\"}}",
     "",
     "model.embed_tokens.weight 4 32;model.norm.weight 0 32;" LAYER "input_layernorm.weight 0 32;" LAYER
     "post_attention_layernorm.weight 0 32;" LAYER "self_attn.q_proj.weight 8 32;" LAYER
     "self_attn.k_proj.weight 4 32;" LAYER "self_attn.v_proj.weight 4 32;" LAYER "self_attn.o_proj.weight 32 8;" LAYER
     "self_attn.q_proj.bias 0 8;" LAYER "self_attn.k_proj.bias 0 4;" LAYER "self_attn.v_proj.bias 0 4;" LAYER
     "self_attn.o_proj.bias 0 32;" LAYER "self_attn.sinks 0 2;" LAYER "mlp.router.weight 2 32;" LAYER
     "mlp.router.bias 0 2;" LAYER "mlp.experts.gate_up_proj_bias 2 64;" LAYER "mlp.experts.down_proj_bias 2 32;",
     LAYER "mlp.experts.gate_up_proj_blocks U8 2,64,1,16 2048;" LAYER
           "mlp.experts.gate_up_proj_scales U8 2,64,1 128;" LAYER
           "mlp.experts.down_proj_blocks U8 2,32,1,16 1024;" LAYER "mlp.experts.down_proj_scales U8 2,32,1 64;"},
};

static size_t put_tensors(const char *list, const char *stacks, char *out, size_t cap)
{
    char name[96], dtype[8], shape[32];
    size_t len = 1, at = 0, size;
    int n_row, n_col, used;
    out[0] = '{';
    for (; sscanf(list, "%95[^ ] %d %d;%n", name, &n_row, &n_col, &used) == 3; list += used) {
        size_t bytes = (size_t)(n_row ? n_row : 1) * (size_t)n_col * 2;
        char rows[16] = "";
        if (n_row) snprintf(rows, sizeof rows, "%d,", n_row);
        len += (size_t)snprintf(out + len, cap - len,
                                "%s\"%s\":{\"dtype\":\"F16\",\"shape\":[%s%d],\"data_offsets\":[%zu,%zu]}",
                                len > 1 ? "," : "", name, rows, n_col, at, at + bytes);
        at += bytes;
    }
    for (; stacks && sscanf(stacks, "%95[^ ] %7s %31s %zu;%n", name, dtype, shape, &size, &used) == 4; stacks += used) {
        len += (size_t)snprintf(out + len, cap - len,
                                ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", name, dtype,
                                shape, at, at + size);
        at += size;
    }
    out[len++] = '}';
    out[len++] = 0;
    memset(out + len, 0x11, at);
    return len + at;
}

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    enum { CAP = 16384 };
    if (n >= (int)(sizeof seeds / sizeof *seeds)) return false;
    char *out = malloc(2 * CAP);
    if (!out) return false;
    size_t len = (size_t)snprintf(out, CAP, "%s%c%s%c", seeds[n].config, 0, seeds[n].index, 0);
    *len_out = len + put_tensors(seeds[n].tensors, seeds[n].stacks, out + len, CAP);
    *data_out = (uint8_t *)out;
    return true;
}
