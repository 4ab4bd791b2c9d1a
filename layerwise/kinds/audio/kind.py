"""The kind `audio`: what is special about recordings; each question has a file beside this."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerwise.data import file_tables
from layerwise.data.examples import Examples
from layerwise.data.folders import one_file
from layerwise.data.listing import FileKind, Listing, is_image
from layerwise.data.records import Reading, is_parquet, is_table
from layerwise.data.sources import Source
from layerwise.data.text_files import sniff
from layerwise.kinds.audio import audit, choose
from layerwise.kinds.audio.pictures import coloured, drawn
from layerwise.kinds.audio.processor import AudioProcessor
from layerwise.kinds.audio.recordings import is_audio, read, starts_audio
from layerwise.kinds.audio.source import Augment, Recordings, augment_named
from layerwise.kinds.contract import Choice, Ends, Kind, Looks, Place, Recognised, Shown, Start
from layerwise.kinds.image.pictures import data_uri
from layerwise.settings import Settings
from layerwise.storage import read_json, write_json

NAMES = (*file_tables.FILE_NAMES, "audio", "recording", "wav")
SPEAKERS = ("speaker", "speaker_id", "client_id")
FILES = FileKind("audio", "recordings", is_audio, NAMES, "Audio", starts_audio, SPEAKERS)
CONFIG = "preprocessor_config.json"
USUAL = AudioProcessor()


class Audio(Kind[AudioProcessor]):
    """Paths, the bytes of files, or `Recording`s."""

    name = "audio"
    noun = "recordings"
    tensor = "audio"
    ground = "sound"
    accepts = "recordings (WAV, FLAC, OGG, MP3) in class folders or with metadata.csv"

    # ---- finding and reading -------------------------------------------------------------------
    def recognise(self, place: Place, reading: Reading) -> Recognised | None:
        path, listing = place.path, place.listing
        if listing is not None:
            mine = sum(is_audio(listing.path(parts)) for parts in listing.files)
            theirs = sum(is_image(listing.path(parts)) for parts in listing.files)
            if mine > theirs or reading.kind or self.parquet(listing, reading):
                return Recognised(0.95, lambda: file_tables.open_files(listing, reading, FILES))
        elif is_audio(path):
            return Recognised(0.95, lambda: one_file(path, FILES))
        elif is_table(path) and (reading.kind or sniff(path) != "document"):
            opened = lambda: file_tables.open_table(path, reading, FILES)  # noqa: E731
            return Recognised(0.95, opened) if self.in_table(path, reading) else None
        return None

    def parquet(self, listing: Listing, reading: Reading) -> bool:
        """Whether the Parquet files of a folder hold recordings."""
        paths = [listing.path(p) for p in listing.files if is_parquet(Path(p[-1]))]
        return bool(paths and file_tables.held_column(reading.table(paths[0]), FILES))

    def in_table(self, path: Path, reading: Reading) -> bool:
        """Whether a table holds recordings, or names some that lie beside it."""
        raw = reading.table(path)
        named = [str(v) for row in raw.sample(20) for v in row.values() if isinstance(v, str)]
        some = any(is_audio(Path(name)) for name in named)
        held = bool(file_tables.held_column(raw, FILES))
        return held or (some and file_tables.names_files(path, reading, FILES))

    def of_values(self, values: Sequence[Any]) -> Examples:
        found = [Path(x) if isinstance(x, str) else x for x in values]
        names = [f"recording {i + 1}" for i in range(len(found))]
        return Examples({"audio": found}, {"audio": "audio"}, names, np.full(len(found), "", "U5"))

    def look(self, examples: Examples) -> Looks:
        return audit.look_at_all(examples)

    def show(self, examples: Examples, row: int, side: int = 96) -> Shown:
        recording = read(examples["audio"][row], str(examples.names[row]))
        whole = choose.processor_for(examples.subset(np.array([row])))
        mel = whole([recording])[0, 0]
        seconds = f"{recording.seconds:.1f} s"
        return Shown(seconds, data_uri(drawn(recording.samples, mel), 2 * side))

    # ---- tensors -------------------------------------------------------------------------------
    def source(
        self,
        examples: Examples,
        processor: AudioProcessor,
        augment: object,
        dtype: torch.dtype,
        **options: Any,
    ) -> Source:
        augment = augment if isinstance(augment, Augment) else None
        return Recordings(examples, processor, augment, dtype, **options)

    def raw_picture(
        self, examples: Examples, row: int, processor: AudioProcessor
    ) -> np.ndarray | None:
        return coloured(processor([examples["audio"][row]])[0, 0].numpy())

    def example(
        self, family: str, variant: str, config: Any, size: int, rows: int
    ) -> dict[str, Tensor]:
        return {"audio": torch.zeros(rows, 1, config.n_mels, size or USUAL.n_frames)}

    # ---- choosing ------------------------------------------------------------------------------
    def choose(
        self, train: Examples, ends: Ends, settings: Settings, reader: AudioProcessor | None = None
    ) -> Choice:
        return choose.network_for(train, ends, settings)

    def processor_for(self, train: Examples, ends: Ends, settings: Settings) -> AudioProcessor:
        return choose.processor_for(train)

    def start(self, way: str, train: Examples, choice: Choice) -> Start:
        return choose.START

    def augmentation(
        self, processor: AudioProcessor, settings: Settings, studied: object
    ) -> Augment | None:
        return augment_named("full" if settings.augment == "auto" else settings.augment)

    # ---- saving --------------------------------------------------------------------------------
    def save(self, processor: AudioProcessor, folder: Path) -> dict[str, Any]:
        write_json(folder / CONFIG, processor.to_dict())
        return {}

    def load(self, folder: Path, saved: Mapping[str, Any], config: Any) -> AudioProcessor:
        return AudioProcessor.from_dict(read_json(folder / CONFIG))
