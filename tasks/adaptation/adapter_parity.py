"""One adapter, three forms of it: beside the weights, merged into them, merged and exported. They must say the same.

    beside -> merged     the source with the adapter, as it was trained (peft), against the merged checkpoint
    merged -> exported   the merged checkpoint on transformers against its f32 export on the engine that serves the release

KL and flips of every next token, all in f32, where nothing but a fault can set them apart: what rounding the merged weights costs
is the gate's question.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from configs.engine import EngineName, EngineSettings
from configs.weights import WeightSettings
from tasks.compression.build import build_artifact
from tasks.engines.open import open_engine
from tasks.engines.protocol import Engine, ScoreRequest
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.training_data import search_texts
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact
from tasks.store.record import Record
from tasks.training.checkpoint import config_dtype, load_model
from tasks.training.error import TrainingError

SECTIONS, TOKENS = 4, 64
MAX_KL_NATS_F32 = 1e-4
MAX_KL_NATS_BF16 = 2e-3  # of a merge that is stored in the half precision of its source
MAX_FLIP_RATE_F32 = 0.01

Tokens = tuple[int, ...]
Logits = list[NDArray[np.float32]]
"""Of every next token, a text an array of shape (tokens, V)."""


class AdapterParity(Record):
    """How far the forms of an adapter are apart, each against the one before it.

    Attributes:
        merged_kl_nats: mean KL(adapter beside the weights || merged), nats a token.
        merged_flip_rate: share of the tokens whose most probable successor differs between them.
        exported_kl_nats: mean KL(merged || exported), nats a token.
        exported_flip_rate: share of the tokens whose most probable successor differs between them.
    """

    merged_kl_nats: float
    merged_flip_rate: float
    exported_kl_nats: float
    exported_flip_rate: float

    @property
    def metrics(self) -> dict[str, float]:
        """Under the names of the MLflow contract."""
        return {f"quality/adapter_parity/{name}": value for name, value in self.model_dump().items()}


def check_adapter(
    workspace: Workspace, adapter: Artifact, merged: Artifact, engine: EngineName
) -> AdapterParity:
    """Compare the forms of an adapter.

    Args:
        workspace: of the rollout.
        adapter: trained on its source.
        merged: checkpoint of source and adapter.
        engine: that serves the release; the export is its own.

    Raises:
        TrainingError: they are further apart than arithmetic explains.
        EngineError: an engine does not work.
    """
    tokenizer = TextTokenizer(workspace.source.folder)
    texts = [
        (tokenizer.prefix_id, *tokenizer.encode(text, add_special_tokens=False)[:TOKENS])
        for text in search_texts(workspace)[:SECTIONS]
    ]
    threads = workspace.config.threads
    exported = build_artifact(workspace.store, merged, engine, WeightSettings(), ())
    beside = _beside(workspace.source, adapter, texts)
    with open_engine(merged, EngineSettings(engine="transformers", threads=threads)) as opened:
        together = _scored(opened, texts)
    with open_engine(exported, EngineSettings(engine=engine, threads=threads)) as opened:
        served = _scored(opened, texts)
    parity = AdapterParity(
        merged_kl_nats=_kl(beside, together),
        merged_flip_rate=_flips(beside, together),
        exported_kl_nats=_kl(together, served),
        exported_flip_rate=_flips(together, served),
    )
    _check(parity, is_f32=config_dtype(workspace.source.folder) == torch.float32)
    return parity


def _check(parity: AdapterParity, *, is_f32: bool) -> None:
    limits = [
        ("KL of the merged checkpoint to the adapter beside the weights, nats", parity.merged_kl_nats,
         MAX_KL_NATS_F32 if is_f32 else MAX_KL_NATS_BF16),
        ("KL of the export to the merged checkpoint, nats", parity.exported_kl_nats, MAX_KL_NATS_F32),
        ("share of tokens that the export flips", parity.exported_flip_rate, MAX_FLIP_RATE_F32),
    ]  # fmt: skip
    for what, value, limit in limits:
        if not value <= limit:
            raise TrainingError(
                f"adapter parity: {what}: {value:.2g}, must be at most {limit:g}: merging or export is broken for this model; train "
                "another method or other target_modules"
            )


@torch.no_grad()
def _beside(source: Artifact, adapter: Artifact, texts: Sequence[Tokens]) -> Logits:
    """What the source says with the adapter beside its weights."""
    import peft

    model = peft.PeftModel.from_pretrained(load_model(source.folder, torch.float32), adapter.folder).eval()
    return [model(input_ids=torch.tensor([text])).logits[0, :-1].numpy() for text in texts]


def _scored(engine: Engine, texts: Sequence[Tokens]) -> Logits:
    """What an engine says."""
    requests = [ScoreRequest(text[:1], text[1:]) for text in texts]
    return [np.asarray(each.logits, np.float32) for each in engine.score(requests, with_logits=True)]


def _kl(expected: Logits, found: Logits) -> float:
    """Mean KL(expected || found) over all tokens, nats; in float64, a text at a time."""
    parts = []
    for left, right in zip(expected, found, strict=True):
        log_p, log_q = (log_softmax(each.astype(np.float64), axis=-1) for each in (left, right))
        parts.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
    return float(np.concatenate(parts).mean())


def _flips(expected: Logits, found: Logits) -> float:
    """Share of the tokens whose most probable successor differs."""
    pairs = zip(expected, found, strict=True)
    return float(np.concatenate([left.argmax(-1) != right.argmax(-1) for left, right in pairs]).mean())
