/* Chat templates: a conversation to the variables that templates expect, and the rendering. */
#include "model/chat_template.h"

#include <string.h>

#include "base/alloc.h"
#include "model/jinja.h"
#include "model/utf8.h"

enum { MAX_JSON_DEPTH = 200 };

struct mu_chat_template {
    char *source;
    struct mu_arena *arena;
    struct mu_jn *tree;
    const struct mu_js **names; /* by symbol */
    size_t n_name;
    locale_t locale;
};

void mu_chat_template_free(struct mu_chat_template *t)
{
    if (!t) return;
    if (t->locale) freelocale(t->locale);
    mu_arena_destroy(t->arena);
    mu_free(t->source);
    mu_free(t);
}

enum mu_status mu_chat_template_parse(const char *src, size_t len, struct mu_chat_template **out, struct mu_err *err)
{
    if (len > MU_TEMPLATE_MAX_BYTES)
        return mu_fail(err, MU_ELIMIT, "the chat template has %zu bytes; at most %d are allowed", len,
                       MU_TEMPLATE_MAX_BYTES);
    struct mu_chat_template *t = mu_calloc(1, sizeof *t);
    if (!t) return mu_fail(err, MU_ENOMEM, "no memory for the chat template");
    t->source = mu_strndup(src, len);
    t->arena = mu_arena_create(mu_jp_max_bytes(len));
    t->locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0); /* absent: only ASCII letters have upper case */
    enum mu_status st = t->arena && t->source ? mu_jp_parse(t->arena, src, len, &t->tree, &t->names, &t->n_name, err)
                                              : mu_fail(err, MU_ENOMEM, "no memory for the chat template");
    if (st) {
        mu_chat_template_free(t);
        return st;
    }
    *out = t;
    return MU_OK;
}

const char *mu_chat_template_source(const struct mu_chat_template *t)
{
    return t->source;
}

/* ---- JSON to values: texts are borrowed, the rest is copied, because templates may change it ---- */

static struct mu_jv from_json(struct mu_ji *j, const json_t *json, int depth)
{
    if (depth > MAX_JSON_DEPTH)
        mu_ji_fail(j, MU_ELIMIT, "the conversation is nested more than %d deep", MAX_JSON_DEPTH);
    mu_ji_steps(j, 1);
    switch (json_typeof(json)) {
    case JSON_STRING: return mu_jv_borrow(j, json_string_value(json), json_string_length(json));
    case JSON_INTEGER: return mu_jv_int(json_integer_value(json));
    case JSON_REAL: return mu_jv_float(json_real_value(json));
    case JSON_TRUE: return mu_jv_bool(true);
    case JSON_FALSE: return mu_jv_bool(false);
    case JSON_NULL: return mu_jv_none();
    case JSON_ARRAY: {
        struct mu_jl *l = mu_jl_new(j, json_array_size(json));
        for (size_t i = 0; i < json_array_size(json); i++)
            mu_jl_push(j, l, from_json(j, json_array_get(json, i), depth + 1));
        return mu_jv_list(l);
    }
    case JSON_OBJECT: {
        struct mu_jd *d = mu_jd_new(j, json_object_size(json));
        /* The iterator takes a pointer that is not const and changes nothing. */
        for (void *it = json_object_iter((json_t *)(uintptr_t)json); it;
             it = json_object_iter_next((json_t *)(uintptr_t)json, it)) {
            const char *key = json_object_iter_key(it);
            mu_jd_put(j, d, mu_jv_borrow(j, key, strlen(key)), from_json(j, json_object_iter_value(it), depth + 1));
        }
        return (struct mu_jv){.kind = MU_JK_DICT, .d = d};
    }
    }
    return mu_jv_none();
}

static struct mu_jv json_or_none(struct mu_ji *j, const json_t *json)
{
    return json ? from_json(j, json, 0) : mu_jv_none();
}

/* ---- variables ---- */

