"""Sounds as pictures: reading, spectrograms, augmentation, corruptions, and trials on them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.signal import welch

from harness.core.errors import UserError
from harness.data import clear_caches, load_target, read_examples, shifted, split_indices
from harness.data.sounds import decode_sound
from harness.dataset_report.inspection import inspect_target
from harness.dataset_report.text import findings
from harness.inputs import Pixels, Spectrogram, described
from harness.inputs.mel import Mel, filters
from harness.inputs.sound_augment import AUGMENTATIONS, sound_augmentation
from harness.inputs.waveform import Waveform
from harness.predict import predict_images
from harness.search.preflight import check_study
from tests.refusals import refused
from tests.sounds import RATE, tone, write_tones
from tests.trials import MakeSpec, export, run, study_of

soundfile = pytest.importorskip("soundfile")

MEL = Mel(16_000, 1024, 160, 128)
FORM = Spectrogram(Pixels(32), MEL, 0.5)


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    return write_tones(tmp_path / "tones")


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "subtype", "off"),
    [
        (".wav", "PCM_U8", 1 / 100),
        (".wav", "PCM_16", 1e-4),
        (".wav", "PCM_24", 1e-6),
        (".wav", "FLOAT", 1e-7),
        (".flac", "PCM_16", 1e-4),
        (".aiff", "PCM_24", 1e-6),
    ],
)
def test_samples_are_those_that_were_written(
    suffix: str, subtype: str, off: float, tmp_path: Path
) -> None:
    sound = tone(440)
    soundfile.write(tmp_path / f"a{suffix}", sound, RATE, subtype=subtype)
    found = decode_sound(tmp_path / f"a{suffix}", "a")
    assert found.rate == RATE
    np.testing.assert_allclose(found.samples, sound, atol=off)


@pytest.mark.parametrize(
    ("suffix", "subtype"), [(".ogg", "VORBIS"), (".mp3", "MPEG_LAYER_III"), (".wav", "GSM610")]
)
def test_lossy_files_keep_their_pitch(suffix: str, subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / f"a{suffix}", tone(440, 2.0, 16_000), 16_000, subtype=subtype)
    assert pitch(decode_sound(tmp_path / f"a{suffix}", "a")) == pytest.approx(440, abs=4)


def pitch(sound: Waveform) -> float:
    frequencies, power = welch(sound.samples, sound.rate, nperseg=4096)
    return float(frequencies[power.argmax()])


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        (".wav", "PCM_16"),
        (".wav", "FLOAT"),
        (".wav", "GSM610"),
        (".aiff", "PCM_16"),
        (".au", "PCM_16"),
        (".w64", "PCM_16"),
        (".rf64", "PCM_16"),
        (".flac", "PCM_16"),
        (".ogg", "VORBIS"),
        (".opus", "OPUS"),
        (".mp3", "MPEG_LAYER_III"),
    ],
)
def test_truncated_sound_is_refused(suffix: str, subtype: str, tmp_path: Path) -> None:
    path, kind = tmp_path / f"a{suffix}", "OGG" if suffix == ".opus" else None
    soundfile.write(path, tone(440, 3, 16_000), 16_000, subtype=subtype, format=kind)
    whole = path.read_bytes()
    assert len(decode_sound(path, str(path)).samples) == 48_000
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with refused(rf"^sound \S+a{suffix} (is truncated|cannot be read.*lost sync)"):
        decode_sound(path, str(path))


@pytest.mark.parametrize("stated", [2**32 - 1, 0x7FFFF000])
def test_a_wav_file_written_into_a_pipe_is_whole(stated: int, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(440), RATE)
    content = bytearray(path.read_bytes())
    content[40:44] = stated.to_bytes(4, "little")  # the length of the data, after "data"
    path.write_bytes(content)
    assert len(decode_sound(path, str(path)).samples) == len(tone(440))


def test_an_mp3_file_that_does_not_state_its_length_is_whole(tmp_path: Path) -> None:
    """Its length is estimated from the size of the first frames, which are small in silence."""
    path = tmp_path / "a.mp3"
    sound = np.random.default_rng(0).standard_normal(480_000) * np.linspace(1e-3, 0.3, 480_000)
    soundfile.write(path, sound, 16_000, bitrate_mode="AVERAGE", compression_level=0.5)
    content = path.read_bytes()
    second = content.index(content[:2], 100)
    path.write_bytes(content[second:])
    assert soundfile.info(path).frames > 480_000 + 4608
    assert len(decode_sound(path, str(path)).samples) == pytest.approx(480_000, abs=2000)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(300), tone(700)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    found = decode_sound(tmp_path / "a.wav", "a").samples
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [44_100, 11_025, 8_000])
def test_resampling_keeps_pitch_and_length(rate: int) -> None:
    sound = Waveform(tone(440, 1.0, rate), rate).resampled(16_000)
    assert len(sound.samples) == pytest.approx(16_000, abs=1)
    assert pitch(sound) == pytest.approx(440, abs=4)


def test_frequencies_above_half_the_new_rate_are_removed() -> None:
    sound = Waveform(np.sin(2 * np.pi * 6000 * np.arange(44_100) / 44_100), 44_100)
    assert sound.resampled(8000).samples[1000:-1000].std() < 1e-3


def test_a_longer_sound_is_cropped_to_its_centre_and_a_shorter_one_repeated() -> None:
    sound = Waveform(np.arange(10.0), RATE)
    assert sound.fitted(4).samples.tolist() == [3, 4, 5, 6]
    assert sound.fitted(13).samples.tolist() == [*range(10), 0, 1, 2]


# --- spectrograms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mel", [MEL, Mel(16_000, 400, 160, 40), Mel(8000, 256, 100, 20)])
def test_mel_spectrogram_is_that_of_librosa(mel: Mel) -> None:
    librosa = pytest.importorskip("librosa")
    sound = tone(440, 1.0, mel.rate)
    wanted = librosa.feature.melspectrogram(
        y=sound, sr=mel.rate, n_fft=mel.window, hop_length=mel.hop, n_mels=mel.bands
    )
    found = mel.power(sound)
    assert found.shape == (mel.bands, mel.frames(len(sound)))
    # librosa computes filters and window in float32.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * wanted.max())


def test_bands_are_triangles_of_equal_area() -> None:
    weights = filters(Mel(16_000, 8192, 160, 40))
    np.testing.assert_allclose(weights.sum(1) * 16_000 / 8192, 1, rtol=0.02)


def test_the_energy_of_a_tone_is_in_its_band() -> None:
    """Slaney's scale: 1000 Hz are 15 mels, and 8000 Hz are 45.25, so 40 bands are 1.1036 mels apart."""
    power = Mel(16_000, 1024, 160, 40).power(np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000))
    assert power.mean(1).argmax() == round(15 / (45.2454 / 41)) - 1


