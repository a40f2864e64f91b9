"""ONNX graph in front of a detector: an image of any size becomes the pixels that `data.images` would give.

The steps are those of `predict`: the size of `data.resize.resized_hw`, Pillow's bilinear filter, 0..255 to 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 17
IMAGE = "image"  # the input: RGB, uint8 (height, width, 3)


def pixels_name(i: int) -> str:
    """Return the name of the resized image of the i-th size: float32 (3, h, w), 0..1."""
    return f"pixels_{i}"


def factors_name(i: int) -> str:
    """Return the name of the factors from its pixels to those of the image: float32 (4,), x, y, x, y."""
    return f"factors_{i}"


def image_graph(sizes: Sequence[tuple[int, int]], ir_version: int) -> ModelProto:
    """Return the graph that resizes an image to each of several sizes.

    Args:
        sizes: (image_size_px, max_size_px) of a recipe, each.
        ir_version: of the graph behind it.
    """
    from onnx import checker, parser

    outputs, lines = [], [_CONSTANTS]
    for i, (size, most) in enumerate(sizes):
        outputs += [f"float[3, h_{i}, w_{i}] {pixels_name(i)}", f"float[4] {factors_name(i)}"]
        lines += [_sizes(i, size, most), _weights(i, "w"), _weights(i, "h")]
        lines += [_resized(i, "w", IMAGE), _resized(i, "h", f"by_w_{i}"), _finish(i)]
    text = (
        f'<ir_version: {ir_version}, opset_import: ["" : {OPSET}]>\n'
        f"resize (uint8[height, width, 3] {IMAGE}) => ({', '.join(outputs)}) {{\n{''.join(lines)}}}"
    )
    model = parser.parse_model(text)
    checker.check_model(model)
    return model


_CONSTANTS = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    nothing = Constant <value = double {0.0}> ()
    half = Constant <value = double {0.5}> ()
    unit = Constant <value = double {1.0}> ()
    bits = Constant <value = double {4194304.0}> ()
    point = Constant <value = int32 {4194304}> ()
    half_point = Constant <value = int32 {2097152}> ()
    white = Constant <value = float {255.0}> ()
    true = Constant <value = bool {1}> ()
    axis_0 = Constant <value_ints = [0]> ()
    axis_1 = Constant <value_ints = [1]> ()
    three = Constant <value_ints = [3]> ()
    along_w = Constant <value_ints = [1, -1, 1]> ()
    along_h = Constant <value_ints = [-1, 1, 1]> ()
    shape = Shape (image)
    old_h = Gather (shape, zero)
    old_w = Gather (shape, one)
    old_h_64 = Cast <to = 11> (old_h)
    old_w_64 = Cast <to = 11> (old_w)
    old_h_1d = Unsqueeze (old_h, axis_0)
    short = Min (old_h, old_w)
    long = Max (old_h, old_w)
    upright = LessOrEqual (old_h, old_w)
"""


def _sizes(i: int, size: int, most: int) -> str:
    """Return the lines that compute the new height and width, as `resized_hw` does."""
    return f"""
    size_{i} = Constant <value_int = {size}> ()
    most_{i} = Constant <value_int = {most}> ()
    wanted_{i} = Mul (size_{i}, long)
    allowed_{i} = Mul (most_{i}, short)
    fits_{i} = LessOrEqual (wanted_{i}, allowed_{i})
    long_if_fits_{i} = Div (wanted_{i}, short)
    short_rounded_{i} = Div (allowed_{i}, long)
    short_else_{i} = Max (one, short_rounded_{i})
    new_short_{i} = Where (fits_{i}, size_{i}, short_else_{i})
    new_long_{i} = Where (fits_{i}, long_if_fits_{i}, most_{i})
    new_h_{i} = Where (upright, new_short_{i}, new_long_{i})
    new_w_{i} = Where (upright, new_long_{i}, new_short_{i})
    new_h_{i}_64 = Cast <to = 11> (new_h_{i})
    new_w_{i}_64 = Cast <to = 11> (new_w_{i})
    new_h_1d_{i} = Unsqueeze (new_h_{i}, axis_0)
    new_w_1d_{i} = Unsqueeze (new_w_{i}, axis_0)
"""


# Pillow's bilinear filter, to the bit. Source: src/libImaging/Resample.c of Pillow 12, `precompute_coeffs`,
# `normalize_coeffs_8bpc` and `ImagingResampleHorizontal_8bpc`: weights with 22 binary places, sums in integers. The
# operator Resize of onnxruntime 1.32 with `antialias` differs by up to 11 of 255.