static int symbol(struct mu_ji *j, const char *name)
{
    mu_ji_steps(j, j->n_name / 16);
    for (size_t i = 0; i < j->n_name; i++)
        if (mu_js_is(j->names[i], name)) return (int)i;
    return -1;
}

static void set_global(struct mu_ji *j, const char *name, struct mu_jv v)
{
    int sym = symbol(j, name);
    if (sym >= 0) j->globals[sym] = v;
}

static void set_globals(struct mu_ji *j, const struct mu_chat_input *in, struct mu_jv messages)
{
    const char *bos = in->bos_token ? in->bos_token : "", *eos = in->eos_token ? in->eos_token : "";
    j->globals = mu_ji_alloc(j, j->n_name + 1, sizeof *j->globals);
    for (size_t i = 0; i < j->n_name; i++) {
        const struct mu_jfunc *f = mu_ji_global(j->names[i]->p, j->names[i]->len);
        j->globals[i] = f ? (struct mu_jv){.kind = MU_JK_FUNC, .func = f} : mu_jv_undefined(NULL);
    }
    set_global(j, "messages", messages);
    set_global(j, "tools", json_or_none(j, in->tools));
    set_global(j, "documents", json_or_none(j, in->documents));
    set_global(j, "add_generation_prompt", mu_jv_bool(in->add_generation_prompt));
    set_global(j, "bos_token", mu_jv_borrow(j, bos, strlen(bos)));
    set_global(j, "eos_token", mu_jv_borrow(j, eos, strlen(eos)));
    for (void *it = in->variables ? json_object_iter((json_t *)(uintptr_t)in->variables) : NULL; it;
         it = json_object_iter_next((json_t *)(uintptr_t)in->variables, it))
        set_global(j, json_object_iter_key(it), from_json(j, json_object_iter_value(it), 0));
    j->sym_loop = symbol(j, "loop");
    j->sym_caller = symbol(j, "caller");
    j->sym_varargs = symbol(j, "varargs");
    j->sym_kwargs = symbol(j, "kwargs");
}

/* ---- a message to be gone on with ----
 *
 * The last message's content gets a mark at its end; where the mark comes out, the rendering is cut. The mark ends in
 * a space: where that is gone, the template trims what it is given, and the content's own white space would be gone,
 * too. */

/* The Hugging Face library's own, because templates can see it. */
static const char mark[] = "CONTINUE_FINAL_MESSAGE_TAG ";
enum { MARK = sizeof mark - 1 };

static struct mu_jv marked(struct mu_ji *j, struct mu_jv text)
{
    static const struct mu_js end = {.p = mark, .len = MARK};
    return mu_jv_concat(j, text.s, &end);
}

static bool mark_content(struct mu_ji *j, struct mu_jv *content)
{
    if (content->kind == MU_JK_STR) {
        *content = marked(j, *content);
        return true;
    }
    for (size_t i = content->kind == MU_JK_LIST ? content->l->n : 0; i-- > 0;) { /* parts: the last text */
        struct mu_jv part = content->l->v[i], *text;
        text = part.kind == MU_JK_DICT ? mu_jd_find_text(j, part.d, "text") : NULL;
        if (!text || text->kind != MU_JK_STR) continue;
        *text = marked(j, *text);
        return true;
    }
    return false;
}

static void mark_last(struct mu_ji *j, struct mu_jv messages)
{
    struct mu_jv last = messages.l->n ? messages.l->v[messages.l->n - 1] : mu_jv_none();
    struct mu_jv *content = last.kind == MU_JK_DICT ? mu_jd_find_text(j, last.d, "content") : NULL;
    if (!content || !mark_content(j, content))
        mu_ji_fail(j, MU_EINVAL, "the last message has no text that could be continued");
}

