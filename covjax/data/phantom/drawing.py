"""One synthetic chest X-ray with its masks, drawn from a random generator.

Lungs are easy to see, infection is not. An image is a sum of attenuations (body, heart,
bones, air, disease), developed through a tone curve. Everything but the disease is
drawn alike for the three classes, so only the lungs tell them apart; no figure from
phantoms says anything of patients.

Anatomy is measured in fractions of the image's side. The frame of a thorax has u
across it (0 at the midline, negative on the viewer's left, which is the patient's
right) and y down it (0 at the top of an upright image).
"""

import dataclasses

import cv2
import numpy as np

from covjax.data import covidqu

MIN_SIZE = 32  # below, a lung is a few pixels wide


@dataclasses.dataclass(frozen=True)
class _Thorax:
    """Geometry of one patient on the image; arrays are float32 [size, size].

    Attributes:
      u: distance from the midline, signed.
      y: height in the thorax's frame.
      side: |u|.
      lung: > 0 inside a lung, about the distance to its edge.
      lateral: distance of the chest wall's inside from the midline, at this height.
      reach: distance of the heart's border from the midline, at this height.
      base: height of the diaphragm, at this u.
      apex: height of the lungs' top, a scalar.
      to_image: [2, 3], takes (u, y, 1) to fractions (x, y) of the image.
    """

    u: np.ndarray
    y: np.ndarray
    side: np.ndarray
    lung: np.ndarray
    lateral: np.ndarray
    reach: np.ndarray
    base: np.ndarray
    apex: float
    to_image: np.ndarray


def make_phantom(
    label: str, rng: np.random.Generator, size: int
) -> dict[str, np.ndarray]:
    """Draws one synthetic chest X-ray with its masks.

    From generators of one state the three classes get the same patient, exposure and
    noise, and differ by the disease alone. COVID-19: patchy, mostly peripheral
    opacities in both lungs, over 5 to 95 % of them. Non-COVID: consolidation of one
    lobe, which the infection mask leaves out, as in the published set. Normal: none.

    Args:
      label: one of `covidqu.CLASSES`.
      rng: source of all randomness; must be able to spawn, as `default_rng` can.
      size: side of the image, pixels, at least `MIN_SIZE`.

    Returns:
      "image" uint8 [size, size] in 0 to 255; "lung" and "infection" uint8
      [size, size] in {0, 1}, infection inside the lungs.

    Raises:
      ValueError: if the label is unknown or the size too small.
    """
    if label not in covidqu.CLASSES:
        raise ValueError(f"unknown class {label!r}; one of {covidqu.CLASSES}")
    if size < MIN_SIZE:
        raise ValueError(f"images of {size} px: at least {MIN_SIZE}")
    body_rng, disease_rng, image_rng = rng.spawn(3)
    thorax = _make_thorax(body_rng, size)
    lungs = _two_largest(thorax.lung > 0)
    attenuation = _tissue(thorax, body_rng) + _bones(thorax, body_rng)
    attenuation += _vessels(thorax, body_rng)
    infection = np.zeros_like(lungs)
    if label == "COVID-19":
        opacity, infection = _covid(thorax, lungs, disease_rng)
        attenuation += opacity
    elif label == "Non-COVID":
        attenuation += _consolidation(thorax, disease_rng)
    return {
        "image": _develop(attenuation, image_rng),
        "lung": lungs.astype(np.uint8),
        "infection": infection.astype(np.uint8),
    }


def _ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """Soft edge: 0 to 1 across `width`, 0.5 where the distance is 0."""
    return np.clip(distance / width + 0.5, 0, 1)


def _two_largest(mask: np.ndarray) -> np.ndarray:
    """Drops the few pixels that a lung's sharp corner may leave apart; bool."""
    parts = cv2.connectedComponents(mask.astype(np.uint8))[1]
    areas = np.bincount(parts.ravel().astype(np.intp))
    areas[0] = 0
    return np.isin(parts, np.argsort(areas)[-2:])


def _quarter(t: np.ndarray) -> np.ndarray:
    """Quarter of a circle: 0 at t <= 0, steep there, and level at 1 from t = 1 on."""
    return np.sqrt(1 - np.square(1 - np.clip(t, 0, 1)))


