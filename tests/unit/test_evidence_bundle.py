"""What a bundle holds: redaction, compute, the data summary, the mapping, the forms, and the signature."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.core.errors import ConfigError
from pipeline.evidence import signing
from pipeline.evidence.bundle import Options, write_bundle
from pipeline.evidence.collect import num_parameters, open_run
from pipeline.evidence.compute import energy_kwh, generation_flop, training_flop
from pipeline.evidence.mapping import SHIPPED, load_mapping, mapped
from pipeline.evidence.redact import PREFIX, hashed
from pipeline.evidence.verify import verify
from pipeline.records import Verdict, read_records
from tests.evidence_data import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("evidence"))


def read(bundle: Path, name: str) -> Any:
    return json.loads((bundle / name).read_text(encoding="utf-8"))


# --- Redaction -----------------------------------------------------------------------------------------------------


def test_a_redacted_bundle_has_no_harmful_text_and_still_verifies(run: Path, tmp_path: Path):
    write_bundle(run, tmp_path / "bundle", Options(redact=True))
    text = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "bundle").glob("*.json*"))
    for verdict in read_records(run / "6-evaluate" / "verdicts.jsonl", Verdict):
        harmful = verdict.case.prompt.pool == "red_team"
        for said in (verdict.reply, verdict.case.prompt.request, verdict.case.messages[-1]["content"]):
            assert (json.dumps(said, ensure_ascii=False)[1:-1] in text) is not harmful, said
    assert "Stab whom?" not in text, "a labelled reply on which the judge was wrong"
    found = verify(tmp_path / "bundle")
    assert not found.problems
    assert found.said["numbers"] == "162 verdicts of 3 models counted again"
    assert [sentence for sentence in found.left_out if "distinct_bigrams" in sentence]


def test_a_changed_verdict_of_a_redacted_bundle_is_counted(run: Path, tmp_path: Path):
    write_bundle(run, tmp_path / "bundle", Options(redact=True))
    path = tmp_path / "bundle" / "verdicts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    n = next(i for i, line in enumerate(lines) if '"wording"' in line and '"outcome":"complied"' in line)
    lines[n] = re.sub(r'"num_words":\d+', '"num_words":999', lines[n])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert any("reply_words" in problem for problem in verify(tmp_path / "bundle").problems)


def test_the_salt_is_beside_the_bundle_and_differs_from_bundle_to_bundle(run: Path, tmp_path: Path):
    digests = []
    for name in ("one", "two"):
        write_bundle(run, tmp_path / name, Options(redact=True))
        salt_file = tmp_path / f"{name}.salt"
        assert salt_file.stat().st_mode & 0o777 == 0o600
        salt = bytes.fromhex(salt_file.read_text().strip())
        [first, *_] = (tmp_path / name / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
        [original, *_] = read_records(run / "6-evaluate" / "verdicts.jsonl", Verdict)
        assert json.loads(first)["reply"] == hashed(original.reply, salt), "the maker can show what a hash is of"
        assert salt.hex() not in "".join(p.read_text() for p in (tmp_path / name).glob("*.*"))
        digests.append(json.loads(first)["reply"])
    assert digests[0] != digests[1] and digests[0].startswith(PREFIX)


# --- Parts ---------------------------------------------------------------------------------------------------------


def test_compute_is_counted_by_hand(run: Path, tmp_path: Path):
    assert training_flop(100, 7) == 6 * 100 * 7 and generation_flop(100, 7) == 2 * 100 * 7
    assert energy_kwh(7200, 50) == pytest.approx(0.1)
    assert num_parameters(run / "checkpoint") == 3 * 4 + 5
    write_bundle(run, tmp_path / "bundle", Options(base_flop=1e12, watts=50))
    compute = read(tmp_path / "bundle", "compute.json")
    rows = [json.loads(line) for line in (run / "3-sft" / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    characters = sum(len(row["messages"][0]["content"]) + len(row["reply"]) for row in rows)
    assert compute["trained_tokens"]["sft"] == 2 * (characters // 4), "two epochs"
    assert compute["training_flop"] == 6 * 17 * sum(compute["trained_tokens"].values())
    assert compute["share_of_base_training"] == compute["training_flop"] / 1e12
    assert "assumed" not in compute["energy_means"]


def test_what_is_not_known_is_said(run: Path, tmp_path: Path):
    write_bundle(run, tmp_path / "bundle", Options())
    compute = read(tmp_path / "bundle", "compute.json")
    assert compute["base_training_flop"] == compute["share_of_base_training"] == "not known"
    assert compute["energy_means"].endswith("at 100 W, which is assumed and was not measured")
    form = read(tmp_path / "bundle", "form.json")
    assert form["General information"]["Provider"] == "to be filled in by the provider"
    assert form["Model properties"]["Maximum size of the input"] == "to be filled in by the provider"


def test_the_form_names_the_context_of_the_model(run: Path, tmp_path: Path):
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
    (run / "checkpoint" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_bundle(run, tmp_path / "bundle", Options())
    model = read(tmp_path / "bundle", "form.json")["Model properties"]
    assert model["Architecture"] == "LlamaForCausalLM"
    assert model["Maximum size of the input"] == "2048 tokens, request and reply together"
    assert str(run.parents[1]) not in "".join(p.read_text() for p in (tmp_path / "bundle").glob("*.*")), "a path"


def test_the_data_summary_counts_rows_that_a_model_wrote(run: Path, tmp_path: Path):
    write_bundle(run, tmp_path / "bundle", Options())
    data = read(tmp_path / "bundle", "data.json")
    assert data["num_rows"] == 8 and data["num_rows_written_by_a_model"] == 7, "one SFT row is the constitution's"
    assert data["synthetic_share"] == 7 / 8
    assert data["generator_models"]["labels"] == ["likelihood:self"]


def test_the_mapping_names_what_it_does_not_know(run: Path, tmp_path: Path):
    record = open_run(run)
    found = mapped(record, load_mapping(SHIPPED))
    assert found["ailuminate"]["privacy"]["principles"] == ["respect-privacy"]
    assert found["ailuminate"]["sexual_content"] == {
        "title": "Erotic content",
        "principles": [],
        "num_harmful_requests": 0,
    }
    assert len(found["ailuminate"]) == 12
    table = tmp_path / "mine.yaml"
    table.write_text("name: mine\nversion: '1'\nailuminate: {privacy: P}\nnist_ai_rmf: {}\niso_42001: {}\n"
                     "tags:\n  privacy: {ailuminate: [privacy]}\n")  # fmt: skip
    mine = mapped(record, load_mapping(table))
    assert mine["unmapped"]["weapons"]["num_principles"] == 1 and "privacy" not in mine["unmapped"]
    table.write_text(table.read_text().replace("[privacy]", "[privat]"))
    with pytest.raises(ConfigError, match=r"mine.yaml:7:.*ailuminate has no term 'privat'; name it above"):
        load_mapping(table)


def test_the_bills_name_the_files_by_their_hashes(run: Path, tmp_path: Path):
    """Both were also read once with cyclonedx-python-lib (strict, 1.7) and mlcroissant, which found no mistake."""
    write_bundle(run, tmp_path / "bundle", Options(weights=True))
    weights = read(tmp_path / "bundle", "checkpoint.json")["model.safetensors"]["sha256"]
    bom, croissant = read(tmp_path / "bundle", "bom.cdx.json"), read(tmp_path / "bundle", "croissant.json")
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.7")
    model = bom["metadata"]["component"]
    assert {"alg": "SHA-256", "content": weights} in [f["hashes"][0] for f in model["components"]]
    references = [part["bom-ref"] for part in bom["components"]]
    assert bom["dependencies"][0]["dependsOn"] == references and len(set(references)) == len(references)
    files = {file["@id"]: file["sha256"] for file in croissant["distribution"]}
    assert files["sft/rows.jsonl"] == open_run(run).manifests["sft"].outputs["rows.jsonl"]
    assert {f["source"]["fileObject"]["@id"] for r in croissant["recordSet"] for f in r["field"]} == files.keys()
    assert (tmp_path / "bundle" / "weights" / "model.safetensors").is_file()


# --- Refusals ------------------------------------------------------------------------------------------------------


def test_a_run_whose_files_were_changed_is_not_bundled(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path)
    path = run / "6-evaluate" / "verdicts.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("complied", "refused", 1), encoding="utf-8")
    assert main(["bundle", str(run), "--output-dir", str(tmp_path)]) == 1
    assert "verdicts.jsonl is not as it was written" in capsys.readouterr().err
    assert not list((tmp_path / "bundles").glob("*")), "nothing half-made is left"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{there}"], "already exists; give another folder, or remove it."),
        (["--mapping", "none.yaml"], "--mapping: there is no file none.yaml; give a YAML file."),
        (["--sign", "none.pem"], "--sign"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [word.format(there=tmp_path) for word in arguments]
    assert main(["bundle", str(run), "--output-dir", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: ") and message in said.splitlines()[-1]


# --- Signature -----------------------------------------------------------------------------------------------------


class FakeSigning:
    """In place of model-signing: the "signature" is the name and the bytes of each file."""

    def __init__(self) -> None:
        self.signing = self.verifying = SimpleNamespace(Config=self._config)
        self.hashing = SimpleNamespace(Config=lambda: SimpleNamespace(set_ignored_paths=lambda **paths: paths))

    def _config(self) -> Any:
        return SimpleNamespace(use_elliptic_key_signer=self._keyed, use_elliptic_key_verifier=self._keyed)

    def _keyed(self, private_key: str = "", public_key: str = "") -> Any:
        assert Path(private_key or public_key).is_file()

        def said(bundle: str, ignored: list[str]) -> str:
            paths = sorted(p for p in Path(bundle).rglob("*") if p.is_file() and str(p) not in ignored)
            return "".join(f"{path.name}{path.read_bytes()!r}" for path in paths)

        def check(bundle: str, signature: str, paths: list[str]) -> None:
            if Path(signature).read_text() != said(bundle, paths):
                raise ValueError("mismatch\nin many lines")

        return SimpleNamespace(
            set_hashing_config=lambda config: SimpleNamespace(
                sign=lambda bundle, to: Path(to).write_text(said(bundle, config["paths"])),
                verify=lambda bundle, signature: check(bundle, signature, config["paths"]),
            )
        )


def test_a_signature_finds_what_nothing_counted_could_show(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = FakeSigning()
    monkeypatch.setattr(signing, "_library", lambda option: fake)
    monkeypatch.setattr(signing, "_hashing", lambda bundle: {"paths": [str(bundle / signing.SIGNATURE)]})
    check_signed(run, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("model_signing") is None, reason="needs the optional model-signing")
def test_the_same_with_the_real_library(run: Path, tmp_path: Path):
    check_signed(run, tmp_path)


def check_signed(run: Path, folder: Path) -> None:
    private, public = write_keys(folder)
    bundle = folder / "bundle"
    write_bundle(run, bundle, Options(sign=private))
    assert verify(bundle).said["signature"] == "not checked; give the public key with --key"
    found = verify(bundle, public)
    assert found.said["signature"] == "holds" and not found.problems
    data = bundle / "data.json"
    data.write_text(data.read_text().replace("Apache-2.0", "MIT", 1))
    rewritten = read(bundle, "files.json")
    from pipeline.evidence.bundle import hashes

    rewritten["files"] = {name: facts for name, facts in hashes(bundle).items() if name != signing.SIGNATURE}
    (bundle / "files.json").write_text(json.dumps(rewritten))
    assert not verify(bundle).problems, "all hashes were written again"
    [problem] = verify(bundle, public).problems
    assert problem.startswith("the signature does not fit the bundle and the key (") and "\n" not in problem


def write_keys(folder: Path) -> tuple[Path, Path]:
    private, public = folder / "key.pem", folder / "public.pem"
    if importlib.util.find_spec("cryptography") is None:
        private.write_text("key")
        public.write_text("key")
        return private, public
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = s.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, s.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_without_the_library_a_signature_is_refused_in_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match=r"--sign needs the library model-signing .*pip install 'cai\[sign\]'"):
        write_bundle(run, tmp_path / "bundle", Options(sign=tmp_path / "key.pem"))
    assert not (tmp_path / "bundle").exists()