static void cut_at_mark(struct mu_ji *j)
{
    static const struct mu_js bare = {.p = mark, .len = MARK - 1};
    size_t found = SIZE_MAX;
    struct mu_js out = {.p = j->out ? j->out : "", .len = j->out_len};
    for (size_t at = 0; (at = mu_js_find(&out, at, &bare)) != SIZE_MAX; at += MARK - 1) found = at;
    if (found == SIZE_MAX)
        mu_ji_fail(j, MU_EINVAL, "it does not render the last message's text, which so cannot be continued");
    bool kept = found + MARK <= out.len && out.p[found + MARK - 1] == mark[MARK - 1];
    out.len = found;
    j->out_len = kept ? found : mu_js_strip(j, &out, NULL, 2).s->len;
}

/* ---- rendering ---- */

/* Everything that can fail; false: it has, and j->err says how. */
static bool run(struct mu_ji *j, const struct mu_chat_template *t, const struct mu_chat_input *in)
{
    if (setjmp(j->away)) return false;
    struct mu_jv messages = from_json(j, in->messages, 0);
    if (in->continue_final_message) mark_last(j, messages);
    set_globals(j, in, messages);
    mu_ji_exec(j, t->tree);
    if (in->continue_final_message) cut_at_mark(j);
    mu_ji_write(j, "", 1); /* the NUL that is not counted */
    j->out_len--;
    return true;
}

static int64_t steps_for(size_t n_message)
{
    size_t more = (MU_TEMPLATE_MOST_STEPS - MU_TEMPLATE_MAX_STEPS) / MU_TEMPLATE_STEPS_PER_MESSAGE;
    return MU_TEMPLATE_MAX_STEPS + (int64_t)(n_message < more ? n_message : more) * MU_TEMPLATE_STEPS_PER_MESSAGE;
}

/* A template puts a mark where a picture or a sound is, and a model that sees nothing there would make it up. */
static const char *media_of(const json_t *item)
{
    static const char *const keys[] = {"image", "image_url", "audio", "video"};
    const char *type = json_string_value(json_object_get(item, "type"));
    if (type && (strstr(type, "image") || strstr(type, "audio") || strstr(type, "video"))) return type;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(item, keys[i])) return keys[i];
    return NULL;
}

static enum mu_status refuse_media(const json_t *messages, struct mu_err *err)
{
    size_t i, k;
    json_t *message, *item;
    char shown[64];
    json_array_foreach(messages, i, message)
    {
        const char *found = json_array_size(json_object_get(message, "images")) ? "images" : NULL;
        json_array_foreach(json_object_get(message, "content"), k, item) if (!found) found = media_of(item);
        if (found)
            return mu_fail(err, MU_EINVAL, "message %zu has '%s': this build gives models text only", i + 1,
                           mu_text_show(found, strlen(found), shown, sizeof shown));
    }
    return MU_OK;
}

enum mu_status mu_chat_template_render(const struct mu_chat_template *t, const struct mu_chat_input *in,
                                       char **text_out, size_t *len_out, struct mu_err *err)
{
    if (!json_is_array(in->messages)) return mu_fail(err, MU_EINVAL, "messages must be an array of {role, content}");
    if (in->variables && !json_is_object(in->variables))
        return mu_fail(err, MU_EINVAL, "the variables of a chat template must be an object");
    enum mu_status st = refuse_media(in->messages, err);
    if (st) return st;
    struct mu_ji *j = mu_calloc(1, sizeof *j);
    if (!j) return mu_fail(err, MU_ENOMEM, "no memory to render the chat template");
    j->arena = mu_arena_create(MU_JI_MAX_MEMORY);
    j->steps = in->max_steps ? in->max_steps : steps_for(json_array_size(in->messages));
    j->names = t->names;
    j->n_name = t->n_name;
    j->locale = t->locale;
    j->now_s = in->now_s;
    j->err = err;
    if (!j->arena)
        st = mu_fail(err, MU_ENOMEM, "no memory to render the chat template");
    else if (!run(j, t, in))
        st = j->st;
    if (!st) {
        *text_out = j->out;
        *len_out = j->out_len;
        j->out = NULL;
    }
    mu_free(j->out);
    mu_arena_destroy(j->arena);
    mu_free(j);
    return st;
}
