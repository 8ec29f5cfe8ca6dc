"""Prediction requests that are answered: the three forms of body, parameters, and what the answer says."""

import asyncio
import base64
import json
from dataclasses import replace

import httpx
import pytest

from offramp.models.cost import count_cost
from offramp.server.http.schemas import ModelFacts, ModelList, PredictionAnswer
from offramp.server.settings import Settings


def as_raw(images, parameters):
    return {"content": images[0], "params": parameters, "headers": {"Content-Type": "image/png"}}


def as_form(images, parameters):
    return {"files": [("image", (f"{i}.png", image)) for i, image in enumerate(images)], "data": parameters}


def as_form_with_query(images, parameters):
    return {"files": [("image", image) for image in images], "params": parameters}


def as_json(images, parameters):
    typed = {
        name: [float(number) for number in value.split(",")] if name == "thresholds" else json.loads(value)
        for name, value in parameters.items()
        if name != "version"
    } | {name: value for name, value in parameters.items() if name == "version"}
    return {"json": {"images": [base64.b64encode(image).decode() for image in images], **typed}}


def as_json_with_query(images, parameters):
    return {"json": {"images": [base64.b64encode(image).decode() for image in images]}, "params": parameters}


FORMS = [as_raw, as_form, as_form_with_query, as_json, as_json_with_query]
PARAMETERS = [
    {},
    {"threshold": "0.3"},
    {"threshold": "0"},
    {"threshold": "1"},
    {"thresholds": "0.9,0.4,0.1"},
    {"min_exit": "2", "threshold": "0"},
    {"max_exit": "1", "threshold": "1"},
    {"deadline_ms": "60000", "top_k": "3", "detail": "true"},
    {"version": "1"},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
async def test_every_form_of_body_gets_the_same_answer(site, encode, parameters):
    answers = []
    for form in FORMS:
        response = await site.client.post("/v1/predict", **form([encode(180)], parameters))
        assert response.status_code == 200, response.text
        answer = response.json()
        PredictionAnswer.model_validate(answer)
        del answer["timing_ms"]
        answers.append(answer)
    assert answers == [answers[0]] * len(FORMS)


async def test_an_answer_says_all_that_the_contract_promises(site, encode, bundle):
    response = await site.client.post("/v1/predict?threshold=0.4&top_k=2&detail=true", content=encode(180))
    cost = count_cost(bundle.config)
    answer = response.json()
    [prediction] = answer["predictions"]
    # Red 180: confidence 0.1 + 0.9 * 180 / 255 * k / 4 reaches 0.4 at exit 2.
    assert prediction == {
        "label": "label0",
        "class_id": 0,
        "confidence": 0.417647,
        "exit": 2,
        "exits": 4,
        "exit_reason": "confident",
        "compute": round(cost.compute[1], 4),
        "top_k": [
            {"label": "label0", "class_id": 0, "probability": 0.417647},
            {"label": "label1", "class_id": 1, "probability": 0.064706},
        ],
        "visited": [
            {"exit": 1, "label": "label0", "class_id": 0, "confidence": 0.258824},
            {"exit": 2, "label": "label0", "class_id": 0, "confidence": 0.417647},
        ],
    }
    assert (answer["model"], answer["version"], answer["contract"]) == ("tiny", "1", {"threshold": 0.4})
    assert answer["timing_ms"].keys() == {"decode", "queue", "inference", "total"}
    assert (answer["timing_ms"]["queue"], answer["timing_ms"]["inference"]) == (2.0, 3.0)
    assert response.headers["X-Offramp-Exit"] == "2"
    assert response.headers["Server-Timing"].startswith("decode;dur=")
    assert response.headers["Server-Timing"].endswith("queue;dur=2.000, inference;dur=3.000")


@pytest.mark.parametrize(
    ("query", "contract"),
    [
        ("", {"threshold": 0.5}),
        ("?threshold=0.25", {"threshold": 0.25}),
        ("?thresholds=0.9,0.8,0.7", {"thresholds": [0.9, 0.8, 0.7]}),
        ("?min_exit=2&max_exit=3", {"threshold": 0.5, "min_exit": 2, "max_exit": 3}),
        ("?deadline_ms=5000", {"threshold": 0.5, "deadline_ms": 5000.0}),
    ],
)
async def test_the_contract_says_what_was_applied(site, encode, query, contract):
    response = await site.client.post(f"/v1/predict{query}", content=encode())
    assert response.json()["contract"] == contract


async def test_the_server_deadline_applies_where_the_request_names_none(serve, encode):
    async with serve(settings=Settings(deadline_ms=4000.0)) as site:
        answer = (await site.client.post("/v1/predict", content=encode())).json()
        assert answer["contract"]["deadline_ms"] == 4000.0
        assert site.engine.deadlines_s[0] is not None
        answer = (await site.client.post("/v1/predict?deadline_ms=9000", content=encode())).json()
        assert answer["contract"]["deadline_ms"] == 9000.0


async def test_the_engine_is_given_the_thresholds_and_bounds_asked_for(site, encode):
    await site.client.post("/v1/predict?thresholds=0.1,0.2,0.3&min_exit=2&max_exit=3", content=encode())
    rule = site.engine.contracts[0].asked.rule
    assert (rule.thresholds, rule.min_exit, rule.max_exit) == ((0.1, 0.2, 0.3), 2, 3)


@pytest.mark.parametrize("form", [as_form, as_json])
async def test_several_pictures_leave_apart_and_return_in_order(site, encode, form):
    reds = [255, 10, 128, 200, 64]
    response = await site.client.post("/v1/predict", **form([encode(red) for red in reds], {"threshold": "0.5"}))
    predictions = response.json()["predictions"]
    assert [prediction["class_id"] for prediction in predictions] == [red % 10 for red in reds]
    assert [prediction["exit"] for prediction in predictions] == [2, 4, 4, 3, 4]
    assert "X-Offramp-Exit" not in response.headers


@pytest.mark.parametrize(
    "content_type",
    [None, "application/octet-stream", "application/x-www-form-urlencoded", "image/png", "IMAGE/PNG; q=1"],
)
async def test_a_raw_picture_is_known_by_its_bytes(site, encode, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await site.client.post("/v1/predict", content=encode(), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
async def test_every_supported_format_is_answered(site, encode, format):
    headers = {"Content-Type": f"image/{format.lower()}"}
    response = await site.client.post("/v1/predict?threshold=1", content=encode(250, format), headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["predictions"][0]["exit_reason"] == "final"


@pytest.mark.parametrize(
    ("content_type", "format"),
    [
        ("image/jpg", "JPEG"),
        ("image/pjpeg", "JPEG"),
        ("image/x-png", "PNG"),
        ("Image/JPG; name=photo.jpg", "JPEG"),
        ("image/x-ms-bmp;charset=binary", "BMP"),
    ],
)
async def test_other_names_of_a_format_mean_that_format(site, encode, content_type, format):
    headers = {"Content-Type": content_type}
    response = await site.client.post("/v1/predict", content=encode(250, format), headers=headers)
    assert response.status_code == 200, response.text
    response = await site.client.post("/v1/predict", content=encode(250, "GIF"), headers=headers)
    assert response.status_code == 415, response.text


async def test_a_form_part_needs_no_file_name(site, encode):
    boundary = b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\n" + encode() + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = await site.client.post("/v1/predict", content=boundary, headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("top_k=1&detail=False", {"top_k": "1", "detail": "false"}),
        ("threshold=0.80", {"threshold": "0.8"}),
        ("thresholds=0.9,0.8,0.70", {"thresholds": "0.9,0.8,0.7"}),
        ("thresholds=0.9&thresholds=0.8&thresholds=0.7", {"thresholds": "0.9,0.8,0.7"}),
        ("top_k=1&top_k=1", {}),
    ],
)
async def test_a_parameter_may_come_twice_with_the_same_value(site, encode, query, parameters):
    for form in (as_form, as_json):
        response = await site.client.post(f"/v1/predict?{query}", **form([encode()], parameters))
        assert response.status_code == 200, response.text


async def test_thresholds_may_be_repeated_as_http_clients_do(site, encode):
    numbers = {"thresholds": ["0.9", "0.8", "0.7"]}
    in_query = await site.client.post("/v1/predict", params=numbers, content=encode())
    in_form = await site.client.post("/v1/predict", data=numbers, files={"image": encode()})
    for response in (in_query, in_form):
        assert response.json()["contract"] == {"thresholds": [0.9, 0.8, 0.7]}, response.text


async def test_a_body_larger_than_what_is_parsed_inline_is_answered_the_same(site, encode):
    images = [encode(255, "BMP", (200, 200))] * 2
    for form in (as_form, as_json):
        response = await site.client.post("/v1/predict", **form(images, {"threshold": "0"}))
        assert [prediction["exit"] for prediction in response.json()["predictions"]] == [1, 1]


async def test_models_and_versions_are_addressed_by_name(serve, bundle, encode):
    bundles = [bundle, replace(bundle, version="2"), replace(bundle, name="other", threshold=0.9)]
    async with serve(bundles=bundles) as site:

        async def ask(path: str) -> tuple[str, str]:
            answer = (await site.client.post(path, content=encode())).json()
            return answer["model"], answer["version"]

        assert await ask("/v1/predict") == ("tiny", "1")
        assert await ask("/v1/predict?version=2") == ("tiny", "2")
        assert await ask("/v1/models/tiny/predict") == ("tiny", "1")
        assert await ask("/v1/models/tiny/predict?version=2") == ("tiny", "2")
        assert await ask("/v1/models/other/predict") == ("other", "1")
        listed = (await site.client.get("/v1/models")).json()
        ModelList.model_validate(listed)
        assert listed["default"] == "tiny"
        assert [(each["name"], each["version"]) for each in listed["models"]] == [
            ("tiny", "1"),
            ("tiny", "2"),
            ("other", "1"),
        ]


async def test_a_model_tells_what_its_bundle_holds(site, bundle):
    facts = (await site.client.get("/v1/models/tiny")).json()
    ModelFacts.model_validate(facts)
    cost = count_cost(bundle.config)
    assert facts["labels"] == list(bundle.labels)
    assert facts["input"] == {
        "width": 32,
        "height": 32,
        "media_types": ["image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif"],
    }
    assert [each["accuracy"] for each in facts["exits"]] == [0.5, 0.6, 0.7, 0.8]
    assert [each["multiply_adds"] for each in facts["exits"]] == list(cost.sequential_multiply_adds)
    assert facts["exits"][-1]["compute"] == 1.0
    assert (await site.client.get("/v1/models/tiny?version=1")).json() == facts


async def test_a_bundle_without_recorded_facts_tells_what_is_computed(serve, bundle):
    async with serve(bundles=[replace(bundle, exits=(), operating_points=(), training={})]) as site:
        facts = (await site.client.get("/v1/models/tiny")).json()
        ModelFacts.model_validate(facts)
        assert [each.keys() for each in facts["exits"]] == [{"exit", "compute", "multiply_adds"}] * 4
        assert (facts["operating_points"], facts["training"]) == ([], {})


async def test_many_clients_each_get_the_answer_to_their_own_picture(site, encode):
    async def ask(red: int) -> None:
        response = await site.client.post(f"/v1/predict?threshold={red / 255:.3f}", content=encode(red))
        answer = response.json()
        assert answer["predictions"][0]["class_id"] == red % 10
        assert answer["contract"]["threshold"] == round(red / 255, 3)

    await asyncio.gather(*(ask(red) for red in range(0, 256, 4)))


async def test_a_request_id_is_echoed_when_it_is_sane_and_made_otherwise(site):
    async def returned(given: str | None) -> str:
        headers = {} if given is None else {"X-Request-Id": given}
        return (await site.client.get("/livez", headers=headers)).headers["X-Request-Id"]

    assert await returned("abc-123/~") == "abc-123/~"
    assert await returned("x" * 128) == "x" * 128
    for given in (None, "x" * 129, "has space", ""):
        made = await returned(given)
        assert made != given
        assert len(made) == 32
        int(made, 16)
    request = httpx.Request("GET", "http://offramp/livez", headers=[(b"X-Request-Id", b"\xff\xfe")])
    assert len((await site.client.send(request)).headers["X-Request-Id"]) == 32


async def test_the_same_parameters_mean_what_they_mean_to_each_model(serve, bundle, encode):
    bundles = [bundle, replace(bundle, version="2", threshold=0.6), replace(bundle, name="other", threshold=0.7)]
    async with serve(bundles=bundles) as site:

        async def threshold(path):
            return (await site.client.post(path, content=encode())).json()["contract"]["threshold"]

        for _ in range(2):
            assert await threshold("/v1/predict") == 0.5
            assert await threshold("/v1/predict?version=2") == 0.6
            assert await threshold("/v1/models/other/predict") == 0.7


async def test_a_deadline_counts_from_its_own_request(site, encode):
    for _ in range(2):
        await site.client.post("/v1/predict?deadline_ms=60000", content=encode())
    first, second = site.engine.deadlines_s
    assert first < second


async def test_requests_on_the_same_terms_share_a_contract(site, encode):
    for _ in range(2):
        await site.client.post("/v1/predict", content=encode())
    first, second = site.engine.contracts
    assert first is second


async def test_of_values_in_json_that_are_equal_one_may_be_wrong(site, encode):
    image = base64.b64encode(encode()).decode()
    for value, status in ((1, 200), (True, 422), (1.0, 200)):
        asked = site.client.post("/v1/predict", json={"images": [image], "top_k": value})
        assert (await asked).status_code == status
