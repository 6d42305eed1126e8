//! From the bytes of a request to the text of its events: where the payload is, how it is packed. PostHog's order of
//! things (facts 1.2), without the historical `lz64`.

use std::{borrow::Cow, io::Read};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use flate2::read::GzDecoder;
use url::form_urlencoded;

use crate::{
    budget::Claim,
    refusal::Refusal,
    timestamp::{UnixMicros, sent_at_of_query},
};

/// How much of a payload is looked at to tell what it is.
const SNIFFED_BYTES: usize = 128;
/// Step of decompression; memory is claimed by so much.
const CHUNK_BYTES: usize = 64 * 1024;
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];

/// The parameters of the query that capture reads. Others are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The payload itself, for requests without a body.
    pub data: Option<String>,
    /// How the payload is packed.
    pub compression: Option<String>,
    /// `_`: when the client says that it sent the request.
    pub sent_at: Option<UnixMicros>,
    /// The client reads no answer.
    pub beacon: bool,
}

impl Query {
    /// Reads the part of the URL behind `?`.
    pub fn parse(query: Option<&str>) -> Self {
        let mut this = Self::default();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match name.as_ref() {
                "data" if !value.is_empty() => this.data = Some(value.into_owned()),
                "compression" => this.compression = Some(value.into_owned()),
                "_" => this.sent_at = sent_at_of_query(&value),
                "beacon" => this.beacon = value == "1",
                _ => {}
            }
        }
        this
    }
}

/// How a payload came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packing<'a> {
    /// Query parameter `compression`.
    pub compression: Option<&'a str>,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// `Content-Encoding`.
    pub content_encoding: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    Gzip,
    Base64,
    Lz64,
}

impl Hint {
    /// Unknown names say nothing: what the bytes are decides.
    fn parse(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "gzip-js" => Some(Self::Gzip),
            "base64" | "b64" => Some(Self::Base64),
            "lz64" | "lz-string" => Some(Self::Lz64),
            _ => None,
        }
    }
}

/// The text of a payload, decompressed up to `cap` bytes. `claim` grows by what is decompressed.
pub fn text(payload: Bytes, packing: Packing<'_>, cap: usize, claim: &mut Claim) -> Result<String, Refusal> {
    let mut hint = packing.compression.and_then(Hint::parse);
    let mut payload = payload;
    if packing.content_type.is_some_and(is_form) {
        let form = form(&payload)?;
        hint = hint.or(form.compression);
        payload = form.data;
    }
    let hint = hint.or_else(|| packing.content_encoding.and_then(Hint::parse));
    if payload.is_empty() {
        return Err(Refusal::bad_request("empty", "the request has no events: body and `data` are empty"));
    }
    if (hint == Some(Hint::Base64) || looks_like_base64(&payload))
        && let Ok(decoded) = STANDARD.decode(payload.trim_ascii())
    {
        payload = Bytes::from(decoded);
    }
    if hint == Some(Hint::Lz64) {
        let message = "lz64 compression is not supported; send gzip or plain JSON";
        return Err(Refusal::bad_request("unsupported_compression", message));
    }
    let bytes = if hint == Some(Hint::Gzip) || payload.starts_with(&GZIP_MAGIC) {
        gunzip(&payload, cap, claim)?
    } else {
        within(cap, payload.len())?;
        Vec::from(payload)
    };
    String::from_utf8(bytes).map_err(|error| {
        let message = format!("the payload is not UTF-8: {}", error.utf8_error());
        Refusal::bad_request("not_utf8", message)
    })
}

fn within(cap: usize, length: usize) -> Result<(), Refusal> {
    if length > cap {
        return Err(Refusal::too_large(format!(
            "the events of one request may have at most {cap} bytes after decompression; send smaller batches"
        )));
    }
    Ok(())
}

