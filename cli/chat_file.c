/* Conversations as JSON files, 0600:
 *
 *   {"muster_chat": 1, "model": "llama3.2", "system": "…", "think": "on",
 *    "parameters": {"temperature": 0.5}, "messages": [{"role": "user", "content": "…"}, …]}
 *
 * A file is checked wholly before anything is changed. */
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/chat.h"
#include "cli/cli.h"
#include "model/hf_json.h"

enum { MAX_CHAT_BYTES = 256 << 20, VERSION = 1 };

char *mu_data_path(const char *name)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (data && *data == '/') return mu_asprintf("%s/muster/%s", data, name);
    struct passwd *user = home && *home == '/' ? NULL : getpwuid(getuid());
    if (user) home = user->pw_dir;
    return home && *home == '/' ? mu_asprintf("%s/.local/share/muster/%s", home, name) : NULL;
}

static bool is_path(const char *name)
{
    size_t n = strlen(name);
    return strchr(name, '/') || (n > 5 && !strcmp(name + n - 5, ".json"));
}

char *mu_talk_path(const char *name)
{
    if (is_path(name)) return mu_strdup(name);
    char *file = mu_asprintf("chats/%s.json", name), *path = file ? mu_data_path(file) : NULL;
    mu_free(file);
    return path;
}

/* ---- saving ---- */

/* A name that means the same in another folder; freed by mu_free. */
static char *lasting_name(const struct mu_talk *c)
{
    char *path = c->opt.server ? NULL : realpath(c->opt.local.model, NULL);
    char *name = mu_strdup(path ? path : c->opt.local.model);
    free(path); /* the C library's own */
    return name;
}

static json_t *to_json(const struct mu_talk *c)
{
    char *model = lasting_name(c);
    json_t *params = mu_params_to_json(&c->opt.params);
    json_t *o = json_pack("{s:i, s:s, s:s, s:o, s:O}", "muster_chat", VERSION, "model", model, "think",
                          mu_think_name(c->opt.think), "parameters", params, "messages", c->messages);
    mu_free(model);
    if (o && c->system && json_object_set_new(o, "system", json_string(c->system))) {
        json_decref(o);
        o = NULL;
    }
    return o;
}

static enum mu_status write_file(const char *path, const char *text, struct mu_err *err)
{
    struct mu_file_writer *w = NULL;
    mode_t before = umask(077); /* conversations are nobody else's to read */
    enum mu_status st = mu_file_writer_open(path, &w, err);
    umask(before);
    if (st) return st;
    st = mu_file_writer_write(w, text, strlen(text), err);
    if (!st) st = mu_file_writer_write(w, "\n", 1, err);
    enum mu_status closed = mu_file_writer_close(w, !st, st ? NULL : err);
    return st ? st : closed;
}

void mu_folders_make(char *path)
{
    for (char *p = path + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(path, 0700);
        *p = '/';
    }
}

enum mu_status mu_talk_save(const struct mu_talk *c, const char *path, struct mu_err *err)
{
    enum mu_status st;
    json_t *o = to_json(c);
    char *text = o ? json_dumps(o, JSON_INDENT(1)) : NULL, *folders = NULL, *own = mu_data_path("");
    if (!text || !own) {
        st = mu_fail(err, MU_ENOMEM, "no memory for the conversation, or a text in it is not UTF-8");
        goto done;
    }
    if (!strncmp(path, own, strlen(own))) { /* a path of the user's must have its folders */
        if (!(folders = mu_strdup(path))) {
            st = mu_fail(err, MU_ENOMEM, "no memory for a path");
            goto done;
        }
        mu_folders_make(folders);
    }
    st = write_file(path, text, err);
done:
    json_decref(o);
    free(text); /* jansson's own */
    mu_free(own);
    mu_free(folders);
    return st;
}

/* ---- loading ---- */

struct loaded {
    json_t *file;
    struct mu_params params;
    const char *model, *system;
    json_t *messages;
    enum mu_think think;
};

