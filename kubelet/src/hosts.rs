//! The pod's hostname and its /etc/hosts.
//!
//! Owns: [`generate_pod_hostname_and_domain`], the kernel's node name, and the managed hosts file.
//! Upstream: `kubelet_pods.go`, `pkg/kubelet/util/util_linux.go`, v1.36.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use crate::pod;

/// The kernel's limit on a host name; upstream: `hostnameMaxLen`.
const HOSTNAME_MAX_LEN: usize = 63;
/// `__NEW_UTS_LEN` of the kernel.
const FQDN_MAX_LEN: usize = 64;
const NODE_HOSTS: &str = "/etc/hosts";
/// Of the node's own hosts file.
const MAX_BYTES: u64 = 4 << 20;
const MANAGED_HEADER: &str = "# Kubernetes-managed hosts file.\n";
const MANAGED_HEADER_HOST_NETWORK: &str = "# Kubernetes-managed hosts file (host network).\n";

/// Why a pod has no usable name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    #[error("pod {field} {value:?} is not a valid DNS {kind}")]
    Invalid {
        field: &'static str,
        value: String,
        kind: &'static str,
    },
    #[error("hostname for pod {0:?} was too long, and nothing is left when it is cut")]
    Empty(String),
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long (64 characters is the max, {len} characters requested)"
    )]
    FqdnTooLong { fqdn: String, len: usize },
}

fn is_label(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|c| edge(c) || c == '-')
        && text.starts_with(edge)
        && text.ends_with(edge)
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn truncate(pod: &Pod, hostname: &str) -> Result<String, HostnameError> {
    if hostname.len() <= HOSTNAME_MAX_LEN {
        return Ok(hostname.to_owned());
    }
    let cut = hostname[..HOSTNAME_MAX_LEN].trim_end_matches(['-', '.']);
    if cut.is_empty() {
        return Err(HostnameError::Empty(pod::name(pod).to_owned()));
    }
    tracing::debug!(
        pod = pod::name(pod),
        hostname = cut,
        "Hostname for pod was too long, truncated it"
    );
    Ok(cut.to_owned())
}

/// `(hostname, domain)`; the domain is empty without a subdomain.
///
/// # Errors
/// A name that is no DNS label; no retry helps.
pub fn generate_pod_hostname_and_domain(
    pod: &Pod,
    cluster_domain: &str,
) -> Result<(String, String), HostnameError> {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|s| s.hostname_override.as_deref()) {
        if !is_subdomain(name) {
            return Err(HostnameError::Invalid {
                field: "HostnameOverride",
                value: name.to_owned(),
                kind: "subdomain",
            });
        }
        return Ok((truncate(pod, name)?, String::new()));
    }
    let hostname = match spec
        .and_then(|s| s.hostname.as_deref())
        .filter(|h| !h.is_empty())
    {
        Some(name) if !is_label(name) => {
            return Err(HostnameError::Invalid {
                field: "Hostname",
                value: name.to_owned(),
                kind: "label",
            });
        }
        Some(name) => name,
        None => pod::name(pod),
    };
    let hostname = truncate(pod, hostname)?;
    let domain = match spec
        .and_then(|s| s.subdomain.as_deref())
        .filter(|s| !s.is_empty())
    {
        Some(name) if !is_label(name) => {
            return Err(HostnameError::Invalid {
                field: "Subdomain",
                value: name.to_owned(),
                kind: "label",
            });
        }
        Some(name) => format!("{name}.{}.svc.{cluster_domain}", pod::namespace(pod)),
        None => String::new(),
    };
    Ok((hostname, domain))
}

/// What `uname -n` says in the pod: the hostname, or with `setHostnameAsFQDN` the whole name.
///
/// # Errors
/// A whole name over 64 bytes; no retry helps.
pub fn get_nodename_for_kernel(
    pod: &Pod,
    hostname: &str,
    domain: &str,
) -> Result<String, HostnameError> {
    let fqdn = pod
        .spec
        .as_ref()
        .and_then(|s| s.set_hostname_as_fqdn)
        .unwrap_or(false);
    if !fqdn || domain.is_empty() {
        return Ok(hostname.to_owned());
    }
    let whole = format!("{hostname}.{domain}");
    if whole.len() > FQDN_MAX_LEN {
        return Err(HostnameError::FqdnTooLong {
            len: whole.len(),
            fqdn: whole,
        });
    }
    Ok(whole)
}

/// The hosts file of a pod with a network of its own.
pub fn managed_hosts_file_content(
    ips: &[String],
    hostname: &str,
    domain: &str,
    aliases: &[HostAlias],
) -> String {
    let mut text = format!(
        "{MANAGED_HEADER}127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
    );
    for ip in ips {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        } else {
            text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
        }
    }
    text + &hosts_entries_from_host_aliases(aliases)
}

