"""Signs a bundle, and checks its signature, with the library ``model-signing`` and an elliptic-curve key on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.errors import ArtifactError, ConfigError, first_line

SIGNATURE = "signature.sig"


def sign(bundle: Path, private_key: Path) -> None:
    """Write ``signature.sig``, which covers every other file of the bundle.

    Raises:
        ConfigError: the library is not installed, or there is no such key, or it can't be used.
    """
    signing, hashing = _library("--sign"), _hashing(bundle)
    _refuse_missing(private_key, "--sign")
    try:
        config = signing.signing.Config().use_elliptic_key_signer(private_key=str(private_key))
        config.set_hashing_config(hashing).sign(str(bundle), str(bundle / SIGNATURE))
    except Exception as error:  # the library raises what its parts raise
        raise ConfigError(f"--sign: the bundle can't be signed with {private_key} ({first_line(error)}).") from None


def check_signature(bundle: Path, public_key: Path) -> None:
    """Compare the bundle with its signature.

    Raises:
        ConfigError: the library is not installed, or there is no such key.
        ArtifactError: the signature does not fit the bundle or the key.
    """
    library, hashing = _library("--key"), _hashing(bundle)
    _refuse_missing(public_key, "--key")
    try:
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=str(public_key))
        config.set_hashing_config(hashing).verify(str(bundle), str(bundle / SIGNATURE))
    except Exception as error:  # the library raises what its parts raise
        raise ArtifactError(f"the signature does not fit the bundle and the key ({first_line(error)})") from None


def _library(option: str) -> Any:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise ConfigError(f"{option} needs the library model-signing ({error}): pip install 'cai[sign]'.") from None
    return model_signing


def _hashing(bundle: Path) -> Any:
    from model_signing.hashing import Config

    return Config().set_ignored_paths(paths=[str(bundle / SIGNATURE)], ignore_git_paths=False)


def _refuse_missing(key: Path, option: str) -> None:
    if not key.is_file():
        raise ConfigError(f"{option}: there is no key file {key}.")
