# ruff: noqa
"""A stand-in for libcudart on a machine without a GPU: `ctypes.CDLL` of any libcudart gives it once `install` ran.

Device memory is ordinary memory with its sizes written down, so copies out of bounds and foreign addresses are errors
(1, cudaErrorInvalidValue), and too much of it is error 2. Python 3.6, standard library only.
"""

import ctypes
import os
import time

MIB = 1 << 20
TOTAL = 4096 * MIB  # of a Jetson Nano


class FakeCudart:
    def __init__(self):
        self.limit = int(os.environ.get("FAKE_CUDART_FREE_MIB", "3000")) * MIB
        self.blocks = {}  # address -> buffer
        self.events = {}
        self.streams = 0
        for name in dir(type(self)):
            if name.startswith("cuda"):  # plain functions, which take argtypes and restype as those of ctypes do
                setattr(self, name, self._plain(getattr(self, name)))

    @staticmethod
    def _plain(method):
        return lambda *arguments: method(*arguments)

    def _free(self):
        return self.limit - sum(map(len, self.blocks.values()))

    def _held(self, address, size):
        return any(start <= address and address + size <= start + len(b) for start, b in self.blocks.items())

    def cudaMalloc(self, out, size):
        if size > self._free():
            return 2
        block = ctypes.create_string_buffer(size)
        out._obj.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block
        return 0

    def cudaFree(self, address):
        return 0 if self.blocks.pop(address, None) is not None else 1

    def cudaMemcpyAsync(self, to, of, size, kind, stream):
        device = {1: to, 2: of}.get(kind)
        if device is None or not self._held(device, size) or stream > self.streams:
            return 1
        ctypes.memmove(to, of, size)
        return 0

    def cudaMemGetInfo(self, free, total):
        free._obj.value, total._obj.value = self._free(), TOTAL
        return 0

    def cudaStreamCreate(self, out):
        self.streams += 1
        out._obj.value = self.streams
        return 0

    def cudaStreamSynchronize(self, stream):
        return 0 if stream <= self.streams else 1

    def cudaEventCreate(self, out):
        out._obj.value = len(self.events) + 1
        self.events[len(self.events) + 1] = None
        return 0

    def cudaEventRecord(self, event, stream):
        if event not in self.events:
            return 1
        self.events[event] = time.perf_counter()
        return 0

    def cudaEventElapsedTime(self, out, first, last):
        out._obj.value = 1000.0 * (self.events[last] - self.events[first])
        return 0

    def cudaRuntimeGetVersion(self, out):
        out._obj.value = 10020
        return 0

    def cudaDriverGetVersion(self, out):
        out._obj.value = 10020
        return 0

    def cudaDeviceGetAttribute(self, out, attribute, device):
        out._obj.value = {75: 5, 76: 3}[attribute]  # compute capability, major and minor
        return 0

    def cudaGetErrorString(self, code):
        return {1: b"invalid argument", 2: b"out of memory"}[code]


def install():
    """Let `ctypes.CDLL` give the stand-in for every libcudart, always the same one."""
    real, fake = ctypes.CDLL, FakeCudart()

    def load(name, *arguments, **further):
        return fake if "cudart" in str(name) else real(name, *arguments, **further)

    ctypes.CDLL = load
