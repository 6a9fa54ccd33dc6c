"""A causal language model as a policy with memory: what it remembers is the text, prompt and tokens so far.

    state        the texts, right-padded: {"token": [N, S], "length": [N]}
    observation  where in its text a decision is made: the position of the last token seen, [T, N]
    action       the token that comes next, [T, N]; NO_ACTION in rows that are no decision

Rows are decisions of the policy alone. Tokens that somebody else wrote, a tool say, are part of the text and of no
row, so no padding or mask comes between a decision and the next. N responses, T decisions, S tokens of the longest
text, B decisions of a batch, H hidden width, V vocabulary.

Texts are right-padded: under causal attention nothing before a pad sees it, so neither masks nor positions need care.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distrl.errors import BadInput
from distrl.policies.protocol import Evaluation
from distrl.trees import Tree

NO_ACTION = -1
# what trunks call tables that they look ids up in beside the embeddings: Gemma 3n's and 4's, DeepSeek V4's
ID_TABLES = ("embed_tokens_per_layer", "tid2eid")
CONTEXTS = (
    "max_position_embeddings",
    "max_seq_len",
)  # what configurations call their limit; the second is MPT's
_READS_IDS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # `reads_ids`, by model
LOGITS_AT_A_TIME = 1 << 22  # floats: 16 MiB; more rows than that go through the head in parts


class TokenEvaluation(NamedTuple):
    """Of decisions [B]: float32."""

    log_prob: Tensor
    entropy: Tensor


class LanguagePolicy(nn.Module):
    """Actor and critic over texts; either may be missing where another worker has it.

    Args:
        actor: a transformers causal LM, or None.
        critic: a `ScalarModel` of its own, or a `ScalarHead` on the actor's trunk, or None.
        temperature: that responses are sampled at: log-probs are log softmax(logits / temperature).
        vocabulary: ids that there are, where the model has more rows, as padding leaves: a distribution is over these
            alone. None: all rows.
    """

    recurrent = True

    def __init__(
        self,
        actor: nn.Module | None,
        critic: nn.Module | None,
        temperature: float = 1.0,
        vocabulary: int | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.actor = actor
        self.critic = critic
        self.temperature = temperature
        self.vocabulary = vocabulary
        self._head = (
            [causal_head(actor, vocabulary)] if actor is not None else []
        )  # in a list: its parameters are the actor's

    def evaluate(
        self,
        observation: Tree,
        action: Tensor,
        action_mask: Tensor | None,
        state: Tree,
        episode_start: Tensor | None,
    ) -> Evaluation:
        """Log-prob, entropy and value of each decision, [T, N]; 0 in rows that are none.

        Who knows them may give the decisions' rows and columns, row by row, as `state["decision"]` [2, B], with texts
        that are trimmed.

        What is missing, actor or critic, gives zeros.
        """
        position_TN = observation
        if (decision_2B := state.get("decision")) is None:  # the host waits for the device, twice
            token_NS = trimmed(state["token"], state["length"])
            row_B, column_B = (action != NO_ACTION).nonzero(as_tuple=True)
        else:
            token_NS = state["token"]
            row_B, column_B = decision_2B.unbind()
        position_B, action_B = position_TN[row_B, column_B], action[row_B, column_B]

        def spread(found_B: Tensor) -> Tensor:
            return torch.zeros(action.shape, device=action.device).index_put((row_B, column_B), found_B)

        nothing = torch.zeros(action.shape, device=action.device)
        log_prob, entropy, value = nothing, nothing, nothing
        hidden_NSH = None
        if self.actor is not None:
            hidden_NSH = trunk_hidden(self.actor, token_NS)
            told = self.token_log_probs(hidden_NSH[column_B, position_B], action_B)
            log_prob, entropy = spread(told.log_prob), spread(told.entropy)
        if self.critic is not None:
            value_NS = self.values(token_NS, hidden_NSH)
            value = spread(value_NS[column_B, position_B])
        return Evaluation(log_prob, entropy, value)

    def values(self, token_NS: Tensor, hidden_NSH: Tensor | None = None) -> Tensor:
        """V at every position of texts, [N, S]; `hidden_NSH` is the actor's, where the critic is a head on it."""
        critic = cast(Any, self.critic)
        if not critic.has_trunk:
            if hidden_NSH is None:
                hidden_NSH = trunk_hidden(cast(nn.Module, self.actor), token_NS)
            return cast(Tensor, critic(hidden_NSH))
        return cast(Tensor, critic(token_NS))

    def token_log_probs(self, hidden_BH: Tensor, token_B: Tensor) -> TokenEvaluation:
        """Log-prob of the tokens and entropy, [B]: no more than LOGITS_AT_A_TIME logits exist at a time.

        With a gradient, parts are computed again going back instead of kept.
        """
        head, temperature = self._head[0], self.temperature
        rows = max(1, LOGITS_AT_A_TIME // head.num_rows)

        def part(hidden: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = torch.log_softmax(head(hidden).float() / temperature, dim=-1)
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            return log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1), entropy

        if len(token_B) <= rows:
            return TokenEvaluation(*part(hidden_BH, token_B))
        parts = zip(hidden_BH.split(rows), token_B.split(rows), strict=True)
        if torch.is_grad_enabled() and hidden_BH.requires_grad:
            told = [checkpoint(part, *one, use_reentrant=False) for one in parts]
        else:
            told = [part(*one) for one in parts]
        log_prob, entropy = zip(*told, strict=True)
        return TokenEvaluation(torch.cat(log_prob), torch.cat(entropy))

    def logits(self, hidden_BH: Tensor) -> Tensor:
        """Of the next token after these hidden states, [B, V], before the temperature."""
        return cast(Tensor, self._head[0](hidden_BH))

    def optimiser_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that step together, by role: actor and critic apart, unless the critic is the actor's head."""
        parts = {"actor": self.actor, "critic": self.critic}
        if self.critic is not None and self.actor is not None and not cast(Any, self.critic).has_trunk:
            parts = {"actor": self}
        return {
            name: [parameter for parameter in part.parameters() if parameter.requires_grad]
            for name, part in parts.items()
            if part is not None
        }


class ScalarModel(nn.Module):
    """A number at every position of a text: V of a critic, or, read at the last token, the score of a reward model.

    `model` is a transformers sequence classifier with one label: its trunk and its `score` head are used, its own
    search for the last token is not (it looks for a pad id, which may be a token like any other).
    """

    has_trunk = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_NS: Tensor) -> Tensor:
        """[N, S], float32."""
        head = cast(Any, core(self.model)).score
        return cast(Tensor, head(trunk_hidden(self.model, token_NS))).float().squeeze(-1)


