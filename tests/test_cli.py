"""The command line: every verb is documented, and what goes wrong is one line, a status and nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from agevlm.cli import _how_to_go_on, app, main
from agevlm.cli.errors import explain


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def agevlm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["agevlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), captured.out, captured.err)

    return run


# -------------------------------------------------------------------------------------------------------------- help


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb of the command line and its command."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from verbs(child, (*path, name))
        else:
            yield (*path, name), child


def tree() -> Any:
    from typer.main import get_command

    return get_command(app)


VERBS = dict(verbs(tree()))


def test_the_verbs_are_those_of_the_documentation() -> None:
    assert {" ".join(path) for path in VERBS} == {
        "train",
        "compare run",
        "compare costs",
        "compare page",
        "compare trajectory",
        "evaluate",
        "diagnose",
        "serve",
        "chat",
        "look",
        "similarity",
        "plan",
        "report",
        "import-backbone",
        "probe",
        "recipe show",
        "recipe list",
        "scenes draw",
        "scenes export",
        "scenes foundation",
        "scenes teachers",
        "ground",
        "data coco",
        "data convert",
        "data refer",
        "data export",
        "data agree",
        "data inspect",
    }


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_says_what_it_does_with_an_example(agevlm: Run, path: tuple[str, ...]) -> None:
    outcome = agevlm(*path, "--help")
    assert outcome.status == 0
    assert outcome.out.startswith(f"Usage: agevlm {' '.join(path)} [OPTIONS]")
    assert f"Example: agevlm {' '.join(path)}" in " ".join(outcome.out.split())
    for parameter in VERBS[path].params:
        assert parameter.help, f"{parameter.name} has no help"
        assert "\n" not in parameter.help


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_example_parses(path: tuple[str, ...]) -> None:
    import shlex

    example = shlex.split(VERBS[path].epilog.removeprefix("Example: agevlm"))
    assert example[: len(path)] == list(path)
    VERBS[path].make_context(" ".join(path), example[len(path) :])


def test_the_overview_names_each_verb_on_one_uncut_line(agevlm: Run) -> None:
    for group in ([], ["compare"], ["recipe"], ["scenes"], ["data"]):
        outcome = agevlm(*group, "--help")
        assert outcome.status == 0
        assert "..." not in outcome.out.replace("[ARGS]...", "")


def test_version(agevlm: Run) -> None:
    from agevlm import __version__

    assert agevlm("--version") == (0, f"agevlm {__version__}\n", "")


def test_the_module_runs_as_the_command_does() -> None:
    result = subprocess.run([sys.executable, "-m", "agevlm.cli", "--help"], check=True, capture_output=True, text=True)
    assert result.stdout.startswith("Usage: agevlm")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["look", "tiny"], "Missing argument 'image'"),
        (["evaluate", "tiny", "--out", "x", "--benchmrak", "scenes"], "--benchmrak"),
        (["scenes", "export", "--out", "x", "--format", "jpeg"], "'jpeg'"),
        (["scenes", "draw", "--out", "x", "--num", "0"], "'--num'"),
        (["train", "quickstart", "--seed", "one"], "'--seed'"),
    ],
)
def test_wrong_usage_is_status_2(agevlm: Run, arguments: list[str], words: str) -> None:
    outcome = agevlm(*arguments)
    assert outcome.status == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err


# ------------------------------------------------------------------------------------------------------ explanations


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int
    rate: float = 1.0


def raised(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is, is what the test is about
        action()
    return caught.value


def test_an_os_error_names_its_file_and_what_to_change() -> None:
    assert explain(raised(lambda: Path("no/such.yaml").read_text())) == [
        "no/such.yaml: there is no such file or directory: check the path"
    ]
    assert explain(PermissionError(errno.EACCES, "Permission denied", "/root/x")) == [
        "/root/x: permission denied: change its rights or choose another path"
    ]


def test_half_a_letter_in_an_error_is_escaped() -> None:
    assert explain(ValueError("version \udcff is none")) == ["version \\udcff is none"]


def test_a_full_disk_is_named_wherever_it_was_met() -> None:
    plain = OSError(errno.ENOSPC, "No space left on device", "runs/x")
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = plain
    native = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    saving = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 4096 vs 4000")
    in_saving = RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")
    for error in (plain, wrapped, native, saving, in_saving):
        (line,) = explain(error)
        assert line.startswith("no space left on the disk where ")
        assert "what was written before is whole" in line
    assert "runs/x" in explain(wrapped)[0]


def test_each_wrong_key_has_its_line() -> None:
    error = raised(lambda: Settings.model_validate({"steps": "many", "rats": 1}))
    assert isinstance(error, ValidationError)
    lines = explain(error)
    assert [line.split(":")[0] for line in lines] == ["steps", "rats"]
    assert "'many'" in lines[0]


def test_broken_yaml_is_placed() -> None:
    (line,) = explain(raised(lambda: yaml.safe_load("stages: [1\nseed: 2")))
    assert "line 2" in line


def test_several_lines_of_a_value_error_stay_lines_and_an_error_of_a_worker_loses_its_traceback() -> None:
    assert explain(ValueError("a.yaml: steps\nb.yaml:  rate\n")) == ["a.yaml: steps", "b.yaml: rate"]
    wrapped = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\n    raise\nValueError: cat.png: the image file is empty\n'
    )
    assert explain(ValueError(wrapped)) == ["cat.png: the image file is empty"]


def test_what_is_not_the_users_fault_keeps_its_name() -> None:
    assert explain(KeyError("grid")) == ["KeyError: 'grid' (run it again with --debug to see where)"]


# --------------------------------------------------------------------------------------------------------- bad input


def picture_bytes(size: tuple[int, int] = (40, 30)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format="PNG")
    return stream.getvalue()


def bomb_bytes() -> bytes:
    """A PNG of a few hundred bytes whose head says 60000 × 60000 pixels."""
    data = bytearray(picture_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


PICTURES: dict[str, tuple[bytes | None, str]] = {
    "not an image": (b"just text, and no picture", "not an image"),
    "truncated": (picture_bytes()[:-900], "truncated"),
    "no bytes": (b"", "empty"),
    "bomb": (bomb_bytes(), "million"),
    "missing": (None, "no such file"),
}


def check_refused(outcome: Outcome, *words: str) -> None:
    """One line, a status, no traceback."""
    assert outcome.status == 1, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize("case", PICTURES)
def test_look_refuses_what_is_no_picture(agevlm: Run, tmp_path: Path, case: str) -> None:
    data, words = PICTURES[case]
    picture, out = tmp_path / "picture.png", tmp_path / "look.png"
    if data is not None:
        picture.write_bytes(data)
    out.write_text("old")
    check_refused(agevlm("look", "tiny", picture, "is there a fish?", "--out", out), str(picture), words)
    assert out.read_text() == "old"


def coco(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A small COCO set of two good pictures: annotation file, pictures, content."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("one.png", "two.png"):
        (images / name).write_bytes(picture_bytes())
    square = [5.0, 5.0, 20.0, 5.0, 20.0, 20.0, 5.0, 20.0]
    content: dict[str, Any] = {
        "images": [
            {"id": 1, "file_name": "one.png", "height": 30, "width": 40},
            {"id": 2, "file_name": "two.png", "height": 30, "width": 40},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 8, "name": "cat"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 7, "segmentation": [square], "bbox": [5, 5, 15, 15], "iscrowd": 0},
            {"id": 12, "image_id": 2, "category_id": 8, "segmentation": [square], "bbox": [5, 5, 15, 15], "iscrowd": 0},
        ],
    }
    return tmp_path / "instances.json", images, content


def convert(agevlm: Run, path: Path, images: Path, out: Path, *options: str) -> Outcome:
    return agevlm("data", "coco", "--instances", path, "--images", images, "--out", out, *options)


ANNOTATIONS: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "unknown category": (lambda c: c["annotations"][1].update(category_id=99), ("12", "99")),
    "no such image": (lambda c: c["annotations"][1].update(image_id=99), ("12", "99")),
    "polygon outside": (
        lambda c: c["annotations"][1].update(segmentation=[[105.0, 5.0, 120.0, 5.0, 120.0, 20.0]]),
        ("12", "outside"),
    ),
    "no annotations and no images": (lambda c: c.update(images=[], annotations=[]), ("instances.json",)),
    "image that is missing": (lambda c: c["images"][1].update(file_name="three.png"), ("three.png",)),
    "other size": (lambda c: c["images"][1].update(height=60), ("two.png", "60")),
    "not COCO": (lambda c: c.pop("images"), ("images",)),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_data_coco_refuses_bad_annotations_and_keeps_what_was_there(agevlm: Run, tmp_path: Path, case: str) -> None:
    path, images, content = coco(tmp_path)
    out = tmp_path / "out"
    path.write_text(json.dumps(content))
    assert convert(agevlm, path, images, out).status == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    spoil, words = ANNOTATIONS[case]
    spoil(content)
    path.write_text(json.dumps(content))
    check_refused(convert(agevlm, path, images, out), *words)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "instances.json", "out"]


@pytest.mark.parametrize("case", PICTURES)
def test_data_coco_refuses_bad_pictures_unless_told_to_leave_them_out(agevlm: Run, tmp_path: Path, case: str) -> None:
    path, images, content = coco(tmp_path)
    path.write_text(json.dumps(content))
    data, _ = PICTURES[case]
    (images / "two.png").unlink()
    if data is not None:
        (images / "two.png").write_bytes(data)
    check_refused(convert(agevlm, path, images, tmp_path / "out"), "two.png")
    assert not (tmp_path / "out").exists()
    outcome = convert(agevlm, path, images, tmp_path / "out", "--skip-broken", "--skip-missing")
    assert outcome.status == 0, outcome
    assert "left out" in outcome.out
    assert "1 samples" in outcome.out


def test_data_coco_names_a_file_that_is_missing_or_not_json(agevlm: Run, tmp_path: Path) -> None:
    path, images, _ = coco(tmp_path)
    check_refused(convert(agevlm, path, images, tmp_path / "out"), str(path))
    path.write_text("{broken")
    check_refused(convert(agevlm, path, images, tmp_path / "out"), str(path), "JSON")


def test_data_inspect_names_what_is_no_dataset(agevlm: Run, tmp_path: Path) -> None:
    check_refused(agevlm("data", "inspect", tmp_path / "nowhere"), "nowhere")
    check_refused(agevlm("data", "inspect", tmp_path), "dataset.json")


RECIPES = {
    "wrong type": ("stages: [{name: a, trainable: [projector], steps: many}]", ("stages.0.steps", "'many'")),
    "unknown key": ("stages: [{name: a, trainable: [projector], steps: 1, learnin_rate: 1}]", ("'learning_rate'",)),
    "no stages": ("seed: 1", ("stages",)),
    "not YAML": ("stages: [1\nseed: 2", ("not YAML",)),
    "empty": ("", ("recipe.yaml",)),
}


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("verb", [("recipe", "show"), ("train",)], ids=" ".join)
def test_a_wrong_recipe_is_refused(agevlm: Run, tmp_path: Path, verb: tuple[str, ...], case: str) -> None:
    text, words = RECIPES[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    out = [] if verb[0] == "recipe" else ["--out", tmp_path / "run"]
    check_refused(agevlm(*verb, path, *out), "recipe.yaml", *words)
    assert not (tmp_path / "run").exists()


def test_every_recipe_that_is_listed_can_be_shown(agevlm: Run) -> None:
    listed = dict(line.split(maxsplit=1) for line in agevlm("recipe", "list").out.splitlines())
    assert {"quickstart", "comparison", "photos"} <= set(listed)
    assert all(purpose[-1] in ".:" for purpose in listed.values()), listed
    for name in listed:
        shown = agevlm("recipe", "show", name)
        assert shown.status == 0, shown.err
        assert yaml.safe_load(shown.out)["name"]


def test_a_recipe_that_does_not_exist_gets_the_nearest_name(agevlm: Run) -> None:
    check_refused(agevlm("recipe", "show", "quikstart"), "'quikstart'", "Did you mean 'quickstart'")


def test_each_wrong_override_is_one_line(agevlm: Run) -> None:
    outcome = agevlm("recipe", "show", "quickstart", "--set", "seeds=1", "--set", "stages.0.steps=0")
    assert outcome.status == 1
    assert [line.split(": ")[0] for line in outcome.err.splitlines()] == ["error", "error"]
    assert "'seed'" in outcome.err
    assert "stages.0.steps" in outcome.err


def test_a_checkpoint_of_another_architecture_is_named(agevlm: Run, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(picture_bytes())
    other = tmp_path / "llama"
    other.mkdir()
    check_refused(agevlm("look", other, picture, "is there a fish?"), str(other), "config.json")
    (other / "config.json").write_text('{"model_type": "llama"}')
    check_refused(agevlm("look", other, picture, "is there a fish?"), str(other), "'llama'", "vision-language model")
    check_refused(agevlm("look", "tinny", picture, "is there a fish?"), "'tinny'", "Did you mean 'tiny'")


def test_report_names_a_run_that_is_not_there(agevlm: Run, tmp_path: Path) -> None:
    check_refused(agevlm("report", tmp_path / "run"), str(tmp_path / "run"))


def test_debug_shows_the_traceback_wherever_it_stands(agevlm: Run, tmp_path: Path) -> None:
    for arguments in (["--debug", "report", tmp_path / "run"], ["report", tmp_path / "run", "--debug"]):
        outcome = agevlm(*arguments)
        assert outcome.status == 1
        assert "Traceback" in outcome.err
        assert outcome.err.splitlines()[-1].startswith("error: ")


# ------------------------------------------------------------------------------------------------------------- looking


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model on disk."""
    from tiny_models import make_model, make_processor

    directory = tmp_path_factory.mktemp("checkpoints") / "random"
    make_model().save_pretrained(directory)
    make_processor().save_pretrained(directory)
    return directory


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A picture of 40 × 30 pixels."""
    path = tmp_path / "picture.png"
    path.write_bytes(picture_bytes())
    return path


def test_similarity_writes_figures_and_their_picture(agevlm: Run, tmp_path: Path, checkpoint: Path) -> None:
    out, picture = tmp_path / "similarity.json", tmp_path / "similarity.png"
    outcome = agevlm("similarity", checkpoint, "--out", out, "--figure", picture, "--num-images", 4)
    assert outcome.status == 0, outcome.err
    record = json.loads(out.read_text(encoding="utf-8"))
    assert f"{record['measures']['query_key_cosine']['auroc']:.3f}" in outcome.out
    assert f"{record['headline_layer']}*" in outcome.out
    assert Image.open(picture).format == "PNG"
    check_refused(agevlm("similarity", checkpoint, "--out", out, "--benchmark", tmp_path / "none"), "none")


def test_look_answers_and_writes_picture_and_maps(
    agevlm: Run, tmp_path: Path, checkpoint: Path, photograph: Path
) -> None:
    out, maps = tmp_path / "look.png", tmp_path / "maps.npz"
    arguments = ["look", checkpoint, photograph, "is there a fish ?", "--max-new-tokens", 3]
    plain = agevlm(*arguments)
    outcome = agevlm(*arguments, "--out", out, "--maps", maps)
    assert (plain.status, outcome.status) == (0, 0), (plain, outcome)
    assert outcome.out.startswith(plain.out)
    assert Image.open(out).width > 100
    with np.load(maps) as arrays:
        assert arrays["words"][0] == "fish"
        assert arrays["maps"].shape[1:] == (4, 4)
        assert str(arrays["answer"]) == plain.out.strip()


def test_look_refuses_a_question_without_text_and_a_layer_that_is_not_there(
    agevlm: Run, checkpoint: Path, photograph: Path
) -> None:
    check_refused(agevlm("look", checkpoint, photograph, "  "), "question has no text")
    check_refused(agevlm("look", checkpoint, photograph, "a fish ?", "--layer", 9), "9")
    check_refused(agevlm("look", checkpoint, photograph, "a fish ?", "--device", "warp"), "'warp'", "cpu")
    check_refused(agevlm("look", checkpoint, photograph, "a fish ?", "--dtype", "int3"), "'int3'", "float32")


def test_look_refuses_an_ending_that_is_no_picture(
    agevlm: Run, tmp_path: Path, checkpoint: Path, photograph: Path
) -> None:
    outcome = agevlm("look", checkpoint, photograph, "a fish ?", "--out", tmp_path / "look.txt")
    check_refused(outcome, "look.txt", ".png")


def test_weights_that_are_cut_off_are_named(agevlm: Run, tmp_path: Path, checkpoint: Path, photograph: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    check_refused(agevlm("look", broken, photograph, "a fish ?"), str(broken))
    weights.unlink()
    check_refused(agevlm("look", broken, photograph, "a fish ?"), str(broken))


def test_a_full_disk_keeps_the_picture_of_before(
    agevlm: Run, tmp_path: Path, checkpoint: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def fill_the_disk(self: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half a pic")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    out = tmp_path / "look.png"
    out.write_text("old")
    monkeypatch.setattr(Figure, "savefig", fill_the_disk)
    check_refused(agevlm("look", checkpoint, photograph, "a fish ?", "--out", out), "no space left", "look.png")
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["look.png", "picture.png"]


def test_control_c_is_status_130(agevlm: Run, monkeypatch: pytest.MonkeyPatch, photograph: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agevlm.data.images.open_image", interrupt)
    outcome = agevlm("look", "tiny", photograph, "a fish ?")
    assert outcome.status == 130
    assert "Traceback" not in outcome.err


def test_the_command_that_goes_on_tells_no_secret() -> None:
    secrets = ["--api-key", "s3cr3t", "--hub-token=s3cr3t", "--password", "s3cr3t", "--tokens", "144", "a b"]
    assert _how_to_go_on(["data", "convert", *secrets]) == (
        ": nothing half-written was left; begin again with: "
        "agevlm data convert --api-key '***' '--hub-token=***' --password '***' --tokens 144 'a b'"
    )
    for conversation in (["serve", "tiny", *secrets], ["chat", "tiny"]):
        assert _how_to_go_on(conversation) == ""


def launch(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """This process is one of two, as torchrun and accelerate start them."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


