/* Chat templates: the text that Jinja makes of them, what is refused and on which line, folders and their
 * special tokens, hostile templates, memory that runs out. That real templates render as in Transformers is
 * compared by tests/interop/test_chat.py. */
#include "text/text.h"

#include "scratch.h"

#include <heft/chat.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define HELLO "[{\"role\": \"user\", \"content\": \" Hi \"}]"
#define CONFIG                                                                                     \
    "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}, \"image_token\": \"<i>\", "  \
    "\"pad_token\": null}"

static heft_status render_in(heft_ctx *in, const char *template, const char *messages,
                             const heft_chat_options *options, char text[256], heft_error *err)
{
    heft_chat *chat = NULL;
    char *rendered = NULL;
    size_t length = 0;
    heft_status status = heft_chat_open_bytes(in, "template", template, strlen(template), CONFIG,
                                              sizeof CONFIG - 1, &chat, err);
    if (status == HEFT_OK) {
        status =
            heft_chat_render(chat, messages, strlen(messages), options, &rendered, &length, err);
    }
    if (status == HEFT_OK) {
        assert_int_equal(strlen(rendered), length);
        (void)snprintf(text, 256, "%s", rendered);
        heft_chat_free_text(chat, rendered, length);
    }
    heft_chat_close(chat);
    return status;
}

static void templates_render_as_in_jinja(void **state)
{
    (void)state;
    static const struct {
        const char *template, *expected;
    } rows[] = {
        {"a\n",                                                                                  "a"                                    }, /* the last newline is not part of a template */
        {"a\r\nb",                                                                               "a\nb"                                 },
        {"{% if 1 %}\n x\n{% endif %}\ny",                                                       " x\ny"                                },
        {"  {% if 1 %}x{% endif %}",                                                             "x"                                    },
        {"  {%+ if 1 %}x{% endif %}",                                                            "  x"                                  },
        {"a  {%- if 1 -%}  x  {%- endif %}",                                                     "ax"                                   },
        {"  {{ 1 }}\n",                                                                          "  1"                                  },
        {"{# c #}\n{#- d -#} x",                                                                 "x"                                    },
        {"{% if 1 +%}\nx{% endif %}",                                                            "\nx"                                  },
        {"{{ 1.0 }} {{ 1e22 }} {{ true }} {{ none }} {{ nothing }}",                             "1.0 1e+22 True None "                 },
        {"{{ ['a', \"it's\", 1, (2,), {'k': none}] }}",                                          "['a', \"it's\", 1, (2,), {'k': None}]"},
        {"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ '1' ~ 2 }}",                    "3 -4 2 3.5 12"                        },
        {"{{ 'abc'[::-1] }} {{ 'abc'[-2:] }} {{ [1, 2, 3][1:] }} {{ 'abc'[1] }}",
         "cba bc [2, 3] b"                                                                                                              },
        {"{{ 1 < 2 < 3 }} {{ 'a' in 'cat' }} {{ 1 not in [2] }} {{ 1 == true }}",
         "True True True True"                                                                                                          },
        {"{{ 'x' if false }}{{ 'y' if false else 'z' }}",                                        "z"                                    },
        {"{{ not 1 or 2 }} {{ 0 and 1 }} {{ '' or 'd' }}",                                       "2 0 d"                                },
        {"{{ -1|abs }} {{ '-1'|int }}",                                                          "1 -1"                                 },
        {"{{ '\\n\\x41\\u00e9\\q'|length }}",                                                    "5"                                    },
        {"{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}",                  "1"                                    },
        {"{% set n = namespace(x=1) %}{% for i in [1] %}{% set n.x = 2 %}{% endfor %}{{ n.x }}",
         "2"                                                                                                                            },
        {"{% for i in 'ab' %}{{ loop.index }}{{ i }}{{ ', ' if not loop.last }}{% endfor %}",
         "1a, 2b"                                                                                                                       },
        {"{% for i in [] %}x{% else %}none{% endfor %}",                                         "none"                                 },
        {"{% for i in [1] %}{% continue %}{% else %}else{% endfor %}",                           "else"                                 },
        {"{% for i in [3, 4, 5] if i > 3 %}{{ loop.length }}{{ i }}{% break %}{% endfor %}",     "24"                                   },
        {"{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}",                         "a1"                                   },
        {"{% macro f(a, b='B') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(b=2, a=0) }}",
         "[1B][02]"                                                                                                                     },
        {"{% macro f() %}{{ x }}{% endmacro %}{% set x = 5 %}{{ f() }}",                         "5"                                    },
        {"{% set x | upper %}a{{ 1 }}{% endset %}{{ x }}",                                       "A1"                                   },
        {"{% generation %}g{% endgeneration %}{% with a = 1 %}{{ a }}{% endwith %}{{ a }}",      "g1"                                   },
        {"{% set g = [1]|select %}{{ g|list }}{{ g|list }}",                                     "[1][]"                                },
        {"{{ {'b': [1, 'é\"'], 'a': {}}|tojson }}",                                             "{\"b\": [1, \"é\\\"\"], \"a\": {}}"  },
        {"{{ {'b': 1}|tojson(indent=1) }}{{ 'é'|tojson(ensure_ascii=true) }}",
         "{\n \"b\": 1\n}\"\\u00e9\""                                                                                                   },
        {"{{ messages[0].role }}{{ messages[0]['content']|trim }}{{ messages[0].x }}",           "userHi"                               },
        {"{{ bos_token }}{{ eos_token }}{{ image_token }}{{ pad_token is defined }}",
         "<s></s><i>False"                                                                                                              },
        {"{{ tools is none }}{{ documents }}{{ add_generation_prompt }}",                        "TrueNoneTrue"                         },
        {"{{ messages|map(attribute='role')|join('-') }}",                                       "user"                                 },
        {"{{ messages|selectattr('role', 'equalto', 'x')|list|length }}",                        "0"                                    },
        {"{{ none|selectattr('a')|list }}{{ 0|reject|list }}{{ x|map('upper')|list }}",          "[][][]"                               },
        {"{{ false|rejectattr('a')|list }}{{ ''|map|list }}{{ none|select('x')|list }}",         "[][][]"                               },
        {"{{ ' a  b '.split() }}{{ 'a,b,c'.split(',', 1)[1] }}{{ 'xax'.strip('x') }}",
         "['a', 'b']b,ca"                                                                                                               },
        {"{{ 'a\\nb'|indent(2) }}",                                                              "a\n  b"                               },
        {"{{ 'é'|length }}{{ 'あい'[1] }}",                                                   "1い"                                 }
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[256];
        heft_error err;
        test_expect_status(render_in(ctx, rows[i].template, HELLO, NULL, text, &err), HEFT_OK, &err,
                           rows[i].template);
        assert_string_equal(text, rows[i].expected);
    }
}

