"""Chat templates of the C library through ctypes."""

import json
import os
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p, sizeof, string_at

from libheft import Error, HeftError, _c, _check, _ctx_free, _ctx_new, _declare

__all__ = ["Chat", "HeftError"]


class Options(Structure):
    _fields_ = [("struct_size", c_size_t), ("no_generation_prompt", c_bool), ("variables_json", c_char_p), ("now", c_int64)]


_open = _declare(_c, "heft_chat_open", c_int, c_void_p, c_char_p, c_char_p, POINTER(c_void_p), POINTER(Error))
_open_bytes = _declare(_c, "heft_chat_open_bytes", c_int, c_void_p, c_char_p, c_char_p, c_size_t, c_char_p, c_size_t, POINTER(c_void_p), POINTER(Error))
_close = _declare(_c, "heft_chat_close", None, c_void_p)
_render = _declare(_c, "heft_chat_render", c_int, c_void_p, c_char_p, c_size_t, POINTER(Options), POINTER(c_void_p), POINTER(c_size_t), POINTER(Error))
_free_text = _declare(_c, "heft_chat_free_text", None, c_void_p, c_void_p, c_size_t)


class Chat:
    """Of a folder, or of the text of a template and of the members of a tokenizer_config.json."""

    def __init__(self, path=None, name=None, template=None, config=None):
        err = Error()
        self._chat, self._ctx = c_void_p(), c_void_p(_ctx_new(None))
        if path is not None:
            status = _open(self._ctx, os.fsencode(path), name and name.encode(), byref(self._chat), byref(err))
        else:
            text, config = template.encode(), json.dumps(config or {"tokenizer_class": "TokenizersBackend"}).encode()
            status = _open_bytes(self._ctx, b"template", text, len(text), config, len(config), byref(self._chat), byref(err))
        _check(status, err)

    def __del__(self):
        _close(self._chat)
        _ctx_free(self._ctx)

    def render(self, messages, add_generation_prompt=True, now=0, **variables):
        text, length, err = c_void_p(), c_size_t(), Error()
        data = json.dumps(messages).encode()
        options = Options(sizeof(Options), not add_generation_prompt, json.dumps(variables).encode() if variables else None, now)
        _check(_render(self._chat, data, len(data), byref(options), byref(text), byref(length), byref(err)), err)
        result = string_at(text, length.value).decode()
        _free_text(self._chat, text, length)
        return result
