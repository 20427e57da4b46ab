/* The services that every gRPC tool expects: health (Check, Watch) and reflection, over the same interface as any
 * other service.
 *
 * Owns the table of what is healthy, the list of watchers, and an index into the descriptor set, which is borrowed
 * and never unpacked: descriptors are recursive and protobuf-c follows them without limit, while reflection hands out
 * whole files as bytes and needs only their names, imports and symbols.
 *
 * Threads: any; the lock guards the health table and the watchers. A call's lock may be taken under it (a send, which
 * never calls back), never the other way round: that keeps what each watcher hears in the order in which it happened.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "transport/rpc_internal.h"

typedef Grpc__Health__V1__HealthCheckRequest HealthRequest;
typedef Grpc__Health__V1__HealthCheckResponse HealthResponse;
typedef Grpc__Reflection__V1__ServerReflectionRequest ReflectionRequest;
typedef Grpc__Reflection__V1__ServerReflectionResponse ReflectionResponse;

enum { MAX_FILES = 256, MAX_SERVICES = 256 };

struct bytes {
    const uint8_t *p;
    size_t len;
};

struct health_entry {
    char *service;
    bool serving;
};

struct watcher {
    struct watcher *next;
    struct mu_rpc_call *call;
    char *service;
};

struct file {
    struct bytes whole, name, package;
};

struct mu_rpc_services {
    pthread_mutex_t lock;
    struct health_entry *entry;
    size_t n_entry;
    struct watcher *watcher;
    bool stopping;

    struct file *file; /* [n_file], never changes */
    size_t n_file;
    char **name; /* [n_name] of services that are both described and served */
    size_t n_name;
};

/* ---- the wire format, as far as descriptors need it ---- */

static bool read_varint(struct bytes *b, uint64_t *v_out)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && b->len; shift += 7) {
        uint8_t c = *b->p++;
        b->len--;
        v |= (uint64_t)(c & 0x7F) << shift;
        if (!(c & 0x80)) {
            *v_out = v;
            return true;
        }
    }
    return false;
}

/* The next field of a message that is bytes; other kinds are skipped. False at the end or at damage. */
static bool next_field(struct bytes *b, unsigned *number_out, struct bytes *value_out)
{
    uint64_t tag, len;
    while (b->len && read_varint(b, &tag)) {
        switch (tag & 7) {
        case 0:
            if (!read_varint(b, &len)) return false;
            continue;
        case 1: len = 8; break;
        case 5: len = 4; break;
        case 2:
            if (!read_varint(b, &len)) return false;
            break;
        default: return false;
        }
        if (len > b->len) return false;
        *value_out = (struct bytes){b->p, len};
        b->p += len;
        b->len -= len;
        if ((tag & 7) != 2) continue;
        *number_out = (unsigned)(tag >> 3);
        return true;
    }
    return false;
}

static struct bytes field(struct bytes message, unsigned wanted)
{
    unsigned number;
    struct bytes value;
    while (next_field(&message, &number, &value))
        if (number == wanted) return value;
    return (struct bytes){NULL, 0};
}

static bool same(struct bytes a, struct bytes b)
{
    return a.len == b.len && (!a.len || !memcmp(a.p, b.p, a.len));
}
static struct bytes text_bytes(const char *s)
{
    return (struct bytes){(const uint8_t *)s, strlen(s)};
}

/* ---- reflection: the index ---- */

/* Numbers of descriptor.proto: FileDescriptorProto name 1, package 2, dependency 3, message_type 4, enum_type 5,
 * service 6, extension 7; DescriptorProto field 2, nested_type 3, enum_type 4, extension 6; EnumDescriptorProto value
 * 2; ServiceDescriptorProto method 2. All of them have their name in 1. */
enum kind { KIND_FILE, KIND_MESSAGE, KIND_WITH_LEAVES, KIND_LEAF };

static enum kind kind_of_child(enum kind parent, unsigned number)
{
    if (parent == KIND_FILE) return number == 4 ? KIND_MESSAGE : number == 7 ? KIND_LEAF : KIND_WITH_LEAVES;
    if (parent == KIND_MESSAGE) return number == 3 ? KIND_MESSAGE : number == 4 ? KIND_WITH_LEAVES : KIND_LEAF;
    return KIND_LEAF;
}

static bool is_child(enum kind parent, unsigned number)
{
    if (parent == KIND_FILE) return number >= 4 && number <= 7;
    if (parent == KIND_MESSAGE) return number == 2 || number == 3 || number == 4 || number == 6;
    return parent == KIND_WITH_LEAVES && number == 2;
}

