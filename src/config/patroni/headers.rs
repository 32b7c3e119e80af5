//! `restapi`: the headers that every answer carries besides its own.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::section::Reader;
use crate::api::status::PATRONI_VERSION;

/// `http_extra_headers`, with TLS `https_extra_headers` over them, and `server_tokens`.
pub(super) fn headers(r: &mut Reader, over_tls: impl Into<bool>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let only_over_tls = over_tls.into().then_some("restapi.https_extra_headers");
    for path in std::iter::once("restapi.http_extra_headers").chain(only_over_tls) {
        for (name, value) in r.texts(path) {
            match (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value)) {
                (Ok(name), Ok(value)) => drop(headers.insert(name, value)),
                (Err(_), _) => r.wrong(&format!("{path}.{name}"), "this cannot be the name of a header"),
                (_, Err(_)) => r.wrong(&format!("{path}.{name}"), "this cannot stand in a header"),
            }
        }
    }
    let server = r.parsed("restapi.server_tokens", |text| match text.to_ascii_lowercase().as_str() {
        // Python's own words: there is no Python here.
        "original" => Ok(None),
        "productonly" => Ok(Some("Patroni".to_owned())),
        "minimal" => Ok(Some(format!("Patroni/{PATRONI_VERSION}"))),
        _ => Err("original, productonly or minimal".to_owned()),
    });
    if let Some(value) = server.flatten().and_then(|words| HeaderValue::try_from(words).ok()) {
        headers.insert(header::SERVER, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(restapi: serde_json::Value, certificate: Option<&str>) -> Option<HeaderMap> {
        let mut reader = Reader::new(json!({ "restapi": restapi }));
        let read = headers(&mut reader, certificate.is_some());
        reader.finish(Some(read)).ok().map(|(headers, _warnings)| headers)
    }

    #[test]
    fn those_for_tls_come_over_the_others() {
        let both = json!({"http_extra_headers": {"X-Frame-Options": "SAMEORIGIN", "X-Part": 1},
            "https_extra_headers": {"x-frame-options": "DENY"}, "server_tokens": "minimal"});
        let plain = read(both.clone(), None).unwrap();
        assert_eq!(
            (&plain["x-frame-options"], &plain["x-part"]),
            (&"SAMEORIGIN".parse().unwrap(), &"1".parse().unwrap())
        );
        assert_eq!(plain["server"], "Patroni/4.1.4");
        assert_eq!(read(both, Some("x")).unwrap()["x-frame-options"], "DENY");
        assert!(read(json!({"server_tokens": "ProductOnly"}), None).unwrap()["server"] == "Patroni");
    }

    #[test]
    fn what_cannot_stand_in_a_header_is_a_mistake() {
        for wrong in [json!({"a b": "c"}), json!({"a": "b\r\nc: d"})] {
            assert!(read(json!({ "http_extra_headers": wrong }), None).is_none());
        }
    }
}