fn hosts_entries_from_host_aliases(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = "\n# Entries added by HostAliases.\n".to_owned();
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

/// What a pod's hosts file is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostsFile {
    /// All of it.
    Managed(String),
    /// The node's, with this at its end.
    HostNetwork(String),
}

/// Pure: what the hosts file of `pod` says.
pub fn hosts_file(pod: &Pod, ips: &[String], hostname: &str, domain: &str) -> HostsFile {
    let aliases = pod
        .spec
        .as_ref()
        .and_then(|s| s.host_aliases.as_deref())
        .unwrap_or_default();
    if pod::is_host_network(pod) {
        HostsFile::HostNetwork(hosts_entries_from_host_aliases(aliases))
    } else {
        HostsFile::Managed(managed_hosts_file_content(ips, hostname, domain, aliases))
    }
}

/// Where a pod's hosts file is; its containers write it, so it counts as theirs.
pub fn hosts_file_path(pod_dir: &Path) -> PathBuf {
    pod_dir.join("etc-hosts")
}

/// Writes `<pod dir>/etc-hosts` and returns its path. It is rewritten only if its content changed: running
/// containers hold the file itself. They may have made it any size, so no more is read than it should have. Blocks.
///
/// # Errors
/// I/O; a retry may help.
pub fn ensure_hosts_file(pod_dir: &Path, wanted: &HostsFile) -> std::io::Result<PathBuf> {
    let content = match wanted {
        HostsFile::Managed(text) => text.clone(),
        HostsFile::HostNetwork(end) => {
            // A link is the node's own: some nodes keep their /etc elsewhere.
            let node = match std::fs::canonicalize(NODE_HOSTS) {
                Ok(real) => {
                    let text = host::read_regular(&real, MAX_BYTES);
                    String::from_utf8_lossy(&text.map_err(std::io::Error::other)?).into_owned()
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
                Err(error) => return Err(error),
            };
            format!("{MANAGED_HEADER_HOST_NETWORK}{node}{end}")
        }
    };
    let path = hosts_file_path(pod_dir);
    if host::read_regular(&path, content.len() as u64).is_ok_and(|old| old == content.as_bytes()) {
        return Ok(path);
    }
    std::fs::create_dir_all(pod_dir)?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(&path)?;
    file.write_all(content.as_bytes())?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;

    fn pod(spec: PodSpec) -> Pod {
        let mut pod = Pod {
            spec: Some(spec),
            ..Default::default()
        };
        pod.metadata.name = Some("web-0".into());
        pod.metadata.namespace = Some("ns".into());
        pod
    }

    #[test]
    fn names() {
        let sub = pod(PodSpec {
            hostname: Some("h".into()),
            subdomain: Some("s".into()),
            ..Default::default()
        });
        let (host, domain) = generate_pod_hostname_and_domain(&sub, "cluster.local").unwrap();
        assert_eq!(
            (host.as_str(), domain.as_str()),
            ("h", "s.ns.svc.cluster.local")
        );
        let plain = pod(PodSpec::default());
        assert_eq!(
            generate_pod_hostname_and_domain(&plain, "c").unwrap(),
            ("web-0".into(), String::new())
        );
        let bad = pod(PodSpec {
            hostname: Some("a.b".into()),
            ..Default::default()
        });
        assert_eq!(
            generate_pod_hostname_and_domain(&bad, "c")
                .unwrap_err()
                .to_string(),
            "pod Hostname \"a.b\" is not a valid DNS label"
        );
    }

    #[test]
    fn fqdn() {
        let p = pod(PodSpec {
            set_hostname_as_fqdn: Some(true),
            ..Default::default()
        });
        assert_eq!(get_nodename_for_kernel(&p, "h", "d.x").unwrap(), "h.d.x");
        assert!(get_nodename_for_kernel(&p, "h", &"d".repeat(70)).is_err());
    }

    #[test]
    fn a_grown_hosts_file_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = HostsFile::Managed("text\n".into());
        let path = ensure_hosts_file(dir.path(), &wanted).unwrap();
        let inode = |path: &Path| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(path).unwrap().ino()
        };
        let first = inode(&path);
        // A container made it sparse: reading it whole would take its size in memory.
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 42).unwrap();
        let again = ensure_hosts_file(dir.path(), &wanted).unwrap();
        assert_eq!(std::fs::read_to_string(&again).unwrap(), "text\n");
        assert_eq!(inode(&again), first, "running containers hold it");
    }

    #[test]
    fn hosts_file_has_aliases_last() {
        let aliases = [HostAlias {
            ip: "1.2.3.4".into(),
            hostnames: Some(vec!["a".into(), "b".into()]),
        }];
        let text = managed_hosts_file_content(&["10.0.0.2".into()], "h", "d", &aliases);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(
            text.ends_with("10.0.0.2\th.d\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n")
        );
    }
}
