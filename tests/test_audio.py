"""Recordings: decoding, the mel spectrogram, what the audit finds, and `fit` from folder to answer.

The sounds are made here: a tone of 440 Hz or one of 1,500 Hz, in noise.
"""

import csv
import io
import json

import numpy as np
import pytest
import soundfile
import torch
from oracles import import_transformers

import layerwise
from layerwise.data.splits import split
from layerwise.errors import DataError, OptionError
from layerwise.kinds import kind
from layerwise.kinds.audio import mel, pictures
from layerwise.kinds.audio.audit import look_at, traits_of
from layerwise.kinds.audio.processor import AudioProcessor, fitted
from layerwise.kinds.audio.recordings import Recording, promised_samples, read, resampled
from layerwise.kinds.audio.source import Augment, augment_named
from layerwise.kinds.opening import open_data

PITCHES = {"low": 440, "high": 1500}


def tone(pitch: float, seed: int, rate: int = 8000, seconds: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * pitch * (1 + rng.normal(0, 0.02)) * t + rng.uniform(0, 6))
    return (0.3 * wave + rng.normal(0, 0.03, len(t))).astype(np.float32)


def encoded(samples: np.ndarray, kind: str = "WAV", rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


def class_folders(root, n=12):
    for label, pitch in PITCHES.items():
        (root / label).mkdir(parents=True)
        for i in range(n):
            content = encoded(tone(pitch, hash_of(label, i)))
            (root / label / f"{label}_{i:02}.wav").write_bytes(content)
    return root


def hash_of(label: str, i: int) -> int:
    return 1000 * (label == "high") + i


# ---- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_every_format_is_the_same_sound(tmp_path, kind):
    samples = tone(440, 0, rate=16000, seconds=1)
    (tmp_path / f"é 音.{kind.lower()}").write_bytes(encoded(samples, kind, 16000))
    (path,) = tmp_path.iterdir()
    for raw in (path, str(path), path.read_bytes()):
        got = read(raw, "x")
        assert (got.rate, got.channels, got.promised) == (16000, 1, len(got.samples))
        shared = min(len(got.samples), len(samples))
        assert np.corrcoef(got.samples[:shared], samples[:shared])[0, 1] > 0.95


def test_channels_are_averaged_and_rates_resampled():
    both = np.stack([tone(440, 0, 44100), np.zeros(17640, np.float32)], 1)
    got = read(encoded(both, "WAV", 44100), "stereo")
    assert got.channels == 2
    np.testing.assert_allclose(got.samples, both.mean(1), atol=1e-4)
    slow = resampled(got, 8000)
    assert len(slow) == 3200
    assert np.abs(np.fft.rfft(slow)).argmax() * 8000 / 3200 == pytest.approx(440, rel=0.06)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"nothing to hear" * 20])
