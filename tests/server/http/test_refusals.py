"""Every error of the contract: status, problem+json, and a sentence that helps."""

import base64
import json
import struct
import tracemalloc
import zlib
from dataclasses import replace

import pytest

from offramp.server.engine.errors import DeadlineExceeded, EngineStopped, InferenceFailed, Overloaded
from offramp.server.http.schemas import ProblemDetails
from offramp.server.request.parameters import _nearest
from offramp.server.settings import Settings

PNG = {"Content-Type": "image/png"}
MIB = 2**20


def assert_problem(response, status: int, slug: str, *words: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    ProblemDetails.model_validate(problem)
    assert problem["type"] == f"urn:offramp:problem:{slug}"
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["X-Request-Id"]
    assert problem["instance"] == response.request.url.path
    for word in words:
        assert word in problem["detail"]
    return problem


def as_query(image, name, value):
    return {"content": image, "params": {name: value}}


def as_form_field(image, name, value):
    return {"files": [("image", image)], "data": {name: value}}


def as_json_field(image, name, value):
    try:
        # NaN and Infinity too: Python's reader takes them, as do some clients' writers.
        typed = json.dumps(json.loads(value))
    except ValueError:
        typed = json.dumps(value.split(",") if name == "thresholds" else value)
    content = f'{{"images": ["{base64.b64encode(image).decode()}"], "{name}": {typed}}}'
    return {"content": content, "headers": {"Content-Type": "application/json"}}


WRONG_VALUES = [
    ("threshold", "abc", "[0, 1]"),
    ("threshold", "NaN", "[0, 1]"),
    ("threshold", "Infinity", "[0, 1]"),
    ("threshold", "-Infinity", "[0, 1]"),
    ("threshold", "1.01", "[0, 1]"),
    ("threshold", "-0.1", "[0, 1]"),
    ("threshold", "", "[0, 1]"),
    ("threshold", "1e999", "[0, 1]"),
    ("thresholds", "0.5,NaN,0.5", "[0, 1]"),
    ("thresholds", "0.5,2,0.5", "[0, 1]"),
    ("thresholds", "0.5,0.5", "give 3"),
    ("thresholds", "0.5,0.5,0.5,0.5", "give 3"),
    ("thresholds", ",".join(["0.5"] * 64), "give 3"),
    ("thresholds", ",".join(["0.5"] * 65), "more than 64"),
    ("thresholds", ",".join(["x"] * 4000), "more than 64"),
    ("max_disagreement", "2", "[0, 1]"),
    ("min_exit", "0", "at least 1"),
    ("min_exit", "5", "1 to 4"),
    ("min_exit", "1.5", "whole number"),
    ("max_exit", "0", "at least 1"),
    ("max_exit", "5", "1 to 4"),
    ("deadline_ms", "0", "above 0"),
    ("deadline_ms", "-5", "above 0"),
    ("deadline_ms", "1e300", "3600000"),
    ("deadline_ms", "NaN", "above 0"),
    ("top_k", "0", "at least 1"),
    ("top_k", "11", "1 to 10"),
    ("top_k", "9" * 5000, "at least 1"),
    ("detail", "perhaps", "true or false"),
]


@pytest.mark.parametrize("form", [as_query, as_form_field, as_json_field])
@pytest.mark.parametrize(("name", "value", "allowed"), WRONG_VALUES, ids=lambda value: str(value)[:12])
async def test_a_wrong_value_is_refused_by_name_value_and_range(site, encode, form, name, value, allowed):
    response = await site.client.post("/v1/predict", **form(encode(), name, value))
    problem = assert_problem(response, 422, "invalid-parameter", name, allowed)
    assert problem["parameters"] == [name]
    assert len(problem["detail"]) < 300


@pytest.mark.parametrize("value", [True, False, None, [], {}, [0.5], {"a": 1}])
async def test_json_takes_only_numbers_for_numbers(site, encode, value):
    content = {"images": [base64.b64encode(encode()).decode()], "threshold": value}
    response = await site.client.post("/v1/predict", json=content)
    if value is None:
        assert response.json()["contract"] == {"threshold": 0.5}
    else:
        assert_problem(response, 422, "invalid-parameter", "threshold", "[0, 1]")


@pytest.mark.parametrize("form", [as_query, as_form_field, as_json_field])
async def test_an_unknown_parameter_is_refused_with_the_nearest_known_one(site, encode, form):
    response = await site.client.post("/v1/predict", **form(encode(), "treshold", "0.5"))
    assert_problem(response, 422, "invalid-parameter", "'treshold'", "did you mean 'threshold'?")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([0.5, 2, 0.5], "thresholds[1] 2 is not allowed"),
        (["x"] * 64, "thresholds[0] 'x' is not allowed"),
        ([[1]], "thresholds[0] given as a list"),
        ([{"a": 1}], "thresholds[0] given as an object"),
        ({"a": 1}, "thresholds given as an object"),
        (True, "thresholds True is not allowed"),
    ],
    ids=str,
)
async def test_of_thresholds_the_first_wrong_one_is_named_and_only_that(site, encode, value, said):
    content = {"images": [base64.b64encode(encode()).decode()], "thresholds": value}
    problem = assert_problem(await site.client.post("/v1/predict", json=content), 422, "invalid-parameter", said)
    assert problem["detail"].count("not allowed") == 1


