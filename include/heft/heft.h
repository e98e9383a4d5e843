/* heft/heft.h - includes all public headers of heft, except dlpack.h. */
#ifndef HEFT_HEFT_H
#define HEFT_HEFT_H

#include <heft/base.h>
#include <heft/chat.h>
#include <heft/checkpoint.h>
#include <heft/load.h>
#include <heft/model.h>
#include <heft/place.h>
#include <heft/run.h>
#include <heft/session.h>
#include <heft/shared.h>
#include <heft/source.h>
#include <heft/tensor.h>
#include <heft/text.h>
#include <heft/value.h>
#include <heft/writer.h>

#endif
