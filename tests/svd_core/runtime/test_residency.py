"""Modules that stay on a GPU: a later stage finds them there, and they leave when another one needs the memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from error_checks import check_facts
from svd_stages.svd_core.runtime import residency, runtime
from svd_stages.svd_core.runtime.runtime import LocalRuntime

CUDA = torch.device("cuda")
GIB = 2**30


@dataclass(eq=False)
class Module:
    """A module of one weight. Counts its moves."""

    nbytes: int
    place: torch.device = field(default_factory=lambda: torch.device("cpu"))
    moves: list[str] = field(default_factory=list)

    def parameters(self):
        return [SimpleNamespace(nbytes=self.nbytes, device=self.place)]

    def to(self, place):
        place = torch.device(place)
        if place.type != self.place.type:
            self.moves.append(place.type)
        self.place = place


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 24 GiB that holds the modules of the list that this returns."""
    modules: list[Module] = []
    fractions: list[float] = []

    def limit(fraction, device):
        assert isinstance(device, int)  # torch refuses a device without a number
        fractions.append(fraction)

    def used(device=None):
        return sum(each.nbytes for each in modules if each.place.type == "cuda")

    monkeypatch.setattr(LocalRuntime, "device", lambda self: CUDA)
    monkeypatch.setattr(residency, "_idle", [])
    fakes = {
        "memory_allocated": used,
        "memory_reserved": used,
        "mem_get_info": lambda device: (24 * GIB - used(), 24 * GIB),
        "get_device_properties": lambda device: SimpleNamespace(total_memory=24 * GIB),
        "set_per_process_memory_fraction": limit,
        "current_device": lambda: 0,
        "empty_cache": lambda: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return SimpleNamespace(modules=modules, fractions=fractions)


def components(gpu, *sizes: int) -> list[SimpleNamespace]:
    gpu.modules += [Module(size * GIB) for size in sizes]
    return [SimpleNamespace(module=module) for module in gpu.modules[-len(sizes) :]]


def use(runtime: LocalRuntime, component, need: int = 0, after="default") -> None:
    with runtime.on_device(component, need * GIB, after) as device:
        assert device == CUDA and component.module.place == CUDA


def test_components_that_fit_together_are_moved_once(gpu):
    host, parts = LocalRuntime(), components(gpu, 1, 3, 1)
    for _ in range(3):
        for part in parts:
            use(host, part, need=10)
    assert [part.module.moves for part in parts] == [["cuda"]] * 3


def test_the_least_recently_used_leaves_when_the_memory_is_needed(gpu):
    host, (first, second, third) = LocalRuntime(), components(gpu, 8, 8, 8)
    for part in (first, second, first):
        use(host, part)
    use(host, third, need=2)
    assert [part.module.place.type for part in (first, second, third)] == ["cuda", "cpu", "cuda"]


def test_a_component_in_use_never_leaves(gpu):
    host, (outer, inner) = LocalRuntime(), components(gpu, 16, 16)
    with host.on_device(outer):
        use(host, inner)
        assert outer.module.place == CUDA


def test_a_component_leaves_after_an_error_and_where_the_caller_wants_it(gpu):
    host, (part,) = LocalRuntime(), components(gpu, 1)
    use(host, part, after="offload")
    assert part.module.moves == ["cuda", "cpu"]
    with pytest.raises(RuntimeError), host.on_device(part):
        raise RuntimeError
    assert part.module.moves == ["cuda", "cpu"] * 2 and not residency.is_idle(part.module)


def test_what_others_can_leave_is_counted_as_capacity(gpu):
    host, (small, large) = LocalRuntime(), components(gpu, 1, 3)
    everything = 24 * GIB - runtime.WORKSPACE_BYTES
    assert host.capacity(small) == everything
    use(host, small)
    use(host, large)
    assert host.capacity(small) == host.capacity(large) == everything
    assert host.free_memory(CUDA) == everything - 4 * GIB


def test_streamed_weights_and_a_shortage_send_others_away(gpu):
    host, (small, large) = LocalRuntime(), components(gpu, 1, 20)
    use(host, small)
    use(host, large)
    with host.reserve_memory(small, 10 * GIB):
        assert [part.module.place.type for part in (small, large)] == ["cpu", "cpu"]
    use(host, small)
    host.release()
    assert small.module.place.type == "cpu"


def test_a_limit_is_enforced_and_leaves_the_reserve_free_and_the_plan_says_both(gpu, caplog):
    caplog.set_level("INFO")
    host, (part,) = LocalRuntime(vram=6 * GIB), components(gpu, 1)
    use(host, part)
    use(LocalRuntime(), part)
    assert gpu.fractions == [0.25, 1.0]
    check_facts(caplog.records[0].getMessage(), "6.0 GiB", "24.0 GiB", "512 MiB")
    assert host.free_memory(CUDA) == 5 * GIB - runtime.WORKSPACE_BYTES


def test_modules_of_another_gpu_are_not_counted():
    one, other = Module(GIB, torch.device("cuda:1")), torch.device("cuda:0")
    assert residency.weight_bytes(one, torch.device("cuda:1")) == residency.weight_bytes(one, CUDA) == GIB
    assert residency.weight_bytes(one, other) == residency.weight_bytes(one, torch.device("mps")) == 0


def test_other_devices_keep_nothing_unless_it_is_asked_for(gpu, monkeypatch):
    """Main memory is shared with an MPS device: weights on both take it twice."""
    monkeypatch.setattr(LocalRuntime, "device", lambda self: torch.device("mps"))
    host, (part,) = LocalRuntime(), components(gpu, 1)
    for after, left in (("default", "cpu"), ("keep", "mps"), ("offload", "cpu")):
        with host.on_device(part, after=after):
            assert part.module.place.type == "mps"
        assert part.module.place.type == left
    assert not residency._idle


def test_a_module_that_is_gone_is_forgotten(gpu):
    (part,) = components(gpu, 1)
    use(LocalRuntime(), part)
    gpu.modules.clear()
    del part
    assert residency.idle_bytes(CUDA) == 0
