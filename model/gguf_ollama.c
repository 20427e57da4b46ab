/* GGUF files as Ollama writes them, seen as everyone else's. Its converters gave some families names of their own, put the
 * vision part into the same file, and left out what their own engine filled in. Here the list of keys and tensors that was read
 * from the file is changed until it says what a file of the common form says; nothing behind the reader knows of it.
 *
 *   gemma3     v.* and mm.* (vision) hidden; rope.global.freq_base, rope.local.freq_base called as usual; the norms' epsilon,
 *              the rotary base and the linear factor 8 of 4B, 12B and 27B filled in; a soft cap of logits that the first
 *              converter always wrote and no Gemma 3 has taken out; tokens beyond the embedding's rows cut off; a chat
 *              template where there is none, since Ollama's own is not read (it has only models that were trained to chat)
 *   mistral3   v.* and mm.* hidden; YaRN's keys and the attention temperature called as usual; its pre-tokenizer
 *   llama      the pre-tokenizer of Llama 3, which the first files of it (not only Ollama's) lack
 *   gptoss     architecture, keys and four tensors called as gpt-oss's; its pre-tokenizer
 *
 * What an own file leaves open is refused by name: a guess would run another model. Text only: a picture in a conversation is
 * refused where the conversation is rendered (chat_template.c).
 *
 * Source: Ollama's converters (convert/convert_gemma3.go, convert_mistral.go, convert_gptoss.go, from March 2025 on), its engine
 * (model/models/gemma3/model_text.go, mistral3, gptoss) and the layer that shows its files to llama.cpp
 * (llama/compat/llama-ollama-compat.cpp). */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "model/gguf_part.h"

enum { MOST_ADDED = 8 };

/* Values of keys that are filled in, as they would lie in a file. */
static const float RMS_EPSILON = 1e-6f, GEMMA3_BASE = 1e6f, GEMMA3_FACTOR = 8.0f;
#define TEXT(name, text)         \
    static const struct {        \
        uint64_t len;            \
        char bytes[sizeof text]; \
    } name = {sizeof text - 1, text}
TEXT(LINEAR, "linear");
TEXT(YARN, "yarn");
TEXT(TEKKEN, "tekken");
TEXT(GPT4O, "gpt-4o");
TEXT(GPT_OSS, "gpt-oss");
TEXT(LLAMA3, "llama-bpe");

/* What the released Gemma 3 make of a conversation of text: turns in turn, what the system says before the first. */
TEXT(GEMMA3_TEMPLATE,
     "{{ bos_token }}{% set turns = messages %}{% set before = '' %}"
     "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set said = messages[0].content %}"
     "{% set before = (said if said is string else said[0].text) + '\\n\\n' %}{% endif %}"
     "{% for turn in turns %}{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
     "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
     "{{ '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\\n' }}"
     "{% if loop.first %}{{ before }}{% endif %}"
     "{% if turn.content is string %}{{ turn.content | trim }}{% elif turn.content is iterable %}"
     "{% for part in turn.content %}{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}"
     "{% else %}{{ raise_exception('Invalid content type') }}{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}");

/* ---- keys: by_key is not valid until index_again ---- */

static struct mu_gguf_value *value(struct mu_gguf *g, const char *key)
{
    struct mu_gguf_part *p = &g->parts[0];
    for (size_t i = 0; i < p->n_value; i++)
        if (mu_str_is(p->values[i].key, key)) return &p->values[i];
    return NULL;
}

static bool text_is(const struct mu_gguf_value *v, const char *text)
{
    uint64_t len;
    if (!v || v->kind != MU_GGUF_STRING) return false;
    memcpy(&len, v->data, sizeof len);
    return mu_str_is((struct mu_str){(const char *)v->data + sizeof len, len}, text);
}

/* A number, or fallback where there is none. */
static float number(const struct mu_gguf_value *v, float fallback)
{
    return v && v->kind != MU_GGUF_STRING && v->kind != MU_GGUF_ARRAY ? mu_gguf_item_f32(v, 0) : fallback;
}

