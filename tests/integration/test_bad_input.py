"""Whatever is wrong with the input: exit code 2, one sentence that helps, and nothing lost or half-written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from questlm.artifact.format import FORMAT, VERSION, ArtifactConfig
from questlm.cli import main
from questlm.config import RunConfig, to_yaml
from questlm.files import sha256_file
from questlm.json_files import canonical_json
from questlm.manifest import write_manifest

TRAIN = ("train", "--config", "tiny.yaml", "--out", "new")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny_settings: Callable[..., RunConfig]) -> Path:
    """A folder with text, settings, a run of them and its artifact; tests work on copies."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copy(corpus, "text.txt")
        Path("tiny.yaml").write_text(to_yaml(tiny_settings(data={"source": "text.txt"})))
        for command in ("train --config tiny.yaml --out run", "pack run --out model"):
            patch.setattr(sys, "argv", ["quest", *command.split()])
            with pytest.raises(SystemExit) as stop:
                main()
            assert stop.value.code == 0
    return folder


@pytest.fixture
def place(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, which the test may damage; it is the current folder, and the world itself is elsewhere."""
    shutil.copytree(world, tmp_path / "here")
    for origin in (tmp_path / "here").rglob("origin.json"):
        origin.write_text(origin.read_text().replace(str(world), "/nowhere"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def refused(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `quest ...`, check that it refuses as it should, and return the sentence."""

    def run(*words: object, may_write: bool = False, limit: int = 600) -> str:
        before = _content(place)
        monkeypatch.setattr(sys, "argv", ["quest", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert stop.value.code == 2, (out, err)
        if not may_write:
            assert _content(place) == before
        assert not list(place.rglob(".tmp-*"))
        assert not list(Path(os.environ["QUESTLM_CACHE"]).rglob(".tmp-*"))
        assert out == ""
        return sentence(err, limit)

    return run


def sentence(errors: str, limit: int = 600) -> str:
    """The text of the one error line that `errors`, all of stderr, must be."""
    assert "Traceback" not in errors
    errors = re.sub("^quest: note: budget: [^\n]*\n", "", errors)  # said before the first step, whatever follows
    assert errors.startswith("quest: error: ")
    assert errors.count("\n") == 1
    assert len(errors) < limit
    return errors.removeprefix("quest: error: ").strip()


def _content(folder: Path) -> dict[str, str | None]:
    return {str(path): sha256_file(path) if path.is_file() else None for path in folder.rglob("*")}


def test_a_real_process_exits_with_2_and_keeps_stdout_clean(place: Path) -> None:
    command = [sys.executable, "-m", "questlm", *TRAIN, "--data", "absent.txt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'absent.txt' does not exist" in sentence(done.stderr)


# -- text and tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"", ["empty.txt", "no text"]),
        ("blank.txt", b" \n\n \n", ["blank.txt", "no text"]),
        ("latin.txt", "naïve cakes ".encode("latin-1") * 200, ["latin.txt", "not UTF-8", "byte 2", "convert"]),
        ("picture.png", b"\x89PNG", ["picture.png", ".txt", ".jsonl"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text"\n', ["broken.jsonl:2", "not JSON"]),
        ("other.jsonl", b'{"body": "a"}\n', ["no field 'text'", "body", "data.text_field"]),
        ("cut.txt.gz", b"\x1f\x8b\x08\x00abc", ["cut.txt.gz", "incomplete or damaged"]),
    ],
)
def test_unusable_text(name: str, content: bytes, expected: list[str], place: Path, refused: Any) -> None:
    (place / name).write_bytes(content)
    message = refused(*TRAIN, "--data", name)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("source", ["absent.txt", "absent/", "absent*.txt", "~no.such-user/text.txt", "hf:"])
def test_no_such_source(source: str, refused: Any) -> None:
    assert repr(source) in refused(*TRAIN, "--data", source)


def test_an_empty_folder(place: Path, refused: Any) -> None:
    (place / "bare").mkdir()
    assert "'bare' holds no files" in refused(*TRAIN, "--data", "bare")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(3),
        30,
    ],
)
def test_a_corpus_shorter_than_one_window(words: int, place: Path, refused: Any) -> None:
    (place / "short.txt").write_text("wizards " * words)
    message = refused(*TRAIN, "--data", "short.txt")
    assert "seq_len 32" in message
    assert "use more text" in message


def shard(path: Path, ids: list[int]) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype="<u2").tobytes())


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[:-7], ["promises 1000 tokens", "incomplete or damaged"]),
        (lambda data: data[:3], ["3 bytes long", "header of 1024"]),
        (lambda data: bytes(2048), ["begins with 0", "20240520"]),
        (lambda data: data[:8] + bytes(4) + data[12:], ["promises 0 tokens"]),
    ],
)
def test_a_damaged_shard(damage: Any, expected: list[str], place: Path, refused: Any) -> None:
    shard(place / "tokens.bin", [1, 2, 3, 4] * 250)
    (place / "tokens.bin").write_bytes(damage((place / "tokens.bin").read_bytes()))
    message = refused(*TRAIN, "--data", "tokens.bin", "--set", "model.vocab_size=300")
    assert all(part in message for part in ["tokens.bin", *expected]), message