def _clouds(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise of about unit spread, `cells` bumps across; float32 [size, size]."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _make_thorax(rng: np.random.Generator, size: int) -> _Thorax:
    angle, scale = rng.normal(0, 0.04), rng.uniform(0.86, 1.06)
    across = scale * np.array([np.cos(angle), np.sin(angle)])
    down = scale * np.array([-np.sin(angle), np.cos(angle)])
    middle = rng.uniform(-0.03, 0.03, 2) + 0.5
    to_image = np.stack([across, down, middle - down / 2], axis=1)
    to_thorax = np.linalg.inv(np.vstack([to_image, [0, 0, 1]])).astype(np.float32)
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    u, y = (r[0] * line[None, :] + r[1] * line[:, None] + r[2] for r in to_thorax[:2])
    side, right = np.abs(u), _ramp(u, 0.08)

    def each(low: float, high: float, spread: float, shift: float = 0.0) -> np.ndarray:
        """One number a lung, alike up to `spread`; `shift` is added to the right."""
        pair = rng.uniform(low, high) + rng.uniform(-spread, spread, 2)
        return np.float32(pair[0]) + np.float32(pair[1] + shift - pair[0]) * right

    apex = rng.uniform(0.09, 0.17)
    wall = each(0.29, 0.38, 0.015)
    floor = each(0.66, 0.86, 0.015, shift=0.02)  # the liver lifts the left one
    top = rng.uniform(0.12, 0.15)  # where the apex stands
    inner = rng.uniform(0.045, 0.065)  # half the mediastinum
    t = (y - apex) / (floor - apex)
    lateral = top + (wall - top) * _quarter(t / 0.6) + 0.03 * np.clip(t, 0, 1)
    medial = inner + (top - inner) * (1 - _quarter(t / 0.4))
    heart = rng.uniform(0.06, 0.1) + rng.uniform(0.06, 0.13) * right
    height = rng.uniform(0.26, 0.36)
    reach = inner + (heart - inner) * _quarter((y - (floor - height)) / (0.8 * height))
    # The aortic arch, a bump on the viewer's right.
    arch = np.exp(-np.square((y - apex - 0.16) / 0.035)) * right
    medial += rng.uniform(0, 0.03) * arch
    crest = (side - rng.uniform(0.45, 0.6) * wall) / wall
    base = floor - each(0.05, 0.1, 0.015) * (1 - 3 * np.square(crest))
    lung = np.minimum(lateral - side, side - np.maximum(medial, reach))
    lung = np.minimum(np.minimum(lung, base - y), y - apex)
    lung += 0.003 * _clouds(rng, 12, size)  # no contour is a smooth curve
    return _Thorax(u, y, side, lung, lateral, reach, base, float(apex), to_image)


def _tissue(thorax: _Thorax, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of the body without bones and vessels, air in the lungs taken off."""
    side, y, size = thorax.side, thorax.y, thorax.u.shape[0]
    t = np.clip((y - thorax.apex) / 0.2 + rng.uniform(0.5, 0.8), 0, 1)
    arms = rng.uniform(0.42, 0.6)
    outline = 0.09 + (arms - 0.09) * np.square(t) * (3 - 2 * t)
    waist = thorax.lateral.max() + rng.uniform(0.04, 0.1)
    outline += (waist - arms) * np.clip(4 * y - 1.2, 0, 1)
    body = _ramp(outline - side, 0.05)
    inside = _ramp(thorax.lung, 0.02)
    air = rng.uniform(0.5, 0.62) * inside * (0.8 + 0.2 * _ramp(thorax.lung - 0.05, 0.1))
    below = _ramp(y - thorax.base, 0.02) * _ramp(thorax.lateral - side, 0.15)
    heart = _ramp(thorax.reach - side, 0.02) * _ramp(y - thorax.apex - 0.3, 0.15)
    spine = np.exp(-np.square(side / 0.045))
    trachea = np.exp(-np.square(thorax.u / 0.018)) * _ramp(thorax.apex + 0.2 - y, 0.05)
    total = 0.85 + 0.3 * below + 0.2 * heart * (1 - inside) + 0.15 * spine
    hila = np.hypot((side - 0.085) / 0.05, (y - thorax.apex - 0.25) / 0.09)
    total += rng.uniform(0.02, 0.12) * _ramp(1 - hila, 0.8) * inside
    total -= 0.12 * trachea + air - 0.04 * _clouds(rng, 5, size)
    if rng.random() < 0.45:  # breasts: a soft veil over the lungs' lower half
        away = np.hypot((side - 0.2) / 0.15, (y - rng.uniform(0.56, 0.68)) / 0.16)
        total += rng.uniform(0.04, 0.1) * _ramp(1 - away, rng.uniform(0.1, 0.5))
    if rng.random() < 0.4:  # gas in the stomach, under the right dome
        away = np.hypot((thorax.u - 0.17) / 0.07, (y - thorax.base - 0.07) / 0.035)
        total -= rng.uniform(0.15, 0.35) * _ramp(1 - away, 0.3)
    return body * total


def _bones(thorax: _Thorax, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of ribs and clavicles."""
    side, y, apex = thorax.side, thorax.y, thorax.apex
    cage = _ramp(thorax.lateral + 0.02 - side, 0.02) * _ramp(y - apex + 0.01, 0.04)
    cage *= _ramp(thorax.base + 0.1 - y, 0.1)
    pitch = rng.uniform(0.075, 0.095)
    back = y - apex + 0.35 * side - 1.6 * np.square(side)
    front = y - apex - 0.5 * thorax.lateral + 0.55 * side
    phase = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    wave = np.cos(back * np.float32(2 * np.pi / pitch) + phase[0])
    ribs = rng.uniform(0.06, 0.16) * _ramp(wave - 0.2, 0.7)
    wave = np.cos(front * np.float32(1.7 * np.pi / pitch) + phase[1])
    lateral = _ramp(side - 0.6 * thorax.lateral, 0.15)
    ribs += rng.uniform(0.03, 0.09) * _ramp(wave - 0.3, 0.6) * lateral
    rise = rng.uniform(0.1, 0.3)
    axis = apex + rng.uniform(0.08, 0.13) - rise * side + 0.02 * np.sin(18 * side)
    clavicle = _ramp(0.014 - np.abs(y - axis), 0.014)
    clavicle *= _ramp(0.19 - np.abs(side - 0.22), 0.04)
    return ribs * cage + rng.uniform(0.1, 0.2) * clavicle


def _vessels(thorax: _Thorax, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of the vessels that fan out from both hila, thinner as they go."""
    size, joints = thorax.u.shape[0], 6
    canvas = np.zeros((size, size), np.uint8)
    for sign in (-1, 1):
        hilum = np.array([sign * rng.uniform(0.06, 0.09), thorax.apex + 0.27])
        count = int(rng.integers(12, 19))
        heading = np.linspace(-1.35, 1.45, count) + rng.normal(0, 0.12, count)
        bend = heading[:, None] + rng.normal(0, 0.22, (count, joints)).cumsum(axis=1)
        step = rng.uniform(0.03, 0.06, (count, 1, 1))
        strides = step * np.stack([sign * np.cos(bend), np.sin(bend)], axis=-1)
        paths = hilum + strides.cumsum(axis=1)
        sample = paths @ thorax.to_image[:, :2].T + thorax.to_image[:, 2]
        points = np.rint(sample * size * 16).astype(np.int32)  # 4 binary places
        for part in range(joints - 1):
            width = max(1, round(size / 96 * (1.6 - 0.3 * part)))
            shade = 230 - 38 * part
            pieces = list(points[:, part : part + 2])
            cv2.polylines(canvas, pieces, False, shade, width, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(canvas, (0, 0), 0.006 * size).astype(np.float32) / 255
    return rng.uniform(0.12, 0.28) * soft * _ramp(thorax.lung, 0.02)


def _covid(
    thorax: _Thorax, lungs: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Attenuation of patchy opacities in both lungs, and where they are (bool)."""
    size = thorax.u.shape[0]
    field = _clouds(rng, int(rng.integers(7, 12)), size) + 0.35 * _clouds(rng, 24, size)
    field += rng.uniform(0.5, 2.5) * thorax.side / thorax.lateral  # towards the wall
    field += rng.uniform(0.0, 2.0) * (thorax.y - thorax.apex)  # and the bases
    share = rng.uniform(0.05, 0.95)
    ratio = rng.uniform(0.7, 1.0 / 0.7)
    level = np.empty_like(field)
    for part, share_here in ((thorax.u < 0, share * ratio), (thorax.u >= 0, share)):
        values = field[part & lungs]
        level[part] = np.quantile(values, 1 - min(share_here, 0.97))
    excess = field - level
    infection = lungs & (excess > 0)
    texture = 0.9 + 0.3 * _clouds(rng, 28, size)
    strength = _ramp(excess, rng.uniform(0.2, 0.6))
    strength *= 0.75 + 0.25 * _ramp(excess - 0.8, 1.6)
    peak = rng.uniform(0.2, 0.45)
    return peak * strength * texture * _ramp(thorax.lung, 0.02), infection


def _consolidation(thorax: _Thorax, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of one consolidated lobe."""
    y, side, size = thorax.y, thorax.side, thorax.u.shape[0]
    sign = 1 if rng.random() < 0.5 else -1
    slope = rng.uniform(-0.4, 0.4)
    fissure = y - thorax.apex - rng.uniform(0.22, 0.36) - slope * side
    fissure += 0.01 * _clouds(rng, 8, size)
    lobe = rng.integers(3 if sign < 0 else 2)  # only the patient's right has three
    if lobe == 0:
        depth = -fissure
    elif lobe == 1:
        depth = fissure
    else:
        depth = np.minimum(fissure, 0.16 - fissure)
    texture = 0.9 + 0.12 * _clouds(rng, 24, size)
    dense = rng.uniform(0.2, 0.42) * texture * _ramp(depth, rng.uniform(0.015, 0.05))
    return dense * _ramp(thorax.lung, 0.02) * (sign * thorax.u > 0)


def _develop(attenuation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turns attenuation into an image: tone curve, vignette, marks, blur and noise."""
    size = attenuation.shape[0]
    sample = 1 - np.exp(-rng.uniform(1.1, 2.2) * np.maximum(attenuation, 0))
    sample = sample ** rng.uniform(0.75, 1.5) * rng.uniform(0.7, 1.05)
    line = np.linspace(-1, 1, size, dtype=np.float32)
    centre = rng.uniform(-0.3, 0.3, 2)
    away = np.square(line - centre[0])[None, :] + np.square(line - centre[1])[:, None]
    sample = sample * (1 - rng.uniform(0, 0.18) * away) + rng.uniform(0, 0.12)
    sample = np.maximum(sample, rng.uniform(0.75, 1.0) * _marks(rng, size))
    sample = cv2.GaussianBlur(
        sample.astype(np.float32), (0, 0), rng.uniform(0.0015, 0.005) * size
    )
    grain = rng.standard_normal((size, size), dtype=np.float32)
    sample += rng.uniform(0.006, 0.028) * grain
    return np.rint(255 * np.clip(sample, 0, 1)).astype(np.uint8)


def _marks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Side letter, text and leads, as technicians leave them; float32 in [0, 1]."""
    canvas = np.zeros((size, size), np.uint8)

    def write(text: str, x: float, y: float, height: float) -> None:
        where, scale = (int(x * size), int(y * size)), height * size / 22
        font, width = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(size / 128))
        cv2.putText(canvas, text, where, font, scale, 255, width, cv2.LINE_AA)

    right = rng.random() < 0.5
    write("L" if right else "R", 0.9 if right else 0.04, rng.uniform(0.08, 0.3), 0.05)
    if rng.random() < 0.4:
        x, y = rng.uniform(0.02, 0.1), rng.uniform(0.04, 0.08)
        for row, text in enumerate(("AP", "PORTABLE")[: rng.integers(1, 3)]):
            write(text, x, y + 0.04 * row, 0.025)
    if rng.random() < 0.25:  # a lead across the chest
        x = np.linspace(rng.uniform(0, 0.3), rng.uniform(0.6, 1), 12)
        y = rng.uniform(0.2, 0.6) + 0.15 * np.sin(4 * x + rng.uniform(0, 6))
        points = np.rint(np.stack([x, y], axis=1) * size * 16).astype(np.int32)
        width = max(1, round(size / 160))
        cv2.polylines(canvas, [points], False, 210, width, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) / 255