static enum mu_status check_messages(const json_t *messages, const char *path, struct mu_err *err)
{
    if (!json_is_array(messages)) return mu_fail(err, MU_EFORMAT, "%s: 'messages' is not an array", path);
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *m = json_array_get(messages, i);
        if (!json_is_string(json_object_get(m, "role")) || !json_is_string(json_object_get(m, "content")))
            return mu_fail(err, MU_EFORMAT, "%s: message %zu has no 'role' and 'content' that are strings", path,
                           i + 1);
    }
    return MU_OK;
}

static enum mu_status parse(const char *path, const char *text, size_t len, struct loaded *l, struct mu_err *err)
{
    json_error_t where;
    bool no_memory;
    l->file = mu_json_load(text, len, 0, &where, &no_memory);
    if (no_memory) return mu_fail(err, MU_ENOMEM, "%s: no memory to read it", path);
    if (!l->file) return mu_fail(err, MU_EFORMAT, "%s, line %d: %s", path, where.line, where.text);
    if (json_integer_value(json_object_get(l->file, "muster_chat")) != VERSION)
        return mu_fail(err, MU_EFORMAT, "%s is no chat saved by this version: 'muster_chat' is not %d", path, VERSION);
    const json_t *params = json_object_get(l->file, "parameters");
    const char *name, *think = json_string_value(json_object_get(l->file, "think"));
    json_t *value;
    l->model = json_string_value(json_object_get(l->file, "model"));
    l->system = json_string_value(json_object_get(l->file, "system"));
    l->messages = json_object_get(l->file, "messages");
    if (!l->model) return mu_fail(err, MU_EFORMAT, "%s: 'model' is not a string", path);
    if (think && !mu_think_parse(think, &l->think))
        return mu_fail(err, MU_EFORMAT, "%s: 'think' is '%.40s'; it may be default, off, on, low, medium or high", path,
                       think);
    json_object_foreach((json_t *)params, name, value)
    {
        if (mu_params_set_json(&l->params, name, value, err)) return mu_err_wrap(err, "%s", path);
    }
    return check_messages(l->messages, path, err);
}

/* Everything has been checked: now the chat changes. */
static enum mu_status take(struct mu_talk *c, struct loaded *l, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    char *now = lasting_name(c);
    bool other = now && strcmp(l->model, now) != 0 && strcmp(l->model, c->opt.local.model) != 0;
    mu_free(now);
    if (other) {
        fprintf(stderr, "Loading '%s' …\n", l->model);
        st = mu_talk_switch(c, l->model, err);
        if (st) return st;
    }
    if (l->params.num_ctx && l->params.num_ctx != mu_talk_card(c)->n_ctx && !c->opt.server)
        st = c->backend.ops->set_context(c->backend.self, (int)l->params.num_ctx, err);
    if (st) return st;
    mu_free(c->system);
    c->system = NULL;
    if (l->system) st = mu_talk_set_system(c, l->system, err);
    if (st) return st;
    mu_params_free(&c->opt.params);
    c->opt.params = l->params;
    l->params = (struct mu_params){0};
    c->opt.think = l->think;
    json_decref(c->messages);
    c->messages = json_incref(l->messages);
    c->left_out = 0;
    return MU_OK;
}

enum mu_status mu_talk_load(struct mu_talk *c, const char *path, struct mu_err *err)
{
    struct loaded l = {0};
    char *text = NULL;
    size_t len = 0;
    enum mu_status st;
    if (access(path, F_OK)) return mu_fail(err, MU_ENOENT, "there is no file '%s'", path);
    MU_TRY(st, mu_file_read(path, MAX_CHAT_BYTES, &text, &len, err), done);
    MU_TRY(st, parse(path, text, len, &l, err), done);
    st = take(c, &l, err);
done:
    mu_params_free(&l.params);
    json_decref(l.file);
    mu_free(text);
    return st;
}