def test_token_ids_beyond_the_vocabulary(place: Path, refused: Any) -> None:
    shard(place / "tokens.bin", [1, 2, 3, 999] * 250)
    message = refused(*TRAIN, "--data", "tokens.bin", "--set", "model.vocab_size=300")
    assert "tokens.bin holds the token id 999 at position 3" in message
    assert "0 to 299" in message


def test_shards_of_unknown_vocabulary(place: Path, refused: Any) -> None:
    shard(place / "tokens.bin", [1, 2, 3, 4] * 250)
    assert "add --set model.vocab_size=N" in refused(*TRAIN, "--data", "tokens.bin")


@pytest.mark.parametrize("given", [[], ["--set", "data.tokenizer=run/tokenizer.json"]])
def test_a_tokenizer_larger_than_the_model(given: list[str], refused: Any) -> None:
    message = refused(*TRAIN, "--set", "model.vocab_size=260", *given)
    assert "300 entries but the model only 260" in message
    assert "--set model.vocab_size=300" in message


@pytest.mark.parametrize("tokenizer", ["absent.json", "tiny.yaml"])
def test_a_tokenizer_that_is_none(tokenizer: str, refused: Any) -> None:
    assert f"{tokenizer} " in refused(*TRAIN, "--set", f"data.tokenizer={tokenizer}")


