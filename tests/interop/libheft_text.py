"""Tokenizers of the C library through ctypes."""

import os
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_void_p, string_at

from libheft import Error, HeftError, _c, _check, _ctx_free, _ctx_new, _declare

__all__ = ["HeftError", "Stream", "Tokenizer"]

_open = _declare(_c, "heft_tokenizer_open", c_int, c_void_p, c_char_p, POINTER(c_void_p), POINTER(Error))
_open_bytes = _declare(_c, "heft_tokenizer_open_bytes", c_int, c_void_p, c_char_p, c_char_p, c_size_t, POINTER(c_void_p), POINTER(Error))
_close = _declare(_c, "heft_tokenizer_close", None, c_void_p)
_encode = _declare(_c, "heft_tokenizer_encode", c_int, c_void_p, c_char_p, c_size_t, c_bool, POINTER(POINTER(c_uint32)), POINTER(c_size_t), POINTER(Error))
_free_ids = _declare(_c, "heft_tokenizer_free_ids", None, c_void_p, POINTER(c_uint32), c_size_t)
_decode = _declare(_c, "heft_tokenizer_decode", c_int, c_void_p, POINTER(c_uint32), c_size_t, c_bool, POINTER(c_void_p), POINTER(c_size_t), POINTER(Error))
_free_text = _declare(_c, "heft_tokenizer_free_text", None, c_void_p, c_void_p, c_size_t)
_check_config = _declare(_c, "heft_tokenizer_check_config", c_int, c_void_p, c_char_p, POINTER(c_void_p), POINTER(c_size_t), POINTER(Error))
_size = _declare(_c, "heft_tokenizer_size", c_size_t, c_void_p)
_token = _declare(_c, "heft_tokenizer_token", c_void_p, c_void_p, c_uint32, POINTER(c_size_t))
_stream_new = _declare(_c, "heft_text_stream_new", c_int, c_void_p, c_bool, POINTER(c_void_p), POINTER(Error))
_stream_add = _declare(_c, "heft_text_stream_add", c_int, c_void_p, c_uint32, POINTER(c_void_p), POINTER(c_size_t), POINTER(Error))
_stream_finish = _declare(_c, "heft_text_stream_finish", c_int, c_void_p, POINTER(c_void_p), POINTER(c_size_t), POINTER(Error))
_stream_free = _declare(_c, "heft_text_stream_free", None, c_void_p)


class Tokenizer:
    """Of a path, or of the text of a tokenizer.json."""

    def __init__(self, path=None, json=None):
        err = Error()
        self._tokenizer, self._ctx = c_void_p(), c_void_p(_ctx_new(None))
        if path is not None:
            status = _open(self._ctx, os.fsencode(path), byref(self._tokenizer), byref(err))
        else:
            data = json.encode()
            status = _open_bytes(self._ctx, b"tokenizer.json", data, len(data), byref(self._tokenizer), byref(err))
        _check(status, err)

    def __del__(self):
        _close(self._tokenizer)
        _ctx_free(self._ctx)

    def encode(self, text, add_special=True):
        data = text.encode() if isinstance(text, str) else text
        ids, count, err = POINTER(c_uint32)(), c_size_t(), Error()
        _check(_encode(self._tokenizer, data, len(data), add_special, byref(ids), byref(count), byref(err)), err)
        result = ids[: count.value]
        _free_ids(self._tokenizer, ids, count)
        return result

    def decode(self, ids, skip_special=True):
        text, length, err = c_void_p(), c_size_t(), Error()
        array = (c_uint32 * len(ids))(*ids)
        _check(_decode(self._tokenizer, array, len(ids), skip_special, byref(text), byref(length), byref(err)), err)
        result = string_at(text, length.value).decode()
        _free_text(self._tokenizer, text, length)
        return result

    def check_config(self, folder):
        text, length, err = c_void_p(), c_size_t(), Error()
        _check(_check_config(self._tokenizer, os.fsencode(folder), byref(text), byref(length), byref(err)), err)
        result = string_at(text, length.value).decode()
        _free_text(self._tokenizer, text, length)
        return result

    def size(self):
        return _size(self._tokenizer)

    def token(self, number):
        length = c_size_t()
        text = _token(self._tokenizer, number, byref(length))
        return None if text is None else string_at(text, length.value).decode()


class Stream:
    def __init__(self, tokenizer, skip_special=True):
        err = Error()
        self._tokenizer, self._stream = tokenizer, c_void_p()
        _check(_stream_new(tokenizer._tokenizer, skip_special, byref(self._stream), byref(err)), err)

    def __del__(self):
        _stream_free(self._stream)

    def add(self, number):
        text, length, err = c_void_p(), c_size_t(), Error()
        _check(_stream_add(self._stream, number, byref(text), byref(length), byref(err)), err)
        return string_at(text, length.value).decode()

    def finish(self):
        text, length, err = c_void_p(), c_size_t(), Error()
        _check(_stream_finish(self._stream, byref(text), byref(length), byref(err)), err)
        return string_at(text, length.value).decode()
