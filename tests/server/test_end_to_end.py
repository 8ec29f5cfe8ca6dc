"""The real engine behind the real frontend: answers equal the evaluation's, sample by sample."""

import asyncio
import base64
import io

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from offramp.models.bundle import load_bundle, save_bundle
from offramp.models.exit_policy import ExitRule, exits_taken
from offramp.models.preprocess import normalize
from offramp.server.http.app import create_app
from offramp.server.loading import load_registry
from offramp.server.metrics import Metrics
from offramp.server.settings import Settings

NUM_PICTURES = 24


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(NUM_PICTURES)]


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=["torch", "openvino"])
async def real(request, bundle, tmp_path, until):
    """A client of a server with the real engine, and the bundle that it loaded."""
    save_bundle(bundle, tmp_path / "tiny", "card")
    options = {"runner": request.param, "precision": "float32", "threads": 1, "max_batch_size": 4}
    settings = Settings(model=[tmp_path / "tiny"], device="cpu", **options)
    metrics = Metrics()
    registry = load_registry(settings, metrics)
    app = create_app(registry, settings, metrics)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://offramp") as client,
    ):
        await until(lambda: registry.why_not_ready() is None)
        yield client, load_bundle(tmp_path / "tiny"), metrics


@torch.inference_mode()
def reference(bundle, pictures: list[np.ndarray]) -> np.ndarray:
    """Calibrated probabilities (exits, pictures, classes), each picture computed alone."""
    rows = []
    for picture in pictures:
        accumulated, probabilities = None, []
        logits = bundle.net(normalize(torch.from_numpy(picture[None]), bundle.preprocessing)).logits
        for exit, logits_BC in enumerate(logits, start=1):
            accumulated = bundle.calibration.accumulate(exit, accumulated, logits_BC)
            probabilities.append(bundle.calibration.probabilities(exit, accumulated)[0].numpy())
        rows.append(probabilities)
    return np.array(rows).transpose(1, 0, 2)


async def test_concurrent_clients_get_what_evaluation_computes(real, pictures):
    client, bundle, metrics = real
    probabilities_KNC = reference(bundle, pictures)
    confidence_NK = probabilities_KNC.max(axis=2).T
    thresholds = (0.0, 0.11, 0.3, 1.0)
    for threshold in thresholds:
        # A picture whose confidence lies on the threshold may fall to either side in another batch.
        clear_N = (np.abs(confidence_NK - threshold) > 1e-4).all(axis=1)
        exit_N = exits_taken(confidence_NK.astype(np.float32), ExitRule.uniform(threshold, 4))
        responses = await asyncio.gather(
            *(client.post(f"/v1/predict?threshold={threshold}", content=png(picture)) for picture in pictures)
        )
        for row, response in enumerate(responses):
            assert response.status_code == 200, response.text
            [prediction] = response.json()["predictions"]
            if clear_N[row]:
                assert prediction["exit"] == exit_N[row]
            expected_C = probabilities_KNC[prediction["exit"] - 1, row]
            assert prediction["confidence"] == pytest.approx(expected_C.max(), abs=1e-4)
            assert expected_C[prediction["class_id"]] == pytest.approx(expected_C.max(), abs=1e-4)
    samples = [
        sample.value
        for metric in metrics._collectors.collect()
        if metric.name == "offramp_samples"
        for sample in metric.samples
    ]
    assert sum(samples) == NUM_PICTURES * len(thresholds)


async def test_one_request_of_many_pictures_equals_many_requests_of_one(real, pictures):
    client, _, _ = real
    images = [base64.b64encode(png(picture)).decode() for picture in pictures]
    together = (await client.post("/v1/predict", json={"images": images, "detail": True})).json()["predictions"]
    for picture, prediction in zip(pictures, together, strict=True):
        response = await client.post("/v1/predict?detail=true", content=png(picture))
        alone = response.json()["predictions"][0]
        assert (alone["class_id"], alone["exit"]) == (prediction["class_id"], prediction["exit"])
        assert alone["confidence"] == pytest.approx(prediction["confidence"], abs=1e-4)


async def test_a_deadline_already_past_is_a_504_and_the_next_request_works(real, pictures):
    client, _, _ = real
    response = await client.post("/v1/predict?deadline_ms=0.0001", content=png(pictures[0]))
    assert (response.status_code, response.json()["type"]) == (504, "urn:offramp:problem:deadline-exceeded")
    assert (await client.post("/v1/predict?deadline_ms=60000", content=png(pictures[0]))).status_code == 200