def test_an_artifact_with_a_tokenizer_larger_than_its_model(place: Path, refused: Any) -> None:
    def grow(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"]["zebra"] = 300
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        rewrite_manifest(folder)

    grow(place / "model")
    assert "vocabulary has 300 entries" in refused("eval", "model")


def test_a_run_with_another_tokenizer_is_not_packed(place: Path, refused: Any) -> None:
    text = (place / "run" / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    tokenizer["model"]["vocab"]["zebra"] = 300
    (place / "run" / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "vocabulary has 300 entries" in refused("pack", "run", "--out", "packed")


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--set trian.lr=1", "unknown setting 'trian'. Did you mean 'train'?"),
        ("--set model.hiden=64", "unknown setting 'hiden'. Did you mean 'hidden'?"),
        ("--set lr", "write it as --set section.key=value"),
        ("--set =1", "write it as --set section.key=value"),
        ("--set train.lr=[", "not valid YAML"),
        ("--set train.lr=", "lr = None cannot be used"),
        ("--set train.lr=fast", "lr = 'fast' cannot be used"),
        ("--set train.lr=nan", "finite"),
        ("--set train=1", "train = 1 cannot be used"),
        ("--set seed=-1", "seed = -1 cannot be used"),
        ("--seed -1", "seed = -1 cannot be used: input should be greater than or equal to 0"),
        ("--bits 9", "weight_bits = 9 cannot be used: input should be 1, 2, 3, 4, 5, 6, 7, 8, 16 or 'ternary'"),
        ("--bits 0", "weight_bits = 0 cannot be used: input should be 1, 2"),
        ("--bits x", "weight_bits = 'x' cannot be used: input should be 1, 2"),
        ("--bits -1", "weight_bits = '-1' cannot be used"),
        ("--weight-bits 9", "weight_bits = 9 cannot be used"),
        ("--act-bits 0", "act_bits = 0 cannot be used"),
        pytest.param("--bits=", "weight_bits"),
        ("--method qest", "Did you mean 'quest'?"),
        ("--preset 30mm", "Did you mean '30m'?"),
        ("--set model.hidden=24", "no Hadamard block of at least 16 divides the dimension 24; use a multiple of 16"),
        ("--set model.heads=3 --set model.head_dim=8", "no Hadamard block of at least 16 divides the dimension 24"),
        ("--set model.mlp_hidden=72", "no Hadamard block of at least 16 divides the dimension 72"),
        ("--set quant.block_size=100", "block_size 100 is not a power of two"),
        ("--set model.heads=5", "hidden 32 is not a multiple of heads 5"),
        ("--tokens 0", "--tokens '0' is not a number of at least 1; write it like 5000000, 5e6, 5M or 1.5B"),
        ("--tokens abc", "--tokens 'abc' is not a number"),
        pytest.param("--tokens 1e400", "--tokens '1e400'"),
        ("--seconds 0", "greater than 0"),
        ("--tokens-per-param -1", "greater than 0"),
        ("--tokens 5M --seconds 3", "exactly one of tokens, tokens_per_param and seconds (tokens and seconds given)"),
        ("--tokens 5M --tokens-per-param 3", "(tokens and tokens_per_param given)"),
        ("--set train.device=tpu", "train.device = 'tpu' is no device; use auto, cpu, cuda or cuda:N"),
        ("--set data.val=text.txt", "nothing is left to train on"),
        ("--set data.val=absent.txt", "'absent.txt' does not exist"),
        ("--config absent.yaml", "cannot read the config file: absent.yaml does not exist"),
        ("--config .", "cannot read the config file: . cannot be read: Is a directory"),
        pytest.param("--unknown", "No such option: --unknown"),
        pytest.param("stray", "unexpected extra argument"),
        pytest.param("--seed x", "--seed"),
        pytest.param("--seconds soon", "--seconds"),
    ],
)
def test_unusable_settings(words: str, expected: str, refused: Any) -> None:
    assert expected in refused(*TRAIN, *words.split())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"train: {batchsize: 3}\n", "unknown setting 'batchsize'. Did you mean 'batch_size'?"),
        (b"quantt: {}\n", "Did you mean 'quant'?"),
        (b"train: [\n", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"just words\n", "holds a str, but sections are expected"),
        (b"train: 5\n", "train = 5 cannot be used"),
        (b"preset: 30mm\n", "Did you mean '30m'?"),
        (b"1: 2\n", "the key 1 is not a word"),
        pytest.param(b"train: {1: 2}\n", "the key 1 is not a word"),
    ],
)
def test_an_unusable_config_file(content: bytes, expected: str, place: Path, refused: Any) -> None:
    (place / "bad.yaml").write_bytes(content)
    assert expected in refused("train", "--config", "bad.yaml", "--out", "new", "--tokens", "1536")


def test_a_machine_without_cuda(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message = refused(*TRAIN, "--set", "train.device=cuda")
    assert "train.device = 'cuda', but this machine has 0 CUDA devices; use cpu or auto" in message


def test_a_logger_that_is_not_installed(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'questlm[wandb]'" in refused(*TRAIN, "--set", "train.loggers=[wandb]")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("trian", "No such command 'trian'"),
        pytest.param("--unknown", "No such option"),
        pytest.param("pack run", "--out"),
        pytest.param("eval", "MODEL"),
        pytest.param("pack run --out new --embeddings fp4", "int8"),
        pytest.param("demo --bits x --out new", "--bits"),
        *(
            pytest.param(f"demo {words} --out new", expected)
            for words, expected in [("--bits 9", "weight_bits = 9"), ("--seconds 0", "greater than 0")]
        ),
        pytest.param("demo --out run", "run exists already"),
    ],
)
def test_unusable_command_lines(words: str, expected: str, refused: Any) -> None:
    assert expected in refused(*words.split())


# -- folders and disks -------------------------------------------------------------------------------------------------


def test_an_existing_run_folder(refused: Any) -> None:
    message = refused("train", "--config", "tiny.yaml", "--out", "run")
    assert "run exists already" in message
    assert "--resume run" in message
    assert "--out" in message


def test_an_existing_artifact_folder(refused: Any) -> None:
    assert "model exists already" in refused("pack", "run", "--out", "model")


@pytest.mark.parametrize("command", ["train --config tiny.yaml", "pack run"])
@pytest.mark.parametrize("out", ["text.txt/new", "/proc/none/new", "n" * 300])
def test_an_output_folder_that_cannot_be_made(out: str, command: str, refused: Any) -> None:
    assert out in refused(*command.split(), "--out", out)


