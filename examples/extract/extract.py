#!/usr/bin/env python3
"""Cuts the main subject out of pictures and writes it as a PNG with a transparent background.

    extract.py PICTURE [RESULT.png]            one picture
    extract.py --batch [PICTURES [RESULTS]]    every picture of a folder

A batch writes a file per picture, `manifest.json` with the hash of everything read and written,
and `contact-sheet.png` to look at it all at once. It is made to be interrupted: every file appears
whole or not at all, a checkpoint follows each picture, and a later run does only what remains.

It knows these variables, which qctl sets for a job, and needs none of them:

    QCTL_CHECKPOINT_DIR   folder for this attempt's checkpoint, published by `qctl checkpoint`
    QCTL_RESUME_FROM      the checkpoint that an earlier attempt published last
    QCTL_PROGRESS         where reports of progress go, a JSON object a line
    TRACKER_WORKSPACE     a bare --batch reads images/ and writes extracted/ below it
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

# OpenCV reads its limit when it is imported: a picture beyond it is refused before memory is taken.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))

try:
    import cv2
    import numpy as np
except ImportError as missing:
    sys.exit(
        f"error: {missing.name} is not installed for {sys.executable}\n"
        "  hint: examples/extract/install makes a Python that has it"
    )

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MANIFEST = "manifest.json"
CONTACT_SHEET = "contact-sheet.png"
CHECKPOINT = "extracted.json"
FORMAT = 1

CUT, NOTHING_FOUND, UNREADABLE = "cut", "nothing_found", "unreadable"


class Failure(Exception):
    """What went wrong, in a sentence for the person who started this."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What became of one picture. Field names are those of manifest.json."""

    source: str
    source_sha256: str
    state: str
    size: int
    output: str | None = None
    output_sha256: str | None = None
    width: int | None = None
    height: int | None = None
    # Left, top, width and height of the subject in the picture, in pixels.
    box: tuple[int, int, int, int] | None = None
    # Share of the picture that the subject covers.
    coverage: float | None = None
    error: str | None = None
    seconds: float = 0.0

    @staticmethod
    def parse(fields: object) -> Record | None:
        """Reads a record; None when it is not one, because then the picture is simply done again."""
        if not isinstance(fields, dict) or not {"source", "source_sha256", "state", "size"} <= fields.keys():
            return None
        known = {field.name for field in dataclasses.fields(Record)}
        fields = {key: value for key, value in fields.items() if key in known}
        if fields.get("box") is not None:
            fields["box"] = tuple(fields["box"])
        return Record(**fields)


# --- pictures -----------------------------------------------------------------------------------


def decode(data: bytes) -> np.ndarray:
    """Decodes a picture to 8-bit colour, upright."""
    if not data:
        raise Failure("the file is empty")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as refused:
        raise Failure(f"OpenCV refuses it: {refused.err}") from refused
    if picture is None:
        raise Failure("it is not a picture that OpenCV can read, or it is cut short")
    return picture


