//! Who tries: people without credentials, with junk ones, another node, a service account, a pod.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::cluster::layout::netns_path;
use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

/// What somebody shows to a server.
#[derive(Clone, Debug)]
pub enum Identity {
    Nobody,
    Token(String),
    /// Certificate and key, as PEM files.
    Certificate {
        certificate: PathBuf,
        key: PathBuf,
    },
}

impl Identity {
    /// The client certificate that a node was given.
    ///
    /// # Errors
    /// It has none.
    pub fn of_node(cluster: &Cluster, node: &str) -> Result<Self> {
        // The link is absolute on the node: follow it by name.
        let pki = cluster.layout.node_dir(node).join("lib/kubelet/pki");
        let link = fs::read_link(pki.join("kubelet-client-current.pem"))
            .with_context(|| format!("the client certificate of {node}"))?;
        let pem = pki.join(link.file_name().context("a file name")?);
        Ok(Self::Certificate {
            certificate: pem.clone(),
            key: pem,
        })
    }

    /// One that the cluster made at its beginning, such as `apiserver-kubelet-client`.
    pub fn of_cluster(cluster: &Cluster, name: &str) -> Self {
        Self::Certificate {
            certificate: cluster.layout.pki(&format!("{name}.crt")),
            key: cluster.layout.pki(&format!("{name}.key")),
        }
    }

    /// A token of a service account that may do nothing.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn of_service_account(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let token = cluster.kubectl(&["-n", namespace, "create", "token", "default"])?;
        Ok(Self::Token(token.trim().to_owned()))
    }

    fn curl_arguments(&self) -> Vec<String> {
        match self {
            Self::Nobody => Vec::new(),
            Self::Token(token) => vec!["-H".to_owned(), format!("Authorization: Bearer {token}")],
            Self::Certificate { certificate, key } => vec![
                "--cert".to_owned(),
                certificate.display().to_string(),
                "--key".to_owned(),
                key.display().to_string(),
            ],
        }
    }
}

/// The command at another priority (19 the lowest, -20 the highest).
pub fn niced(level: i8, inner: &Command) -> Command {
    before(&["nice", "-n", &level.to_string()], inner)
}

/// What makes a command an attacker: the scheduler's idle class. Attackers have machines of their own where there is more than a test, and
/// here whoever wakes up on the node runs at once, whatever they do; the lowest priority would still hold him up for a slice each time.
pub const ELSEWHERE: [&str; 3] = ["chrt", "--idle", "0"];

/// The command as an attacker's.
pub fn elsewhere(inner: &Command) -> Command {
    before(&ELSEWHERE, inner)
}

fn before(words: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

/// What a server said; `None` where it closed the connection without a word.
pub type Answer = Option<u16>;

/// Asks as `identity` from the cluster's network, where no pod and no node stands.
///
/// # Errors
/// curl cannot be started.
pub fn ask(
    cluster: &Cluster,
    identity: &Identity,
    method: &str,
    url: &str,
) -> Result<(Answer, String)> {
    let mut command = cluster.control_plane().command("curl");
    command
        .args([
            "--silent",
            "--insecure",
            "--max-time",
            "10",
            "--request",
            method,
        ])
        .args(["--write-out", "\n%{http_code}"])
        .args(identity.curl_arguments())
        .arg(url);
    let out = command.output().context("start curl")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or(("", &text));
    let code: u16 = code.trim().parse().unwrap_or(0);
    Ok(((code != 0).then_some(code), body.to_owned()))
}

/// kubectl as `identity` instead of the admin.
pub fn kubectl_as(cluster: &Cluster, identity: &Identity) -> Command {
    let mut command = cluster
        .control_plane()
        .command(cluster.outputs.upstream("kubectl"));
    command.env("KUBECONFIG", "/dev/null").args([
        format!(
            "--server=https://{}:6443",
            e2e::cluster::layout::CONTROL_PLANE_IP
        ),
        format!(
            "--certificate-authority={}",
            cluster.layout.pki("ca.crt").display()
        ),
    ]);
    match identity {
        Identity::Nobody => {}
        Identity::Token(token) => {
            command.arg(format!("--token={token}"));
        }
        Identity::Certificate { certificate, key } => {
            command.args([
                format!("--client-certificate={}", certificate.display()),
                format!("--client-key={}", key.display()),
            ]);
        }
    }
    command
}

/// A client certificate of the cluster's own CA with the given name attributes: OID and value. Such a one no signer of ours
/// gives out; the kubelet's server must not take it even so.
///
/// # Errors
/// The CA cannot be read.
pub fn certificate_named(
    cluster: &Cluster,
    attributes: &[(&[u64], rcgen::DnValue)],
) -> Result<(TempDir, Identity)> {
    let ca_key = rcgen::KeyPair::from_pem(&fs::read_to_string(cluster.layout.pki("ca.key"))?)?;
    let ca = rcgen::Issuer::from_ca_cert_pem(
        &fs::read_to_string(cluster.layout.pki("ca.crt"))?,
        ca_key,
    )?;
    let key = rcgen::KeyPair::generate()?;
    let mut params = client_params(attributes);
    params.not_before = (std::time::SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (std::time::SystemTime::now() + Duration::from_secs(3600)).into();
    let certificate = params.signed_by(&key, &ca)?;
    let dir = tempfile::tempdir()?;
    let identity = Identity::Certificate {
        certificate: dir.path().join("client.crt"),
        key: dir.path().join("client.key"),
    };
    fs::write(dir.path().join("client.crt"), certificate.pem())?;
    fs::write(dir.path().join("client.key"), key.serialize_pem())?;
    Ok((dir, identity))
}

/// What to ask a certificate for, by name attributes. rcgen keeps one value an OID it knows and one an OID it is told, so an
/// OID may stand there twice.
pub fn client_params(attributes: &[(&[u64], rcgen::DnValue)]) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let mut seen: Vec<&[u64]> = Vec::new();
    for (oid, value) in attributes {
        let known = match *oid {
            COMMON_NAME => Some(rcgen::DnType::CommonName),
            ORGANIZATION => Some(rcgen::DnType::OrganizationName),
            _ => None,
        };
        let kind = known
            .filter(|_| !seen.contains(oid))
            .unwrap_or_else(|| rcgen::DnType::CustomDnType(oid.to_vec()));
        seen.push(oid);
        params.distinguished_name.push(kind, value.clone());
    }
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
pub const ORGANIZATION: &[u64] = &[2, 5, 4, 10];

pub fn utf8(text: &str) -> rcgen::DnValue {
    rcgen::DnValue::Utf8String(text.to_owned())
}

/// Opens `count` connections to a node's kubelet that never say a word, from the control plane's machine.
///
/// # Errors
/// The network namespace cannot be entered, or no connection is taken at all.
pub fn idle_connections(cluster: &Cluster, to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let netns = netns_path(&cluster.layout.lan_netns());
    // A thread has its network namespace for itself: this one ends with it.
    std::thread::spawn(move || -> Result<Vec<TcpStream>> {
        setns(fs::File::open(&netns)?, CloneFlags::CLONE_NEWNET)?;
        let mut open = Vec::new();
        for _ in 0..count {
            if let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(500)) {
                open.push(stream);
            }
        }
        ensure!(!open.is_empty(), "{to} takes no connection");
        Ok(open)
    })
    .join()
    .expect("the thread does not panic")
}

/// A test that holds thousands of connections needs as many descriptors.
///
/// # Errors
/// The limit cannot be read.
pub fn raise_descriptor_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

/// Whether the long forms run.
pub fn long() -> bool {
    std::env::var_os("GANTRY_E2E_LONG").is_some()
}
