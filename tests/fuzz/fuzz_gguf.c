/* The GGUF reader and the model reader on any bytes: refused with a sentence, or opened so that everything listed can
 * be read. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/gguf_write.h"
#include "model/model.h"
#include "model/synth.h"

static volatile unsigned sink;

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void touch(const void *p, size_t n)
{
    if (n) sink += ((const unsigned char *)p)[0] + ((const unsigned char *)p)[n - 1];
}

static void read_values(const struct mu_gguf *g)
{
    for (size_t i = 0; i < mu_gguf_n_value(g); i++) {
        const struct mu_gguf_value *v = mu_gguf_value_at(g, i);
        touch(v->key.p, v->key.len);
        if (v->item_kind == MU_GGUF_STRING) {
            for (uint64_t k = 0; v->kind == MU_GGUF_ARRAY && k < v->n; k++) touch(v->strings[k].p, v->strings[k].len);
        } else if (v->n) {
            sink += (unsigned)mu_gguf_item_i64(v, 0) + (unsigned)mu_gguf_item_i64(v, v->n - 1);
            sink += mu_gguf_item_f32(v, v->n - 1) > 0;
        }
        if (v->key.len < 64 && !memchr(v->key.p, 0, v->key.len)) {
            char key[64];
            struct mu_str text;
            memcpy(key, v->key.p, v->key.len);
            key[v->key.len] = 0;
            expect(mu_gguf_find(g, key) == v, "a listed key is found");
            if (v->kind == MU_GGUF_STRING && mu_gguf_get_str(g, key, &text, NULL) == MU_OK) touch(text.p, text.len);
        }
    }
}

static void read_tensors(const struct mu_gguf *g)
{
    const struct mu_gguf_tensor *t;
    for (size_t i = 0; (t = mu_gguf_tensor_at(g, i)); i++) {
        touch(t->name.p, t->name.len);
        touch(t->data, t->bytes);
        expect(t->bytes == t->row_bytes * t->n_row && t->bytes > 0, "a tensor's bytes are its rows'");
        expect(t->offset + t->bytes <= mu_gguf_file_bytes(g), "a tensor lies in the file");
        mu_gguf_will_read(g, t->data, t->bytes);
    }
}

static void read_model(const struct mu_model *m)
{
    char text[400];
    mu_model_describe(m, text, sizeof text);
    expect(m->cfg.n_head % m->cfg.n_kv_head == 0 && m->cfg.n_rot % 2 == 0 && m->cfg.norm_eps > 0, "sizes are checked");
    for (int layer = 0; layer < m->cfg.n_layer; layer++)
        for (int id = 0; id < MU_T_LAYER_COUNT; id++)
            if (m->layer[layer][id]) touch(m->layer[layer][id]->data, m->layer[layer][id]->bytes);
    touch(m->embed->data, m->embed->bytes);
    touch(m->output->data, m->output->bytes);
}

static void check_error(enum mu_status st, const struct mu_err *err)
{
    expect(err->code == st && err->text[0], "a failure says what it is");
    expect(!strpbrk(err->text, "\n\r\033"), "a message holds nothing that a terminal obeys");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static int fd = -1;
    char path[64];
    struct mu_gguf *g = NULL;
    struct mu_model *m = NULL;
    struct mu_err err = MU_ERR_INIT;
    unsigned hash = 0;
    if (fd < 0) fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, len, 0) != (ssize_t)len) return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    enum mu_status st = mu_gguf_open(path, &g, &err);
    if (st == MU_OK) {
        read_values(g);
        read_tensors(g);
        mu_gguf_close(g);
    } else {
        check_error(st, &err);
    }
    /* Now and then memory runs out somewhere on the way. */
    for (size_t i = 0; i < len; i++) hash = hash * 31 + data[i];
    if (hash % 8 == 0) mu_alloc_fail_at(1 + hash / 8 % 32);
    st = mu_model_open(path, &m, &err);
    mu_alloc_fail_at(0);
    if (st == MU_OK)
        read_model(m);
    else
        check_error(st, &err);
    mu_model_close(m);
    return 0;
}