static void what_is_not_known_is_refused_with_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *template;
        heft_status status;
        const char *item, *message;
    } rows[] = {
        {"\n\n{% include 'x' %}",               HEFT_UNSUPPORTED, "line 3", "at 'include'"      },
        {"{{ 1|frob }}",                        HEFT_UNSUPPORTED, "line 1", "filter 'frob'"     },
        {"{{ 1 is frob }}",                     HEFT_UNSUPPORTED, "line 1", "test 'frob'"       },
        {"a\n{{ 'x'.zfill(2) }}",               HEFT_UNSUPPORTED, "line 2", "method 'zfill'"    },
        {"{{ [].append(1) }}",                  HEFT_UNSUPPORTED, "line 1", "method 'append'"   },
        {"{{ messages.__class__ }}",            HEFT_UNSUPPORTED, "line 1", "'__class__'"       },
        {"{{ cycler }}",                        HEFT_UNSUPPORTED, "line 1", "'cycler'"          },
        {"{{ 'x'|safe }}",                      HEFT_UNSUPPORTED, "line 1", "filter 'safe'"     },
        {"{{ '\xC3\xA9'|upper }}",              HEFT_UNSUPPORTED, "line 1", "U+00E9"            },
        {"{{ 2 ** 3 }}",                        HEFT_UNSUPPORTED, "line 1", "operator"          },
        {"{{ 0x10 }}",                          HEFT_UNSUPPORTED, "line 1", "number '0x'"       },
        {"{{ f(*a) }}",                         HEFT_UNSUPPORTED, "line 1", "arguments"         },
        {"{{ strftime_now('%c') }}",            HEFT_UNSUPPORTED, "line 1", "'%c'"              },
        {"{{ cls_token }}",                     HEFT_UNSUPPORTED, "line 1", "'cls_token' is not"},
        {"{{ namespace() }}",                   HEFT_UNSUPPORTED, "line 1", "a namespace"       },
        {"{{ messages.x.y }}",                  HEFT_FORMAT,      "line 1", "'x' is undefined"  },
        {"{{ nothing + 'a' }}",                 HEFT_FORMAT,      "line 1", "'nothing'"         },
        {"{{ nothing() }}",                     HEFT_FORMAT,      "line 1", "'nothing'"         },
        {"{% for i in 3 %}{% endfor %}",        HEFT_FORMAT,      "line 1", "iterated"          },
        {"{% for a, b in ['x'] %}{% endfor %}", HEFT_FORMAT,      "line 1", "1 values for 2"    },
        {"{{ 1 // 0 }}",                        HEFT_FORMAT,      "line 1", "zero"              },
        {"{% if 1 %}",                          HEFT_FORMAT,      "line 1", "no end"            },
        {"{{ 'x }}",                            HEFT_FORMAT,      "line 1", "no end"            },
        {"{{ 1",                                HEFT_FORMAT,      "line 1", "no end"            },
        {"{# x",                                HEFT_FORMAT,      "line 1", "no end"            },
        {"{{ (1] }}",                           HEFT_FORMAT,      "line 1", "']'"               },
        {"{% endfor %}",                        HEFT_UNSUPPORTED, "line 1", "'endfor'"          },
        {"{% break %}",                         HEFT_FORMAT,      "line 1", "outside a loop"    },
        {"{{ }}",                               HEFT_FORMAT,      "line 1", "expression"        },
        {"\xff",                                HEFT_FORMAT,      "",       "not UTF-8"         },
        {"{{ raise_exception('no') }}",         HEFT_INVALID_ARG, "line 1", "messages: no"      }
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[256];
        heft_error err = {0};
        test_expect_status(render_in(ctx, rows[i].template, HELLO, NULL, text, &err),
                           rows[i].status, &err, rows[i].template);
        assert_string_equal(err.item, rows[i].item);
        if (!strstr(err.message, rows[i].message)) {
            fail_msg("'%s': no '%s' in '%s'", rows[i].template, rows[i].message, err.message);
        }
    }
}

