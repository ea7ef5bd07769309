//! What a PKCS#10 request asks for, and whether a signer may give it. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::{
    KUBE_APISERVER_CLIENT, KUBE_APISERVER_CLIENT_KUBELET, KUBELET_SERVING, LEGACY_UNKNOWN,
};

/// Why a request was refused. The texts of `Rule` errors are upstream's, since they end up in a condition.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum RequestError {
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    #[error("the certificate request is not valid DER: {0}")]
    Der(String),
    #[error("unable to verify certificate request signature: {0}")]
    Signature(String),
    #[error("subject organization is not system:nodes")]
    OrganizationNotSystemNodes,
    #[error("subject common name does not begin with system:node:")]
    CommonNameNotSystemNode,
    #[error("DNS or IP subjectAltName is required")]
    DnsOrIpSanRequired,
    #[error("DNS subjectAltNames are not allowed")]
    DnsSanNotAllowed,
    #[error("Email subjectAltNames are not allowed")]
    EmailSanNotAllowed,
    #[error("IP subjectAltNames are not allowed")]
    IpSanNotAllowed,
    #[error("URI subjectAltNames are not allowed")]
    UriSanNotAllowed,
    #[error("usages did not match [{0}]")]
    Usages(String),
    #[error("invalid usage for client certificate: {0}")]
    InvalidClientUsage(String),
    #[error("missing required usage for client certificate: client auth")]
    MissingClientAuth,
}

/// A parsed request. Subject and key are DER as they came.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Request {
    pub(super) subject: Vec<u8>,
    pub(super) public_key_info: Vec<u8>,
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns_names: Vec<String>,
    pub(super) ip_addresses: Vec<IpAddr>,
    pub(super) emails: Vec<String>,
    pub(super) uris: Vec<String>,
}

impl Request {
    /// Reads `spec.request`, and checks that who made it holds the key.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| RequestError::Pem)?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err(RequestError::Pem);
        }
        let (_, parsed) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents)
                .map_err(|e| RequestError::Der(e.to_string()))?;
        parsed
            .verify_signature()
            .map_err(|e| RequestError::Signature(e.to_string()))?;
        let info = &parsed.certification_request_info;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            a.as_str().map(ToString::to_string).ok()
        };
        let mut request = Self {
            subject: info.subject.as_raw().to_vec(),
            public_key_info: info.subject_pki.raw.to_vec(),
            // Go takes the last of several.
            common_name: info
                .subject
                .iter_common_name()
                .filter_map(text)
                .last()
                .unwrap_or_default(),
            organizations: info.subject.iter_organization().filter_map(text).collect(),
            ..Self::default()
        };
        for extension in parsed.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                names
                    .general_names
                    .iter()
                    .for_each(|name| request.add_name(name));
            }
        }
        Ok(request)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push(name.to_string()),
            GeneralName::RFC822Name(name) => self.emails.push(name.to_string()),
            GeneralName::URI(uri) => self.uris.push(uri.to_string()),
            GeneralName::IPAddress(bytes) => {
                let v4: Result<[u8; 4], _> = (*bytes).try_into();
                let v6: Result<[u8; 16], _> = (*bytes).try_into();
                self.ip_addresses
                    .extend(v4.map(IpAddr::from).ok().or(v6.map(IpAddr::from).ok()));
            }
            // Go reads no other kinds.
            _ => {}
        }
    }
}

const NODE_PREFIX: &str = "system:node:";

fn usages_are(
    usages: &[String],
    required: &[&str],
    without_encipherment: &[&str],
) -> Result<(), RequestError> {
    let set: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let equals = |wanted: &[&str]| set == wanted.iter().copied().collect();
    if equals(required) || equals(without_encipherment) {
        return Ok(());
    }
    let mut names = required.to_vec();
    names.sort_unstable();
    Err(RequestError::Usages(names.join(" ")))
}

/// `kubernetes.io/kube-apiserver-client-kubelet`.
pub(super) fn validate_kubelet_client(
    request: &Request,
    usages: &[String],
) -> Result<(), RequestError> {
    if request.organizations != ["system:nodes"] {
        return Err(RequestError::OrganizationNotSystemNodes);
    }
    if !request.dns_names.is_empty() {
        return Err(RequestError::DnsSanNotAllowed);
    }
    if !request.emails.is_empty() {
        return Err(RequestError::EmailSanNotAllowed);
    }
    if !request.ip_addresses.is_empty() {
        return Err(RequestError::IpSanNotAllowed);
    }
    if !request.uris.is_empty() {
        return Err(RequestError::UriSanNotAllowed);
    }
    if !request.common_name.starts_with(NODE_PREFIX) {
        return Err(RequestError::CommonNameNotSystemNode);
    }
    let required = ["digital signature", "key encipherment", "client auth"];
    usages_are(usages, &required, &["digital signature", "client auth"])
}

