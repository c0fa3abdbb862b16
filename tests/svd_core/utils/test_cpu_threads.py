"""Functions that run at once: their threads, their order, their errors."""

import pytest
import torch
from svd_stages.svd_core.utils.cpu_threads import divided_threads, run_in_order


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_each_part_has_its_share_of_the_threads_and_results_are_in_order():
    def part(index: int) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        return torch.tensor([index, torch.get_num_threads()])

    with torch.inference_mode(), divided_threads(2) as run_all:
        results = run_all([lambda: part(0), lambda: part(1)])
    assert torch.stack(results).tolist() == [[0, 2], [1, 2]]
    assert torch.get_num_threads() == 4


def test_one_function_alone_has_all_threads():
    def count() -> torch.Tensor:
        return torch.tensor(torch.get_num_threads())

    with divided_threads(2) as run_all:
        counts = [[int(each) for each in run_all([count] * parts)] for parts in (1, 2, 1, 2)]
    assert counts == [[4], [2, 2], [4], [2, 2]]


def test_parts_compute_gradients_as_their_caller_does():
    with torch.inference_mode(False), torch.no_grad(), divided_threads(2) as run_all:
        results = run_all([lambda: torch.tensor(torch.is_grad_enabled())] * 2)
    assert not any(results)


@pytest.mark.parametrize("parts", [1, 5])
def test_one_part_and_too_many_parts_run_in_order(parts):
    with divided_threads(parts) as run_all:
        assert run_all is run_in_order


def test_an_error_of_a_part_is_raised_and_the_threads_are_back():
    def fail() -> torch.Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError), divided_threads(2) as run_all:
        run_all([fail, fail])
    assert torch.get_num_threads() == 4