/* A branch that is not taken may have anything that can be parsed. */
static void what_is_not_reached_is_not_refused(void **state)
{
    (void)state;
    char text[256];
    heft_error err;
    const char *template = "{% if tools %}{{ tools|frob }}{% endif %}x";
    test_expect_status(render_in(ctx, template, HELLO, NULL, text, &err), HEFT_OK, &err, template);
    assert_string_equal(text, "x");
}

static void messages_are_those_that_transformers_gives_a_template(void **state)
{
    (void)state;
    static const struct {
        const char *template, *messages, *expected; /* expected NULL: INVALID_ARG */
    } rows[] = {
        {"{{ messages }}",      "[{\"role\": \"a\", \"content\": null}]",    "[{'role': 'a'}]"},
        {"{{ messages }}",      "[{\"reasoning\": \"r\", \"role\": \"a\"}]",
         "[{'thinking': 'r', 'reasoning': 'r', 'role': 'a', 'reasoning_content': 'r'}]"       },
        {"{{ messages[0].n }}", "[{\"n\": 1e5}]",                            "100000.0"       },
        {"{{ messages[0].n }}", "[{\"n\": -0}]",                             "0"              },
        {"x",                   "[{}]",                                      "x"              },
        {"x",                   "[]",                                        NULL             },
        {"x",                   "{}",                                        NULL             },
        {"x",                   "[1]",                                       NULL             },
        {"x",                   "[[{}]]",                                    NULL             },
        {"x",                   "",                                          NULL             },
        {"x",                   "[{\"a\": \"\xff\"}]",                       NULL             }
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[256];
        heft_error err;
        heft_status status = render_in(ctx, rows[i].template, rows[i].messages, NULL, text, &err);
        test_expect_status(status, rows[i].expected ? HEFT_OK : HEFT_INVALID_ARG, &err,
                           rows[i].messages);
        if (rows[i].expected) {
            assert_string_equal(text, rows[i].expected);
        }
    }
}

