/* The internal header of the text layer.
 *
 * What it does: reads a tokenizer.json, turns text into the ids that a model takes, and ids into
 * text; renders messages by a chat template.
 * May include: base, io (opening the file only), json.
 * Rules: a tokenizer does what `tokenizers` does with its file, id by id, or is refused, naming
 * what is not known; the file and the text are both hostile: nothing takes time or memory beyond
 * proportion to them, and a regular expression's steps are counted; a tokenizer does not change
 * after it is opened, so any number of threads may use it. */
#ifndef HEFT__TEXT_TEXT_H
#define HEFT__TEXT_TEXT_H

#include "base/base.h"

#include <heft/text.h>

/* Whether this build has regular expressions (libonig), and categories and normal forms (utf8proc). */
bool heft__text_has_regex(void);
bool heft__text_has_unicode(void);

#endif