@pytest.mark.parametrize("command", ["train --config tiny.yaml", "pack run"])
def test_an_output_folder_that_is_a_file(command: str, refused: Any) -> None:
    assert "text.txt exists already" in refused(*command.split(), "--out", "text.txt")


def test_a_run_folder_that_is_a_dangling_link(place: Path, refused: Any) -> None:
    (place / "link").symlink_to("nowhere")
    assert "link" in refused("train", "--config", "tiny.yaml", "--out", "link")


@contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `free_bytes`: the write fails, as on a full disk."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@pytest.mark.parametrize("free", [100, 3_000, 20_000])
def test_a_full_disk_while_tokenising(free: int, place: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUESTLM_CACHE", str(place.parent / "cache"))
    with full_disk(free):
        message = refused(*TRAIN)
    assert "cannot be written" in message
    assert "set data.cache_dir to a folder with enough room" in message
    assert not list((place.parent / "cache").rglob("*.bin"))


def test_a_full_disk_while_making_the_run_folder(refused: Any) -> None:
    with full_disk(100):
        message = refused(*TRAIN)
    assert "new" in message
    assert "space" in message


def test_a_full_disk_while_saving_a_checkpoint(place: Path, refused: Any) -> None:
    with full_disk(50_000):
        message = refused(*TRAIN, may_write=True)
    assert "cannot write the checkpoint new/checkpoints/step-00000004" in message
    assert "free some space" in message
    assert "start the run again" in message
    assert not (place / "new").exists()


def test_a_full_disk_in_a_real_process(place: Path) -> None:
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
        "from questlm.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", limited, *TRAIN], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "free some space" in sentence(done.stderr)
    assert not Path("new").exists()


@pytest.mark.parametrize("free", [100, 20_000])
def test_a_full_disk_while_packing(free: int, refused: Any) -> None:
    with full_disk(free):
        message = refused("pack", "run", "--out", "packed")
    assert "packed" in message
    assert "space" in message


# -- runs and checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["absent", "model", "text.txt"])
@pytest.mark.parametrize("command", ["train --resume RUN", "pack RUN --out packed"])
def test_a_folder_that_is_no_run(command: str, run: str, refused: Any) -> None:
    assert f"{run} is not a run folder" in refused(*command.replace("RUN", run).split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--set train.lr=3e-3", "train.lr = 0.01, but the settings now say 0.003; resume with the same settings"),
        ("--seed 5", "seed = 0, but the settings now say 5"),
        ("--bits 2", "act_bits = 4, but the settings now say 2"),
        ("--data other.txt", "other.txt' does not exist"),
        ("--tokens 4000", "schedule over 1,536 tokens, so it cannot be resumed for 4,000 tokens"),
        ("--out new", "leave --out away"),
        pytest.param("--preset 30m", "settings"),
    ],
)
def test_resuming_with_a_changed_setting(words: str, expected: str, refused: Any) -> None:
    assert expected in refused("train", "--resume", "run", *words.split())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("lr: 0.01", "lr: 0.02", "step-00000012 was made with train.lr = 0.01, but the settings now say 0.02"),
        ("hidden: 32", "hidden: 64", "was made with model.hidden = 32"),
        ("weight_bits: 4", "weight_bits: 9", "weight_bits = 9 cannot be used"),
        ("seed: 0", "sed: 0", "Did you mean 'seed'?"),
    ],
)
@pytest.mark.parametrize("command", ["train --resume run", "pack run --out packed", "eval run"])
def test_a_checkpoint_from_another_config(
    command: str, old: str, new: str, expected: str, place: Path, refused: Any
) -> None:
    config = place / "run" / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    assert expected in refused(*command.split())


@pytest.mark.parametrize("command", ["pack run --out packed", "eval run"])
def test_a_run_without_a_checkpoint(command: str, place: Path, refused: Any) -> None:
    shutil.rmtree(place / "run" / "checkpoints")
    assert "run has no checkpoint yet" in refused(*command.split())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("command", ["train --resume run", "pack run --out packed", "eval run"])
def test_a_checkpoint_with_one_flipped_bit(command: str, name: str, place: Path, refused: Any) -> None:
    flip(place / "run" / "checkpoints" / "step-00000012" / name, 0.5)
    message = refused(*command.split())
    assert name in message
    assert "damaged" in message