/// Decompresses step by step, so that a small body cannot make much memory: what it may not have is never made. Memory is
/// claimed as it is allocated.
fn gunzip(compressed: &[u8], cap: usize, claim: &mut Claim) -> Result<Vec<u8>, Refusal> {
    let mut decoder = GzDecoder::new(compressed);
    let mut text = Vec::new();
    if let Some(told) = told_length(compressed).filter(|told| *told <= cap) {
        reserve(&mut text, told, claim)?;
    }
    let mut chunk = vec![0; CHUNK_BYTES.min(cap.saturating_add(1))];
    loop {
        let read = decoder.read(&mut chunk).map_err(|error| {
            Refusal::bad_request("not_gzip", format!("the payload cannot be decompressed as gzip: {error}"))
        })?;
        if read == 0 {
            return Ok(text);
        }
        within(cap, text.len() + read)?;
        if text.capacity() - text.len() < read {
            let half_more = (text.len() / 2).max(CHUNK_BYTES).min(cap - text.len());
            reserve(&mut text, half_more, claim)?;
        }
        text.extend_from_slice(&chunk[..read]);
    }
}

/// The length that gzip tells in its last four bytes. It may lie: a hint for allocating once, nothing more.
fn told_length(compressed: &[u8]) -> Option<usize> {
    compressed.last_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize)
}

fn reserve(text: &mut Vec<u8>, bytes: usize, claim: &mut Claim) -> Result<(), Refusal> {
    claim.grow(bytes).map_err(|exhausted| Refusal::exhausted(exhausted, "in_flight_bytes"))?;
    text.reserve_exact(bytes);
    Ok(())
}

