//! The CIS Kubernetes Benchmark's rules for the kubelet, kube-proxy, the scheduler and the controller manager (v1.11, sections 1.3,
//! 1.4, 4.1, 4.2, 4.3), asked of what runs: the values in effect and the files on the node. A rule that our defaults do not keep
//! stands as an exception, with its reason, in SECURITY.md; and no exception stands there that is not needed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::cluster;
use serde_json::Value;

use crate::attacker::{Identity, ask};

/// What the rules look at.
struct Facts {
    /// The kubelet's configuration in effect, by `/configz`.
    kubelet: Value,
    /// Flags in effect of the controller manager and the scheduler, by `/flagz`.
    controller_manager: String,
    scheduler: String,
    kube_proxy: Value,
    node: std::path::PathBuf,
    profiling: Vec<u16>,
}

impl Facts {
    fn of(cluster: &Cluster) -> Result<Self> {
        let admin = Identity::of_cluster(cluster, "admin");
        let page = |url: &str| -> Result<String> {
            let (code, body) = ask(cluster, &admin, "GET", url)?;
            ensure!(code == Some(200), "{url}: {code:?} {body}");
            Ok(body)
        };
        let configz: Value = serde_json::from_str(&cluster.kubectl(&[
            "get",
            "--raw",
            "/api/v1/nodes/node-1/proxy/configz",
        ])?)?;
        let profiling = [10257, 10259]
            .iter()
            .map(|port| {
                let url = format!("https://127.0.0.1:{port}/debug/pprof/profile?seconds=1");
                Ok(ask(cluster, &admin, "GET", &url)?.0.unwrap_or(0))
            })
            .collect::<Result<_>>()?;
        let proxy = e2e::step::output(cluster.node_place("node-1").command("curl").args([
            "--silent",
            "--fail",
            "http://127.0.0.1:10249/configz",
        ]))?;
        Ok(Self {
            kubelet: configz["kubeletconfig"].clone(),
            controller_manager: page("https://127.0.0.1:10257/flagz")?,
            scheduler: page("https://127.0.0.1:10259/flagz")?,
            kube_proxy: serde_json::from_str::<Value>(&proxy)?["kubeproxy.config.k8s.io"].clone(),
            node: cluster.layout.node_dir("node-1"),
            profiling,
        })
    }

    fn kubelet(&self, pointer: &str) -> &Value {
        self.kubelet.pointer(pointer).unwrap_or(&Value::Null)
    }
}

/// The value of a flag on a `/flagz` page.
fn flag<'a>(page: &'a str, name: &str) -> Option<&'a str> {
    page.lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))
        .map(str::trim)
}

fn mode_within(path: &Path, allowed: u32) -> bool {
    // What is not there cannot be read.
    fs::metadata(path).is_ok_and(|file| file.mode() & 0o777 & !allowed == 0) || !path.exists()
}

fn owned_by_root(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| (file.uid(), file.gid()) == (0, 0)) || !path.exists()
}

type Rule = (&'static str, &'static str, fn(&Facts) -> bool);