async def test_a_json_object_of_very_many_names_is_refused_and_one_of_many_is_told_of_the_first(site, encode):
    content: dict[str, object] = {f"p{number}": 1 for number in range(63)}
    content["images"] = [base64.b64encode(encode()).decode()]
    problem = assert_problem(await site.client.post("/v1/predict", json=content), 422, "invalid-parameter", "'p0'")
    assert problem["parameters"] == [f"p{number}" for number in range(10)]
    assert problem["detail"].count("is unknown") == 10
    content["one_more"] = 1
    response = await site.client.post("/v1/predict", json=content)
    assert_problem(response, 422, "invalid-parameter", "more than 64 names")


class SearchedIn(list[str]):
    """Known names that record a search in them."""

    searched = False

    def __iter__(self):
        self.searched = True
        return super().__iter__()


@pytest.mark.parametrize(("length", "searched"), [(60, True), (61, False)])
def test_no_name_is_searched_for_that_is_too_long_to_be_echoed(length, searched):
    known = SearchedIn(["threshold"])
    assert _nearest("t" * length, known) == ""
    assert known.searched == searched


async def test_a_very_long_name_is_echoed_in_part(site, encode):
    content = {"images": [base64.b64encode(encode()).decode()], "t" * 2**20: 1}
    problem = assert_problem(await site.client.post("/v1/predict", json=content), 422, "invalid-parameter", "unknown")
    assert len(problem["detail"]) < 300
    assert len(problem["parameters"][0]) == 60


@pytest.mark.parametrize(
    "query",
    [
        "top_k=" + "9" * 4000,
        "max_exit=" + "9" * 4000,
        "min_exit=" + "9" * 4000 + "&max_exit=1",
        "min_exit=2&max_exit=1&version=" + "9" * 4000,
        "version=" + "9" * 4000,
    ],
    ids=lambda query: query[:10],
)
async def test_a_very_long_value_is_echoed_in_part(site, encode, query):
    response = await site.client.post(f"/v1/predict?{query}", content=encode())
    assert response.status_code in (404, 422)
    assert len(response.content) < 1000


async def test_a_name_that_is_no_text_is_refused_like_any_other(site, encode):
    content = f'{{"images": ["{base64.b64encode(encode()).decode()}"], "\\ud800": 1}}'
    response = await site.client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
    assert_problem(response, 422, "invalid-parameter", "'?' is unknown")


@pytest.mark.parametrize("name", ["threshold", "thresholds", "detail", "images", "unknown"])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
@pytest.mark.parametrize("depth", [500, 900, 100_000])
async def test_json_of_any_depth_is_the_clients_fault(site, name, opening, closing, depth):
    images = "" if name == "images" else '"images": ["AA=="], '
    content = f'{{{images}"{name}": {opening * depth}1{closing * depth}}}'
    response = await site.client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
    if depth == 100_000:
        assert_problem(response, 400, "malformed-body", "not valid JSON")
    else:
        assert response.status_code == 422, response.text


