"""Runs extract.py as a job would run it: as a program, on files, with qctl's variables."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

PROGRAM = Path(__file__).parent.parent / "extract.py"
QCTL = ("QCTL_CHECKPOINT_DIR", "QCTL_RESUME_FROM", "QCTL_PROGRESS", "TRACKER_WORKSPACE")


def command(*arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in QCTL}
    environment |= {name: str(value) for name, value in variables.items()}
    return {
        "args": [sys.executable, str(PROGRAM), *map(str, arguments)],
        "env": environment | {"PYTHONUNBUFFERED": "1"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def extract(*arguments, **variables):
    return subprocess.run(**command(*arguments, **variables), timeout=120)


def scene(seed=0, side=160):
    """A red disc on a noisy green ground, and where the disc is."""
    random = np.random.default_rng(seed)
    picture = np.full((side, side * 4 // 3, 3), (60, 140, 60), np.float32)
    picture += random.normal(0, 8, picture.shape)
    y, x = np.indices(picture.shape[:2])
    disc = (x - side * 0.65) ** 2 + (y - side * 0.5) ** 2 < (side * 0.28) ** 2
    picture[disc] = (40, 40, 210) + random.normal(0, 8, (int(disc.sum()), 3))
    return np.clip(picture, 0, 255).astype(np.uint8), disc


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(1, 5):
        cv2.imwrite(str(folder / f"disc{number}.png"), scene(seed=number)[0])
    return folder


def manifest(results):
    return {entry["source"]: entry for entry in json.loads((results / "manifest.json").read_text())["pictures"]}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_subject_is_kept_and_the_rest_is_transparent(tmp_path):
    picture, disc = scene()
    cv2.imwrite(str(tmp_path / "disc.png"), picture)
    ran = extract(tmp_path / "disc.png", tmp_path / "cut.png")
    assert ran.returncode == 0, ran.stderr
    cut = cv2.imread(str(tmp_path / "cut.png"), cv2.IMREAD_UNCHANGED)
    assert cut.shape[2] == 4
    # The result is cropped: the disc's box is where it lies in the picture.
    rows, columns = np.flatnonzero(disc.any(axis=1)), np.flatnonzero(disc.any(axis=0))
    assert abs(cut.shape[0] - len(rows)) <= 12 and abs(cut.shape[1] - len(columns)) <= 12
    opaque = cut[:, :, 3] > 127
    assert abs(int(opaque.sum()) - int(disc.sum())) < disc.sum() * 0.08
    assert cut[opaque][:, 2].mean() > 180, "the disc is red"
    assert (cut[cut[:, :, 3] == 0] == 0).all(), "nothing hides where it is transparent"


def test_a_batch_counts_and_leaves_a_manifest_with_true_hashes(tmp_path, pictures):
    results = tmp_path / "extracted"
    ran = extract("--batch", pictures, results)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert "4 cut out" in lines[4]
    for source, entry in manifest(results).items():
        assert entry["state"] == "cut"
        assert entry["source_sha256"] == sha256(pictures / source)
        assert entry["output_sha256"] == sha256(results / entry["output"])
    sheet = cv2.imread(str(results / "contact-sheet.png"))
    assert sheet is not None and sheet.shape[1] == 4 * 160
    assert not list(results.glob(".*")), "nothing half-written stays behind"


def test_the_same_picture_gives_the_same_bytes(tmp_path, pictures):
    extract("--batch", pictures, tmp_path / "a")
    extract("--batch", pictures, tmp_path / "b")
    hashes = [{name: entry["output_sha256"] for name, entry in manifest(tmp_path / run).items()} for run in "ab"]
    assert hashes[0] == hashes[1]


def test_a_bare_batch_works_on_the_trackers_workspace(tmp_path, pictures):
    ran = extract("--batch", TRACKER_WORKSPACE=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert len(manifest(tmp_path / "extracted")) == 4
    without = extract("--batch")
    assert without.returncode == 2 and "TRACKER_WORKSPACE" in without.stderr


def test_an_unreadable_picture_stops_nobody_and_is_named_at_the_end(tmp_path, pictures):
    whole = (pictures / "disc2.png").read_bytes()
    (pictures / "disc2.png").write_bytes(whole[: len(whole) // 20])
    (pictures / "empty.jpg").touch()
    (pictures / "text.jpg").write_text("no picture")
    (pictures / "gone.png").symlink_to("nowhere")
    ran = extract("--batch", pictures, tmp_path / "out")
    assert ran.returncode == 1
    assert "[7/7]" in ran.stdout
    for name in ("disc2.png", "empty.jpg", "text.jpg", "gone.png"):
        assert any(name in line for line in ran.stderr.splitlines() if line.startswith("error:")), ran.stderr
    states = {name: entry["state"] for name, entry in manifest(tmp_path / "out").items()}
    assert [states[f"disc{number}.png"] for number in (1, 3, 4)] == ["cut"] * 3
    assert list(states.values()).count("unreadable") == 4


def test_a_flat_picture_has_no_subject_and_is_no_error(tmp_path, pictures):
    cv2.imwrite(str(pictures / "flat.png"), np.full((100, 100, 3), 128, np.uint8))
    cv2.imwrite(str(pictures / "dot.png"), np.full((1, 1, 3), 128, np.uint8))
    ran = extract("--batch", pictures, tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    states = {name: entry["state"] for name, entry in manifest(tmp_path / "out").items()}
    assert states["flat.png"] == states["dot.png"] == "nothing_found"


def test_killed_in_the_middle_it_resumes_with_what_remains(tmp_path, pictures):
    first, second = tmp_path / "attempt1", tmp_path / "attempt2"
    first.mkdir()
    second.mkdir()
    results = tmp_path / "out"
    process = subprocess.Popen(**command("--batch", pictures, results, QCTL_CHECKPOINT_DIR=first))
    # A line is printed once its picture is in the checkpoint.
    assert process.stdout.readline().startswith("[1/4]")
    assert process.stdout.readline().startswith("[2/4]")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {entry["source"] for entry in json.loads((first / "extracted.json").read_text())["pictures"]}
    assert {"disc1.png", "disc2.png"} <= done
    # Without the checkpoint the results' own manifest would do; this is about the checkpoint.
    (results / "manifest.json").unlink(missing_ok=True)
    times = {name: (results / f"{name}").stat().st_mtime_ns for name in ("disc1.png", "disc2.png")}

    ran = extract("--batch", pictures, results, QCTL_CHECKPOINT_DIR=second, QCTL_RESUME_FROM=first)
    assert ran.returncode == 0, ran.stderr
    earlier = [line for line in ran.stdout.splitlines() if "done earlier" in line and line.startswith("[")]
    assert [line.split()[1] for line in earlier[:2]] == ["disc1.png:", "disc2.png:"]
    assert all((results / name).stat().st_mtime_ns == when for name, when in times.items())
    assert len(json.loads((second / "extracted.json").read_text())["pictures"]) == 4
    assert all(entry["state"] == "cut" for entry in manifest(results).values())


def test_an_interrupted_resume_forgets_nothing(tmp_path, pictures):
    whole, third = tmp_path / "whole", tmp_path / "third"
    whole.mkdir()
    third.mkdir()
    results = tmp_path / "out"
    extract("--batch", pictures, results, QCTL_CHECKPOINT_DIR=whole)
    (results / "manifest.json").unlink()
    # The resume is killed after its first picture; what it had not come to must still be on record.
    process = subprocess.Popen(**command("--batch", pictures, results, QCTL_CHECKPOINT_DIR=third, QCTL_RESUME_FROM=whole))
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert len(json.loads((third / "extracted.json").read_text())["pictures"]) == 4


def test_a_second_run_does_only_what_changed(tmp_path, pictures):
    results = tmp_path / "out"
    extract("--batch", pictures, results)
    cv2.imwrite(str(pictures / "disc2.png"), scene(seed=99)[0])
    (results / "disc3.png").write_bytes(b"damaged")
    ran = extract("--batch", pictures, results)
    redone = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("[") and "done earlier" not in line]
    assert redone == ["disc2.png:", "disc3.png:"]
    ran = extract("--batch", pictures, results, "--again")
    assert "done earlier" not in ran.stdout.splitlines()[0]
    ran = extract("--batch", pictures, results, "--size", "128")
    assert "done earlier" not in ran.stdout.splitlines()[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99}', b'{"format": 1, "pictures": [1, {"source": "disc1.png"}]}'])
def test_a_broken_checkpoint_costs_time_only(tmp_path, pictures, content):
    broken = tmp_path / "attempt1"
    broken.mkdir()
    (broken / "extracted.json").write_bytes(content)
    ran = extract("--batch", pictures, tmp_path / "out", QCTL_RESUME_FROM=broken)
    assert ran.returncode == 0, ran.stderr
    assert "0 of them done earlier" in ran.stdout


def test_progress_is_reported_line_by_line(tmp_path, pictures):
    pipe = tmp_path / "progress"
    os.mkfifo(pipe)
    # As the shim does: open for reading and writing, so that neither side waits for the other.
    reader = os.open(pipe, os.O_RDWR)
    seen = bytearray()

    def collect():
        while not seen.endswith(b"\n") or seen.count(b"\n") < 5:
            seen.extend(os.read(reader, 4096))

    collector = threading.Thread(target=collect, daemon=True)
    collector.start()
    ran = extract("--batch", pictures, tmp_path / "out", QCTL_PROGRESS=pipe)
    assert ran.returncode == 0, ran.stderr
    collector.join(timeout=30)
    reports = [json.loads(line) for line in seen.splitlines()]
    assert [(report["done"], report["total"]) for report in reports] == [(done, 4) for done in range(5)]
    assert {report["unit"] for report in reports} == {"images"}
    os.close(reader)


def test_nobody_listening_for_progress_does_not_matter(tmp_path, pictures):
    pipe = tmp_path / "progress"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path / "absent"):
        ran = extract("--batch", pictures, tmp_path / "out", QCTL_PROGRESS=path)
        assert ran.returncode == 0
        assert "no progress is reported" in ran.stderr


def test_pictures_of_one_name_get_results_of_their_own(tmp_path, pictures):
    cv2.imwrite(str(pictures / "disc1.jpg"), scene(seed=7)[0])
    cv2.imwrite(str(pictures / "manifest.png"), scene(seed=8)[0])
    cv2.imwrite(str(pictures / "contact-sheet.png"), scene(seed=9)[0])
    extract("--batch", pictures, tmp_path / "out")
    outputs = [entry["output"] for entry in manifest(tmp_path / "out").values()]
    assert len(outputs) == len(set(outputs)) == 7
    assert all((tmp_path / "out" / output).is_file() for output in outputs)
    assert "contact-sheet.png" not in outputs


def test_names_with_odd_characters_are_carried_through(tmp_path, pictures):
    os.rename(pictures / "disc1.png", pictures / "円 盤'\".png")
    os.rename(bytes(pictures / "disc2.png"), bytes(pictures) + b"/\xff.png")
    ran = extract("--batch", pictures, tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert {"円 盤'\".png", os.fsdecode(b"\xff.png")} <= manifest(tmp_path / "out").keys()
    assert "4 of them done earlier" in extract("--batch", pictures, tmp_path / "out").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a picture"),
        (["absent.png"], "absent.png"),
        (["--batch", "absent"], "absent"),
        (["--batch", "empty"], "no picture in"),
        (["empty"], "--batch"),
        (["disc.png", "disc.png"], "overwrite"),
        (["disc.png", "out.jpg"], ".png"),
        (["--batch", "one", "one"], "folder of their own"),
        (["--size", "7", "disc.png"], "between 64 and 4096"),
        (["huge.png"], "OpenCV refuses"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    cv2.imwrite("disc.png", scene()[0])
    cv2.imwrite("one/disc.png", scene()[0])
    # Claims to be 60,000 pixels wide and high.
    data = bytearray(Path("disc.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    Path("huge.png").write_bytes(data)
    ran = extract(*arguments)
    assert ran.returncode in (1, 2)
    assert told in ran.stderr, ran.stderr
    assert "Traceback" not in ran.stderr