def test_a_launch_goes_on_with_the_same_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # a scheduler's, which nobody launched by
    assert _how_to_go_on(["train", "r.yaml"]).endswith("go on with: agevlm train r.yaml --resume")
    launch(monkeypatch, 0)
    assert _how_to_go_on(["train", "r.yaml"]) == (
        ": what was trained is kept; go on with the same launch of 2 processes: agevlm train r.yaml --resume"
    )


def test_of_a_launch_another_process_than_the_first_says_that_it_is(
    agevlm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agevlm.cli._ENDED_S", 0.0)
    launch(monkeypatch, 0)
    first = agevlm("report", tmp_path / "run")
    launch(monkeypatch, 1)
    other = agevlm("report", tmp_path / "run")
    assert (first.status, other.status) == (1, 1)
    assert first.err.startswith("error: ") and other.err == f"process 1: {first.err}"


# ---------------------------------------------------------------------------------------------------- the whole way


@pytest.mark.parametrize("format_", ["coco", "parquet"])
def test_scenes_export_is_the_same_for_a_seed_and_spares_what_is_not_its_own(
    agevlm: Run, tmp_path: Path, format_: str
) -> None:
    out = tmp_path / "world"
    arguments = ["scenes", "export", "--out", out, "--num", 3, "--format", format_]
    assert agevlm(*arguments).status == 0
    first = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert agevlm(*arguments).status == 0
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == first
    assert agevlm(*arguments, "--seed", 1).status == 0
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} != first
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    check_refused(agevlm("scenes", "export", "--out", tmp_path, "--format", format_), str(tmp_path), "would be lost")
    check_refused(agevlm("scenes", "export", "--out", thesis, "--format", format_), str(thesis), "would be lost")
    assert thesis.read_text() == "years of work"