@pytest.mark.parametrize("content", [None, "{", "{}"])
@pytest.mark.parametrize("command", ["pack run --out packed", "eval run"])
def test_a_run_with_a_damaged_record(command: str, content: str | None, place: Path, refused: Any) -> None:
    record = place / "run" / "record.json"
    record.unlink() if content is None else record.write_text(content)
    assert "run/record.json" in refused(*command.split())


@pytest.mark.parametrize("change", ["gone", "other"])
def test_resuming_when_the_text_has_changed(change: str, place: Path, refused: Any) -> None:
    (place / "text.txt").unlink()
    if change == "other":
        (place / "text.txt").write_text("wizards bake lazy dogs and brown foxes quietly\n" * 100)
    (place / "run" / "record.json").unlink()  # a finished run needs no text any more
    message = refused("train", "--resume", "run")
    assert ("does not exist" if change == "gone" else "other data than 'text.txt'") in message


# -- artifacts ---------------------------------------------------------------------------------------------------------


def flip(path: Path, where: float) -> None:
    """Flip one bit of a file, at this share of its length."""
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def rewrite_manifest(folder: Path) -> None:
    """Make the manifest right again, as someone who means harm would."""
    details = json.loads((folder / "MANIFEST.json").read_text())["details"]
    write_manifest(folder, FORMAT, VERSION, details)


READ = pytest.mark.parametrize("command", ["generate model --prompt the", "eval model"])


@READ
@pytest.mark.parametrize("where", [0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "MANIFEST.json"])
def test_an_artifact_with_one_flipped_bit(name: str, where: float, command: str, place: Path, refused: Any) -> None:
    flip(place / "model" / name, where)
    message = refused(*command.split())
    assert f"model/{name}" in message
    assert "damaged" in message or "but this command reads" in message


@READ
@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_artifact(left: float, command: str, place: Path, refused: Any) -> None:
    path = place / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    assert "bytes long, but the manifest says" in refused(*command.split())
    rewrite_manifest(place / "model")
    assert "model is not a usable artifact" in refused(*command.split())


@READ
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "MANIFEST.json"])
def test_an_artifact_with_a_missing_file(name: str, command: str, place: Path, refused: Any) -> None:
    (place / "model" / name).unlink()
    assert f"model/{name} is missing" in refused(*command.split())


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


@READ
@pytest.mark.parametrize("shape", [[16, 64], [64, 15], [1 << 40, 16], [64, 16, 1]])
def test_a_header_that_lies_about_a_shape(shape: list[int], command: str, place: Path, refused: Any) -> None:
    name = "layers.0.mlp.up.codes"
    rewrite_header(place / "model" / "model.safetensors", lambda header: header[name].update(shape=shape))
    rewrite_manifest(place / "model")
    message = refused(*command.split())
    assert "by its config it must be U8 (64, 16)" in message or "model is not a usable artifact" in message


@READ
def test_a_config_that_lies_about_a_shape(command: str, place: Path, refused: Any) -> None:
    config = place / "model" / "config.json"
    content = json.loads(config.read_text())
    content["model"]["hidden"] = 64
    alone = {name: content[name] for name in ArtifactConfig.model_fields if name in content}
    for written, reason in (
        (content, "head_dim = 16 describes another model than the section `model` does"),
        (alone, "by its config it must be "),
    ):
        config.write_text(json.dumps(written))
        rewrite_manifest(place / "model")
        assert reason in refused(*command.split())