async def test_a_misnamed_picture_is_an_unknown_parameter(site, encode):
    response = await site.client.post("/v1/predict", files=[("image", encode()), ("images", encode())])
    assert_problem(response, 422, "invalid-parameter", "'images'", "did you mean 'image'?")
    response = await site.client.post("/v1/predict", files={"file": ("x.jpg", encode())})
    words = ("'file' is unknown", "did you mean 'image'?", "parts of a form are image", "top_k")
    assert assert_problem(response, 422, "invalid-parameter", *words)["parameters"] == ["file"]
    content = {"images": [base64.b64encode(encode()).decode()], "image": "x"}
    response = await site.client.post("/v1/predict", json=content)
    assert_problem(response, 422, "invalid-parameter", "'image'", "did you mean 'images'?")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("threshold=0.5&thresholds=0.5,0.5,0.5", ("threshold and thresholds",)),
        ("threshold=0.5&max_disagreement=0.01", ("threshold and max_disagreement",)),
        ("min_exit=3&max_exit=2", ("min_exit 3", "max_exit 2")),
        ("threshold=0.5&threshold=0.6", ("'threshold' is given twice",)),
        ("&".join(f"p{i}=1" for i in range(65)), ("more than 64",)),
    ],
)
async def test_contradictions_are_refused(site, encode, query, words):
    response = await site.client.post(f"/v1/predict?{query}", content=encode())
    assert_problem(response, 422, "invalid-parameter", *words)


async def test_a_parameter_with_two_values_is_refused(site, encode):
    image = encode()
    for form in (as_form_field, as_json_field):
        response = await site.client.post("/v1/predict?threshold=0.5", **form(image, "threshold", "0.6"))
        assert_problem(response, 422, "invalid-parameter", "'threshold' is given twice")
    for twice in ('"top_k": 1, "top_k": 2', '"version": "1", "version": "1.0"', '"x": 1, "x": 2', '"images": []'):
        doubled = f'{{"images": ["{base64.b64encode(image).decode()}"], {twice}}}'
        response = await site.client.post("/v1/predict", content=doubled, headers={"Content-Type": "application/json"})
        assert_problem(response, 422, "invalid-parameter", "is given twice")


async def test_max_disagreement_needs_a_certificate(site, encode):
    response = await site.client.post("/v1/predict?max_disagreement=0.01", content=encode())
    assert_problem(response, 422, "not-certified", "certifies nothing", "offramp calibrate")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "must be an object"),
        (b'"text"', "must be an object"),
        (b'{"top_k": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
    ids=["cut", "binary", "deep", "list", "text", "digits"],
)
async def test_malformed_json_is_refused(site, body, word):
    response = await site.client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
    assert_problem(response, 400, "malformed-body", word)