/* Room for MOST_ADDED was made at the start. key and data live on. */
static void put(struct mu_gguf *g, const char *key, enum mu_gguf_kind kind, const void *data)
{
    struct mu_gguf_part *p = &g->parts[0];
    struct mu_gguf_value *v = value(g, key);
    if (!v) v = &p->values[p->n_value++];
    mu_free((void *)v->strings);
    *v = (struct mu_gguf_value){
        .key = {key, strlen(key)}, .kind = kind, .item_kind = kind, .n = 1, .data = data, .offset = p->data_start};
}

static void fill_in(struct mu_gguf *g, const char *key, enum mu_gguf_kind kind, const void *data)
{
    if (!value(g, key)) put(g, key, kind, data);
}

static void take_out(struct mu_gguf *g, const char *key)
{
    struct mu_gguf_part *p = &g->parts[0];
    struct mu_gguf_value *v = value(g, key);
    if (!v) return;
    mu_free((void *)v->strings);
    memmove(v, v + 1, (size_t)(p->values + p->n_value - (v + 1)) * sizeof *v);
    p->n_value--;
}

/* Where both are there, the usual one counts. */
static void call(struct mu_gguf *g, const char *from, const char *to)
{
    struct mu_gguf_value *v = value(g, from);
    if (v && !value(g, to)) v->key = (struct mu_str){to, strlen(to)};
}

static enum mu_status index_again(struct mu_gguf *g, struct mu_err *err)
{
    for (size_t i = 0; i < g->n_tensor; i++) g->by_name[i] = &g->tensors[i];
    enum mu_status st = mu_gguf_part_index(&g->parts[0], err);
    return st == MU_OK ? mu_gguf_index_names(g, err) : st;
}

/* ---- tensors ---- */

static bool begins(struct mu_str s, const char *text)
{
    size_t n = strlen(text);
    return s.len >= n && memcmp(s.p, text, n) == 0;
}

static bool is_vision(struct mu_str name)
{
    return begins(name, "v.") || begins(name, "mm.");
}

static bool has_vision(const struct mu_gguf *g)
{
    for (size_t i = 0; i < g->n_tensor; i++)
        if (is_vision(g->tensors[i].name)) return true;
    return false;
}

static void hide_vision(struct mu_gguf *g)
{
    size_t n = 0;
    for (size_t i = 0; i < g->n_tensor; i++)
        if (!is_vision(g->tensors[i].name)) g->tensors[n++] = g->tensors[i];
    g->n_tensor = n;
}

/* Tokens that stand for pictures have no row in the embedding of the text. */
static void cut_tokens(struct mu_gguf *g)
{
    static const char *const keys[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"};
    uint64_t n = UINT64_MAX;
    for (size_t i = 0; i < g->n_tensor; i++)
        if (mu_str_is(g->tensors[i].name, "token_embd.weight")) n = g->tensors[i].n_row;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct mu_gguf_value *v = value(g, keys[i]);
        if (v && v->kind == MU_GGUF_ARRAY && v->n > n) v->n = n;
    }
}

/* ---- families ---- */

