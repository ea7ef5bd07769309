//! From a request to an agreed protocol, or a refusal the client understands.
//!
//! Upstream: `httpstream.Handshake`, `wsstream.IsWebSocketRequest`.

use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;

use crate::Response;

const SPDY_31: &str = "SPDY/3.1";
const STREAM_PROTOCOL_VERSION: &str = "X-Stream-Protocol-Version";
const ACCEPTED_STREAM_PROTOCOL_VERSIONS: &str = "X-Accepted-Stream-Protocol-Versions";

/// What was agreed on, and the response that says so.
pub(crate) struct Agreed {
    /// Empty: the client named none (WebSocket only).
    pub(crate) protocol: String,
    pub(crate) response: Response,
}

/// Whether the request asks for a WebSocket.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, CONNECTION.as_str(), "upgrade")
        && headers
            .get(UPGRADE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// Agrees on a SPDY protocol, or answers with the refusal.
pub(crate) fn spdy<B>(request: &Request<B>, supported: &[&str]) -> Result<Agreed, Box<Response>> {
    let headers = request.headers();
    let asked = values(headers, STREAM_PROTOCOL_VERSION);
    if !headers.contains_key(STREAM_PROTOCOL_VERSION) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            format!(
                "unable to upgrade: header {STREAM_PROTOCOL_VERSION} does not exist in request with {} headers",
                headers.len()
            ),
        ));
    }
    if asked.is_empty() {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            format!("unable to upgrade: header {STREAM_PROTOCOL_VERSION} holds no valid protocols"),
        ));
    }
    let Some(protocol) = asked
        .iter()
        .find(|protocol| supported.contains(&protocol.as_str()))
    else {
        let mut response = refuse(
            StatusCode::FORBIDDEN,
            format!(
                "unable to upgrade: unable to negotiate protocol: client supports {asked:?}, server accepts {supported:?}"
            ),
        );
        for protocol in supported {
            if let Ok(value) = HeaderValue::from_str(protocol) {
                response
                    .headers_mut()
                    .append(ACCEPTED_STREAM_PROTOCOL_VERSIONS, value);
            }
        }
        return Err(response);
    };
    let upgrades = headers
        .get(UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().contains("spdy/3.1"));
    if !upgrades || !has_token(headers, CONNECTION.as_str(), "upgrade") {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: missing upgrade headers in request".to_owned(),
        ));
    }
    let mut response = switching(SPDY_31);
    insert(&mut response, STREAM_PROTOCOL_VERSION, protocol);
    Ok(Agreed {
        protocol: protocol.clone(),
        response,
    })
}

/// Agrees on a WebSocket subprotocol. A client that names none gets the one called "" in `supported`.
pub(crate) fn websocket<B>(
    request: &Request<B>,
    supported: impl Fn(&str) -> bool,
) -> Result<Agreed, Box<Response>> {
    let headers = request.headers();
    let bad = |text: &str| refuse(StatusCode::BAD_REQUEST, text.to_owned());
    let version = headers
        .get(SEC_WEBSOCKET_VERSION)
        .and_then(|value| value.to_str().ok());
    if version != Some("13") {
        let mut response = bad("unable to upgrade: unsupported WebSocket version");
        response
            .headers_mut()
            .insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(response);
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(bad(
            "unable to upgrade: header Sec-WebSocket-Key is missing",
        ));
    };
    let asked = values(headers, SEC_WEBSOCKET_PROTOCOL.as_str());
    let protocol = if asked.is_empty() {
        supported("").then(String::new)
    } else {
        asked.iter().find(|protocol| supported(protocol)).cloned()
    };
    let Some(protocol) = protocol else {
        return Err(refuse(
            StatusCode::FORBIDDEN,
            format!("unable to upgrade: requested protocol(s) are not supported: {asked:?}"),
        ));
    };
    let mut response = switching("websocket");
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    insert(&mut response, SEC_WEBSOCKET_ACCEPT.as_str(), &accept);
    if !protocol.is_empty() {
        insert(&mut response, SEC_WEBSOCKET_PROTOCOL.as_str(), &protocol);
    }
    Ok(Agreed { protocol, response })
}

/// A refusal in plain text.
pub(crate) fn refuse(status: StatusCode, text: String) -> Box<Response> {
    let mut response = http::Response::new(Full::new(format!("{text}\n").into()));
    *response.status_mut() = status;
    insert(&mut response, "content-type", "text/plain; charset=utf-8");
    Box::new(response)
}

fn switching(to: &'static str) -> Response {
    let mut response = http::Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static(to));
    response
}

fn insert(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(
            http::HeaderName::from_bytes(name.as_bytes()).expect("a constant header name"),
            value,
        );
    }
}

/// All comma-separated values of all headers of this name.
fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .map(str::to_owned)
        .collect()
}

fn has_token(headers: &HeaderMap, name: &str, token: &str) -> bool {
    values(headers, name)
        .iter()
        .any(|value| value.to_ascii_lowercase().contains(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder();
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn spdy_protocols() {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let check = |asked: &[(&str, &str)], expect: Result<&str, u16>| {
            let request = request(&[&upgrade[..], asked].concat());
            let got = spdy(&request, &["v4.channel.k8s.io", "channel.k8s.io"]);
            let got = got
                .map(|agreed| agreed.protocol)
                .map_err(|r| r.status().as_u16());
            assert_eq!(
                got.as_ref().map(String::as_str).map_err(|s| *s),
                expect,
                "{asked:?}"
            );
        };
        let name = "x-stream-protocol-version";
        check(
            &[(name, "v4.channel.k8s.io"), (name, "v3.channel.k8s.io")],
            Ok("v4.channel.k8s.io"),
        );
        check(&[(name, "v9, channel.k8s.io")], Ok("channel.k8s.io"));
        check(&[(name, "v9")], Err(403));
        check(&[(name, " ")], Err(400));
        check(&[], Err(400));
        assert!(spdy(&request(&[(name, "channel.k8s.io")]), &["channel.k8s.io"]).is_err());
    }

    #[test]
    fn websocket_protocols() {
        let base = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        assert!(is_websocket(request(&base).headers()));
        let agreed =
            websocket(&request(&base), |protocol| protocol.is_empty()).unwrap_or_else(|_| panic!());
        assert_eq!(agreed.response.status(), 101);
        assert_eq!(
            agreed.response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert!(
            !agreed
                .response
                .headers()
                .contains_key("sec-websocket-protocol")
        );
        let both = [&base[..], &[("sec-websocket-protocol", "a, b")]].concat();
        let agreed =
            websocket(&request(&both), |protocol| protocol == "b").unwrap_or_else(|_| panic!());
        assert_eq!(agreed.response.headers()["sec-websocket-protocol"], "b");
        assert!(websocket(&request(&both), |protocol| protocol == "c").is_err());
    }
}
