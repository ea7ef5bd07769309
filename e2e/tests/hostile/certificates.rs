//! Certificates: what a node, or who holds a bootstrap token, can have signed; and what name a server takes from one.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, layout};
use e2e::probe::{cluster, wait_until};
use e2e::step::output;
use rcgen::DnValue;

use crate::attacker::{
    COMMON_NAME, Identity, ORGANIZATION, ask, certificate_named, client_params, kubectl_as, utf8,
};
use crate::sound::Sound;

const SURNAME: &[u64] = &[2, 5, 4, 4];
const USER_ID: &[u64] = &[0, 9, 2342, 19_200_300, 100, 1, 1];

/// Name attributes of a request, and what is wrong with them.
struct Request {
    name: &'static str,
    attributes: Vec<(&'static [u64], DnValue)>,
}

fn requests() -> Vec<Request> {
    let node = utf8("system:node:node-1");
    let nodes = utf8("system:nodes");
    let teletex = |text: &str| DnValue::TeletexString(text.try_into().expect("ASCII"));
    let bmp = |text: &str| DnValue::BmpString(text.try_into().expect("in the plane"));
    let universal = |text: &str| DnValue::UniversalString(text.try_into().expect("Unicode"));
    let request = |name, attributes| Request { name, attributes };
    vec![
        request(
            "masters-as-teletex",
            vec![
                (ORGANIZATION, nodes.clone()),
                (COMMON_NAME, node.clone()),
                (ORGANIZATION, teletex("system:masters")),
            ],
        ),
        request(
            "masters-as-bmp",
            vec![
                (ORGANIZATION, nodes.clone()),
                (COMMON_NAME, node.clone()),
                (ORGANIZATION, bmp("system:masters")),
            ],
        ),
        request(
            "masters-as-universal",
            vec![
                (ORGANIZATION, nodes.clone()),
                (COMMON_NAME, node.clone()),
                (ORGANIZATION, universal("system:masters")),
            ],
        ),
        request(
            "masters-as-utf8",
            vec![
                (ORGANIZATION, nodes.clone()),
                (COMMON_NAME, node.clone()),
                (ORGANIZATION, utf8("system:masters")),
            ],
        ),
        request(
            "second-name",
            vec![
                (ORGANIZATION, nodes.clone()),
                (COMMON_NAME, node.clone()),
                (COMMON_NAME, utf8("kube-apiserver-kubelet-client")),
            ],
        ),
        request(
            "surname",
            vec![
                (ORGANIZATION, nodes.clone()),
                (COMMON_NAME, node.clone()),
                (SURNAME, utf8("x")),
            ],
        ),
        request(
            "user-id",
            vec![
                (ORGANIZATION, nodes),
                (COMMON_NAME, node),
                (USER_ID, utf8("0")),
            ],
        ),
        request(
            "other-group",
            vec![
                (ORGANIZATION, utf8("system:masters")),
                (COMMON_NAME, utf8("system:node:node-1")),
            ],
        ),
    ]
}

fn good() -> Request {
    Request {
        name: "good",
        attributes: vec![
            (ORGANIZATION, utf8("system:nodes")),
            (COMMON_NAME, utf8("system:node:node-1")),
        ],
    }
}

/// Posts a request for a kubelet's client certificate and gives its object's name; `None` where the API server refuses the object
/// itself, as NodeRestriction does with a node that names another in the last of its common names.
fn post(
    cluster: &Cluster,
    identity: &Identity,
    who: &str,
    request: &Request,
) -> Result<Option<String>> {
    let key = rcgen::KeyPair::generate()?;
    let pem = client_params_pem(request, &key)?;
    let name = format!("hostile-{who}-{}", request.name);
    let _ = cluster.kubectl(&["delete", "csr", &name, "--ignore-not-found"]);
    let manifest = tempfile::NamedTempFile::new()?;
    fs::write(
        manifest.path(),
        serde_json::json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "usages": ["digital signature", "client auth"],
                "request": base64(pem.as_bytes()),
            },
        })
        .to_string(),
    )?;
    let created = output(
        kubectl_as(cluster, identity)
            .args(["create", "--validate=false", "-f"])
            .arg(manifest.path()),
    );
    match created {
        Ok(_) => Ok(Some(name)),
        Err(err) if format!("{err:#}").contains("can only create a node CSR with CN=") => Ok(None),
        Err(err) => Err(err),
    }
}