const RULES: &[Rule] = &[
    ("1.3.1", "terminated-pod-gc-threshold is set", |f| {
        flag(&f.controller_manager, "terminated-pod-gc-threshold").is_some_and(|value| value != "0")
    }),
    ("1.3.2", "the controller manager profiles for nobody", |f| {
        f.profiling[0] == 404
    }),
    ("1.3.3", "each controller has its own account", |f| {
        flag(&f.controller_manager, "use-service-account-credentials") == Some("true")
    }),
    ("1.3.4", "service-account-private-key-file is set", |f| {
        flag(&f.controller_manager, "service-account-private-key-file")
            .is_some_and(|v| !v.is_empty())
    }),
    ("1.3.5", "root-ca-file is set", |f| {
        flag(&f.controller_manager, "root-ca-file").is_some_and(|v| !v.is_empty())
    }),
    (
        "1.3.6",
        "RotateKubeletServerCertificate is not switched off",
        |f| {
            !f.controller_manager
                .contains("RotateKubeletServerCertificate=false")
        },
    ),
    (
        "1.3.7",
        "the controller manager listens on 127.0.0.1",
        |f| flag(&f.controller_manager, "bind-address") == Some("127.0.0.1"),
    ),
    ("1.4.1", "the scheduler profiles for nobody", |f| {
        f.profiling[1] == 404
    }),
    ("1.4.2", "the scheduler listens on 127.0.0.1", |f| {
        flag(&f.scheduler, "bind-address") == Some("127.0.0.1")
    }),
    ("4.1.3", "kube-proxy's kubeconfig is for root alone", |f| {
        mode_within(&f.node.join("lib/kube-proxy/kubeconfig.conf"), 0o600)
    }),
    ("4.1.4", "kube-proxy's kubeconfig belongs to root", |f| {
        owned_by_root(&f.node.join("lib/kube-proxy/kubeconfig.conf"))
    }),
    ("4.1.5", "the kubelet's kubeconfig is for root alone", |f| {
        f.node.join("etc/kubernetes/kubelet.conf").exists()
            && mode_within(&f.node.join("etc/kubernetes/kubelet.conf"), 0o600)
    }),
    ("4.1.6", "the kubelet's kubeconfig belongs to root", |f| {
        owned_by_root(&f.node.join("etc/kubernetes/kubelet.conf"))
    }),
    ("4.1.7", "the clients' CA is written by root alone", |f| {
        mode_within(&f.node.join("etc/kubernetes/pki/ca.crt"), 0o644)
    }),
    ("4.1.8", "the clients' CA belongs to root", |f| {
        owned_by_root(&f.node.join("etc/kubernetes/pki/ca.crt"))
    }),
    (
        "4.1.9",
        "the kubelet's configuration is for root alone",
        |f| mode_within(&f.node.join("lib/kubelet/config.yaml"), 0o600),
    ),
    (
        "4.1.10",
        "the kubelet's configuration belongs to root",
        |f| owned_by_root(&f.node.join("lib/kubelet/config.yaml")),
    ),
    ("4.2.1", "no anonymous requests", |f| {
        f.kubelet("/authentication/anonymous/enabled") == false
    }),
    ("4.2.2", "authorization is not AlwaysAllow", |f| {
        f.kubelet("/authorization/mode") == "Webhook"
    }),
    ("4.2.3", "clientCAFile is set", |f| {
        f.kubelet("/authentication/x509/clientCAFile")
            .as_str()
            .is_some_and(|v| !v.is_empty())
    }),
    ("4.2.4", "no read-only port", |f| {
        matches!(f.kubelet("/readOnlyPort"), Value::Null) || f.kubelet("/readOnlyPort") == 0
    }),
    ("4.2.5", "streams end when idle", |f| {
        f.kubelet("/streamingConnectionIdleTimeout")
            .as_str()
            .is_some_and(|v| v != "0s")
    }),
    ("4.2.6", "makeIPTablesUtilChains", |f| {
        f.kubelet("/makeIPTablesUtilChains") == true
    }),
    ("4.2.8", "eventRecordQPS bounds events", |f| {
        f.kubelet("/eventRecordQPS")
            .as_i64()
            .is_some_and(|v| v >= 0)
    }),
    ("4.2.10", "the client certificate is renewed", |f| {
        f.kubelet("/rotateCertificates") == true
    }),
    (
        "4.2.11",
        "RotateKubeletServerCertificate is not switched off",
        |f| f.kubelet("/featureGates/RotateKubeletServerCertificate") != false,
    ),
    ("4.2.12", "strong ciphers alone", weak_ciphers_are_refused),
    ("4.2.13", "pods' processes are limited", |f| {
        f.kubelet("/podPidsLimit").as_i64().is_some_and(|v| v > 0)
    }),
    ("4.2.14", "seccompDefault", |f| {
        f.kubelet("/seccompDefault") == true
    }),
    (
        "4.3.1",
        "kube-proxy's metrics are for its node alone",
        |f| {
            f.kube_proxy["metricsBindAddress"]
                .as_str()
                .is_some_and(|v| v.starts_with("127.0.0.1"))
        },
    ),
];

/// Ours offers AEAD suites with forward secrecy only, unless the configuration asks for fewer.
fn weak_ciphers_are_refused(_: &Facts) -> bool {
    // A client that knows nothing better than CBC gets no handshake.
    let Ok(cluster) = cluster() else { return false };
    cluster
        .control_plane()
        .command("curl")
        .args([
            "--silent",
            "--insecure",
            "--tls-max",
            "1.2",
            "--ciphers",
            "ECDHE-RSA-AES256-SHA:ECDHE-ECDSA-AES256-SHA:AES128-SHA",
        ])
        .arg(format!(
            "https://{}:10250/healthz",
            e2e::cluster::layout::node_ip(1)
        ))
        .status()
        .is_ok_and(|status| status.code() == Some(35))
}

/// The exceptions of SECURITY.md: rows `| 4.2.13 | … |`.
fn exceptions() -> Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SECURITY.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (_, part) = text
        .split_once("## CIS Benchmark")
        .context("SECURITY.md has a part about the CIS Benchmark")?;
    Ok(part
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next())
        .filter(|id| id.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
        .collect())
}

#[test]
fn the_benchmark_is_kept_but_for_what_security_md_names() -> Result<()> {
    let cluster = cluster()?;
    let facts = Facts::of(&cluster)?;
    let broken: BTreeSet<String> = RULES
        .iter()
        .filter(|(_, _, kept)| !kept(&facts))
        .map(|(id, what, _)| {
            eprintln!("not kept: {id} {what}");
            (*id).to_owned()
        })
        .collect();
    let named = exceptions()?;
    let surprises: Vec<&String> = broken.difference(&named).collect();
    ensure!(
        surprises.is_empty(),
        "not kept and not in SECURITY.md: {surprises:?}"
    );
    // Rules about a unit file, and flags that a tool's cluster sets, are named there without being asked here.
    let asked: BTreeSet<&str> = RULES.iter().map(|(id, ..)| *id).collect();
    let needless: Vec<&String> = named
        .difference(&broken)
        .filter(|id| asked.contains(id.as_str()))
        .collect();
    ensure!(
        needless.is_empty(),
        "SECURITY.md names exceptions that are kept: {needless:?}"
    );
    Ok(())
}
