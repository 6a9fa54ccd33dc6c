"""The update in shares: any number of learners and any split in micro-batches is one gradient; roles step apart."""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from small import SMALL_PPO, models, spec
from torch.utils._python_dispatch import TorchDispatchMode

from distrl.rlhf.recipes import GRPO, ResponseRecipe
from distrl.rlhf.role_spec import ROLES
from distrl.rlhf.roles import RoleWorker
from distrl.updates.protocol import Rates
from distrl.updates.shares import LARGEST, Share, SharedUpdate, Texts, joined, node, tree_sum
from distrl.updates.torch import TorchUpdate

WHOLE = replace(SMALL_PPO, max_grad_norm=None)


def opinions(worker: RoleWorker) -> dict[str, Any]:
    written = worker.write(0)
    said = {
        "written": written,
        "reference": worker.reference_log_probs(written),
        "reward": worker.scores(written),
    }
    if worker.spec.recipe.trains_value:
        said["critic"] = worker.values(written)
    return said


def begun(recipe: ResponseRecipe = WHOLE, responses: int = 16, **changed: Any) -> RoleWorker:
    """A worker of all roles between the first and the last minibatch."""
    worker = RoleWorker(spec(recipe, num_prompts=responses // recipe.group_size, **changed), ROLES, models())
    begin(worker, opinions(worker))
    return worker


def begin(worker: RoleWorker, said: dict[str, Any]) -> None:
    worker.begin(0.1, 0.1, tuple((name, 1) for name in said), *said.values())


def update_of(worker: RoleWorker) -> tuple[SharedUpdate, Texts, Rates]:
    assert worker.learner is not None
    task = worker.learner.task
    return cast(SharedUpdate, worker.learner.optimisation), task.batch, task.rates


def shared(worker: RoleWorker, index: Any, learners: int) -> Share:
    update, batch, rates = update_of(worker)
    return joined([update.gradient(batch, index, rates, share, learners) for share in range(learners)])


def assert_same_trees(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same_trees(one[name], other[name])
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("learners", [1, 2, 4, 8])
@pytest.mark.parametrize("count", range(1, 34))
def test_learners_take_every_piece_once_in_the_order_of_the_one_tree(count: int, learners: int) -> None:
    nodes = [node(count, share, learners) for share in range(learners)]
    assert [piece for pieces in nodes for piece in pieces] == list(range(count))
    if learners == 1:
        return

    def sums(pieces: range) -> str:
        return tree_sum(pieces, str, "({}+{})".format)

    some = [sums(pieces) for pieces in nodes if len(pieces)]
    assert tree_sum(range(len(some)), lambda i: some[i], "({}+{})".format) == sums(range(count))


def test_a_number_of_learners_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="1, 2, 4, 8, ..., got 3"):
        node(8, 0, 3)


def test_any_number_of_learners_has_the_same_gradient_to_the_bit_also_more_of_them_than_pieces() -> None:
    worker = begun(micro_batch=1)
    for count in (1, 3, 5, 8):  # every count by its tree above
        index = np.arange(16)[::-1][:count].copy()
        alone = shared(worker, index, 1)
        assert set(alone.gradients) == {"actor", "critic"}
        for learners in (2, 4, 8):
            several = shared(worker, index, learners)
            assert several.names == alone.names
            assert several.metrics.tobytes() == alone.metrics.tobytes()
            for name, flat in alone.gradients.items():
                assert np.any(flat) and several.gradients[name].tobytes() == flat.tobytes(), (
                    count,
                    learners,
                    name,
                )


@pytest.mark.parametrize("recipe", [WHOLE, replace(GRPO, max_response=6, group_size=4, max_grad_norm=None)])
def test_the_gradient_is_the_same_for_any_micro_batch(recipe: ResponseRecipe) -> None:
    worker = begun(recipe)
    update, _, _ = update_of(worker)
    index = np.random.default_rng(0).permutation(16)[:13]
    update.micro_batch = None
    whole = shared(worker, index, 1)
    for size in (1, 2, 3, 4, 5, 8, 12, 13, 64):
        update.micro_batch = size
        split = shared(worker, index, 1)
        np.testing.assert_allclose(split.metrics, whole.metrics, rtol=1e-5, atol=1e-6)
        for name, flat in whole.gradients.items():
            # against the longest entry: those near 0 are differences of larger ones
            assert np.abs(split.gradients[name] - flat).max() <= 1e-6 * np.abs(flat).max(), (size, name)


@pytest.mark.parametrize(("micro_batch", "learners"), [(None, 1), (3, 1), (1, 4)])
def test_one_token_whose_log_prob_is_off_shows_whole_however_many_share_the_minibatch(
    micro_batch: int | None, learners: int
) -> None:
    worker = begun()
    update, texts, _ = update_of(worker)
    update.micro_batch = micro_batch
    texts.batch.log_prob[0, 11] += 1.0
    split = shared(worker, np.arange(16), learners)
    told = dict(zip(split.names, split.metrics.tolist()))
    assert told[LARGEST] == pytest.approx(1 - np.exp(-1.0), abs=1e-5)
    assert told["ratio_deviation"] < 0.05, "a mean hides it"


def test_a_whole_minibatch_has_the_gradient_of_the_plain_update() -> None:
    worker = begun()
    update, batch, rates = update_of(worker)
    index = np.arange(3, 14)
    split = shared(worker, index, 1)
    plain = TorchUpdate(update.policy, replace(update.recipe, normalize_advantage=False))
    names, row = plain.optimise(batch.batch, [[index]], replace(rates, learning_rate=0.0))
    assert set(split.names) - set(names) == {"ratio_deviation", LARGEST}
    told = dict(zip(split.names, split.metrics))
    np.testing.assert_allclose([told[name] for name in names], row[0, :-1], rtol=1e-5, atol=1e-6)
    for name, group in update.groups.items():
        flat = np.concatenate([cast(torch.Tensor, one.grad).numpy().ravel() for one in group.parameters])
        assert np.abs(split.gradients[name] - flat).max() <= 1e-6 * np.abs(flat).max(), name


@pytest.mark.parametrize("learners", [1, 4])
def test_actor_and_critic_apart_step_to_the_very_bits_of_both_together(learners: int) -> None:
    together = RoleWorker(spec(), ROLES, models())
    apart = {
        role: [RoleWorker(spec(), (role,), models(), None, share, learners) for share in range(learners)]
        for role in ("actor", "critic")
    }
    for iteration in range(2):
        written = together.write(iteration)
        said = {
            "written": written,
            "reference": together.reference_log_probs(written),
            "reward": together.scores(written),
            "critic": together.values(written),
        }
        layout = tuple((name, 1) for name in said)
        report = together.learn(0.1, 0.1, layout, *said.values())
        together.load_writer(None)
        for role, workers in apart.items():
            for worker in workers:
                begin(worker, said)
            for epoch in range(SMALL_PPO.epochs):
                for minibatch in range(SMALL_PPO.minibatches):
                    shares = [worker.gradient(epoch, minibatch) for worker in workers]
                    for worker in workers:
                        worker.step(*shares)
            for worker in workers:
                told = worker.finish()
                assert told.digests[role] == report.digests[role], (iteration, role)
                for name, value in told.metrics.items():
                    np.testing.assert_equal(value, report.metrics[name], err_msg=name)
    for role, workers in apart.items():
        assert_same_trees(workers[-1].state()[role], together.state()[role])


def test_a_gradient_of_the_critics_that_is_not_finite_does_not_stop_the_actors_step() -> None:
    with_nan, without = RoleWorker(spec(), ROLES, models()), RoleWorker(spec(), ROLES, models())
    said = opinions(with_nan)
    before = with_nan.state()["critic"]["parameters"]
    assert with_nan.learner is not None
    head = next(p for name, p in with_nan.learner.policy.critic.named_parameters() if "score" in name)
    with torch.no_grad():
        head[0, 0] = float("nan")
    reports = [
        worker.learn(0.1, 0.1, tuple((name, 1) for name in said), *said.values())
        for worker in (with_nan, without)
    ]
    assert reports[0].digests["actor"] == reports[1].digests["actor"]
    assert reports[0].metrics["skipped_updates"] == 4 and reports[1].metrics["skipped_updates"] == 0
    after = with_nan.state()["critic"]["parameters"]
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(changed) == 1 and "score" in changed[0]  # the one made NaN above
    assert len(with_nan.state()["critic"]["optimiser"]) > 0


def test_learners_that_share_an_update_stop_at_the_epoch_where_one_alone_does() -> None:
    recipe = replace(SMALL_PPO, epochs=4, target_kl=1e-4)
    alone = RoleWorker(spec(recipe), ROLES, models())
    several = [RoleWorker(spec(recipe), ROLES, models(), None, share, 2) for share in range(2)]
    said = opinions(alone)
    report = alone.learn(0.1, 0.1, tuple((name, 1) for name in said), *said.values())
    assert 0 < report.metrics["num_updates"] < recipe.epochs * recipe.minibatches
    for worker in several:
        begin(worker, said)
    for epoch in range(recipe.epochs):
        for minibatch in range(recipe.minibatches):
            shares = [worker.gradient(epoch, minibatch) for worker in several]
            for worker in several:
                worker.step(*shares)
    for worker in several:
        told = worker.finish()
        assert told.digests == report.digests
        np.testing.assert_equal(told.metrics, report.metrics)


def test_a_share_that_nobody_may_write_to_is_stepped_down_all_the_same() -> None:
    worker, other = begun(SMALL_PPO), begun(SMALL_PPO)
    index = np.arange(2)  # a piece less than there are learners
    share = shared(worker, index, 2)
    for flat in share.gradients.values():
        flat.flags.writeable = False
    update, _, rates = update_of(worker)
    kept = {name: flat.copy() for name, flat in share.gradients.items()}
    rows = update.step(share, rates)
    second, _, _ = update_of(other)
    np.testing.assert_array_equal(rows, second.step(Share(share.names, share.metrics, kept), rates))
    for name, flat in share.gradients.items():
        np.testing.assert_array_equal(flat, kept[name])
    assert worker.snapshot().digest == other.snapshot().digest


def test_skips_are_each_roles_own_wherever_it_lives() -> None:
    """The actor skips the first minibatch, the critic the third: nobody skipped two."""

    def tell(worker: RoleWorker, group: str | None) -> Any:
        learner = cast(Any, worker.learner)
        names = ["policy_loss", "value_loss"] if group is None else ["policy_loss"][: group == "actor"]
        names += ["value_loss"] if group == "critic" else []
        flags = {"actor": [1.0, 0.0, 0.0], "critic": [0.0, 0.0, 1.0]}
        columns: list[Any] = (
            [[float("nan") if one else 2.0 for one in flags["actor"]]] if group != "critic" else []
        )
        columns += [[float("nan") if one else 3.0 for one in flags["critic"]]] if group != "actor" else []
        columns += [flags[name] for name in learner.skips]
        return learner._read(names, np.array(columns).T)

    together = RoleWorker(spec(), ROLES, models())
    actor, critic = (RoleWorker(spec(), (role,), models()) for role in ("actor", "critic"))
    both = tell(together, None)
    apart = tell(critic, "critic") | tell(actor, "actor")
    assert both == apart == {
        "policy_loss": 2.0, "value_loss": 3.0, "skipped_updates": 1.0, "num_updates": 3.0,
    }  # fmt: skip
    states = together.state()
    assert (states["actor"]["skipped"], states["actor"]["streak"]) == (1, 0.0)
    assert (states["critic"]["skipped"], states["critic"]["streak"]) == (1, 1.0)
    for role, worker in (("actor", actor), ("critic", critic)):
        assert_same_trees(worker.state()[role], states[role])
    again = RoleWorker(spec(), ("critic",), models(), states)
    assert cast(Any, again.learner).skips["critic"].streak == 1.0


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "item", "equal", "unique", "is_nonzero")


class Waits(TorchDispatchMode):
    """Which operations are met for whose answer the host would wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        # a boolean index asks how many there are of it
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        waits = name in WAITS or any(one is not None and one.dtype == torch.bool for one in indices)
        # transformers asks once a pass whether texts are packed
        if waits and not any("masking_utils" in frame.filename for frame in traceback.extract_stack()):
            self.met.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "recipe", [WHOLE, replace(GRPO, max_response=6, group_size=4, minibatches=2)], ids=["ppo", "grpo"]
)
def test_nothing_between_the_first_minibatch_and_the_last_makes_the_host_wait(recipe: ResponseRecipe) -> None:
    worker = begun(recipe, micro_batch=3)
    update, texts, rates = update_of(worker)
    index = np.arange(len(texts.length_N))
    lengths = {int(texts.length_N[piece].max()) for piece in update.pieces(texts.length_N, index)}
    assert len(lengths) > 1, "texts of several lengths are trimmed"
    with Waits() as waits:
        update._sums(texts, index, rates)
    assert not waits.met
    with Waits() as waits:  # as whoever does not know the decisions has them
        state = {name: texts.batch.initial_state[name] for name in ("token", "length")}
        update.policy.evaluate(texts.batch.observation, texts.batch.action, None, state, None)
    assert waits.met


def test_decisions_that_are_given_change_no_bit() -> None:
    worker = begun()
    update, texts, _ = update_of(worker)
    some = texts.take(np.array([5, 0, 9]))
    assert some.initial_state["decision"].shape == (2, int(texts.rows_N[[5, 0, 9]].sum()))
    plain = {name: some.initial_state[name] for name in ("token", "length")}
    given, found = (
        update.policy.evaluate(some.observation, some.action, None, state, None)
        for state in (some.initial_state, plain)
    )
    for one, other in zip(given, found, strict=True):
        assert torch.equal(one, other) and one.any()
