import hashlib
from pathlib import Path

from serve_app.runtime.standin import cache_folder, ensure_standin


def digests(home: Path) -> dict[str, str]:
    return {
        str(file.relative_to(home)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(home.rglob("*"))
        if file.is_file()
    }


def test_it_is_built_once_and_always_the_same(cache: Path, tmp_path: Path) -> None:
    base, _ = ensure_standin(cache)
    other, _ = ensure_standin(tmp_path)
    assert digests(base.parent) == digests(other.parent)
    marker = other / "marker"
    marker.touch()
    ensure_standin(tmp_path)
    assert marker.exists()


def test_it_is_small_and_safetensors_only(cache: Path) -> None:
    base, refiner = ensure_standin(cache)
    files = [f for folder in (base, refiner) for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 60_000_000
    assert {f.suffix for f in files} == {".safetensors", ".json"}


def test_it_lives_in_the_users_cache(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "aura-serve"