/* Is "Name.Child.…" something inside this descriptor? Each step takes a name off path, which bounds the depth. */
static bool has_symbol(enum kind kind, struct bytes descriptor, struct bytes path)
{
    const uint8_t *dot = memchr(path.p, '.', path.len);
    struct bytes first = {path.p, dot ? (size_t)(dot - path.p) : path.len}, child;
    struct bytes rest = {dot ? dot + 1 : NULL, dot ? path.len - first.len - 1 : 0};
    unsigned number;
    while (next_field(&descriptor, &number, &child)) {
        if (!is_child(kind, number) || !same(field(child, 1), first)) continue;
        if (!dot) return true;
        if (rest.len && has_symbol(kind_of_child(kind, number), child, rest)) return true;
    }
    return false;
}

static bool file_has_symbol(const struct file *f, struct bytes symbol)
{
    struct bytes package = f->package;
    if (package.len) {
        if (symbol.len <= package.len + 1 || memcmp(symbol.p, package.p, package.len) != 0 ||
            symbol.p[package.len] != '.')
            return false;
        symbol.p += package.len + 1;
        symbol.len -= package.len + 1;
    }
    return symbol.len && has_symbol(KIND_FILE, f->whole, symbol);
}

static bool is_served(const struct mu_rpc_method *m, size_t n, const char *service)
{
    size_t len = strlen(service);
    for (size_t i = 0; i < n; i++)
        if (strncmp(m[i].path + 1, service, len) == 0 && m[i].path[1 + len] == '/') return true;
    return false;
}

static enum mu_status index_files(struct mu_rpc_services *s, struct bytes set, const struct mu_rpc_method *user,
                                  size_t n_user, struct mu_err *err)
{
    struct mu_rpc_method own[MU_RPC_SERVICE_METHODS];
    mu_rpc_services_methods(s, own);
    s->file = mu_calloc(MAX_FILES, sizeof *s->file);
    s->name = mu_calloc(MAX_SERVICES, sizeof *s->name);
    if (!s->file || !s->name) return mu_fail(err, MU_ENOMEM, "gRPC reflection");
    unsigned number;
    struct bytes file, service;
    while (next_field(&set, &number, &file)) {
        if (number != 1) continue;
        if (s->n_file == MAX_FILES) return mu_fail(err, MU_ELIMIT, "descriptor set: over %d files", MAX_FILES);
        s->file[s->n_file++] = (struct file){file, field(file, 1), field(file, 2)};
        struct bytes package = field(file, 2);
        while (next_field(&file, &number, &service)) {
            if (number != 6) continue;
            if (s->n_name == MAX_SERVICES)
                return mu_fail(err, MU_ELIMIT, "descriptor set: over %d services", MAX_SERVICES);
            struct bytes name = field(service, 1);
            char *full = mu_asprintf("%.*s%s%.*s", (int)package.len, (const char *)package.p, package.len ? "." : "",
                                     (int)name.len, (const char *)name.p);
            if (!full) return mu_fail(err, MU_ENOMEM, "gRPC reflection");
            if (is_served(user, n_user, full) || is_served(own, MU_RPC_SERVICE_METHODS, full))
                s->name[s->n_name++] = full;
            else
                mu_free(full);
        }
    }
    return set.len == 0 ? MU_OK : mu_fail(err, MU_EFORMAT, "descriptor set: damaged, %zu bytes are left", set.len);
}

static size_t find_file(const struct mu_rpc_services *s, struct bytes name)
{
    size_t i = 0;
    while (i < s->n_file && !same(s->file[i].name, name)) i++;
    return i;
}

/* The file and all that it imports, each once. */
static size_t with_imports(const struct mu_rpc_services *s, size_t first, ProtobufCBinaryData out[MAX_FILES])
{
    size_t order[MAX_FILES] = {first}, n = 1;
    bool taken[MAX_FILES] = {false};
    taken[first] = true;
    for (size_t i = 0; i < n; i++) {
        struct bytes rest = s->file[order[i]].whole, import;
        out[i] = (ProtobufCBinaryData){rest.len, (uint8_t *)rest.p};
        unsigned number;
        while (next_field(&rest, &number, &import)) {
            size_t at = number == 3 ? find_file(s, import) : s->n_file;
            if (at == s->n_file || taken[at]) continue;
            taken[at] = true;
            order[n++] = at;
        }
    }
    return n;
}

/* ---- reflection: the service ---- */