class ScalarHead(nn.Module):
    """V from the hidden states of the actor's trunk; starts at zero."""

    has_trunk = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, hidden_NSH: Tensor) -> Tensor:
        """[N, S], float32."""
        return cast(Tensor, self.score(hidden_NSH.float())).squeeze(-1)


def core(model: nn.Module) -> nn.Module:
    """The transformers model itself; the one inside where peft has put adapters into it."""
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model


def context_length(config: Any) -> int | None:
    """Tokens that a text of the model may have; None where its configuration sets no limit."""
    text = config.get_text_config()
    found = next((getattr(text, name) for name in CONTEXTS if getattr(text, name, None)), None)
    return int(found) if found else None


def trunk_name(own: nn.Module) -> str:
    """What a transformers model calls the part that makes hidden states; "" where it is that part itself."""
    name = str(cast(Any, own).base_model_prefix)
    if isinstance(getattr(own, name, None), nn.Module):
        return name
    embeddings = cast(
        Any, own
    ).get_input_embeddings()  # Llama 4's prefix names a part of its multimodal model
    children = ((name, child) for name, child in own.named_children() if child is not embeddings)
    return next((name for name, child in children if any(one is embeddings for one in child.modules())), "")


def trunk(model: nn.Module) -> nn.Module:
    """The part of a model that makes hidden states."""
    own = core(model)
    name = trunk_name(own)
    return cast(nn.Module, getattr(own, name)) if name else own


def text_inputs(model: nn.Module, token_NS: Tensor) -> dict[str, Tensor]:
    """The texts as a trunk is given them: embedded, or as ids where it looks those up in further tables.

    Embeddings, since given ids transformers looks for pads in them; in these texts a pad is never seen.
    """
    own = cast(Any, core(model))
    if reads_ids(own):
        return {"input_ids": token_NS}
    return {"inputs_embeds": own.get_input_embeddings()(token_NS)}


def reads_ids(own: nn.Module) -> bool:
    """Whether a family's trunk needs the ids themselves: an embedding of them in every layer, experts chosen by them."""
    if own not in _READS_IDS:
        names = chain(own.named_modules(), own.named_buffers())
        _READS_IDS[own] = any(name.rpartition(".")[2] in ID_TABLES for name, _ in names)
    return _READS_IDS[own]


def trunk_hidden(model: nn.Module, token_NS: Tensor) -> Tensor:
    """The last hidden states, [N, S, H], of texts that are right-padded."""
    return cast(Tensor, trunk(model)(**text_inputs(model, token_NS), use_cache=False).last_hidden_state)


def trimmed(token_NS: Tensor, length_N: Tensor) -> Tensor:
    """The texts without columns that are padding in all of them."""
    return token_NS[:, : int(length_N.max())]


