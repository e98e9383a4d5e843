/* scenarios.c - see scenarios.h. */
#include "scenarios.h"

#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONVERT "{H} convert {R}/source {D} -q"
#define SHARDS " --max-shard-size 20KB"
#define FORCED CONVERT " --force --keep-side-files"
#define TREES "{H} convert {R}/trees {D} -q"
#define RIVAL "{H} convert {R}/rival {D} -q"

/* clang-format off */
const scenario scenarios[] = {
    {"init_new", NULL, "{H} init {R}/a.json {D} --seed 3 -q" SHARDS, PLAIN, NULL, NULL},
    {"init_parents", NULL, "{H} init {R}/a.json {D}/x/y --seed 3 -q" SHARDS, PLAIN, NULL, NULL},
    {"init_bin_new", NULL, "{H} init {R}/a.json {D} --seed 3 -q --format bin" SHARDS, PLAIN, NULL, NULL},
    {"init_force", "shards", "{H} init {R}/b.json {D} --seed 3 -q --force --keep-side-files" SHARDS, REPLACES, NULL, NULL},
    {"new_shards", NULL, CONVERT SHARDS, PLAIN, NULL, RIVAL},
    {"new_single", NULL, CONVERT, PLAIN, NULL, NULL},
    {"new_bin", NULL, CONVERT " --format bin" SHARDS, PLAIN, NULL, NULL},
    {"new_offload", NULL, CONVERT " --format offload", PLAIN, NULL, NULL},
    {"empty_shards", "empty", CONVERT SHARDS, PLAIN | REPLACES, NULL, RIVAL},
    {"bin_to_new", NULL, "{H} convert {R}/source_bin {D} -q --format safetensors", PLAIN, NULL, NULL},
    {"shards_shards", "shards", FORCED SHARDS, REPLACES, NULL, RIVAL " --force --keep-side-files"},
    {"shards_shards_cast", "shards", FORCED " --dtype bf16 --max-shard-size 9KB", REPLACES, NULL, NULL},
    {"shards_single", "shards", FORCED, REPLACES, NULL, NULL},
    {"shards_bin", "shards", FORCED " --format bin" SHARDS, REPLACES, NULL, RIVAL " --force --keep-side-files"},
    {"shards_offload", "shards", FORCED " --format offload", REPLACES, NULL, NULL},
    {"single_shards", "single", FORCED SHARDS, REPLACES, NULL, NULL},
    {"single_single_cast", "single", FORCED " --dtype f16", REPLACES, NULL, RIVAL " --force --keep-side-files"},
    {"single_bin", "single", FORCED " --format bin", REPLACES, NULL, NULL},
    {"single_offload", "single", FORCED " --format offload --dtype f16", REPLACES, NULL, NULL},
    {"bin_shards_cast", "bin", FORCED " --dtype bf16" SHARDS, REPLACES, NULL, NULL},
    {"bin_single", "bin", FORCED, REPLACES, NULL, NULL},
    {"bin_bin", "bin", FORCED " --format bin", REPLACES, NULL, NULL},
    {"bin_offload", "bin", FORCED " --format offload", REPLACES, NULL, NULL},
    {"offload_shards", "offload", FORCED SHARDS, REPLACES, NULL, NULL},
    {"offload_single", "offload", FORCED, REPLACES, NULL, NULL},
    {"offload_bin", "offload", FORCED " --format bin", REPLACES, NULL, NULL},
    {"offload_offload", "offload", FORCED " --format offload --dtype f16", REPLACES, NULL, NULL},
    {"resume_new", NULL, CONVERT " --resume" SHARDS, PLAIN | RESUMES, NULL, CONVERT " --resume" SHARDS},
    {"resume_again", NULL, CONVERT " --resume" SHARDS, PLAIN | RESUMES, CONVERT " --resume" SHARDS, NULL},
    {"resume_force", "shards", FORCED " --resume" SHARDS, REPLACES | RESUMES, NULL, NULL},
    {"resume_force_again", "shards", FORCED " --resume" SHARDS, REPLACES | RESUMES, FORCED " --resume" SHARDS,
     RIVAL " --force --keep-side-files"},
    {"resume_bin_again", "single", FORCED " --resume --format bin" SHARDS, REPLACES | RESUMES,
     FORCED " --resume --format bin" SHARDS, NULL},
    {"resume_else", "bin", FORCED " --resume" SHARDS, REPLACES | RESUMES, RIVAL " --resume --force --keep-side-files" SHARDS, NULL},
    {"trees_new", NULL, TREES SHARDS, PLAIN, NULL, RIVAL},
    {"trees_empty", "empty", TREES, PLAIN | REPLACES, NULL, NULL},
    {"trees_none", "single", TREES " --force --keep-side-files" SHARDS, REPLACES, NULL, NULL},
    {"trees_trees", "trees", TREES " --force --keep-side-files" SHARDS, REPLACES, NULL, RIVAL " --force --keep-side-files"},
    {"trees_away", "trees", FORCED " --dtype f16", REPLACES, NULL, TREES " --force --keep-side-files"},
    {"trees_resume", "trees", TREES " --force --keep-side-files --resume" SHARDS, REPLACES | RESUMES,
     TREES " --force --keep-side-files --resume" SHARDS, RIVAL " --force --keep-side-files"},
    {"save_new", NULL, "{P} save {R}/source {D}", PLAIN, NULL, NULL},
    {"save_force", "bin", "{P} save {R}/source {D} force", REPLACES, NULL, NULL},
    {"writer_new", NULL, "{P} writer {D}", PLAIN, NULL, NULL},
    {"writer_force", "shards", "{P} writer {D} force", REPLACES, NULL, "{P} writer {D} force"},
    {"writer_file", "file", "{P} writer {D}/one.safetensors force", ONE_FILE, NULL, NULL},
    {"load_offload", NULL, "{H} load {R}/source_bin --device-map {R}/disk.json --offload-folder {D} -q",
     PLAIN | ANY_TIMES, NULL, NULL},
    {"manifest_new", "shards", "{H} verify {D} --write-manifest -q", ONE_FILE | ANSWERS, NULL, NULL},
    {"manifest_over", "manifest", "{H} verify {D} --write-manifest -q", ONE_FILE | ANSWERS, NULL,
     "{H} verify {D} --write-manifest -q"},
    {"inspect_html", "file", "{H} inspect {R}/source --html {D}/page -q", ONE_FILE, NULL, NULL},
    {"plan_svg", "file", "{H} plan {R}/source --svg {D}/page -q --max-memory cpu=1GB", ONE_FILE, NULL, NULL},
};
/* clang-format on */
const size_t scenario_count = sizeof scenarios / sizeof scenarios[0];