fn is_form(content_type: &str) -> bool {
    content_type
        .split(';')
        .next()
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

struct Form {
    data: Bytes,
    compression: Option<Hint>,
}

fn form(body: &Bytes) -> Result<Form, Refusal> {
    // Some clients name this type by mistake and send plain JSON or gzip.
    let first = body.trim_ascii_start().first();
    if matches!(first, Some(b'{' | b'[')) || body.starts_with(&GZIP_MAGIC) {
        return Ok(Form { data: body.clone(), compression: None });
    }
    let mut data = None;
    let mut compression = None;
    for (name, value) in form_urlencoded::parse(body) {
        match name.as_ref() {
            "data" => data = Some(value),
            "compression" => compression = Hint::parse(&value),
            _ => {}
        }
    }
    let Some(data) = data else {
        let message = "expected form data in POST request payload: a form needs the field `data`";
        return Err(Refusal::bad_request("no_form_data", message));
    };
    // A plus sign of base64 that was not escaped has become a space.
    let data: Cow<'_, str> =
        if data.contains(' ') && !data.contains(['{', '[']) { data.replace(' ', "+").into() } else { data };
    Ok(Form { data: Bytes::from(data.into_owned()), compression })
}

fn looks_like_base64(payload: &[u8]) -> bool {
    let payload = payload.trim_ascii();
    let in_alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    !payload.is_empty()
        && payload.len().is_multiple_of(4)
        && payload.iter().take(SNIFFED_BYTES).all(in_alphabet)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::http::StatusCode;
    use flate2::{Compression, write::GzEncoder};

    use super::*;
    use crate::budget::Budget;

    const JSON: &str = r#"{"event":"a b+c","distinct_id":"é"}"#;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(payload: &[u8], packing: Packing<'_>) -> Result<String, Refusal> {
        text(Bytes::copy_from_slice(payload), packing, 1000, &mut Budget::new(10_000).claim())
    }

    #[test]
    fn payloads_come_packed_in_many_ways() {
        let form = Packing {
            content_type: Some("application/x-www-form-urlencoded; charset=utf-8"),
            ..Packing::default()
        };
        let query = |name| Packing { compression: Some(name), ..Packing::default() };
        let encoding = |name| Packing { content_encoding: Some(name), ..Packing::default() };
        let plain = Packing { content_type: Some("text/plain"), ..Packing::default() };
        let base64 = STANDARD.encode(JSON);
        let gzip_base64 = STANDARD.encode(gzip(JSON.as_bytes()));
        let escaped: String = form_urlencoded::byte_serialize(base64.as_bytes()).collect();
        let escaped_json: String = form_urlencoded::byte_serialize(JSON.as_bytes()).collect();
        let cases: [(&str, Vec<u8>, Packing<'_>); 14] = [
            ("plain", JSON.into(), plain),
            ("unknown encoding", JSON.into(), encoding("br")),
            ("gzip by magic bytes", gzip(JSON.as_bytes()), plain),
            ("gzip by header", gzip(JSON.as_bytes()), encoding("gzip")),
            ("gzip by query", gzip(JSON.as_bytes()), query("gzip-js")),
            ("gzip named as a form", gzip(JSON.as_bytes()), form),
            ("JSON named as a form", JSON.into(), form),
            ("base64 by its looks", base64.clone().into(), plain),
            ("base64 by query", format!("{base64}\n").into(), query("BASE64")),
            ("gzip in base64", gzip_base64.into(), plain),
            ("form with base64", format!("data={escaped}&compression=base64").into(), form),
            ("form with unescaped base64", format!("data={base64}").into(), form),
            ("form with JSON", format!("ip=1&data={escaped_json}").into(), form),
            ("spaces around", format!(" {JSON} ").into(), plain),
        ];
        for (name, payload, packing) in cases {
            assert_eq!(decode(&payload, packing).as_deref().map(str::trim), Ok(JSON), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_unpacked_is_a_bad_request() {
        let form = Packing { content_type: Some("application/x-www-form-urlencoded"), ..Packing::default() };
        let hinted = Packing { content_encoding: Some("gzip"), ..Packing::default() };
        let cases: [(&[u8], Packing<'_>, &str); 6] = [
            (b"", Packing::default(), "empty"),
            (b"event=a", form, "no_form_data"),
            (b"{}", hinted, "not_gzip"),
            (&gzip(JSON.as_bytes())[..30], Packing::default(), "not_gzip"),
            (b"{\"a\":\"\xff\"}", Packing::default(), "not_utf8"),
            (b"abc", Packing { compression: Some("lz64"), ..Packing::default() }, "unsupported_compression"),
        ];
        for (payload, packing, reason) in cases {
            let refusal = decode(payload, packing).unwrap_err();
            assert_eq!((refusal.status, refusal.reason), (StatusCode::BAD_REQUEST, reason));
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_cap_and_claims_no_more_than_that() {
        let bomb = gzip(&vec![b' '; 10_000_000]);
        assert!(bomb.len() < 20_000);
        let budget = Budget::new(10_000_000);
        let mut claim = budget.claim();
        let refusal = text(Bytes::from(bomb.clone()), Packing::default(), 300_000, &mut claim).unwrap_err();
        assert_eq!(refusal.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(budget.used() <= 300_000);
        drop(claim);

        let others = Budget::new(15_000_000);
        let mut held = others.claim();
        held.grow(8_000_000).unwrap();
        let refusal =
            text(Bytes::from(bomb), Packing::default(), 10_000_000, &mut others.claim()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn a_length_that_lies_changes_nothing() {
        let mut gzip = gzip(JSON.as_bytes());
        gzip.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&gzip, Packing::default()).as_deref(), Ok(JSON));
        gzip.extend_from_slice(&0_u32.to_le_bytes());
        assert_eq!(decode(&gzip, Packing::default()).as_deref(), Ok(JSON));
    }

    #[test]
    fn plain_text_above_the_cap_is_too_large() {
        assert_eq!(
            decode(&[b' '; 1001], Packing::default()).unwrap_err().status,
            StatusCode::PAYLOAD_TOO_LARGE
        );
    }

    #[test]
    fn the_query_says_what_it_says() {
        let query =
            Query::parse(Some("ip=1&_=1795568523250&ver=1.2&compression=gzip-js&beacon=1&data=%7B%7D"));
        assert_eq!(query.data.as_deref(), Some("{}"));
        assert_eq!(query.compression.as_deref(), Some("gzip-js"));
        assert!(query.sent_at.is_some() && query.beacon);
        assert_eq!(Query::parse(None), Query::default());
        assert_eq!(Query::parse(Some("data=&beacon=0")), Query::default());
    }
}
