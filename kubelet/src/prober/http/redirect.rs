//! Where a redirect leads.
//!
//! Owns: a `Location` seen from the request it answers; pure. Upstream: Go's `net/url` (`Parse`, `ResolveReference`) and
//! `net/http` (`Client.do`), RFC 3986 section 5.

use super::{HttpError, HttpGet};

/// A `Location`, taken apart.
struct Reference<'a> {
    scheme: Option<&'a str>,
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
}

fn split(text: &str) -> Reference<'_> {
    let text = text.split('#').next().unwrap_or_default();
    let scheme_end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c))
        .filter(|end| text[*end..].starts_with(':'))
        .filter(|_| text.starts_with(|c: char| c.is_ascii_alphabetic()));
    let (scheme, rest) = match scheme_end {
        Some(end) => (Some(&text[..end]), &text[end + 1..]),
        None => (None, text),
    };
    let (authority, rest) = match rest.strip_prefix("//") {
        Some(rest) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            (Some(&rest[..end]), &rest[end..])
        }
        None => (None, rest),
    };
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    Reference {
        scheme,
        authority,
        path,
        query,
    }
}

/// Without `.` and `..`; always begins with a slash.
fn remove_dot_segments(path: &str) -> String {
    let mut out: Vec<&str> = vec![];
    let segments: Vec<&str> = path.split('/').collect();
    for (index, segment) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    out.pop();
                }
                if last {
                    out.push("");
                }
            }
            // What stands before the first slash.
            "" if index == 0 => {}
            other => out.push(other),
        }
    }
    format!("/{}", out.join("/"))
}

/// What may not stand in a request line, percent-encoded.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn host_and_port(authority: &str) -> Result<(String, Option<u16>), &'static str> {
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("missing ']' in host")?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some("") => None,
        Some(digits) => Some(digits.parse().map_err(|_| "invalid port after host")?),
        None => return Err("invalid port after host"),
    };
    Ok((host.to_owned(), port))
}

/// The request that follows `request` to `location`. `None`: it leads to another host, or is not HTTP.
///
/// # Errors
/// It is no URL.
pub(super) fn resolve(request: &HttpGet, location: &str) -> Result<Option<HttpGet>, HttpError> {
    let bad = |reason: &'static str| HttpError::Location {
        location: location.to_owned(),
        reason,
    };
    if location.bytes().any(|b| b.is_ascii_control()) {
        return Err(bad("invalid control character in URL"));
    }
    let reference = split(location);
    if reference.path.split('%').skip(1).any(|rest| {
        let digits = rest.as_bytes().get(..2);
        !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit))
    }) {
        return Err(bad("invalid URL escape"));
    }
    let mut next = request.clone();
    if let Some(scheme) = reference.scheme {
        match scheme.to_ascii_lowercase().as_str() {
            "http" => next.https = false,
            "https" => next.https = true,
            _ => return Ok(None),
        }
        // As Go: a Host of one's own is for relative redirects.
        next.headers
            .retain(|(n, _)| !n.eq_ignore_ascii_case("Host"));
    }
    if reference.scheme.is_some() || reference.authority.is_some() {
        let (host, port) = host_and_port(reference.authority.unwrap_or_default()).map_err(bad)?;
        if host != request.host {
            return Ok(None);
        }
        next.port = port.unwrap_or(if next.https { 443 } else { 80 });
    }
    let (base_path, base_query) = match request.path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (request.path.as_str(), None),
    };
    let absolute = reference.scheme.is_some() || reference.authority.is_some();
    let (path, query) = match reference.path {
        "" if absolute => ("/".to_owned(), reference.query),
        "" => (base_path.to_owned(), reference.query.or(base_query)),
        path if path.starts_with('/') => (remove_dot_segments(path), reference.query),
        path => {
            let directory = &base_path[..base_path.rfind('/').map_or(0, |slash| slash + 1)];
            let merged = format!("{directory}{path}");
            (remove_dot_segments(&merged), reference.query)
        }
    };
    next.path = escape(&path);
    if let Some(query) = query {
        next.path.push('?');
        next.path.push_str(&escape(query));
    }
    Ok(Some(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, https: bool) -> HttpGet {
        HttpGet {
            https,
            host: "10.0.0.1".into(),
            port: 8080,
            path: path.into(),
            headers: vec![("Host".into(), "own".into())],
        }
    }

    /// The URLs are what Go 1.25's `URL.Parse` answers.
    #[test]
    fn locations() {
        let check = |base: &str, location: &str, expect: Option<&str>| {
            let got = resolve(&request(base, false), location).unwrap();
            assert_eq!(
                got.map(|next| next.url()).as_deref(),
                expect,
                "{base} {location}"
            );
        };
        for (location, expect) in [
            ("/b", "http://10.0.0.1:8080/b"),
            ("b", "http://10.0.0.1:8080/x/b"),
            ("./b/../c", "http://10.0.0.1:8080/x/c"),
            ("../b", "http://10.0.0.1:8080/b"),
            ("../../../b", "http://10.0.0.1:8080/b"),
            ("..", "http://10.0.0.1:8080/"),
            (".", "http://10.0.0.1:8080/x/"),
            ("/b/./c/..", "http://10.0.0.1:8080/b/"),
            ("?r=2", "http://10.0.0.1:8080/x/y?r=2"),
            ("", "http://10.0.0.1:8080/x/y?q=1"),
            ("#f", "http://10.0.0.1:8080/x/y?q=1"),
            ("b?u=http://a/b#f", "http://10.0.0.1:8080/x/b?u=http://a/b"),
            ("/a b", "http://10.0.0.1:8080/a%20b"),
            ("//10.0.0.1:8080/b", "http://10.0.0.1:8080/b"),
            ("//10.0.0.1/b", "http://10.0.0.1:80/b"),
            ("http://10.0.0.1", "http://10.0.0.1:80/"),
            ("HTTPS://10.0.0.1?q", "https://10.0.0.1:443/?q"),
            ("http://u:p@10.0.0.1:9/b", "http://10.0.0.1:9/b"),
        ] {
            check("/x/y?q=1", location, Some(expect));
        }
        for elsewhere in [
            "//example.invalid/b",
            "http://example.invalid/",
            "http:///b",
            "ftp://10.0.0.1/",
            "mailto:x",
        ] {
            check("/x/y", elsewhere, None);
        }
        let next = resolve(&request("/", true), "//10.0.0.1/b")
            .unwrap()
            .unwrap();
        assert_eq!(next.url(), "https://10.0.0.1:443/b");
    }

    #[test]
    fn a_host_of_ones_own_is_for_relative_redirects() {
        let headers = |location: &str| {
            let next = resolve(&request("/x", false), location).unwrap().unwrap();
            next.headers.len()
        };
        assert_eq!(headers("/b"), 1);
        assert_eq!(headers("//10.0.0.1:8080/b"), 1);
        assert_eq!(headers("http://10.0.0.1:8080/b"), 0);
    }

    #[test]
    fn no_urls() {
        for (location, reason) in [
            ("/\u{7f}", "invalid control character in URL"),
            ("http://10.0.0.1:x/", "invalid port after host"),
            ("http://[::1/", "missing ']' in host"),
            ("/%zz", "invalid URL escape"),
        ] {
            let error = resolve(&request("/", false), location).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("failed to parse Location header"),
                "{text}"
            );
            assert!(text.ends_with(reason), "{text}");
        }
    }
}
