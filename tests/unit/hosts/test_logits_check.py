"""Non-finite logits are detected without waiting for the device, and reported with their requests."""

from types import SimpleNamespace

import pytest

from holdfast.core.errors import NonFiniteLogits
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from holdfast.hosts.vllm.injection import ArmedFaults, arm_logits
from holdfast.hosts.vllm.worker.logits_check import NonFiniteLogitsDetector, flag_rows

torch = pytest.importorskip("torch", reason="torch is not installed here")
NAN, INF = float("nan"), float("inf")


class Runner:
    """A model and the two calls of a step, as in the host's runners."""

    def __init__(self, rows=3, asynchronous=False):
        self.logits, self.asynchronous = torch.zeros(rows, 4), asynchronous
        self.model = SimpleNamespace(compute_logits=lambda hidden: self.logits)
        self.req_ids = ["a", "b", "c"]

    def execute_model(self, scheduler_output):
        self.model.compute_logits("sampled from")

    def sample_tokens(self, grammar_output):
        self.model.compute_logits("of a prompt")
        output = SimpleNamespace(req_ids=self.req_ids)
        return SimpleNamespace(get_output=lambda: output) if self.asynchronous else output


def checked(runner):
    check = NonFiniteLogitsDetector(runner)
    execute = check.checked("execute_model", runner.execute_model)
    sample = check.checked("sample_tokens", runner.sample_tokens)

    def step():
        execute("order")
        return sample(None)

    return step


@pytest.mark.parametrize(
    ("row", "flagged"),
    [
        ([0.0, 1.0], False),
        ([-INF, 1.0], False),
        ([3e38, -3e38], False),
        ([NAN, 1.0], True),
        ([INF, 1.0], True),
        ([NAN, INF], True),
        ([-INF, -INF], True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_flagged_with_nan_or_inf_or_with_nothing_but_minus_inf(row, flagged, dtype):
    assert flag_rows(torch.tensor([[0.0, 0.0], row], dtype=dtype)).tolist() == [False, flagged]


def test_finite_logits_pass():
    assert checked(Runner())().req_ids == ["a", "b", "c"]


def test_the_requests_of_flagged_rows_are_named():
    runner = Runner()
    runner.logits[1, 2] = NAN
    with pytest.raises(NonFiniteLogits) as raised:
        checked(runner)()
    assert raised.value.request_ids == ("b",)
    assert raised.value.phase == Phase.SAMPLE_END
    assert str(raised.value) == "NaN or infinite logits of 1 of 3 requests"


def test_all_requests_are_named_where_rows_are_not_requests():
    runner = Runner(rows=5)
    runner.logits[4, 0] = INF
    with pytest.raises(NonFiniteLogits) as raised:
        checked(runner)()
    assert raised.value.request_ids == ("a", "b", "c")


def test_all_requests_are_named_for_a_part_of_the_vocabulary():
    runner = Runner()
    runner.logits[1, 2] = NAN
    runner.model = SimpleNamespace(compute_logits_local=runner.model.compute_logits)
    runner.execute_model = lambda order: runner.model.compute_logits_local("sampled from")
    runner.sample_tokens = lambda grammar: SimpleNamespace(req_ids=runner.req_ids)
    with pytest.raises(NonFiniteLogits) as raised:
        checked(runner)()
    assert raised.value.request_ids == ("a", "b", "c")


def test_an_asynchronous_output_is_checked_where_it_is_computed_and_not_before():
    runner = Runner(asynchronous=True)
    step = checked(runner)
    runner.logits[0, 0] = NAN
    flawed = step()
    runner.logits = torch.zeros(3, 4)
    good = step()
    assert good.get_output().req_ids == ["a", "b", "c"]
    with pytest.raises(NonFiniteLogits):
        flawed.get_output()


def test_logits_of_prompts_are_not_checked():
    runner = Runner()
    check = NonFiniteLogitsDetector(runner)
    check.checked("execute_model", runner.execute_model)("order")
    runner.logits = torch.full((3, 4), NAN)
    assert check.checked("sample_tokens", runner.sample_tokens)(None)


def test_a_rank_without_logits_has_nothing_to_check():
    runner = Runner()
    runner.logits = None
    assert checked(runner)()


def test_a_step_without_logits_is_not_judged_by_the_step_before():
    runner = Runner()
    check = NonFiniteLogitsDetector(runner)
    runner.logits[0, 0] = NAN
    check.checked("execute_model", runner.execute_model)("order")
    check.checked("execute_model", lambda order: None)("order")
    assert check.checked("sample_tokens", lambda grammar: SimpleNamespace(req_ids=[]))(None)


def test_further_methods_and_a_model_without_logits_stay_unchanged():
    def step():
        pass

    check = NonFiniteLogitsDetector(SimpleNamespace(model=SimpleNamespace()))
    assert check.checked("execute_dummy_batch", step) is step


# ---- injecting NaN


def nan(**about):
    return InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.NAN, **about)


@pytest.mark.parametrize(
    ("request_index", "flawed"),
    [(1, [True, False, False]), (3, [False, False, True]), (9, [False, False, True]), (0, [True, True, True])],
)
def test_nan_is_injected_for_one_request_or_all_in_one_step(request_index, flawed):
    runner, faults = Runner(), ArmedFaults()
    arm_logits(faults, runner)
    faults.arm(nan(after_steps=1, request_index=request_index))
    computed = []
    for _ in range(3):
        runner.logits = torch.zeros(3, 4)
        computed.append(runner.model.compute_logits("hidden").isnan().any(dim=-1).tolist())
    assert computed == [[False] * 3, flawed, [False] * 3]


def test_an_armed_nan_raises_nowhere():
    faults = ArmedFaults()
    faults.arm(nan())
    faults.reach(Phase.FORWARD)
    assert faults.due_for_logits()


def test_nan_can_be_armed_for_the_forward_pass_only():
    with pytest.raises(ValueError, match="nan is of the phase forward"):
        InjectionSpec(phase=Phase.STEP_END, kind=FaultKind.NAN)