@pytest.mark.parametrize(
    ("content", "slug", "words"),
    [
        ({}, "invalid-image", ("no picture", "'images'")),
        ({"images": []}, "invalid-image", ("no picture",)),
        ({"image": "aGFsbG8="}, "invalid-parameter", ("'image' is unknown: did you mean 'images'?",)),
        ({"images": "abc"}, "invalid-parameter", ("images must be a list",)),
        ({"images": ["", "%%%"]}, "invalid-image", ("images[1]", "base64")),
        ({"images": [5]}, "invalid-image", ("images[0]", "not a string")),
        ({"images": ["Ä"]}, "invalid-image", ("images[0]", "base64")),
        ({"images": [""]}, "invalid-image", ("image 0 is empty",)),
    ],
    ids=str,
)
async def test_pictures_in_json_must_be_base64(site, content, slug, words):
    assert_problem(await site.client.post("/v1/predict", json=content), 422, slug, *words)


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("headers", "body", "word"),
    [
        ({"Content-Type": "multipart/form-data"}, b"--x--", "no boundary"),
        (FORM, b"noise", "boundary that its Content-Type names is not in it"),
        (FORM, b"--y\r\n\r\nabc\r\n--y--\r\n", "boundary that its Content-Type names is not in it"),
        (FORM, b"--xy\r\n\r\nabc\r\n--xy--\r\n", "begins with the boundary and goes on"),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\na\r\n--xy\r\n--x--', "goes on"),
        (FORM, b"--x" + b" " * 81 + b"\r\n", "goes on"),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc', "cut off"),
        (FORM, b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n", "no name"),
        (FORM, b"--x\r\n\r\nabc\r\n--x--\r\n", "no name"),
        (FORM, b"--x\r\nbad header\r\n\r\nabc\r\n--x--\r\n", "no name"),
        (FORM, b"--x\r\n--x\r\n--x--\r\n", "no empty line"),
        (FORM, b"--x\r\nContent-Disposition: form-data; name=image\r\n--x--\r\n", "no empty line"),
        (FORM, b"--x\r\nLong: " + b"a" * 8192 + b"\r\n\r\nabc\r\n--x--\r\n", "at most 8192 bytes of headers"),
    ],
)
async def test_malformed_multipart_is_refused(site, headers, body, word):
    assert_problem(await site.client.post("/v1/predict", content=body, headers=headers), 400, "malformed-body", word)


async def test_a_form_without_a_picture_is_refused(site):
    body = b'--x\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n0.5\r\n--x--\r\n'
    response = await site.client.post("/v1/predict", content=body, headers=FORM)
    assert_problem(response, 422, "invalid-image", "no picture", "'image'")


