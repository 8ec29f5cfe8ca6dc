"""The OpenAPI document describes the whole contract."""

import re
import tomllib

import pytest

from offramp.server.http.problems import KINDS
from offramp.server.metrics import CODES
from offramp.server.request.parameters import Parameters, allowed
from offramp.server.settings import Settings
from tests.project import PROJECT

API_DOCUMENT = PROJECT / "docs" / "api.md"

ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "start.js": "text/javascript"}


def references(node) -> set[str]:
    if isinstance(node, dict):
        names = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return names.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


async def test_both_predict_paths_describe_bodies_parameters_and_errors(site):
    document = (await site.client.get("/openapi.json")).json()
    for path in ("/v1/predict", "/v1/models/{model}/predict"):
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["content"].keys() == {
            "image/jpeg",
            "image/png",
            "image/webp",
            "image/bmp",
            "image/gif",
            "application/octet-stream",
            "multipart/form-data",
            "application/json",
        }
        in_query = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
        assert in_query == set(Parameters.model_fields)
        for form, images in (("multipart/form-data", "image"), ("application/json", "images")):
            schema = operation["requestBody"]["content"][form]["schema"]
            assert schema["properties"].keys() == {images, *Parameters.model_fields}
            assert schema["required"] == [images]
        errors = {code for code in operation["responses"] if code != "200"}
        assert errors == {"400", "401", "403", "404", "413", "415", "422", "429", "500", "503", "504"}
        for code in errors:
            assert operation["responses"][code]["content"].keys() == {"application/problem+json"}
    names = {reference.rpartition("/")[2] for reference in references(document)}
    assert names <= document["components"]["schemas"].keys()
    assert "HTTPValidationError" not in names


def declared(schema: dict) -> dict:
    """What tools send for a schema unasked."""
    values = {name: schema[name] for name in ("default", "example", "const") if name in schema}
    values |= {"examples": schema["examples"][0]} if schema.get("examples") else {}
    return values


@pytest.mark.parametrize("media_type", ["multipart/form-data", "application/json", "image/png"])
async def test_what_tools_send_for_the_document_is_answered(site, encode, media_type):
    operation = site.app.openapi()["paths"]["/v1/predict"]["post"]
    body = operation["requestBody"]["content"][media_type]
    query = {each["name"]: value for each in operation["parameters"] for value in declared(each["schema"]).values()}
    fields = {
        name: value for name, one in body["schema"].get("properties", {}).items() for value in declared(one).values()
    }
    match media_type:
        case "multipart/form-data":
            sent = {"files": {"image": encode()}, "data": fields}
        case "application/json":
            sent = {"json": fields | body["example"]}
        case _:
            sent = {"content": encode(), "headers": {"Content-Type": media_type}}
    response = await site.client.post("/v1/predict", params=query, **sent)
    assert response.status_code == 200, response.text


def test_parameters_have_ranges_that_clients_can_check_and_no_default_that_they_would_send(site):
    operation = site.app.openapi()["paths"]["/v1/predict"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]
    assert form["encoding"] == {"thresholds": {"style": "form", "explode": False}}
    schemas = {each["name"]: each["schema"] for each in operation["parameters"]}
    assert {name: form["schema"]["properties"][name] for name in schemas} == schemas
    ranges = {
        name: {key: value for key, value in one.items() if key not in ("title", "description")}
        for name, one in schemas.items()
    }
    fraction = {"type": "number", "minimum": 0, "maximum": 1}
    assert ranges == {
        **dict.fromkeys(("threshold", "max_disagreement", "degrade_to"), fraction),
        "thresholds": {"type": "array", "items": fraction},
        **{name: {"type": "integer", "minimum": 1} for name in ("min_exit", "max_exit", "top_k")},
        "deadline_ms": {"type": "number", "exclusiveMinimum": 0, "maximum": 3_600_000},
        "detail": {"type": "boolean"},
        "version": {"type": "string"},
    }


async def test_answers_are_described_by_the_media_type_that_they_have(site, encode):
    paths = site.app.openapi()["paths"]
    answers = {path: await site.client.get(path) for path in ("/v1/models", "/livez", "/readyz", "/metrics")}
    for path, answer in answers.items():
        (described,) = paths[path]["get"]["responses"]["200"]["content"]
        assert answer.headers["Content-Type"].split(";")[0] == described
    answer = await site.client.post("/v1/predict", content=encode())
    (described,) = paths["/v1/predict"]["post"]["responses"]["200"]["content"]
    assert answer.headers["Content-Type"] == described
    assert answer.text.endswith("}\n")


async def test_the_docs_page_needs_no_other_host(site):
    page = await site.client.get("/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    script = await site.client.get("/docs/start.js")
    addresses = re.findall(r'(?:src|href|url)(?:=|: )"([^"]*)"', page.text + script.text)
    assert addresses == ["data:,", *(f"docs/{name}" for name in ASSETS), "openapi.json"]
    for name, media_type in ASSETS.items():
        asset = await site.client.get(f"/docs/{name}")
        assert (asset.status_code, asset.headers["Content-Type"]) == (200, f"{media_type}; charset=utf-8")
    assert "validatorUrl: null" in script.text
    assert (await site.client.get("/redoc")).status_code == 404


def test_the_package_has_every_file_of_the_docs_page():
    packaged = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "offramp.server.http"
    ]
    assert packaged == ["swagger_ui/*"]
    names = {file.name for file in (PROJECT / "server" / "http" / "swagger_ui").iterdir()}
    assert names >= {*ASSETS, "index.html", "LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"}


async def test_keys_are_described_where_they_are_needed(serve, site):
    assert "securitySchemes" not in site.app.openapi()["components"]
    async with serve(settings=Settings(api_keys="k")) as guarded:
        document = guarded.app.openapi()
        assert document["components"]["securitySchemes"] == {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        paths = document["paths"]
        assert paths["/v1/predict"]["post"]["security"] == [{"bearer": []}, {"key": []}]
        assert "security" not in paths["/livez"]["get"]


def test_every_parameter_says_what_is_allowed():
    assert all(allowed(name) for name in Parameters.model_fields)


def test_every_error_and_parameter_is_documented():
    text = API_DOCUMENT.read_text()
    in_table = set(re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", text, re.MULTILINE))
    assert in_table == {(str(kind.status), kind.slug) for kind in KINDS}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) >= set(Parameters.model_fields)
    assert {str(kind.status) for kind in KINDS} < set(CODES)
