"""What ``pip install`` of a package with a sink leaves behind, made without pip."""

from pathlib import Path


def install_sink(place: Path, name: str, factory: str, source: str = "") -> Path:
    """Make a directory for ``PYTHONPATH`` in which an entry point names a sink; returns it.

    Args:
        place: where ``site`` is made, unless it is there.
        name: of the package, its module and the sink's type.
        factory: as "module:function".
        source: of the module; empty if it is there already.
    """
    site = place / "site"
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    if source:
        (site / f"{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[wald.sinks]\n{name} = {factory}\n")
    return site