static enum mu_status gemma3(struct mu_gguf *g, struct mu_err *err)
{
    const struct mu_gguf_value *type = value(g, "gemma3.rope.scaling.type");
    bool first = value(g, "gemma3.rope.global.freq_base"); /* the first converter's */
    if (!first && !value(g, "gemma3.rope.local.freq_base") && !value(g, "gemma3.mm.tokens_per_image") &&
        value(g, "gemma3.attention.layer_norm_rms_epsilon") && !has_vision(g))
        return MU_OK;
    if (text_is(type, "yarn"))
        return mu_gguf_value_fail(g, type, MU_EUNSUPPORTED, err,
                                  "YaRN in Ollama's form of this architecture is not supported");
    if (!type && !value(g, "gemma3.rope.scaling.factor")) {
        float n_layer = number(value(g, "gemma3.block_count"), 0);
        if (n_layer == 34 || n_layer == 48 || n_layer == 62) {
            put(g, "gemma3.rope.scaling.type", MU_GGUF_STRING, &LINEAR);
            put(g, "gemma3.rope.scaling.factor", MU_GGUF_F32, &GEMMA3_FACTOR);
        } else if (number(value(g, "gemma3.context_length"), 0) >= 131072) {
            return mu_gguf_fail(
                g, MU_EUNSUPPORTED, err,
                "expected key 'gemma3.rope.scaling.factor', which Ollama leaves out: of %g layers this build "
                "does not know how positions are scaled",
                (double)n_layer);
        }
    }
    if (first) take_out(g, "gemma3.final_logit_softcapping");
    call(g, "gemma3.rope.global.freq_base", "gemma3.rope.freq_base");
    call(g, "gemma3.rope.local.freq_base", "gemma3.rope.freq_base_swa");
    fill_in(g, "gemma3.rope.freq_base", MU_GGUF_F32, &GEMMA3_BASE);
    fill_in(g, "gemma3.attention.layer_norm_rms_epsilon", MU_GGUF_F32, &RMS_EPSILON);
    fill_in(g, "tokenizer.chat_template", MU_GGUF_STRING, &GEMMA3_TEMPLATE);
    hide_vision(g);
    cut_tokens(g);
    return index_again(g, err);
}

/* Whether the file leaves it to the reader. */
static bool no_pre(struct mu_gguf *g)
{
    const struct mu_gguf_value *pre = value(g, "tokenizer.ggml.pre");
    return !pre || text_is(pre, "") || text_is(pre, "default");
}

static enum mu_status llama(struct mu_gguf *g, struct mu_err *err)
{
    enum { START = 128006, END = 128009 }; /* ids of Llama 3 and of no other vocabulary */
    const struct mu_gguf_value *tokens = value(g, "tokenizer.ggml.tokens");
    if (!no_pre(g) || !tokens || !tokens->strings || tokens->n <= END) return MU_OK;
    if (!mu_str_is(tokens->strings[START], "<|start_header_id|>") || !mu_str_is(tokens->strings[END], "<|eot_id|>"))
        return MU_OK;
    put(g, "tokenizer.ggml.pre", MU_GGUF_STRING, &LLAMA3);
    return index_again(g, err);
}

static enum mu_status mistral3(struct mu_gguf *g, struct mu_err *err)
{
    const struct mu_gguf_value *type = value(g, "mistral3.rope.scaling.type"),
                               *all = value(g, "mistral3.rope.scaling.mscale_all_dim"),
                               *rotated = value(g, "mistral3.rope.dimension_count"),
                               *head = value(g, "mistral3.attention.key_length");
    bool untyped = type && text_is(type, ""), scaled = value(g, "mistral3.rope.scaling_beta");
    if (!untyped && !all && !scaled && !value(g, "mistral3.rope.scaling.beta_fast") && !has_vision(g)) return MU_OK;
    if (scaled && !type)
        return mu_gguf_fail(g, MU_EUNSUPPORTED, err,
                            "expected key 'mistral3.rope.scaling.type' beside 'mistral3.rope.scaling_beta': an early "
                            "converter left it out; get the model again");
    if (untyped && number(value(g, "mistral3.rope.scaling.factor"), 0) != 0)
        return mu_gguf_value_fail(g, type, MU_EUNSUPPORTED, err,
                                  "expected a kind of scaling beside a factor, found none");
    /* Cosines are multiplied by m(mscale) / m(mscale_all_dim), and the usual keys only say the second. */
    if (all && number(all, 0) != 0 && number(value(g, "mistral3.rope.scaling.mscale"), 0) != 1)
        return mu_gguf_value_fail(g, all, MU_EUNSUPPORTED, err,
                                  "expected key 'mistral3.rope.scaling.mscale' of 1 with it");
    if (rotated && head && number(rotated, 0) != number(head, 0)) /* from the number of layers, once */
        return mu_gguf_value_fail(g, rotated, MU_EUNSUPPORTED, err, "expected the size of a head, %g, found %g",
                                  (double)number(head, 0), (double)number(rotated, 0));
    if (untyped) {
        take_out(g, "mistral3.rope.scaling.type");
        take_out(g, "mistral3.rope.scaling.factor");
    }
    call(g, "mistral3.rope.scaling.beta_fast", "mistral3.rope.scaling.yarn_beta_fast");
    call(g, "mistral3.rope.scaling.beta_slow", "mistral3.rope.scaling.yarn_beta_slow");
    call(g, "mistral3.rope.scaling.mscale_all_dim", "mistral3.rope.scaling.yarn_log_multiplier");
    call(g, "mistral3.rope.scaling_beta", "mistral3.attention.temperature_scale");
    if (no_pre(g)) put(g, "tokenizer.ggml.pre", MU_GGUF_STRING, &TEKKEN);
    hide_vision(g);
    return index_again(g, err);
}