def _weights(i: int, side: str) -> str:
    """Return the lines that compute which pixels along a side make each new one, and with which weights.

    They are ``sources`` and ``weights``, both (taps, new size).
    """
    n = f"{side}_{i}"
    return f"""
    scale_{n} = Div (old_{side}_64, new_{n}_64)
    support_{n} = Max (scale_{n}, unit)
    places_{n} = Range (zero, new_{n}, one)
    places_{n}_64 = Cast <to = 11> (places_{n})
    middles_{n} = Add (places_{n}_64, half)
    centres_{n} = Mul (middles_{n}, scale_{n})
    from_{n} = Sub (centres_{n}, support_{n})
    from_half_{n} = Add (from_{n}, half)
    from_floor_{n} = Floor (from_half_{n})
    from_whole_{n} = Cast <to = 7> (from_floor_{n})
    first_{n} = Max (from_whole_{n}, zero)
    until_{n} = Add (centres_{n}, support_{n})
    until_half_{n} = Add (until_{n}, half)
    until_floor_{n} = Floor (until_half_{n})
    until_whole_{n} = Cast <to = 7> (until_floor_{n})
    end_{n} = Min (until_whole_{n}, old_{side})
    reach_{n} = Ceil (support_{n})
    reach_whole_{n} = Cast <to = 7> (reach_{n})
    both_{n} = Add (reach_whole_{n}, reach_whole_{n})
    taps_{n} = Add (both_{n}, one)
    each_{n} = Range (zero, taps_{n}, one)
    each_column_{n} = Unsqueeze (each_{n}, axis_1)
    unbounded_{n} = Add (first_{n}, each_column_{n})
    inside_{n} = Less (unbounded_{n}, end_{n})
    unbounded_{n}_64 = Cast <to = 11> (unbounded_{n})
    apart_{n} = Sub (unbounded_{n}_64, centres_{n})
    apart_half_{n} = Add (apart_{n}, half)
    narrow_{n} = Div (unit, support_{n})
    signed_{n} = Mul (apart_half_{n}, narrow_{n})
    distances_{n} = Abs (signed_{n})
    triangle_{n} = Sub (unit, distances_{n})
    positive_{n} = Max (triangle_{n}, nothing)
    raw_{n} = Where (inside_{n}, positive_{n}, nothing)
    sums_{n} = ReduceSum (raw_{n}, axis_0)
    shares_{n} = Div (raw_{n}, sums_{n})
    shifted_{n} = Mul (shares_{n}, bits)
    shifted_half_{n} = Add (shifted_{n}, half)
    shifted_floor_{n} = Floor (shifted_half_{n})
    weights_{n} = Cast <to = 6> (shifted_floor_{n})
    edge_{n} = Sub (old_{side}, one)
    sources_{n} = Min (unbounded_{n}, edge_{n})
"""


def _resized(i: int, side: str, image: str) -> str:
    """Return the lines of one pass along a side: uint8 (H, W, 3) -> the same with its new size."""
    n, axis = f"{side}_{i}", "hw".index(side)
    shape = f"old_h_1d, new_w_1d_{i}" if side == "w" else f"new_h_1d_{i}, new_w_1d_{i}"
    return f"""
    shape_{n} = Concat <axis = 0> ({shape}, three)
    start_{n} = Expand (half_point, shape_{n})
    summed_{n} = Loop (taps_{n}, true, start_{n}) <body = tap (
        int64 tap_{n}, bool goes_{n}, int32[a_{n}, b_{n}, 3] so_far_{n}
    ) => (bool goes_on_{n}, int32[a_{n}, b_{n}, 3] with_tap_{n}) {{
        goes_on_{n} = Identity (goes_{n})
        at_{n} = Gather (sources_{n}, tap_{n})
        weight_{n} = Gather (weights_{n}, tap_{n})
        weight_along_{n} = Reshape (weight_{n}, along_{side})
        taken_{n} = Gather <axis = {axis}> ({image}, at_{n})
        taken_32_{n} = Cast <to = 6> (taken_{n})
        part_{n} = Mul (taken_32_{n}, weight_along_{n})
        with_tap_{n} = Add (so_far_{n}, part_{n})
    }}>
    whole_{n} = Div (summed_{n}, point)
    by_{n} = Cast <to = 2> (whole_{n})
"""


def _finish(i: int) -> str:
    """Return the lines that make a float image of the pixels, and the factors of the boxes."""
    factors = "".join(
        f"""
    ratio_{n} = Div (new_{n}_64, old_{n[0]}_64)
    factor_{n} = Div (unit, ratio_{n})
    factor_1d_{n} = Unsqueeze (factor_{n}, axis_0)
"""
        for n in (f"w_{i}", f"h_{i}")
    )
    return f"""
    first_channels_{i} = Transpose <perm = [2, 0, 1]> (by_h_{i})
    floats_{i} = Cast <to = 1> (first_channels_{i})
    {pixels_name(i)} = Div (floats_{i}, white)
{factors}
    factors_{i}_64 = Concat <axis = 0> (factor_1d_w_{i}, factor_1d_h_{i}, factor_1d_w_{i}, factor_1d_h_{i})
    {factors_name(i)} = Cast <to = 1> (factors_{i}_64)
"""
