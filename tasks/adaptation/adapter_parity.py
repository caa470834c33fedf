"""One adapter, three forms of it: beside the weights, merged into them, merged and exported. They must say the same.

    beside -> merged     the source with the adapter, as it was trained (peft), against the merged checkpoint
    merged -> exported   the merged checkpoint on transformers against its f32 export

KL and flips of every next token, all in f32, where nothing but a fault can set them apart: what rounding the merged weights costs
is the gate's question.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from configs.engine import EngineSettings
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

SECTIONS, TOKENS = 4, 128
MAX_KL_NATS_F32 = 1e-4
MAX_KL_NATS_BF16 = 2e-3  # of a merge that is stored in the half precision of its source
MAX_FLIP_RATE_F32 = 0.01

Tokens = tuple[int, ...]


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


def check_adapter(workspace: Workspace, adapter: Artifact, merged: Artifact) -> AdapterParity:
    """Compare the forms of an adapter.

    Args:
        workspace: of the rollout.
        adapter: trained on its source.
        merged: checkpoint of source and adapter.

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
    exported = build_artifact(workspace.store, merged, "openvino", WeightSettings(), ())
    beside = _beside(workspace.source, adapter, texts)
    with open_engine(merged, EngineSettings(engine="transformers", threads=threads)) as engine:
        together = _logprobs(engine, texts)
    with open_engine(exported, EngineSettings(engine="openvino", threads=threads)) as engine:
        served = _logprobs(engine, texts)
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
def _beside(source: Artifact, adapter: Artifact, texts: Sequence[Tokens]) -> NDArray[np.float64]:
    """Log-probabilities of every next token with the adapter beside the weights, shape (tokens, V)."""
    import peft

    model = peft.PeftModel.from_pretrained(load_model(source.folder, torch.float32), adapter.folder).eval()
    logits = [model(input_ids=torch.tensor([text])).logits[0, :-1] for text in texts]
    found: NDArray[np.float64] = torch.cat(logits).double().log_softmax(-1).numpy()
    return found


def _logprobs(engine: Engine, texts: Sequence[Tokens]) -> NDArray[np.float64]:
    """The same of an engine."""
    parts = []
    for scores in engine.score([ScoreRequest(text[:1], text[1:]) for text in texts], with_logits=True):
        logits = np.asarray(scores.logits, np.float64)
        logits -= logits.max(-1, keepdims=True)
        parts.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    return np.concatenate(parts)


def _kl(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float((np.exp(expected) * (expected - found)).sum(-1).mean())


def _flips(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float((expected.argmax(-1) != found.argmax(-1)).mean())
