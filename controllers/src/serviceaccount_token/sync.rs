//! The decision: what a token Secret lacks, and whose it is. Pure.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::{Value, json};

/// The type of Secrets this is about.
pub const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
/// The annotation with the ServiceAccount's name.
pub const NAME_ANNOTATION: &str = "kubernetes.io/service-account.name";
/// The annotation with the ServiceAccount's UID; optional until the Secret is filled.
pub const UID_ANNOTATION: &str = "kubernetes.io/service-account.uid";
const ROOT_CA_KEY: &str = "ca.crt";
const NAMESPACE_KEY: &str = "namespace";
const TOKEN_KEY: &str = "token";
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// An annotation, empty when it is not there.
pub fn annotation<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let annotations = secret.metadata.annotations.as_ref();
    annotations
        .and_then(|a| a.get(key))
        .map_or("", String::as_str)
}

/// Whether a ServiceAccount is the one meant; an empty UID means any.
pub fn is_account(account: &ServiceAccount, uid: &str) -> bool {
    uid.is_empty() || account.metadata.uid.as_deref() == Some(uid)
}

/// Whether the Secret is a token of the ServiceAccount of this name and UID.
pub fn is_token_of(secret: &Secret, name: &str, uid: &str) -> bool {
    let secret_uid = annotation(secret, UID_ANNOTATION);
    secret.type_.as_deref() == Some(SECRET_TYPE)
        && annotation(secret, NAME_ANNOTATION) == name
        && (secret_uid.is_empty() || secret_uid == uid)
}

/// What a Secret lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    ca: bool,
    namespace: bool,
    /// A signed token.
    pub token: bool,
}

impl Needs {
    /// Whether there is something to write.
    pub fn any(self) -> bool {
        self.ca || self.namespace || self.token
    }
}

/// `root_ca`: PEM, empty for none.
pub fn secret_update_needed(secret: &Secret, root_ca: &[u8]) -> Needs {
    let data = |key: &str| {
        let data = secret.data.as_ref().and_then(|d| d.get(key));
        data.map_or(&[][..], |bytes| &bytes.0[..])
    };
    Needs {
        ca: !root_ca.is_empty() && data(ROOT_CA_KEY) != root_ca,
        namespace: data(NAMESPACE_KEY).is_empty(),
        token: data(TOKEN_KEY).is_empty(),
    }
}

/// The claims of a token that never expires, bound to the Secret.
pub fn legacy_claims(account: &ServiceAccount, secret: &Secret) -> Value {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (namespace, name) = (
        text(&account.metadata.namespace),
        text(&account.metadata.name),
    );
    json!({
        "iss": LEGACY_ISSUER,
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/service-account.name": name,
        "kubernetes.io/serviceaccount/service-account.uid": text(&account.metadata.uid),
        "kubernetes.io/serviceaccount/secret.name": text(&secret.metadata.name),
    })
}

/// The Secret with all it needs; `token` is asked for when it needs one.
///
/// # Errors
/// Those of `token`.
pub fn populate<E>(
    secret: &Secret,
    account: &ServiceAccount,
    root_ca: &[u8],
    token: impl FnOnce(&Value) -> Result<String, E>,
) -> Result<Option<Secret>, E> {
    let needs = secret_update_needed(secret, root_ca);
    if !needs.any() {
        return Ok(None);
    }
    let mut filled = secret.clone();
    let namespace = secret.metadata.namespace.clone().unwrap_or_default();
    let data = filled.data.get_or_insert_default();
    let mut put = |key: &str, bytes: Vec<u8>| data.insert(key.to_owned(), ByteString(bytes));
    if needs.ca {
        put(ROOT_CA_KEY, root_ca.to_vec());
    }
    if needs.namespace {
        put(NAMESPACE_KEY, namespace.into_bytes());
    }
    if needs.token {
        put(
            TOKEN_KEY,
            token(&legacy_claims(account, secret))?.into_bytes(),
        );
    }
    let annotations = filled.metadata.annotations.get_or_insert_default();
    for (key, value) in [
        (NAME_ANNOTATION, &account.metadata.name),
        (UID_ANNOTATION, &account.metadata.uid),
    ] {
        annotations.insert(key.to_owned(), value.clone().unwrap_or_default());
    }
    Ok(Some(filled))
}