def saliency(picture: np.ndarray) -> np.ndarray:
    """How much each pixel stands out from the picture's edge, 0 to 1.

    The edge of a picture is mostly background. Its colours are summed up in a few clusters, and a
    pixel stands out by its distance to the nearest of them, the more so near the middle.
    """
    height, width = picture.shape[:2]
    lab = cv2.cvtColor(cv2.GaussianBlur(picture, (0, 0), 1.5), cv2.COLOR_BGR2Lab).astype(np.float32)
    band = max(2, min(height, width) // 20)
    edge = np.concatenate(
        [lab[:band].reshape(-1, 3), lab[-band:].reshape(-1, 3), lab[:, :band].reshape(-1, 3), lab[:, -band:].reshape(-1, 3)]
    )
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, labels, centres = cv2.kmeans(edge, min(5, len(edge)), None, criteria, 1, cv2.KMEANS_PP_CENTERS)
    share = np.bincount(labels.ravel(), minlength=len(centres)) / len(edge)
    # A colour that is rare at the edge may be the subject touching it.
    centres = centres[share >= 0.05]
    distance = np.min([np.linalg.norm(lab - centre, axis=2) for centre in centres], axis=0)

    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    middle = np.exp(-(x * x + y * y) / 0.9)
    stands_out = cv2.GaussianBlur(distance * middle, (0, 0), max(height, width) / 80)
    peak = float(stands_out.max())
    return stands_out / peak if peak > 0 else stands_out


def first_guess(stands_out: np.ndarray) -> np.ndarray:
    """A GrabCut mask from what stands out, or from a rectangle when that says nothing."""
    height, width = stands_out.shape
    grey = (stands_out * 255).astype(np.uint8)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    share = float((grey > threshold).mean())
    mask = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    if 0.02 <= share <= 0.7:
        mask[grey > threshold] = cv2.GC_PR_FGD
        mask[grey < threshold * 0.25] = cv2.GC_BGD
    else:
        mask[height // 8 : height - height // 8, width // 8 : width - width // 8] = cv2.GC_PR_FGD
    ring = max(1, min(height, width) // 50)
    mask[:ring] = mask[-ring:] = cv2.GC_BGD
    mask[:, :ring] = mask[:, -ring:] = cv2.GC_BGD
    return mask


def tidy(subject: np.ndarray, stands_out: np.ndarray) -> np.ndarray:
    """Drops crumbs and fills holes: keeps the part that stands out most, and parts of like weight."""
    reach = max(3, min(subject.shape) // 100 | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    subject = cv2.morphologyEx(subject, cv2.MORPH_OPEN, kernel)
    subject = cv2.morphologyEx(subject, cv2.MORPH_CLOSE, kernel)
    count, labels = cv2.connectedComponents(subject)
    weight = np.bincount(labels.ravel(), weights=stands_out.ravel(), minlength=count)
    weight[0] = 0
    kept = np.isin(labels, np.flatnonzero(weight >= max(weight.max() * 0.2, 1e-9))).astype(np.uint8)
    outlines, _ = cv2.findContours(kept, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(kept)
    small_hole = kept.size // 500
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    holes, hole_labels = cv2.connectedComponents(filled - kept)
    area = np.bincount(hole_labels.ravel(), minlength=holes)
    keep_open = np.flatnonzero(area > small_hole)
    filled[np.isin(hole_labels, keep_open[keep_open > 0])] = 0
    return filled


def find_subject(picture: np.ndarray, size: int) -> np.ndarray | None:
    """Opacity of each pixel, 0 to 255; None when nothing stands out.

    GrabCut's time grows with the area, so it works on a copy of at most `size` pixels a side.
    """
    # GrabCut and k-means draw from one generator; the same picture must give the same bytes.
    cv2.setRNGSeed(1)
    height, width = picture.shape[:2]
    if min(height, width) < 16:
        return None
    scale = min(1.0, size / max(height, width))
    small = picture
    if scale < 1:
        shape = (max(16, round(width * scale)), max(16, round(height * scale)))
        small = cv2.resize(picture, shape, interpolation=cv2.INTER_AREA)
    stands_out = saliency(small)
    if float(stands_out.max()) == 0:
        return None
    mask = first_guess(stands_out)
    try:
        cv2.grabCut(small, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        # It cannot model a picture of one flat colour.
        return None
    subject = tidy(np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8), stands_out)
    if not 0.005 <= float(subject.mean()) <= 0.95:
        return None
    opacity = cv2.GaussianBlur(subject * np.float32(255), (0, 0), 1.0)
    opacity = cv2.resize(opacity, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(opacity, 0, 255).astype(np.uint8)


def cut_out(picture: np.ndarray, opacity: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The subject alone, as BGRA cropped to it with a small margin, and where it was."""
    left, top, width, height = cv2.boundingRect((opacity > 8).astype(np.uint8))
    margin = max(2, max(width, height) // 50)
    right, bottom = min(picture.shape[1], left + width + margin), min(picture.shape[0], top + height + margin)
    left, top = max(0, left - margin), max(0, top - margin)
    cut = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
    cut[:, :, 3] = opacity
    # Hidden colours would survive in the file and compress badly.
    cut[opacity == 0] = 0
    return cut[top:bottom, left:right], (left, top, right - left, bottom - top)


def contact_sheet(entries: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Small views of all results with their names, on a chequered ground that shows transparency."""
    tile, caption, columns = 160, 18, min(6, max(1, len(entries)))
    rows = -(-len(entries) // columns)
    y, x = np.indices((tile, tile)) // 10
    chequer = np.where(((x + y) % 2)[:, :, None] == 0, 215, 245).astype(np.uint8).repeat(3, axis=2)
    sheet = np.full((rows * (tile + caption), columns * tile, 3), 255, np.uint8)
    for index, (name, cut) in enumerate(entries):
        scale = (tile - 12) / max(cut.shape[:2])
        shape = (max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale)))
        view = cv2.resize(cut, shape, interpolation=cv2.INTER_AREA)
        ground = chequer.copy()
        top, left = (tile - view.shape[0]) // 2, (tile - view.shape[1]) // 2
        part = ground[top : top + view.shape[0], left : left + view.shape[1]]
        opacity = view[:, :, 3:].astype(np.float32) / 255
        part[:] = (view[:, :, :3] * opacity + part * (1 - opacity)).astype(np.uint8)
        row, column = divmod(index, columns)
        at = (row * (tile + caption), column * tile)
        sheet[at[0] : at[0] + tile, at[1] : at[1] + tile] = ground
        # OpenCV's own letters are ASCII only.
        label = name.encode("ascii", "replace").decode()[:24]
        cv2.putText(sheet, label, (at[1] + 4, at[0] + tile + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (60, 60, 60), 1, cv2.LINE_AA)
    return sheet


# --- files --------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a run after a crash, finds all of it or none."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as failed:
        part.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {failed.strerror}") from failed


def png(picture: np.ndarray) -> bytes:
    good, data = cv2.imencode(".png", picture)
    if not good:
        raise Failure("OpenCV could not encode the result")
    return data.tobytes()


def as_json(records: list[Record]) -> bytes:
    document = {"format": FORMAT, "pictures": [dataclasses.asdict(record) for record in records]}
    # A file name need not be text; what is not becomes an escape that reads back as the same name.
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def read_records(path: Path) -> dict[str, Record]:
    """What an earlier run recorded. A file that cannot be used costs time, never correctness."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as unusable:
        print(f"warning: {path} is not used: {unusable}", file=sys.stderr)
        return {}
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        print(f"warning: {path} is not used: it has another format", file=sys.stderr)
        return {}
    records = filter(None, map(Record.parse, document.get("pictures", [])))
    return {record.source: record for record in records}


def result_names(pictures: list[Path]) -> dict[Path, str]:
    """A result's name for each picture: `cat.jpg` gives `cat.png`, unless another picture took that."""
    taken = {MANIFEST, CONTACT_SHEET}
    names = {}
    for picture in pictures:
        choices = [f"{picture.stem}.png", f"{picture.name}.png"]
        choices += [f"{picture.name}-{number}.png" for number in range(2, len(pictures) + 3)]
        names[picture] = next(choice for choice in choices if choice not in taken)
        taken.add(names[picture])
    return names


class Progress:
    """Reports to qctl, when it listens. A report that cannot be delivered is dropped: the next one says more."""

    def __init__(self) -> None:
        self.pipe: int | None = None
        path = os.environ.get("QCTL_PROGRESS")
        if path:
            try:
                self.pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as failed:
                print(f"warning: no progress is reported: {path}: {failed.strerror}", file=sys.stderr)

    def report(self, done: int, total: int, message: str) -> None:
        if self.pipe is None:
            return
        line = json.dumps({"done": done, "total": total, "unit": "images", "message": message[:200]})
        try:
            os.write(self.pipe, line.encode() + b"\n")
        except OSError:
            pass


def publish(step: int) -> None:
    """Publishes what is in the checkpoint folder. Without qctl the file stays there for who looks at it."""
    qctl = shutil.which("qctl")
    if qctl is None:
        return
    ran = subprocess.run(
        [qctl, "checkpoint", "--step", str(step), "--quiet-outside"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )
    if ran.returncode:
        # An interruption would cost a little more then; the pictures are not worth less.
        print(f"warning: no checkpoint is published: {ran.stderr.strip()}", file=sys.stderr)


# --- one picture, many pictures -----------------------------------------------------------------


def extract(source: Path, result: Path, size: int) -> Record:
    """Cuts one picture out. A picture that cannot be read gives a record that says so."""
    begun = time.monotonic()
    data = b""
    try:
        data = source.read_bytes()
        picture = decode(data)
    except OSError as failed:
        return Record(source.name, "", UNREADABLE, size, error=failed.strerror or str(failed))
    except Failure as failed:
        return Record(source.name, sha256(data), UNREADABLE, size, error=str(failed))
    height, width = picture.shape[:2]
    opacity = find_subject(picture, size)
    record = Record(source.name, sha256(data), NOTHING_FOUND, size, width=width, height=height)
    if opacity is not None:
        cut, box = cut_out(picture, opacity)
        encoded = png(cut)
        write_whole(result, encoded)
        record = dataclasses.replace(
            record,
            state=CUT,
            output=result.name,
            output_sha256=sha256(encoded),
            box=box,
            coverage=round(float((opacity > 127).mean()), 4),
        )
    return dataclasses.replace(record, seconds=round(time.monotonic() - begun, 3))


def still_holds(record: Record, source: Path, results: Path, size: int) -> bool:
    """Whether an earlier record can stand for the picture: same bytes in, same setting, same bytes out."""
    if record.state == UNREADABLE or record.size != size:
        return False
    try:
        if sha256(source.read_bytes()) != record.source_sha256:
            return False
        return record.output is None or sha256((results / record.output).read_bytes()) == record.output_sha256
    except OSError:
        return False


def batch(pictures_folder: Path, results: Path, size: int, again: bool) -> int:
    try:
        names = os.listdir(pictures_folder)
        results.mkdir(parents=True, exist_ok=True)
    except OSError as failed:
        raise Failure(f"{failed.filename}: {failed.strerror}") from failed
    pictures = sorted(pictures_folder / name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
    if not pictures:
        raise Failure(f"no picture in {pictures_folder} (looked for {', '.join(SUFFIXES)})")
    if results.resolve() == pictures_folder.resolve():
        raise Failure("the results need a folder of their own, or they would be taken for pictures next time")

    earlier: dict[str, Record] = {}
    resume_from = os.environ.get("QCTL_RESUME_FROM")
    if not again:
        earlier = read_records(results / MANIFEST)
    if resume_from:
        earlier |= read_records(Path(resume_from) / CHECKPOINT)
    checkpoint_dir = os.environ.get("QCTL_CHECKPOINT_DIR")
    checkpoints = [results / MANIFEST]
    if checkpoint_dir:
        checkpoints.append(Path(checkpoint_dir) / CHECKPOINT)

    progress = Progress()
    outputs = result_names(pictures)
    records: list[Record] = []
    skipped = 0
    width = len(str(len(pictures)))
    progress.report(0, len(pictures), "")
    for number, source in enumerate(pictures, start=1):
        before = earlier.get(source.name)
        if before is not None and still_holds(before, source, results, size):
            record = before
            skipped += 1
            what = "done earlier"
        else:
            record = extract(source, results / outputs[source], size)
            what = {
                CUT: f"{(record.coverage or 0) * 100:.0f} % of the picture",
                NOTHING_FOUND: "nothing stands out",
                UNREADABLE: f"unreadable: {record.error}",
            }[record.state]
            what += f" ({record.seconds:.1f} s)"
        records.append(record)
        # A crash before this line does the picture again; a crash after it does not.
        for path in checkpoints:
            write_whole(path, as_json(records + [earlier[p.name] for p in pictures[number:] if p.name in earlier]))
        if checkpoint_dir:
            publish(number)
        print(f"[{number:{width}}/{len(pictures)}] {source.name}: {what}", flush=True)
        progress.report(number, len(pictures), source.name)

    write_whole(results / MANIFEST, as_json(records))
    cuts = [(record.source, results / record.output) for record in records if record.output]
    views = [(name, cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)) for name, path in cuts]
    if views:
        write_whole(results / CONTACT_SHEET, png(contact_sheet(views)))

    bad = [record for record in records if record.state == UNREADABLE]
    plain = sum(record.state == NOTHING_FOUND for record in records)
    print(f"{len(cuts)} cut out, {plain} where nothing stands out, {len(bad)} unreadable; {skipped} of them done earlier")
    print(f"results: {results}")
    for record in bad:
        print(f"error: {pictures_folder / record.source}: {record.error}", file=sys.stderr)
    return 1 if bad else 0


def single(source: Path, result: Path, size: int) -> int:
    if result.suffix.lower() != ".png":
        raise Failure(f"the result must be a .png file, which can be transparent, not {result}")
    if result.resolve() == source.resolve():
        raise Failure(f"the result would overwrite the picture {source}")
    try:
        result.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failed:
        raise Failure(f"{failed.filename}: {failed.strerror}") from failed
    record = extract(source, result, size)
    if record.state == UNREADABLE:
        raise Failure(f"{source}: {record.error}")
    if record.state == NOTHING_FOUND:
        raise Failure(f"{source}: nothing stands out, so there is nothing to cut out")
    print(f"[1/1] {source.name}: {(record.coverage or 0) * 100:.0f} % of the picture ({record.seconds:.1f} s)")
    print(f"result: {result}")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="extract", description="Cuts the main subject out of pictures.")
    parser.add_argument("source", nargs="?", type=Path, help="a picture; with --batch a folder of pictures")
    parser.add_argument("result", nargs="?", type=Path, help="a .png file; with --batch a folder")
    parser.add_argument("--batch", action="store_true", help="do every picture of a folder")
    parser.add_argument("--again", action="store_true", help="do pictures again that an earlier run finished")
    parser.add_argument(
        "--size", type=int, default=512, help="longest side, in pixels, of the copy that is analysed (64 to 4096, default 512)"
    )
    options = parser.parse_args(arguments)
    if not 64 <= options.size <= 4096:
        parser.error(f"--size must be between 64 and 4096, not {options.size}")
    workspace = os.environ.get("TRACKER_WORKSPACE")
    if options.batch:
        if options.source is None:
            if not workspace:
                parser.error("--batch without a folder needs TRACKER_WORKSPACE; say --batch PICTURES RESULTS")
            options.source = Path(workspace) / "images"
        if options.result is None:
            options.result = options.source.parent / "extracted"
    else:
        if options.source is None:
            parser.error("name a picture, or say --batch for a folder")
        if options.source.is_dir():
            parser.error(f"{options.source} is a folder; say --batch {options.source}")
        if options.result is None:
            options.result = options.source.with_name(f"{options.source.stem}-extracted.png")
    return options


def main(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    options = parse(arguments)
    try:
        if options.batch:
            return batch(options.source, options.result, options.size, options.again)
        return single(options.source, options.result, options.size)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