/// `kubernetes.io/kubelet-serving`.
fn validate_kubelet_serving(request: &Request, usages: &[String]) -> Result<(), RequestError> {
    if request.organizations != ["system:nodes"] {
        return Err(RequestError::OrganizationNotSystemNodes);
    }
    if request.dns_names.is_empty() && request.ip_addresses.is_empty() {
        return Err(RequestError::DnsOrIpSanRequired);
    }
    if !request.emails.is_empty() {
        return Err(RequestError::EmailSanNotAllowed);
    }
    if !request.uris.is_empty() {
        return Err(RequestError::UriSanNotAllowed);
    }
    let required = ["digital signature", "key encipherment", "server auth"];
    usages_are(usages, &required, &["digital signature", "server auth"])?;
    if request.common_name.starts_with(NODE_PREFIX) {
        Ok(())
    } else {
        Err(RequestError::CommonNameNotSystemNode)
    }
}

/// `kubernetes.io/kube-apiserver-client`.
fn validate_api_client(usages: &[String]) -> Result<(), RequestError> {
    let mut client_auth = false;
    for usage in usages {
        match usage.as_str() {
            "digital signature" | "key encipherment" => {}
            "client auth" => client_auth = true,
            other => return Err(RequestError::InvalidClientUsage(other.to_string())),
        }
    }
    if client_auth {
        Ok(())
    } else {
        Err(RequestError::MissingClientAuth)
    }
}

/// Whether the signer a request names may sign it.
pub(super) fn validate(
    signer: &str,
    request: &Request,
    usages: &[String],
) -> Result<(), RequestError> {
    match signer {
        KUBELET_SERVING => validate_kubelet_serving(request, usages),
        KUBE_APISERVER_CLIENT_KUBELET => validate_kubelet_client(request, usages),
        KUBE_APISERVER_CLIENT => validate_api_client(usages),
        LEGACY_UNKNOWN => Ok(()),
        // The signing controller asks only about these four.
        _ => Ok(()),
    }
}

/// Whether a condition of this type stands and is true. Approval conditions may lack a status in old objects.
pub(super) fn has_condition(csr: &CertificateSigningRequest, type_: &str) -> bool {
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == type_ && (c.status == "True" || c.status.is_empty()))
}

/// Whether the request has its certificate.
pub(super) fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status
        .as_ref()
        .and_then(|s| s.certificate.as_ref())
        .is_some_and(|c| !c.0.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    fn node() -> Request {
        Request {
            common_name: "system:node:a".into(),
            organizations: vec!["system:nodes".into()],
            ..Request::default()
        }
    }

    #[test]
    fn signers_rules() {
        let client = usages(&["digital signature", "key encipherment", "client auth"]);
        let serving = usages(&["server auth", "digital signature"]);
        let check = |signer: &str,
                     request: &Request,
                     usages: &[String],
                     expect: Result<(), RequestError>| {
            assert_eq!(
                validate(signer, request, usages),
                expect,
                "{signer} {request:?} {usages:?}"
            );
        };
        let with_ip = Request {
            ip_addresses: vec![[10, 0, 0, 1].into()],
            ..node()
        };
        let other_group = Request {
            organizations: vec!["system:nodes".into(), "x".into()],
            ..node()
        };
        let other_name = Request {
            common_name: "a".into(),
            ..node()
        };
        check(KUBE_APISERVER_CLIENT_KUBELET, &node(), &client, Ok(()));
        check(
            KUBE_APISERVER_CLIENT_KUBELET,
            &with_ip,
            &client,
            Err(RequestError::IpSanNotAllowed),
        );
        check(
            KUBE_APISERVER_CLIENT_KUBELET,
            &other_group,
            &client,
            Err(RequestError::OrganizationNotSystemNodes),
        );
        check(
            KUBE_APISERVER_CLIENT_KUBELET,
            &other_name,
            &client,
            Err(RequestError::CommonNameNotSystemNode),
        );
        let required = "client auth digital signature key encipherment".to_string();
        check(
            KUBE_APISERVER_CLIENT_KUBELET,
            &node(),
            &serving,
            Err(RequestError::Usages(required)),
        );
        check(
            KUBELET_SERVING,
            &node(),
            &serving,
            Err(RequestError::DnsOrIpSanRequired),
        );
        check(KUBELET_SERVING, &with_ip, &serving, Ok(()));
        check(KUBE_APISERVER_CLIENT, &node(), &client, Ok(()));
        check(
            KUBE_APISERVER_CLIENT,
            &node(),
            &serving,
            Err(RequestError::InvalidClientUsage("server auth".into())),
        );
        check(
            KUBE_APISERVER_CLIENT,
            &node(),
            &usages(&["digital signature"]),
            Err(RequestError::MissingClientAuth),
        );
        check(LEGACY_UNKNOWN, &node(), &usages(&["server auth"]), Ok(()));
    }

    #[test]
    fn parses_what_was_asked_for() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(vec!["a.example".to_string(), "10.0.0.1".to_string()])
                .unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "system:node:a");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:nodes");
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = Request::parse(pem.as_bytes()).unwrap();
        assert_eq!(request.common_name, "system:node:a");
        assert_eq!(request.organizations, ["system:nodes"]);
        assert_eq!(request.dns_names, ["a.example"]);
        assert_eq!(request.ip_addresses.len(), 1);
        assert_eq!(Request::parse(b"nothing"), Err(RequestError::Pem));
    }
}
