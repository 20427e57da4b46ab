/* `muster run`: a conversation with a model, or completions where it has no chat template.
 *
 *   cmd_run.c         the command line              chat.c           the conversation, a turn of it
 *   repl.c            prompts from the terminal     chat_commands.c  /set, /show …
 *   chat_file.c       /save and /load
 *
 * Threads: one (a server's answer arrives on another one while that waits). */
#ifndef MU_CLI_CHAT_H
#define MU_CLI_CHAT_H

#include <jansson.h>

#include "cli/backend.h"

struct mu_line_edit;

enum mu_think { MU_THINK_DEFAULT, MU_THINK_OFF, MU_THINK_ON, MU_THINK_LOW, MU_THINK_MEDIUM, MU_THINK_HIGH };

struct mu_talk_options { /* of the command line, and what /set changes of it */
    struct mu_local_options local;
    const char *server;  /* HOST:PORT, or NULL */
    const char *adapter; /* of the server, or NULL */
    int priority;        /* at the server: Muster__V1__Priority */
    struct mu_params params;
    enum mu_think think;
    struct mu_constraint_text constraint; /* of every answer */
    bool raw, ignore_end, special, quiet, verbose, wordwrap, hide_thinking;
};

struct mu_talk {
    struct mu_talk_options opt;
    struct mu_backend backend;
    char *model;      /* what opt.local.model points to once another one was loaded */
    char *system;     /* the user's; NULL: the model's own */
    json_t *messages; /* array of {role, content, thinking, reasoning_content}; the system prompt is not among them */
    size_t left_out;  /* messages at the beginning that no longer fit the context */
    bool at_prompt;   /* repl.c: commands can be typed */
};

/* ---- chat.c ---- */

/* Opens the back end and begins a conversation. A chat is closed also where this fails. */
enum mu_status mu_talk_open(struct mu_talk *c, struct mu_err *err);
void mu_talk_close(struct mu_talk *c);
const struct mu_card *mu_talk_card(const struct mu_talk *c);
/* Whether prompts are turns of a conversation. */
bool mu_talk_is_chat(const struct mu_talk *c);
const char *mu_talk_system(const struct mu_talk *c); /* NULL: none */
enum mu_status mu_talk_set_system(struct mu_talk *c, const char *text, struct mu_err *err);
/* Forgets all but the system prompt and what the model begins with. */
enum mu_status mu_talk_clear(struct mu_talk *c, struct mu_err *err);
/* Another model in place of this one, with an empty conversation and a context of its own; on failure the former one
 * again. */
enum mu_status mu_talk_switch(struct mu_talk *c, const char *model, struct mu_err *err);
/* The parameters that apply: the model's, then the user's over them. Freed by mu_params_free. */
enum mu_status mu_talk_params(const struct mu_talk *c, struct mu_params *params_out, struct mu_err *err);
/* A prompt and its answer, streamed to standard output. An answer that Ctrl-C cut off is kept as far as it came; a turn
 * that failed before any text leaves the conversation as it was. */
enum mu_status mu_talk_turn(struct mu_talk *c, const char *text, struct mu_err *err);
/* "default", "on", "off", "low" …; false: no such. */
bool mu_think_parse(const char *text, enum mu_think *think_out);
const char *mu_think_name(enum mu_think think);

/* ---- repl.c ---- */

enum mu_status mu_talk_repl(struct mu_talk *c, struct mu_err *err);

/* ---- chat_commands.c ---- */

struct mu_session { /* what commands can reach */
    struct mu_talk *chat;
    bool history, leave;
};
/* A line that begins with '/'. What it has to say goes to standard error. An error ends the session. */
enum mu_status mu_talk_command(struct mu_session *s, const char *line, struct mu_err *err);

/* ---- chat_file.c ---- */

/* Muster's own folder for what a user makes: $XDG_DATA_HOME/muster, else ~/.local/share/muster, and a name in it. NULL
 * without a home or memory. */
char *mu_data_path(const char *name);
/* Makes the folders on the way to a file, 0700; what is missing shows when that is opened. */
void mu_folders_make(char *path);
/* The file of a saved chat: the name itself where it has a '/' or ends in ".json", else one in chats/. */
char *mu_talk_path(const char *name);
enum mu_status mu_talk_save(const struct mu_talk *c, const char *path, struct mu_err *err);
/* The conversation, system prompt and parameters of the file; its model, too, where that is another one. MU_ENOENT: no
 * such file. */
enum mu_status mu_talk_load(struct mu_talk *c, const char *path, struct mu_err *err);

#endif