static void options_are_the_prompt_variables_and_the_time(void **state)
{
    (void)state;
    const char *template = "{{ add_generation_prompt }} {{ strftime_now('%Y-%m-%d %B') }} {{ v }}";
    heft_chat_options options = HEFT_OPTIONS(heft_chat_options, .no_generation_prompt = true,
                                             .variables_json = "{\"v\": [1]}", .now = 1700050000);
    char text[256];
    heft_error err;
    test_expect_status(render_in(ctx, template, HELLO, &options, text, &err), HEFT_OK, &err, "");
    assert_string_equal(text, "False 2023-11-15 November [1]");
    static const char *const refused[] = {"[]", "{\"messages\": 1}", "{",
                                          "{\"add_generation_prompt\": 1}"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        options.variables_json = refused[i];
        test_expect_status(render_in(ctx, template, HELLO, &options, text, &err), HEFT_INVALID_ARG,
                           &err, refused[i]);
    }
    options.struct_size = 0;
    test_expect_status(render_in(ctx, template, HELLO, &options, text, &err), HEFT_INVALID_ARG,
                       &err, "size");
}

/* ---- folders ---------------------------------------------------------------------------------------------- */
static void put(const char *name, const char *text)
{
    test_write_file(folder, name, text, strlen(text));
}

static void expect_folder(const char *name, const char *expected)
{
    heft_chat *chat = NULL;
    char *text = NULL;
    size_t length = 0;
    heft_error err;
    heft_status status = heft_chat_open(ctx, folder, name, &chat, &err);
    test_expect_status(status, expected ? HEFT_OK : HEFT_NOT_FOUND, &err, name ? name : "default");
    if (expected) {
        status = heft_chat_render(chat, HELLO, sizeof HELLO - 1, NULL, &text, &length, &err);
        test_expect_status(status, HEFT_OK, &err, expected);
        assert_string_equal(text, expected);
        heft_chat_free_text(chat, text, length);
        heft_chat_close(chat);
    }
}

static void a_folder_has_its_template_in_one_of_its_files(void **state)
{
    (void)state;
    expect_folder(NULL, NULL);
    put("chat_template.json", "{\"chat_template\": \"json\"}");
    expect_folder(NULL, "json");
    put("tokenizer_config.json",
        "{\"bos_token\": \"<b>\", \"chat_template\": \"config {{ bos_token }}\"}");
    expect_folder(NULL, "config <b>");
    expect_folder("tool_use", NULL);
    put("tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"default\", \"template\": \"d{{ eos_token }}\"},"
        " {\"name\": \"tool_use\", \"template\": \"t\"}]}");
    put("special_tokens_map.json", "{\"eos_token\": {\"content\": \"<e>\"}}");
    expect_folder(NULL, "d<e>");
    expect_folder("tool_use", "t");
    put("chat_template.jinja", "jinja\n");
    expect_folder(NULL, "jinja");
    expect_folder("tool_use", NULL);
    expect_folder("../chat_template", NULL);
    assert_int_equal(unlink(at("chat_template.jinja")), 0);
    assert_int_equal(mkdir(at("additional_chat_templates"), 0700), 0);
    expect_folder(NULL, "d<e>");
    put("additional_chat_templates/rag.jinja", "rag");
    expect_folder(NULL, NULL);
    expect_folder("rag", "rag");
}

static void special_tokens_are_told(void **state)
{
    (void)state;
    heft_chat *chat = NULL;
    size_t length = 0;
    heft_error err;
    assert_int_equal(heft_chat_open_bytes(ctx, "t", "", 0, CONFIG, sizeof CONFIG - 1, &chat, &err),
                     HEFT_OK);
    assert_string_equal(heft_chat_token(chat, "eos_token", &length), "</s>");
    assert_int_equal(length, 4);
    assert_null(heft_chat_token(chat, "pad_token", &length));
    assert_null(heft_chat_token(chat, "cls_token", &length));
    heft_chat_close(chat);
}

/* ---- hostile templates ------------------------------------------------------------------------------------ */
static void templates_that_take_too_much_are_stopped(void **state)
{
    (void)state;
    static const char *const rows[] = {
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaa') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% "
        "endfor %}",
        "{% set n = namespace(x=[]) %}{% for a in range(9999) %}{% set n.x = [n.x] %}{% endfor "
        "%}{{ n.x }}",
        "{% set n = namespace(x=[]) %}{% for a in range(9999) %}{% set n.x = [n.x] %}{% endfor "
        "%}{{ n.x == n.x }}",
        "{% set n = namespace(x=[]) %}{% for a in range(9999) %}{% set n.x = [n.x] %}{% endfor "
        "%}{{ n.x|tojson }}",
        "{{ 'a' * 1000000000000 }}",
        "{{ range(1000000) }}",
        "{% for a in range(9999) %}{% set x = 'ab' * 9999 %}{{ x.replace('a', 'bbbbbbbb') }}{% "
        "endfor %}"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[256];
        heft_error err;
        test_expect_status(render_in(ctx, rows[i], HELLO, NULL, text, &err), HEFT_LIMIT, &err,
                           rows[i]);
    }
}