static bool read_seed(const char *path, uint8_t **data_out, size_t *len_out)
{
    char *data;
    if (mu_file_read(path, 1 << 20, &data, len_out, NULL) != MU_OK) return false;
    *data_out = malloc(*len_out);
    if (*data_out) memcpy(*data_out, data, *len_out);
    mu_free(data);
    return *data_out;
}

/* Keys and tensors that Ollama's files have and others have not: what the reader changes. */
static bool write_ollama(const char *path, int which, struct mu_err *err)
{
    static const char *const arch[] = {"gemma3", "mistral3", "gptoss"};
    static const struct mu_str tokens[] = {{"a", 1}, {"b", 1}, {"c", 1}};
    static const float scores[] = {0, 1, 2};
    static const char *const numbers[] = {
        "rope.global.freq_base",  "rope.local.freq_base", "rope.scaling.mscale_all_dim", "rope.scaling.mscale",
        "rope.scaling.beta_fast", "rope.scaling_beta",    "final_logit_softcapping",     "rope.scaling.factor"};
    static const char *const tensors[] = {"token_embd.weight", "v.a", "mm.b", "blk.0.attn_sinks",
                                          "blk.0.attn_out.bias"};
    static const uint64_t ne[] = {4, 2};
    static const char data[32];
    char key[96];
    struct mu_gguf_writer *w;
    if (mu_gguf_writer_open(path, &w, err) != MU_OK) return false;
    mu_gguf_put_str(w, "general.architecture", arch[which], strlen(arch[which]));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers - (which == 0); i++) {
        snprintf(key, sizeof key, "%s.%s", arch[which], numbers[i]);
        mu_gguf_put_f32(w, key, 1);
    }
    snprintf(key, sizeof key, "%s.block_count", arch[which]);
    mu_gguf_put_u32(w, key, 34);
    if (which) {
        snprintf(key, sizeof key, "%s.rope.scaling.type", arch[which]);
        mu_gguf_put_str(w, key, "yarn", 4);
    }
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, 3);
    mu_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, 3);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) mu_gguf_put_tensor(w, tensors[i], MU_F32, 2, ne);
    enum mu_status st = MU_OK;
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors && st == MU_OK; i++)
        st = mu_gguf_put_data(w, data, sizeof data, err);
    return mu_gguf_writer_close(w, st == MU_OK, err) == MU_OK && st == MU_OK;
}

/* Tiny models, of other types and sizes; one of the family with the most kinds of tensors and keys; Ollama's files. */
bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    struct mu_synth s = {.n_layer = 1,
                         .n_head = 2,
                         .n_kv_head = 1,
                         .d_head = 16,
                         .d_model = 32,
                         .d_ff = 32,
                         .n_vocab = 258,
                         .n_ctx = 64,
                         .rope_freq_base = 10000.0f,
                         .type = MU_Q8_0,
                         .output_type = MU_Q4_0,
                         .tied = 1};
    char *dir, path[4096];
    struct mu_err err = MU_ERR_INIT;
    if (n > 5) return false;
    if (n == 1) s.n_layer = 2, s.d_head = 4, s.type = MU_F32, s.output_type = MU_F16, s.tied = 0;
    if (n == 2)
        s.arch = "gpt-oss", s.n_expert = 3, s.n_expert_used = 2, s.window = 8, s.yarn_factor = 4, s.type = MU_MXFP4;
    if (mu_run_dir_create(&dir, &err) != MU_OK) return false;
    snprintf(path, sizeof path, "%s/seed.gguf", dir);
    bool ok = n > 2 ? write_ollama(path, n - 3, &err) : mu_synth_write(&s, path, NULL, NULL, &err) == MU_OK;
    ok = ok && read_seed(path, data_out, len_out);
    if (!ok) fprintf(stderr, "seed %d: %s\n", n, err.text);
    mu_run_dir_remove(dir);
    mu_free(dir);
    return ok;
}
