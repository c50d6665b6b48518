"""Text of a program that trains under FSDP on a CPU."""

# accelerate shards on GPUs only; what it calls can do so without.
SHARDED = """
import json, os, sys, time
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

made = AcceleratorState.__init__
def init(self, *args, **options):
    made(self, *args, **options)
    self.fsdp_plugin = getattr(self, "fsdp_plugin", None) or FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=True, cpu_ram_efficient_loading=False)
    self.distributed_type = DistributedType.FSDP
AcceleratorState.__init__ = init
"""
