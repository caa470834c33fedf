"""Rough disk and time that a rollout takes, from counts of tokens and this machine's arithmetic; errors of 2x are usual."""

import time

import numpy as np

from tasks.profiling.weight_memory import weight_bytes
from tasks.release.workspace import Workspace

CHARACTERS_A_TOKEN = 4
TOKENS_AN_ITEM = 24  # of the embedded pack, choices included
SECONDS_A_CANDIDATE = 15  # export, loading, the request list twice
SECONDS_FIXED = 60  # Prefect, MLflow, the profile, the report
EFFICIENCY = 0.6  # of the matrix rate that an engine reaches on short sequences


def disk_bytes(workspace: Workspace) -> int:
    """Artifacts of every declared candidate, the full-precision exports, and the reference's logits."""
    config, architecture = workspace.config, workspace.architecture
    text = config.quality.text
    tokens = (text.gate_sections + text.search_sections) * text.section_characters // CHARACTERS_A_TOKEN
    full_precision = 4 * architecture.parameters
    declared = config.quantize.declared if config.quantize else ()
    trained = len(config.adapt.methods) if config.adapt and config.adapt.data else 0
    recovered = config.possible_recovery is not None
    return (
        2 * full_precision * (1 + trained)
        + recovered * 2 * architecture.parameters  # a byte an integer, before and after
        + sum(
            weight_bytes(architecture, *stored)
            for stored in {(each.weights, each.engine) for each in declared}
        )
        + 2 * tokens * architecture.vocabulary
    )


def rollout_seconds(workspace: Workspace) -> float:
    """Scoring and training by the model's arithmetic, a fixed share for every candidate, and the closing measurement."""
    config = workspace.config
    token_s = 2 * workspace.architecture.parameters / (EFFICIENCY * matrix_rate())
    text = config.quality.text
    gate = text.gate_sections * text.section_characters // CHARACTERS_A_TOKEN
    gate += len(config.quality.tasks.names) * config.quality.tasks.items * TOKENS_AN_ITEM
    search = text.search_sections * text.section_characters // CHARACTERS_A_TOKEN
    candidates = len(config.quantize.declared) if config.quantize else 0
    training = config.adapt.training if config.adapt and config.adapt.data else None
    trained = (
        len(config.adapt.methods) * training.steps * training.batch_sequences * training.sequence_tokens
        if config.adapt and training
        else 0
    )
    recovery = config.possible_recovery
    recovered = recovery.steps * recovery.batch_sequences * recovery.sequence_tokens if recovery else 0
    scored = gate * (2 + (training is not None)) + search * (candidates + 1)
    requests = config.requests
    served = (
        2 * config.ledger.blocks * requests.one_stream_new_tokens + requests.count * requests.max_new_tokens
    )
    source_token_s = 4 * workspace.architecture.parameters / memory_rate()
    return (
        SECONDS_FIXED
        + candidates * SECONDS_A_CANDIDATE
        + scored * token_s
        + (3 * trained + 4 * recovered) * token_s  # recovery has a teacher
        + 2 * served * source_token_s
    )


def matrix_rate(size: int = 1024) -> float:
    """Floating-point operations a second of an f32 matrix product here."""
    matrix = np.ones((size, size), dtype=np.float32)
    matrix @ matrix
    began_s = time.perf_counter()
    for _ in range(4):
        matrix @ matrix
    return 4 * 2 * size**3 / (time.perf_counter() - began_s)


def memory_rate(size_mib: int = 256) -> float:
    """Bytes a second that one pass over memory reads here."""
    block = np.ones(size_mib * 2**17, dtype=np.float64)
    began_s = time.perf_counter()
    block.sum()
    return block.nbytes / (time.perf_counter() - began_s)