static char top[256], heft_path[512], self_path[512];

void scenarios_split(const char *command, const char *destination, char **words, size_t cap)
{
    char text[2048];
    size_t used = 0, count = 0;
    for (const char *p = command; *p && used < sizeof text - 600; p++) {
        const char *value = strncmp(p, "{H}", 3) == 0   ? heft_path
                            : strncmp(p, "{P}", 3) == 0 ? self_path
                            : strncmp(p, "{R}", 3) == 0 ? top
                            : strncmp(p, "{D}", 3) == 0 ? destination
                                                        : NULL;
        if (value) {
            used += (size_t)snprintf(text + used, sizeof text - used, "%s", value);
            p += 2;
        } else {
            text[used++] = *p;
        }
    }
    text[used] = '\0';
    for (char *word = strtok(text, " "); word && count < cap - 1; word = strtok(NULL, " ")) {
        words[count++] = strdup(word);
    }
    words[count] = NULL;
}

int scenarios_run(const char *command, const char *destination)
{
    char *words[32];
    int status = 0;
    scenarios_split(command, destination, words, 32);
    const pid_t child = fork();
    if (child == 0) {
        const int null = open("/dev/null", O_RDWR);
        (void)!dup2(null, 1);
        execv(words[0], words);
        _exit(127);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    for (size_t i = 0; words[i]; i++) {
        free(words[i]);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void must(const char *command, const char *destination)
{
    if (scenarios_run(command, destination) != 0) {
        errno = 0;
        die("this fails:", command);
    }
}

static void config(const char *name, const char *class_name, unsigned hidden)
{
    char path[512], text[1024];
    snprintf(path, sizeof path, "%s/%s", top, name);
    snprintf(text, sizeof text,
             "{\"architectures\": [\"%s\"], \"model_type\": \"bert\", \"hidden_size\": %u,\n"
             "\"intermediate_size\": %u, \"num_attention_heads\": 2, \"num_hidden_layers\": 1,\n"
             "\"max_position_embeddings\": 24, \"type_vocab_size\": 2, \"vocab_size\": 90,\n"
             "\"pad_token_id\": 0, \"hidden_act\": \"gelu\", \"initializer_range\": 0.02,\n"
             "\"layer_norm_eps\": 1e-12, \"hidden_dropout_prob\": 0.1,\n"
             "\"attention_probs_dropout_prob\": 0.1}\n",
             class_name, hidden, hidden * 2);
    write_text(path, text, 0644);
}

static void add_file(const char *folder, const char *name, const char *text, mode_t mode)
{
    char path[700];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    write_text(path, text, mode);
}

/* What the user keeps beside a checkpoint. */
static void add_own(const char *folder)
{
    char path[600];
    add_file(folder, "notes.txt", "mine\n", 0640);
    snprintf(path, sizeof path, "%s/logs", folder);
    if (mkdir(path, 0750) != 0) {
        die("cannot make", path);
    }
    add_file(path, "run.txt", "step 1\n", 0600);
    snprintf(path, sizeof path, "%s/logs/deep", folder);
    if (mkdir(path, 0755) != 0) {
        die("cannot make", path);
    }
    add_file(path, "events.bin", "0123456789", 0444);
}

static void add_folder(const char *folder, const char *name, mode_t mode)
{
    char path[700];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (mkdir(path, mode) != 0) {
        die("cannot make", path);
    }
}

/* Folders beside the weights: the destination's have files of other bytes, kinds and modes, and the user's. */
static void add_trees(const char *folder, bool old)
{
    add_folder(folder, "1_Pooling", old ? 0750 : 0755);
    add_file(folder, "1_Pooling/config.json", old ? "{\"old\": 1}\n" : "{\"new\": 2}\n",
             old ? 0600 : 0644);
    add_folder(folder, "voices", 0755);
    add_folder(folder, "voices/deep", 0755);
    add_file(folder, "voices/deep/a.pt", old ? "old" : "new voice", 0644);
    if (old) {
        add_file(folder, "voices/b.pt", "was here", 0640); /* to be a folder */
        add_file(folder, "voices/deep/mine.txt", "mine\n", 0640);
        add_file(folder, "1_Pooling/.mine", "mine\n", 0600);
        add_folder(folder, "voices/mine", 0711);
        add_file(folder, "voices/mine/a", "mine\n", 0444);
    } else {
        add_folder(folder, "voices/b.pt", 0755);
        add_file(folder, "voices/b.pt/c", "", 0644);
        add_folder(folder, "2_Normalize", 0755);
    }
}

static void add_old(const char *folder, const char *options)
{
    char command[600], path[600];
    snprintf(path, sizeof path, "%s/before/%s", top, folder);
    snprintf(command, sizeof command, "{H} init {R}/old.json {D} --seed 1 -q %s", options);
    must(command, path);
    add_file(path, "tokenizer.json", "{\"old\": 1}\n", 0644);
    add_file(path, "vocab.txt", "old\n", 0644);
    add_own(path);
}

static void prepare_before(void)
{
    char path[512], text[600];
    size_t length;
    snprintf(path, sizeof path, "%s/before", top);
    (void)mkdir(path, 0755);
    add_old("shards", "--max-shard-size 30KB");
    add_old("single", "");
    add_old("bin", "--format bin --max-shard-size 30KB");
    add_old("trees", "--max-shard-size 30KB");
    snprintf(path, sizeof path, "%s/before/trees", top);
    add_trees(path, true);
    snprintf(path, sizeof path, "%s/before/offload", top);
    must("{H} convert {R}/before/shards {D} -q --format offload", path);
    snprintf(text, sizeof text, "%s/logs", path);
    if (access(text, F_OK) != 0) {
        add_own(path);
    }
    snprintf(path, sizeof path, "%s/before/empty", top);
    (void)mkdir(path, 0750);
    snprintf(path, sizeof path, "%s/before/file", top);
    (void)mkdir(path, 0755);
    add_file(path, "page", "the old page\n", 0640);
    add_file(path, "one.safetensors", "old", 0604);
    add_own(path);
    snprintf(path, sizeof path, "%s/before/manifest", top);
    snprintf(text, sizeof text, "%s/before/shards", top);
    tree_copy(text, path);
    must("{H} verify {D} --write-manifest -q", path);
    snprintf(path, sizeof path, "%s/before/manifest/heft-manifest.json", top);
    char *manifest = read_bytes(path, &length);
    if (!manifest || length < 2) {
        die("cannot read", path);
    }
    manifest[length - 1] = ' '; /* as valid, but not the same */
    write_text(path, manifest, 0640);
    free(manifest);
}

void scenarios_prepare(const char *root, const char *heft, const char *self)
{
    char path[512], text[600];
    snprintf(top, sizeof top, "%s", root);
    snprintf(heft_path, sizeof heft_path, "%s", heft);
    snprintf(self_path, sizeof self_path, "%s", self);
    config("old.json", "BertForMaskedLM", 32);
    config("a.json", "BertModel", 32);
    config("b.json", "BertModel", 16);
    add_file(top, "disk.json", "{\"\": \"disk\"}", 0644);
    snprintf(path, sizeof path, "%s/source", top);
    must("{H} init {R}/a.json {D} --seed 2 -q --max-shard-size 20KB", path);
    add_file(path, "tokenizer.json", "{\"new\": 2}\n", 0644);
    add_file(path, "merges.txt", "a b\n", 0644);
    snprintf(text, sizeof text, "%s/trees", top);
    tree_copy(path, text);
    add_trees(text, false);
    snprintf(path, sizeof path, "%s/source_bin", top);
    must("{H} convert {R}/source {D} -q --format bin --max-shard-size 20KB", path);
    snprintf(path, sizeof path, "%s/rival", top);
    must("{H} init {R}/a.json {D} --seed 5 -q", path);
    prepare_before();
}