class _Given(nn.Module):
    """Stands in a trunk's place: hands on the hidden states that it is given as if it had computed them.

    A family may ask its trunk for a part inside, as OPT does for the decoder: it is this again. A plain number, as Falcon H1's
    multiplier of logits, is the trunk's own. `more` are further outputs.
    """

    def __init__(self, of: nn.Module, **more: Any) -> None:
        super().__init__()
        self.__dict__["of"] = [of]  # in a list: its parameters are the model's
        self.more = more

    def forward(self, input_ids: Tensor | None = None, **given: Any) -> Any:
        return _Outputs(last_hidden_state=given["inputs_embeds"], **self.more)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        own = getattr(self.__dict__["of"][0], name, None)
        return own if isinstance(own, int | float) else self


class _Outputs(dict[str, Any]):
    """A trunk's output, by name or number; any other field that a family asks for is None, as one that is not computed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


def _with_trunk(own: nn.Module, stand_in: nn.Module) -> Any:
    """The same model, its parameters shared, with something else in its trunk's place."""
    model: Any = copy.copy(own)
    model._modules = {**own._modules, trunk_name(own): stand_in}
    return model


def router_coefficient(config: Any) -> float:
    """Weight of the loss that keeps a mixture's experts evenly used, where the configuration asks for it; 0: none."""
    text = config.get_text_config()
    asked = getattr(text, "output_router_logits", False)
    names = ("router_aux_loss_coef", "aux_loss_coef")  # the second is JetMoE's
    found = next((getattr(text, name) for name in names if getattr(text, name, None)), 0.0)
    return float(found) if asked else 0.0


def hidden_and_router_loss(model: nn.Module, token_NS: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
    """`trunk_hidden`, and the router's auxiliary loss over tokens that are no padding, by the family's own code."""
    own = core(model)
    found = trunk(model)(**text_inputs(model, token_NS), use_cache=False, output_router_logits=True)
    hidden_NSH = cast(Tensor, found.last_hidden_state)
    seen_NS = torch.arange(token_NS.shape[1], device=token_NS.device) < length_N.unsqueeze(1)
    given = _with_trunk(own, _Given(trunk(own), router_logits=found.router_logits))
    told = given(
        inputs_embeds=hidden_NSH[:1, :1].detach(),
        attention_mask=seen_NS.long(),
        output_router_logits=True,
        use_cache=False,
    )
    if not isinstance(told.aux_loss, Tensor):
        raise BadInput(
            f"output_router_logits of config.json asks for the router's auxiliary loss, which transformers does not compute of "
            f"a {cast(Any, own).config.model_type} model; set it to false"
        )
    return hidden_NSH, told.aux_loss


class CausalHead:
    """From hidden states to logits by the family's own code, with whatever scale or soft cap it has after its head.

    Where nothing comes after it, which is tried once, the head is called itself. Rows from `vocabulary` on are left out.
    """

    def __init__(self, model: nn.Module, vocabulary: int | None = None) -> None:
        own = cast(Any, core(model))
        self.num_rows = int(own.get_output_embeddings().weight.shape[0])
        self.vocabulary = self.num_rows if vocabulary is None else vocabulary
        if not 1 <= self.vocabulary <= self.num_rows:
            raise ValueError(f"vocabulary must be 1 to the model's {self.num_rows} rows, got {vocabulary}")
        self.model = _with_trunk(own, _Given(trunk(own)))
        self.plain = own.get_output_embeddings() if self._ends_at(own.get_output_embeddings()) else None

    @torch.no_grad()
    def _ends_at(self, head: nn.Module) -> bool:
        """Whether the logits are what `head` says, and no parameter beside its own could make them something else."""
        weight = cast(Tensor, head.weight)
        own, of_head = ({id(one) for one in module.parameters()} for module in (self.model, head))
        probe = torch.linspace(-9.0, 9.0, 2 * weight.shape[1], device=weight.device, dtype=weight.dtype).view(
            2, -1
        )
        return own <= of_head and torch.equal(self._by_family(probe), head(probe))

    def __call__(self, hidden_BH: Tensor) -> Tensor:
        """Logits, [B, V]."""
        every = cast(Tensor, self.plain(hidden_BH)) if self.plain is not None else self._by_family(hidden_BH)
        return every[:, : self.vocabulary] if self.vocabulary < self.num_rows else every

    def _by_family(self, hidden_BH: Tensor) -> Tensor:
        found = self.model(inputs_embeds=hidden_BH.unsqueeze(0), use_cache=False)
        return cast(Tensor, found.logits).squeeze(0)


def causal_head(model: nn.Module, vocabulary: int | None = None) -> CausalHead:
    """The head of a causal LM; it reads the model's own weights as they are."""
    return CausalHead(model, vocabulary)
