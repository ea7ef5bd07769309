//! Certificates and kubeconfigs, laid out as kubeadm does.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};

use super::layout::{self, Layout};

/// A client certificate: its file name, common name and organisations (Kubernetes' user and groups).
struct Client {
    file: &'static str,
    user: &'static str,
    groups: &'static [&'static str],
    front_proxy: bool,
}

const CLIENTS: &[Client] = &[
    Client {
        file: "admin",
        user: "kubernetes-admin",
        groups: &["system:masters"],
        front_proxy: false,
    },
    Client {
        file: "controller-manager",
        user: "system:kube-controller-manager",
        groups: &[],
        front_proxy: false,
    },
    Client {
        file: "scheduler",
        user: "system:kube-scheduler",
        groups: &[],
        front_proxy: false,
    },
    Client {
        file: "kube-proxy",
        user: "system:kube-proxy",
        groups: &[],
        front_proxy: false,
    },
    Client {
        file: "apiserver-kubelet-client",
        user: "kube-apiserver-kubelet-client",
        groups: &[],
        front_proxy: false,
    },
    Client {
        file: "front-proxy-client",
        user: "front-proxy-client",
        groups: &[],
        front_proxy: true,
    },
];

/// Makes both CAs, every certificate, the service account key and the kubeconfigs.
///
/// # Errors
/// A file cannot be written.
pub fn create(layout: &Layout, bootstrap_token: &str) -> Result<()> {
    fs::create_dir_all(layout.pki(""))?;
    fs::create_dir_all(layout.dir().join("kubeconfig"))?;
    let ca = authority(layout, "ca", "kubernetes")?;
    let front_proxy = authority(layout, "front-proxy-ca", "front-proxy-ca")?;

    let mut server = params("kube-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth);
    let dns = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    server.subject_alt_names = dns
        .iter()
        .map(|name| Ok(SanType::DnsName((*name).try_into()?)))
        .collect::<Result<Vec<_>, rcgen::Error>>()?;
    let members = (0..layout::MAX_CONTROL_PLANES).map(layout::member_ip);
    for ip in members.chain([
        layout::CONTROL_PLANE_IP,
        layout::KUBERNETES_SERVICE_IP,
        std::net::Ipv4Addr::LOCALHOST,
    ]) {
        server.subject_alt_names.push(SanType::IpAddress(ip.into()));
    }
    issue(layout, "apiserver", server, &ca)?;

    for client in CLIENTS {
        let issuer = if client.front_proxy {
            &front_proxy
        } else {
            &ca
        };
        let certificate = params(
            client.user,
            client.groups,
            ExtendedKeyUsagePurpose::ClientAuth,
        );
        issue(layout, client.file, certificate, issuer)?;
    }

    let service_accounts = KeyPair::generate()?;
    write_private(&layout.pki("sa.key"), &service_accounts.serialize_pem())?;
    fs::write(layout.pki("sa.pub"), service_accounts.public_key_pem())?;

    let inside = format!(
        "https://{}:{}",
        layout::CONTROL_PLANE_IP,
        layout::API_SERVER_PORT
    );
    for user in ["controller-manager", "scheduler", "kube-proxy"] {
        write_kubeconfig(layout, user, user, &inside)?;
    }
    write_kubeconfig(layout, "admin-inside", "admin", &inside)?;
    let bootstrap = kubeconfig(layout, &inside, &format!("token: \"{bootstrap_token}\""))?;
    write_private(&layout.kubeconfig("bootstrap-kubelet"), &bootstrap)
}

/// The admin's kubeconfig for the machine's own network, once the forwarded port is known.
///
/// # Errors
/// A file cannot be read or written.
pub fn write_admin_kubeconfig(layout: &Layout, port: u16) -> Result<()> {
    write_kubeconfig(
        layout,
        "admin",
        "admin",
        &format!("https://127.0.0.1:{port}"),
    )
}

type Authority = Issuer<'static, KeyPair>;

fn authority(layout: &Layout, file: &str, common_name: &str) -> Result<Authority> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(common_name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::KeyEncipherment,
    ];
    validity(&mut params);
    let key = KeyPair::generate()?;
    let certificate: Certificate = params.self_signed(&key)?;
    fs::write(layout.pki(&format!("{file}.crt")), certificate.pem())?;
    write_private(&layout.pki(&format!("{file}.key")), &key.serialize_pem())?;
    Ok(Issuer::new(params, key))
}

fn params(user: &str, groups: &[&str], usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(user, groups);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![usage];
    validity(&mut params);
    params
}

fn distinguished_name(common_name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// A year, from a little before now: clocks on nodes may differ.
fn validity(params: &mut CertificateParams) {
    let now = std::time::SystemTime::now();
    params.not_before = (now - std::time::Duration::from_secs(300)).into();
    params.not_after = (now + std::time::Duration::from_secs(365 * 24 * 3600)).into();
}

fn issue(layout: &Layout, file: &str, params: CertificateParams, issuer: &Authority) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    fs::write(layout.pki(&format!("{file}.crt")), certificate.pem())?;
    write_private(&layout.pki(&format!("{file}.key")), &key.serialize_pem())
}

fn write_kubeconfig(layout: &Layout, file: &str, certificate: &str, server: &str) -> Result<()> {
    let user = format!(
        "client-certificate-data: {}\n    client-key-data: {}",
        base64(&fs::read(layout.pki(&format!("{certificate}.crt")))?),
        base64(&fs::read(layout.pki(&format!("{certificate}.key")))?)
    );
    let text = kubeconfig(layout, server, &user)?;
    write_private(&layout.kubeconfig(file), &text)
}

fn kubeconfig(layout: &Layout, server: &str, user: &str) -> Result<String> {
    let ca = base64(&fs::read(layout.pki("ca.crt")).context("read the CA certificate")?);
    let name = &layout.name;
    Ok(format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {name}\n  user:\n    {user}\ncontexts:\n- name: {name}\n  \
         context:\n    cluster: {name}\n    user: {name}\ncurrent-context: {name}\n"
    ))
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    Ok(())
}

/// Standard base64 with padding; four lines do not want a dependency.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for index in 0..4 {
            if index <= chunk.len() {
                text.push(char::from(
                    ALPHABET[(word >> (18 - 6 * index) & 63) as usize],
                ));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_pads() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
