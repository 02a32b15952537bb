"""The numbers behind pictures: they show what was computed.

Shapes: B images, C colours, H x W pixels, L patches, P channels of a patch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from semaim.models.aim import AIM
from semaim.models.predictor import Prediction
from semaim.models.token_cache import TokenCache
from semaim.permutations import Attention, AttentionCenter, Raster, Stochastic, ranks
from semaim.semantics import SemanticMap, semantic_map
from semaim.targets import EncoderFeatures, Pixels, patchify
from semaim.visualization import figures, plotting
from semaim.visualization.figures import ModelView
from semaim.visualization.plotting import Panel, grid_figure
from semaim.visualization.views import Colours, Maps, PredictedImages, Viewer, predict, reveal, unpatchify

GREY = Colours((0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
ORDERS = {"raster": Raster(), "stochastic": Stochastic(), "attention": Attention(), "closest": AttentionCenter()}


def viewer(model: AIM, **changes: object) -> Viewer:
    usual = {
        "model": model.eval(),
        "encoders": {"online": model},
        "network": "online",
        "semantic_map": SemanticMap(),
        "permutations": ORDERS,
        "target": Pixels(4),
    }
    return Viewer(**{**usual, **changes})  # type: ignore[arg-type]


def test_patches_are_put_back_in_place(images: Callable[..., Tensor]) -> None:
    images_BCHW = images(2, 12, 20)
    assert torch.equal(unpatchify(patchify(images_BCHW, 4), (3, 5)), images_BCHW)


def test_colours_are_those_of_the_image() -> None:
    images_BCHW = torch.tensor([-2.0, 0.0, 2.0, 9.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    shown_BHWC = GREY.denormalise(images_BCHW)
    assert shown_BHWC.shape == (1, 2, 2, 3)
    expected = torch.tensor([[[0.0, 0.0, 0.1], [0.5, 0.4, 0.3]], [[1.0, 0.8, 0.5], [1.0, 1.0, 1.0]]])
    torch.testing.assert_close(shown_BHWC[0], expected)


def test_pictures_show_what_the_model_computes(tiny_model: Callable[..., AIM], images: Callable[..., Tensor]) -> None:
    model, images_BCHW = tiny_model().eval(), images(3)
    view = viewer(model).view(images_BCHW, seed=5, predict_order="attention")
    with torch.no_grad():
        tokens_BND, attention_BL = model.encode_with_attention(images_BCHW)
        map_BL = semantic_map(tokens_BND, "cls")
        order_BL = map_BL.argsort(1, descending=True)
        prediction_BLP = model.predict(images_BCHW, order_BL)
    assert torch.equal(view.maps.semantic_BL, map_BL)
    assert torch.equal(view.maps.attention_BL, attention_BL)
    assert torch.equal(view.orders["attention"], order_BL)
    assert torch.equal(view.orders["raster"], torch.arange(64).expand(3, -1))
    assert view.prediction is not None
    target = Pixels(4)
    assert torch.equal(view.prediction.error_BL, target.loss(prediction_BLP, target(images_BCHW)))
    again = viewer(model).view(images_BCHW, seed=5, predict_order=None)
    assert again.prediction is None
    assert torch.equal(again.orders["stochastic"], view.orders["stochastic"])
    other = viewer(model).view(images_BCHW, seed=6, predict_order=None)
    assert not torch.equal(other.orders["stochastic"], view.orders["stochastic"])
    assert torch.equal(other.orders["attention"], view.orders["attention"])
    some = view.subset(slice(0, 3, 2))
    assert torch.equal(some.orders["attention"], order_BL[[0, 2]])
    assert some.prediction is not None
    assert torch.equal(some.prediction.error_BL, view.prediction.error_BL[[0, 2]])


def test_a_map_of_attention_is_drawn_as_it_is_used(
    tiny_model: Callable[..., AIM], images: Callable[..., Tensor]
) -> None:
    view = viewer(tiny_model(), semantic_map=SemanticMap("self")).view(images(), 0, None)
    assert torch.equal(view.maps.semantic_BL, view.maps.attention_BL)
    assert torch.equal(view.orders["attention"], view.maps.attention_BL.argsort(1, descending=True))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_looks_like_the_blurred_image(images: Callable[..., Tensor], norm_pix: bool) -> None:
    images_BCHW = images(2, 8, 12)
    target = Pixels(4, norm_pix=norm_pix)
    order_BL = torch.arange(6).expand(2, -1)
    perfect = predict(
        Prediction(target(images_BCHW)), images_BCHW, order_BL, target, TokenCache({}, images_BCHW), (2, 3)
    )
    blurred_BCHW = target.blur(images_BCHW)
    assert perfect.predicted_BCHW is not None
    assert perfect.target_BCHW is not None
    torch.testing.assert_close(perfect.target_BCHW, blurred_BCHW)
    torch.testing.assert_close(perfect.predicted_BCHW, blurred_BCHW)
    assert torch.equal(perfect.error_BL, torch.zeros(2, 6))
    flat = predict(
        Prediction(torch.zeros(2, 6, 48)), images_BCHW, order_BL, target, TokenCache({}, images_BCHW), (2, 3)
    )
    assert flat.predicted_BCHW is not None
    expected_BL1 = patchify(blurred_BCHW, 4).mean(-1, keepdim=True) if norm_pix else torch.zeros(2, 6, 1)
    torch.testing.assert_close(patchify(flat.predicted_BCHW, 4), expected_BL1.expand(-1, -1, 48))


def test_features_have_an_error_and_no_picture(tiny_model: Callable[..., AIM], images: Callable[..., Tensor]) -> None:
    model, images_BCHW = tiny_model(out_channels=32).eval(), images()
    target = EncoderFeatures("online", 32)
    view = viewer(model, target=target).view(images_BCHW, 0, "raster")
    assert view.prediction is not None
    assert view.prediction.predicted_BCHW is None
    with torch.no_grad():
        prediction_BLP = model.predict(images_BCHW, view.orders["raster"])
        expected_BL = target.loss(prediction_BLP, model.encode(images_BCHW)[:, 1:])
    torch.testing.assert_close(view.prediction.error_BL, expected_BL)


def test_images_appear_in_their_order() -> None:
    images_BCHW = torch.arange(1.0, 17).view(1, 1, 4, 4)
    order_BL = torch.tensor([[2, 0, 3, 1]])  # of four patches of 2 x 2
    assert ranks(order_BL).tolist() == [[1, 3, 0, 2]]
    assert torch.equal(reveal(images_BCHW, order_BL, 2, 0), torch.zeros(1, 1, 4, 4))
    two = torch.tensor([[1, 2, 0, 0], [5, 6, 0, 0], [9, 10, 0, 0], [13, 14, 0, 0]]).float()
    assert torch.equal(reveal(images_BCHW, order_BL, 2, 2)[0, 0], two)
    assert torch.equal(reveal(images_BCHW, order_BL, 2, 4), images_BCHW)


def drawn(figure: object) -> list[np.ndarray]:
    """Image data of each panel of a figure, in rows; the legend comes last."""
    return [np.asarray(place.get_images()[0].get_array()) for place in figure.axes]  # type: ignore[attr-defined]


def test_first_is_warm_and_each_picture_has_its_scale() -> None:
    image = np.linspace(0, 1, 12).reshape(2, 2, 3)
    ranked, error = np.array([[3, 0], [1, 2]]), np.array([[0.5, 2.0], [0.0, 1.0]])
    rows = [
        [Panel(image), Panel(ranked, "order"), Panel(error, "error"), Panel(error, "map")],
        [Panel(image), Panel(ranked.T, "order"), Panel(error / 4, "error"), Panel(error / 4, "map")],
    ]
    figure = grid_figure(rows, ["image", "order", "error", "map"], [], "cividis")
    shown = drawn(figure)
    assert np.array_equal(shown[0], image)
    assert np.array_equal(shown[1], -ranked)
    limits = [place.get_images()[0].get_clim() for place in figure.axes[:8]]
    assert limits[1] == limits[5] == (-3, 0)
    assert limits[2] == limits[6] == (0, 2), "errors of all images on one scale"
    assert limits[3] == (0, 2)
    assert limits[7] == (0, 0.5), "each map on its own"
    (dot,) = figure.axes[1].lines
    assert dot.get_xydata().tolist() == [[1, 0]], "the patch of rank 0"
    words = [text.get_text() for place in figure.axes[8:] for text in place.texts]
    assert words[:2] == ["predicted last", "predicted first (dot)"]
    assert len(words) == 6, "three legends: orders, maps and errors"


def test_the_figure_of_the_paper_has_a_row_per_image_and_a_heading_per_model() -> None:
    maps = Maps(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[4.0, 3, 2, 1]]))
    order_BL = torch.tensor([[1, 0, 3, 2]])
    one = ModelView("first", maps, {"raster": torch.arange(4)[None], "own": order_BL}, (2, 2))
    two = ModelView("second", maps, {"own": order_BL}, (2, 2))
    images = figures.Shown(
        torch.zeros(1, 4, 4, 3), ["photos/cats/a_rather_long_name_of_a_photo_0123.jpg"], "1 of 9 images"
    )
    figure = figures.orders_figure(images, [one, two], "viridis")
    titles = [place.get_title() for place in figure.axes[:8]]
    assert titles == ["image", "self-attention", "similarity", "raster", "own", "self-attention", "similarity", "own"]
    shown = drawn(figure)
    assert shown[1].tolist() == [[1, 2], [3, 4]]
    assert shown[2].tolist() == [[4, 3], [2, 1]]
    assert shown[4].tolist() == [[-1, 0], [-3, -2]]
    assert {"first", "second", "1 of 9 images"} <= {text.get_text() for text in figure.texts}
    (label,) = (text.get_text() for text in figure.axes[0].texts)
    assert label == "…ng_name_of_a_photo_0123.jpg", "the end of a long name tells photos apart"
    by_attention = ModelView("third", Maps(maps.attention_BL, maps.attention_BL), {"own": order_BL}, (2, 2))
    figure = figures.orders_figure(images, [by_attention, two], "viridis")
    titles = [place.get_title() for place in figure.axes[:6]]
    assert titles == ["image", "self-attention", "own", "self-attention", "similarity", "own"]


def test_a_film_starts_empty_and_ends_complete() -> None:
    images_BCHW = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    order_BL = torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3]])
    prediction = PredictedImages(order_BL, torch.zeros(2, 4), None, images_BCHW, -images_BCHW)
    frames = figures.film_frames(images_BCHW, prediction, 4, Colours((0.0,) * 3, (1.0,) * 3))
    assert len(frames) == 5
    assert frames[0].shape == (2, 8, 16, 3)
    assert not frames[0].any()
    assert np.array_equal(frames[-1][:, :, :8], images_BCHW.movedim(1, -1).numpy())
    first = frames[1][0]
    assert np.array_equal(first[4:, 4:8], images_BCHW[0, :, 4:, 4:].movedim(0, -1).numpy())
    assert not first[:4].any()


def test_an_unknown_palette_is_refused() -> None:
    from semaim.errors import UserError

    with pytest.raises(UserError, match="no colour map of matplotlib's: choose cividis"):
        plotting.check_palette("rainbows", "task.palette")