def test_low_tones_are_below_and_time_goes_to_the_right() -> None:
    silent, loud = np.zeros(4000), tone(200, 0.25, 16_000)
    picture = FORM.row(Waveform(np.concatenate([silent, loud]), 16_000))[0].float()
    assert picture[:, 20:].mean() > picture[:, :12].mean()
    assert picture[24:, 20:].mean() > picture[:8, 20:].mean()


def test_volume_makes_no_difference_and_silence_is_black() -> None:
    sound = tone(440, 0.5, 16_000)
    loud, quiet, none = (FORM.row(Waveform(x, 16_000)) for x in (sound, sound / 30, 0 * sound))
    assert (loud.int() - quiet.int()).abs().max() <= 1
    assert loud.max() > 200
    assert not none.any()


def test_lines_in_the_model_card_give_the_same_picture() -> None:
    pytest.importorskip("librosa")
    form = Spectrogram(Pixels(128), Mel(16_000, 1024, 160, 128), 1.27)  # as many frames as bands
    (code,) = re.findall(r"```python\n(.*?)```", form.in_words(), re.DOTALL)
    place: dict[str, Any] = {"sound": tone(440, 1.27, 16_000)}
    exec(code, place)
    found = form.row(Waveform(place["sound"], 16_000))[0].numpy()
    np.testing.assert_allclose(found, 255 * place["grey"], atol=1)


