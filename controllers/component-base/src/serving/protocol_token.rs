//! A bearer token among the subprotocols of a WebSocket: browsers can set no header. Pure.
//!
//! Upstream: `k8s.io/apiserver/pkg/authentication/request/websocket`.

use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use base64::{Engine as _, alphabet};
use http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue};

/// As Go's `RawURLEncoding`, which does not mind bits that are over.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    NO_PAD.with_decode_allow_trailing_bits(true),
);
const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// A token, and the subprotocols that are left without it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProtocolToken {
    pub(super) token: String,
    rest: HeaderValue,
}

impl ProtocolToken {
    /// The token of a request, if it is a WebSocket's and has one.
    ///
    /// # Errors
    /// There is one that cannot be taken; the text says why.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, &'static str> {
        if !is_websocket(headers) {
            return Ok(None);
        }
        let mut encoded = None;
        let mut rest = Vec::new();
        for protocol in headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
        {
            match protocol.strip_prefix(PREFIX) {
                None => rest.push(protocol),
                Some(_) if encoded.is_some() => {
                    return Err("multiple base64.bearer.authorization tokens specified");
                }
                Some(text) => encoded = Some(text),
            }
        }
        let Some(encoded) = encoded.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let token = BASE64
            .decode(encoded)
            .map_err(|_| "invalid base64.bearer.authorization token encoding")?;
        let token =
            String::from_utf8(token).map_err(|_| "invalid base64.bearer.authorization token")?;
        if rest.is_empty() {
            return Err("missing additional subprotocol");
        }
        let rest = HeaderValue::from_str(&rest.join(","))
            .map_err(|_| "invalid base64.bearer.authorization token")?;
        Ok(Some(Self { token, rest }))
    }

    /// Takes the token out of the request: nobody behind is to see it, or to answer with it.
    pub(super) fn strip(self, headers: &mut HeaderMap) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, self.rest);
    }
}

/// Upstream: `wsstream.IsWebSocketRequest`.
fn is_websocket(headers: &HeaderMap) -> bool {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let upgrades = |value: &str| {
        let mut tokens = value.split(',').map(str::trim);
        tokens.any(|token| token.eq_ignore_ascii_case("upgrade"))
    };
    value(UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
        && value(CONNECTION).is_some_and(upgrades)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(protocols: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        for protocol in protocols {
            headers.append(SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        }
        headers
    }

    #[test]
    fn tokens_in_subprotocols() {
        let check = |protocols: &[&str], expect: Result<Option<(&str, &str)>, &str>| {
            let mut headers = headers(protocols);
            let got = ProtocolToken::of(&headers).map(|found| {
                found.map(|found| {
                    let token = found.token.clone();
                    found.strip(&mut headers);
                    let left = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
                    let left: Vec<_> = left.map(|value| value.to_str().unwrap()).collect();
                    (token, left.join("|"))
                })
            });
            let expect = expect.map(|e| e.map(|(token, rest)| (token.to_owned(), rest.to_owned())));
            assert_eq!(got, expect, "{protocols:?}");
        };
        // "the token", "?>" (which base64 writes with + and /), junk.
        let token = "base64url.bearer.authorization.k8s.io.dGhlIHRva2Vu";
        check(&["v4.channel.k8s.io"], Ok(None));
        check(&[], Ok(None));
        check(
            &["v5.channel.k8s.io", token, "v4.channel.k8s.io"],
            Ok(Some(("the token", "v5.channel.k8s.io,v4.channel.k8s.io"))),
        );
        let one = format!("{token}, v4.channel.k8s.io");
        check(&[&one], Ok(Some(("the token", "v4.channel.k8s.io"))));
        check(
            &["base64url.bearer.authorization.k8s.io.Pz8-Pw", "x"],
            Ok(Some(("??>?", "x"))),
        );
        check(&[token], Err("missing additional subprotocol"));
        check(
            &[token, "x", token],
            Err("multiple base64.bearer.authorization tokens specified"),
        );
        for encoded in ["dGhlIHRva2Vu=", "Pz8+Pw", "***", "dGhlI"] {
            check(
                &[
                    "x",
                    &format!("base64url.bearer.authorization.k8s.io.{encoded}"),
                ],
                Err("invalid base64.bearer.authorization token encoding"),
            );
        }
        check(
            &["x", "base64url.bearer.authorization.k8s.io._w"],
            Err("invalid base64.bearer.authorization token"),
        );
        check(&["x", "base64url.bearer.authorization.k8s.io."], Ok(None));
        // Only a WebSocket's are looked at.
        let mut plain = headers(&[token, "x"]);
        plain.remove(UPGRADE);
        assert_eq!(ProtocolToken::of(&plain), Ok(None));
        let mut plain = headers(&[token, "x"]);
        plain.insert(CONNECTION, HeaderValue::from_static("upgraded"));
        assert_eq!(ProtocolToken::of(&plain), Ok(None));
    }
}
