"""The C library through ctypes, as far as these tests need it: checkpoints, tensors and their DLPack form, casts."""

import ctypes
import os
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

LIBRARY = Path(os.environ.get("HEFT_LIBRARY") or Path(os.environ.get("HEFT", "heft")).parent / "libheft.so")
WRITABLE, MAPPED, SHARED = 1, 2, 4
NAME = b"dltensor_versioned"


class Error(Structure):
    _fields_ = [("status", c_int), ("sys_errno", c_int), ("offset", c_uint64), ("path", c_char * 512), ("item", c_char * 256), ("message", c_char * 512)]


class CTensor(Structure):
    _fields_ = [
        ("dtype", c_int),
        ("rank", c_uint32),
        ("shape", POINTER(c_uint64)),
        ("strides", POINTER(c_int64)),
        ("data", c_void_p),
        ("size_bytes", c_uint64),
        ("offset_bytes", c_uint64),
        ("alignment", c_uint32),
        ("flags", c_uint32),
        ("device", c_int32),
        ("storage", c_void_p),
    ]


def _declare(library, name, result, *arguments):
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


_c = ctypes.CDLL(str(LIBRARY))
_ctx_new = _declare(_c, "heft_ctx_new", c_void_p, c_void_p)
_ctx_free = _declare(_c, "heft_ctx_free", None, c_void_p)
_open = _declare(_c, "heft_checkpoint_open", c_int, c_void_p, c_char_p, c_void_p, POINTER(c_void_p), POINTER(Error))
_close = _declare(_c, "heft_checkpoint_close", None, c_void_p)
_find = _declare(_c, "heft_checkpoint_find", c_size_t, c_void_p, c_char_p)
_map = _declare(_c, "heft_checkpoint_map", c_int, c_void_p, c_size_t, c_int, POINTER(POINTER(CTensor)), POINTER(Error))
_free = _declare(_c, "heft_tensor_free", None, POINTER(CTensor))
_to_dlpack = _declare(_c, "heft_tensor_to_dlpack", c_int, POINTER(CTensor), POINTER(c_void_p), POINTER(Error))
_parse = _declare(_c, "heft_dtype_parse", c_int, c_char_p, POINTER(c_int), POINTER(Error))
_cast = _declare(_c, "heft_cast", c_int, c_int, c_void_p, c_int, c_void_p, c_size_t, POINTER(Error))
_status_name = _declare(_c, "heft_status_name", c_char_p, c_int)
_is_valid = _declare(ctypes.pythonapi, "PyCapsule_IsValid", c_int, ctypes.py_object, c_char_p)
_capsule = _declare(ctypes.pythonapi, "PyCapsule_New", ctypes.py_object, c_void_p, c_char_p, c_void_p)


class Managed(Structure):
    """The head of a DLManagedTensorVersioned, which stays as it is in every version."""

    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("manager_ctx", c_void_p), ("deleter", ctypes.CFUNCTYPE(None, c_void_p)), ("flags", c_uint64)]


class HeftError(RuntimeError):
    pass


def _check(status, err):
    if status:
        raise HeftError(f"{_status_name(status).decode()}: {err.message.decode()}")


def cast(tensor, dtype):
    """A contiguous tensor of PyTorch as another dtype, by its name."""
    import torch

    numbers = []
    for name in (str(tensor.dtype), dtype):
        number, err = c_int(), Error()
        _check(_parse(name.encode(), byref(number), byref(err)), err)
        numbers.append(number)
    result = torch.empty(tensor.shape, dtype=getattr(torch, dtype))
    err = Error()
    _check(_cast(numbers[1], result.data_ptr(), numbers[0], tensor.data_ptr(), tensor.numel(), byref(err)), err)
    return result


class Tensor:
    """A tensor of heft; another library takes it by __dlpack__."""

    def __init__(self, pointer):
        self._pointer = pointer
        self._capsules = []
        self.flags = pointer.contents.flags
        self.data = pointer.contents.data
        self.alignment = pointer.contents.alignment

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        assert max_version is None or max_version >= (1, 0)
        managed, err = c_void_p(), Error()
        _check(_to_dlpack(self._pointer, byref(managed), byref(err)), err)
        capsule = _capsule(managed, NAME, None)
        self._capsules.append((capsule, managed))
        return capsule  # whoever takes it renames it, and calls the deleter when done

    def free(self):
        """Free the tensor, and what a library refused to take."""
        for capsule, managed in self._capsules:
            if _is_valid(capsule, NAME):
                Managed.from_address(managed.value).deleter(managed)
        self._capsules.clear()
        _free(self._pointer)
        self._pointer = None


class Checkpoint:
    def __init__(self, path):
        err = Error()
        self._ctx, self._checkpoint = c_void_p(_ctx_new(None)), c_void_p()
        _check(_open(self._ctx, os.fsencode(path), None, byref(self._checkpoint), byref(err)), err)

    def map(self, name, private=False):
        tensor, err = POINTER(CTensor)(), Error()
        number = _find(self._checkpoint, name.encode())
        assert number != c_size_t(-1).value, name
        _check(_map(self._checkpoint, number, private, byref(tensor), byref(err)), err)
        return Tensor(tensor)

    def close(self):
        """Let go of the checkpoint and of the context."""
        _close(self._checkpoint)
        _ctx_free(self._ctx)