def test_a_form_is_read_back_from_its_description() -> None:
    for form in (FORM, Pixels(48, "bicubic", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))):
        assert described(json.loads(json.dumps(form.describe())), form.files()) == form


# --- augmentation and corruptions ------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_of_sounds_keeps_shape_and_follows_its_generator(name: str) -> None:
    rows = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])

    def varied(seed: int) -> torch.Tensor:
        policy = sound_augmentation(name, 3, 2, 2)
        return policy(rows.clone(), labels, torch.Generator().manual_seed(seed))[0]

    assert varied(1).shape == rows.shape
    assert torch.equal(varied(1), varied(1))
    assert torch.equal(varied(1), varied(2)) == (name == "none")


def test_time_shift_moves_columns_and_spec_augment_hides_rows_and_columns() -> None:
    rows = torch.arange(1, 33, dtype=torch.uint8).expand(64, 3, 32, 32)
    draw = torch.Generator().manual_seed(0)
    moved, _ = sound_augmentation("time_shift", 3, 2, 2)(rows, torch.zeros(64).long(), draw)
    assert {int(row[0, 0, 0]) for row in moved} == {*range(1, 6), *range(29, 33)}
    assert all(torch.equal(x[0, 0].sort().values, rows[0, 0, 0]) for x in moved)
    hidden, _ = sound_augmentation("spec_augment", 3, 2, 2)(rows, torch.zeros(64).long(), draw)
    assert bool((hidden == 0).any())
    assert all(torch.equal(x[hidden[i] > 0], rows[i][hidden[i] > 0]) for i, x in enumerate(hidden))
    columns = (hidden == 0).all(2).sum(2)[:, 0]  # two masks of at most 4
    assert 0 < int(columns.max()) <= 8


@pytest.mark.parametrize(("name", "decibels"), [("snr20", 20), ("snr10", 10), ("snr0", 0)])
def test_noise_has_its_signal_to_noise_ratio(name: str, decibels: float) -> None:
    sound = Waveform(tone(440, 2.0), RATE)
    noise = sound.corrupted(name).samples - sound.samples
    found = 10 * np.log10((sound.samples**2).mean() / (noise**2).mean())
    assert found == pytest.approx(decibels, abs=1e-6)
    assert np.array_equal(sound.corrupted(name).samples, sound.corrupted(name).samples)


def test_band_limit_keeps_the_voice_and_removes_the_rest() -> None:
    def left(hertz: float) -> float:
        sound = Waveform(np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000), 16_000)
        kept = sound.corrupted("band_limit").samples[4000:-4000]
        return float(kept.std() / np.sqrt(0.5))

    assert left(1000) == pytest.approx(1, abs=0.01)
    assert left(100) < 0.05
    assert left(7000) < 0.05


def test_shifts_of_a_target_are_those_of_its_sounds(tones: Path) -> None:
    target = load_target(f"folder:{tones}[seconds=0.5]")
    form = target.medium.form(Pixels(32))
    examples = read_examples(f"folder:{tones}[seconds=0.5]", (0, 20), form)
    moved = shifted(examples, "snr0", target)
    sounds = [
        decode_sound(path, "a").resampled(16_000).corrupted("snr0") for path in target.files()
    ]
    wanted = torch.stack([form.row(sounds[i]) for i in (0, 20)])
    assert torch.equal(moved.tensor, wanted)
    assert not torch.equal(moved.tensor, examples.tensor)


# --- targets ---------------------------------------------------------------------------------------


