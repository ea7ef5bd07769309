//! What names, ports and addresses may look like.
//!
//! Upstream: `apimachinery/pkg/util/validation`.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{Errors, Path};

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const SUBDOMAIN_WITH_UNDERSCORE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";
const HEADER_NAME: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";

/// Upstream: `InclusiveRangeError`.
pub fn in_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn longer_than(most: usize) -> String {
    format!("must be no more than {most} characters")
}

fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str, inside: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter()
        .all(|end| end.is_some_and(|b| is_lower_alphanumeric(*b)))
        && bytes
            .iter()
            .all(|b| is_lower_alphanumeric(*b) || inside.contains(b))
}

pub fn dns_label(name: &str, path: &Path, errors: &mut Errors) {
    if name.len() > 63 {
        errors.invalid(path, name, &longer_than(63));
    }
    if !is_label(name, b"-") {
        errors.invalid(path, name, LABEL);
    }
}

pub fn dns_subdomain(name: &str, path: &Path, errors: &mut Errors) {
    if name.len() > 253 {
        errors.invalid(path, name, &longer_than(253));
    }
    if !name.split('.').all(|label| is_label(label, b"-")) {
        errors.invalid(path, name, SUBDOMAIN);
    }
}

pub fn dns_subdomain_with_underscore(name: &str, path: &Path, errors: &mut Errors) {
    if name.len() > 253 {
        errors.invalid(path, name, &longer_than(253));
    }
    let is_one = |label: &str| is_label(label.strip_prefix('_').unwrap_or(label), b"-_");
    if !name.split('.').all(is_one) {
        errors.invalid(path, name, SUBDOMAIN_WITH_UNDERSCORE);
    }
}

/// Upstream: `IsRelaxedEnvVarName`.
pub fn env_name(name: &str, path: &Path, errors: &mut Errors) {
    if !name.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=') {
        errors.invalid(path, name, ENV_NAME);
    }
}

pub fn header_name(name: &str, path: &Path, errors: &mut Errors) {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if name.is_empty() || !name.bytes().all(fits) {
        errors.invalid(path, name, HEADER_NAME);
    }
}

/// Names of services and ports of RFC 6335.
pub fn port_name(name: &str, path: &Path, errors: &mut Errors) {
    let mut say = |wrong: bool, text: &str| {
        if wrong {
            errors.invalid(path, name, text);
        }
    };
    let fits = |b: u8| is_lower_alphanumeric(b) || b == b'-';
    say(name.len() > 15, &longer_than(15));
    say(
        name.is_empty() || !name.bytes().all(fits),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    say(
        !name.bytes().any(|b| b.is_ascii_lowercase()),
        "must contain at least one letter (a-z)",
    );
    say(name.contains("--"), "must not contain consecutive hyphens");
    say(
        name.starts_with('-') || name.ends_with('-'),
        "must not begin or end with a hyphen",
    );
}

pub fn port_number(port: i32, path: &Path, errors: &mut Errors) {
    if !(1..=65535).contains(&port) {
        errors.invalid(path, port, &in_range(1, 65535));
    }
}

pub fn port_number_or_name(port: &IntOrString, path: &Path, errors: &mut Errors) {
    match port {
        IntOrString::Int(number) => port_number(*number, path, errors),
        IntOrString::String(name) => port_name(name, path, errors),
    }
}

/// Octets with zeros before them are read as decimal numbers, as ever.
pub fn ip_address(text: &str, path: &Path, errors: &mut Errors) {
    let octets: Vec<&str> = text.split('.').collect();
    let is_octet = |o: &&str| {
        !o.is_empty() && o.bytes().all(|b| b.is_ascii_digit()) && o.parse::<u8>().is_ok()
    };
    let is_v4 = octets.len() == 4 && octets.iter().all(is_octet);
    if !is_v4 && text.parse::<std::net::Ipv6Addr>().is_err() {
        let text_of = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.invalid(path, text, text_of);
    }
}

/// Upstream: `validatePathNoBacksteps`.
pub fn no_backsteps(target: &str, path: &Path, errors: &mut Errors) {
    if target.split('/').any(|part| part == "..") {
        errors.invalid(path, target, "must not contain '..'");
    }
}

/// Upstream: `validateLocalDescendingPath`.
pub fn descending_path(target: &str, path: &Path, errors: &mut Errors) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    no_backsteps(target, path, errors);
}