@READ
def test_a_packed_tokenizer_on_which_the_library_panics(command: str, place: Path, refused: Any) -> None:
    tokenizer = json.loads((place / "model" / "tokenizer.json").read_text())
    tokenizer["model"]["continuing_subword_prefix"] = "##"
    (place / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    rewrite_manifest(place / "model")
    assert "model/tokenizer.json is not a tokenizer.json of the tokenizers library" in refused(*command.split())


@READ
@pytest.mark.parametrize("name", ["../text.txt", "/etc/hostname", "a/../../text.txt", ".."])
def test_a_manifest_with_a_path_outside_its_folder(name: str, command: str, place: Path, refused: Any) -> None:
    path = place / "model" / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    text = place / "text.txt"
    manifest["files"][name] = {"bytes": text.stat().st_size, "sha256": sha256_file(text)}
    manifest["digest"] = hashlib.sha256(canonical_json(manifest).encode()).hexdigest()
    path.write_text(canonical_json(manifest))
    assert f"names {name!r}, which lies outside the folder" in refused(*command.split())


@READ
def test_an_artifact_with_a_link_that_leads_outside(command: str, place: Path, refused: Any) -> None:
    tokenizer = place / "model" / "tokenizer.json"
    tokenizer.rename(place / "elsewhere.json")
    tokenizer.symlink_to("../elsewhere.json")
    assert "leads outside its folder" in refused(*command.split())


@pytest.mark.parametrize("command", ["generate", "eval"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [("absent", "absent is not a folder"), ("text.txt", "not a folder"), ("bare", "not a complete artifact")],
)
def test_what_is_no_artifact(path: str, expected: str, command: str, place: Path, refused: Any) -> None:
    (place / "bare").mkdir()
    assert expected in refused(command, path)


def test_generating_from_a_run_says_to_pack_it(refused: Any) -> None:
    assert "quest pack run" in refused("generate", "run")


# -- evaluating and generating -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["run", "model"])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("absent.txt", None, "does not exist"),
        ("empty.txt", b"", "no text"),
        ("latin.txt", b"na\xefve", "not UTF-8"),
    ],
)
def test_unusable_text_to_evaluate_on(
    name: str, content: bytes | None, expected: str, what: str, place: Path, refused: Any
) -> None:
    if content is not None:
        (place / name).write_bytes(content)
    message = refused("eval", what, "--data", name)
    assert expected in message
    assert name in message


def test_token_ids_to_evaluate_on_that_the_model_does_not_know(place: Path, refused: Any) -> None:
    shard(place / "tokens.bin", [1, 2, 3, 999] * 250)
    assert "holds the token id 999" in refused("eval", "model", "--data", "tokens.bin")


@pytest.mark.parametrize("what", ["run", "model"])
def test_evaluating_when_the_text_is_gone(what: str, place: Path, refused: Any) -> None:
    (place / "text.txt").unlink()
    message = refused("eval", what)
    assert "text.txt' does not exist" in message
    assert "name other text with --data" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--max-tokens 0", "max_new_tokens = 0 cannot be used: input should be greater than or equal to 1"),
        ("--temperature -1", "temperature = -1"),
        ("--temperature nan", "temperature = nan"),
        ("--top-k 0", "top_k = 0"),
        ("--top-p 0", "top_p = 0"),
        ("--top-p 2", "top_p = 2"),
        ("--min-p 2", "min_p = 2"),
        ("--repetition-penalty 0", "repetition_penalty = 0"),
        ("--seed -1", "seed = -1"),
    ],
)
def test_unusable_options_of_generate(words: str, expected: str, refused: Any) -> None:
    assert expected in refused("generate", "model", "--prompt", "the", *words.split())


def test_generating_more_tokens_than_any_memory_holds(refused: Any) -> None:
    message = refused("generate", "model", "--prompt", "the", "--max-tokens", 10**15, "--seed", 0)
    assert "--max-tokens" in message


def test_generating_without_a_tokenizer(place: Path, refused: Any) -> None:
    (place / "model" / "tokenizer.json").unlink()
    rewrite_manifest(place / "model")
    assert "packed without a tokenizer" in refused("generate", "model", "--prompt", "the")


def test_a_prompt_that_is_not_unicode(refused: Any) -> None:
    assert "not valid Unicode" in refused("generate", "model", "--prompt", "\udcff")


# -- what is printed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "eval {0}",
        "generate {0}",
        "pack {0} --out packed",
        "fit {0}",
        "report {0}",
        "diagnose {0}",
        "plan --from-fit {0} --memory 1MB --tokens 1M",
        "sweep {0}",
        "train --config {0}",
        "train --preset {0}",
        "train --method {0}",
        "train --data {0}",
        "train --tokens {0}",
        "train --set train.device={0}",
        "train --init-from {0}",
        "train --resume {0}",
        "{0}",
    ],
)
@pytest.mark.parametrize("name", ["\x1b[31m\u202e[bold]:fire:", "x" * 5000], ids=["codes", "long"])
def test_no_name_controls_the_terminal_or_fills_it(command: str, name: str, refused: Any) -> None:
    message = refused(*(word.format(name) for word in command.split()), limit=1_100)
    assert message.isprintable()
    assert "\\x1b[31m\\u202e[bold]:fire:" in message or "xxx" in message