static void send_or_end(struct mu_rpc_call *call, const ProtobufCMessage *msg)
{
    enum mu_status st = mu_rpc_call_send(call, msg);
    if (st == MU_EAGAIN)
        mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED, "answers are not read; ask less at a time");
    else if (st != MU_OK && st != MU_ECANCELLED)
        mu_rpc_call_finish(call, MU_RPC_INTERNAL, "the answer cannot be sent");
}

static void answer_error(struct mu_rpc_call *call, ReflectionResponse *r, enum mu_rpc_code code, char *text)
{
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = (int32_t)code;
    error.error_message = text;
    r->message_response_case = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    r->error_response = &error;
    send_or_end(call, &r->base);
}

static void answer_file(struct mu_rpc_services *s, struct mu_rpc_call *call, ReflectionResponse *r, size_t at)
{
    if (at == s->n_file) {
        answer_error(call, r, MU_RPC_NOT_FOUND, (char *)"no such file or symbol here");
        return;
    }
    ProtobufCBinaryData files[MAX_FILES];
    Grpc__Reflection__V1__FileDescriptorResponse reply = GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    reply.n_file_descriptor_proto = with_imports(s, at, files);
    reply.file_descriptor_proto = files;
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    r->file_descriptor_response = &reply;
    send_or_end(call, &r->base);
}

static void answer_services(struct mu_rpc_services *s, struct mu_rpc_call *call, ReflectionResponse *r)
{
    Grpc__Reflection__V1__ServiceResponse one[MAX_SERVICES], *list[MAX_SERVICES];
    for (size_t i = 0; i < s->n_name; i++) {
        grpc__reflection__v1__service_response__init(&one[i]);
        one[i].name = s->name[i];
        list[i] = &one[i];
    }
    Grpc__Reflection__V1__ListServiceResponse reply = GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    reply.n_service = s->n_name;
    reply.service = list;
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    r->list_services_response = &reply;
    send_or_end(call, &r->base);
}

static void on_reflection(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct mu_rpc_services *s = ctx;
    const ReflectionRequest *q = (const ReflectionRequest *)msg;
    ReflectionResponse r = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    r.valid_host = q->host;
    r.original_request = (ReflectionRequest *)q;
    size_t at = 0;
    switch (q->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        answer_services(s, call, &r);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        answer_file(s, call, &r, find_file(s, text_bytes(q->file_by_filename)));
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        while (at < s->n_file && !file_has_symbol(&s->file[at], text_bytes(q->file_containing_symbol))) at++;
        answer_file(s, call, &r, at);
        break;
    default: /* extensions are proto2's */
        answer_error(call, &r, MU_RPC_NOT_FOUND, (char *)"there are no extensions here");
    }
}

static void on_reflection_end(struct mu_rpc_call *call, void *ctx)
{
    (void)ctx;
    mu_rpc_call_finish(call, MU_RPC_OK, "%s", "");
}

/* ---- health ---- */

/* Lock held. NULL: unknown service. */
static struct health_entry *find_entry(struct mu_rpc_services *s, const char *service)
{
    for (size_t i = 0; i < s->n_entry; i++)
        if (strcmp(s->entry[i].service, service) == 0) return &s->entry[i];
    return NULL;
}

static HealthResponse response_of(const struct mu_rpc_services *s, const struct health_entry *e)
{
    HealthResponse r = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    if (!e)
        r.status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN;
    else if (e->serving && !s->stopping)
        r.status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    else
        r.status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
    return r;
}

static void on_check(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct mu_rpc_services *s = ctx;
    const HealthRequest *q = (const HealthRequest *)msg;
    pthread_mutex_lock(&s->lock);
    struct health_entry *e = find_entry(s, q->service);
    HealthResponse r = response_of(s, e);
    pthread_mutex_unlock(&s->lock);
    if (e)
        mu_rpc_call_reply(call, &r.base);
    else
        mu_rpc_call_finish(call, MU_RPC_NOT_FOUND, "no health is known of a service \"%.200s\"", q->service);
}