def test_what_is_no_recording_is_named(content):
    with pytest.raises(DataError, match=r"broken\.wav: cannot be read as a recording"):
        read(content, "broken.wav")


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "MP3", "FLAC", "OGG"])
def test_half_a_file_is_found_in_every_format(kind):
    whole = encoded(tone(440, 0, seconds=2), kind)
    assert not {"truncated", "unreadable"} & set(look_at(whole, "x").traits)
    assert {"truncated", "unreadable"} & set(look_at(whole[: len(whole) // 2], "x").traits)


def test_a_header_written_before_the_end_of_a_stream_promises_nothing():
    assert promised_samples(100, "RIFF : 4294967295 (should be 236)\ndata : 200") == 100
    assert promised_samples(100, "RIFF : 436 (should be 236)") > 100


# ---- the spectrogram -----------------------------------------------------------------------------


@pytest.mark.data
def test_filters_are_those_that_whisper_publishes(shared_data):
    published = np.load(shared_data / "audio/whisper_mel_filters.npz")
    for n_mels, name in ((80, "mel_80"), (128, "mel_128")):
        if name in published:
            ours = mel.mel_filters(16000, 400, n_mels).numpy()
            np.testing.assert_allclose(ours, published[name], atol=1e-6)
    assert "mel_80" in published


@pytest.mark.oracle
def test_spectrogram_matches_an_independent_one():
    transformers = import_transformers()
    utils = transformers.audio_utils
    samples = tone(440, 1)
    filters = utils.mel_filter_bank(129, 40, 0, 4000, 8000, norm="slaney", mel_scale="slaney")
    window = utils.window_function(256, "hann")
    theirs = utils.spectrogram(
        samples, window, 256, 80, power=2.0, pad_mode="reflect", mel_filters=filters
    )
    ours = mel.log_mel(torch.from_numpy(samples)[None], 8000, 256, 80, 40)[0]
    expected = np.log(np.maximum(theirs, mel.QUIET))
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-3)


def test_a_pitch_is_loudest_in_its_band():
    processor = AudioProcessor(8000, 3200, 256, 80, 40)
    low, high = processor([Recording(tone(p, 3), 8000) for p in (440, 1500)])
    centres = mel.mel_filters(8000, 256, 40).argmax(1) * 8000 / 256
    for spectrogram, pitch in ((low, 440), (high, 1500)):
        loudest = spectrogram[0].mean(1).argmax()
        assert abs(float(centres[loudest]) - pitch) < 120
    assert low.shape == (1, 40, processor.n_frames)


def test_a_recording_of_another_length_keeps_its_middle():
    x = np.arange(1, 10, dtype=np.float32)
    assert fitted(x, 5).tolist() == [3, 4, 5, 6, 7]
    assert fitted(x[:3], 6).tolist() == [0, 1, 2, 3, 0, 0]
    assert fitted(x[:4], 4).tolist() == [1, 2, 3, 4]


def test_the_processor_comes_back_from_its_file_and_refuses_keys_it_does_not_know():
    own = AudioProcessor(8000, 4000, 256, 80, 32, -4.5, 2.25)
    saved = json.loads(json.dumps(own.to_dict()))
    assert AudioProcessor.from_dict(saved) == own
    with pytest.raises(OptionError, match="dither"):
        AudioProcessor.from_dict({**saved, "dither": 1e-5})
    with pytest.raises(OptionError, match="WhisperFeatureExtractor"):
        AudioProcessor.from_dict({**saved, "feature_extractor_type": "WhisperFeatureExtractor"})
    with pytest.raises(OptionError, match="shorter than one window"):
        AudioProcessor(8000, 100)


# ---- what is changed at random -------------------------------------------------------------------


def test_changes_at_random_are_drawn_from_the_generator_and_within_their_bounds():
    x = torch.from_numpy(np.stack([tone(440, i) for i in range(8)]))
    draws = [Augment().of_samples(x, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    quiet = Augment(shift=0, gain=0, noise=200).of_samples(x, torch.Generator())
    torch.testing.assert_close(quiet, x)
    late = Augment(shift=0.5, gain=0, noise=200).of_samples(x, torch.Generator().manual_seed(3))
    silent = (late.abs() < 1e-6).sum(1)
    assert (silent > 100).sum() >= 4
    assert (silent <= 0.5 * x.shape[1] + 1).all()


def test_stripes_are_blanked_with_the_mean():
    spectrogram = torch.randn(16, 1, 40, 50, generator=torch.Generator().manual_seed(0))
    changed = Augment().of_mel(spectrogram, torch.Generator().manual_seed(1))
    same = changed == spectrogram
    filled = torch.where(same, spectrogram.mean((1, 2, 3), keepdim=True), changed)
    torch.testing.assert_close(
        filled, spectrogram.mean((1, 2, 3), keepdim=True).expand_as(spectrogram)
    )
    assert 0.5 < same.float().mean() < 1
    assert augment_named("none") is None
    with pytest.raises(OptionError, match="augmentation of recordings"):
        augment_named("airbench")


# ---- what the audit finds ------------------------------------------------------------------------


def test_traits_of_recordings():
    plain = tone(440, 0)
    cut = plain.copy()
    cut[100:104] = 1.0
    once = plain.copy()
    once[100:102] = 1.0  # two in a row are no accident yet
    assert traits_of(Recording(plain, 8000, 1, len(plain))) == ()
    assert traits_of(Recording(cut, 8000)) == ("clipping",)
    assert traits_of(Recording(once, 8000)) == ()
    assert traits_of(Recording(plain * 1e-4, 8000, 2)) == ("silence", "stereo")
    assert traits_of(Recording(plain[:0], 8000)) == ("truncated",)


def test_audit_names_what_is_broken_and_what_is_the_same_twice(tmp_path):
    folder = class_folders(tmp_path / "sounds")
    (folder / "low/again.flac").write_bytes(encoded(read(folder / "low/low_00.wav", "").samples))
    (folder / "low/mute.wav").write_bytes(encoded(np.zeros(3200, np.float32)))
    (folder / "high/loud.wav").write_bytes(encoded((9 * tone(1500, 99)).clip(-1, 1)))
    (folder / "high/fast.wav").write_bytes(encoded(tone(1500, 98, 16000), rate=16000))
    (folder / "high/bad.wav").write_bytes(b"RIFFnothing")
    half = encoded(tone(1500, 97))
    (folder / "high/half.wav").write_bytes(half[: len(half) // 2])
    examples, report = layerwise.audit(folder)
    found = {finding.kind: finding for finding in report.findings}
    for trait, name in (
        ("unreadable", "bad.wav"), ("truncated", "half.wav"), ("silence", "mute.wav"),
        ("clipping", "loud.wav"), ("rate", "fast.wav"),
    ):  # fmt: skip
        assert any(name in item for item in found[trait].names), (trait, found[trait])
        assert len(found[trait].names) == 1
    assert any("again.flac" in str(f.names) for f in report.findings if "duplicate" in f.kind)
    assert len(examples) == 24 + 6
    kept = {str(n).rpartition("/")[2] for n in np.array(examples.names)[report.keep]}
    assert {"mute.wav", "loud.wav", "fast.wav"} < kept
    assert not {"bad.wav", "half.wav"} & kept


# ---- opening -------------------------------------------------------------------------------------


def with_metadata(root, speakers=6, n=48, **more):
    root.mkdir()
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "speaker", *more])
        for i in range(n):
            label = ("low", "high")[i % 2]
            content = encoded(tone(PITCHES[label], hash_of(label, i)))
            (root / f"{i:03}.wav").write_bytes(content)
            said = [values[i] for values in more.values()]
            writer.writerow([f"{i:03}.wav", label, f"s{i // 2 % speakers}", *said])
    return root


def test_metadata_names_labels_and_what_belongs_together(tmp_path):
    examples = open_data(with_metadata(tmp_path / "sounds"))
    assert examples.kinds == {"audio": "audio"}
    assert examples.labels == ("high", "low")
    assert examples.together
    assert sorted(set(examples[examples.together])) == [f"s{i}" for i in range(6)]


def test_no_speaker_is_on_both_sides_of_a_split(tmp_path):
    examples = open_data(with_metadata(tmp_path / "sounds"))
    parts = split(examples, seed=3)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(48))
    speakers = [set(np.array(examples[examples.together])[rows]) for rows in parts.values()]
    assert all(speakers)
    assert sum(map(len, speakers)) == 6


# ---- from a folder to an answer ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the run of `fit`, its data, its folder)."""
    root = tmp_path_factory.mktemp("audio")
    folder = class_folders(root / "sounds", n=30)
    run = layerwise.fit(folder, output=root / "run", model="tc_resnet8", epochs=8, seed=1)
    return run, folder, root / "run"


def test_fit_learns_to_hear_the_pitch(trained):
    run, _, folder = trained
    assert run.score == 1.0
    model = layerwise.load(folder)
    for label, pitch in PITCHES.items():
        samples = tone(pitch, 7777 + pitch)
        for raw in (encoded(samples), [Recording(samples, 8000)], [encoded(samples, "FLAC")]):
            assert [p.label for p in model.predict(raw)] == [label]


def test_a_saved_model_answers_as_the_trained_one(trained):
    run, data, folder = trained
    paths = sorted(data.rglob("*.wav"))[::7]
    again = layerwise.load(folder).predict(paths)
    for a, b in zip(run.model.predict(paths), again, strict=True):
        assert a.label == b.label
        assert a.probability == pytest.approx(b.probability, abs=1e-5)
    assert layerwise.evaluate(folder, data, split="all").n == 60


def test_the_report_shows_recordings(trained):
    _, _, folder = trained
    html = (folder / "report.html").read_text("utf-8")
    assert "data:image/" in html


def test_a_batch_of_the_plan_is_one_that_the_network_reads(trained):
    _, data, _ = trained
    plan = layerwise.plan("tc_resnet8", data=str(data))
    assert plan.params > 60_000
    assert plan.flops_per_sample > 1e6


def test_a_model_of_recordings_says_what_it_expects(trained, tmp_path):
    _, _, folder = trained
    picture = tmp_path / "x.wav"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    with pytest.raises(DataError, match=r"x\.wav"):
        layerwise.load(folder).predict(picture)


def test_a_network_that_does_not_read_recordings_is_refused(tmp_path):
    folder = class_folders(tmp_path / "sounds", n=3)
    with pytest.raises(OptionError, match="resnet18 does not read recordings; tc_resnet"):
        layerwise.fit(folder, output=tmp_path / "run", model="resnet18")


# ---- pictures ------------------------------------------------------------------------------------


def test_a_recording_is_shown_with_its_waveform():
    recording = Recording(tone(440, 1), 8000)
    spectrogram = AudioProcessor(8000, 3200, 256, 80, 40)([recording])[0, 0]
    picture = pictures.drawn(recording.samples, spectrogram)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (spectrogram.shape[1] * pictures.SCALE, 3)
    audio = kind("audio")
    shown = audio.show(audio.of_values([encoded(recording.samples)]), 0)
    assert shown.text == "0.4 s"
    assert shown.image.startswith("data:image/")