def test_folder_of_sounds_is_a_target(tones: Path) -> None:
    target = load_target(f"folder:{tones}")
    assert target.classes == ("high", "low")
    assert target.labels.tolist() == [0] * 12 + [1] * 12
    form = target.medium.form(Pixels(32))
    # 95 % of 24 lengths from .5 to .72 s in steps of .02, each twice.
    assert form == Spectrogram(Pixels(32), MEL, 0.7)
    rows = target.read(np.array([3, 15]), form)
    assert rows.shape == (2, 3, 32, 32)
    low, high = (row[0].float().mean(1).argmax() for row in (rows[1], rows[0]))
    assert low > high  # further down
    (note,) = target.notes
    assert note.startswith("Sounds of 0.50 to 0.72 s (median 0.61) are set to 0.7 s: longer ones")


@pytest.mark.parametrize("kind", ["csv", "hf"])
def test_other_containers_give_the_same_rows(kind: str, tones: Path, tmp_path: Path) -> None:
    folder = load_target(f"folder:{tones}[seconds=0.6]")
    paths = [str(path) for path in folder.files()]
    labels = [folder.classes[i] for i in folder.labels]
    if kind == "csv":
        pd.DataFrame({"audio": paths, "label": labels}).to_csv(tmp_path / "t.csv", index=False)
        name = f"csv:{tmp_path / 't.csv'}[seconds=0.6]"
    else:
        datasets = pytest.importorskip("datasets")
        rows = datasets.Dataset.from_dict({"audio": paths, "label": labels})
        rows.cast_column("audio", datasets.Audio(decode=False)).save_to_disk(tmp_path / "set")
        name = f"hf:{tmp_path / 'set'}[seconds=0.6]"
    target = load_target(name)
    form = folder.medium.form(Pixels(16))
    assert target.medium.form(Pixels(16)) == form
    every = np.arange(len(labels))
    assert torch.equal(target.read(every, form), folder.read(every, form))
    assert target.classes == folder.classes


def test_a_sound_that_is_missing_is_named_as_a_file(tones: Path) -> None:
    target = load_target(f"folder:{tones}[seconds=0.6]")
    target.files()[3].unlink()
    with refused(f"^file {target.files()[3]} cannot be read: .*No such file"):
        target.fingerprint()


def test_classes_and_groups_are_chosen_as_those_of_images(tones: Path) -> None:
    grouped = load_target(f"folder:{tones}[group=\\d+,seconds=0.5]")
    assert grouped.groups is not None
    assert len(np.unique(grouped.groups)) == 12
    chosen = load_target(f"folder:{tones}[seconds=0.5][classes=low+high]")
    assert chosen.classes == ("low", "high")
    assert chosen.medium == grouped.medium


def test_report_on_sounds_names_what_is_odd(tones: Path, tmp_path: Path) -> None:
    soundfile.write(tones / "low" / "silent.wav", np.zeros(4000), RATE)
    soundfile.write(tones / "low" / "other.wav", np.stack([tone(500, rate=44_100)] * 2, 1), 44_100)
    (tones / "low" / "same.wav").write_bytes((tones / "low" / "low00.wav").read_bytes())
    (tones / "low" / "notes.txt").write_text("x")
    said = "\n".join(findings(inspect_target(f"folder:{tones}")))
    assert "2 classes, 27 sounds: 12 (high) to 15 (low) per class." in said
    assert "Sounds that are silent: 1 (low/silent.wav)" in said
    assert "Sample rates differ: 8000 Hz (26), 44100 Hz (1)" in said
    assert "Sounds of several channels (1) are mixed to one." in said
    assert "Identical files: 1 (low/low00.wav = low/same.wav)" in said
    assert "Skipped, not readable as sounds: 1 .txt (low/notes.txt)." in said


# --- bad input -------------------------------------------------------------------------------------


