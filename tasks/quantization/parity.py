"""Export parity: an artifact against the model it was made from, before anything is concluded from its scores.

    check_export(workspace, candidate) -> ExportParity
        KL, top-1 and greedy agreement of one candidate; raises CompressionError for a broken export
    check_reloads(workspace, candidates) -> {artifact: why}        (tasks/quantization/reload.py)
        the artifacts that a fresh process could not open, or whose scores it could not repeat

KL and top-1 agreement are those of the screen: the same text, the same scores, computed once. How far a quantized format may move is
the gate's question; one that was not quantized has nothing to move for, so its distance is limited. So is that of the export that
every candidate is compared with: it is held against the checkpoint itself, on transformers.
"""

from configs.engine import EngineSettings
from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.quality.samples import Samples
from tasks.release.candidate import Candidate
from tasks.release.greedy import Continuations, agreement, continue_prompts, known_continuations
from tasks.release.measuring import open_candidate, source_candidate
from tasks.release.scoring import CandidateScores
from tasks.release.workspace import Workspace
from tasks.store.record import Record

MAX_KL_NATS_F32 = 1e-4
MAX_KL_NATS_BF16 = 2e-3


class ExportParity(Record):
    """How an artifact, on the engine that serves it, agrees with its source at full precision.

    Attributes:
        kl_nats: mean KL(source || artifact) of the next token, nats.
        top1_agreement: share of the tokens whose most probable successor is the same.
        greedy_agreement: share of the tokens of a few greedy continuations before the first difference.
    """

    kl_nats: float
    top1_agreement: float
    greedy_agreement: float

    @property
    def metrics(self) -> dict[str, float]:
        """Under the names of the MLflow contract."""
        return {
            "quality/parity/kl_nats": self.kl_nats,
            "quality/parity/top1_agreement": self.top1_agreement,
            "quality/parity/greedy_agreement": self.greedy_agreement,
        }


def check_export(workspace: Workspace, candidate: Candidate) -> ExportParity:
    """Compare a candidate with the source; everything that is scored or generated is remembered.

    Raises:
        CompressionError: the artifact does not come from the source, or an export without quantization does not compute the same.
        EngineError: an engine does not work.
        QualityError: the scores would not be honest.
        StoreError: the artifact is missing or damaged.
    """
    reference = source_candidate(workspace, workspace.config.quality.reference)
    _check_reference(workspace, reference)
    _check_descent(workspace, candidate)
    kl_nats, changed = _distance(workspace, candidate)
    parity = ExportParity(
        kl_nats=kl_nats,
        top1_agreement=1 - changed,
        greedy_agreement=agreement(
            _continuations(workspace, reference), _continuations(workspace, candidate)
        ),
    )
    _check_limit(candidate, kl_nats)
    return parity


def parity_limit(weights: WeightSettings, engine: EngineSettings) -> float | None:
    """Largest mean KL in nats of an export that was not quantized; None where weights, cache or activations were."""
    if weights.bits < 16 or engine.kv_cache in ("u8", "u4") or engine.activation_group:
        return None
    exact = weights.bits == 32 and engine.compute == "f32" and engine.kv_cache == "f32"
    return MAX_KL_NATS_F32 if exact else MAX_KL_NATS_BF16


def _check_reference(workspace: Workspace, reference: Candidate) -> None:
    """The reference is an export too, and a broken one would make every honest candidate look wrong."""
    if reference.engine.engine == "transformers":
        return
    checkpoint = EngineSettings(engine="transformers", threads=workspace.config.threads)
    kl_nats, _ = _distance(workspace, source_candidate(workspace, checkpoint))
    _check_limit(reference, kl_nats)


def _check_descent(workspace: Workspace, candidate: Candidate) -> None:
    """Follow the parents to the source: an artifact of another checkpoint can be close to this one, and is still not its export."""
    address: str | None = candidate.artifact
    while address is not None and address != workspace.source.digest:
        address = workspace.store.open(address).manifest.parent
    if address is None:
        raise CompressionError(
            f"artifact {candidate.artifact} of {candidate.name} was not made from the source {workspace.source.digest}; "
            "remove it from the store and run again"
        )


def _check_limit(candidate: Candidate, kl_nats: float) -> None:
    limit = parity_limit(candidate.format, candidate.engine)
    if limit is not None and kl_nats > limit:
        raise CompressionError(
            f"{candidate.name} is {kl_nats:.2g} nats a token from its source; an export without quantization must "
            f"stay below {limit:g}: the export is broken; use another engine, or another version of its exporter"
        )


def _distance(workspace: Workspace, candidate: Candidate) -> tuple[float, float]:
    """Mean KL and share of changed top-1 tokens to the reference on the search text, as the screen scores them."""
    with CandidateScores(workspace, candidate, "search") as scores:
        scored = scores.text()
    return _mean(scored, "kl"), _mean(scored, "flips")


def _mean(scored: Samples, metric: str) -> float:
    rows = [row for row in scored.rows if row.metric == metric]
    return sum(row.value for row in rows) / sum(row.weight for row in rows)


def _continuations(workspace: Workspace, candidate: Candidate) -> Continuations:
    known = known_continuations(workspace, candidate)
    if known is not None:
        return known
    with open_candidate(workspace, candidate) as engine:
        return continue_prompts(workspace, candidate, engine)