static void on_watch(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct mu_rpc_services *s = ctx;
    const HealthRequest *q = (const HealthRequest *)msg;
    struct watcher *w = mu_calloc(1, sizeof *w);
    char *service = mu_strdup(q->service);
    if (!w || !service) {
        mu_free(w);
        mu_free(service);
        mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    *w = (struct watcher){.call = mu_rpc_call_retain(call), .service = service};
    pthread_mutex_lock(&s->lock);
    HealthResponse r = response_of(s, find_entry(s, service));
    mu_rpc_call_send(call, &r.base);
    if (s->stopping) mu_rpc_call_finish(call, MU_RPC_UNAVAILABLE, "the server is stopping");
    w->next = s->watcher;
    s->watcher = w;
    pthread_mutex_unlock(&s->lock);
}

static void on_watch_done(struct mu_rpc_call *call, bool cancelled, void *ctx)
{
    (void)cancelled;
    struct mu_rpc_services *s = ctx;
    pthread_mutex_lock(&s->lock);
    struct watcher **at = &s->watcher;
    while (*at && (*at)->call != call) at = &(*at)->next;
    struct watcher *w = *at;
    if (w) *at = w->next;
    pthread_mutex_unlock(&s->lock);
    if (!w) return;
    mu_rpc_call_release(w->call);
    mu_free(w->service);
    mu_free(w);
}

/* Lock held. NULL: all services. A watcher that does not read loses what does not fit, never the connection. */
static void tell_watchers(struct mu_rpc_services *s, const char *service)
{
    for (struct watcher *w = s->watcher; w; w = w->next) {
        if (service && strcmp(w->service, service) != 0) continue;
        HealthResponse r = response_of(s, find_entry(s, w->service));
        mu_rpc_call_send(w->call, &r.base);
    }
}

void mu_rpc_services_set_health(struct mu_rpc_services *s, const char *service, bool serving)
{
    pthread_mutex_lock(&s->lock);
    struct health_entry *e = find_entry(s, service);
    bool changed = !e || e->serving != serving;
    if (!e) {
        char *name = mu_strdup(service);
        struct health_entry *grown = mu_reallocarray(s->entry, s->n_entry + 1, sizeof *grown);
        if (grown) s->entry = grown;
        if (grown && name) {
            e = &s->entry[s->n_entry++];
            e->service = name;
        } else {
            mu_free(name);
            mu_error("grpc", "out of memory for the health of %s", service);
        }
    }
    if (e) e->serving = serving;
    if (e && changed) tell_watchers(s, service);
    pthread_mutex_unlock(&s->lock);
}

/* ---- life ---- */

enum mu_status mu_rpc_services_create(const void *descriptor_set, size_t bytes, const struct mu_rpc_method *user,
                                      size_t n_user, struct mu_rpc_services **services_out, struct mu_err *err)
{
    struct mu_rpc_services *s = mu_calloc(1, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "gRPC health and reflection");
    pthread_mutex_init(&s->lock, NULL);
    enum mu_status st = index_files(s, (struct bytes){descriptor_set, bytes}, user, n_user, err);
    if (st == MU_OK) {
        mu_rpc_services_set_health(s, "", false);
        if (s->n_entry == 0) st = mu_fail(err, MU_ENOMEM, "gRPC health");
    }
    if (st != MU_OK) {
        mu_rpc_services_destroy(s);
        return st;
    }
    *services_out = s;
    return MU_OK;
}

void mu_rpc_services_methods(struct mu_rpc_services *s, struct mu_rpc_method methods_out[MU_RPC_SERVICE_METHODS])
{
    methods_out[0] = (struct mu_rpc_method){.path = "/grpc.health.v1.Health/Check",
                                            .request = &grpc__health__v1__health_check_request__descriptor,
                                            .max_request_bytes = 4096,
                                            .on_message = on_check,
                                            .ctx = s};
    methods_out[1] = methods_out[0];
    methods_out[1].path = "/grpc.health.v1.Health/Watch";
    methods_out[1].on_message = on_watch;
    methods_out[1].on_done = on_watch_done;
    methods_out[1].max_queued_bytes = 64 * 1024;
    methods_out[2] = (struct mu_rpc_method){.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                                            .request = &grpc__reflection__v1__server_reflection_request__descriptor,
                                            .max_request_bytes = 4096,
                                            .client_streams = true,
                                            .on_message = on_reflection,
                                            .on_half_close = on_reflection_end,
                                            .ctx = s};
    methods_out[3] = methods_out[2]; /* the same messages, byte for byte */
    methods_out[3].path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
}

void mu_rpc_services_stop(struct mu_rpc_services *s)
{
    pthread_mutex_lock(&s->lock);
    if (!s->stopping) {
        s->stopping = true;
        tell_watchers(s, NULL);
        for (struct watcher *w = s->watcher; w; w = w->next)
            mu_rpc_call_finish(w->call, MU_RPC_UNAVAILABLE, "the server is stopping");
    }
    pthread_mutex_unlock(&s->lock);
}

void mu_rpc_services_destroy(struct mu_rpc_services *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->n_entry; i++) mu_free(s->entry[i].service);
    for (size_t i = 0; i < s->n_name; i++) mu_free(s->name[i]);
    mu_free(s->entry);
    mu_free(s->name);
    mu_free(s->file);
    pthread_mutex_destroy(&s->lock);
    mu_free(s);
}
