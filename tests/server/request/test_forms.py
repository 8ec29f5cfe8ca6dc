"""Forms as programs send them: what RFC 2046 and RFC 7578 allow, and what is common beyond that."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.server.request.bodies import parse_body
from offramp.server.request.multipart import Part, parse_multipart

FORM = "multipart/form-data; boundary=x"
PICTURE = b"\x89PNG\r\n\x1a\n--\r\r"
NAMED = b'Content-Disposition: form-data; name="image"'


def one_part(headers: bytes = NAMED, before: bytes = b"", after: bytes = b"\r\n") -> bytes:
    return before + b"--x\r\n" + headers + b"\r\n\r\n" + PICTURE + b"\r\n--x--" + after


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, one_part()),
        (FORM, one_part(before=b"\r\n")),
        (FORM, one_part(before=b"This is a multi-part message in MIME format.\r\n")),
        (FORM, one_part(before=b"a preamble\n\n--y\n--y--\n")),
        (FORM, one_part(after=b"")),
        (FORM, one_part(after=b"\r\nan epilogue\r\n--x\r\n--x--")),
        (FORM, one_part().replace(b"--x\r\n", b"--x \t\r\n", 1)),
        (FORM, one_part(b'Content-Disposition: form-data;\r\n name="image";\r\n\tfilename="a.jpg"')),
        (FORM, one_part(b"Content-Disposition: form-data; name=image; filename=a.jpg")),
        (FORM, one_part(b"content-disposition:form-data;filename=a.jpg;NAME = image")),
        (FORM, one_part(b'Content-Disposition: form-data; filename="a; name=\\"b\\".jpg"; name="image"')),
        (FORM, one_part(NAMED + b"; filename=\"\xe2\x82\xac.jpg\"; filename*=UTF-8''%e2%82%ac.jpg")),
        (FORM, one_part(NAMED + b'; filename="' + b"%E2%82%AC" * 800 + b'"')),
        (FORM, one_part(b"Content-Type: image/png\r\nContent-Length: 3\r\n" + NAMED + b"\r\nX: y\r\nX: z" * 20)),
        ('multipart/form-data; charset=utf-8; boundary="x"', one_part()),
        ("Multipart/Form-Data; Boundary=x ; charset=utf-8", one_part()),
        ('multipart/form-data; boundary="a b:c"', one_part().replace(b"--x", b"--a b:c")),
    ],
    ids=str,
)
def test_a_part_is_read_with_any_bytes_around_it(content_type, body):
    (part,) = parse_multipart(content_type, body, 1)
    assert (part.name, part.content) == ("image", PICTURE)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@given(st.lists(st.tuples(st.sampled_from(["image", "thresholds", "ä"]), st.binary(max_size=60), st.booleans())))
def test_a_form_is_cut_into_the_parts_that_it_was_made_of(line_end, parts):
    body = b""
    for name, content, is_file in parts:
        file_name = '; filename="f"' if is_file else ""
        header = f'Content-Disposition: form-data; name="{name}"{file_name}'.encode()
        body += line_end.join([b"--boundary", header, b"", content, b""])
    body += b"--boundary--" + line_end
    assert parse_multipart("multipart/form-data; boundary=boundary", body, 100) == [Part(*part) for part in parts]


def test_an_empty_part_may_end_where_its_headers_do():
    body = b"--x\r\n" + NAMED + b"\r\n\r\n--x\r\n" + NAMED + b"\r\n\r\n\r\n--x--"
    assert [part.content for part in parse_multipart(FORM, body, 2)] == [b"", b""]


def test_pictures_of_a_form_are_copied_once():
    body = one_part().replace(PICTURE, b"a" * 2**20)
    tracemalloc.start()
    submission = parse_body(FORM, body, [], 64)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(submission.images[0]) == 2**20
    assert peak_bytes < 1.1 * 2**20


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
async def test_a_form_with_a_preamble_and_folded_headers_is_answered(site, encode, line_end):
    body = one_part(b'Content-Disposition: form-data;\r\n name="image"', before=b"preamble\r\n")
    content = body.replace(PICTURE, b"picture").replace(b"\r\n", line_end).replace(b"picture", encode())
    response = await site.client.post("/v1/predict", content=content, headers={"Content-Type": FORM})
    assert response.status_code == 200, response.text