/// The account without its reference to the Secret; `None` when it has none.
pub fn without_reference(account: &ServiceAccount, secret: &str) -> Option<ServiceAccount> {
    let refers =
        |r: &k8s_openapi::api::core::v1::ObjectReference| r.name.as_deref() == Some(secret);
    if !account.secrets.iter().flatten().any(refers) {
        return None;
    }
    let mut account = account.clone();
    account
        .secrets
        .get_or_insert_default()
        .retain(|r| !refers(r));
    Some(account)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn secret(data: Value, annotations: Value) -> Secret {
        serde_json::from_value(json!({"type": SECRET_TYPE, "data": data,
            "metadata": {"name": "s", "namespace": "ns", "annotations": annotations}}))
        .unwrap()
    }

    fn account() -> ServiceAccount {
        serde_json::from_value(
            json!({"metadata": {"name": "a", "namespace": "ns", "uid": "u"},
            "secrets": [{"name": "s"}, {"name": "t"}]}),
        )
        .unwrap()
    }

    #[test]
    fn filling() {
        // "Y2E=" is "ca", "bnM=" is "ns", "b2xk" is "old".
        for (data, root_ca, expect) in [
            (
                json!({}),
                "ca",
                Some(json!({"ca.crt": "Y2E=", "namespace": "bnM=", "token": "c2lnbmVk"})),
            ),
            (
                json!({}),
                "",
                Some(json!({"namespace": "bnM=", "token": "c2lnbmVk"})),
            ),
            (
                json!({"ca.crt": "b2xk", "namespace": "bnM=", "token": "b2xk"}),
                "ca",
                Some(json!({"ca.crt": "Y2E=", "namespace": "bnM=", "token": "b2xk"})),
            ),
            (
                json!({"ca.crt": "Y2E=", "namespace": "bnM=", "token": "b2xk"}),
                "ca",
                None,
            ),
            (
                json!({"ca.crt": "b2xk", "namespace": "b2xk", "token": "b2xk"}),
                "",
                None,
            ),
        ] {
            let secret = secret(data.clone(), json!({NAME_ANNOTATION: "a"}));
            let sign = |claims: &Value| {
                assert_eq!(claims["sub"], "system:serviceaccount:ns:a");
                assert_eq!(claims["kubernetes.io/serviceaccount/secret.name"], "s");
                Ok::<_, Infallible>("signed".to_owned())
            };
            let filled = populate(&secret, &account(), root_ca.as_bytes(), sign).unwrap();
            assert_eq!(
                filled
                    .as_ref()
                    .map(|s| serde_json::to_value(&s.data).unwrap()),
                expect,
                "{data}"
            );
            if let Some(filled) = filled {
                assert_eq!(annotation(&filled, UID_ANNOTATION), "u");
            }
        }
    }

    #[test]
    fn whose() {
        for (annotations, expect) in [
            (json!({NAME_ANNOTATION: "a"}), true),
            (json!({NAME_ANNOTATION: "a", UID_ANNOTATION: "u"}), true),
            (json!({NAME_ANNOTATION: "a", UID_ANNOTATION: "v"}), false),
            (json!({NAME_ANNOTATION: "b"}), false),
            (json!({}), false),
        ] {
            assert_eq!(
                is_token_of(&secret(json!({}), annotations.clone()), "a", "u"),
                expect,
                "{annotations}"
            );
        }
    }

    #[test]
    fn references() {
        let left = without_reference(&account(), "s").unwrap().secrets.unwrap();
        assert_eq!((left.len(), left[0].name.as_deref()), (1, Some("t")));
        assert!(without_reference(&account(), "x").is_none());
    }
}