/* `open` and `close` around "1", many times. */
static void expect_too_deep(const char *before, const char *open, const char *close,
                            const char *after)
{
    const size_t count = 50000, each = strlen(open) + strlen(close);
    char *template = malloc(count * each + strlen(before) + strlen(after) + 2), *p = template,
         text[256];
    heft_error err;
    assert_non_null(template);
    p = stpcpy(p, before);
    for (size_t i = 0; i < count; i++) {
        p = stpcpy(p, open);
    }
    p = stpcpy(p, "1");
    for (size_t i = 0; i < count; i++) {
        p = stpcpy(p, close);
    }
    (void)stpcpy(p, after);
    test_expect_status(render_in(ctx, template, HELLO, NULL, text, &err), HEFT_LIMIT, &err, open);
    free(template);
}

static void templates_that_are_too_deep_are_refused(void **state)
{
    (void)state;
    expect_too_deep("{{ ", "(", ")", " }}");
    expect_too_deep("{{ ", "[", "]", " }}");
    expect_too_deep("{{ ", "-", "", " }}");
    expect_too_deep("{{ ", "not ", "", " }}");
    expect_too_deep("{{ ", "1 + ", "", " }}");
    expect_too_deep("{{ ", "", ".a", " }}");
    expect_too_deep("{{ ", "", "|d", " }}");
    expect_too_deep("{{ ", "", " if 1", " }}");
    expect_too_deep("{{ ", "1 if 1 else ", "", " }}");
    expect_too_deep("", "{% if 1 %}", "{% endif %}", "");
    expect_too_deep("", "{% for a in b %}", "{% endfor %}", "");
}

static void a_template_over_the_limit_is_refused(void **state)
{
    (void)state;
    const heft_limits limits = HEFT_OPTIONS(heft_limits, .chat_bytes = 1000);
    const heft_ctx_options options = HEFT_OPTIONS(heft_ctx_options, .limits = &limits);
    heft_ctx *small = heft_ctx_new(&options);
    static const char *const rows[] = {"{{ a }}{{ b }}{{ c }}{{ d }}{{ e }}{{ f }}{{ g }}",
                                       "{{ 'abc' * 400 }}"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[256];
        heft_error err;
        test_expect_status(render_in(small, rows[i], HELLO, NULL, text, &err), HEFT_LIMIT, &err,
                           rows[i]);
        assert_non_null(strstr(err.message, "chat_bytes"));
    }
    heft_ctx_free(small);
}

static heft_status open_and_render(heft_ctx *small, void *user, heft_error *err)
{
    char text[256];
    return render_in(small, user, HELLO, NULL, text, err);
}

static void memory_that_runs_out_is_an_error(void **state)
{
    (void)state;
    static char template[] = "{% macro f(a, b=2) %}{{ a ~ b }}{% endmacro %}{% set n = "
                             "namespace(x=1) %}{% for m in messages if m.role %}"
                             "{{ f(m.content|trim) }}{% set n.x = {'a': [m, loop.index], 'b': 'c' "
                             "'d'} %}{% endfor %}{{ n.x|tojson(indent=2) }}"
                             "{{ n.x }}{{ bos_token }}{{ 'a b'.split()|join('-')|upper }}{% set y "
                             "%}z{% endset %}{{ y[::-1] }}";
    test_oom_sweep(open_and_render, template);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_render_as_in_jinja),
        cmocka_unit_test(what_is_not_known_is_refused_with_its_line),
        cmocka_unit_test(what_is_not_reached_is_not_refused),
        cmocka_unit_test(messages_are_those_that_transformers_gives_a_template),
        cmocka_unit_test(options_are_the_prompt_variables_and_the_time),
        cmocka_unit_test(a_folder_has_its_template_in_one_of_its_files),
        cmocka_unit_test(special_tokens_are_told),
        cmocka_unit_test(templates_that_take_too_much_are_stopped),
        cmocka_unit_test(templates_that_are_too_deep_are_refused),
        cmocka_unit_test(a_template_over_the_limit_is_refused),
        cmocka_unit_test(memory_that_runs_out_is_an_error),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