/* "BEGIN" + s from `skip` on + "END", kept as long as the model. */
static bool rename_to(struct mu_gguf *g, struct mu_str *s, const char *begin, size_t skip, size_t cut, const char *end)
{
    size_t a = strlen(begin), b = s->len - skip - cut, c = strlen(end);
    char *name = mu_arena_alloc(g->arena, a + b + c + 1);
    if (!name) return false;
    memcpy(name, begin, a);
    memcpy(name + a, s->p + skip, b);
    memcpy(name + a + b, end, c);
    *s = (struct mu_str){name, a + b + c};
    return true;
}

static enum mu_status gptoss(struct mu_gguf *g, struct mu_err *err)
{
    static const char *const names[][2] = {{".attn_out.weight", ".attn_output.weight"},
                                           {".attn_out.bias", ".attn_output.bias"},
                                           {".attn_sinks", ".attn_sinks.weight"},
                                           {".ffn_norm.weight", ".post_attention_norm.weight"}};
    struct mu_gguf_part *p = &g->parts[0];
    bool good = true;
    if (!g->arena) g->arena = mu_arena_create(0);
    good = g->arena;
    for (size_t i = 0; i < p->n_value && good; i++)
        if (begins(p->values[i].key, "gptoss.")) good = rename_to(g, &p->values[i].key, "gpt-oss.", 7, 0, "");
    for (size_t i = 0; i < g->n_tensor && good; i++) {
        struct mu_str *name = &g->tensors[i].name;
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            size_t n = strlen(names[k][0]);
            if (name->len <= n || memcmp(name->p + name->len - n, names[k][0], n) != 0) continue;
            good = rename_to(g, name, "", 0, n, names[k][1]);
            break;
        }
    }
    if (!good) return mu_gguf_fail(g, MU_ENOMEM, err, "no memory for the names of %zu tensors", g->n_tensor);
    put(g, "general.architecture", MU_GGUF_STRING, &GPT_OSS);
    put(g, "tokenizer.ggml.pre", MU_GGUF_STRING, &GPT4O);
    fill_in(g, "gpt-oss.rope.scaling.type", MU_GGUF_STRING, &YARN);
    return index_again(g, err);
}

enum mu_status mu_gguf_ollama(struct mu_gguf *g, struct mu_err *err)
{
    static const struct {
        const char *arch;
        enum mu_status (*view)(struct mu_gguf *g, struct mu_err *err);
    } families[] = {{"gemma3", gemma3}, {"mistral3", mistral3}, {"gptoss", gptoss}, {"llama", llama}};
    struct mu_gguf_part *p = &g->parts[0];
    const struct mu_gguf_value *arch = mu_gguf_find(g, "general.architecture");
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (!text_is(arch, families[i].arch)) continue;
        struct mu_gguf_value *more = mu_reallocarray(p->values, p->n_value + MOST_ADDED, sizeof *more);
        if (!more) return mu_gguf_fail(g, MU_ENOMEM, err, "no memory for %zu keys", p->n_value);
        memset(more + p->n_value, 0, MOST_ADDED * sizeof *more);
        p->values = more;
        p->cap_value = p->n_value + MOST_ADDED;
        enum mu_status st = mu_gguf_part_index(p, err);
        return st == MU_OK ? families[i].view(g, err) : st;
    }
    return MU_OK;
}