def test_scenes_draw_writes_pictures(agevlm: Run, tmp_path: Path) -> None:
    outcome = agevlm("scenes", "draw", "--out", tmp_path / "pictures", "--num", 2, "--image-size", 128)
    assert outcome.status == 0
    assert [Image.open(p).size for p in (tmp_path / "pictures").iterdir()] == [(128, 128)] * 2


FOUNDATION = """
num_scenes: 16
num_workers: 0
vision: {steps: 1, batch_size: 4, hidden_sizes: [8, 16], depths: [1, 1]}
language: {steps: 1, batch_size: 4, hidden_size: 32, intermediate_size: 48}
"""


@pytest.mark.slow
def test_the_whole_way_from_nothing_to_a_report(agevlm: Run, tmp_path: Path) -> None:
    recipe, base, run = tmp_path / "foundation.yaml", tmp_path / "base", tmp_path / "run"
    recipe.write_text(FOUNDATION)
    assert agevlm("scenes", "foundation", "--out", base, "--recipe", recipe).status == 0
    values = {
        "model.language_model": base / "tiny-llama",
        "model.vision_model": base / "tiny-convnext",
        "data.scenes.num_scenes": 16,
        "num_workers": 0,
        "evaluation.num_images": 2,
        **{f"stages.{index}.steps": 1 for index in range(4)},
    }
    train = ["train", "quickstart", "--out", run]
    for key, value in values.items():
        train += ["--set", f"{key}={value}"]
    dry = agevlm(*train, "--dry-run")
    assert (dry.status, run.exists()) == (0, False), dry
    outcome = agevlm(*train)
    assert outcome.status == 0, outcome
    assert "pope.adversarial" in outcome.out
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "<html" in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    check_refused(agevlm(*train), str(run), "--resume")
    assert agevlm(*train, "--resume").status == 0
    (run / "report.html").unlink()
    assert agevlm("report", run).status == 0
    assert (run / "report.html").exists()
    assert agevlm("scenes", "draw", "--out", tmp_path / "pictures", "--num", 1).status == 0
    (picture,) = (tmp_path / "pictures").iterdir()
    assert agevlm("look", run / "model", picture, "is there a fish?", "--max-new-tokens", 2).status == 0
    assert agevlm("scenes", "export", "--out", tmp_path / "data", "--num", 2, "--format", "parquet").status == 0
    evaluated = agevlm("evaluate", run / "model", "--benchmark", tmp_path / "data", "--out", tmp_path / "measured")
    assert evaluated.status == 0, evaluated
    metrics = json.loads((tmp_path / "measured" / "metrics.json").read_text(encoding="utf-8"))
    assert 0 <= metrics["pope"]["adversarial"]["accuracy"] <= 1