fn client_params_pem(request: &Request, key: &rcgen::KeyPair) -> Result<String> {
    let mut params = client_params(&request.attributes);
    // A request names its usages in the object.
    params.key_usages = Vec::new();
    params.extended_key_usages = Vec::new();
    Ok(params.serialize_request(key)?.pem()?)
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .chain(std::iter::repeat_n(&0, 3 - chunk.len()))
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        for index in 0..4 {
            if index <= chunk.len() {
                text.push(char::from(
                    ALPHABET[(word >> (18 - 6 * index)) as usize & 63],
                ));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn field(cluster: &Cluster, csr: &str, path: &str) -> Result<String> {
    cluster.kubectl(&["get", "csr", csr, "-o", &format!("jsonpath={path}")])
}

/// Posts them all as `identity`; the good one must be signed, no other, not even where an administrator approves it unread.
fn only_the_good_one_is_signed(cluster: &Cluster, identity: &Identity, who: &str) -> Result<()> {
    let asked: Vec<Option<String>> = requests()
        .iter()
        .map(|request| post(cluster, identity, who, request).with_context(|| request.name))
        .collect::<Result<_>>()?;
    let bad: Vec<String> = asked.into_iter().flatten().collect();
    ensure!(
        bad.len() > 5,
        "only {} requests came to the signer",
        bad.len()
    );
    let good = post(cluster, identity, who, &good())?.context("a good request is taken")?;
    wait_until(
        "the good request's certificate",
        Duration::from_secs(30),
        || Ok(!field(cluster, &good, "{.status.certificate}")?.is_empty()),
    )?;
    for csr in &bad {
        let approved = field(
            cluster,
            csr,
            "{.status.conditions[?(@.type==\"Approved\")].status}",
        )?;
        ensure!(approved.is_empty(), "{csr} was approved");
        cluster.kubectl(&["certificate", "approve", csr])?;
    }
    for csr in &bad {
        wait_until(&format!("{csr} to fail"), Duration::from_secs(30), || {
            let signed = field(cluster, csr, "{.status.certificate}")?;
            ensure!(signed.is_empty(), "{csr} was signed: {signed}");
            Ok(field(
                cluster,
                csr,
                "{.status.conditions[?(@.type==\"Failed\")].status}",
            )? == "True")
        })?;
        cluster.kubectl(&["delete", "csr", csr])?;
    }
    cluster.kubectl(&["delete", "csr", &good]).map(drop)
}

#[test]
fn a_node_gets_no_certificate_but_its_own() -> Result<()> {
    let cluster = cluster()?;
    let node = Identity::of_node(&cluster, "node-1")?;
    only_the_good_one_is_signed(&cluster, &node, "node")
}

#[test]
fn a_bootstrap_token_gets_no_certificate_but_a_nodes() -> Result<()> {
    let cluster = cluster()?;
    let kubeconfig = fs::read_to_string(cluster.layout.kubeconfig("bootstrap-kubelet"))?;
    let token = kubeconfig
        .split_once("token: \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .context("a token")?
        .0;
    only_the_good_one_is_signed(&cluster, &Identity::Token(token.to_owned()), "token")
}

#[test]
fn a_certificate_with_two_names_names_nobody() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let url = format!("https://{}:10250/pods", layout::node_ip(1));
    let api_server = "kube-apiserver-kubelet-client";
    let cases: &[(&str, &[(&[u64], DnValue)], u16)] = &[
        ("one name", &[(COMMON_NAME, utf8(api_server))], 200),
        (
            "the API server's name first",
            &[
                (COMMON_NAME, utf8(api_server)),
                (COMMON_NAME, utf8("system:node:node-2")),
            ],
            401,
        ),
        (
            "the API server's name last",
            &[
                (COMMON_NAME, utf8("system:node:node-2")),
                (COMMON_NAME, utf8(api_server)),
            ],
            401,
        ),
        (
            "masters in another string type",
            &[
                (COMMON_NAME, utf8("system:node:node-2")),
                (
                    ORGANIZATION,
                    DnValue::BmpString("system:masters".try_into()?),
                ),
            ],
            401,
        ),
        ("no name", &[(ORGANIZATION, utf8("system:masters"))], 401),
    ];
    for (what, attributes, expected) in cases {
        let (_dir, identity) = certificate_named(&cluster, attributes)?;
        let (code, body) = ask(&cluster, &identity, "GET", &url)?;
        ensure!(code == Some(*expected), "{what}: {code:?} {body}");
    }
    sound.check()
}
