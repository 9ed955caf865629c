"""The picture of a torture: records acknowledged and delivered over time, and every blow."""

from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wald.cli.torturing import Blow, Report

_WIDTH, _HEIGHT = 960, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 56, 110
_LANES: Final = {"ingest": 0, "drain": 1, "supervisor": 2}
_DAMAGE_LANE = 3
_COLOURS: Final = {
    "kill": "#c0392b",
    "stop": "#e0a100",
    "memory": "#7d3c98",
    "flip": "#34495e",
    "cut": "#34495e",
}
_ACKED, _DELIVERED = "#1f6f8b", "#5aa469"


def draw(report: "Report") -> str:
    """Return the picture as SVG."""
    end_s = max(report.seconds, *(sample[0] for sample in report.samples), 1.0)
    top = max((sample[1] for sample in report.samples), default=1) or 1
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 22, _title(report), size=15),
        *_legend(report),
        *_axes(end_s, top),
        _line([(at, acked) for at, acked, _ in report.samples], end_s, top, _ACKED),
        _line([(at, held) for at, _, held in report.samples], end_s, top, _DELIVERED),
        *(_blow(blow, end_s) for blow in report.blows),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(report: "Report") -> str:
    verdict = "every one accounted for" if report.passed else "THE BOOKS DO NOT BALANCE"
    return f"{report.acked:,} records acknowledged, {len(report.blows)} blows: {verdict}"


def _legend(report: "Report") -> list[str]:
    said = [(_ACKED, "acknowledged"), (_DELIVERED, "delivered")]
    kinds = dict.fromkeys(blow.kind for blow in report.blows)
    said += [(_COLOURS[kind], kind) for kind in kinds]
    parts, x = [], float(_LEFT)
    for colour, name in said:
        parts.append(f'<rect x="{x:.0f}" y="34" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 14, 43, name))
        x += 30 + 7 * len(name)
    return parts


def _axes(end_s: float, top: int) -> list[str]:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share * top, top)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, f"{share * top:,.0f}", anchor="end"))
        x = _x(share * end_s, end_s)
        parts.append(_text(x, _HEIGHT - 8, f"{share * end_s:.0f} s", anchor="middle"))
    for name, lane in (*_LANES.items(), ("files", _DAMAGE_LANE)):
        parts.append(_text(_LEFT - 6, _lane_y(lane) + 4, name, anchor="end"))
    return parts


def _blow(blow: "Blow", end_s: float) -> str:
    x, y = _x(blow.at_s, end_s), _lane_y(_LANES.get(blow.role, _DAMAGE_LANE))
    width = max(2.0, _x(blow.at_s + blow.back_after_s, end_s) - x)
    width = min(width, _WIDTH - _RIGHT - x)
    told = f"{blow.kind} {blow.role} at {blow.at_s:.1f} s, back after {blow.back_after_s:.2f} s"
    return (
        f'<rect x="{x:.1f}" y="{y - 6:.1f}" width="{width:.1f}" height="12" '
        f'fill="{_COLOURS[blow.kind]}"><title>{escape(told)}</title></rect>'
    )


def _line(points: "Sequence[tuple[float, int]]", end_s: float, top: int, colour: str) -> str:
    path = " ".join(f"{_x(at, end_s):.1f},{_y(value, top):.1f}" for at, value in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )


def _x(at_s: float, end_s: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(at_s, end_s) / end_s


def _y(value: float, top: int) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top


def _lane_y(lane: int) -> float:
    return _HEIGHT - _BOTTOM + 20 + 18 * lane