def test_sounds_that_cannot_be_read_are_named(tones: Path) -> None:
    soundfile.write(tones / "low" / "none.wav", np.zeros(0), RATE)
    (tones / "low" / "text.wav").write_text("not a sound")
    (tones / "low" / "zero.wav").write_bytes(b"")
    soundfile.write(tones / "low" / "huge.wav", np.full(4000, 1e30), RATE, subtype="FLOAT")
    target = load_target(f"folder:{tones}")
    every = np.arange(len(target.labels))
    with pytest.raises(UserError) as refused:
        target.read(every, target.medium.form(Pixels(8)))
    said = str(refused.value)
    assert f"sound {tones / 'low' / 'none.wav'} is empty: it has no samples" in said
    assert f"sound {tones / 'low' / 'text.wav'} cannot be read: " in said
    assert f"sound {tones / 'low' / 'zero.wav'} cannot be read: " in said
    assert f"sound {tones / 'low' / 'huge.wav'} has samples of up to 1e+30" in said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("seconds=0", "seconds must be a number from 0.05 to 600, got '0'"),
        ("seconds=long", "seconds must be a number from 0.05 to 600, got 'long'"),
        ("rate=10", "rate must be a number from 2000 to 384000, got '10'"),
    ],
)
def test_bad_options_are_refused(option: str, said: str, tones: Path) -> None:
    with refused(re.escape(said)):
        load_target(f"folder:{tones}[{option}]")


def test_without_the_extra_its_name_is_said(tones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clear_caches()
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with refused(r"sound files need the extra: pip install -e '.\[sound\]'"):
        load_target(f"folder:{tones}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"augment": "flip_crop"}, "augment 'flip_crop' is not for spectrograms of 0.7 s"),
        ({"shifts": "blur"}, "shift 'blur' is not for spectrograms of 0.7 s"),
        ({"target": "digits", "augment": "time_shift"}, "augment 'time_shift' is not for 32 x 32"),
        (
            {"target": "digits", "shifts": "snr10"},
            "shift 'snr10' is not for 32 x 32 pixels; use noise",
        ),
    ],
)
def test_policies_of_another_medium_are_refused_before_a_study_begins(
    changes: dict[str, Any], said: str, make_spec: MakeSpec, tones: Path
) -> None:
    spec = make_spec(**{"target": f"folder:{tones}", **changes})
    with refused(re.escape(said)):
        check_study(study_of(spec))


def test_sounds_and_images_are_not_mixed(tones: Path) -> None:
    with refused("sounds and images cannot be mixed"):
        load_target(f"mix(folder:{tones},digits[classes=0-1],0.5)")


# --- trials ----------------------------------------------------------------------------------------


def test_low_and_high_tones_are_told_apart(make_spec: MakeSpec, tones: Path) -> None:
    spec = make_spec(
        target=f"folder:{tones}",
        backbone="small_cnn",
        shots=None,
        val_shots=3,
        test_shots=3,
        augment="time_shift",
        shifts="snr0+band_limit",
        epochs=12,
        lr=3e-3,
        batch_size=4,
    )
    metrics = run(spec)[2].metrics
    assert metrics["test_accuracy"] == 1
    assert metrics["test_accuracy.band_limit"] == 1
    assert "test_accuracy.snr0" in metrics


# --- commands --------------------------------------------------------------------------------------


def test_an_exported_model_classifies_sound_files(
    make_spec: MakeSpec, tones: Path, tmp_path: Path
) -> None:
    fit, _, _ = run(make_spec(target=f"folder:{tones}", backbone="small_cnn"))
    model = export(fit.backbone, "small_cnn", ("high", "low"), tmp_path / "model")
    found = list(predict_images(tmp_path / "model", [tones / "low", tones / "high"], top=2))
    assert [prediction.path.parent.name for prediction in found] == ["low"] * 12 + ["high"] * 12
    target = load_target(f"folder:{tones}")
    rows = target.read(np.arange(24), fit.backbone.input)
    wanted = model.probabilities(rows)[:, 1].tolist()
    shares = [dict(zip(p.classes, p.probabilities, strict=True))["low"] for p in found]
    assert shares == pytest.approx(wanted[12:] + wanted[:12])


def test_split_of_sounds_that_are_too_few_names_them(make_spec: MakeSpec, tmp_path: Path) -> None:
    folder = write_tones(tmp_path / "few", count=2)
    target = load_target(f"folder:{folder}")
    with refused(r"class 'high' has 2 sounds, too few .* \(add sounds"):
        split_indices(target, make_spec(target=f"folder:{folder}"))