@pytest.mark.parametrize("content_type", [None, "image/png", "application/json", "multipart/form-data; boundary=x"])
async def test_an_empty_body_is_refused(site, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    response = await site.client.post("/v1/predict", content=b"", headers=headers)
    assert_problem(response, 422, "invalid-image", "the body is empty: send a picture (does the file exist?)")


@pytest.mark.parametrize(
    ("content_type", "body", "word"),
    [
        ("text/plain", b"hello", "text/plain"),
        ("image/tiff", b"II*\x00", "image/tiff"),
        (None, b"hello", "--data-binary"),
        ("application/x-www-form-urlencoded", b"a=b", "is not a JPEG"),
        ("image/jpeg", b"this is a text named .jpg", "image 0 is not a JPEG"),
        ("application/octet-stream", b"BM is how this text begins", "image 0 is not"),
        ("image/png", b"\x00" * 100, "image 0 is not"),
    ],
)
async def test_what_is_no_supported_picture_is_refused_with_what_is(site, content_type, body, word):
    headers = {"Content-Type": content_type} if content_type else {}
    response = await site.client.post("/v1/predict", content=body, headers=headers)
    problem = assert_problem(response, 415, "unsupported-media-type", word)
    assert "image/webp" in problem["accepted"]


async def test_a_picture_of_another_format_than_declared_is_refused(site, encode):
    response = await site.client.post("/v1/predict", content=encode(9, "JPEG"), headers=PNG)
    assert_problem(response, 415, "unsupported-media-type", "JPEG", "image/png")


async def test_an_encoded_body_is_refused(site, encode):
    response = await site.client.post("/v1/predict", content=encode(), headers={"Content-Encoding": "gzip"})
    assert_problem(response, 415, "unsupported-media-type", "gzip")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
async def test_a_truncated_picture_is_refused_by_its_index(site, encode, format):
    whole = encode(200, format)
    images = [base64.b64encode(data).decode() for data in (whole, whole[: len(whole) // 2])]
    response = await site.client.post("/v1/predict", json={"images": images})
    problem = assert_problem(response, 422, "invalid-image", "image 1", "truncated or corrupt")
    assert problem["image"] == 1


@pytest.mark.parametrize(
    ("media_type", "hinted"), [("application/x-www-form-urlencoded", True), ("image/jpeg", False), ("", False)]
)
async def test_a_picture_without_its_line_ends_is_told_from_a_corrupt_one(site, encode, media_type, hinted):
    """As `curl -d @FILE` sends it."""
    stripped = encode(200, "JPEG").replace(b"\n", b"").replace(b"\r", b"")
    response = await site.client.post("/v1/predict", content=stripped, headers={"Content-Type": media_type})
    problem = assert_problem(response, 422, "invalid-image", "truncated or corrupt")
    assert problem["detail"].endswith(" (with curl: --data-binary @FILE, not -d)") is hinted
    assert problem["image"] == 0


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT"


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((20_000, 20_000), "400 megapixels"),
        ((8_000, 8_000), "64 megapixels"),
        ((5_001, 5_000), "5001 × 5000 pixels"),
        ((100_000, 251), "100000 × 251 pixels"),
    ],
)
async def test_a_huge_picture_is_refused_by_its_header(site, size, words):
    response = await site.client.post("/v1/predict", content=png_header(*size), headers=PNG)
    problem = assert_problem(response, 413, "too-many-pixels", words, "25 megapixels")
    assert problem["limit_pixels"] == 25_000_000


async def test_a_picture_without_pixels_is_corrupt(site):
    response = await site.client.post("/v1/predict", content=png_header(0, 5), headers=PNG)
    assert_problem(response, 422, "invalid-image")


async def test_a_body_over_the_limit_is_refused_at_its_announcement(site):
    async def never_read():
        raise AssertionError("the body was read")
        yield b""

    headers = {"Content-Type": "image/png", "Content-Length": str(16 * MIB + 1)}
    response = await site.client.post("/v1/predict", content=never_read(), headers=headers)
    problem = assert_problem(response, 413, "body-too-large", str(16 * MIB))
    assert problem["limit_bytes"] == 16 * MIB


async def test_a_body_of_unknown_length_is_refused_once_it_passes_the_limit(site):
    sent = []

    async def chunks():
        for _ in range(40):
            sent.append(1)
            yield b"x" * MIB

    response = await site.client.post("/v1/predict", content=chunks(), headers=PNG)
    assert_problem(response, 413, "body-too-large")
    assert len(sent) <= 18


async def test_a_body_of_exactly_the_limit_is_read(serve, encode):
    # What follows the end of a PNG is no part of it.
    image = encode().ljust(2048, b"x")
    async with serve(settings=Settings(max_body_mib=2048 / MIB)) as site:
        assert (await site.client.post("/v1/predict", content=image)).status_code == 200
        assert (await site.client.post("/v1/predict", content=image + b"x")).status_code == 413


async def test_more_pictures_than_allowed_are_refused(serve, encode):
    async with serve(settings=Settings(max_images=2)) as site:
        content = {"images": [base64.b64encode(encode()).decode()] * 3}
        problem = assert_problem(await site.client.post("/v1/predict", json=content), 413, "too-many-images", "3", "2")
        assert problem["limit_images"] == 2
        response = await site.client.post("/v1/predict", files=[("image", encode())] * 3)
        assert_problem(response, 413, "too-many-images")
        response = await site.client.post("/v1/predict", files=[("image", encode())] * 2)
        assert response.status_code == 200
        response = await site.client.post("/v1/predict", files=[("image", b"")] * 500)
        assert_problem(response, 413, "too-many-images")


async def test_unknown_models_and_versions_are_refused_with_what_there_is(site, encode):
    for path in ("/v1/models/none/predict", "/v1/models/none"):
        method = "POST" if path.endswith("predict") else "GET"
        assert_problem(await site.client.request(method, path), 404, "unknown-model", "'none'", "tiny")
    response = await site.client.post("/v1/predict?version=7", content=encode())
    assert_problem(response, 404, "unknown-model", "'7'", "there is 1")
    assert_problem(await site.client.get("/v1/models/tiny?version=7"), 404, "unknown-model", "'7'")


async def test_unknown_paths_and_methods_are_problems_too(site):
    assert_problem(await site.client.get("/nothing"), 404, "not-found", "/nothing")
    assert_problem(await site.client.post("/v1/predict/"), 404, "not-found")
    response = await site.client.get("/v1/predict")
    assert_problem(response, 405, "method-not-allowed", "POST")
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("refusal", "slug", "wait"),
    [
        ({"overloaded": Overloaded(2.3)}, "overloaded", "3"),
        ({"overloaded": Overloaded(0.1)}, "overloaded", "1"),
        ({"stopped": EngineStopped(draining=False)}, "not-ready", "5"),
        ({"stopped": EngineStopped(draining=True)}, "draining", "1"),
    ],
    ids=str,
)
async def test_an_engine_that_takes_nothing_refuses_at_once_and_says_when_to_return(serve, encode, refusal, slug, wait):
    async with serve(**refusal) as site:
        response = await site.client.post("/v1/predict", content=encode())
        assert_problem(response, 503, slug)
        assert response.headers["Retry-After"] == wait


async def test_pictures_beyond_the_queue_are_refused_before_they_are_decoded(serve, encode):
    async with serve(max_samples=2) as site:
        images = [base64.b64encode(b"not even a picture").decode()] * 3
        assert_problem(await site.client.post("/v1/predict", json={"images": images}), 503, "overloaded")
        response = await site.client.post("/v1/predict", json={"images": images[:2]})
        assert_problem(response, 415, "unsupported-media-type")


async def test_an_overloaded_server_refuses_before_the_upload(serve):
    async def never_read():
        raise AssertionError("the body was read")
        yield b""

    async with serve(overloaded=Overloaded(1.0)) as site:
        assert_problem(await site.client.post("/v1/predict", content=never_read(), headers=PNG), 503, "overloaded")
        assert site.metric("offramp_rejections_total", reason="overloaded") == 1


async def test_one_overloaded_version_does_not_refuse_for_the_other(serve, bundle, encode):
    async with serve(bundles=[bundle, replace(bundle, version="2")]) as site:
        site.engine.overloaded = Overloaded(1.0)
        assert_problem(await site.client.post("/v1/predict", content=encode()), 503, "overloaded")
        assert (await site.client.post("/v1/predict?version=2", content=encode())).status_code == 200


async def test_a_passed_deadline_is_a_504_that_names_the_picture(serve, encode):
    async with serve(failures={7: DeadlineExceeded("too late")}) as site:
        files = [("image", encode(8)), ("image", encode(7))]
        problem = assert_problem(await site.client.post("/v1/predict", files=files), 504, "deadline-exceeded")
        assert problem["image"] == 1


async def test_a_failed_inference_is_a_500_without_its_inside(serve, encode):
    async with serve(failures={7: InferenceFailed("secret inside")}) as site:
        response = await site.client.post("/v1/predict", content=encode(7))
        assert_problem(response, 500, "internal-error")
        assert response.headers["Connection"] == "close"
        assert "secret" not in response.text
        assert (await site.client.post("/v1/predict", content=encode(8))).status_code == 200


async def test_a_bug_is_a_500_with_a_request_id_and_no_traceback(serve, encode, caplog):
    async with serve(failures={7: ZeroDivisionError("secret inside")}) as site:
        response = await site.client.post("/v1/predict", content=encode(7), headers={"X-Request-Id": "find-me"})
        assert_problem(response, 500, "internal-error")
        assert response.headers["X-Request-Id"] == "find-me"
        assert response.headers["Connection"] == "close"
        assert "secret" not in response.text
        assert "Traceback" not in response.text
        assert "find-me" in caplog.text
        assert site.metric("offramp_requests_total", model="tiny", code="500") == 1
        assert (await site.client.post("/v1/predict", content=encode(8))).status_code == 200


async def test_json_of_very_many_values_is_refused_before_it_is_built(site):
    body = b'{"images": [' + b"{}," * 1_000_000 + b"{}]}"
    tracemalloc.start()
    try:
        response = await site.client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_problem(response, 413, "too-many-images", "values", "64 pictures")
    # Objects of Python would take some 64 bytes each, and a list 8 more.
    assert peak_bytes < 10 * len(body)
