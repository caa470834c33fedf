"""`keiryo serve`: the champion of a model behind OpenAI's API, on the engine it was judged on."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from configs.serve import API_KEY_VARIABLE, ServeSettings, serve_settings
from flows.offline import prepare_environment
from tasks.release.history import ReleaseVersion
from tasks.store.artifact import Artifact
from tasks.store.record import Record
from tasks.store.store import Store, store_home


class Serving(Record):
    """What is served, and where.

    Attributes:
        url: base of the API.
        model: the name that requests give.
        version: of the champion.
        artifact: its address; its files were hashed before it was opened.
        engine: what computes.
        slots: requests decoded together.
        sequence_tokens: the longest prompt with its completion.
        key: whether requests need an API key.
    """

    url: str
    model: str
    version: int
    artifact: str
    engine: str
    slots: int
    sequence_tokens: int
    key: bool

    @property
    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.url} serves {self.model}/{self.version} ({self.artifact[:12]}) on {self.engine}; requests at once: "
            f"{self.slots}, tokens of each, prompt included: {self.sequence_tokens}; Ctrl-C or SIGTERM finishes what runs"
        )


def serve(model: str, overrides: Sequence[str], announce: Callable[[Serving], None]) -> None:
    """Serve until a signal; `announce` is called when requests are taken.

    Raises:
        ConfigError: a setting, the address, the key file, or vLLM is missing.
        UnknownRelease: the model is not registered, or has no champion.
        StoreError: the champion's artifact, or its draft's, is missing or damaged.
        EngineError: the engine does not work here, or died.
    """
    from tasks.endpoint.api_key import read_api_key

    settings = serve_settings(overrides)
    key = read_api_key(settings.api_key_file, os.environ)
    if key is None and not settings.only_this_machine:
        warning = f"keiryo: host = {settings.host} is open to other machines, and no API key is set ({API_KEY_VARIABLE})"
        print(warning, file=sys.stderr, flush=True)
    prepare_environment(store_home(), hub=False, threads=1)
    champion = _champion(model)
    artifact = Store(store_home()).open(champion.candidate.artifact)
    if champion.candidate.engine.engine == "vllm":
        _become_vllm(settings, champion, artifact, key)
    _serve_here(settings, champion, artifact, key, announce)


def find_champion(model: str) -> ReleaseVersion:
    """The champion of a model. Imports mlflow.

    Raises:
        UnknownRelease: there is no such model, or it has no champion.
    """
    from tasks.tracking import registry
    from tasks.tracking.store import open_tracking

    tracking = open_tracking()
    known = registry.versions(tracking, model)
    if not known:
        return registry.find_version(tracking, model, 0)  # says which models there are
    champion = registry.champion(tracking, model)
    if champion is None:
        raise registry.UnknownRelease(f"{model} has no champion; `keiryo promote {model}/VERSION` makes one")
    return champion


def _champion(model: str) -> ReleaseVersion:
    """Look it up in a process of its own: a server need not hold the 170 MiB of mlflow."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(find_champion, model).result()


def _serve_here(
    settings: ServeSettings,
    champion: ReleaseVersion,
    artifact: Artifact,
    key: str | None,
    announce: Callable[[Serving], None],
) -> None:
    from tasks.endpoint.app import Endpoint, build_app
    from tasks.endpoint.engine_process import EngineProcess
    from tasks.endpoint.prompt_text import PromptText
    from tasks.endpoint.server import listen, run_server

    with listen(settings.host, settings.port) as listening:
        text = PromptText(artifact.folder)
        engine = champion.candidate.engine
        draft = champion.candidate.draft
        adapters = _adapter_folders(settings, champion.model, artifact)
        link = EngineProcess(
            artifact,
            engine,
            sequence_tokens=_sequence_tokens(settings),
            draft=None if draft is None else Store(store_home()).open(draft),
            adapters=adapters,
        )
        try:
            host, port = listening.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
            fingerprint = f"{champion.model}/{champion.version}@{artifact.digest[:12]}"
            endpoint = Endpoint(champion.model, fingerprint, text, link, settings.limits, adapters)
            announce(
                Serving(
                    url=url,
                    model=champion.model,
                    version=champion.version,
                    artifact=artifact.digest,
                    engine=engine.engine,
                    slots=link.opened.slots,
                    sequence_tokens=link.opened.sequence_tokens,
                    key=key is not None,
                )
            )
            run_server(build_app(endpoint, key), endpoint, listening)
        finally:
            link.stop()


def _become_vllm(
    settings: ServeSettings, champion: ReleaseVersion, artifact: Artifact, key: str | None
) -> None:
    from tasks.endpoint.vllm import become_vllm, vllm_command

    command = vllm_command(
        settings,
        champion.candidate.engine,
        model=champion.model,
        folder=artifact.folder,
        sequence_tokens=_sequence_tokens(settings),
        adapters=_adapter_folders(settings, champion.model, artifact),
    )
    become_vllm(command, key, champion.candidate.engine.own_threads, os.environ)


def _adapter_folders(settings: ServeSettings, model: str, artifact: Artifact) -> dict[str, Path]:
    """The adapters' folders by name, each hashed, and each of the checkpoint that the release was made from.

    Raises:
        ConfigError: one belongs to another checkpoint, or has the model's own name.
        StoreError: one is missing or damaged.
    """
    from tasks.endpoint.adapters import check_adapter
    from tasks.release.draft_memory import checkpoint_of

    store = Store(store_home())
    folders = {}
    for name, digest in settings.adapters.items():
        adapter = store.open(digest)
        check_adapter(adapter, checkpoint_of(store, artifact), name, model)
        folders[name] = adapter.folder
    return folders


def _sequence_tokens(settings: ServeSettings) -> int:
    return settings.limits.prompt_tokens + settings.limits.new_tokens
